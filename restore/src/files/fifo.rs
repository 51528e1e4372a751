//! Fifos: a pipe that is opened by a path.
//!
//! fifo_entry names the pipe by its inode (`pipe_id`) and the REG entry with path and flags
//! (`regf_id`). An open of one end waits for the other, and an open for writing without a reader
//! fails; so if any end can write, or there is data, the broker first opens the fifo for both, and
//! keeps that until the tables are full. A fifo that was only open for reading is opened without
//! waiting: had the broker been a writer, its leaving would show as the end of the data where
//! there never was any. O_NONBLOCK is put right afterwards.

use super::calls::set_flags;
use super::{File, find, fown, member, of_kind, pipe, regfile, shown};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Op, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crust_image::ids::{FileId, PipeId};
use crust_proto::criu::{FdTypes, RegFileEntry};
use nix::libc;
use std::collections::BTreeMap;

/// A description of a fifo.
#[derive(Clone, Copy)]
struct End<'c> {
    file: File<'c>,
    /// The REG entry with its path.
    path: File<'c>,
    reg: &'c RegFileEntry,
}

/// Opens every fifo.
pub(super) fn plan(planner: &mut Planner<'_>) {
    let mut fifos: BTreeMap<u32, Vec<End<'_>>> = BTreeMap::new();
    for file in of_kind(planner, FdTypes::Fifo) {
        let member = member(planner, file, file.entry.fifo.as_ref(), |fifo| fifo.id);
        let Some(fifo) = member else { continue };
        match end(planner, file, fifo.regf_id) {
            Ok(end) => fifos.entry(fifo.pipe_id).or_default().push(end),
            Err(why) => planner.refuse(Refusal::new(file.origin(file.name()), why)),
        }
    }
    for (pipe_id, ends) in fifos {
        plan_fifo(planner, pipe_id, &ends);
    }
}

fn end<'c>(planner: &Planner<'c>, file: File<'c>, regf_id: Option<u32>) -> Result<End<'c>, String> {
    let regf_id = regf_id.ok_or("regf_id is missing")?;
    let path = find(planner, FileId(regf_id));
    let found = path.and_then(|path| Some((path, path.entry.reg.as_ref()?)));
    let (path, reg) = found.ok_or_else(|| format!("regf_id {regf_id} is no REG entry"))?;
    regfile::check_path(&reg.name)?;
    let kind = reg.mode.map(|mode| mode & libc::S_IFMT);
    if kind.is_some_and(|kind| kind != libc::S_IFIFO) {
        return Err(format!(
            "regf_id {regf_id} is no fifo: its mode is {:#o}",
            reg.mode()
        ));
    }
    Ok(End { file, path, reg })
}

fn plan_fifo(planner: &mut Planner<'_>, pipe_id: u32, ends: &[End<'_>]) {
    let checkpoint = planner.checkpoint;
    let data = checkpoint.fifo_data.get(&PipeId(pipe_id));
    let writes = |end: &End<'_>| end.reg.flags as i32 & libc::O_ACCMODE != libc::O_RDONLY;
    let needs_both = ends.iter().any(writes) || data.is_some_and(|data| data.entry.bytes != 0);
    let keeper = if needs_both {
        open_both(planner, ends)
    } else {
        None
    };
    if let (Some(keeper), Some(data)) = (keeper, data) {
        pipe::plan_data(planner, data, ("fifo-data.img", "FIFO_DATA"), keeper);
    }
    for end in ends {
        let slot = plan_end(planner, end, keeper);
        planner.files.slots.insert(end.file.id, slot);
    }
    if let (Some(slot), Some(first)) = (keeper, ends.first()) {
        let origin = first
            .file
            .origin(format!("both ends of fifo {}", shown(&first.reg.name)));
        let close = Op::Routine(Routine::Close { slot });
        planner.push(Phase::Deaths, Actor::Broker, close, origin);
    }
}

/// Opens both ends for as long as others are opened and data is written.
fn open_both(planner: &mut Planner<'_>, ends: &[End<'_>]) -> Option<SlotId> {
    let first = ends.first()?;
    let flags = libc::O_RDWR | libc::O_NONBLOCK;
    regfile::open(planner, first.path, first.reg, flags, 0).map(|opened| opened.slot)
}

fn plan_end(planner: &mut Planner<'_>, end: &End<'_>, keeper: Option<SlotId>) -> Option<SlotId> {
    let flags = end.reg.flags as i32;
    let regfile::Opened {
        slot, step, phase, ..
    } = regfile::open(planner, end.path, end.reg, flags | libc::O_NONBLOCK, 0)?;
    if let Some(keeper) = keeper {
        planner.after(step, keeper);
    }
    if flags & libc::O_PATH == 0 {
        let origin = end
            .file
            .origin(format!("flags of fifo {}", shown(&end.reg.name)));
        planner.call(phase, Actor::Broker, set_flags(slot, flags), origin);
    }
    fown::plan(planner, end.file, slot, flags, &end.reg.fown);
    Some(slot)
}
