//! What waits in a unix socket: bytes, packets, and descriptors in flight.
//!
//! MSG_PEEK shows a message without taking it, all bytes of a stream at once if no descriptors are
//! among them. Otherwise SO_PEEK_OFF makes each peek go on behind the last. The offset belongs to
//! the socket, which the task shares, so it is used only then and put back in any case; should we
//! be killed in between, the task would see it, if it peeks. A descriptor in flight is a
//! description like any other, known perhaps only from here, and gets its id from the table.
//!
//! The sender's address of a datagram goes into a field of our own, and its credentials too where
//! the receiver asks for them and the sender is a task of the tree. A datagram of no bytes is stored, but the kernel shows it to peeks only once, so a second dump
//! of the same queue misses it.

use super::{FileTable, OpenFile, Problem, RoomResult};
use crate::context::Context;
use anyhow::{Context as _, Result};
use crust_image::ids::FileId;
use crust_image::kind::Kind;
use crust_image::sink::ImageSink;
use crust_process::descriptor::{PeekOffset, Peeked, peek_message, peek_offset, poll_state};
use crust_process::sockdiag::UnixSocket;
use crust_proto::criu::{CrustSenderEntry, ScmEntry, SkPacketEntry};
use nix::libc;

/// Room for the largest datagram that default buffers allow; a larger one is read in parts.
const DATAGRAM_ROOM: usize = 256 << 10;

/// A queued message.
#[derive(Debug)]
pub struct Packet {
    entry: SkPacketEntry,
    data: Vec<u8>,
}

impl Packet {
    /// The message of the image.
    #[cfg(test)]
    pub fn entry(&self) -> &SkPacketEntry {
        &self.entry
    }
}

/// Collects the queue of a socket that is not listening.
pub fn collect(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
    socket: &UnixSocket,
) -> RoomResult<()> {
    for message in peek_queue(file, socket)? {
        if message.rights_truncated {
            return Err(Problem::refused(
                "descriptors in flight could not be looked at: our own descriptor table is full",
            ));
        }
        let mut rights = Vec::with_capacity(message.rights.len());
        for copy in message.rights {
            if let Some(right) = table.intern_in_flight(ctx, file.task, copy)? {
                rights.push(right.0);
            }
        }
        let entry = SkPacketEntry {
            id_for: id.0,
            length: message.data.len() as u32,
            scm: encode_rights(rights),
            crust_sender: sender_name(&message.sender),
            crust_sender_ids: message.sender_ids.and_then(|ids| encode_sender(ctx, ids)),
        };
        table.unix.packets.push(Packet {
            entry,
            data: message.data,
        });
    }
    Ok(())
}

/// Who sent a message, if it is of the tree: nobody else can be named again.
fn encode_sender(ctx: &Context, (pid, uid, gid): (i32, u32, u32)) -> Option<CrustSenderEntry> {
    let pid = ctx.task(pid)?.virt;
    Some(CrustSenderEntry { pid, uid, gid })
}

/// The name in a sockaddr_un, without the family before it and the zero behind a path.
fn sender_name(address: &[u8]) -> Option<Vec<u8>> {
    let name = address.get(size_of::<libc::sa_family_t>()..)?;
    let path = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = if path.is_empty() { name } else { path };
    (!name.is_empty()).then(|| name.to_vec())
}

fn encode_rights(rights: Vec<u32>) -> Vec<ScmEntry> {
    if rights.is_empty() {
        return Vec::new();
    }
    vec![ScmEntry {
        r#type: libc::SCM_RIGHTS as u32,
        rights,
    }]
}

fn peek_queue(file: &OpenFile, socket: &UnixSocket) -> RoomResult<Vec<Peeked>> {
    let queued = socket.rqlen as usize;
    if i32::from(socket.sock_type) == libc::SOCK_STREAM {
        if queued == 0 {
            return Ok(Vec::new());
        }
        if let Some(whole) = peek_plain_stream(file, queued)? {
            return Ok(vec![whole]);
        }
        return Ok(peek_all(file, queued, true)?);
    }
    // Of packets the length tells nothing, for they may be empty.
    if !poll_state(file.fd).context("poll")?.readable {
        return Ok(Vec::new());
    }
    // Where nobody can write any more, these answer no bytes at the end, again and again.
    let shut = i32::from(socket.sock_type) == libc::SOCK_SEQPACKET && socket.shutdown & 1 != 0;
    Ok(peek_all(file, DATAGRAM_ROOM, shut)?)
}

/// All bytes of a stream by one peek that changes nothing; `None` if that cannot show them all.
fn peek_plain_stream(file: &OpenFile, queued: usize) -> RoomResult<Option<Peeked>> {
    // The kernel tells since 5.6; before, the length of the answer tells as well, but for
    // descriptors with the last bytes, and those come along.
    if file.fdinfo()?.scm_fds.unwrap_or(0) != 0
        || peek_offset(file.fd).context("SO_PEEK_OFF")? != -1
    {
        return Ok(None);
    }
    let message = peek_message(file.fd, queued).context("peeking the queue")?;
    Ok(message.filter(|message| message.data.len() == queued))
}

/// All messages of the queue, each whole. `empty_ends`: a message of no bytes is the end.
pub(super) fn peek_all(file: &OpenFile, room: usize, empty_ends: bool) -> Result<Vec<Peeked>> {
    let offset = PeekOffset::rewind(file.fd).context("SO_PEEK_OFF")?;
    let mut messages: Vec<Peeked> = Vec::new();
    let mut goes_on = false;
    while let Some(message) = peek_message(file.fd, room).context("peeking the queue")? {
        let truncated = message.truncated;
        if message.data.is_empty() && empty_ends {
            break;
        }
        match messages.last_mut().filter(|_| goes_on) {
            // The rest of a message longer than the room; its descriptors came with each part.
            Some(last) => last.data.extend(message.data),
            None => messages.push(message),
        }
        goes_on = truncated;
    }
    offset.finish().context("putting SO_PEEK_OFF back")?;
    Ok(messages)
}

/// Writes sk-queues.img.
pub fn write(table: &FileTable, sink: &dyn ImageSink) -> Result<()> {
    if table.unix.packets.is_empty() {
        return Ok(());
    }
    let mut image = sink.create(Kind::SkQueues, None)?;
    for packet in &table.unix.packets {
        image.entry(&packet.entry)?;
        image.payload(&packet.data)?;
    }
    image.finish()?;
    Ok(())
}
