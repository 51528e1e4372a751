//! `crust-bench memory`: what options and families do to large memory, medians with images on
//! tmpfs, beside what the machine can do at that moment: write(2) of 1 GiB of one's own into a new
//! tmpfs file, and read(2) of it into new memory. Plain loads are in `peers`.

use super::{
    MIB, end, fresh, median, own, quiet_dump, quiet_restore, range, statistic, touch_memory,
};
use anyhow::{Context, Result};
use crust_tests::{
    cost::{bytes_below, proportional_kib},
    guest::Guest,
    proc_snapshot::tree,
    sandbox::Sandbox,
    tools::text,
};
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;

/// Runs all.
pub fn measure(sandbox: &Sandbox) -> Result<()> {
    touch_memory(10 * 1024)?;
    limits(sandbox)?;
    short_freezes(sandbox)?;
    family(sandbox)
}

/// What 1 GiB costs at least.
fn limits(sandbox: &Sandbox) -> Result<()> {
    let file = sandbox.dir("limits")?.join("bytes");
    let (mut writes, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        writes.push(own(&["write", text(&file)?])?.parse()?);
        reads.push(own(&["read", text(&file)?])?.parse()?);
    }
    println!(
        "limits, 1 GiB: write(2) to tmpfs {:.0} ms {}, read(2) into new memory {:.0} ms {}",
        median(&mut writes),
        range(&writes),
        median(&mut reads),
        range(&reads)
    );
    Ok(())
}

fn dump_and_kill(sandbox: &Sandbox, guest: &Guest, images: &Path) -> Result<f64> {
    let tasks = tree(guest.pid)?;
    let took = quiet_dump(sandbox, guest, images, &[])?;
    sandbox.reap(&tasks)?;
    Ok(took)
}

/// How long the guest itself takes to fork, in milliseconds; `nth` counts from 1.
fn own_fork(sandbox: &Sandbox, guest: &Guest, nth: usize) -> Result<f64> {
    guest.signal(Signal::SIGUSR1)?;
    let start = format!("fork {nth}: ");
    let told = |text: &str| text.ends_with('\n') && text.contains(&start);
    guest.wait_until(sandbox, "how long it took to fork", told)?;
    let lines = guest.lines()?;
    let line = lines.iter().find_map(|line| line.strip_prefix(&start));
    Ok(line.context("no line of the fork")?.parse::<f64>()? / 1e3)
}

/// The freeze of 1 GiB: as a whole, when most was copied before, and when it is copied after; beside
/// fork(2) of the same memory, which a copy-on-write copy is at least.
fn short_freezes(sandbox: &Sandbox) -> Result<()> {
    const WAYS: [&[&str]; 3] = [&[], &["--pre-copy", "3"], &["--snapshot"]];
    let guest = sandbox.start_with("bigmem", &["1024"])?;
    let mut times: [(Vec<f64>, Vec<f64>); WAYS.len()] = Default::default();
    let mut forks = Vec::new();
    // In turn: the machine changes while it is measured.
    for nth in 1..=5 {
        forks.push(own_fork(sandbox, &guest, nth)?);
        for (way, (frozen, walls)) in WAYS.iter().zip(&mut times) {
            let images = fresh(sandbox, "rounds")?;
            let options = [&["--leave-running"], *way].concat();
            walls.push(quiet_dump(sandbox, &guest, &images, &options)?);
            frozen.push(statistic(sandbox, &images, "frozen_time")? / 1e3);
            fs::remove_dir_all(&images)?;
        }
    }
    let fork = median(&mut forks);
    println!("1 GiB, fork(2) alone: {fork:.1} ms {}", range(&forks));
    for (way, (frozen, walls)) in WAYS.iter().zip(&mut times) {
        println!(
            "1 GiB left running {}: frozen {:.1} ms, {:.1} forks {}, wall {:.0} ms {}",
            way.join(" "),
            median(frozen),
            median(frozen) / fork,
            range(frozen),
            median(walls),
            range(walls)
        );
    }
    end(sandbox, &guest)
}

/// 200 MiB shared by a parent and 20 children.
fn family(sandbox: &Sandbox) -> Result<()> {
    let guest = sandbox.start_with("family", &["200", "20"])?;
    let before = proportional_kib(guest.pid)?;
    let images = fresh(sandbox, "family")?;
    let dump = dump_and_kill(sandbox, &guest, &images)?;
    let frozen = statistic(sandbox, &images, "frozen_time")? / 1e3;
    let bytes = bytes_below(&images)?;
    let restore = quiet_restore(sandbox, &images)?;
    let after = proportional_kib(guest.pid)?;
    println!(
        "200 MiB shared by 21 tasks: dump {dump:.0} ms, frozen {frozen:.0} ms, restore {restore:.0} \
         ms, images {} MiB, memory {} MiB before and {} MiB after",
        bytes / MIB as u64,
        before / 1024,
        after / 1024
    );
    guest.expect_ok(sandbox)
}
