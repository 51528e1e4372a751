//! Each guest program through three round trips: dumped (which kills it), restored and asked for
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
    lone: guest "loop";
    threads: guest "threads";
    tree: guest "tree";
    dead_leader: guest "dead_leader";
    proc_dead: guest "proc_dead";
    proc_zombie: guest "proc_zombie";
    mem_private: guest "mem_private";
    mem_shared: guest "mem_shared";
    pipes: guest "pipes";
    unix_stream: guest "unix_stream";
    sigaction: guest "sigaction";
    sigpending: guest "sigpending";
    /// Its timers expire all the time: a signal may just be pending.
    timers: guest "timers", moving &["status ShdPnd"];
    /// The images have no field for the timer slack.
    attrs: guest "attrs", lost &["timerslack_ns"];
    files: guest "files";
    dir_flags: guest "dir_flags";
    rootdir: guest "rootdir";
    creds: guest "creds";
    onstack: guest "onstack";
    cpu_state: guest "cpu_state";
    rseq: guest "rseq";
    personality: guest "personality";
    shared_fdtable: guest "shared_fdtable";
    creds_ids: guest "creds_ids";
    shared_fs: guest "shared_fs";
    seccomp_filter: guest "seccomp_filter";
    seccomp_strict: guest "seccomp_strict";
    epoll: guest "epoll";
    eventfd: guest "eventfd";
    eventfd_big: guest "eventfd_big";
    eventfd_sem: guest "eventfd_sem";
    timerfd: guest "timerfd";
    timerfd_unread: guest "timerfd_unread";
    inotify: guest "inotify";
    memfd: guest "memfd";
    pidfd: guest "pidfd";
    fifo: guest "fifo";
    ghost: guest "ghost", dump &["--ghost-limit", "2M"];
    link_remap: guest "link_remap", dump &["--link-remap"];
    unix_dgram: guest "unix_dgram";
    unix_scm: guest "unix_scm";
    udp: guest "udp";
    tcp_listen: guest "tcp_listen";
}
