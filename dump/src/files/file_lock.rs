//! File locks: flock(2), POSIX record locks, open-file-description locks and leases.
//!
//! Of a tree with many descriptors /proc/locks tells which inodes are locked at all, so only
//! descriptors on those have their fdinfo read. Its reader sleeps until all processors have gone
//! through a grace period (percpu_down_write() of locks_start() in fs/locks.c), six milliseconds and
//! more: a thread reads it while the tree is collected, and where there are few descriptors it is not
//! read at all. fdinfo tells the true owner: a flock, an OFD lock or a lease belongs to the
//! description and is stored once, by the first descriptor that has it; a POSIX lock belongs to
//! the table and is stored for each, also when a child took it on a descriptor that it inherited
//! (which the peer loses). Without `--file-locks` a held lock is refused, as the peer does: a
//! restorer cannot know whether somebody else took it meanwhile.

use super::{FileTable, Known};
use crate::context::{Context, Task};
use crate::refusal::Refusal;
use anyhow::{Context as _, Result};
use crust_image::kind::Kind;
use crust_image::sink::{ImageSink, write_entries};
use crust_process::pid::HostPid;
use crust_process::proc::fdinfo::parse_fdinfo_locks;
use crust_process::proc::locks::{Lock, LockAccess, LockKind, parse_locks};
use crust_proto::criu::FileLockEntry;
use std::collections::HashSet;
use std::fs;
use std::thread::{self, JoinHandle};

/// So many fdinfo are read in less than two milliseconds.
const FEW: usize = 256;

/// The locks of a dump.
#[derive(Debug, Default)]
pub struct Locks {
    locked: Locked,
    seen: HashSet<Identity>,
    entries: Vec<FileLockEntry>,
}

/// Where locks may be.
#[derive(Debug, Default)]
enum Locked {
    /// On any descriptor: there are few.
    #[default]
    Anywhere,
    /// A thread is reading /proc/locks.
    Asked(JoinHandle<Result<Inodes>>),
    /// On these inodes.
    On(Inodes),
}

/// Inodes that have locks, by number: the device there is not that of stat(2) on btrfs.
type Inodes = HashSet<u64>;

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
    let inodes = table.locks.locked.inodes()?;
    let is_locked = |known: &Known| inodes.is_none_or(|inodes| inodes.contains(&known.inode.1));
    let candidates: Vec<(i32, Known)> = table
        .tables
        .get(&task.pid)
        .into_iter()
        .flatten()
        .filter(|(_, known)| is_locked(known))
        .map(|(fd, known)| (*fd, *known))
        .collect();
    for (fd, known) in candidates {
        for lock in read_locks(task.pid, fd)? {
            if let Some(entry) = table.locks.note(task, fd, &known, &lock) {
                check(ctx, task, fd, &lock);
                table.locks.entries.push(entry);
            }
        }
    }
    Ok(())
}

/// Those that a task has by one of its descriptors.
fn read_locks(pid: HostPid, fd: i32) -> Result<Vec<Lock>> {
    let path = format!("/proc/{pid}/fdinfo/{fd}");
    let text = fs::read(&path).with_context(|| format!("task {pid}: read {path}"))?;
    parse_fdinfo_locks(&text).with_context(|| format!("task {pid}: {path}"))
}

fn read_locked() -> Result<Inodes> {
    let text = fs::read("/proc/locks").context("read /proc/locks")?;
    let locks = parse_locks(&text).context("/proc/locks")?;
    Ok(locks
        .iter()
        .filter_map(|lock| lock.inode)
        .map(|inode| inode.ino)
        .collect())
}

impl Locked {
    /// The inodes that have locks, once they are known; none if any may.
    fn inodes(&mut self) -> Result<Option<&Inodes>> {
        if let Locked::Asked(_) = self
            && let Locked::Asked(reader) = std::mem::take(self)
        {
            let read = reader.join();
            *self = Locked::On(read.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(match self {
            Locked::On(inodes) => Some(inodes),
            _ => None,
        })
    }
}

impl Locks {
    /// Begins to look for the locks of a frozen tree that has so many descriptors.
    pub fn of_tree(descriptors: usize) -> Result<Locks> {
        let locked = match descriptors {
            0..=FEW => Locked::Anywhere,
            _ => match thread::Builder::new().spawn(read_locked) {
                Ok(reader) => Locked::Asked(reader),
                // Nobody reads it meanwhile.
                Err(_) => Locked::On(read_locked()?),
            },
        };
        Ok(Locks {
            locked,
            ..Locks::default()
        })
    }

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
