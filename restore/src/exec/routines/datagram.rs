//! Datagrams that waited in a UDP socket, sent to it again in the names of their senders, as
//! segments of TCP are (`segment.rs`).
//!
//! UDP may lose them on this way as on any other: a firewall can stand in it. That is told and
//! fails nothing.

use super::segment::{Sender, Sum};
use crate::files::tcp::socket_addr;
use crate::plan::routine::Datagrams;
use anyhow::{Context, Result};
use crust_process::descriptor::sockopt_bytes;
use nix::libc;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

const UDP_HEADER: usize = 8;
/// include/uapi/asm-generic/socket.h; its first word is the memory of what waits.
const SO_MEMINFO: i32 = 55;
/// How long the kernel is given to hand over what it has taken, which it does at once if no other
/// packets are under way.
const PATIENCE: Duration = Duration::from_secs(2);

/// Puts them into the queue. What is to be told if they do not get there.
pub fn put(
    sender: &mut Sender,
    socket: BorrowedFd<'_>,
    datagrams: &Datagrams,
) -> Result<Option<String>> {
    let to = socket_addr(&datagrams.to).context("our address")?;
    let mut bytes = 0;
    for (from, data) in &datagrams.queue {
        let from = socket_addr(from).context("a sender's address")?;
        let to = SocketAddr::new(target(from.ip(), to.ip()), to.port());
        let udp = |sum| encode(from.port(), to.port(), data, sum);
        let sent = sender.send_packet(from, to, libc::IPPROTO_UDP, udp);
        if let Err(error) = sent {
            return Ok(Some(format!("datagrams to {to} are lost: {error:#}")));
        }
        bytes += data.len().max(1);
    }
    let since = Instant::now();
    while waiting(socket)? < bytes {
        if since.elapsed() > PATIENCE {
            let count = datagrams.queue.len();
            return Ok(Some(format!(
                "of {count} datagrams to {to} some are lost (does a firewall filter them?)"
            )));
        }
        std::thread::yield_now();
    }
    Ok(None)
}

/// The address at which a socket hears a sender.
fn target(from: IpAddr, to: IpAddr) -> IpAddr {
    match (to.is_unspecified(), from.to_canonical()) {
        (false, _) => to,
        (true, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
        (true, IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Bytes of memory, which is more than what the datagrams hold.
fn waiting(socket: BorrowedFd<'_>) -> Result<usize> {
    let mut words = [0; 4];
    sockopt_bytes(socket, libc::SOL_SOCKET, SO_MEMINFO, &mut words).context("SO_MEMINFO")?;
    Ok(u32::from_ne_bytes(words) as usize)
}

/// Header and contents, with the checksum into which the addresses have gone.
fn encode(source: u16, target: u16, data: &[u8], mut sum: Sum) -> Vec<u8> {
    let len = (UDP_HEADER + data.len()) as u16;
    let mut packet = Vec::with_capacity(usize::from(len));
    for half in [source, target, len, 0] {
        packet.extend(half.to_be_bytes());
    }
    packet.extend(data);
    sum.add(&[0, libc::IPPROTO_UDP as u8]);
    sum.add(&len.to_be_bytes());
    sum.add(&packet);
    if let [.., last] = packet.as_slice()
        && !packet.len().is_multiple_of(2)
    {
        sum.add(&[*last, 0]);
    }
    // 0 would say that there is none.
    let checksum = match sum.folded() {
        0 => u16::MAX,
        checksum => checksum,
    };
    if let Some(place) = packet.get_mut(6..8) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_checksum_sums_up_to_nothing() {
        for data in [&b""[..], b"even", b"odd"] {
            let packet = encode(53, 4711, data, Sum::default());
            let mut sum = Sum::default();
            sum.add(&[0, 17]);
            sum.add(&(packet.len() as u16).to_be_bytes());
            sum.add(&[&packet[..], &[0]].concat());
            assert_eq!((packet.len(), sum.folded()), (8 + data.len(), 0));
        }
    }
}
