//! Where names lead: the mounts of a task and the inode behind a path in its mount namespace.
//!
//! A /proc link shows a path from our own root, or from the root of the mount namespace when that
//! is another than ours; so names are looked up from our root in the first case and through
//! /proc/PID/root in the second. Nothing is opened: a name may lead to a fifo, a device or an
//! automount, and a look must neither block nor wake anything.

use crate::context::Task;
use anyhow::{Context as _, Result, anyhow};
use crust_process::descriptor;
use crust_process::pid::HostPid;
use crust_process::proc::mountinfo::{MountInfo, parse_mountinfo};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fstatat, stat};
use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, fstatfs};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// Device and inode number of a name or a description.
pub type Inode = (u64, u64);

/// The mount namespaces of the tasks, each read once.
#[derive(Debug, Default)]
pub struct Mounts {
    namespaces: HashMap<u64, Arc<Namespace>>,
    /// That of each task: asking again costs more than everything else about a file.
    of_task: HashMap<HostPid, Arc<Namespace>>,
    /// The file system kind of each device met.
    kinds: HashMap<u64, FsType>,
}

/// One mount namespace.
#[derive(Debug)]
pub struct Namespace {
    mounts: Vec<MountInfo>,
    root: Root,
}

#[derive(Debug)]
enum Root {
    /// Ours: absolute paths mean there what they mean here.
    Ours,
    /// Another: the root directory of one of its tasks, and the path of that as links show it.
    Through { root: OwnedFd, path: Vec<u8> },
}

impl Mounts {
    /// The mount namespace of a task.
    pub fn of(&mut self, task: &Task) -> Result<Arc<Namespace>> {
        if let Some(known) = self.of_task.get(&task.pid) {
            return Ok(known.clone());
        }
        let id = namespace_id(task.pid)?;
        let namespace = match self.namespaces.get(&id) {
            Some(known) => known.clone(),
            None => {
                let ours = namespace_id(HostPid::current())? == id;
                let read = Arc::new(Namespace::read(task.pid, ours)?);
                self.namespaces.insert(id, read.clone());
                read
            }
        };
        self.of_task.insert(task.pid, namespace.clone());
        Ok(namespace)
    }

    /// Whether a description is on procfs. `dev` is its device, when known.
    pub fn is_procfs(&mut self, fd: BorrowedFd, dev: Option<u64>) -> Result<bool> {
        if let Some(kind) = dev.and_then(|dev| self.kinds.get(&dev)) {
            return Ok(*kind == PROC_SUPER_MAGIC);
        }
        let kind = fstatfs(fd).context("fstatfs")?.filesystem_type();
        if let Some(dev) = dev {
            self.kinds.insert(dev, kind);
        }
        Ok(kind == PROC_SUPER_MAGIC)
    }
}

fn namespace_id(pid: HostPid) -> Result<u64> {
    let path = format!("/proc/{pid}/ns/mnt");
    let found = stat(path.as_str()).with_context(|| format!("task {pid}: stat {path}"))?;
    Ok(found.st_ino)
}

impl Namespace {
    fn read(pid: HostPid, ours: bool) -> Result<Namespace> {
        let path = format!("/proc/{pid}/mountinfo");
        let text = std::fs::read(&path).with_context(|| format!("task {pid}: read {path}"))?;
        let mounts = parse_mountinfo(&text).with_context(|| format!("task {pid}: {path}"))?;
        let root = if ours { Root::Ours } else { root_through(pid)? };
        Ok(Namespace { mounts, root })
    }

    /// The mount with this id.
    pub fn mount(&self, mnt_id: u64) -> Option<&MountInfo> {
        self.mounts
            .iter()
            .find(|mount| u64::from(mount.mnt_id) == mnt_id)
    }

    /// The mounts of a file system.
    pub fn of_device(&self, major: u32, minor: u32) -> impl Iterator<Item = &MountInfo> {
        self.mounts
            .iter()
            .filter(move |mount| (mount.dev_major, mount.dev_minor) == (major, minor))
    }

    /// A mount of the same file system that shows all of it.
    pub fn whole(&self, part: &MountInfo) -> Option<&MountInfo> {
        let dev = |mount: &MountInfo| (mount.dev_major, mount.dev_minor);
        self.mounts
            .iter()
            .find(|mount| dev(mount) == dev(part) && mount.root == b"/")
    }

    /// The inode an absolute path leads to, without following a link at its end; `None` when it
    /// leads nowhere.
    pub fn inode_at(&self, path: &[u8]) -> Result<Option<Inode>> {
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT;
        let found = match &self.root {
            Root::Ours => fstatat(AT_FDCWD, OsStr::from_bytes(path), flags),
            Root::Through { root, path: prefix } => match below(path, prefix) {
                Some(b"") => fstatat(root, ".", flags),
                Some(rest) => fstatat(root, OsStr::from_bytes(rest), flags),
                None => return Ok(None),
            },
        };
        match found {
            Ok(found) => Ok(Some((found.st_dev, found.st_ino))),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE | Errno::ESRCH) => Ok(None),
            Err(errno) => Err(anyhow!(errno))
                .with_context(|| format!("stat {}", String::from_utf8_lossy(path))),
        }
    }

    /// The mount in which an absolute path lies, or would lie if what is missing of it were made:
    /// that of the deepest directory above it that is there.
    pub fn mount_above(&self, path: &[u8]) -> Result<Option<u64>> {
        let root = self.root()?;
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let mut rest = self.relative(path).unwrap_or_default();
        while let Some(slash) = rest.iter().rposition(|byte| *byte == b'/') {
            rest = rest.get(..slash).unwrap_or_default();
            match openat(&root, OsStr::from_bytes(rest), flags, Mode::empty()) {
                Ok(directory) => return Ok(descriptor::statx(directory.as_fd())?.mnt_id),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE) => {}
                Err(errno) => {
                    let directory = String::from_utf8_lossy(rest);
                    return Err(errno).with_context(|| format!("open /{directory}"));
                }
            }
        }
        Ok(descriptor::statx(root.as_fd())?.mnt_id)
    }

    /// The directory from which [`Namespace::relative`] paths are meant.
    pub fn root(&self) -> Result<OwnedFd> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
        match &self.root {
            Root::Ours => open("/", flags, Mode::empty()).context("open /"),
            Root::Through { root, .. } => root
                .try_clone()
                .context("duplicate the root of the namespace"),
        }
    }

    /// An absolute path as one relative to [`Namespace::root`]; `None` outside of it.
    pub fn relative<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        match &self.root {
            Root::Ours => below(path, b"/"),
            Root::Through { path: prefix, .. } => below(path, prefix),
        }
    }
}

fn root_through(pid: HostPid) -> Result<Root> {
    let link = format!("/proc/{pid}/root");
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY;
    let root = open(link.as_str(), flags, Mode::empty())
        .with_context(|| format!("task {pid}: open {link}"))?;
    let path = descriptor::link_of(root.as_fd()).with_context(|| format!("readlink {link}"))?;
    Ok(Root::Through {
        root,
        path: descriptor::bytes_of(path),
    })
}

/// What follows a directory in a path, without the slash between; `None` if it is not below.
pub fn below<'p>(path: &'p [u8], directory: &[u8]) -> Option<&'p [u8]> {
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    match path.strip_prefix(directory)? {
        b"" => Some(b""),
        rest => rest.strip_prefix(b"/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn below_keeps_to_whole_components() {
        assert_eq!(below(b"/proc/12/stat", b"/proc"), Some(&b"12/stat"[..]));
        assert_eq!(below(b"/proc/12", b"/"), Some(&b"proc/12"[..]));
        assert_eq!(below(b"/proc", b"/proc"), Some(&b""[..]));
        assert_eq!(below(b"/process", b"/proc"), None);
    }
}
