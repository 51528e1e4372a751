//! Packet sockets: made for no protocol, so that nothing comes in before the device is known, then
//! given their options, rings and memberships, and bound.
//!
//! Order: the version before the rings, which have its layout; the headroom, the timestamps and the
//! virtio header before them too, for a socket with a ring refuses these; fanout after bind(2),
//! which it needs. Devices are the images' numbers; a device that is not there is told.

use super::calls::{SETTABLE, set_flags, set_option};
use super::{File, fown, kept_options, member, plan_calls, sock_options};
use crate::plan::Planner;
use crate::plan::step::{Arg, Call, Ret, SlotId};
use crust_proto::criu::{PacketMclist, PacketRing, PacketSockEntry};
use nix::libc;

const SOL_PACKET: (&str, i32) = ("SOL_PACKET", libc::SOL_PACKET);
/// The default of the field: not a member of a group.
const NO_FANOUT: u32 = u32::MAX;
/// Room for an address in struct packet_mreq.
const ADDRESS: usize = 8;
/// TPACKET_V3.
const VERSION_3: u32 = 2;
/// What a ring may take; the kernel's own limit is the memory.
const LARGEST_RING: u64 = 1 << 32;

/// Makes the socket.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let psk = member(planner, file, file.entry.psk.as_ref(), |psk| psk.id)?;
    let slot = planner.slot();
    let what = format!("packet socket on device {}", psk.ifindex);
    let origin = file.origin(what);
    plan_calls(planner, origin, calls(psk, slot))?;
    fown::plan(planner, file, slot, psk.flags as i32, &psk.fown);
    Some(slot)
}

fn calls(psk: &PacketSockEntry, slot: SlotId) -> Result<Vec<Call>, String> {
    let (kind, number) = match psk.r#type as i32 {
        libc::SOCK_RAW => ("SOCK_RAW|SOCK_CLOEXEC", libc::SOCK_RAW),
        libc::SOCK_DGRAM => ("SOCK_DGRAM|SOCK_CLOEXEC", libc::SOCK_DGRAM),
        other => return Err(format!("type {other} is none of a packet socket")),
    };
    let protocol = u16::try_from(psk.protocol).map_err(|_| "protocol is wider than 16 bits")?;
    let args = vec![
        Arg::named("AF_PACKET", libc::AF_PACKET),
        Arg::Named(kind.to_owned(), (number | libc::SOCK_CLOEXEC) as u64),
        Arg::Int(0),
    ];
    let mut calls = vec![Call::new("socket", libc::SYS_socket, args).answers(Ret::Fd(slot))];
    let numbers = [
        (("PACKET_VERSION", libc::PACKET_VERSION), psk.version),
        (("PACKET_RESERVE", libc::PACKET_RESERVE), psk.reserve),
        (("PACKET_TIMESTAMP", libc::PACKET_TIMESTAMP), psk.timestamp),
        (
            ("PACKET_COPY_THRESH", libc::PACKET_COPY_THRESH),
            psk.copy_thresh,
        ),
        (
            ("PACKET_AUXDATA", libc::PACKET_AUXDATA),
            psk.aux_data.into(),
        ),
        (
            ("PACKET_ORIGDEV", libc::PACKET_ORIGDEV),
            psk.orig_dev.into(),
        ),
        (
            ("PACKET_VNET_HDR", libc::PACKET_VNET_HDR),
            psk.vnet_hdr.into(),
        ),
        (("PACKET_LOSS", libc::PACKET_LOSS), psk.loss.into()),
    ];
    for (name, value) in numbers.into_iter().filter(|(_, value)| *value != 0) {
        calls.push(set_option(
            slot,
            SOL_PACKET,
            name,
            value.to_le_bytes().to_vec(),
        ));
    }
    calls.extend(sock_options::calls(&psk.opts, slot, false)?);
    calls.extend(kept_options::calls(&psk.crust_options, slot)?);
    let rings = [
        (("PACKET_RX_RING", libc::PACKET_RX_RING), &psk.rx_ring),
        (("PACKET_TX_RING", libc::PACKET_TX_RING), &psk.tx_ring),
    ];
    for (name, ring) in rings {
        if let Some(ring) = ring {
            let value = ring_request(ring, psk.version)?;
            calls.push(set_option(slot, SOL_PACKET, name, value));
        }
    }
    for membership in &psk.mclist {
        let name = ("PACKET_ADD_MEMBERSHIP", libc::PACKET_ADD_MEMBERSHIP);
        calls.push(set_option(
            slot,
            SOL_PACKET,
            name,
            membership_request(membership)?,
        ));
    }
    calls.push(bind(slot, protocol, psk.ifindex));
    if let Some(fanout) = psk.fanout.filter(|fanout| *fanout != NO_FANOUT) {
        let name = ("PACKET_FANOUT", libc::PACKET_FANOUT);
        calls.push(set_option(
            slot,
            SOL_PACKET,
            name,
            fanout.to_le_bytes().to_vec(),
        ));
    }
    if psk.flags as i32 & SETTABLE != 0 {
        calls.push(set_flags(slot, psk.flags as i32));
    }
    Ok(calls)
}

/// With a struct sockaddr_ll, of which bind(2) reads protocol and device.
fn bind(slot: SlotId, protocol: u16, ifindex: u32) -> Call {
    let mut address = (libc::AF_PACKET as u16).to_ne_bytes().to_vec();
    address.extend(protocol.to_ne_bytes());
    address.extend(ifindex.to_ne_bytes());
    address.extend([0; 12]);
    let len = Arg::Int(address.len() as i64);
    let args = vec![Arg::Fd(slot), Arg::bytes(address), len];
    Call::new("bind", libc::SYS_bind, args)
}

/// struct tpacket_req, or tpacket_req3 for the third version.
fn ring_request(ring: &PacketRing, version: u32) -> Result<Vec<u8>, String> {
    let bytes = u64::from(ring.block_size) * u64::from(ring.block_nr);
    if bytes > LARGEST_RING {
        return Err(format!("a ring of {bytes} bytes"));
    }
    let mut words = vec![
        ring.block_size,
        ring.block_nr,
        ring.frame_size,
        ring.frame_nr,
    ];
    if version == VERSION_3 {
        words.extend([ring.retire_tmo, ring.sizeof_priv, ring.features]);
    }
    Ok(words.iter().flat_map(|word| word.to_ne_bytes()).collect())
}

/// struct packet_mreq, longer for a longer address.
fn membership_request(membership: &PacketMclist) -> Result<Vec<u8>, String> {
    let kind = u16::try_from(membership.r#type).map_err(|_| "mclist.type is no type")?;
    let len = membership.addr.len();
    if len > 32 {
        return Err(format!("mclist.addr has {len} bytes"));
    }
    let mut request = membership.index.to_ne_bytes().to_vec();
    request.extend(kind.to_ne_bytes());
    request.extend((len as u16).to_ne_bytes());
    request.extend(&membership.addr);
    request.resize(request.len().max(8 + ADDRESS), 0);
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_before_the_ring_and_fanout_after_bind() {
        let psk = PacketSockEntry {
            r#type: libc::SOCK_RAW as u32,
            version: VERSION_3,
            fanout: Some(7),
            rx_ring: Some(PacketRing {
                block_size: 4096,
                block_nr: 4,
                frame_size: 2048,
                frame_nr: 8,
                ..PacketRing::default()
            }),
            ..PacketSockEntry::default()
        };
        let made = calls(&psk, SlotId(0)).expect("calls");
        let names: Vec<String> = made.iter().map(shown).collect();
        let at = |name: &str| names.iter().position(|it| it.contains(name)).expect(name);
        assert!(at("PACKET_VERSION") < at("PACKET_RX_RING"));
        assert!(at("PACKET_RX_RING") < at("bind") && at("bind") < at("PACKET_FANOUT"));
        let request = ring_request(psk.rx_ring.as_ref().expect("a ring"), VERSION_3);
        assert_eq!(request.map(|bytes| bytes.len()), Ok(28));
    }

    fn shown(call: &Call) -> String {
        crate::plan::print::op(&crate::plan::step::Op::Call(call.clone()))
    }

    #[test]
    fn wild_entries_are_refused() {
        let good = PacketSockEntry {
            r#type: libc::SOCK_DGRAM as u32,
            ..PacketSockEntry::default()
        };
        assert!(calls(&good, SlotId(0)).is_ok());
        let broken: [fn(&mut PacketSockEntry); 4] = [
            |psk| psk.r#type = 1,
            |psk| psk.protocol = 1 << 16,
            |psk| {
                psk.mclist.push(PacketMclist {
                    addr: vec![0; 33],
                    ..PacketMclist::default()
                });
            },
            |psk| {
                psk.tx_ring = Some(PacketRing {
                    block_size: u32::MAX,
                    block_nr: u32::MAX,
                    ..PacketRing::default()
                });
            },
        ];
        for break_it in broken {
            let mut psk = good.clone();
            break_it(&mut psk);
            assert!(calls(&psk, SlotId(0)).is_err(), "{psk:?}");
        }
    }
}
