//! More descriptors than usual: a hundred thousand in a tree, as many in each task as this machine
//! lets a task have, and what a restore does where it may have fewer.

use anyhow::Result;
use crust_tests::{
    proc_snapshot::Snapshot,
    sandbox::Sandbox,
    sandbox_test,
    tools::{Outcome, text},
};
use nix::sys::resource::{Resource, getrlimit};
use std::{path::Path, process::Command};

/// crust-restore with other limits than ours.
fn restore_with(sandbox: &Sandbox, images: &Path, limits: &str) -> Result<Outcome> {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={limits}"));
    command.arg(sandbox.binary("crust-restore"));
    command.args(["-d", "-D", text(images)?]);
    sandbox.run_command(command, None)
}

sandbox_test! {
    fn a_hundred_thousand(sandbox) {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let each = hard.min(100_100) - 100;
        let tasks = 100_000_u64.div_ceil(each);
        println!("NOTE {each} descriptors in each of {tasks} tasks");
        let (each, tasks) = (each.to_string(), tasks.to_string());
        let guest = sandbox.start_with("many_fds", &["files", &each, &tasks, "shared"])?;
        let images = sandbox.images("many")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// The broker holds more than its soft limit allows; the tasks keep the limits they had.
    fn above_the_soft_limit_of_a_restore(sandbox) {
        let guest = sandbox.start_with("many_fds", &["files", "300", "2"])?;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images("soft")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        for soft in [128, 500] {
            restore_with(sandbox, &images, &format!("{soft}:{hard}"))?.succeeded()?;
            before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
            sandbox.dump_and_kill(&guest, &images, &[])?;
        }
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// The lock of one is found by /proc/locks, and refused where it is not asked for.
    fn a_lock_among_them(sandbox) {
        let guest = sandbox.start("locks_among")?;
        let images = sandbox.images("locks")?;
        let refused = sandbox.dump(guest.pid, &images, &[])?.exited_with(1)?;
        refused.says(&["fd 303", "a file lock is held"])?;
        sandbox.dump_and_kill(&guest, &images, &["--file-locks"])?;
        sandbox.restore(&images, &["--file-locks"])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    fn above_the_hard_limit_of_a_restore(sandbox) {
        let guest = sandbox.start_with("many_fds", &["files", "300", "2"])?;
        let images = sandbox.images("hard")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let refused = restore_with(sandbox, &images, "500:500")?.exited_with(1)?;
        refused.says(&["hard RLIMIT_NOFILE 500 of crust-restore", "raise the limit"])?;
        let refused = restore_with(sandbox, &images, "256:256")?.exited_with(1)?;
        refused.says(&["306 descriptors are above the hard RLIMIT_NOFILE 256"])?;
        sandbox.assert_only(&[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }
}
