//! io_uring_setup(2): an idle ring.
//!
//! Saved are what it was made with, its counts and the memory that it shares with the program, in an
//! entry of our own: the peer has none. The kernel tells these things nobody; they are read where it
//! keeps them (crust_process::io_uring). Refused are rings with requests under way, rings that files,
//! buffers, an eventfd, restrictions or the like were registered with, and kinds whose use belongs
//! to one thread (IORING_SETUP_SINGLE_ISSUER) or to a thread of the kernel (IORING_SETUP_SQPOLL).
//! A ring that is polled for busily with the network's help (NAPI) would lose that only.

use super::{FileTable, OpenFile, Problem, RoomResult, file_entry};
use crate::context::{Context, Task};
use crust_image::ids::FileId;
use crust_process::io_uring::Looker;
use crust_proto::criu::{CrustUringEntry, FdTypes, FileEntry};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

/// The rings of a dump.
#[derive(Debug, Default)]
pub struct Rings {
    /// Made for the first one.
    looker: Option<Result<Looker, String>>,
    /// Their inodes: the kernel makes one for each.
    found: Vec<(u64, FileId)>,
}

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let refused = |why: &str| Problem::refused(format!("is an io_uring; {why}"));
    let looker = table.rings.looker.get_or_insert_with(Looker::open);
    let looker = looker.as_ref().map_err(|why| {
        refused(&format!(
            "what it was made with cannot be read from the kernel: {why}"
        ))
    })?;
    let ring = looker.look(file.fd).map_err(|why| refused(&why))?;
    let inode = file.stat()?.ino;
    let entry = CrustUringEntry {
        id: id.0,
        flags: file.flags,
        fown: file.fown(ctx)?,
        setup_flags: ring.setup,
        sq_entries: ring.sq_entries,
        cq_entries: ring.cq_entries,
        sq_head: ring.sq_head,
        cq_tail: ring.cq_tail,
        layout: ring.layout.to_vec(),
        rings: ring.rings,
        sqes: ring.sqes,
    };
    table.rings.found.push((inode, id));
    Ok(FileEntry {
        crust_uring: Some(Box::new(entry)),
        ..file_entry(FdTypes::CrustUring, id)
    })
}

impl FileTable {
    /// The file of the ring that is mapped here, or why it cannot be told.
    pub fn mapped_ring(&self, task: &Task, range: &Range<u64>) -> Result<FileId, String> {
        let path = format!(
            "/proc/{}/map_files/{:x}-{:x}",
            task.pid, range.start, range.end
        );
        let inode = std::fs::metadata(path).map_err(|error| format!("map_files: {error}"))?;
        let inode = inode.ino();
        let mut found = self.rings.found.iter().filter(|(of, _)| *of == inode);
        match (found.next(), found.next()) {
            (Some((_, id)), None) => Ok(*id),
            (None, _) => Err(
                "maps an io_uring of which nobody has a descriptor, or one that is refused"
                    .to_owned(),
            ),
            (Some(_), Some(_)) => {
                Err("maps one of several io_urings that this kernel gives one inode".to_owned())
            }
        }
    }
}
