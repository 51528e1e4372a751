//! `crust-bench descriptors`: processes with many files, pipes and unix sockets, beside what CRIU
//! 4.2 took for as many on the kind of machine the project runs on.

use super::{ROUNDS, fresh, median, quiet_dump, quiet_restore, statistic};
use anyhow::Result;
use crust_tests::{proc_snapshot::tree, sandbox::Sandbox};
use std::fs;

/// A kind of descriptors, how many in each of how many processes, and what CRIU took to dump and
/// restore them, in milliseconds (frozen, wall, restore), where that was measured.
type Row = (&'static str, usize, usize, Option<(f64, f64, f64)>);

const ROWS: &[Row] = &[
    ("files", 1000, 1, Some((28.0, 59.0, 31.0))),
    ("files", 10_000, 1, Some((263.0, 297.0, 81.0))),
    ("pipes", 1000, 1, Some((45.0, 78.0, 73.0))),
    ("pairs", 1000, 1, Some((62.0, 97.0, 62.0))),
    ("files", 16_700, 6, None),
];

/// Prints all rows.
pub fn measure(sandbox: &Sandbox) -> Result<()> {
    ROWS.iter().try_for_each(|row| measure_row(sandbox, row))
}

fn measure_row(sandbox: &Sandbox, (kind, count, tasks, peer): &Row) -> Result<()> {
    let (count_text, tasks_text) = (count.to_string(), tasks.to_string());
    let guest = sandbox.start_with("many_fds", &[*kind, &count_text, &tasks_text])?;
    let (mut frozen, mut walls, mut restores) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let images = fresh(sandbox, "many")?;
        let pids = tree(guest.pid)?;
        walls.push(quiet_dump(sandbox, &guest, &images, &[])?);
        frozen.push(statistic(sandbox, &images, "frozen_time")? / 1e3);
        sandbox.reap(&pids)?;
        restores.push(quiet_restore(sandbox, &images)?);
        fs::remove_dir_all(&images)?;
    }
    guest.expect_ok(sandbox)?;
    let [freeze, wall, restore] =
        [&mut frozen, &mut walls, &mut restores].map(|times| median(times));
    let name = format!("{tasks} x {count} {kind}");
    println!("{name}: frozen {freeze:.1} ms, dump {wall:.1} ms, restore {restore:.1} ms");
    if let Some((peer_freeze, peer_wall, peer_restore)) = peer {
        let (freeze, wall) = (freeze / peer_freeze, wall / peer_wall);
        let restore = restore / peer_restore;
        println!(
            "{name}, of CRIU 4.2: frozen {freeze:.2}, dump {wall:.2}, restore {restore:.2} (bound 0.50)"
        );
    }
    Ok(())
}
