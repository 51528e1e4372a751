//! Working directory, root and umask (fs-PID.img).
//!
//! Both directories are REG entries, so they may be ghosts, or below /proc of a dead process,
//! which can be entered only while a helper stands in for it. A task takes the descriptor as its
//! number 0 and changes through it: first the root, since chroot(2) leaves the working directory
//! where it is, then the directory. The plain root needs no chroot. Tasks that share the three
//! (CLONE_FS, ids.fs_id) change them once.

use super::{find, remap};
use crate::plan::calls::close;
use crate::plan::step::{Actor, Arg, Call, Op, Origin, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crust_image::ids::{FileId, VirtPid};
use nix::libc;
use std::collections::BTreeSet;

/// The bits umask(2) takes.
const UMASK: u32 = 0o777;

/// Plans every task's.
pub(super) fn plan(planner: &mut Planner<'_>) {
    let tasks: Vec<(VirtPid, Option<u32>)> = planner
        .tree
        .alive()
        .map(|task| (task.pid, task.ids.as_ref().map(|ids| ids.fs_id)))
        .collect();
    let mut done = BTreeSet::new();
    for (pid, fs_id) in tasks {
        if fs_id.is_none_or(|fs_id| done.insert(fs_id)) {
            plan_task(planner, pid);
        }
    }
}

fn plan_task(planner: &mut Planner<'_>, pid: VirtPid) {
    let image = format!("fs-{pid}.img");
    let origin = |what: &str| Origin::new(image.clone(), Some(0), format!("{what} of {pid}"));
    let checkpoint = planner.checkpoint;
    let Some(entry) = checkpoint.fs(pid) else {
        planner.refuse(Refusal::new(origin("directories"), "the image is missing"));
        return;
    };
    let (root, cwd) = (FileId(entry.root_id), FileId(entry.cwd_id));
    let is_plain_root = |planner: &Planner<'_>| {
        let reg = find(planner, root).and_then(|file| file.entry.reg.as_ref());
        reg.is_some_and(|reg| reg.name == b"/") && checkpoint.remap(root).is_none()
    };
    if !is_plain_root(planner)
        && let Some(slot) = slot(planner, root, "root_id", origin("root"))
    {
        let chroot = Call::new("chroot", libc::SYS_chroot, vec![Arg::Str(b".".to_vec())]);
        enter(planner, pid, slot, Some(chroot), &origin("root"));
    }
    if let Some(slot) = slot(planner, cwd, "cwd_id", origin("working directory")) {
        enter(planner, pid, slot, None, &origin("working directory"));
    }
    if let Some(umask) = entry.umask {
        if umask & !UMASK != 0 {
            planner.refuse(Refusal::new(
                origin("umask"),
                format!("umask {umask:#o} is none"),
            ));
            return;
        }
        let args = vec![Arg::Named(format!("{umask:#o}"), umask.into())];
        let call = Call::new("umask", libc::SYS_umask, args);
        planner.call(Phase::Fs, Actor::Task(pid), call, origin("umask"));
    }
}

fn slot(planner: &mut Planner<'_>, id: FileId, field: &str, origin: Origin) -> Option<SlotId> {
    if find(planner, id).is_none_or(|file| file.entry.reg.is_none()) {
        planner.refuse(Refusal::new(
            origin,
            format!("{field} {id} is no REG entry of files.img"),
        ));
        return None;
    }
    if remap::dies_early(planner, id) {
        let why = "the directory is of a dead process whose pid a task has now; it can be opened, \
                   but not entered, for a dead process's directory lets nobody in";
        planner.refuse(Refusal::new(origin, why));
        return None;
    }
    planner.file_slot(id)
}

/// Makes a directory the working one, and then the root if asked to.
fn enter(
    planner: &mut Planner<'_>,
    pid: VirtPid,
    slot: SlotId,
    chroot: Option<Call>,
    origin: &Origin,
) {
    let actor = Actor::Task(pid);
    planner.push(Phase::Fs, actor, Op::take(slot, 0), origin.clone());
    let fchdir = Call::new("fchdir", libc::SYS_fchdir, vec![Arg::Int(0)]);
    for call in [Some(fchdir), chroot, Some(close(0))].into_iter().flatten() {
        planner.call(Phase::Fs, actor, call, origin.clone());
    }
}
