//! Images are untrusted: whatever bytes are in them, crust-restore makes a plan or refuses with a
//! sentence, crit decodes or refuses; neither panics, hangs or takes memory without bound. Images
//! of the corpus with flipped bits, overwritten numbers and cut tails. Needs no root.

use anyhow::{Context, Result, ensure};
use crust_tests::{build, corpus::recorded, kills::Random, mutation::damaged_bytes, tools::text};
use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Damages per image.
const ROUNDS: u64 = 6;
/// Address space for a run, KiB: a size read from an image must not become an allocation.
const MEMORY_KIB: u64 = 2 << 20;
/// Seconds.
const LIMIT: &str = "20";

fn bounded(program: &Path, arguments: &[&str]) -> Result<Output> {
    let script = format!("ulimit -v {MEMORY_KIB}; exec timeout {LIMIT} \"$0\" \"$@\"");
    let mut command = Command::new("bash");
    command.args(["-c", &script]).arg(program).args(arguments);
    command.output().with_context(|| format!("run {command:?}"))
}

/// Success or a refusal in words; no panic, no signal, no timeout.
fn expect_civil(output: &Output, what: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.signal().is_none(),
        "{what}: {}\n{said}",
        output.status
    );
    ensure!(
        matches!(output.status.code(), Some(0 | 1)),
        "{what}: {}\n{said}",
        output.status
    );
    ensure!(!said.contains("panicked"), "{what}: {said}");
    ensure!(
        output.status.success() || !said.trim().is_empty(),
        "{what}: failed without a word"
    );
    Ok(())
}

fn copied(name: &str) -> Result<PathBuf> {
    let copy = build::products_dir()?.join(format!("hostile-{name}"));
    let _ = fs::remove_dir_all(&copy);
    fs::create_dir_all(&copy)?;
    for entry in fs::read_dir(recorded(name).images())? {
        let path = entry?.path();
        fs::copy(&path, copy.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(copy)
}

fn attacked(name: &str) -> Result<()> {
    let binaries = build::binaries()?;
    let images = copied(name)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut names: Vec<_> = fs::read_dir(&images)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".img") && !name.starts_with("pages-"))
        .collect();
    names.sort();
    for image in names {
        let path = images.join(&image);
        let good = fs::read(&path)?;
        for round in 0..ROUNDS {
            let (bad, _) = damaged_bytes(&good, &mut random);
            fs::write(&path, &bad)?;
            let what = format!("{name}/{image}, damage {round}, kept in {}", path.display());
            let plan = ["-D", text(&images)?, "--plan"];
            expect_civil(&bounded(&binaries.join("crust-restore"), &plan)?, &what)?;
            let decode = ["decode", "-i", text(&path)?];
            expect_civil(&bounded(&binaries.join("crit"), &decode)?, &what)?;
        }
        fs::write(&path, good)?;
    }
    fs::remove_dir_all(&images)?;
    Ok(())
}

macro_rules! sets {
    ($($name:ident $set:literal;)*) => {
        $(#[test] fn $name() -> Result<()> { attacked($set) })*
    };
}

sets! {
    threads "threads";
    tree "tree";
    proc_dead "proc_dead";
    mem_shared "mem_shared";
    pipes "pipes";
    unix_stream "unix_stream";
    sigpending "sigpending";
    timers "timers";
    format_v1_0 "format_v1_0";
}
