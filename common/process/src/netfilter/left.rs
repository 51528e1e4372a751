//! Locks that dumps have left, of ours or CRIU's, found by what they lock: a connection that is to
//! speak again must be in none of them, and images that were given up leave one.
//!
//! A lock is a table `inet CRIU-...` of nobody's with sets of connections; what the keys of a set
//! are is told by their length alone, and both directions of a connection are looked for.

use super::{
    DELETE_TABLE, Ends, Family, GET_TABLE, INET, LIST_ELEMENT, NEW_ELEMENTS, NEW_SET, NEW_TABLE,
    NetfilterError, SUBSYSTEM, TABLE_OWNER, apply,
};
use crate::netlink::{self, Writer, find_attribute, split_attribute, split_message};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::collections::BTreeSet;
use std::os::fd::AsFd;

/// NFT_MSG_* of include/uapi/linux/netfilter/nf_tables.h.
const GET_SET: u16 = SUBSYSTEM | 10;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;
/// How the names of locks begin.
const PREFIX: &str = "CRIU-";
/// Bytes of struct nfgenmsg.
const HEADER: usize = 4;
const BUFFER: usize = 64 << 10;
/// Elements named in one command.
const AT_ONCE: usize = 500;

/// A lock that holds connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftLock {
    /// Its table.
    pub table: String,
    /// It holds these connections only.
    pub is_whole: bool,
    /// Keys of the connections, by set.
    keys: Vec<(String, Vec<Vec<u8>>)>,
}

impl LeftLock {
    /// Lets the connections speak, and removes the lock if it holds no others.
    pub fn release(&self) -> Result<(), NetfilterError> {
        let released = apply(&self.table, "unlock connections in", |batch| {
            if self.is_whole {
                batch.command(DELETE_TABLE, 0, |body| body.text(1, &self.table));
                return;
            }
            for (set, keys) in &self.keys {
                for some in keys.chunks(AT_ONCE) {
                    batch.command(DELETE_ELEMENTS, 0, |body| {
                        body.text(1, &self.table);
                        body.text(2, set);
                        body.nest(3, |elements| name_elements(elements, some));
                    });
                }
            }
        });
        match released {
            // Somebody was faster.
            Err(error) if error.errno != Errno::ENOENT => Err(error),
            _ => Ok(()),
        }
    }
}

fn name_elements(elements: &mut Writer, keys: &[Vec<u8>]) {
    for key in keys {
        elements.nest(LIST_ELEMENT, |element| {
            element.nest(1, |data| data.attribute(1, key));
        });
    }
}

/// The locks that hold any of these connections. Those that go with their owner are not among them.
pub fn find(connections: &[Ends]) -> Result<Vec<LeftLock>, NetfilterError> {
    let wanted: BTreeSet<Vec<u8>> = connections
        .iter()
        .flat_map(|ends| [Family::V4, Family::V6].map(|family| family.keys_of(ends)))
        .flatten()
        .flatten()
        .collect();
    let mut found = Vec::new();
    let of_nobody = tables()?.into_iter().filter(|(_, is_owned)| !is_owned);
    for (table, _) in of_nobody {
        let (mut keys, mut others) = (Vec::new(), false);
        for set in sets(&table)? {
            let all = elements(&table, &set)?;
            let (ours, rest): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|key| wanted.contains(key));
            others |= !rest.is_empty();
            if !ours.is_empty() {
                keys.push((set, ours));
            }
        }
        if !keys.is_empty() {
            found.push(LeftLock {
                table,
                is_whole: !others,
                keys,
            });
        }
    }
    Ok(found)
}

/// The names of all locks, and whether they go with their owner.
pub fn tables() -> Result<Vec<(String, bool)>, NetfilterError> {
    let bodies = ask("CRIU-*", GET_TABLE, NEW_TABLE, |_| {})?;
    let table = |body: &Vec<u8>| {
        let is_owned = number(attribute(body, 2)?)? & TABLE_OWNER != 0;
        let name = text(attribute(body, 1)?)?;
        name.starts_with(PREFIX).then_some((name, is_owned))
    };
    Ok(bodies.iter().filter_map(table).collect())
}

fn sets(table: &str) -> Result<Vec<String>, NetfilterError> {
    let bodies = ask(table, GET_SET, NEW_SET, |body| body.text(1, table))?;
    let of_table = |body: &Vec<u8>| {
        let is_its = text(attribute(body, 1)?)? == table;
        is_its.then(|| text(attribute(body, 2)?)).flatten()
    };
    Ok(bodies.iter().filter_map(of_table).collect())
}

/// The keys of a set.
fn elements(table: &str, set: &str) -> Result<Vec<Vec<u8>>, NetfilterError> {
    let bodies = ask(table, GET_ELEMENTS, NEW_ELEMENTS, |body| {
        body.text(1, table);
        body.text(2, set);
    })?;
    let mut keys = Vec::new();
    for body in &bodies {
        let mut list = attribute(body, 3).unwrap_or_default();
        while let Some((_, element, rest)) = split_attribute(list) {
            list = rest;
            let key = find_attribute(element, 1).and_then(|data| find_attribute(data, 1));
            keys.extend(key.map(<[u8]>::to_vec));
        }
    }
    Ok(keys)
}

/// The bodies of the answers of one kind to a request for all.
fn ask(
    table: &str,
    request: u16,
    wanted: u16,
    fill: impl FnOnce(&mut Writer),
) -> Result<Vec<Vec<u8>>, NetfilterError> {
    let failed = |errno| NetfilterError {
        doing: "look for",
        table: table.to_owned(),
        errno,
    };
    let socket = netlink::open(SockProtocol::NetlinkNetFilter).map_err(failed)?;
    let mut writer = Writer::default();
    let flags = netlink::REQUEST | netlink::DUMP;
    writer.message(request, flags, 1, |message| {
        message.raw(&[INET, 0, 0, 0]);
        fill(message);
    });
    netlink::send(socket.as_fd(), writer.bytes()).map_err(failed)?;
    let (mut bodies, mut buffer) = (Vec::new(), vec![0; BUFFER]);
    loop {
        let len = netlink::receive(socket.as_fd(), &mut buffer).map_err(failed)?;
        let mut datagram = buffer.get(..len).unwrap_or_default();
        while let Some((message, rest)) = split_message(datagram) {
            datagram = rest;
            match message.kind {
                netlink::DONE => return Ok(bodies),
                netlink::ERROR => match message.status() {
                    // It has gone meanwhile.
                    Ok(()) | Err(Errno::ENOENT) => return Ok(bodies),
                    Err(errno) => return Err(failed(errno)),
                },
                kind if kind == wanted => bodies.push(message.body.to_vec()),
                _ => {}
            }
        }
    }
}

/// The value of the first attribute of a kind, behind the header of a body.
fn attribute(body: &[u8], wanted: u16) -> Option<&[u8]> {
    find_attribute(body.get(HEADER..)?, wanted)
}

fn text(value: &[u8]) -> Option<String> {
    let text = value.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::super::tests::in_own_network;
    use super::super::{exists, hold, leave_locked};
    use super::*;
    use std::net::Ipv4Addr;

    fn ends(port: u16) -> Ends {
        Ends {
            local: (Ipv4Addr::LOCALHOST, port).into(),
            remote: (Ipv4Addr::LOCALHOST, 80).into(),
        }
    }

    #[test]
    fn only_what_locks_a_connection_is_found_and_released() {
        in_own_network(|| {
            let many: Vec<Ends> = (100..3000).map(ends).collect();
            leave_locked("CRIU-many", &many).expect("nf_tables");
            leave_locked("CRIU-one", &[ends(105)]).expect("nf_tables");
            leave_locked("CRIU-other", &[ends(4000)]).expect("nf_tables");
            leave_locked("somebody", &[ends(105)]).expect("nf_tables");
            let held = hold("CRIU-held", &[ends(105)]).expect("nf_tables");
            let found = find(&[ends(105), ends(106)]).expect("nf_tables");
            let mut told: Vec<_> = found
                .iter()
                .map(|lock| (lock.table.as_str(), lock.is_whole))
                .collect();
            told.sort_unstable();
            assert_eq!(told, [("CRIU-many", false), ("CRIU-one", true)]);
            for lock in &found {
                lock.release().expect("it is there");
                lock.release().expect("it is gone, or the elements are");
            }
            assert_eq!(exists("CRIU-one"), Ok(false));
            assert_eq!(find(&[ends(105), ends(106)]), Ok(Vec::new()));
            let left = find(&[ends(107)]).expect("nf_tables");
            assert_eq!(left.len(), 1, "the others of the lock stay");
            drop(held);
        });
    }
}
