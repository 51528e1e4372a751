//! The memory of another task through /proc/PID/mem.
//!
//! It reads what the task itself could not (PROT_NONE) and writes what is read-only, by a private
//! copy of the page (FOLL_FORCE); it needs neither a stop nor a word from the task, and it leaves
//! pages shared copy-on-write shared, which process_vm_readv(2) does not: it pins them, and the
//! kernel unshares a pinned page: the memory of a forked family would double.

use crate::error::{Error, Result};
use crate::pid::HostPid;
use crate::steps::step;
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

/// The memory of a task. It stays bound to the task's address space at the time of the open: a
/// reused pid is never touched.
#[derive(Debug)]
pub struct TaskMem {
    pid: HostPid,
    file: File,
}

impl TaskMem {
    /// Opens the memory of a task that we trace or may trace.
    pub fn open(pid: HostPid) -> Result<TaskMem> {
        TaskMem::of_thread(pid, pid)
    }

    /// Opens the memory of a task by one of its threads: a leader that has ended has none.
    pub fn of_thread(pid: HostPid, thread: HostPid) -> Result<TaskMem> {
        let path = format!("/proc/{thread}/mem");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|error| match error.raw_os_error() {
                // The thread is gone, and its directory with it.
                Some(libc::ENOENT) => Error::new(pid, format!("open {path}"), Errno::ESRCH),
                _ => Error::io(pid, format!("open {path}"), &error),
            })?;
        Ok(TaskMem { pid, file })
    }

    /// Reads as much of `buf` as is mapped from `addr` on; 0 only if `addr` itself is not.
    pub fn read_at(&self, addr: u64, buf: &mut [u8]) -> Result<usize> {
        loop {
            match self.file.read_at(buf, addr) {
                Ok(len) => return Ok(len),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Err(error) => return Err(self.error("read", addr, buf.len(), &error)),
            }
        }
    }

    /// Fills `buf` from `addr` on; EFAULT if a part is not mapped.
    pub fn read_exact_at(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_at(addr + done as u64, &mut buf[done..])? {
                0 => {
                    let doing = format!("read {} bytes at {addr:#x}", buf.len());
                    return Err(Error::new(self.pid, doing, Errno::EFAULT));
                }
                len => done += len,
            }
        }
        Ok(())
    }

    /// Reads a 64-bit word.
    pub fn read_u64(&self, addr: u64) -> Result<u64> {
        let mut word = [0; 8];
        self.read_exact_at(addr, &mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Writes `buf` at `addr`, read-only private pages included.
    pub fn write_all_at(&self, addr: u64, buf: &[u8]) -> Result<()> {
        step();
        self.file
            .write_all_at(buf, addr)
            .map_err(|error| self.error("write", addr, buf.len(), &error))
    }

    /// The task.
    pub fn pid(&self) -> HostPid {
        self.pid
    }

    fn error(&self, verb: &str, addr: u64, len: usize, error: &std::io::Error) -> Error {
        Error::io(self.pid, format!("{verb} {len} bytes at {addr:#x}"), error)
    }
}
