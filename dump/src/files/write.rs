//! From the table into images, when no refusal stands: files, remaps, ghosts, memfd inodes, the
//! data of pipes and sockets, TCP connections, locks. Content is fetched only now, one object at a time, through
//! where it was found, so memory stays small however many pipes and deleted files there are.

use super::{
    FileTable, Holder, OpenFile, bpfmap, epoll, file_lock, ghost, link_remap, memfd, pipe, tcp,
    tty, tty_queue, unix_queue,
};
use crate::context::Context;
use anyhow::{Context as _, Result, anyhow};
use crust_image::kind::Kind;
use crust_image::sink::{ImageSink, write_entries};
use crust_process::fds;
use crust_process::pid::HostPid;
use crust_process::survivor::Survivor;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// Where a description can be taken again.
#[derive(Clone, Debug)]
pub struct Source(Place);

#[derive(Clone, Debug)]
enum Place {
    /// A number in a task's table.
    Descriptor(HostPid, i32),
    /// A magic link of /proc.
    Link(String),
    /// A copy that the table keeps.
    InFlight(RawFd),
}

impl Source {
    /// Where this one was found.
    pub fn of(file: &OpenFile) -> Source {
        Source(match &file.holder {
            Holder::Number(fd) => Place::Descriptor(file.task.pid, *fd),
            Holder::Link(path) => Place::Link(path.clone()),
            Holder::InFlight => Place::InFlight(file.fd.as_raw_fd()),
        })
    }

    /// Takes it: the task's own description, or an O_PATH one of the same file.
    pub fn open(&self, ctx: &Context, table: &FileTable) -> Result<OwnedFd> {
        match &self.0 {
            Place::Descriptor(pid, fd) => {
                let task = ctx
                    .task(pid.get())
                    .ok_or_else(|| anyhow!("task {pid} is gone"))?;
                Ok(fds::take(task.pidfd.as_fd(), *pid, *fd)?)
            }
            Place::Link(path) => {
                let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
                open(path.as_str(), flags, Mode::empty()).with_context(|| format!("open {path}"))
            }
            Place::InFlight(raw) => {
                let kept = table.in_flight.iter().find(|kept| kept.as_raw_fd() == *raw);
                let kept = kept.ok_or_else(|| anyhow!("a descriptor in flight is lost"))?;
                kept.try_clone().context("dup")
            }
        }
    }
}

impl FileTable {
    /// Looks at what can only be judged when every table and path is known. Call it before the
    /// refusals are told.
    pub fn settle(&mut self, ctx: &Context) -> Result<()> {
        self.settle_watches(ctx);
        epoll::settle_lost(ctx, self)?;
        pipe::settle(ctx, self);
        self.settle_unix(ctx);
        tty::settle(ctx, self)
    }

    /// Writes every image of the files, but for the contents of [`FileTable::shmem`].
    ///
    /// Link remaps are made here, on the user's disk: they are removed when the table is dropped,
    /// unless [`FileTable::keep_links`] says that the dump is complete and the tasks will end.
    pub fn write(&mut self, ctx: &Context, sink: &dyn ImageSink) -> Result<()> {
        link_remap::make(ctx, self)?;
        ghost::write(ctx, self, sink)?;
        pipe::write(ctx, self, sink)?;
        unix_queue::write(self, sink)?;
        tcp::write(ctx, self, sink)?;
        memfd::write(self, sink)?;
        bpfmap::write(ctx, self, sink)?;
        tty::write(self, sink)?;
        tty_queue::write(ctx, self, sink)?;
        file_lock::write(self, sink)?;
        write_entries(sink, Kind::RemapFpath, None, self.remaps.entries())?;
        write_entries(sink, Kind::Files, None, &self.entries)?;
        Ok(())
    }

    /// The images name the link remaps: they stay on disk for the restorer.
    /// Gives the directories by which [`FileTable::tell_of_links`] has told of them.
    pub fn keep_links(&mut self) -> Vec<OwnedFd> {
        self.links.keep()
    }

    /// Until it settles, this one too would remove the link remaps.
    pub fn tell_of_links(&self, survivor: &Survivor) -> Result<()> {
        self.links.tell(survivor)
    }

    /// Removes the link remaps: the dump failed, or the tasks live on.
    pub fn remove_links(&mut self) -> Result<()> {
        self.links.undo()
    }
}
