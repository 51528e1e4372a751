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
use crust_process::iptables::Undoing;
use crust_process::netfilter::{Ends, HeldLock, exists, hold, leave_locked, left, making, remove};
use crust_process::steps::step;
use crust_process::survivor::Survivor;
use crust_proto::criu::InetSkEntry;
use nix::libc;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

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

    /// Unlocks: ours, the dump's, and what other dumps have left on these connections. If we die
    /// before the survivor settles it locks again.
    pub fn unlock(self, survivor: Option<&Survivor>, log: &Log) -> Result<Unlocked> {
        let mut unlocked = Unlocked::default();
        if self.connections.is_empty() {
            return Ok(unlocked);
        }
        if let Some(table) = &self.table
            && exists(table)?
        {
            unlocked.note_table(survivor, table, &self.connections)?;
            step();
            remove(table)?;
            log.info(format_args!("Removed the network lock {table} of the dump"));
        }
        // Rules that are not there, of a dump elsewhere, cannot be told from rules that cannot be
        // deleted.
        if self.by_iptables {
            unlocked.note_rules(survivor, &self.connections);
            if let Err(error) = iptables::unlock(&self.connections, unlocked.undoing.as_ref()) {
                let message = format_args!("the network may still be locked by iptables: {error}");
                log.warn("restore/network", message);
                unlocked.had_rules = false;
            }
        }
        release_left(&self.connections, log);
        drop(self.held);
        unlocked.connections = self.connections;
        Ok(unlocked)
    }
}

/// A tree that was left stopped and dumped once more is locked by both dumps, and so is a
/// connection of one's own whose old images were given up.
fn release_left(connections: &[Ends], log: &Log) {
    let locks = left::find(connections).unwrap_or_else(|error| {
        // Without nf_tables there are none.
        log.debug(format_args!("{error}"));
        Vec::new()
    });
    for lock in locks {
        let table = &lock.table;
        match lock.release() {
            Ok(()) => log.info(format_args!(
                "Unlocked connections that the network lock {table} of another dump held"
            )),
            Err(error) => log.warn(
                "restore/network",
                format_args!(
                    "{error}: connections stay locked until nft delete table inet {table}"
                ),
            ),
        }
    }
}

/// The network is unlocked, and is locked again if the restore fails after all.
#[derive(Debug, Default)]
pub struct Unlocked {
    connections: Vec<Ends>,
    /// A table that is gone, and the survivor's socket.
    table: Option<(String, Option<OwnedFd>)>,
    /// Rules are gone.
    had_rules: bool,
    /// What the survivor has for them.
    undoing: Option<Undoing>,
}

impl Unlocked {
    fn note_table(
        &mut self,
        survivor: Option<&Survivor>,
        table: &str,
        connections: &[Ends],
    ) -> Result<()> {
        let mut kept = None;
        if let Some(survivor) = survivor {
            let (socket, message) = making(table, connections)?;
            survivor.message(socket.as_fd(), &message)?;
            kept = Some(socket);
        }
        self.table = Some((table.to_owned(), kept));
        Ok(())
    }

    fn note_rules(&mut self, survivor: Option<&Survivor>, connections: &[Ends]) {
        let undoing = survivor.map(|survivor| iptables::note_lock(survivor, connections));
        self.undoing = undoing.and_then(Result::ok);
        self.had_rules = true;
    }

    /// It stays unlocked: the tree lives.
    pub fn keep(mut self) {
        (self.table, self.had_rules) = (None, false);
    }
}

impl Drop for Unlocked {
    /// The next restore of the images finds the peers waiting. That this one has failed is told
    /// anyway.
    fn drop(&mut self) {
        if let Some((table, _)) = &self.table {
            let _ = leave_locked(table, &self.connections);
        }
        if self.had_rules {
            let _ = iptables::lock_again(&self.connections);
        }
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
