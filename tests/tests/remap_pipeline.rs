//! `crit remap` between a dump and a restore: a real program gets another pid and another path for
//! the file it writes to; `crit check` and `crit diff` look at the images on the way.

use anyhow::{Context, Result, ensure};
use crust_tests::{guest::Guest, sandbox::Sandbox, sandbox_test, tools::text};
use std::{fs, path::Path};

/// Runs crit, which must succeed, and gives what it wrote.
fn crit(sandbox: &Sandbox, arguments: &[&str]) -> Result<String> {
    let run = sandbox.run("crit", arguments, None)?.succeeded()?;
    Ok(String::from_utf8_lossy(&run.stdout).into_owned())
}

/// The images of `name`, dumped and dead, and a changed copy of them.
fn remapped(sandbox: &Sandbox, guest: &Guest, maps: &[&str]) -> Result<std::path::PathBuf> {
    let images = sandbox.images("before")?;
    sandbox.dump_and_kill(guest, &images, &[])?;
    let copy = images.with_file_name("images-after");
    let mut arguments = vec!["remap", text(&images)?, "--out", text(&copy)?];
    arguments.extend(maps);
    crit(sandbox, &arguments)?;
    crit(sandbox, &["check", text(&copy)?])?;
    sandbox
        .run("crit", &["diff", text(&images)?, text(&copy)?], None)?
        .exited_with(1)?;
    Ok(copy)
}

sandbox_test! {
    fn a_program_goes_on_with_another_pid_and_path(sandbox) {
        // Not `loop`: that guest keeps its pid in memory, which a remap leaves alone, and compares.
        let mut guest = sandbox.start("pipes")?;
        let (old, new) = (guest.pid, guest.pid + 1000);
        let moved = guest.out.with_file_name("moved");
        let pid = format!("{old}={new}");
        let path = format!("{}={}", text(&guest.out)?, text(&moved)?);
        let images = remapped(sandbox, &guest, &["--pid", &pid, "--path", &path])?;
        // The old name is gone: only the new one leads to the file.
        fs::rename(&guest.out, &moved).context("move the guest's output")?;

        sandbox.restore(&images, &[])?.succeeded()?;
        ensure!(!Path::new(&format!("/proc/{old}")).exists(), "the old pid {old} is in use");
        let output = fs::read_link(format!("/proc/{new}/fd/1"))?;
        ensure!(output == moved, "standard output is {}", output.display());
        guest.pid = new;
        guest.out = moved;
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }

    /// The pid of the dead process changes, with the paths that hold it. The
    /// guest itself only accepts a path of the dead process that begins like the old one.
    fn the_dead_process_of_a_descriptor_moves(sandbox) {
        let guest = sandbox.start("proc_dead")?;
        let images = sandbox.images("dead")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let remap = images.join("remap-fpath.img");
        let old: i64 = crit(sandbox, &["get", text(&remap)?, "[0].remap_id"])?.trim().parse()?;
        let new = old * 10 + 7;
        crit(sandbox, &["remap", text(&images)?, "--pid", &format!("{old}={new}")])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        let mut links = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", guest.pid))? {
            links.push(fs::read_link(entry?.path())?.display().to_string());
        }
        ensure!(links.contains(&format!("/proc/{new} (deleted)")), "{links:?}");
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }
}
