//! Sockets, by family: unix ones have a room, the others are refused by what they are.

use super::{FileTable, OpenFile, Problem, RoomResult, unix_socket};
use crate::context::Context;
use anyhow::Context as _;
use crust_image::ids::FileId;
use crust_process::descriptor::{local_address, peer_address, sockopt_int};
use crust_proto::criu::{FdTypes, FileEntry};
use nix::libc;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    match family(file.fd)? {
        libc::AF_UNIX => unix_socket::dump(ctx, table, file, id),
        libc::AF_INET | libc::AF_INET6 => Err(Problem::refused(describe_inet(file.fd))),
        libc::AF_NETLINK => Err(Problem::refused("netlink sockets are not dumped yet")),
        libc::AF_PACKET => Err(Problem::refused("packet sockets are not dumped yet")),
        libc::AF_VSOCK => Err(Problem::refused("is a socket to the hypervisor (vsock)")),
        family => Err(Problem::refused(format!(
            "is a socket of address family {family}"
        ))),
    }
}

/// The type of its entry.
pub fn fd_type(file: &OpenFile) -> FdTypes {
    match family(file.fd) {
        Ok(libc::AF_UNIX) => FdTypes::Unixsk,
        Ok(libc::AF_NETLINK) => FdTypes::Netlinksk,
        Ok(libc::AF_PACKET) => FdTypes::Packetsk,
        _ => FdTypes::Inetsk,
    }
}

fn family(socket: BorrowedFd) -> anyhow::Result<i32> {
    sockopt_int(socket, libc::SOL_SOCKET, libc::SO_DOMAIN).context("SO_DOMAIN")
}

/// `is a tcp socket (127.0.0.1:80 to 10.0.0.1:4711); ...`.
fn describe_inet(socket: BorrowedFd) -> String {
    let protocol = match sockopt_int(socket, libc::SOL_SOCKET, libc::SO_PROTOCOL) {
        Ok(libc::IPPROTO_TCP) => "a tcp socket".to_owned(),
        Ok(libc::IPPROTO_UDP) => "a udp socket".to_owned(),
        Ok(libc::IPPROTO_UDPLITE) => "a udp-lite socket".to_owned(),
        Ok(number) => format!("an internet socket of protocol {number}"),
        Err(_) => "an internet socket".to_owned(),
    };
    let local = local_address(socket).ok().and_then(|raw| format_inet(&raw));
    let peer = peer_address(socket).ok().and_then(|raw| format_inet(&raw));
    let ends = match (local, peer) {
        (Some(local), Some(peer)) => format!(" ({local} to {peer})"),
        (Some(local), None) => format!(" ({local})"),
        _ => String::new(),
    };
    format!("is {protocol}{ends}; internet sockets are not dumped yet")
}

/// The text of a sockaddr_in or sockaddr_in6.
fn format_inet(raw: &[u8]) -> Option<String> {
    let family = i32::from(u16::from_ne_bytes(*raw.first_chunk()?));
    let port = u16::from_be_bytes(*raw.get(2..)?.first_chunk()?);
    match family {
        libc::AF_INET => {
            let address: [u8; 4] = *raw.get(4..)?.first_chunk()?;
            Some(format!("{}:{port}", Ipv4Addr::from(address)))
        }
        libc::AF_INET6 => {
            let address: [u8; 16] = *raw.get(8..)?.first_chunk()?;
            Some(format!("[{}]:{port}", Ipv6Addr::from(address)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_refused_socket_is_named_by_its_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let text = describe_inet(listener.as_fd());
        let address = listener.local_addr().unwrap();
        assert!(
            text.contains("tcp") && text.contains(&format!("({address})")),
            "{text}"
        );
    }

    #[test]
    fn addresses_of_both_families() {
        let four = [2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(format_inet(&four).unwrap(), "127.0.0.1:80");
        let mut six = [0u8; 28];
        six[0] = 10;
        six[3] = 7;
        six[23] = 1;
        assert_eq!(format_inet(&six).unwrap(), "[::1]:7");
        assert_eq!(format_inet(&[2]), None);
    }
}
