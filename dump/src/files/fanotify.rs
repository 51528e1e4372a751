//! fanotify_init(2): marks on inodes and mounts, and a queue of events.
//!
//! fdinfo tells the flags of the group and each mark: of an inode by its file handle, of which the
//! path is learnt as for inotify; of a mount by its id; of a file system by its device, for which
//! CRIU has no type: it is stored as a mark on one of its mounts with a field of our own, which
//! CRIU restores as just that. The queue cannot be read without consuming
//! it and without answering for others: waiting events are lost, as with the peer, and the log says
//! so. Refused: marks on whole mount namespaces, which images cannot hold, and
//! permission events, for while the group is frozen everybody who touches the files hangs.

use super::inotify::{MINOR_BITS, MINOR_MASK, encode_handle, find_watched, note_deleted};
use super::mounts::Inode;
use super::{FileTable, OpenFile, Problem, RoomResult, file_entry};
use crate::context::Context;
use crust_image::ids::FileId;
use crust_process::proc::fdinfo::{FanotifyMark, FanotifyObject};
use crust_process::proc::mountinfo::MountInfo;
use crust_proto::criu::{
    FanotifyFileEntry, FanotifyInodeMarkEntry, FanotifyMarkEntry, FanotifyMountMarkEntry, FdTypes,
    FileEntry, MarkType,
};

/// FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM and FAN_PRE_ACCESS (linux/fanotify.h).
const PERMISSION_EVENTS: u64 = 0x1f_0000;

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    file.warn_of_lost_events(ctx)?;
    let info = file.fdinfo()?.fanotify;
    let info = info.ok_or_else(|| Problem::refused("fdinfo does not tell the group"))?;
    let mut marks = Vec::with_capacity(info.marks.len());
    for mark in &info.marks {
        let (entry, deleted) = encode_mark(ctx, table, file, mark)?;
        if let Some(inode) = deleted {
            let what = format!("mark on inode {:#x}", inode.1);
            note_deleted(table, file, (id, marks.len()), inode, what);
        }
        marks.push(entry);
    }
    let entry = FanotifyFileEntry {
        id: id.0,
        flags: file.flags,
        fown: file.fown(ctx)?,
        faflags: info.flags,
        evflags: info.event_flags,
        mark: marks,
    };
    Ok(FileEntry {
        ffy: Some(Box::new(entry)),
        ..file_entry(FdTypes::Fanotify, id)
    })
}

fn encode_mark(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    mark: &FanotifyMark,
) -> RoomResult<(FanotifyMarkEntry, Option<Inode>)> {
    if (mark.mask | mark.ignored_mask) & PERMISSION_EVENTS != 0 {
        return Err(Problem::refused("it decides about permissions of others"));
    }
    let small = |mask: u64| {
        u32::try_from(mask).map_err(|_| Problem::refused(format!("mask {mask:#x} is too wide")))
    };
    let mut entry = FanotifyMarkEntry {
        mflags: mark.mark_flags,
        mask: small(mark.mask)?,
        ignored_mask: small(mark.ignored_mask)?,
        ..FanotifyMarkEntry::default()
    };
    let mut deleted = None;
    match &mark.object {
        FanotifyObject::Inode { ino, sdev, handle } => {
            let found = find_watched(ctx, table, file, (*sdev, *ino), handle.as_ref())
                .map_err(|why| Problem::refused(format!("mark on inode {ino:#x}: {why}")))?;
            deleted = found.deleted;
            entry.r#type = MarkType::Inode as i32;
            entry.s_dev = *sdev;
            entry.ie = Some(FanotifyInodeMarkEntry {
                i_ino: *ino,
                f_handle: encode_handle(handle.as_ref(), found.path),
            });
        }
        FanotifyObject::Mount(mnt_id) => {
            let namespace = table.mounts.of(file.task)?;
            let id = u64::try_from(*mnt_id).ok();
            let mount = id.and_then(|id| namespace.mount(id));
            let unseen = || {
                let what = format!("mark on mount {mnt_id}, which the task does not see");
                Problem::refused(what)
            };
            encode_mount(&mut entry, mount.ok_or_else(unseen)?);
        }
        FanotifyObject::Filesystem(sdev) => {
            let namespace = table.mounts.of(file.task)?;
            let device = (sdev >> MINOR_BITS, sdev & MINOR_MASK);
            let mount = namespace.of_device(device.0, device.1).next();
            let unseen = || {
                let (major, minor) = device;
                let what = format!(
                    "mark on the file system {major}:{minor}, of which the task sees no mount"
                );
                Problem::refused(what)
            };
            encode_mount(&mut entry, mount.ok_or_else(unseen)?);
            entry.s_dev = *sdev;
            entry.crust_filesystem = Some(true);
        }
        FanotifyObject::MountNamespace(_) => {
            return Err(Problem::refused("a mark is on a whole mount namespace"));
        }
    }
    Ok((entry, deleted))
}

fn encode_mount(entry: &mut FanotifyMarkEntry, mount: &MountInfo) {
    entry.r#type = MarkType::Mount as i32;
    entry.me = Some(FanotifyMountMarkEntry {
        mnt_id: mount.mnt_id,
        path: Some(mount.mountpoint.clone()),
    });
}
