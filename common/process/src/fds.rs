//! The descriptors of another task: their numbers, and copies of them.
//!
//! pidfd_getfd(2) (Linux 5.6) gives a descriptor on the task's own file description: position and
//! flags are shared with it, so nothing here seeks or sets any.

use crate::error::{Error, Result};
use crate::pid::HostPid;
use crate::proc::ProcDir;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

/// PIDFD_THREAD of include/uapi/linux/pidfd.h, since 6.9.
const PIDFD_THREAD: libc::c_uint = libc::O_EXCL as libc::c_uint;

/// A descriptor on a process that stays on this process when its pid is reused.
#[derive(Debug)]
pub struct PidFd {
    pid: HostPid,
    fd: OwnedFd,
}

impl PidFd {
    /// Opens a process by its thread group id (pidfd_open(2), Linux 5.3).
    pub fn open(pid: HostPid) -> Result<PidFd> {
        PidFd::open_with(pid, 0)
    }

    /// Opens a single thread, since 6.9: for a thread with a descriptor table of its own and for
    /// a process whose leader is dead, from which pidfd_getfd(2) gets nothing.
    pub fn open_thread(tid: HostPid) -> Result<PidFd> {
        PidFd::open_with(tid, PIDFD_THREAD)
    }

    fn open_with(pid: HostPid, flags: libc::c_uint) -> Result<PidFd> {
        // SAFETY: pidfd_open takes plain numbers.
        let got = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.get(), flags) };
        let fd = Errno::result(got).map_err(|errno| Error::new(pid, "pidfd_open", errno))?;
        // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(PidFd { pid, fd })
    }

    /// The process.
    pub fn pid(&self) -> HostPid {
        self.pid
    }

    /// Takes a copy of the task's descriptor `fd`. EBADF when it is closed.
    pub fn take(&self, fd: i32) -> Result<OwnedFd> {
        take(self.fd.as_fd(), self.pid, fd)
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<PidFd> for OwnedFd {
    fn from(pidfd: PidFd) -> OwnedFd {
        pidfd.fd
    }
}

/// Takes a copy of descriptor `fd` of the process behind `pidfd`; `pid` is for the error.
pub fn take(pidfd: BorrowedFd<'_>, pid: HostPid, fd: i32) -> Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes plain numbers.
    let got = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) };
    let copy = Errno::result(got)
        .map_err(|errno| Error::new(pid, format!("pidfd_getfd of fd {fd}"), errno))?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as i32) })
}

/// A copy of a descriptor of our own that is known by its number only, as one that our starter
/// has passed to us. EBADF when there is none.
pub fn duplicate_own(number: i32) -> nix::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes plain numbers; whatever the number is of stays as it is.
    let copy = Errno::result(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Makes our own table large enough for `count` descriptors, as far as our limit lets it be.
///
/// A table that several tasks use is enlarged behind synchronize_rcu() (fs/file.c,
/// expand_fdtable), ten milliseconds at a time: so this is for the time before there are threads,
/// or a child with CLONE_FILES.
pub fn reserve_own(count: usize) {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let most = limit.map_or(0, |(soft, _)| soft.saturating_sub(1));
    let last = (count as u64).min(most) as i32;
    // SAFETY: F_DUPFD_CLOEXEC takes plain numbers; a copy of whatever is number 0 is closed again.
    unsafe {
        let copy = libc::fcntl(0, libc::F_DUPFD_CLOEXEC, last);
        if copy >= 0 {
            libc::close(copy);
        }
    }
}

/// Closes descriptors, those with neighbouring numbers by one call.
pub fn close_all(fds: impl IntoIterator<Item = OwnedFd>) {
    let mut numbers: Vec<i32> = fds.into_iter().map(IntoRawFd::into_raw_fd).collect();
    numbers.sort_unstable();
    for run in numbers.chunk_by(|one, next| one + 1 == *next) {
        let (first, last) = (run[0] as u32, run[run.len() - 1] as u32);
        // SAFETY: the descriptors of the run were owned by the caller, who gave them away.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// The open descriptors of a task, ascending.
pub fn numbers(pid: HostPid) -> Result<Vec<i32>> {
    ProcDir::open(pid)?.fds()
}

/// Who has a socket, as `task 12 ("nginx", fd 3)`: the first descriptor found in /proc. `None` for
/// one that nobody has whom we see.
pub fn holder_of_socket(ino: u32) -> Option<String> {
    let wanted = format!("socket:[{ino}]");
    let entries = std::fs::read_dir("/proc").ok()?;
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut pids: Vec<i32> = pids.collect();
    pids.sort_unstable();
    pids.into_iter().find_map(|pid| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let fd = fds.filter_map(std::io::Result::ok).find(|fd| {
            let link = std::fs::read_link(fd.path());
            link.is_ok_and(|link| link.as_os_str() == wanted.as_str())
        })?;
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let fd = fd.file_name().to_string_lossy().into_owned();
        Some(format!("task {pid} ({:?}, fd {fd})", comm.trim_end()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::process::{Command, Stdio};

    /// A cat with pipes on 0 and 1 and a regular file at an odd position on 2.
    struct Child {
        child: std::process::Child,
        pid: HostPid,
        /// Our descriptor on the file of 2.
        own: std::fs::File,
    }

    impl Child {
        fn spawn() -> Child {
            let mut own = tempfile();
            own.write_all(b"0123456789")
                .expect("a file of ours takes ten bytes");
            own.seek(SeekFrom::Start(7)).expect("a regular file seeks");
            let stderr = own.try_clone().expect("a descriptor can be duplicated");
            let mut command = Command::new("cat");
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::from(stderr));
            let mut child = command.spawn().expect("cat runs");
            // Once it copies, its start is over and its table stays as it is.
            let stdin = child.stdin.as_mut().expect("stdin is piped");
            stdin.write_all(b"x").expect("cat reads");
            let stdout = child.stdout.as_mut().expect("stdout is piped");
            stdout.read_exact(&mut [0]).expect("cat writes");
            let pid = HostPid::new(child.id() as i32).expect("a child's pid is positive");
            Child { child, pid, own }
        }

        fn end(&mut self) {
            self.child.kill().expect("the child is ours");
            self.child.wait().expect("the child is ours");
        }
    }

    impl Drop for Child {
        fn drop(&mut self) {
            self.end();
        }
    }

    fn tempfile() -> std::fs::File {
        let name = c"crust-fds";
        let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
        fd.expect("memfd_create works").into()
    }

    #[test]
    fn a_copy_shares_the_position_and_all_numbers_are_listed() {
        let mut child = Child::spawn();
        assert_eq!(
            numbers(child.pid).expect("the child lives").get(..3),
            Some(&[0, 1, 2][..])
        );
        let pidfd = PidFd::open(child.pid).expect("the child lives");
        let copy = pidfd.take(2).expect("the child has it");
        let position = crate::descriptor::position(copy.as_fd());
        assert_eq!(position.map_err(|error| error.to_string()), Ok(7));
        // Looking moved nothing.
        let mut rest = String::new();
        child
            .own
            .read_to_string(&mut rest)
            .expect("the file is ours");
        assert_eq!(rest, "789");
    }

    #[test]
    fn a_closed_number_and_a_dead_process_are_named() {
        let pidfd = PidFd::open(HostPid::current()).expect("we live");
        let error = pidfd.take(99_999).expect_err("no such descriptor");
        assert_eq!(error.errno, Errno::EBADF);
        assert!(error.to_string().contains("fd 99999"), "{error}");
        let mut child = Child::spawn();
        let pid = child.pid;
        let pidfd = PidFd::open(pid).expect("the child lives");
        child.end();
        assert_eq!(
            pidfd.take(0).map(|_| ()).map_err(|e| e.errno),
            Err(Errno::ESRCH)
        );
        assert_eq!(
            PidFd::open(pid).map(|_| ()).map_err(|e| e.errno),
            Err(Errno::ESRCH)
        );
    }
}
