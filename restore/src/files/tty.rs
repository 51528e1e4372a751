//! Terminals: pseudo terminals and /dev/tty.
//!
//! A description is a TTY entry with flags, a REG entry with the device's path and a tty_info entry
//! for its end of the terminal: which pair (`pty.index`), modes, window, packet mode, session and
//! foreground group. The broker makes each pair under its old index, which must be free; with the
//! modes raw it writes the bytes that waited at either end, then sets the modes. The leader of the
//! session makes it its controlling terminal; /dev/tty is opened by that task, for to all others it
//! is another terminal. A slave whose master is outside of the tree is somebody's screen: with
//! `--shell-job` it becomes the terminal of crust-restore.
//!
//! Not brought back: consoles, virtual consoles, serial lines and locked modes are refused.

use super::calls::{open_flags, structure};
use super::regfile::check_path;
use super::{File, all, find, fown, kind_of, member};
use crate::plan::calls::close;
use crate::plan::step::{Actor, Arg, Call, FileFacts, Op, Phase, Ret, Routine, SlotId};
use crate::plan::{Planner, Refusal, StepId};
use crust_image::ids::{FileId, VirtPid};
use crust_proto::criu::{FdTypes, RegFileEntry, TermiosEntry, TtyFileEntry, TtyInfoEntry, TtyType};
use nix::libc;
use std::collections::BTreeMap;

/// /dev/ptmx and /dev/tty in the 16-bit encoding of `rdev`.
const PTMX: u32 = 5 << 8 | 2;
/// First and last major number of slaves.
const PTS_MAJORS: std::ops::RangeInclusive<u32> = 136..=143;
/// Bytes of control characters in struct termios of the kernel.
const NCCS: usize = 19;
/// The broker's ioctl wants room for the largest argument.
const IOCTL_ROOM: usize = 64;
/// N_TTY, the line discipline that terminals have.
const N_TTY: u32 = 0;
/// pty_limit of the kernel is 4096 by default and never more than this (NR_UNIX98_PTY_MAX).
const MOST_PTYS: u32 = 1 << 20;

/// A description of a terminal.
#[derive(Clone, Copy, Debug)]
struct End<'c> {
    file: File<'c>,
    tty: &'c TtyFileEntry,
    reg: &'c RegFileEntry,
    info: &'c TtyInfoEntry,
}

impl End<'_> {
    fn is_master(&self) -> bool {
        self.info.rdev == PTMX
    }

    fn flags(&self) -> i32 {
        self.tty.flags as i32
    }
}

/// The two sides of a pair, while it is planned.
#[derive(Clone, Copy, Debug)]
struct Pair {
    master: SlotId,
    slave: SlotId,
}

/// Makes every terminal.
pub(super) fn plan(planner: &mut Planner<'_>) {
    let mut pairs: BTreeMap<u32, Vec<End<'_>>> = BTreeMap::new();
    let mut own = Vec::new();
    for file in all(planner) {
        if kind_of(file.entry) != Some(FdTypes::Tty) {
            continue;
        }
        let Some(tty) = member(planner, file, file.entry.tty.as_ref(), |tty| tty.id) else {
            continue;
        };
        match end(planner, file, tty) {
            Ok((end, Some(index))) => pairs.entry(index).or_default().push(end),
            Ok((end, None)) => own.push(end),
            Err(why) => planner.refuse(Refusal::new(file.origin(file.name()), why)),
        }
    }
    let mut controlled = BTreeMap::new();
    for (index, ends) in pairs {
        plan_pair(planner, index, &ends, &mut controlled);
    }
    // Only when sessions have their terminals, /dev/tty leads anywhere.
    for end in own {
        plan_own(planner, &end, &controlled);
    }
}

/// Checks a description. The index of its pair, `None` for /dev/tty.
fn end<'c>(
    planner: &Planner<'c>,
    file: File<'c>,
    tty: &'c TtyFileEntry,
) -> Result<(End<'c>, Option<u32>), String> {
    let checkpoint = planner.checkpoint;
    let info = checkpoint.ttys.get(&tty.tty_info_id);
    let info =
        info.ok_or_else(|| format!("tty_info_id {} is not in tty-info.img", tty.tty_info_id))?;
    let regf_id = tty.regf_id.ok_or("regf_id is missing")?;
    let reg = find(planner, FileId(regf_id)).and_then(|file| file.entry.reg.as_ref());
    let reg = reg.ok_or_else(|| format!("regf_id {regf_id} is no REG entry"))?;
    check_path(&reg.name)?;
    check_modes(info)?;
    let end = End {
        file,
        tty,
        reg,
        info,
    };
    match TtyType::try_from(info.r#type) {
        Ok(TtyType::Pty) => Ok((end, Some(index_of(info)?))),
        Ok(TtyType::Ctty) => Ok((end, None)),
        Ok(other) => Err(format!(
            "terminals of type {} cannot be restored yet",
            other.as_str_name()
        )),
        Err(_) => Err(format!(
            "tty_info {}: type {} is not known",
            info.id, info.r#type
        )),
    }
}

fn check_modes(info: &TtyInfoEntry) -> Result<(), String> {
    let lines = [&info.termios, &info.termios_locked].into_iter().flatten();
    for termios in lines {
        if termios.c_line != N_TTY {
            return Err(format!(
                "c_line {}: only plain terminals can be restored",
                termios.c_line
            ));
        }
    }
    if info.termios_locked.as_ref().is_some_and(is_locked) {
        return Err("termios_locked: locked modes cannot be restored yet".to_owned());
    }
    Ok(())
}

fn is_locked(termios: &TermiosEntry) -> bool {
    let flags = [
        termios.c_iflag,
        termios.c_oflag,
        termios.c_cflag,
        termios.c_lflag,
    ];
    flags.iter().any(|flags| *flags != 0)
}

fn index_of(info: &TtyInfoEntry) -> Result<u32, String> {
    let index = info
        .pty
        .map(|pty| pty.index)
        .filter(|index| *index < MOST_PTYS);
    let index = index.ok_or_else(|| format!("tty_info {}: pty.index is missing", info.id))?;
    let is_slave = PTS_MAJORS.contains(&(info.rdev >> 8));
    if info.rdev != PTMX && !is_slave {
        return Err(format!(
            "tty_info {}: rdev {:#x} is no pseudo terminal",
            info.id, info.rdev
        ));
    }
    Ok(index)
}

/// One pair with all that is open of it.
fn plan_pair(
    planner: &mut Planner<'_>,
    index: u32,
    ends: &[End<'_>],
    controlled: &mut BTreeMap<u32, StepId>,
) {
    let masters: Vec<&End<'_>> = ends.iter().filter(|end| end.is_master()).collect();
    match masters.as_slice() {
        [master] => plan_whole(planner, index, master, ends, controlled),
        [] => {
            for end in ends {
                plan_outside(planner, index, end);
            }
        }
        [_, second, ..] => {
            let why = format!("a second master of pair {index}");
            planner.refuse(Refusal::new(second.file.origin(second.file.name()), why));
        }
    }
}

fn plan_whole(
    planner: &mut Planner<'_>,
    index: u32,
    master: &End<'_>,
    ends: &[End<'_>],
    controlled: &mut BTreeMap<u32, StepId>,
) {
    let pair = Pair {
        master: planner.slot(),
        slave: planner.slot(),
    };
    let origin = master.file.origin(format!("pseudo terminal {index}"));
    let made = Op::Routine(Routine::MakePty {
        path: master.reg.name.clone(),
        index,
        flags: master.flags(),
        master: pair.master,
        slave: pair.slave,
    });
    planner.push(Phase::Open, Actor::Broker, made, origin.clone());
    planner
        .files
        .slots
        .insert(master.file.id, Some(pair.master));
    fown::plan(
        planner,
        master.file,
        pair.master,
        master.flags(),
        &master.tty.fown,
    );
    plan_data(planner, pair, master, ends);
    let slaves: Vec<&End<'_>> = ends.iter().filter(|end| !end.is_master()).collect();
    let info = slaves.first().map_or(master.info, |slave| slave.info);
    plan_modes(planner, pair, master, info);
    for slave in &slaves {
        plan_slave(planner, slave);
    }
    if info.sid != 0 {
        match control(planner, pair.slave, master, info) {
            Ok(step) => {
                controlled.insert(info.sid, step);
            }
            Err(why) => planner.refuse(Refusal::new(origin.clone(), why)),
        }
    }
    for exclusive in ends.iter().filter(|end| end.info.exclusive) {
        let slot = if exclusive.is_master() {
            pair.master
        } else {
            pair.slave
        };
        let call = ioctl(slot, ("TIOCEXCL", libc::TIOCEXCL), Arg::Int(0));
        planner.call(Phase::Fds, Actor::Broker, call, origin.clone());
    }
    let close = Op::Routine(Routine::Close { slot: pair.slave });
    planner.push(Phase::Deaths, Actor::Broker, close, origin);
}

/// Bytes that waited at either end: written at the other one while the modes are raw.
fn plan_data(planner: &mut Planner<'_>, pair: Pair, master: &End<'_>, ends: &[End<'_>]) {
    let checkpoint = planner.checkpoint;
    let mut done = Vec::new();
    for end in ends {
        let data = checkpoint
            .tty_data
            .get(&end.info.id)
            .filter(|data| !data.is_empty());
        let Some(bytes) = data.filter(|_| !done.contains(&end.info.id)) else {
            continue;
        };
        done.push(end.info.id);
        let (via, reader) = if end.is_master() {
            (pair.slave, pair.master)
        } else {
            (pair.master, pair.slave)
        };
        let feed = Op::Routine(Routine::FeedTerminal {
            via,
            reader,
            bytes: bytes.clone(),
        });
        let origin = master
            .file
            .origin(format!("waiting bytes of {}", end.file.name()));
        planner.push(Phase::Open, Actor::Broker, feed, origin);
    }
}

/// Modes and window are of the pair; packet mode is of the master.
fn plan_modes(planner: &mut Planner<'_>, pair: Pair, master: &End<'_>, info: &TtyInfoEntry) {
    let origin = master
        .file
        .origin(format!("modes of {}", master.file.name()));
    let mut calls = Vec::new();
    if let Some(termios) = &info.termios {
        calls.push(ioctl(pair.slave, ("TCSETS", libc::TCSETS), modes(termios)));
    }
    if let Some(window) = &info.winsize {
        let sizes = [
            window.ws_row,
            window.ws_col,
            window.ws_xpixel,
            window.ws_ypixel,
        ];
        let bytes: Vec<u8> = sizes
            .iter()
            .flat_map(|size| (*size as u16).to_le_bytes())
            .collect();
        calls.push(ioctl(
            pair.slave,
            ("TIOCSWINSZ", libc::TIOCSWINSZ),
            padded(&bytes),
        ));
    }
    if master.info.packet_mode {
        let on = padded(&1_u32.to_le_bytes());
        calls.push(ioctl(pair.master, ("TIOCPKT", libc::TIOCPKT), on));
    }
    if master.info.locked {
        let on = padded(&1_u32.to_le_bytes());
        calls.push(ioctl(pair.master, ("TIOCSPTLCK", libc::TIOCSPTLCK), on));
    }
    if let (Some(uid), Some(gid)) = (info.uid, info.gid) {
        let args = vec![
            Arg::Fd(pair.slave),
            Arg::Int(uid.into()),
            Arg::Int(gid.into()),
        ];
        calls.push(Call::new("fchown", libc::SYS_fchown, args));
    }
    for call in calls {
        planner.call(Phase::Objects, Actor::Broker, call, origin.clone());
    }
}

fn ioctl(slot: SlotId, request: (&str, libc::Ioctl), arg: Arg) -> Call {
    let args = vec![
        Arg::Fd(slot),
        Arg::Named(request.0.to_owned(), request.1),
        arg,
    ];
    Call::new("ioctl", libc::SYS_ioctl, args)
}

fn padded(bytes: &[u8]) -> Arg {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().max(IOCTL_ROOM), 0);
    Arg::bytes(bytes)
}

/// struct termios of the kernel: four words, the line discipline, the control characters. Of
/// `c_cc` only the first 19 bytes mean anything (FORMAT 5).
fn modes(termios: &TermiosEntry) -> Arg {
    let flags = [
        termios.c_iflag,
        termios.c_oflag,
        termios.c_cflag,
        termios.c_lflag,
    ];
    let mut bytes: Vec<u8> = flags.iter().flat_map(|flags| flags.to_le_bytes()).collect();
    bytes.push(termios.c_line as u8);
    let characters = termios.c_cc.iter().flat_map(|word| word.to_le_bytes());
    bytes.extend(characters.chain(std::iter::repeat(0)).take(NCCS));
    padded(&bytes)
}

/// A description of the slave. Its mode is set by devpts and put right here.
fn plan_slave(planner: &mut Planner<'_>, slave: &End<'_>) {
    let slot = planner.slot();
    let origin = slave.file.origin(slave.file.name());
    let expect = FileFacts {
        mode: None,
        size: None,
        build_id: Vec::new(),
    };
    let open = Op::Routine(Routine::OpenFile {
        path: slave.reg.name.clone(),
        flags: slave.flags(),
        expect,
        slot,
    });
    planner.push(Phase::Objects, Actor::Broker, open, origin.clone());
    if let Some(mode) = slave.reg.mode {
        let mode = mode & 0o7777;
        let args = vec![Arg::Fd(slot), Arg::Named(format!("{mode:#o}"), mode.into())];
        let call = Call::new("fchmod", libc::SYS_fchmod, args);
        planner.call(Phase::Objects, Actor::Broker, call, origin);
    }
    planner.files.slots.insert(slave.file.id, Some(slot));
    fown::plan(planner, slave.file, slot, slave.flags(), &slave.tty.fown);
}

/// The session's leader takes the terminal, and gives it to the group that was in front.
fn control(
    planner: &mut Planner<'_>,
    slot: SlotId,
    master: &End<'_>,
    info: &TtyInfoEntry,
) -> Result<StepId, String> {
    let leader = VirtPid::new(info.sid).filter(|pid| {
        planner
            .tree
            .task(*pid)
            .is_some_and(|task| task.is_live() && task.sid == info.sid)
    });
    let leader = leader.ok_or_else(|| format!("sid {} is no session led by a task", info.sid))?;
    let origin = master
        .file
        .origin(format!("controlling terminal of session {leader}"));
    let actor = Actor::Task(leader);
    planner.push(
        Phase::Objects,
        actor,
        Op::Take { slot, at: 0 },
        origin.clone(),
    );
    let take = vec![
        Arg::Int(0),
        Arg::Named("TIOCSCTTY".into(), libc::TIOCSCTTY),
        Arg::Int(0),
    ];
    let group = structure(&[&info.pgrp.to_le_bytes()]);
    let give = vec![
        Arg::Int(0),
        Arg::Named("TIOCSPGRP".into(), libc::TIOCSPGRP),
        group,
    ];
    let mut calls = vec![Call::new("ioctl", libc::SYS_ioctl, take)];
    if info.pgrp != 0 {
        calls.push(Call::new("ioctl", libc::SYS_ioctl, give));
    }
    calls.push(close(0));
    let mut last = None;
    for call in calls {
        last = Some(planner.call(Phase::Objects, actor, call, origin.clone()));
    }
    last.ok_or_else(|| "no step".to_owned())
}

/// /dev/tty, opened by the leader of the session whose terminal it is.
fn plan_own(planner: &mut Planner<'_>, end: &End<'_>, controlled: &BTreeMap<u32, StepId>) {
    let origin = end.file.origin(end.file.name());
    let leader = VirtPid::new(end.info.sid).filter(|pid| controlled.contains_key(&pid.get()));
    let Some(leader) = leader else {
        let why = format!("sid {} has no terminal in the images", end.info.sid);
        planner.refuse(Refusal::new(origin, why));
        return;
    };
    let actor = Actor::Task(leader);
    let slot = planner.slot();
    let args = vec![
        Arg::named("AT_FDCWD", libc::AT_FDCWD),
        Arg::Str(end.reg.name.clone()),
        open_flags(end.flags() & !libc::O_ASYNC | libc::O_CLOEXEC | libc::O_NOCTTY),
        Arg::Int(0),
    ];
    let open = Call::new("openat", libc::SYS_openat, args).answers(Ret::Exactly(0));
    let opened = planner.call(Phase::Objects, actor, open, origin.clone());
    let fetch = Op::Fetch {
        from: leader,
        number: 0,
        slot,
    };
    let fetched = planner.push(Phase::Objects, Actor::Broker, fetch, origin.clone());
    let closed = planner.call(Phase::Objects, actor, close(0), origin);
    planner.in_turn(opened, fetched);
    planner.in_turn(fetched, closed);
    planner.files.slots.insert(end.file.id, Some(slot));
    fown::plan(planner, end.file, slot, end.flags(), &end.tty.fown);
}

/// A slave whose master is outside of the tree.
fn plan_outside(planner: &mut Planner<'_>, index: u32, end: &End<'_>) {
    let origin = end.file.origin(format!("pseudo terminal {index}"));
    if !planner.options.shell_job {
        let why = "its master is outside of the tree: it is somebody's screen";
        let hint = "try --shell-job, with which it becomes the terminal of crust-restore";
        planner.refuse(Refusal::new(origin, why).hint(hint));
        return;
    }
    let slot = planner.slot();
    let routine = Routine::OwnTerminal {
        flags: end.flags(),
        slot,
    };
    planner.push(Phase::Open, Actor::Broker, Op::Routine(routine), origin);
    planner.files.slots.insert(end.file.id, Some(slot));
    fown::plan(planner, end.file, slot, end.flags(), &end.tty.fown);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::step::Piece;
    use crust_proto::criu::TtyPtyEntry;

    #[test]
    fn control_characters_are_bytes() {
        let termios = TermiosEntry {
            c_iflag: 1,
            c_lflag: 2,
            c_cc: vec![0x0403_0201, 5, 0, 0, 0xffff_ff06, 0xffff_ffff],
            ..Default::default()
        };
        let Arg::Data(pieces) = modes(&termios) else {
            panic!("no structure")
        };
        let [Piece::Bytes(bytes)] = pieces.as_slice() else {
            panic!("{pieces:?}")
        };
        assert_eq!(bytes.len(), IOCTL_ROOM);
        assert_eq!(bytes[17..22], [1, 2, 3, 4, 5]);
        assert_eq!(bytes[33..36], [6, 0xff, 0xff]);
        assert_eq!(bytes[36..], [0; 28]);
    }

    #[test]
    fn only_pseudo_terminals_have_an_index() {
        let info = |rdev, index: Option<u32>| TtyInfoEntry {
            rdev,
            pty: index.map(|index| TtyPtyEntry { index }),
            ..Default::default()
        };
        assert_eq!(index_of(&info(PTMX, Some(3))), Ok(3));
        assert_eq!(index_of(&info(136 << 8 | 3, Some(3))), Ok(3));
        assert!(index_of(&info(4 << 8, Some(3))).is_err());
        assert!(index_of(&info(PTMX, None)).is_err());
        assert!(index_of(&info(PTMX, Some(MOST_PTYS))).is_err());
    }
}
