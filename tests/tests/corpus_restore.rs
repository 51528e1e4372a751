//! crust-restore on images that CRIU wrote: each set is unpacked where its images have their
//! paths, restored, and the program asked for its verdict.

use anyhow::{Result, ensure};
use crust_tests::{corpus::recorded, sandbox::Sandbox, sandbox_test};

fn restored(sandbox: &Sandbox, name: &str, options: &[&str]) -> Result<()> {
    let set = recorded(name);
    let (images, guest) = sandbox.unpack(&set)?;
    sandbox.restore(&images, options)?.succeeded()?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

/// The plan of a set can be printed without restoring it, the same each time.
fn planned(sandbox: &Sandbox, name: &str) -> Result<()> {
    let (images, _) = sandbox.unpack(&recorded(name))?;
    let images = crust_tests::tools::text(&images)?;
    for form in ["--plan", "--plan=json"] {
        let print = || {
            sandbox
                .run("crust-restore", &["-D", images, form], None)?
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
                $(fn $name(sandbox) { super::planned(sandbox, $set) })*
            }
        }
    };
}

sets! {
    lone "loop";
    threads "threads";
    tree "tree";
    dead_leader "dead_leader";
    proc_dead "proc_dead";
    proc_zombie "proc_zombie";
    mem_private "mem_private";
    mem_shared "mem_shared";
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
}
