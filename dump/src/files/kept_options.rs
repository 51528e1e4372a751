//! The options of a socket that have no field of CRIU's, as entries of our own.

use super::FileTable;
use crust_process::kept_options::{Defaults, congestion};
use crust_proto::criu::CrustOptionEntry;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;

/// Family, type and protocol.
pub type Kind = (i32, i32, i32);

/// What new sockets of each kind answered.
#[derive(Debug, Default)]
pub struct News(HashMap<Kind, Defaults>);

/// Those that are not as on a new socket.
pub fn collect(table: &mut FileTable, socket: BorrowedFd, kind: Kind) -> Vec<CrustOptionEntry> {
    let differing = defaults(table, kind).differing(socket).into_iter();
    differing
        .map(|(kept, value)| CrustOptionEntry {
            level: kept.level,
            name: kept.name,
            value,
        })
        .collect()
}

/// TCP_CONGESTION, if it is not that of a new socket.
pub fn collect_congestion(
    table: &mut FileTable,
    socket: BorrowedFd,
    kind: Kind,
) -> Option<Vec<u8>> {
    let name = congestion(socket);
    (name != defaults(table, kind).congestion).then_some(name)
}

fn defaults(table: &mut FileTable, kind: Kind) -> &Defaults {
    let (family, sock_type, protocol) = kind;
    let new = || Defaults::of_new(family, sock_type, protocol);
    table.new_sockets.0.entry(kind).or_insert_with(new)
}
