//! Terminals: pseudo terminals and /dev/tty.
//!
//! A description is a TTY entry (which terminal, flags) with a REG entry for the device's path;
//! each end of a pair is a tty_info entry: modes, locked modes, window, packet mode, the session
//! and foreground group. Ids are the peer's: twice the index of the pair, and one more for the
//! master. Session and group are those of the tasks whose controlling terminal it is, as
//! /proc/PID/stat tells: the kernel answers TIOCGSID only to that session.
//!
//! A pair needs its master in the tree; a slave whose master is outside is somebody's screen, and
//! is taken only with `--shell-job`, for the restorer to put its own terminal there. Waiting
//! input and output can only be read by consuming it, which our death would make a loss, so it is
//! refused. Consoles, virtual consoles and serial lines are refused, as are terminals that were
//! hung up.

use super::{FileTable, OpenFile, Problem, RoomResult, regfile};
use crate::context::Context;
use crate::refusal::Refusal;
use anyhow::{Context as _, Result};
use crust_image::ids::FileId;
use crust_image::kind::Kind;
use crust_image::sink::{ImageSink, write_entries};
use crust_process::descriptor::{
    Statx, Termios, TtyNumber, bytes_waiting, tty_locked_modes, tty_modes, tty_number, tty_window,
};
use crust_process::pid::HostPid;
use crust_process::proc::stat::{Stat, parse_stat};
use crust_proto::criu::{
    FdTypes, FileEntry, TermiosEntry, TtyFileEntry, TtyInfoEntry, TtyPtyEntry, TtyType,
    WinsizeEntry,
};
use nix::errno::Errno;
use nix::libc;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::os::fd::BorrowedFd;

/// The id of /dev/tty, the peer's.
const CTTY_ID: u32 = 2012;
/// Major number of /dev/tty, /dev/console and /dev/ptmx, and their minor numbers.
const TTYAUX: u32 = 5;
const MINOR_TTY: u32 = 0;
const MINOR_PTMX: u32 = 2;
/// First major number of the slaves; each has 256.
const PTS_MAJOR: u32 = 136;

/// The terminals of a dump, by id.
#[derive(Debug, Default)]
pub struct Ttys {
    infos: BTreeMap<u32, Info>,
}

#[derive(Debug)]
struct Info {
    entry: TtyInfoEntry,
    task: HostPid,
    name: String,
}

/// One end of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Master(u32),
    Slave(u32),
    Controlling,
}

impl End {
    /// The end a device node leads to.
    fn of(stat: &Statx, fd: BorrowedFd) -> RoomResult<End> {
        match (libc::major(stat.rdev), libc::minor(stat.rdev)) {
            (TTYAUX, MINOR_TTY) => Ok(End::Controlling),
            (TTYAUX, MINOR_PTMX) => {
                let index = tty_number(fd, TtyNumber::PtyIndex).context("TIOCGPTN")?;
                Ok(End::Master(index as u32))
            }
            (major @ PTS_MAJOR..=143, minor) => Ok(End::Slave((major - PTS_MAJOR) * 256 + minor)),
            (major, minor) => {
                let what = format!("is the console or line {major}:{minor}, not a pseudo terminal");
                Err(Problem::refused(what))
            }
        }
    }

    fn id(self) -> u32 {
        match self {
            End::Slave(index) => index * 2,
            End::Master(index) => index * 2 + 1,
            End::Controlling => CTTY_ID,
        }
    }

    fn index(self) -> Option<u32> {
        match self {
            End::Slave(index) | End::Master(index) => Some(index),
            End::Controlling => None,
        }
    }
}

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let end = End::of(file.stat()?, file.fd)?;
    if let Entry::Vacant(place) = table.ttys.infos.entry(end.id()) {
        let entry = collect_info(ctx, file, end)?;
        let (task, name) = (file.task.pid, file.name());
        place.insert(Info { entry, task, name });
    }
    let regf_id = table.give_id();
    let reg = regfile::dump(ctx, table, file, regf_id)?;
    table.entries.push(reg);
    let entry = TtyFileEntry {
        id: id.0,
        tty_info_id: end.id(),
        flags: file.flags,
        fown: file.fown(ctx)?,
        regf_id: Some(regf_id.0),
    };
    Ok(FileEntry {
        r#type: FdTypes::Tty as i32,
        id: id.0,
        tty: Some(entry),
        ..FileEntry::default()
    })
}

fn collect_info(ctx: &Context, file: &OpenFile, end: End) -> RoomResult<TtyInfoEntry> {
    let stat = file.stat()?;
    let modes = match tty_modes(file.fd) {
        Ok(modes) => modes,
        Err(Errno::EIO) => return Err(Problem::refused("is a terminal that was hung up")),
        Err(errno) => return Err(anyhow::Error::new(errno).context("TCGETS").into()),
    };
    let waiting = bytes_waiting(file.fd).context("FIONREAD")?;
    if waiting > 0 {
        let what = format!(
            "{waiting} bytes wait in the terminal, which cannot be read without taking them"
        );
        return Err(Problem::refused(what));
    }
    let number = |which| match tty_number(file.fd, which) {
        Ok(value) => Ok(value != 0),
        // Only masters are locked or in packet mode.
        Err(Errno::ENOTTY) => Ok(false),
        Err(errno) => Err(errno).context("asking the terminal"),
    };
    let window = tty_window(file.fd).context("TIOCGWINSZ")?;
    let (sid, pgrp) = session_of(ctx, file, end)?;
    let is_controlling = end == End::Controlling;
    Ok(TtyInfoEntry {
        id: end.id(),
        r#type: if is_controlling {
            TtyType::Ctty
        } else {
            TtyType::Pty
        } as i32,
        locked: number(TtyNumber::Locked)?,
        exclusive: number(TtyNumber::Exclusive)?,
        packet_mode: number(TtyNumber::PacketMode)?,
        sid,
        pgrp,
        rdev: old_device(stat.rdev),
        termios: Some(encode_modes(&modes)),
        termios_locked: Some(encode_modes(
            &tty_locked_modes(file.fd).context("TIOCGLCKTRMIOS")?,
        )),
        winsize: Some(WinsizeEntry {
            ws_row: window.rows.into(),
            ws_col: window.columns.into(),
            ws_xpixel: window.xpixel.into(),
            ws_ypixel: window.ypixel.into(),
        }),
        pty: end.index().map(|index| TtyPtyEntry { index }),
        dev: Some(stat.dev as u32),
        uid: Some(stat.uid),
        gid: Some(stat.gid),
    })
}

/// Session and foreground group, 0 when it is nobody's terminal.
fn session_of(ctx: &Context, file: &OpenFile, end: End) -> Result<(u32, u32)> {
    let wanted = match end {
        End::Controlling => read_stat(file.task.pid)?.tty_nr,
        End::Slave(index) | End::Master(index) => slave_number(index),
    };
    for task in &ctx.tasks {
        let stat = read_stat(task.pid)?;
        if wanted != 0 && stat.tty_nr == wanted {
            return Ok((stat.session.max(0) as u32, stat.tpgid.max(0) as u32));
        }
    }
    Ok((0, 0))
}

fn read_stat(pid: HostPid) -> Result<Stat> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read(&path).with_context(|| format!("task {pid}: read {path}"))?;
    parse_stat(&text).with_context(|| format!("task {pid}: {path}"))
}

/// A slave as tty_nr of /proc/PID/stat has it (new_encode_dev: the low byte is of the minor).
fn slave_number(index: u32) -> i32 {
    let (major, minor) = (PTS_MAJOR + index / 256, index % 256);
    (major << 8 | minor) as i32
}

/// The 16-bit encoding of devices that the images have for terminals.
fn old_device(rdev: u64) -> u32 {
    libc::major(rdev) << 8 | libc::minor(rdev)
}

/// The control characters are 19 bytes packed into the first of 19 words, as the peer's writer
/// does; it leaves the other words undefined, here they are zero. The speed is in c_cflag.
fn encode_modes(modes: &Termios) -> TermiosEntry {
    let mut words: Vec<u32> = modes
        .cc
        .chunks(4)
        .map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_le_bytes(word)
        })
        .collect();
    words.resize(modes.cc.len(), 0);
    TermiosEntry {
        c_iflag: modes.iflag,
        c_oflag: modes.oflag,
        c_cflag: modes.cflag,
        c_lflag: modes.lflag,
        c_line: modes.line.into(),
        c_ispeed: 0,
        c_ospeed: 0,
        c_cc: words,
    }
}

/// Looks at the pairs when all descriptors are known: a slave needs its master.
pub fn settle(ctx: &Context, table: &FileTable) {
    if ctx.options.shell_job {
        return;
    }
    for (id, info) in &table.ttys.infos {
        let is_slave = info.entry.pty.is_some() && id % 2 == 0;
        if is_slave && !table.ttys.infos.contains_key(&(id + 1)) {
            let what = "the other end of the terminal is outside the tree";
            ctx.refuse(Refusal::new(info.task, info.name.clone(), what).hint("try --shell-job"));
        }
    }
}

/// Writes tty-info.img.
pub fn write(table: &FileTable, sink: &dyn ImageSink) -> Result<()> {
    let entries: Vec<_> = table
        .ttys
        .infos
        .values()
        .map(|info| info.entry.clone())
        .collect();
    Ok(write_entries(sink, Kind::TtyInfo, None, &entries)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_packed() {
        let mut cc = [0; 19];
        cc[..4].copy_from_slice(&[7, 0x1c, 0x7f, 0x15]);
        cc[18] = 9;
        let entry = encode_modes(&Termios {
            cc,
            ..Termios::default()
        });
        assert_eq!(entry.c_cc.len(), 19);
        assert_eq!(
            (entry.c_cc[0], entry.c_cc[4], entry.c_cc[5]),
            (360_651_783, 9 << 16, 0)
        );
    }

    #[test]
    fn numbers_as_the_peer_has_them() {
        assert_eq!((End::Slave(2).id(), End::Master(3).id()), (4, 7));
        assert_eq!(old_device(libc::makedev(136, 2)), 34818);
        assert_eq!(slave_number(0), 34816);
        assert_eq!(slave_number(257), 137 << 8 | 1);
    }

    #[test]
    fn both_ends_of_a_pair_are_known() {
        use crust_process::descriptor::statx;
        use std::os::fd::AsFd;
        let pty = nix::pty::openpty(None, None).unwrap();
        let end = |fd: BorrowedFd| End::of(&statx(fd).unwrap(), fd).unwrap();
        let End::Master(index) = end(pty.master.as_fd()) else {
            panic!("no master");
        };
        assert_eq!(end(pty.slave.as_fd()), End::Slave(index));
        assert_eq!(tty_modes(pty.master.as_fd()), tty_modes(pty.slave.as_fd()));
    }
}
