//! Dump, which kills, and restore of established TCP pairs over loopback. CRIU 4.2 needs 280 ms and
//! 1350 ms for 20 pairs: it runs iptables for each.

use super::{fresh, median, quiet_dump, range, statistic};
use anyhow::Result;
use crust_tests::{build::run, sandbox::Sandbox, tools::text};
use std::{process::Command, time::Instant};

const ROUNDS: usize = 7;

/// 20 pairs, then 1000.
pub fn measure(sandbox: &Sandbox) -> Result<()> {
    for pairs in ["20", "1000"] {
        let guest = sandbox.start_with("tcp_many", &[pairs])?;
        let (mut dumps, mut frozen, mut restores) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let images = fresh(sandbox, "connections")?;
            let established = "--tcp-established";
            dumps.push(quiet_dump(sandbox, &guest, &images, &[established])?);
            frozen.push(statistic(sandbox, &images, "frozen_time")? / 1e3);
            sandbox.reap(&[guest.pid])?;
            let mut command = Command::new(sandbox.binary("crust-restore"));
            command.args(["-d", established, "-D", text(&images)?]);
            let started = Instant::now();
            run(&mut command)?;
            restores.push(started.elapsed().as_secs_f64() * 1e3);
        }
        guest.expect_ok(sandbox)?;
        let all = [("dump", dumps), ("frozen", frozen), ("restore", restores)];
        for (what, mut times) in all {
            let middle = median(&mut times);
            println!(
                "{pairs} tcp pairs, {what}: {middle:.1} ms {}",
                range(&times)
            );
        }
    }
    Ok(())
}
