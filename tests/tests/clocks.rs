//! The clocks that count from the boot: a tree whose clocks are ahead of this host's, as after a
//! reboot or on another host, goes on with clocks that never run backwards. The host that was up
//! for longer is a time namespace, of the tree alone or of the dumper too.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    guest::Guest,
    proc_snapshot::{Snapshot, tree},
    sandbox::Sandbox,
    sandbox_test,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Seconds that the clocks of the guest are ahead.
const AHEAD: u64 = 1_000_000;

/// The guest in a time namespace; `None`, with a note, on a kernel without.
fn ahead(sandbox: &Sandbox) -> Result<Option<Guest>> {
    if !Path::new("/proc/self/ns/time").exists() {
        println!("SKIPPED: this kernel has no time namespaces");
        return Ok(None);
    }
    let scratch = Path::new("/tmp/crust-golden/clocks");
    let mut command = Command::new("unshare");
    let seconds = AHEAD.to_string();
    command.args(["--time", "--monotonic", &seconds, "--boottime", &seconds]);
    command.arg(sandbox.install_guest("clocks")?).arg(scratch);
    let guest = sandbox.spawn("clocks", &command, scratch)?;
    guest.wait_until_set_up(sandbox)?;
    ensure!(
        namespace(guest.pid)? != namespace(1)?,
        "it is in our namespace"
    );
    Ok(Some(guest))
}

fn namespace(pid: i32) -> Result<PathBuf> {
    let path = format!("/proc/{pid}/ns/time");
    fs::read_link(&path).with_context(|| format!("read {path}"))
}

/// What a clock of the tree's is ahead of ours, in seconds.
fn offset(pid: i32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/timens_offsets"))?;
    let line = text.lines().find(|line| line.starts_with("monotonic"));
    let seconds = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(seconds.context("no offset")?.parse()?)
}

fn expect_ahead(pid: i32) -> Result<()> {
    let offset = offset(pid)?;
    // The time between dump and restore does not pass for the tree.
    ensure!(
        (AHEAD - 600..=AHEAD).contains(&offset),
        "the clocks are {offset} s ahead"
    );
    Ok(())
}

sandbox_test! {
    /// Dumped from outside, twice over: the namespace is the tree's own.
    fn a_namespace_of_the_trees_own(sandbox) {
        let Some(guest) = ahead(sandbox)? else { return Ok(()) };
        let before = Snapshot::of_tree(guest.pid)?;
        for generation in ["first", "second"] {
            let images = sandbox.images(generation)?;
            sandbox.dump_and_kill(&guest, &images, &[])?;
            ensure!(!images.join("timens-0.img").exists(), "the dumper's clocks were stored");
            sandbox.restore(&images, &[])?.succeeded()?;
            expect_ahead(guest.pid)?;
        }
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }

    /// Dumped by a dumper with the same clocks, restored by one whose clocks are behind.
    fn a_host_whose_clocks_are_behind(sandbox) {
        let Some(guest) = ahead(sandbox)? else { return Ok(()) };
        let images = sandbox.images("first")?;
        let mut dump = Command::new("nsenter");
        let (pid, binary) = (guest.pid.to_string(), sandbox.binary("crust-dump"));
        dump.args(["--time", "--target", &pid]).arg(binary);
        dump.args(["-t", &pid, "-D"]).arg(&images);
        let tasks = tree(guest.pid)?;
        sandbox.run_command(dump, None)?.succeeded()?;
        sandbox.reap(&tasks)?;
        ensure!(images.join("timens-0.img").exists(), "it is not the dumper's namespace");
        sandbox.restore(&images, &[])?.succeeded()?;
        expect_ahead(guest.pid)?;
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }

    /// Left running by a dump, threads are inside restart_syscall, which does not tell what it
    /// restarts: a second dump finds it out.
    fn sleepers_dumped_again(sandbox) {
        let guest = sandbox.start("sleepers")?;
        let first = sandbox.images("first")?;
        sandbox.dump(guest.pid, &first, &["--leave-running"])?.succeeded()?;
        let images = sandbox.images("second")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// Where the clocks are ahead of the images nothing is made.
    fn a_host_whose_clocks_are_ahead(sandbox) {
        let guest = sandbox.start("clocks")?;
        let images = sandbox.images("first")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        ensure!(namespace(guest.pid)? == namespace(1)?, "a namespace was made for nothing");
        guest.expect_ok(sandbox)
    }
}
