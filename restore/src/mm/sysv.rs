//! Attachments of SysV segments. shmat(2) attaches a segment whole, so that areas of it that belong
//! together (a part was unmapped, or protected otherwise) are attached once, and what is not an
//! area is unmapped. This comes before all other mappings: for a moment the segment is in the way.

use super::vmas::Kind;
use super::{PROT, Room};
use crate::plan::step::{Arg, Call, Phase, Ret};
use crate::plan::{Planner, Refusal};
use nix::libc;
use std::collections::BTreeMap;

/// Attaches all segments of a task.
pub fn plan_attachments(planner: &mut Planner<'_>, room: &Room<'_>) {
    let mut groups: BTreeMap<(u32, u64), Vec<usize>> = BTreeMap::new();
    for (at, vma) in room.vmas.iter().enumerate() {
        let Kind::Sysv(id) = vma.kind else { continue };
        match vma.start.checked_sub(vma.pgoff) {
            Some(base) => groups.entry((id, base)).or_default().push(at),
            None => {
                let why = format!("pgoff {:#x} is above its start", vma.pgoff);
                planner.refuse(Refusal::new(room.of_vma(vma), why));
            }
        }
    }
    for ((id, base), members) in groups {
        plan_attachment(planner, room, id, base, &members);
    }
}

fn plan_attachment(
    planner: &mut Planner<'_>,
    room: &Room<'_>,
    id: u32,
    base: u64,
    members: &[usize],
) {
    let vmas: Vec<_> = members.iter().filter_map(|at| room.vmas.get(*at)).collect();
    let Some(first) = vmas.first() else { return };
    let origin = room.of_vma(first);
    let namespace = planner
        .checkpoint
        .ids(room.pid)
        .and_then(|ids| ids.ipc_ns_id);
    let size = namespace.and_then(|namespace| planner.ipc.segments.get(&(namespace, id)).copied());
    let end = size.and_then(|size| base.checked_add(size));
    let Some(end) = end.filter(|end| vmas.iter().all(|vma| vma.end <= *end)) else {
        let why = format!("shmid {id} is no segment of that size in the task's ipc namespace");
        return planner.refuse(Refusal::new(origin, why));
    };
    if base < planner.host.mmap_min || end > planner.host.task_end {
        let why = format!("segment {id} at {base:#x} does not fit into what a task may map");
        return planner.refuse(Refusal::new(origin, why));
    }
    planner.mm.used.push((base, end));
    let writable = vmas
        .iter()
        .any(|vma| vma.open_flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32);
    let executable = vmas
        .iter()
        .any(|vma| vma.prot & libc::PROT_EXEC as u32 != 0);
    let mut flags = 0;
    let mut prot = libc::PROT_READ as u32;
    if writable {
        prot |= libc::PROT_WRITE as u32;
    } else {
        flags |= libc::SHM_RDONLY;
    }
    if executable {
        prot |= libc::PROT_EXEC as u32;
        flags |= libc::SHM_EXEC;
    }
    let names = [
        (libc::SHM_RDONLY as u64, "SHM_RDONLY"),
        (libc::SHM_EXEC as u64, "SHM_EXEC"),
    ];
    let args = vec![
        Arg::Int(id.into()),
        Arg::Hex(base),
        Arg::flags(flags as u64, &names),
    ];
    let attach = Call::new("shmat", libc::SYS_shmat, args).answers(Ret::Exactly(base as i64));
    planner.call(Phase::Memory, room.actor, attach, origin.clone());
    let mut at = base;
    for range in vmas
        .iter()
        .map(|vma| vma.start..vma.end)
        .chain(std::iter::once(end..end))
    {
        if at < range.start {
            let args = vec![Arg::Hex(at), Arg::Int((range.start - at) as i64)];
            let call = Call::new("munmap", libc::SYS_munmap, args);
            planner.call(Phase::Memory, room.actor, call, origin.clone());
        }
        at = range.end;
    }
    for vma in vmas.iter().filter(|vma| vma.prot != prot) {
        let args = vec![
            Arg::Hex(vma.start),
            Arg::Int(vma.len() as i64),
            Arg::flags(vma.prot.into(), PROT),
        ];
        let call = Call::new("mprotect", libc::SYS_mprotect, args);
        planner.call(Phase::Memory, room.actor, call, room.of_vma(vma));
    }
}
