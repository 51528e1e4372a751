//! Everything Crust does to another process: ptrace, remote system calls, memory, descriptors,
//! and what /proc says. All `unsafe` of the project is here, narrow and argued.

pub mod batch;
pub mod bpf;
pub mod broker;
pub mod build_id;
pub mod cpuid;
pub mod descriptor;
pub mod dirty;
pub mod error;
pub mod fds;
pub mod freeze;
pub mod iptables;
pub mod kcmp;
pub mod kept_options;
pub mod leftover;
pub mod making;
pub mod memory;
pub mod namespace;
pub mod netfilter;
pub mod netlink;
pub mod pagemap;
pub mod pid;
pub mod proc;
pub mod regs;
pub mod remote;
pub mod scratch;
pub mod shared_anon;
pub mod sockdiag;
pub mod steps;
pub mod stub;
pub mod survivor;
pub mod sysv;
pub mod tcp_repair;
pub mod terminal;
pub mod tracee;
pub mod xstate;
