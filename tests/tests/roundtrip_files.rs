//! Guests with files and sockets of every kind through three round trips: dumped (which kills it), restored and asked for
//! its verdict; dumped with `--leave-running`; and dumped, restored, dumped and restored again.
//! Beside the verdict of the guest, which sees itself from inside, what /proc tells from outside
//! must be the same before and after.

use anyhow::Result;
use crust_tests::{proc_snapshot::Snapshot, sandbox::Sandbox, sandbox_test};

/// A guest with what it needs.
#[derive(Default)]
struct Case {
    guest: &'static str,
    dump: &'static [&'static str],
    restore: &'static [&'static str],
    /// Keys of the /proc snapshot that a restore does not bring back; each use says why.
    lost: &'static [&'static str],
    /// Keys that change by themselves while the guest runs.
    moving: &'static [&'static str],
}

fn restored(sandbox: &Sandbox, case: &Case) -> Result<()> {
    let guest = sandbox.start(case.guest)?;
    let before = Snapshot::of_tree(guest.pid)?;
    let images = sandbox.images("first")?;
    sandbox.dump_and_kill(&guest, &images, case.dump)?;
    sandbox.assert_only(&[])?;
    sandbox.restore(&images, case.restore)?.succeeded()?;
    let differs = [case.lost, case.moving].concat();
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &differs)?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

fn left_running(sandbox: &Sandbox, case: &Case) -> Result<()> {
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

fn restored_twice(sandbox: &Sandbox, case: &Case) -> Result<()> {
    let guest = sandbox.start(case.guest)?;
    for generation in ["first", "second"] {
        let images = sandbox.images(generation)?;
        sandbox.dump_and_kill(&guest, &images, case.dump)?;
        sandbox.restore(&images, case.restore)?.succeeded()?;
    }
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

macro_rules! workloads {
    ($($(#[$note:meta])* $name:ident: $($field:ident $value:expr),+;)*) => {$(
        $(#[$note])*
        mod $name {
            use super::*;
            fn case() -> Case {
                Case { $($field: $value,)+ ..Case::default() }
            }
            sandbox_test! {
                fn restored(sandbox) { super::restored(sandbox, &case()) }
                fn left_running(sandbox) { super::left_running(sandbox, &case()) }
                fn restored_twice(sandbox) { super::restored_twice(sandbox, &case()) }
            }
        }
    )*};
}

workloads! {
    unix_dgram: guest "unix_dgram";
    unix_scm: guest "unix_scm";
    unix_edge: guest "unix_edge";
    fifo: guest "fifo";
    ghost: guest "ghost", dump &["--ghost-limit", "2M"];
    /// A name that another file has by now stays that file's, so the link text of the deleted one
    /// differs; O_TMPFILE shows only in flags of the open that made the file.
    ghost_edge: guest "ghost_edge", lost &["fd 3 target", "fd 8 flags"];
    link_remap: guest "link_remap", dump &["--link-remap"];
    memfd: guest "memfd";
    eventfd: guest "eventfd";
    eventfd_big: guest "eventfd_big";
    eventfd_sem: guest "eventfd_sem";
    /// fdinfo lists targets by the addresses of their files; the guest asks for their events.
    epoll: guest "epoll", lost &["fd 3 tfd", "fd 4 tfd"];
    timerfd: guest "timerfd";
    timerfd_unread: guest "timerfd_unread";
    pidfd: guest "pidfd";
    locks: guest "locks", dump &["--file-locks"];
    lock_inherited: guest "lock_inherited", dump &["--file-locks"];
    inotify: guest "inotify";
    tcp_listen: guest "tcp_listen";
    udp: guest "udp";
    shared_fs: guest "shared_fs";
}
