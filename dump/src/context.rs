//! What every room of a dump may ask: the options, the log, the frozen tasks and the list of
//! refusals. It holds nothing of ptrace, so rooms can run on any thread.

use crate::mm::foresee::Foreseen;
use crate::refusal::{Refusal, Refusals};
use crust_cli::log::Log;
use crust_cli::options::Options;
use crust_process::memory::TaskMem;
use crust_process::pid::HostPid;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// A dump under way.
#[derive(Debug)]
pub struct Context<'a> {
    /// The command line.
    pub options: &'a Options,
    /// The log file.
    pub log: &'a Log,
    /// The frozen tasks, parents before their children; zombies are not among them.
    pub tasks: Vec<Task>,
    /// When the last thread had stopped.
    pub stopped: Instant,
    /// Areas that were read before the freeze.
    pub foreseen: Foreseen,
    /// What cannot be dumped. All are told at once.
    pub refusals: Refusals,
}

/// A frozen task as the rooms see it.
#[derive(Debug)]
pub struct Task {
    /// Its id as we see it, or, if its leader is dead, that of a thread that lives: what /proc and
    /// kcmp(2) are asked for.
    pub pid: HostPid,
    /// Its id in the root task's pid namespace: what images say.
    pub virt: u32,
    /// Its parent's id as we see it.
    pub ppid: i32,
    /// Its threads, the leader first.
    pub tids: Vec<HostPid>,
    /// A descriptor of the task, for pidfd_getfd(2).
    pub pidfd: OwnedFd,
    /// Its memory.
    pub mem: TaskMem,
}

impl Context<'_> {
    /// Notes something that cannot be dumped.
    pub fn refuse(&self, refusal: Refusal) {
        self.refusals.push(refusal);
    }

    /// The frozen task with this id as we see it.
    pub fn task(&self, pid: i32) -> Option<&Task> {
        self.tasks.iter().find(|task| task.pid.get() == pid)
    }
}
