//! Multicast groups of internet sockets (ip(7), ipv6(7), RFC 3678).
//!
//! The kernel lists the groups of a namespace, not those of a socket; but a socket tells of a group
//! that it is named whether it is a member and of which senders it hears (MCAST_MSFILTER).

use crate::descriptor::{set_sockopt, sockopt_bytes};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::BorrowedFd;

/// Not in libc for this target (include/uapi/linux/in.h).
pub const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
/// MCAST_EXCLUDE: all senders but those listed.
const EXCLUDE: u32 = 0;
/// Offsets in struct group_filter: the address behind an aligned number, mode, count, list.
const ADDRESS: usize = 8;
const MODE: usize = ADDRESS + size_of::<libc::sockaddr_storage>();
const SOURCES: usize = MODE + 4;
const LIST: usize = SOURCES + 4;
/// Of the address in sockaddr_in and sockaddr_in6.
const IPV4: usize = 4;
const IPV6: usize = 8;

/// A group on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Number of the interface.
    pub ifindex: u32,
    /// 4 bytes of IPv4 or 16 of IPv6.
    pub address: Vec<u8>,
}

impl Group {
    /// IPPROTO_IP or IPPROTO_IPV6; `None` if the address is of another length.
    pub fn level(&self) -> Option<(&'static str, i32)> {
        match self.address.len() {
            4 => Some(("IPPROTO_IP", libc::IPPROTO_IP)),
            16 => Some(("IPPROTO_IPV6", libc::IPPROTO_IPV6)),
            _ => None,
        }
    }

    /// struct group_req, by which a socket becomes a member.
    pub fn request(&self) -> Vec<u8> {
        let mut request = vec![0; MODE];
        let (family, at) = match self.address.len() {
            4 => (libc::AF_INET, IPV4),
            _ => (libc::AF_INET6, IPV6),
        };
        let mut put = |at: usize, bytes: &[u8]| {
            let place = request.get_mut(at..at + bytes.len());
            place
                .into_iter()
                .for_each(|place| place.copy_from_slice(bytes));
        };
        put(0, &self.ifindex.to_ne_bytes());
        put(ADDRESS, &(family as u16).to_ne_bytes());
        put(ADDRESS + at, &self.address);
        request
    }

    /// Makes a socket a member.
    pub fn join(&self, socket: BorrowedFd<'_>) -> nix::Result<()> {
        let (_, level) = self.level().ok_or(Errno::EINVAL)?;
        set_sockopt(socket, level, MCAST_JOIN_GROUP, &self.request())
    }
}

/// What a socket is to a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    No,
    /// It hears every sender.
    Whole,
    /// It hears some senders only.
    Filtered,
}

/// Asks a socket. One of IPv6 may be in groups of both families.
pub fn membership(socket: BorrowedFd<'_>, group: &Group) -> nix::Result<Membership> {
    let (_, level) = group.level().ok_or(Errno::EINVAL)?;
    let mut filter = group.request();
    filter.resize(LIST, 0);
    match sockopt_bytes(socket, level, MCAST_MSFILTER, &mut filter) {
        Ok(_) => {}
        // ip_mc_gsfget and ip6_mc_msfget: no member; the level of another family.
        Err(Errno::EADDRNOTAVAIL | Errno::ENOPROTOOPT | Errno::EOPNOTSUPP | Errno::ENODEV) => {
            return Ok(Membership::No);
        }
        Err(errno) => return Err(errno),
    }
    let word = |at: usize| {
        let bytes = filter.get(at..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    };
    match (word(MODE), word(SOURCES)) {
        (EXCLUDE, 0) => Ok(Membership::Whole),
        _ => Ok(Membership::Filtered),
    }
}

/// The groups of /proc/PID/net/igmp: an interface begins a line, its groups follow behind tabs as
/// words in the order of the bytes (net/ipv4/igmp.c).
pub fn parse_igmp(text: &str) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut interface = None;
    for line in text.lines().skip(1) {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !line.starts_with(char::is_whitespace) {
            interface = first.parse().ok();
        } else if let (Some(ifindex), Ok(word)) = (interface, u32::from_str_radix(first, 16)) {
            let address = word.to_ne_bytes().to_vec();
            groups.push(Group { ifindex, address });
        }
    }
    groups
}

/// The groups of /proc/PID/net/igmp6: number and name of an interface, the address in hex
/// (net/ipv6/mcast.c).
pub fn parse_igmp6(text: &str) -> Vec<Group> {
    let group = |line: &str| {
        let mut words = line.split_whitespace();
        let ifindex = words.next()?.parse().ok()?;
        let address = u128::from_str_radix(words.nth(1)?, 16).ok()?;
        let address = address.to_be_bytes().to_vec();
        Some(Group { ifindex, address })
    };
    text.lines().filter_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::os::fd::AsFd;

    #[test]
    fn lists_of_groups_are_read() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     2      V3\n\
                    \t\t\t\t010203EF     1 0:00000000\t\t0\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n";
        let four = |address: [u8; 4]| Group {
            ifindex: 1,
            address: address.to_vec(),
        };
        let both = [four([239, 3, 2, 1]), four([224, 0, 0, 1])];
        assert_eq!(parse_igmp(text), both);
        let text = "12   eth0            ff020000000000000000000000000001     1 0000000C 0\n";
        let all = std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let wanted = Group {
            ifindex: 12,
            address: all.octets().to_vec(),
        };
        assert_eq!(parse_igmp6(text), [wanted]);
        assert!(parse_igmp("").is_empty() && parse_igmp6("x").is_empty());
    }

    /// In the group that it joined and in no other.
    #[test]
    fn a_socket_tells_its_groups() {
        let made = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a socket");
        let group = |last| Group {
            ifindex: 1,
            address: vec![239, 1, 2, last],
        };
        assert_eq!(membership(made.as_fd(), &group(3)), Ok(Membership::No));
        group(3).join(made.as_fd()).expect("lo has groups");
        assert_eq!(membership(made.as_fd(), &group(3)), Ok(Membership::Whole));
        assert_eq!(membership(made.as_fd(), &group(4)), Ok(Membership::No));
        let listed = std::fs::read_to_string("/proc/self/net/igmp").expect("it is there");
        assert!(parse_igmp(&listed).contains(&group(3)), "{listed}");
    }
}
