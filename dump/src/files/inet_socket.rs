//! Internet sockets: TCP, UDP, UDP-lite, ping and raw ones.
//!
//! Everything is asked of the descriptor itself: addresses, TCP_INFO for state and backlog, and
//! the options. Only the peer of a connection still being made is told by nobody but sock_diag(7).
//! An address is stored as the 32-bit words that a little-endian machine reads from it, a port in
//! host order. The queues and numbers of a TCP connection are read later (`tcp.rs`), and only if
//! `--tcp-established` asks for it. Connections that wait in a listener are lost, which needs
//! `--skip-in-flight`; a corked UDP socket and other protocols are refused. Of raw sockets
//! getpeername(2) tells no peer without a port; /proc/net/raw does. Datagrams that wait are kept of
//! UDP (`datagram.rs`); of the others they are lost, as datagrams may be: the log says so.

use super::{
    FileTable, OpenFile, Problem, RoomResult, datagram, file_entry, kept_options, multicast,
    raw_socket, tcp,
};
use crate::context::Context;
use anyhow::Context as _;
use crust_cli::options::Options;
use crust_image::ids::FileId;
use crust_image::tcp_state::{self, CLOSE, ESTABLISHED, LISTEN, SYN_RECEIVED, SYN_SENT};
use crust_process::descriptor::{
    bytes_unsent, bytes_waiting, local_address, peer_address, poll_state, sockopt_bytes,
    sockopt_int,
};
use crust_process::netfilter::Ends;
use crust_process::sockdiag::{collect_inet_sockets, open_sock_diag};
use crust_proto::criu::{
    CrustDatagramEntry, FdTypes, FileEntry, InetSkEntry, IpOptsEntry, SkOptsEntry, SkShutdown,
    TcpOptsEntry,
};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let ino = file.stat()?.ino as u32;
    let mut socket = Socket::collect(file.fd, ino)?;
    if socket.is_tcp() && socket.state == SYN_SENT {
        socket.find_peer(ino)?;
    }
    socket.refuse_unsupported(ctx.options)?;
    let opts = file.socket_options()?;
    let crust_datagrams = collect_datagrams(ctx, file, &socket, &opts)?;
    if socket.is_connection() && !ctx.options.tcp_close {
        if let Some(what) = tcp::obstacle(file.fd)? {
            return Err(Problem::refused(format!("is {socket}; {what}")));
        }
        table.connections.add(file, socket.found(file, &opts)?);
    }
    // Sockets with connections are in no group (ip_mc_join_group).
    let crust_groups = match socket.is_tcp() {
        true => Vec::new(),
        false => multicast::collect(table, file)?,
    };
    let kind = (socket.family, socket.kind, socket.protocol);
    let entry = InetSkEntry {
        id: id.0,
        ino,
        family: socket.family as u32,
        r#type: socket.kind as u32,
        proto: socket.protocol as u32,
        state: socket.state,
        src_port: u32::from(socket.local.port),
        dst_port: u32::from(socket.peer.port),
        flags: file.flags,
        backlog: socket.backlog,
        src_addr: socket.local.words.clone(),
        dst_addr: socket.peer.words.clone(),
        fown: file.fown(ctx)?,
        opts,
        v6only: collect_v6only(file.fd, &socket)?,
        ip_opts: Some(collect_ip_options(file.fd, &socket)?),
        ifname: None,
        ns_id: table.own_ids.net_ns_id.filter(|_| socket.is_hashed()),
        shutdown: socket.shutdown().map(Into::into),
        tcp_opts: Some(collect_tcp_options(file.fd, &socket)?),
        crust_options: kept_options::collect(table, file.fd, kind),
        crust_congestion: kept_options::collect_congestion(table, file.fd, kind),
        crust_groups,
        crust_datagrams,
    };
    Ok(FileEntry {
        isk: Some(Box::new(entry)),
        ..file_entry(FdTypes::Inetsk, id)
    })
}

/// What a socket is.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) family: i32,
    kind: i32,
    pub(super) protocol: i32,
    pub(super) state: u32,
    /// The longest queue of a listener.
    backlog: u32,
    /// Connections that wait in it.
    waiting: u32,
    /// Bytes written and not sent: a corked datagram.
    unsent: usize,
    /// Bytes that a connection left behind when it ended.
    unread: usize,
    /// Nothing more will come: the peer has ended, or the program does not want it.
    ended: bool,
    local: Address,
    pub(super) peer: Address,
}

impl Socket {
    /// `ino` is its inode in sockfs.
    fn collect(fd: BorrowedFd, ino: u32) -> anyhow::Result<Socket> {
        let int = |name, what| sockopt_int(fd, libc::SOL_SOCKET, name).context(what);
        let family = int(libc::SO_DOMAIN, "SO_DOMAIN")?;
        let protocol = int(libc::SO_PROTOCOL, "SO_PROTOCOL")?;
        let local = Address::parse(&local_address(fd).context("getsockname")?)?;
        let peer = match peer_address(fd) {
            Ok(raw) => Some(Address::parse(&raw)?),
            Err(Errno::ENOTCONN) => None,
            Err(errno) => return Err(errno).context("getpeername"),
        };
        let connected = if peer.is_some() { ESTABLISHED } else { CLOSE };
        let mut socket = Socket {
            family,
            kind: int(libc::SO_TYPE, "SO_TYPE")?,
            protocol,
            state: connected,
            backlog: 0,
            waiting: 0,
            unsent: 0,
            unread: 0,
            ended: poll_state(fd).context("poll")?.ended,
            peer: peer.unwrap_or_else(|| Address::none(local.words.len())),
            local,
        };
        match protocol {
            _ if socket.is_raw() => raw_socket::find_peer(&mut socket, ino)?,
            libc::IPPROTO_TCP => socket.collect_tcp(fd)?,
            libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE => {
                socket.unsent = bytes_unsent(fd).context("SIOCOUTQ")?;
            }
            _ => {}
        }
        Ok(socket)
    }

    /// TCP_INFO: the state, and for a listener the two queue lengths in fields of other names
    /// (tcp_get_info of net/ipv4/tcp.c).
    fn collect_tcp(&mut self, fd: BorrowedFd) -> anyhow::Result<()> {
        let mut info = [0u8; 104];
        sockopt_bytes(fd, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info).context("TCP_INFO")?;
        let word = |at: usize| {
            info.get(at..)
                .and_then(|bytes| bytes.first_chunk())
                .map_or(0, |b| u32::from_ne_bytes(*b))
        };
        self.state = u32::from(info[0]);
        if self.state == LISTEN {
            (self.waiting, self.backlog) = (word(24), word(28));
        }
        if self.state == CLOSE {
            self.unread = bytes_waiting(fd).context("SIOCINQ")?;
        }
        Ok(())
    }

    /// Whether the kernel has it in its tables, by a port; the peer finds only those, and names
    /// their network namespace.
    fn is_hashed(&self) -> bool {
        match self.is_tcp() {
            true => self.state != CLOSE,
            false => self.local.port != 0,
        }
    }

    fn is_tcp(&self) -> bool {
        self.protocol == libc::IPPROTO_TCP && !self.is_raw()
    }

    pub(super) fn is_raw(&self) -> bool {
        self.kind == libc::SOCK_RAW
    }

    /// A datagram socket for ICMP echoes alone (icmp(7)).
    fn is_ping(&self) -> bool {
        let icmp = [libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6];
        self.kind == libc::SOCK_DGRAM && icmp.contains(&self.protocol)
    }

    /// Whether it has a peer that counts its bytes.
    fn is_connection(&self) -> bool {
        self.is_tcp() && tcp_state::is_connected(self.state)
    }

    /// getpeername(2) does not tell the peer of a connection that is being made.
    fn find_peer(&mut self, ino: u32) -> anyhow::Result<()> {
        let diag = open_sock_diag()?;
        let all = collect_inet_sockets(diag.as_fd(), self.family, self.protocol, 1 << SYN_SENT)?;
        let found = all.into_iter().find(|socket| socket.ino == ino);
        let found = found.context("a connection being made is not listed by sock_diag")?;
        self.peer = Address {
            port: found.remote.port(),
            words: match found.remote.ip() {
                IpAddr::V4(four) => words_of(&four.octets()),
                IpAddr::V6(six) => words_of(&six.octets()),
            },
        };
        Ok(())
    }

    fn found(&self, file: &OpenFile, opts: &SkOptsEntry) -> RoomResult<tcp::Found> {
        let end = |address: &Address| address.to_socket_addr().context("an end without address");
        Ok(tcp::Found {
            ino: file.stat()?.ino as u32,
            state: self.state,
            reuse: opts.reuseaddr == Some(true),
            ends: Ends {
                local: end(&self.local)?,
                remote: end(&self.peer)?,
            },
        })
    }

    /// Which directions are shut down: the state tells of ours, the poll of the peer's.
    fn shutdown(&self) -> Option<SkShutdown> {
        let closed = self.is_tcp() && self.state == CLOSE;
        let write = self.is_tcp() && tcp_state::has_sent_fin(self.state) || closed && self.ended;
        match (self.ended, write) {
            (true, true) => Some(SkShutdown::Both),
            (true, false) => Some(SkShutdown::Read),
            (false, true) => Some(SkShutdown::Write),
            (false, false) => None,
        }
    }

    fn refuse_unsupported(&self, options: &Options) -> RoomResult<()> {
        let what = match self.protocol {
            _ if self.is_raw() || self.is_ping() => return Ok(()),
            libc::IPPROTO_TCP if self.is_connection() => {
                if options.tcp_established || options.tcp_close {
                    return Ok(());
                }
                let hint = "try --tcp-established, or --tcp-close to get it closed";
                let what = format!("is {self}; a connection with a peer");
                return Err(Problem::with_hint(what, hint));
            }
            libc::IPPROTO_TCP if self.state == SYN_RECEIVED || self.state > tcp_state::LAST => {
                format!("its state is {}", self.state)
            }
            libc::IPPROTO_TCP if self.waiting > 0 && !options.skip_in_flight => {
                let what = format!("is {self}; {} connections wait in it", self.waiting);
                let hint = "try --skip-in-flight, which loses them, or let the program accept them";
                return Err(Problem::with_hint(what, hint));
            }
            libc::IPPROTO_TCP if self.state == CLOSE && self.unread > 0 => {
                format!("it is closed and {} bytes wait to be read", self.unread)
            }
            libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE if self.unsent > 0 => {
                format!("is corked with {} bytes not sent", self.unsent)
            }
            libc::IPPROTO_TCP | libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE => return Ok(()),
            _ => "sockets of its protocol are not dumped yet".to_owned(),
        };
        Err(Problem::refused(format!("is {self}; {what}")))
    }
}

impl fmt::Display for Socket {
    /// `a tcp socket (127.0.0.1:80 to 10.0.0.1:4711)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            number if self.is_raw() => write!(f, "a raw socket of protocol {number}")?,
            _ if self.is_ping() => f.write_str("a ping socket")?,
            libc::IPPROTO_TCP => f.write_str("a tcp socket")?,
            libc::IPPROTO_UDP => f.write_str("a udp socket")?,
            libc::IPPROTO_UDPLITE => f.write_str("a udp-lite socket")?,
            number => write!(f, "an internet socket of protocol {number}")?,
        }
        match self.state {
            ESTABLISHED.. if self.peer.port != 0 => write!(f, " ({} to {})", self.local, self.peer),
            _ => write!(f, " ({})", self.local),
        }
    }
}

/// One end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) port: u16,
    pub(super) words: Vec<u32>,
}

impl Address {
    /// Of a sockaddr_in or sockaddr_in6.
    fn parse(raw: &[u8]) -> anyhow::Result<Address> {
        Address::take(raw).with_context(|| format!("an address of {} bytes", raw.len()))
    }

    fn take(raw: &[u8]) -> Option<Address> {
        let family = i32::from(u16::from_ne_bytes(*raw.first_chunk()?));
        let port = u16::from_be_bytes(*raw.get(2..)?.first_chunk()?);
        let bytes = match family {
            libc::AF_INET => raw.get(4..8)?,
            libc::AF_INET6 => raw.get(8..24)?,
            _ => return None,
        };
        Some(Address {
            port,
            words: words_of(bytes),
        })
    }

    fn to_socket_addr(&self) -> Option<SocketAddr> {
        let bytes: Vec<u8> = self.words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let ip = match (bytes.first_chunk::<16>(), bytes.first_chunk::<4>()) {
            (Some(sixteen), _) => IpAddr::from(*sixteen),
            (None, Some(four)) => IpAddr::from(*four),
            (None, None) => return None,
        };
        Some(SocketAddr::new(ip, self.port))
    }

    fn none(words: usize) -> Address {
        Address {
            port: 0,
            words: vec![0; words],
        }
    }
}

fn words_of(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        match (
            <[u8; 4]>::try_from(bytes.as_slice()),
            <[u8; 16]>::try_from(bytes.as_slice()),
        ) {
            (Ok(four), _) => write!(f, "{}:{}", Ipv4Addr::from(four), self.port),
            (_, Ok(sixteen)) => write!(f, "[{}]:{}", Ipv6Addr::from(sixteen), self.port),
            _ => f.write_str("no address"),
        }
    }
}

fn collect_v6only(fd: BorrowedFd, socket: &Socket) -> anyhow::Result<Option<bool>> {
    if socket.family != libc::AF_INET6 || socket.is_raw() {
        return Ok(None);
    }
    let only = sockopt_int(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY).context("IPV6_V6ONLY")?;
    Ok(Some(only != 0))
}

/// Only what differs from the default is present, but for the time to live.
fn collect_ip_options(fd: BorrowedFd, socket: &Socket) -> anyhow::Result<IpOptsEntry> {
    if socket.family != libc::AF_INET {
        let freebind =
            sockopt_int(fd, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND).context("IPV6_FREEBIND")?;
        return Ok(IpOptsEntry {
            freebind: is_set(freebind),
            raw: raw_socket::collect_options(fd, socket)?,
            ..IpOptsEntry::default()
        });
    }
    let int = |name, what| sockopt_int(fd, libc::IPPROTO_IP, name).context(what);
    let tos = int(libc::IP_TOS, "IP_TOS")? as u32;
    Ok(IpOptsEntry {
        freebind: is_set(int(libc::IP_FREEBIND, "IP_FREEBIND")?),
        raw: raw_socket::collect_options(fd, socket)?,
        pktinfo: is_set(int(libc::IP_PKTINFO, "IP_PKTINFO")?),
        tos: Some(tos).filter(|tos| *tos != 0),
        ttl: Some(int(libc::IP_TTL, "IP_TTL")? as u32),
    })
}

fn collect_tcp_options(fd: BorrowedFd, socket: &Socket) -> anyhow::Result<TcpOptsEntry> {
    if !socket.is_tcp() {
        return Ok(TcpOptsEntry::default());
    }
    let int = |name, what| sockopt_int(fd, libc::IPPROTO_TCP, name).context(what);
    Ok(TcpOptsEntry {
        cork: is_set(int(libc::TCP_CORK, "TCP_CORK")?),
        nodelay: is_set(int(libc::TCP_NODELAY, "TCP_NODELAY")?),
        keepcnt: Some(int(libc::TCP_KEEPCNT, "TCP_KEEPCNT")? as u32),
        keepidle: Some(int(libc::TCP_KEEPIDLE, "TCP_KEEPIDLE")? as u32),
        keepintvl: Some(int(libc::TCP_KEEPINTVL, "TCP_KEEPINTVL")? as u32),
    })
}

fn is_set(value: i32) -> Option<bool> {
    (value != 0).then_some(true)
}

/// What waits to be read and can be kept; what cannot is told.
fn collect_datagrams(
    ctx: &Context,
    file: &OpenFile,
    socket: &Socket,
    opts: &SkOptsEntry,
) -> anyhow::Result<Vec<CrustDatagramEntry>> {
    let is_udp = socket.protocol == libc::IPPROTO_UDP && !socket.is_raw();
    let kept = match is_udp {
        true => datagram::collect(file, opts).context("peek what waits to be read")?,
        false => None,
    };
    if kept.is_none() {
        warn_of_losses(ctx, file, socket)?;
    }
    Ok(kept.unwrap_or_default())
}

fn warn_of_losses(ctx: &Context, file: &OpenFile, socket: &Socket) -> anyhow::Result<()> {
    if socket.is_tcp() {
        return Ok(());
    }
    let is_waiting = match bytes_waiting(file.fd) {
        // Ping sockets have no ioctl of their own (ping_prot, net/ipv4/ping.c).
        Err(Errno::ENOTTY) => {
            let mut polled = [PollFd::new(file.fd, PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::ZERO).context("poll")? > 0
        }
        waiting => waiting.context("FIONREAD")? > 0,
    };
    if is_waiting {
        let (pid, name) = (file.task.pid, file.name());
        let message = format_args!("task {pid}: {name}: not kept: a waiting datagram");
        ctx.log.warn("dump/files/inet_socket", message);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_cli::config::Defaults;
    use crust_cli::options::{Tool, parse};

    fn options(args: &[&str]) -> Options {
        let args = ["--tree", "1"].iter().chain(args).map(Into::into);
        parse(Tool::Dump, args, &Defaults::none()).unwrap()
    }

    #[test]
    fn a_listener_tells_backlog_and_address() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let socket = Socket::collect(listener.as_fd(), 0).unwrap();
        assert_eq!(
            (socket.state, socket.waiting, socket.local.port),
            (LISTEN, 0, port)
        );
        assert!(socket.backlog > 0);
        assert_eq!(socket.local.words, [16_777_343]);
        assert!(socket.refuse_unsupported(&options(&[])).is_ok());
        let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let socket = Socket::collect(listener.as_fd(), 0).unwrap();
        let refused = socket.refuse_unsupported(&options(&[]));
        assert!(refused.is_err(), "a connection waits");
        let skip = options(&["--skip-in-flight"]);
        assert!(socket.refuse_unsupported(&skip).is_ok());
        let connected = Socket::collect(client.as_fd(), 0).unwrap();
        let Err(Problem::Refused { what, hint }) = connected.refuse_unsupported(&options(&[]))
        else {
            panic!("an established connection was accepted without the option");
        };
        assert!(what.contains(&format!("to 127.0.0.1:{port}")), "{what}");
        assert!(hint.contains("--tcp-established"), "{hint}");
        let established = options(&["--tcp-established"]);
        assert!(connected.refuse_unsupported(&established).is_ok());
        assert_eq!(connected.shutdown(), None);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let half_closed = Socket::collect(client.as_fd(), 0).unwrap();
        assert_eq!(half_closed.shutdown(), Some(SkShutdown::Write));
    }

    #[test]
    fn a_connected_udp_socket_has_two_ends() {
        let one = std::net::UdpSocket::bind("[::1]:0").unwrap();
        let other = std::net::UdpSocket::bind("[::1]:0").unwrap();
        one.connect(other.local_addr().unwrap()).unwrap();
        let socket = Socket::collect(one.as_fd(), 0).unwrap();
        assert_eq!(
            (socket.state, socket.peer.port),
            (ESTABLISHED, other.local_addr().unwrap().port())
        );
        assert_eq!(socket.local.words, [0, 0, 0, 16_777_216]);
        // Bound to a v6 address, the kernel sets it by itself.
        assert_eq!(collect_v6only(one.as_fd(), &socket).unwrap(), Some(true));
    }

    #[test]
    fn addresses_of_both_families() {
        let four = [2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Address::parse(&four).unwrap().to_string(), "127.0.0.1:80");
        let mut six = [0u8; 28];
        six[0] = 10;
        six[3] = 7;
        six[23] = 1;
        assert_eq!(Address::parse(&six).unwrap().to_string(), "[::1]:7");
        assert!(Address::parse(&[2]).is_err());
    }
}
