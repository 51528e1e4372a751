//! Memory shared copy-on-write by a family: written once, and still shared after the restore. The
//! guest checks its contents; from outside the proportional size (Pss) of the whole tree tells how
//! much memory it costs.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    proc_snapshot::{self, Snapshot},
    sandbox::Sandbox,
    sandbox_test,
    tools::text,
};
use std::{fs, path::Path};

/// What the tree costs: the Pss of its private memory in KiB.
fn cost(root: i32) -> Result<u64> {
    let mut sum = 0;
    for pid in proc_snapshot::tree(root)? {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss_Anon:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
        sum += size
            .context("smaps_rollup has no Pss_Anon")?
            .parse::<u64>()?;
    }
    Ok(sum)
}

/// Bytes of all files below a directory, links not followed.
fn size(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() {
            size(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(sum)
}

const MIB: u64 = 1 << 20;

fn kept(sandbox: &Sandbox, generations: usize) -> Result<()> {
    let guest = sandbox.start("cow")?;
    let (before, cost_before) = (Snapshot::of_tree(guest.pid)?, cost(guest.pid)?);
    for generation in 0..generations {
        let images = sandbox.images(&generation.to_string())?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let bytes = size(&images)?;
        ensure!(
            bytes < 30 * MIB,
            "24 MiB shared by 8 tasks take {bytes} bytes of images"
        );
        sandbox
            .run("crit", &["check", text(&images)?], None)?
            .succeeded()?;
        sandbox.restore(&images, &[])?.succeeded()?;
        let cost_after = cost(guest.pid)?;
        ensure!(
            cost_after < cost_before + 1024,
            "the tree cost {cost_before} KiB before and {cost_after} KiB after"
        );
    }
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

sandbox_test! {
    fn sharing_is_kept(sandbox) { kept(sandbox, 1) }
    fn sharing_is_kept_twice(sandbox) { kept(sandbox, 2) }

    /// An older dump's shared pages go with it; a dump that is left running changes no sharing.
    fn a_new_dump_replaces_an_old_one(sandbox) {
        let guest = sandbox.start("cow")?;
        let images = sandbox.images("first")?;
        let cost_before = cost(guest.pid)?;
        sandbox.dump(guest.pid, &images, &["--leave-running"])?.succeeded()?;
        ensure!(images.join("shared-pages/inventory.img").exists());
        ensure!(cost(guest.pid)? < cost_before + 1024, "the dump has unshared pages");
        guest.expect_ok(sandbox)?;
        let other = sandbox.start("loop")?;
        sandbox.dump_and_kill(&other, &images, &[])?;
        ensure!(!images.join("shared-pages").exists() && !images.join("parent").exists());
        sandbox.restore(&images, &[])?.succeeded()?;
        other.expect_ok(sandbox)
    }

    /// In a chain every task's pages are its own.
    fn a_chain_shares_nothing(sandbox) {
        let guest = sandbox.start("cow")?;
        let first = sandbox.images("1")?;
        sandbox.dump(guest.pid, &first, &["--pre-dump"])?.succeeded()?;
        let second = sandbox.images("2")?;
        sandbox.dump_and_kill(&guest, &second, &["--prev-images-dir", "../images-1"])?;
        sandbox.restore(&second, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }
}
