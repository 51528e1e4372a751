//! /proc/locks and the `lock:` lines of fdinfo: flock(2), POSIX and OFD record locks, leases and
//! delegations, as lock_get_status() of fs/locks.c prints them (proc_locks(5)).
//!
//! Only fdinfo tells which description holds a lock; /proc/locks alone tells who waits. Pids are
//! those of the reader's namespace, -1 for OFD locks, which belong to nobody.

use super::text::{ParseError, Words, decimal, hex, lines};

/// Which interface made the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    /// fcntl(2) F_SETLK.
    Posix,
    /// fcntl(2) F_OFD_SETLK.
    Ofd,
    /// flock(2).
    Flock,
    /// fcntl(2) F_SETLEASE.
    Lease,
    /// A lease of the NFS server.
    Delegation,
}

/// What the lock allows. A lease that is being broken prints what it will become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockAccess {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
    /// No access; a broken lease on its way to F_UNLCK.
    Unlocked,
}

/// One lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Ordinal in the text.
    pub number: u64,
    /// `->`: a waiter on the lock before it.
    pub blocked: bool,
    /// Interface.
    pub kind: LockKind,
    /// Mandatory instead of advisory, before 5.15.
    pub mandatory: bool,
    /// A lease in state BREAKING: the holder was told to give it up.
    pub breaking: bool,
    /// Access.
    pub access: LockAccess,
    /// Owner in the reader's pid namespace; -1 for OFD, 0 for one outside.
    pub pid: i32,
    /// Device and inode; `None` for a lock without one.
    pub inode: Option<LockInode>,
    /// First byte.
    pub start: u64,
    /// Last byte; `None` to the end of the file.
    pub end: Option<u64>,
}

/// The file of a lock. The device is the superblock's s_dev, which btrfs does not show in stat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockInode {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Inode number.
    pub ino: u64,
}

/// Parses the whole of /proc/locks.
pub fn parse_locks(text: &[u8]) -> Result<Vec<Lock>, ParseError> {
    lines("locks", text)
        .map(|line| parse_lock(line.words()))
        .collect()
}

/// Parses one lock from where its ordinal begins.
pub(super) fn parse_lock(mut words: Words<'_>) -> Result<Lock, ParseError> {
    let number = parse_number(&mut words)?;
    let mut word = words.word("lock type")?;
    let mut blocked = false;
    // Waiters of waiters are indented by further arrows since 5.1.
    while word == b"->" {
        blocked = true;
        word = words.word("lock type")?;
    }
    let kind = parse_kind(word).ok_or_else(|| words.error("lock type"))?;
    let mode = words.word("lock mode")?;
    let access =
        parse_access(words.word("lock access")?).ok_or_else(|| words.error("lock access"))?;
    let pid = words.decimal("lock pid")?;
    let inode = parse_inode(&mut words)?;
    let start = words.decimal("lock start")?;
    let end = match words.word("lock end")? {
        b"EOF" => None,
        digits => Some(decimal(digits).ok_or_else(|| words.error("lock end"))?),
    };
    words.end()?;
    Ok(Lock {
        number,
        blocked,
        kind,
        mandatory: mode == b"MANDATORY",
        breaking: mode == b"BREAKING",
        access,
        pid,
        inode,
        start,
        end,
    })
}

fn parse_number(words: &mut Words<'_>) -> Result<u64, ParseError> {
    let word = words.word("lock number")?;
    word.strip_suffix(b":")
        .and_then(decimal)
        .ok_or_else(|| words.error("lock number"))
}

fn parse_kind(word: &[u8]) -> Option<LockKind> {
    Some(match word {
        b"POSIX" | b"ACCESS" => LockKind::Posix,
        b"OFDLCK" => LockKind::Ofd,
        b"FLOCK" => LockKind::Flock,
        b"LEASE" => LockKind::Lease,
        b"DELEG" => LockKind::Delegation,
        _ => return None,
    })
}

fn parse_access(word: &[u8]) -> Option<LockAccess> {
    Some(match word {
        b"READ" => LockAccess::Read,
        b"WRITE" => LockAccess::Write,
        b"UNLCK" | b"NONE" => LockAccess::Unlocked,
        _ => return None,
    })
}

fn parse_inode(words: &mut Words<'_>) -> Result<Option<LockInode>, ParseError> {
    let word = words.word("lock inode")?;
    if word.starts_with(b"<none>") {
        return Ok(None);
    }
    let mut parts = word.splitn(3, |&b| b == b':');
    let major = parts.next().and_then(hex);
    let minor = parts.next().and_then(hex);
    let ino = parts.next().and_then(decimal);
    match (major, minor, ino) {
        (Some(major), Some(minor), Some(ino)) => Ok(Some(LockInode { major, minor, ino })),
        _ => Err(words.error("lock inode")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
1: LEASE  ACTIVE    READ 5823 fe:00:10010645 0 EOF
2: OFDLCK ADVISORY  READ -1 fe:00:10010644 10 14
3: POSIX  ADVISORY  WRITE 5823 fe:00:10010644 3 7
3: -> POSIX  ADVISORY  WRITE 5900 fe:00:10010644 0 EOF
3: -> -> POSIX  MANDATORY READ 5901 08:01:10010644 0 9223372036854775806
4: FLOCK  ADVISORY  WRITE 5823 fe:00:10010644 0 EOF
5: LEASE  BREAKING  UNLCK 5823 <none>:0 0 EOF
";

    #[test]
    fn locks_of_every_kind() -> Result<(), ParseError> {
        let locks = parse_locks(TEXT)?;
        let kinds: Vec<_> = locks.iter().map(|lock| lock.kind).collect();
        use LockKind::{Flock, Lease, Ofd, Posix};
        assert_eq!(kinds, [Lease, Ofd, Posix, Posix, Posix, Flock, Lease]);
        let blocked: Vec<_> = locks.iter().map(|lock| lock.blocked).collect();
        assert_eq!(blocked, [false, false, false, true, true, false, false]);
        assert_eq!(
            (locks[1].pid, locks[1].start, locks[1].end),
            (-1, 10, Some(14))
        );
        assert_eq!(locks[4].end, Some(9223372036854775806));
        assert!(locks[4].mandatory && !locks[3].mandatory);
        assert_eq!(locks[0].access, LockAccess::Read);
        assert!(locks[6].breaking && locks[6].inode.is_none());
        assert_eq!(locks[6].access, LockAccess::Unlocked);
        let ino = LockInode {
            major: 8,
            minor: 1,
            ino: 10010644,
        };
        assert_eq!(locks[4].inode, Some(ino));
        Ok(())
    }

    #[test]
    fn broken_lines_are_named() {
        for (bad, what) in [
            (
                &b"x: POSIX  ADVISORY  WRITE 1 8:1:2 0 EOF"[..],
                "lock number",
            ),
            (b"1: PORSIX  ADVISORY  WRITE 1 8:1:2 0 EOF", "lock type"),
            (b"1: POSIX  ADVISORY  RITE 1 8:1:2 0 EOF", "lock access"),
            (b"1: POSIX  ADVISORY  WRITE 1 8:1 0 EOF", "lock inode"),
            (b"1: POSIX  ADVISORY  WRITE 1 8:1:2 0", "lock end"),
            (b"1: POSIX  ADVISORY  WRITE 1 8:1:2 0 EOF x", "end of line"),
            (b"1: ->", "lock type"),
        ] {
            assert_eq!(parse_locks(bad).err().map(|e| e.what), Some(what));
        }
    }
}
