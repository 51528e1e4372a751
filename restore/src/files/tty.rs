//! Terminals: pseudo terminals, consoles, serial lines and /dev/tty.
//!
//! A description is a TTY entry with flags, a REG entry with the device's path and a tty_info entry
//! for its end of the terminal: which pair (`pty.index`), modes, window, packet mode, session and
//! foreground group. The broker makes each pair under its old index, which must be free; what
//! waited at the master is put there while the modes are raw, what waited at the slave when it has
//! its modes, for they tell what a line is. The leader of the session makes it its controlling
//! terminal; /dev/tty is opened by that task, for to all others it is another terminal. A slave
//! without modes was hung up: its pair's master is closed again.
//!
//! A slave whose master is outside of the tree is somebody's screen: `--inherit-fd` names one of
//! our descriptors for it, or with `--shell-job` it becomes the terminal of crust-restore.
//! Consoles and serial lines are opened by their paths, and get their modes.

use super::calls::{O_LARGEFILE, fcntl, open_flags, reopen, structure};
use super::regfile::check_path;
use super::{File, find, fown, inherit, member, of_kind};
use crate::plan::calls::close;
use crate::plan::routine::{FileFacts, Routine};
use crate::plan::step::{Actor, Arg, Call, Op, Phase, Ret, SlotId};
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

    /// Its master was closed: it has no modes any more.
    fn is_hung_up(&self) -> bool {
        self.info.termios.is_none() && !self.is_master()
    }

    /// What `--inherit-fd` calls it.
    fn key(&self) -> String {
        format!("tty[{:x}:{:x}]", self.info.rdev, self.info.dev())
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
    for file in of_kind(planner, FdTypes::Tty) {
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
    let (own, others): (Vec<_>, Vec<_>) = own
        .into_iter()
        .partition(|end| end.info.r#type == TtyType::Ctty as i32);
    for end in others {
        plan_line(planner, &end, &mut controlled);
    }
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
        Ok(TtyType::Ctty | TtyType::Console | TtyType::Vt | TtyType::Serial | TtyType::ExtTty) => {
            Ok((end, None))
        }
        Ok(TtyType::Unknown) | Err(_) => Err(format!(
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
    Ok(())
}

/// Whether any mode is locked; locked control characters alone come with no flag and are rare.
fn is_locked(termios: &TermiosEntry) -> bool {
    flag_words(termios).iter().any(|flags| *flags != 0)
}

/// The four words of flags, as the kernel's structure has them.
fn flag_words(termios: &TermiosEntry) -> [u32; 4] {
    [
        termios.c_iflag,
        termios.c_oflag,
        termios.c_cflag,
        termios.c_lflag,
    ]
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
        [] if ends.iter().any(End::is_hung_up) => plan_hung_up(planner, index, ends),
        [] => {
            for end in ends {
                plan_outside(planner, index, end, controlled);
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
    let slot = planner.slot();
    let unopened = master.info.crust_slave_unopened == Some(true) && ends.len() == 1;
    let slaves: Vec<&End<'_>> = ends.iter().filter(|end| !end.is_master()).collect();
    let info = slaves.first().map_or(master.info, |slave| slave.info);
    // What is asked of the slave the master can do as well, but for queues and sessions.
    let pair = Pair {
        master: slot,
        slave: if unopened {
            slot
        } else {
            slot_of(planner, info)
        },
    };
    let origin = master.file.origin(format!("pseudo terminal {index}"));
    let made = Op::Routine(Routine::MakePty {
        path: master.reg.name.clone(),
        index,
        flags: master.flags(),
        master: pair.master,
        slave: (!unopened).then_some(pair.slave),
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
    if unopened {
        plan_modes(planner, pair, master, master.info);
        return;
    }
    plan_output(planner, pair, master);
    let moded = plan_modes(planner, pair, master, info);
    plan_input(planner, pair, master, info, moded);
    for slave in &slaves {
        plan_slave(planner, slave, pair);
    }
    if info.sid != 0 {
        match control(planner, pair.slave, master.file, info) {
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

/// What waited at the master, while the modes are raw.
fn plan_output(planner: &mut Planner<'_>, pair: Pair, master: &End<'_>) {
    let data = planner.checkpoint.tty_data.get(&master.info.id);
    let Some(data) = data.filter(|data| !data.data.is_empty()) else {
        return;
    };
    let feed = Op::Routine(Routine::FeedMaster {
        master: pair.master,
        slave: pair.slave,
        bytes: data.data.clone(),
    });
    let what = format!("waiting bytes of {}", master.file.name());
    planner.push(Phase::Open, Actor::Broker, feed, master.file.origin(what));
}

/// What waited at the slave, when its modes say what a line is.
fn plan_input(
    planner: &mut Planner<'_>,
    pair: Pair,
    master: &End<'_>,
    info: &TtyInfoEntry,
    moded: Option<StepId>,
) {
    let id = if info.rdev == PTMX {
        info.id.saturating_sub(1)
    } else {
        info.id
    };
    let data = planner.checkpoint.tty_data.get(&id);
    let Some(data) = data.filter(|data| !data.data.is_empty() || !data.crust_ends.is_empty())
    else {
        return;
    };
    let feed = Op::Routine(Routine::FeedSlave {
        slave: pair.slave,
        master: pair.master,
        bytes: data.data.clone(),
        ends: data.crust_ends.clone(),
    });
    let origin = master
        .file
        .origin(format!("waiting input of {}", master.file.name()));
    let fed = planner.push(Phase::Objects, Actor::Broker, feed, origin);
    if let Some(moded) = moded {
        planner.in_turn(moded, fed);
    }
}

/// Modes, those that are locked, and window of the terminal behind a descriptor.
fn mode_calls(slot: SlotId, info: &TtyInfoEntry) -> Vec<Call> {
    let mut calls = Vec::new();
    if let Some(termios) = &info.termios {
        calls.push(ioctl(slot, ("TCSETS", libc::TCSETS), modes(termios)));
    }
    if let Some(locked) = info
        .termios_locked
        .as_ref()
        .filter(|locked| is_locked(locked))
    {
        calls.push(ioctl(
            slot,
            ("TIOCSLCKTRMIOS", libc::TIOCSLCKTRMIOS),
            modes(locked),
        ));
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
            slot,
            ("TIOCSWINSZ", libc::TIOCSWINSZ),
            padded(&bytes),
        ));
    }
    calls
}

/// Modes and window are of the pair; packet mode is of the master. The last step.
fn plan_modes(
    planner: &mut Planner<'_>,
    pair: Pair,
    master: &End<'_>,
    info: &TtyInfoEntry,
) -> Option<StepId> {
    let origin = master
        .file
        .origin(format!("modes of {}", master.file.name()));
    let mut calls = mode_calls(pair.slave, info);
    if master.info.packet_mode {
        let on = padded(&1_u32.to_le_bytes());
        calls.push(ioctl(pair.master, ("TIOCPKT", libc::TIOCPKT), on));
    }
    if master.info.locked {
        let on = padded(&1_u32.to_le_bytes());
        calls.push(ioctl(pair.master, ("TIOCSPTLCK", libc::TIOCSPTLCK), on));
    }
    // Of a master the image has the owner of /dev/ptmx.
    let owner = info.uid.zip(info.gid).filter(|_| info.rdev != PTMX);
    if let Some((uid, gid)) = owner {
        let args = vec![
            Arg::Fd(pair.slave),
            Arg::Int(uid.into()),
            Arg::Int(gid.into()),
        ];
        calls.push(Call::new("fchown", libc::SYS_fchown, args));
    }
    let mut last = None;
    for call in calls {
        let step = planner.call(Phase::Objects, Actor::Broker, call, origin.clone());
        if let Some(last) = last {
            planner.in_turn(last, step);
        }
        last = Some(step);
    }
    last
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
    let flags = flag_words(termios);
    let mut bytes: Vec<u8> = flags.iter().flat_map(|flags| flags.to_le_bytes()).collect();
    bytes.push(termios.c_line as u8);
    let characters = termios.c_cc.iter().flat_map(|word| word.to_le_bytes());
    bytes.extend(characters.chain(std::iter::repeat(0)).take(NCCS));
    padded(&bytes)
}

/// A description of the slave. Its mode is set by devpts and put right here.
fn plan_slave(planner: &mut Planner<'_>, slave: &End<'_>, pair: Pair) {
    let slot = planner.slot();
    let origin = slave.file.origin(slave.file.name());
    let flags = slave.flags() & !libc::O_ASYNC;
    if flags & O_LARGEFILE == 0 {
        // Opened through its master (forkpty(3) does so), not by its path, which would show, as
        // O_CLOEXEC would: the kernel keeps all flags of this request.
        let flags = open_flags(flags & !libc::O_CLOEXEC | libc::O_NOCTTY);
        let open = ioctl(pair.master, ("TIOCGPTPEER", libc::TIOCGPTPEER), flags);
        let open = open.answers(Ret::Fd(slot));
        planner.call(Phase::Objects, Actor::Broker, open, origin.clone());
        let cloexec = Arg::named("FD_CLOEXEC", libc::FD_CLOEXEC);
        let call = fcntl(slot, "F_SETFD", libc::F_SETFD, cloexec);
        planner.call(Phase::Objects, Actor::Broker, call, origin.clone());
    } else {
        let open = Op::Routine(Routine::OpenFile {
            path: slave.reg.name.clone(),
            flags,
            expect: FileFacts::default(),
            pos: 0,
            slot,
        });
        planner.push(Phase::Objects, Actor::Broker, open, origin.clone());
    }
    if let Some(mode) = slave.reg.mode {
        let mode = mode & 0o7777;
        let args = vec![Arg::Fd(slot), Arg::Named(format!("{mode:#o}"), mode.into())];
        let call = Call::new("fchmod", libc::SYS_fchmod, args);
        planner.call(Phase::Objects, Actor::Broker, call, origin);
    }
    planner.files.slots.insert(slave.file.id, Some(slot));
    fown::plan(planner, slave.file, slot, slave.flags(), &slave.tty.fown);
}

/// The task of the tree that leads a session.
fn leader_of(planner: &Planner<'_>, sid: u32) -> Option<VirtPid> {
    VirtPid::new(sid).filter(|pid| {
        let task = planner.tree.task(*pid);
        task.is_some_and(|task| task.is_live() && task.sid == sid)
    })
}

/// The leader of a new session takes its terminal, which [`plan`] puts into the slot. A process
/// that is forked in the session later has it too; one that was there before would not.
pub fn plan_session_terminal(planner: &mut Planner<'_>, leader: VirtPid) {
    let sid = leader.get();
    let tty = planner.checkpoint.files.values().find(|file| {
        let info = file.tty.as_ref().map(|tty| tty.tty_info_id);
        let info = info.and_then(|id| planner.checkpoint.ttys.get(&id));
        info.is_some_and(|info| info.sid == sid && info.r#type != TtyType::Ctty as i32)
    });
    let Some(id) = tty.map(|tty| FileId(tty.id)) else {
        return;
    };
    let Some(file) = find(planner, id) else {
        return;
    };
    let slot = planner.slot();
    planner.files.session_terminals.insert(sid, slot);
    let origin = file.origin(format!("controlling terminal of session {leader}"));
    let actor = Actor::Task(leader);
    let take = Op::take(slot, 0);
    planner.push(Phase::Fork, actor, take, origin.clone());
    let args = vec![
        Arg::Int(0),
        Arg::Named("TIOCSCTTY".into(), libc::TIOCSCTTY),
        // A terminal from outside may be that of the session we are in, which loses it.
        Arg::Int(1),
    ];
    for call in [Call::new("ioctl", libc::SYS_ioctl, args), close(0)] {
        planner.call(Phase::Fork, actor, call, origin.clone());
    }
}

/// The slot for a terminal: the one that its session waits for, if one does.
fn slot_of(planner: &mut Planner<'_>, info: &TtyInfoEntry) -> SlotId {
    let reserved = planner.files.session_terminals.get(&info.sid).copied();
    let reserved = reserved.filter(|slot| planner.files.terminals_made.insert(*slot));
    reserved.unwrap_or_else(|| planner.slot())
}

/// The session's leader, which has the terminal, gives it to the group that was in front.
fn control(
    planner: &mut Planner<'_>,
    slot: SlotId,
    file: File<'_>,
    info: &TtyInfoEntry,
) -> Result<StepId, String> {
    let leader = leader_of(planner, info.sid)
        .ok_or_else(|| format!("sid {} is no session led by a task", info.sid))?;
    if planner.files.session_terminals.get(&info.sid) != Some(&slot) {
        return Err(format!("session {leader} has another terminal already"));
    }
    let origin = file.origin(format!("controlling terminal of session {leader}"));
    let actor = Actor::Task(leader);
    let take = Op::take(slot, 0);
    planner.push(Phase::Objects, actor, take, origin.clone());
    if info.pgrp != 0 {
        let args = vec![
            Arg::Int(0),
            Arg::Named("TIOCSPGRP".into(), libc::TIOCSPGRP),
            structure(&[&info.pgrp.to_le_bytes()]),
        ];
        let call = Call::new("ioctl", libc::SYS_ioctl, args);
        planner.call(Phase::Objects, actor, call, origin.clone());
    }
    Ok(planner.call(Phase::Objects, actor, close(0), origin))
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

/// Slaves of a pair whose master is closed: with it, they were hung up.
fn plan_hung_up(planner: &mut Planner<'_>, index: u32, ends: &[End<'_>]) {
    let Some(first) = ends.first() else { return };
    let origin = first
        .file
        .origin(format!("pseudo terminal {index}, hung up"));
    let path = first.reg.name.rsplit(|byte| *byte == b'/').skip(1);
    let path: Vec<&[u8]> = path.collect();
    let directory: Vec<u8> = path.into_iter().rev().collect::<Vec<_>>().join(&b'/');
    let pair = Pair {
        master: planner.slot(),
        slave: planner.slot(),
    };
    let made = Op::Routine(Routine::MakePty {
        path: [directory.as_slice(), b"/ptmx"].concat(),
        index,
        flags: libc::O_RDWR,
        master: pair.master,
        slave: Some(pair.slave),
    });
    planner.push(Phase::Open, Actor::Broker, made, origin.clone());
    for end in ends {
        let slot = planner.slot();
        let flags = end.flags() & !libc::O_ASYNC | libc::O_NOCTTY;
        let open = reopen(pair.slave, flags, slot);
        planner.call(
            Phase::Open,
            Actor::Broker,
            open,
            end.file.origin(end.file.name()),
        );
        planner.files.slots.insert(end.file.id, Some(slot));
        fown::plan(planner, end.file, slot, end.flags(), &end.tty.fown);
    }
    for slot in [pair.master, pair.slave] {
        let close = Op::Routine(Routine::Close { slot });
        planner.push(Phase::Deaths, Actor::Broker, close, origin.clone());
    }
}

/// A slave whose master is outside of the tree.
fn plan_outside(
    planner: &mut Planner<'_>,
    index: u32,
    end: &End<'_>,
    controlled: &mut BTreeMap<u32, StepId>,
) {
    let origin = end.file.origin(format!("pseudo terminal {index}"));
    let slot = slot_of(planner, end.info);
    let inherited = inherit::number_of(planner, end.key().as_bytes());
    let routine = match inherited {
        Some(fd) => Routine::Inherit { fd, slot },
        None if planner.options.shell_job => Routine::OwnTerminal {
            flags: end.flags(),
            slot,
        },
        None => {
            let why = "its master is outside of the tree: it is somebody's screen";
            let hint = format!(
                "try --shell-job, with which it becomes the terminal of crust-restore, or --inherit-fd fd[N]:{}",
                end.key()
            );
            planner.refuse(Refusal::new(origin, why).hint(hint));
            return;
        }
    };
    planner.push(Phase::Open, Actor::Broker, Op::Routine(routine), origin);
    give_out(planner, end, slot, controlled);
}

/// A terminal that is no pair of ours: an external one, a console, a serial line.
fn plan_line(planner: &mut Planner<'_>, end: &End<'_>, controlled: &mut BTreeMap<u32, StepId>) {
    let origin = end.file.origin(end.file.name());
    let slot = slot_of(planner, end.info);
    if let Some(fd) = inherit::number_of(planner, end.key().as_bytes()) {
        let inherit = Op::Routine(Routine::Inherit { fd, slot });
        planner.push(Phase::Open, Actor::Broker, inherit, origin);
        give_out(planner, end, slot, controlled);
        return;
    }
    if end.info.r#type == TtyType::ExtTty as i32 {
        let why = format!("it is the external terminal {}", end.key());
        let hint = format!("give one of yours: --inherit-fd fd[N]:{}", end.key());
        planner.refuse(Refusal::new(origin, why).hint(hint));
        return;
    }
    let open = Op::Routine(Routine::OpenFile {
        path: end.reg.name.clone(),
        flags: end.flags(),
        expect: FileFacts::default(),
        pos: 0,
        slot,
    });
    planner.push(Phase::Open, Actor::Broker, open, origin.clone());
    for call in mode_calls(slot, end.info) {
        planner.call(Phase::Objects, Actor::Broker, call, origin.clone());
    }
    give_out(planner, end, slot, controlled);
}

/// A terminal from outside goes to the description, and to the session whose leader is in the
/// tree.
fn give_out(
    planner: &mut Planner<'_>,
    end: &End<'_>,
    slot: SlotId,
    controlled: &mut BTreeMap<u32, StepId>,
) {
    planner.files.slots.insert(end.file.id, Some(slot));
    fown::plan(planner, end.file, slot, end.flags(), &end.tty.fown);
    let sid = end.info.sid;
    if controlled.contains_key(&sid) || leader_of(planner, sid).is_none() {
        return;
    }
    match control(planner, slot, end.file, end.info) {
        Ok(step) => {
            controlled.insert(sid, step);
        }
        Err(why) => planner.refuse(Refusal::new(end.file.origin(end.file.name()), why)),
    }
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
