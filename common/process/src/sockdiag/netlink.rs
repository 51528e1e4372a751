//! Netlink sockets as sock_diag(7) tells them (netlink/diag.c): whether one is connected, which
//! getpeername(2) does not tell. Needs CONFIG_NETLINK_DIAG; without it ENOENT.

use super::{SockDiagError, collect};
use crate::netlink::word;
use nix::libc;
use std::os::fd::BorrowedFd;

/// NDIAG_PROTO_ALL of include/uapi/linux/netlink_diag.h.
const ALL_PROTOCOLS: u8 = 0xff;
/// NDIAG_SHOW_FLAGS, since 4.10.
const SHOW_FLAGS: u32 = 8;
/// Bytes of struct netlink_diag_msg.
const NETLINK_MSG: usize = 28;
/// NETLINK_DIAG_FLAGS, and in it: a dump for this socket is under way.
const FLAGS: u16 = 4;
const DUMPING: u32 = 1;

/// One netlink socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetlinkSocket {
    /// NETLINK_CONNECTED (1), or what it was before.
    pub state: u8,
    /// Inode in sockfs.
    pub ino: u32,
    /// The kernel has more to answer to a request.
    pub dumping: bool,
}

/// All netlink sockets.
pub fn collect_netlink_sockets(diag: BorrowedFd<'_>) -> Result<Vec<NetlinkSocket>, SockDiagError> {
    // struct netlink_diag_req: family, protocol, padding, inode, what to show, cookie.
    let mut request = vec![libc::AF_NETLINK as u8, ALL_PROTOCOLS, 0, 0];
    request.extend(0u32.to_ne_bytes());
    request.extend(SHOW_FLAGS.to_ne_bytes());
    request.extend([0xff; 8]);
    collect(diag, &request, parse)
}

fn parse(body: &[u8]) -> Result<NetlinkSocket, SockDiagError> {
    let malformed = || SockDiagError::Malformed("netlink_diag_msg");
    let (head, attributes) = body.split_at_checked(NETLINK_MSG).ok_or_else(malformed)?;
    let flags = super::attribute(attributes, FLAGS).and_then(|value| word(value, 0));
    Ok(NetlinkSocket {
        state: *head.get(3).ok_or_else(malformed)?,
        ino: word(head, 16).ok_or_else(malformed)?,
        dumping: flags.unwrap_or(0) & DUMPING != 0,
    })
}
