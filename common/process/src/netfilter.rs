//! The network lock: an nf_tables table that drops the packets of given TCP connections, so that
//! between a dump and its restore their peers hear nothing and try again, instead of being reset.
//!
//! While a dump runs the table is *owned* by our netlink socket (NFT_TABLE_F_OWNER, Linux 5.12):
//! the kernel removes it when the socket goes, our own death by SIGKILL included. A dump that ends
//! with the death of the tree leaves a table that nobody owns, for the restore to remove. Its name
//! is that by which CRIU knows it too: `CRIU-` with the dump's run id, family inet. Packets that
//! bear [`MARK`] pass: those a restore sends to itself.

pub mod left;

use crate::netlink::{self, Writer, split_message};
use crate::steps::step;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{SockProtocol, setsockopt, sockopt};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

/// The mark of packets that pass, the same as CRIU's.
pub const MARK: u32 = 0xc114;

/// include/uapi/linux/netfilter/nfnetlink.h.
const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// NFT_MSG_* of include/uapi/linux/netfilter/nf_tables.h.
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
/// NLM_F_CREATE and NLM_F_EXCL, NLM_F_APPEND.
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
const APPEND: u16 = 0x800;
const TABLE_OWNER: u32 = 2;
const INET: u8 = 1;
/// Places in the kernel where the chains hang: LOCAL_IN and LOCAL_OUT.
const CHAINS: [(&str, u32); 2] = [("input", 1), ("output", 3)];
const LIST_ELEMENT: u16 = 1;
/// Registers: the verdict, and the first of 16 words.
const VERDICT: u32 = 0;
const WORD_0: u32 = 8;
const DROP: u32 = 0;
/// Keys of the meta expression.
const META_MARK: u32 = 3;
const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
/// Headers of the payload expression.
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
/// An attribute holds 64 KiB; an element of IPv6 takes 56 bytes.
const ELEMENTS_AT_ONCE: usize = 500;
/// A batch goes by one message, so the socket must hold it.
const LARGEST_BATCH: usize = 64 << 20;

/// A failed conversation with nf_tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nf_tables: {doing} table inet {table}: {errno}")]
pub struct NetfilterError {
    doing: &'static str,
    table: String,
    /// The kernel's word. EOPNOTSUPP or EINVAL where owned tables are not known.
    pub errno: Errno,
}

/// A connection by its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// Ours.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
}

/// A lock that goes when this is dropped, or when we die.
#[derive(Debug)]
pub struct HeldLock {
    _owner: OwnedFd,
}

/// Drops the packets of these connections until the lock is dropped.
pub fn hold(table: &str, connections: &[Ends]) -> Result<HeldLock, NetfilterError> {
    let owner = apply(table, "make", |batch| {
        encode_table(batch, table, TABLE_OWNER, connections);
    })?;
    Ok(HeldLock { _owner: owner })
}

/// Drops the packets of these connections until [`remove`].
pub fn leave_locked(table: &str, connections: &[Ends]) -> Result<(), NetfilterError> {
    apply(table, "make", |batch| {
        encode_table(batch, table, 0, connections);
    })
    .map(drop)
}

/// Removes a lock. False if there is none of this name.
pub fn remove(table: &str) -> Result<bool, NetfilterError> {
    let removed = apply(table, "remove", |batch| encode_removal(batch, table));
    match removed {
        Ok(_) => Ok(true),
        Err(error) if error.errno == Errno::ENOENT => Ok(false),
        Err(error) => Err(error),
    }
}

/// A socket and the message into it that removes a lock: for somebody who can do no more than send
/// it ([`crate::survivor`]).
pub fn removal(table: &str) -> Result<(OwnedFd, Vec<u8>), NetfilterError> {
    let socket = netlink::open(SockProtocol::NetlinkNetFilter).map_err(|errno| NetfilterError {
        doing: "prepare to remove",
        table: table.to_owned(),
        errno,
    })?;
    let batch = batch_of(|batch| encode_removal(batch, table));
    Ok((socket, batch.writer.bytes().to_vec()))
}

/// A socket and the message into it that locks these connections, to stay, as [`removal`].
pub fn making(table: &str, connections: &[Ends]) -> Result<(OwnedFd, Vec<u8>), NetfilterError> {
    let batch = batch_of(|batch| encode_table(batch, table, 0, connections));
    let socket = open_for(&batch).map_err(|errno| NetfilterError {
        doing: "prepare to make",
        table: table.to_owned(),
        errno,
    })?;
    Ok((socket, batch.writer.bytes().to_vec()))
}

fn encode_removal(batch: &mut Batch, table: &str) {
    batch.command(DELETE_TABLE, 0, |body| body.text(1, table));
}

/// Whether there is a lock of this name. Only a question: a change would wait for the kernel's
/// readers (synchronize_rcu), tens of milliseconds on a busy machine.
pub fn exists(table: &str) -> Result<bool, NetfilterError> {
    let failed = |errno| NetfilterError {
        doing: "look for",
        table: table.to_owned(),
        errno,
    };
    let socket = netlink::open(SockProtocol::NetlinkNetFilter).map_err(failed)?;
    let mut writer = Writer::default();
    writer.message(GET_TABLE, netlink::REQUEST, 1, |message| {
        message.raw(&[INET, 0, 0, 0]);
        message.text(1, table);
    });
    netlink::send(socket.as_fd(), writer.bytes()).map_err(failed)?;
    let mut buffer = vec![0; 4096];
    let len = netlink::receive(socket.as_fd(), &mut buffer).map_err(failed)?;
    let answer = split_message(buffer.get(..len).unwrap_or_default());
    match answer {
        Some((message, _)) if message.kind == netlink::ERROR => match message.status() {
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(failed(errno)),
            Ok(()) => Ok(true),
        },
        Some((message, _)) => Ok(message.kind == NEW_TABLE),
        None => Err(failed(Errno::EBADMSG)),
    }
}

/// Commands that happen together or not at all.
struct Batch {
    writer: Writer,
    sequence: u32,
}

impl Batch {
    fn command(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) {
        self.sequence += 1;
        let flags = netlink::REQUEST | netlink::ACK | flags;
        self.writer.message(kind, flags, self.sequence, |message| {
            message.raw(&[INET, 0, 0, 0]);
            body(message);
        });
    }

    fn bound(&mut self, kind: u16) {
        let subsystem = (SUBSYSTEM >> 8).to_be_bytes();
        self.writer.message(kind, netlink::REQUEST, 0, |message| {
            message.raw(&[&[0, 0], &subsystem[..]].concat());
        });
    }
}

fn batch_of(fill: impl FnOnce(&mut Batch)) -> Batch {
    let mut batch = Batch {
        writer: Writer::default(),
        sequence: 0,
    };
    batch.bound(BATCH_BEGIN);
    fill(&mut batch);
    batch.bound(BATCH_END);
    batch
}

/// A socket that takes a batch as one message.
fn open_for(batch: &Batch) -> Result<OwnedFd, Errno> {
    let socket = netlink::open(SockProtocol::NetlinkNetFilter)?;
    let room = (batch.writer.bytes().len() * 2).min(LARGEST_BATCH);
    setsockopt(&socket, sockopt::SndBufForce, &room)?;
    Ok(socket)
}

/// Sends a batch and reads an answer for each of its commands. Gives the socket.
fn apply(
    table: &str,
    doing: &'static str,
    fill: impl FnOnce(&mut Batch),
) -> Result<OwnedFd, NetfilterError> {
    let failed = |errno| NetfilterError {
        doing,
        table: table.to_owned(),
        errno,
    };
    let batch = batch_of(fill);
    let socket = open_for(&batch).map_err(failed)?;
    step();
    netlink::send(socket.as_fd(), batch.writer.bytes()).map_err(failed)?;
    let mut answers = 0;
    let mut first_error = None;
    let mut buffer = vec![0; 32 << 10];
    while answers < batch.sequence {
        let len = netlink::receive(socket.as_fd(), &mut buffer).map_err(failed)?;
        let mut datagram = buffer.get(..len).unwrap_or_default();
        while let Some((message, rest)) = split_message(datagram) {
            datagram = rest;
            if message.kind != netlink::ERROR {
                continue;
            }
            if let Err(errno) = message.status() {
                first_error.get_or_insert(errno);
                // What concerns the whole batch has its bounds' number, and is the only answer.
                if message.sequence == 0 {
                    return Err(failed(errno));
                }
            }
            answers += 1;
        }
    }
    match first_error {
        None => Ok(socket),
        Some(errno) => Err(failed(errno)),
    }
}

fn encode_table(batch: &mut Batch, table: &str, flags: u32, connections: &[Ends]) {
    batch.command(NEW_TABLE, CREATE | EXCLUSIVE, |body| {
        body.text(1, table);
        body.number(2, flags);
    });
    for (name, hook) in CHAINS {
        batch.command(NEW_CHAIN, CREATE, |body| {
            body.text(1, table);
            body.text(3, name);
            body.nest(4, |place| {
                place.number(1, hook);
                place.number(2, 0);
            });
            body.text(7, "filter");
        });
    }
    for family in [Family::V4, Family::V6] {
        let keys: Vec<Vec<u8>> = connections
            .iter()
            .filter_map(|ends| family.keys_of(ends))
            .flatten()
            .collect();
        if !keys.is_empty() {
            encode_family(batch, table, family, &keys);
        }
    }
}

#[derive(Clone, Copy)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn set(self) -> &'static str {
        match self {
            Family::V4 => "connections4",
            Family::V6 => "connections6",
        }
    }

    /// Number in the meta expression; offset and length of the source address in the header.
    fn layout(self) -> (u8, u32, u32) {
        match self {
            Family::V4 => (libc::AF_INET as u8, 12, 4),
            Family::V6 => (libc::AF_INET6 as u8, 8, 16),
        }
    }

    /// The keys of both directions, if the connection is of this family.
    fn keys_of(self, ends: &Ends) -> Option<[Vec<u8>; 2]> {
        let bytes = |end: SocketAddr| {
            let address = match (self, end.ip().to_canonical()) {
                (Family::V4, IpAddr::V4(four)) => four.octets().to_vec(),
                (Family::V6, IpAddr::V6(six)) => six.octets().to_vec(),
                _ => return None,
            };
            // Each part of a key takes whole registers.
            Some([&address[..], &end.port().to_be_bytes(), &[0, 0]].concat())
        };
        let (local, remote) = (bytes(ends.local)?, bytes(ends.remote)?);
        Some([
            [&local[..], &remote[..]].concat(),
            [&remote[..], &local[..]].concat(),
        ])
    }
}

/// The set of a family's connections, and in each chain the rule that looks it up.
fn encode_family(batch: &mut Batch, table: &str, family: Family, keys: &[Vec<u8>]) {
    let len = keys.first().map_or(0, Vec::len) as u32;
    batch.command(NEW_SET, CREATE, |body| {
        body.text(1, table);
        body.text(2, family.set());
        body.number(4, 0);
        body.number(5, len);
        body.number(10, 1);
    });
    for some in keys.chunks(ELEMENTS_AT_ONCE) {
        batch.command(NEW_ELEMENTS, CREATE, |body| {
            body.text(1, table);
            body.text(2, family.set());
            body.nest(3, |elements| {
                for key in some {
                    elements.nest(LIST_ELEMENT, |element| {
                        element.nest(1, |data| data.attribute(1, key));
                    });
                }
            });
        });
    }
    for (chain, _) in CHAINS {
        batch.command(NEW_RULE, CREATE | APPEND, |body| {
            body.text(1, table);
            body.text(2, chain);
            body.nest(4, |expressions| encode_rule(expressions, family));
        });
    }
}

/// `meta mark != MARK, family, tcp, source . sport . destination . dport in the set: drop`.
fn encode_rule(rule: &mut Writer, family: Family) {
    const EQUAL: u32 = 0;
    const DIFFERENT: u32 = 1;
    let (number, address_at, len) = family.layout();
    let words = len / 4;
    meta(rule, META_MARK);
    compare(rule, DIFFERENT, &MARK.to_ne_bytes());
    meta(rule, META_FAMILY);
    compare(rule, EQUAL, &[number]);
    meta(rule, META_PROTOCOL);
    compare(rule, EQUAL, &[libc::IPPROTO_TCP as u8]);
    payload(rule, WORD_0, NETWORK, address_at, len);
    payload(rule, WORD_0 + words, TRANSPORT, 0, 2);
    payload(rule, WORD_0 + words + 1, NETWORK, address_at + len, len);
    payload(rule, WORD_0 + 2 * words + 1, TRANSPORT, 2, 2);
    expression(rule, "lookup", |data| {
        data.text(1, family.set());
        data.number(2, WORD_0);
    });
    expression(rule, "immediate", |data| {
        data.number(1, VERDICT);
        data.nest(2, |value| value.nest(2, |verdict| verdict.number(1, DROP)));
    });
}

fn expression(rule: &mut Writer, name: &str, data: impl FnOnce(&mut Writer)) {
    rule.nest(LIST_ELEMENT, |element| {
        element.text(1, name);
        element.nest(2, data);
    });
}

fn meta(rule: &mut Writer, key: u32) {
    expression(rule, "meta", |data| {
        data.number(2, key);
        data.number(1, WORD_0);
    });
}

fn compare(rule: &mut Writer, how: u32, with: &[u8]) {
    expression(rule, "cmp", |data| {
        data.number(1, WORD_0);
        data.number(2, how);
        data.nest(3, |value| value.attribute(1, with));
    });
}

fn payload(rule: &mut Writer, register: u32, header: u32, offset: u32, len: u32) {
    expression(rule, "payload", |data| {
        data.number(1, register);
        data.number(2, header);
        data.number(3, offset);
        data.number(4, len);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(local: &str, remote: &str) -> Ends {
        Ends {
            local: local.parse().expect("an address"),
            remote: remote.parse().expect("an address"),
        }
    }

    #[test]
    fn a_mapped_address_is_locked_as_what_it_maps() {
        let plain = ends("10.0.0.1:80", "10.0.0.2:4711");
        let mapped = ends("[::ffff:10.0.0.1]:80", "[::ffff:10.0.0.2]:4711");
        assert_eq!(Family::V4.keys_of(&plain), Family::V4.keys_of(&mapped));
        assert_eq!(Family::V6.keys_of(&mapped), None);
        let keys = Family::V4.keys_of(&plain).expect("both are v4");
        assert_eq!(keys[0].len(), 16);
        assert_eq!(keys[0][..8], [10, 0, 0, 1, 0, 80, 0, 0]);
        assert_eq!(keys[1][..8], [10, 0, 0, 2, 0x12, 0x67, 0, 0]);
        let six = ends("[::1]:80", "[::1]:81");
        assert_eq!(Family::V6.keys_of(&six).expect("v6")[0].len(), 40);
    }

    #[test]
    fn a_lock_that_is_not_there_is_not_removed() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs CAP_NET_ADMIN");
            return;
        }
        assert_eq!(remove("crust-test-that-is-not"), Ok(false));
    }

    /// Runs in a network namespace of its own, its loopback up; false if that cannot be had.
    pub(super) fn in_own_network(body: impl FnOnce() + Send + 'static) -> bool {
        use nix::sched::{CloneFlags, unshare};
        let inside = std::thread::spawn(|| {
            let up = || {
                let mut ip = std::process::Command::new("ip");
                ip.args(["link", "set", "lo", "up"]).status()
            };
            if unshare(CloneFlags::CLONE_NEWNET).is_err() || !up().is_ok_and(|s| s.success()) {
                eprintln!("SKIPPED: needs a network namespace and iproute2");
                return false;
            }
            body();
            true
        });
        inside.join().expect("the body's assertions hold")
    }

    #[test]
    fn a_held_lock_stops_one_connection_until_it_is_dropped() {
        use std::io::{Read, Write};
        use std::net::{TcpListener, TcpStream};
        in_own_network(|| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
            let connect = || {
                let client = TcpStream::connect(listener.local_addr().expect("bound"));
                let client = client.expect("connects");
                let (server, _) = listener.accept().expect("a connection waits");
                (client, server)
            };
            let (mut client, mut server) = connect();
            let (mut other, mut other_server) = connect();
            let ends = Ends {
                local: client.local_addr().expect("bound"),
                remote: client.peer_addr().expect("connected"),
            };
            let lock = hold("CRIU-test", &[ends]).expect("nf_tables");
            client.write_all(b"x").expect("it waits in the queue");
            other.write_all(b"y").expect("sent");
            let mut byte = [0; 1];
            other_server.read_exact(&mut byte).expect("not locked");
            server.set_nonblocking(true).expect("a flag");
            assert!(server.read(&mut byte).is_err(), "nothing has come");
            assert_eq!(
                remove("CRIU-test").map_err(|error| error.errno),
                Err(Errno::EPERM),
                "nobody but its owner removes it"
            );
            drop(lock);
            server.set_nonblocking(false).expect("a flag");
            server.read_exact(&mut byte).expect("it is sent again");
            assert_eq!(remove("CRIU-test"), Ok(false));
        });
    }

    #[test]
    fn a_lock_of_many_stays_until_it_is_removed() {
        in_own_network(|| {
            let many: Vec<Ends> = (1..3000u16)
                .map(|port| match port % 2 {
                    0 => Ends {
                        local: (std::net::Ipv4Addr::LOCALHOST, port).into(),
                        remote: (std::net::Ipv4Addr::LOCALHOST, 80).into(),
                    },
                    _ => Ends {
                        local: (std::net::Ipv6Addr::LOCALHOST, port).into(),
                        remote: (std::net::Ipv6Addr::LOCALHOST, 80).into(),
                    },
                })
                .collect();
            leave_locked("CRIU-many", &many).expect("nf_tables");
            let again = leave_locked("CRIU-many", &many).expect_err("it is there");
            assert_eq!(again.errno, Errno::EEXIST);
            assert_eq!(exists("CRIU-many"), Ok(true));
            assert_eq!(remove("CRIU-many"), Ok(true));
            assert_eq!(exists("CRIU-many"), Ok(false));
        });
    }
}
