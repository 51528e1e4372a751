//! A TCP segment sent to a socket of this host in the name of its peer, for which no call exists:
//! the peer's FIN, and its acknowledgement of ours.
//!
//! It goes by a raw socket with headers of our own making (raw(7), IP_HDRINCL) to an address of
//! this host, so the kernel hands it over by the loopback device and never asks whether the sender
//! is plausible. It bears the mark that passes the network lock, and no timestamps option, without
//! which a segment is not measured against the peer's clock.

use crate::files::tcp::socket_addr;
use anyhow::{Context, Result, bail};
use crust_process::netfilter::MARK;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
    setsockopt, socket, sockopt,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

const TCP_HEADER: usize = 20;
const ACK: u8 = 0x10;
const FIN: u8 = 0x01;
const HOPS: u8 = 64;

/// A segment without data.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The peer's address, as a sockaddr.
    pub from: &'a [u8],
    /// Ours.
    pub to: &'a [u8],
    /// Its sequence number.
    pub seq: u32,
    /// What it acknowledges.
    pub ack: u32,
    /// The peer ends with it.
    pub fin: bool,
    /// The peer's window, scaled.
    pub window: u16,
}

/// Raw sockets, made when they are needed.
#[derive(Debug, Default)]
pub struct Sender {
    four: Option<OwnedFd>,
    six: Option<OwnedFd>,
}

impl Sender {
    /// Sends a segment.
    pub fn send(&mut self, segment: &Segment<'_>) -> Result<()> {
        let from = socket_addr(segment.from).context("the peer's address")?;
        let to = socket_addr(segment.to).context("our address")?;
        self.send_packet(from, to, libc::IPPROTO_TCP, |sum| {
            encode_tcp(segment, from.port(), to.port(), sum)
        })
    }

    /// Sends what `encode` makes, given the sum of the addresses, as a packet of a protocol.
    pub fn send_packet(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        protocol: i32,
        encode: impl FnOnce(Sum) -> Vec<u8>,
    ) -> Result<()> {
        let mut sum = Sum::default();
        let sent = match (from.ip().to_canonical(), to.ip().to_canonical()) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                sum.add(&source.octets());
                sum.add(&target.octets());
                let packet = [encode_v4(source, target, protocol), encode(sum)].concat();
                let raw = made(&mut self.four, AddressFamily::Inet)?;
                let target = SockaddrIn::from(SocketAddrV4::new(target, 0));
                sendto(raw.as_raw_fd(), &packet, &target, MsgFlags::empty())
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                sum.add(&source.octets());
                sum.add(&target.octets());
                let content = encode(sum);
                let header = encode_v6(source, target, protocol, content.len() as u16);
                let packet = [header, content].concat();
                let raw = made(&mut self.six, AddressFamily::Inet6)?;
                let target = SockaddrIn6::from(SocketAddrV6::new(target, 0, 0, 0));
                sendto(raw.as_raw_fd(), &packet, &target, MsgFlags::empty())
            }
            _ => bail!("{from} and {to} are of two families"),
        };
        sent.with_context(|| format!("send in the name of {from} to {to}"))?;
        Ok(())
    }
}

fn made(kept: &mut Option<OwnedFd>, family: AddressFamily) -> Result<&OwnedFd> {
    if kept.is_none() {
        let flags = SockFlag::SOCK_CLOEXEC;
        let raw = socket(family, SockType::Raw, flags, SockProtocol::Raw);
        let raw = raw.context("make a raw socket")?;
        setsockopt(&raw, sockopt::Mark, &MARK).context("SO_MARK")?;
        *kept = Some(raw);
    }
    kept.as_ref().context("a raw socket")
}

/// The kernel fills in length, id and checksum.
fn encode_v4(source: Ipv4Addr, target: Ipv4Addr, protocol: i32) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, HOPS, protocol as u8, 0, 0];
    header.extend(source.octets());
    header.extend(target.octets());
    header
}

fn encode_v6(source: Ipv6Addr, target: Ipv6Addr, protocol: i32, len: u16) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(len.to_be_bytes());
    header.extend([protocol as u8, HOPS]);
    header.extend(source.octets());
    header.extend(target.octets());
    header
}

/// The TCP header with its checksum, into which the addresses go too.
fn encode_tcp(segment: &Segment<'_>, source: u16, target: u16, mut sum: Sum) -> Vec<u8> {
    let mut header = Vec::with_capacity(TCP_HEADER);
    header.extend(source.to_be_bytes());
    header.extend(target.to_be_bytes());
    header.extend(segment.seq.to_be_bytes());
    header.extend(segment.ack.to_be_bytes());
    let flags = if segment.fin { ACK | FIN } else { ACK };
    header.extend([(TCP_HEADER as u8 / 4) << 4, flags]);
    header.extend(segment.window.to_be_bytes());
    header.extend([0; 4]);
    sum.add(&[0, libc::IPPROTO_TCP as u8, 0, TCP_HEADER as u8]);
    sum.add(&header);
    let checksum = sum.folded().to_be_bytes();
    if let Some(place) = header.get_mut(16..18) {
        place.copy_from_slice(&checksum);
    }
    header
}

/// The checksum of RFC 1071.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u32);

impl Sum {
    /// Pairs of bytes; a last one alone is left out.
    pub fn add(&mut self, bytes: &[u8]) {
        let (pairs, _) = bytes.as_chunks::<2>();
        self.0 += pairs
            .iter()
            .map(|pair| u32::from(u16::from_be_bytes(*pair)))
            .sum::<u32>();
    }

    /// What goes into a header.
    pub fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_checksum_sums_up_to_nothing() {
        let segment = Segment {
            from: &[],
            to: &[],
            seq: 0x0102_0304,
            ack: 0xfefd_fcfb,
            fin: true,
            window: 512,
        };
        let (source, target) = (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::LOCALHOST);
        let mut sum = Sum::default();
        sum.add(&source.octets());
        sum.add(&target.octets());
        let header = encode_tcp(&segment, 80, 4711, sum);
        assert_eq!((header.len(), header[13]), (20, ACK | FIN));
        sum.add(&[0, 6, 0, 20]);
        sum.add(&header);
        assert_eq!(sum.folded(), 0);
    }
}
