//! stats-restore: how long the restore took and how much memory it brought back. A service image,
//! written into the work directory.

use crate::plan::step::Phase;
use crust_image::checkpoint::Checkpoint;
use crust_image::pages::PageRun;
use crust_proto::criu::{RestoreStatsEntry, StatsEntry};
use std::time::Duration;

/// The entry. `phases` say when each ended, from the start of the execution.
pub fn encode_stats(checkpoint: &Checkpoint, phases: &[(Phase, Duration)]) -> StatsEntry {
    let ended = |wanted: Phase| {
        let found = phases.iter().rev().find(|(phase, _)| *phase <= wanted);
        found.map_or(Duration::ZERO, |(_, ended)| *ended)
    };
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    let forking = ended(Phase::Fork).saturating_sub(ended(Phase::Open));
    StatsEntry {
        dump: None,
        restore: Some(RestoreStatsEntry {
            // Pages are not compared: nothing that a parent has is read a second time.
            pages_compared: 0,
            pages_skipped_cow: 0,
            forking_time: micros(forking),
            restore_time: micros(ended(Phase::Commit)),
            pages_restored: Some(pages_of(checkpoint)),
        }),
    }
}

fn pages_of(checkpoint: &Checkpoint) -> u64 {
    let count = |runs: &[PageRun]| runs.iter().map(|run| run.nr_pages).sum::<u64>();
    let tasks = checkpoint
        .task_pages
        .values()
        .flatten()
        .map(|runs| count(runs))
        .sum::<u64>();
    let shmem = checkpoint
        .shmem_pages
        .values()
        .flatten()
        .map(|runs| count(runs))
        .sum::<u64>();
    tasks + shmem
}
