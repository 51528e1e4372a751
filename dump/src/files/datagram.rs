//! Datagrams that wait in a UDP socket, each with its sender, in fields of our own: the restore sends
//! them again in their senders' names.
//!
//! They are peeked one behind the other (SO_PEEK_OFF, as `unix_queue.rs`). One of no bytes shows to
//! peeks only once. To which of the host's addresses a datagram came is told to nobody who has not
//! asked for it before it came. Not kept, and said so in the log: what comes by an interface that
//! the socket is bound to or from link-local addresses, whose interface no sender from this host
//! can stand for, and what waits in one of several sockets of a port (SO_REUSEPORT).

use super::OpenFile;
use super::unix_queue::peek_all;
use anyhow::Result;
use crust_process::descriptor::{Peeked, poll_state};
use crust_proto::criu::{CrustDatagramEntry, SkOptsEntry};
use nix::libc;
use std::net::Ipv6Addr;

/// Room for the largest.
const ROOM: usize = 64 << 10;
const LOOPBACK: &[u8] = b"lo";

/// The queue of a socket; `None` if it is none that can be kept.
pub fn collect(file: &OpenFile, opts: &SkOptsEntry) -> Result<Option<Vec<CrustDatagramEntry>>> {
    if !poll_state(file.fd)?.readable {
        return Ok(Some(Vec::new()));
    }
    let device = opts.so_bound_dev.as_deref();
    if device.is_some_and(|name| name != LOOPBACK) || opts.so_reuseport == Some(true) {
        return Ok(None);
    }
    let queue = peek_all(file, ROOM, false)?;
    Ok(queue.into_iter().map(encode).collect())
}

fn encode(message: Peeked) -> Option<CrustDatagramEntry> {
    let (from_addr, from_port) = parse_sender(&message.sender)?;
    Some(CrustDatagramEntry {
        from_addr,
        from_port: from_port.into(),
        data: message.data,
    })
}

/// Address and port of a sockaddr_in or sockaddr_in6 that can be sent from.
fn parse_sender(raw: &[u8]) -> Option<(Vec<u8>, u16)> {
    let family = i32::from(u16::from_ne_bytes(*raw.first_chunk()?));
    let port = u16::from_be_bytes(*raw.get(2..)?.first_chunk()?);
    let bytes = match family {
        libc::AF_INET => raw.get(4..8)?,
        libc::AF_INET6 => {
            let bytes = raw.get(8..24)?;
            let address = Ipv6Addr::from(*bytes.first_chunk::<16>()?);
            (!address.is_unicast_link_local()).then_some(bytes)?
        }
        _ => return None,
    };
    Some((bytes.to_vec(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sender_is_told_if_it_can_be_sent_from() {
        let four = [&2u16.to_ne_bytes()[..], &[0, 53, 10, 0, 0, 1], &[0; 8]].concat();
        assert_eq!(parse_sender(&four), Some((vec![10, 0, 0, 1], 53)));
        let six = |first: [u8; 2]| {
            [
                &10u16.to_ne_bytes()[..],
                &[0, 53, 0, 0, 0, 0],
                &first,
                &[1; 14],
            ]
            .concat()
        };
        assert!(parse_sender(&six([0x20, 1])).is_some_and(|(from, _)| from.len() == 16));
        assert_eq!(parse_sender(&six([0xfe, 0x80])), None);
        assert_eq!(parse_sender(&[]), None);
    }
}
