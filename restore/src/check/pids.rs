//! Pids that the tree needs and that somebody has. They may be free a moment later, or taken:
//! clone3 has the last word.

use super::Subject;
use crate::plan::step::{Op, Step};
use crust_cli::code::Code;
use crust_cli::finding::Finding;
use crust_image::ids::VirtPid;
use nix::libc;
use std::collections::BTreeSet;
use std::fs;

/// Each busy pid with its holder.
pub fn check(subject: &Subject<'_>) -> Vec<Finding> {
    // In a pid namespace of its own every number is free.
    let own = |step: &&Step| match step.op {
        Op::Fork { flags, .. } => flags & libc::CLONE_NEWPID as u64 != 0,
        _ => false,
    };
    if subject.steps.iter().any(|step| own(&step)) {
        return Vec::new();
    }
    let numbers = subject.steps.iter().filter_map(needed);
    let numbers: BTreeSet<VirtPid> = numbers.collect();
    let taken = |pid: &VirtPid| fs::exists(format!("/proc/{pid}")).unwrap_or(false);
    numbers.into_iter().filter(taken).map(busy).collect()
}

/// The number that a step gives to a task or thread.
fn needed(step: &Step) -> Option<VirtPid> {
    match step.op {
        Op::Fork { pid, .. } => Some(pid),
        Op::Thread { tid } => Some(tid),
        _ => None,
    }
}

fn busy(pid: VirtPid) -> Finding {
    let what = match holder(pid) {
        Some(comm) => format!("is in use by {comm:?}"),
        None => "is in use as a process, thread, group or session id".to_owned(),
    };
    Finding::error(Code::PidBusy, format!("pid {pid}"), what)
}

/// The name of the process that has a pid.
pub fn holder(pid: VirtPid) -> Option<String> {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    let comm = comm.trim_end();
    (!comm.is_empty()).then(|| comm.to_owned())
}
