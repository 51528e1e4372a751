//! Netlink sockets: protocol, port, groups, connection, options.
//!
//! Everything is asked of the descriptor but whether it is connected, which sock_diag(7) tells; a
//! kernel without that (CONFIG_NETLINK_DIAG) leaves the destination to tell. What waits to be read
//! came from the kernel and cannot be sent by anybody else, so a socket with an unread message or
//! an answer under way is refused: a moment later it is empty.

use super::{FileTable, OpenFile, Problem, RoomResult, file_entry, kept_options};
use crate::context::Context;
use anyhow::Context as _;
use crust_image::ids::FileId;
use crust_image::tcp_state::CLOSE;
use crust_process::descriptor::{
    local_address, peer_address, poll_state, sockopt_bytes, sockopt_int,
};
use crust_process::sockdiag::{NetlinkSocket, collect_netlink_sockets, open_sock_diag};
use crust_proto::criu::{FdTypes, FileEntry, NetlinkSkEntry};
use nix::libc;
use std::os::fd::{AsFd, BorrowedFd};

/// NETLINK_CONNECTED, as the images have it; a new socket is in TCP's state of that name.
const CONNECTED: u32 = 1;
/// Bytes of groups; the kernel has 1024 at most for a generic family.
const GROUPS: usize = 1024;

/// The netlink sockets of the host, asked for once.
#[derive(Debug, Default)]
pub struct Listed(Option<Vec<NetlinkSocket>>);

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let ino = file.stat()?.ino as u32;
    let int = |name, what| sockopt_int(file.fd, libc::SOL_SOCKET, name).context(what);
    let protocol = int(libc::SO_PROTOCOL, "SO_PROTOCOL")?;
    let sock_type = int(libc::SO_TYPE, "SO_TYPE")?;
    let listed = find(table, ino);
    if listed.as_ref().is_some_and(|listed| listed.dumping) {
        return Err(Problem::refused(format!(
            "is a netlink socket of protocol {protocol}; the kernel has more to answer to a request"
        )));
    }
    if poll_state(file.fd).context("poll")?.readable {
        return Err(Problem::with_hint(
            format!("is a netlink socket of protocol {protocol}; a message waits to be read"),
            "try again in a moment",
        ));
    }
    let (portid, _) = address(&local_address(file.fd).context("getsockname")?)?;
    let (dst_portid, dst_group) = address(&peer_address(file.fd).context("getpeername")?)?;
    let has_destination = (dst_portid, dst_group) != (0, 0);
    let state = match listed {
        Some(listed) => u32::from(listed.state),
        None if has_destination => CONNECTED,
        None => CLOSE,
    };
    let kind = (libc::AF_NETLINK, sock_type, protocol);
    let entry = NetlinkSkEntry {
        id: id.0,
        ino,
        protocol: protocol as u32,
        state,
        flags: file.flags,
        portid,
        groups: groups(file.fd)?,
        dst_portid,
        // A group by its number; the address has a mask.
        dst_group,
        fown: file.fown(ctx)?,
        opts: file.socket_options()?,
        ns_id: table.own_ids.net_ns_id,
        crust_options: kept_options::collect(table, file.fd, kind),
        crust_type: (sock_type != libc::SOCK_RAW).then_some(sock_type as u32),
    };
    Ok(FileEntry {
        nlsk: Some(Box::new(entry)),
        ..file_entry(FdTypes::Netlinksk, id)
    })
}

fn find(table: &mut FileTable, ino: u32) -> Option<NetlinkSocket> {
    let listed = table.netlink.0.get_or_insert_with(|| {
        let all = open_sock_diag().and_then(|diag| collect_netlink_sockets(diag.as_fd()));
        all.unwrap_or_default()
    });
    listed.iter().find(|socket| socket.ino == ino).cloned()
}

/// Port and groups of a sockaddr_nl.
fn address(raw: &[u8]) -> anyhow::Result<(u32, u32)> {
    let word = |at: usize| {
        let bytes = raw.get(at..)?.first_chunk()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    word(4)
        .zip(word(8))
        .context("an address that is none of netlink")
}

/// The groups as words, as many as it takes.
fn groups(socket: BorrowedFd) -> anyhow::Result<Vec<u32>> {
    let mut bytes = [0; GROUPS];
    let (level, name) = (libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS);
    let len = sockopt_bytes(socket, level, name, &mut bytes).context("NETLINK_LIST_MEMBERSHIPS")?;
    let (words, _) = bytes.get(..len).unwrap_or_default().as_chunks::<4>();
    let mut words: Vec<u32> = words.iter().map(|word| u32::from_ne_bytes(*word)).collect();
    while words.last() == Some(&0) {
        words.pop();
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{
        AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
    };
    use std::os::fd::AsRawFd;

    #[test]
    fn groups_and_port_are_told() {
        let flags = SockFlag::SOCK_CLOEXEC;
        let route = SockProtocol::NetlinkRoute;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, route).unwrap();
        assert!(groups(fd.as_fd()).unwrap().is_empty());
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0x11)).unwrap();
        assert_eq!(groups(fd.as_fd()).unwrap(), [0x11]);
        let (portid, groups) = address(&local_address(fd.as_fd()).unwrap()).unwrap();
        assert!(portid != 0 && groups == 0x11);
        assert!(address(&[16, 0, 0]).is_err());
    }
}
