//! crust-restore asks the library of `crit check` before it does anything: what does not fit
//! together is told with image, entry and field, all of it at once, and no task is made.

use anyhow::{Context, Result, ensure};
use crust_tests::{sandbox::Sandbox, sandbox_test, tools::text};
use std::path::{Path, PathBuf};

fn crit(sandbox: &Sandbox, arguments: &[&str]) -> Result<()> {
    sandbox.run("crit", arguments, None)?.succeeded().map(drop)
}

/// The first image of the directory whose name begins so.
fn image(images: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(images)?.filter_map(|entry| Some(entry.ok()?.path()));
    let named = entries.filter(|path| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
    });
    named.min().with_context(|| format!("no {prefix}*"))
}

sandbox_test! {
    fn what_does_not_fit_together_is_refused_with_its_place(sandbox) {
        let guest = sandbox.start("pipes")?;
        let images = sandbox.images("broken")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let (fdinfo, fs) = (image(&images, "fdinfo-")?, image(&images, "fs-")?);
        let (fdinfo, fs) = (text(&fdinfo)?, text(&fs)?);
        crit(sandbox, &["set", fdinfo, "[1].id", "9999"])?;
        crit(sandbox, &["set", fs, "[0].cwd_id", "8888"])?;

        let places = ["fdinfo-", "entry 1", "id: descriptor", "9999", "fs-", "entry 0", "cwd_id", "8888"];
        let outcome = sandbox.restore(&images, &[])?.exited_with(1)?;
        outcome.says(&places)?;
        sandbox.assert_only(&[])?;
        let checked = sandbox.run("crust-restore", &["--check", "-D", text(&images)?], None)?;
        let checked = checked.exited_with(1)?;
        let said = [checked.stdout.clone(), checked.stderr.clone().into_bytes()].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        for place in places {
            ensure!(said.contains(place), "--check does not say {place:?}:\n{said}");
        }
        // The same findings, by the tool for images.
        let own = sandbox.run("crit", &["check", text(&images)?], None)?.exited_with(1)?;
        let own = String::from_utf8_lossy(&own.stdout).into_owned();
        for place in places {
            ensure!(own.contains(place), "crit check does not say {place:?}:\n{own}");
        }
        sandbox.assert_only(&[])
    }

    /// What a restore can do without is told in the log and does not stop it.
    fn a_stray_image_is_only_a_warning(sandbox) {
        let guest = sandbox.start("pipes")?;
        let images = sandbox.images("stray")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        std::fs::copy(image(&images, "fs-")?, images.join("fs-7777.img"))?;
        let outcome = sandbox.restore(&images, &[])?.succeeded()?;
        ensure!(outcome.log.contains("Warn") && outcome.log.contains("fs-7777.img"), "{}", outcome.report());
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }
}
