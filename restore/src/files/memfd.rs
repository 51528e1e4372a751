//! memfd_create(2), and shared anonymous memory that the images store in the same form.
//!
//! memfd_inode_entry is the file: name, size, owner, mode, seals, and by `shmid` its pages.
//! memfd_file_entry is a description of it with flags and position. The broker makes each file
//! once, fills it and opens it again for every further description. Seals against writing come
//! before anything maps the file, for the kernel refuses them afterwards; a seal against future
//! writing comes after, for a mapping made before it may still be written through.
//!
//! A file named `/dev/zero` with no permission to seal is the object behind
//! mmap(MAP_SHARED | MAP_ANONYMOUS) and is made as that, so that maps show its name.

use super::calls::{fcntl, reopen, seek};
use super::{File, fown, member, shown};
use crate::mm;
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Arg, Call, Op, Origin, Phase, Ret, SlotId};
use crate::plan::{Planner, Refusal};
use crust_image::ids::ShmId;
use crust_proto::criu::MemfdInodeEntry;
use nix::libc;
use std::collections::BTreeMap;

const SEALS: &[(u64, &str)] = &[
    (libc::F_SEAL_SEAL as u64, "F_SEAL_SEAL"),
    (libc::F_SEAL_SHRINK as u64, "F_SEAL_SHRINK"),
    (libc::F_SEAL_GROW as u64, "F_SEAL_GROW"),
    (libc::F_SEAL_WRITE as u64, "F_SEAL_WRITE"),
    (FUTURE_WRITE as u64, "F_SEAL_FUTURE_WRITE"),
    (F_SEAL_EXEC as u64, "F_SEAL_EXEC"),
];
const FUTURE_WRITE: u32 = 0x10;
/// Since Linux 6.3 (include/uapi/linux/fcntl.h).
const F_SEAL_EXEC: u32 = 0x20;
const SEAL: u32 = libc::F_SEAL_SEAL as u32;
/// Which page size a hugetlb memfd has: bits 26 to 31 (include/uapi/linux/memfd.h).
const MFD_HUGE_BITS: u32 = 0x3f << 26;
const MFD: &[(u64, &str)] = &[
    (libc::MFD_CLOEXEC as u64, "MFD_CLOEXEC"),
    (libc::MFD_ALLOW_SEALING as u64, "MFD_ALLOW_SEALING"),
    (libc::MFD_HUGETLB as u64, "MFD_HUGETLB"),
];
/// What memfd_create(2) and a map_files link give: the flags of the broker's own description.
const OWN_FLAGS: i32 = libc::O_RDWR | super::calls::O_LARGEFILE;
/// The name of shared anonymous memory.
const ANONYMOUS: &[u8] = b"/dev/zero";
/// That of it in huge pages.
const ANONYMOUS_HUGE: &[u8] = b"/anon_hugepage";
/// NAME_MAX less the kernel's prefix `memfd:` (mm/memfd.c).
const LONGEST_NAME: usize = 249;
const PAGE: u64 = 4096;

/// The files that are made, by inode_id.
#[derive(Debug, Default)]
pub(super) struct Memfds {
    made: BTreeMap<u64, Option<Made>>,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    slot: SlotId,
    /// An entry has the broker's own description.
    given: bool,
}

/// Plans a description.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let memfd = member(planner, file, file.entry.memfd.as_ref(), |memfd| memfd.id)?;
    let inode_id = u64::from(memfd.inode_id);
    let made = made(planner, file, inode_id)?;
    let flags = memfd.flags as i32;
    let origin = file.origin(file.name());
    let slot = if flags & !libc::O_ASYNC == OWN_FLAGS && !made.given {
        let given = Made {
            given: true,
            ..made
        };
        planner.files.memfds.made.insert(inode_id, Some(given));
        made.slot
    } else {
        let slot = planner.slot();
        let call = reopen(made.slot, flags & !libc::O_ASYNC, slot);
        planner.call(Phase::Open, Actor::Broker, call, origin.clone());
        slot
    };
    if i64::try_from(memfd.pos).is_err() {
        let why = format!("pos {} is behind the end of any file", memfd.pos);
        planner.refuse(Refusal::new(origin, why));
        return None;
    }
    if memfd.pos != 0 {
        planner.call(Phase::Open, Actor::Broker, seek(slot, memfd.pos), origin);
    }
    fown::plan(planner, file, slot, flags, &memfd.fown);
    Some(slot)
}

/// A descriptor for mappings with this access mode.
pub(super) fn plan_mapped(
    planner: &mut Planner<'_>,
    file: File<'_>,
    access: i32,
) -> Option<SlotId> {
    let memfd = member(planner, file, file.entry.memfd.as_ref(), |memfd| memfd.id)?;
    let made = made(planner, file, memfd.inode_id.into())?;
    if access == libc::O_RDWR {
        return Some(made.slot);
    }
    let slot = planner.slot();
    let origin = file.origin(format!("{} for mappings", file.name()));
    planner.call(
        Phase::Open,
        Actor::Broker,
        reopen(made.slot, access, slot),
        origin,
    );
    Some(slot)
}

/// The file behind a description, made when it is first asked for.
fn made(planner: &mut Planner<'_>, file: File<'_>, inode_id: u64) -> Option<Made> {
    if let Some(made) = planner.files.memfds.made.get(&inode_id) {
        return *made;
    }
    let checkpoint = planner.checkpoint;
    let slot = match checkpoint.memfds.get(&inode_id) {
        Some(inode) => make(planner, inode),
        None => {
            let why = format!("inode_id {inode_id} is not in memfd.img");
            planner.refuse(Refusal::new(file.origin(file.name()), why));
            None
        }
    };
    let made = slot.map(|slot| Made { slot, given: false });
    planner.files.memfds.made.insert(inode_id, made);
    made
}

fn origin(inode: &MemfdInodeEntry) -> Origin {
    Origin::new(
        "memfd.img",
        None,
        format!("memfd {} {}", inode.inode_id, shown(&inode.name)),
    )
}

fn make(planner: &mut Planner<'_>, inode: &MemfdInodeEntry) -> Option<SlotId> {
    if let Err(why) = check(inode) {
        planner.refuse(Refusal::new(origin(inode), why));
        return None;
    }
    let slot = planner.slot();
    let huge = inode.hugetlb_flag.map(|huge| huge & MFD_HUGE_BITS);
    let is_anonymous = match huge {
        None => inode.name == ANONYMOUS,
        Some(_) => inode.name == ANONYMOUS_HUGE,
    } && inode.seals == SEAL
        && inode.size != 0
        && inode.size.is_multiple_of(PAGE);
    if is_anonymous {
        let routine = Op::Routine(Routine::SharedAnon {
            size: inode.size,
            huge: huge.map_or(0, |size| libc::MAP_HUGETLB as u32 | size),
            slot,
        });
        planner.push(Phase::Open, Actor::Broker, routine, origin(inode));
    } else {
        let call = create(inode).answers(Ret::Fd(slot));
        planner.call(Phase::Open, Actor::Broker, call, origin(inode));
        let args = vec![Arg::Fd(slot), Arg::Int(inode.size as i64)];
        let call = Call::new("ftruncate", libc::SYS_ftruncate, args);
        planner.call(Phase::Open, Actor::Broker, call, origin(inode));
    }
    mm::shmem::fill(
        planner,
        ShmId(inode.shmid.into()),
        inode.size.next_multiple_of(PAGE),
        slot,
    );
    plan_owner(planner, inode, slot);
    plan_seals(planner, inode, slot);
    Some(slot)
}

fn check(inode: &MemfdInodeEntry) -> Result<(), String> {
    if inode.name.contains(&0) || inode.name.len() > LONGEST_NAME {
        return Err(format!(
            "name {:?} is no name of a memfd",
            shown(&inode.name)
        ));
    }
    if i64::try_from(inode.size).is_err() {
        return Err(format!(
            "size {} is more than any file can have",
            inode.size
        ));
    }
    let known = SEALS.iter().fold(0, |bits, (seal, _)| bits | seal);
    if u64::from(inode.seals) & !known != 0 {
        return Err(format!(
            "seals {:#x} has bits that are not known",
            inode.seals
        ));
    }
    Ok(())
}

fn create(inode: &MemfdInodeEntry) -> Call {
    let mut flags = libc::MFD_CLOEXEC;
    // Without permission to seal the file has the seal against sealing and no other.
    if inode.seals != SEAL {
        flags |= libc::MFD_ALLOW_SEALING;
    }
    if let Some(huge) = inode.hugetlb_flag {
        flags |= libc::MFD_HUGETLB | (huge & MFD_HUGE_BITS);
    }
    let args = vec![Arg::Str(inode.name.clone()), Arg::flags(flags.into(), MFD)];
    Call::new("memfd_create", libc::SYS_memfd_create, args)
}

fn plan_owner(planner: &mut Planner<'_>, inode: &MemfdInodeEntry, slot: SlotId) {
    if (inode.uid, inode.gid) != (0, 0) {
        let args = vec![
            Arg::Fd(slot),
            Arg::Int(inode.uid.into()),
            Arg::Int(inode.gid.into()),
        ];
        let call = Call::new("fchown", libc::SYS_fchown, args);
        planner.call(Phase::Open, Actor::Broker, call, origin(inode));
    }
    if let Some(mode) = inode.mode {
        let args = vec![
            Arg::Fd(slot),
            Arg::Named(format!("{:#o}", mode & 0o7777), (mode & 0o7777).into()),
        ];
        let call = Call::new("fchmod", libc::SYS_fchmod, args);
        planner.call(Phase::Open, Actor::Broker, call, origin(inode));
    }
}

fn plan_seals(planner: &mut Planner<'_>, inode: &MemfdInodeEntry, slot: SlotId) {
    if inode.seals == SEAL {
        return;
    }
    let late_ones = inode.seals & FUTURE_WRITE != 0;
    let late = if late_ones {
        inode.seals & (FUTURE_WRITE | SEAL)
    } else {
        0
    };
    for (phase, seals) in [(Phase::Open, inode.seals & !late), (Phase::Fds, late)] {
        if seals != 0 {
            let call = fcntl(
                slot,
                "F_ADD_SEALS",
                libc::F_ADD_SEALS,
                Arg::flags(seals.into(), SEALS),
            );
            planner.call(phase, Actor::Broker, call, origin(inode));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(name: &[u8], seals: u32) -> MemfdInodeEntry {
        MemfdInodeEntry {
            name: name.to_vec(),
            seals,
            ..Default::default()
        }
    }

    #[test]
    fn names_and_seals_are_checked() {
        assert!(check(&inode(b"plain name", 1)).is_ok());
        assert!(check(&inode(b"", 0x3f)).is_ok());
        assert!(check(&inode(b"a\0b", 1)).is_err());
        assert!(check(&inode(&[b'x'; 250], 1)).is_err());
        assert!(check(&inode(b"x", 0x40)).is_err());
    }

    #[test]
    fn only_what_may_be_sealed_asks_for_it() {
        let flags = |seals| create(&inode(b"x", seals)).args.get(1).cloned();
        assert_eq!(flags(1), Some(Arg::Named("MFD_CLOEXEC".into(), 1)));
        assert_eq!(
            flags(14),
            Some(Arg::Named("MFD_CLOEXEC|MFD_ALLOW_SEALING".into(), 3))
        );
    }
}
