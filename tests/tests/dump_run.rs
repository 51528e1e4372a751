//! The run of a dump: what ends it half way, what an older dump in the directory becomes, what
//! runtimes that call us rely on.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    guest::Guest,
    proc_snapshot::Snapshot,
    sandbox::Sandbox,
    sandbox_test,
    tools::{Outcome, text},
};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// An action script with this body.
fn script(sandbox: &Sandbox, body: &str) -> Result<PathBuf> {
    let path = sandbox.dir("scripts")?.join("action");
    fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    Ok(path)
}

/// A dump with an action script that must fail: the guest must not notice.
fn ended_by(sandbox: &Sandbox, guest: &Guest, images: &Path, body: &str) -> Result<Outcome> {
    let script = script(sandbox, body)?;
    let before = Snapshot::of_tree(guest.pid)?;
    let outcome = sandbox
        .dump(guest.pid, images, &["--action-script", text(&script)?])?
        .exited_with(1)?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    Ok(outcome)
}

/// The images in a directory, without logs and statistics.
fn images_in(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name.ends_with(".img"));
    names.sort();
    Ok(names)
}

/// An image as JSON without the registers: a thread may have moved between two dumps.
fn still_image(sandbox: &Sandbox, image: &Path) -> Result<serde_json::Value> {
    let json = sandbox
        .run("crit", &["decode", "-i", text(image)?], None)?
        .succeeded()?;
    let mut json: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    let entries = json
        .pointer_mut("/entries")
        .and_then(serde_json::Value::as_array_mut);
    for entry in entries.into_iter().flatten() {
        if let Some(info) = entry
            .get_mut("thread_info")
            .and_then(|info| info.as_object_mut())
        {
            info.remove("gpregs").context("a core without registers")?;
            info.remove("fpregs")
                .context("a core without FPU registers")?;
        }
    }
    Ok(json)
}

sandbox_test! {
    /// A signal ends a dump in good order. It is sent before the freeze, so it always comes in
    /// time.
    fn a_signal_ends_a_dump(sandbox) {
        let guest = sandbox.start("tree")?;
        for (signal, name) in [("TERM", "SIGTERM"), ("INT", "SIGINT"), ("HUP", "SIGHUP")] {
            let images = sandbox.images(signal)?;
            let body = format!("test $CRTOOLS_SCRIPT_ACTION != pre-dump || kill -{signal} $PPID");
            ended_by(sandbox, &guest, &images, &body)?.says(&["interrupted", name])?;
            ensure!(images_in(&images)?.is_empty(), "{:?} are left", images_in(&images)?);
        }
        guest.expect_ok(sandbox)
    }

    /// A script that fails when everything but the inventory is written: nothing is left.
    fn a_failing_script_undoes_the_dump(sandbox) {
        let guest = sandbox.start("mem_shared")?;
        let images = sandbox.images("undone")?;
        let body = format!(
            "test $CRTOOLS_SCRIPT_ACTION != post-dump && exit 0
             ls {} > {}/seen; exit 3",
            text(&images)?,
            text(&sandbox.dir("scripts")?)?,
        );
        ended_by(sandbox, &guest, &images, &body)?.says(&["post-dump", "exit status: 3"])?;
        let seen = fs::read_to_string(sandbox.dir("scripts")?.join("seen"))?;
        ensure!(seen.contains("pages-1.img"), "the script saw no images:\n{seen}");
        ensure!(!seen.contains("inventory.img"), "the script saw an inventory:\n{seen}");
        ensure!(images_in(&images)?.is_empty(), "{:?} are left", images_in(&images)?);
        guest.expect_ok(sandbox)
    }

    /// A dump that is refused has written nothing, and an older one stays good.
    fn an_older_dump_stays_until_the_new_one_is_sure(sandbox) {
        let images = sandbox.images("older")?;
        let older = sandbox.start("loop")?;
        sandbox.dump_and_kill(&older, &images, &[])?;
        let before = images_in(&images)?;
        let refused = sandbox.start("unsupported")?;
        sandbox.dump(refused.pid, &images, &[])?.exited_with(1)?;
        refused.expect_ok(sandbox)?;
        ensure!(images_in(&images)? == before, "a refused dump changed the older one");
        sandbox.restore(&images, &[])?.succeeded()?;
        older.expect_ok(sandbox)
    }

    fn scripts_know_where_they_are(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("scripts")?;
        let seen = sandbox.dir("scripts")?.join("seen");
        let body = format!(
            "echo $CRTOOLS_SCRIPT_ACTION $CRTOOLS_IMAGE_DIR $CRTOOLS_INIT_PID >> {}",
            text(&seen)?
        );
        let script = script(sandbox, &body)?;
        let options = ["--leave-running", "--action-script", text(&script)?];
        sandbox.dump(guest.pid, &images, &options)?.succeeded()?;
        let expected: Vec<String> = ["pre-dump", "post-dump"]
            .iter()
            .map(|stage| format!("{stage} {} {}", images.display(), guest.pid))
            .collect();
        let seen = fs::read_to_string(&seen).context("the script did not run")?;
        ensure!(seen.lines().eq(expected.iter().map(String::as_str)), "the scripts saw:\n{seen}");
        guest.expect_ok(sandbox)
    }

    /// `--leave-stopped`: found stopped, and as it was once it goes on.
    fn a_tree_left_stopped_goes_on(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("stopped")?;
        sandbox.dump(guest.pid, &images, &["--leave-stopped"])?.succeeded()?;
        let status = fs::read_to_string(format!("/proc/{}/status", guest.pid))?;
        ensure!(status.contains("State:\tT (stopped)"), "it is not stopped:\n{status}");
        guest.signal(nix::sys::signal::Signal::SIGCONT)?;
        guest.expect_ok(sandbox)
    }

    /// A second dump of a tree that runs on sees what the first saw.
    fn two_dumps_of_one_tree_are_alike(sandbox) {
        let guest = sandbox.start("threads")?;
        let (one, two) = (sandbox.images("one")?, sandbox.images("two")?);
        for images in [&one, &two] {
            sandbox.dump(guest.pid, images, &["--leave-running"])?.succeeded()?;
        }
        let names = images_in(&one)?;
        ensure!(names == images_in(&two)?, "{names:?} and {:?}", images_in(&two)?);
        // Clocks and a fresh number are in these two; pages of the stack's end may be new.
        let varying = ["inventory.img", "timens-0.img"];
        for name in names.iter().filter(|name| !varying.contains(&name.as_str())) {
            if name.starts_with("pages-") || name.starts_with("pagemap-") {
                continue;
            }
            let (first, second) = (
                still_image(sandbox, &one.join(name))?,
                still_image(sandbox, &two.join(name))?,
            );
            ensure!(first == second, "{name} differs:\n{first}\n{second}");
        }
        guest.expect_ok(sandbox)
    }
}
