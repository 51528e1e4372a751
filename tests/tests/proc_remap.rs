//! The dead-process remap, case by case: a descriptor, directory or working directory below
//! /proc/<pid> of a process or thread that is dead, dumped, killed and restored. guests/procfd.c
//! holds the cases and checks itself what a read, a listing and the link give.

use anyhow::{Context, Result, ensure};
use crust_tests::{guest::Guest, proc_snapshot::Snapshot, sandbox::Sandbox, sandbox_test};
use nix::mount::{MsFlags, mount};
use std::{fs, process::Command};

/// Starts a case, dumps it (which kills it), restores it and lets it check itself.
fn round_trip(sandbox: &Sandbox, arguments: &[&str]) -> Result<()> {
    let guest = sandbox.start_with("procfd", arguments)?;
    let before = Snapshot::of_tree(guest.pid)?;
    let images = sandbox.images("procfd")?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    sandbox.restore(&images, &[])?.succeeded()?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    guest.expect_ok(sandbox)?;
    // The helper that stood in for the dead process must be gone too.
    sandbox.assert_only(&[])
}

/// The same twice: what was restored is dumped and restored again.
fn two_generations(sandbox: &Sandbox, arguments: &[&str]) -> Result<()> {
    let guest = sandbox.start_with("procfd", arguments)?;
    for generation in ["first", "second"] {
        let images = sandbox.images(generation)?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
    }
    guest.expect_ok(sandbox)
}

/// A dump that leaves the tree running leaves its dead descriptors as they were.
fn left_running(sandbox: &Sandbox, arguments: &[&str]) -> Result<()> {
    let guest = sandbox.start_with("procfd", arguments)?;
    let before = Snapshot::of_tree(guest.pid)?;
    sandbox
        .dump(guest.pid, &sandbox.images("running")?, &["--leave-running"])?
        .succeeded()?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    guest.expect_ok(sandbox)
}

/// The pid that a descriptor of the guest names: the number in its link.
fn dead_pid(guest: &Guest) -> Result<i32> {
    for entry in fs::read_dir(format!("/proc/{}/fd", guest.pid))? {
        let link = fs::read_link(entry?.path())?;
        let pid = link
            .strip_prefix("/proc")
            .ok()
            .and_then(|rest| rest.iter().next()?.to_str()?.parse::<i32>().ok());
        if let Some(pid) = pid {
            return Ok(pid);
        }
    }
    anyhow::bail!("no descriptor of pid {} is below /proc/<pid>", guest.pid)
}

sandbox_test! {
    fn file(sandbox) { round_trip(sandbox, &["file"]) }
    fn directory(sandbox) { round_trip(sandbox, &["dir"]) }
    fn working_directory(sandbox) { round_trip(sandbox, &["cwd"]) }
    fn several_descriptors_in_one_and_two_tasks(sandbox) { round_trip(sandbox, &["several"]) }
    fn pid_used_again(sandbox) { round_trip(sandbox, &["reuse"]) }
    fn dead_pid_is_a_live_tid(sandbox) { round_trip(sandbox, &["live_tid"]) }
    fn task_of_a_dead_process(sandbox) { round_trip(sandbox, &["dead_task"]) }
    fn live_task_of_a_live_process(sandbox) { round_trip(sandbox, &["live_task"]) }
    fn dead_task_of_a_live_process(sandbox) { round_trip(sandbox, &["dead_thread"]) }
    fn dead_session_leader(sandbox) { round_trip(sandbox, &["leader"]) }

    fn procfs_mounted_elsewhere(sandbox) {
        let elsewhere = sandbox.dir("elsewhere")?;
        mount(Some("proc"), &elsewhere, Some("proc"), MsFlags::empty(), None::<&str>)
            .context("mount a second procfs")?;
        round_trip(sandbox, &["elsewhere", crust_tests::tools::text(&elsewhere)?])
    }

    fn file_twice(sandbox) { two_generations(sandbox, &["file"]) }
    fn several_twice(sandbox) { two_generations(sandbox, &["several"]) }
    fn pid_used_again_twice(sandbox) { two_generations(sandbox, &["reuse"]) }

    fn file_left_running(sandbox) { left_running(sandbox, &["file"]) }
    fn directory_left_running(sandbox) { left_running(sandbox, &["dir"]) }
    fn working_directory_left_running(sandbox) { left_running(sandbox, &["cwd"]) }

    fn busy_dead_pid_is_refused_with_its_holder(sandbox) {
        let guest = sandbox.start_with("procfd", &["file"])?;
        let dead = dead_pid(&guest)?;
        let images = sandbox.images("busy")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        // Whoever is started next gets the dead pid.
        fs::write("/proc/sys/kernel/ns_last_pid", (dead - 1).to_string())?;
        let mut holder = Command::new("sleep").arg("1000").spawn().context("start sleep")?;
        ensure!(holder.id() == dead.unsigned_abs(), "sleep has pid {}, not {dead}", holder.id());
        let outcome = sandbox.restore(&images, &[])?.exited_with(1)?;
        outcome.says(&[&dead.to_string(), "sleep"])?;
        sandbox.assert_only(&[dead])?;
        holder.kill()?;
        holder.wait()?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }
}
