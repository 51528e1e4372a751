//! Reading and writing the files of a dump.
//!
//! This crate does file I/O on images and nothing else: no ptrace, no /proc, no unsafe. An image is
//! untrusted input; every reader returns an `Error` that names the file, the entry and the byte.
#![forbid(unsafe_code)]

pub mod check;
pub mod checkpoint;
pub mod dedup;
pub mod digest;
pub mod dir;
pub mod dynamic;
pub mod entry;
pub mod error;
pub mod ghost;
pub mod ids;
pub mod json;
pub mod kind;
pub mod pages;
pub mod payload;
mod required;
pub mod sink;
pub mod tcp_state;

#[cfg(test)]
mod testing;

pub use dir::ImageDir;
pub use error::{Error, Result};
pub use kind::Kind;
pub use sink::ImageSink;
