//! Sockets as sock_diag(7) tells them. Of unix sockets, here: type, state, bound name, peer,
//! connections waiting to be accepted, queue lengths. Most of it nobody else tells: the peer's
//! inode and the inodes of unaccepted connections are nowhere in /proc. Internet sockets are in
//! `inet.rs`, netlink and packet sockets in files of their names.
//!
//! Messages are taken apart here rather than by netlink-packet-sock-diag: of its 0.5 the fields
//! of UNIX_DIAG_VFS are private, and UNIX_DIAG_UID is missing. The dump covers the network
//! namespace in which the netlink socket was made. Needs CONFIG_UNIX_DIAG; without it ENOENT.

mod inet;
mod netlink;
mod packet;

pub use inet::{InetSocket, collect_inet_sockets, destroy_connection};
pub use netlink::{NetlinkSocket, collect_netlink_sockets};
pub use packet::{Membership, PacketSocket, Ring, collect_packet_sockets};

use crate::netlink::{
    self as messages, Message, Writer, find_attribute as attribute, split_attribute, split_message,
    word, words,
};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::os::fd::{BorrowedFd, OwnedFd};

/// include/uapi/linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// UDIAG_SHOW_{NAME,VFS,PEER,ICONS,RQLEN,MEMINFO,UID} of include/uapi/linux/unix_diag.h. A
/// kernel before 5.3 does not know UID (bit 6) and leaves it out.
const SHOW: u32 = 0x7f;
/// sizeof(struct unix_diag_msg).
const UNIX_MSG: usize = 16;
/// One dump message fits in 32 KiB: the kernel allocates what the reader last offered, up to this.
const BUFFER: usize = 32 * 1024;
/// A dump during which the table changed says so; tasks are frozen, so others changed it.
const TRIES: usize = 16;

/// One unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocket {
    /// Inode in sockfs; 0 for a connection not yet accepted.
    pub ino: u32,
    /// SOCK_STREAM, SOCK_DGRAM or SOCK_SEQPACKET.
    pub sock_type: u8,
    /// TCP_* state: 1 established, 7 closed, 10 listening.
    pub state: u8,
    /// What names the kernel's struct sock, also after its inode is gone.
    pub cookie: [u32; 2],
    /// sun_path as bound: a path with its trailing NUL cut off, or an abstract name beginning
    /// with a NUL. `None` when unbound.
    pub name: Option<Vec<u8>>,
    /// The bound inode.
    pub vfs: Option<UnixVfs>,
    /// Inode of the peer; 0 for one that waits to be accepted; `None` without.
    pub peer: Option<u32>,
    /// Of a listener: for each waiting connection the inode of the connecting socket, 0 when that
    /// is closed already.
    pub icons: Vec<u32>,
    /// Bytes, or of a listener connections, that wait to be read.
    pub rqlen: u32,
    /// Bytes sent and not read by the peer; of a listener the backlog.
    pub wqlen: u32,
    /// SK_MEMINFO_*: nine words as include/uapi/linux/sock_diag.h orders them, or none.
    pub meminfo: Vec<u32>,
    /// Bit 0 reading, bit 1 writing is shut down (RCV_SHUTDOWN, SEND_SHUTDOWN).
    pub shutdown: u8,
    /// Owner of the socket; since 5.3.
    pub uid: Option<u32>,
}

/// The inode a unix socket is bound to, as unix_diag tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixVfs {
    /// The low 32 bits of the inode number.
    pub ino: u32,
    /// s_dev in the kernel's internal encoding: major << 20 | minor. On btrfs and overlay it is
    /// not st_dev.
    pub dev: u32,
}

/// Why a dump of sockets failed.
#[derive(Debug, thiserror::Error)]
pub enum SockDiagError {
    /// A system call or the kernel's answer.
    #[error("dump sockets by sock_diag: {doing}: {errno}")]
    Kernel {
        /// The step.
        doing: &'static str,
        /// The kernel's word.
        errno: Errno,
    },
    /// A message of a shape the kernel does not promise.
    #[error("dump sockets by sock_diag: cannot read {0} in the kernel's answer")]
    Malformed(&'static str),
    /// The table of sockets changed during every try.
    #[error("dump sockets by sock_diag: the table changed during each of {TRIES} tries")]
    Restless,
}

impl SockDiagError {
    /// The kernel's word, if it had one: ENOENT where a kind of sockets cannot be listed.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            SockDiagError::Kernel { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// A netlink socket for sock_diag in the network namespace of the calling thread. It stays in
/// that namespace wherever the thread goes.
pub fn open_sock_diag() -> Result<OwnedFd, SockDiagError> {
    messages::open(SockProtocol::NetlinkSockDiag).map_err(kernel("socket"))
}

/// All unix sockets of the network namespace of `diag`, see [`open_sock_diag`].
pub fn collect_unix_sockets(diag: BorrowedFd<'_>) -> Result<Vec<UnixSocket>, SockDiagError> {
    collect(diag, &unix_request(), parse_socket)
}

/// What the kernel answers to a request for a dump, each message through `parse`.
fn collect<T>(
    diag: BorrowedFd<'_>,
    request: &[u8],
    parse: Parse<T>,
) -> Result<Vec<T>, SockDiagError> {
    for sequence in 1..=TRIES as u32 {
        if let Some(sockets) = dump_once(diag, sequence, request, parse)? {
            return Ok(sockets);
        }
    }
    Err(SockDiagError::Restless)
}

/// Reads what is behind the header of one message.
type Parse<T> = fn(&[u8]) -> Result<T, SockDiagError>;

fn kernel(doing: &'static str) -> impl Fn(Errno) -> SockDiagError {
    move |errno| SockDiagError::Kernel { doing, errno }
}

/// One dump; `None` when the table changed under it.
fn dump_once<T>(
    diag: BorrowedFd<'_>,
    sequence: u32,
    request: &[u8],
    parse: Parse<T>,
) -> Result<Option<Vec<T>>, SockDiagError> {
    let mut writer = Writer::default();
    let flags = messages::REQUEST | messages::DUMP;
    writer.message(SOCK_DIAG_BY_FAMILY, flags, sequence, |message| {
        message.raw(request);
    });
    messages::send(diag, writer.bytes()).map_err(kernel("send"))?;
    let mut answer = Answer::new(parse);
    let mut buffer = vec![0; BUFFER];
    while !answer.done {
        let len = messages::receive(diag, &mut buffer).map_err(kernel("receive"))?;
        answer.add(buffer.get(..len).unwrap_or_default(), sequence)?;
    }
    Ok((!answer.interrupted).then_some(answer.sockets))
}

/// struct unix_diag_req, for sockets in every state.
fn unix_request() -> Vec<u8> {
    let mut request = vec![nix::libc::AF_UNIX as u8, 0, 0, 0];
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(0u32.to_ne_bytes());
    request.extend(SHOW.to_ne_bytes());
    request.extend([0xff; 8]);
    request
}

/// What the messages of one dump said so far.
#[derive(Debug)]
struct Answer<T> {
    parse: Parse<T>,
    sockets: Vec<T>,
    interrupted: bool,
    done: bool,
}

impl<T> Answer<T> {
    fn new(parse: Parse<T>) -> Answer<T> {
        Answer {
            parse,
            sockets: Vec::new(),
            interrupted: false,
            done: false,
        }
    }

    fn add(&mut self, mut datagram: &[u8], sequence: u32) -> Result<(), SockDiagError> {
        while !datagram.is_empty() && !self.done {
            let (message, rest) =
                split_message(datagram).ok_or(SockDiagError::Malformed("message header"))?;
            datagram = rest;
            // What an earlier, broken off dump left in the queue is not ours.
            if message.sequence == sequence {
                self.add_message(&message)?;
            }
        }
        Ok(())
    }

    fn add_message(&mut self, message: &Message<'_>) -> Result<(), SockDiagError> {
        self.interrupted |= message.flags & messages::INTERRUPTED != 0;
        match message.kind {
            messages::DONE | messages::ERROR => {
                self.done = true;
                // DONE carries a status of its own since 4.16.
                message.status().map_err(kernel("answer"))
            }
            SOCK_DIAG_BY_FAMILY => {
                self.sockets.push((self.parse)(message.body)?);
                Ok(())
            }
            _ => Err(SockDiagError::Malformed("message type")),
        }
    }
}

fn parse_socket(body: &[u8]) -> Result<UnixSocket, SockDiagError> {
    let malformed = || SockDiagError::Malformed("unix_diag_msg");
    let (head, mut attributes) = body.split_at_checked(UNIX_MSG).ok_or_else(malformed)?;
    let at = |offset| word(head, offset).ok_or_else(malformed);
    let mut socket = UnixSocket {
        ino: at(4)?,
        sock_type: head.get(1).copied().ok_or_else(malformed)?,
        state: head.get(2).copied().ok_or_else(malformed)?,
        cookie: [at(8)?, at(12)?],
        name: None,
        vfs: None,
        peer: None,
        icons: Vec::new(),
        rqlen: 0,
        wqlen: 0,
        meminfo: Vec::new(),
        shutdown: 0,
        uid: None,
    };
    while !attributes.is_empty() {
        let (kind, value, rest) =
            split_attribute(attributes).ok_or(SockDiagError::Malformed("attribute header"))?;
        attributes = rest;
        set_attribute(&mut socket, kind, value).ok_or(SockDiagError::Malformed("attribute"))?;
    }
    Ok(socket)
}

/// UNIX_DIAG_* of include/uapi/linux/unix_diag.h; later ones are skipped. `None` for a short one.
fn set_attribute(socket: &mut UnixSocket, kind: u16, value: &[u8]) -> Option<()> {
    match kind {
        0 => socket.name = parse_sun_path(value),
        1 => {
            socket.vfs = Some(UnixVfs {
                ino: word(value, 0)?,
                dev: word(value, 4)?,
            });
        }
        2 => socket.peer = Some(word(value, 0)?),
        3 => socket.icons = words(value),
        4 => (socket.rqlen, socket.wqlen) = (word(value, 0)?, word(value, 4)?),
        5 => socket.meminfo = words(value),
        6 => socket.shutdown = value.first().copied()?,
        7 => socket.uid = Some(word(value, 0)?),
        _ => {}
    }
    Some(())
}

/// The kernel counts the NUL behind a path into its length, but not always: a path of 108 bytes
/// has none.
fn parse_sun_path(value: &[u8]) -> Option<Vec<u8>> {
    match value {
        [] => None,
        [0, ..] => Some(value.to_vec()),
        path => path.split(|&b| b == 0).next().map(<[u8]>::to_vec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};

    fn ino_of(fd: impl AsFd) -> u32 {
        let file = std::fs::File::from(fd.as_fd().try_clone_to_owned().expect("duplicable"));
        file.metadata().expect("a socket has attributes").ino() as u32
    }

    fn find(all: &[UnixSocket], ino: u32) -> &UnixSocket {
        all.iter()
            .find(|s| s.ino == ino)
            .expect("our socket is listed")
    }

    fn collect() -> Vec<UnixSocket> {
        let diag = open_sock_diag().expect("netlink sockets can be made");
        collect_unix_sockets(diag.as_fd()).expect("the dump works")
    }

    #[test]
    fn a_pair_with_data_and_half_closed() {
        let (mut one, other) = UnixStream::pair().expect("socketpair works");
        one.write_all(b"hello").expect("the pair takes five bytes");
        one.shutdown(std::net::Shutdown::Write)
            .expect("a stream half closes");
        let all = collect();
        let (one, other) = (find(&all, ino_of(&one)), find(&all, ino_of(&other)));
        assert_eq!((one.peer, other.peer), (Some(other.ino), Some(one.ino)));
        assert_eq!((one.sock_type, one.state), (1, 1));
        assert_eq!((other.rqlen, one.rqlen), (5, 0));
        assert_eq!((one.shutdown, other.shutdown), (2, 1));
        assert_eq!(one.meminfo.len(), 9);
        assert_eq!(one.uid, Some(nix::unistd::getuid().as_raw()));
        assert_eq!((&one.name, one.vfs), (&None, None));
    }

    #[test]
    fn a_listener_with_a_waiting_connection() {
        let path = std::env::temp_dir().join(format!("crust-diag-{}", std::process::id()));
        let listener = UnixListener::bind(&path).expect("a fresh path can be bound");
        let client = UnixStream::connect(&path).expect("the listener has a backlog");
        let ino = std::fs::metadata(&path)
            .expect("the socket file is there")
            .ino();
        let all = collect();
        std::fs::remove_file(&path).expect("the socket file is ours");
        let listener = find(&all, ino_of(&listener));
        assert_eq!(listener.state, 10);
        assert_eq!(
            listener.name.as_deref(),
            Some(path.as_os_str().as_encoded_bytes())
        );
        assert_eq!(listener.vfs.map(|vfs| vfs.ino), Some(ino as u32));
        assert_eq!(listener.icons, [ino_of(&client)]);
        assert_eq!(listener.rqlen, 1);
        assert_ne!(listener.wqlen, 0);
    }

    #[test]
    fn an_abstract_name_keeps_its_bytes() {
        let name = format!("crust\0diag@{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("the name is short");
        let socket = UnixDatagram::bind_addr(&address).expect("the name is free");
        let all = collect();
        let socket = find(&all, ino_of(&socket));
        assert_eq!(socket.name.as_deref(), Some(format!("\0{name}").as_bytes()));
        assert_eq!((socket.sock_type, socket.peer, socket.vfs), (2, None, None));
    }

    #[test]
    fn cut_answers_are_errors() {
        let mut message = Vec::new();
        message.extend(38u32.to_ne_bytes());
        message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend([2, 0]);
        message.extend(1u32.to_ne_bytes());
        message.extend([0; 4]);
        message.extend([1, 1, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        message.extend([6, 0, 0, 0, 0, b'x', 0, 0]);
        let parse = |bytes: &[u8]| {
            let mut answer = Answer::new(parse_socket);
            answer.add(bytes, 1).map(|()| answer.sockets)
        };
        let whole = parse(&message).expect("the message is whole");
        assert_eq!(
            (whole[0].ino, whole[0].name.as_deref()),
            (7, Some(&b"\0x"[..]))
        );
        for len in 1..38 {
            assert!(parse(&message[..len]).is_err(), "cut at {len}");
        }
        let mut other = message.clone();
        other[8] = 2;
        assert!(
            parse(&other)
                .expect("an old dump's rest is skipped")
                .is_empty()
        );
        let mut short = message.clone();
        short[32] = 3;
        assert!(parse(&short).is_err());
    }
}
