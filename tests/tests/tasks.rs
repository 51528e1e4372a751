//! Trees: such as fork and clone as fast as they can, tasks that cannot be frozen, and the options
//! that say what becomes of a tree and whose child it is.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    guest::Guest,
    proc_snapshot::{Snapshot, tree},
    sandbox::Sandbox,
    sandbox_test,
    tools::text,
};
use nix::sys::{
    signal::{Signal, kill},
    wait::WaitStatus,
};
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Writes dots, one after each nap; only one when it has an argument.
const IA32: &str = r#"
static int call(int nr, int a, const void *b, int c)
{
    int ret;
    __asm__ volatile("int $0x80" : "=a"(ret) : "a"(nr), "b"(a), "c"(b), "d"(c) : "memory");
    return ret;
}
__attribute__((used)) static void run(int *stack)
{
    int nap[2] = { 0, 10000000 };
    do {
        call(4, 1, ".", 1);
        call(162, (int)nap, 0, 0);
    } while (stack[0] < 2);
    call(1, 0, 0, 0);
    for (;;);
}
__asm__(".globl _start\n_start: mov %esp, %eax\npush %eax\ncall run\n");
"#;

/// How often a bomb is frozen in full flight before it is dumped for good.
const FREEZES: usize = 5;

/// Each dump must come to an end and leave a tree that counts right; so must the restored one.
fn bomb(sandbox: &Sandbox, kind: &str) -> Result<()> {
    let guest = sandbox.start_with("bomb", &[kind])?;
    for round in 0..FREEZES {
        let images = sandbox.images(&format!("running-{round}"))?;
        sandbox
            .dump(guest.pid, &images, &["--leave-running"])?
            .succeeded()?;
    }
    let images = sandbox.images("bomb")?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    sandbox.assert_only(&[])?;
    sandbox.restore(&images, &[])?.succeeded()?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

/// A big family: what is linear in it shows, and no limit is met on the way.
fn many(sandbox: &Sandbox, kind: &str, number: usize) -> Result<()> {
    let guest = sandbox.start_with("many", &[kind, &number.to_string()])?;
    let images = sandbox.images("many")?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    sandbox.assert_only(&[])?;
    sandbox.restore(&images, &[])?.succeeded()?;
    let members = match kind {
        "threads" => crust_tests::proc_snapshot::threads(guest.pid)?.len(),
        _ => tree(guest.pid)?.len(),
    };
    ensure!(members == number, "{members} {kind} are left of {number}");
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

/// A dumped guest and its images.
fn dumped(sandbox: &Sandbox, name: &str) -> Result<(Guest, PathBuf)> {
    let guest = sandbox.start(name)?;
    let images = sandbox.images(name)?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    Ok((guest, images))
}

/// A line of /proc/PID/status, without its name.
fn status(pid: i32, key: &str) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    Ok(line.with_context(|| format!("no {key}"))?.trim().to_owned())
}

/// crust-restore without --restore-detached, when the tree is let go.
fn restoring(sandbox: &Sandbox, guest: &Guest, images: &Path) -> Result<Child> {
    let mut command = Command::new(sandbox.binary("crust-restore"));
    command.args(["-D", text(images)?, "--pidfile", "root.pid"]);
    let mut child = command.stdin(Stdio::null()).spawn()?;
    let restorer = child.id().to_string();
    // Its child is there and nobody traces it any more.
    let is_free = || -> Result<bool> {
        Ok(status(guest.pid, "TracerPid:")? == "0"
            && status(guest.pid, "PPid:")? == restorer
            && !status(guest.pid, "State:")?.starts_with('t'))
    };
    while !images.join("root.pid").exists() || !is_free().unwrap_or(false) {
        let ended = child.try_wait()?;
        ensure!(ended.is_none(), "crust-restore has ended: {ended:?}");
        std::thread::yield_now();
    }
    let written = fs::read_to_string(images.join("root.pid"))?;
    fs::remove_file(images.join("root.pid"))?;
    ensure!(written == guest.pid.to_string(), "--pidfile: {written:?}");
    Ok(child)
}

sandbox_test! {
    fn a_thread_bomb(sandbox) { bomb(sandbox, "threads") }
    fn a_fork_bomb(sandbox) { bomb(sandbox, "forks") }

    fn a_thousand_threads(sandbox) { many(sandbox, "threads", 1000) }
    fn five_hundred_children(sandbox) { many(sandbox, "children", 500) }

    fn a_vfork_in_progress_is_refused_by_name(sandbox) {
        let guest = sandbox.start("vfork_wait")?;
        let before = Snapshot::of_tree(guest.pid)?;
        let line = guest.lines()?.into_iter().find(|line| line.starts_with("vfork "));
        let waits = line.context("no pid")?.trim_start_matches("vfork ").to_owned();
        let images = sandbox.images("vfork")?;
        let outcome = sandbox.dump(guest.pid, &images, &["--timeout", "1"])?.exited_with(1)?;
        outcome.says(&[&format!("task {waits} "), "vfork"])?;
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        guest.expect_ok(sandbox)
    }

    /// Between the check of the host and the fork: the pid of the root, of a child, of a thread.
    fn pids_that_somebody_takes_meanwhile(sandbox) {
        let guest = sandbox.start("leader_gone")?;
        let mut taken = tree(guest.pid)?;
        let entries = fs::read_dir(format!("/proc/{}/task", guest.pid))?;
        taken.extend(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()));
        taken.sort_unstable();
        taken.dedup();
        ensure!(taken.len() > 1, "a tree of one thread: {taken:?}");
        let images = sandbox.images("meanwhile")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let script = sandbox.dir("script")?.join("taker");
        for pid in taken {
            let body = format!(
                "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION = pre-restore ] || exit 0\n\
                 while :; do\n echo {} > /proc/sys/kernel/ns_last_pid\n\
                 sleep 1000 </dev/null >/dev/null 2>&1 &\n\
                 [ $! = {pid} ] && exit 0\n kill -9 $!\ndone\n",
                pid - 1
            );
            fs::write(&script, body)?;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
            // crust-restore itself must not get one of the numbers.
            fs::write("/proc/sys/kernel/ns_last_pid", "5000")?;
            let outcome = sandbox.restore(&images, &["--action-script", text(&script)?])?;
            outcome.exited_with(1)?.says(&[&format!("pid {pid} is in use by")])?;
            sandbox.assert_only(&[pid])?;
            kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            sandbox.reap(&[pid])?;
        }
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// crust-restore stands right before the tree, so that its own threads and its survivor get the
    /// numbers that the tree needs: they are gone before, or are given up for others.
    fn pids_that_the_restore_itself_would_take(sandbox) {
        let last_pid = "/proc/sys/kernel/ns_last_pid";
        fs::write(last_pid, "3000")?;
        let guest = sandbox.start_with("many", &["children", "40"])?;
        for before in 1..=3 {
            let images = sandbox.images(&format!("before-{before}"))?;
            sandbox.dump_and_kill(&guest, &images, &[])?;
            fs::write(last_pid, (guest.pid - 1 - before).to_string())?;
            sandbox.restore(&images, &[])?.succeeded()?;
        }
        guest.expect_ok(sandbox)
    }

    /// A program of the other word size: refused before anything of ours runs in it.
    fn a_32_bit_program_is_refused_and_runs_on(sandbox) {
        let dir = sandbox.dir("ia32")?;
        fs::write(dir.join("ia32.c"), IA32)?;
        let options = ["-m32", "-O1", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector"];
        let mut cc = Command::new("cc");
        cc.args(options).args(["-o", "ia32", "ia32.c"]).current_dir(&dir);
        let program = dir.join("ia32");
        let built = cc.output()?.status.success();
        if !built || Command::new(&program).arg("once").output().is_err() {
            println!("SKIPPED: no compiler for 32-bit code, or a kernel that cannot run it");
            return Ok(());
        }
        let guest = sandbox.spawn("ia32", &Command::new(&program), &dir)?;
        guest.wait_until(sandbox, "some dots", |text| text.len() > 3)?;
        let images = sandbox.images("ia32")?;
        let refused = sandbox.dump(guest.pid, &images, &[])?.exited_with(1)?;
        refused.says(&[&format!("task {}", guest.pid), "32-bit"])?;
        let written = fs::metadata(&guest.out)?.len() as usize;
        guest.wait_until(sandbox, "more dots", |text| text.len() > written + 3)?;
        guest.signal(Signal::SIGKILL)?;
        sandbox.reap(&[guest.pid])
    }

    /// The end of the root is that of crust-restore.
    fn a_restore_in_the_foreground_ends_as_the_root_does(sandbox) {
        let (guest, images) = dumped(sandbox, "loop")?;
        let mut restore = restoring(sandbox, &guest, &images)?;
        guest.signal(Signal::SIGKILL)?;
        let code = restore.wait()?.code();
        ensure!(code == Some(128 + 9), "killed by SIGKILL, but {code:?}");
        let mut restore = restoring(sandbox, &guest, &images)?;
        let pid = guest.pid.to_string();
        let sent = Command::new("kill").args(["-s", "RTMIN+5", &pid]).status()?;
        ensure!(sent.success(), "kill: {sent}");
        let code = restore.wait()?.code();
        let real_time = nix::libc::SIGRTMIN() + 5;
        ensure!(code == Some(128 + real_time), "killed by RTMIN+5, but {code:?}");
        let mut restore = restoring(sandbox, &guest, &images)?;
        guest.signal(Signal::SIGTERM)?;
        ensure!(restore.wait()?.code() == Some(0), "its verdict was ok");
        sandbox.assert_only(&[])
    }

    fn a_sibling_has_the_parent_of_crust_restore(sandbox) {
        let (guest, images) = dumped(sandbox, "tree")?;
        let alone = sandbox.run("crust-restore", &["-S", "-D", text(&images)?], None)?;
        alone.exited_with(2)?.says(&["--restore-detached"])?;
        // The shell is still there when it is asked for its child.
        let script = "\"$0\" -d -S -D \"$1\" || exit 9; \
            while read key value; do [ $key = PPid: ] && [ $value = $$ ] && exit 0; done \
            < /proc/$2/status; exit 8";
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).arg(sandbox.binary("crust-restore"));
        shell.args([text(&images)?, &guest.pid.to_string()]);
        sandbox.run_command(shell, None)?.exited_with(0)?;
        guest.expect_ok(sandbox)
    }

    fn a_tree_restored_and_left_stopped_goes_on(sandbox) {
        let (guest, images) = dumped(sandbox, "attrs")?;
        sandbox.restore(&images, &["--leave-stopped"])?.succeeded()?;
        let pids = tree(guest.pid)?;
        for &pid in &pids {
            let state = status(pid, "State:")?;
            ensure!(state.starts_with('T'), "task {pid} is not stopped: {state}");
        }
        for pid in pids {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGCONT)?;
        }
        guest.expect_ok(sandbox)
    }

    /// A program that was started in the session of its shell.
    fn a_shell_job_joins_the_session_of_the_restorer(sandbox) {
        let program = sandbox.install_guest("loop")?;
        let scratch = sandbox.dir("job")?;
        let out = scratch.join("out");
        let file = fs::File::create(&out)?;
        let mut command = Command::new(program);
        command.arg(&scratch).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let pid = i32::try_from(command.spawn()?.id())?;
        let guest = Guest { name: "loop".to_owned(), pid, out };
        guest.wait_until_set_up(sandbox)?;
        let images = sandbox.images("job")?;
        let refused = sandbox.dump(pid, &images, &[])?.exited_with(1)?;
        refused.says(&["session", "--shell-job"])?;
        sandbox.dump(pid, &images, &["--shell-job"])?.succeeded()?;
        sandbox.reap(&[pid])?;
        sandbox.restore(&images, &[])?.exited_with(1)?.says(&["session", "--shell-job"])?;
        sandbox.restore(&images, &["-j"])?.succeeded()?;
        let own = nix::unistd::getsid(None)?;
        let session = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid)))?;
        ensure!(session == own, "it is in session {session}, not in ours, {own}");
        guest.expect_ok(sandbox)
    }

    /// A root that ends by itself while it is restored in the background is its parent's to reap.
    fn a_detached_root_becomes_a_child_of_init(sandbox) {
        let (guest, images) = dumped(sandbox, "loop")?;
        sandbox.restore(&images, &[])?.succeeded()?;
        ensure!(status(guest.pid, "PPid:")? == "1", "its parent is not the sandbox's init");
        guest.signal(Signal::SIGKILL)?;
        let ended = sandbox.wait(guest.pid)?;
        ensure!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _)), "{ended:?}");
        Ok(())
    }
}
