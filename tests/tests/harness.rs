//! The harness itself: each guest finds its state right when nobody touches it, two looks at an
//! untouched tree see no difference, and a sandbox is alone with its processes.

use anyhow::{Context, Result, ensure};
use crust_tests::{build, proc_snapshot::Snapshot, sandbox::Sandbox, sandbox_test};
use std::{fs, path::Path};

/// Guests with further needs (arguments, devices) have tests of their own.
const NOT_ALONE: &[&str] = &[
    // /dev/net/tun, the bpf system call and a root file system: not on every machine.
    "tun",
    "bpfmap",
    "mntns",
    // Arguments: the tests that need them start these.
    "procfd",
    "reaper",
    "interrupted",
    "bomb",
    "family",
    "incremental",
    "limits",
    "many",
    "many_fds",
    "manymaps",
    "outside",
    "tcp_many",
    "tcp_wire",
    "consoles",
    // Never at rest.
    "tcp_busy",
    "once",
    // It goes on only when it has been restored: timers.rs.
    "time_left",
    // A signal ends what it waits for: failures.rs sends it.
    "vfork",
    // Huge pages, or segments in the namespace of the host.
    "hugetlb",
    "hugetlbfs",
    "sysv_host",
];

fn every_guest() -> Result<Vec<String>> {
    let dir = build::workspace().join("tests/guests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.extension().is_some_and(|e| e == "c") && !NOT_ALONE.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn undisturbed(sandbox: &Sandbox, name: &str) -> Result<()> {
    let guest = sandbox.start(name)?;
    let first = Snapshot::of_tree(guest.pid)?;
    let second = Snapshot::of_tree(guest.pid)?;
    first.expect_same(&second, &[])?;
    guest.expect_ok(sandbox)?;
    sandbox.assert_only(&[])
}

sandbox_test! {
    fn guests_verify_undisturbed(sandbox) {
        let failures: Vec<String> = every_guest()?
            .iter()
            .filter_map(|name| undisturbed(sandbox, name).err().map(|e| format!("{name}: {e:#}")))
            .collect();
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(())
    }

    fn a_sandbox_is_alone(sandbox) {
        sandbox.assert_only(&[])?;
        let guest = sandbox.start("loop")?;
        ensure!(sandbox.assert_only(&[]).is_err(), "a running guest was not seen");
        sandbox.assert_only(&[guest.pid])?;
        guest.expect_ok(sandbox)?;
        ensure!(Path::new("/tmp/crust-golden/loop/out").exists(), "the scratch directory is gone");
        Ok(())
    }
}
