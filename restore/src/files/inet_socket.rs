//! Internet sockets: TCP, UDP, UDP-lite, ping and raw ones. What a TCP connection needs besides is in `tcp.rs`.
//!
//! Made, bound and set to listen in `Phase::Open`, so that a port in use or an address that this
//! host has not is found before anything is forked. A TCP port may still be in TIME_WAIT from its
//! last life: SO_REUSEADDR is on while it is bound and gets its own value after. What bind(2)
//! looks at (v6only, freebind, the device, SO_REUSEPORT) is set before it, everything else after.
//! An address is stored as the words that a little-endian machine reads from it; the scope of a
//! link-local one is not in the images.

use super::calls::{SETTABLE, set_flags, set_option};
use super::{File, datagram, fown, kept_options, member, sock_options, tcp};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Arg, Call, Op, Origin, Phase, Ret, SlotId};
use crate::plan::{Planner, Refusal};
use crust_image::tcp_state::{CLOSE, ESTABLISHED, LISTEN, is_connected};
use crust_proto::criu::{InetSkEntry, SkShutdown, TcpStreamEntry};
use nix::libc;

type Name = (&'static str, i32);

/// Not in libc for this target (include/uapi/linux/{in,in6}.h).
const IP_NODEFRAG: i32 = 22;
const IPV6_HDRINCL: i32 = 36;
const SOL_RAW: i32 = 255;

const SOL_SOCKET: Name = ("SOL_SOCKET", libc::SOL_SOCKET);
const IPPROTO_IP: Name = ("IPPROTO_IP", libc::IPPROTO_IP);
const IPPROTO_IPV6: Name = ("IPPROTO_IPV6", libc::IPPROTO_IPV6);
const IPPROTO_TCP: Name = ("IPPROTO_TCP", libc::IPPROTO_TCP);

/// Makes the socket.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let isk = member(planner, file, file.entry.isk.as_ref(), |isk| isk.id)?;
    let slot = planner.slot();
    let wanted = Wanted::of(planner);
    let stream = planner.checkpoint.tcp_streams.get(&isk.ino);
    let (origin, ops) = match Inet::of(isk, wanted) {
        Ok(inet) => (file.origin(inet.name(isk)), inet.ops(isk, stream, slot)),
        Err(why) => (file.origin(file.name()), Err(why)),
    };
    match ops {
        Ok(ops) => {
            for (phase, op) in ops {
                planner.push(phase, Actor::Broker, op, origin.clone());
            }
        }
        Err(why) => {
            let refusal = match why.contains(NEEDS_OPTION) {
                true => Refusal::new(origin, why)
                    .hint("try --tcp-established, or --tcp-close to get it closed"),
                false => Refusal::new(origin, why),
            };
            planner.refuse(refusal);
            return None;
        }
    }
    plan_flags(planner, isk, slot, origin);
    fown::plan(planner, file, slot, isk.flags as i32, &isk.fown);
    Some(slot)
}

/// What becomes of TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Connections,
    ClosedOnes,
    Nothing,
}

impl Wanted {
    /// The images may have been made with `--tcp-close`: then there is nothing else to get.
    fn of(planner: &Planner<'_>) -> Wanted {
        let only_closed = planner.checkpoint.inventory.tcp_close == Some(true);
        if planner.options.tcp_close || only_closed {
            Wanted::ClosedOnes
        } else if planner.options.tcp_established {
            Wanted::Connections
        } else {
            Wanted::Nothing
        }
    }
}

/// TCP_REPAIR_OFF_NO_WP of include/uapi/linux/tcp.h.
const REPAIR_OFF: u32 = u32::MAX;
const NEEDS_OPTION: &str = "it is connected to a peer";

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
    /// TCP with a peer.
    is_connection: bool,
    /// It is one, and no option says that it may come back.
    is_refused: bool,
    /// It was a connection and comes back as the rest of one.
    is_closed: bool,
    /// It had been a connection, and was closed from both sides. It may have the port of a listener
    /// that accepted it, which only repair mode binds a second time.
    is_rest: bool,
}

impl Inet {
    fn of(isk: &InetSkEntry, wanted: Wanted) -> Result<Inet, String> {
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
            (libc::IPPROTO_ICMP, libc::SOCK_DGRAM) => (
                ("SOCK_DGRAM", libc::SOCK_DGRAM),
                ("IPPROTO_ICMP", libc::IPPROTO_ICMP),
            ),
            (libc::IPPROTO_ICMPV6, libc::SOCK_DGRAM) => (
                ("SOCK_DGRAM", libc::SOCK_DGRAM),
                ("IPPROTO_ICMPV6", libc::IPPROTO_ICMPV6),
            ),
            (proto @ 0..=255, libc::SOCK_RAW) => (("SOCK_RAW", libc::SOCK_RAW), ("", proto)),
            (proto, kind) => {
                return Err(format!(
                    "sockets of proto {proto} and type {kind} cannot be restored yet"
                ));
            }
        };
        match (protocol.1, isk.state) {
            (_, ESTABLISHED) if kind.1 == libc::SOCK_RAW => {}
            (_, CLOSE) | (libc::IPPROTO_TCP, LISTEN) => {}
            (libc::IPPROTO_TCP, state) if is_connected(state) => {}
            (libc::IPPROTO_TCP, state) => return Err(format!("TCP state {state} is not restored")),
            (_, ESTABLISHED) => {}
            (_, state) => return Err(format!("state {state} is none of a datagram socket")),
        }
        let local = sockaddr(family.1, "src", isk.src_port, &isk.src_addr)?;
        // The port of a raw socket is its protocol.
        let has_port = isk.src_port != 0 && kind.1 != libc::SOCK_RAW;
        let is_bound = has_port || isk.src_addr.iter().any(|word| *word != 0);
        let is_stream = kind.1 == libc::SOCK_STREAM;
        let peer = sockaddr(family.1, "dst", isk.dst_port, &isk.dst_addr)?;
        let had_peer = is_stream && is_connected(isk.state);
        let is_connection = had_peer && wanted != Wanted::ClosedOnes;
        let is_closed = had_peer && !is_connection;
        let is_rest =
            is_stream && isk.state == CLOSE && isk.shutdown == Some(SkShutdown::Both.into());
        let is_connected = is_connection || isk.state == ESTABLISHED && !is_closed;
        Ok(Inet {
            family,
            kind,
            protocol,
            local: (is_bound && !is_closed).then_some(local),
            peer: is_connected.then_some(peer),
            is_connection,
            is_refused: had_peer && wanted == Wanted::Nothing,
            is_closed,
            is_rest,
        })
    }

    fn is_tcp(&self) -> bool {
        self.kind.1 == libc::SOCK_STREAM
    }

    fn is_raw(&self) -> bool {
        self.kind.1 == libc::SOCK_RAW
    }

    /// For people: `tcp 127.0.0.1:6379`.
    fn name(&self, isk: &InetSkEntry) -> String {
        let protocol = match self.protocol.1 {
            _ if self.is_raw() => "raw",
            libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 => "ping",
            libc::IPPROTO_TCP => "tcp",
            libc::IPPROTO_UDP => "udp",
            _ => "udp-lite",
        };
        let local = shown_address(&isk.src_addr, isk.src_port);
        match self.is_connection {
            true => {
                let peer = shown_address(&isk.dst_addr, isk.dst_port);
                format!("{protocol} {local} to {peer}")
            }
            false => format!("{protocol} {local}"),
        }
    }

    /// What makes it, in order. `stream` is the image of its connection.
    fn ops(
        &self,
        isk: &InetSkEntry,
        stream: Option<&TcpStreamEntry>,
        slot: SlotId,
    ) -> Result<Vec<(Phase, Op)>, String> {
        if self.is_refused {
            return Err(NEEDS_OPTION.to_owned());
        }
        let connection = match (&self.local, &self.peer) {
            (Some(local), Some(peer)) if self.is_connection => {
                Some(tcp::Plan::of(isk, stream, slot, local, peer)?)
            }
            _ if self.is_connection => return Err("a connection without its own end".to_owned()),
            _ => None,
        };
        let mut ops = vec![Op::Call(self.make(slot))];
        ops.extend(self.before_bind(isk, slot)?.into_iter().map(Op::Call));
        match &connection {
            Some(connection) => ops.push(connection.repair.clone()),
            None => ops.extend(self.names(isk, slot)),
        }
        ops.extend(self.after_bind(isk, slot)?.into_iter().map(Op::Call));
        ops.extend(datagram::plan(isk, slot, self.local.as_ref())?);
        let open = ops.into_iter().map(|op| (Phase::Open, op));
        let live = connection.map(|connection| (Phase::Network, connection.live));
        Ok(open.chain(live).collect())
    }

    /// Both ends of what has no connection, and the queue of a listener.
    fn names(&self, isk: &InetSkEntry, slot: SlotId) -> Vec<Op> {
        let bind = self.local.clone();
        let bind = bind.map(|address| Op::Routine(Routine::BindInet { slot, address }));
        let connect = self.peer.as_ref().map(|peer| {
            let (bytes, len) = (Arg::bytes(peer.clone()), Arg::Int(peer.len() as i64));
            let args = vec![Arg::Fd(slot), bytes, len];
            Op::Call(Call::new("connect", libc::SYS_connect, args))
        });
        let listen = (isk.state == LISTEN).then(|| {
            let args = vec![Arg::Fd(slot), Arg::Int(isk.backlog.into())];
            Op::Call(Call::new("listen", libc::SYS_listen, args))
        });
        bind.into_iter().chain(connect).chain(listen).collect()
    }

    fn make(&self, slot: SlotId) -> Call {
        let kind = format!("{}|SOCK_CLOEXEC", self.kind.0);
        let args = vec![
            Arg::named(self.family.0, self.family.1),
            Arg::Named(kind, (self.kind.1 | libc::SOCK_CLOEXEC) as u64),
            match self.is_raw() {
                true => Arg::Int(self.protocol.1.into()),
                false => Arg::named(self.protocol.0, self.protocol.1),
            },
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
        // A raw socket has its number, which forbids the change, from the start.
        if is_v6 && !self.is_raw() {
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
        if self.is_connection || self.is_rest {
            set(IPPROTO_TCP, ("TCP_REPAIR", libc::TCP_REPAIR), 1);
        } else if self.is_tcp() || reuses {
            set(SOL_SOCKET, ("SO_REUSEADDR", libc::SO_REUSEADDR), 1);
        }
        if isk.opts.so_reuseport == Some(true) {
            set(SOL_SOCKET, ("SO_REUSEPORT", libc::SO_REUSEPORT), 1);
        }
        // Among them IP_TRANSPARENT.
        calls.extend(kept_options::calls(&isk.crust_options, slot)?);
        let congestion = isk.crust_congestion.as_ref();
        calls.extend(kept_options::congestion(congestion, slot)?);
        if !self.is_connection {
            calls.extend(bind_to_device(isk, slot)?);
        }
        Ok(calls)
    }

    fn after_bind(&self, isk: &InetSkEntry, slot: SlotId) -> Result<Vec<Call>, String> {
        let mut calls = kept_options::groups(&isk.crust_groups, slot)?;
        let mut set = |level, name, value: u32| {
            calls.push(set_option(slot, level, name, value.to_le_bytes().to_vec()));
        };
        if self.is_rest {
            set(IPPROTO_TCP, ("TCP_REPAIR", libc::TCP_REPAIR), REPAIR_OFF);
        }
        if let Some(opts) = &isk.ip_opts {
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
        if self.is_raw() {
            calls.extend(self.raw_options(isk, slot)?);
        }
        // Leaving repair mode clears it, so it is set behind that.
        let had_reuse = match self.is_connection {
            true => isk.opts.reuseaddr == Some(true),
            false => self.is_tcp() && !self.is_rest,
        };
        calls.extend(sock_options::calls(&isk.opts, slot, had_reuse)?);
        if self.is_connection {
            // Segments sent in the peer's name come by the loopback device.
            calls.extend(bind_to_device(isk, slot)?);
        }
        calls.extend(self.shut_down(isk, slot)?);
        Ok(calls)
    }

    fn raw_options(&self, isk: &InetSkEntry, slot: SlotId) -> Result<Vec<Call>, String> {
        let six = self.family.1 == libc::AF_INET6;
        let opts = isk.ip_opts.as_ref().and_then(|opts| opts.raw.clone());
        let opts = opts.unwrap_or_default();
        let (header, filter, words) = match six {
            true => (
                (IPPROTO_IPV6, ("IPV6_HDRINCL", IPV6_HDRINCL)),
                (
                    ("IPPROTO_ICMPV6", libc::IPPROTO_ICMPV6),
                    ("ICMPV6_FILTER", 1),
                ),
                8,
            ),
            false => (
                (IPPROTO_IP, ("IP_HDRINCL", libc::IP_HDRINCL)),
                (("SOL_RAW", SOL_RAW), ("ICMP_FILTER", 1)),
                1,
            ),
        };
        let switches = [
            (header, opts.hdrincl),
            ((IPPROTO_IP, ("IP_NODEFRAG", IP_NODEFRAG)), opts.nodefrag),
        ];
        let on = switches.into_iter().filter(|(_, on)| *on == Some(true));
        let one = 1u32.to_le_bytes();
        let mut calls: Vec<Call> = on
            .map(|((level, name), _)| set_option(slot, level, name, one.to_vec()))
            .collect();
        match opts.icmpv_filter.len() {
            0 => {}
            len if len == words => {
                let value = opts.icmpv_filter.iter().flat_map(|word| word.to_le_bytes());
                calls.push(set_option(slot, filter.0, filter.1, value.collect()));
            }
            len => return Err(format!("icmpv_filter has {len} words, not {words}")),
        }
        Ok(calls)
    }

    /// Of a connection only reading is shut down here; its end of writing is a FIN (`tcp.rs`). A
    /// socket without a peer answers ENOTCONN and has done it all the same (inet_shutdown).
    fn shut_down(&self, isk: &InetSkEntry, slot: SlotId) -> Result<Option<Call>, String> {
        let how = match isk.shutdown.map(SkShutdown::try_from) {
            Some(Err(_)) => return Err("shutdown has a value that is not known".to_owned()),
            _ if self.is_closed => SkShutdown::Both,
            None => SkShutdown::None,
            Some(Ok(SkShutdown::Both)) if self.is_connection => SkShutdown::Read,
            Some(Ok(SkShutdown::Write)) if self.is_connection => SkShutdown::None,
            Some(Ok(how)) => how,
        };
        let (name, how) = match how {
            SkShutdown::None => return Ok(None),
            SkShutdown::Read => ("SHUT_RD", libc::SHUT_RD),
            SkShutdown::Write => ("SHUT_WR", libc::SHUT_WR),
            SkShutdown::Both => ("SHUT_RDWR", libc::SHUT_RDWR),
        };
        let args = vec![Arg::Fd(slot), Arg::named(name, how)];
        let call = Call::new("shutdown", libc::SYS_shutdown, args);
        Ok(Some(match self.peer {
            Some(_) => call,
            None => call.answers(Ret::Any),
        }))
    }
}

fn bind_to_device(isk: &InetSkEntry, slot: SlotId) -> Result<Option<Call>, String> {
    let device = isk.opts.so_bound_dev.as_ref().or(isk.ifname.as_ref());
    let Some(device) = device.filter(|device| !device.is_empty()) else {
        return Ok(None);
    };
    if device.len() >= libc::IFNAMSIZ {
        return Err("so_bound_dev is longer than a device name".to_owned());
    }
    let name = ("SO_BINDTODEVICE", libc::SO_BINDTODEVICE);
    Ok(Some(set_option(slot, SOL_SOCKET, name, device.clone())))
}

/// A sockaddr_in or sockaddr_in6.
pub(super) fn sockaddr(
    family: i32,
    which: &str,
    port: u32,
    words: &[u32],
) -> Result<Vec<u8>, String> {
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

    /// What is done to a socket besides setting options.
    fn steps(isk: &InetSkEntry) -> Vec<String> {
        let inet = Inet::of(isk, Wanted::Nothing).expect("a socket");
        let ops = inet.ops(isk, None, SlotId(0)).expect("steps");
        let shown = ops.iter().map(|(_, op)| crate::plan::print::op(op));
        let first_word = |text: String| text.split(['(', ' ']).next().unwrap_or("").to_owned();
        let words = shown.map(first_word).filter(|word| word != "setsockopt");
        words.collect()
    }

    #[test]
    fn a_listener_is_bound_and_listens() {
        let isk = listener();
        assert_eq!(steps(&isk), ["socket", "bind", "listen"]);
        let inet = Inet::of(&isk, Wanted::Nothing).expect("a socket");
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
        assert_eq!(steps(&isk), ["socket", "bind", "connect"]);
        isk.state = CLOSE;
        (isk.src_port, isk.src_addr) = (0, vec![0]);
        assert_eq!(steps(&isk), ["socket"]);
    }

    #[test]
    fn wild_entries_are_refused() {
        let broken: [fn(&mut InetSkEntry); 6] = [
            |isk| isk.family = 1,
            |isk| isk.state = 12,
            |isk| isk.proto = 132,
            |isk| isk.src_port = 65536,
            |isk| isk.src_addr = vec![],
            |isk| isk.r#type = 5,
        ];
        for break_it in broken {
            let mut isk = listener();
            break_it(&mut isk);
            assert!(Inet::of(&isk, Wanted::Nothing).is_err(), "{isk:?}");
        }
    }
}
