//! The stable codes of `--json`: each is provoked by a run of a test. Those that only the kernel's
//! refusal of one call gives are provoked here, the others in the files that the table test finds.

use anyhow::{Context, Result, ensure};
use crust_cli::code::Code;
use crust_tests::{
    build::workspace,
    faults::{Fault, Kind, Refuser},
    guest::Guest,
    proc_snapshot::Snapshot,
    sandbox::Sandbox,
    sandbox_test,
    tools::{Outcome, text},
};
use nix::{
    errno::Errno,
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{fs, process::Command};

/// The code of a failed run with `--json`, and its sentence.
fn code_of(outcome: &Outcome) -> Result<(String, String)> {
    let line: Value =
        serde_json::from_str(outcome.last_line()).with_context(|| outcome.report())?;
    let word = |key: &str| {
        line.pointer(&format!("/error/{key}"))
            .and_then(Value::as_str)
    };
    let (code, what) = word("code")
        .zip(word("what"))
        .with_context(|| outcome.report())?;
    Ok((code.to_owned(), what.to_owned()))
}

/// The kernel's word stands beside the sentence, in a field of its own.
fn expect_errno(outcome: &Outcome) -> Result<()> {
    let line: Value = serde_json::from_str(outcome.last_line())?;
    let errno = line.pointer("/error/errno").and_then(Value::as_str);
    ensure!(errno == Some("EIO"), "the errno is {errno:?}: {line:#}");
    Ok(())
}

/// The first call of a number, made by and about these (words of a [`Kind`]), fails with EIO, and
/// ends the run with this code and words.
struct Provoked<'a> {
    call: (i64, &'a str),
    code: &'a str,
    words: &'a [&'a str],
}

fn provoke(
    sandbox: &Sandbox,
    refuser: &Refuser,
    (tool, arguments): (&str, &[&str]),
    case: &Provoked<'_>,
) -> Result<()> {
    let (number, about) = case.call;
    let calls = refuser.count(sandbox, tool, arguments)?;
    let is_meant = |kind: &&Kind| kind.number == number && kind.key.contains(about);
    let kind = calls.keys().find(is_meant);
    let kind = kind.with_context(|| format!("no call {number} is about {about:?}: {calls:#?}"))?;
    let fault = Fault {
        kind: kind.clone(),
        nth: 1,
        errno: Errno::EIO,
    };
    let (outcome, came) = refuser.run(sandbox, &fault, tool, arguments)?;
    ensure!(
        came && outcome.status.code() == Some(1),
        "{fault:?}: {}",
        outcome.report()
    );
    let (code, what) = code_of(&outcome)?;
    let missing = case.words.iter().find(|word| !what.contains(**word));
    expect_errno(&outcome)?;
    ensure!(
        code == case.code && missing.is_none(),
        "{fault:?}: {code}, not {}: {what:?} has no {missing:?}",
        case.code
    );
    println!("NOTE {code}: {what}");
    Ok(())
}

/// What `provoke` makes of a dump that leaves the guest running.
fn dump_fails(
    sandbox: &Sandbox,
    guest: &str,
    options: &[&str],
    cases: &[Provoked<'_>],
) -> Result<()> {
    let guest: Guest = sandbox.start(guest)?;
    let refuser = Refuser::build(sandbox)?;
    let images = sandbox.images("refused")?;
    let pid = guest.pid.to_string();
    let arguments = [&["--json", "-R", "-t", &pid, "-D", text(&images)?], options].concat();
    let before = Snapshot::of_tree(guest.pid)?;
    for case in cases {
        provoke(sandbox, &refuser, ("crust-dump", &arguments), case)?;
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    }
    guest.expect_ok(sandbox)
}

sandbox_test! {
    fn stages_of_a_dump(sandbox) {
        let case = |number, about, code, words| Provoked { call: (number, about), code, words };
        dump_fails(sandbox, "loop", &[], &[
            case(libc::SYS_signalfd4, "main", "host", &["signals", "EIO"]),
            case(libc::SYS_ptrace, "main 0x4206", "freeze", &["task ", "PTRACE_SEIZE", "EIO"]),
            case(libc::SYS_fstatfs, "main", "collect", &["task ", "fstatfs", "EIO"]),
            case(libc::SYS_write, "core-N.img", "write", &["core-", "flush", "Input/output error"]),
            case(libc::SYS_ptrace, "main 0x11", "let-go", &["task ", "PTRACE_DETACH", "EIO"]),
            case(libc::SYS_write, "stats-dump", "afterwards", &["stats-dump", "Input/output error"]),
            case(libc::SYS_read, "anon_inode:[signalfd]", "kernel", &["signal", "EIO"]),
        ])
    }

    /// The userfaultfd cannot be taken from the task; the holder cannot take it from us.
    fn memory_that_cannot_be_tracked(sandbox) {
        let case = |number, about, words| Provoked { call: (number, about), code: "track", words };
        dump_fails(sandbox, "loop", &["--track-mem"], &[
            case(libc::SYS_pidfd_getfd, "child", &["holder of the write tracking", "task ", "EIO"]),
            case(libc::SYS_bind, "child", &["holder of the write tracking", "listen", "EIO"]),
            case(libc::SYS_setsid, "child", &["holder of the write tracking", "setsid", "EIO"]),
        ])
    }

    /// A step of the broker and one in a task.
    fn steps_of_a_restore(sandbox) {
        let guest = sandbox.start("pipes")?;
        let images = sandbox.images("good")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let refuser = Refuser::build(sandbox)?;
        let arguments = ["--json", "-d", "-D", text(&images)?];
        // Not counted before: a tree restored below the filter cannot live without its answers.
        for (number, caller, words) in [
            (libc::SYS_pipe2, "main", ["restore pipe", "in broker: pipe2", "EIO"]),
            (libc::SYS_umask, "child", ["restore ", "umask", "EIO"]),
        ] {
            let kind = Kind { number, key: caller.to_owned() };
            let fault = Fault { kind, nth: 1, errno: Errno::EIO };
            let (outcome, came) = refuser.run(sandbox, &fault, "crust-restore", &arguments)?;
            let (code, what) = code_of(&outcome)?;
            ensure!(came && code == "execute", "{fault:?}: {}", outcome.report());
            let missing = words.iter().find(|word| !what.contains(**word));
            ensure!(missing.is_none(), "{what:?} has no {missing:?}");
            expect_errno(&outcome)?;
            sandbox.assert_only(&[])?;
        }
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// Before and behind a restore: in the end the whole tree runs in spite of the failure.
    fn around_a_restore(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("good")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let refuser = Refuser::build(sandbox)?;
        let arguments = ["--json", "-d", "-D", text(&images)?];
        let kind = Kind { number: libc::SYS_getsid, key: "main".to_owned() };
        let fault = Fault { kind, nth: 1, errno: Errno::EIO };
        let (outcome, came) = refuser.run(sandbox, &fault, "crust-restore", &arguments)?;
        let (code, what) = code_of(&outcome)?;
        ensure!(came && code == "host" && what.contains("session"), "{code}: {what}");
        sandbox.assert_only(&[])?;
        let stats = images.join("stats-restore");
        fs::create_dir(&stats)?;
        let outcome = sandbox.run("crust-restore", &arguments, None)?.exited_with(1)?;
        let (code, what) = code_of(&outcome)?;
        ensure!(code == "afterwards" && what.contains("stats-restore"), "{code}: {what}");
        fs::remove_dir(&stats)?;
        guest.expect_ok(sandbox)
    }

    fn a_network_that_cannot_be_locked(sandbox) {
        let guest = sandbox.start("tcp_est")?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images("unlocked")?;
        let mut command = Command::new(sandbox.binary("crust-dump"));
        command.args(["--json", "-R", "-t", &guest.pid.to_string(), "-D", text(&images)?]);
        // There is no iptables-restore on this path.
        command.args(["--tcp-established", "--network-lock", "iptables"]).env("PATH", "/nonexistent");
        let outcome = sandbox.run_command(command, None)?.exited_with(1)?;
        let (code, what) = code_of(&outcome)?;
        ensure!(code == "network-lock" && what.contains("iptables-restore"), "{code}: {what}");
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        guest.expect_ok(sandbox)
    }

    /// A clone(CLONE_VFORK) that shares no memory: its parent sleeps where no signal wakes it.
    fn a_thread_that_does_not_stop(sandbox) {
        let scratch = sandbox.dir("asleep")?;
        let program = "import ctypes, signal\nprint('ready', flush=True)\n\
            child = ctypes.CDLL(None).syscall(56, 0x4000 | 17, 0, 0, 0, 0)\n\
            if child == 0: signal.pause()\n";
        let mut command = Command::new("python3");
        command.args(["-c", program]);
        let guest = sandbox.spawn("python3", &command, &scratch)?;
        guest.wait_for_line(sandbox, "ready")?;
        let child = loop {
            let tree = crust_tests::proc_snapshot::tree(guest.pid)?;
            if let Some(child) = tree.into_iter().find(|pid| *pid != guest.pid) {
                break child;
            }
        };
        let images = sandbox.images("asleep")?;
        let pid = guest.pid.to_string();
        let arguments = ["--json", "-t", &pid, "-D", text(&images)?, "--timeout", "1"];
        let outcome = sandbox.run("crust-dump", &arguments, None)?.exited_with(1)?;
        let (code, what) = code_of(&outcome)?;
        ensure!(code == "unstoppable" && what.contains("does not stop"), "{code}: {what}");
        kill(Pid::from_raw(child), Signal::SIGKILL)?;
        sandbox.wait(guest.pid)?;
        Ok(())
    }

    fn images_that_were_damaged(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("damaged")?;
        sandbox.dump_and_kill(&guest, &images, &["--digest"])?;
        let pages = images.join("pages-1.img");
        let good = fs::read(&pages)?;
        let mut bad = good.clone();
        *bad.first_mut().context("no pages")? ^= 1;
        fs::write(&pages, bad)?;
        let arguments = ["--json", "-d", "-D", text(&images)?];
        let outcome = sandbox.run("crust-restore", &arguments, None)?.exited_with(1)?;
        let (code, what) = code_of(&outcome)?;
        ensure!(code == "digest" && what.contains("pages-1.img"), "{code}: {what}");
        fs::write(&pages, good)?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }
}

/// A kernel thread is seen from the first pid namespace only, so this is no sandbox.
#[test]
fn a_kernel_thread() -> Result<()> {
    if let Some(reason) = crust_tests::sandbox::missing_privilege() {
        eprintln!("SKIPPED a_kernel_thread: {reason}");
        return Ok(());
    }
    let name = fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if name.trim() != "kthreadd" {
        eprintln!("SKIPPED a_kernel_thread: pid 2 is not kthreadd in this pid namespace");
        return Ok(());
    }
    let images = crust_tests::build::products_dir()?.join("kernel-thread-code");
    fs::create_dir_all(&images)?;
    let output = Command::new(crust_tests::build::binaries()?.join("crust-dump"))
        .args(["--json", "-t", "2", "-D", text(&images)?])
        .output()?;
    let said: Value = serde_json::from_slice(&output.stderr)?;
    let code = said.pointer("/error/code").and_then(Value::as_str);
    ensure!(code == Some("kernel-thread"), "{said:#}");
    Ok(())
}

/// Every code is what some test expects: a new one without a test fails here.
#[test]
fn every_code_is_provoked() -> Result<()> {
    let mut sources = String::new();
    for entry in fs::read_dir(workspace().join("tests/tests"))? {
        sources += &fs::read_to_string(entry?.path())?;
    }
    let sources: String = sources.split_whitespace().collect();
    let is_expected = |code: &&Code| {
        let name = code.name();
        // failure("x", expect_finding(&report, "x", a comparison, or a case of this file.
        let forms = [
            format!("failure(\"{name}\","),
            format!(",\"{name}\",&["),
            format!("code==\"{name}\""),
            format!("code==Some(\"{name}\")"),
            format!("code:\"{name}\""),
        ];
        forms.iter().any(|form| sources.contains(form))
    };
    let missing: Vec<_> = Code::ALL.iter().filter(|code| !is_expected(code)).collect();
    ensure!(missing.is_empty(), "no test expects {missing:?}");
    Ok(())
}
