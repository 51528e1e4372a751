//! inotify_init(2): watches on inodes.
//!
//! A watch has its number, its events, and the file by handle and, if it was found, by path. A path
//! is good on any machine, a handle only on the file system it is from, so the path is taken where
//! there is one. A file without any name is a ghost, which somebody of the tree has open. Watches are added last of all: the restore itself opens, makes and removes files.
//! Events that had not been read are not in the images.

use super::regfile::check_path;
use super::remap;
use super::{File, fown, member, of_kind, shown};
use crate::plan::routine::{Routine, Watched};
use crate::plan::step::{Actor, Arg, Call, Op, Phase, Ret, SlotId};
use crate::plan::{Planner, Refusal};
use crust_proto::criu::{FdTypes, FhEntry, InotifyWdEntry};
use nix::libc;

const IN: &[(u64, &str)] = &[
    (libc::IN_CLOEXEC as u64, "IN_CLOEXEC"),
    (libc::IN_NONBLOCK as u64, "IN_NONBLOCK"),
];
/// MAX_HANDLE_SZ of the kernel.
const LONGEST_HANDLE: usize = 128;

/// Makes the instance.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let ify = member(planner, file, file.entry.ify.as_ref(), |ify| ify.id)?;
    let slot = planner.slot();
    let flags = ify.flags as i32;
    let args = vec![Arg::flags(
        (libc::IN_CLOEXEC | (flags & libc::IN_NONBLOCK)) as u64,
        IN,
    )];
    let call = Call::new("inotify_init1", libc::SYS_inotify_init1, args).answers(Ret::Fd(slot));
    let origin = file.origin(file.name());
    planner.call(Phase::Open, Actor::Broker, call, origin);
    fown::plan(planner, file, slot, flags, &ify.fown);
    Some(slot)
}

/// Adds the watches, when nothing else touches files.
pub(super) fn plan_watches(planner: &mut Planner<'_>) {
    for file in of_kind(planner, FdTypes::Inotify) {
        let slot = planner.files.slots.get(&file.id).copied().flatten();
        let (Some(ify), Some(slot)) = (&file.entry.ify, slot) else {
            continue;
        };
        // The kernel lists the youngest first, and the images have its list.
        for watch in ify.wd.iter().rev() {
            let path = watch.f_handle.path.as_deref().unwrap_or_default();
            let what = format!("watch {} of {} on {}", watch.wd, file.name(), shown(path));
            let open = open_ghost(planner, &watch.f_handle);
            match open.and_then(|open| routine(watch, slot, open)) {
                Ok(routine) => {
                    let op = Op::Routine(routine);
                    planner.push(Phase::Commit, Actor::Broker, op, file.origin(what));
                }
                Err(why) => planner.refuse(Refusal::new(file.origin(what), why)),
            }
        }
    }
}

fn routine(watch: &InotifyWdEntry, slot: SlotId, open: Option<SlotId>) -> Result<Routine, String> {
    let wd = i32::try_from(watch.wd).ok().filter(|wd| *wd > 0);
    let wd = wd.ok_or_else(|| format!("wd {} is no watch", watch.wd))?;
    Ok(Routine::WatchInode {
        slot,
        wd,
        mask: watch.mask,
        on: watched(watch.s_dev, &watch.f_handle, open)?,
    })
}

/// The file of a watch or mark, on a file system of this device; `open` is where a ghost is.
pub(super) fn watched(
    device: u32,
    file: &FhEntry,
    open: Option<SlotId>,
) -> Result<Watched, String> {
    if open.is_some() {
        return Ok(Watched {
            open,
            ..Watched::default()
        });
    }
    Ok(Watched {
        open,
        path: path_of(file)?,
        device,
        handle_type: file.r#type,
        handle: handle_bytes(file)?,
    })
}

/// A descriptor of a watched ghost: that of anybody who has it.
pub(super) fn open_ghost(
    planner: &mut Planner<'_>,
    file: &FhEntry,
) -> Result<Option<SlotId>, String> {
    let Some(ghost) = file.crust_ghost_id else {
        return Ok(None);
    };
    let user = remap::user_of_ghost(planner, ghost);
    let user = user.ok_or_else(|| format!("f_handle.crust_ghost_id {ghost:x} is no ghost"))?;
    let slot = planner.file_slot(user);
    slot.map(Some)
        .ok_or_else(|| format!("the ghost {ghost:x} was refused"))
}

/// The path of a watched file, empty if it has only a handle.
fn path_of(watched: &FhEntry) -> Result<Vec<u8>, String> {
    let path = watched.path.clone().unwrap_or_default();
    if !path.is_empty() {
        check_path(&path)?;
    } else if watched.bytes == 0 {
        return Err("f_handle has neither a path nor a handle".to_owned());
    }
    Ok(path)
}

/// The bytes of its handle.
fn handle_bytes(watched: &FhEntry) -> Result<Vec<u8>, String> {
    let words = watched.handle.iter();
    let mut handle: Vec<u8> = words.flat_map(|word| word.to_le_bytes()).collect();
    let len = watched.bytes as usize;
    if len > LONGEST_HANDLE || len > handle.len() {
        return Err(format!("f_handle.bytes {len} is longer than its handle"));
    }
    handle.truncate(len);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(wd: u32, bytes: u32, path: Option<&[u8]>) -> InotifyWdEntry {
        InotifyWdEntry {
            wd,
            f_handle: FhEntry {
                bytes,
                handle: vec![0x0807_0605_0403_0201, 0],
                path: path.map(<[u8]>::to_vec),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[test]
    fn a_handle_is_as_long_as_it_says() {
        let Ok(Routine::WatchInode { on, .. }) = routine(&watch(1, 6, None), SlotId(0), None)
        else {
            panic!("refused");
        };
        assert_eq!(on.handle, [1, 2, 3, 4, 5, 6]);
        let refused = |watch: InotifyWdEntry| routine(&watch, SlotId(0), None).is_err();
        assert!(refused(watch(1, 17, None)));
        assert!(refused(watch(1, 0, None)));
        assert!(refused(watch(0, 6, None)));
        assert!(refused(watch(1, 6, Some(b"relative"))));
    }
}
