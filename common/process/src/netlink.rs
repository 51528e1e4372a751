//! The bytes of netlink messages: headers, attributes and nests (include/uapi/linux/netlink.h).
//!
//! sock_diag and nf_tables are spoken with directly: their messages are few, and the crates for
//! them lack what is needed here (owned tables; inodes of unix sockets).

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Bytes of struct nlmsghdr.
const HEADER: usize = 16;
/// Bytes of struct nlattr.
const ATTRIBUTE: usize = 4;
/// An attribute that holds attributes.
const NESTED: u16 = 0x8000;

/// NLMSG_ERROR, also an acknowledgement.
pub const ERROR: u16 = 2;
/// NLMSG_DONE.
pub const DONE: u16 = 3;
/// NLM_F_REQUEST.
pub const REQUEST: u16 = 1;
/// NLM_F_ACK.
pub const ACK: u16 = 4;
/// NLM_F_DUMP.
pub const DUMP: u16 = 0x300;
/// NLM_F_DUMP_INTR: the table changed during the dump.
pub const INTERRUPTED: u16 = 0x10;

/// A message being written; headers and nests get their length when they end.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// All messages so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// One message; `body` writes what is behind its header.
    pub fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        body(self);
        let len = (self.bytes.len() - start) as u32;
        self.patch(start, &len.to_ne_bytes());
        self.pad();
    }

    /// Bytes as they are: the structure that a message begins with.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// An attribute of these bytes.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = (ATTRIBUTE + value.len()) as u16;
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
    }

    /// A text with its final zero.
    pub fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, &[text.as_bytes(), &[0]].concat());
    }

    /// A number in network byte order, as nf_tables has them all.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// An attribute of attributes, of 64 KiB at most.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        inside(self);
        let len = (self.bytes.len() - start) as u16;
        self.patch(start, &len.to_ne_bytes());
    }

    fn patch(&mut self, at: usize, with: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + with.len()) {
            place.copy_from_slice(with);
        }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// A message received.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its type.
    pub kind: u16,
    /// NLM_F_*.
    pub flags: u16,
    /// Of the request that it answers.
    pub sequence: u32,
    /// What is behind the header.
    pub body: &'a [u8],
}

impl Message<'_> {
    /// What an ERROR or DONE says; an acknowledgement is no error.
    pub fn status(&self) -> Result<(), Errno> {
        match word(self.body, 0).unwrap_or(0) as i32 {
            0 => Ok(()),
            status => Err(Errno::from_raw(status.wrapping_neg())),
        }
    }
}

/// The first message of a datagram and the rest of it.
pub fn split_message(datagram: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let len = word(datagram, 0)? as usize;
    let message = Message {
        kind: half(datagram, 4)?,
        flags: half(datagram, 6)?,
        sequence: word(datagram, 8)?,
        body: datagram.get(HEADER..len)?,
    };
    let next = len.next_multiple_of(4).min(datagram.len());
    Some((message, datagram.get(next..)?))
}

/// The kind and value of the first attribute, and the rest.
pub fn split_attribute(attributes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let len = usize::from(half(attributes, 0)?);
    let value = attributes.get(ATTRIBUTE..len)?;
    let next = len.next_multiple_of(4).min(attributes.len());
    Some((
        half(attributes, 2)? & !NESTED,
        value,
        attributes.get(next..)?,
    ))
}

/// The value of the first attribute of a kind.
pub fn find_attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (kind, value, rest) = split_attribute(attributes)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = rest;
    }
}

/// A 16-bit number of the host's byte order.
pub fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

/// A 32-bit number of the host's byte order.
pub fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// As many 32-bit numbers as there are.
pub fn words(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_ne_bytes(*word)).collect()
}

/// A netlink socket in the network namespace of the calling thread. It stays in that namespace
/// wherever the thread goes.
pub fn open(protocol: SockProtocol) -> Result<OwnedFd, Errno> {
    socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )
}

/// Sends to the kernel.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), Errno> {
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), bytes, &kernel, MsgFlags::empty()).map(drop)
}

/// Receives one datagram; EMSGSIZE if it does not fit.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_TRUNC) {
            Ok(len) if len <= buffer.len() => return Ok(len),
            Ok(_) => return Err(Errno::EMSGSIZE),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_split() {
        let mut writer = Writer::default();
        writer.message(7, REQUEST, 3, |message| {
            message.raw(&[1, 2, 3, 4]);
            message.text(1, "ab");
            message.nest(2, |nest| nest.number(5, 0x0102_0304));
        });
        writer.message(8, 0, 4, |_| {});
        let (first, rest) = split_message(writer.bytes()).expect("whole");
        assert_eq!((first.kind, first.flags, first.sequence), (7, REQUEST, 3));
        let (kind, value, more) = split_attribute(&first.body[4..]).expect("whole");
        assert_eq!((kind, value), (1, &b"ab\0"[..]));
        let (kind, value, more) = split_attribute(more).expect("whole");
        assert_eq!((kind, more.len()), (2, 0));
        let (kind, value, _) = split_attribute(value).expect("whole");
        assert_eq!((kind, value), (5, &[1, 2, 3, 4][..]));
        let (second, rest) = split_message(rest).expect("whole");
        assert_eq!((second.kind, rest.len()), (8, 0));
        for cut in 1..HEADER {
            assert!(split_message(&writer.bytes()[..cut]).is_none());
        }
    }
}
