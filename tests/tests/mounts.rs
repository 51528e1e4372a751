//! Files that were opened through other mounts: the stored path leads to the file, or the dump
//! refuses and says why.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    guest::Guest, proc_snapshot::Snapshot, sandbox::Sandbox, sandbox_test, tools::text,
};
use nix::mount::{MntFlags, MsFlags, mount, umount, umount2};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

const NONE: Option<&str> = None;

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)
        .with_context(|| format!("bind {} to {}", from.display(), to.display()))
}

fn cover(dir: &Path) -> Result<()> {
    mount(Some("cover"), dir, Some("tmpfs"), MsFlags::empty(), NONE)
        .with_context(|| format!("mount tmpfs on {}", dir.display()))
}

/// A directory with the file that guests read, and an empty one.
fn directories(sandbox: &Sandbox) -> Result<(PathBuf, PathBuf)> {
    let (full, empty) = (sandbox.dir("full")?, sandbox.dir("empty")?);
    fs::write(full.join("file"), "hello")?;
    Ok((full, empty))
}

fn reader(sandbox: &Sandbox, path: &Path) -> Result<Guest> {
    sandbox.start_reading("outside", File::open(path)?, &["read"])
}

fn refused(sandbox: &Sandbox, guest: &Guest, words: &[&str]) -> Result<PathBuf> {
    let images = sandbox.images("mounts")?;
    let outcome = sandbox.dump(guest.pid, &images, &[])?.exited_with(1)?;
    outcome.says(&[&guest.pid.to_string(), "fd 0"])?;
    outcome.says(words)?;
    Ok(images)
}

fn restored(sandbox: &Sandbox, guest: &Guest, images: &Path) -> Result<()> {
    let before = Snapshot::of_tree(guest.pid)?;
    sandbox.dump_and_kill(guest, images, &[])?;
    sandbox.restore(images, &[])?.succeeded()?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    guest.expect_ok(sandbox)
}

sandbox_test! {
    /// The path is that of the bind mount, as before, and without the mount it is told as gone.
    fn through_a_bind_mount(sandbox) {
        let (full, empty) = directories(sandbox)?;
        bind(&full, &empty)?;
        let path = empty.join("file");
        let guest = reader(sandbox, &path)?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images("bind")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        umount(&empty)?;
        sandbox.restore(&images, &[])?.exited_with(1)?.says(&[text(&path)?, "is gone"])?;
        bind(&full, &empty)?;
        sandbox.restore(&images, &[])?.succeeded()?;
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &["mountinfo", "mnt_id"])?;
        guest.expect_ok(sandbox)
    }

    /// A deleted one too: it is made again below the mount that it was opened through.
    fn deleted_in_a_bind_mount(sandbox) {
        let (full, empty) = directories(sandbox)?;
        bind(&full, &empty)?;
        let guest = reader(sandbox, &empty.join("file"))?;
        fs::remove_file(full.join("file"))?;
        restored(sandbox, &guest, &sandbox.images("deleted")?)?;
        ensure!(fs::read_dir(&full)?.count() == 0, "something is left of the ghost");
        Ok(())
    }

    fn a_single_file_mounted(sandbox) {
        let (full, empty) = directories(sandbox)?;
        let target = empty.join("target");
        fs::write(&target, "not me")?;
        bind(&full.join("file"), &target)?;
        restored(sandbox, &reader(sandbox, &target)?, &sandbox.images("single")?)
    }

    fn covered_by_a_mount(sandbox) {
        let (full, _) = directories(sandbox)?;
        let guest = reader(sandbox, &full.join("file"))?;
        cover(&full)?;
        refused(sandbox, &guest, &["leads nowhere"])?;
        fs::write(full.join("file"), "not me")?;
        let images = refused(sandbox, &guest, &["leads to another file", "covered by a mount"])?;
        umount(&full)?;
        restored(sandbox, &guest, &images)
    }

    /// What is made for a deleted file must not come into the mount that covers its directory.
    fn deleted_and_covered(sandbox) {
        let (full, _) = directories(sandbox)?;
        let guest = reader(sandbox, &full.join("file"))?;
        fs::remove_file(full.join("file"))?;
        cover(&full)?;
        let images = refused(sandbox, &guest, &["deleted", "covered by a mount"])?;
        umount(&full)?;
        restored(sandbox, &guest, &images)
    }

    fn on_a_mount_that_is_gone(sandbox) {
        let (_, empty) = directories(sandbox)?;
        cover(&empty)?;
        fs::write(empty.join("file"), "hello")?;
        let guest = reader(sandbox, &empty.join("file"))?;
        umount2(&empty, MntFlags::MNT_DETACH)?;
        refused(sandbox, &guest, &["on a mount that is gone"])?;
        guest.expect_ok(sandbox)
    }

    fn deleted_on_a_mount_that_is_gone(sandbox) {
        let (_, empty) = directories(sandbox)?;
        cover(&empty)?;
        fs::write(empty.join("file"), "hello")?;
        let guest = reader(sandbox, &empty.join("file"))?;
        fs::remove_file(empty.join("file"))?;
        umount2(&empty, MntFlags::MNT_DETACH)?;
        refused(sandbox, &guest, &["deleted", "its mount is gone"])?;
        guest.expect_ok(sandbox)
    }
}
