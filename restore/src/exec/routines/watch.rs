//! An inotify watch under its own number, on the file it watched.
//!
//! The file is found by its path, or by its handle on any mount of its file system; one without a
//! name is open in a slot. A watch's
//! number is the kernel's choice, one above the last; INOTIFY_IOC_SETNEXTWD (Linux 4.18, with
//! CONFIG_CHECKPOINT_RESTORE) makes that choice.

use super::Slots;
use crate::plan::routine::Watched;
use anyhow::{Context, Result, bail};
use crust_process::broker::{self, Answer, OwnArg};
use crust_process::descriptor::{FileHandle, open_handle};
use crust_process::proc::mountinfo::parse_mountinfo;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// _IOW('I', 0, i32) of linux/inotify.h.
const INOTIFY_IOC_SETNEXTWD: u64 = 0x4004_4900;
/// Bits of a minor number in the kernel's dev_t, as fdinfo shows it.
const MINOR_BITS: u32 = 20;

/// Opens what is to be watched.
pub fn open_watched(watched: &Watched, slots: &Slots<'_>) -> Result<OwnedFd> {
    if let Some(slot) = watched.open {
        let file = slots.get(slot)?.try_clone_to_owned();
        return file.context("duplicate the file to be watched");
    }
    if watched.path.is_empty() {
        by_handle(watched)
    } else {
        open_path(&watched.path)
    }
}

/// Adds watch `wd` with these events.
pub fn add(inotify: BorrowedFd<'_>, wd: i32, mask: u32, file: BorrowedFd<'_>) -> Result<()> {
    let number = inotify.as_raw_fd() as u64;
    let mut next = [
        OwnArg::Val(number),
        OwnArg::Val(INOTIFY_IOC_SETNEXTWD),
        OwnArg::Val(wd as u64),
    ];
    broker::call(libc::SYS_ioctl, &mut next, &mut [])
        .with_context(|| format!("INOTIFY_IOC_SETNEXTWD {wd}"))?;
    let mut path = format!("/proc/self/fd/{}\0", file.as_raw_fd()).into_bytes();
    let mut args = [
        OwnArg::Val(number),
        OwnArg::Bytes(&mut path),
        OwnArg::Val(mask.into()),
    ];
    let answer = broker::call(libc::SYS_inotify_add_watch, &mut args, &mut [])
        .with_context(|| format!("inotify_add_watch with mask {mask:#x}"))?;
    match answer {
        Answer::Value(got) if got == wd as u64 => Ok(()),
        other => bail!("inotify_add_watch gave {other:?}, not watch {wd}"),
    }
}

/// Adds a mark to a fanotify group.
pub fn mark(group: BorrowedFd<'_>, flags: u32, mask: u64, file: BorrowedFd<'_>) -> Result<()> {
    let mut path = format!("/proc/self/fd/{}\0", file.as_raw_fd()).into_bytes();
    let mut args = [
        OwnArg::Val(group.as_raw_fd() as u64),
        OwnArg::Val(flags.into()),
        OwnArg::Val(mask),
        OwnArg::Val(libc::AT_FDCWD as u64),
        OwnArg::Bytes(&mut path),
    ];
    broker::call(libc::SYS_fanotify_mark, &mut args, &mut [])
        .with_context(|| format!("fanotify_mark with flags {flags:#x} and mask {mask:#x}"))?;
    Ok(())
}

fn open_path(path: &[u8]) -> Result<OwnedFd> {
    let name = OsStr::from_bytes(path);
    open(name, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .with_context(|| format!("open {} to watch it", name.display()))
}

/// open_by_handle_at(2) wants any readable descriptor of the same file system.
fn by_handle(watched: &Watched) -> Result<OwnedFd> {
    let text = fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let device = (
        watched.device >> MINOR_BITS,
        watched.device & ((1 << MINOR_BITS) - 1),
    );
    let handle = FileHandle {
        kind: watched.handle_type as i32,
        bytes: watched.handle.to_vec(),
    };
    let mut last = None;
    for mount in parse_mountinfo(&text).context("read /proc/self/mountinfo")? {
        if (mount.dev_major, mount.dev_minor) != device {
            continue;
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let opened = open(OsStr::from_bytes(&mount.mountpoint), flags, Mode::empty())
            .and_then(|mountpoint| open_handle(mountpoint.as_fd(), &handle));
        match opened {
            Ok(file) => return Ok(file),
            Err(errno) => last = Some(errno),
        }
    }
    let (major, minor) = device;
    match last {
        Some(errno) => {
            Err(errno).with_context(|| format!("open the watched file on device {major}:{minor}"))
        }
        None => bail!("device {major}:{minor} of the watched file is not mounted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_process::broker::OwnArg;

    fn inotify() -> OwnedFd {
        let flags = libc::IN_CLOEXEC | libc::IN_NONBLOCK;
        let mut args = [OwnArg::Val(flags as u64)];
        match broker::call(libc::SYS_inotify_init1, &mut args, &mut []) {
            Ok(Answer::Fd(fd)) => fd,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_watch_has_its_number_and_its_file() {
        let path = std::env::temp_dir().join(format!("crust-watch-{}", std::process::id()));
        fs::write(&path, "").expect("write");
        let inotify = inotify();
        for wd in [9, 5000, 3] {
            let other = path.with_extension(wd.to_string());
            fs::write(&other, "").expect("write");
            let watched = Watched {
                path: other.as_os_str().as_bytes().to_vec(),
                ..Watched::default()
            };
            let file = open_watched(&watched, &Slots::new(&mut [])).expect("it is there");
            add(inotify.as_fd(), wd, libc::IN_MODIFY, file.as_fd()).expect("a watch");
            // Else the file would outlive its name, and its end be told to the next one.
            drop(file);
            fs::write(&other, "x").expect("write");
            let mut event = [0; 16];
            nix::unistd::read(&inotify, &mut event).expect("an event");
            assert_eq!(event[..4], wd.to_ne_bytes());
            fs::remove_file(&other).expect("clean up");
            let mut rest = [0; 256];
            while nix::unistd::read(&inotify, &mut rest).is_ok() {}
        }
        fs::remove_file(&path).expect("clean up");
    }
}
