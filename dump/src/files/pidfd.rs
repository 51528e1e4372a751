//! pidfd_open(2): a handle of a process or of a thread (PIDFD_THREAD, Linux 6.9), which outlives it.
//!
//! Saved is the pid or tid, -1 when the process is dead and reaped, and the inode number, by which
//! handles of the same dead process know each other. A handle of a process outside the tree is
//! refused: the restored one could only be of whoever has that pid then.

use super::{OpenFile, Problem, RoomResult, file_entry};
use crate::context::{Context, Task};
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
    let nspid = match pid {
        // -1: dead and reaped. 0: alive in a pid namespace we cannot see.
        -1 => -1,
        tid if file.flags & PIDFD_THREAD != 0 => thread_of_tree(ctx, tid)?,
        pid => virt_pid(ctx, pid)?,
    };
    let entry = PidfdEntry {
        id: id.0,
        ino: file.stat()?.ino as u32,
        // What pidfd_open(2) takes; the access mode is no part of it.
        flags: file.flags & (libc::O_NONBLOCK as u32 | PIDFD_THREAD),
        nspid,
        fown: file.fown(ctx)?,
    };
    Ok(FileEntry {
        pidfd: Some(Box::new(entry)),
        ..file_entry(FdTypes::Pidfd, id)
    })
}

/// Tasks are in our own pid namespace, so a thread has the number that we see.
fn thread_of_tree(ctx: &Context, tid: i32) -> RoomResult<i32> {
    let mut threads = ctx.tasks.iter().flat_map(|task| &task.tids);
    if threads.any(|thread| thread.get() == tid) {
        return Ok(tid);
    }
    Err(Problem::refused(format!(
        "is a handle of thread {tid}, which is not in the tree"
    )))
}

fn virt_pid(ctx: &Context, pid: i32) -> RoomResult<i32> {
    let is_it = |task: &&Task| task.pid.get() == pid || task.virt as i32 == pid;
    if let Some(task) = ctx.tasks.iter().find(is_it) {
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
