//! The descriptors of another task: their numbers, copies of them, and the facts by which shared
//! file descriptions are sorted.
//!
//! pidfd_getfd(2) (Linux 5.6) gives a descriptor on the task's own file description: position and
//! flags are shared with it, so nothing here seeks or sets any. Close-on-exec belongs to the
//! number in the table; outside the task only fdinfo tells it, at 7 microseconds a descriptor
//! against 2 for all other facts together. A caller that asked the task itself (F_GETFD in a
//! remote batch, 0.2 microseconds each) passes the answers.

use crate::descriptor::{self, Statx};
use crate::error::{Error, Result};
use crate::pid::HostPid;
use crate::proc::ProcDir;
use crate::proc::fdinfo::{Fdinfo, parse_fdinfo, parse_fdinfo_flags};
use nix::errno::Errno;
use nix::libc;
use nix::sys::statfs::fstatfs;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// The open descriptors of a task, ascending.
pub fn numbers(pid: HostPid) -> Result<Vec<i32>> {
    ProcDir::open(pid)?.fds()
}

/// What one look at a descriptor tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdFacts {
    /// Number in the task's table.
    pub fd: i32,
    /// FD_CLOEXEC of the number.
    pub cloexec: bool,
    /// Attributes of the file and the mount it was opened through; `None` for the `fd`
    /// directory of a dead process, on which even fstat(2) fails.
    pub stat: Option<Statx>,
    /// F_GETFL, with O_PATH and O_LARGEFILE as the kernel keeps them.
    pub flags: u32,
    /// Position, 0 for what has none.
    pub pos: u64,
    /// f_type of statfs(2): PROC_SUPER_MAGIC, PIPEFS_MAGIC, ...; `None` without `stat`.
    pub fs_type: Option<i64>,
    /// The text of /proc/PID/fd/N; empty for sockets and anonymous pipes, whose link tells
    /// nothing but the inode.
    pub link: Vec<u8>,
}

/// Answers to F_GETFD that the task itself gave, by descriptor.
pub type KnownCloexec<'a> = &'a dyn Fn(i32) -> Option<bool>;

/// Looks at the descriptors of one task after the other. It remembers the type of each file
/// system it met, since thousands of descriptors lie on a handful.
#[derive(Debug, Default)]
pub struct FdCollector {
    fs_types: HashMap<u64, i64>,
    text: Vec<u8>,
}

impl FdCollector {
    /// One that has seen nothing.
    pub fn new() -> FdCollector {
        FdCollector::default()
    }

    /// The facts of all descriptors of a task, ascending, each with our copy of it for as long as
    /// `visit` wants it. Copies count against our own RLIMIT_NOFILE.
    pub fn collect_fds(
        &mut self,
        dir: &ProcDir,
        pidfd: &PidFd,
        cloexec: Option<KnownCloexec<'_>>,
        mut visit: impl FnMut(FdFacts, OwnedFd) -> Result<()>,
    ) -> Result<()> {
        for fd in dir.fds()? {
            let copy = pidfd.take(fd)?;
            let cloexec = match cloexec.and_then(|known| known(fd)) {
                Some(cloexec) => cloexec,
                None => self.read_cloexec(dir, fd)?,
            };
            visit(self.look_at(dir, fd, copy.as_fd(), cloexec)?, copy)?;
        }
        Ok(())
    }

    fn look_at(
        &mut self,
        dir: &ProcDir,
        fd: i32,
        copy: BorrowedFd<'_>,
        cloexec: bool,
    ) -> Result<FdFacts> {
        let error = |what, errno| Error::new(dir.pid(), format!("{what} of fd {fd}"), errno);
        let stat = match descriptor::statx(copy) {
            Ok(stat) => Some(stat),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(error("statx", errno)),
        };
        let fs_type = match &stat {
            Some(stat) => Some(
                self.fs_type(stat.dev, copy)
                    .map_err(|errno| error("fstatfs", errno))?,
            ),
            None => None,
        };
        let flags = descriptor::status_flags(copy).map_err(|errno| error("F_GETFL", errno))?;
        let pos = descriptor::position(copy).map_err(|errno| error("position", errno))?;
        let link = match has_telling_link(stat.as_ref(), fs_type) {
            true => dir.readlink(&format!("fd/{fd}"))?,
            false => Vec::new(),
        };
        Ok(FdFacts {
            fd,
            cloexec,
            stat,
            flags: flags as u32,
            pos,
            fs_type,
            link,
        })
    }

    fn fs_type(&mut self, dev: u64, copy: BorrowedFd<'_>) -> nix::Result<i64> {
        if let Some(known) = self.fs_types.get(&dev) {
            return Ok(*known);
        }
        let fs_type = fstatfs(copy)?.filesystem_type().0;
        self.fs_types.insert(dev, fs_type);
        Ok(fs_type)
    }

    fn read_cloexec(&mut self, dir: &ProcDir, fd: i32) -> Result<bool> {
        let name = format!("fdinfo/{fd}");
        dir.read_into(&name, &mut self.text)?;
        let flags = parse_fdinfo_flags(&self.text).map_err(|error| malformed(dir, fd, &error))?;
        Ok(flags & libc::O_CLOEXEC as u32 != 0)
    }
}

/// The parsed fdinfo of one descriptor.
pub fn collect_fdinfo(dir: &ProcDir, fd: i32) -> Result<Fdinfo> {
    let text = dir.read(&format!("fdinfo/{fd}"))?;
    parse_fdinfo(&text).map_err(|error| malformed(dir, fd, &error))
}

fn malformed(dir: &ProcDir, fd: i32, error: &crate::proc::ParseError) -> Error {
    Error::new(
        dir.pid(),
        format!("fdinfo of fd {fd}: {error}"),
        Errno::EPROTO,
    )
}

fn has_telling_link(stat: Option<&Statx>, fs_type: Option<i64>) -> bool {
    let anonymous_pipe = fs_type == Some(PIPEFS_MAGIC);
    let socket = stat.is_some_and(|stat| stat.mode & libc::S_IFMT == libc::S_IFSOCK);
    let path_only_socket = socket && fs_type != Some(SOCKFS_MAGIC);
    !anonymous_pipe && (!socket || path_only_socket)
}

/// include/uapi/linux/magic.h.
const PIPEFS_MAGIC: i64 = 0x5049_5045;
/// include/uapi/linux/magic.h.
const SOCKFS_MAGIC: i64 = 0x534f_434b;

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

    fn facts_of(child: &Child, known: Option<KnownCloexec>) -> Vec<FdFacts> {
        let dir = ProcDir::open(child.pid).expect("the child lives");
        let pidfd = PidFd::open(child.pid).expect("the child lives");
        let mut all = Vec::new();
        FdCollector::new()
            .collect_fds(&dir, &pidfd, known, |facts, _copy| {
                all.push(facts);
                Ok(())
            })
            .expect("a child's descriptors can be read");
        all
    }

    #[test]
    fn the_facts_of_a_child() {
        let mut child = Child::spawn();
        let all = facts_of(&child, None);
        assert_eq!(
            all.iter().map(|f| f.fd).take(3).collect::<Vec<_>>(),
            [0, 1, 2]
        );
        let file = &all[2];
        assert_eq!((file.pos, file.cloexec), (7, false));
        assert_eq!(file.stat.map(|stat| stat.size), Some(10));
        assert_eq!(file.link, b"/memfd:crust-fds (deleted)");
        assert_eq!(all[1].fs_type, Some(PIPEFS_MAGIC));
        let access = all[1].flags & libc::O_ACCMODE as u32;
        assert_eq!(access, libc::O_WRONLY as u32);
        assert!(all[1].link.is_empty());
        // Looking moved nothing.
        let mut rest = String::new();
        child
            .own
            .read_to_string(&mut rest)
            .expect("the file is ours");
        assert_eq!(rest, "789");
    }

    #[test]
    fn what_the_task_said_of_cloexec_is_believed() {
        let child = Child::spawn();
        let all = facts_of(&child, Some(&|fd| Some(fd == 1)));
        let cloexec: Vec<_> = all.iter().filter(|f| f.cloexec).map(|f| f.fd).collect();
        assert_eq!(cloexec, [1]);
    }

    #[test]
    fn our_own_cloexec_is_read_from_fdinfo() {
        let file = tempfile();
        let own = ProcDir::open(HostPid::current()).expect("we live");
        let fd = file.as_raw_fd();
        let cloexec = FdCollector::new().read_cloexec(&own, fd);
        assert!(cloexec.expect("our own fdinfo parses"));
        let info = collect_fdinfo(&own, fd).expect("our own fdinfo parses");
        assert!(info.cloexec());
        assert_eq!(
            info.status_flags() & libc::O_ACCMODE as u32,
            libc::O_RDWR as u32
        );
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
