//! SysV shared memory, semaphores and message queues: the objects of an ipc namespace of the tree's
//! own, and segments of the host's namespace that the tree had attached.
//!
//! The task that is the first of its namespace makes it before it forks; the broker enters it to
//! set sysctls and make the objects under their old ids, fills segments through a descriptor like
//! any shared memory, and the tasks attach them in their memory phase (mm/sysv.rs). A segment that
//! was removed while attached is removed again when all have it. In the host's namespace a segment
//! that outlived the dump is taken back if nobody has attached it meanwhile.

use crate::mm;
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Arg, Op, Origin, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crate::tree::{Task, plan_new};
use crust_image::ids::{ShmId, VirtPid};
use crust_image::payload::{IpcMsgQueue, IpcSem, IpcShm};
use crust_process::sysv::SHM_DEST;
use crust_proto::criu::{IpcDescEntry, IpcVarEntry};
use nix::libc;
use serde::Serialize;
use std::collections::BTreeMap;

const PAGE: u64 = 4096;

/// What the broker makes in an ipc namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Object {
    /// Files below /proc/sys with what to write.
    Sysctls(Vec<(&'static str, String)>),
    /// A segment of so many bytes.
    Segment(Perm, u64),
    /// Semaphores with their values.
    SemSet(Perm, Vec<u16>),
    /// A queue of so many bytes at most, with types and texts of its messages.
    Queue(Perm, u64, Vec<(i64, Vec<u8>)>),
    /// The segment goes with its last attachment.
    RemoveSegment(i32),
}

/// Id, key, owner and mode of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Perm {
    /// The id.
    pub id: i32,
    /// The key, 0 for IPC_PRIVATE.
    pub key: i32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// What the room remembers.
#[derive(Debug, Default)]
pub struct Ipc {
    /// Sizes of segments, by namespace and id, in whole pages.
    pub segments: BTreeMap<(u32, u32), u64>,
}

/// Plans the namespaces, in front of the forks, and what is in them.
pub fn plan_namespaces(planner: &mut Planner<'_>, tasks: &[Task]) {
    let host = planner.checkpoint.inventory.root_ids.as_ref();
    let host = host.and_then(|ids| ids.ipc_ns_id);
    let kind = ("ipc", Arg::named("CLONE_NEWIPC", libc::CLONE_NEWIPC));
    let makers = plan_new(planner, tasks, kind, |ids| ids.ipc_ns_id);
    let makers = makers.into_iter().map(|(id, (_, pid))| (id, pid));
    plan_objects(planner, host, &makers.collect());
}

fn plan_objects(planner: &mut Planner<'_>, host: Option<u32>, makers: &BTreeMap<u32, VirtPid>) {
    let namespaces = &planner.checkpoint.namespaces;
    for (id, sysctls) in &namespaces.ipc_var {
        let kind = "ipcns-var";
        with_namespace(planner, kind, *id, 0, host, makers, |planner, room| {
            room.push(planner, Object::Sysctls(encode_sysctls(sysctls)), None);
        });
    }
    for (id, segments) in &namespaces.ipc_shm {
        for (entry, segment) in segments.iter().enumerate() {
            let kind = "ipcns-shm";
            with_namespace(planner, kind, *id, entry, host, makers, |planner, room| {
                plan_segment(planner, room, segment);
            });
        }
    }
    for (id, sets) in &namespaces.ipc_sem {
        for (entry, set) in sets.iter().enumerate() {
            let kind = "ipcns-sem";
            with_namespace(planner, kind, *id, entry, host, makers, |planner, room| {
                plan_set(planner, room, set);
            });
        }
    }
    for (id, queues) in &namespaces.ipc_msg {
        for (entry, queue) in queues.iter().enumerate() {
            let kind = "ipcns-msg";
            with_namespace(planner, kind, *id, entry, host, makers, |planner, room| {
                plan_queue(planner, room, queue);
            });
        }
    }
}

/// One object, while it is planned.
struct Room {
    id: u32,
    /// Who is in the namespace; `None` for the host's.
    member: Option<VirtPid>,
    origin: Origin,
}

impl Room {
    fn push(&self, planner: &mut Planner<'_>, object: Object, slot: Option<SlotId>) {
        let phase = match object {
            // Everybody has attached it then.
            Object::RemoveSegment(_) => Phase::Fds,
            _ => Phase::Objects,
        };
        let routine = Routine::Sysv {
            member: self.member,
            object,
            slot,
        };
        let op = Op::Routine(routine);
        planner.push(phase, Actor::Broker, op, self.origin.clone());
    }
}

fn with_namespace(
    planner: &mut Planner<'_>,
    kind: &str,
    id: u64,
    entry: usize,
    host: Option<u32>,
    makers: &BTreeMap<u32, VirtPid>,
    plan: impl FnOnce(&mut Planner<'_>, &Room),
) {
    let image = format!("{kind}-{id}.img");
    let origin = Origin::new(image, Some(entry), format!("ipc namespace {id}"));
    let id = u32::try_from(id).unwrap_or(u32::MAX);
    let member = makers.get(&id).copied();
    if member.is_none() && Some(id) != host {
        return planner.refuse(Refusal::new(origin, "no task is in this namespace"));
    }
    plan(planner, &Room { id, member, origin });
}

fn perm_of(desc: &IpcDescEntry) -> Result<Perm, String> {
    let id = i32::try_from(desc.id).map_err(|_| format!("desc.id {:#x} is no id", desc.id))?;
    Ok(Perm {
        id,
        key: desc.key as i32,
        uid: desc.uid,
        gid: desc.gid,
        mode: desc.mode & 0o777,
    })
}

fn plan_segment(planner: &mut Planner<'_>, room: &Room, segment: &IpcShm) {
    let entry = &segment.entry;
    let perm = match perm_of(&entry.desc) {
        Ok(perm) if entry.hugetlb_flag.is_none() => perm,
        Ok(_) => {
            let why = "hugetlb_flag: a segment in huge pages cannot be restored yet";
            return planner.refuse(Refusal::new(room.origin.clone(), why));
        }
        Err(why) => return planner.refuse(Refusal::new(room.origin.clone(), why)),
    };
    let Some(size) = entry
        .size
        .checked_next_multiple_of(PAGE)
        .filter(|size| *size > 0)
    else {
        let why = format!("size {:#x} is no size of a segment", entry.size);
        return planner.refuse(Refusal::new(room.origin.clone(), why));
    };
    planner.ipc.segments.insert((room.id, entry.desc.id), size);
    let slot = planner.slot();
    room.push(planner, Object::Segment(perm, entry.size), Some(slot));
    match &segment.content {
        None => mm::shmem::fill_in(
            planner,
            Phase::Objects,
            ShmId(entry.desc.id.into()),
            size,
            slot,
        ),
        Some(bytes) => {
            let routine = Routine::WriteAll {
                slot,
                bytes: bytes.clone(),
            };
            let op = Op::Routine(routine);
            planner.push(Phase::Objects, Actor::Broker, op, room.origin.clone());
        }
    }
    if entry.desc.mode & SHM_DEST != 0 {
        room.push(planner, Object::RemoveSegment(perm.id), None);
    }
}

fn plan_set(planner: &mut Planner<'_>, room: &Room, set: &IpcSem) {
    match perm_of(&set.entry.desc) {
        Ok(perm) => room.push(planner, Object::SemSet(perm, set.values.clone()), None),
        Err(why) => planner.refuse(Refusal::new(room.origin.clone(), why)),
    }
}

fn plan_queue(planner: &mut Planner<'_>, room: &Room, queue: &IpcMsgQueue) {
    let perm = match perm_of(&queue.entry.desc) {
        Ok(perm) => perm,
        Err(why) => return planner.refuse(Refusal::new(room.origin.clone(), why)),
    };
    let mut messages = Vec::new();
    for (head, text) in &queue.messages {
        match i64::try_from(head.mtype) {
            Ok(mtype @ 1..) => messages.push((mtype, text.clone())),
            _ => {
                let why = format!("mtype {:#x} is no type of a message", head.mtype);
                return planner.refuse(Refusal::new(room.origin.clone(), why));
            }
        }
    }
    let qbytes = queue.entry.qbytes.into();
    room.push(planner, Object::Queue(perm, qbytes, messages), None);
}

fn encode_sysctls(entry: &IpcVarEntry) -> Vec<(&'static str, String)> {
    let words = |numbers: &[u32]| {
        let words: Vec<String> = numbers.iter().map(u32::to_string).collect();
        words.join(" ")
    };
    let mut sysctls = vec![
        ("kernel/sem", words(&entry.sem_ctls)),
        ("kernel/msgmax", entry.msg_ctlmax.to_string()),
        ("kernel/msgmnb", entry.msg_ctlmnb.to_string()),
        ("kernel/msgmni", entry.msg_ctlmni.to_string()),
        ("kernel/shmmax", entry.shm_ctlmax.to_string()),
        ("kernel/shmall", entry.shm_ctlall.to_string()),
        ("kernel/shmmni", entry.shm_ctlmni.to_string()),
        ("kernel/shm_rmid_forced", entry.shm_rmid_forced.to_string()),
    ];
    let mqueue = [
        ("fs/mqueue/queues_max", Some(entry.mq_queues_max)),
        ("fs/mqueue/msg_max", Some(entry.mq_msg_max)),
        ("fs/mqueue/msgsize_max", Some(entry.mq_msgsize_max)),
        ("fs/mqueue/msg_default", entry.mq_msg_default),
        ("fs/mqueue/msgsize_default", entry.mq_msgsize_default),
    ];
    // 0 is what a kernel without message queues was dumped with.
    let set = |(name, value): (&'static str, Option<u32>)| {
        Some((name, value.filter(|value| *value > 0)?.to_string()))
    };
    sysctls.extend(mqueue.into_iter().filter_map(set));
    sysctls
}
