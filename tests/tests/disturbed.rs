//! Dumps and restores that somebody disturbs: the memory of the tool ends, the target is frozen,
//! stopped, killed, or goes on to another program under our hands, a signal ends the run.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    guest::Guest,
    kills::{expect_alive, expect_running, own_number},
    proc_snapshot::Snapshot,
    sandbox::Sandbox,
    sandbox_test,
    tools::text,
};
use nix::sys::signal::Signal;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

fn script(sandbox: &Sandbox, body: &str) -> Result<PathBuf> {
    let path = sandbox.dir("scripts")?.join("action");
    fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    Ok(path)
}

/// A cgroup of the v1 hierarchy that is mounted here; it goes with the value.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(controller: &str) -> Option<Cgroup> {
        let root = Path::new("/sys/fs/cgroup").join(controller);
        let name = format!(
            "crust-test-{}-{}",
            std::env::temp_dir().as_os_str().len(),
            own_number()
        );
        let path = root.join(name);
        let made = root.join("tasks").exists() && fs::create_dir(&path).is_ok();
        if !made {
            println!("SKIPPED: there is no {controller} hierarchy of cgroup v1 to use");
        }
        made.then_some(Cgroup(path))
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.0.join(file), value).with_context(|| format!("write {value} to {file}"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel's out-of-memory killer may not be quite done.
        for _ in 0..1000 {
            match fs::remove_dir(&self.0) {
                Err(error) if error.raw_os_error() == Some(16) => std::thread::yield_now(),
                _ => break,
            }
        }
    }
}

fn dumps_again(sandbox: &Sandbox, guest: &Guest, before: &Snapshot) -> Result<()> {
    expect_alive(sandbox, guest)?;
    expect_running(guest)?;
    let images = sandbox.images("again")?;
    sandbox
        .dump(guest.pid, &images, &["--leave-running"])?
        .succeeded()?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    guest.expect_ok(sandbox)
}

/// Runs as the leader of a session whose terminal is closed meanwhile.
fn on_a_closing_terminal(
    sandbox: &Sandbox,
    name: &str,
    arguments: &[&str],
) -> Result<std::process::ExitStatus> {
    let pty = nix::pty::openpty(None, None)?;
    let mut command = Command::new("setsid");
    command.args(["--ctty", "--wait"]).arg(sandbox.binary(name));
    let mut run = command
        .args(arguments)
        .stdin(pty.slave.try_clone()?)
        .stdout(pty.slave.try_clone()?)
        .stderr(pty.slave)
        .spawn()?;
    drop(pty.master);
    Ok(run.wait()?)
}

sandbox_test! {
    /// The kernel kills the dumper for want of memory: the images of 64 MiB are charged to it.
    fn out_of_memory(sandbox) {
        let Some(cgroup) = Cgroup::new("memory") else { return Ok(()) };
        let guest = sandbox.start_with("bigmem", &["64"])?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images("poor")?;
        cgroup.set("memory.limit_in_bytes", "12M")?;
        let enter = format!(
            "echo $$ > {}/tasks && exec \"$0\" -R -t {} -D {}",
            cgroup.0.display(), guest.pid, images.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &enter]).arg(sandbox.binary("crust-dump"));
        let outcome = sandbox.run_command(command, None)?;
        ensure!(!outcome.status.success(), "12 MiB were enough\n{}", outcome.report());
        ensure!(!images.join("inventory.img").exists(), "a killed dump has an inventory");
        dumps_again(sandbox, &guest, &before)
    }

    fn a_frozen_target(sandbox) {
        let Some(cgroup) = Cgroup::new("freezer") else { return Ok(()) };
        let guest = sandbox.start("loop")?;
        let before = Snapshot::of_tree(guest.pid)?;
        cgroup.set("tasks", &guest.pid.to_string())?;
        cgroup.set("freezer.state", "FROZEN")?;
        let images = sandbox.images("frozen")?;
        let outcome = sandbox.dump(guest.pid, &images, &[])?;
        cgroup.set("freezer.state", "THAWED")?;
        outcome.exited_with(1)?.says(&["does not stop", "is frozen", &guest.pid.to_string()])?;
        fs::write("/sys/fs/cgroup/freezer/tasks", guest.pid.to_string())?;
        dumps_again(sandbox, &guest, &before)
    }

    /// The memory that a restore makes is charged to its cgroup, which has too little: whoever the
    /// kernel kills for it, nothing is left, and the same restore succeeds next.
    fn out_of_memory_in_a_restore(sandbox) {
        let Some(cgroup) = Cgroup::new("memory") else { return Ok(()) };
        let guest = sandbox.start_with("bigmem", &["64"])?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images("too-much")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        cgroup.set("memory.limit_in_bytes", "24M")?;
        let enter = format!(
            "echo $$ > {}/tasks && exec \"$0\" -d -D {}",
            cgroup.0.display(), images.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &enter]).arg(sandbox.binary("crust-restore"));
        let outcome = sandbox.run_command(command, None)?;
        ensure!(!outcome.status.success(), "24 MiB were enough\n{}", outcome.report());
        ensure!(!outcome.stderr.contains("panicked"), "{}", outcome.report());
        while crust_tests::kills::what_is_left(sandbox, &guest)?
            != crust_tests::kills::Left::Nothing {}
        sandbox.restore(&images, &[])?.succeeded()?;
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        guest.expect_ok(sandbox)
    }

    fn a_stopped_target_stays_stopped(sandbox) {
        let guest = sandbox.start("threads")?;
        guest.signal(Signal::SIGSTOP)?;
        let state = || fs::read_to_string(format!("/proc/{}/status", guest.pid));
        while !state()?.contains("State:\tT (stopped)") {}
        let images = sandbox.images("stopped")?;
        sandbox.dump(guest.pid, &images, &["--leave-running"])?.succeeded()?;
        ensure!(state()?.contains("State:\tT (stopped)"), "{}", state()?);
        guest.signal(Signal::SIGCONT)?;
        guest.expect_ok(sandbox)
    }

    /// Killed while it is frozen, when all is written: the dump must come to an end.
    fn a_target_that_is_killed(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("killed")?;
        let body = format!("test $CRTOOLS_SCRIPT_ACTION != post-dump || kill -9 {}", guest.pid);
        let script = script(sandbox, &body)?;
        let options = ["--leave-running", "--action-script", text(&script)?];
        let outcome = sandbox.dump(guest.pid, &images, &options)?;
        ensure!(matches!(outcome.status.code(), Some(0 | 1)), "{}", outcome.report());
        ensure!(!outcome.stderr.contains("panicked"), "{}", outcome.report());
        sandbox.reap(&[guest.pid])?;
        sandbox.assert_only(&[])
    }

    /// Gone before the freeze.
    fn a_target_that_dies(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("dead")?;
        // Its parent, the sandbox, does not reap it meanwhile: it is a zombie.
        let body = format!(
            "kill -9 {0}; while ! grep -q '^State:.Z' /proc/{0}/status; do :; done", guest.pid
        );
        let script = script(sandbox, &body)?;
        let options = ["--action-script", text(&script)?];
        let outcome = sandbox.dump(guest.pid, &images, &options)?.exited_with(1)?;
        outcome.says(&["zombie", &guest.pid.to_string()])?;
        sandbox.reap(&[guest.pid])?;
        sandbox.assert_only(&[])
    }

    /// A program that becomes another all the time: each dump meets it somewhere in an exec.
    fn a_target_that_execs(sandbox) {
        let scratch = sandbox.dir("program")?;
        let program = scratch.join("again");
        fs::write(&program, "n=$1\ntest -e stop && { echo ok $n; exit 0; }\nexec sh again $((n + 1))\n")?;
        let mut command = Command::new("sh");
        command.args([text(&program)?, "1"]).current_dir(&scratch);
        let guest = sandbox.spawn("again", &command, &scratch)?;
        for round in 0..20 {
            let images = sandbox.images("execs")?;
            let outcome = sandbox.dump(guest.pid, &images, &["--leave-running"])?;
            let context = || format!("round {round}\n{}", outcome.report());
            ensure!(matches!(outcome.status.code(), Some(0 | 1)), "{}", context());
            ensure!(!outcome.stderr.contains("panicked"), "{}", context());
            expect_alive(sandbox, &guest).with_context(context)?;
            expect_running(&guest).with_context(context)?;
        }
        fs::write(scratch.join("stop"), "")?;
        let status = sandbox.wait(guest.pid)?;
        ensure!(
            status == nix::sys::wait::WaitStatus::Exited(nix::unistd::Pid::from_raw(guest.pid), 0),
            "{status:?}: {:?}", guest.lines()?
        );
        Ok(())
    }

    /// SIGTERM, SIGINT and SIGHUP end a restore that is all but done: nothing is left, and the next
    /// one succeeds.
    fn a_signal_ends_a_restore(sandbox) {
        let guest = sandbox.start("tree")?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images("interrupted")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        for signal in ["TERM", "INT", "HUP"] {
            let body = format!("test $CRTOOLS_SCRIPT_ACTION != pre-resume || kill -{signal} $PPID");
            let script = script(sandbox, &body)?;
            let outcome = sandbox.restore(&images, &["--action-script", text(&script)?])?;
            ensure!(!outcome.status.success(), "{}", outcome.report());
            while crust_tests::kills::what_is_left(sandbox, &guest)?
                != crust_tests::kills::Left::Nothing {}
        }
        sandbox.restore(&images, &[])?.succeeded()?;
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        guest.expect_ok(sandbox)
    }

    /// The terminal of the dumper is closed: its SIGHUP is told like any other, or ends it, and the
    /// target does not notice.
    fn a_closed_terminal(sandbox) {
        let guest = sandbox.start("threads")?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images("hup")?;
        let body = "test $CRTOOLS_SCRIPT_ACTION != post-dump || kill -HUP $PPID";
        let script = script(sandbox, body)?;
        let pid = guest.pid.to_string();
        let arguments = ["-R", "-t", &pid, "-D", text(&images)?, "--action-script", text(&script)?];
        on_a_closing_terminal(sandbox, "crust-dump", &arguments)?;
        dumps_again(sandbox, &guest, &before)
    }

    /// The same of a restore in the foreground: nothing of the tree stays.
    fn a_closed_terminal_of_a_restore(sandbox) {
        let guest = sandbox.start("threads")?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images("hup")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let body = "test $CRTOOLS_SCRIPT_ACTION != pre-resume || kill -HUP $PPID";
        let script = script(sandbox, body)?;
        let arguments = ["-D", text(&images)?, "--action-script", text(&script)?];
        let status = on_a_closing_terminal(sandbox, "crust-restore", &arguments)?;
        ensure!(!status.success(), "it was told to end: {status}");
        while crust_tests::kills::what_is_left(sandbox, &guest)?
            != crust_tests::kills::Left::Nothing {}
        sandbox.restore(&images, &[])?.succeeded()?;
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        guest.expect_ok(sandbox)
    }
}
