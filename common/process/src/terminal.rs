//! What waits in a terminal to be read: taken out and put in.
//!
//! The kernel has no peek for terminals, so a dump reads what waits and puts it back at once. Three
//! facts of drivers/tty/n_tty.c decide how:
//! - With ICANON a read gives one line, or what was there when the end-of-file character was
//!   typed; what follows the last line shows only without ICANON. Switching ICANON makes all that
//!   waits one line, so it is switched only while nothing waits.
//! - TIOCSTI puts a byte into the queue of its own end, by the input modes of the moment, and is
//!   done when it returns; writing into the other end is not, a worker of the kernel carries that
//!   over.
//! - A queue holds 4095 bytes; up to 8192 more wait behind it, in buffers that only the other end
//!   fills.
//!
//! TIOCSTI needs CAP_SYS_ADMIN for a terminal that is not one's own (tty_io.c).

use crate::descriptor::{Termios, bytes_waiting, tty_modes};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What the queue of one end holds at most (N_TTY_BUF_SIZE less one).
pub const QUEUE: usize = 4095;
/// Indexes of control characters (asm-generic/termbits.h).
const VEOF: usize = 4;
const VTIME: usize = 5;
const VMIN: usize = 6;
const VEOL: usize = 11;
const VEOL2: usize = 16;
/// EXTPROC: the other end edits lines, the kernel does not.
const EXTPROC: u32 = 0o200_000;

/// The bytes that wait at one end of a terminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// All of them, as a program would read them.
    pub bytes: Vec<u8>,
    /// Places in `bytes` before which a read ends though no line does: end of file was typed.
    /// Ascending; two equal ones are an end of file with nothing before it.
    pub ends: Vec<u64>,
}

impl Waiting {
    /// Nothing at all, not even an end of file.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.ends.is_empty()
    }
}

/// Whether the kernel edits lines.
pub fn is_canonical(modes: &Termios) -> bool {
    modes.lflag & libc::ICANON != 0 && modes.lflag & EXTPROC == 0
}

/// Sets the modes at once (TCSETS); of a pty they are the slave's, whichever end is asked.
pub fn set_modes(tty: BorrowedFd, modes: &Termios) -> nix::Result<()> {
    // SAFETY: TCSETS reads a struct termios, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TCSETS, modes) }).map(drop)
}

/// Opens the slave of a master, wherever its devpts is mounted (Linux 4.13).
pub fn open_peer(master: BorrowedFd) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes flags and answers with a new descriptor.
    let fd = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes what waits at the master, and says how it ended: what was taken then must go back too. In
/// packet mode there is a byte of status before each read, which is left out.
pub fn take_output(master: BorrowedFd, packets: bool) -> (Waiting, nix::Result<()>) {
    let mut waiting = Waiting::default();
    let taken = take_packets(master, packets, &mut waiting);
    (waiting, taken)
}

fn take_packets(master: BorrowedFd, packets: bool, waiting: &mut Waiting) -> nix::Result<()> {
    while poll_input(master)? {
        // A status of packet mode makes it readable too, and is not ours to take.
        let count = bytes_waiting(master)?;
        if count == 0 {
            break;
        }
        let mut room = vec![0; count + usize::from(packets)];
        let got = read(master, &mut room)?;
        let data = room.get(usize::from(packets)..got).unwrap_or_default();
        if got == 0 {
            break;
        }
        waiting.bytes.extend_from_slice(data);
    }
    Ok(())
}

/// Takes what waits at the slave, leaves its modes as they were, and says how it ended: what was
/// taken then must go back too.
pub fn take_input(slave: BorrowedFd) -> (Waiting, nix::Result<()>) {
    let mut waiting = Waiting::default();
    let taken = take_all(slave, &mut waiting);
    (waiting, taken)
}

fn take_all(slave: BorrowedFd, waiting: &mut Waiting) -> nix::Result<()> {
    let modes = tty_modes(slave)?;
    if is_canonical(&modes) {
        take_lines(slave, &modes, waiting)?;
    }
    let taken = set_modes(slave, &raw(&modes)).and_then(|()| take_rest(slave, waiting));
    insist(|| set_modes(slave, &modes))?;
    taken
}

/// Once more if the kernel refuses, as it may when it is short of memory: what is not put back is
/// lost to the program.
fn insist<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    call().or_else(|_| call())
}

fn take_lines(slave: BorrowedFd, modes: &Termios, waiting: &mut Waiting) -> nix::Result<()> {
    while poll_input(slave)? {
        let mut room = [0; QUEUE + 1];
        let got = read(slave, &mut room)?;
        let line = room.get(..got).unwrap_or_default();
        waiting.bytes.extend_from_slice(line);
        if !line.last().is_some_and(|last| ends_line(*last, modes)) {
            waiting.ends.push(waiting.bytes.len() as u64);
        }
    }
    Ok(())
}

fn take_rest(slave: BorrowedFd, waiting: &mut Waiting) -> nix::Result<()> {
    while poll_input(slave)? {
        let mut room = [0; QUEUE + 1];
        let got = read(slave, &mut room)?;
        if got == 0 {
            break;
        }
        waiting
            .bytes
            .extend_from_slice(room.get(..got).unwrap_or_default());
    }
    Ok(())
}

/// Whether a byte ends a line: a newline, or one of two characters that a user chooses.
fn ends_line(byte: u8, modes: &Termios) -> bool {
    byte == b'\n' || (byte != 0 && [modes.cc[VEOL], modes.cc[VEOL2]].contains(&byte))
}

/// Puts input into the slave as if it had been typed and edited already, by modes that change
/// nothing, and leaves its modes as they were. What the queue has no room for is written into the
/// master.
pub fn put_input(slave: BorrowedFd, master: BorrowedFd, waiting: &Waiting) -> nix::Result<()> {
    let modes = insist(|| tty_modes(slave))?;
    let eof = unused_byte(&waiting.bytes, &modes).ok_or(Errno::EOVERFLOW)?;
    let literal = literal(&modes, eof);
    // An end of file means something to the kernel only where it edits lines.
    let typed = if is_canonical(&modes) {
        typed(waiting, eof)
    } else {
        waiting.bytes.clone()
    };
    let (first, rest) = typed.split_at(typed.len().min(QUEUE));
    let put = insist(|| set_modes(slave, &literal))
        .and_then(|()| put_bytes(slave, first))
        .and_then(|()| write_all(master, rest));
    insist(|| set_modes(slave, &modes))?;
    put
}

/// Puts output into the queue of the master, where it waits to be read; what that has no room for
/// is written into the slave, with no modes that would change it.
pub fn put_output(master: BorrowedFd, slave: BorrowedFd, waiting: &Waiting) -> nix::Result<()> {
    let (first, rest) = waiting.bytes.split_at(waiting.bytes.len().min(QUEUE));
    put_bytes(master, first)?;
    if rest.is_empty() {
        return Ok(());
    }
    let modes = insist(|| tty_modes(slave))?;
    let unchanged = Termios {
        oflag: modes.oflag & !libc::OPOST,
        ..modes
    };
    let put = insist(|| set_modes(slave, &unchanged)).and_then(|()| write_all(slave, rest));
    insist(|| set_modes(slave, &modes))?;
    put
}

/// The bytes with an end-of-file character at each end.
fn typed(waiting: &Waiting, eof: u8) -> Vec<u8> {
    let mut typed = Vec::with_capacity(waiting.bytes.len() + waiting.ends.len());
    let mut ends = waiting.ends.iter().peekable();
    for (at, byte) in (0..).zip(&waiting.bytes) {
        while ends.next_if(|end| **end <= at).is_some() {
            typed.push(eof);
        }
        typed.push(*byte);
    }
    typed.extend(ends.map(|_| eof));
    typed
}

/// Modes by which a read gives every byte there is.
fn raw(modes: &Termios) -> Termios {
    let mut raw = literal(modes, 0);
    raw.lflag = 0;
    raw
}

/// Modes by which each byte comes in as it is, but for those that end a line and `eof`. ICANON
/// stays, for its change makes one line of all. IXON stays, for its end lets a stopped terminal
/// go; without characters it does nothing.
fn literal(modes: &Termios, eof: u8) -> Termios {
    let mut cc = [0; 19];
    cc[VEOF] = eof;
    cc[VMIN] = 1;
    cc[VTIME] = 0;
    cc[VEOL] = modes.cc[VEOL];
    cc[VEOL2] = modes.cc[VEOL2];
    Termios {
        iflag: modes.iflag & libc::IXON,
        lflag: modes.lflag & (libc::ICANON | EXTPROC),
        cc,
        ..*modes
    }
}

/// A byte to mean end of file, that is nowhere in the data and means nothing else.
fn unused_byte(bytes: &[u8], modes: &Termios) -> Option<u8> {
    let mut used = [false; 256];
    for byte in bytes {
        used[usize::from(*byte)] = true;
    }
    (1..=u8::MAX).find(|byte| !used[usize::from(*byte)] && !ends_line(*byte, modes))
}

/// TIOCSTI for each byte.
fn put_bytes(tty: BorrowedFd, bytes: &[u8]) -> nix::Result<()> {
    for byte in bytes {
        insist(|| {
            // SAFETY: TIOCSTI reads one byte, which outlives the call.
            Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCSTI, byte) })
        })?;
    }
    Ok(())
}

/// Whether a read would find something now. The kernel brings over first what is on its way.
fn poll_input(tty: BorrowedFd) -> nix::Result<bool> {
    let mut fds = [PollFd::new(tty, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO)?;
    let [fd] = fds;
    Ok(fd.any().unwrap_or(false)
        && fd
            .revents()
            .is_some_and(|got| got.contains(PollFlags::POLLIN)))
}

/// Byte by byte, for the description is a task's and may block: with room for one byte it does not.
/// ENOSPC when there is no room.
fn write_all(fd: BorrowedFd, bytes: &[u8]) -> nix::Result<()> {
    for byte in bytes {
        let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
        if insist(|| poll(&mut fds, PollTimeout::ZERO))? == 0 {
            return Err(Errno::ENOSPC);
        }
        insist(|| write(fd, std::slice::from_ref(byte)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn whole((waiting, taken): (Waiting, nix::Result<()>)) -> Waiting {
        taken.expect("take");
        waiting
    }

    /// A pair of the machine's; its index does not matter.
    fn pair() -> (OwnedFd, OwnedFd) {
        let pty = nix::pty::openpty(None, None).expect("openpty");
        (pty.master, pty.slave)
    }

    fn with_canonical(slave: &OwnedFd, canonical: bool) {
        let mut modes = tty_modes(slave.as_fd()).expect("modes");
        modes.lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG);
        if canonical {
            modes.lflag |= libc::ICANON | libc::ECHO | libc::ISIG;
        }
        set_modes(slave.as_fd(), &modes).expect("set");
    }

    fn type_in(master: &OwnedFd, bytes: &[u8]) {
        write_all(master.as_fd(), bytes).expect("write");
    }

    #[test]
    fn lines_ends_and_a_line_half_typed_come_back() {
        let (master, slave) = pair();
        type_in(&master, b"one\ntwo\x04\x04half");
        // What the terminal has echoed.
        let modes = tty_modes(slave.as_fd()).expect("modes");
        let waiting = whole(take_input(slave.as_fd()));
        assert_eq!(waiting.bytes, b"one\ntwohalf");
        assert_eq!(waiting.ends, [7, 7]);
        assert!(whole(take_input(slave.as_fd())).is_empty());
        put_input(slave.as_fd(), master.as_fd(), &waiting).expect("put");
        assert_eq!(tty_modes(slave.as_fd()), Ok(modes));
        // As a program reads it: two lines, an end of file, then nothing until a line ends.
        let mut room = [0; 64];
        assert_eq!(read(&slave, &mut room), Ok(4));
        assert_eq!(read(&slave, &mut room), Ok(3));
        assert_eq!(read(&slave, &mut room), Ok(0));
        assert_eq!(poll_input(slave.as_fd()), Ok(false));
        type_in(&master, b" line\n");
        assert_eq!(read(&slave, &mut room), Ok(10));
        assert_eq!(&room[..10], b"half line\n");
    }

    #[test]
    fn raw_input_with_every_byte_comes_back() {
        let (master, slave) = pair();
        with_canonical(&slave, false);
        let mut modes = tty_modes(slave.as_fd()).expect("modes");
        modes.iflag = 0;
        set_modes(slave.as_fd(), &modes).expect("set");
        let all: Vec<u8> = (0..=254).collect();
        type_in(&master, &all);
        let waiting = whole(take_input(slave.as_fd()));
        assert_eq!(waiting.bytes, all);
        put_input(slave.as_fd(), master.as_fd(), &waiting).expect("put");
        assert_eq!(whole(take_input(slave.as_fd())), waiting);
    }

    #[test]
    fn output_comes_back_whatever_its_size() {
        for size in [1, 3000, 4095, 9000] {
            let (master, slave) = pair();
            let bytes: Vec<u8> = (0..size).map(|at| b'a' + (at % 26) as u8).collect();
            write_all(slave.as_fd(), &bytes).expect("write");
            let waiting = whole(take_output(master.as_fd(), false));
            assert_eq!(waiting.bytes, bytes);
            put_output(master.as_fd(), slave.as_fd(), &waiting).expect("put");
            assert_eq!(whole(take_output(master.as_fd(), false)), waiting);
        }
    }

    #[test]
    fn the_peer_is_the_slave() {
        let (master, slave) = pair();
        let peer = open_peer(master.as_fd()).expect("peer");
        let ino = |fd: &OwnedFd| crate::descriptor::statx(fd.as_fd()).expect("statx").rdev;
        assert_eq!(ino(&peer), ino(&slave));
    }
}
