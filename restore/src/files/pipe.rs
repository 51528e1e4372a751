//! pipe(2): two ends of one buffer.
//!
//! Entries with one pipe_id are ends of one pipe; more than two mean that an end was opened again
//! through /proc. The broker makes both ends whatever the tree had, sets the size, writes the data,
//! and closes what nobody has, so that a half closed pipe is one. The size comes before the data:
//! a smaller pipe would not hold it. pipes-data has bytes, and the packets of a pipe in packet mode
//! (O_DIRECT) in a field of our own; without it they come back as one packet for each page.
//!
//! Not brought back: the owner and times of the pipe's inode.

use super::calls::{O_LARGEFILE, fcntl, reopen, set_flags};
use super::{File, fown, member, of_kind};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Arg, Call, Op, Origin, Phase, Ret, SlotId};
use crate::plan::{Planner, Refusal};
use crust_image::ids::PipeId;
use crust_image::payload::PipeData;
use crust_proto::criu::{FdTypes, PipeEntry};
use nix::libc;
use std::collections::BTreeMap;

/// Pages of a pipe, for refusing what no pipe can hold (F_SETPIPE_SZ takes an int).
const LARGEST: u32 = 1 << 30;
/// A pipe as the kernel makes it.
const DEFAULT_SIZE: u32 = 16 * 4096;

/// An end that an image describes.
#[derive(Clone, Copy)]
struct End<'c> {
    file: File<'c>,
    pipe: &'c PipeEntry,
}

impl End<'_> {
    fn access(&self) -> i32 {
        self.pipe.flags as i32 & libc::O_ACCMODE
    }

    /// Made by pipe(2), not opened again: an open adds O_LARGEFILE.
    fn is_original(&self, access: i32) -> bool {
        self.access() == access && self.pipe.flags as i32 & O_LARGEFILE == 0
    }
}

/// Makes every pipe.
pub(super) fn plan(planner: &mut Planner<'_>) {
    let mut pipes: BTreeMap<u32, Vec<End<'_>>> = BTreeMap::new();
    for file in of_kind(planner, FdTypes::Pipe) {
        // One that was inherited is there already.
        if planner.files.slots.contains_key(&file.id) {
            continue;
        }
        let member = member(planner, file, file.entry.pipe.as_ref(), |pipe| pipe.id);
        if let Some(pipe) = member {
            pipes
                .entry(pipe.pipe_id)
                .or_default()
                .push(End { file, pipe });
        }
    }
    for (pipe_id, ends) in pipes {
        plan_pipe(planner, pipe_id, &ends);
    }
}

fn plan_pipe(planner: &mut Planner<'_>, pipe_id: u32, ends: &[End<'_>]) {
    let Some(first) = ends.first() else { return };
    let (reader, writer) = (planner.slot(), planner.slot());
    let origin = first.file.origin(format!("pipe {pipe_id:#x}"));
    let args = vec![Arg::Out(8), Arg::named("O_CLOEXEC", libc::O_CLOEXEC)];
    let call = Call::new("pipe2", libc::SYS_pipe2, args).answers(Ret::FdPair(0, reader, writer));
    planner.call(Phase::Open, Actor::Broker, call, origin);
    let packets = ends
        .iter()
        .any(|end| end.pipe.flags as i32 & libc::O_DIRECT != 0);
    let data = planner.checkpoint.pipes_data.get(&PipeId(pipe_id));
    let packets = packets || data.is_some_and(|data| !data.entry.crust_packets.is_empty());
    if packets {
        // Packet mode is the writing description's flag at the time of the write.
        let what = format!("packet mode of pipe {pipe_id:#x}");
        let call = set_flags(writer, libc::O_DIRECT);
        planner.call(Phase::Open, Actor::Broker, call, first.file.origin(what));
    }
    let checkpoint = planner.checkpoint;
    if let Some(data) = checkpoint.pipes_data.get(&PipeId(pipe_id)) {
        plan_data(planner, data, ("pipes-data.img", "PIPES_DATA"), writer);
    }
    let reader_used = plan_end(planner, ends, libc::O_RDONLY, reader);
    let writer_used = plan_end(planner, ends, libc::O_WRONLY, writer);
    plan_reopened(planner, ends, reader);
    for (slot, used) in [(reader, reader_used), (writer, writer_used)] {
        if !used {
            let origin = first
                .file
                .origin(format!("end of pipe {pipe_id:#x} that nobody has"));
            let close = Op::Routine(Routine::Close { slot });
            planner.push(Phase::Deaths, Actor::Broker, close, origin);
        }
    }
}

/// Sets the size of a pipe or fifo and writes its data. Refuses what cannot be.
pub(super) fn plan_data(
    planner: &mut Planner<'_>,
    data: &PipeData,
    (image, kind): (&'static str, &'static str),
    writer: SlotId,
) {
    let entry = &data.entry;
    let what = format!("data of pipe {:#x}", entry.pipe_id);
    let origin = Origin::new(image, None, what);
    let size = entry.size.unwrap_or(DEFAULT_SIZE);
    if entry.bytes > size || size > LARGEST {
        let why = format!("{} bytes are in a pipe of size {size}", entry.bytes);
        planner.refuse(Refusal::new(origin, why));
        return;
    }
    if let Some(size) = entry.size {
        let call = fcntl(
            writer,
            "F_SETPIPE_SZ",
            libc::F_SETPIPE_SZ,
            Arg::Int(size.into()),
        );
        planner.call(Phase::Open, Actor::Broker, call, origin.clone());
    }
    let packets: u64 = entry.crust_packets.iter().map(|len| u64::from(*len)).sum();
    if !entry.crust_packets.is_empty() && packets != u64::from(entry.bytes) {
        let why = format!("crust_packets have {packets} bytes of {}", entry.bytes);
        planner.refuse(Refusal::new(origin, why));
        return;
    }
    if entry.bytes != 0 {
        let routine = Routine::FeedPayload {
            image: kind,
            pipe_id: entry.pipe_id,
            packets: entry.crust_packets.clone(),
            slot: writer,
        };
        planner.push(Phase::Open, Actor::Broker, Op::Routine(routine), origin);
    }
}

/// Gives the end that was made to the first entry that can have it.
fn plan_end(planner: &mut Planner<'_>, ends: &[End<'_>], access: i32, slot: SlotId) -> bool {
    let Some(end) = ends.iter().find(|end| end.is_original(access)) else {
        return false;
    };
    let flags = end.pipe.flags as i32;
    let origin = end.file.origin(end.file.name());
    planner.call(Phase::Open, Actor::Broker, set_flags(slot, flags), origin);
    planner.files.slots.insert(end.file.id, Some(slot));
    fown::plan(planner, end.file, slot, flags, &end.pipe.fown);
    true
}

/// Opens ends that are further descriptions of the same pipe.
fn plan_reopened(planner: &mut Planner<'_>, ends: &[End<'_>], made: SlotId) {
    for end in ends {
        if planner.files.slots.contains_key(&end.file.id) {
            continue;
        }
        let flags = end.pipe.flags as i32;
        let origin = end.file.origin(end.file.name());
        if end.access() == libc::O_ACCMODE {
            let why = format!("flags {flags:#o} have no access mode");
            planner.refuse(Refusal::new(origin, why));
            planner.files.slots.insert(end.file.id, None);
            continue;
        }
        let slot = planner.slot();
        let flags_of_open = flags & !libc::O_ASYNC;
        planner.call(
            Phase::Open,
            Actor::Broker,
            reopen(made, flags_of_open, slot),
            origin,
        );
        planner.files.slots.insert(end.file.id, Some(slot));
        fown::plan(planner, end.file, slot, flags, &end.pipe.fown);
    }
}
