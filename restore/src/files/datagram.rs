//! Datagrams that waited in a UDP socket: sent to it again, each in its sender's name, when it is
//! bound and has its options.
//!
//! A socket bound to no address gets them at the loopback address, as it would any.

use super::inet_socket::sockaddr;
use crate::plan::routine::{Datagrams, Routine};
use crate::plan::step::{Op, SlotId};
use crust_proto::criu::{CrustDatagramEntry, InetSkEntry};
use nix::libc;

/// A UDP packet has 16 bits for its length, its header counted.
const LONGEST: usize = u16::MAX as usize - 8;

/// The step that puts them there, if there are any. `local` is the socket's own address.
pub fn plan(
    isk: &InetSkEntry,
    slot: SlotId,
    local: Option<&Vec<u8>>,
) -> Result<Option<Op>, String> {
    if isk.crust_datagrams.is_empty() {
        return Ok(None);
    }
    let is_udp = isk.proto as i32 == libc::IPPROTO_UDP && isk.r#type as i32 == libc::SOCK_DGRAM;
    let to = local.filter(|_| is_udp && isk.src_port != 0);
    let to = to.ok_or("crust_datagrams: it is no udp socket with a port")?;
    let queue: Result<_, String> = isk.crust_datagrams.iter().map(parse).collect();
    let datagrams = Datagrams {
        slot,
        to: to.clone(),
        queue: queue?,
    };
    let put = Routine::PutDatagrams(Box::new(datagrams));
    Ok(Some(Op::Routine(put)))
}

fn parse(datagram: &CrustDatagramEntry) -> Result<(Vec<u8>, Vec<u8>), String> {
    let len = datagram.data.len();
    if len > LONGEST {
        return Err(format!("crust_datagrams: {len} bytes are no datagram"));
    }
    let (words, _) = datagram.from_addr.as_chunks::<4>();
    let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let family = match datagram.from_addr.len() {
        4 => libc::AF_INET,
        16 => libc::AF_INET6,
        len => return Err(format!("crust_datagrams: an address of {len} bytes")),
    };
    let from = sockaddr(family, "from", datagram.from_port, &words)?;
    Ok((from, datagram.data.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_udp_sockets_with_a_port_get_what_is_a_datagram() {
        let datagram = |address: usize, len: usize| CrustDatagramEntry {
            from_addr: vec![127; address],
            from_port: 9,
            data: vec![7; len],
        };
        let mut isk = InetSkEntry {
            proto: libc::IPPROTO_UDP as u32,
            r#type: libc::SOCK_DGRAM as u32,
            src_port: 53,
            ..InetSkEntry::default()
        };
        let planned = |isk: &InetSkEntry| plan(isk, SlotId(0), Some(&vec![0; 16]));
        assert_eq!(planned(&isk), Ok(None));
        isk.crust_datagrams = vec![datagram(4, 0), datagram(16, LONGEST)];
        assert!(planned(&isk).is_ok_and(|op| op.is_some()));
        for wrong in [datagram(5, 1), datagram(4, LONGEST + 1)] {
            isk.crust_datagrams = vec![wrong];
            assert!(planned(&isk).is_err());
        }
        isk.crust_datagrams = vec![datagram(4, 1)];
        isk.src_port = 0;
        assert!(planned(&isk).is_err());
    }
}
