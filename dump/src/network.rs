//! The network lock of a dump: from before connections are read until the tree goes on, or, if it
//! is killed, until the restore. How it is done, and why it cannot be left over while the tree
//! lives, is told in crust_process::netfilter.

use crate::context::Context;
use crate::files::FileTable;
use crate::inventory::RunId;
use anyhow::{Context as _, Result};
use crust_cli::options::NetworkLock;
use crust_process::iptables;
use crust_process::netfilter::{Ends, HeldLock, hold, leave_locked, removal};
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
        let by = match ctx.options.network_lock {
            _ if connections.is_empty() => By::Nobody,
            NetworkLock::Skip => By::Nobody,
            NetworkLock::Nftables => {
                let held = hold(&format!("{table}-dump"), &connections);
                let held = held.context(
                    "lock the network (--network-lock iptables or skip needs no nf_tables)",
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
            By::Iptables(rules) => Ok(Left::Iptables(rules)),
            // Both are in force for a moment.
            By::Table(held) => {
                let (socket, message) = removal(&self.table)?;
                survivor.message(socket.as_fd(), &message)?;
                leave_locked(&self.table, &self.connections).context("leave the network locked")?;
                drop(held);
                Ok(Left::Table { _socket: socket })
            }
        }
    }
}

/// A lock that is to stay.
#[derive(Debug)]
pub enum Left {
    /// None.
    Nothing,
    /// Rules that we would take away.
    Iptables(iptables::Rules),
    /// A table of nobody's, with the socket by which the survivor would remove it.
    Table { _socket: OwnedFd },
}

impl Left {
    /// It stays.
    pub fn keep(self) {
        if let Left::Iptables(rules) = self {
            rules.leave();
        }
    }
}
