//! The multicast groups that a datagram socket is in. The kernel lists those of the namespace; each
//! socket is asked which are its own. Refused: one that hears only some of a group's senders.

use super::{FileTable, OpenFile, Problem, RoomResult};
use anyhow::Context as _;
use crust_process::multicast::{Group, Membership, membership, parse_igmp, parse_igmp6};
use crust_proto::criu::CrustGroupEntry;
use std::fs;

/// The groups that anybody in the net namespace is in; read once.
pub type Listed = Option<Vec<Group>>;

/// The groups of a socket.
pub fn collect(table: &mut FileTable, file: &OpenFile) -> RoomResult<Vec<CrustGroupEntry>> {
    if table.groups.is_none() {
        table.groups = Some(listed()?);
    }
    let mut own = Vec::new();
    for group in table.groups.iter().flatten() {
        match membership(file.fd, group).context("MCAST_MSFILTER")? {
            Membership::No => {}
            Membership::Whole => own.push(CrustGroupEntry {
                ifindex: group.ifindex,
                group: group.address.clone(),
            }),
            Membership::Filtered => {
                let what = "hears only some senders of a multicast group, which is not carried";
                return Err(Problem::refused(what));
            }
        }
    }
    Ok(own)
}

/// A kernel without IPv6 or without multicast has no such file.
fn listed() -> anyhow::Result<Vec<Group>> {
    let read = |path: &str| match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        text => text.with_context(|| format!("read {path}")),
    };
    let mut groups = parse_igmp(&read("/proc/self/net/igmp")?);
    groups.extend(parse_igmp6(&read("/proc/self/net/igmp6")?));
    Ok(groups)
}
