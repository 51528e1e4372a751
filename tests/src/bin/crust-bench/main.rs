//! crust-bench: times of crust-dump and crust-restore as ratios to limits measured in the same
//! run, because machines differ. `cargo run --release -p crust-tests --bin crust-bench`.
//!
//! - Dump of 1 GiB of random 4 KiB pages to tmpfs, left running: the frozen time (stats-dump)
//!   beside write(2) of as many bytes into a new tmpfs file, interleaved, after the memory of the
//!   machine was touched once: freed memory goes back to the host of a virtual machine, and the
//!   first touch of it would be what is measured.
//! - The largest resident size of crust-dump at that, beside its size when it dumps 1 MiB.
//! - A sleeping single process: wall time of dump and of restore.
//!
//! `crust-bench peers` measures every load for which CRIU was measured, in one table.
//!
//! `crust-bench beside DIR [ROW]` compares with another build of the tools, row by row of `peers`.
//!
//! `crust-bench crit` measures crit instead (`crit_bench`).

mod beside;
mod memory;
mod peers;

use anyhow::{Context, Result, ensure};
use crust_tests::{
    build::run,
    crit_bench,
    guest::Guest,
    proc_snapshot::tree,
    sandbox::{self, Sandbox},
    tools::text,
};
use nix::sys::resource::{UsageWho, getrusage};
use std::{
    env,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

const MIB: usize = 1 << 20;
const BIG_MIB: usize = 1024;
const ROUNDS: usize = 7;
const SMALL_ROUNDS: usize = 31;
fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["write", path] => write_own_memory(Path::new(path)),
        ["read", path] => read_into_new_memory(Path::new(path)),
        ["peers"] => sandbox::run_program(0, peers::measure),
        ["beside", dir] => {
            sandbox::run_program(0, |sandbox| beside::measure(sandbox, Path::new(dir), ""))
        }
        ["beside", dir, row] => {
            sandbox::run_program(0, |sandbox| beside::measure(sandbox, Path::new(dir), row))
        }
        ["memory"] => sandbox::run_program(0, memory::measure),
        ["touch", mib] => touch(mib.parse().context("number of MiB")?),
        ["max-rss", script] => crit_bench::print_max_rss(script),
        ["crit"] => crit_bench::measure(),
        [] => sandbox::run_program(0, measure),
        _ => anyhow::bail!("usage: crust-bench [beside DIR [ROW]|crit|memory|peers]"),
    }
}

/// Touches this many MiB of memory once and gives them back.
fn touch(mib: usize) -> Result<()> {
    let memory = vec![1u8; mib * MIB];
    ensure!(memory.iter().step_by(4096).all(|byte| *byte == 1));
    Ok(())
}

/// Writes 1 GiB of own, touched, random memory to a new file and prints the milliseconds.
fn write_own_memory(path: &Path) -> Result<()> {
    let mut memory = vec![0u8; BIG_MIB * MIB];
    let mut state = 88_172_645_463_325_252_u64;
    for word in memory.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let started = Instant::now();
    for chunk in memory.chunks(4 * MIB) {
        file.write_all(chunk)?;
    }
    println!("{}", started.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Reads what `write` has left into memory that was never touched, prints the milliseconds and
/// removes it.
fn read_into_new_memory(path: &Path) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let started = Instant::now();
    let mut memory = Vec::with_capacity(BIG_MIB * MIB);
    file.read_to_end(&mut memory)?;
    println!("{}", started.elapsed().as_secs_f64() * 1e3);
    ensure!(memory.len() == BIG_MIB * MIB);
    fs::remove_file(path)?;
    Ok(())
}

/// The wall time of a run that succeeds, in milliseconds.
fn wall_of(command: &mut Command) -> Result<f64> {
    let started = Instant::now();
    run(command)?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

/// Touches memory once in a process of its own: see the head.
fn touch_memory(mib: usize) -> Result<()> {
    own(&["touch", &mib.to_string()]).map(drop)
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn range(times: &[f64]) -> String {
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let most = times.iter().copied().fold(0.0, f64::max);
    format!("[{least:.2}..{most:.2}]")
}

/// A field of stats-dump.
fn statistic(sandbox: &Sandbox, images: &Path, name: &str) -> Result<f64> {
    let stats = images.join("stats-dump");
    let mut decode = Command::new(sandbox.binary("crit"));
    let json = run(decode.args(["decode", "-i", text(&stats)?]))?;
    let json: serde_json::Value = serde_json::from_slice(&json)?;
    let value = json.pointer(&format!("/entries/0/dump/{name}"));
    value
        .and_then(serde_json::Value::as_f64)
        .with_context(|| format!("stats-dump has no {name}"))
}

/// The largest resident size in KiB of any child that was waited for.
fn largest_child_kib() -> Result<i64> {
    Ok(getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss())
}

fn own(arguments: &[&str]) -> Result<String> {
    let output = run(Command::new(env::current_exe()?).args(arguments))?;
    Ok(String::from_utf8_lossy(&output).trim().to_owned())
}

/// A fresh images directory on tmpfs.
fn fresh(sandbox: &Sandbox, name: &str) -> Result<PathBuf> {
    let dir = sandbox.images(name)?;
    fs::remove_dir_all(&dir)?;
    sandbox.images(name)
}

fn quiet_dump(sandbox: &Sandbox, guest: &Guest, images: &Path, more: &[&str]) -> Result<f64> {
    let pid = guest.pid.to_string();
    let mut command = Command::new(sandbox.binary("crust-dump"));
    command.args(["-t", &pid, "-D", text(images)?]).args(more);
    wall_of(&mut command)
}

fn measure(sandbox: &Sandbox) -> Result<()> {
    // First: the largest size of a child only grows, and other children come below.
    let small_kib = resident_size(sandbox, 1)?;
    let big_kib = resident_size(sandbox, BIG_MIB)?;
    println!(
        "memory of crust-dump: {small_kib} KiB for 1 MiB, {big_kib} KiB for {BIG_MIB} MiB: \
         {:.1} MiB more (bound 64)",
        (big_kib - small_kib) as f64 / 1024.0
    );
    sleeping_process(sandbox)?;
    big_dump(sandbox)
}

/// Must run in growing order: what is known is the largest so far.
fn resident_size(sandbox: &Sandbox, mib: usize) -> Result<i64> {
    let guest = sandbox.start_with("bigmem", &[&mib.to_string()])?;
    let images = fresh(sandbox, "resident")?;
    quiet_dump(sandbox, &guest, &images, &["--leave-running"])?;
    let largest = largest_child_kib()?;
    fs::remove_dir_all(&images)?;
    end(sandbox, &guest)?;
    Ok(largest)
}

fn end(sandbox: &Sandbox, guest: &Guest) -> Result<()> {
    let pids = tree(guest.pid)?;
    guest.signal(nix::sys::signal::Signal::SIGKILL)?;
    sandbox.reap(&pids)
}

fn big_dump(sandbox: &Sandbox) -> Result<()> {
    touch_memory(3 * BIG_MIB)?;
    let guest = sandbox.start_with("bigmem", &[&BIG_MIB.to_string()])?;
    let scratch = sandbox.dir("write")?.join("bytes");
    let (mut writes, mut frozen, mut walls) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        writes.push(own(&["write", text(&scratch)?])?.parse()?);
        fs::remove_file(&scratch)?;
        let images = fresh(sandbox, "big")?;
        walls.push(quiet_dump(sandbox, &guest, &images, &["--leave-running"])?);
        frozen.push(statistic(sandbox, &images, "frozen_time")? / 1e3);
        fs::remove_dir_all(&images)?;
    }
    let (write, freeze, wall) = (median(&mut writes), median(&mut frozen), median(&mut walls));
    println!(
        "write(2) of {BIG_MIB} MiB to tmpfs: {write:.0} ms {}",
        range(&writes)
    );
    println!(
        "dump of {BIG_MIB} MiB to tmpfs: frozen {freeze:.0} ms {}, wall {wall:.0} ms {}",
        range(&frozen),
        range(&walls)
    );
    println!("frozen / write(2) = {:.2} (bound 1.30)", freeze / write);
    end(sandbox, &guest)
}

fn quiet_restore(sandbox: &Sandbox, images: &Path) -> Result<f64> {
    quiet_restore_with(sandbox, images, &[])
}

fn quiet_restore_with(sandbox: &Sandbox, images: &Path, more: &[&str]) -> Result<f64> {
    let mut command = Command::new(sandbox.binary("crust-restore"));
    command.args(["-d", "-D", text(images)?]).args(more);
    wall_of(&mut command)
}

fn sleeping_process(sandbox: &Sandbox) -> Result<()> {
    let guest = sandbox.start("loop")?;
    let (mut dumps, mut restores) = (Vec::new(), Vec::new());
    for _ in 0..SMALL_ROUNDS {
        let images = fresh(sandbox, "small")?;
        dumps.push(quiet_dump(sandbox, &guest, &images, &[])?);
        sandbox.reap(&[guest.pid])?;
        restores.push(quiet_restore(sandbox, &images)?);
    }
    guest.expect_ok(sandbox)?;
    let (dump, restore) = (median(&mut dumps), median(&mut restores));
    println!(
        "sleeping process, dump: {dump:.2} ms {} (bound 10)",
        range(&dumps)
    );
    println!(
        "sleeping process, restore: {restore:.2} ms {} (bound 10)",
        range(&restores)
    );
    Ok(())
}
