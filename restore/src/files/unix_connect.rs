//! The steps that make, name and connect unix sockets (`unix_socket.rs` decides which).
//!
//! What the kernel notes for SO_PEERCRED (who listens, who connects, who makes a pair) a task does
//! itself: the one that the images name (crust_peer_pid), or else the first that has the socket. It
//! takes the socket as its number 0, with its own effective ids for the moment. The
//! broker makes sockets, binds them and accepts. Connections to one listener are made one after
//! the other, each accepted before the next: only so is it certain whom accept(2) gives.

use super::unix_name::Address;
use super::unix_socket::{Room, Sock, TYPES};
use crate::plan::calls::close;
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Arg, Call, Op, Phase, Ret, SlotId};
use crate::plan::{Planner, StepId};
use crust_image::ids::VirtPid;
use crust_image::tcp_state::LISTEN;
use nix::libc;

/// Ends of pairs that a task has open at a time.
const TOGETHER: usize = 256;

/// Makes a socket that has, or may have, a name; binds it; listens.
pub(super) fn plan_named(planner: &mut Planner<'_>, room: &mut Room<'_>, sock: &Sock<'_>) {
    let slot = slot_of(planner, room, sock);
    let mut ready = bind(planner, room, sock, slot);
    if sock.is_stream() && sock.usk.state == LISTEN {
        let maker = sock.named_by_kernel(planner).or(sock.owner);
        ready = Some(listen(planner, sock, slot, sock.usk.backlog, ready, maker));
    }
    room.ready.extend(ready.map(|step| (sock.usk.ino, step)));
}

/// The slot of a socket, which is made when it is first asked for.
fn slot_of(planner: &mut Planner<'_>, room: &mut Room<'_>, sock: &Sock<'_>) -> SlotId {
    if let Some(slot) = room.slots.get(&sock.usk.ino) {
        return *slot;
    }
    let slot = make(planner, sock);
    room.slots.insert(sock.usk.ino, slot);
    slot
}

/// socket(2) by the broker.
fn make(planner: &mut Planner<'_>, sock: &Sock<'_>) -> SlotId {
    let slot = planner.slot();
    let args = vec![
        Arg::named("AF_UNIX", libc::AF_UNIX),
        kind(sock),
        Arg::Int(0),
    ];
    let call = Call::new("socket", libc::SYS_socket, args).answers(Ret::Fd(slot));
    planner.call(Phase::Objects, Actor::Broker, call, sock.origin("make"));
    slot
}

fn kind(sock: &Sock<'_>) -> Arg {
    let kind = sock.usk.r#type as i32;
    let name = TYPES.iter().find(|(number, _)| *number == kind);
    let name = name.map_or("SOCK_STREAM", |(_, name)| name);
    Arg::named(format!("{name}|SOCK_CLOEXEC"), kind | libc::SOCK_CLOEXEC)
}

/// Binds a socket, when its path is free.
fn bind(
    planner: &mut Planner<'_>,
    room: &Room<'_>,
    sock: &Sock<'_>,
    slot: SlotId,
) -> Option<StepId> {
    let step = sock
        .address
        .plan_bind(planner, slot, sock.usk, sock.origin("name of"))?;
    let path = sock.address.path();
    if let Some(freed) = room.freed.get(&path) {
        planner.in_turn(*freed, step);
    }
    if !sock.is_deleted() {
        planner.files.unix.bound.entry(path).or_insert(step);
    }
    Some(step)
}

fn listen(
    planner: &mut Planner<'_>,
    sock: &Sock<'_>,
    slot: SlotId,
    backlog: u32,
    bound: Option<StepId>,
    maker: Option<VirtPid>,
) -> StepId {
    let listen = |fd| {
        vec![Call::new(
            "listen",
            libc::SYS_listen,
            vec![fd, Arg::Int(backlog.into())],
        )]
    };
    by_task(planner, (sock, maker), slot, &[bound], listen, "listen on")
}

/// Connects a socket, which may have to be bound before, to a name that may have to be ready.
fn connect(
    planner: &mut Planner<'_>,
    (sock, maker): (&Sock<'_>, Option<VirtPid>),
    slot: SlotId,
    after: [Option<StepId>; 2],
    to: &Address,
) -> StepId {
    let calls = |fd| to.connect(fd);
    by_task(planner, (sock, maker), slot, &after, calls, "connect")
}

/// Calls on a socket by a task, or by the broker if there is none. The step after which they are
/// made.
fn by_task(
    planner: &mut Planner<'_>,
    (sock, maker): (&Sock<'_>, Option<VirtPid>),
    slot: SlotId,
    after: &[Option<StepId>],
    calls: impl Fn(Arg) -> Vec<Call>,
    what: &str,
) -> StepId {
    if let Some(pid) = maker {
        close_pairs(planner, pid);
    }
    let (actor, calls) = match maker {
        None => (Actor::Broker, calls(Arg::Fd(slot))),
        Some(pid) => {
            let mut own = as_user(planner, pid, calls(Arg::Int(0)));
            own.push(close(0));
            (Actor::Task(pid), own)
        }
    };
    let mut steps = Vec::new();
    if maker.is_some() {
        let take = Op::take(slot, 0);
        steps.push(planner.push(Phase::Objects, actor, take, sock.origin(what)));
    }
    for call in calls {
        let step = planner.call(Phase::Objects, actor, call, sock.origin(what));
        // The broker's calls have an order only by what they use.
        if let (Actor::Broker, Some(last)) = (actor, steps.last()) {
            planner.in_turn(*last, step);
        }
        steps.push(step);
    }
    match (steps.first(), steps.last()) {
        (Some(first), Some(last)) => {
            for after in after.iter().flatten() {
                planner.in_turn(*after, *first);
            }
            *last
        }
        _ => planner.call(Phase::Objects, actor, close(0), sock.origin(what)),
    }
}

/// Calls of a task with its effective ids. Only these change, so there is a way back.
fn as_user(planner: &Planner<'_>, pid: VirtPid, mut calls: Vec<Call>) -> Vec<Call> {
    let [_, own_uid, ..] = planner.host.creds.uids;
    let [_, own_gid, ..] = planner.host.creds.gids;
    let own = (own_uid, own_gid);
    let core = planner.checkpoint.core(pid);
    let creds = core.and_then(|core| core.thread_core.as_ref()?.creds.as_ref());
    let ids = creds
        .map(|creds| (creds.euid, creds.egid))
        .filter(|ids| *ids != own);
    let Some((uid, gid)) = ids else { return calls };
    let set = |name, nr, id: u32| {
        Call::new(
            name,
            nr,
            vec![Arg::Int(-1), Arg::Int(id.into()), Arg::Int(-1)],
        )
    };
    calls.insert(0, set("setresuid", libc::SYS_setresuid, uid));
    calls.insert(0, set("setresgid", libc::SYS_setresgid, gid));
    calls.push(set("setresuid", libc::SYS_setresuid, own_uid));
    calls.push(set("setresgid", libc::SYS_setresgid, own_gid));
    calls
}

/// Two connected ends. Without a client the other end is closed when the queue is filled.
pub(super) fn plan_pair(
    planner: &mut Planner<'_>,
    room: &mut Room<'_>,
    server: &Sock<'_>,
    client: Option<&Sock<'_>>,
) {
    let (server_slot, client_slot) = if server.address == Address::None {
        let one = client.unwrap_or(server);
        let named = one.named_by_kernel(planner);
        let named = named.or_else(|| server.named_by_kernel(planner));
        socketpair(planner, one, named.or(one.owner))
    } else {
        accepted(planner, room, server, client)
    };
    room.slots.insert(server.usk.ino, server_slot);
    planner
        .files
        .unix
        .senders
        .insert(server.file.id, client_slot);
    match client {
        Some(client) => {
            room.slots.insert(client.usk.ino, client_slot);
            planner
                .files
                .unix
                .senders
                .insert(client.file.id, server_slot);
        }
        None => {
            let origin = server.origin("closed end of");
            planner.files.unix.temporary.push((client_slot, origin));
        }
    }
}

fn socketpair(
    planner: &mut Planner<'_>,
    sock: &Sock<'_>,
    maker: Option<VirtPid>,
) -> (SlotId, SlotId) {
    let (first, second) = (planner.slot(), planner.slot());
    let args = vec![
        Arg::named("AF_UNIX", libc::AF_UNIX),
        kind(sock),
        Arg::Int(0),
        Arg::Out(8),
    ];
    let call = Call::new("socketpair", libc::SYS_socketpair, args);
    let origin = sock.origin("pair of");
    let Some(pid) = maker else {
        let call = call.answers(Ret::FdPair(3, first, second));
        planner.call(Phase::Objects, Actor::Broker, call, origin);
        return (first, second);
    };
    let actor = Actor::Task(pid);
    let calls = as_user(planner, pid, vec![call]);
    let steps: Vec<StepId> = calls
        .into_iter()
        .map(|call| planner.call(Phase::Objects, actor, call, origin.clone()))
        .collect();
    for slot in [first, second] {
        let number = planner.files.unix.next_number(pid, planner.files.broker_fd);
        let fetch = Op::Fetch {
            from: pid,
            number,
            slot,
        };
        let fetched = planner.push(Phase::Objects, Actor::Broker, fetch, origin.clone());
        if let Some(made) = steps.last() {
            planner.in_turn(*made, fetched);
        }
        let pairs = planner.files.unix.pairs.entry(pid).or_default();
        pairs.push((number, fetched, origin.clone()));
    }
    if planner.files.unix.pairs.get(&pid).map_or(0, Vec::len) >= TOGETHER {
        close_pairs(planner, pid);
    }
    (first, second)
}

/// A task closes the ends of the pairs it has made, once the broker has them: its table is empty
/// again. A thousand pairs made one by one would be a thousand turns of the two.
pub(super) fn close_pairs(planner: &mut Planner<'_>, pid: VirtPid) {
    let ends = planner.files.unix.pairs.remove(&pid).unwrap_or_default();
    for (number, fetched, origin) in ends {
        let closed = planner.call(Phase::Objects, Actor::Task(pid), close(number), origin);
        planner.in_turn(fetched, closed);
    }
}

/// A connection through a listener of the server's name: that of the tree, or one made for it.
fn accepted(
    planner: &mut Planner<'_>,
    room: &mut Room<'_>,
    server: &Sock<'_>,
    client: Option<&Sock<'_>>,
) -> (SlotId, SlotId) {
    let of_tree = room
        .listener_of(server)
        .and_then(|ino| Some((ino, *room.slots.get(&ino)?)));
    let (listener, ready) = match of_tree {
        Some((ino, slot)) => (slot, room.ready.get(&ino).copied()),
        None => {
            let slot = make(planner, server);
            let bound = bind(planner, room, server, slot);
            let maker = client.and_then(|client| client.named_by_kernel(planner));
            let maker = maker.or(server.owner);
            (slot, Some(listen(planner, server, slot, 1, bound, maker)))
        }
    };
    let connecting = client.unwrap_or(server);
    let client_slot = make(planner, connecting);
    let bound = client.and_then(|client| bind(planner, room, client, client_slot));
    let after = [ready, bound];
    let maker = server.named_by_kernel(planner).or(connecting.owner);
    let maker = (connecting, maker);
    let connected = connect(planner, maker, client_slot, after, &server.address);
    let slot = planner.slot();
    let flags = Arg::named("SOCK_CLOEXEC", libc::SOCK_CLOEXEC);
    let args = vec![Arg::Fd(listener), Arg::null(), Arg::null(), flags];
    let call = Call::new("accept4", libc::SYS_accept4, args).answers(Ret::Fd(slot));
    let accepted = planner.call(Phase::Objects, Actor::Broker, call, server.origin("accept"));
    planner.in_turn(connected, accepted);
    match of_tree {
        Some((ino, _)) => {
            room.ready.insert(ino, accepted);
        }
        None => close_listener(planner, room, server, listener, accepted),
    }
    (slot, client_slot)
}

/// Ends a listener that was made for one connection. Its name is free for the next one.
fn close_listener(
    planner: &mut Planner<'_>,
    room: &mut Room<'_>,
    server: &Sock<'_>,
    slot: SlotId,
    accepted: StepId,
) {
    let close = Op::Routine(Routine::Close { slot });
    let closed = planner.push(
        Phase::Objects,
        Actor::Broker,
        close,
        server.origin("listener for"),
    );
    planner.in_turn(accepted, closed);
    room.ready.insert(server.usk.ino, closed);
    let path = server.address.path();
    if server.is_deleted() {
        plan_unlink(planner, room, server);
    } else if !path.is_empty() {
        room.freed.insert(path, closed);
    }
}

/// A connection that waits to be accepted.
pub(super) fn plan_pending(
    planner: &mut Planner<'_>,
    room: &mut Room<'_>,
    sock: &Sock<'_>,
    listener: u32,
) {
    let Some((server, _)) = room.sockets.get(&listener).cloned() else {
        return;
    };
    let slot = slot_of(planner, room, sock);
    let bound = bind(planner, room, sock, slot);
    let ready = room.ready.get(&listener).copied();
    let maker = (sock, sock.owner);
    let connected = connect(planner, maker, slot, [ready, bound], &server.address);
    room.ready.insert(listener, connected);
}

/// A datagram socket that sends to a named one. A socket that has a peer hears nobody else, so
/// whoever sends to it is connected before it connects itself.
pub(super) fn plan_sends_to(
    planner: &mut Planner<'_>,
    room: &mut Room<'_>,
    sock: &Sock<'_>,
    peer: u32,
) {
    let Some((target, _)) = room.sockets.get(&peer).cloned() else {
        return;
    };
    let slot = slot_of(planner, room, sock);
    let ready = room.ready.get(&peer).copied();
    let bound = room.ready.get(&sock.usk.ino).copied();
    let maker = (sock, sock.owner);
    let connected = connect(planner, maker, slot, [ready, bound], &target.address);
    room.users.entry(peer).or_default().push(connected);
    planner
        .files
        .unix
        .senders
        .entry(target.file.id)
        .or_insert(slot);
    for &(other, its_peer, step) in &room.connected {
        if its_peer == sock.usk.ino && other != peer {
            planner.in_turn(step, connected);
        }
        if other == peer && its_peer != sock.usk.ino {
            planner.in_turn(connected, step);
        }
    }
    room.connected.push((sock.usk.ino, peer, connected));
}

/// A socket without a name, made only to fill the queue of a named receiver: for datagrams whose
/// sender had no name or is not of the tree. It is not connected if the receiver's name will do
/// when queues are filled, for a connection would show in the receiver's state. A receiver that
/// has a peer hears nobody else.
pub(super) fn plan_made_sender(planner: &mut Planner<'_>, room: &mut Room<'_>, sock: &Sock<'_>) {
    let has_sender = planner.files.unix.senders.contains_key(&sock.file.id);
    let wanted = planner.checkpoint.sk_queues.contains_key(&sock.file.id)
        && !sock.is_stream()
        && sock.address != Address::None
        && (!has_sender || sock.usk.peer == 0);
    if !wanted {
        return;
    }
    let slot = make(planner, sock);
    let to = sock.address.bytes().filter(|_| !sock.is_deleted());
    if to.is_none() {
        let ready = room.ready.get(&sock.usk.ino).copied();
        let maker = (sock, sock.owner);
        let connected = connect(planner, maker, slot, [ready, None], &sock.address);
        room.users.entry(sock.usk.ino).or_default().push(connected);
    }
    let unix = &mut planner.files.unix;
    unix.nameless
        .insert(sock.file.id, (slot, to.unwrap_or_default()));
    unix.temporary.push((slot, sock.origin("sender to")));
}

/// Removes a name that was gone at the dump, when all who connect by it have done so.
pub(super) fn plan_unlink(planner: &mut Planner<'_>, room: &mut Room<'_>, sock: &Sock<'_>) {
    let path = sock.address.path();
    if !sock.is_deleted() || path.is_empty() {
        return;
    }
    let unlink = Op::Routine(Routine::Unlink { path: path.clone() });
    let step = planner.push(
        Phase::Objects,
        Actor::Broker,
        unlink,
        sock.origin("name of"),
    );
    let users = room.users.get(&sock.usk.ino).into_iter().flatten();
    for earlier in room.ready.get(&sock.usk.ino).into_iter().chain(users) {
        planner.in_turn(*earlier, step);
    }
    room.freed.insert(path, step);
}
