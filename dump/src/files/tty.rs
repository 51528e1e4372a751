//! Terminals: pseudo terminals, consoles, serial lines and /dev/tty.
//!
//! A description is a TTY entry (which terminal, flags) with a REG entry for the device's path;
//! each end of a pair is a tty_info entry: modes, locked modes, window, packet mode, the session
//! and foreground group. Ids are the peer's: twice the index of the pair, and one more for the
//! master; kinds without an index have fixed ones. Session and group are those of the tasks whose
//! controlling terminal it is, as /proc/PID/stat tells: the kernel answers TIOCGSID only to that
//! session.
//!
//! A pair needs its master in the tree; a slave whose master is outside is somebody's screen, and
//! is taken only with `--shell-job`, for the restorer to put its own terminal there, or with
//! `--external tty[RDEV:DEV]`, for it to be given one. What waits to be read is in `tty_queue.rs`.
//! A slave that was hung up (its master is closed) has no modes, in the image neither, and comes
//! back hung up. Which of the modes changed since the terminal was made is not known, so all are
//! kept. Not kept: a program stopped by ^S (the kernel does not tell).

use super::{FileTable, OpenFile, Problem, RoomResult, file_entry, regfile};
use crate::context::Context;
use crate::refusal::Refusal;
use anyhow::{Context as _, Result};
use crust_image::ids::FileId;
use crust_image::kind::Kind;
use crust_image::sink::{ImageSink, write_entries};
use crust_process::descriptor::{
    Statx, Termios, TtyNumber, poll_state, tty_locked_modes, tty_modes, tty_number, tty_window,
};
use crust_process::pid::HostPid;
use crust_process::proc::stat::{Stat, parse_stat};
use crust_process::proc::text::split_deleted;
use crust_proto::criu::{
    FdTypes, FileEntry, RegFileEntry, TermiosEntry, TtyFileEntry, TtyInfoEntry, TtyPtyEntry,
    TtyType, WinsizeEntry,
};
use nix::errno::Errno;
use nix::libc;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The ids of what has no index, the peer's: /dev/console, virtual consoles, /dev/tty, external
/// terminals, serial lines. A second one of a kind has its minor number in the upper bits.
const CONSOLE_ID: u32 = 2004;
const VT_ID: u32 = 2008;
const CTTY_ID: u32 = 2012;
const EXT_TTY_ID: u32 = 2016;
const SERIAL_ID: u32 = 2020;
/// Where the minor number is in an id.
const MINOR_SHIFT: u32 = 12;
/// Major number of virtual consoles and serial lines, and the first minor number of the latter.
const TTY: u32 = 4;
const FIRST_SERIAL: u32 = 64;
/// Major number of /dev/tty, /dev/console and /dev/ptmx, and their minor numbers.
const TTYAUX: u32 = 5;
const MINOR_TTY: u32 = 0;
const MINOR_CONSOLE: u32 = 1;
const MINOR_PTMX: u32 = 2;
/// First major number of the slaves; each has 256.
const PTS_MAJOR: u32 = 136;

/// The terminals of a dump, by id.
#[derive(Debug, Default)]
pub struct Ttys {
    pub(super) infos: BTreeMap<u32, Info>,
}

/// A terminal, or one end of a pair.
#[derive(Debug)]
pub struct Info {
    pub(super) entry: TtyInfoEntry,
    /// The first description of it that was found.
    pub(super) fd: OwnedFd,
    task: HostPid,
    name: String,
}

/// One end of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Master(u32),
    Slave(u32),
    Controlling,
    Console,
    /// A virtual console by its number.
    Virtual(u32),
    /// A serial line by its minor number.
    Serial(u32),
    /// What `--external` names, by its minor number.
    External(u32),
}

impl End {
    /// The end a device node leads to.
    fn of(ctx: &Context, stat: &Statx, fd: BorrowedFd) -> RoomResult<End> {
        if ctx.options.external.has(&external_key(stat)) {
            return Ok(End::External(libc::minor(stat.rdev)));
        }
        match (libc::major(stat.rdev), libc::minor(stat.rdev)) {
            (TTYAUX, MINOR_TTY) => Ok(End::Controlling),
            (TTYAUX, MINOR_CONSOLE) => Ok(End::Console),
            (TTYAUX, MINOR_PTMX) => {
                let index = tty_number(fd, TtyNumber::PtyIndex).context("TIOCGPTN")?;
                Ok(End::Master(index as u32))
            }
            (TTY, minor) if minor < FIRST_SERIAL => Ok(End::Virtual(minor)),
            (TTY, minor) => Ok(End::Serial(minor)),
            (major @ PTS_MAJOR..=143, minor) => Ok(End::Slave((major - PTS_MAJOR) * 256 + minor)),
            (major, minor) => {
                let what = format!("is the terminal {major}:{minor}, of a kind not known");
                Err(Problem::refused(what))
            }
        }
    }

    fn id(self) -> u32 {
        match self {
            End::Slave(index) => index * 2,
            End::Master(index) => index * 2 + 1,
            End::Controlling => CTTY_ID,
            End::Console => CONSOLE_ID,
            End::Virtual(minor) => VT_ID | minor << MINOR_SHIFT,
            End::Serial(minor) => SERIAL_ID | minor << MINOR_SHIFT,
            End::External(minor) => EXT_TTY_ID | minor << MINOR_SHIFT,
        }
    }

    fn index(self) -> Option<u32> {
        match self {
            End::Slave(index) | End::Master(index) => Some(index),
            _ => None,
        }
    }

    fn kind(self) -> TtyType {
        match self {
            End::Slave(_) | End::Master(_) => TtyType::Pty,
            End::Controlling => TtyType::Ctty,
            End::Console => TtyType::Console,
            End::Virtual(_) => TtyType::Vt,
            End::Serial(_) => TtyType::Serial,
            End::External(_) => TtyType::ExtTty,
        }
    }
}

/// What `--external` and `--inherit-fd` call a terminal.
fn external_key(stat: &Statx) -> String {
    format!("tty[{:x}:{:x}]", stat.rdev, stat.dev)
}

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let end = End::of(ctx, file.stat()?, file.fd)?;
    if let Entry::Vacant(place) = table.ttys.infos.entry(end.id()) {
        let entry = collect_info(ctx, file, end)?;
        let (task, name) = (file.task.pid, file.name());
        let fd = file.fd.try_clone_to_owned().context("dup")?;
        place.insert(Info {
            entry,
            fd,
            task,
            name,
        });
    }
    let is_hung_up = table
        .ttys
        .infos
        .get(&end.id())
        .is_some_and(|info| info.is_hung_up());
    let regf_id = table.give_id();
    let reg = device_path(ctx, table, file, regf_id, is_hung_up)?;
    table.entries.push(reg);
    let entry = TtyFileEntry {
        id: id.0,
        tty_info_id: end.id(),
        flags: file.flags,
        fown: file.fown(ctx)?,
        regf_id: Some(regf_id.0),
    };
    Ok(FileEntry {
        tty: Some(Box::new(entry)),
        ..file_entry(FdTypes::Tty, id)
    })
}

/// The REG entry of the device. The name of a slave whose master is closed leads nowhere, or to
/// the slave of a later pair, and the slave has no other.
fn device_path(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
    is_hung_up: bool,
) -> RoomResult<FileEntry> {
    if !is_hung_up {
        return regfile::dump(ctx, table, file, id);
    }
    Ok(regfile::file_entry(RegFileEntry {
        id: id.0,
        flags: file.flags,
        name: split_deleted(&file.link).0.to_vec(),
        mode: file.stat.map(|stat| stat.mode),
        fown: file.fown(ctx)?,
        ..RegFileEntry::default()
    }))
}

impl Info {
    /// It is the master of a pair.
    pub(super) fn is_master(&self) -> bool {
        self.entry.pty.is_some() && self.entry.id % 2 == 1
    }

    /// The master is closed: the images have no modes then.
    pub(super) fn is_hung_up(&self) -> bool {
        self.entry.termios.is_none()
    }
}

fn collect_info(ctx: &Context, file: &OpenFile, end: End) -> RoomResult<TtyInfoEntry> {
    let stat = file.stat()?;
    let mut entry = TtyInfoEntry {
        id: end.id(),
        r#type: end.kind() as i32,
        rdev: old_device(stat.rdev),
        pty: end.index().map(|index| TtyPtyEntry { index }),
        dev: Some(stat.dev as u32),
        uid: Some(stat.uid),
        gid: Some(stat.gid),
        ..TtyInfoEntry::default()
    };
    match tty_modes(file.fd) {
        Ok(modes) => entry.termios = Some(encode_modes(&modes)),
        // Hung up: it answers nothing.
        Err(Errno::EIO) if matches!(end, End::Slave(_)) => return Ok(entry),
        Err(errno) => return Err(anyhow::Error::new(errno).context("TCGETS").into()),
    }
    let number = |which| match tty_number(file.fd, which) {
        Ok(value) => Ok(value != 0),
        // Only masters are locked or in packet mode.
        Err(Errno::ENOTTY) => Ok(false),
        Err(errno) => Err(errno).context("asking the terminal"),
    };
    entry.locked = number(TtyNumber::Locked)?;
    entry.exclusive = number(TtyNumber::Exclusive)?;
    entry.packet_mode = number(TtyNumber::PacketMode)?;
    let locked = tty_locked_modes(file.fd).context("TIOCGLCKTRMIOS")?;
    entry.termios_locked = Some(encode_modes(&locked));
    let window = tty_window(file.fd).context("TIOCGWINSZ")?;
    entry.winsize = Some(WinsizeEntry {
        ws_row: window.rows.into(),
        ws_col: window.columns.into(),
        ws_xpixel: window.xpixel.into(),
        ws_ypixel: window.ypixel.into(),
    });
    (entry.sid, entry.pgrp) = session_of(ctx, file, end)?;
    Ok(entry)
}

/// Session and foreground group, 0 when it is nobody's terminal.
fn session_of(ctx: &Context, file: &OpenFile, end: End) -> Result<(u32, u32)> {
    let wanted = match end {
        End::Controlling => read_stat(file.task.pid)?.tty_nr,
        End::Slave(index) | End::Master(index) => slave_number(index),
        // The system's console is another terminal's name, which is not told.
        End::Console => return Ok((0, 0)),
        End::Virtual(_) | End::Serial(_) | End::External(_) => {
            let rdev = file.stat.map_or(0, |stat| stat.rdev);
            (libc::major(rdev) << 8 | libc::minor(rdev) & 0xff) as i32
        }
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
pub fn settle(ctx: &Context, table: &mut FileTable) -> Result<()> {
    note_unopened_slaves(&mut table.ttys)?;
    if ctx.options.shell_job {
        return Ok(());
    }
    for (id, info) in &table.ttys.infos {
        let is_slave = info.entry.pty.is_some() && id % 2 == 0 && !info.is_hung_up();
        if is_slave && !table.ttys.infos.contains_key(&(id + 1)) {
            let what = "the other end of the terminal is outside the tree";
            let refusal = Refusal::new(info.task, info.name.clone(), what);
            ctx.refuse(refusal.hint("try --shell-job, or --external tty[RDEV:DEV]"));
        }
    }
    Ok(())
}

/// A master hears of a hangup when its slave is closed, and not before one was opened.
fn note_unopened_slaves(ttys: &mut Ttys) -> Result<()> {
    let ids: BTreeSet<u32> = ttys.infos.keys().copied().collect();
    for (id, info) in &mut ttys.infos {
        let is_lone = info.is_master() && info.entry.sid == 0 && !ids.contains(&(id - 1));
        if is_lone && !poll_state(info.fd.as_fd()).context("poll")?.hung_up {
            info.entry.crust_slave_unopened = Some(true);
        }
    }
    Ok(())
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
        let pty = nix::pty::openpty(None, None).unwrap();
        let args = ["-t1".into()];
        let defaults = crust_cli::config::Defaults::none();
        let options = crust_cli::options::parse(crust_cli::options::Tool::Dump, args, &defaults);
        let options = options.unwrap();
        let log = crust_cli::log::Log::nowhere();
        let ctx = Context {
            options: &options,
            log: &log,
            tasks: Vec::new(),
            stopped: std::time::Instant::now(),
            foreseen: crate::mm::foresee::Foreseen::default(),
            refusals: Default::default(),
        };
        let end = |fd: BorrowedFd| End::of(&ctx, &statx(fd).unwrap(), fd).unwrap();
        let End::Master(index) = end(pty.master.as_fd()) else {
            panic!("no master");
        };
        assert_eq!(end(pty.slave.as_fd()), End::Slave(index));
        assert_eq!(tty_modes(pty.master.as_fd()), tty_modes(pty.slave.as_fd()));
    }
}
