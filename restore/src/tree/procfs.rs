//! Processes that must exist while files below their /proc directory are opened.
//!
//! A PROCFS remap names a dead process, or a dead thread of a live one. Nobody in the tree has the
//! number: a helper has it from the fork phase to the deaths. Somebody has (the number was given
//! out again, or the thread's process lives): a short-lived helper has it in `Phase::Root`, before
//! the owner of today is forked, or in `Phase::Open`, if that is the root itself; the files it
//! serves are opened then and only then. Threads that such paths name exist early, or belong to
//! the helper, and so do descriptors: /proc/PID/fdinfo/N is there only while N is open.

use super::kin::ProcHelper;
use super::{Task, Tree};
use crate::files::{dead_pidfd_pids, pidfd_threads};
use crate::plan::step::{Actor, Arg, Call, Op, Origin, Phase, Ret};
use crate::plan::{Planner, Refusal, StepId};
use crust_image::checkpoint::RemapTarget;
use crust_image::ids::{FileId, VirtPid};
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};

/// A short-lived helper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reused {
    /// It, with its threads, exists.
    pub alive: StepId,
    /// It ends: every open by it comes before.
    pub dies: StepId,
    /// When it lives.
    pub phase: Phase,
}

/// A process or thread that a path leads through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcPath {
    /// Of `<mount>/PID`.
    pub pid: VirtPid,
    /// Of `<mount>/PID/task/TID`.
    pub tid: Option<VirtPid>,
}

/// Where procfs is mounted, as far as the remaps show it.
#[derive(Debug, Default)]
pub struct ProcMounts(BTreeSet<Vec<u8>>);

impl ProcMounts {
    /// What a path leads through, if it is below one of these mounts.
    pub fn find(&self, name: &[u8]) -> Option<ProcPath> {
        self.0.iter().find_map(|mount| parse(mount, name))
    }

    /// The process and the descriptor of a path to an fdinfo.
    fn find_fdinfo(&self, name: &[u8]) -> Option<(VirtPid, i32)> {
        self.0.iter().find_map(|mount| parse_fdinfo(mount, name))
    }
}

/// What the remaps ask for: helpers by pid, with the threads they must have.
#[derive(Debug, Default)]
struct Wanted {
    /// From the fork phase on.
    helpers: BTreeMap<VirtPid, BTreeSet<VirtPid>>,
    /// Before the owner of today only: pid and threads.
    short: BTreeMap<VirtPid, BTreeSet<VirtPid>>,
    /// Descriptors that must be open in a helper.
    fds: BTreeMap<VirtPid, BTreeSet<i32>>,
}

/// Finds who is needed; notes early threads and makes short-lived helpers. Gives the helpers that
/// kin.rs has to place.
pub fn plan(planner: &mut Planner<'_>) -> Vec<ProcHelper> {
    let mut wanted = Wanted::default();
    let mut mounts = ProcMounts(BTreeSet::from([b"/proc".to_vec()]));
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
        mounts.0.insert(mount.to_vec());
        want(&planner.tree, &mut wanted, path);
    }
    let mut paths = BTreeSet::new();
    for file in checkpoint
        .files
        .values()
        .filter_map(|file| file.reg.as_ref())
    {
        paths.extend(mounts.find(&file.name));
    }
    for path in paths {
        note_thread(&mut planner.tree, &mut wanted, path);
    }
    for reg in checkpoint
        .files
        .values()
        .filter_map(|file| file.reg.as_ref())
    {
        if let Some((pid, fd)) = mounts.find_fdinfo(&reg.name) {
            wanted.fds.entry(pid).or_default().insert(fd);
        }
    }
    for tid in pidfd_threads(checkpoint) {
        if planner.tree.task(tid).is_none() && is_thread(&planner.tree, tid) {
            planner.tree.early_threads.insert(tid);
        }
    }
    for pid in dead_pidfd_pids(checkpoint).into_values().flatten() {
        wanted.helpers.entry(pid).or_default();
    }
    planner.tree.proc_mounts = mounts;
    check_numbers(planner, &wanted);
    plan_short(planner, &wanted);
    for pid in wanted.helpers.keys() {
        let origin = Origin::new(
            "remap-fpath.img",
            None,
            format!("fdinfo of dead process {pid}"),
        );
        plan_fds(planner, Phase::Fork, *pid, &wanted, &origin);
    }
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
        // The root of everything is no procfs.
        let path = parse(mount, name).filter(|path| !mount.is_empty() && leads_there(path));
        if let Some(path) = path {
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

/// Makes short-lived helpers, one after the other: their numbers may meet. Where the root's own
/// number is wanted the broker is the parent, and the helper is gone before the root is forked.
fn plan_short(planner: &mut Planner<'_>, wanted: &Wanted) {
    let Some(root) = planner.tree.root else {
        return;
    };
    let of_root =
        |pid: VirtPid, threads: &BTreeSet<VirtPid>| pid == root || threads.contains(&root);
    for (phase, maker) in [
        (Phase::Open, Actor::Broker),
        (Phase::Root, Actor::Task(root)),
    ] {
        let mut last: Option<StepId> = None;
        for (&pid, threads) in &wanted.short {
            if of_root(pid, threads) == (maker == Actor::Broker) {
                last = Some(plan_one_short(planner, (phase, maker), pid, wanted, last));
            }
        }
    }
}

/// One short-lived helper with its threads and descriptors; gives the step behind its end.
fn plan_one_short(
    planner: &mut Planner<'_>,
    (phase, maker): (Phase, Actor),
    pid: VirtPid,
    wanted: &Wanted,
    last: Option<StepId>,
) -> StepId {
    let what = format!("short-lived process {pid} for files of one that is gone");
    let origin = Origin::new("remap-fpath.img", None, what);
    let threads = wanted.short.get(&pid).into_iter().flatten().copied();
    let threads: Vec<VirtPid> = threads.collect();
    let fork = Op::Fork {
        pid,
        flags: 0,
        exit_signal: 0,
    };
    let mut alive = planner.push(phase, maker, fork, origin.clone());
    if let Some(last) = last {
        planner.in_turn(last, alive);
    }
    for &tid in &threads {
        let op = Op::Thread { tid };
        let made = planner.push(phase, Actor::Task(pid), op, origin.clone());
        planner.in_turn(alive, made);
        alive = made;
    }
    if let Some(opened) = plan_fds(planner, phase, pid, wanted, &origin) {
        planner.in_turn(alive, opened);
        alive = opened;
    }
    let die = Op::Die { status: 0 };
    let dies = planner.push(phase, Actor::Task(pid), die, origin.clone());
    planner.in_turn(alive, dies);
    let mut end = dies;
    // A child of the broker is reaped by the broker, which is its tracer too.
    if maker != Actor::Broker {
        end = planner.push(phase, maker, Op::Reap { pid }, origin);
        planner.in_turn(dies, end);
    }
    for number in threads.iter().chain([&pid]) {
        let reused = Reused { alive, dies, phase };
        planner.tree.reused.insert(*number, reused);
    }
    end
}

/// Opens in a helper the descriptors whose fdinfo is wanted. Whatever it has as 0 will do for all:
/// an eventfd where nothing was.
fn plan_fds(
    planner: &mut Planner<'_>,
    phase: Phase,
    pid: VirtPid,
    wanted: &Wanted,
    origin: &Origin,
) -> Option<StepId> {
    let fds = wanted.fds.get(&pid)?;
    let zero = Call::new(
        "eventfd2",
        libc::SYS_eventfd2,
        vec![Arg::Int(0), Arg::Int(0)],
    );
    let mut last = planner.call(
        phase,
        Actor::Task(pid),
        zero.answers(Ret::Any),
        origin.clone(),
    );
    for fd in fds.iter().filter(|fd| **fd != 0) {
        let args = vec![Arg::Int(0), Arg::Int((*fd).into()), Arg::Int(0)];
        let dup = Call::new("dup3", libc::SYS_dup3, args);
        let next = planner.call(phase, Actor::Task(pid), dup, origin.clone());
        planner.in_turn(last, next);
        last = next;
    }
    Some(last)
}

/// The process and the descriptor of a path to an fdinfo, its own or a thread's.
fn parse_fdinfo(mount: &[u8], name: &[u8]) -> Option<(VirtPid, i32)> {
    let pid = parse(mount, name)?.pid;
    let mut parts = name.rsplit(|byte| *byte == b'/');
    let fd = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    (parts.next()? == b"fdinfo")
        .then_some((pid, fd))
        .filter(|(_, fd)| *fd >= 0)
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
        assert_eq!(parse(b"/proc", b"/proc/+12/stat"), None);
        assert_eq!(parse(b"/proc", b"/proc/12/task/+3"), Some(path(12, None)));
        let mounts = ProcMounts(BTreeSet::from([b"/proc".to_vec(), b"/mnt/proc".to_vec()]));
        assert_eq!(mounts.find(b"/mnt/proc/7/task/8"), Some(path(7, Some(8))));
        assert_eq!(mounts.find(b"/a/7"), None);
    }

    #[test]
    fn the_mount_is_found_by_the_number() {
        let (mount, found) = locate(b"/srv/7/p/12/status", pid(12)).expect("found");
        assert_eq!((mount, found), (&b"/srv/7/p"[..], path(12, None)));
        let (mount, found) = locate(b"/proc/12/task/13", pid(13)).expect("found");
        assert_eq!((mount, found), (&b"/proc"[..], path(12, Some(13))));
        assert!(locate(b"/proc/12/status", pid(13)).is_none());
        assert!(locate(b"/proc/120/stat", pid(12)).is_none());
        assert!(locate(b"/12/stat", pid(12)).is_none());
        let (mount, _) = locate(b"/mnt/33/proc/3321/fd", pid(3321)).expect("found");
        assert_eq!(mount, b"/mnt/33/proc");
    }
}
