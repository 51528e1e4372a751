//! mkfifo(3): a pipe that is met by a name.
//!
//! The entry is a pair: a FIFO, which names the pipe by the inode number, and a REG with path,
//! flags and owner, which the restorer opens. The waiting data is a pipe's (pipe.rs).

use super::{FileTable, OpenFile, RoomResult, file_entry, pipe, regfile};
use crate::context::Context;
use crust_image::ids::FileId;
use crust_proto::criu::{FdTypes, FifoEntry, FileEntry};

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let pipe_id = pipe::note_fifo(table, file)?;
    let regf_id = table.give_id();
    let reg = regfile::dump(ctx, table, file, regf_id)?;
    table.entries.push(reg);
    Ok(FileEntry {
        fifo: Some(Box::new(FifoEntry {
            id: id.0,
            pipe_id,
            regf_id: Some(regf_id.0),
        })),
        ..file_entry(FdTypes::Fifo, id)
    })
}
