//! Files with a path: regular files, directories, devices, symbolic links by O_PATH, entries of
//! /proc and /sys.
//!
//! reg_file_entry has the path, the flags as F_GETFL shows them, the position, the owner of its
//! signals, and size, mode and build-id to see whether the path still leads to the same file. A
//! file is opened by its path with just these flags; O_CREAT, O_EXCL and O_TRUNC are not among
//! them (the kernel forgets them) and would not be passed on. Where the path does not lead to the
//! file any more, `remap.rs` says what to do instead.
//!
//! Not brought back: the credentials a file was opened with, the device number behind a device's
//! path (images have none), read-ahead state.

use super::calls::seek;
use super::remap::{self, Way};
use super::{File, fown, member, shown};
use crate::plan::routine::{FileFacts, Routine};
use crate::plan::step::{Actor, Op, Phase, Ret, SlotId};
use crate::plan::{Planner, Refusal, StepId};
use crust_proto::criu::RegFileEntry;
use nix::libc;

/// PATH_MAX of the kernel, with the final zero.
const PATH_MAX: usize = 4096;

/// Plans the open of a description with its position and owner.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let reg = member(planner, file, file.entry.reg.as_ref(), |reg| reg.id)?;
    if let Err(why) = check(reg) {
        planner.refuse(Refusal::new(file.origin(shown(&reg.name)), why));
        return None;
    }
    let flags = reg.flags as i32;
    let opened = open(planner, file, reg, flags, reg.pos)?;
    let Opened {
        slot, step, phase, ..
    } = opened;
    if !opened.is_at_pos {
        // The position of an entry of a living task's /proc directory is found by reading it, so
        // it waits for what will be read.
        let phase = if phase == Phase::Objects {
            Phase::Fds
        } else {
            phase
        };
        let is_device = kind(reg) == libc::S_IFCHR;
        let call = seek(slot, reg.pos).answers(if is_device { Ret::Any } else { Ret::Ok });
        let origin = file.origin(format!("position of {}", shown(&reg.name)));
        let sought = planner.call(phase, Actor::Broker, call, origin);
        remap::before_the_end(planner, file.id, sought);
        planner.in_turn(step, sought);
    }
    fown::plan(planner, file, slot, flags, &reg.fown);
    Some(slot)
}

/// Plans an open for mappings only. The entry's own open serves if it may do as much.
pub(super) fn plan_mapped(
    planner: &mut Planner<'_>,
    file: File<'_>,
    access: i32,
) -> Option<SlotId> {
    let reg = member(planner, file, file.entry.reg.as_ref(), |reg| reg.id)?;
    if planner.files.inherited.contains(&file.id) {
        return planner.file_slot(file.id);
    }
    let own = reg.flags as i32 & libc::O_ACCMODE;
    if reg.flags as i32 & libc::O_PATH == 0 && (own == access || own == libc::O_RDWR) {
        return planner.file_slot(file.id);
    }
    if let Err(why) = check(reg) {
        planner.refuse(Refusal::new(file.origin(shown(&reg.name)), why));
        return None;
    }
    open(planner, file, reg, access, 0).map(|opened| opened.slot)
}

/// The type of file, 0 if the image does not tell.
fn kind(reg: &RegFileEntry) -> u32 {
    reg.mode.unwrap_or(0) & libc::S_IFMT
}

fn check(reg: &RegFileEntry) -> Result<(), String> {
    if reg.ext == Some(true) {
        return Err(format!(
            "it was outside of the dump (--external): give one with --inherit-fd fd[N]:{}",
            shown(&reg.name)
        ));
    }
    check_path(&reg.name)?;
    if i64::try_from(reg.pos).is_err() {
        return Err(format!("pos {} is behind the end of any file", reg.pos));
    }
    let path_only = reg.flags as i32 & libc::O_PATH != 0;
    match kind(reg) {
        libc::S_IFSOCK | libc::S_IFLNK if !path_only => {
            Err(format!("mode {:#o} can only be open by O_PATH", reg.mode()))
        }
        0
        | libc::S_IFREG
        | libc::S_IFDIR
        | libc::S_IFCHR
        | libc::S_IFBLK
        | libc::S_IFIFO
        | libc::S_IFSOCK
        | libc::S_IFLNK => Ok(()),
        other => Err(format!("mode: {other:#o} is no type of file")),
    }
}

/// A path that open(2) takes as it is meant.
pub(super) fn check_path(path: &[u8]) -> Result<(), String> {
    if !path.starts_with(b"/") {
        return Err(format!("name {:?} is no absolute path", shown(path)));
    }
    if path.contains(&0) {
        return Err("name has a zero byte".to_owned());
    }
    if path.len() >= PATH_MAX {
        return Err(format!(
            "name has {} bytes, the limit is {PATH_MAX}",
            path.len()
        ));
    }
    Ok(())
}

/// An open that is planned.
pub(super) struct Opened {
    /// Where the descriptor goes.
    pub slot: SlotId,
    /// The step that opens it.
    pub step: StepId,
    /// When that is.
    pub phase: Phase,
    /// Whether the position asked for is that of the descriptor already.
    is_at_pos: bool,
}

/// Pushes the open by whatever way leads to the file.
pub(super) fn open(
    planner: &mut Planner<'_>,
    file: File<'_>,
    reg: &RegFileEntry,
    flags: i32,
    pos: u64,
) -> Option<Opened> {
    let way = remap::way_to(planner, file, reg)?;
    let slot = planner.slot();
    let path = reg.name.clone();
    // What is opened later may have to wait for its position: see `plan`.
    let opens_early = matches!(
        way,
        Way::Path {
            phase: Phase::Open,
            ..
        }
    );
    let (phase, routine) = match &way {
        Way::Path { phase, .. } => {
            let expect = facts(planner, reg);
            (
                *phase,
                Routine::OpenFile {
                    path,
                    flags,
                    expect,
                    pos: if opens_early { pos } else { 0 },
                    slot,
                },
            )
        }
        Way::Ghost { id, .. } => (
            Phase::Open,
            Routine::OpenGhost {
                id: *id,
                path,
                flags,
                slot,
            },
        ),
        Way::Link { link } => {
            let (link, expect) = (link.clone(), facts(planner, reg));
            (
                Phase::Open,
                Routine::OpenLink {
                    link,
                    path,
                    flags,
                    expect,
                    slot,
                },
            )
        }
    };
    let origin = file.origin(shown(&reg.name));
    // The file of a socket is made anew when that is bound, so it is opened behind that.
    let bound = planner.files.unix.bound.get(&reg.name).copied();
    let bound = bound.filter(|_| kind(reg) == libc::S_IFSOCK && phase == Phase::Open);
    let phase = bound.map_or(phase, |_| Phase::Objects);
    let step = planner.push(phase, Actor::Broker, Op::Routine(routine), origin);
    if let Some(bound) = bound {
        planner.in_turn(bound, step);
    }
    remap::tie(planner, &way, step);
    Some(Opened {
        slot,
        step,
        phase,
        is_at_pos: pos == 0 || opens_early,
    })
}

fn facts(planner: &Planner<'_>, reg: &RegFileEntry) -> FileFacts {
    let compares = planner.options.compare_build_ids;
    FileFacts {
        mode: reg.mode,
        size: reg.size,
        build_id: reg.build_id.iter().copied().filter(|_| compares).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8], mode: u32, flags: i32) -> RegFileEntry {
        RegFileEntry {
            name: name.to_vec(),
            mode: Some(mode),
            flags: flags as u32,
            ..Default::default()
        }
    }

    #[test]
    fn paths_must_be_whole() {
        assert!(check_path(b"/a/b").is_ok());
        assert!(check_path(b"a/b").is_err());
        assert!(check_path(b"").is_err());
        assert!(check_path(b"/a\0b").is_err());
        assert!(check_path(&[b'/'; PATH_MAX]).is_err());
    }

    #[test]
    fn links_and_sockets_are_only_looked_at() {
        assert!(check(&entry(b"/l", libc::S_IFLNK | 0o777, 0)).is_err());
        assert!(check(&entry(b"/l", libc::S_IFLNK | 0o777, libc::O_PATH)).is_ok());
        assert!(check(&entry(b"/s", libc::S_IFSOCK | 0o777, libc::O_RDWR)).is_err());
        assert!(check(&entry(b"/f", 0o030_644, 0)).is_err());
    }

    #[test]
    fn positions_must_be_reachable() {
        let mut reg = entry(b"/f", libc::S_IFREG | 0o644, 0);
        reg.pos = u64::MAX;
        assert!(check(&reg).is_err());
    }
}
