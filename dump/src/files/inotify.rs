//! inotify_init(2): watches on inodes and a queue of events.
//!
//! fdinfo tells each watch with the file handle of its inode, which is opened to learn the path;
//! handle and path are stored, and the restorer takes what it can open. The queue cannot be read
//! without consuming it: waiting events are lost, as with the peer, and the log says so. A file
//! without a handle (on overlayfs) is looked for by name where the user says (irmap.rs). A watch on
//! a file that has no name left is refused.

use super::{FileTable, OpenFile, Problem, RoomResult, file_entry, irmap};
use crate::context::Context;
use anyhow::{Context as _, anyhow, bail};
use crust_image::ids::FileId;
use crust_process::descriptor;
use crust_process::proc::fdinfo::{Handle, InotifyWatch};
use crust_process::proc::text::split_deleted;
use crust_proto::criu::{FdTypes, FhEntry, FileEntry, InotifyFileEntry, InotifyWdEntry};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Bits of a minor number in the kernel's dev_t, as fdinfo shows it.
const MINOR_BITS: u32 = 20;
const MINOR_MASK: u32 = (1 << MINOR_BITS) - 1;
/// Words of a stored handle (fh_entry_sizes.min_entries of the peer's schema).
const HANDLE_WORDS: usize = 16;

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    file.warn_of_lost_events(ctx)?;
    let watches = file.fdinfo()?.inotify;
    let wd = watches
        .iter()
        .map(|watch| encode_watch(ctx, table, file, watch))
        .collect::<RoomResult<Vec<_>>>()?;
    let entry = InotifyFileEntry {
        id: id.0,
        flags: file.flags,
        fown: file.fown(ctx)?,
        wd,
    };
    Ok(FileEntry {
        ify: Some(entry),
        ..file_entry(FdTypes::Inotify, id)
    })
}

fn encode_watch(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    watch: &InotifyWatch,
) -> RoomResult<InotifyWdEntry> {
    let inode = (watch.sdev, watch.ino);
    let path = find_watched(ctx, table, file, inode, watch.handle.as_ref())
        .map_err(|why| Problem::refused(format!("watch {}: {why}", watch.wd)))?;
    Ok(InotifyWdEntry {
        id: 0,
        i_ino: watch.ino,
        mask: watch.mask,
        ignored_mask: watch.ignored_mask,
        s_dev: watch.sdev,
        wd: watch.wd as u32,
        f_handle: encode_handle(watch.handle.as_ref(), path),
    })
}

/// The handle of a watched inode, all zero if it has none, with its path.
pub fn encode_handle(handle: Option<&Handle>, path: Vec<u8>) -> FhEntry {
    FhEntry {
        bytes: handle.map_or(0, |handle| handle.bytes.len() as u32),
        r#type: handle.map_or(0, |handle| handle.handle_type),
        handle: words(handle.map_or(&[], |handle| &handle.bytes)),
        path: Some(path),
        mnt_id: None,
    }
}

/// The path of a watched inode, given by its device in the kernel's form and its number: by its
/// handle, or by looking where the user says (`--irmap-scan-path`), which `--force-irmap` does
/// first. Why there is none otherwise.
pub fn find_watched(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    (sdev, ino): (u32, u64),
    handle: Option<&Handle>,
) -> Result<Vec<u8>, String> {
    let options = ctx.options;
    let wanted = (libc::makedev(sdev >> MINOR_BITS, sdev & MINOR_MASK), ino);
    let by_name = || irmap::find(&options.irmap_scan_paths, options.force_irmap, wanted);
    if options.force_irmap
        && let Some(path) = by_name()
    {
        return Ok(path);
    }
    let by_handle = match handle {
        Some(handle) => path_of_handle(table, file, sdev, handle),
        None => Err("its file system gives no file handles".to_owned()),
    };
    by_handle.or_else(|why| {
        by_name().ok_or_else(|| format!("{why}; --irmap-scan-path DIR looks for it by name"))
    })
}

fn path_of_handle(
    table: &mut FileTable,
    file: &OpenFile,
    sdev: u32,
    handle: &Handle,
) -> Result<Vec<u8>, String> {
    let mut path = || -> anyhow::Result<Vec<u8>> {
        let opened = open_handle(table, file, sdev, handle)?;
        let path = descriptor::bytes_of(descriptor::link_of(opened.as_fd()).context("readlink")?);
        let stat = descriptor::statx(opened.as_fd()).context("statx")?;
        let inode = Some((stat.dev, stat.ino));
        let namespace = table.mounts.of(file.task)?;
        if namespace.inode_at(&path)? != inode && split_deleted(&path).1 {
            bail!("it is deleted");
        }
        Ok(path)
    };
    path().map_err(|error| format!("its file cannot be found: {error:#}"))
}

/// Opens the file of a handle through any mount of its file system.
fn open_handle(
    table: &mut FileTable,
    file: &OpenFile,
    sdev: u32,
    handle: &Handle,
) -> anyhow::Result<OwnedFd> {
    let namespace = table.mounts.of(file.task)?;
    let handle = descriptor::FileHandle {
        kind: handle.handle_type as i32,
        bytes: handle.bytes.clone(),
    };
    let mut failure = anyhow!("no mount of its file system is visible");
    let mounts = namespace.of_device(sdev >> MINOR_BITS, sdev & MINOR_MASK);
    for mount in mounts {
        let Some(relative) = namespace.relative(&mount.mountpoint) else {
            continue;
        };
        let relative = if relative.is_empty() { b"." } else { relative };
        let root = namespace.root()?;
        // A directory that may be read: open_by_handle_at refuses O_PATH descriptors.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let opened = nix::fcntl::openat(&root, OsStr::from_bytes(relative), flags, Mode::empty())
            .and_then(|at| descriptor::open_handle(at.as_fd(), &handle));
        match opened {
            Ok(fd) => return Ok(fd),
            Err(errno) => failure = anyhow!(errno),
        }
    }
    Err(failure)
}

/// A handle as 64-bit words, zero filled.
fn words(bytes: &[u8]) -> Vec<u64> {
    let mut words: Vec<u64> = bytes
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        })
        .collect();
    words.resize(words.len().max(HANDLE_WORDS), 0);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_are_zero_filled() {
        let words = words(&[1, 0, 0, 0, 0, 0, 0, 0, 2]);
        assert_eq!(words.len(), HANDLE_WORDS);
        assert_eq!(words[..3], [1, 2, 0]);
    }
}
