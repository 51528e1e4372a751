//! The first look at a descriptor: what every room needs to know of the description, in as few
//! system calls as possible, because there may be a hundred thousand.
//!
//! Looks do not depend on each other, so a large table is looked at on all cores, in batches: our
//! copies count against our own RLIMIT_NOFILE. Giving out ids stays in the order of the numbers,
//! and is done while the next batch is looked at.

use super::kind::InternalDevices;
use super::mounts::{Inode, Namespace};
use super::sock_options;
use crate::context::Task;
use anyhow::{Context as _, Result};
use crust_process::descriptor::{self, OwnTable, Owner, Statx};
use crust_process::fds;
use crust_proto::criu::SkOptsEntry;
use nix::errno::Errno;
use rayon::prelude::*;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Descriptors looked at together; while they are given out, as many more are looked at.
const BATCH: usize = 512;
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
    /// Who is told of input and output; a room that needs it where it is missing asks for it again.
    pub owner: Option<Owner>,
    /// Of a socket, its options, in the same way.
    pub options: Option<SkOptsEntry>,
}

/// A copy of a descriptor, and what a look at it told.
pub type Looked = (OwnedFd, Facts);

/// Takes and looks at descriptors of a task, and gives them to `visit` in their order. One that
/// cannot be looked at (a path too long for readlink(2), a file system that denies even root) is
/// given as its error: it is no reason not to hear of the others.
pub fn look_at_all(
    task: &Task,
    numbers: &[i32],
    (devices, own): (&InternalDevices, &OwnTable),
    namespace: &Namespace,
    mut visit: impl FnMut(i32, Result<Looked>) -> Result<()>,
) -> Result<()> {
    let look = |number: &i32| -> Result<Looked> {
        let fd = fds::take(task.pidfd.as_fd(), task.pid, *number)?;
        let facts = look_at(fd.as_fd(), (devices, own), namespace)?;
        Ok((fd, facts))
    };
    let look_at_batch = |batch: &[i32]| -> Vec<Result<Looked>> {
        if batch.len() < WORTH_THREADS {
            return batch.iter().map(look).collect();
        }
        let batch = batch.par_iter().with_min_len(WORTH_THREADS / 4);
        batch.map(look).collect()
    };
    let mut batches = numbers.chunks(BATCH).peekable();
    let mut ahead: Option<Vec<Result<Looked>>> = None;
    while let Some(batch) = batches.next() {
        let looked = ahead.take().unwrap_or_else(|| look_at_batch(batch));
        let give = || -> Result<()> {
            let looked = batch.iter().zip(looked);
            for (number, looked) in looked {
                visit(*number, looked)?;
            }
            Ok(())
        };
        match batches.peek() {
            None => give()?,
            Some(next) => rayon::in_place_scope(|scope| {
                scope.spawn(|_| ahead = Some(look_at_batch(next)));
                give()
            })?,
        }
    }
    Ok(())
}

/// Looks at one description.
pub fn look_at(
    fd: BorrowedFd,
    (devices, own): (&InternalDevices, &OwnTable),
    namespace: &Namespace,
) -> Result<Facts> {
    let flags = descriptor::status_flags(fd).context("F_GETFL")?;
    let stat = match descriptor::statx(fd) {
        Ok(stat) => Some(stat),
        // The `fd` and `fdinfo` directories of a dead process; what else has no inode any more
        // fails in its room.
        Err(Errno::ENOENT) => None,
        Err(errno) => return Err(errno).context("statx"),
    };
    let link = link_of(fd, stat.as_ref(), (devices, own)).context("readlink of the descriptor")?;
    let is_path = link.starts_with(b"/") && stat.is_none_or(|stat| stat.dev != devices.shmem);
    let is_socket = stat.is_some_and(|stat| stat.dev == devices.socket);
    Ok(Facts {
        stat,
        owner: descriptor::owner(fd).ok(),
        options: is_socket.then(|| sock_options::collect(fd).ok()).flatten(),
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
    (devices, own): (&InternalDevices, &OwnTable),
) -> nix::Result<Vec<u8>> {
    match stat {
        Some(stat) if stat.dev == devices.pipe => Ok(format!("pipe:[{}]", stat.ino).into_bytes()),
        Some(stat) if stat.dev == devices.socket => {
            Ok(format!("socket:[{}]", stat.ino).into_bytes())
        }
        _ => own.link_of(fd).map(descriptor::bytes_of),
    }
}
