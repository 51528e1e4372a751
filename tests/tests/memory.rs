//! Much memory: more mappings, and more runs of pages, than one batch of calls carries; a load
//! that the task and crust-restore share.

use crust_tests::{proc_snapshot::Snapshot, sandbox_test};

sandbox_test! {
    fn a_large_load(sandbox) {
        let guest = sandbox.start_with("bigmem", &["80"])?;
        let images = sandbox.images("first")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }

    fn many_mappings(sandbox) {
        let guest = sandbox.start_with("manymaps", &["12000"])?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images("first")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }
}
