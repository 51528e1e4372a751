//! A descriptor on a namespace: an open /proc/PID/ns/NAME.
//!
//! ns_file_entry has the kind by its CLONE_NEW* bit and the id by which the images know the
//! namespace. It is opened at a task that lives in it, or at crust-restore itself for the one it
//! lives in (inventory.root_ids). A uts namespace in which no task lives is made from its image,
//! once for all descriptors that were opened with the same flags; those with others open it again.

use super::calls::reopen;
use super::{File, member};
use crate::plan::routine::{FileFacts, Routine};
use crate::plan::step::{Actor, Op, Origin, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crate::tree::uts_names;
use crust_image::ids::VirtPid;
use crust_proto::criu::{NsFileEntry, TaskKobjIdsEntry, UtsnsEntry};
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

/// Where a namespace is found.
enum Place {
    /// By this path, from this phase on.
    Path(Phase, String),
    /// Nowhere: it is made.
    Made(UtsnsEntry),
}

/// Opens the namespace.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let nsf = member(planner, file, file.entry.nsf.as_ref(), |nsf| nsf.id)?;
    let origin = file.origin(file.name());
    let place = match place(planner, nsf) {
        Ok(place) => place,
        Err(why) => {
            planner.refuse(Refusal::new(origin, why));
            return None;
        }
    };
    let slot = planner.slot();
    let flags = nsf.flags as i32;
    match place {
        Place::Path(phase, path) => {
            let routine = Routine::OpenFile {
                path: path.into_bytes(),
                flags,
                expect: FileFacts::default(),
                pos: 0,
                slot,
            };
            planner.push(phase, Actor::Broker, Op::Routine(routine), origin);
        }
        Place::Made(names) => plan_made(planner, nsf, names, slot, origin),
    }
    Some(slot)
}

/// A uts namespace of nobody: made for the first descriptor, opened through that one for others.
fn plan_made(
    planner: &mut Planner<'_>,
    nsf: &NsFileEntry,
    names: UtsnsEntry,
    slot: SlotId,
    origin: Origin,
) {
    let flags = nsf.flags as i32;
    if let Some(made) = planner.files.made_namespaces.get(&nsf.ns_id).copied() {
        planner.call(
            Phase::Open,
            Actor::Broker,
            reopen(made, flags, slot),
            origin,
        );
        return;
    }
    planner.files.made_namespaces.insert(nsf.ns_id, slot);
    let routine = Routine::MakeUts {
        nodename: names.nodename,
        domainname: names.domainname,
        flags,
        slot,
    };
    planner.push(Phase::Open, Actor::Broker, Op::Routine(routine), origin);
}

fn place(planner: &Planner<'_>, nsf: &NsFileEntry) -> Result<Place, String> {
    let kind = KINDS.iter().find(|(flag, ..)| *flag as u32 == nsf.ns_cflag);
    let Some((_, name, id_of)) = kind else {
        return Err(format!(
            "ns_cflag {:#x} is no kind of namespace",
            nsf.ns_cflag
        ));
    };
    let is_it = |ids: &TaskKobjIdsEntry| id_of(ids) == Some(nsf.ns_id);
    let checkpoint = planner.checkpoint;
    if checkpoint.inventory.root_ids.as_ref().is_some_and(is_it) {
        return Ok(Place::Path(Phase::Open, format!("/proc/self/ns/{name}")));
    }
    let in_it = |task: &&crate::tree::Task| task.ids.as_ref().is_some_and(is_it);
    let task: Option<VirtPid> = planner.tree.alive().find(in_it).map(|task| task.pid);
    if let Some(pid) = task {
        return Ok(Place::Path(
            Phase::Objects,
            format!("/proc/{pid}/ns/{name}"),
        ));
    }
    let stored = checkpoint.namespaces.uts.get(&nsf.ns_id.into());
    match stored.filter(|_| *name == "uts") {
        Some(names) => uts_names(names).map(|()| Place::Made(names.clone())),
        None => Err(format!(
            "ns_id {} is a {name} namespace in which no task lives",
            nsf.ns_id
        )),
    }
}
