//! Editing a checkpoint: the dead pid of proc_dead is changed in its images, as JSON, and the
//! restore makes its helper with the new pid. Once with jq in a shell pipeline, once with crit
//! and nothing else.

use anyhow::{Context, Result, ensure};
use crust_tests::{guest::Guest, sandbox::Sandbox, sandbox_test, tools::text};
use serde_json::Value;
use std::{fs, path::Path, process::Command};

/// A dumped (and dead) guest with the images and the pid its descriptors are about.
struct Dumped {
    guest: Guest,
    images: std::path::PathBuf,
    old: i64,
}

fn dumped(sandbox: &Sandbox) -> Result<Dumped> {
    let guest = sandbox.start("proc_dead")?;
    let images = sandbox.images("edited")?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    let remap = decode(sandbox, &images.join("remap-fpath.img"))?;
    let old = remap.pointer("/entries/0/remap_id").and_then(Value::as_i64);
    Ok(Dumped {
        guest,
        images,
        old: old.context("remap-fpath.img has no first remap_id")?,
    })
}

fn decode(sandbox: &Sandbox, image: &Path) -> Result<Value> {
    let run = sandbox
        .run("crit", &["decode", "-i", text(image)?], None)?
        .succeeded()?;
    serde_json::from_slice(&run.stdout).context("parse what crit decode wrote")
}

impl Dumped {
    /// The guest only accepts a path that begins like the old one, so the new pid is the old one
    /// with a digit behind it.
    fn new_pid(&self) -> i64 {
        self.old * 10 + 7
    }

    /// The restored task must have its descriptors on the new pid, and be content.
    fn expect_restored_with_new_pid(&self, sandbox: &Sandbox) -> Result<()> {
        let outcome = sandbox.restore(&self.images, &[])?.succeeded()?;
        let wanted = format!("/proc/{} (deleted)", self.new_pid());
        let mut links = Vec::new();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.guest.pid))? {
            links.push(fs::read_link(entry?.path())?.display().to_string());
        }
        ensure!(
            links.contains(&wanted),
            "{wanted} is not in {links:?}\n{}",
            outcome.report()
        );
        let old = format!("/proc/{}", self.old);
        ensure!(
            !links
                .iter()
                .any(|link| link == &old || link.starts_with(&format!("{old}/"))),
            "a descriptor is still on the old pid: {links:?}"
        );
        let helper = format!("/proc/{}", self.new_pid());
        ensure!(
            !Path::new(&helper).exists(),
            "the helper {helper} is still there"
        );
        self.guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }
}

/// The two edits, for jq.
const WITH_JQ: &str = r#"
set -eu -o pipefail
"$CRIT" decode -i remap-fpath.img \
  | jq --argjson new "$NEW" '.entries[].remap_id = $new' \
  | "$CRIT" encode -o remap-fpath.new
"$CRIT" decode < files.img \
  | jq --arg old "/proc/$OLD" --arg new "/proc/$NEW" \
      '(.entries[].reg.name | strings | select(. == $old or startswith($old + "/")))
       |= $new + ltrimstr($old)' \
  | "$CRIT" encode > files.new
mv remap-fpath.new remap-fpath.img
mv files.new files.img
"#;

sandbox_test! {
    fn with_jq_in_a_pipeline(sandbox) {
        if Command::new("jq").arg("--version").output().is_err() {
            println!("SKIPPED with_jq_in_a_pipeline: jq is not installed");
            return Ok(());
        }
        let dumped = dumped(sandbox)?;
        let mut shell = Command::new("bash");
        shell.args(["-c", WITH_JQ]).current_dir(&dumped.images);
        shell.env("CRIT", sandbox.binary("crit"));
        shell.env("OLD", dumped.old.to_string()).env("NEW", dumped.new_pid().to_string());
        sandbox.run_command(shell, None)?.succeeded()?;
        dumped.expect_restored_with_new_pid(sandbox)
    }

    fn with_crit_alone(sandbox) {
        let dumped = dumped(sandbox)?;
        let (old, new) = (format!("/proc/{}", dumped.old), format!("/proc/{}", dumped.new_pid()));
        edit(sandbox, &dumped.images.join("remap-fpath.img"), |entry| {
            entry["remap_id"] = dumped.new_pid().into();
        })?;
        edit(sandbox, &dumped.images.join("files.img"), |entry| {
            let name = entry.pointer("/reg/name").and_then(Value::as_str).map(str::to_owned);
            let below = |rest: &str| rest.is_empty() || rest.starts_with('/');
            match name.as_deref().and_then(|name| name.strip_prefix(&old)) {
                Some(rest) if below(rest) => entry["reg"]["name"] = format!("{new}{rest}").into(),
                _ => {}
            }
        })?;
        dumped.expect_restored_with_new_pid(sandbox)
    }

    /// An edit that leaves the paths on the old pid is caught before a task is made.
    fn a_remap_without_its_paths_leaves_no_task(sandbox) {
        let dumped = dumped(sandbox)?;
        edit(sandbox, &dumped.images.join("remap-fpath.img"), |entry| {
            entry["remap_id"] = dumped.new_pid().into();
        })?;
        let outcome = sandbox.restore(&dumped.images, &[])?.exited_with(1)?;
        outcome.says(&[&dumped.old.to_string()])?;
        sandbox.assert_only(&[])
    }
}

/// Decodes an image, changes its entries and encodes it in place.
fn edit(sandbox: &Sandbox, image: &Path, change: impl Fn(&mut Value)) -> Result<()> {
    let mut json = decode(sandbox, image)?;
    let entries = json.get_mut("entries").and_then(Value::as_array_mut);
    entries.context("no entries")?.iter_mut().for_each(change);
    let edited = image.with_extension("json");
    fs::write(&edited, serde_json::to_vec(&json)?)?;
    let arguments = ["encode", "-i", text(&edited)?, "-o", text(image)?];
    sandbox.run("crit", &arguments, None)?.succeeded()?;
    fs::remove_file(&edited)?;
    Ok(())
}
