//! The network lock of a restore. The dump has left one, if it was on this host: it goes when all
//! is restored and before the connections speak again; after a failure it stays for the next try.
//! Where there is none we hold one of our own meanwhile: the dump may have been on another host,
//! and an answer to a connection that is not there yet would end it. Ours goes with us.

use anyhow::Result;
use crust_cli::log::Log;
use crust_cli::options::{NetworkLock, Options};
use crust_image::checkpoint::Checkpoint;
use crust_image::tcp_state::is_connected;
use crust_process::iptables;
use crust_process::netfilter::{Ends, HeldLock, exists, hold, remove};
use crust_proto::criu::InetSkEntry;
use nix::libc;
use std::net::{IpAddr, SocketAddr};

/// Values of `network_lock_method`.
const BY_IPTABLES: u32 = NetworkLock::Iptables as u32;

/// The lock of this restore.
#[derive(Debug)]
pub struct Locked {
    held: Option<HeldLock>,
    connections: Vec<Ends>,
    /// The table that a dump leaves by nf_tables.
    table: Option<String>,
    by_iptables: bool,
}

impl Locked {
    /// Locks the connections of the images, if they come back.
    pub fn lock(options: &Options, checkpoint: &Checkpoint, log: &Log) -> Locked {
        let inventory = &checkpoint.inventory;
        let run_id = inventory.dump_criu_run_id.as_deref();
        let connections = connections(checkpoint);
        let mut locked = Locked {
            held: None,
            table: run_id.map(|id| format!("CRIU-{}", String::from_utf8_lossy(id))),
            by_iptables: inventory.network_lock_method == Some(BY_IPTABLES),
            connections,
        };
        if locked.connections.is_empty() || options.network_lock == NetworkLock::Skip {
            return locked;
        }
        let name = locked.table.as_deref().unwrap_or("CRIU");
        if exists(name) == Ok(true) {
            return locked;
        }
        match hold(&format!("{name}-restore"), &locked.connections) {
            Ok(held) => locked.held = Some(held),
            // Connections without an end in flight come back without it.
            Err(error) => log.warn("restore/network", format_args!("{error}")),
        }
        locked
    }

    /// Unlocks: ours and the dump's.
    pub fn unlock(self, log: &Log) -> Result<()> {
        if self.connections.is_empty() {
            return Ok(());
        }
        if let Some(table) = &self.table
            && remove(table)?
        {
            log.info(format_args!("Removed the network lock {table} of the dump"));
        }
        // Rules that are not there, of a dump elsewhere, cannot be told from rules that cannot be
        // deleted.
        if self.by_iptables
            && let Err(error) = iptables::unlock(&self.connections)
        {
            let message = format_args!("the network may still be locked by iptables: {error}");
            log.warn("restore/network", message);
        }
        drop(self.held);
        Ok(())
    }
}

/// The ends of each TCP connection of the images.
fn connections(checkpoint: &Checkpoint) -> Vec<Ends> {
    let sockets = checkpoint
        .files
        .values()
        .filter_map(|file| file.isk.as_deref());
    let is_tcp = |isk: &&InetSkEntry| isk.proto == libc::IPPROTO_TCP as u32;
    sockets
        .filter(is_tcp)
        .filter(|isk| is_connected(isk.state))
        .filter_map(|isk| {
            Some(Ends {
                local: end(&isk.src_addr, isk.src_port)?,
                remote: end(&isk.dst_addr, isk.dst_port)?,
            })
        })
        .collect()
}

fn end(words: &[u32], port: u32) -> Option<SocketAddr> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let ip = match bytes.len() {
        4 => IpAddr::from(*bytes.first_chunk::<4>()?),
        16 => IpAddr::from(*bytes.first_chunk::<16>()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}
