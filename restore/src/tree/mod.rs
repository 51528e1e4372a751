//! The tree of tasks: who is whose child, in which session and group, which threads each has, and
//! which helpers must stand in for processes that are gone.
//!
//! `kin.rs` decides who forks whom, because sessions are only inherited: a child of a session that
//! its parent has left was forked before that. `forks.rs` makes the steps. Helpers are: the leader
//! of a session or group whose leader is dead; a process in between, for a task whose parent was
//! never in its session; and the dead process of a /proc/PID file (`procfs.rs`).
//!
//! Task state (alive, stopped, zombie) is tc.task_state of core-PID.img.

mod forks;
pub mod kin;
mod namespaces;
mod procfs;
mod sharing;
mod timens;

use crate::plan::step::Origin;
use crate::plan::{Planner, Refusal, StepId};
use crust_image::ids::VirtPid;
use crust_proto::criu::TaskKobjIdsEntry;
pub use namespaces::{plan_new, uts_names};
pub use procfs::{ProcMounts, Reused};
use std::collections::{BTreeMap, BTreeSet};
pub use timens::{CLONE_NEWTIME, ClockShift};

/// tc.task_state.
const TASK_ALIVE: u32 = 1;
const TASK_DEAD: u32 = 2;
const TASK_STOPPED: u32 = 3;

/// How a task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Alive,
    /// It is stopped by this signal.
    Stopped(i32),
    /// It is dead with this raw wait status and waits for its parent.
    Zombie(i32),
}

/// A task of the images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its pid.
    pub pid: VirtPid,
    /// Its parent; `None` for the root.
    pub parent: Option<VirtPid>,
    /// Its group.
    pub pgid: u32,
    /// Its session.
    pub sid: u32,
    /// Threads besides the leader.
    pub threads: Vec<VirtPid>,
    /// How it goes on.
    pub state: State,
    /// Index in pstree.img.
    pub entry: usize,
    /// Which kernel objects it shares; a zombie has none.
    pub ids: Option<TaskKobjIdsEntry>,
}

impl Task {
    /// Whether it is made to run, or to be stopped.
    pub fn is_live(&self) -> bool {
        !matches!(self.state, State::Zombie(_))
    }

    fn origin(&self, what: impl Into<String>) -> Origin {
        Origin::new("pstree.img", Some(self.entry), what)
    }
}

/// All tasks and helpers.
#[derive(Debug, Default)]
pub struct Tree {
    /// The root's pid.
    pub root: Option<VirtPid>,
    /// Tasks in the order of pstree.img: parents before their children.
    pub tasks: Vec<Task>,
    /// The steps that fork tasks.
    pub forks: BTreeMap<VirtPid, StepId>,
    /// Pids of helpers, which are alive from `Phase::Fork` to `Phase::Deaths`.
    pub helpers: BTreeSet<VirtPid>,
    /// Threads that are made in `Phase::Fork` because a file below their /proc entry is open.
    pub early_threads: BTreeSet<VirtPid>,
    /// Short-lived helpers under a pid that a task or thread of the tree has now.
    pub reused: BTreeMap<VirtPid, Reused>,
    /// Where procfs is mounted.
    pub proc_mounts: ProcMounts,
    /// What is added to this host's clocks in the tree's time namespace.
    pub clocks: ClockShift,
}

impl Tree {
    /// Tasks that will run or be stopped.
    pub fn alive(&self) -> impl Iterator<Item = &Task> {
        self.tasks.iter().filter(|task| task.is_live())
    }

    /// The live tasks that are the first to have an object: by these numbers of ids-PID.img, one
    /// does for all who share it. A task without an image has everything for itself.
    pub fn owners(&self, id: fn(&TaskKobjIdsEntry) -> u32) -> impl Iterator<Item = &Task> {
        let mut met = BTreeSet::new();
        self.alive()
            .filter(move |task| task.ids.as_ref().is_none_or(|ids| met.insert(id(ids))))
    }

    /// The task with a pid.
    pub fn task(&self, pid: VirtPid) -> Option<&Task> {
        self.tasks.iter().find(|task| task.pid == pid)
    }

    /// Children of a task, dead ones too.
    pub fn children(&self, pid: VirtPid) -> impl Iterator<Item = &Task> {
        self.tasks
            .iter()
            .filter(move |task| task.parent == Some(pid))
    }

    /// Whether a pid is that of a task, a zombie or a helper while files are opened.
    pub fn has_process(&self, pid: VirtPid) -> bool {
        self.task(pid).is_some() || self.helpers.contains(&pid)
    }
}

/// Reads the tree and plans who forks whom.
pub fn plan(planner: &mut Planner<'_>) {
    let tasks = read(planner);
    if !check(planner, &tasks) {
        return;
    }
    planner.tree.root = tasks.first().map(|task| task.pid);
    if let Some(root) = tasks.first() {
        forks::plan_root(planner, root);
    }
    timens::plan(planner, &tasks);
    namespaces::plan(planner, &tasks);
    planner.tree.tasks = tasks;
    let helpers = procfs::plan(planner);
    let names = kin::Names {
        shell_job: planner.options.shell_job,
        pid_max: planner.host.pid_max,
        own_pid: planner.host.own_pid,
    };
    match kin::arrange(&planner.tree.tasks, &helpers, names) {
        Ok(kin) => forks::plan(planner, &kin),
        Err(refusals) => refusals
            .into_iter()
            .for_each(|refusal| planner.refuse(refusal)),
    }
}

fn read(planner: &mut Planner<'_>) -> Vec<Task> {
    let mut tasks = Vec::new();
    for (entry, stored) in planner.checkpoint.pstree().iter().enumerate() {
        let origin = Origin::new("pstree.img", Some(entry), format!("task {}", stored.pid));
        let Some(pid) = VirtPid::new(stored.pid) else {
            planner.refuse(Refusal::new(
                origin,
                format!("pid {} is no pid", stored.pid),
            ));
            continue;
        };
        let state = match state_of(planner, pid) {
            Ok(state) => state,
            Err(why) => {
                let origin = Origin::new(format!("core-{pid}.img"), Some(0), format!("task {pid}"));
                planner.refuse(Refusal::new(origin, why));
                continue;
            }
        };
        let zombie = matches!(state, State::Zombie(_));
        match threads_of(&stored.threads, pid, zombie) {
            Ok(threads) => tasks.push(Task {
                pid,
                parent: VirtPid::new(stored.ppid),
                pgid: stored.pgid,
                sid: stored.sid,
                threads,
                state,
                entry,
                ids: planner.checkpoint.ids(pid).cloned(),
            }),
            Err(why) => planner.refuse(Refusal::new(origin, why)),
        }
    }
    tasks
}

fn state_of(planner: &Planner<'_>, pid: VirtPid) -> Result<State, String> {
    let core = planner.checkpoint.core(pid).ok_or("the image is missing")?;
    let tc = core.tc.as_ref().ok_or("tc is missing")?;
    match tc.task_state {
        TASK_ALIVE => Ok(State::Alive),
        TASK_DEAD => zombie(tc.exit_code),
        TASK_STOPPED => {
            let signal = tc.stop_signo.unwrap_or(nix::libc::SIGSTOP as u32) as i32;
            let stops = [
                nix::libc::SIGSTOP,
                nix::libc::SIGTSTP,
                nix::libc::SIGTTIN,
                nix::libc::SIGTTOU,
            ];
            if stops.contains(&signal) {
                Ok(State::Stopped(signal))
            } else {
                Err(format!("tc.stop_signo {signal} is no signal that stops"))
            }
        }
        other => Err(format!("tc.task_state {other} is not known")),
    }
}

/// A raw wait status: an exit code in the second byte, or a signal with the core bit.
fn zombie(status: u32) -> Result<State, String> {
    let (signal, code) = (status & 0x7f, status >> 8);
    if status > 0xffff || signal > 64 || (signal != 0 && code != 0) {
        return Err(format!("tc.exit_code {status:#x} is no wait status"));
    }
    Ok(State::Zombie(status as i32))
}

fn threads_of(stored: &[u32], pid: VirtPid, zombie: bool) -> Result<Vec<VirtPid>, String> {
    if zombie {
        return Ok(Vec::new());
    }
    match stored.split_first() {
        Some((&leader, others)) if leader == pid.get() => {
            let parse = |&tid: &u32| VirtPid::new(tid).ok_or(format!("thread {tid} is no pid"));
            others.iter().map(parse).collect()
        }
        _ => Err(format!(
            "threads {stored:?} do not begin with the leader {pid}"
        )),
    }
}

/// What the rest relies on: one root, in front; parents before children; every id once.
fn check(planner: &mut Planner<'_>, tasks: &[Task]) -> bool {
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    let mut parents = BTreeSet::new();
    for (at, task) in tasks.iter().enumerate() {
        let origin = task.origin(format!("task {}", task.pid));
        let mut fault = |why: String| faults.push(Refusal::new(origin.clone(), why));
        for id in [task.pid].iter().chain(&task.threads) {
            if !seen.insert(*id) {
                fault(format!("id {id} is that of another task or thread too"));
            }
            if id.get() == planner.host.own_pid {
                fault(format!(
                    "id {id} is the pid of crust-restore itself: run it again, under another"
                ));
            }
            if id.get() >= planner.host.pid_max {
                let max = planner.host.pid_max;
                fault(format!("id {id} is not below pid_max {max} of this host"));
            }
        }
        match task.parent {
            None if at > 0 => fault("is a second root: its ppid is 0".to_owned()),
            Some(parent) if at == 0 => fault(format!("is the first but has parent {parent}")),
            Some(parent) if !parents.contains(&parent) => {
                fault(format!("parent {parent} is not before it, or is dead"));
            }
            _ => {}
        }
        if task.is_live() {
            parents.insert(task.pid);
        }
        if task.sid == task.pid.get() && task.pgid != task.sid {
            fault(format!(
                "leads session {} but is in group {}",
                task.sid, task.pgid
            ));
        }
        for (name, id) in [("pgid", task.pgid), ("sid", task.sid)] {
            // 0 is a group or session from outside of the dumped pid namespace.
            if id != 0 && VirtPid::new(id).is_none() {
                fault(format!("{name} {id} is no pid"));
            }
        }
    }
    if tasks.is_empty() {
        let origin = Origin::new("pstree.img", None, "the tree");
        faults.push(Refusal::new(origin, "no task can be restored"));
    }
    let good = faults.is_empty();
    faults.into_iter().for_each(|fault| planner.refuse(fault));
    good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses() {
        assert_eq!(zombie(0x300), Ok(State::Zombie(0x300)));
        assert_eq!(zombie(9), Ok(State::Zombie(9)));
        assert_eq!(zombie(0x8b), Ok(State::Zombie(0x8b)));
        assert!(zombie(0x10000).is_err());
        assert!(zombie(0x309).is_err());
    }

    #[test]
    fn thread_lists_begin_with_the_leader() {
        let pid = VirtPid::new(5).expect("a pid");
        assert_eq!(
            threads_of(&[5, 6], pid, false),
            Ok(vec![VirtPid::new(6).expect("a pid")])
        );
        assert_eq!(threads_of(&[0], pid, true), Ok(vec![]));
        assert!(threads_of(&[6], pid, false).is_err());
        assert!(threads_of(&[], pid, false).is_err());
        assert!(threads_of(&[5, 0], pid, false).is_err());
    }
}
