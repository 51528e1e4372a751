//! Descriptors of /dev/net/tun, and the interfaces of tuns and taps that die with the tree.
//!
//! Such a file has two entries of one id: a REG with path, flags and owner, and a TUNF with the name
//! of the interface it is attached to. CRIU keeps the interface itself with the network namespace,
//! if that is the tree's own; here it is in a field of our own, with the first descriptor attached:
//! the driver's settings, the link, its addresses and routes. Packets that wait to be read are
//! lost, as a network may lose them: the log says so. Refused are a filter of packets, for the
//! kernel tells only where its owner's memory once had it, a queue that is detached, and an
//! interface of another network namespace.

use super::{FileTable, OpenFile, Problem, RoomResult, file_entry, regfile};
use crate::context::Context;
use anyhow::Context as _;
use crust_image::ids::FileId;
use crust_process::descriptor::{poll_state, statx};
use crust_process::rtnetlink::{Link, Rtnetlink};
use crust_process::tun::{self, Attached};
use crust_proto::criu::{CrustTunDevice, FdTypes, FileEntry, TunLinkEntry, TunfileEntry};
use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::AsFd;

/// The interfaces met so far, by name.
#[derive(Debug, Default)]
pub struct Interfaces(BTreeSet<Vec<u8>>);

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let attached = tun::attached(file.fd).context("TUNGETIFF")?;
    let crust_device = match &attached {
        None => None,
        Some(attached) => {
            warn_of_packets(ctx, file)?;
            collect_interface(table, file, attached)?
        }
    };
    let path = regfile::dump(ctx, table, file, id)?;
    table.entries.push(path);
    let entry = TunfileEntry {
        id: id.0,
        netdev: attached.map(|attached| attached.name),
        detached: None,
        ns_id: table.own_ids.net_ns_id,
        crust_device,
    };
    Ok(FileEntry {
        tunf: Some(Box::new(entry)),
        ..file_entry(FdTypes::Tunf, id)
    })
}

/// The interface, if it was not met yet.
fn collect_interface(
    table: &mut FileTable,
    file: &OpenFile,
    attached: &Attached,
) -> RoomResult<Option<CrustTunDevice>> {
    let name = String::from_utf8_lossy(&attached.name);
    let refused = |why: &str| {
        let what = format!("is attached to the tun or tap interface {name}, {why}");
        Err(Problem::refused(what))
    };
    let namespace = tun::namespace(file.fd).context("TUNGETDEVNETNS")?;
    let its = statx(namespace.as_fd()).context("statx of its network namespace")?;
    let own = std::fs::metadata("/proc/self/ns/net").context("stat /proc/self/ns/net")?;
    if std::os::unix::fs::MetadataExt::ino(&own) != its.ino {
        return refused("which is in another network namespace");
    }
    if tun::has_filter(file.fd).context("TUNGETFILTER")? {
        return refused("whose filter the kernel does not tell");
    }
    if !table.tuns.0.insert(attached.name.clone()) {
        return Ok(None);
    }
    let route = Rtnetlink::open().context("a socket of rtnetlink")?;
    let link = route.link(&attached.name).context("RTM_GETLINK")?;
    let link = link.with_context(|| format!("interface {name} is gone"))?;
    if link.disabled_queues > 0 {
        return refused("which has detached queues: whose they are is not told");
    }
    let setup = route
        .setup_of(link.index)
        .context("RTM_GETADDR and RTM_GETROUTE")?;
    Ok(Some(encode(file, attached, link, setup)?))
}

fn encode(
    file: &OpenFile,
    attached: &Attached,
    link: Link,
    setup: Vec<Vec<u8>>,
) -> anyhow::Result<CrustTunDevice> {
    let (header, send_buffer) = tun::sizes(file.fd).context("TUNGETVNETHDRSZ, TUNGETSNDBUF")?;
    let socket = UdpSocket::bind("0.0.0.0:0").context("a socket for ethtool")?;
    let offload = tun::offloads(socket.as_fd(), &attached.name).context("ETHTOOL_GFEATURES")?;
    Ok(CrustTunDevice {
        link: TunLinkEntry {
            flags: attached.flags,
            owner: link.owner,
            group: link.group,
            vnethdr: header as u32,
            sndbuf: send_buffer as u32,
        },
        ifindex: link.index,
        flags: link.flags,
        mtu: link.mtu,
        link_type: link.link_type.into(),
        address: Some(link.address).filter(|address| !address.is_empty()),
        tx_queue_len: link.tx_queue_len,
        master: link.master,
        carrier: link.carrier,
        offload,
        little_endian: tun::is_little_endian(file.fd).context("TUNGETVNETLE")?,
        addr_gen_mode: link.addr_gen_mode.map(u32::from),
        setup,
    })
}

fn warn_of_packets(ctx: &Context, file: &OpenFile) -> anyhow::Result<()> {
    if poll_state(file.fd).context("poll")?.readable {
        let (pid, name) = (file.task.pid, file.name());
        let message = format_args!("task {pid}: {name}: not kept: waiting packets");
        ctx.log.warn("dump/files/tunfile", message);
    }
    Ok(())
}
