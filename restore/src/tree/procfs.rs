//! Processes that must exist while files below their /proc directory are opened (BEHAVIOUR 3.1).
//!
//! A PROCFS remap names a dead process, or a dead thread of a live one. Nobody in the tree has the
//! number: a helper has it from the fork phase to the deaths. Somebody has (the number was given
//! out again, or the thread's process lives): a short-lived helper has it in `Phase::Root`, before
//! the owner of today is forked; the files it serves are opened then and only then. Threads that
//! such paths name exist early, or belong to the helper.

use super::kin::ProcHelper;
use super::{Task, Tree};
use crate::files::dead_pidfd_pids;
use crate::plan::step::{Actor, Op, Origin, Phase};
use crate::plan::{Planner, Refusal, StepId};
use crust_image::checkpoint::RemapTarget;
use crust_image::ids::{FileId, VirtPid};
use std::collections::{BTreeMap, BTreeSet};

/// A short-lived helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reused {
    /// It, with its threads, exists.
    pub alive: StepId,
    /// It ends: every open by it comes before.
    pub dies: StepId,
}

/// A process or thread that a path leads through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ProcPath {
    pid: VirtPid,
    tid: Option<VirtPid>,
}

/// What the remaps ask for: helpers by pid, with the threads they must have.
#[derive(Debug, Default)]
struct Wanted {
    /// From the fork phase on.
    helpers: BTreeMap<VirtPid, BTreeSet<VirtPid>>,
    /// In the root phase only: pid, threads, and the numbers under which remaps name it.
    short: BTreeMap<VirtPid, BTreeSet<VirtPid>>,
}

/// Finds who is needed; notes early threads and makes short-lived helpers. Gives the helpers that
/// kin.rs has to place.
pub fn plan(planner: &mut Planner<'_>) -> Vec<ProcHelper> {
    let mut wanted = Wanted::default();
    let mut mounts = BTreeSet::from([b"/proc".to_vec()]);
    let checkpoint = planner.checkpoint;
    for remap in &checkpoint.remaps {
        let RemapTarget::Procfs(number) = remap.target else {
            continue;
        };
        let name = name_of(planner, remap.orig_id);
        let found = name.and_then(|name| locate(name, number));
        let Some((mount, path)) = found else {
            let what = format!("dead process {number} of file {}", remap.orig_id);
            let origin = Origin::new("remap-fpath.img", Some(remap.entry), what);
            let why = format!(
                "orig_id {} is no file below a directory {number}",
                remap.orig_id
            );
            planner.refuse(Refusal::new(origin, why));
            continue;
        };
        mounts.insert(mount.to_vec());
        want(&planner.tree, &mut wanted, path);
    }
    let mut paths = BTreeSet::new();
    for file in checkpoint
        .files
        .values()
        .filter_map(|file| file.reg.as_ref())
    {
        let path = mounts.iter().find_map(|mount| parse(mount, &file.name));
        paths.extend(path);
    }
    for path in paths {
        note_thread(&mut planner.tree, &mut wanted, path);
    }
    for pid in dead_pidfd_pids(checkpoint).into_values().flatten() {
        wanted.helpers.entry(pid).or_default();
    }
    check_numbers(planner, &wanted);
    plan_short(planner, &wanted);
    let helper = |(pid, threads): (VirtPid, BTreeSet<VirtPid>)| ProcHelper {
        pid,
        threads: threads.into_iter().collect(),
    };
    wanted.helpers.into_iter().map(helper).collect()
}

/// A helper's threads must not be those of the tree, and all must fit below pid_max.
fn check_numbers(planner: &mut Planner<'_>, wanted: &Wanted) {
    let numbers = wanted
        .helpers
        .iter()
        .flat_map(|(pid, threads)| threads.iter().chain([pid]));
    let numbers: Vec<VirtPid> = numbers.copied().collect();
    for number in numbers {
        let tree = &planner.tree;
        let why = if number.get() >= planner.host.pid_max {
            format!(
                "{number} is not below pid_max {} of this host",
                planner.host.pid_max
            )
        } else if number.get() == planner.host.own_pid {
            format!("{number} is the pid of crust-restore itself")
        } else if tree.task(number).is_some() || is_thread(tree, number) {
            format!("thread {number} of a dead process is a task or thread of the tree too")
        } else {
            continue;
        };
        let what = format!("helper {number} for files of a dead process");
        planner.refuse(Refusal::new(
            Origin::new("remap-fpath.img", None, what),
            why,
        ));
    }
}

fn name_of<'c>(planner: &Planner<'c>, id: FileId) -> Option<&'c [u8]> {
    let checkpoint = planner.checkpoint;
    let reg = checkpoint.file(id)?.reg.as_ref()?;
    Some(&reg.name)
}

/// The procfs mount and the process of a path in which this number is a process or a thread.
fn locate(name: &[u8], number: VirtPid) -> Option<(&[u8], ProcPath)> {
    let mut at = 0;
    while let Some(slash) = name.get(at..)?.iter().position(|byte| *byte == b'/') {
        let mount = name.get(..at + slash)?;
        let leads_there = |path: &ProcPath| path.pid == number || path.tid == Some(number);
        if let Some(path) = parse(mount, name).filter(leads_there) {
            return Some((mount, path));
        }
        at += slash + 1;
    }
    None
}

/// What a path below this procfs leads through.
fn parse(mount: &[u8], name: &[u8]) -> Option<ProcPath> {
    let below = name.strip_prefix(mount)?.strip_prefix(b"/")?;
    let mut parts = below.split(|byte| *byte == b'/');
    let pid = number(parts.next()?)?;
    let tid = match parts.next() {
        Some(b"task") => parts.next().and_then(number),
        _ => None,
    };
    Some(ProcPath { pid, tid })
}

fn number(part: &[u8]) -> Option<VirtPid> {
    let digits = part.iter().all(u8::is_ascii_digit) && part.first() != Some(&b'0');
    let text = std::str::from_utf8(part).ok().filter(|_| digits)?;
    VirtPid::new(text.parse().ok()?)
}

fn is_thread(tree: &Tree, tid: VirtPid) -> bool {
    tree.tasks.iter().any(|task| task.threads.contains(&tid))
}

/// Notes who a remap asks for.
fn want(tree: &Tree, wanted: &mut Wanted, path: ProcPath) {
    let in_use = tree.task(path.pid).is_some() || is_thread(tree, path.pid);
    let list = if in_use {
        &mut wanted.short
    } else {
        &mut wanted.helpers
    };
    list.entry(path.pid)
        .or_default()
        .extend(path.tid.filter(|tid| *tid != path.pid));
}

/// Threads named by paths of any file: a helper has them, a live task has them early.
fn note_thread(tree: &mut Tree, wanted: &mut Wanted, path: ProcPath) {
    let Some(tid) = path.tid.filter(|tid| *tid != path.pid) else {
        return;
    };
    if let Some(threads) = wanted.helpers.get_mut(&path.pid) {
        threads.insert(tid);
    } else if tree
        .task(path.pid)
        .is_some_and(|task| task.threads.contains(&tid))
    {
        tree.early_threads.insert(tid);
    }
}

/// Makes short-lived helpers, one after the other: their numbers may meet.
fn plan_short(planner: &mut Planner<'_>, wanted: &Wanted) {
    let Some(root) = planner.tree.root else {
        return;
    };
    let mut last: Option<StepId> = None;
    for (&pid, threads) in &wanted.short {
        let origin = Origin::new(
            "remap-fpath.img",
            None,
            format!("short-lived process {pid} for files of one that is gone"),
        );
        if pid == root || threads.contains(&root) {
            let why = format!("{pid} is the root of the tree, which cannot be made twice yet");
            planner.refuse(Refusal::new(origin, why));
            continue;
        }
        let fork = Op::Fork {
            pid,
            flags: 0,
            exit_signal: 0,
        };
        let mut alive = planner.push(Phase::Root, Actor::Task(root), fork, origin.clone());
        if let Some(last) = last {
            planner.in_turn(last, alive);
        }
        for &tid in threads {
            let op = Op::Thread { tid };
            alive = planner.push(Phase::Root, Actor::Task(pid), op, origin.clone());
        }
        let die = Op::Die { status: 0 };
        let dies = planner.push(Phase::Root, Actor::Task(pid), die, origin.clone());
        let reap = planner.push(Phase::Root, Actor::Task(root), Op::Reap { pid }, origin);
        planner.in_turn(dies, reap);
        last = Some(reap);
        for number in threads.iter().chain([&pid]) {
            planner.tree.reused.insert(*number, Reused { alive, dies });
        }
    }
}

/// The threads of a task that are made with it, not with the other threads.
pub fn early_threads(tree: &Tree, task: &Task) -> Vec<VirtPid> {
    let early = task
        .threads
        .iter()
        .filter(|tid| tree.early_threads.contains(tid));
    early.copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: u32) -> VirtPid {
        VirtPid::new(number).expect("a pid")
    }

    fn path(pid_of: u32, tid: Option<u32>) -> ProcPath {
        ProcPath {
            pid: pid(pid_of),
            tid: tid.map(pid),
        }
    }

    #[test]
    fn paths_below_proc() {
        assert_eq!(parse(b"/proc", b"/proc/12/stat"), Some(path(12, None)));
        assert_eq!(parse(b"/proc", b"/proc/12"), Some(path(12, None)));
        assert_eq!(
            parse(b"/proc", b"/proc/12/task/13/comm"),
            Some(path(12, Some(13)))
        );
        assert_eq!(parse(b"/proc", b"/proc/kmsg"), None);
        assert_eq!(parse(b"/proc", b"/proc/012"), None);
        assert_eq!(parse(b"/proc", b"/process/12"), None);
    }

    #[test]
    fn the_mount_is_found_by_the_number() {
        let (mount, found) = locate(b"/srv/7/p/12/status", pid(12)).expect("found");
        assert_eq!((mount, found), (&b"/srv/7/p"[..], path(12, None)));
        let (mount, found) = locate(b"/proc/12/task/13", pid(13)).expect("found");
        assert_eq!((mount, found), (&b"/proc"[..], path(12, Some(13))));
        assert!(locate(b"/proc/12/status", pid(13)).is_none());
    }
}
