//! pidfd_open(2): a handle of a process, which outlives it.
//!
//! Saved is the pid, -1 when the process is dead and reaped, and the inode number, by which
//! handles of the same dead process know each other. A handle of a process outside the tree is
//! refused: the restored one could only be of whoever has that pid then.

use super::{OpenFile, Problem, RoomResult, file_entry};
use crate::context::Context;
use anyhow::Context as _;
use crust_image::ids::FileId;
use crust_process::proc::stat::parse_stat;
use crust_process::proc::status::TaskState;
use crust_proto::criu::{FdTypes, FileEntry, PidfdEntry};
use nix::libc;

/// PIDFD_THREAD of include/uapi/linux/pidfd.h.
const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// Dumps a descriptor.
pub fn dump(ctx: &Context, file: &OpenFile, id: FileId) -> RoomResult<FileEntry> {
    let pid = file.fdinfo()?.pidfd.context("fdinfo tells no Pid")?.pid;
    if file.flags & PIDFD_THREAD != 0 {
        return Err(Problem::refused(format!(
            "is a handle of thread {pid}, not of a process"
        )));
    }
    let nspid = match pid {
        // -1: dead and reaped. 0: alive in a pid namespace we cannot see.
        -1 => -1,
        pid => virt_pid(ctx, pid)?,
    };
    let entry = PidfdEntry {
        id: id.0,
        ino: file.stat()?.ino as u32,
        // What pidfd_open(2) takes; the access mode is no part of it.
        flags: file.flags & libc::O_NONBLOCK as u32,
        nspid,
        fown: file.fown(ctx)?,
    };
    Ok(FileEntry {
        pidfd: Some(Box::new(entry)),
        ..file_entry(FdTypes::Pidfd, id)
    })
}

fn virt_pid(ctx: &Context, pid: i32) -> RoomResult<i32> {
    if let Some(task) = ctx.task(pid) {
        return Ok(task.virt as i32);
    }
    if is_zombie_of_tree(ctx, pid) {
        return Ok(pid);
    }
    Err(Problem::refused(format!(
        "is a handle of process {pid}, which is not in the tree"
    )))
}

/// A zombie has no namespaces any more to number it otherwise than its parent's.
fn is_zombie_of_tree(ctx: &Context, pid: i32) -> bool {
    let Ok(text) = std::fs::read(format!("/proc/{pid}/stat")) else {
        return false;
    };
    parse_stat(&text)
        .is_ok_and(|stat| stat.state == TaskState::Zombie && ctx.task(stat.ppid).is_some())
}
