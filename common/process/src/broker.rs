//! System calls of our own by number, for a restore plan that names them as data.
//!
//! Only calls that make or change what a descriptor refers to are let through, and of those that
//! write to memory only with a buffer of ours that is large enough; so the function is safe
//! whatever the plan says. (A call that reads from a wrong address answers EFAULT or is fed
//! nonsense, which is the plan's fault but no danger.)

use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd};

/// Calls a plan may ask of us.
const ALLOWED: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_close,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_eventfd2,
    libc::SYS_fallocate,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_ftruncate,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_ioctl,
    libc::SYS_linkat,
    libc::SYS_listen,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_openat,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2,
    libc::SYS_pwrite64,
    libc::SYS_renameat2,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_signalfd4,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_symlinkat,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
];

/// An argument.
#[derive(Debug)]
pub enum OwnArg<'a> {
    /// A number. Never an address.
    Val(u64),
    /// The address of bytes, which the call may read and change within their length.
    Bytes(&'a mut [u8]),
}

/// A pointer to a buffer inside another buffer (an iovec, a msghdr): `at` is where the 64-bit
/// address goes.
#[derive(Debug)]
pub struct Inner<'a> {
    /// Index of the argument whose bytes hold the pointer, or of an earlier inner buffer counted
    /// from the number of arguments on.
    pub holder: usize,
    /// Offset in those bytes.
    pub at: usize,
    /// What is pointed to.
    pub bytes: &'a mut [u8],
}

/// What a call answered.
#[derive(Debug)]
pub enum Answer {
    /// A number.
    Value(u64),
    /// A new descriptor.
    Fd(OwnedFd),
    /// Two new descriptors.
    Pair(OwnedFd, OwnedFd),
}

/// Whether [`call`] makes this call.
pub fn is_allowed(nr: i64) -> bool {
    ALLOWED.contains(&nr)
}

/// Whether every address at which the kernel will write is of a buffer, and large enough.
fn writes_are_safe(nr: i64, args: &[OwnArg<'_>]) -> bool {
    /// The largest argument of a terminal's ioctl without a size in its number (termios).
    const LARGEST_UNSIZED: usize = 64;
    /// struct flock.
    const FLOCK: usize = 32;
    /// Below it nothing is mapped (vm.mmap_min_addr), so that it is a number and no address.
    const FIRST_ADDRESS: u64 = 4096;
    /// Not in libc for this target.
    const F_SETSIG: i32 = 10;
    /// _IOW('I', 0, i32) of linux/inotify.h: in spite of its size the argument is a number.
    const INOTIFY_IOC_SETNEXTWD: u64 = 0x4004_4900;
    let bytes = |index: usize, least: usize| matches!(args.get(index), Some(OwnArg::Bytes(bytes)) if bytes.len() >= least);
    let number = |index: usize| match args.get(index) {
        Some(OwnArg::Val(value)) => Some(*value),
        None => Some(0),
        Some(OwnArg::Bytes(_)) => None,
    };
    match nr {
        libc::SYS_pipe2 => bytes(0, 8),
        libc::SYS_socketpair => bytes(3, 8),
        libc::SYS_timerfd_settime => number(3) == Some(0),
        libc::SYS_accept4 => number(1) == Some(0) && number(2) == Some(0),
        libc::SYS_ioctl => {
            let size = number(1).map_or(usize::MAX, |request| (request >> 16 & 0x3fff) as usize);
            // Its argument is flags of open(2).
            number(1) == Some(libc::TIOCGPTPEER)
                || number(1) == Some(INOTIFY_IOC_SETNEXTWD)
                || number(2).is_some_and(|value| value < FIRST_ADDRESS)
                || bytes(2, size.max(LARGEST_UNSIZED))
        }
        libc::SYS_fcntl => {
            let by_value = number(1).is_some_and(|command| {
                [
                    libc::F_DUPFD,
                    libc::F_DUPFD_CLOEXEC,
                    libc::F_GETFD,
                    libc::F_SETFD,
                    libc::F_GETFL,
                    libc::F_SETFL,
                    libc::F_SETOWN,
                    F_SETSIG,
                    libc::F_SETPIPE_SZ,
                    libc::F_ADD_SEALS,
                    libc::F_SETLEASE,
                    libc::F_NOTIFY,
                ]
                .iter()
                .any(|known| command == *known as u64)
            });
            by_value || bytes(2, FLOCK)
        }
        _ => true,
    }
}

/// Makes the call. EPERM for one that is not allowed here, EINVAL for a pointer outside its
/// holder or for a number, or too small a buffer, where the kernel would write.
pub fn call(nr: i64, args: &mut [OwnArg<'_>], inner: &mut [Inner<'_>]) -> Result<Answer, Errno> {
    if !is_allowed(nr) {
        return Err(Errno::EPERM);
    }
    if args.len() > 6 || !writes_are_safe(nr, args) {
        return Err(Errno::EINVAL);
    }
    place_inner(args, inner)?;
    crate::steps::step();
    let mut raw = [0u64; 6];
    for (to, arg) in raw.iter_mut().zip(args.iter_mut()) {
        *to = match arg {
            OwnArg::Val(value) => *value,
            OwnArg::Bytes(bytes) => bytes.as_mut_ptr() as u64,
        };
    }
    let [a, b, c, d, e, f] = raw;
    // SAFETY: the calls allowed write to memory only where `writes_are_safe` has seen a buffer of
    // sufficient length, which is borrowed for the call.
    let got = unsafe { libc::syscall(nr, a, b, c, d, e, f) };
    let value = Errno::result(got)?;
    Ok(if makes_fd(nr, args) {
        // SAFETY: the call has just made this descriptor, and nobody else knows it.
        Answer::Fd(unsafe { OwnedFd::from_raw_fd(value as i32) })
    } else if let Some([first, second]) = new_pair(nr, args) {
        // SAFETY: as above, for both.
        unsafe { Answer::Pair(OwnedFd::from_raw_fd(first), OwnedFd::from_raw_fd(second)) }
    } else {
        Answer::Value(value as u64)
    })
}

/// Whether the answer of a successful call is a new descriptor.
fn makes_fd(nr: i64, args: &[OwnArg<'_>]) -> bool {
    let number = |index: usize| match args.get(index) {
        Some(OwnArg::Val(value)) => Some(*value),
        _ => None,
    };
    match nr {
        libc::SYS_accept4
        | libc::SYS_dup
        | libc::SYS_epoll_create1
        | libc::SYS_eventfd2
        | libc::SYS_fanotify_init
        | libc::SYS_inotify_init1
        | libc::SYS_memfd_create
        | libc::SYS_openat
        | libc::SYS_pidfd_open
        | libc::SYS_socket
        | libc::SYS_timerfd_create => true,
        libc::SYS_signalfd4 => number(0).is_some_and(|fd| fd as i32 == -1),
        libc::SYS_fcntl => number(1).is_some_and(|command| {
            command == libc::F_DUPFD as u64 || command == libc::F_DUPFD_CLOEXEC as u64
        }),
        libc::SYS_ioctl => number(1) == Some(libc::TIOCGPTPEER),
        _ => false,
    }
}

/// The descriptors that pipe2 and socketpair have written into their argument.
fn new_pair(nr: i64, args: &[OwnArg<'_>]) -> Option<[i32; 2]> {
    let index = match nr {
        libc::SYS_pipe2 => 0,
        libc::SYS_socketpair => 3,
        _ => return None,
    };
    let OwnArg::Bytes(bytes) = args.get(index)? else {
        return None;
    };
    let number = |at: usize| {
        bytes
            .get(at..at + 4)?
            .try_into()
            .ok()
            .map(i32::from_ne_bytes)
    };
    Some([number(0)?, number(4)?])
}

fn place_inner(args: &mut [OwnArg<'_>], inner: &mut [Inner<'_>]) -> Result<(), Errno> {
    for index in 0..inner.len() {
        let (before, rest) = inner.split_at_mut(index);
        let Some(this) = rest.first_mut() else {
            continue;
        };
        let address = (this.bytes.as_mut_ptr() as u64).to_le_bytes();
        let holder: &mut [u8] = match args.len().checked_sub(this.holder + 1) {
            Some(_) => match &mut args[this.holder] {
                OwnArg::Bytes(bytes) => bytes,
                OwnArg::Val(_) => return Err(Errno::EINVAL),
            },
            None => {
                before
                    .get_mut(this.holder - args.len())
                    .ok_or(Errno::EINVAL)?
                    .bytes
            }
        };
        let slot = holder.get_mut(this.at..this.at + 8).ok_or(Errno::EINVAL)?;
        slot.copy_from_slice(&address);
    }
    Ok(())
}
