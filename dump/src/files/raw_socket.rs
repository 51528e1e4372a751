//! What raw sockets (raw(7)) have besides: headers of the program's own, filters of ICMP types, and a
//! peer without a port.

use super::inet_socket::{Address, Socket};
use anyhow::Context as _;
use crust_image::tcp_state::ESTABLISHED;
use crust_process::descriptor::{sockopt_bytes, sockopt_int};
use crust_proto::criu::IpOptsRawEntry;
use nix::libc;
use std::os::fd::BorrowedFd;

/// Not in libc for this target (include/uapi/linux/{in,in6,icmp,icmpv6}.h).
const IP_NODEFRAG: i32 = 22;
const IPV6_HDRINCL: i32 = 36;
const SOL_RAW: i32 = 255;
const FILTER: i32 = 1;

/// The peer of a connected one, which the kernel lists in /proc/net/raw and raw6 in the columns of
/// /proc/net/tcp (Documentation/networking/proc_net_tcp).
pub(super) fn find_peer(socket: &mut Socket, ino: u32) -> anyhow::Result<()> {
    let file = match socket.family {
        libc::AF_INET => "/proc/net/raw",
        _ => "/proc/net/raw6",
    };
    let text = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
    if let Some(peer) = parse_peer(&text, ino) {
        (socket.state, socket.peer) = (ESTABLISHED, peer);
    }
    Ok(())
}

/// The other end of the socket with this inode, if it is connected.
fn parse_peer(text: &str, ino: u32) -> Option<Address> {
    let lines = text
        .lines()
        .skip(1)
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let line = lines
        .into_iter()
        .find(|words| words.get(9).and_then(|word| word.parse().ok()) == Some(ino))?;
    let (address, port) = line.get(2)?.split_once(':')?;
    let connected = u32::from_str_radix(line.get(3)?, 16).ok()? == ESTABLISHED;
    let words: Option<Vec<u32>> = (0..address.len() / 8)
        .map(|word| u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok())
        .collect();
    connected.then_some(Address {
        port: u16::from_str_radix(port, 16).ok()?,
        words: words?,
    })
}

/// Options of raw sockets only; where the checksum goes is among the options of our own, for the
/// image has no number for it.
pub(super) fn collect_options(
    fd: BorrowedFd,
    socket: &Socket,
) -> anyhow::Result<Option<IpOptsRawEntry>> {
    if !socket.is_raw() {
        return Ok(None);
    }
    let is_set = |level, name, what| {
        let value = sockopt_int(fd, level, name).context(what)?;
        anyhow::Ok((value != 0).then_some(true))
    };
    let six = socket.family == libc::AF_INET6;
    let (hdrincl, nodefrag) = match six {
        true => (
            is_set(libc::IPPROTO_IPV6, IPV6_HDRINCL, "IPV6_HDRINCL")?,
            None,
        ),
        false => (
            is_set(libc::IPPROTO_IP, libc::IP_HDRINCL, "IP_HDRINCL")?,
            is_set(libc::IPPROTO_IP, IP_NODEFRAG, "IP_NODEFRAG")?,
        ),
    };
    let mut filter = [0; 32];
    let filter = match (six, socket.protocol) {
        (false, libc::IPPROTO_ICMP) => {
            let len = sockopt_bytes(fd, SOL_RAW, FILTER, &mut filter).context("ICMP_FILTER")?;
            filter.get(..len.min(4))
        }
        (true, libc::IPPROTO_ICMPV6) => {
            let level = libc::IPPROTO_ICMPV6;
            let len = sockopt_bytes(fd, level, FILTER, &mut filter).context("ICMPV6_FILTER")?;
            filter.get(..len)
        }
        _ => None,
    };
    let (words, _) = filter.unwrap_or_default().as_chunks::<4>();
    Ok(Some(IpOptsRawEntry {
        hdrincl,
        nodefrag,
        checksum: None,
        icmpv_filter: words.iter().map(|word| u32::from_ne_bytes(*word)).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  253: 0100007F:00FD 0100007F:0000 01 00000000:00000000 00:00000000 00000000     0        0 4711 2 0000000000000000 0
    1: 00000000:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4712 2 0000000000000000 0
";

    #[test]
    fn only_a_connected_one_has_a_peer() {
        let peer = parse_peer(RAW, 4711).unwrap();
        assert_eq!(peer.to_string(), "127.0.0.1:0");
        assert_eq!(parse_peer(RAW, 4712), None);
        assert_eq!(parse_peer(RAW, 4713), None);
    }
}
