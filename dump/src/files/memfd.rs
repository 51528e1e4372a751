//! memfd_create(2), and shared anonymous memory, which is the same object without a descriptor.
//!
//! The inode is stored once in memfd.img (name, owner, mode, size, seals); each description is a
//! MEMFD entry with flags and position. The content is a shmem image named by the inode number,
//! written by mm from [`FileTable::shmem`]. Shared anonymous memory is called "/dev/zero" by the
//! kernel and is stored as a memfd of that name, as the peer does where mapped objects can be
//! opened; in huge pages its name is "/anon_hugepage".

use super::write::Source;
use super::{FileTable, OpenFile, RoomResult, file_entry, regfile};
use crate::context::Context;
use anyhow::{Context as _, Result};
use crust_image::ids::{FileId, ShmId};
use crust_image::kind::Kind;
use crust_image::sink::{ImageSink, write_entries};
use crust_process::descriptor;
use crust_process::huge_pages::huge_page_of;
use crust_process::proc::text::split_deleted;
use crust_proto::criu::{FdTypes, FileEntry, FownEntry, MemfdFileEntry, MemfdInodeEntry};
use nix::libc;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;

/// The inodes of a dump.
#[derive(Debug, Default)]
pub struct Memfds {
    by_ino: HashMap<u64, u64>,
    list: Vec<Inode>,
}

#[derive(Debug)]
struct Inode {
    entry: MemfdInodeEntry,
    source: Source,
}

/// A memory object whose content mm must write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmemSource {
    /// Its inode number: the name of the image.
    pub shmid: ShmId,
    /// Its length in bytes.
    pub size: u64,
    index: usize,
}

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let fown = file.fown(ctx)?;
    let inode_id = inode(table, file)?;
    Ok(encode(id, file.flags, file.pos, fown, inode_id))
}

/// Dumps an object known by a mapping: it has neither flags nor a position.
pub fn dump_mapping(table: &mut FileTable, file: &OpenFile, id: FileId) -> RoomResult<FileEntry> {
    let inode_id = inode(table, file)?;
    Ok(encode(id, 0, 0, regfile::no_owner(), inode_id))
}

fn encode(id: FileId, flags: u32, pos: u64, fown: FownEntry, inode_id: u64) -> FileEntry {
    let entry = MemfdFileEntry {
        id: id.0,
        flags,
        pos,
        fown,
        inode_id: inode_id as u32,
    };
    FileEntry {
        memfd: Some(Box::new(entry)),
        ..file_entry(FdTypes::Memfd, id)
    }
}

/// The number of the inode in memfd.img, given out now if it is new.
fn inode(table: &mut FileTable, file: &OpenFile) -> RoomResult<u64> {
    let stat = file.stat()?;
    if let Some(inode_id) = table.memfds.by_ino.get(&stat.ino) {
        return Ok(*inode_id);
    }
    let inode_id = table.memfds.list.len() as u64 + 1;
    // A path descriptor answers no questions about seals.
    let own = descriptor::reopen(file.fd, libc::O_RDONLY).context("reopening a memfd")?;
    let huge = huge_page_of(own.as_fd()).context("fstatfs of a memfd")?;
    let entry = MemfdInodeEntry {
        name: name_of(&file.link),
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        shmid: stat.ino as u32,
        seals: descriptor::seals(own.as_fd()).context("F_GET_SEALS")?,
        inode_id,
        hugetlb_flag: huge.map(|size| size.ilog2() << libc::MFD_HUGE_SHIFT),
        mode: Some(stat.mode),
    };
    table.memfds.list.push(Inode {
        entry,
        source: Source::of(file),
    });
    table.memfds.by_ino.insert(stat.ino, inode_id);
    Ok(inode_id)
}

/// The name given to memfd_create(2), or "/dev/zero".
fn name_of(link: &[u8]) -> Vec<u8> {
    let (link, _) = split_deleted(link);
    link.strip_prefix(b"/memfd:").unwrap_or(link).to_vec()
}

impl FileTable {
    /// The memory objects met so far, whose content is not in files.img.
    pub fn shmem(&self) -> Vec<ShmemSource> {
        let source = |(index, inode): (usize, &Inode)| ShmemSource {
            shmid: ShmId(u64::from(inode.entry.shmid)),
            size: inode.entry.size,
            index,
        };
        self.memfds.list.iter().enumerate().map(source).collect()
    }

    /// Opens a memory object for reading, as a description of our own.
    pub fn open_shmem(&self, ctx: &Context, shmem: &ShmemSource) -> Result<File> {
        let inode = &self.memfds.list[shmem.index];
        let doing = || format!("memory object {}", inode.entry.shmid);
        let taken = inode.source.open(ctx, self).with_context(doing)?;
        let own = descriptor::reopen(taken.as_fd(), libc::O_RDONLY).with_context(doing)?;
        Ok(File::from(own))
    }
}

/// Writes memfd.img.
pub fn write(table: &FileTable, sink: &dyn ImageSink) -> Result<()> {
    let entries: Vec<_> = table
        .memfds
        .list
        .iter()
        .map(|inode| inode.entry.clone())
        .collect();
    Ok(write_entries(sink, Kind::MemfdInode, None, &entries)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_what_the_kernel_added() {
        assert_eq!(name_of(b"/memfd:plain name (deleted)"), b"plain name");
        assert_eq!(name_of(b"/memfd: (deleted) (deleted)"), b" (deleted)");
        assert_eq!(name_of(b"/dev/zero (deleted)"), b"/dev/zero");
    }
}
