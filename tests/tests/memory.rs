//! Much memory in little pieces: more mappings, and more runs of pages, than one batch of calls
//! carries.

use crust_tests::{proc_snapshot::Snapshot, sandbox_test};

sandbox_test! {
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
