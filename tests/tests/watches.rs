//! Watches of inotify and marks of fanotify whose files must be looked for: by name where the user
//! says, on a file system that gives no handles; and what cannot be kept of them.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    sandbox::{GOLDEN, Sandbox},
    sandbox_test,
    tools::text,
};
use nix::mount::{MsFlags, mount};
use std::{fs, path::Path};

/// The paths of the watches in inotify-file entries of a dump.
fn watched_paths(sandbox: &Sandbox, images: &Path) -> Result<Vec<String>> {
    let files = images.join("files.img");
    let json = sandbox
        .run("crit", &["decode", "-i", text(&files)?], None)?
        .succeeded()?;
    let json: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    let entries = json["entries"].as_array().context("no entries")?;
    let watches = entries
        .iter()
        .filter_map(|entry| entry["ify"]["wd"].as_array())
        .flatten();
    let paths = watches.filter_map(|wd| wd["f_handle"]["path"].as_str());
    Ok(paths.map(str::to_owned).collect())
}

/// The user's way to the files, which the kernel would not tell, is what the image has.
fn forced(sandbox: &Sandbox) -> Result<()> {
    let guest = sandbox.start("inotify")?;
    let scanned = format!("{}/../../inotify", text(&sandbox.dir("names")?)?);
    let of_user = |paths: &[String]| {
        paths
            .iter()
            .filter(|path| path.starts_with(&scanned))
            .count()
    };
    let images = sandbox.images("irmap")?;
    let by_handle = ["--leave-running", "--irmap-scan-path", &scanned];
    sandbox.dump(guest.pid, &images, &by_handle)?.succeeded()?;
    let paths = watched_paths(sandbox, &images)?;
    ensure!(of_user(&paths) == 0, "looked for without need: {paths:?}");
    let options = ["--force-irmap", "--irmap-scan-path", &scanned];
    sandbox.dump_and_kill(&guest, &images, &options)?;
    let paths = watched_paths(sandbox, &images)?;
    ensure!(of_user(&paths) == 3, "{paths:?}");
    sandbox.restore(&images, &[])?.succeeded()?;
    guest.expect_ok(sandbox)
}

/// The guest's directory becomes an overlay, whose files have handles that nobody can open.
fn without_handles(sandbox: &Sandbox) -> Result<()> {
    let layers = sandbox.dir("layers")?;
    for layer in ["lower", "upper", "work"] {
        fs::create_dir(layers.join(layer))?;
    }
    let scratch = Path::new(GOLDEN).join("inotify");
    fs::create_dir_all(&scratch)?;
    let dir = text(&layers)?;
    let data = format!("lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/work");
    let mounted = mount(
        Some("overlay"),
        &scratch,
        Some("overlay"),
        MsFlags::empty(),
        Some(data.as_str()),
    );
    if let Err(errno) = mounted {
        println!("SKIPPED: mount an overlay: {errno}");
        return Ok(());
    }
    let guest = sandbox.start("inotify")?;
    let images = sandbox.images("overlay")?;
    let refused = sandbox.dump(guest.pid, &images, &[])?.exited_with(1)?;
    refused.says(&["watch 1", "watch 2", "--irmap-scan-path"])?;
    let options = ["--irmap-scan-path", text(&scratch)?];
    sandbox.dump_and_kill(&guest, &images, &options)?;
    sandbox.restore(&images, &[])?.succeeded()?;
    guest.expect_ok(sandbox)
}

fn lost_events(sandbox: &Sandbox) -> Result<()> {
    let guest = sandbox.start("inotify")?;
    fs::write(
        Path::new(GOLDEN).join("inotify/file"),
        "an event for each instance",
    )?;
    let images = sandbox.images("events")?;
    let outcome = sandbox
        .dump(guest.pid, &images, &["--leave-running"])?
        .succeeded()?;
    let lost = |line: &&str| {
        line.contains("anon_inode:inotify") && line.contains("bytes of events are lost")
    };
    let told = outcome.log.lines().filter(lost).count();
    ensure!(told == 2, "{}", outcome.report());
    guest.expect_ok(sandbox)
}

sandbox_test! {
    fn names_looked_for_first(sandbox) { forced(sandbox) }
    fn names_where_there_are_no_handles(sandbox) { without_handles(sandbox) }
    fn events_that_wait_are_told_as_lost(sandbox) { lost_events(sandbox) }
}
