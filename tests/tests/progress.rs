//! How far a run is, end to end: JSON lines on `--progress-fd`, a bar on a terminal for what takes
//! longer than a second and none for what does not, and the timeline of `--display-stats`.

use anyhow::{Context, Result, ensure};
use crust_tests::{guest::Guest, sandbox::Sandbox, sandbox_test, tools::text};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
};

/// Runs a tool with descriptor 9 on a file and gives the lines that were written to it.
fn lines_of(sandbox: &Sandbox, name: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let file = sandbox.dir("progress")?.join(name);
    let script = format!("exec \"$0\" \"$@\" 9>{}", text(&file)?);
    let mut command = Command::new("bash");
    command
        .args(["-c", &script])
        .arg(sandbox.binary(name))
        .args(arguments);
    command.args(["--progress-fd", "9"]);
    sandbox.run_command(command, None)?.succeeded()?;
    let lines = fs::read_to_string(&file)?;
    let lines = lines.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().context("a line of JSON")
}

/// Every stage begins and ends in this order, time goes forward, and nothing is done beyond what
/// there is to do.
fn expect_stages(lines: &[Value], expected: &[&str]) -> Result<()> {
    let mut stages: Vec<&str> = Vec::new();
    let mut elapsed = 0;
    for line in lines {
        let stage = line["stage"].as_str().context("no stage")?;
        if stages.last() != Some(&stage) {
            stages.push(stage);
        }
        let now = line["elapsed_us"].as_u64().context("no time")?;
        ensure!(now >= elapsed, "time goes back: {lines:?}");
        elapsed = now;
        let done = line["done"].as_u64().context("no bytes")?;
        if let Some(total) = line["total"].as_u64() {
            ensure!(done <= total, "{line}");
        }
    }
    let mut left = stages.iter();
    let missing = expected
        .iter()
        .find(|stage| !left.any(|there| there == *stage));
    ensure!(
        missing.is_none(),
        "{missing:?} is not in its place in {stages:?}"
    );
    Ok(())
}

/// Bytes that the lines say were done at most in one stage.
fn most_done(lines: &[Value]) -> u64 {
    let done = lines.iter().filter_map(|line| line["done"].as_u64());
    done.max().unwrap_or_default()
}

fn script(sandbox: &Sandbox, body: &str) -> Result<PathBuf> {
    let path = sandbox.dir("scripts")?.join("action");
    fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    Ok(path)
}

/// What a run writes to the terminal that is its stderr.
fn on_a_terminal(sandbox: &Sandbox, name: &str, arguments: &[&str]) -> Result<String> {
    let pty = nix::pty::openpty(None, None)?;
    let mut command = Command::new(sandbox.binary(name));
    command.args(arguments).stderr(File::from(pty.slave));
    let mut child = command.spawn()?;
    // The only copy of the other end that is not the child's.
    drop(command);
    let mut said = Vec::new();
    // EIO when the last writer has closed it.
    let _ = File::from(pty.master).read_to_end(&mut said);
    let status = child.wait()?;
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(status.success(), "{status}: {said}");
    Ok(said)
}

fn dumped(sandbox: &Sandbox, guest: &str, arguments: &[&str]) -> Result<(Guest, PathBuf)> {
    let guest = sandbox.start_with(guest, arguments)?;
    let images = sandbox.images("progress")?;
    Ok((guest, images))
}

fn expect_timeline(said: &[u8], stages: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(said);
    let timeline = said.split_once("Timeline").context("no timeline")?.1;
    for stage in stages {
        let has = |line: &str| line.trim_end().ends_with(stage) && line.matches(" us").count() == 2;
        ensure!(timeline.lines().any(has), "no {stage} in {timeline}");
    }
    Ok(())
}

fn no_bar(said: &str) -> bool {
    !said.contains('\u{1b}') && !said.contains('\r')
}

sandbox_test! {
    fn lines_and_timelines(sandbox) {
        const MIB: u64 = 1 << 20;
        let (guest, images) = dumped(sandbox, "bigmem", &["16"])?;
        let pid = guest.pid.to_string();
        let lines = lines_of(sandbox, "crust-dump", &["-R", "-t", &pid, "-D", text(&images)?])?;
        expect_stages(&lines, &["freeze", "collect", "write", "finish", "let go"])?;
        ensure!(most_done(&lines) >= 16 * MIB, "{lines:?}");
        let options = ["-t", &pid, "-D", text(&images)?, "--display-stats"];
        let outcome = sandbox.run("crust-dump", &options, None)?.succeeded()?;
        expect_timeline(&outcome.stdout, &["freeze", "collect", "write", "let go"])?;
        sandbox.reap(&[guest.pid])?;
        let options = ["-d", "-D", text(&images)?, "--display-stats"];
        let lines = lines_of(sandbox, "crust-restore", &options)?;
        expect_stages(&lines, &["read", "plan", "ask host"])?;
        ensure!(most_done(&lines) >= 16 * MIB, "{lines:?}");
        guest.expect_ok(sandbox)
    }

    fn the_timeline_of_a_restore(sandbox) {
        let (guest, images) = dumped(sandbox, "loop", &[])?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let options = ["-d", "-D", text(&images)?, "--display-stats"];
        let outcome = sandbox.run("crust-restore", &options, None)?.succeeded()?;
        expect_timeline(&outcome.stdout, &["read", "plan", "ask host"])?;
        guest.expect_ok(sandbox)
    }

    /// A script makes the run one that takes longer than a second.
    fn a_bar_on_a_terminal(sandbox) {
        let (guest, images) = dumped(sandbox, "bigmem", &["16"])?;
        let pid = guest.pid.to_string();
        let quick = ["-R", "-t", &pid, "-D", text(&images)?];
        let slow = script(sandbox, "case $CRTOOLS_SCRIPT_ACTION in pre-*) sleep 1.1;; esac")?;
        let slow = ["--action-script", text(&slow)?];
        let said = on_a_terminal(sandbox, "crust-dump", &[&quick[..], &slow].concat())?;
        ensure!(said.contains("write") && !no_bar(&said), "no bar: {said:?}");
        // What is said behind --json is for a program.
        let arguments = [&quick[..], &slow, &["--json"]].concat();
        let said = on_a_terminal(sandbox, "crust-dump", &arguments)?;
        ensure!(no_bar(&said), "a bar in spite of --json: {said:?}");
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let arguments = [&["-d", "-D", text(&images)?][..], &slow].concat();
        let said = on_a_terminal(sandbox, "crust-restore", &arguments)?;
        ensure!(!no_bar(&said), "no bar: {said:?}");
        guest.expect_ok(sandbox)
    }
}
