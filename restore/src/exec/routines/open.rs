//! Opening a file as an image says it was open.
//!
//! The path is looked at first without opening it: an open for real may block (a fifo),
//! ring a bell (a device) or come back as something else, so nothing is opened that is not the
//! type of file that was dumped. The look and the open are compared afterwards. What differs is
//! told with both values: the user has to decide whether the old or the new file is right.

use crate::plan::routine::FileFacts;
use anyhow::{Context, Result, bail};
use crust_process::build_id;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::unistd::{Whence, lseek};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Flags that act only at the moment of an open, or that would make a file: never passed on.
const ONLY_ONCE: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;

/// Set by fcntl(2) once the owner is known, not by open(2), where it does nothing.
const NOT_FOR_OPEN: i32 = libc::O_ASYNC;

/// The directory that the last path went through. Files come in the order in which a program opened
/// them, and many of its files lie in one directory: a name is found there in half the time that a
/// whole path takes.
#[derive(Default)]
pub struct LastDirectory<'p> {
    path: &'p [u8],
    /// Open since the second path through it.
    open: Option<OwnedFd>,
}

/// A path by the directory it begins at.
#[derive(Clone, Copy)]
struct Place<'p> {
    from: BorrowedFd<'p>,
    name: &'p OsStr,
    whole: &'p OsStr,
}

impl<'p> Place<'p> {
    fn of(path: &'p [u8]) -> Place<'p> {
        let whole = OsStr::from_bytes(path);
        Place {
            from: AT_FDCWD,
            name: whole,
            whole,
        }
    }
}

impl<'p> LastDirectory<'p> {
    /// Where a path begins that may go through the same directory as the one before.
    fn place_of<'d>(&'d mut self, path: &'p [u8]) -> Place<'d>
    where
        'p: 'd,
    {
        let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let (directory, name) = (&path[..end], path.get(end + 1..).unwrap_or_default());
        if directory.is_empty() || name.is_empty() {
            return Place::of(path);
        }
        if directory != self.path {
            (self.path, self.open) = (directory, None);
            return Place::of(path);
        }
        if self.open.is_none() {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            // What is wrong with it is told by whoever uses the path.
            self.open = open(directory, flags, Mode::empty()).ok();
        }
        match &self.open {
            Some(open) => Place {
                from: open.as_fd(),
                name: OsStr::from_bytes(name),
                whole: OsStr::from_bytes(path),
            },
            None => Place::of(path),
        }
    }

    /// [`open_at`] of a path that may go through the same directory as the one before.
    pub fn open_at(
        &mut self,
        path: &'p [u8],
        flags: i32,
        expect: &FileFacts,
        pos: u64,
    ) -> Result<OwnedFd> {
        open_place_at(self.place_of(path), flags, expect, pos)
    }
}

/// Opens `path` with `flags` (those F_GETFL showed) once it is found to be what `expect` says.
/// Never blocks and never becomes our controlling terminal.
pub fn open_checked(path: &[u8], flags: i32, expect: &FileFacts) -> Result<OwnedFd> {
    open_place(Place::of(path), flags, expect)
}

fn open_place(place: Place<'_>, flags: i32, expect: &FileFacts) -> Result<OwnedFd> {
    let name = place.whole;
    let seen = look_at(place, flags, expect)?;
    let flags = open_flags(flags, seen.st_mode);
    let fd = openat(
        place.from,
        place.name,
        OFlag::from_bits_retain(flags),
        Mode::empty(),
    )
    .with_context(|| format!("open {} with flags {flags:#o}", name.display()))?;
    let opened = fstat(&fd).with_context(|| format!("fstat {}", name.display()))?;
    if (opened.st_dev, opened.st_ino) != (seen.st_dev, seen.st_ino) {
        bail!("{} was replaced while it was being opened", name.display());
    }
    Ok(fd)
}

/// The same, with the position at which the file was.
pub fn open_at(path: &[u8], flags: i32, expect: &FileFacts, pos: u64) -> Result<OwnedFd> {
    open_place_at(Place::of(path), flags, expect, pos)
}

fn open_place_at(place: Place<'_>, flags: i32, expect: &FileFacts, pos: u64) -> Result<OwnedFd> {
    let fd = open_place(place, flags, expect)?;
    if pos == 0 {
        return Ok(fd);
    }
    // Some devices show a position and cannot be given one.
    let is_device = expect.mode.unwrap_or(0) & libc::S_IFMT == libc::S_IFCHR;
    let sought = i64::try_from(pos)
        .map_err(|_| Errno::EOVERFLOW)
        .and_then(|pos| lseek(&fd, pos, Whence::SeekSet));
    match sought {
        Err(errno) if !is_device => {
            let what = format!("seek to {pos} in {}", place.whole.display());
            Err(anyhow::anyhow!(errno).context(what))
        }
        _ => Ok(fd),
    }
}

/// The flags for open(2) of a file of this mode.
///
/// O_TMPFILE stays visible in F_GETFL but asks for another nameless file when passed again.
pub fn open_flags(flags: i32, mode: u32) -> i32 {
    let mut flags = flags & !(ONLY_ONCE | NOT_FOR_OPEN);
    let tmpfile_only = libc::O_TMPFILE & !libc::O_DIRECTORY;
    if flags & tmpfile_only != 0 {
        flags &= !libc::O_TMPFILE;
    }
    if mode & libc::S_IFMT == libc::S_IFIFO && flags & libc::O_PATH == 0 {
        flags |= libc::O_NONBLOCK;
    }
    flags | libc::O_CLOEXEC | libc::O_NOCTTY
}

/// Looks at `path` without opening it and compares it with what it must be.
pub fn look(path: &[u8], flags: i32, expect: &FileFacts) -> Result<FileStat> {
    look_at(Place::of(path), flags, expect)
}

fn look_at(place: Place<'_>, flags: i32, expect: &FileFacts) -> Result<FileStat> {
    let name = place.whole;
    // The name in an image has no symbolic link at its end, or it is of the link itself: one that
    // is there now was put there since.
    let as_it_is = flags & libc::O_NOFOLLOW != 0 || expect.mode.is_some();
    let failed = |errno| match errno {
        Errno::ENOENT | Errno::ENOTDIR => {
            anyhow::anyhow!("{} is gone: {}", name.display(), errno.desc())
        }
        errno => anyhow::anyhow!(errno).context(format!("look at {}", name.display())),
    };
    let nofollow = if as_it_is {
        AtFlags::AT_SYMLINK_NOFOLLOW
    } else {
        AtFlags::empty()
    };
    let seen = fstatat(place.from, place.name, nofollow).map_err(failed)?;
    let differences = differences(&seen, expect);
    if !differences.is_empty() {
        bail!(
            "{} is not the file that was dumped: {differences}",
            name.display()
        );
    }
    if !expect.build_id.is_empty() {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let fd = openat(place.from, place.name, flags, Mode::empty()).map_err(failed)?;
        check_build_id(name, &fd, &expect.build_id)?;
    }
    Ok(seen)
}

/// What is not as it was, as phrases joined by `, `; empty if all is.
fn differences(seen: &FileStat, expect: &FileFacts) -> String {
    let mut text = String::new();
    if let Some(mode) = expect.mode {
        let (was, is) = (mode & libc::S_IFMT, seen.st_mode & libc::S_IFMT);
        if was != is {
            // Nothing else can be compared between files of two types.
            return format!("it is {}, and was {}", type_name(is), type_name(was));
        }
        if mode != seen.st_mode {
            let _ = write!(text, "its mode is {:#o}, and was {mode:#o}", seen.st_mode);
        }
    }
    let Some(size) = expect.size else { return text };
    if u64::try_from(seen.st_size) != Ok(size) {
        let comma = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{comma}its size is {}, and was {size}", seen.st_size);
    }
    text
}

/// What people call a file of this type (the S_IFMT bits).
pub fn type_name(kind: u32) -> &'static str {
    match kind {
        libc::S_IFREG => "a regular file",
        libc::S_IFDIR => "a directory",
        libc::S_IFLNK => "a symbolic link",
        libc::S_IFIFO => "a fifo",
        libc::S_IFSOCK => "a socket",
        libc::S_IFCHR => "a character device",
        libc::S_IFBLK => "a block device",
        _ => "of no known type",
    }
}

fn check_build_id(name: &OsStr, looked: &OwnedFd, expect: &[u32]) -> Result<()> {
    let file = crust_process::descriptor::reopen(looked.as_fd(), libc::O_RDONLY)
        .with_context(|| format!("open {} to read its build-id", name.display()))?;
    let found = build_id::read(&File::from(file))
        .with_context(|| format!("read the build-id of {}", name.display()))?;
    if found == expect {
        return Ok(());
    }
    let is = if found.is_empty() {
        "none".into()
    } else {
        build_id::text(&found)
    };
    bail!(
        "{} is another build than the one that was dumped: its build-id is {is}, and was {}",
        name.display(),
        build_id::text(expect)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(mode: u32, size: Option<u64>) -> FileFacts {
        FileFacts {
            mode: Some(mode),
            size,
            build_id: vec![],
        }
    }

    #[test]
    fn a_file_that_differs_is_told_with_both_values() {
        let path = std::env::temp_dir().join(format!("crust-open-{}", std::process::id()));
        std::fs::write(&path, "12345").expect("write");
        let bytes = path.as_os_str().as_bytes();
        let mode = nix::sys::stat::stat(&path).expect("stat").st_mode;
        open_checked(bytes, libc::O_RDWR, &facts(mode, Some(5))).expect("as it was");
        let error = open_checked(bytes, 0, &facts(mode ^ 0o111, Some(6))).expect_err("differs");
        let error = error.to_string();
        assert!(error.contains("its size is 5, and was 6"), "{error}");
        assert!(error.contains("its mode is"), "{error}");
        let error = open_checked(bytes, 0, &facts(libc::S_IFIFO | 0o600, None)).expect_err("type");
        assert!(
            error
                .to_string()
                .contains("is a regular file, and was a fifo"),
            "{error}"
        );
        std::fs::remove_file(&path).expect("clean up");
        let error = open_checked(bytes, 0, &facts(mode, None)).expect_err("gone");
        assert!(error.to_string().contains("is gone"), "{error}");
    }

    #[test]
    fn a_fifo_without_a_writer_does_not_block() {
        let path = std::env::temp_dir().join(format!("crust-open-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("mkfifo");
        let opened = open_checked(path.as_os_str().as_bytes(), 0, &FileFacts::default());
        std::fs::remove_file(&path).expect("clean up");
        opened.expect("opened at once");
    }

    #[test]
    fn nothing_is_made_or_emptied() {
        let path = std::env::temp_dir().join(format!("crust-open-trunc-{}", std::process::id()));
        std::fs::write(&path, "kept").expect("write");
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_TRUNC;
        let opened = open_checked(path.as_os_str().as_bytes(), flags, &FileFacts::default());
        let content = std::fs::read(&path).expect("read");
        std::fs::remove_file(&path).expect("clean up");
        opened.expect("opened although it exists");
        assert_eq!(content, b"kept");
    }
}
