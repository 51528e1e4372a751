//! Chains of dumps: memory copied while the tree runs, later dumps with what changed since, and
//! nothing of the tracking left in the tree.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    build::run,
    guest::Guest,
    proc_snapshot::{self, Snapshot},
    sandbox::Sandbox,
    sandbox_test,
    tools::text,
};
use nix::sys::signal::Signal;
use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command};

/// A field of stats-dump.
fn statistic(sandbox: &Sandbox, images: &Path, name: &str) -> Result<u64> {
    let mut decode = Command::new(sandbox.binary("crit"));
    let json = run(decode.args(["decode", "-i", text(&images.join("stats-dump"))?]))?;
    let json: serde_json::Value = serde_json::from_slice(&json)?;
    let value = json.pointer(&format!("/entries/0/dump/{name}"));
    value
        .and_then(serde_json::Value::as_u64)
        .with_context(|| format!("stats-dump has no {name}"))
}

fn step(sandbox: &Sandbox, guest: &Guest, number: u32) -> Result<()> {
    guest.signal(Signal::SIGUSR1)?;
    guest.wait_for_line(sandbox, &format!("step {number}"))?;
    proc_snapshot::settle(guest.pid)
}

/// No area of any task is registered, no descriptor is new: smaps and the table tell.
fn expect_untouched(guest: &Guest) -> Result<()> {
    for pid in proc_snapshot::tree(guest.pid)? {
        let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
        let flagged = smaps
            .lines()
            .find(|line| line.starts_with("VmFlags:") && line.contains(" uw"));
        ensure!(flagged.is_none(), "task {pid} still has {flagged:?}");
        for fd in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let link = fs::read_link(fd?.path())?;
            let link = link.to_string_lossy().into_owned();
            ensure!(!link.contains("userfaultfd"), "task {pid} has {link}");
        }
    }
    Ok(())
}

/// Two pre-dumps and a dump, each with its steps in between, restored from the third.
fn chain_of(sandbox: &Sandbox, how: &str) -> Result<()> {
    let guest = sandbox.start_with("incremental", &[how])?;
    let first = sandbox.images("1")?;
    let pre_dump = ["--pre-dump", "--prev-images-dir", "../images-1"];
    sandbox
        .dump(guest.pid, &first, &pre_dump[..1])?
        .succeeded()?;
    let whole = statistic(sandbox, &first, "pages_written")?;
    step(sandbox, &guest, 1)?;
    let second = sandbox.images("2")?;
    sandbox.dump(guest.pid, &second, &pre_dump)?.succeeded()?;
    step(sandbox, &guest, 2)?;
    step(sandbox, &guest, 3)?;
    let third = sandbox.images("3")?;
    sandbox.dump_and_kill(&guest, &third, &["--prev-images-dir", "../images-2"])?;
    let (written, kept) = (
        statistic(sandbox, &third, "pages_written")?,
        statistic(sandbox, &third, "pages_skipped_parent")?,
    );
    ensure!(
        whole > 1024 && whole < 2048 && kept > 128 && written < whole,
        "{whole} first, then {written} and {kept} kept"
    );
    sandbox
        .run("crit", &["check", text(&third)?], None)?
        .succeeded()?;
    sandbox.assert_only(&[])?;
    sandbox.restore(&third, &[])?.succeeded()?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

/// Rounds while the guest writes as fast as it can, then the freeze.
fn pre_copy_of(sandbox: &Sandbox, how: &str) -> Result<()> {
    let guest = sandbox.start_with("incremental", &[how])?;
    let images = sandbox.images("first")?;
    sandbox.dump_and_kill(&guest, &images, &["--pre-copy", "3"])?;
    ensure!(images.join("pre-copy-1/inventory.img").exists());
    let kept = statistic(sandbox, &images, "pages_skipped_parent")?;
    ensure!(
        kept > 400,
        "of 1024 pages half is never written, {kept} were left to the rounds"
    );
    sandbox.restore(&images, &[])?.succeeded()?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

sandbox_test! {
    fn chain(sandbox) { chain_of(sandbox, "alone") }

    /// The same of two processes in one address space: written once, tracked once.
    fn chain_in_shared_memory(sandbox) { chain_of(sandbox, "vm") }

    fn pre_copy(sandbox) { pre_copy_of(sandbox, "busy") }

    fn pre_copy_in_shared_memory(sandbox) { pre_copy_of(sandbox, "busy vm") }

    /// What the last dump has again takes no room in the first.
    fn auto_dedup(sandbox) {
        let guest = sandbox.start("incremental")?;
        let first = sandbox.images("1")?;
        sandbox.dump(guest.pid, &first, &["--pre-dump"])?.succeeded()?;
        step(sandbox, &guest, 1)?;
        let pages = first.join("pages-1.img");
        let blocks = || -> Result<u64> { Ok(fs::metadata(&pages)?.blocks()) };
        let before = blocks()?;
        let second = sandbox.images("2")?;
        let options = ["--prev-images-dir", "../images-1", "--auto-dedup"];
        sandbox.dump_and_kill(&guest, &second, &options)?;
        let after = blocks()?;
        // Of the first area alone 36 pages were written again.
        ensure!(after + 36 * 8 <= before, "{before} blocks before, {after} after");
        sandbox.restore(&second, &[])?.succeeded()?;
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }

    /// Dumps that leave the tree running, each incremental to the one before; every one restores.
    fn dumps_of_a_running_tree(sandbox) {
        let guest = sandbox.start_with("incremental", &["vm"])?;
        let before = Snapshot::of_tree(guest.pid)?;
        let mut previous: Option<String> = None;
        for number in 1..=3 {
            let images = sandbox.images(&number.to_string())?;
            let mut options = vec!["--leave-running", "--track-mem"];
            if let Some(previous) = &previous {
                options.extend(["--prev-images-dir", previous]);
            }
            sandbox.dump(guest.pid, &images, &options)?.succeeded()?;
            if number == 1 {
                before.expect_same(&Snapshot::of_tree(guest.pid)?, &["VmFlags"])?;
            } else {
                ensure!(statistic(sandbox, &images, "pages_skipped_parent")? > 128);
            }
            step(sandbox, &guest, number)?;
            previous = Some(format!("../images-{number}"));
        }
        let images = sandbox.images("last")?;
        let options = ["--leave-running", "--prev-images-dir", "../images-3"];
        sandbox.dump(guest.pid, &images, &options)?.succeeded()?;
        expect_untouched(&guest)?;
        let tasks = proc_snapshot::tree(guest.pid)?;
        guest.signal(Signal::SIGKILL)?;
        for task in tasks.iter().filter(|task| **task != guest.pid) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*task), Signal::SIGKILL)?;
        }
        sandbox.reap(&tasks)?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }

    /// A pid that went to another process since the pre-dump: nothing of the old one is used.
    fn a_reused_pid_is_dumped_whole(sandbox) {
        let guest = sandbox.start("incremental")?;
        let first = sandbox.images("1")?;
        sandbox.dump(guest.pid, &first, &["--pre-dump"])?.succeeded()?;
        guest.signal(Signal::SIGKILL)?;
        sandbox.wait(guest.pid)?;
        fs::write("/proc/sys/kernel/ns_last_pid", (guest.pid - 1).to_string())?;
        let other = sandbox.start("incremental")?;
        ensure!(other.pid == guest.pid, "the pid is {} instead of {}", other.pid, guest.pid);
        let second = sandbox.images("2")?;
        sandbox.dump_and_kill(&other, &second, &["--prev-images-dir", "../images-1"])?;
        ensure!(statistic(sandbox, &second, "pages_skipped_parent")? == 0);
        sandbox.restore(&second, &[])?.succeeded()?;
        other.expect_ok(sandbox)
    }

    /// A dump that knows nothing of the tracking ends it.
    fn a_plain_dump_of_a_tracked_tree(sandbox) {
        let guest = sandbox.start("incremental")?;
        sandbox.dump(guest.pid, &sandbox.images("1")?, &["--pre-dump"])?.succeeded()?;
        let images = sandbox.images("2")?;
        sandbox.dump(guest.pid, &images, &["--leave-running"])?.succeeded()?;
        expect_untouched(&guest)?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }

    /// The holder of the tracking dies: nothing is left in the tree, and the next dump is whole.
    fn a_dead_holder_leaves_nothing(sandbox) {
        let guest = sandbox.start("incremental")?;
        let first = sandbox.images("1")?;
        sandbox.dump(guest.pid, &first, &["--pre-dump"])?.succeeded()?;
        let others = sandbox.processes()?.into_iter().filter(|pid| *pid != guest.pid);
        let holders: Vec<i32> = others.collect();
        ensure!(holders.len() == 1, "one holder, not {holders:?}");
        for holder in &holders {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*holder), Signal::SIGKILL)?;
        }
        sandbox.reap(&holders)?;
        expect_untouched(&guest)?;
        step(sandbox, &guest, 1)?;
        let second = sandbox.images("2")?;
        sandbox.dump_and_kill(&guest, &second, &["--prev-images-dir", "../images-1"])?;
        ensure!(statistic(sandbox, &second, "pages_skipped_parent")? == 0);
        sandbox.restore(&second, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// A pre-dump is no dump, and a chain cannot build on itself.
    fn mistakes_are_told(sandbox) {
        let guest = sandbox.start("incremental")?;
        let first = sandbox.images("1")?;
        sandbox.dump(guest.pid, &first, &["--pre-dump"])?.succeeded()?;
        sandbox.restore(&first, &[])?.exited_with(1)?.says(&["pstree"])?;
        let dump = |options: &[&str]| sandbox.dump(guest.pid, &first, options);
        dump(&["--prev-images-dir", "../images-1"])?.exited_with(1)?.says(&["build on itself"])?;
        dump(&["--prev-images-dir", "../none"])?.exited_with(1)?.says(&["../none"])?;
        guest.expect_ok(sandbox)
    }
}
