//! File locks: flock(2), POSIX record locks, open-file-description locks and leases.
//!
//! /proc/locks tells which inodes are locked at all, so only descriptors on those have their
//! fdinfo read. fdinfo tells the true owner: a flock, an OFD lock or a lease belongs to the
//! description and is stored once, by the first descriptor that has it; a POSIX lock belongs to
//! the table and is stored for each, also when a child took it on a descriptor that it inherited
//! (which the peer loses). Without `--file-locks` a held lock is refused, as the peer does: a
//! restorer cannot know whether somebody else took it meanwhile.

use super::{FileTable, Known, read_fdinfo};
use crate::context::{Context, Task};
use crate::refusal::Refusal;
use anyhow::{Context as _, Result};
use crust_image::kind::Kind;
use crust_image::sink::{ImageSink, write_entries};
use crust_process::pid::HostPid;
use crust_process::proc::locks::{Lock, LockAccess, LockKind, parse_locks};
use crust_proto::criu::FileLockEntry;
use std::collections::HashSet;

/// The locks of a dump.
#[derive(Debug, Default)]
pub struct Locks {
    /// The inodes that have locks, by number: the device there is not that of stat(2) on btrfs.
    locked: Option<HashSet<u64>>,
    seen: HashSet<Identity>,
    entries: Vec<FileLockEntry>,
}

/// What makes two lines the same lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    owner: Owner,
    inode: (u64, u64),
    flag: u32,
    range: (u64, Option<u64>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Owner {
    Table(HostPid),
    Description(u32),
}

/// Collects the locks that a task's table holds.
pub fn dump(ctx: &Context, table: &mut FileTable, task: &Task) -> Result<()> {
    let locked = match table.locks.locked.take() {
        Some(locked) => locked,
        None => read_locked()?,
    };
    let candidates: Vec<(i32, Known)> = table
        .tables
        .get(&task.pid)
        .into_iter()
        .flatten()
        .filter(|(_, known)| locked.contains(&known.inode.1))
        .map(|(fd, known)| (*fd, *known))
        .collect();
    table.locks.locked = Some(locked);
    for (fd, known) in candidates {
        for lock in read_fdinfo(task.pid, fd)?.locks {
            if let Some(entry) = table.locks.note(task, fd, &known, &lock) {
                check(ctx, task, fd, &lock);
                table.locks.entries.push(entry);
            }
        }
    }
    Ok(())
}

fn read_locked() -> Result<HashSet<u64>> {
    let text = std::fs::read("/proc/locks").context("read /proc/locks")?;
    let locks = parse_locks(&text).context("/proc/locks")?;
    Ok(locks
        .iter()
        .filter_map(|lock| lock.inode)
        .map(|inode| inode.ino)
        .collect())
}

impl Locks {
    /// The entries of filelocks.img.
    pub fn entries(&self) -> &[FileLockEntry] {
        &self.entries
    }

    /// The entry of a lock that was not seen before.
    fn note(&mut self, task: &Task, fd: i32, known: &Known, lock: &Lock) -> Option<FileLockEntry> {
        if lock.blocked {
            return None;
        }
        let owner = match lock.kind {
            LockKind::Posix => Owner::Table(task.pid),
            _ => Owner::Description(known.id.0),
        };
        let flag = flag(lock.kind);
        let range = (lock.start, lock.end);
        self.seen
            .insert(Identity {
                owner,
                inode: known.inode,
                flag,
                range,
            })
            .then(|| encode(task.virt, fd, lock))
    }
}

fn flag(kind: LockKind) -> u32 {
    match kind {
        LockKind::Posix => 1,
        LockKind::Flock => 2,
        LockKind::Ofd => 4,
        LockKind::Lease | LockKind::Delegation => 8,
    }
}

fn encode(virt: u32, fd: i32, lock: &Lock) -> FileLockEntry {
    FileLockEntry {
        flag: flag(lock.kind),
        r#type: match lock.access {
            LockAccess::Read => 0,
            LockAccess::Write => 1,
            LockAccess::Unlocked => 2,
        },
        pid: virt as i32,
        fd,
        start: lock.start as i64,
        len: lock.end.map_or(0, |end| (end - lock.start + 1) as i64),
    }
}

/// Refuses what cannot be carried.
fn check(ctx: &Context, task: &Task, fd: i32, lock: &Lock) {
    let object = format!("fd {fd}");
    if !ctx.options.file_locks {
        let what = "a file lock is held";
        ctx.refuse(Refusal::new(task.pid, object, what).hint("try --file-locks"));
    } else if lock.kind == LockKind::Delegation {
        ctx.refuse(Refusal::new(
            task.pid,
            object,
            "a delegation of the NFS server is held",
        ));
    } else if lock.breaking {
        ctx.refuse(Refusal::new(task.pid, object, "its lease is being broken"));
    } else if lock.mandatory {
        ctx.refuse(Refusal::new(task.pid, object, "a mandatory lock is held"));
    }
}

/// Writes filelocks.img.
pub fn write(table: &FileTable, sink: &dyn ImageSink) -> Result<()> {
    let locks = table.locks.entries();
    Ok(write_entries(sink, Kind::FileLocks, None, locks)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(line: &str) -> (u32, u32, i64, i64) {
        let lock = parse_locks(line.as_bytes()).unwrap().remove(0);
        let entry = encode(2961, 5, &lock);
        (entry.flag, entry.r#type, entry.start, entry.len)
    }

    #[test]
    fn locks_as_the_peer_has_them() {
        assert_eq!(
            entry("1: FLOCK  ADVISORY  WRITE 9 fe:00:12 0 EOF\n"),
            (2, 1, 0, 0)
        );
        assert_eq!(
            entry("1: POSIX  ADVISORY  WRITE 9 fe:00:12 10 29\n"),
            (1, 1, 10, 20)
        );
        assert_eq!(
            entry("1: OFDLCK ADVISORY  READ -1 fe:00:12 60 69\n"),
            (4, 0, 60, 10)
        );
        assert_eq!(
            entry("1: POSIX  ADVISORY  READ 9 fe:00:12 2000 EOF\n"),
            (1, 0, 2000, 0)
        );
    }
}
