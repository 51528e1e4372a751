//! One error for everything done to another process: what was being done, to whom, and the
//! kernel's word.

use crate::pid::HostPid;
use nix::errno::Errno;

/// A failed step on a task. `Display` reads as one sentence: `task 12: PTRACE_SEIZE: EPERM: ...`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("task {pid}: {doing}: {errno}")]
pub struct Error {
    /// The task or thread.
    pub pid: HostPid,
    /// What was being done, as a phrase: a request's name and its object.
    pub doing: String,
    /// The kernel's word. `EPROTO` stands for an answer no kernel should give.
    pub errno: Errno,
}

impl Error {
    /// An error of `doing` on `pid`.
    pub fn new(pid: HostPid, doing: impl Into<String>, errno: Errno) -> Error {
        Error {
            pid,
            doing: doing.into(),
            errno,
        }
    }

    /// An error of an I/O call on `pid`.
    pub fn io(pid: HostPid, doing: impl Into<String>, error: &std::io::Error) -> Error {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        Error::new(pid, doing, errno)
    }

    /// The task is gone: it died or was reaped under our hands.
    pub fn is_gone(&self) -> bool {
        self.errno == Errno::ESRCH
    }
}

/// The result of a step on a task.
pub type Result<T> = std::result::Result<T, Error>;
