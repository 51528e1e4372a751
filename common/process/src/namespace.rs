//! Work inside another namespace. setns(2) and unshare(2) act on single threads, so a thread of our
//! own goes there and ends there: the rest of us stays where it is.

use nix::Result;
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns, unshare};
use std::os::fd::BorrowedFd;

/// Runs `work` in a thread that has entered the namespace of this kind behind a descriptor.
pub fn inside<T: Send>(
    namespace: BorrowedFd<'_>,
    kind: CloneFlags,
    work: impl FnOnce() -> T + Send,
) -> Result<T> {
    in_thread(|| setns(namespace, kind), work)
}

/// Runs `work` in a thread that has made a namespace of this kind.
pub fn inside_new<T: Send>(kind: CloneFlags, work: impl FnOnce() -> T + Send) -> Result<T> {
    in_thread(|| unshare(kind), work)
}

fn in_thread<T: Send>(
    enter: impl FnOnce() -> Result<()> + Send,
    work: impl FnOnce() -> T + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let there = || {
            enter()?;
            Ok(work())
        };
        // `spawn` would panic where the kernel gives no thread.
        match std::thread::Builder::new().spawn_scoped(scope, there) {
            Ok(thread) => thread.join().unwrap_or(Err(Errno::EIO)),
            Err(error) => Err(error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw)),
        }
    })
}

/// The host's name in the uts namespace of this thread (sethostname(2)).
pub fn set_nodename(name: &[u8]) -> Result<()> {
    // SAFETY: the call reads so many bytes from the slice.
    Errno::result(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// The domain's name in the uts namespace of this thread (setdomainname(2)).
pub fn set_domainname(name: &[u8]) -> Result<()> {
    // SAFETY: the call reads so many bytes from the slice.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}
