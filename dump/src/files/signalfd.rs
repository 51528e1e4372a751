//! signalfd(2): a descriptor that reads the signals of a mask. The mask is all it has; the signals
//! themselves wait in the queues of the tasks.

use super::{OpenFile, RoomResult, file_entry};
use crate::context::Context;
use anyhow::Context as _;
use crust_image::ids::FileId;
use crust_proto::criu::{FdTypes, FileEntry, SignalfdEntry};

/// Dumps a descriptor.
pub fn dump(ctx: &Context, file: &OpenFile, id: FileId) -> RoomResult<FileEntry> {
    let sigmask = file.fdinfo()?.sigmask.context("fdinfo tells no sigmask")?;
    let entry = SignalfdEntry {
        id: id.0,
        flags: file.flags,
        fown: file.fown(ctx)?,
        sigmask,
    };
    Ok(FileEntry {
        sgfd: Some(Box::new(entry)),
        ..file_entry(FdTypes::Signalfd, id)
    })
}
