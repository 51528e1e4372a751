//! What was queued at unix sockets, with the descriptors in flight (sk-queues.img).
//!
//! A packet is sent again from the other end: for a stream that is the peer, for datagrams a
//! socket connected to the receiver, or one made for the purpose. A datagram with its sender's name
//! is sent by the socket of that name, if the tree has it and the receiver listens to it. Credentials
//! are those it had, if the receiver asks for them and the sender lives. Other names are lost. The broker does this in `Phase::Memory`, while tasks fill theirs: every file
//! has its slot by then, for any may be in flight, and every connection is made.

use super::calls::set_option;
use super::sock_options::within_limits;
use super::unix_socket::{Sock, all_sockets};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Op, Origin, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crust_image::ids::{FileId, VirtPid};
use crust_image::payload::SkPacket;
use nix::libc;
use std::collections::BTreeMap;

/// SCM_RIGHTS, the only kind of control message that images have.
const SCM_RIGHTS: u32 = 1;
/// What a queue may hold without a larger buffer on the sender's side. The kernel's default is
/// 212992 bytes of memory, in which a packet of one byte takes 768.
const SMALL: usize = 64 * 1024;
/// Memory that a queued packet takes besides its bytes, generously.
const OVERHEAD: usize = 1024;

/// Fills every queue.
pub(super) fn plan(planner: &mut Planner<'_>) {
    let checkpoint = planner.checkpoint;
    let sockets: BTreeMap<FileId, Sock<'_>> = all_sockets(planner)
        .into_iter()
        .map(|sock| (sock.file.id, sock))
        .collect();
    for (receiver, packets) in &checkpoint.sk_queues {
        let origin = |what: String| Origin::new("sk-queues.img", None, what);
        if !sockets.contains_key(receiver) {
            let why = format!("id_for {receiver} is no unix socket");
            planner.refuse(Refusal::new(origin(format!("queue of {receiver}")), why));
            continue;
        }
        // A socket that was refused has said so.
        if !matches!(planner.files.slots.get(receiver), Some(Some(_))) {
            continue;
        }
        let unix = &planner.files.unix;
        let connected = unix.senders.get(receiver).map(|slot| (*slot, Vec::new()));
        let Some((via, to)) = unix.nameless.get(receiver).cloned().or(connected) else {
            let why = "no socket is left by which its queue could be filled again";
            planner.refuse(Refusal::new(origin(format!("queue of {receiver}")), why));
            continue;
        };
        plan_room(
            planner,
            via,
            packets,
            &origin(format!("queue of {receiver}")),
        );
        for (nth, packet) in packets.iter().enumerate() {
            let origin = origin(format!("packet {nth} for {receiver}"));
            let sender = sender_of(planner, &sockets, *receiver, packet);
            let (via, to) = sender.unwrap_or_else(|| (via, to.clone()));
            match rights(planner, packet) {
                Ok(rights) => {
                    let receiver = receiver.0;
                    let send = Op::Routine(Routine::SendPacket {
                        receiver,
                        nth,
                        via,
                        to,
                        rights,
                        sender: sender_ids(planner, packet),
                    });
                    planner.push(Phase::Memory, Actor::Broker, send, origin);
                }
                Err(why) => planner.refuse(Refusal::new(origin, why)),
            }
        }
    }
}

/// The credentials that a message had, if its sender lives.
fn sender_ids(planner: &Planner<'_>, packet: &SkPacket) -> Option<(u32, u32, u32)> {
    let sender = packet.entry.crust_sender_ids.as_ref()?;
    let task = planner.tree.task(VirtPid::new(sender.pid)?)?;
    task.is_live()
        .then_some((sender.pid, sender.uid, sender.gid))
}

/// The socket of the tree whose name a datagram has, and the address it sends to, empty if it is
/// connected there. `None` if there is none, or if the receiver hears only another one.
fn sender_of(
    planner: &Planner<'_>,
    sockets: &BTreeMap<FileId, Sock<'_>>,
    receiver: FileId,
    packet: &SkPacket,
) -> Option<(SlotId, Vec<u8>)> {
    let name = packet.entry.crust_sender.as_deref()?;
    let receiver = sockets.get(&receiver)?;
    let sender = sockets.values().find(|sock| {
        let is_datagram = sock.usk.r#type as i32 == libc::SOCK_DGRAM;
        is_datagram && !sock.is_deleted() && sock.address.is_named(name)
    })?;
    let slot = planner
        .files
        .slots
        .get(&sender.file.id)
        .copied()
        .flatten()?;
    if sender.usk.peer == receiver.usk.ino {
        return Some((slot, Vec::new()));
    }
    let hears_all = receiver.usk.peer == 0 || receiver.usk.peer == sender.usk.ino;
    let address = receiver
        .address
        .bytes()
        .filter(|_| hears_all && !receiver.is_deleted())?;
    Some((slot, address))
}

/// Makes the sender's buffer large enough; its own size is set afterwards.
fn plan_room(planner: &mut Planner<'_>, via: SlotId, packets: &[SkPacket], origin: &Origin) {
    let total: usize = packets
        .iter()
        .map(|packet| packet.bytes.len() + OVERHEAD)
        .sum();
    if total > SMALL {
        let size = i32::try_from(total.saturating_mul(2)).unwrap_or(i32::MAX / 2);
        let option = ("SO_SNDBUFFORCE", libc::SO_SNDBUFFORCE);
        let level = ("SOL_SOCKET", libc::SOL_SOCKET);
        let call = set_option(via, level, option, size.to_le_bytes().to_vec());
        let call = within_limits(call, planner.host);
        planner.call(Phase::Memory, Actor::Broker, call, origin.clone());
    }
}

fn rights(planner: &mut Planner<'_>, packet: &SkPacket) -> Result<Vec<SlotId>, String> {
    let mut slots = Vec::new();
    for message in &packet.entry.scm {
        if message.r#type != SCM_RIGHTS {
            return Err(format!("scm.type {} is not known", message.r#type));
        }
        for id in &message.rights {
            let slot = planner.file_slot(FileId(*id));
            slots.push(slot.ok_or_else(|| format!("scm.rights {id} is no file that can be sent"))?);
        }
    }
    Ok(slots)
}
