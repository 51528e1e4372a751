//! epoll_create(2): a set of descriptions to be told about.
//!
//! fdinfo tells each target as the number it had when it was added, with events and data. The set
//! holds descriptions, not numbers: the number may have been closed while a duplicate keeps the
//! description alive, or may be another file by now. So each target is compared with the number it
//! claims (kcmp(2), KCMP_EPOLL_TFD) and, when they differ, looked for in the whole table; the
//! number where it was found is stored. A target that lives on only outside the table (in a child,
//! in flight) is refused. The ready list is not stored: the restored targets are ready by
//! themselves. An edge-triggered event that was told already is told once more, as with the peer.

use super::{FileTable, Known, OpenFile, RoomResult, file_entry};
use crate::context::{Context, Task};
use crate::refusal::Refusal;
use anyhow::Result;
use crust_image::ids::FileId;
use crust_process::kcmp::{self, EpollSlot};
use crust_process::proc::fdinfo::EpollTarget;
use crust_proto::criu::{EventpollFileEntry, EventpollTfdEntry, FdTypes, FileEntry};
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

/// Dumps a descriptor. The numbers of the targets are settled when the whole table is known.
pub fn dump(ctx: &Context, file: &OpenFile, id: FileId) -> RoomResult<FileEntry> {
    let info = file.fdinfo()?;
    let entry = EventpollFileEntry {
        id: id.0,
        flags: file.flags,
        fown: file.fown(ctx)?,
        tfd: info.epoll.iter().map(encode_target).collect(),
    };
    Ok(FileEntry {
        epfd: Some(Box::new(entry)),
        ..file_entry(FdTypes::Eventpoll, id)
    })
}

fn encode_target(target: &EpollTarget) -> EventpollTfdEntry {
    EventpollTfdEntry {
        id: 0,
        tfd: target.fd as u32,
        events: target.events,
        data: target.data,
        dev: target.file.map(|file| file.sdev),
        inode: target.file.map(|file| file.ino),
        pos: target.file.map(|file| file.pos as u64),
    }
}

/// Settles the target numbers of every epoll that was found in this task's table.
pub fn settle_targets(ctx: &Context, table: &mut FileTable, task: &Task) -> Result<()> {
    let Some(descriptors) = table.tables.get(&task.pid) else {
        return Ok(());
    };
    let epolls: Vec<(i32, FileId)> = descriptors
        .iter()
        .filter(|(_, known)| known.kind == FdTypes::Eventpoll && known.place.pid == task.pid)
        .filter(|(fd, known)| known.place.fd == **fd)
        .map(|(fd, known)| (*fd, known.id))
        .collect();
    for (epoll_fd, id) in epolls {
        let Some(index) = table.entries.iter().rposition(|entry| entry.id == id.0) else {
            continue;
        };
        let mut settled = table.entries[index].epfd.take().unwrap_or_default();
        // Descriptions added under one number, after that number was reused, count up.
        let mut offsets: HashMap<u32, u32> = HashMap::new();
        for target in &mut settled.tfd {
            let offset = offsets.entry(target.tfd).or_default();
            let slot = EpollSlot {
                epoll_fd: epoll_fd as u32,
                target_fd: target.tfd,
                offset: *offset,
            };
            *offset += 1;
            match find_target(task, descriptors, slot)? {
                Some(fd) => target.tfd = fd as u32,
                None => refuse_target(ctx, task, slot),
            }
        }
        table.entries[index].epfd = Some(settled);
    }
    Ok(())
}

/// A descriptor of the table that is the target: the number it claims, or else the lowest.
fn find_target(
    task: &Task,
    descriptors: &BTreeMap<i32, Known>,
    slot: EpollSlot,
) -> Result<Option<i32>> {
    let claimed = slot.target_fd as i32;
    let others = descriptors.keys().copied().filter(|fd| *fd != claimed);
    let claimed = descriptors.contains_key(&claimed).then_some(claimed);
    for fd in claimed.into_iter().chain(others) {
        if kcmp::epoll_target(task.pid, fd, task.pid, slot)? == Ordering::Equal {
            return Ok(Some(fd));
        }
    }
    Ok(None)
}

fn refuse_target(ctx: &Context, task: &Task, slot: EpollSlot) {
    let object = format!("fd {} (anon_inode:[eventpoll])", slot.epoll_fd);
    let what = format!(
        "its target {} is closed, and no other descriptor of the task leads to it",
        slot.target_fd
    );
    ctx.refuse(Refusal::new(task.pid, object, what));
}
