//! Network interfaces by rtnetlink(7): what a link is, its addresses and routes, and the same again
//! for a link that was made anew.
//!
//! Addresses and routes are kept as the kernel's own messages: what it tells of one is what it takes
//! to make one. A message is only sent for the one interface it belongs to. Numbers are those of
//! include/uapi/linux/{rtnetlink,if_link,if_addr}.h.

use crate::netlink::{self, Writer, find_attribute as attribute, half, split_message, word};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SockProtocol;
use serde::Serialize;
use std::os::fd::{AsFd, OwnedFd};

const NEWLINK: u16 = 16;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;
/// NLM_F_CREATE and NLM_F_EXCL.
const MAKE: u16 = 0x400 | 0x200;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_CARRIER: u16 = 33;
const INFO_DATA: u16 = 2;
const TUN_OWNER: u16 = 1;
const TUN_GROUP: u16 = 2;
const TUN_DISABLED_QUEUES: u16 = 9;
const INET6_ADDR_GEN_MODE: u16 = 8;
/// IN6_ADDR_GEN_MODE_NONE.
const GEN_NONE: u8 = 1;
/// Bytes of struct ifinfomsg, ifaddrmsg and rtmsg.
const LINK: usize = 16;
const ADDRESS: usize = 8;
const ROUTE: usize = 12;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
/// RTPROT_REDIRECT, RTPROT_KERNEL and RTPROT_RA: routes that come by themselves.
const BY_THEMSELVES: [u8; 3] = [1, 2, 9];
/// RTM_F_CLONED.
const CLONED: u32 = 0x200;
const TABLE_LOCAL: u8 = 255;
/// Flags of a link that a user sets: UP, DEBUG, NOARP, PROMISC, ALLMULTI, MULTICAST.
const LINK_FLAGS: u32 = 0x1 | 0x4 | 0x80 | 0x100 | 0x200 | 0x1000;
const UP: u32 = 1;
/// The kernel's dumps come in datagrams of up to 32 KiB.
const BUFFER: usize = 64 << 10;

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// ARPHRD_*.
    pub link_type: u16,
    /// IFF_*.
    pub flags: u32,
    /// Largest packet.
    pub mtu: u32,
    /// Address of the link layer, empty for none.
    pub address: Vec<u8>,
    /// Packets that may wait.
    pub tx_queue_len: u32,
    /// The bridge or the like that it is part of.
    pub master: Option<u32>,
    /// Whether the link below is up.
    pub carrier: bool,
    /// Of a tun or tap: who may attach, -1 for nobody in particular.
    pub owner: i32,
    /// Of a tun or tap: the group that may.
    pub group: i32,
    /// Of a tun or tap: queues that are detached.
    pub disabled_queues: u32,
    /// How IPv6 makes its link-local address.
    pub addr_gen_mode: Option<u8>,
}

/// A conversation with rtnetlink in the network namespace of the calling thread.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: OwnedFd,
}

impl Rtnetlink {
    /// Begins one.
    pub fn open() -> nix::Result<Rtnetlink> {
        let socket = netlink::open(SockProtocol::NetlinkRoute)?;
        Ok(Rtnetlink { socket })
    }

    /// The link of this name, if there is one.
    pub fn link(&self, name: &[u8]) -> nix::Result<Option<Link>> {
        let mut writer = Writer::default();
        writer.message(GETLINK, netlink::REQUEST, 1, |message| {
            message.raw(&[0; LINK]);
            message.attribute(IFLA_IFNAME, &[name, &[0]].concat());
        });
        netlink::send(self.socket.as_fd(), writer.bytes())?;
        let mut buffer = vec![0; BUFFER];
        let len = netlink::receive(self.socket.as_fd(), &mut buffer)?;
        let (message, _) =
            split_message(buffer.get(..len).unwrap_or_default()).ok_or(Errno::EBADMSG)?;
        match message.kind {
            NEWLINK => parse_link(message.body).map(Some).ok_or(Errno::EBADMSG),
            netlink::ERROR => match message.status() {
                Err(Errno::ENODEV) => Ok(None),
                Err(errno) => Err(errno),
                Ok(()) => Err(Errno::EBADMSG),
            },
            _ => Err(Errno::EBADMSG),
        }
    }

    /// What makes the addresses and routes of a link, in order. A route by several links is not
    /// among them.
    pub fn setup_of(&self, index: u32) -> nix::Result<Vec<Vec<u8>>> {
        let mut setup = self.dump(GETADDR, ADDRESS, |kind, body| {
            kind == NEWADDR && word(body, 4) == Some(index)
        })?;
        setup.extend(self.dump(GETROUTE, ROUTE, |kind, body| {
            kind == NEWROUTE && is_made_route(body) && output_of(body) == Some(index)
        })?);
        Ok(setup)
    }

    /// Type and body of the messages of a dump that are wanted, as [`Rtnetlink::make`] takes them.
    fn dump(
        &self,
        request: u16,
        header: usize,
        wanted: impl Fn(u16, &[u8]) -> bool,
    ) -> nix::Result<Vec<Vec<u8>>> {
        let mut writer = Writer::default();
        let flags = netlink::REQUEST | netlink::DUMP;
        writer.message(request, flags, 1, |message| message.raw(&vec![0; header]));
        netlink::send(self.socket.as_fd(), writer.bytes())?;
        let (mut found, mut buffer) = (Vec::new(), vec![0; BUFFER]);
        loop {
            let len = netlink::receive(self.socket.as_fd(), &mut buffer)?;
            let mut datagram = buffer.get(..len).unwrap_or_default();
            while let Some((message, rest)) = split_message(datagram) {
                datagram = rest;
                match message.kind {
                    netlink::DONE => return Ok(found),
                    netlink::ERROR => message.status()?,
                    kind if wanted(kind, message.body) => {
                        found.push([&kind.to_ne_bytes(), message.body].concat());
                    }
                    _ => {}
                }
            }
        }
    }

    /// Gives a link, which is down, what `wanted` says, but its name and number.
    pub fn configure(&self, index: u32, wanted: &Link) -> nix::Result<()> {
        self.change(index, (wanted.flags & !UP, LINK_FLAGS), |message| {
            message.attribute(IFLA_MTU, &wanted.mtu.to_ne_bytes());
            message.attribute(IFLA_TXQLEN, &wanted.tx_queue_len.to_ne_bytes());
            if !wanted.address.is_empty() {
                message.attribute(IFLA_ADDRESS, &wanted.address);
            }
        })?;
        // By itself IPv6 would make another address than it had.
        if wanted.addr_gen_mode.is_some() {
            self.set_addr_gen_mode(index, GEN_NONE)?;
        }
        if let Some(master) = wanted.master {
            self.change(index, (0, 0), |message| {
                message.attribute(IFLA_MASTER, &master.to_ne_bytes());
            })?;
        }
        if wanted.flags & UP != 0 {
            self.change(index, (UP, UP), |_| {})?;
        }
        Ok(())
    }

    /// How IPv6 makes the link-local address of a link from now on.
    pub fn set_addr_gen_mode(&self, index: u32, mode: u8) -> nix::Result<()> {
        self.change(index, (0, 0), |message| {
            message.nest(IFLA_AF_SPEC, |families| {
                families.nest(libc::AF_INET6 as u16, |family| {
                    family.attribute(INET6_ADDR_GEN_MODE, &[mode]);
                });
            });
        })
    }

    fn change(
        &self,
        index: u32,
        (flags, mask): (u32, u32),
        attributes: impl FnOnce(&mut Writer),
    ) -> nix::Result<()> {
        self.ask(SETLINK, 0, |message| {
            message.raw(&[0; 4]);
            message.raw(&index.to_ne_bytes());
            message.raw(&(flags & mask).to_ne_bytes());
            message.raw(&mask.to_ne_bytes());
            attributes(message);
        })
    }

    /// Makes an address or a route as [`Rtnetlink::setup_of`] told it. One that is there is no
    /// error; EINVAL for what is none of that link.
    pub fn make(&self, index: u32, told: &[u8]) -> nix::Result<()> {
        let (kind, body) = (half(told, 0), told.get(2..).unwrap_or_default());
        let is_of_link = match kind {
            Some(NEWADDR) => body.len() >= ADDRESS && word(body, 4) == Some(index),
            Some(NEWROUTE) => is_made_route(body) && output_of(body) == Some(index),
            _ => false,
        };
        let kind = kind.filter(|_| is_of_link).ok_or(Errno::EINVAL)?;
        match self.ask(kind, MAKE, |message| message.raw(body)) {
            Err(Errno::EEXIST) => Ok(()),
            made => made,
        }
    }

    fn ask(&self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) -> nix::Result<()> {
        let mut writer = Writer::default();
        let flags = netlink::REQUEST | netlink::ACK | flags;
        writer.message(kind, flags, 1, body);
        netlink::send(self.socket.as_fd(), writer.bytes())?;
        let mut buffer = vec![0; BUFFER];
        let len = netlink::receive(self.socket.as_fd(), &mut buffer)?;
        let message = split_message(buffer.get(..len).unwrap_or_default());
        message.ok_or(Errno::EBADMSG)?.0.status()
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let attributes = body.get(LINK..)?;
    let number = |kind| attribute(attributes, kind).and_then(|value| word(value, 0));
    let info = attribute(attributes, IFLA_LINKINFO);
    let data = info.and_then(|info| attribute(info, INFO_DATA));
    let of_tun = |kind| word(attribute(data?, kind)?, 0);
    let families = attribute(attributes, IFLA_AF_SPEC);
    let six = families.and_then(|all| attribute(all, libc::AF_INET6 as u16));
    let mode = six.and_then(|six| attribute(six, INET6_ADDR_GEN_MODE));
    let carrier = attribute(attributes, IFLA_CARRIER).and_then(<[u8]>::first);
    Some(Link {
        index: word(body, 4)?,
        link_type: half(body, 2)?,
        flags: word(body, 8)?,
        mtu: number(IFLA_MTU)?,
        address: attribute(attributes, IFLA_ADDRESS)
            .unwrap_or_default()
            .to_vec(),
        tx_queue_len: number(IFLA_TXQLEN).unwrap_or(0),
        master: number(IFLA_MASTER),
        carrier: carrier != Some(&0),
        owner: of_tun(TUN_OWNER).map_or(-1, |owner| owner as i32),
        group: of_tun(TUN_GROUP).map_or(-1, |group| group as i32),
        disabled_queues: of_tun(TUN_DISABLED_QUEUES).unwrap_or(0),
        addr_gen_mode: mode.and_then(|mode| mode.first().copied()),
    })
}

/// Whether somebody made the route: neither the kernel for itself nor a router's advertisement.
fn is_made_route(body: &[u8]) -> bool {
    let [_, _, _, _, table, protocol, ..] = body else {
        return false;
    };
    let is_cloned = word(body, 8).is_none_or(|flags| flags & CLONED != 0);
    *table != TABLE_LOCAL && !BY_THEMSELVES.contains(protocol) && !is_cloned
}

/// The one link that a route goes by.
fn output_of(body: &[u8]) -> Option<u32> {
    let attributes = body.get(ROUTE..)?;
    match attribute(attributes, RTA_MULTIPATH) {
        Some(_) => None,
        None => word(attribute(attributes, RTA_OIF)?, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_other_links_are_not_sent() {
        let Ok(route) = Rtnetlink::open() else { return };
        let address = [
            &NEWADDR.to_ne_bytes()[..],
            &[2, 8, 0, 0],
            &7u32.to_ne_bytes(),
        ]
        .concat();
        for wild in [&address[..], &[], &[20], &[16, 0, 1, 2], &address[..6]] {
            assert_eq!(route.make(8, wild), Err(Errno::EINVAL), "{wild:?}");
        }
    }

    #[test]
    fn the_loopback_is_a_link_and_nothing_is_none() {
        let route = Rtnetlink::open().expect("a socket");
        let lo = route.link(b"lo").expect("asked").expect("there");
        assert_eq!((lo.index, lo.link_type, lo.owner), (1, 772, -1));
        assert_eq!(route.link(b"crust-no-such"), Ok(None));
        let told = route.setup_of(lo.index).expect("told");
        assert!(told.iter().all(|message| message.len() > 8));
    }

    #[test]
    fn only_routes_by_one_link_are_told() {
        let mut writer = Writer::default();
        writer.raw(&[2, 24, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
        writer.attribute(RTA_OIF, &5u32.to_ne_bytes());
        assert!(is_made_route(writer.bytes()));
        assert_eq!(output_of(writer.bytes()), Some(5));
        writer.attribute(RTA_MULTIPATH, &[]);
        assert_eq!(output_of(writer.bytes()), None);
        assert!(!is_made_route(&[2, 24, 0, 0, 254, 2, 0, 1, 0, 0, 0, 0]));
        assert!(!is_made_route(&[2, 24]));
    }
}
