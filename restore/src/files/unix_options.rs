//! Options, flags and shutdown state of unix sockets: what is set when queues are filled and all
//! connections are made.
//!
//! SO_PASSCRED comes after the queues: packets sent again would otherwise carry the credentials of
//! crust-restore; so they show nobody's, as for a sender the kernel does not know. Buffer sizes are
//! stored doubled, as SO_SNDBUF shows them, and set without the limits of the host; SO_BUF_LOCK
//! then says which of them a user had set (Linux 5.16).

use super::calls::{SETTABLE, set_flags, set_option};
use super::fown;
use super::unix_socket::Sock;
use crate::plan::step::{Actor, Arg, Call, Op, Phase, Routine, SlotId};
use crate::plan::{Planner, Refusal};
use crust_proto::criu::{SkOptsEntry, SkShutdown};
use nix::libc;

const SOL_SOCKET: (&str, i32) = ("SOL_SOCKET", libc::SOL_SOCKET);
/// Not in libc for this target (include/uapi/asm-generic/socket.h).
const SO_BUF_LOCK: i32 = 72;
/// Both directions of SO_BUF_LOCK.
const BUF_LOCKS: u32 = 3;

/// Finishes every unix socket.
pub(super) fn plan(planner: &mut Planner<'_>) {
    let temporary = std::mem::take(&mut planner.files.unix.temporary);
    for (slot, origin) in temporary {
        let close = Op::Routine(Routine::Close { slot });
        planner.push(Phase::Objects, Actor::Broker, close, origin);
    }
    for sock in super::unix_socket::all_sockets(planner) {
        let Some(Some(slot)) = planner.files.slots.get(&sock.file.id).copied() else {
            continue;
        };
        plan_socket(planner, &sock, slot);
    }
}

fn plan_socket(planner: &mut Planner<'_>, sock: &Sock<'_>, slot: SlotId) {
    let origin = sock.file.origin(sock.file.name());
    match options(&sock.usk.opts, slot) {
        Ok(calls) => {
            for call in calls {
                planner.call(Phase::Objects, Actor::Broker, call, origin.clone());
            }
        }
        Err(why) => planner.refuse(Refusal::new(origin.clone(), why)),
    }
    let how = match sock.usk.shutdown.map(SkShutdown::try_from) {
        None | Some(Ok(SkShutdown::None)) => None,
        Some(Ok(SkShutdown::Read)) => Some(("SHUT_RD", libc::SHUT_RD)),
        Some(Ok(SkShutdown::Write)) => Some(("SHUT_WR", libc::SHUT_WR)),
        Some(Ok(SkShutdown::Both)) => Some(("SHUT_RDWR", libc::SHUT_RDWR)),
        Some(Err(_)) => {
            planner.refuse(Refusal::new(
                origin.clone(),
                "shutdown has a value that is not known",
            ));
            None
        }
    };
    if let Some((name, how)) = how {
        let args = vec![Arg::Fd(slot), Arg::named(name, how)];
        let call = Call::new("shutdown", libc::SYS_shutdown, args);
        planner.call(Phase::Objects, Actor::Broker, call, origin.clone());
    }
    let flags = sock.usk.flags as i32;
    if flags & SETTABLE != 0 {
        planner.call(
            Phase::Objects,
            Actor::Broker,
            set_flags(slot, flags),
            origin,
        );
    }
    fown::plan(planner, sock.file, slot, flags, &sock.usk.fown);
}

/// The calls that set what differs from a new socket.
fn options(opts: &SkOptsEntry, slot: SlotId) -> Result<Vec<Call>, String> {
    if !opts.so_filter.is_empty() {
        return Err("so_filter: socket filters cannot be restored yet".to_owned());
    }
    let mut calls = Vec::new();
    let mut set = |name: (&str, i32), value: Vec<u8>| {
        calls.push(set_option(slot, SOL_SOCKET, name, value));
    };
    let word = |value: u32| value.to_le_bytes().to_vec();
    set(
        ("SO_SNDBUFFORCE", libc::SO_SNDBUFFORCE),
        word(opts.so_sndbuf / 2),
    );
    set(
        ("SO_RCVBUFFORCE", libc::SO_RCVBUFFORCE),
        word(opts.so_rcvbuf / 2),
    );
    if let Some(locks) = opts.so_buf_lock {
        if locks & !BUF_LOCKS != 0 {
            return Err(format!(
                "so_buf_lock {locks:#x} has bits that are not known"
            ));
        }
        set(("SO_BUF_LOCK", SO_BUF_LOCK), word(locks));
    }
    let timeouts = [
        (
            ("SO_SNDTIMEO", libc::SO_SNDTIMEO),
            opts.so_snd_tmo_sec,
            opts.so_snd_tmo_usec,
        ),
        (
            ("SO_RCVTIMEO", libc::SO_RCVTIMEO),
            opts.so_rcv_tmo_sec,
            opts.so_rcv_tmo_usec,
        ),
    ];
    for (name, seconds, micros) in timeouts {
        if (seconds, micros) != (0, 0) {
            set(name, [seconds.to_le_bytes(), micros.to_le_bytes()].concat());
        }
    }
    let numbers = [
        (
            ("SO_PRIORITY", libc::SO_PRIORITY),
            opts.so_priority.unwrap_or(0),
        ),
        (("SO_MARK", libc::SO_MARK), opts.so_mark.unwrap_or(0)),
        (
            ("SO_RCVLOWAT", libc::SO_RCVLOWAT),
            opts.so_rcvlowat.filter(|low| *low != 1).unwrap_or(0),
        ),
        (
            ("SO_OOBINLINE", libc::SO_OOBINLINE),
            opts.so_oobinline.unwrap_or(0),
        ),
    ];
    for (name, value) in numbers.into_iter().filter(|(_, value)| *value != 0) {
        set(name, word(value));
    }
    let switches = [
        (("SO_REUSEADDR", libc::SO_REUSEADDR), opts.reuseaddr),
        (("SO_PASSCRED", libc::SO_PASSCRED), opts.so_passcred),
        (("SO_PASSSEC", libc::SO_PASSSEC), opts.so_passsec),
        (("SO_DONTROUTE", libc::SO_DONTROUTE), opts.so_dontroute),
        (("SO_NO_CHECK", libc::SO_NO_CHECK), opts.so_no_check),
        (("SO_BROADCAST", libc::SO_BROADCAST), opts.so_broadcast),
        (("SO_KEEPALIVE", libc::SO_KEEPALIVE), opts.so_keepalive),
    ];
    for (name, _) in switches.into_iter().filter(|(_, on)| *on == Some(true)) {
        set(name, word(1));
    }
    if let Some(seconds) = opts.so_linger {
        set(
            ("SO_LINGER", libc::SO_LINGER),
            [word(1), word(seconds)].concat(),
        );
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_set() {
        let mut opts = SkOptsEntry {
            so_sndbuf: 212_992,
            so_rcvbuf: 80_000,
            so_rcvlowat: Some(1),
            so_passcred: Some(false),
            ..Default::default()
        };
        assert_eq!(options(&opts, SlotId(0)).map(|calls| calls.len()), Ok(2));
        opts.so_passcred = Some(true);
        opts.so_rcv_tmo_sec = 3;
        opts.so_buf_lock = Some(2);
        assert_eq!(options(&opts, SlotId(0)).map(|calls| calls.len()), Ok(5));
        opts.so_filter = vec![6];
        assert!(options(&opts, SlotId(0)).is_err());
    }
}
