//! pipe(2): two ends of a buffer in the kernel, and the data that waits in it.
//!
//! An entry is an end: its flags tell which. Equal pipe ids, the inode number, mean one pipe. The
//! data is copied with tee(2), which consumes nothing, through an end that can read, once for each
//! pipe and only when everything else is known; a pipe of which the tree has no reading end has
//! data that nobody in the tree can ever see. The image keeps bytes; where the packets of a pipe in
//! packet mode (O_DIRECT) end is in a field of our own. Bytes that were written before that mode
//! was set count as packets too.
//!
//! An end held outside the tree is no reason to refuse: a container's standard output is one,
//! and the user hands it in at restore (`--inherit-fd`). The log says so.

use super::write::Source;
use super::{FileTable, OpenFile, RoomResult, file_entry};
use crate::context::Context;
use anyhow::{Context as _, Result};
use crust_image::ids::FileId;
use crust_image::kind::Kind;
use crust_image::sink::ImageSink;
use crust_process::descriptor;
use crust_process::pid::HostPid;
use crust_proto::criu::{FdTypes, FileEntry, PipeDataEntry, PipeEntry};
use nix::libc;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

/// The pipes and fifos of a dump, by inode number.
#[derive(Debug, Default)]
pub struct Pipes {
    pipes: BTreeMap<u32, Buffer>,
    fifos: BTreeMap<u32, Buffer>,
    /// Ids in the order of discovery, which is that of the images.
    pipe_order: Vec<u32>,
    fifo_order: Vec<u32>,
}

/// The buffer behind a pipe or fifo, as far as the tree sees it.
#[derive(Debug)]
struct Buffer {
    task: HostPid,
    name: String,
    /// A description that can read.
    reader: Option<Source>,
    has_writer: bool,
    /// Some end is in packet mode.
    packets: bool,
    /// An end whose other end is held by nobody in the tree, if nobody joins it.
    other_end_open: bool,
}

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let pipe_id = note_end(&mut table.pipes.pipes, &mut table.pipes.pipe_order, file)?;
    let entry = PipeEntry {
        id: id.0,
        pipe_id,
        flags: file.flags,
        fown: file.fown(ctx)?,
    };
    Ok(FileEntry {
        pipe: Some(Box::new(entry)),
        ..file_entry(FdTypes::Pipe, id)
    })
}

/// Notes an end of a fifo and gives its pipe id.
pub fn note_fifo(table: &mut FileTable, file: &OpenFile) -> RoomResult<u32> {
    note_end(&mut table.pipes.fifos, &mut table.pipes.fifo_order, file)
}

fn note_end(
    buffers: &mut BTreeMap<u32, Buffer>,
    order: &mut Vec<u32>,
    file: &OpenFile,
) -> RoomResult<u32> {
    let pipe_id = file.stat()?.ino as u32;
    let access = file.flags & libc::O_ACCMODE as u32;
    let reads = access != libc::O_WRONLY as u32;
    let writes = access != libc::O_RDONLY as u32;
    let state = descriptor::poll_state(file.fd).context("poll")?;
    let buffer = buffers.entry(pipe_id).or_insert_with(|| {
        order.push(pipe_id);
        Buffer {
            task: file.task.pid,
            name: file.name(),
            reader: None,
            has_writer: false,
            packets: false,
            other_end_open: if reads { !state.hung_up } else { !state.error },
        }
    });
    if reads && buffer.reader.is_none() {
        buffer.reader = Some(Source::of(file));
    }
    buffer.has_writer |= writes;
    buffer.packets |= file.flags & libc::O_DIRECT as u32 != 0;
    Ok(pipe_id)
}

/// Looks at all pipes when all descriptors are known.
pub fn settle(ctx: &Context, table: &FileTable) {
    let pipes = &table.pipes;
    for buffer in pipes.pipes.values().chain(pipes.fifos.values()) {
        let alone = buffer.reader.is_none() || !buffer.has_writer;
        if alone && buffer.other_end_open {
            ctx.log.warn(
                "dump/files/pipe",
                format_args!(
                    "task {}: {}: its other end is open outside the tree and is not dumped",
                    buffer.task, buffer.name
                ),
            );
        }
    }
}

/// The capacity and the waiting data.
fn read(reader: BorrowedFd, packets: bool) -> Result<(u32, Vec<Vec<u8>>)> {
    let size = descriptor::pipe_size(reader)
        .context("F_GETPIPE_SZ")?
        .max(0) as usize;
    let parts = descriptor::tee_all(reader, size, packets).context("tee")?;
    Ok((size as u32, parts))
}

/// The lengths of packets. Reads of PIPE_BUF bytes end at the end of a packet, and of plain data
/// with the last byte only.
fn packets_of(parts: &[Vec<u8>], are_packets: bool) -> Vec<u32> {
    let before_last = parts.split_last().map_or(&[][..], |(_, before)| before);
    let ends_early = before_last.iter().any(|part| part.len() < libc::PIPE_BUF);
    if !are_packets && !ends_early {
        return Vec::new();
    }
    parts.iter().map(|part| part.len() as u32).collect()
}

/// Writes pipes-data and fifo-data, one entry for each pipe that can be read in the tree.
pub fn write(ctx: &Context, table: &FileTable, sink: &dyn ImageSink) -> Result<()> {
    let pipes = &table.pipes;
    let kinds = [
        (&pipes.pipes, &pipes.pipe_order, Kind::PipesData),
        (&pipes.fifos, &pipes.fifo_order, Kind::FifoData),
    ];
    for (buffers, order, kind) in kinds {
        let mut image = None;
        for pipe_id in order {
            let Some(buffer) = buffers.get(pipe_id) else {
                continue;
            };
            let Some(reader) = &buffer.reader else {
                continue;
            };
            let doing = || format!("task {}: {}", buffer.task, buffer.name);
            let taken = reader.open(ctx, table).with_context(doing)?;
            // A reading end does not show the mode, so without a writer the data has to.
            let may_be_packets = buffer.packets || !buffer.has_writer;
            let (size, parts) = read(taken.as_fd(), may_be_packets).with_context(doing)?;
            let packets = packets_of(&parts, buffer.packets);
            let data = parts.concat();
            let image = match &mut image {
                Some(image) => image,
                None => image.insert(sink.create(kind, None)?),
            };
            let bytes = data.len() as u32;
            image.entry(&PipeDataEntry {
                pipe_id: *pipe_id,
                bytes,
                size: Some(size),
                crust_packets: packets,
            })?;
            image.payload(&data)?;
        }
        if let Some(image) = image {
            image.finish()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_show_by_ending_early() {
        let part = |len: &usize| vec![0u8; *len];
        let parts = |lens: &[usize]| lens.iter().map(part).collect::<Vec<_>>();
        assert!(packets_of(&parts(&[4096, 4096, 3]), false).is_empty());
        assert_eq!(packets_of(&parts(&[3, 7]), false), [3, 7]);
        assert_eq!(packets_of(&parts(&[7]), true), [7]);
        assert!(packets_of(&[], true).is_empty());
    }
}
