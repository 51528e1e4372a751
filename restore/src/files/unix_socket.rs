//! Unix sockets: how they are made, named and connected.
//!
//! unix_sk_entry has the inode of the socket and of its peer, type, state, name, options. By these
//! a socket is one of: alone; a listener; one end of a pair (each is the other's peer); an end whose
//! other end is closed; a connection that a listener has not accepted yet (its peer is the
//! listener); a datagram socket that sends to another. An end of a pair that has a name was
//! accepted by a listener of that name and gets it in the same way, from the listener itself or,
//! if that is gone, from one made for the moment.
//!
//! The kernel notes who listens, who connects and who makes a pair, for SO_PEERCRED; so tasks do
//! that themselves, with their own ids, and the broker does the rest. All of it is in
//! `Phase::Objects`, names that were gone at the dump first: their paths must be free for others.
//! Queues are filled by `unix_queue.rs`, options set by `unix_options.rs`.

use super::unix_connect;
use super::unix_name::Address;
use super::{File, member, of_kind, shown};
use crate::plan::step::{Origin, SlotId};
use crate::plan::{Planner, Refusal, StepId};
use crust_image::ids::{FileId, FilesId, VirtPid};
use crust_image::tcp_state::{CLOSE, ESTABLISHED, LISTEN};
use crust_proto::criu::{FdTypes, UnixSkEntry};
use nix::libc;
use std::collections::BTreeMap;

/// unix_sk_entry.uflags: the peer was outside the tree, or the socket was handed in from there.
const EXTERNAL: u32 = 1;
pub(super) const TYPES: [(i32, &str); 3] = [
    (libc::SOCK_STREAM, "SOCK_STREAM"),
    (libc::SOCK_DGRAM, "SOCK_DGRAM"),
    (libc::SOCK_SEQPACKET, "SOCK_SEQPACKET"),
];

/// What the rooms of unix sockets remember.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    /// For each socket that receives, the slot by which its queue is filled.
    pub senders: BTreeMap<FileId, SlotId>,
    /// For named receivers of datagrams a slot without a name to fill the queue by, and the address
    /// to send to, empty if it is connected.
    pub nameless: BTreeMap<FileId, (SlotId, Vec<u8>)>,
    /// The step that binds each path, for others who mean the new file there.
    pub bound: BTreeMap<Vec<u8>, StepId>,
    /// Slots that go when queues are filled.
    pub temporary: Vec<(SlotId, Origin)>,
    /// Ends of pairs that tasks have made and still have open: the number, and the step by which
    /// the broker takes a copy.
    pub pairs: BTreeMap<VirtPid, Vec<(i32, StepId, Origin)>>,
}

impl Sockets {
    /// Where the next end of a pair lands in the table of a task, which is empty but for the ends
    /// that it has made and the number that is ours.
    pub fn next_number(&self, pid: VirtPid, broker_fd: i32) -> i32 {
        let open = self.pairs.get(&pid).map_or(0, Vec::len) as i32;
        open + i32::from(open >= broker_fd)
    }
}

/// A socket of the images.
#[derive(Clone, Debug)]
pub(super) struct Sock<'c> {
    /// Its entry in files.img.
    pub file: File<'c>,
    /// The member of that.
    pub usk: &'c UnixSkEntry,
    /// What it is bound to, or got from the listener that accepted it.
    pub address: Address,
    /// The first task that has a descriptor of it.
    pub owner: Option<VirtPid>,
}

impl Sock<'_> {
    /// An origin for a step of its making.
    pub fn origin(&self, what: &str) -> Origin {
        self.file.origin(format!("{what} {}", self.file.name()))
    }

    /// A stream, or packets in order.
    pub fn is_stream(&self) -> bool {
        self.usk.r#type as i32 != libc::SOCK_DGRAM
    }

    /// The live task that SO_PEERCRED named.
    pub fn named_by_kernel(&self, planner: &Planner<'_>) -> Option<VirtPid> {
        let pid = VirtPid::new(self.usk.crust_peer_pid?)?;
        let task = planner.tree.task(pid)?;
        task.is_live().then_some(pid)
    }

    /// Its path was gone at the dump.
    pub fn is_deleted(&self) -> bool {
        self.usk.deleted == Some(true)
    }
}

/// What a socket is among the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Connected to nothing; perhaps named.
    Alone,
    /// Others connect to it.
    Listener,
    /// Each is the other's peer.
    Pair(u32),
    /// The other end is closed.
    HalfDead,
    /// Connected to this listener, and not accepted.
    Pending(u32),
    /// A datagram socket that sends to this one.
    SendsTo(u32),
    /// Somebody else's, there before us, to connect to.
    External,
}

/// All unix sockets that make sense.
pub(super) fn all_sockets<'a>(planner: &Planner<'a>) -> Vec<Sock<'a>> {
    let sockets = of_kind(planner, FdTypes::Unixsk);
    if sockets.is_empty() {
        return Vec::new();
    }
    let owners = owners(planner);
    let sock = |file: File<'a>| {
        let usk = file
            .entry
            .usk
            .as_ref()
            // One that was inherited is there already, and connected as it is.
            .filter(|_| !planner.files.inherited.contains(&file.id))?;
        let address = Address::of(usk).ok()?;
        let owner = owners.get(&file.id).copied();
        Some(Sock {
            file,
            usk,
            address,
            owner,
        })
    };
    sockets.into_iter().filter_map(sock).collect()
}

/// For each file the first task that has it.
fn owners(planner: &Planner<'_>) -> BTreeMap<FileId, VirtPid> {
    let mut owners = BTreeMap::new();
    for task in planner.tree.alive() {
        let Some(ids) = &task.ids else { continue };
        let table = planner.checkpoint.fdinfo.get(&FilesId(ids.files_id));
        for fdinfo in table.into_iter().flatten() {
            owners.entry(FileId(fdinfo.id)).or_insert(task.pid);
        }
    }
    owners
}

/// Sockets by inode, with their roles, and what is planned of them.
#[derive(Debug, Default)]
pub(super) struct Room<'c> {
    /// All of them.
    pub sockets: BTreeMap<u32, (Sock<'c>, Role)>,
    /// The slot of each.
    pub slots: BTreeMap<u32, SlotId>,
    /// The step after which the next may connect to a name.
    pub ready: BTreeMap<u32, StepId>,
    /// Datagram sockets that are connected: which, to which, by which step.
    pub connected: Vec<(u32, u32, StepId)>,
    /// All steps that need a name.
    pub users: BTreeMap<u32, Vec<StepId>>,
    /// The step by which a path is free again.
    pub freed: BTreeMap<Vec<u8>, StepId>,
}

impl<'c> Room<'c> {
    /// The listener from which a socket got its name.
    pub fn listener_of(&self, sock: &Sock<'_>) -> Option<u32> {
        let has_name = |(other, role): &&(Sock<'_>, Role)| {
            *role == Role::Listener
                && other.address == sock.address
                && other.usk.r#type == sock.usk.r#type
                && other.is_deleted() == sock.is_deleted()
        };
        self.sockets
            .values()
            .find(has_name)
            .map(|(sock, _)| sock.usk.ino)
    }

    fn is_deleted(&self, ino: u32) -> bool {
        self.sockets
            .get(&ino)
            .is_some_and(|(sock, _)| sock.is_deleted())
    }
}

/// Makes, names and connects every unix socket.
pub(super) fn plan(planner: &mut Planner<'_>) {
    let Some(mut room) = read(planner) else {
        return;
    };
    for deleted in [true, false] {
        plan_generation(planner, &mut room, deleted);
    }
    let owners: Vec<VirtPid> = planner.files.unix.pairs.keys().copied().collect();
    for pid in owners {
        unix_connect::close_pairs(planner, pid);
    }
    for (ino, slot) in &room.slots {
        if let Some((sock, _)) = room.sockets.get(ino) {
            planner.files.slots.insert(sock.file.id, Some(*slot));
        }
    }
}

/// The sockets whose path was gone at the dump, or the others: names, listens, connections. A
/// task's steps keep their order, so all listen before any connects.
fn plan_generation<'a>(planner: &mut Planner<'a>, room: &mut Room<'a>, deleted: bool) {
    let sockets: Vec<(Sock<'a>, Role)> = room.sockets.values().cloned().collect();
    let named: Vec<&Sock<'a>> = sockets
        .iter()
        .filter(|(_, role)| matches!(role, Role::Alone | Role::Listener | Role::SendsTo(_)))
        .filter(|(sock, _)| sock.is_deleted() == deleted)
        .map(|(sock, _)| sock)
        .collect();
    for sock in &named {
        unix_connect::plan_named(planner, room, sock);
    }
    for (sock, role) in &sockets {
        match *role {
            Role::Pair(peer) if sock.usk.ino < peer => {
                let Some((other, _)) = room.sockets.get(&peer).cloned() else {
                    continue;
                };
                let (server, client) = server_and_client(room, sock, &other);
                if server.is_deleted() == deleted {
                    unix_connect::plan_pair(planner, room, server, Some(client));
                }
            }
            Role::HalfDead if sock.is_deleted() == deleted => {
                unix_connect::plan_pair(planner, room, sock, None);
            }
            Role::SendsTo(peer) if room.is_deleted(peer) == deleted => {
                unix_connect::plan_sends_to(planner, room, sock, peer);
            }
            _ => {}
        }
    }
    // Whoever waits to be accepted comes behind all that were.
    for (sock, role) in &sockets {
        if let Role::Pending(listener) = *role
            && room.is_deleted(listener) == deleted
        {
            unix_connect::plan_pending(planner, room, sock, listener);
        }
    }
    for sock in &named {
        unix_connect::plan_made_sender(planner, room, sock);
        unix_connect::plan_unlink(planner, room, sock);
    }
}

/// Which of two ends was accepted: the one with a name, or with a listener's.
fn server_and_client<'s, 'c>(
    room: &Room<'_>,
    one: &'s Sock<'c>,
    other: &'s Sock<'c>,
) -> (&'s Sock<'c>, &'s Sock<'c>) {
    let other_was_accepted = one.address == Address::None
        || (other.address != Address::None && room.listener_of(one).is_none());
    if other_was_accepted {
        (other, one)
    } else {
        (one, other)
    }
}

/// Reads and checks; `None` if something was refused.
fn read<'a>(planner: &mut Planner<'a>) -> Option<Room<'a>> {
    let mut good = true;
    let mut by_ino: BTreeMap<u32, Sock<'a>> = BTreeMap::new();
    let mut found: BTreeMap<FileId, Sock<'a>> = all_sockets(planner)
        .into_iter()
        .map(|sock| (sock.file.id, sock))
        .collect();
    for file in of_kind(planner, FdTypes::Unixsk) {
        if planner.files.inherited.contains(&file.id) {
            continue;
        }
        let usk = member(planner, file, file.entry.usk.as_ref(), |usk| usk.id);
        let allowed = usk.map(|usk| may_be_external(planner, usk));
        let checked = usk.map(|usk| Address::of(usk).and_then(|_| check(usk)));
        let checked = match allowed {
            Some(Err(why)) => Some(Err(why)),
            _ => checked,
        };
        let unique = found
            .remove(&file.id)
            .map(|sock| by_ino.insert(sock.usk.ino, sock));
        let why = match (checked, unique) {
            (Some(Ok(())), Some(None)) => continue,
            (Some(Ok(())), _) => "ino is that of another socket too".to_owned(),
            (Some(Err(why)), _) => why,
            (None, _) => {
                good = false;
                continue;
            }
        };
        good = false;
        planner.refuse(Refusal::new(file.origin(file.name()), why));
    }
    let mut sockets = BTreeMap::new();
    for sock in by_ino.values() {
        let has_queue = planner.checkpoint.sk_queues.contains_key(&sock.file.id);
        match role(sock, has_queue, &by_ino) {
            Ok(role) => {
                sockets.insert(sock.usk.ino, (sock.clone(), role));
            }
            Err(why) => {
                good = false;
                planner.refuse(Refusal::new(sock.file.origin(sock.file.name()), why));
            }
        }
    }
    good.then_some(Room {
        sockets,
        ..Room::default()
    })
}

fn check(usk: &UnixSkEntry) -> Result<(), String> {
    if !TYPES.iter().any(|(kind, _)| *kind as u32 == usk.r#type) {
        return Err(format!("type {} is no type of unix socket", usk.r#type));
    }
    if usk.uflags & !EXTERNAL != 0 {
        return Err(format!("uflags {:#x} cannot be restored yet", usk.uflags));
    }
    if i32::try_from(usk.backlog).is_err() {
        return Err(format!("backlog {} is none", usk.backlog));
    }
    Ok(())
}

/// A socket outside of the dump is connected to only if the user says that it is there.
fn may_be_external(planner: &Planner<'_>, usk: &UnixSkEntry) -> Result<(), String> {
    let options = planner.options;
    let named = options.external.has(&format!("unix[{}]", usk.ino));
    if usk.uflags & EXTERNAL == 0 || options.ext_unix_sk.allows(usk.ino) || named {
        return Ok(());
    }
    Err(format!(
        "it was outside of the dump: is a socket named {} there now? Then say --ext-unix-sk",
        shown(&usk.name).escape_debug()
    ))
}

/// What a socket is; `has_queue`: something waits to be received by it.
fn role(
    sock: &Sock<'_>,
    has_queue: bool,
    sockets: &BTreeMap<u32, Sock<'_>>,
) -> Result<Role, String> {
    let (state, peer) = (sock.usk.state, sock.usk.peer);
    if sock.usk.uflags & EXTERNAL != 0 {
        return Ok(Role::External);
    }
    match (sock.is_stream(), state, peer) {
        (true, LISTEN, 0) if sock.address == Address::None => {
            return Err("state is LISTEN, and it has no name to connect to".to_owned());
        }
        (true, LISTEN, 0) => return Ok(Role::Listener),
        (true, ESTABLISHED, 0) => return Ok(Role::HalfDead),
        // Nobody could have sent it anything by name.
        (false, ESTABLISHED | CLOSE, 0) if has_queue && sock.address == Address::None => {
            return Ok(Role::HalfDead);
        }
        (true, CLOSE, 0) | (false, ESTABLISHED | CLOSE, 0) => return Ok(Role::Alone),
        (_, ESTABLISHED, _) => {}
        _ => {
            return Err(format!(
                "state {state} with peer {peer:#x} is none a unix socket can be in"
            ));
        }
    }
    let Some(other) = sockets.get(&peer) else {
        return Err(format!(
            "peer {peer:#x} is not in the images; was it outside? Then give this socket: --inherit-fd fd[N]:socket:[{}]",
            sock.usk.ino
        ));
    };
    if other.usk.r#type != sock.usk.r#type {
        return Err(format!("peer {peer:#x} is of another type"));
    }
    let is_mutual = other.usk.peer == sock.usk.ino && peer != sock.usk.ino;
    match (sock.is_stream(), other.usk.state) {
        (true, LISTEN) => Ok(Role::Pending(peer)),
        (true, _) if is_mutual => Ok(Role::Pair(peer)),
        (true, _) => Err(format!(
            "peer {peer:#x} has another peer, {:#x}",
            other.usk.peer
        )),
        (false, _)
            if is_mutual && sock.address == Address::None && other.address == Address::None =>
        {
            Ok(Role::Pair(peer))
        }
        (false, _) if other.address == Address::None => {
            Err(format!("peer {peer:#x} has no name to connect to"))
        }
        (false, _) => Ok(Role::SendsTo(peer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_proto::criu::FileEntry;

    fn entry(ino: u32, kind: i32, state: u32, peer: u32, name: &[u8]) -> UnixSkEntry {
        UnixSkEntry {
            ino,
            r#type: kind as u32,
            state,
            peer,
            name: name.to_vec(),
            ..Default::default()
        }
    }

    fn roles(entries: &[UnixSkEntry]) -> Vec<Result<Role, String>> {
        let file = FileEntry::default();
        let sock = |usk| Sock {
            file: File {
                index: None,
                id: FileId(0),
                entry: &file,
            },
            usk,
            address: Address::of(usk).expect("an address"),
            owner: None,
        };
        let sockets: BTreeMap<u32, Sock<'_>> =
            entries.iter().map(|usk| (usk.ino, sock(usk))).collect();
        entries
            .iter()
            .map(|usk| role(&sockets[&usk.ino], false, &sockets))
            .collect()
    }

    #[test]
    fn roles_of_streams() {
        let stream = libc::SOCK_STREAM;
        let found = roles(&[
            entry(1, stream, ESTABLISHED, 2, b""),
            entry(2, stream, ESTABLISHED, 1, b"/s\0"),
            entry(3, stream, LISTEN, 0, b"/s\0"),
            entry(4, stream, ESTABLISHED, 3, b""),
            entry(5, stream, ESTABLISHED, 0, b""),
            entry(6, stream, CLOSE, 0, b""),
        ]);
        let expected = [
            Role::Pair(2),
            Role::Pair(1),
            Role::Listener,
            Role::Pending(3),
            Role::HalfDead,
            Role::Alone,
        ];
        assert_eq!(found, expected.map(Ok));
    }

    #[test]
    fn roles_of_datagram_sockets() {
        let dgram = libc::SOCK_DGRAM;
        let found = roles(&[
            entry(1, dgram, ESTABLISHED, 2, b""),
            entry(2, dgram, ESTABLISHED, 1, b""),
            entry(3, dgram, ESTABLISHED, 0, b"/s"),
            entry(4, dgram, ESTABLISHED, 3, b""),
            entry(5, dgram, ESTABLISHED, 5, b"\0self"),
        ]);
        let expected = [
            Role::Pair(2),
            Role::Pair(1),
            Role::Alone,
            Role::SendsTo(3),
            Role::SendsTo(5),
        ];
        assert_eq!(found, expected.map(Ok));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let stream = libc::SOCK_STREAM;
        for usk in [
            entry(1, stream, ESTABLISHED, 9, b""),
            entry(1, stream, LISTEN, 0, b""),
            entry(1, stream, LISTEN, 9, b"/s"),
            entry(1, stream, 2, 0, b""),
            entry(1, libc::SOCK_DGRAM, LISTEN, 0, b""),
        ] {
            assert!(roles(std::slice::from_ref(&usk))[0].is_err(), "{usk:?}");
        }
        assert!(check(&entry(1, 3, CLOSE, 0, b"")).is_err());
    }
}
