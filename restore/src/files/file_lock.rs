//! File locks (filelocks.img): flock(2), POSIX records, records of open file descriptions, leases.
//!
//! An entry names the task and the number through which the lock was seen. flock and OFD locks and
//! leases belong to the description, POSIX locks to the process; all are taken again by that task
//! through that number, when its table is complete. The files may be somebody else's by now: a lock
//! that is not free fails the restore instead of waiting.

use super::calls::task_fcntl;
use super::table::Table;
use crate::plan::step::{Actor, Arg, Call, Origin, Phase};
use crate::plan::{Planner, Refusal};
use crust_image::ids::VirtPid;
use crust_proto::criu::FileLockEntry;
use nix::libc;

/// file_lock_entry.flag.
const POSIX: u32 = 1;
const FLOCK: u32 = 2;
const OFD: u32 = 4;
const LEASE: u32 = 8;

const TYPES: [(i32, &str); 3] = [
    (libc::F_RDLCK, "F_RDLCK"),
    (libc::F_WRLCK, "F_WRLCK"),
    (libc::F_UNLCK, "F_UNLCK"),
];

/// Takes every lock.
pub(super) fn plan(planner: &mut Planner<'_>, tables: &[Table]) {
    let checkpoint = planner.checkpoint;
    for (index, lock) in checkpoint.file_locks.iter().enumerate() {
        let what = format!("lock through descriptor {} of {}", lock.fd, lock.pid);
        let origin = Origin::new("filelocks.img", Some(index), what);
        match holder(planner, lock, tables).and_then(|pid| Ok((pid, call(lock)?))) {
            Ok((pid, call)) => {
                planner.call(Phase::Fds, Actor::Task(pid), call, origin);
            }
            Err(why) => planner.refuse(Refusal::new(origin, why)),
        }
    }
}

/// The task that takes the lock: its own process for a POSIX lock.
fn holder(
    planner: &Planner<'_>,
    lock: &FileLockEntry,
    tables: &[Table],
) -> Result<VirtPid, String> {
    let pid = u32::try_from(lock.pid).ok().and_then(VirtPid::new);
    let task = pid
        .and_then(|pid| planner.tree.task(pid))
        .filter(|task| task.is_live());
    let task = task.ok_or_else(|| format!("pid {} is no task of the tree", lock.pid))?;
    let files_id = task.ids.as_ref().map(|ids| ids.files_id);
    let shares = |owner: VirtPid| {
        let owner = planner.tree.task(owner).and_then(|task| task.ids.as_ref());
        owner.map(|ids| ids.files_id) == files_id
    };
    let table = tables.iter().find(|table| shares(table.owner));
    if table.is_none_or(|table| !table.files.contains_key(&lock.fd)) {
        return Err(format!("fd {} is not open in task {}", lock.fd, lock.pid));
    }
    Ok(task.pid)
}

fn call(lock: &FileLockEntry) -> Result<Call, String> {
    let kind = TYPES
        .iter()
        .find(|(number, _)| *number as u32 == lock.r#type);
    let &(kind, name) = kind.ok_or_else(|| format!("type {} is no type of lock", lock.r#type))?;
    match lock.flag {
        FLOCK => flock(lock.fd, kind),
        POSIX => Ok(task_fcntl(
            lock.fd,
            "F_SETLK",
            libc::F_SETLK,
            range(lock, kind)?,
        )),
        OFD => Ok(task_fcntl(
            lock.fd,
            "F_OFD_SETLK",
            libc::F_OFD_SETLK,
            range(lock, kind)?,
        )),
        LEASE => {
            let kind = Arg::named(name, kind);
            Ok(task_fcntl(lock.fd, "F_SETLEASE", libc::F_SETLEASE, kind))
        }
        other => Err(format!("flag {other:#x} is no kind of lock")),
    }
}

fn flock(fd: i32, kind: i32) -> Result<Call, String> {
    let (value, name) = match kind {
        libc::F_RDLCK => (libc::LOCK_SH, "LOCK_SH|LOCK_NB"),
        libc::F_WRLCK => (libc::LOCK_EX, "LOCK_EX|LOCK_NB"),
        _ => return Err("type 2 is no lock that flock(2) takes".to_owned()),
    };
    let args = vec![Arg::Int(fd.into()), Arg::named(name, value | libc::LOCK_NB)];
    Ok(Call::new("flock", libc::SYS_flock, args))
}

/// struct flock: type and whence of 16 bits, then start, length and pid, aligned.
fn range(lock: &FileLockEntry, kind: i32) -> Result<Arg, String> {
    if lock.start < 0 || lock.len < 0 || lock.start.checked_add(lock.len).is_none() {
        return Err(format!(
            "start {} and len {} are no range of a file",
            lock.start, lock.len
        ));
    }
    let mut bytes = (kind as u16).to_le_bytes().to_vec();
    bytes.extend((libc::SEEK_SET as u16).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(lock.start.to_le_bytes());
    bytes.extend(lock.len.to_le_bytes());
    bytes.extend([0; 8]);
    Ok(Arg::bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(flag: u32, kind: u32, start: i64, len: i64) -> FileLockEntry {
        FileLockEntry {
            flag,
            r#type: kind,
            pid: 1,
            fd: 3,
            start,
            len,
        }
    }

    #[test]
    fn kinds_of_locks() {
        let name = |flag, kind| call(&lock(flag, kind, 0, 0)).map(|call| call.name);
        assert_eq!(name(FLOCK, 1), Ok("flock"));
        assert_eq!(name(OFD, 0), Ok("fcntl"));
        assert!(name(FLOCK, 2).is_err());
        assert!(name(3, 0).is_err());
        assert!(name(POSIX, 9).is_err());
    }

    #[test]
    fn ranges() {
        let Ok(Arg::Data(pieces)) = range(&lock(POSIX, 1, 10, 20), libc::F_WRLCK) else {
            panic!("no structure");
        };
        let [Piece::Bytes(bytes)] = pieces.as_slice() else {
            panic!("{pieces:?}")
        };
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[..4], [1, 0, 0, 0]);
        assert_eq!(bytes[8..16], 10_i64.to_le_bytes());
        assert!(range(&lock(POSIX, 1, -1, 0), 1).is_err());
        assert!(range(&lock(POSIX, 1, i64::MAX, 2), 1).is_err());
    }

    use crate::plan::step::Piece;
}
