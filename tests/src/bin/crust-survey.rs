//! crust-survey: a table of every guest program: does it verify after dump and restore, after a
//! dump that leaves it running, and if not, what was said. `crust-survey NAME...` for some only.

use anyhow::{Context, Result};
use crust_tests::{build, sandbox, sandbox::Sandbox};
use std::{env, fs, process::Command};

/// Seconds for one guest.
const LIMIT: u32 = 40;

/// Options some guests need, for dump and for restore.
const OPTIONS: &[(&str, &[&str])] = &[
    ("tcp_est", &["--tcp-established"]),
    ("locks", &["--file-locks"]),
    ("lock_inherited", &["--file-locks"]),
    ("link_remap", &["--link-remap"]),
    ("ghost", &["--ghost-limit", "2M"]),
    ("fanotify", &["--force-irmap"]),
];

/// Guests that need an argument or are no room's.
const NOT_SURVEYED: &[&str] = &[
    "procfd",
    "reaper",
    "interrupted",
    "bigmem",
    "traced",
    "unsupported",
];

fn main() -> Result<()> {
    let mut names: Vec<String> = env::args().skip(1).collect();
    if let [way @ ("restored" | "running"), name] =
        names.iter().map(String::as_str).collect::<Vec<_>>()[..]
    {
        let (way, name) = (way.to_owned(), name.to_owned());
        return sandbox::run_program(LIMIT, |sandbox| one(sandbox, &way, &name));
    }
    if names.is_empty() {
        names = every_guest()?;
    }
    println!("| guest | restored | left running | what was said |\n|---|---|---|---|");
    for name in names {
        let (restored, why) = verdict("restored", &name)?;
        let (running, why_running) = verdict("running", &name)?;
        let why = if why.is_empty() { why_running } else { why };
        println!("| {name} | {restored} | {running} | {why} |");
    }
    Ok(())
}

fn every_guest() -> Result<Vec<String>> {
    let mut names: Vec<_> = fs::read_dir(build::workspace().join("tests/guests"))
        .context("list the guests")?
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .to_str()?
                .strip_suffix(".c")
                .map(str::to_owned)
        })
        .filter(|name| !NOT_SURVEYED.contains(&name.as_str()))
        .collect();
    names.sort();
    Ok(names)
}

fn options(name: &str) -> &'static [&'static str] {
    OPTIONS
        .iter()
        .find(|(guest, _)| *guest == name)
        .map_or(&[], |(_, options)| *options)
}

fn one(sandbox: &Sandbox, way: &str, name: &str) -> Result<()> {
    let guest = sandbox.start(name)?;
    let images = sandbox.images("survey")?;
    if way == "running" {
        let mut all = vec!["--leave-running"];
        all.extend(options(name));
        sandbox.dump(guest.pid, &images, &all)?.succeeded()?;
    } else {
        sandbox.dump_and_kill(&guest, &images, options(name))?;
        sandbox.restore(&images, options(name))?.succeeded()?;
    }
    guest.expect_ok(sandbox)
}

fn verdict(way: &str, name: &str) -> Result<(String, String)> {
    let output = Command::new(env::current_exe()?)
        .args([way, name])
        .output()?;
    if output.status.success() {
        return Ok(("ok".to_owned(), String::new()));
    }
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let telling = |line: &&str| {
        ["Error", "FAIL", "efus", "panicked", "ended", "not "]
            .iter()
            .any(|word| line.contains(word))
    };
    let why = said
        .lines()
        .find(telling)
        .or(said.lines().last())
        .unwrap_or_default();
    let word = if said.contains("crust-restore\"") {
        "restore"
    } else {
        "dump"
    };
    let verdict = if said.contains("FAIL:") { "FAIL" } else { word };
    let why: String = why.trim().replace('|', "/").chars().take(260).collect();
    Ok((format!("**{verdict}**"), why))
}
