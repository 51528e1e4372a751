//! The three round trips of a guest: dumped (which kills it), restored and asked for its verdict;
//! dumped with `--leave-running`; and dumped, restored, dumped and restored again. Beside the
//! verdict of the guest, which sees itself from inside, what /proc tells from outside must be the
//! same before and after.

use crate::{proc_snapshot::Snapshot, sandbox::Sandbox};
use anyhow::Result;

/// A guest with what it needs.
#[derive(Default)]
pub struct Case {
    /// The program of tests/guests.
    pub guest: &'static str,
    /// Options for crust-dump.
    pub dump: &'static [&'static str],
    /// Options for crust-restore.
    pub restore: &'static [&'static str],
    /// Keys of the /proc snapshot that a restore does not bring back; each use says why.
    pub lost: &'static [&'static str],
    /// Keys that change by themselves while the guest runs.
    pub moving: &'static [&'static str],
}

/// Dumped, which kills it, restored, verified.
pub fn restored(sandbox: &Sandbox, case: &Case) -> Result<()> {
    let guest = sandbox.start(case.guest)?;
    let before = Snapshot::of_tree(guest.pid)?;
    let images = sandbox.images("first")?;
    sandbox.dump_and_kill(&guest, &images, case.dump)?;
    sandbox.assert_only(&[])?;
    sandbox.restore(&images, case.restore)?.succeeded()?;
    before.wait_for_dead_leader(guest.pid);
    let differs = [case.lost, case.moving].concat();
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &differs)?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

/// Dumped with `--leave-running`, verified.
pub fn left_running(sandbox: &Sandbox, case: &Case) -> Result<()> {
    let guest = sandbox.start(case.guest)?;
    let before = Snapshot::of_tree(guest.pid)?;
    let mut options = vec!["--leave-running"];
    options.extend(case.dump);
    sandbox
        .dump(guest.pid, &sandbox.images("first")?, &options)?
        .succeeded()?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, case.moving)?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

/// Dumped and restored twice over, verified.
pub fn restored_twice(sandbox: &Sandbox, case: &Case) -> Result<()> {
    let guest = sandbox.start(case.guest)?;
    for generation in ["first", "second"] {
        let images = sandbox.images(generation)?;
        sandbox.dump_and_kill(&guest, &images, case.dump)?;
        sandbox.restore(&images, case.restore)?.succeeded()?;
    }
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

/// Three tests for each guest: `name: guest "program", dump &["--option"];`.
#[macro_export]
macro_rules! workloads {
    ($($(#[$note:meta])* $name:ident: $($field:ident $value:expr),+;)*) => {$(
        $(#[$note])*
        mod $name {
            use $crate::round_trip::{self, Case};
            fn case() -> Case {
                Case { $($field: $value,)+ ..Case::default() }
            }
            $crate::sandbox_test! {
                fn restored(sandbox) { round_trip::restored(sandbox, &case()) }
                fn left_running(sandbox) { round_trip::left_running(sandbox, &case()) }
                fn restored_twice(sandbox) { round_trip::restored_twice(sandbox, &case()) }
            }
        }
    )*};
}
