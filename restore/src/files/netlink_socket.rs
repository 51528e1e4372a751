//! Netlink sockets: made, bound to their port and groups, connected.
//!
//! The address has room for 32 groups; further ones are joined one by one. A port that somebody
//! else has by now cannot be had twice: bind(2) says EADDRINUSE before anything is forked.

use super::calls::{SETTABLE, set_flags, set_option};
use super::{File, fown, kept_options, member, plan_calls, sock_options};
use crate::plan::Planner;
use crate::plan::step::{Arg, Call, Ret, SlotId};
use crust_proto::criu::NetlinkSkEntry;
use nix::libc;

const SOL_NETLINK: (&str, i32) = ("SOL_NETLINK", libc::SOL_NETLINK);
/// NETLINK_CONNECTED, as the images have it.
const CONNECTED: u32 = 1;
/// Protocols of the kernel: MAX_LINKS.
const PROTOCOLS: u32 = 32;
/// Words of groups that a protocol may have, generously.
const LONGEST: usize = 256;

/// Makes the socket.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let nlsk = member(planner, file, file.entry.nlsk.as_ref(), |nlsk| nlsk.id)?;
    let slot = planner.slot();
    let origin = file.origin(format!("netlink socket of protocol {}", nlsk.protocol));
    plan_calls(planner, origin, calls(nlsk, slot))?;
    fown::plan(planner, file, slot, nlsk.flags as i32, &nlsk.fown);
    Some(slot)
}

fn calls(nlsk: &NetlinkSkEntry, slot: SlotId) -> Result<Vec<Call>, String> {
    if nlsk.protocol >= PROTOCOLS {
        return Err(format!("protocol {} is none of netlink", nlsk.protocol));
    }
    if nlsk.groups.len() > LONGEST {
        return Err(format!("groups has {} words", nlsk.groups.len()));
    }
    let (kind, number) = match nlsk.crust_type.map(|kind| kind as i32) {
        None | Some(libc::SOCK_RAW) => ("SOCK_RAW|SOCK_CLOEXEC", libc::SOCK_RAW),
        Some(libc::SOCK_DGRAM) => ("SOCK_DGRAM|SOCK_CLOEXEC", libc::SOCK_DGRAM),
        Some(other) => return Err(format!("crust_type {other} is none of netlink")),
    };
    let args = vec![
        Arg::named("AF_NETLINK", libc::AF_NETLINK),
        Arg::Named(kind.to_owned(), (number | libc::SOCK_CLOEXEC) as u64),
        Arg::Int(nlsk.protocol.into()),
    ];
    let mut calls = vec![Call::new("socket", libc::SYS_socket, args).answers(Ret::Fd(slot))];
    let (first, more) = nlsk.groups.split_first().unwrap_or((&0, &[]));
    if nlsk.portid != 0 {
        calls.push(at_address(
            slot,
            "bind",
            libc::SYS_bind,
            nlsk.portid,
            *first,
        ));
    }
    for (word, groups) in more.iter().enumerate() {
        for bit in (0..32).filter(|bit| groups & (1 << bit) != 0) {
            // Groups are counted from 1.
            let group = (word as u32 + 1) * 32 + bit + 1;
            let name = ("NETLINK_ADD_MEMBERSHIP", libc::NETLINK_ADD_MEMBERSHIP);
            calls.push(set_option(
                slot,
                SOL_NETLINK,
                name,
                group.to_le_bytes().to_vec(),
            ));
        }
    }
    if nlsk.state == CONNECTED {
        let (portid, group) = (nlsk.dst_portid, nlsk.dst_group);
        calls.push(at_address(
            slot,
            "connect",
            libc::SYS_connect,
            portid,
            group,
        ));
    }
    calls.extend(sock_options::calls(&nlsk.opts, slot, false)?);
    calls.extend(kept_options::calls(&nlsk.crust_options, slot)?);
    if nlsk.flags as i32 & SETTABLE != 0 {
        calls.push(set_flags(slot, nlsk.flags as i32));
    }
    Ok(calls)
}

/// A call with a sockaddr_nl.
fn at_address(slot: SlotId, name: &'static str, nr: i64, portid: u32, groups: u32) -> Call {
    let mut address = (libc::AF_NETLINK as u16).to_ne_bytes().to_vec();
    address.extend([0; 2]);
    address.extend(portid.to_ne_bytes());
    address.extend(groups.to_ne_bytes());
    let len = Arg::Int(address.len() as i64);
    Call::new(name, nr, vec![Arg::Fd(slot), Arg::bytes(address), len])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(nlsk: &NetlinkSkEntry) -> Vec<&'static str> {
        let calls = calls(nlsk, SlotId(0)).expect("calls");
        calls.iter().map(|call| call.name).collect()
    }

    #[test]
    fn groups_beyond_the_address_are_joined() {
        let mut nlsk = NetlinkSkEntry {
            portid: 7,
            groups: vec![0x11, 0b101],
            state: CONNECTED,
            ..NetlinkSkEntry::default()
        };
        let made = names(&nlsk);
        let begin = ["socket", "bind", "setsockopt", "setsockopt", "connect"];
        assert_eq!(made[..5], begin);
        let all = calls(&nlsk, SlotId(0)).expect("calls");
        let value = |at: usize| match &all[at].args[3] {
            Arg::Data(pieces) => format!("{pieces:?}"),
            other => panic!("{other:?}"),
        };
        assert!(
            value(2).contains("33") && value(3).contains("35"),
            "{}",
            value(2)
        );
        nlsk.protocol = 32;
        assert!(calls(&nlsk, SlotId(0)).is_err());
    }
}
