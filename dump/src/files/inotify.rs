//! inotify_init(2): watches on inodes and a queue of events.
//!
//! fdinfo tells each watch with the file handle of its inode, which is opened to learn the path;
//! handle and path are stored, and the restorer takes what it can open. The queue cannot be read
//! without consuming it: waiting events are lost, as with the peer, and the log says so. A file
//! without a handle (on overlayfs) is looked for by name where the user says (irmap.rs). A watched
//! file that has no name left lives by those who have it open: if they are of the tree it is a
//! ghost (ghost.rs), by whose number it is found again; if not, the watch is refused.

use super::mounts::Inode;
use super::{FileTable, OpenFile, Problem, RoomResult, file_entry, irmap};
use crate::context::Context;
use crate::refusal::Refusal;
use anyhow::{Context as _, anyhow};
use crust_image::ids::FileId;
use crust_process::descriptor;
use crust_process::pid::HostPid;
use crust_process::proc::fdinfo::{Handle, InotifyWatch};
use crust_proto::criu::{FdTypes, FhEntry, FileEntry, InotifyFileEntry, InotifyWdEntry};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Bits of a minor number in the kernel's dev_t, as fdinfo shows it.
pub const MINOR_BITS: u32 = 20;
/// Its bits.
pub const MINOR_MASK: u32 = (1 << MINOR_BITS) - 1;
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
    let mut wd = Vec::with_capacity(watches.len());
    for watch in &watches {
        let (entry, deleted) = encode_watch(ctx, table, file, watch)?;
        if let Some(inode) = deleted {
            let what = format!("watch {}", watch.wd);
            note_deleted(table, file, (id, wd.len()), inode, what);
        }
        wd.push(entry);
    }
    let entry = InotifyFileEntry {
        id: id.0,
        flags: file.flags,
        fown: file.fown(ctx)?,
        wd,
    };
    Ok(FileEntry {
        ify: Some(Box::new(entry)),
        ..file_entry(FdTypes::Inotify, id)
    })
}

fn encode_watch(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    watch: &InotifyWatch,
) -> RoomResult<(InotifyWdEntry, Option<Inode>)> {
    let inode = (watch.sdev, watch.ino);
    let found = find_watched(ctx, table, file, inode, watch.handle.as_ref())
        .map_err(|why| Problem::refused(format!("watch {}: {why}", watch.wd)))?;
    let entry = InotifyWdEntry {
        id: 0,
        i_ino: watch.ino,
        mask: watch.mask,
        ignored_mask: watch.ignored_mask,
        s_dev: watch.sdev,
        wd: watch.wd as u32,
        f_handle: encode_handle(watch.handle.as_ref(), found.path),
    };
    Ok((entry, found.deleted))
}

/// The handle of a watched inode, all zero if it has none, with its path.
pub fn encode_handle(handle: Option<&Handle>, path: Vec<u8>) -> FhEntry {
    FhEntry {
        bytes: handle.map_or(0, |handle| handle.bytes.len() as u32),
        r#type: handle.map_or(0, |handle| handle.handle_type),
        handle: words(handle.map_or(&[], |handle| &handle.bytes)),
        path: Some(path).filter(|path| !path.is_empty()),
        mnt_id: None,
        crust_ghost_id: None,
    }
}

/// What leads to a watched file besides its handle.
#[derive(Debug, Default)]
pub struct Found {
    /// A path; empty if no path leads there any more.
    pub path: Vec<u8>,
    /// It has no name left, and is nothing but this inode.
    pub deleted: Option<Inode>,
}

impl Found {
    fn by_path(path: Vec<u8>) -> Found {
        Found {
            path,
            deleted: None,
        }
    }
}

/// Finds a watched inode, given by its device in the kernel's form and its number: by its handle,
/// or by looking where the user says (`--irmap-scan-path`), which `--force-irmap` does first. Why
/// it cannot be found otherwise.
pub fn find_watched(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    (sdev, ino): (u32, u64),
    handle: Option<&Handle>,
) -> Result<Found, String> {
    let options = ctx.options;
    let wanted = (libc::makedev(sdev >> MINOR_BITS, sdev & MINOR_MASK), ino);
    let by_name = || {
        let path = irmap::find(&options.irmap_scan_paths, options.force_irmap, wanted);
        path.map(Found::by_path)
    };
    if options.force_irmap
        && let Some(found) = by_name()
    {
        return Ok(found);
    }
    let by_handle = match handle {
        Some(handle) => found_by_handle(table, file, sdev, handle)
            .map_err(|error| format!("its file cannot be found: {error:#}")),
        None => Err("its file system gives no file handles".to_owned()),
    };
    by_handle.or_else(|why| {
        by_name().ok_or_else(|| format!("{why}; --irmap-scan-path DIR looks for it by name"))
    })
}

/// The name behind a handle is one of those that the file has, or had. One that does not lead to
/// it is not stored: the handle alone serves a file with another name, or under another mount.
fn found_by_handle(
    table: &mut FileTable,
    file: &OpenFile,
    sdev: u32,
    handle: &Handle,
) -> anyhow::Result<Found> {
    let opened = open_handle(table, file, sdev, handle)?;
    let path = descriptor::bytes_of(descriptor::link_of(opened.as_fd()).context("readlink")?);
    let stat = descriptor::statx(opened.as_fd()).context("statx")?;
    let inode = (stat.dev, stat.ino);
    let namespace = table.mounts.of(file.task)?;
    if namespace.inode_at(&path)? == Some(inode) {
        return Ok(Found::by_path(path));
    }
    Ok(Found {
        path: Vec::new(),
        deleted: (stat.nlink == 0).then_some(inode),
    })
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

/// A watch or mark on a file without a name.
#[derive(Debug)]
pub struct OnDeleted {
    /// The description and the place in its list.
    of: (FileId, usize),
    inode: Inode,
    /// For a refusal.
    task: HostPid,
    name: String,
    what: String,
}

/// Remembers a watch until all ghosts are known.
pub fn note_deleted(
    table: &mut FileTable,
    file: &OpenFile,
    of: (FileId, usize),
    inode: Inode,
    what: String,
) {
    let (task, name) = (file.task.pid, file.name());
    table.watched.push(OnDeleted {
        of,
        inode,
        task,
        name,
        what,
    });
}

impl FileTable {
    /// Gives the watches on files without a name the numbers of their ghosts.
    pub(super) fn settle_watches(&mut self, ctx: &Context) {
        for watch in std::mem::take(&mut self.watched) {
            let Some(ghost) = self.ghosts.of_inode(watch.inode) else {
                let what = format!(
                    "{}: its file is deleted, and no task of the tree has it open",
                    watch.what
                );
                ctx.refuse(Refusal::new(watch.task, watch.name, what));
                continue;
            };
            let (id, at) = watch.of;
            let entry = self.entries.iter_mut().rfind(|entry| entry.id == id.0);
            if let Some(handle) = entry.and_then(|entry| handle_in(entry, at)) {
                handle.crust_ghost_id = Some(ghost);
            }
        }
    }
}

/// The file of a watch or mark of an entry.
fn handle_in(entry: &mut FileEntry, at: usize) -> Option<&mut FhEntry> {
    match (&mut entry.ify, &mut entry.ffy) {
        (Some(inotify), _) => Some(&mut inotify.wd.get_mut(at)?.f_handle),
        (None, Some(fanotify)) => Some(&mut fanotify.mark.get_mut(at)?.ie.as_mut()?.f_handle),
        (None, None) => None,
    }
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
