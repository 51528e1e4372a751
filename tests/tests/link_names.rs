//! The names that a dump with `--link-remap` makes on the user's disk: there as long as they are
//! needed, gone on every other exit. What a killed dump or restore leaves is in kill_steps.rs.

use anyhow::{Context, Result, ensure};
use crust_tests::{sandbox::GOLDEN, sandbox_test, tools::text};
use nix::mount::{MsFlags, mount};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

const OPTION: &[&str] = &["--link-remap"];

/// The names in the directory of the guest's file.
fn names() -> Result<Vec<String>> {
    let dir = Path::new(GOLDEN).join("link_remap/d");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn expect_clean() -> Result<()> {
    let names = names()?;
    ensure!(names == ["other"], "left behind: {names:?}");
    Ok(())
}

fn expect_links() -> Result<()> {
    let names = names()?;
    let (links, own): (Vec<_>, Vec<_>) = names
        .iter()
        .partition(|name| name.starts_with("link_remap."));
    ensure!(own == ["other"] && links.len() == 2, "{names:?}");
    Ok(())
}

sandbox_test! {
    fn of_a_dump_that_leaves_the_tree_running(sandbox) {
        let guest = sandbox.start("link_remap")?;
        let options = ["--link-remap", "--leave-running"];
        sandbox.dump(guest.pid, &sandbox.images("running")?, &options)?.succeeded()?;
        expect_clean()?;
        guest.expect_ok(sandbox)
    }

    /// Nothing is made when something is refused.
    fn of_a_refused_dump(sandbox) {
        let guest = sandbox.start("link_remap")?;
        let images = sandbox.images("refused")?;
        sandbox.dump(guest.pid, &images, &[])?.exited_with(1)?.says(&["--link-remap"])?;
        expect_clean()?;
        guest.expect_ok(sandbox)
    }

    /// The links are made before the memory is written, for which there is no room.
    fn of_a_dump_that_fails(sandbox) {
        let guest = sandbox.start("link_remap")?;
        let images = sandbox.images("full")?;
        mount(Some("full"), &images, Some("tmpfs"), MsFlags::empty(), Some("size=64k"))?;
        let failed = sandbox.dump(guest.pid, &images, OPTION)?.exited_with(1)?;
        failed.says(&["No space left on device"])?;
        expect_clean()?;
        guest.expect_ok(sandbox)
    }

    /// A failed restore leaves what the next one needs, early or late; a good one nothing.
    fn of_restores(sandbox) {
        let guest = sandbox.start("link_remap")?;
        let images = sandbox.images("restored")?;
        sandbox.dump_and_kill(&guest, &images, OPTION)?;
        expect_links()?;
        let program = sandbox.install_guest("link_remap")?;
        let aside = program.with_extension("aside");
        fs::rename(&program, &aside)?;
        sandbox.restore(&images, &[])?.exited_with(1)?.says(&["link_remap is gone"])?;
        fs::rename(&aside, &program)?;
        expect_links()?;
        let script = sandbox.dir("script")?.join("fails");
        fs::write(&script, "#!/bin/sh\ntest $CRTOOLS_SCRIPT_ACTION != pre-resume\n")?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        let late = sandbox.restore(&images, &["--action-script", text(&script)?])?;
        late.exited_with(1)?.says(&["pre-resume"])?;
        sandbox.assert_only(&[])?;
        expect_links()?;
        sandbox.restore(&images, &[])?.succeeded()?;
        expect_clean()?;
        guest.expect_ok(sandbox)?;
        expect_clean()
    }

    /// What a dump left whose images are given up does not hinder the next dump.
    fn beside_those_of_an_older_dump(sandbox) {
        let guest = sandbox.start("link_remap")?;
        let older = sandbox.images("older")?;
        sandbox.dump_and_kill(&guest, &older, OPTION)?;
        let links = names()?;
        let guest = sandbox.start("link_remap")?;
        let images = sandbox.images("newer")?;
        sandbox.dump_and_kill(&guest, &images, OPTION)?;
        sandbox.restore(&images, &[])?.succeeded()?;
        ensure!(names()? == links, "the links of the older dump: {:?}", names()?);
        guest.expect_ok(sandbox)
    }
}
