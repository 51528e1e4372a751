//! Memory shared copy-on-write by a family: written once, and still shared after the restore. The
//! guest checks its contents; from outside the proportional size (Pss) of the whole tree tells how
//! much memory it costs.

use anyhow::{Result, ensure};
use crust_tests::{
    cost::{bytes_below, proportional_kib},
    proc_snapshot::Snapshot,
    sandbox::Sandbox,
    sandbox_test,
    tools::text,
};

const MIB: u64 = 1 << 20;

fn kept(sandbox: &Sandbox, generations: usize) -> Result<()> {
    let guest = sandbox.start("cow")?;
    let (before, cost_before) = (Snapshot::of_tree(guest.pid)?, proportional_kib(guest.pid)?);
    for generation in 0..generations {
        let images = sandbox.images(&generation.to_string())?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let bytes = bytes_below(&images)?;
        ensure!(
            bytes < 30 * MIB,
            "24 MiB shared by 8 tasks take {bytes} bytes of images"
        );
        sandbox
            .run("crit", &["check", text(&images)?], None)?
            .succeeded()?;
        sandbox.restore(&images, &[])?.succeeded()?;
        let cost_after = proportional_kib(guest.pid)?;
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
        let cost_before = proportional_kib(guest.pid)?;
        sandbox.dump(guest.pid, &images, &["--leave-running"])?.succeeded()?;
        ensure!(images.join("shared-pages/inventory.img").exists());
        ensure!(proportional_kib(guest.pid)? < cost_before + 1024, "the dump has unshared pages");
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
