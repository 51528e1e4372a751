//! `crust-bench beside DIR [ROW]`: our tools beside those of another build (its directory of
//! binaries), turn by turn over the same tree, for the rows of `peers` whose names begin with ROW.
//!
//! What is compared is processor time, which other work on the machine changes least: that of the
//! tool, and of a restore also that of the tasks it makes (schedstat), which do much of its work
//! themselves. The least of all rounds stands beside the median.

use super::peers::{ROWS, Row, children_cpu};
use super::{fresh, median};
use anyhow::{Context, Result};
use crust_tests::{build::run, proc_snapshot::tree, sandbox::Sandbox, tools::text};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

const ROUNDS: usize = 9;

/// Milliseconds of one build: processor time and wall time of each of its runs.
#[derive(Default)]
struct Runs {
    dump: Vec<[f64; 2]>,
    restore: Vec<[f64; 2]>,
}

/// Prints a line for each row and kind of time.
pub fn measure(sandbox: &Sandbox, other: &Path, name: &str) -> Result<()> {
    let other = fs::canonicalize(other).with_context(|| format!("{}", other.display()))?;
    println!("processor and wall milliseconds, median (least): ours, theirs, ratio of the least");
    let rows = ROWS.iter().filter(|row| row.name.starts_with(name));
    rows.into_iter()
        .try_for_each(|row| compare(sandbox, &other, row))
}

fn compare(sandbox: &Sandbox, other: &Path, row: &Row) -> Result<()> {
    let guest = sandbox.start_with(row.guest, row.arguments)?;
    let builds = [sandbox.binary(""), other.to_owned()];
    let mut runs = [Runs::default(), Runs::default()];
    for _ in 0..ROUNDS {
        for (dir, runs) in builds.iter().zip(&mut runs) {
            round(sandbox, dir, guest.pid, runs)?;
        }
    }
    let [ours, theirs] = runs;
    print_line(row.name, "dump", ours.dump, theirs.dump);
    print_line(row.name, "restore", ours.restore, theirs.restore);
    guest.expect_ok(sandbox)
}

fn round(sandbox: &Sandbox, dir: &Path, root: i32, runs: &mut Runs) -> Result<()> {
    let images = fresh(sandbox, "beside")?;
    let tasks = tree(root)?;
    let options = ["-D", text(&images)?, "--tcp-established"];
    let pid = root.to_string();
    let mut dump = Command::new(dir.join("crust-dump"));
    runs.dump
        .push(timed(dump.args(["-t", &pid]).args(options))?);
    sandbox.reap(&tasks)?;
    let mut restore = Command::new(dir.join("crust-restore"));
    let mut times = timed(restore.arg("-d").args(options))?;
    times[0] += ran(&tasks)?;
    runs.restore.push(times);
    fs::remove_dir_all(&images).context("remove the images")
}

fn timed(tool: &mut Command) -> Result<[f64; 2]> {
    let (before, started) = (children_cpu()?, Instant::now());
    run(tool)?;
    let wall = started.elapsed().as_secs_f64() * 1e3;
    Ok([children_cpu()? - before, wall])
}

/// Processor milliseconds of all threads of these tasks since they were made.
fn ran(tasks: &[i32]) -> Result<f64> {
    let mut nanoseconds = 0;
    for pid in tasks {
        for thread in fs::read_dir(format!("/proc/{pid}/task")).context("list threads")? {
            let path: PathBuf = thread?.path().join("schedstat");
            let told = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
            let ran = told.split(' ').next().unwrap_or_default().parse::<u64>();
            nanoseconds += ran.with_context(|| format!("{}: {told:?}", path.display()))?;
        }
    }
    Ok(nanoseconds as f64 / 1e6)
}

fn print_line(name: &str, what: &str, ours: Vec<[f64; 2]>, theirs: Vec<[f64; 2]>) {
    let mut line = format!("{name:<16} | {what:<7}");
    for (at, kind) in ["cpu", "wall"].into_iter().enumerate() {
        let of = |runs: &[[f64; 2]]| {
            let mut times: Vec<f64> = runs.iter().filter_map(|run| run.get(at)).copied().collect();
            let middle = median(&mut times);
            (middle, times.first().copied().unwrap_or(f64::NAN))
        };
        let ((ours, least), (theirs, their_least)) = (of(&ours), of(&theirs));
        let ratio = least / their_least;
        line += &format!(
            " | {kind} {ours:.1} ({least:.1}), {theirs:.1} ({their_least:.1}) = {ratio:.2}"
        );
    }
    println!("{line}");
}
