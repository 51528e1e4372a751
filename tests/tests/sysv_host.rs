//! SysV segments in the ipc namespace of the dumper, which the tree shares with others.

use anyhow::{Result, ensure};
use crust_tests::{proc_snapshot, sandbox::Sandbox, sandbox_test};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

/// The test, crust-dump and the guests are in one ipc namespace, apart from other tests.
fn own_namespace() -> Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWIPC)?)
}

/// The ids of all segments, from /proc/sysvipc/shm.
fn segments() -> Result<Vec<String>> {
    let text = std::fs::read_to_string("/proc/sysvipc/shm")?;
    let id = |line: &str| line.split_whitespace().nth(1).map(str::to_owned);
    Ok(text.lines().skip(1).filter_map(id).collect())
}

fn end(sandbox: &Sandbox, pid: i32) -> Result<()> {
    let tasks = proc_snapshot::tree(pid)?;
    for task in &tasks {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*task), Signal::SIGKILL)?;
    }
    sandbox.reap(&tasks)
}

sandbox_test! {
    /// One segment is gone with the tree, the other is still there: both come back.
    fn restored(sandbox) {
        own_namespace()?;
        let guest = sandbox.start("sysv_host")?;
        for generation in ["1", "2"] {
            let images = sandbox.images(generation)?;
            sandbox.dump_and_kill(&guest, &images, &[])?;
            ensure!(segments()?.len() == 1, "only the segment that was not removed stays");
            sandbox.restore(&images, &[])?.succeeded()?;
        }
        guest.expect_ok(sandbox)?;
        ensure!(segments()?.is_empty());
        sandbox.assert_only(&[])
    }

    fn left_running(sandbox) {
        own_namespace()?;
        let guest = sandbox.start("sysv_host")?;
        sandbox.dump(guest.pid, &sandbox.images("1")?, &["--leave-running"])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// What somebody else has attached is not the tree's alone: at the dump, and at the restore.
    fn others_are_respected(sandbox) {
        own_namespace()?;
        let guest = sandbox.start("sysv_host")?;
        let images = sandbox.images("1")?;
        sandbox.dump(guest.pid, &images, &["--leave-running"])?.succeeded()?;
        let other = sandbox.start_with("sysv_host", &["other"])?;
        let second = sandbox.images("2")?;
        let refused = sandbox.dump(guest.pid, &second, &[])?.exited_with(1)?;
        refused.says(&["segment", "outside of the tree"])?;
        let tasks = proc_snapshot::tree(guest.pid)?;
        end(sandbox, guest.pid)?;
        let failed = sandbox.restore(&images, &[])?.exited_with(1)?;
        failed.says(&["segment", "attached 1 times"])?;
        // Those that it made have died and are ours to reap.
        sandbox.reap(&tasks)?;
        ensure!(segments()?.len() == 1, "the failed restore has left a segment");
        end(sandbox, other.pid)?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }
}
