//! The network lock of a dump: from before connections are read until the tree goes on, or, if it
//! is killed, until the restore. How it is done, and why it cannot be left over while the tree
//! lives, is told in crust_process::netfilter.

use crate::context::Context;
use crate::files::FileTable;
use crate::inventory::RunId;
use anyhow::{Context as _, Result};
use crust_cli::options::NetworkLock;
use crust_process::iptables;
use crust_process::netfilter::{Ends, HeldLock, hold, leave_locked, left, removal};
use crust_process::survivor::Survivor;
use std::os::fd::{AsFd, OwnedFd};

/// The locked network.
#[derive(Debug)]
pub struct Locked {
    connections: Vec<Ends>,
    /// The name of a table that stays.
    table: String,
    by: By,
}

#[derive(Debug)]
enum By {
    Nobody,
    Table(HeldLock),
    Iptables(iptables::Rules),
}

impl Locked {
    /// Locks the connections of the tree out. `run_id` names this dump.
    pub fn lock(ctx: &Context, files: &FileTable, run_id: &RunId) -> Result<Locked> {
        let connections = files.connections();
        let table = format!("CRIU-{}", run_id.0);
        tell_of_left(ctx, &connections);
        let by = match ctx.options.network_lock {
            _ if connections.is_empty() => By::Nobody,
            NetworkLock::Skip => By::Nobody,
            NetworkLock::Nftables => {
                let held = hold(&format!("{table}-dump"), &connections);
                let held = held.context(
                    "lock the network, which takes CAP_NET_ADMIN (--network-lock iptables or skip \
                     needs no nf_tables)",
                )?;
                By::Table(held)
            }
            NetworkLock::Iptables => {
                let rules = iptables::lock(&connections);
                By::Iptables(rules.context("lock the network")?)
            }
        };
        Ok(Locked {
            connections,
            table,
            by,
        })
    }

    /// Makes the lock one that stays when we are gone, if the survivor settles.
    pub fn leave(self, survivor: &Survivor) -> Result<Left> {
        match self.by {
            By::Nobody => Ok(Left::Nothing),
            By::Iptables(rules) => {
                let undoing = rules.tell(survivor)?;
                Ok(Left::Iptables {
                    rules,
                    _undoing: undoing,
                })
            }
            // Both are in force for a moment.
            By::Table(held) => {
                let (socket, message) = removal(&self.table)?;
                survivor.message(socket.as_fd(), &message)?;
                leave_locked(&self.table, &self.connections).context("leave the network locked")?;
                drop(held);
                Ok(Left::Table {
                    name: self.table,
                    _socket: socket,
                })
            }
        }
    }
}

/// Connections that are locked already wait for the restore of other images. That is not ours to
/// end, but if this tree goes on its connections are dumb.
fn tell_of_left(ctx: &Context, connections: &[Ends]) {
    if connections.is_empty() {
        return;
    }
    match left::find(connections) {
        Ok(locks) => {
            for lock in locks {
                let table = lock.table;
                let message = format_args!(
                    "connections of the tree are locked by the table inet {table} that another dump \
                     has left (nft delete table inet {table} removes it)"
                );
                ctx.log.warn("dump/network", message);
            }
        }
        // Without nf_tables there are none.
        Err(error) => ctx.log.debug(format_args!("{error}")),
    }
}

/// A lock that is to stay.
#[derive(Debug)]
pub enum Left {
    /// None.
    Nothing,
    /// Rules that we would take away, and by what the survivor would.
    Iptables {
        rules: iptables::Rules,
        _undoing: iptables::Undoing,
    },
    /// A table of nobody's, with the socket by which the survivor would remove it.
    Table { name: String, _socket: OwnedFd },
}

impl Left {
    /// It stays.
    pub fn keep(self) {
        if let Left::Iptables { rules, .. } = self {
            rules.leave();
        }
    }

    /// How the lock is removed by hand.
    pub fn removal(&self) -> Option<String> {
        match self {
            Left::Nothing => None,
            Left::Iptables { .. } => {
                Some("iptables -D for each rule in iptables -S with the mark 0xc114".to_owned())
            }
            Left::Table { name, .. } => Some(format!("nft delete table inet {name}")),
        }
    }
}
