//! A descriptor on a namespace: an open /proc/PID/ns/NAME.
//!
//! ns_file_entry has the kind by its CLONE_NEW* bit and the id by which the images know the
//! namespace. It is opened at a task that lives in it, or at crust-restore itself for the one it
//! lives in (inventory.root_ids).

use super::{File, member};
use crate::plan::step::{Actor, FileFacts, Op, Phase, Routine, SlotId};
use crate::plan::{Planner, Refusal};
use crust_image::ids::VirtPid;
use crust_proto::criu::{NsFileEntry, TaskKobjIdsEntry};
use nix::libc;

/// The id of a namespace of one kind among the ids of a task.
type IdOf = fn(&TaskKobjIdsEntry) -> Option<u32>;

const KINDS: [(i32, &str, IdOf); 8] = [
    (libc::CLONE_NEWPID, "pid", |ids| ids.pid_ns_id),
    (libc::CLONE_NEWNET, "net", |ids| ids.net_ns_id),
    (libc::CLONE_NEWIPC, "ipc", |ids| ids.ipc_ns_id),
    (libc::CLONE_NEWUTS, "uts", |ids| ids.uts_ns_id),
    (libc::CLONE_NEWNS, "mnt", |ids| ids.mnt_ns_id),
    (libc::CLONE_NEWUSER, "user", |ids| ids.user_ns_id),
    (libc::CLONE_NEWCGROUP, "cgroup", |ids| ids.cgroup_ns_id),
    // CLONE_NEWTIME.
    (0x80, "time", |ids| ids.time_ns_id),
];

/// Opens the namespace.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let nsf = member(planner, file, file.entry.nsf.as_ref(), |nsf| nsf.id)?;
    let origin = file.origin(file.name());
    let (phase, path) = match place(planner, nsf) {
        Ok(place) => place,
        Err(why) => {
            planner.refuse(Refusal::new(origin, why));
            return None;
        }
    };
    let slot = planner.slot();
    let routine = Routine::OpenFile {
        path: path.into_bytes(),
        flags: nsf.flags as i32,
        expect: FileFacts::default(),
        slot,
    };
    planner.push(phase, Actor::Broker, Op::Routine(routine), origin);
    Some(slot)
}

fn place(planner: &Planner<'_>, nsf: &NsFileEntry) -> Result<(Phase, String), String> {
    let kind = KINDS.iter().find(|(flag, ..)| *flag as u32 == nsf.ns_cflag);
    let Some((_, name, id_of)) = kind else {
        return Err(format!(
            "ns_cflag {:#x} is no kind of namespace",
            nsf.ns_cflag
        ));
    };
    let is_it = |ids: &TaskKobjIdsEntry| id_of(ids) == Some(nsf.ns_id);
    if planner
        .checkpoint
        .inventory
        .root_ids
        .as_ref()
        .is_some_and(is_it)
    {
        return Ok((Phase::Open, format!("/proc/self/ns/{name}")));
    }
    let in_it = |task: &&crate::tree::Task| task.ids.as_ref().is_some_and(is_it);
    let task: Option<VirtPid> = planner.tree.alive().find(in_it).map(|task| task.pid);
    match task {
        Some(pid) => Ok((Phase::Objects, format!("/proc/{pid}/ns/{name}"))),
        None => Err(format!(
            "ns_id {} is a {name} namespace in which no task lives",
            nsf.ns_id
        )),
    }
}
