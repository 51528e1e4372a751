//! pidfd_open(2): a descriptor that stands for a process, or for a thread (PIDFD_THREAD), which is
//! then made with its process, for descriptors are put into tables before the other threads are.
//!
//! nspid is the process, or -1 if it was dead and reaped. A dead one needs a process that dies:
//! a helper of the tree under a number nobody has. Descriptors with one inode number stood for one
//! process; they get the same helper.

use super::{File, fown, member};
use crate::plan::step::{Actor, Arg, Call, Phase, Ret, SlotId};
use crate::plan::{Planner, Refusal};
use crust_image::checkpoint::Checkpoint;
use crust_image::ids::VirtPid;
use crust_proto::criu::PidfdEntry;
use nix::libc;
use std::collections::BTreeMap;

const PIDFD: &[(u64, &str)] = &[
    (libc::O_NONBLOCK as u64, "PIDFD_NONBLOCK"),
    // PIDFD_THREAD is O_EXCL (include/uapi/linux/pidfd.h).
    (libc::O_EXCL as u64, "PIDFD_THREAD"),
];

/// The helpers that stand for dead processes, by the inode number of their descriptors: pids above
/// all of the images. `None` for one there is no number left for.
pub fn dead_pidfd_pids(checkpoint: &Checkpoint) -> BTreeMap<u32, Option<VirtPid>> {
    let is_dead = |pidfd: &&PidfdEntry| pidfd.nspid == -1;
    let pidfds = checkpoint
        .files
        .values()
        .filter_map(|entry| entry.pidfd.as_deref());
    let mut helpers: BTreeMap<u32, Option<VirtPid>> = pidfds
        .filter(is_dead)
        .map(|pidfd| (pidfd.ino, None))
        .collect();
    let in_tree = checkpoint.pstree.iter().flat_map(|task| {
        [task.pid, task.pgid, task.sid]
            .into_iter()
            .chain(task.threads.iter().copied())
    });
    let remapped = checkpoint
        .remaps
        .iter()
        .filter_map(|remap| match remap.target {
            crust_image::checkpoint::RemapTarget::Procfs(pid) => Some(pid.get()),
            _ => None,
        });
    let mut last = in_tree.chain(remapped).max().unwrap_or(1);
    for helper in helpers.values_mut() {
        last = last.saturating_add(1);
        *helper = VirtPid::new(last);
    }
    helpers
}

/// The threads that descriptors stand for.
pub fn pidfd_threads(checkpoint: &Checkpoint) -> Vec<VirtPid> {
    let pidfds = checkpoint.files.values();
    let pidfds = pidfds.filter_map(|entry| entry.pidfd.as_deref());
    pidfds.filter_map(thread_of).collect()
}

fn thread_of(pidfd: &PidfdEntry) -> Option<VirtPid> {
    let is_of_thread = pidfd.flags as i32 & libc::O_EXCL != 0;
    let tid = u32::try_from(pidfd.nspid).ok().filter(|_| is_of_thread)?;
    VirtPid::new(tid)
}

/// Opens the descriptor while the process is there.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let pidfd = member(planner, file, file.entry.pidfd.as_deref(), |pidfd| pidfd.id)?;
    let origin = file.origin(file.name());
    let pid = match process_of(planner, pidfd) {
        Ok(pid) => pid,
        Err(why) => {
            planner.refuse(Refusal::new(origin, why));
            return None;
        }
    };
    let slot = planner.slot();
    let flags = pidfd.flags as i32;
    let args = vec![
        Arg::Int(pid.get().into()),
        Arg::flags((flags & (libc::O_NONBLOCK | libc::O_EXCL)) as u64, PIDFD),
    ];
    let call = Call::new("pidfd_open", libc::SYS_pidfd_open, args).answers(Ret::Fd(slot));
    planner.call(Phase::Objects, Actor::Broker, call, origin);
    fown::plan(planner, file, slot, flags, &pidfd.fown);
    Some(slot)
}

fn process_of(planner: &Planner<'_>, pidfd: &PidfdEntry) -> Result<VirtPid, String> {
    if pidfd.nspid == -1 {
        let helpers = dead_pidfd_pids(planner.checkpoint);
        let pid = helpers.get(&pidfd.ino).copied().flatten();
        let pid = pid.filter(|pid| planner.tree.has_process(*pid));
        return pid.ok_or_else(|| "no pid is left for the dead process it stands for".to_owned());
    }
    if let Some(tid) = thread_of(pidfd) {
        let mut tasks = planner.tree.tasks.iter();
        let is_there = tasks.any(|task| task.pid == tid || task.threads.contains(&tid));
        return match is_there {
            true => Ok(tid),
            false => Err(format!("nspid {tid} is no thread of the tree")),
        };
    }
    let pid = u32::try_from(pidfd.nspid).ok().and_then(VirtPid::new);
    pid.filter(|pid| planner.tree.has_process(*pid))
        .ok_or_else(|| format!("nspid {} is no process of the tree", pidfd.nspid))
}
