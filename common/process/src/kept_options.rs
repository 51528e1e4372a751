//! Socket options for which CRIU's images have no field, and which a program would miss: each by
//! level and name. A dump stores those whose value is not that of a new socket of the kind, in a
//! field that CRIU's reader passes over; a restore sets those that are in this table and no other.

use crate::descriptor::{sockopt_bytes, sockopt_int};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{SockaddrStorage, getpeername};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// An option whose value is one int.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptOption {
    /// Level of getsockopt(2).
    pub level: i32,
    /// Its number there.
    pub name: i32,
    /// Its name and that of its level.
    pub text: (&'static str, &'static str),
}

/// Not in libc for this target (include/uapi/linux/{in,in6,tcp,netlink,udp}.h).
const IP_MULTICAST_IF: i32 = 32;
const IPV6_MULTICAST_IF: i32 = 17;
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
const TCP_NOTSENT_LOWAT: i32 = 25;
const TCP_FASTOPEN_CONNECT: i32 = 30;
/// include/net/tcp_states.h.
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;
const NETLINK_GET_STRICT_CHK: i32 = 12;
const UDPLITE_SEND_CSCOV: i32 = 10;
const UDPLITE_RECV_CSCOV: i32 = 11;

macro_rules! kept {
    ($($level:ident { $($name:expr, $text:literal;)* })*) => {
        /// All of them.
        pub const KEPT: &[KeptOption] = &[$($(KeptOption {
            level: libc::$level,
            name: $name,
            text: (stringify!($level), $text),
        },)*)*];
    };
}

/// Options of every socket (include/uapi/asm-generic/socket.h), with what a new one answers. They
/// are set when it is otherwise complete: SO_TIMESTAMPING may count the bytes of a connection.
pub const OF_ALL: [(i32, &str, i32); 15] = [
    (1, "SO_DEBUG", 0),
    (29, "SO_TIMESTAMP", 0),
    (35, "SO_TIMESTAMPNS", 0),
    (37, "SO_TIMESTAMPING", 0),
    (40, "SO_RXQ_OVFL", 0),
    (43, "SO_NOFCS", 0),
    (45, "SO_SELECT_ERR_QUEUE", 0),
    (46, "SO_BUSY_POLL", 0),
    (47, "SO_MAX_PACING_RATE", -1),
    (63, "SO_TIMESTAMP_NEW", 0),
    (64, "SO_TIMESTAMPNS_NEW", 0),
    (69, "SO_PREFER_BUSY_POLL", 0),
    (75, "SO_RCVMARK", 0),
    (76, "SO_PASSPIDFD", 0),
    (82, "SO_RCVPRIORITY", 0),
];
/// SO_LOCK_FILTER, which forbids every change of the filter.
pub const SO_LOCK_FILTER: i32 = 44;

/// The processor that a listener or a datagram socket prefers packets from; a new socket has -1. One
/// that has a peer answers the processor of its last packet.
pub const SO_INCOMING_CPU: i32 = 49;
/// Options that are not one int: level, name, its text. A new socket answers zeros or nothing
/// (include/uapi/linux/{in6,net_tstamp}.h).
pub const RAW: [(i32, i32, (&str, &str)); 5] = [
    (libc::SOL_SOCKET, 61, ("SOL_SOCKET", "SO_TXTIME")),
    (libc::IPPROTO_IPV6, 54, ("IPPROTO_IPV6", "IPV6_HOPOPTS")),
    (
        libc::IPPROTO_IPV6,
        55,
        ("IPPROTO_IPV6", "IPV6_RTHDRDSTOPTS"),
    ),
    (libc::IPPROTO_IPV6, 57, ("IPPROTO_IPV6", "IPV6_RTHDR")),
    (libc::IPPROTO_IPV6, 59, ("IPPROTO_IPV6", "IPV6_DSTOPTS")),
];
/// A header of extension has 256 times 8 bytes at most.
pub const LONGEST_RAW: usize = 2048;

/// Those of [`RAW`] that are not as on a new socket, by level, number and value.
pub fn collect_raw(socket: BorrowedFd<'_>) -> Vec<(i32, i32, Vec<u8>)> {
    let is_v6 = sockopt_int(socket, libc::SOL_SOCKET, libc::SO_DOMAIN) == Ok(libc::AF_INET6);
    let asked = RAW
        .iter()
        .filter(|(level, ..)| is_v6 || *level != libc::IPPROTO_IPV6);
    let set = asked.filter_map(|(level, name, _)| {
        let mut value = [0; LONGEST_RAW];
        let len = sockopt_bytes(socket, *level, *name, &mut value).ok()?;
        let value = value.get(..len)?;
        let is_new = value.iter().all(|byte| *byte == 0);
        (!is_new).then(|| (*level, *name, value.to_vec()))
    });
    set.collect()
}

/// [`SO_INCOMING_CPU`] where it is a wish.
pub fn wished_cpu(socket: BorrowedFd<'_>) -> Option<i32> {
    let int = |name| sockopt_int(socket, libc::SOL_SOCKET, name).ok();
    let cpu = int(SO_INCOMING_CPU).filter(|cpu| *cpu >= 0)?;
    let is_of_inet = [libc::AF_INET, libc::AF_INET6].contains(&int(libc::SO_DOMAIN)?);
    let has_peer = || getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok();
    (!is_of_inet || !has_peer()).then_some(cpu)
}

/// Those of [`OF_ALL`] that are not as on a new socket, by number and value.
pub fn collect_of_all(socket: BorrowedFd<'_>) -> Vec<(i32, i32)> {
    let differing = OF_ALL.iter().filter_map(|(name, _, new)| {
        let value = sockopt_int(socket, libc::SOL_SOCKET, *name).ok()?;
        (value != *new).then_some((*name, value))
    });
    differing.collect()
}

kept! {
    SOL_SOCKET {
        60, "SO_ZEROCOPY";
        74, "SO_TXREHASH";
    }
    IPPROTO_IP {
        libc::IP_TOS, "IP_TOS";
        libc::IP_TTL, "IP_TTL";
        libc::IP_RECVOPTS, "IP_RECVOPTS";
        libc::IP_RETOPTS, "IP_RETOPTS";
        libc::IP_PKTINFO, "IP_PKTINFO";
        libc::IP_MTU_DISCOVER, "IP_MTU_DISCOVER";
        21, "IP_MINTTL";
        23, "IP_CHECKSUM";
        25, "IP_RECVFRAGSIZE";
        26, "IP_RECVERR_RFC4884";
        51, "IP_LOCAL_PORT_RANGE";
        libc::IP_TRANSPARENT, "IP_TRANSPARENT";
        libc::IP_RECVERR, "IP_RECVERR";
        libc::IP_RECVTTL, "IP_RECVTTL";
        libc::IP_RECVTOS, "IP_RECVTOS";
        libc::IP_RECVORIGDSTADDR, "IP_RECVORIGDSTADDR";
        IP_MULTICAST_IF, "IP_MULTICAST_IF";
        50, "IP_UNICAST_IF";
        libc::IP_MULTICAST_TTL, "IP_MULTICAST_TTL";
        libc::IP_MULTICAST_LOOP, "IP_MULTICAST_LOOP";
        libc::IP_MULTICAST_ALL, "IP_MULTICAST_ALL";
        IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT";
    }
    IPPROTO_IPV6 {
        11, "IPV6_FLOWINFO";
        libc::IPV6_UNICAST_HOPS, "IPV6_UNICAST_HOPS";
        libc::IPV6_MULTICAST_HOPS, "IPV6_MULTICAST_HOPS";
        libc::IPV6_MTU_DISCOVER, "IPV6_MTU_DISCOVER";
        IPV6_MULTICAST_IF, "IPV6_MULTICAST_IF";
        76, "IPV6_UNICAST_IF";
        29, "IPV6_MULTICAST_ALL";
        31, "IPV6_RECVERR_RFC4884";
        33, "IPV6_FLOWINFO_SEND";
        libc::IPV6_RECVHOPOPTS, "IPV6_RECVHOPOPTS";
        libc::IPV6_RECVRTHDR, "IPV6_RECVRTHDR";
        libc::IPV6_RECVDSTOPTS, "IPV6_RECVDSTOPTS";
        60, "IPV6_RECVPATHMTU";
        62, "IPV6_DONTFRAG";
        70, "IPV6_AUTOFLOWLABEL";
        72, "IPV6_ADDR_PREFERENCES";
        73, "IPV6_MINHOPCOUNT";
        74, "IPV6_RECVORIGDSTADDR";
        77, "IPV6_RECVFRAGSIZE";
        libc::IPV6_TRANSPARENT, "IPV6_TRANSPARENT";
        libc::IPV6_CHECKSUM, "IPV6_CHECKSUM";
        libc::IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO";
        libc::IPV6_RECVERR, "IPV6_RECVERR";
        libc::IPV6_RECVHOPLIMIT, "IPV6_RECVHOPLIMIT";
        libc::IPV6_RECVTCLASS, "IPV6_RECVTCLASS";
        libc::IPV6_TCLASS, "IPV6_TCLASS";
        libc::IPV6_MULTICAST_LOOP, "IPV6_MULTICAST_LOOP";
    }
    IPPROTO_TCP {
        libc::TCP_DEFER_ACCEPT, "TCP_DEFER_ACCEPT";
        libc::TCP_FASTOPEN, "TCP_FASTOPEN";
        libc::TCP_USER_TIMEOUT, "TCP_USER_TIMEOUT";
        TCP_NOTSENT_LOWAT, "TCP_NOTSENT_LOWAT";
        libc::TCP_MAXSEG, "TCP_MAXSEG";
        libc::TCP_SYNCNT, "TCP_SYNCNT";
        libc::TCP_LINGER2, "TCP_LINGER2";
        libc::TCP_WINDOW_CLAMP, "TCP_WINDOW_CLAMP";
        16, "TCP_THIN_LINEAR_TIMEOUTS";
        27, "TCP_SAVE_SYN";
        TCP_FASTOPEN_CONNECT, "TCP_FASTOPEN_CONNECT";
        34, "TCP_FASTOPEN_NO_COOKIE";
        36, "TCP_INQ";
        37, "TCP_TX_DELAY";
        44, "TCP_RTO_MAX_MS";
    }
    IPPROTO_UDP {
        libc::UDP_GRO, "UDP_GRO";
        libc::UDP_SEGMENT, "UDP_SEGMENT";
        101, "UDP_NO_CHECK6_TX";
        102, "UDP_NO_CHECK6_RX";
    }
    IPPROTO_UDPLITE {
        UDPLITE_SEND_CSCOV, "UDPLITE_SEND_CSCOV";
        UDPLITE_RECV_CSCOV, "UDPLITE_RECV_CSCOV";
    }
    SOL_PACKET {
        16, "PACKET_TX_TIMESTAMP";
        19, "PACKET_TX_HAS_OFF";
        20, "PACKET_QDISC_BYPASS";
        23, "PACKET_IGNORE_OUTGOING";
    }
    SOL_NETLINK {
        libc::NETLINK_PKTINFO, "NETLINK_PKTINFO";
        libc::NETLINK_BROADCAST_ERROR, "NETLINK_BROADCAST_ERROR";
        libc::NETLINK_NO_ENOBUFS, "NETLINK_NO_ENOBUFS";
        libc::NETLINK_LISTEN_ALL_NSID, "NETLINK_LISTEN_ALL_NSID";
        libc::NETLINK_CAP_ACK, "NETLINK_CAP_ACK";
        libc::NETLINK_EXT_ACK, "NETLINK_EXT_ACK";
        NETLINK_GET_STRICT_CHK, "NETLINK_GET_STRICT_CHK";
    }
}

/// The option of these numbers.
pub fn find(level: i32, name: i32) -> Option<&'static KeptOption> {
    KEPT.iter()
        .find(|kept| (kept.level, kept.name) == (level, name))
}

/// They mean nothing to a stream, which refuses to have them set, but has the time to live and the
/// interface of the peer's first packet in them (tcp_v4_syn_recv_sock, tcp_v6_syn_recv_sock).
const NOT_OF_STREAMS: [(i32, i32); 4] = [
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IP, IP_MULTICAST_IF),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS),
    (libc::IPPROTO_IPV6, IPV6_MULTICAST_IF),
];
/// What a connection answers to these is its state and no wish; what was wished has been agreed with
/// the peer, or came with the first packet.
const NOT_OF_CONNECTIONS: [(i32, i32); 3] = [
    (libc::IPPROTO_TCP, libc::TCP_MAXSEG),
    (libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP),
    (libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT),
];
/// They have fields of their own in the images of sockets of IPv4; a socket of IPv6 may speak that
/// too.
const NOT_OF_IPV4: [(i32, i32); 3] = [
    (libc::IPPROTO_IP, libc::IP_TOS),
    (libc::IPPROTO_IP, libc::IP_TTL),
    (libc::IPPROTO_IP, libc::IP_PKTINFO),
];

/// What decides which options a socket has.
struct Subject {
    family: i32,
    kind: i32,
    protocol: i32,
    is_connection: bool,
}

impl Subject {
    fn of(socket: BorrowedFd<'_>) -> Subject {
        let int = |name| sockopt_int(socket, libc::SOL_SOCKET, name).unwrap_or(-1);
        let mut state = [0; 1];
        let told = sockopt_bytes(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut state);
        Subject {
            family: int(libc::SO_DOMAIN),
            kind: int(libc::SO_TYPE),
            protocol: int(libc::SO_PROTOCOL),
            is_connection: told.is_ok() && ![TCP_CLOSE, TCP_LISTEN].contains(&state[0]),
        }
    }

    /// Asking for what it cannot have would only cost time.
    fn has(&self, kept: &KeptOption) -> bool {
        let level = match kept.level {
            libc::IPPROTO_IP => [libc::AF_INET, libc::AF_INET6].contains(&self.family),
            libc::IPPROTO_IPV6 => self.family == libc::AF_INET6,
            libc::SOL_NETLINK => self.family == libc::AF_NETLINK,
            libc::SOL_PACKET => self.family == libc::AF_PACKET,
            libc::SOL_SOCKET => true,
            // UDP-lite has the options of UDP too.
            libc::IPPROTO_UDP => self.kind == libc::SOCK_DGRAM,
            level => level == self.protocol,
        };
        let is_among = |excluded: &[(i32, i32)]| excluded.contains(&(kept.level, kept.name));
        let is_excluded = self.kind == libc::SOCK_STREAM && is_among(&NOT_OF_STREAMS)
            || self.family == libc::AF_INET && is_among(&NOT_OF_IPV4)
            || self.is_connection && is_among(&NOT_OF_CONNECTIONS);
        level && !is_excluded
    }
}

/// A socket that has been a connection still tells what was agreed there, which may be more than
/// one may wish for (MAX_TCP_WINDOW of include/net/tcp.h).
fn is_wish(kept: &KeptOption, value: i32) -> bool {
    (kept.level, kept.name) != (libc::IPPROTO_TCP, libc::TCP_MAXSEG) || value <= 32767
}

/// What a socket answers to each of [`KEPT`], in its order; `None` for those it does not have.
pub fn collect(socket: BorrowedFd<'_>) -> Vec<Option<i32>> {
    let of = Subject::of(socket);
    let has = |kept: &KeptOption| of.has(kept);
    KEPT.iter()
        .map(|kept| {
            let value = has(kept).then(|| sockopt_int(socket, kept.level, kept.name));
            value
                .and_then(Result::ok)
                .filter(|value| is_wish(kept, *value))
        })
        .collect()
}

/// The congestion control of a TCP socket, without its zeros; empty for others.
pub fn congestion(socket: BorrowedFd<'_>) -> Vec<u8> {
    let mut name = [0; 16];
    let len = sockopt_bytes(socket, libc::IPPROTO_TCP, libc::TCP_CONGESTION, &mut name);
    let name = name.get(..len.unwrap_or(0)).unwrap_or_default();
    name.split(|byte| *byte == 0)
        .next()
        .unwrap_or_default()
        .to_vec()
}

/// What a new socket of a kind answers: its options and its congestion control.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    /// As [`collect`].
    pub values: Vec<Option<i32>>,
    /// As [`congestion`].
    pub congestion: Vec<u8>,
}

impl Defaults {
    /// Asks one made for the purpose; nothing if that is not allowed.
    pub fn of_new(family: i32, kind: i32, protocol: i32) -> Defaults {
        // SAFETY: plain numbers.
        let got = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
        let Ok(new) = Errno::result(got) else {
            return Defaults::default();
        };
        // SAFETY: the kernel just gave us this descriptor, and nobody else knows it.
        let new = unsafe { OwnedFd::from_raw_fd(new) };
        Defaults {
            values: collect(new.as_fd()),
            congestion: congestion(new.as_fd()),
        }
    }

    /// The options of a socket that are not those of a new one.
    pub fn differing(&self, socket: BorrowedFd<'_>) -> Vec<(&'static KeptOption, i32)> {
        let values = collect(socket).into_iter().zip(&self.values).zip(KEPT);
        values
            .filter_map(|((value, default), kept)| {
                let value = value.filter(|value| Some(*value) != *default)?;
                Some((kept, value))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn only_what_was_changed_differs() {
        let defaults = Defaults::of_new(libc::AF_INET, libc::SOCK_DGRAM, 0);
        let socket = UdpSocket::bind("127.0.0.1:0").expect("loopback is up");
        assert_eq!(defaults.differing(socket.as_fd()), []);
        socket.set_multicast_ttl_v4(7).expect("an option");
        let differing = defaults.differing(socket.as_fd());
        let told: Vec<_> = differing
            .iter()
            .map(|(kept, value)| (kept.text.1, *value))
            .collect();
        assert_eq!(told, [("IP_MULTICAST_TTL", 7)]);
        let tcp = Defaults::of_new(libc::AF_INET, libc::SOCK_STREAM, 0);
        assert!(!tcp.congestion.is_empty() && defaults.congestion.is_empty());
    }

    #[test]
    fn each_is_there_once() {
        for (at, kept) in KEPT.iter().enumerate() {
            assert_eq!(find(kept.level, kept.name), KEPT.get(at));
        }
        assert_eq!(find(libc::SOL_SOCKET, libc::SO_ERROR), None);
    }
}
