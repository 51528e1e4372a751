//! Files with a name: regular files, directories, symlinks and sockets under O_PATH, block devices
//! and the memory devices (/dev/null and friends).
//!
//! Saved are the name, the status flags, the position and the owner of signals; size, mode and
//! build id only let a restorer see that the file was replaced. The name is that of the /proc link,
//! which the kernel makes from the dentry: it is checked to lead to the very inode, because the
//! file may have been deleted (ghost.rs, link_remap.rs), belong to a dead process (remap.rs) or
//! lie under another mount or in one that was unmounted lazily (refused). Of one that `--external file[MNT_ID:INODE]` names only that
//! is stored, for the restorer to be given one (`--inherit-fd`). No size is stored for a file open for appending, as the
//! peer does: it may grow between dump and restore.

use super::{FileId, FileTable, Holder, OpenFile, Problem, RoomResult};
use super::{ghost, link_remap, remap};
use crate::context::Context;
use anyhow::Context as _;
use crust_process::build_id;
use crust_process::descriptor;
use crust_process::proc::text::split_deleted;
use crust_proto::criu::{FdTypes, FileEntry, FownEntry, RegFileEntry};
use nix::errno::Errno;
use nix::libc;
use std::fs::File;

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let mut entry = encode(ctx, table, file, id)?;
    entry.flags = file.flags;
    entry.pos = file.pos;
    entry.fown = file.fown(ctx)?;
    Ok(file_entry(entry))
}

/// Dumps what is known by a path only: an executable, a mapped file, a directory. It has neither
/// flags nor a position.
pub fn dump_path(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    Ok(file_entry(encode(ctx, table, file, id)?))
}

/// Wraps an entry for files.img.
pub fn file_entry(reg: RegFileEntry) -> FileEntry {
    let id = FileId(reg.id);
    FileEntry {
        reg: Some(Box::new(reg)),
        ..super::file_entry(FdTypes::Reg, id)
    }
}

fn encode(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<RegFileEntry> {
    let stat = file.stat.as_ref();
    if let Some(name) = external_name(ctx, file) {
        return Ok(RegFileEntry {
            id: id.0,
            fown: no_owner(),
            name,
            ext: Some(true),
            ..RegFileEntry::default()
        });
    }
    let name = settle_name(ctx, table, file, id)?;
    let is_regular = stat.is_some_and(|stat| stat.mode & libc::S_IFMT == libc::S_IFREG);
    let appends = file.flags & libc::O_APPEND as u32 != 0;
    Ok(RegFileEntry {
        id: id.0,
        flags: 0,
        pos: 0,
        fown: no_owner(),
        name,
        size: stat
            .filter(|_| is_regular && !appends)
            .map(|stat| stat.size),
        mode: stat.map(|stat| stat.mode),
        build_id: if is_regular && ctx.options.compare_build_ids {
            build_id_of(file)?
        } else {
            Vec::new()
        },
        ..RegFileEntry::default()
    })
}

/// The name of a file that the user says is outside of the dump.
fn external_name(ctx: &Context, file: &OpenFile) -> Option<Vec<u8>> {
    let stat = file.stat.as_ref()?;
    let name = format!("file[{:x}:{:x}]", stat.mnt_id?, stat.ino);
    ctx.options.external.has(&name).then(|| name.into_bytes())
}

/// Nobody is told of input and output.
pub fn no_owner() -> FownEntry {
    FownEntry {
        uid: 0,
        euid: 0,
        signum: 0,
        pid_type: 0,
        pid: 0,
    }
}

/// Only what may be executed is looked into: reading the start of ten thousand data files would
/// cost more than everything else about them, and their size is compared anyway. A taken
/// descriptor is not read, since that would move its position or need its permission.
fn build_id_of(file: &OpenFile) -> RoomResult<Vec<u32>> {
    let executable = file.stat.is_some_and(|stat| stat.mode & 0o111 != 0);
    if !executable && !matches!(file.holder, Holder::Link(_)) {
        return Ok(Vec::new());
    }
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOATIME;
    let own = match descriptor::reopen(file.fd, flags) {
        // Not ours to read, or not ours to read without a trace: its size is compared anyway.
        Err(Errno::EACCES | Errno::EPERM) => return Ok(Vec::new()),
        own => own.context("opening it for its build id")?,
    };
    Ok(build_id::read(&File::from(own)).context("reading the build id")?)
}

/// The name to store, with the remap it needs.
fn settle_name(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<Vec<u8>> {
    if !file.link.starts_with(b"/") {
        return Err(Problem::refused(
            "its path cannot be reached from the root of the task",
        ));
    }
    if table
        .mounts
        .is_procfs(file.fd, file.stat.map(|stat| stat.dev))?
    {
        return remap::settle(ctx, table, file, id);
    }
    let stat = file.stat()?;
    let inode = (stat.dev, stat.ino);
    let namespace = table.mounts.of(file.task)?;
    // The mark first: most names have none, and a file may really be called "x (deleted)".
    let found = file.leads_to;
    if found == Some(inode) {
        return Ok(file.link.clone());
    }
    let (stripped, marked) = split_deleted(&file.link);
    if !marked {
        return Err(unreachable(found.is_some()));
    }
    // Deleted and linked again under the same name: the name is good.
    if namespace.inode_at(stripped)? == Some(inode) {
        return Ok(stripped.to_vec());
    }
    // Whatever is made under this name for the restore must be where the file is.
    let above = namespace.mount_above(stripped)?;
    if stat.mnt_id.is_some() && above != stat.mnt_id {
        return Err(Problem::refused(
            "it is deleted, and the directory it was in is covered by a mount, or its mount is gone",
        ));
    }
    let is_directory = stat.mode & libc::S_IFMT == libc::S_IFDIR;
    if stat.nlink == 0 || is_directory {
        ghost::settle(ctx, table, file, id)?;
    } else {
        link_remap::settle(ctx, table, file, id, stripped)?;
    }
    Ok(stripped.to_vec())
}

fn unreachable(another: bool) -> Problem {
    if another {
        Problem::refused(
            "its path leads to another file: it is covered by a mount, or was replaced from outside",
        )
    } else {
        Problem::refused(
            "its path leads nowhere: it is on a mount that is gone, or was removed from outside",
        )
    }
}
