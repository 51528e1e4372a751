//! Internet sockets without a connection to keep: TCP that listens or is closed, UDP and UDP-lite.
//!
//! Made, bound and set to listen in `Phase::Open`, so that a port in use or an address that this
//! host has not is found before anything is forked. A TCP port may still be in TIME_WAIT from its
//! last life: SO_REUSEADDR is on while it is bound and gets its own value after. What bind(2)
//! looks at (v6only, freebind, the device, SO_REUSEPORT) is set before it, everything else after.
//! An address is stored as the words that a little-endian machine reads from it; the scope of a
//! link-local one is not in the images.

use super::calls::{SETTABLE, set_flags, set_option};
use super::{File, fown, member, sock_options};
use crate::plan::step::{Actor, Arg, Call, Origin, Phase, Ret, SlotId};
use crate::plan::{Planner, Refusal};
use crust_proto::criu::{InetSkEntry, SkShutdown};
use nix::libc;

type Name = (&'static str, i32);

const SOL_SOCKET: Name = ("SOL_SOCKET", libc::SOL_SOCKET);
const IPPROTO_IP: Name = ("IPPROTO_IP", libc::IPPROTO_IP);
const IPPROTO_IPV6: Name = ("IPPROTO_IPV6", libc::IPPROTO_IPV6);
const IPPROTO_TCP: Name = ("IPPROTO_TCP", libc::IPPROTO_TCP);
/// States of include/net/tcp_states.h.
const ESTABLISHED: u32 = 1;
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;

/// Makes the socket.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let isk = member(planner, file, file.entry.isk.as_ref(), |isk| isk.id)?;
    let slot = planner.slot();
    let (origin, calls) = match Inet::of(isk) {
        Ok(inet) => {
            let origin = file.origin(inet.name(isk));
            (origin, inet.calls(isk, slot))
        }
        Err(why) => (file.origin(file.name()), Err(why)),
    };
    match calls {
        Ok(calls) => {
            for call in calls {
                planner.call(Phase::Open, Actor::Broker, call, origin.clone());
            }
        }
        Err(why) => {
            planner.refuse(Refusal::new(origin, why));
            return None;
        }
    }
    plan_flags(planner, isk, slot, origin);
    fown::plan(planner, file, slot, isk.flags as i32, &isk.fown);
    Some(slot)
}

fn plan_flags(planner: &mut Planner<'_>, isk: &InetSkEntry, slot: SlotId, origin: Origin) {
    let flags = isk.flags as i32;
    if flags & SETTABLE != 0 {
        planner.call(Phase::Open, Actor::Broker, set_flags(slot, flags), origin);
    }
}

/// A checked entry.
#[derive(Debug)]
struct Inet {
    family: Name,
    kind: Name,
    protocol: Name,
    local: Option<Vec<u8>>,
    peer: Option<Vec<u8>>,
}

impl Inet {
    fn of(isk: &InetSkEntry) -> Result<Inet, String> {
        let family = match isk.family as i32 {
            libc::AF_INET => ("AF_INET", libc::AF_INET),
            libc::AF_INET6 => ("AF_INET6", libc::AF_INET6),
            other => return Err(format!("family {other} is no internet family")),
        };
        let (kind, protocol) = match (isk.proto as i32, isk.r#type as i32) {
            (libc::IPPROTO_TCP, libc::SOCK_STREAM) => {
                (("SOCK_STREAM", libc::SOCK_STREAM), IPPROTO_TCP)
            }
            (libc::IPPROTO_UDP, libc::SOCK_DGRAM) => (
                ("SOCK_DGRAM", libc::SOCK_DGRAM),
                ("IPPROTO_UDP", libc::IPPROTO_UDP),
            ),
            (libc::IPPROTO_UDPLITE, libc::SOCK_DGRAM) => (
                ("SOCK_DGRAM", libc::SOCK_DGRAM),
                ("IPPROTO_UDPLITE", libc::IPPROTO_UDPLITE),
            ),
            (proto, kind) => {
                return Err(format!(
                    "sockets of proto {proto} and type {kind} cannot be restored yet"
                ));
            }
        };
        match (protocol.1, isk.state) {
            (_, CLOSE) | (libc::IPPROTO_TCP, LISTEN) => {}
            (libc::IPPROTO_TCP, _) => {
                return Err("established TCP connections cannot be restored yet".to_owned());
            }
            (_, ESTABLISHED) => {}
            (_, state) => return Err(format!("state {state} is none of a datagram socket")),
        }
        let local = sockaddr(family.1, "src", isk.src_port, &isk.src_addr)?;
        let is_bound = isk.src_port != 0 || isk.src_addr.iter().any(|word| *word != 0);
        let peer = sockaddr(family.1, "dst", isk.dst_port, &isk.dst_addr)?;
        let is_connected = isk.state == ESTABLISHED;
        Ok(Inet {
            family,
            kind,
            protocol,
            local: is_bound.then_some(local),
            peer: is_connected.then_some(peer),
        })
    }

    fn is_tcp(&self) -> bool {
        self.protocol.1 == libc::IPPROTO_TCP
    }

    /// For people: `tcp 127.0.0.1:6379`.
    fn name(&self, isk: &InetSkEntry) -> String {
        let protocol = match self.protocol.1 {
            libc::IPPROTO_TCP => "tcp",
            libc::IPPROTO_UDP => "udp",
            _ => "udp-lite",
        };
        format!("{protocol} {}", shown_address(&isk.src_addr, isk.src_port))
    }

    fn calls(&self, isk: &InetSkEntry, slot: SlotId) -> Result<Vec<Call>, String> {
        let mut calls = vec![self.make(slot)];
        calls.extend(self.before_bind(isk, slot)?);
        let address = |name, nr, address: &Vec<u8>| {
            let args = vec![
                Arg::Fd(slot),
                Arg::bytes(address.clone()),
                Arg::Int(address.len() as i64),
            ];
            Call::new(name, nr, args)
        };
        calls.extend(
            self.local
                .as_ref()
                .map(|local| address("bind", libc::SYS_bind, local)),
        );
        calls.extend(
            self.peer
                .as_ref()
                .map(|peer| address("connect", libc::SYS_connect, peer)),
        );
        if isk.state == LISTEN {
            let args = vec![Arg::Fd(slot), Arg::Int(isk.backlog.into())];
            calls.push(Call::new("listen", libc::SYS_listen, args));
        }
        calls.extend(self.after_bind(isk, slot)?);
        Ok(calls)
    }

    fn make(&self, slot: SlotId) -> Call {
        let kind = format!("{}|SOCK_CLOEXEC", self.kind.0);
        let args = vec![
            Arg::named(self.family.0, self.family.1),
            Arg::Named(kind, (self.kind.1 | libc::SOCK_CLOEXEC) as u64),
            Arg::named(self.protocol.0, self.protocol.1),
        ];
        Call::new("socket", libc::SYS_socket, args).answers(Ret::Fd(slot))
    }

    /// What bind(2) looks at.
    fn before_bind(&self, isk: &InetSkEntry, slot: SlotId) -> Result<Vec<Call>, String> {
        let mut calls = Vec::new();
        let mut set = |level, name, value: u32| {
            calls.push(set_option(slot, level, name, value.to_le_bytes().to_vec()));
        };
        let is_v6 = self.family.1 == libc::AF_INET6;
        if is_v6 {
            let only = isk.v6only == Some(true);
            set(
                IPPROTO_IPV6,
                ("IPV6_V6ONLY", libc::IPV6_V6ONLY),
                only.into(),
            );
        }
        let freebind = isk.ip_opts.as_ref().and_then(|opts| opts.freebind);
        if freebind == Some(true) {
            match is_v6 {
                true => set(IPPROTO_IPV6, ("IPV6_FREEBIND", libc::IPV6_FREEBIND), 1),
                false => set(IPPROTO_IP, ("IP_FREEBIND", libc::IP_FREEBIND), 1),
            }
        }
        let reuses = isk.opts.reuseaddr == Some(true);
        if self.is_tcp() || reuses {
            set(SOL_SOCKET, ("SO_REUSEADDR", libc::SO_REUSEADDR), 1);
        }
        if isk.opts.so_reuseport == Some(true) {
            set(SOL_SOCKET, ("SO_REUSEPORT", libc::SO_REUSEPORT), 1);
        }
        let device = isk.opts.so_bound_dev.as_ref().or(isk.ifname.as_ref());
        if let Some(device) = device.filter(|device| !device.is_empty()) {
            if device.len() >= libc::IFNAMSIZ {
                return Err("so_bound_dev is longer than a device name".to_owned());
            }
            let name = ("SO_BINDTODEVICE", libc::SO_BINDTODEVICE);
            calls.push(set_option(slot, SOL_SOCKET, name, device.clone()));
        }
        Ok(calls)
    }

    fn after_bind(&self, isk: &InetSkEntry, slot: SlotId) -> Result<Vec<Call>, String> {
        let mut calls = Vec::new();
        let mut set = |level, name, value: u32| {
            calls.push(set_option(slot, level, name, value.to_le_bytes().to_vec()));
        };
        if let Some(opts) = &isk.ip_opts {
            if opts.raw.is_some() {
                return Err("ip_opts.raw: raw sockets cannot be restored yet".to_owned());
            }
            if opts.pktinfo == Some(true) {
                set(IPPROTO_IP, ("IP_PKTINFO", libc::IP_PKTINFO), 1);
            }
            if let Some(tos) = opts.tos {
                set(IPPROTO_IP, ("IP_TOS", libc::IP_TOS), tos);
            }
            if let Some(ttl) = opts.ttl {
                set(IPPROTO_IP, ("IP_TTL", libc::IP_TTL), ttl);
            }
        }
        if let Some(opts) = isk.tcp_opts.as_ref().filter(|_| self.is_tcp()) {
            let switches = [
                (("TCP_CORK", libc::TCP_CORK), opts.cork),
                (("TCP_NODELAY", libc::TCP_NODELAY), opts.nodelay),
            ];
            for (name, _) in switches.into_iter().filter(|(_, on)| *on == Some(true)) {
                set(IPPROTO_TCP, name, 1);
            }
            let numbers = [
                (("TCP_KEEPCNT", libc::TCP_KEEPCNT), opts.keepcnt),
                (("TCP_KEEPIDLE", libc::TCP_KEEPIDLE), opts.keepidle),
                (("TCP_KEEPINTVL", libc::TCP_KEEPINTVL), opts.keepintvl),
            ];
            for (name, value) in numbers {
                if let Some(value) = value {
                    set(IPPROTO_TCP, name, value);
                }
            }
        }
        calls.extend(sock_options::calls(&isk.opts, slot, self.is_tcp())?);
        calls.extend(shut_down(isk, slot)?);
        Ok(calls)
    }
}

fn shut_down(isk: &InetSkEntry, slot: SlotId) -> Result<Option<Call>, String> {
    let (name, how) = match isk.shutdown.map(SkShutdown::try_from) {
        None | Some(Ok(SkShutdown::None)) => return Ok(None),
        Some(Ok(SkShutdown::Read)) => ("SHUT_RD", libc::SHUT_RD),
        Some(Ok(SkShutdown::Write)) => ("SHUT_WR", libc::SHUT_WR),
        Some(Ok(SkShutdown::Both)) => ("SHUT_RDWR", libc::SHUT_RDWR),
        Some(Err(_)) => return Err("shutdown has a value that is not known".to_owned()),
    };
    let args = vec![Arg::Fd(slot), Arg::named(name, how)];
    Ok(Some(Call::new("shutdown", libc::SYS_shutdown, args)))
}

/// A sockaddr_in or sockaddr_in6.
fn sockaddr(family: i32, which: &str, port: u32, words: &[u32]) -> Result<Vec<u8>, String> {
    let port = u16::try_from(port).map_err(|_| format!("{which}_port {port} is no port"))?;
    let wanted = if family == libc::AF_INET { 1 } else { 4 };
    if words.len() != wanted {
        return Err(format!(
            "{which}_addr has {} words, not {wanted}",
            words.len()
        ));
    }
    let mut raw = (family as u16).to_ne_bytes().to_vec();
    raw.extend(port.to_be_bytes());
    if family == libc::AF_INET6 {
        // No flow label.
        raw.extend([0; 4]);
    }
    raw.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    // No scope, or the padding of sockaddr_in.
    raw.extend(if family == libc::AF_INET6 {
        &[0u8; 4][..]
    } else {
        &[0; 8]
    });
    Ok(raw)
}

fn shown_address(words: &[u32], port: u32) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    match (
        <[u8; 4]>::try_from(bytes.as_slice()),
        <[u8; 16]>::try_from(bytes.as_slice()),
    ) {
        (Ok(four), _) => format!("{}:{port}", std::net::Ipv4Addr::from(four)),
        (_, Ok(sixteen)) => format!("[{}]:{port}", std::net::Ipv6Addr::from(sixteen)),
        _ => "at no address".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_proto::criu::{IpOptsEntry, TcpOptsEntry};

    fn listener() -> InetSkEntry {
        InetSkEntry {
            family: libc::AF_INET as u32,
            r#type: libc::SOCK_STREAM as u32,
            proto: libc::IPPROTO_TCP as u32,
            state: LISTEN,
            src_port: 6379,
            backlog: 7,
            src_addr: vec![16_777_343],
            dst_addr: vec![0],
            ip_opts: Some(IpOptsEntry {
                ttl: Some(64),
                ..Default::default()
            }),
            tcp_opts: Some(TcpOptsEntry {
                nodelay: Some(true),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn names(isk: &InetSkEntry) -> Vec<&'static str> {
        let inet = Inet::of(isk).expect("a socket");
        let calls = inet.calls(isk, SlotId(0)).expect("calls");
        calls
            .iter()
            .map(|call| call.name)
            .filter(|name| *name != "setsockopt")
            .collect()
    }

    #[test]
    fn a_listener_is_bound_and_listens() {
        let isk = listener();
        assert_eq!(names(&isk), ["socket", "bind", "listen"]);
        let inet = Inet::of(&isk).expect("a socket");
        assert_eq!(inet.name(&isk), "tcp 127.0.0.1:6379");
        let expected = [2, 0, 0x18, 0xeb, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(inet.local.as_deref(), Some(&expected[..]));
    }

    #[test]
    fn a_udp_socket_is_connected_or_left_alone() {
        let mut isk = InetSkEntry {
            r#type: libc::SOCK_DGRAM as u32,
            proto: libc::IPPROTO_UDP as u32,
            state: ESTABLISHED,
            dst_port: 53,
            dst_addr: vec![16_777_343],
            ..listener()
        };
        assert_eq!(names(&isk), ["socket", "bind", "connect"]);
        isk.state = CLOSE;
        (isk.src_port, isk.src_addr) = (0, vec![0]);
        assert_eq!(names(&isk), ["socket"]);
    }

    #[test]
    fn wild_entries_are_refused() {
        let broken: [fn(&mut InetSkEntry); 6] = [
            |isk| isk.family = 1,
            |isk| isk.state = ESTABLISHED,
            |isk| isk.proto = 132,
            |isk| isk.src_port = 65536,
            |isk| isk.src_addr = vec![],
            |isk| isk.r#type = 3,
        ];
        for break_it in broken {
            let mut isk = listener();
            break_it(&mut isk);
            assert!(Inet::of(&isk).is_err(), "{isk:?}");
        }
    }
}
