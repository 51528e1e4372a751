//! stats-dump: how long the dump took and how much it wrote. A service image, written into the
//! work directory.

use crust_proto::criu::{DumpStatsEntry, StatsEntry};
use std::time::Duration;

/// The numbers of a dump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// From the first seize to the last stop.
    pub freezing: Duration,
    /// From the first stop to the thaw.
    pub frozen: Duration,
    /// Finding and copying memory.
    pub memory: Duration,
    /// Pages of tasks found and written.
    pub pages: u64,
    /// Pages left to the dump before.
    pub in_parent: u64,
    /// Pages written once for families of tasks.
    pub shared: u64,
    /// Pages of shared memory.
    pub shmem_pages: u64,
}

/// The entry of stats-dump. Finding and copying are one thing here, so memdump and memwrite are
/// the same; what only the peer's machinery has (pipes, laziness) is zero.
pub fn encode_stats(stats: &Stats) -> StatsEntry {
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    StatsEntry {
        dump: Some(DumpStatsEntry {
            freezing_time: micros(stats.freezing),
            frozen_time: micros(stats.frozen),
            memdump_time: micros(stats.memory),
            memwrite_time: micros(stats.memory),
            pages_scanned: stats.pages + stats.in_parent,
            pages_skipped_parent: stats.in_parent,
            pages_written: stats.pages + stats.shared,
            irmap_resolve: Some(0),
            pages_lazy: 0,
            page_pipes: Some(0),
            page_pipe_bufs: Some(0),
            shpages_scanned: Some(stats.shmem_pages),
            shpages_skipped_parent: Some(0),
            shpages_written: Some(stats.shmem_pages),
        }),
        restore: None,
    }
}
