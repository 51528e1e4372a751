//! Timers: what is left of them is left when the program goes on, and each expiration comes once.
//!
//! Verdicts are bounds by readings of the clock, so that a busy machine cannot fail them: between
//! two readings by the guest, before and after, a timer may run no longer than the guest could have
//! run, which is until the freeze was over and from the end of the last action script on.

use anyhow::{Context, Result, ensure};
use crust_tests::{sandbox::Sandbox, sandbox_test, tools::text};
use nix::time::{ClockId, clock_gettime};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

const NANOS: i64 = 1_000_000_000;
/// What is lost of a timer on a machine with nothing else to do.
const WANTED: i64 = 10_000_000;

fn read(clock: ClockId) -> Result<i64> {
    let now = clock_gettime(clock)?;
    Ok(now.tv_sec() * NANOS + now.tv_nsec())
}

fn now() -> Result<i64> {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Nanoseconds that a line of a log tells, `(SS.UUUUUU) ...`.
fn logged(line: &str) -> Result<i64> {
    let stamp = line.strip_prefix('(').and_then(|line| line.split_once(')'));
    let stamp = stamp.context("no time in the line")?.0;
    let (seconds, micros) = stamp.split_once('.').context("no time in the line")?;
    Ok(seconds.parse::<i64>()? * NANOS + micros.parse::<i64>()? * 1000)
}

/// The latest time at which the freeze can have been over.
fn frozen_before(log: &str, end: i64) -> Result<i64> {
    let frozen = log
        .lines()
        .find(|line| line.contains("Frozen ") && line.contains(" tasks in "));
    let last = log.lines().last().context("an empty log")?;
    Ok(end - (logged(last)? - logged(frozen.context("no line of the freeze")?)?))
}

/// A script that takes its time at every stage and notes when it ends.
fn slow_script(sandbox: &Sandbox, stamp: &Path) -> Result<std::path::PathBuf> {
    let script = sandbox.dir("script")?.join("slow");
    let stamp = text(stamp)?;
    let lines = format!(
        "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION = pre-resume ] || exit 0\nsleep 1\ncut -d' ' -f1 /proc/uptime > {stamp}\n"
    );
    fs::write(&script, lines)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    Ok(script)
}

sandbox_test! {
    fn time_left(sandbox) {
        let guest = sandbox.start("time_left")?;
        let images = sandbox.images("first")?;
        let outcome = sandbox.dump(guest.pid, &images, &[])?.succeeded()?;
        let stopped = frozen_before(&outcome.log, now()?)?;
        sandbox.reap(&[guest.pid])?;
        let stamp = images.join("script-ended");
        let script = slow_script(sandbox, &stamp)?;
        sandbox.restore(&images, &["--action-script", text(&script)?])?.succeeded()?;
        // The time since the boot, in hundredths of a second, rounded down.
        let uptime = fs::read_to_string(&stamp)?;
        let went_on = (uptime.trim().parse::<f64>()? * NANOS as f64) as i64;
        let went_on = went_on - (read(ClockId::CLOCK_BOOTTIME)? - now()?);
        guest.expect_verdict(sandbox)?;
        let lines = guest.lines()?;
        let told: Vec<&String> = lines.iter().filter(|line| line.contains(" before ")).collect();
        ensure!(told.len() == 6, "readings are missing: {lines:?}");
        for line in told {
            let number = |at: usize| -> Result<i64> {
                let word = line.split_whitespace().nth(at);
                Ok(word.with_context(|| format!("{line}: word {at}"))?.parse()?)
            };
            let ran = number(3)? - number(6)?;
            let could = (stopped - number(2)?) + (number(5)? - went_on);
            println!("{line}: ran for {} us of {}", ran / 1000, could / 1000);
            ensure!(ran >= 0, "{line}: more is left than was");
            ensure!(ran <= could, "{line}: ran for {ran} ns, not {could} at most");
            if ran > WANTED {
                println!("NOTE {line}: lost {ran} ns, on a machine that is busy");
            }
        }
        Ok(())
    }

    fn each_expiration_comes_once(sandbox) {
        let guest = sandbox.start("once")?;
        let images = sandbox.images("first")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    fn each_expiration_comes_once_to_a_program_left_running(sandbox) {
        let guest = sandbox.start("once")?;
        let images = sandbox.images("first")?;
        sandbox.dump(guest.pid, &images, &["--leave-running"])?.succeeded()?;
        guest.expect_ok(sandbox)
    }
}
