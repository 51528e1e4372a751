//! inotify_init(2): watches on inodes and a queue of events.
//!
//! fdinfo tells each watch with the file handle of its inode, which is opened to learn the path;
//! handle and path are stored, and the restorer takes what it can open. The queue cannot be read
//! without consuming it: waiting events are lost, as with the peer, and the log says so. A watch
//! on a file that has no name left is refused.

use super::{FileTable, OpenFile, Problem, RoomResult};
use crate::context::Context;
use anyhow::{Context as _, anyhow};
use crust_image::ids::FileId;
use crust_process::descriptor;
use crust_process::proc::fdinfo::{Handle, InotifyWatch};
use crust_process::proc::text::split_deleted;
use crust_proto::criu::{FdTypes, FhEntry, FileEntry, InotifyFileEntry, InotifyWdEntry};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Words of a stored handle (fh_entry_sizes.min_entries of the peer's schema).
const HANDLE_WORDS: usize = 16;

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let waiting = descriptor::bytes_waiting(file.fd).context("FIONREAD")?;
    if waiting > 0 {
        ctx.log.warn(
            "dump/files/inotify",
            format_args!(
                "task {}: {}: {waiting} bytes of events are lost",
                file.task.pid,
                file.name()
            ),
        );
    }
    let watches = file.fdinfo()?.inotify;
    let wd = watches
        .iter()
        .map(|watch| encode_watch(table, file, watch))
        .collect::<RoomResult<Vec<_>>>()?;
    let entry = InotifyFileEntry {
        id: id.0,
        flags: file.flags,
        fown: file.fown(ctx)?,
        wd,
    };
    Ok(FileEntry {
        r#type: FdTypes::Inotify as i32,
        id: id.0,
        ify: Some(entry),
        ..FileEntry::default()
    })
}

fn encode_watch(
    table: &mut FileTable,
    file: &OpenFile,
    watch: &InotifyWatch,
) -> RoomResult<InotifyWdEntry> {
    let named = |what: &str| Problem::refused(format!("watch {}: {what}", watch.wd));
    let Some(handle) = &watch.handle else {
        return Err(named("its file system gives no file handles"));
    };
    let opened = open_handle(table, file, watch, handle)
        .map_err(|error| named(&format!("its file cannot be found: {error:#}")))?;
    let path = descriptor::bytes_of(descriptor::link_of(opened.as_fd()).context("readlink")?);
    let stat = descriptor::statx(opened.as_fd()).context("statx")?;
    let inode = Some((stat.dev, stat.ino));
    let namespace = table.mounts.of(file.task)?;
    if namespace.inode_at(&path)? != inode && split_deleted(&path).1 {
        return Err(named("its file is deleted"));
    }
    Ok(InotifyWdEntry {
        id: 0,
        i_ino: watch.ino,
        mask: watch.mask,
        ignored_mask: watch.ignored_mask,
        s_dev: watch.sdev,
        wd: watch.wd as u32,
        f_handle: FhEntry {
            bytes: handle.bytes.len() as u32,
            r#type: handle.handle_type,
            handle: words(&handle.bytes),
            path: Some(path),
            mnt_id: None,
        },
    })
}

/// Opens the file of a handle through any mount of its file system.
fn open_handle(
    table: &mut FileTable,
    file: &OpenFile,
    watch: &InotifyWatch,
    handle: &Handle,
) -> anyhow::Result<OwnedFd> {
    let namespace = table.mounts.of(file.task)?;
    let handle = descriptor::FileHandle {
        kind: handle.handle_type as i32,
        bytes: handle.bytes.clone(),
    };
    let mut failure = anyhow!("no mount of its file system is visible");
    let mounts = namespace.of_device(watch.sdev >> 20, watch.sdev & 0xf_ffff);
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
