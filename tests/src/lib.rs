//! The harness of Crust's end-to-end tests.
//!
//! A test runs in pid, mount and network namespaces of its own (`sandbox`): pids of images are
//! free there, what is mounted vanishes with it, and a test that dies leaves no process. Inside,
//! a guest program (`guest`, built by `build` from guests/*.c) sets up one kind of kernel state,
//! says `ready`, is dumped and restored by the executables under test (`tools`), gets SIGTERM
//! and checks itself: its verdict is the last line of its output. `proc_snapshot` compares what
//! /proc says of the tree before and after. `corpus` gives the images that CRIU wrote.
#![forbid(unsafe_code)]

pub mod build;
pub mod corpus;
pub mod cost;
pub mod crit_bench;
pub mod edited;
pub mod faults;
pub mod guest;
pub mod kills;
pub mod mutation;
pub mod proc_snapshot;
pub mod round_trip;
pub mod sandbox;
pub mod tools;
pub mod wire;
