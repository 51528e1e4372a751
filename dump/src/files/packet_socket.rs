//! Packet sockets (packet(7)): type, protocol, device, options, memberships, fanout and rings.
//!
//! What getsockopt(2) does not tell comes from sock_diag(7) (CONFIG_PACKET_DIAG). Packets that wait
//! are lost, as the network may lose them: the log says so. A ring that is mapped is memory of the
//! task and is refused there.

use super::{FileTable, OpenFile, Problem, RoomResult, file_entry, sock_options};
use crate::context::Context;
use anyhow::Context as _;
use crust_image::ids::FileId;
use crust_process::descriptor::{bytes_waiting, local_address, sockopt_int};
use crust_process::sockdiag::{PacketSocket, Ring, collect_packet_sockets, open_sock_diag};
use crust_proto::criu::{FdTypes, FileEntry, PacketMclist, PacketRing, PacketSockEntry};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::AsFd;

/// The packet sockets of the host, asked for once.
#[derive(Debug, Default)]
pub struct Listed(Option<Vec<PacketSocket>>);

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
    let entry = PacketSockEntry {
        id: id.0,
        r#type: sock_type as u32,
        protocol,
        flags: file.flags,
        ifindex,
        fown: file.fown(ctx)?,
        opts: sock_options::collect(file.fd)?,
        version: int(libc::PACKET_VERSION, "PACKET_VERSION")? as u32,
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
    };
    Ok(FileEntry {
        psk: Some(entry),
        ..file_entry(FdTypes::Packetsk, id)
    })
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
