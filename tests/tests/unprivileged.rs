//! `--unprivileged`: an ordinary user with CAP_CHECKPOINT_RESTORE and CAP_SYS_PTRACE dumps and
//! restores processes of its own; what that cannot carry is refused by name. Without capabilities
//! both are refused with what is missing.

use anyhow::{Context, Result};
use crust_tests::{
    guest::Guest,
    proc_snapshot::Snapshot,
    sandbox::{GOLDEN, Sandbox},
    sandbox_test,
    tools::{Outcome, text},
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

const USER: u32 = 1000;
const CAPS: &str = "+checkpoint_restore,+sys_ptrace";

/// A command as the user, with the two capabilities or none.
fn as_user(program: &Path, has_caps: bool) -> Command {
    let mut command = Command::new("setpriv");
    let user = USER.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    let caps = if has_caps { CAPS } else { "-all" };
    command.args(["--inh-caps", caps, "--ambient-caps", caps]);
    command.arg(program);
    command
}

/// A copy of an executable that the user may run, wherever the build directory is.
fn executable(sandbox: &Sandbox, name: &str) -> Result<PathBuf> {
    let copy = sandbox.dir("executables")?.join(name);
    fs::copy(sandbox.binary(name), &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

fn owned(dir: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&dir)?;
    chown(&dir, Some(USER), Some(USER)).with_context(|| format!("chown {}", dir.display()))?;
    Ok(dir)
}

fn started(sandbox: &Sandbox, name: &str, has_caps: bool) -> Result<Guest> {
    let program = sandbox.install_guest(name)?;
    let scratch = owned(Path::new(GOLDEN).join(name))?;
    let mut command = as_user(&program, has_caps);
    command.arg(&scratch);
    let guest = sandbox.spawn(name, &command, &scratch)?;
    chown(&guest.out, Some(USER), Some(USER))?;
    guest.wait_until_set_up(sandbox)?;
    Ok(guest)
}

fn run(sandbox: &Sandbox, name: &str, has_caps: bool, arguments: &[&str]) -> Result<Outcome> {
    let mut command = as_user(&executable(sandbox, name)?, has_caps);
    command.arg("--unprivileged").args(arguments);
    sandbox.run_command(command, None)
}

fn round_trip(sandbox: &Sandbox, name: &str) -> Result<()> {
    let guest = started(sandbox, name, true)?;
    let before = Snapshot::of_tree(guest.pid)?;
    let images = owned(sandbox.images("unprivileged")?)?;
    let (pid, dir) = (guest.pid.to_string(), text(&images)?);
    let tree = crust_tests::proc_snapshot::tree(guest.pid)?;
    run(sandbox, "crust-dump", true, &["-t", &pid, "-D", dir])?.succeeded()?;
    sandbox.reap(&tree)?;
    run(sandbox, "crust-restore", true, &["-d", "-D", dir])?.succeeded()?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    guest.expect_ok(sandbox)
}

sandbox_test! {
    fn a_task(sandbox) { round_trip(sandbox, "loop") }
    fn threads(sandbox) { round_trip(sandbox, "threads") }
    fn pipes(sandbox) { round_trip(sandbox, "pipes") }
    fn memory(sandbox) { round_trip(sandbox, "mem_private") }

    /// Without a capability the kernel hides the files of mappings and lets nobody choose pids.
    fn an_ordinary_user_is_refused_by_name(sandbox) {
        let guest = started(sandbox, "loop", false)?;
        let images = owned(sandbox.images("ordinary")?)?;
        let (pid, dir) = (guest.pid.to_string(), text(&images)?);
        let before = Snapshot::of_tree(guest.pid)?;
        let outcome = run(sandbox, "crust-dump", false, &["-t", &pid, "-D", dir])?.exited_with(1)?;
        outcome.says(&["map_files", "EPERM", "--check"])?;
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        run(sandbox, "crust-dump", true, &["-R", "-t", &pid, "-D", dir])?.succeeded()?;
        guest.expect_ok(sandbox)?;
        let restore = run(sandbox, "crust-restore", false, &["-d", "-D", dir])?.exited_with(1)?;
        restore.says(&["CAP_CHECKPOINT_RESTORE", "chosen pids"])?;
        sandbox.assert_only(&[])
    }

    /// Seccomp cannot rest without CAP_SYS_ADMIN: refused, not skipped.
    fn a_seccomp_filter_is_refused(sandbox) {
        let guest = sandbox.start("seccomp_filter")?;
        let images = owned(sandbox.images("filtered")?)?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        for entry in fs::read_dir(&images)? {
            chown(entry?.path(), Some(USER), Some(USER))?;
        }
        let dir = text(&images)?;
        let outcome = run(sandbox, "crust-restore", true, &["-d", "-D", dir])?.exited_with(1)?;
        outcome.says(&["cannot restore"])?;
        sandbox.assert_only(&[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }
}
