//! Pseudo terminals: a pair under a certain index, bytes that wait in it, our own terminal.
//!
//! /dev/ptmx gives the lowest free index, so those below the wanted one are taken for the moment
//! and given back; one that somebody has cannot be had. A new pair is made raw, so that bytes
//! written into one end come out at the other as they are; they cross from end to end by a worker of
//! the kernel, which is waited for.

use super::payload::write_without_blocking;
use anyhow::{Context, Result, bail};
use crust_process::broker::{self, Answer, OwnArg};
use crust_process::descriptor::{bytes_waiting, reopen};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

/// Room for the largest argument of an ioctl.
const ROOM: usize = 64;
/// _IOR('T', 0x30, unsigned int) and _IOW('T', 0x31, int) of asm-generic/ioctls.h.
const TIOCGPTN: libc::Ioctl = 0x8004_5430;
const TIOCSPTLCK: libc::Ioctl = 0x4004_5431;
/// What the line discipline holds at most (N_TTY_BUF_SIZE less one); the rest waits behind it.
const BUFFER: usize = 4095;
/// How long bytes may take from one end to the other, whatever the load.
const CROSSING: Duration = Duration::from_secs(10);
/// The same for poll(2).
const CROSSING_MS: u16 = 10_000;

/// Opens both ends of pair `index`; the master with these flags.
pub fn make_pty(ptmx: &[u8], index: u32, flags: i32) -> Result<(OwnedFd, OwnedFd)> {
    let master = open_index(ptmx, index, flags)?;
    ioctl(master.as_fd(), TIOCSPTLCK, 0).context("TIOCSPTLCK")?;
    let slave = open_peer(master.as_fd()).with_context(|| format!("open slave {index}"))?;
    let mut modes = tcgetattr(&slave).context("tcgetattr")?;
    cfmakeraw(&mut modes);
    tcsetattr(&slave, SetArg::TCSANOW, &modes).context("tcsetattr")?;
    Ok((master, slave))
}

/// A new master with this index.
fn open_index(ptmx: &[u8], index: u32, flags: i32) -> Result<OwnedFd> {
    let name = OsStr::from_bytes(ptmx);
    let flags = flags & !libc::O_ASYNC | libc::O_NOCTTY | libc::O_CLOEXEC;
    let mut below = Vec::new();
    loop {
        let master = open(name, OFlag::from_bits_retain(flags), Mode::empty())
            .with_context(|| format!("open {}", name.display()))?;
        match ioctl(master.as_fd(), TIOCGPTN, 0).context("TIOCGPTN")? {
            got if got == index => return Ok(master),
            got if got < index => below.push(master),
            _ => bail!("pseudo terminal {index} is in use"),
        }
    }
}

/// Makes a request whose argument is one int, and gives that back.
fn ioctl(fd: BorrowedFd<'_>, request: libc::Ioctl, value: u32) -> Result<u32, Errno> {
    let mut argument = [0; ROOM];
    let (int, _) = argument.split_at_mut(4);
    int.copy_from_slice(&value.to_ne_bytes());
    let mut args = [
        OwnArg::Val(fd.as_raw_fd() as u64),
        OwnArg::Val(request),
        OwnArg::Bytes(&mut argument),
    ];
    broker::call(libc::SYS_ioctl, &mut args, &mut [])?;
    let [a, b, c, d, ..] = argument;
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// The other end of a master, wherever its devpts is mounted (Linux 4.13).
fn open_peer(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut args = [
        OwnArg::Val(master.as_raw_fd() as u64),
        OwnArg::Val(libc::TIOCGPTPEER),
        OwnArg::Val((libc::O_RDWR | libc::O_NOCTTY) as u64),
    ];
    match broker::call(libc::SYS_ioctl, &mut args, &mut []).context("TIOCGPTPEER")? {
        Answer::Fd(slave) => {
            // Action scripts are run while it is open.
            fcntl(&slave, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("F_SETFD")?;
            Ok(slave)
        }
        other => bail!("TIOCGPTPEER gave {other:?}"),
    }
}

/// Writes bytes into one end and waits until they lie at the other.
pub fn feed(via: BorrowedFd<'_>, reader: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    write_without_blocking(via, bytes)?;
    let wanted = bytes.len().min(BUFFER);
    let start = Instant::now();
    while bytes_waiting(reader).context("FIONREAD")? < wanted {
        if start.elapsed() > CROSSING {
            bail!("{wanted} bytes did not arrive in {CROSSING:?}");
        }
        // Readable from the first byte on; each further look is after the worker's next turn.
        let mut fds = [PollFd::new(reader, PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(CROSSING_MS)) {
            Ok(_) | Err(Errno::EINTR) => std::thread::yield_now(),
            Err(errno) => return Err(errno).context("poll the terminal"),
        }
    }
    Ok(())
}

/// Our own terminal, opened once more: the first of our standard descriptors that is one.
pub fn own_terminal(flags: i32) -> Result<OwnedFd> {
    let (input, output, errors) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let standard = [input.as_fd(), output.as_fd(), errors.as_fd()];
    let terminal = standard.into_iter().find(|fd| tcgetattr(fd).is_ok());
    let terminal = terminal.context("none of our standard descriptors is a terminal")?;
    let flags = flags & !libc::O_ASYNC | libc::O_NOCTTY;
    reopen(terminal, flags).context("open our terminal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_has_its_index_and_its_bytes() {
        let ptmx = b"/dev/ptmx";
        let (first, _) = make_any(ptmx);
        let index = ioctl(first.as_fd(), TIOCGPTN, 0).expect("TIOCGPTN");
        assert!(make_pty(ptmx, index, libc::O_RDWR).is_err(), "it is in use");
        drop(first);
        // Others may take and give pairs at the same time: any free index will do.
        let made = (index..index + 64).find_map(|index| {
            let made = make_pty(ptmx, index, libc::O_RDWR).ok()?;
            Some((index, made))
        });
        let (index, (master, slave)) = made.expect("a pair");
        assert_eq!(ioctl(master.as_fd(), TIOCGPTN, 0), Ok(index));
        feed(master.as_fd(), slave.as_fd(), b"to the slave\n").expect("fed");
        feed(slave.as_fd(), master.as_fd(), b"to the master\n").expect("fed");
        let mut room = [0; 64];
        let len = nix::unistd::read(&slave, &mut room).expect("read");
        assert_eq!(&room[..len], b"to the slave\n");
        let len = nix::unistd::read(&master, &mut room).expect("read");
        assert_eq!(&room[..len], b"to the master\n");
    }

    fn make_any(ptmx: &[u8]) -> (OwnedFd, u32) {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = open(OsStr::from_bytes(ptmx), flags, Mode::empty()).expect("ptmx");
        let index = ioctl(master.as_fd(), TIOCGPTN, 0).expect("TIOCGPTN");
        (master, index)
    }
}
