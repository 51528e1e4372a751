//! Internet sockets as sock_diag(7) tells them (inet_diag.c): both ends, state, inode. Who holds a
//! port, the peer of a connection that is being made, and connections that no descriptor has any
//! more but the kernel still tries to end, are told by nobody else.

use super::{SOCK_DIAG_BY_FAMILY, SockDiagError, collect, kernel};
use crate::netlink::{self, Writer, split_message, word};
use nix::libc;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

/// include/uapi/linux/sock_diag.h, Linux 4.5 with CONFIG_INET_DIAG_DESTROY.
const SOCK_DESTROY: u16 = SOCK_DIAG_BY_FAMILY + 1;
/// Bytes of struct inet_diag_sockid, and of struct inet_diag_msg, which has it at 4.
const SOCKET_ID: usize = 48;
const INET_MSG: usize = 72;
/// INET_DIAG_NOCOOKIE, twice.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// One internet socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InetSocket {
    /// TCP_* of include/net/tcp_states.h, for other protocols too.
    pub state: u8,
    /// Its own end.
    pub local: SocketAddr,
    /// The other end, of zeros if there is none.
    pub remote: SocketAddr,
    /// The device it is bound to, or 0.
    pub device: u32,
    /// Inode in sockfs; 0 when no descriptor has it any more.
    pub ino: u32,
}

/// The sockets of a family and protocol whose state is a bit of `states`.
pub fn collect_inet_sockets(
    diag: BorrowedFd<'_>,
    family: i32,
    protocol: i32,
    states: u32,
) -> Result<Vec<InetSocket>, SockDiagError> {
    collect(diag, &request(family, protocol, states, None), parse)
}

/// Ends a TCP connection as if its program had closed it with SO_LINGER at 0. False if there is
/// none of these ends.
pub fn destroy_connection(
    diag: BorrowedFd<'_>,
    local: SocketAddr,
    remote: SocketAddr,
) -> Result<bool, SockDiagError> {
    let family = match local {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let mut writer = Writer::default();
    let flags = netlink::REQUEST | netlink::ACK;
    writer.message(SOCK_DESTROY, flags, 1, |message| {
        let ends = Some((local, remote));
        message.raw(&request(family, libc::IPPROTO_TCP, u32::MAX, ends));
    });
    netlink::send(diag, writer.bytes()).map_err(kernel("send"))?;
    let mut buffer = vec![0; 4096];
    let len = netlink::receive(diag, &mut buffer).map_err(kernel("receive"))?;
    let answer = split_message(buffer.get(..len).unwrap_or_default());
    let (answer, _) = answer.ok_or(SockDiagError::Malformed("message header"))?;
    match answer.status() {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::ENOENT) => Ok(false),
        Err(errno) => Err(kernel("end a connection")(errno)),
    }
}

/// struct inet_diag_req_v2.
fn request(
    family: i32,
    protocol: i32,
    states: u32,
    ends: Option<(SocketAddr, SocketAddr)>,
) -> Vec<u8> {
    let mut request = vec![family as u8, protocol as u8, 0, 0];
    request.extend(states.to_ne_bytes());
    let Some((local, remote)) = ends else {
        request.extend([0; SOCKET_ID]);
        return request;
    };
    request.extend(local.port().to_be_bytes());
    request.extend(remote.port().to_be_bytes());
    for ip in [local.ip(), remote.ip()] {
        match ip {
            IpAddr::V4(four) => request.extend([&four.octets()[..], &[0; 12]].concat()),
            IpAddr::V6(six) => request.extend(six.octets()),
        }
    }
    request.extend([0; 4]);
    request.extend(ANY_COOKIE);
    request
}

fn parse(body: &[u8]) -> Result<InetSocket, SockDiagError> {
    take(body).ok_or(SockDiagError::Malformed("inet_diag_msg"))
}

fn take(body: &[u8]) -> Option<InetSocket> {
    let body = body.get(..INET_MSG)?;
    let family = i32::from(*body.first()?);
    let end = |port: usize, address: usize| {
        let port = u16::from_be_bytes(*body.get(port..)?.first_chunk()?);
        let address = body.get(address..)?;
        let ip = match family {
            libc::AF_INET => IpAddr::from(*address.first_chunk::<4>()?),
            libc::AF_INET6 => IpAddr::from(*address.first_chunk::<16>()?),
            _ => return None,
        };
        Some(SocketAddr::new(ip, port))
    };
    Some(InetSocket {
        state: *body.get(1)?,
        local: end(4, 8)?,
        remote: end(6, 24)?,
        device: word(body, 40)?,
        ino: word(body, 68)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockdiag::open_sock_diag;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    const LISTEN: u32 = 10;

    fn ino_of(fd: impl AsFd) -> u32 {
        let file = std::fs::File::from(fd.as_fd().try_clone_to_owned().expect("duplicable"));
        file.metadata().expect("a socket has attributes").ino() as u32
    }

    #[test]
    fn a_listener_of_each_family_and_a_connection() {
        let diag = open_sock_diag().expect("netlink sockets can be made");
        for (address, family) in [("127.0.0.1:0", libc::AF_INET), ("[::1]:0", libc::AF_INET6)] {
            let listener = TcpListener::bind(address).expect("loopback is up");
            let at = listener.local_addr().expect("bound");
            let client = TcpStream::connect(at).expect("connects");
            let find = |states| {
                collect_inet_sockets(diag.as_fd(), family, libc::IPPROTO_TCP, states)
                    .expect("the dump works")
            };
            let listeners = find(1 << LISTEN);
            let ours = listeners.iter().find(|s| s.ino == ino_of(&listener));
            assert_eq!(ours.expect("listed").local, at);
            assert!(listeners.iter().all(|s| u32::from(s.state) == LISTEN));
            let connected = find(1 << 1);
            let ours = connected.iter().find(|s| s.ino == ino_of(&client));
            let ours = ours.expect("listed");
            assert_eq!(ours.remote, at);
            assert_eq!(ours.local, client.local_addr().expect("bound"));
        }
    }

    #[test]
    fn a_connection_is_ended() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs CAP_NET_ADMIN");
            return;
        }
        let diag = open_sock_diag().expect("netlink sockets can be made");
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (local, remote) = (client.local_addr().expect("bound"), client.peer_addr());
        let remote = remote.expect("connected");
        match destroy_connection(diag.as_fd(), local, remote) {
            Err(error) if error.to_string().contains("EOPNOTSUPP") => {
                eprintln!("SKIPPED: a kernel without CONFIG_INET_DIAG_DESTROY");
            }
            ended => {
                assert!(ended.expect("privileged"));
                let again = destroy_connection(diag.as_fd(), local, remote);
                assert!(!again.expect("privileged"), "it is gone");
            }
        }
    }
}
