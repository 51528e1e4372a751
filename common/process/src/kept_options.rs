//! Socket options for which CRIU's images have no field, and which a program would miss: each by
//! level and name. A dump stores those whose value is not that of a new socket of the kind, in a
//! field that CRIU's reader passes over; a restore sets those that are in this table and no other.

use crate::descriptor::{sockopt_bytes, sockopt_int};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// Not in libc for this target (include/uapi/linux/{in,tcp,netlink,udp}.h).
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
const TCP_NOTSENT_LOWAT: i32 = 25;
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

kept! {
    IPPROTO_IP {
        libc::IP_TRANSPARENT, "IP_TRANSPARENT";
        libc::IP_RECVERR, "IP_RECVERR";
        libc::IP_RECVTTL, "IP_RECVTTL";
        libc::IP_RECVTOS, "IP_RECVTOS";
        libc::IP_RECVORIGDSTADDR, "IP_RECVORIGDSTADDR";
        libc::IP_MULTICAST_TTL, "IP_MULTICAST_TTL";
        libc::IP_MULTICAST_LOOP, "IP_MULTICAST_LOOP";
        libc::IP_MULTICAST_ALL, "IP_MULTICAST_ALL";
        IP_BIND_ADDRESS_NO_PORT, "IP_BIND_ADDRESS_NO_PORT";
    }
    IPPROTO_IPV6 {
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
    }
    IPPROTO_UDP {
        libc::UDP_GRO, "UDP_GRO";
        libc::UDP_SEGMENT, "UDP_SEGMENT";
    }
    IPPROTO_UDPLITE {
        UDPLITE_SEND_CSCOV, "UDPLITE_SEND_CSCOV";
        UDPLITE_RECV_CSCOV, "UDPLITE_RECV_CSCOV";
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

/// They mean nothing to a stream, which refuses to have them set, but has the time to live of the
/// peer's first packet in the first (tcp_v4_syn_recv_sock).
const NOT_OF_STREAMS: [(i32, i32); 4] = [
    (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP),
    (libc::IPPROTO_IP, libc::IP_MULTICAST_ALL),
    (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP),
];

/// What a socket answers to each of [`KEPT`], in its order; `None` for those it does not have.
pub fn collect(socket: BorrowedFd<'_>) -> Vec<Option<i32>> {
    let kind = sockopt_int(socket, libc::SOL_SOCKET, libc::SO_TYPE);
    let is_stream = kind == Ok(libc::SOCK_STREAM);
    let has = |kept: &KeptOption| !is_stream || !NOT_OF_STREAMS.contains(&(kept.level, kept.name));
    KEPT.iter()
        .map(|kept| {
            let value = has(kept).then(|| sockopt_int(socket, kept.level, kept.name));
            value.and_then(Result::ok)
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
