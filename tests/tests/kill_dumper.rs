//! The target survives the death of the dumper: crust-dump gets SIGKILL at random instants of
//! its run, over and over, and each time the target must run on undamaged and be good for another
//! dump. CRUST_TESTS_KILLS sets how often for each target (200 is the long form).

use anyhow::{Context, Result, ensure};
use crust_tests::{
    guest::Guest,
    kills::{Random, expect_alive, expect_running},
    proc_snapshot,
    sandbox::Sandbox,
    sandbox_test,
    tools::text,
};
use std::{
    env, fs,
    hint::spin_loop,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const DEFAULT_KILLS: u32 = 20;

fn kills() -> Result<u32> {
    match env::var("CRUST_TESTS_KILLS") {
        Ok(text) => text
            .parse()
            .with_context(|| format!("CRUST_TESTS_KILLS={text}")),
        Err(_) => Ok(DEFAULT_KILLS),
    }
}

/// A random instant of a run of this length.
fn instant_of(length: Duration, random: &mut Random) -> Duration {
    let nanos = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(random.below(nanos))
}

fn dump_command(
    sandbox: &Sandbox,
    guest: &Guest,
    images: &Path,
    options: &[&str],
) -> Result<Command> {
    let mut command = Command::new(sandbox.binary("crust-dump"));
    command.args(["-t", &guest.pid.to_string(), "-D", text(images)?]);
    command.args(options);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command)
}

/// Kills a dump after `instant`. True if it was still running.
fn kill_dump(
    sandbox: &Sandbox,
    guest: &Guest,
    images: &Path,
    options: &[&str],
    instant: Duration,
) -> Result<bool> {
    let mut command = dump_command(sandbox, guest, images, options)?;
    let started = Instant::now();
    let mut dump = command.spawn().context("start crust-dump")?;
    // Not a sleep: the instants are spread over a few milliseconds, finer than a timer's slack.
    while started.elapsed() < instant {
        spin_loop();
    }
    dump.kill().context("kill crust-dump")?;
    Ok(dump
        .wait()
        .context("wait for crust-dump")?
        .signal()
        .is_some())
}

/// Dumps the guest undisturbed and gives the time that took.
fn dumped_whole(sandbox: &Sandbox, guest: &Guest) -> Result<Duration> {
    let images = sandbox.images("whole")?;
    let started = Instant::now();
    sandbox.dump(guest.pid, &images, CONNECTED)?.succeeded()?;
    let length = started.elapsed();
    fs::remove_dir_all(&images)?;
    Ok(length)
}

/// The plain dump.
const PLAIN: &[&str] = &["--leave-running"];

/// A dump of a guest with connections.
const CONNECTED: &[&str] = &["--leave-running", "--tcp-established"];

fn survives(sandbox: &Sandbox, case: &str, options: &[&str]) -> Result<()> {
    let guest = sandbox.start_with("interrupted", &[case])?;
    guest_survives(sandbox, &guest, case, options)
}

fn guest_survives(sandbox: &Sandbox, guest: &Guest, case: &str, options: &[&str]) -> Result<()> {
    let before = proc_snapshot::Snapshot::of_tree(guest.pid)?;
    let mut length = dumped_whole(sandbox, guest)?;
    let (mut random, kills) = (Random(0x9e37_79b9_7f4a_7c15), kills()?);
    let (mut killed, mut attempts) = (0, 0);
    while killed < kills {
        // A dump may end before its instant has come, but most must be hit.
        ensure!(
            attempts < 4 * kills + 20,
            "only {killed} of {attempts} dumps were still running when killed"
        );
        attempts += 1;
        let images = sandbox.images(&format!("killed-{attempts}"))?;
        let instant = instant_of(length, &mut random);
        let context = || format!("in attempt {attempts}, killed {instant:?} into the dump");
        killed += u32::from(kill_dump(sandbox, guest, &images, options, instant)?);
        expect_alive(sandbox, guest).with_context(context)?;
        expect_running(guest).with_context(context)?;
        // The next dump both shows that the target can be dumped and waits for it to have left
        // whatever the dead dumper made it run. Its length is that of the next to be killed.
        length = dumped_whole(sandbox, guest).with_context(context)?;
        let after = proc_snapshot::Snapshot::of_tree(guest.pid)?;
        before.expect_same(&after, &[]).with_context(context)?;
        fs::remove_dir_all(&images)?;
    }
    println!("NOTE {case}: {killed} dumps killed in {attempts} attempts, the last over {length:?}");
    guest.expect_ok(sandbox)
}

sandbox_test! {
    fn cpu_loop(sandbox) { survives(sandbox, "cpu", PLAIN) }
    fn nanosleep(sandbox) { survives(sandbox, "nanosleep", PLAIN) }
    fn futex(sandbox) { survives(sandbox, "futex", PLAIN) }
    fn many_threads(sandbox) { survives(sandbox, "threads", PLAIN) }
    fn fifty_threads(sandbox) { survives(sandbox, "threads50", PLAIN) }

    /// No socket is left in repair mode, in which every call of its program fails, and no packet
    /// is dropped any more.
    fn connections(sandbox) {
        let guest = sandbox.start("tcp_busy")?;
        guest_survives(sandbox, &guest, "connections", CONNECTED)
    }

    /// Neither a mapping nor a descriptor of the write tracking is left.
    fn pre_dump(sandbox) { survives(sandbox, "nanosleep", &["--pre-dump"]) }
    fn tracked_dump(sandbox) { survives(sandbox, "threads", &["--leave-running", "--track-mem"]) }

    /// An interrupted dump is not taken for a good one.
    fn killed_dump_is_recognised(sandbox) {
        let guest = sandbox.start_with("interrupted", &["nanosleep"])?;
        let length = dumped_whole(sandbox, &guest)?;
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        for round in 0..kills()? {
            let images = sandbox.images(&format!("killed-{round}"))?;
            if !kill_dump(sandbox, &guest, &images, PLAIN, instant_of(length, &mut random))? {
                continue;
            }
            // The inventory is written last: without it nothing may be restored.
            if !images.join("inventory.img").exists() {
                sandbox.restore(&images, &[])?.exited_with(1)?.says(&["inventory"])?;
            }
        }
        guest.expect_ok(sandbox)
    }
}
