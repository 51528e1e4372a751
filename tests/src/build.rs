//! What a test needs built: the executables under test and the guest programs.
//!
//! Cargo gives a test no path of another package's executable, so the first test that asks runs
//! `cargo build` into the target directory it was started from; the guests are compiled by `cc`
//! into its `tmp` directory, statically, so that an image of theirs holds no host library. A lock
//! file lets the processes of a test run share one build.

use anyhow::{Context, Result, bail, ensure};
use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

/// Environment variable naming a directory with ready executables (an installed release, say):
/// nothing is built then.
const READY_BINARIES: &str = "CRUST_BIN_DIR";

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// `target/<profile>` of the running test or bench executable.
fn profile_dir() -> Result<PathBuf> {
    let exe = env::current_exe().context("ask for the path of the test executable")?;
    let dir = exe
        .ancestors()
        .skip(1)
        .find(|dir| dir.join(".fingerprint").is_dir())
        .with_context(|| format!("{} is not below a cargo target directory", exe.display()))?;
    Ok(dir.to_owned())
}

/// A directory for build products of tests, kept between runs.
pub fn products_dir() -> Result<PathBuf> {
    let dir = profile_dir()?.join("crust-tests");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// An exclusive lock, held until dropped, that serialises builds of concurrent test processes.
fn lock_products(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.lock()
        .with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

/// The directory that holds `crust-dump`, `crust-restore` and `crit`, built if need be.
pub fn binaries() -> Result<PathBuf> {
    if let Some(dir) = env::var_os(READY_BINARIES) {
        return Ok(dir.into());
    }
    let dir = profile_dir()?;
    let target = dir.parent().context("a profile directory has a parent")?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo.args(["build", "--quiet", "--locked", "--bins"]);
    cargo.args(["-p", "crust-dump", "-p", "crust-restore", "-p", "crit"]);
    if dir.file_name() == Some(OsStr::new("release")) {
        cargo.arg("--release");
    }
    cargo.env("CARGO_TARGET_DIR", target);
    run(&mut cargo)?;
    Ok(dir)
}

/// Compiles the guests that are older than their source and gives the directory of the programs.
pub fn guests() -> Result<PathBuf> {
    let products = products_dir()?;
    let _lock = lock_products(&products)?;
    let programs = products.join("guests");
    fs::create_dir_all(&programs).with_context(|| format!("create {}", programs.display()))?;
    let sources = workspace().join("tests/guests");
    let files = fs::read_dir(&sources).with_context(|| format!("list {}", sources.display()))?;
    let files: Vec<PathBuf> = files
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    let of_kind = |kind| move |file: &&PathBuf| file.extension() == Some(OsStr::new(kind));
    let headers = files
        .iter()
        .filter(of_kind("h"))
        .map(|file| modified(file.as_path()));
    let header = headers.collect::<Result<Vec<_>>>()?.into_iter().max();
    let mut running = Vec::new();
    for source in files.iter().filter(of_kind("c")) {
        let program = programs.join(source.file_stem().unwrap_or_default());
        let wanted = Some(modified(source)?).max(header);
        if modified(&program).is_ok_and(|built| Some(built) >= wanted) {
            continue;
        }
        running.push(compile(source, program)?);
    }
    running.into_iter().try_for_each(Compilation::finish)?;
    Ok(programs)
}

fn modified(path: &Path) -> Result<std::time::SystemTime> {
    let metadata = fs::metadata(path).with_context(|| format!("stat {}", path.display()))?;
    Ok(metadata.modified()?)
}

/// A running `cc`. The program gets its name only when complete, so that an interrupted build is
/// not taken for a finished one.
struct Compilation {
    cc: std::process::Child,
    source: PathBuf,
    partial: PathBuf,
    program: PathBuf,
}

fn compile(source: &Path, program: PathBuf) -> Result<Compilation> {
    let partial = program.with_extension("partial");
    let cc = Command::new("cc")
        .args(["-O1", "-s", "-Wall", "-Wextra", "-static", "-pthread", "-o"])
        .arg(&partial)
        .arg(source)
        .arg("-lm")
        .spawn()
        .context("run cc (the C compiler that builds the guest programs)")?;
    Ok(Compilation {
        cc,
        source: source.to_owned(),
        partial,
        program,
    })
}

impl Compilation {
    fn finish(mut self) -> Result<()> {
        let status = self.cc.wait().context("wait for cc")?;
        ensure!(status.success(), "cc {}: {status}", self.source.display());
        fs::rename(&self.partial, &self.program)
            .with_context(|| format!("rename {}", self.partial.display()))
    }
}

/// Runs a command to its end; its output is part of the error.
pub fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}
