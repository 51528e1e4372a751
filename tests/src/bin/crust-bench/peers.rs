//! `crust-bench peers`: every load for which CRIU 4.2 was measured, in one table. The dump kills, the
//! restore follows, the program says at the end that it is whole.
//!
//! CRIU's milliseconds are those of another day on a machine of the kind the project runs on: what
//! can be compared is the ratio to the limit beside them, which is measured in the same run, and the
//! processor time of our tools, which other work on the machine changes least.

use super::{
    BIG_MIB, fresh, median, own, quiet_dump, quiet_restore_with, range, statistic, touch_memory,
};
use anyhow::{Context, Result};
use crust_tests::{build::run, guest::Guest, proc_snapshot::tree, sandbox::Sandbox, tools::text};
use nix::sys::resource::{UsageWho, getrusage};
use std::{fs, path::Path, process::Command};

/// A load, with what CRIU needs to dump it, how long it is frozen, and what restoring takes.
pub struct Row {
    /// What it is called in the table.
    pub name: &'static str,
    /// The guest.
    pub guest: &'static str,
    /// Its arguments.
    pub arguments: &'static [&'static str],
    rounds: usize,
    /// Milliseconds; none where it was not measured.
    peer: Option<[f64; 3]>,
}

const fn row(
    name: &'static str,
    guest: &'static str,
    arguments: &'static [&'static str],
    peer: [f64; 3],
) -> Row {
    let rounds = 7;
    Row {
        name,
        guest,
        arguments,
        rounds,
        peer: Some(peer),
    }
}

/// The table.
pub const ROWS: &[Row] = &[
    row("1 MiB", "bigmem", &["1"], [42.0, 3.2, 38.0]),
    row(
        "100 children",
        "many",
        &["children", "100"],
        [226.0, 189.0, 142.0],
    ),
    row(
        "500 children",
        "many",
        &["children", "500"],
        [1056.0, 983.0, 635.0],
    ),
    row(
        "100 threads",
        "many",
        &["threads", "100"],
        [58.0, 19.0, 52.0],
    ),
    row(
        "1000 threads",
        "many",
        &["threads", "1000"],
        [304.0, 215.0, 331.0],
    ),
    row(
        "1000 files",
        "many_fds",
        &["files", "1000", "1"],
        [59.0, 28.0, 31.0],
    ),
    row(
        "10000 files",
        "many_fds",
        &["files", "10000", "1"],
        [297.0, 263.0, 81.0],
    ),
    row(
        "1000 pipes",
        "many_fds",
        &["pipes", "1000", "1"],
        [78.0, 45.0, 73.0],
    ),
    row("1000 mappings", "manymaps", &["1000"], [47.0, 13.0, 34.0]),
    row(
        "10000 mappings",
        "manymaps",
        &["10000"],
        [131.0, 103.0, 73.0],
    ),
    row(
        "1000 unix pairs",
        "many_fds",
        &["pairs", "1000", "1"],
        [97.0, 62.0, 62.0],
    ),
    row("20 tcp pairs", "tcp_many", &["20"], [280.0, 250.0, 1350.0]),
    Row {
        peer: None,
        ..row("1000 tcp pairs", "tcp_many", &["1000"], [0.0; 3])
    },
    Row {
        peer: None,
        ..row(
            "6 x 3000 files",
            "many_fds",
            &["files", "3000", "6"],
            [0.0; 3],
        )
    },
    Row {
        rounds: 5,
        ..row("1 GiB", "bigmem", &["1024"], [598.0, 569.0, 719.0])
    },
    Row {
        rounds: 3,
        ..row("4 GiB", "bigmem", &["4096"], [4090.0, 4040.0, 3960.0])
    },
];

/// The bound of every row with a peer: half of what it needs.
const BOUND: f64 = 0.5;

/// Prints the table.
pub fn measure(sandbox: &Sandbox) -> Result<()> {
    touch_memory(10 * BIG_MIB)?;
    println!("milliseconds, median [least..most]; of CRIU 4.2's, to be at most {BOUND:.2}");
    ROWS.iter().try_for_each(|row| measure_row(sandbox, row))
}

/// Times of one kind.
#[derive(Default)]
struct Times {
    wall: Vec<f64>,
    /// Processor time of the tool, without what it makes the tree do.
    processor: Vec<f64>,
}

fn measure_row(sandbox: &Sandbox, row: &Row) -> Result<()> {
    let guest = sandbox.start_with(row.guest, row.arguments)?;
    let (mut dump, mut frozen, mut restore) =
        (Times::default(), Times::default(), Times::default());
    let mut limits = Vec::new();
    for _ in 0..row.rounds {
        let images = fresh(sandbox, "peers")?;
        let tasks = tree(guest.pid)?;
        timed(&mut dump, || {
            quiet_dump(sandbox, &guest, &images, &["--tcp-established"])
        })?;
        frozen
            .wall
            .push(statistic(sandbox, &images, "frozen_time")? / 1e3);
        sandbox.reap(&tasks)?;
        timed(&mut restore, || {
            quiet_restore_with(sandbox, &images, &["--tcp-established"])
        })?;
        limits.extend(limit(sandbox, &guest, row)?);
        fs::remove_dir_all(&images)?;
    }
    let mut line = format!("{:<16}", row.name);
    let all = [("dump", dump), ("frozen", frozen), ("restore", restore)];
    for (at, (what, mut times)) in all.into_iter().enumerate() {
        let ms = median(&mut times.wall);
        line += &format!(" | {what} {ms:.1} {}", range(&times.wall));
        if let Some(peer) = row.peer.and_then(|peer| peer.get(at).copied()) {
            line += &format!(" = {:.2} of {peer:.0}", ms / peer);
        }
        if !times.processor.is_empty() {
            line += &format!(", cpu {:.0}", median(&mut times.processor));
        }
    }
    if !limits.is_empty() {
        line += &format!(" | limit {:.1} {}", median(&mut limits), range(&limits));
    }
    println!("{line}");
    // The verdict too: a fast restore that loses something is none.
    guest.expect_ok(sandbox)
}

/// Runs one of our tools and notes its times.
fn timed(times: &mut Times, tool: impl FnOnce() -> Result<f64>) -> Result<()> {
    let before = children_cpu()?;
    times.wall.push(tool()?);
    times.processor.push(children_cpu()? - before);
    Ok(())
}

/// Processor milliseconds of all children that were waited for.
pub fn children_cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let times = [usage.user_time(), usage.system_time()];
    let ms = times.map(|time| time.tv_sec() as f64 * 1e3 + time.tv_usec() as f64 / 1e3);
    Ok(ms.iter().sum())
}

/// What the machine needs at least for what the row is about, where that can be said: write(2) of
/// the memory, opens, forks, threads and mappings in a plain loop.
fn limit(sandbox: &Sandbox, guest: &Guest, row: &Row) -> Result<Option<f64>> {
    let (what, number) = match (row.guest, row.arguments) {
        ("bigmem", ["1024"]) => {
            let file = sandbox.dir("limits")?.join("bytes");
            let ms = own(&["write", text(&file)?])?.parse()?;
            fs::remove_file(&file)?;
            return Ok(Some(ms));
        }
        ("many", [kind, number]) => (*kind, *number),
        ("many_fds", ["files", number, "1"]) => ("files", *number),
        ("manymaps", [number]) => ("maps", *number),
        _ => return Ok(None),
    };
    let program = sandbox.install_guest("limits")?;
    let scratch = guest.out.parent().unwrap_or(Path::new("/"));
    let output = run(Command::new(program).arg(scratch).args([what, number]))?;
    let ms = String::from_utf8_lossy(&output).trim().parse();
    ms.map(Some).context("what limits printed")
}
