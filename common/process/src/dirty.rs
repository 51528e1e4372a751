//! Which pages of a running task have been written since we looked: userfaultfd in its asynchronous
//! write-protect mode, read by PAGEMAP_SCAN (Linux 6.7).
//!
//! A userfaultfd belongs to the address space of the task that made it, so the task has to make it
//! itself; its descriptor is closed there at once and lives on with us. While a copy is open the
//! kernel keeps the registrations; when the last holder dies all of it is gone, and the task never
//! had anything in its table. A page counts as clean only while it carries our mark: what the task
//! maps, moves, drops or touches for the first time has none. Documentation/admin-guide/mm/
//! userfaultfd.rst, pagemap.rst.

use crate::error::{Error, Result};
use crate::fds::take;
use crate::pid::HostPid;
use crate::proc::ProcDir;
use crate::remote::Entered;
use nix::errno::Errno;
use nix::libc;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Features of UFFDIO_API (include/uapi/linux/userfaultfd.h).
const WP_UNPOPULATED: u64 = 1 << 13;
const WP_ASYNC: u64 = 1 << 15;
const UFFD_API: u64 = 0xaa;
/// _IOWR(0xaa, 0x3f, struct uffdio_api).
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// _IOWR(0xaa, 0x00, struct uffdio_register).
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const MODE_WP: u64 = 1 << 1;

/// struct uffdio_api.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// struct uffdio_register.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// The write tracking of one address space. Dropping the last copy ends it.
#[derive(Debug)]
pub struct Tracker {
    pid: HostPid,
    start_time: u64,
    uffd: OwnedFd,
}

impl Tracker {
    /// Makes one in a stopped task. `start_time` (field 22 of /proc/PID/stat) tells the task from
    /// a later one with its pid.
    pub fn create(
        entered: &mut Entered<'_, '_>,
        dir: &ProcDir,
        start_time: u64,
        pidfd: BorrowedFd<'_>,
    ) -> Result<Tracker> {
        let pid = dir.pid();
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
        let args = [flags, 0, 0, 0, 0, 0];
        let free = lowest_free(&dir.fds()?);
        let uffd = entered.lend_fd(libc::SYS_userfaultfd, args, free, |fd| take(pidfd, pid, fd))?;
        let mut api = Api {
            api: UFFD_API,
            features: WP_ASYNC | WP_UNPOPULATED,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes one struct uffdio_api, which this is.
        let got =
            unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, std::ptr::from_mut(&mut api)) };
        Errno::result(got).map_err(|errno| {
            let doing = "UFFDIO_API: asynchronous write tracking needs Linux 6.7";
            Error::new(pid, doing, errno)
        })?;
        Ok(Tracker::from_parts(pid, start_time, uffd))
    }

    /// One that another process held for us.
    pub fn from_parts(pid: HostPid, start_time: u64, uffd: OwnedFd) -> Tracker {
        Tracker {
            pid,
            start_time,
            uffd,
        }
    }

    /// The task.
    pub fn pid(&self) -> HostPid {
        self.pid
    }

    /// When it started, in clock ticks after the boot.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Our descriptor, for handing it on.
    pub fn uffd(&self) -> &OwnedFd {
        &self.uffd
    }

    /// Tracks an area too, or goes on tracking it. False if it cannot be tracked: it is another
    /// userfaultfd's, of a kind without write protection, or not there any more, also because the
    /// task has executed another program.
    pub fn register(&self, range: &Range<u64>) -> Result<bool> {
        let mut register = Register {
            start: range.start,
            len: range.end - range.start,
            mode: MODE_WP,
            ioctls: 0,
        };
        let register = std::ptr::from_mut(&mut register);
        // SAFETY: the kernel reads and writes one struct uffdio_register, which this is; the
        // addresses in it are the task's.
        let got = unsafe { libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_REGISTER, register) };
        match Errno::result(got) {
            Ok(_) => Ok(true),
            Err(Errno::EBUSY | Errno::EINVAL | Errno::EPERM | Errno::ESRCH | Errno::ENOMEM) => {
                Ok(false)
            }
            Err(errno) => {
                let doing = format!("UFFDIO_REGISTER {:#x}-{:#x}", range.start, range.end);
                Err(Error::new(self.pid, doing, errno))
            }
        }
    }
}

/// The number that the next descriptor of a table gets, by its open ones in ascending order.
fn lowest_free(open: &[i32]) -> i32 {
    (0..).zip(open).find(|(free, fd)| free != *fd).map_or_else(
        || i32::try_from(open.len()).unwrap_or(i32::MAX),
        |(free, _)| free,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number() {
        assert_eq!(lowest_free(&[]), 0);
        assert_eq!(lowest_free(&[0, 1, 2]), 3);
        assert_eq!(lowest_free(&[0, 2, 3]), 1);
        assert_eq!(lowest_free(&[1]), 0);
    }
}
