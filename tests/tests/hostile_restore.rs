//! Real restores from damaged images, each beside a canary: whatever comes of it, nobody outside
//! of the tree gets a signal, no file outside of what the images name is touched, and what fails
//! leaves no task. All file systems but the guest's own are read-only meanwhile.
//!
//! CRUST_TESTS_RESTORES says how many for each set; without it a few.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    corpus::recorded,
    kills::Random,
    mutation::{Victim, read_set},
    sandbox::{GOLDEN, Sandbox},
    sandbox_test,
    tools::text,
};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{env, fs, path::Path, process::Command};

const A_FEW: u64 = 20;
/// Address space of a run, KiB.
const MEMORY_KIB: u64 = 4 << 20;
/// Seconds that a restore may take on a busy machine.
const LIMIT: &str = "60";

/// Makes every mount but those of the guest read-only, for this sandbox alone.
fn protect_the_rest() -> Result<()> {
    let none: Option<&str> = None;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    for point in points.filter(|point| !point.starts_with(GOLDEN) && !point.starts_with("/proc")) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        // A mount that is covered by another cannot be named, and cannot be reached either.
        let _ = mount(none, point, none, flags, none);
    }
    let probe = Path::new("/tmp/crust-hostile-probe");
    ensure!(
        fs::write(probe, "x").is_err(),
        "/tmp can still be written to"
    );
    Ok(())
}

/// A process and a file that nobody may touch.
struct Canary {
    pid: i32,
    file: &'static str,
}

impl Canary {
    fn new(sandbox: &Sandbox) -> Result<Canary> {
        let file = "/tmp/crust-golden/canary/file";
        fs::create_dir_all("/tmp/crust-golden/canary")?;
        fs::write(file, "sings")?;
        let mut command = Command::new("sleep");
        command.arg("100000");
        let scratch = sandbox.dir("canary")?;
        let pid = sandbox.spawn("canary", &command, &scratch)?.pid;
        Ok(Canary { pid, file })
    }

    fn expect_well(&self) -> Result<()> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))
            .context("the canary is gone")?;
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        ensure!(
            line("State:").starts_with('S'),
            "the canary was stopped or killed:\n{status}"
        );
        let none = "0000000000000000";
        ensure!(
            line("SigPnd:") == none && line("ShdPnd:") == none,
            "it got a signal:\n{status}"
        );
        ensure!(line("TracerPid:") == "0", "it is traced:\n{status}");
        let names: Vec<_> = fs::read_dir("/tmp/crust-golden/canary")?
            .flatten()
            .collect();
        ensure!(names.len() == 1, "its directory has {names:?}");
        ensure!(
            fs::read_to_string(self.file)? == "sings",
            "its file was written to"
        );
        Ok(())
    }
}

fn attacked(sandbox: &Sandbox, name: &str) -> Result<()> {
    let rounds = env::var("CRUST_TESTS_RESTORES").ok();
    let rounds = rounds.map_or(Ok(A_FEW), |text| text.parse())?;
    let (images, _) = sandbox.unpack(&recorded(name))?;
    let others: Result<Vec<_>> = ["threads", "tree", "pipes", "unix_scm"]
        .iter()
        .map(|other| read_set(&recorded(other).images()))
        .collect();
    let others = others?;
    let mut victim = Victim::new(&images, read_set(&images)?)?;
    let canary = Canary::new(sandbox)?;
    protect_the_rest()?;
    // Undamaged they come back: a refusal later is the damage's doing.
    sandbox.restore(&images, &[])?.succeeded()?;
    clear(sandbox, canary.pid)?;
    let seed = name.bytes().fold(0x2545_f491_4f6c_dd1d, |seed: u64, byte| {
        seed.wrapping_mul(31).wrapping_add(byte.into())
    });
    let mut random = Random(seed);
    let (mut restored, mut refused) = (0, 0);
    for round in 0..rounds {
        let what = victim.damage(&mut random, &others)?;
        let script =
            format!("ulimit -S -v {MEMORY_KIB}; exec timeout -s KILL {LIMIT} \"$0\" \"$@\"");
        let mut command = Command::new("bash");
        command
            .args(["-c", &script])
            .arg(sandbox.binary("crust-restore"));
        command.args(["-d", "-D", text(&images)?]);
        let outcome = sandbox.run_command(command, None)?;
        let context = || format!("{name}, round {round}, {what}\n{}", outcome.report());
        ensure!(!outcome.stderr.contains("panicked"), "{}", context());
        ensure!(
            matches!(outcome.status.code(), Some(0 | 1)),
            "{}",
            context()
        );
        canary.expect_well().with_context(context)?;
        if outcome.status.success() {
            restored += 1;
            clear(sandbox, canary.pid)?;
        } else {
            refused += 1;
            ensure!(!outcome.last_line().is_empty(), "{}", context());
            sandbox.assert_only(&[canary.pid]).with_context(context)?;
        }
    }
    println!("NOTE {name}: {rounds} damages: {restored} restored, {refused} refused");
    kill(Pid::from_raw(canary.pid), Signal::SIGKILL)?;
    sandbox.reap(&[canary.pid])
}

/// Ends what a restore has made.
fn clear(sandbox: &Sandbox, canary: i32) -> Result<()> {
    loop {
        let mut pids = sandbox.processes()?;
        pids.retain(|pid| *pid != canary);
        if pids.is_empty() {
            return Ok(());
        }
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        sandbox.reap(&pids)?;
    }
}

sandbox_test! {
    fn one_task(sandbox) { attacked(sandbox, "loop") }
    fn threads(sandbox) { attacked(sandbox, "threads") }
    fn a_family(sandbox) { attacked(sandbox, "tree") }
    fn pipes(sandbox) { attacked(sandbox, "pipes") }
    fn ghosts(sandbox) { attacked(sandbox, "ghost") }
    fn link_remaps(sandbox) { attacked(sandbox, "link_remap") }
    fn sockets(sandbox) { attacked(sandbox, "unix_stream") }
    fn memory(sandbox) { attacked(sandbox, "mem_shared") }
    fn signals(sandbox) { attacked(sandbox, "sigpending") }
    fn dead_processes(sandbox) { attacked(sandbox, "proc_dead") }
}
