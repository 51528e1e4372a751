//! Files for a dumper without the capability to ask the kernel for them: of a mapping, as
//! /proc/PID/map_files takes CAP_CHECKPOINT_RESTORE in the first user namespace
//! (proc_map_files_get_link of fs/proc/base.c), and of a bound unix socket, as SIOCUNIXFILE takes
//! CAP_NET_ADMIN.
//!
//! They are opened by the names that the kernel tells, and taken for the right ones only if they
//! have the device and inode that it tells too. What has no such name (deleted, replaced or covered
//! by a mount since, a memfd, shared anonymous memory) needs the capability.

use anyhow::Result;
use crust_process::descriptor::{Statx, statx};
use crust_process::pid::HostPid;
use crust_process::proc::maps::{MapsVma, VmaName};
use crust_process::sockdiag::UnixSocket;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, OwnedFd};

/// MINORBITS of the kernel's own encoding of devices.
const MINOR_BITS: u32 = 20;

/// The mapped file, opened with O_PATH; `None` if its name does not lead to it (any more).
pub fn open_mapped(area: &MapsVma) -> Result<Option<OwnedFd>, Errno> {
    let VmaName::Path {
        path,
        deleted: false,
    } = &area.name
    else {
        return Ok(None);
    };
    let dev = libc::makedev(area.dev_major, area.dev_minor);
    open_if(path, |found| (found.dev, found.ino) == (dev, area.inode))
}

/// The file that a unix socket of `task` is bound to; `None` if its name does not lead to it (any
/// more), from the root or from the working directory.
pub fn open_bound(task: HostPid, socket: &UnixSocket) -> Result<Option<OwnedFd>, Errno> {
    let (Some(name), Some(vfs)) = (&socket.name, socket.vfs) else {
        return Ok(None);
    };
    let path = match name.first() {
        Some(b'/') => name.clone(),
        _ => [format!("/proc/{task}/cwd/").as_bytes(), name].concat(),
    };
    let dev = libc::makedev(vfs.dev >> MINOR_BITS, vfs.dev & ((1 << MINOR_BITS) - 1));
    // The kernel tells the low half of the inode number.
    open_if(&path, |found| {
        (found.dev, found.ino as u32) == (dev, vfs.ino)
    })
}

fn open_if(path: &[u8], is_meant: impl Fn(&Statx) -> bool) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let fd = match open(path, flags, Mode::empty()) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::ELOOP) => return Ok(None),
        fd => fd?,
    };
    let found = statx(fd.as_fd())?;
    Ok(is_meant(&found).then_some(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_process::proc::maps::parse_maps;
    use std::fs;

    #[test]
    fn the_name_must_lead_to_the_very_file() {
        let text = fs::read("/proc/self/maps").expect("our own maps");
        let mut areas = parse_maps(&text).expect("parses");
        let is_file = |area: &MapsVma| matches!(area.name, VmaName::Path { deleted: false, .. });
        areas.retain(is_file);
        let mut area = areas.into_iter().next().expect("we are a mapped file");
        assert!(open_mapped(&area).expect("opens").is_some());
        area.inode += 1;
        assert!(open_mapped(&area).expect("opens").is_none());
        area.name = VmaName::Path {
            path: b"/nonexistent".to_vec(),
            deleted: false,
        };
        assert!(open_mapped(&area).expect("looks").is_none());
        area.name = VmaName::Memfd(b"x".to_vec());
        assert!(open_mapped(&area).expect("knows").is_none());
    }
}
