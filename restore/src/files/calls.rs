//! System calls on descriptors that several of these rooms make, with their arguments named.

use crate::plan::step::{Arg, Call, Piece, Ret, SlotId};
use nix::libc;

/// Status flags of a file description, for people.
const OPEN_FLAGS: &[(u64, &str)] = &[
    (libc::O_WRONLY as u64, "O_WRONLY"),
    (libc::O_RDWR as u64, "O_RDWR"),
    (libc::O_APPEND as u64, "O_APPEND"),
    (libc::O_NONBLOCK as u64, "O_NONBLOCK"),
    (libc::O_SYNC as u64, "O_SYNC"),
    (libc::O_DSYNC as u64, "O_DSYNC"),
    (libc::O_ASYNC as u64, "O_ASYNC"),
    (libc::O_DIRECT as u64, "O_DIRECT"),
    // libc has 0 for it, as this architecture needs no such flag; F_GETFL shows it all the same.
    (O_LARGEFILE as u64, "O_LARGEFILE"),
    (libc::O_DIRECTORY as u64, "O_DIRECTORY"),
    (libc::O_NOFOLLOW as u64, "O_NOFOLLOW"),
    (libc::O_NOATIME as u64, "O_NOATIME"),
    (libc::O_CLOEXEC as u64, "O_CLOEXEC"),
    (libc::O_PATH as u64, "O_PATH"),
];

/// The flag every open of a 64-bit task has, but not what is made by other calls (asm-generic
/// fcntl.h).
pub const O_LARGEFILE: i32 = 0o100_000;

/// The flags F_SETFL can change (fs/fcntl.c, SETFL_MASK), but O_ASYNC, which needs the owner first.
pub const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_DIRECT | libc::O_NOATIME;

/// O_* flags as an argument.
pub fn open_flags(flags: i32) -> Arg {
    if flags & libc::O_ACCMODE == 0 {
        let Arg::Named(rest, value) = Arg::flags(flags as u64, OPEN_FLAGS) else {
            return Arg::Hex(flags as u64);
        };
        let text = if flags == 0 {
            "O_RDONLY".to_owned()
        } else {
            format!("O_RDONLY|{rest}")
        };
        return Arg::Named(text, value);
    }
    Arg::flags(flags as u64, OPEN_FLAGS)
}

/// fcntl(2) of the broker with a number as its argument.
pub fn fcntl(slot: SlotId, name: &str, command: i32, arg: Arg) -> Call {
    let args = vec![Arg::Fd(slot), Arg::named(name, command), arg];
    Call::new("fcntl", libc::SYS_fcntl, args)
}

/// F_SETFL with the flags of an image that it can set.
pub fn set_flags(slot: SlotId, flags: i32) -> Call {
    fcntl(slot, "F_SETFL", libc::F_SETFL, open_flags(flags & SETTABLE))
}

/// lseek(2) to a position from the start.
pub fn seek(slot: SlotId, pos: u64) -> Call {
    let args = vec![
        Arg::Fd(slot),
        Arg::Int(pos as i64),
        Arg::named("SEEK_SET", libc::SEEK_SET),
    ];
    Call::new("lseek", libc::SYS_lseek, args)
}

/// Opens the file behind a descriptor of the broker once more, as another description.
pub fn reopen(from: SlotId, flags: i32, to: SlotId) -> Call {
    let args = vec![
        Arg::named("AT_FDCWD", libc::AT_FDCWD),
        Arg::FdPath(from),
        open_flags(flags | libc::O_CLOEXEC),
        Arg::Int(0),
    ];
    Call::new("openat", libc::SYS_openat, args).answers(Ret::Fd(to))
}

/// setsockopt(2) with these bytes as the value.
pub fn set_option(slot: SlotId, level: (&str, i32), name: (&str, i32), value: Vec<u8>) -> Call {
    let len = value.len() as i64;
    let args = vec![
        Arg::Fd(slot),
        Arg::named(level.0, level.1),
        Arg::named(name.0, name.1),
        Arg::bytes(value),
        Arg::Int(len),
    ];
    Call::new("setsockopt", libc::SYS_setsockopt, args)
}

/// dup3(2) of a number in a task.
pub fn dup3(from: i32, to: i32, cloexec: bool) -> Call {
    let flags = if cloexec { libc::O_CLOEXEC } else { 0 };
    let flags = Arg::Named(
        if cloexec { "O_CLOEXEC" } else { "0" }.to_owned(),
        flags as u64,
    );
    let args = vec![Arg::Int(from.into()), Arg::Int(to.into()), flags];
    Call::new("dup3", libc::SYS_dup3, args).answers(Ret::Exactly(to.into()))
}

/// fcntl(2) of a task on a number of its own.
pub fn task_fcntl(fd: i32, name: &str, command: i32, arg: Arg) -> Call {
    let args = vec![Arg::Int(fd.into()), Arg::named(name, command), arg];
    Call::new("fcntl", libc::SYS_fcntl, args)
}

/// The address of a structure of these parts.
pub fn structure(parts: &[&[u8]]) -> Arg {
    Arg::Data(vec![Piece::Bytes(parts.concat())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_told_by_name() {
        let name = |flags| match open_flags(flags) {
            Arg::Named(name, _) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(name(0), "O_RDONLY");
        assert_eq!(name(libc::O_RDWR), "O_RDWR");
        assert_eq!(name(libc::O_WRONLY | libc::O_APPEND), "O_WRONLY|O_APPEND");
        assert_eq!(name(0o100_000), "O_RDONLY|O_LARGEFILE");
        assert_eq!(name(libc::O_SYNC | 2), "O_RDWR|O_SYNC");
    }
}
