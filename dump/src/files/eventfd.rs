//! eventfd(2): a counter of 64 bits that read takes and write adds to.
//!
//! Saved are the counter and the flags. The peer's message has no field for EFD_SEMAPHORE, which
//! makes a read take one. Its value, 1, is a bit that the flags of an eventfd never have (they are
//! O_RDWR, 2, with perhaps O_NONBLOCK), so it is stored there: the peer's restore hands the flags
//! to F_SETFL, which ignores the bit. fdinfo tells the mode since Linux 6.5; before, a semaphore
//! cannot be told from a plain counter, as the peer's images cannot.

use super::{OpenFile, RoomResult, file_entry};
use crate::context::Context;
use anyhow::Context as _;
use crust_image::ids::FileId;
use crust_proto::criu::{EventfdFileEntry, FdTypes, FileEntry};

/// include/uapi/linux/eventfd.h.
const EFD_SEMAPHORE: u32 = 1;

/// Dumps a descriptor.
pub fn dump(ctx: &Context, file: &OpenFile, id: FileId) -> RoomResult<FileEntry> {
    let info = file
        .fdinfo()?
        .eventfd
        .context("fdinfo tells no eventfd-count")?;
    let semaphore = if info.semaphore == Some(true) {
        EFD_SEMAPHORE
    } else {
        0
    };
    let entry = EventfdFileEntry {
        id: id.0,
        flags: file.flags | semaphore,
        fown: file.fown(ctx)?,
        counter: info.count,
    };
    Ok(FileEntry {
        efd: Some(Box::new(entry)),
        ..file_entry(FdTypes::Eventfd, id)
    })
}
