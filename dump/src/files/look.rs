//! The first look at a descriptor: what every room needs to know of the description, in as few
//! system calls as possible, because there may be a hundred thousand.
//!
//! Looks do not depend on each other, so a large table is looked at on all cores, in batches: our
//! copies count against our own RLIMIT_NOFILE. Giving out ids stays in the order of the numbers.

use super::kind::InternalDevices;
use super::mounts::{Inode, Namespace};
use crate::context::Task;
use anyhow::{Context as _, Result};
use crust_process::descriptor::{self, Statx};
use crust_process::fds;
use nix::errno::Errno;
use rayon::prelude::*;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Descriptors held at once.
const BATCH: usize = 256;
/// Below this a second thread costs more than it saves.
const WORTH_THREADS: usize = 128;

/// What a look tells.
#[derive(Debug)]
pub struct Facts {
    /// Attributes; missing only for the `fd` directory of a dead process.
    pub stat: Option<Statx>,
    /// F_GETFL.
    pub flags: u32,
    /// Position, 0 for what has none.
    pub pos: u64,
    /// The text of the /proc link.
    pub link: Vec<u8>,
    /// The inode that the link's text leads to, if it is a path.
    pub leads_to: Option<Inode>,
}

/// A copy of a descriptor, and what a look at it told.
pub type Looked = (OwnedFd, Facts);

/// Takes and looks at descriptors of a task, and gives them to `visit` in their order. One that
/// cannot be looked at (a path too long for readlink(2), a file system that denies even root) is
/// given as its error: it is no reason not to hear of the others.
pub fn look_at_all(
    task: &Task,
    numbers: &[i32],
    devices: &InternalDevices,
    namespace: &Namespace,
    mut visit: impl FnMut(i32, Result<Looked>) -> Result<()>,
) -> Result<()> {
    let look = |number: &i32| -> Result<Looked> {
        let fd = fds::take(task.pidfd.as_fd(), task.pid, *number)?;
        let facts = look_at(fd.as_fd(), devices, namespace)?;
        Ok((fd, facts))
    };
    for batch in numbers.chunks(BATCH) {
        let looked: Vec<Result<Looked>> = if batch.len() < WORTH_THREADS {
            batch.iter().map(look).collect()
        } else {
            let batch = batch.par_iter().with_min_len(WORTH_THREADS / 4);
            batch.map(look).collect()
        };
        for (number, looked) in batch.iter().zip(looked) {
            visit(*number, looked)?;
        }
    }
    Ok(())
}

/// Looks at one description.
pub fn look_at(fd: BorrowedFd, devices: &InternalDevices, namespace: &Namespace) -> Result<Facts> {
    let flags = descriptor::status_flags(fd).context("F_GETFL")?;
    let stat = match descriptor::statx(fd) {
        Ok(stat) => Some(stat),
        // The `fd` and `fdinfo` directories of a dead process; what else has no inode any more
        // fails in its room.
        Err(Errno::ENOENT) => None,
        Err(errno) => return Err(errno).context("statx"),
    };
    let link = link_of(fd, stat.as_ref(), devices).context("readlink of the descriptor")?;
    let is_path = link.starts_with(b"/") && stat.is_none_or(|stat| stat.dev != devices.shmem);
    Ok(Facts {
        stat,
        flags: flags as u32,
        pos: descriptor::position(fd).context("reading the position")?,
        leads_to: if is_path {
            namespace.inode_at(&link)?
        } else {
            None
        },
        link,
    })
}

/// The text of the link. For pipes and sockets, of which there may be thousands, it is known
/// without asking.
fn link_of(
    fd: BorrowedFd,
    stat: Option<&Statx>,
    devices: &InternalDevices,
) -> nix::Result<Vec<u8>> {
    match stat {
        Some(stat) if stat.dev == devices.pipe => Ok(format!("pipe:[{}]", stat.ino).into_bytes()),
        Some(stat) if stat.dev == devices.socket => {
            Ok(format!("socket:[{}]", stat.ino).into_bytes())
        }
        _ => descriptor::link_of(fd).map(descriptor::bytes_of),
    }
}
