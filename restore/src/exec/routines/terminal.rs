//! Pseudo terminals: a pair under a certain index, bytes that wait in it, our own terminal.
//!
//! /dev/ptmx gives the lowest free index, so those below the wanted one are taken for the moment
//! and given back; one that somebody has cannot be had. A new pair is made raw, so that nothing
//! is echoed before it has its modes.

use anyhow::{Context, Result, bail};
use crust_process::broker::{self, OwnArg};
use crust_process::descriptor::reopen;
use crust_process::terminal::{Waiting, open_peer, put_input, put_output};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Room for the largest argument of an ioctl.
const ROOM: usize = 64;
/// _IOR('T', 0x30, unsigned int) and _IOW('T', 0x31, int) of asm-generic/ioctls.h.
const TIOCGPTN: libc::Ioctl = 0x8004_5430;
const TIOCSPTLCK: libc::Ioctl = 0x4004_5431;

/// Opens the slave of a new pair, and makes it raw.
pub fn open_slave(master: BorrowedFd<'_>) -> Result<OwnedFd> {
    ioctl(master, TIOCSPTLCK, 0).context("TIOCSPTLCK")?;
    let slave = open_peer(master).context("TIOCGPTPEER")?;
    let mut modes = tcgetattr(&slave).context("tcgetattr")?;
    cfmakeraw(&mut modes);
    tcsetattr(&slave, SetArg::TCSANOW, &modes).context("tcsetattr")?;
    Ok(slave)
}

/// A new master with this index and these flags; its slave cannot be opened yet.
pub fn make_master(ptmx: &[u8], index: u32, flags: i32) -> Result<OwnedFd> {
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

/// Puts bytes into the queue of the master.
pub fn feed_master(master: BorrowedFd<'_>, slave: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    let waiting = Waiting {
        bytes: bytes.to_vec(),
        ends: Vec::new(),
    };
    put_output(master, slave, &waiting).with_context(|| format!("put {} bytes", bytes.len()))
}

/// Puts bytes, with the ends of file that were typed among them, into the queue of the slave.
pub fn feed_slave(
    slave: BorrowedFd<'_>,
    master: BorrowedFd<'_>,
    bytes: &[u8],
    ends: &[u64],
) -> Result<()> {
    let waiting = Waiting {
        bytes: bytes.to_vec(),
        ends: ends.to_vec(),
    };
    put_input(slave, master, &waiting).with_context(|| format!("put {} bytes", bytes.len()))
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
        assert!(make_master(ptmx, index, libc::O_RDWR).is_err(), "in use");
        drop(first);
        // Others may take and give pairs at the same time: any free index will do.
        let made = (index..index + 64).find_map(|index| {
            let made = make_master(ptmx, index, libc::O_RDWR).ok()?;
            Some((index, made))
        });
        let (index, master) = made.expect("a master");
        let slave = open_slave(master.as_fd()).expect("its slave");
        assert_eq!(ioctl(master.as_fd(), TIOCGPTN, 0), Ok(index));
        let (ends, ours, theirs) = ([], master.as_fd(), slave.as_fd());
        feed_slave(theirs, ours, b"to the slave\n", &ends).expect("fed");
        feed_master(ours, theirs, b"to the master\n").expect("fed");
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
