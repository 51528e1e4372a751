//! Files that a task holds by other means than a descriptor: its executable, its mapped files, its
//! working directory and its root.
//!
//! All are magic links in /proc/PID, opened with O_PATH: nothing blocks and no permission is
//! asked. Executables and mapped files are one entry for each inode and name, as the peer has
//! them; directories are one for each task. Shared anonymous memory and memfds, seen through a
//! mapping, are MEMFD entries.

use super::kind::Kind;
use super::look::look_at;
use super::{FileTable, Holder, OpenFile, Problem, RoomResult, by_name, kind, memfd, regfile};
use crate::context::{Context, Task};
use crate::refusal::Refusal;
use anyhow::{Context as _, Result};
use crust_image::ids::FileId;
use crust_process::proc::maps::MapsVma;
use crust_proto::criu::{FdTypes, FileEntry};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

/// Which file of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathOf {
    /// What execve(2) was given.
    Exe,
    /// The working directory.
    Cwd,
    /// The root directory.
    Root,
    /// The file mapped at these addresses, which must be those of one vma.
    Mapping {
        /// First address.
        start: u64,
        /// Address behind the last.
        end: u64,
    },
}

impl PathOf {
    /// The magic link, below /proc/PID.
    fn link(self) -> String {
        match self {
            PathOf::Exe => "exe".into(),
            PathOf::Cwd => "cwd".into(),
            PathOf::Root => "root".into(),
            PathOf::Mapping { start, end } => format!("map_files/{start:x}-{end:x}"),
        }
    }

    /// Whether several users share one entry.
    fn is_shared(self) -> bool {
        matches!(self, PathOf::Exe | PathOf::Mapping { .. })
    }
}

impl fmt::Display for PathOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathOf::Exe => f.write_str("the executable"),
            PathOf::Cwd => f.write_str("the working directory"),
            PathOf::Root => f.write_str("the root directory"),
            PathOf::Mapping { start, end } => write!(f, "the file mapped at {start:x}-{end:x}"),
        }
    }
}

/// An entry of files.img that a path has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathFile {
    /// Its id.
    pub id: FileId,
    /// REG, or MEMFD for a mapping of a memfd or of shared anonymous memory.
    pub kind: FdTypes,
}

/// Entries that are shared, by device, inode and name.
#[derive(Debug, Default)]
pub struct Paths {
    shared: HashMap<(u64, u64, Vec<u8>), PathFile>,
}

fn follow(link: &str) -> nix::Result<OwnedFd> {
    open(link, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
}

impl FileTable {
    /// The entry of a file that a task holds by a path; `None` when it was refused.
    pub fn add_path(
        &mut self,
        ctx: &Context,
        task: &Task,
        which: PathOf,
    ) -> Result<Option<PathFile>> {
        let path = format!("/proc/{}/{}", task.pid, which.link());
        let fd = follow(&path).with_context(|| format!("task {}: {which}: {path}", task.pid))?;
        self.add_opened(ctx, task, which, (path, fd))
    }

    /// The entry of the file of a mapping; `None` when it was refused. Without the capability to
    /// follow the link, the file is looked for by its name.
    ///
    /// This opens and looks, some ten microseconds each: a caller with thousands of mappings of
    /// one file should remember the answer by the device and inode that maps tells.
    pub fn add_mapped(
        &mut self,
        ctx: &Context,
        task: &Task,
        area: &MapsVma,
    ) -> Result<Option<PathFile>> {
        let (start, end) = (area.start, area.end);
        let which = PathOf::Mapping { start, end };
        let path = format!("/proc/{}/{}", task.pid, which.link());
        let doing = || format!("task {}: {which}: {path}", task.pid);
        let fd = match follow(&path) {
            Err(Errno::EPERM) => by_name::open_mapped(area).with_context(doing)?,
            fd => Some(fd.with_context(doing)?),
        };
        let Some(fd) = fd else {
            let what = "cannot be opened without CAP_CHECKPOINT_RESTORE: no name leads to it";
            let what = format!("{:?} {what}", area.name);
            ctx.refuse(Refusal::new(task.pid, which.to_string(), what));
            return Ok(None);
        };
        self.add_opened(ctx, task, which, (path, fd))
    }

    fn add_opened(
        &mut self,
        ctx: &Context,
        task: &Task,
        which: PathOf,
        (path, fd): (String, OwnedFd),
    ) -> Result<Option<PathFile>> {
        let doing = || format!("task {}: {which}: {path}", task.pid);
        let holder = Holder::Link(path.clone());
        let namespace = self.mounts.of(task)?;
        let facts = match look_at(fd.as_fd(), (&self.devices, &self.own), &namespace) {
            Ok(facts) => facts,
            Err(error) => {
                let what = format!("cannot be looked at: {error:#}");
                ctx.refuse(Refusal::new(task.pid, which.to_string(), what));
                return Ok(None);
            }
        };
        let file = OpenFile::new(task, holder, fd.as_fd(), facts);
        let key = file
            .stat
            .map(|stat| (stat.dev, stat.ino, file.link.clone()));
        let key = key.filter(|_| which.is_shared());
        if let Some(known) = key.as_ref().and_then(|key| self.paths.shared.get(key)) {
            return Ok(Some(*known));
        }
        let id = self.give_id();
        match self.path_entry(ctx, &file, id) {
            Ok((entry, kind)) => {
                self.entries.push(entry);
                let known = PathFile { id, kind };
                if let Some(key) = key {
                    self.paths.shared.insert(key, known);
                }
                Ok(Some(known))
            }
            Err(Problem::Refused { what, hint }) => {
                let object = format!("{which} ({})", String::from_utf8_lossy(&file.link));
                ctx.refuse(Refusal::new(task.pid, object, what).hint(hint));
                Ok(None)
            }
            Err(Problem::Failed(error)) => Err(error).with_context(doing),
        }
    }

    fn path_entry(
        &mut self,
        ctx: &Context,
        file: &OpenFile,
        id: FileId,
    ) -> RoomResult<(FileEntry, FdTypes)> {
        // O_PATH itself must not count: a memfd is one however it was opened.
        match kind::classify(file.stat.as_ref(), 0, &file.link, &self.devices) {
            Kind::Memfd => Ok((memfd::dump_mapping(self, file, id)?, FdTypes::Memfd)),
            Kind::Unsupported(name) if !file.link.starts_with(b"/") => {
                Err(Problem::refused(format!("is {name}")))
            }
            _ => Ok((regfile::dump_path(ctx, self, file, id)?, FdTypes::Reg)),
        }
    }
}
