//! bind(2) and connect(2) of internet sockets whose failure is told with who is in the way: the
//! holder of a port or of a connection, or that this host has not the address.

use crate::files::tcp::socket_addr;
use anyhow::{Context, Result, anyhow};
use crust_process::descriptor::sockopt_int;
use crust_process::fds::holder_of_socket;
use crust_process::sockdiag::{
    InetSocket, collect_inet_sockets, destroy_connection, open_sock_diag,
};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{self, SockaddrIn, SockaddrIn6};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A bit for each state of include/net/tcp_states.h.
const ALL_STATES: u32 = u32::MAX;

/// Binds to an address. Connections of the port that no descriptor has any more (TIME_WAIT) keep
/// it from a program without SO_REUSEADDR for a minute after its death; a restore is no new
/// program, so they go.
pub fn bind_or_tell(fd: BorrowedFd<'_>, local: &[u8]) -> Result<()> {
    let address = socket_addr(local).context("no internet address")?;
    let bind = || match address {
        SocketAddr::V4(four) => socket::bind(fd.as_raw_fd(), &SockaddrIn::from(four)),
        SocketAddr::V6(six) => socket::bind(fd.as_raw_fd(), &SockaddrIn6::from(six)),
    };
    let bound = match bind() {
        Err(Errno::EADDRINUSE) => {
            let others = of_the_same_protocol(fd);
            let at_port = |socket: &&InetSocket| socket.local.port() == address.port();
            if let Some(holder) = holder(others.iter().filter(at_port)) {
                let why = format!("it is in use at {holder}");
                return Err(anyhow!("bind to {address}: EADDRINUSE: {why}"));
            }
            let diag = open_sock_diag()?;
            for rest in others.iter().filter(at_port) {
                destroy_connection(diag.as_fd(), rest.local, rest.remote)
                    .context("end what is left of a connection")?;
            }
            bind()
        }
        bound => bound,
    };
    match bound {
        Ok(()) => Ok(()),
        Err(Errno::EADDRNOTAVAIL) => Err(anyhow!(
            "bind to {address}: EADDRNOTAVAIL: this host has no such address \
             (give it the address, or change the images with crit)"
        )),
        Err(errno) => Err(anyhow!(errno).context(format!("bind to {address}"))),
    }
}

/// Connects a socket in repair mode. A connection of the same ends that no descriptor has any more
/// is what the kernel still had to say for the dumped one: it goes.
pub fn connect_or_tell(fd: BorrowedFd<'_>, local: &[u8], remote: &[u8]) -> Result<()> {
    let to = socket_addr(remote).context("no internet address")?;
    let from = socket_addr(local).context("no internet address")?;
    match connect(fd, remote) {
        Ok(()) => Ok(()),
        Err(Errno::EADDRNOTAVAIL | Errno::EADDRINUSE) => {
            let others = of_the_same_protocol(fd);
            if let Some(holder) = holder(others.iter().filter(|other| is_same(other, from, to))) {
                let why = format!("it is in use at {holder}");
                return Err(anyhow!("connect {from} to {to}: EADDRINUSE: {why}"));
            }
            let diag = open_sock_diag()?;
            destroy_connection(diag.as_fd(), from, to)
                .context("end what is left of the connection")?;
            connect(fd, remote).with_context(|| format!("connect {from} to {to}"))
        }
        Err(errno) => Err(anyhow!(errno).context(format!("connect {from} to {to}"))),
    }
}

/// Plain connect(2) with the bytes of an address.
pub fn connect(fd: BorrowedFd<'_>, remote: &[u8]) -> nix::Result<()> {
    match socket_addr(remote) {
        Some(SocketAddr::V4(four)) => socket::connect(fd.as_raw_fd(), &SockaddrIn::from(four)),
        Some(SocketAddr::V6(six)) => socket::connect(fd.as_raw_fd(), &SockaddrIn6::from(six)),
        None => Err(Errno::EAFNOSUPPORT),
    }
}

fn is_same(socket: &InetSocket, local: SocketAddr, remote: SocketAddr) -> bool {
    let plain = |end: SocketAddr| (end.ip().to_canonical(), end.port());
    plain(socket.local) == plain(local) && plain(socket.remote) == plain(remote)
}

/// All sockets that may be in the way; what cannot be listed is not there.
fn of_the_same_protocol(fd: BorrowedFd<'_>) -> Vec<InetSocket> {
    let protocol = sockopt_int(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL);
    let (Ok(protocol), Ok(diag)) = (protocol, open_sock_diag()) else {
        return Vec::new();
    };
    [libc::AF_INET, libc::AF_INET6]
        .into_iter()
        .flat_map(|family| {
            let all = collect_inet_sockets(diag.as_fd(), family, protocol, ALL_STATES);
            all.unwrap_or_default()
        })
        .collect()
}

/// Who holds one of these sockets: `127.0.0.1:80 by task 12 ("nginx", fd 3)`. `None` if no
/// descriptor is left of any.
fn holder<'s>(sockets: impl Iterator<Item = &'s InetSocket>) -> Option<String> {
    let held = sockets.into_iter().find(|socket| socket.ino != 0)?;
    let who = holder_of_socket(held.ino);
    let who = who.unwrap_or_else(|| "a process of another pid namespace".to_owned());
    Some(format!("{} by {who}", held.local))
}
