//! Files that are not what they were when the tree comes back: gone, of another size, mode or type,
//! replaced by a link, another build; and a disk without room for a deleted one. Each is told with
//! its holder before anything is made, and nothing is left behind.

use anyhow::{Context, Result, ensure};
use crust_tests::{sandbox::Sandbox, sandbox_test, tools::text};
use nix::mount::{MsFlags, mount};
use std::{
    fs::{self, File},
    os::unix::fs::{PermissionsExt, symlink},
};

const CONTENT: &str = "hello";

/// One change after the other is told and undone; then the guest comes back.
fn every_change(sandbox: &Sandbox) -> Result<()> {
    let dir = sandbox.dir("changed")?;
    let path = dir.join("file");
    let write = |content: &str, mode: u32| -> Result<()> {
        fs::write(&path, content)?;
        Ok(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(mode),
        )?)
    };
    write(CONTENT, 0o640)?;
    let guest = sandbox.start_reading("outside", File::open(&path)?, &["read"])?;
    let images = sandbox.images("changed")?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    let held = format!("descriptor 0 of task {}", guest.pid);
    let refused = |words: &[&str]| -> Result<()> {
        let outcome = sandbox.restore(&images, &[])?.exited_with(1)?;
        outcome.says(&[text(&path)?, &held])?;
        outcome.says(words)?;
        sandbox.assert_only(&[])
    };
    fs::remove_file(&path)?;
    refused(&["is gone"])?;
    write("hello you", 0o640)?;
    refused(&["its size is 9, and was 5"])?;
    write(CONTENT, 0o600)?;
    refused(&["its mode is 0o100600, and was 0o100640"])?;
    fs::remove_file(&path)?;
    fs::create_dir(&path)?;
    refused(&["a directory", "was a regular file"])?;
    fs::remove_dir(&path)?;
    let target = dir.join("target");
    fs::write(&target, CONTENT)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o640))?;
    symlink(&target, &path)?;
    refused(&["a symbolic link", "was a regular file"])?;
    fs::remove_file(&path)?;
    write(CONTENT, 0o640)?;
    sandbox.restore(&images, &[])?.succeeded()?;
    guest.expect_ok(sandbox)
}

/// Another build of the executable, equal in size, is told; `--file-validation filesize` takes it.
fn another_build(sandbox: &Sandbox) -> Result<()> {
    let guest = sandbox.start("loop")?;
    let images = sandbox.images("build")?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    let program = sandbox.install_guest("loop")?;
    let mut bytes = fs::read(&program)?;
    // The build id's note: 4 bytes of name, 20 of id, type 3, `GNU`.
    let head = [&[4, 0, 0, 0, 20, 0, 0, 0, 3, 0, 0, 0][..], b"GNU\0"].concat();
    let at = bytes.windows(head.len()).position(|window| window == head);
    let at = at.context("the guest has no build id")? + head.len();
    bytes[at] ^= 1;
    fs::write(&program, bytes)?;
    let outcome = sandbox.restore(&images, &[])?.exited_with(1)?;
    let held = format!("executable of task {}", guest.pid);
    outcome.says(&["build-id", text(&program)?, &held])?;
    sandbox.assert_only(&[])?;
    let sizes = ["--file-validation", "filesize"];
    sandbox.restore(&images, &sizes)?.succeeded()?;
    guest.expect_ok(sandbox)
}

/// A deleted file that finds no room any more.
fn full_disk(sandbox: &Sandbox) -> Result<()> {
    let dir = sandbox.dir("small")?;
    let options = Some("size=1M");
    mount(
        Some("small"),
        &dir,
        Some("tmpfs"),
        MsFlags::empty(),
        options,
    )
    .context("mount tmpfs")?;
    let path = dir.join("deleted");
    let content = [CONTENT.as_bytes(), &[0; 700 << 10]].concat();
    fs::write(&path, content)?;
    let guest = sandbox.start_reading("outside", File::open(&path)?, &["nothing"])?;
    fs::remove_file(&path)?;
    let images = sandbox.images("full")?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    let filler = dir.join("filler");
    fs::write(&filler, vec![1; 600 << 10])?;
    let outcome = sandbox.restore(&images, &[])?.exited_with(1)?;
    outcome.says(&["ghost file", text(&path)?, "No space left"])?;
    sandbox.assert_only(&[])?;
    let left: Vec<_> = fs::read_dir(&dir)?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    ensure!(left == ["filler"], "left behind: {left:?}");
    fs::remove_file(&filler)?;
    sandbox.restore(&images, &[])?.succeeded()?;
    let left = fs::read_dir(&dir)?.count();
    ensure!(left == 0, "{left} names are left of a ghost");
    guest.expect_ok(sandbox)?;
    nix::mount::umount(&dir).context("umount")?;
    Ok(())
}

sandbox_test! {
    fn changes(sandbox) { every_change(sandbox) }
    fn builds(sandbox) { another_build(sandbox) }
    fn no_room(sandbox) { full_disk(sandbox) }
}
