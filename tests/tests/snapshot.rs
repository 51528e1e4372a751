//! `--snapshot`: images of one instant of programs that go on changing their memory, and nothing
//! left of the copies that were made for them.

use anyhow::{Result, ensure};
use crust_tests::{
    guest::Guest,
    kills::dump_killed_at_steps,
    proc_snapshot::{self, Snapshot},
    sandbox::Sandbox,
    sandbox_test,
    tools::{Outcome, text},
};
use nix::sys::signal::Signal;
use std::path::Path;

/// What the log says of a task that is written in the freeze.
const STANDS_STILL: &str = "is written while it stands still";

fn dumped(sandbox: &Sandbox, guest: &Guest, images: &Path, more: &[&str]) -> Result<Outcome> {
    let options = [&["--leave-running", "--snapshot"], more].concat();
    let outcome = sandbox.dump(guest.pid, images, &options)?.succeeded()?;
    sandbox
        .run("crit", &["check", text(images)?], None)?
        .succeeded()?;
    Ok(outcome)
}

/// The program has gone on since; now it ends, and what was restored must be right.
fn restored(sandbox: &Sandbox, guest: &Guest, images: &Path) -> Result<()> {
    let tasks = proc_snapshot::tree(guest.pid)?;
    guest.signal(Signal::SIGKILL)?;
    for child in tasks.iter().filter(|pid| **pid != guest.pid) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*child), Signal::SIGKILL)?;
    }
    sandbox.reap(&tasks)?;
    sandbox.assert_only(&[])?;
    sandbox.restore(images, &[])?.succeeded()?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

/// Both of the program that was left running and of the one that is restored.
fn round_trip(sandbox: &Sandbox, how: &str, frozen: bool, more: &[&str]) -> Result<()> {
    let guest = sandbox.start_with("snapshot", &[how])?;
    let before = Snapshot::of_tree(guest.pid)?;
    let images = sandbox.images("first")?;
    let outcome = dumped(sandbox, &guest, &images, more)?;
    let still = outcome.log.contains(STANDS_STILL);
    ensure!(still == frozen, "copied: {}\n{}", !still, outcome.log);
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    sandbox.assert_only(&proc_snapshot::tree(guest.pid)?)?;
    restored(sandbox, &guest, &images)?;
    let guest = sandbox.start_with("snapshot", &[how])?;
    dumped(sandbox, &guest, &sandbox.images("second")?, more)?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

sandbox_test! {
    fn moving(sandbox) { round_trip(sandbox, "moving", false, &[]) }
    fn seen_before_the_freeze(sandbox) {
        let guest = sandbox.start_with("snapshot", &["unlocked"])?;
        let images = sandbox.images("first")?;
        let outcome = dumped(sandbox, &guest, &images, &[])?;
        ensure!(outcome.log.contains("were read before the freeze"), "{}", outcome.log);
        restored(sandbox, &guest, &images)
    }
    fn below_a_filter(sandbox) { round_trip(sandbox, "filtered", false, &[]) }
    fn where_nothing_may_be_forked(sandbox) { round_trip(sandbox, "limited", true, &[]) }
    fn of_a_subreaper(sandbox) { round_trip(sandbox, "reaper", true, &[]) }
    fn after_rounds(sandbox) { round_trip(sandbox, "moving", false, &["--pre-copy", "2"]) }

    /// Kinds of memory that a fork does not have, or has otherwise.
    fn kinds_of_memory(sandbox) {
        let guest = sandbox.start("mem_kinds")?;
        let images = sandbox.images("first")?;
        dumped(sandbox, &guest, &images, &[])?;
        restored(sandbox, &guest, &images)
    }

    /// What a family shares is written once from the copies too.
    fn family(sandbox) {
        let guest = sandbox.start("cow")?;
        let images = sandbox.images("first")?;
        dumped(sandbox, &guest, &images, &[])?;
        ensure!(images.join("shared-pages/inventory.img").exists());
        restored(sandbox, &guest, &images)
    }

    /// The next dump of the chain has what was written while the first was still being copied.
    fn chain(sandbox) {
        let guest = sandbox.start_with("snapshot", &["moving"])?;
        dumped(sandbox, &guest, &sandbox.images("1")?, &["--track-mem"])?;
        let second = sandbox.images("2")?;
        dumped(sandbox, &guest, &second, &["--prev-images-dir", "../images-1"])?;
        restored(sandbox, &guest, &second)
    }

    fn killed_at_steps(sandbox) {
        let guest = sandbox.start_with("snapshot", &["still"])?;
        dump_killed_at_steps(sandbox, &guest, &["--snapshot"], &[])?;
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }
}
