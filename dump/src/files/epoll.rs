//! epoll_create(2): a set of descriptions to be told about.
//!
//! fdinfo tells each target as the number it had when it was added, with events and data. The set
//! holds descriptions, not numbers: the number may have been closed while a duplicate keeps the
//! description alive, or may be another file by now. So each target is compared with the number it
//! claims (kcmp(2), KCMP_EPOLL_TFD) and, when they differ, looked for in the whole table; the
//! number where it was found is stored, as with the peer, and in fields of our own the number it
//! was added under and the file. One that lives on only outside the table, in another task or in
//! flight, has just those; one that nobody of the tree has is refused. The ready list is not stored: the restored targets are ready by
//! themselves. An edge-triggered event that was told already is told once more, as with the peer.

use super::{FileTable, Known, OpenFile, Place, RoomResult, file_entry};
use crate::context::{Context, Task};
use crate::refusal::Refusal;
use anyhow::Result;
use crust_image::ids::FileId;
use crust_process::kcmp::{self, EpollSlot};
use crust_process::pid::HostPid;
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
        crust_tfd: None,
        crust_file_id: None,
    }
}

/// Settles the target numbers of every epoll that was found in this task's table.
pub fn settle_targets(table: &mut FileTable, task: &Task) -> Result<()> {
    let Some(descriptors) = table.tables.get(&task.pid) else {
        return Ok(());
    };
    let epolls: Vec<(i32, FileId)> = descriptors
        .iter()
        .filter(|(_, known)| known.kind == FdTypes::Eventpoll && known.place.pid == task.pid)
        .filter(|(fd, known)| known.place.fd == **fd)
        .map(|(fd, known)| (*fd, known.id))
        .collect();
    let mut lost = Vec::new();
    for (epoll_fd, id) in epolls {
        let Some(index) = table.entries.iter().rposition(|entry| entry.id == id.0) else {
            continue;
        };
        let mut settled = table.entries[index].epfd.take().unwrap_or_default();
        // Descriptions added under one number, after that number was reused, count up.
        let mut offsets: HashMap<u32, u32> = HashMap::new();
        for (at, target) in settled.tfd.iter_mut().enumerate() {
            let offset = offsets.entry(target.tfd).or_default();
            let slot = EpollSlot {
                epoll_fd: epoll_fd as u32,
                target_fd: target.tfd,
                offset: *offset,
            };
            *offset += 1;
            match find_target(task.pid, descriptors, task.pid, slot)? {
                Some((fd, _)) if fd as u32 == target.tfd => {}
                Some((fd, id)) => note_moved(target, fd as u32, id),
                None => lost.push(Lost {
                    of: (id, at),
                    task: task.pid,
                    slot,
                }),
            }
        }
        table.entries[index].epfd = Some(settled);
    }
    table.lost_targets.extend(lost);
    Ok(())
}

/// A target that the table of its epoll does not lead to.
#[derive(Debug)]
pub struct Lost {
    /// The epoll and the place in its list.
    of: (FileId, usize),
    task: HostPid,
    slot: EpollSlot,
}

/// A target that its number does not mean any more: it was added under that number all the same.
fn note_moved(target: &mut EventpollTfdEntry, now: u32, id: FileId) {
    target.crust_tfd = Some(target.tfd);
    target.crust_file_id = Some(id.0);
    target.tfd = now;
}

/// Looks for the targets that are open elsewhere only: in other tasks, in flight.
pub fn settle_lost(ctx: &Context, table: &mut FileTable) -> Result<()> {
    for lost in std::mem::take(&mut table.lost_targets) {
        let Some(id) = find_elsewhere(table, &lost)? else {
            refuse_target(ctx, &lost);
            continue;
        };
        let (epoll, at) = lost.of;
        let entry = table.entries.iter_mut().rfind(|entry| entry.id == epoll.0);
        let epfd = entry.and_then(|entry| entry.epfd.as_mut());
        if let Some(target) = epfd.and_then(|epfd| epfd.tfd.get_mut(at)) {
            note_moved(target, target.tfd, id);
        }
    }
    Ok(())
}

fn find_elsewhere(table: &FileTable, lost: &Lost) -> Result<Option<FileId>> {
    let others = table.tables.iter().filter(|(pid, _)| **pid != lost.task);
    for (pid, descriptors) in others {
        if let Some((_, id)) = find_target(*pid, descriptors, lost.task, lost.slot)? {
            return Ok(Some(id));
        }
    }
    let own = HostPid::current();
    for known in table.buckets.values().flatten() {
        let Place { pid, fd } = known.place;
        if pid == own && kcmp::epoll_target(pid, fd, lost.task, lost.slot)? == Ordering::Equal {
            return Ok(Some(known.id));
        }
    }
    Ok(None)
}

/// A descriptor of `holder`'s table that is the target of an epoll of `owner`: the number it
/// claims, or else the lowest.
fn find_target(
    holder: HostPid,
    descriptors: &BTreeMap<i32, Known>,
    owner: HostPid,
    slot: EpollSlot,
) -> Result<Option<(i32, FileId)>> {
    let claimed = slot.target_fd as i32;
    let first = descriptors.get_key_value(&claimed);
    let others = descriptors.iter().filter(|(fd, _)| **fd != claimed);
    for (fd, known) in first.into_iter().chain(others) {
        if kcmp::epoll_target(holder, *fd, owner, slot)? == Ordering::Equal {
            return Ok(Some((*fd, known.id)));
        }
    }
    Ok(None)
}

fn refuse_target(ctx: &Context, lost: &Lost) {
    let EpollSlot {
        epoll_fd,
        target_fd,
        ..
    } = lost.slot;
    let object = format!("fd {epoll_fd} (anon_inode:[eventpoll])");
    let what = format!(
        "its target {target_fd} is closed, and no other descriptor of the tree leads to it"
    );
    ctx.refuse(Refusal::new(lost.task, object, what));
}
