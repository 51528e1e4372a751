//! crust-restore on images that CRIU wrote: each set is unpacked where its images have their
//! paths, restored, and the program asked for its verdict.

use anyhow::{Result, ensure};
use crust_tests::{corpus::recorded, sandbox::Sandbox, sandbox_test, tools::text};
use nix::sys::signal::Signal;
use std::{fs, process::Command};

fn restored(sandbox: &Sandbox, name: &str, options: &[&str]) -> Result<()> {
    let set = recorded(name);
    let (images, guest) = sandbox.unpack(&set)?;
    sandbox.restore(&images, options)?.succeeded()?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

/// The plan of a set can be printed without restoring it, the same each time.
fn planned(sandbox: &Sandbox, name: &str, options: &[&str]) -> Result<()> {
    let (images, _) = sandbox.unpack(&recorded(name))?;
    let images = text(&images)?;
    for form in ["--plan", "--plan=json"] {
        let print = || {
            sandbox
                .run(
                    "crust-restore",
                    &[&["-D", images, form], options].concat(),
                    None,
                )?
                .succeeded()
        };
        let (first, second) = (print()?, print()?);
        ensure!(
            !first.stdout.is_empty(),
            "{form} prints nothing\n{}",
            first.report()
        );
        ensure!(
            first.stdout == second.stdout,
            "{form} differs between two runs"
        );
        if form == "--plan=json" {
            serde_json::from_slice::<serde_json::Value>(&first.stdout)?;
        }
    }
    sandbox.assert_only(&[])
}

/// The pid of the shell that was the parent when the tree was recorded.
const PARENT_OF_TREE: i32 = 2368;

sandbox_test! {
    /// The chain that CRIU wrote as one dump: the flat copy needs no parent.
    fn a_chain_merged_by_crit_flatten(sandbox) {
        let (images, guest) = sandbox.unpack(&recorded("parent_chain/3"))?;
        let flat = images.with_file_name("flat");
        sandbox.run("crit", &["flatten", text(&images)?, "-o", text(&flat)?], None)?.succeeded()?;
        sandbox.run("crit", &["check", text(&flat)?], None)?.succeeded()?;
        fs::remove_dir_all(&images)?;
        sandbox.restore(&flat, &[])?.succeeded()?;
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }

    /// The program of this set also checks the parent of its first process, so that one is given
    /// a parent with the recorded pid.
    fn tree_below_its_parent(sandbox) {
        let (images, guest) = sandbox.unpack(&recorded("tree"))?;
        let mut command = Command::new(sandbox.install_guest("reaper")?);
        command.arg(sandbox.binary("crust-restore")).args(["-d", "-D", text(&images)?]);
        fs::write("/proc/sys/kernel/ns_last_pid", (PARENT_OF_TREE - 1).to_string())?;
        let parent = sandbox.spawn("reaper", &command, &sandbox.dir("reaper")?)?;
        ensure!(parent.pid == PARENT_OF_TREE, "the parent has pid {}", parent.pid);
        parent.wait_until(sandbox, "how the restore ended", |text| text.contains("ended "))?;
        let said = parent.lines()?.join("\n");
        ensure!(said.contains("ended 0"), "{said}");
        crust_tests::proc_snapshot::settle(guest.pid)?;
        guest.signal(Signal::SIGTERM)?;
        sandbox.wait(parent.pid)?;
        let lines = guest.lines()?;
        ensure!(lines.last().is_some_and(|line| line == "ok"), "{}", lines.join("\n"));
        sandbox.assert_only(&[])
    }
}

macro_rules! sets {
    ($($name:ident $set:literal $($option:literal)*;)*) => {
        mod restored {
            use super::*;
            sandbox_test! {
                $(fn $name(sandbox) { super::restored(sandbox, $set, &[$($option),*]) })*
            }
        }
        mod planned {
            use super::*;
            sandbox_test! {
                $(fn $name(sandbox) { super::planned(sandbox, $set, &[$($option),*]) })*
            }
        }
    };
}

sets! {
    lone "loop";
    threads "threads";
    dead_leader "dead_leader";
    proc_dead "proc_dead";
    proc_zombie "proc_zombie";
    mem_private "mem_private";
    mem_shared "mem_shared";
    sysv "sysv";
    pipes "pipes";
    unix_stream "unix_stream";
    sigaction "sigaction";
    sigpending "sigpending";
    timers "timers";
    attrs "attrs";
    files "files";
    rootdir "rootdir";
    format_v1_0 "format_v1_0";
    parent_chain "parent_chain/3";
    fifo "fifo";
    ghost "ghost";
    memfd "memfd";
    unix_scm "unix_scm";
    epoll "epoll";
    link_remap "link_remap";
    pidfd "pidfd";
    timerfd "timerfd";
    tcp_est "tcp_est" "--tcp-established";
    netlink "netlink";
}
