//! Packet sockets as sock_diag(7) tells them (packet/diag.c): what getsockopt(2) does not, the
//! multicast and promiscuous memberships, the rings and the copy threshold. Needs
//! CONFIG_PACKET_DIAG; without it ENOENT.

use super::{SockDiagError, attribute, collect};
use crate::netlink::word;
use nix::libc;
use std::os::fd::BorrowedFd;

/// PACKET_SHOW_{INFO,MCLIST,RING_CFG,FANOUT} of include/uapi/linux/packet_diag.h.
const SHOW: u32 = 0xf;
/// Bytes of struct packet_diag_msg.
const PACKET_MSG: usize = 16;
/// PACKET_DIAG_*.
const INFO: u16 = 0;
const MEMBERSHIPS: u16 = 1;
const RX_RING: u16 = 2;
const TX_RING: u16 = 3;
const FANOUT: u16 = 4;
/// Bytes of struct packet_diag_mclist.
const MEMBERSHIP: usize = 44;

/// One packet socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketSocket {
    /// Inode in sockfs.
    pub ino: u32,
    /// PACKET_COPY_THRESH.
    pub copy_thresh: u32,
    /// PACKET_ADD_MEMBERSHIP: device, type and address of each.
    pub memberships: Vec<Membership>,
    /// The ring of received packets, if there is one.
    pub rx_ring: Option<Ring>,
    /// The ring of packets to send.
    pub tx_ring: Option<Ring>,
    /// PACKET_FANOUT: id, and type above bit 16.
    pub fanout: Option<u32>,
}

/// A membership of a packet socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Index of the device.
    pub index: u32,
    /// PACKET_MR_*.
    pub kind: u16,
    /// Link address.
    pub address: Vec<u8>,
}

/// struct packet_diag_ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks.
    pub block_nr: u32,
    /// Bytes of a frame.
    pub frame_size: u32,
    /// Frames.
    pub frame_nr: u32,
    /// Milliseconds after which a block is handed over (TPACKET_V3).
    pub retire_tmo: u32,
    /// Private bytes of a block.
    pub sizeof_priv: u32,
    /// tp_feature_req_word.
    pub features: u32,
}

/// All packet sockets.
pub fn collect_packet_sockets(diag: BorrowedFd<'_>) -> Result<Vec<PacketSocket>, SockDiagError> {
    // struct packet_diag_req: family, protocol, padding, inode, what to show, cookie.
    let mut request = vec![libc::AF_PACKET as u8, 0, 0, 0];
    request.extend(0u32.to_ne_bytes());
    request.extend(SHOW.to_ne_bytes());
    request.extend([0xff; 8]);
    collect(diag, &request, parse)
}

fn parse(body: &[u8]) -> Result<PacketSocket, SockDiagError> {
    take(body).ok_or(SockDiagError::Malformed("packet_diag_msg"))
}

fn take(body: &[u8]) -> Option<PacketSocket> {
    let (head, attributes) = body.split_at_checked(PACKET_MSG)?;
    let mut socket = PacketSocket {
        ino: word(head, 4)?,
        ..PacketSocket::default()
    };
    if let Some(info) = attribute(attributes, INFO) {
        socket.copy_thresh = word(info, 12)?;
    }
    if let Some(list) = attribute(attributes, MEMBERSHIPS) {
        socket.memberships = list
            .chunks_exact(MEMBERSHIP)
            .filter_map(membership)
            .collect();
    }
    socket.rx_ring = attribute(attributes, RX_RING).and_then(ring);
    socket.tx_ring = attribute(attributes, TX_RING).and_then(ring);
    socket.fanout = attribute(attributes, FANOUT).and_then(|value| word(value, 0));
    Some(socket)
}

/// struct packet_diag_mclist: index, count, type, length of the address, 32 bytes for it.
fn membership(bytes: &[u8]) -> Option<Membership> {
    let half = |at| crate::netlink::half(bytes, at);
    let len = usize::from(half(10)?);
    Some(Membership {
        index: word(bytes, 0)?,
        kind: half(8)?,
        address: bytes.get(12..12 + len)?.to_vec(),
    })
}

fn ring(bytes: &[u8]) -> Option<Ring> {
    let word = |number: usize| word(bytes, 4 * number);
    Some(Ring {
        block_size: word(0)?,
        block_nr: word(1)?,
        frame_size: word(2)?,
        frame_nr: word(3)?,
        retire_tmo: word(4)?,
        sizeof_priv: word(5)?,
        features: word(6)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_membership_and_a_ring() {
        let mut list = Vec::new();
        list.extend([3u32, 1].iter().flat_map(|word| word.to_ne_bytes()));
        list.extend([1u16, 6].iter().flat_map(|half| half.to_ne_bytes()));
        list.extend([7; 32]);
        let ring: Vec<u8> = (1..=7u32).flat_map(u32::to_ne_bytes).collect();
        let mut body = vec![17, 3, 0, 0, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (kind, value) in [(MEMBERSHIPS, &list), (RX_RING, &ring)] {
            body.extend((value.len() as u16 + 4).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(value);
        }
        let socket = parse(&body).expect("whole");
        assert_eq!(socket.ino, 99);
        let member = &socket.memberships[0];
        assert_eq!((member.index, member.kind, member.address.len()), (3, 1, 6));
        assert_eq!(socket.rx_ring.map(|ring| ring.features), Some(7));
        assert_eq!((socket.tx_ring, socket.fanout), (None, None));
        assert!(parse(&body[..12]).is_err());
    }
}
