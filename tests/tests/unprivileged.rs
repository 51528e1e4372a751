//! An ordinary user with CAP_CHECKPOINT_RESTORE and CAP_SYS_PTRACE dumps and restores processes of
//! its own (`--unprivileged`). Without any capability it dumps what has names, and restores in a
//! user namespace that it makes itself. What that cannot carry is refused by name, and what the
//! checks call needed is: with it all works, without any one of it nothing does.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    guest::Guest,
    proc_snapshot::Snapshot,
    sandbox::{GOLDEN, Sandbox},
    sandbox_test,
    tools::{Outcome, text},
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

const USER: u32 = 1000;
const CAPS: &str = "+checkpoint_restore,+sys_ptrace";

/// A command as the user, with these capabilities, in setpriv's words.
fn as_user(program: &Path, caps: &str) -> Command {
    let mut command = Command::new("setpriv");
    let user = USER.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
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

fn started(sandbox: &Sandbox, name: &str, caps: &str) -> Result<Guest> {
    let program = sandbox.install_guest(name)?;
    let scratch = owned(Path::new(GOLDEN).join(name))?;
    let mut command = as_user(&program, caps);
    command.arg(&scratch);
    let guest = sandbox.spawn(name, &command, &scratch)?;
    chown(&guest.out, Some(USER), Some(USER))?;
    guest.wait_until_set_up(sandbox)?;
    Ok(guest)
}

fn run(sandbox: &Sandbox, name: &str, caps: &str, arguments: &[&str]) -> Result<Outcome> {
    let mut command = as_user(&executable(sandbox, name)?, caps);
    command.arg("--unprivileged").args(arguments);
    sandbox.run_command(command, None)
}

fn round_trip(sandbox: &Sandbox, name: &str) -> Result<()> {
    let guest = started(sandbox, name, CAPS)?;
    let before = Snapshot::of_tree(guest.pid)?;
    let images = owned(sandbox.images("unprivileged")?)?;
    let (pid, dir) = (guest.pid.to_string(), text(&images)?);
    let tree = crust_tests::proc_snapshot::tree(guest.pid)?;
    run(sandbox, "crust-dump", CAPS, &["-t", &pid, "-D", dir])?.succeeded()?;
    sandbox.reap(&tree)?;
    run(sandbox, "crust-restore", CAPS, &["-d", "-D", dir])?.succeeded()?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    guest.expect_ok(sandbox)
}

/// crust-restore in namespaces of the user's own making, where it has all capabilities.
fn in_user_namespace(sandbox: &Sandbox, groups: &str, map: &str) -> Result<Command> {
    let mut command = Command::new("setpriv");
    let user = USER.to_string();
    command.args([
        "--reuid",
        &user,
        "--regid",
        &user,
        groups,
        "--inh-caps=-all",
        "unshare",
    ]);
    command.args([
        "--user",
        map,
        "--keep-caps",
        "--pid",
        "--fork",
        "--mount-proc",
    ]);
    command
        .arg("--kill-child")
        .arg(executable(sandbox, "crust-restore")?);
    Ok(command)
}

/// Without any capability. The restored tree is in another pid namespace, so it is told there to
/// judge itself: crust-restore in the foreground ends as its root does.
fn ordinary(sandbox: &Sandbox, name: &str) -> Result<()> {
    let guest = started(sandbox, name, "-all")?;
    let before = Snapshot::of_tree(guest.pid)?;
    let images = owned(sandbox.images("ordinary")?)?;
    let (pid, dir) = (guest.pid.to_string(), text(&images)?);
    let tree = crust_tests::proc_snapshot::tree(guest.pid)?;
    let leaving = ["-R", "-t", &pid, "-D", dir];
    let check = run(
        sandbox,
        "crust-dump",
        "-all",
        &["-t", &pid, "-D", dir, "--check"],
    )?;
    let check = check.succeeded()?;
    ensure!(!said(&check).contains("CAP_"), "{}", said(&check));
    run(sandbox, "crust-dump", "-all", &leaving)?.succeeded()?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    run(sandbox, "crust-dump", "-all", &["-t", &pid, "-D", dir])?.succeeded()?;
    sandbox.reap(&tree)?;
    let script = sandbox.dir("executables")?.join("judge");
    let stage = "test $CRTOOLS_SCRIPT_ACTION != post-resume";
    fs::write(
        &script,
        format!("#!/bin/sh\n{stage} || kill -TERM $CRTOOLS_INIT_PID\n"),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let mut command = in_user_namespace(sandbox, "--clear-groups", "--map-current-user")?;
    command.args(["-D", dir, "--action-script", text(&script)?]);
    sandbox.run_command(command, None)?.succeeded()?;
    let verdict = guest.output()?;
    ensure!(
        verdict.lines().last() == Some("ok"),
        "{name} wrote {verdict}"
    );
    sandbox.assert_only(&[])
}

/// All that a run has written: a check tells its findings on stdout.
fn said(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stdout).into_owned() + &outcome.stderr
}

/// The capabilities that `--check` names, in the words of setpriv.
fn told_needs(check: &Outcome) -> Result<Vec<String>> {
    let report: Value = serde_json::from_slice(&check.stdout).with_context(|| check.report())?;
    let needs = report
        .get("capabilities")
        .and_then(Value::as_array)
        .context("no needs")?;
    let name = |need: &Value| Some(need.get("capability")?.as_str()?.to_owned());
    needs
        .iter()
        .map(|need| name(need).context("a need without a name"))
        .collect()
}

fn words_of<'a>(caps: impl Iterator<Item = &'a String>) -> String {
    let word = |cap: &String| format!("+{}", cap.trim_start_matches("CAP_").to_lowercase());
    let words: Vec<String> = caps.map(word).collect();
    if words.is_empty() {
        "-all".to_owned()
    } else {
        words.join(",")
    }
}

/// A dump of the user's own task works with what the check says it needs, and without any one of
/// these it fails, and says so before and then.
fn needed(sandbox: &Sandbox, name: &str, options: &[&str], expected: &[&str]) -> Result<()> {
    let guest = started(sandbox, name, "-all")?;
    let images = owned(sandbox.images("needed")?)?;
    let pid = guest.pid.to_string();
    let arguments = [&["-R", "-t", &pid, "-D", text(&images)?], options].concat();
    let checking = [&["--check", "--json"], &arguments[..]].concat();
    let needs = told_needs(&run(sandbox, "crust-dump", "-all", &checking)?)?;
    ensure!(needs == expected, "needs {needs:?}, not {expected:?}");
    run(sandbox, "crust-dump", &words_of(needs.iter()), &arguments)?.succeeded()?;
    let before = Snapshot::of_tree(guest.pid)?;
    for missing in &needs {
        let others = words_of(needs.iter().filter(|need| *need != missing));
        for arguments in [&checking, &arguments] {
            let outcome = run(sandbox, "crust-dump", &others, arguments)?.exited_with(1)?;
            ensure!(
                said(&outcome).contains(missing.as_str()),
                "{}",
                said(&outcome)
            );
        }
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    }
    guest.expect_ok(sandbox)
}

sandbox_test! {
    fn a_task(sandbox) { round_trip(sandbox, "loop") }
    fn threads(sandbox) { round_trip(sandbox, "threads") }
    fn pipes(sandbox) { round_trip(sandbox, "pipes") }
    fn memory(sandbox) { round_trip(sandbox, "mem_private") }

    fn ordinary_task(sandbox) { ordinary(sandbox, "loop") }
    fn ordinary_threads(sandbox) { ordinary(sandbox, "threads") }
    fn ordinary_pipes(sandbox) { ordinary(sandbox, "pipes") }
    fn ordinary_memory(sandbox) { ordinary(sandbox, "mem_private") }
    fn ordinary_timers(sandbox) { ordinary(sandbox, "timers") }
    fn ordinary_sockets(sandbox) { ordinary(sandbox, "unix_stream") }

    /// Of shared anonymous memory there is no name, and without a namespace of its own no user may
    /// choose pids.
    fn an_ordinary_user_is_refused_by_name(sandbox) {
        let guest = started(sandbox, "mem_shared", "-all")?;
        let images = owned(sandbox.images("ordinary")?)?;
        let (pid, dir) = (guest.pid.to_string(), text(&images)?);
        let before = Snapshot::of_tree(guest.pid)?;
        for check in [&["--check"][..], &[]] {
            let arguments = [&["-t", &pid, "-D", dir], check].concat();
            let outcome = run(sandbox, "crust-dump", "-all", &arguments)?.exited_with(1)?;
            outcome.says(&["mapped at", "CAP_CHECKPOINT_RESTORE"])?;
        }
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        run(sandbox, "crust-dump", CAPS, &["-R", "-t", &pid, "-D", dir])?.succeeded()?;
        guest.expect_ok(sandbox)?;
        let restore = run(sandbox, "crust-restore", "-all", &["-d", "-D", dir])?.exited_with(1)?;
        restore.says(&["CAP_CHECKPOINT_RESTORE", "is needed for"])?;
        sandbox.assert_only(&[])
    }

    /// Ids that the user namespace does not have, and groups that it may not set.
    fn what_a_user_namespace_lacks_is_told_before(sandbox) {
        let guest = started(sandbox, "loop", "-all")?;
        let images = owned(sandbox.images("ordinary")?)?;
        let (pid, dir) = (guest.pid.to_string(), text(&images)?);
        run(sandbox, "crust-dump", "-all", &["-t", &pid, "-D", dir])?.succeeded()?;
        sandbox.reap(&[guest.pid])?;
        let cases = [
            (["--clear-groups", "--map-root-user"], ["user id 1000: is not mapped", "group id 1000"]),
            (["--groups=27", "--map-current-user"], ["supplementary groups: cannot be set", "deny"]),
        ];
        for ([groups, map], words) in cases {
            for check in [&["--check"][..], &[]] {
                let mut command = in_user_namespace(sandbox, groups, map)?;
                command.args(["-d", "-D", dir]).args(check);
                sandbox.run_command(command, None)?.exited_with(1)?.says(&words)?;
                sandbox.assert_only(&[])?;
            }
        }
        Ok(())
    }

    /// The user namespace has no power over the network namespace it came with.
    fn a_network_of_others_is_told_before(sandbox) {
        let guest = started(sandbox, "tcp_est", "-all")?;
        let images = owned(sandbox.images("ordinary")?)?;
        let (pid, dir) = (guest.pid.to_string(), text(&images)?);
        let tcp = ["--tcp-established", "--network-lock", "skip"];
        let arguments = [&["-R", "-t", &pid, "-D", dir], &tcp[..]].concat();
        run(sandbox, "crust-dump", "+net_admin", &arguments)?.succeeded()?;
        guest.expect_ok(sandbox)?;
        for check in [&["--check"][..], &[]] {
            let mut command = in_user_namespace(sandbox, "--clear-groups", "--map-current-user")?;
            command.args(["-d", "-D", dir]).args(tcp).args(check);
            let outcome = sandbox.run_command(command, None)?.exited_with(1)?;
            outcome.says(&["CAP_NET_ADMIN: is missing in the first user namespace", "TCP"])?;
        }
        Ok(())
    }

    fn needed_for_nothing(sandbox) { needed(sandbox, "loop", &[], &[]) }
    fn needed_for_shared_memory(sandbox) {
        needed(sandbox, "mem_shared", &[], &["CAP_CHECKPOINT_RESTORE"])
    }
    fn needed_for_connections(sandbox) {
        needed(sandbox, "tcp_est", &["--tcp-established"], &["CAP_NET_ADMIN"])
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
        let outcome = run(sandbox, "crust-restore", CAPS, &["-d", "-D", dir])?.exited_with(1)?;
        outcome.says(&["cannot restore"])?;
        sandbox.assert_only(&[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }
}
