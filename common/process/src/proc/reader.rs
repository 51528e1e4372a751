//! Reading /proc/PID through one descriptor, opened once.
//!
//! The descriptor pins the kernel's struct pid, so when the process dies and its number is given
//! to another, every read fails (ESRCH, or ENOENT from subdirectories) instead of telling about
//! the stranger. Opening is the one moment of doubt: it is safe for a task that we trace or whose
//! parent we hold stopped, since its pid cannot be reused then.

use crate::error::{Error, Result};
use crate::pid::HostPid;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// First size of a read buffer: what a seq_file gives in one read.
const CHUNK: usize = 4096;

/// The directory of a process or thread in /proc.
#[derive(Debug)]
pub struct ProcDir {
    pid: HostPid,
    path: String,
    dir: OwnedFd,
}

impl ProcDir {
    /// Opens /proc/PID. ENOENT when there is no such process.
    pub fn open(pid: HostPid) -> Result<ProcDir> {
        let path = format!("/proc/{pid}");
        let root = nix::fcntl::AT_FDCWD;
        open_directory(pid, root, path.clone(), &path)
    }

    /// Opens task/TID below this process.
    pub fn task(&self, tid: HostPid) -> Result<ProcDir> {
        let name = format!("task/{tid}");
        open_directory(
            tid,
            self.dir.as_fd(),
            format!("{}/{name}", self.path),
            &name,
        )
    }

    /// The process or thread.
    pub fn pid(&self) -> HostPid {
        self.pid
    }

    /// The directory, opened with O_PATH.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// The whole of a file, `name` relative to the directory: "maps", "fdinfo/3".
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        self.read_into(name, &mut text)?;
        Ok(text)
    }

    /// Reads a whole file into `text`, replacing what it held and reusing its room.
    pub fn read_into(&self, name: &str, text: &mut Vec<u8>) -> Result<()> {
        text.clear();
        let file = self.open_file(name, OFlag::O_RDONLY)?;
        let mut len = 0;
        loop {
            if text.len() < len + CHUNK {
                text.resize((len * 2).max(CHUNK * 2).max(text.capacity()), 0);
            }
            match nix::unistd::read(&file, &mut text[len..]) {
                Ok(0) => break,
                Ok(got) => len += got,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(self.error("read", name, errno)),
            }
        }
        text.truncate(len);
        Ok(())
    }

    /// Opens a file of the directory.
    pub fn open_file(&self, name: &str, flags: OFlag) -> Result<OwnedFd> {
        openat(&self.dir, name, flags | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| self.error("open", name, errno))
    }

    /// The text of a symbolic link: "exe", "cwd", "fd/3", "ns/mnt", "map_files/1000-2000". It is
    /// what d_path() printed: not escaped, with " (deleted)" behind an unlinked file's path.
    pub fn readlink(&self, name: &str) -> Result<Vec<u8>> {
        readlinkat(&self.dir, name)
            .map(OsStringExt::into_vec)
            .map_err(|errno| self.error("read link", name, errno))
    }

    /// stat(2) of what a magic link leads to, without opening it.
    pub fn stat(&self, name: &str) -> Result<FileStat> {
        fstatat(&self.dir, name, AtFlags::empty()).map_err(|errno| self.error("stat", name, errno))
    }

    /// The open descriptors, ascending.
    pub fn fds(&self) -> Result<Vec<i32>> {
        self.numbers("fd")
    }

    /// The threads of the process, ascending. Complete only while none of them can clone.
    pub fn tids(&self) -> Result<Vec<HostPid>> {
        let tids = self.numbers("task")?;
        Ok(tids.into_iter().filter_map(HostPid::new).collect())
    }

    /// The names in a subdirectory, as "ns" or "map_files", in the kernel's order.
    pub fn list(&self, name: &str) -> Result<Vec<CString>> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::openat(&self.dir, name, flags, Mode::empty())
            .map_err(|errno| self.error("open", name, errno))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(|errno| self.error("list", name, errno))?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        Ok(names)
    }

    fn numbers(&self, name: &str) -> Result<Vec<i32>> {
        let names = self.list(name)?;
        let mut numbers: Vec<i32> = names
            .iter()
            .filter_map(|name| super::text::decimal(name.to_bytes()))
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn error(&self, verb: &str, name: &str, errno: Errno) -> Error {
        Error::new(self.pid, format!("{verb} {}/{name}", self.path), errno)
    }
}

fn open_directory(pid: HostPid, at: BorrowedFd<'_>, path: String, name: &str) -> Result<ProcDir> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    match openat(at, OsStr::from_bytes(name.as_bytes()), flags, Mode::empty()) {
        Ok(dir) => Ok(ProcDir { pid, path, dir }),
        Err(errno) => Err(Error::new(pid, format!("open {path}"), errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    #[test]
    fn our_own_directory() -> Result<()> {
        let own = ProcDir::open(HostPid::current())?;
        assert!(own.read("maps")?.len() > CHUNK / 2);
        let file = std::fs::File::open("/proc/self/stat").expect("our own stat opens");
        assert!(own.fds()?.contains(&file.as_raw_fd()));
        assert!(own.tids()?.contains(&own.pid()));
        let link = own.readlink(&format!("fd/{}", file.as_raw_fd()))?;
        assert_eq!(link, format!("/proc/{}/stat", own.pid()).into_bytes());
        let task = own.task(own.pid())?;
        assert!(task.read("status")?.starts_with(b"Name:"));
        assert!(own.list("ns")?.iter().any(|name| name.to_bytes() == b"mnt"));
        Ok(())
    }

    #[test]
    fn a_buffer_is_reused_and_replaced() -> Result<()> {
        let own = ProcDir::open(HostPid::current())?;
        let mut text = vec![b'x'; 100_000];
        own.read_into("personality", &mut text)?;
        assert_eq!(text.len(), 9);
        own.read_into("environ", &mut text)?;
        let plain = std::fs::read("/proc/self/environ").expect("our own environ is readable");
        assert_eq!(text, plain);
        Ok(())
    }

    #[test]
    fn the_dead_do_not_speak() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat runs");
        let pid = HostPid::new(child.id() as i32).expect("a child's pid is positive");
        let dir = ProcDir::open(pid).expect("the child lives");
        assert!(dir.read("stat").is_ok());
        child.kill().expect("the child can be killed");
        child.wait().expect("the child is ours to reap");
        let error = dir.read("stat").expect_err("the child is reaped");
        assert!(error.is_gone(), "{error}");
        assert!(dir.fds().is_err());
        assert_eq!(
            ProcDir::open(pid).map(|_| ()).map_err(|e| e.errno),
            Err(Errno::ENOENT)
        );
    }
}
