//! Options, flags and shutdown state of unix sockets: what is set when queues are filled and all
//! connections are made, in `Phase::Memory`.

use super::calls::{SETTABLE, set_flags};
use super::unix_socket::Sock;
use super::{fown, sock_options};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Arg, Call, Op, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crust_proto::criu::SkShutdown;
use nix::libc;

/// Finishes every unix socket.
pub(super) fn plan(planner: &mut Planner<'_>) {
    let temporary = std::mem::take(&mut planner.files.unix.temporary);
    for (slot, origin) in temporary {
        let close = Op::Routine(Routine::Close { slot });
        planner.push(Phase::Memory, Actor::Broker, close, origin);
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
    match sock_options::calls(&sock.usk.opts, slot, false) {
        Ok(calls) => {
            for call in calls {
                let call = sock_options::within_limits(call, planner.host);
                planner.call(Phase::Memory, Actor::Broker, call, origin.clone());
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
        planner.call(Phase::Memory, Actor::Broker, call, origin.clone());
    }
    let flags = sock.usk.flags as i32;
    if flags & SETTABLE != 0 {
        planner.call(Phase::Memory, Actor::Broker, set_flags(slot, flags), origin);
    }
    fown::plan(planner, sock.file, slot, flags, &sock.usk.fown);
}
