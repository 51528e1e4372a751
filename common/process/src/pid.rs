//! Process ids as the dumper's own pid namespace numbers them.
//!
//! An id read from an image is a `VirtPid` of the image crate. The two never convert silently:
//! the tree may be restored into another pid namespace, or the image may have been edited.

use std::fmt;

/// A process or thread id that the kernel accepts from us: what ptrace, kill and /proc take.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPid(i32);

impl HostPid {
    /// `None` for zero and negative numbers, which kill(2) and waitpid(2) take for groups.
    pub const fn new(pid: i32) -> Option<HostPid> {
        if pid > 0 { Some(HostPid(pid)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> i32 {
        self.0
    }

    /// The calling process.
    pub fn current() -> HostPid {
        HostPid(nix::unistd::getpid().as_raw())
    }
}

impl From<HostPid> for nix::unistd::Pid {
    fn from(pid: HostPid) -> Self {
        nix::unistd::Pid::from_raw(pid.0)
    }
}

impl fmt::Display for HostPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for HostPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostPid({})", self.0)
    }
}
