//! `--digest` and `--sync`: a dump that was damaged since it was written is told before anything
//! is made of it, to the task and the address; one that was not finished is no dump.

use anyhow::{Context, Result, ensure};
use crust_tests::{guest::Guest, sandbox::Sandbox, sandbox_test, tools::text};
use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

fn digested(sandbox: &Sandbox, name: &str) -> Result<(Guest, PathBuf)> {
    let guest = sandbox.start(name)?;
    let images = sandbox.images("digested")?;
    sandbox.dump_and_kill(&guest, &images, &["--digest"])?;
    ensure!(
        images.join("crust-digest.json").exists(),
        "there is no manifest"
    );
    Ok((guest, images))
}

/// crust-restore, its check and crit's check all tell the damage.
fn told_by_all(sandbox: &Sandbox, images: &Path, words: &[&str]) -> Result<()> {
    sandbox.restore(images, &[])?.exited_with(1)?.says(words)?;
    let check = sandbox.run("crust-restore", &["--check", "-D", text(images)?], None)?;
    check.exited_with(1)?.says(words)?;
    let crit = sandbox.run("crit", &["check", text(images)?], None)?;
    let said = String::from_utf8_lossy(&crit.stdout).into_owned() + &crit.stderr;
    ensure!(!crit.status.success(), "crit check is content:\n{said}");
    for word in words {
        ensure!(
            said.contains(word),
            "crit check does not say {word:?}:\n{said}"
        );
    }
    sandbox.assert_only(&[])
}

/// The first run of a task's pagemap: its address and where its pages are in the pages file.
fn first_run(sandbox: &Sandbox, images: &Path, pid: i32) -> Result<u64> {
    let pagemap = images.join(format!("pagemap-{pid}.img"));
    let json = sandbox
        .run("crit", &["decode", "-i", text(&pagemap)?], None)?
        .succeeded()?;
    let json: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    let address = json.pointer("/entries/1/vaddr").context("no first run")?;
    let text = address.as_str().map(|text| text.trim_start_matches("0x"));
    match text {
        Some(hex) => Ok(u64::from_str_radix(hex, 16)?),
        None => address.as_u64().context("an address is a number"),
    }
}

sandbox_test! {
    fn a_flipped_bit_is_told_by_task_and_address(sandbox) {
        let (guest, images) = digested(sandbox, "mem_private")?;
        let pages = images.join("pages-1.img");
        let good = fs::read(&pages)?;
        let file = OpenOptions::new().write(true).open(&pages)?;
        let byte = good.get(100).context("an empty pages file")? ^ 0x10;
        file.write_all_at(&[byte], 100)?;
        let address = format!("{:#x}", first_run(sandbox, &images, guest.pid)?);
        told_by_all(sandbox, &images, &["pages-1.img", &format!("task {} at {address}", guest.pid)])?;
        fs::write(&pages, &good)?;
        sandbox.restore(&images, &["--digest"])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// Also of an image in which no other check would find anything.
    fn other_images_too(sandbox) {
        let (guest, images) = digested(sandbox, "loop")?;
        let fs_image = images.join(format!("fs-{}.img", guest.pid));
        let good = fs::read(&fs_image)?;
        let mut bad = good.clone();
        *bad.last_mut().context("an empty image")? ^= 1;
        fs::write(&fs_image, bad)?;
        told_by_all(sandbox, &images, &[&format!("fs-{}.img", guest.pid), "other bytes"])?;
        fs::write(&fs_image, good)?;
        // An image of another dump that was copied in.
        fs::copy(images.join("pages-1.img"), images.join("pages-77.img"))?;
        told_by_all(sandbox, &images, &["pages-77.img", "not in the manifest"])?;
        fs::remove_file(images.join("pages-77.img"))?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// A family shares pages copy-on-write, which have a directory of their own.
    fn families_and_their_shared_pages(sandbox) {
        let (guest, images) = digested(sandbox, "tree")?;
        sandbox.restore(&images, &["--digest"])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    fn a_manifest_can_be_demanded(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("plain")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let outcome = sandbox.restore(&images, &["--digest"])?.exited_with(1)?;
        outcome.says(&["crust-digest.json", "dump with --digest"])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// The manifest of an older dump in the directory goes with it.
    fn an_older_manifest_is_not_mixed_in(sandbox) {
        let images = sandbox.images("digested")?;
        let older = sandbox.start("threads")?;
        sandbox.dump(older.pid, &images, &["--leave-running", "--digest"])?.succeeded()?;
        older.expect_ok(sandbox)?;
        let guest = sandbox.start("loop")?;
        sandbox.dump_and_kill(&guest, &images, &["--sync"])?;
        ensure!(!images.join("crust-digest.json").exists(), "an older manifest stayed");
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    fn a_dump_that_was_not_finished(sandbox) {
        let guest = sandbox.start("loop")?;
        let images = sandbox.images("partial")?;
        sandbox.dump(guest.pid, &images, &["--leave-running", "--sync"])?.succeeded()?;
        fs::remove_file(images.join("inventory.img"))?;
        told_by_all(sandbox, &images, &["inventory.img", "not finished"]).or_else(|error| {
            // The living original is the one task there may be.
            if sandbox.processes()? == [guest.pid] { Ok(()) } else { Err(error) }
        })?;
        guest.expect_ok(sandbox)
    }
}
