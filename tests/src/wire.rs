//! What goes over the wire: a packet socket that sees every frame of the sandbox's interfaces, from
//! which the ends of TCP connections are read. Nobody may hear of a connection that is dumped.

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
        sockopt,
    },
};
use std::os::fd::{AsRawFd, OwnedFd};

/// Bytes of an Ethernet header; loopback has one too.
const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const IPV6_HEADER: usize = 40;
const TCP: u8 = 6;
const FIN: u8 = 1;
const RST: u8 = 4;

/// A listener on all interfaces.
pub struct Wire(OwnedFd);

impl Wire {
    /// Sees all frames from now on.
    pub fn listen() -> Result<Wire> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let all = SockProtocol::EthAll;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, all);
        let socket = socket.context("make a packet socket")?;
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).context("room for frames")?;
        Ok(Wire(socket))
    }

    /// The FIN and RST segments that have passed since the last question, as `FIN 80 > 4711`. Each
    /// shows twice on loopback, where it goes out and comes in.
    pub fn ends(&self) -> Result<Vec<String>> {
        let (mut ends, mut frame) = (Vec::new(), [0; 256]);
        loop {
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::MSG_TRUNC) {
                Ok(len) => ends.extend(frame.get(..len.min(frame.len())).and_then(end_in)),
                Err(Errno::EAGAIN) => return Ok(ends),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("receive a frame"),
            }
        }
    }
}

/// The end of a connection in a frame, if it holds one.
fn end_in(frame: &[u8]) -> Option<String> {
    let (kind, packet) = (frame.get(12..ETHERNET)?, frame.get(ETHERNET..)?);
    let (protocol, header) = match *kind.first_chunk()? {
        IPV4 => (*packet.get(9)?, usize::from(*packet.first()? & 0xf) * 4),
        IPV6 => (*packet.get(6)?, IPV6_HEADER),
        _ => return None,
    };
    let segment = packet.get(header..).filter(|_| protocol == TCP)?;
    let port = |at: usize| Some(u16::from_be_bytes(*segment.get(at..)?.first_chunk()?));
    let flags = segment.get(13)?;
    let name = match (flags & RST, flags & FIN) {
        (0, 0) => return None,
        (0, _) => "FIN",
        _ => "RST",
    };
    Some(format!("{name} {} > {}", port(0)?, port(2)?))
}
