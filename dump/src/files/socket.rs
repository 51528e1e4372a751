//! Sockets, by family: those with a room, the others are refused by what they are.

use super::{
    FileTable, OpenFile, Problem, RoomResult, inet_socket, netlink_socket, packet_socket,
    unix_socket,
};
use crate::context::Context;
use anyhow::Context as _;
use crust_image::ids::FileId;
use crust_process::descriptor::sockopt_int;
use crust_proto::criu::{FdTypes, FileEntry};
use nix::libc;
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
        libc::AF_INET | libc::AF_INET6 => inet_socket::dump(ctx, table, file, id),
        libc::AF_NETLINK => netlink_socket::dump(ctx, table, file, id),
        libc::AF_PACKET => packet_socket::dump(ctx, table, file, id),
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
