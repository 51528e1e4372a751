//! inventory.img: what kind of set of images this is. It is written last: a directory without it
//! is no dump.

use anyhow::{Context, Result};
use crust_cli::options::Options;
use crust_proto::criu::{InventoryEntry, Lsmtype, PluginsEntry, TaskKobjIdsEntry};
use nix::time::ClockId;

/// The set of images version 1.1 has the number 2.
const IMG_VERSION: u32 = 2;

/// The inventory of a dump. `own` are the dumper's own objects, `cg_set` its cgroup set, `run_id`
/// what [`run_id`] gave.
pub fn encode_inventory(
    options: &Options,
    own: TaskKobjIdsEntry,
    cg_set: u32,
    run_id: &RunId,
) -> Result<InventoryEntry> {
    Ok(InventoryEntry {
        img_version: IMG_VERSION,
        fdinfo_per_id: Some(true),
        root_ids: Some(own),
        ns_per_id: Some(true),
        root_cg_set: Some(cg_set),
        lsmtype: Some(Lsmtype::NoLsm.into()),
        network_lock_method: Some(options.network_lock as u32),
        // No plugin took part; a missing list would mean that all did.
        plugins_entry: Some(PluginsEntry::default()),
        dump_uptime: options.tracks_memory().then(uptime).transpose()?,
        dump_criu_run_id: Some(run_id.0.clone().into_bytes()),
        tcp_close: options.tcp_close.then_some(true),
        ..InventoryEntry::default()
    })
}

/// The name of a dump that no other has: a uuid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunId(pub String);

impl RunId {
    /// A new one.
    pub fn new() -> Result<RunId> {
        const FILE: &str = "/proc/sys/kernel/random/uuid";
        let id = std::fs::read_to_string(FILE).with_context(|| format!("read {FILE}"))?;
        Ok(RunId(id.trim_end().to_owned()))
    }
}

/// Microseconds since the boot. The peer compares it with the start of a task in the next dump of
/// a chain: one started later is another task with the pid.
fn uptime() -> Result<u64> {
    let time = crate::timens::now(ClockId::CLOCK_BOOTTIME, 0)?;
    Ok(time.tv_sec * 1_000_000 + time.tv_nsec / 1000)
}
