//! fanotify_init(2): marks on inodes, mounts and file systems.
//!
//! fanotify_file_entry has the flags of the group; each mark has its events, those it ignores, and
//! the inode by handle and path, or the mount by its mount point, which may stand for its whole
//! file system (crust_filesystem). As for inotify the path is taken where there is one, and marks
//! are added last of all. Events that had not been read are not in the images.

use super::calls::{fcntl, set_flags};
use super::inotify::{open_ghost, watched};
use super::regfile::check_path;
use super::{File, fown, member, of_kind, shown};
use crate::plan::routine::{Routine, Watched};
use crate::plan::step::{Actor, Arg, Call, Op, Phase, Ret, SlotId};
use crate::plan::{Planner, Refusal};
use crust_proto::criu::{FanotifyMarkEntry, FdTypes, MarkType};
use nix::libc;

/// FAN_MARK_IGNORE and FAN_MARK_EVICTABLE of linux/fanotify.h, since Linux 6.0 and 5.19.
const FAN_MARK_IGNORE: u32 = 0x400;
const FAN_MARK_EVICTABLE: u32 = 0x200;

/// Makes the group.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let ffy = member(planner, file, file.entry.ffy.as_ref(), |ffy| ffy.id)?;
    let slot = planner.slot();
    let args = vec![Arg::Hex(ffy.faflags.into()), Arg::Hex(ffy.evflags.into())];
    let call = Call::new("fanotify_init", libc::SYS_fanotify_init, args).answers(Ret::Fd(slot));
    planner.call(Phase::Open, Actor::Broker, call, file.origin(file.name()));
    // fdinfo shows the flags of the first moment for good; the descriptor's may differ by now.
    if ffy.faflags & libc::FAN_CLOEXEC == 0 {
        let cloexec = Arg::named("FD_CLOEXEC", libc::FD_CLOEXEC);
        let call = fcntl(slot, "F_SETFD", libc::F_SETFD, cloexec);
        planner.call(Phase::Open, Actor::Broker, call, file.origin(file.name()));
    }
    let waits = ffy.flags & libc::O_NONBLOCK as u32 == 0;
    if waits != (ffy.faflags & libc::FAN_NONBLOCK == 0) {
        let call = set_flags(slot, ffy.flags as i32);
        planner.call(Phase::Open, Actor::Broker, call, file.origin(file.name()));
    }
    fown::plan(planner, file, slot, ffy.flags as i32, &ffy.fown);
    Some(slot)
}

/// Adds the marks, when nothing else touches files.
pub(super) fn plan_marks(planner: &mut Planner<'_>) {
    for file in of_kind(planner, FdTypes::Fanotify) {
        let slot = planner.files.slots.get(&file.id).copied().flatten();
        let (Some(ffy), Some(slot)) = (&file.entry.ffy, slot) else {
            continue;
        };
        // The kernel lists the youngest first, and the images have its list.
        for (number, mark) in ffy.mark.iter().enumerate().rev() {
            let what = format!("mark {number} of {}", file.name());
            let open = match &mark.ie {
                Some(inode) => open_ghost(planner, &inode.f_handle),
                None => Ok(None),
            };
            match open.and_then(|open| routines(mark, slot, open)) {
                Ok(routines) => {
                    for routine in routines {
                        let origin = file.origin(what.clone());
                        planner.push(Phase::Commit, Actor::Broker, Op::Routine(routine), origin);
                    }
                }
                Err(why) => planner.refuse(Refusal::new(file.origin(what), why)),
            }
        }
    }
}

/// One call for the events, one for those that are ignored.
fn routines(
    mark: &FanotifyMarkEntry,
    slot: SlotId,
    open: Option<SlotId>,
) -> Result<Vec<Routine>, String> {
    let mut on = FanotifyTarget::of(mark, open)?;
    on.flags |= libc::FAN_MARK_ADD;
    let ignores = if mark.mflags & FAN_MARK_IGNORE != 0 {
        FAN_MARK_IGNORE
    } else {
        libc::FAN_MARK_IGNORED_MASK
    };
    let survives = mark.mflags & libc::FAN_MARK_IGNORED_SURV_MODIFY;
    let evictable = mark.mflags & FAN_MARK_EVICTABLE;
    let calls = [
        (evictable, mark.mask),
        (ignores | survives, mark.ignored_mask),
    ];
    let calls = calls.into_iter().filter(|(_, mask)| *mask != 0);
    Ok(calls
        .map(|(flags, mask)| Routine::MarkInode {
            slot,
            flags: on.flags | flags,
            mask: mask.into(),
            on: on.watched.clone(),
        })
        .collect())
}

/// What a mark is on.
struct FanotifyTarget {
    flags: u32,
    watched: Watched,
}

impl FanotifyTarget {
    fn of(mark: &FanotifyMarkEntry, open: Option<SlotId>) -> Result<FanotifyTarget, String> {
        match (MarkType::try_from(mark.r#type), &mark.ie, &mark.me) {
            (Ok(MarkType::Inode), Some(inode), _) => Ok(FanotifyTarget {
                flags: 0,
                watched: watched(mark.s_dev, &inode.f_handle, open)?,
            }),
            (Ok(MarkType::Mount), _, Some(mount)) => {
                let path = mount.path.clone().unwrap_or_default();
                check_path(&path)
                    .map_err(|why| format!("mount {} at {}: {why}", mount.mnt_id, shown(&path)))?;
                let flags = match mark.crust_filesystem {
                    Some(true) => libc::FAN_MARK_FILESYSTEM,
                    _ => libc::FAN_MARK_MOUNT,
                };
                Ok(FanotifyTarget {
                    flags,
                    watched: Watched {
                        path,
                        ..Watched::default()
                    },
                })
            }
            (Ok(_), ..) => Err("the member of its type is missing".to_owned()),
            (Err(_), ..) => Err(format!("type {} is no type of mark", mark.r#type)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_proto::criu::{FanotifyInodeMarkEntry, FanotifyMountMarkEntry, FhEntry};

    fn flags_of(mark: &FanotifyMarkEntry) -> Vec<(u32, u64)> {
        let routines = routines(mark, SlotId(0), None).expect("a mark");
        routines
            .into_iter()
            .map(|routine| match routine {
                Routine::MarkInode { flags, mask, .. } => (flags, mask),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn events_and_ignored_events_are_two_calls() {
        let mut mark = FanotifyMarkEntry {
            r#type: MarkType::Inode as i32,
            mflags: libc::FAN_MARK_IGNORED_SURV_MODIFY,
            mask: 2,
            ignored_mask: 0x20,
            ie: Some(FanotifyInodeMarkEntry {
                f_handle: FhEntry {
                    path: Some(b"/f".to_vec()),
                    ..Default::default()
                },
                ..Default::default()
            }),
            ..Default::default()
        };
        assert_eq!(flags_of(&mark), [(1, 2), (0x61, 0x20)]);
        mark.mflags = FAN_MARK_IGNORE;
        assert_eq!(flags_of(&mark), [(1, 2), (0x401, 0x20)]);
    }

    #[test]
    fn a_mount_is_marked_by_its_path() {
        let mount = |path: Option<&[u8]>| FanotifyMarkEntry {
            r#type: MarkType::Mount as i32,
            mask: 1,
            me: Some(FanotifyMountMarkEntry {
                mnt_id: 4,
                path: path.map(<[u8]>::to_vec),
            }),
            ..Default::default()
        };
        let mut mark = mount(Some(b"/mnt"));
        assert_eq!(flags_of(&mark), [(0x11, 1)]);
        mark.crust_filesystem = Some(true);
        assert_eq!(flags_of(&mark), [(0x101, 1)]);
        assert!(routines(&mount(None), SlotId(0), None).is_err());
    }
}
