//! Ghost files: open files whose last name is gone. Nothing but the open descriptions keeps the
//! inode alive, so its content goes into the images: ghost-file-<id>.img.
//!
//! Regular files keep their holes: from 12288 bytes on the image has one chunk for each extent of
//! data, shorter ones are stored whole. Directories, fifos, devices, sockets and symlinks have no
//! content. All descriptions of one inode share one ghost. Content larger than `--ghost-limit` is
//! refused, since a deleted terabyte should not fill the disk unasked; what counts is what the
//! file occupies, not its length.

use super::write::Source;
use super::{FileId, FileTable, OpenFile, Problem, RoomResult, mounts::Inode};
use crate::context::Context;
use anyhow::{Context as _, Result};
use crust_image::ghost;
use crust_image::kind::Kind;
use crust_image::sink::ImageSink;
use crust_process::descriptor;
use crust_process::huge_pages::huge_page_of;
use crust_proto::criu::{GhostFileEntry, RemapType, Timeval};
use nix::libc;
use nix::sys::stat::FileStat;
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

/// The ghosts of a dump.
#[derive(Debug, Default)]
pub struct Ghosts {
    by_inode: HashMap<Inode, u32>,
    list: Vec<Ghost>,
}

#[derive(Debug)]
struct Ghost {
    id: u32,
    source: Source,
    entry: GhostFileEntry,
    len: u64,
}

/// Makes the inode a ghost, once, and the file one of its users.
pub fn settle(ctx: &Context, table: &mut FileTable, file: &OpenFile, id: FileId) -> RoomResult<()> {
    let stat = nix::sys::stat::fstat(file.fd).context("fstat of a deleted file")?;
    let inode = (stat.st_dev, stat.st_ino);
    let known = table.ghosts.by_inode.get(&inode).copied();
    let ghost_id = match known {
        Some(ghost_id) => ghost_id,
        None => {
            check_limit(ctx, &stat)?;
            if huge_page_of(file.fd)
                .context("fstatfs of a deleted file")?
                .is_some()
            {
                return Err(Problem::refused(
                    "is a deleted file of hugetlbfs, which lets nothing be written into a new one",
                ));
            }
            let ghost_id = table.ghosts.list.len() as u32 + 1;
            let ghost = Ghost {
                id: ghost_id,
                source: Source::of(file),
                entry: encode(file, &stat)?,
                len: stat.st_size.max(0) as u64,
            };
            table.ghosts.list.push(ghost);
            table.ghosts.by_inode.insert(inode, ghost_id);
            ghost_id
        }
    };
    table.remaps.add(id, ghost_id, RemapType::Ghost);
    Ok(())
}

impl Ghosts {
    /// The number of an inode that is a ghost.
    pub fn of_inode(&self, inode: Inode) -> Option<u32> {
        self.by_inode.get(&inode).copied()
    }
}

fn check_limit(ctx: &Context, stat: &FileStat) -> RoomResult<()> {
    // st_blocks counts 512 bytes, whatever the file system's block (stat(2)).
    let occupied = (stat.st_blocks.max(0) as u64 * 512).min(stat.st_size.max(0) as u64);
    let limit = ctx.options.ghost_limit;
    if !ghost::is_regular(stat.st_mode) || occupied <= limit {
        return Ok(());
    }
    Err(Problem::with_hint(
        format!("is a deleted file of {occupied} bytes, more than --ghost-limit {limit}"),
        format!("try --ghost-limit {}", occupied.next_power_of_two()),
    ))
}

fn encode(file: &OpenFile, stat: &FileStat) -> RoomResult<GhostFileEntry> {
    let kind = stat.st_mode & libc::S_IFMT;
    let chunked = ghost::is_chunked(stat.st_mode, stat.st_size as u64);
    let is_device = kind == libc::S_IFCHR || kind == libc::S_IFBLK;
    Ok(GhostFileEntry {
        uid: stat.st_uid,
        gid: stat.st_gid,
        mode: stat.st_mode,
        dev: Some(kernel_dev(stat.st_dev)),
        ino: Some(stat.st_ino),
        rdev: is_device.then_some(stat.st_rdev as u32),
        atim: Some(timeval(stat.st_atime, stat.st_atime_nsec)),
        mtim: Some(timeval(stat.st_mtime, stat.st_mtime_nsec)),
        chunks: chunked.then_some(true),
        size: chunked.then_some(stat.st_size as u64),
        symlnk_target: match kind {
            libc::S_IFLNK => Some(
                nix::fcntl::readlinkat(file.fd, "")
                    .context("readlink of a symlink")?
                    .into_vec(),
            ),
            _ => None,
        },
    })
}

fn timeval(seconds: i64, nanoseconds: i64) -> Timeval {
    Timeval {
        tv_sec: seconds as u64,
        tv_usec: (nanoseconds / 1000) as u64,
    }
}

/// A device as the kernel has it inside: 20 bits of minor number.
pub fn kernel_dev(dev: u64) -> u32 {
    libc::major(dev) << 20 | libc::minor(dev)
}

/// Writes every ghost into its image.
pub fn write(ctx: &Context, table: &FileTable, sink: &dyn ImageSink) -> Result<()> {
    for ghost in &table.ghosts.list {
        let subject = || format!("writing ghost-file-{:x}.img", ghost.id);
        write_ghost(ctx, table, sink, ghost).with_context(subject)?;
    }
    Ok(())
}

fn write_ghost(
    ctx: &Context,
    table: &FileTable,
    sink: &dyn ImageSink,
    ghost: &Ghost,
) -> Result<()> {
    let mut image = sink.create(Kind::GhostFile, Some(u64::from(ghost.id)))?;
    if !ghost::is_regular(ghost.entry.mode) {
        image.entry(&ghost.entry)?;
        image.finish()?;
        return Ok(());
    }
    let taken = ghost.source.open(ctx, table)?;
    // A description of our own: the task's may be write-only, and looking for holes seeks.
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOATIME;
    let own = descriptor::reopen(taken.as_fd(), flags).context("reopening a deleted file")?;
    let mut own = File::from(own);
    let extents = match ghost.entry.chunks {
        Some(true) => descriptor::data_extents(&own, ghost.len)?,
        _ => Vec::new(),
    };
    ghost::write_ghost(&mut image, &ghost.entry, &mut own, ghost.len, &extents)?;
    image.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_twenty_minor_bits() {
        assert_eq!(kernel_dev(libc::makedev(254, 0)), 266_338_304);
        assert_eq!(kernel_dev(libc::makedev(0, 300)), 300);
    }
}
