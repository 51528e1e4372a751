//! Freezing all tasks of a cgroup at once, by the freezer of v1 or by cgroup.freeze of v2.
//!
//! A frozen task cannot fork, so a tree that does so all the time can be seized in one pass. Asked
//! to stop while it is frozen, a task stops when the cgroup is thawed, before it runs any code of
//! its own (kernel/signal.c: get_signal, where both freezers hold it). So the cgroup is frozen only
//! while all threads are asked. If we die in between, the survivor thaws it.

use crate::error::{Error, Result};
use crate::pid::HostPid;
use crate::proc::cgroup::parse_cgroup;
use crate::proc::mountinfo::{MountInfo, parse_mountinfo};
use crate::steps::step;
use crate::survivor::Survivor;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Which freezer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// freezer.state says THAWED, FREEZING or FROZEN; only a read brings it up to date.
    V1,
    /// cgroup.freeze takes 1 and 0, cgroup.events tells when all are frozen and wakes who polls.
    V2,
}

/// A cgroup with a freezer, by its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freezer {
    dir: PathBuf,
    version: Version,
    /// Its path as /proc/PID/cgroup has it.
    path: Vec<u8>,
}

/// A cgroup that we have frozen. Dropping it thaws.
#[derive(Debug)]
pub struct FrozenCgroup {
    freezer: Freezer,
    /// It thaws if we die.
    _survivor: Survivor,
}

impl Freezer {
    /// That of a directory as a user names it. ENOTDIR or EINVAL if it is none.
    pub fn open(dir: &Path) -> Result<Freezer> {
        let failed =
            |errno| Error::new(HostPid::current(), doing("find the freezer of", dir), errno);
        let errno = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        let dir = dir.canonicalize().map_err(|error| failed(errno(error)))?;
        let mounts = fs::read("/proc/self/mountinfo").map_err(|error| failed(errno(error)))?;
        let mounts = parse_mountinfo(&mounts).map_err(|_| failed(Errno::EPROTO))?;
        let found = mounts.iter().find_map(|mount| below(mount, &dir));
        let (version, path) = found.ok_or_else(|| failed(Errno::EINVAL))?;
        let freezer = Freezer { dir, version, path };
        match freezer.file().exists() {
            true => Ok(freezer),
            // The topmost cgroup has none.
            false => Err(failed(Errno::EINVAL)),
        }
    }

    /// That of the cgroup a task is in, in the v1 hierarchy or in v2; none where nothing can be
    /// frozen.
    pub fn of_task(pid: HostPid, version: Version) -> Option<Freezer> {
        let path = membership(pid, version)?;
        let mounts = parse_mountinfo(&fs::read("/proc/self/mountinfo").ok()?).ok()?;
        let mount = mounts
            .iter()
            .find(|mount| version_of(mount) == Some(version))?;
        let root = mount.root.strip_suffix(b"/").unwrap_or(&mount.root);
        let below = path.strip_prefix(root)?;
        let below = below.strip_prefix(b"/").unwrap_or(below);
        let dir = Path::new(OsStr::from_bytes(&mount.mountpoint)).join(OsStr::from_bytes(below));
        Some(Freezer { dir, version, path })
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether a task is in it, or below it.
    pub fn holds(&self, pid: HostPid) -> bool {
        membership(pid, self.version).is_some_and(|path| {
            let below = path.strip_prefix(self.path.as_slice());
            self.path == b"/" || below.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        })
    }

    /// Whether somebody has frozen it, or one above it.
    pub fn is_frozen(&self) -> bool {
        match self.version {
            Version::V1 => {
                let state = fs::read_to_string(self.dir.join("freezer.state"));
                state.is_ok_and(|state| state.trim() != "THAWED")
            }
            Version::V2 => {
                let wanted = fs::read_to_string(self.dir.join("cgroup.freeze"));
                self.all_are_frozen() || wanted.is_ok_and(|wanted| wanted.trim() == "1")
            }
        }
    }

    /// Freezes it, and waits until every task in it is frozen.
    pub fn freeze(self, deadline: Instant) -> Result<FrozenCgroup> {
        let survivor = Survivor::start(&|_| false)?;
        survivor.thaw(self.file().as_os_str().as_bytes(), self.thawed())?;
        let word = match self.version {
            Version::V1 => "FROZEN",
            Version::V2 => "1",
        };
        let frozen = FrozenCgroup {
            freezer: self,
            _survivor: survivor,
        };
        frozen.freezer.write(word)?;
        frozen.freezer.wait_until_frozen(deadline)?;
        Ok(frozen)
    }

    fn wait_until_frozen(&self, deadline: Instant) -> Result<()> {
        let late = || {
            Error::new(
                HostPid::current(),
                doing("freeze", &self.dir),
                Errno::ETIMEDOUT,
            )
        };
        let events = match self.version {
            Version::V1 => None,
            Version::V2 => File::open(self.dir.join("cgroup.events")).ok(),
        };
        while !self.all_are_frozen() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(late());
            }
            match &events {
                // The v1 freezer looks at its tasks only when it is asked.
                None => std::thread::yield_now(),
                Some(events) => {
                    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
                    let _ = poll(
                        &mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)],
                        timeout,
                    );
                }
            }
        }
        Ok(())
    }

    fn all_are_frozen(&self) -> bool {
        let (file, line) = match self.version {
            Version::V1 => ("freezer.state", "FROZEN"),
            Version::V2 => ("cgroup.events", "frozen 1"),
        };
        let text = fs::read_to_string(self.dir.join(file));
        text.is_ok_and(|text| text.lines().any(|found| found == line))
    }

    fn file(&self) -> PathBuf {
        self.dir.join(match self.version {
            Version::V1 => "freezer.state",
            Version::V2 => "cgroup.freeze",
        })
    }

    fn thawed(&self) -> &'static str {
        match self.version {
            Version::V1 => "THAWED",
            Version::V2 => "0",
        }
    }

    fn write(&self, word: &str) -> Result<()> {
        let file = self.file();
        step();
        fs::write(&file, word).map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
            Error::new(
                HostPid::current(),
                format!("write {word} to {}", file.display()),
                errno,
            )
        })
    }
}

impl FrozenCgroup {
    /// Lets its tasks go on.
    pub fn thaw(self) -> Result<()> {
        self.freezer.write(self.freezer.thawed())
    }
}

impl Drop for FrozenCgroup {
    /// The safety net: thawing what is thawed does nothing.
    fn drop(&mut self) {
        let _ = self.freezer.write(self.freezer.thawed());
    }
}

fn doing(what: &str, dir: &Path) -> String {
    format!("{what} the cgroup {}", dir.display())
}

fn version_of(mount: &MountInfo) -> Option<Version> {
    let mut options = mount.super_options.split(|byte| *byte == b',');
    match mount.fstype.as_slice() {
        b"cgroup2" => Some(Version::V2),
        b"cgroup" if options.any(|option| option == b"freezer") => Some(Version::V1),
        _ => None,
    }
}

/// The path of a directory in the hierarchy that is mounted there.
fn below(mount: &MountInfo, dir: &Path) -> Option<(Version, Vec<u8>)> {
    let version = version_of(mount)?;
    let mountpoint = Path::new(OsStr::from_bytes(&mount.mountpoint));
    let below = dir.strip_prefix(mountpoint).ok()?;
    let mut path = mount.root.clone();
    if !below.as_os_str().is_empty() {
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(below.as_os_str().as_bytes());
    }
    Some((version, path))
}

/// Where a task is.
fn membership(pid: HostPid, version: Version) -> Option<Vec<u8>> {
    let text = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    let members = parse_cgroup(&text).ok()?.into_iter();
    let mut members = members.filter(|member| match version {
        Version::V1 => member.controllers.iter().any(|name| name == b"freezer"),
        Version::V2 => member.hierarchy == 0,
    });
    members.next().map(|member| member.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_a_path_in_its_hierarchy() {
        let text = b"33 32 0:29 / /cg/freezer rw - cgroup cgroup rw,freezer\n\
                     34 32 0:30 /ours /cg/all rw - cgroup2 cgroup2 rw\n\
                     35 32 0:31 / /cg/cpu rw - cgroup cgroup rw,cpu\n";
        let mounts = parse_mountinfo(text).expect("three mounts");
        let found = |dir: &str| mounts.iter().find_map(|mount| below(mount, Path::new(dir)));
        assert_eq!(
            found("/cg/freezer/a/b"),
            Some((Version::V1, b"/a/b".to_vec()))
        );
        assert_eq!(found("/cg/all"), Some((Version::V2, b"/ours".to_vec())));
        assert_eq!(found("/cg/all/x"), Some((Version::V2, b"/ours/x".to_vec())));
        assert_eq!(found("/cg/cpu/x"), None);
    }
}
