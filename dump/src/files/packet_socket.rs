//! Packet sockets (packet(7)): type, protocol, device, options, memberships, fanout and rings.
//!
//! What getsockopt(2) does not tell comes from sock_diag(7) (CONFIG_PACKET_DIAG). Packets that wait
//! are lost, as the network may lose them: the log says so. A mapping of the rings names its socket
//! by the inode.

use super::{FileTable, OpenFile, Problem, RoomResult, file_entry, kept_options};
use crate::context::{Context, Task};
use anyhow::Context as _;
use crust_image::ids::FileId;
use crust_process::descriptor::{bytes_waiting, local_address, sockopt_int};
use crust_process::memory::TaskMem;
use crust_process::sockdiag::{PacketSocket, Ring, collect_packet_sockets, open_sock_diag};
use crust_proto::criu::{FdTypes, FileEntry, PacketMclist, PacketRing, PacketSockEntry};
use nix::errno::Errno;
use nix::libc;
use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsFd;

/// enum tpacket_versions.
const TPACKET_V3: i32 = 2;

/// The packet sockets of the host, asked for once.
#[derive(Debug, Default)]
pub struct Listed(Option<Vec<PacketSocket>>);

/// Those of the tree with rings, by inode.
pub type Ringed = HashMap<u64, Rings>;

/// The rings of a socket, in the order in which one mapping has them.
#[derive(Debug)]
pub struct Rings {
    file: FileId,
    /// Received frames, then those to send.
    rings: Vec<Ring>,
    /// The first ring is one of blocks with a header (TPACKET_V3).
    has_blocks: bool,
}

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let ino = file.stat()?.ino as u32;
    let listed = find(table, ino)?;
    let (protocol, ifindex) = address(&local_address(file.fd).context("getsockname")?)?;
    let int = |name: i32, what| sockopt_int(file.fd, libc::SOL_PACKET, name).context(what);
    let flag = |name, what| int(name, what).map(|value| value != 0);
    let sock_type = sockopt_int(file.fd, libc::SOL_SOCKET, libc::SO_TYPE).context("SO_TYPE")?;
    warn_of_packets(ctx, file)?;
    let version = int(libc::PACKET_VERSION, "PACKET_VERSION")?;
    let rings = [listed.rx_ring, listed.tx_ring];
    let rings = Rings {
        file: id,
        rings: rings.into_iter().flatten().collect(),
        has_blocks: version == TPACKET_V3 && listed.rx_ring.is_some(),
    };
    table.ringed.insert(ino.into(), rings);
    let entry = PacketSockEntry {
        id: id.0,
        r#type: sock_type as u32,
        protocol,
        flags: file.flags,
        ifindex,
        fown: file.fown(ctx)?,
        opts: file.socket_options()?,
        version: version as u32,
        reserve: int(libc::PACKET_RESERVE, "PACKET_RESERVE")? as u32,
        aux_data: flag(libc::PACKET_AUXDATA, "PACKET_AUXDATA")?,
        orig_dev: flag(libc::PACKET_ORIGDEV, "PACKET_ORIGDEV")?,
        vnet_hdr: flag(libc::PACKET_VNET_HDR, "PACKET_VNET_HDR")?,
        loss: flag(libc::PACKET_LOSS, "PACKET_LOSS")?,
        timestamp: int(libc::PACKET_TIMESTAMP, "PACKET_TIMESTAMP")? as u32,
        copy_thresh: listed.copy_thresh,
        mclist: listed.memberships.iter().map(encode_membership).collect(),
        fanout: listed.fanout,
        rx_ring: listed.rx_ring.map(encode_ring),
        tx_ring: listed.tx_ring.map(encode_ring),
        ns_id: table.own_ids.net_ns_id,
        crust_options: kept_options::collect(table, file.fd, (libc::AF_PACKET, sock_type, 0)),
    };
    Ok(FileEntry {
        psk: Some(Box::new(entry)),
        ..file_entry(FdTypes::Packetsk, id)
    })
}

impl FileTable {
    /// The file of the packet socket whose rings are mapped here, or why it cannot be.
    pub fn mapped_socket(&self, task: &Task, range: &Range<u64>) -> Result<FileId, String> {
        let Range { start, end } = range;
        let path = format!("/proc/{}/map_files/{start:x}-{end:x}", task.pid);
        let link = std::fs::read_link(path).map_err(|error| error.to_string())?;
        let link = link.to_string_lossy();
        let inode = link
            .strip_prefix("socket:[")
            .and_then(|it| it.strip_suffix(']'));
        let inode = inode.and_then(|inode| inode.parse().ok());
        match inode.and_then(|inode: u64| self.ringed.get(&inode)) {
            None => Err(format!("maps {link}, of which the task has no descriptor")),
            Some(rings) if rings.len() != end - start => {
                Err(format!("maps a part of the rings of {link}"))
            }
            Some(rings) if rings.are_new(&task.mem, *start)? => Ok(rings.file),
            Some(_) => Err(format!(
                "maps the rings of {link}, which have been used: the frame at which the kernel is \
                 cannot be set"
            )),
        }
    }
}

impl Rings {
    fn len(&self) -> u64 {
        self.rings.iter().map(ring_len).sum()
    }

    /// Whether no packet has been in them: frames keep their lengths, blocks the number of their
    /// packets, when the program has given them back. Only then is the kernel where it is in new
    /// rings, at the first frame.
    fn are_new(&self, mem: &TaskMem, start: u64) -> Result<bool, String> {
        let mut at = start;
        for (number, ring) in self.rings.iter().enumerate() {
            let has_blocks = self.has_blocks && number == 0;
            // Version and offset of a block come before its status and count.
            let (unit, facts) = match has_blocks {
                true => (ring.block_size, 8..16),
                false => (ring.frame_size, 0..24),
            };
            let end = at + ring_len(ring);
            for header in (at..end).step_by(unit.max(1) as usize) {
                let mut bytes = [0; 24];
                let read = mem.read_exact_at(header, &mut bytes);
                read.map_err(|error| format!("read the rings of a packet socket: {error}"))?;
                let facts = bytes.get(facts.clone()).unwrap_or_default();
                if facts.iter().any(|byte| *byte != 0) {
                    return Ok(false);
                }
            }
            at = end;
        }
        Ok(true)
    }
}

fn ring_len(ring: &Ring) -> u64 {
    u64::from(ring.block_size) * u64::from(ring.block_nr)
}

fn find(table: &mut FileTable, ino: u32) -> RoomResult<PacketSocket> {
    if table.packets.0.is_none() {
        let diag = open_sock_diag().context("packet sockets")?;
        table.packets.0 = Some(match collect_packet_sockets(diag.as_fd()) {
            Ok(all) => all,
            Err(error) if error.errno() == Some(Errno::ENOENT) => {
                let what = "is a packet socket, of which this kernel tells not all";
                return Err(Problem::with_hint(what, "it has no CONFIG_PACKET_DIAG"));
            }
            Err(error) => return Err(anyhow::Error::new(error).into()),
        });
    }
    let found = table.packets.0.iter().flatten().find(|it| it.ino == ino);
    Ok(found
        .context("a packet socket is not listed by sock_diag")?
        .clone())
}

/// Protocol, in network byte order as a number, and device of a sockaddr_ll.
fn address(raw: &[u8]) -> anyhow::Result<(u32, u32)> {
    let protocol = raw.get(2..).and_then(|bytes| bytes.first_chunk());
    let ifindex = raw.get(4..).and_then(|bytes| bytes.first_chunk());
    let (protocol, ifindex) = protocol
        .zip(ifindex)
        .context("no address of a packet socket")?;
    Ok((
        u16::from_ne_bytes(*protocol).into(),
        u32::from_ne_bytes(*ifindex),
    ))
}

fn warn_of_packets(ctx: &Context, file: &OpenFile) -> anyhow::Result<()> {
    let waiting = bytes_waiting(file.fd).context("FIONREAD")?;
    if waiting > 0 {
        let (pid, name) = (file.task.pid, file.name());
        let message = format_args!("task {pid}: {name}: not kept: waiting packets");
        ctx.log.warn("dump/files/packet_socket", message);
    }
    Ok(())
}

fn encode_membership(membership: &crust_process::sockdiag::Membership) -> PacketMclist {
    PacketMclist {
        index: membership.index,
        r#type: membership.kind.into(),
        addr: membership.address.clone(),
    }
}

fn encode_ring(ring: Ring) -> PacketRing {
    PacketRing {
        block_size: ring.block_size,
        block_nr: ring.block_nr,
        frame_size: ring.frame_size,
        frame_nr: ring.frame_nr,
        retire_tmo: ring.retire_tmo,
        sizeof_priv: ring.sizeof_priv,
        features: ring.features,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_keeps_its_byte_order() {
        let raw = [17, 0, 0x08, 0x06, 1, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(address(&raw).unwrap(), (1544, 1));
        assert!(address(&raw[..5]).is_err());
    }
}
