//! Times and memory of crit: start-up, decode and encode of images of about 1 MB, and files of
//! 5 GB that pass as a stream. `cargo run --release -p crust-tests --bin crust-bench crit`.
//!
//! Times are wall and processor time, medians, each beside that of `true`, which is what starting
//! any program costs on this machine at that moment. The big files are sparse.

use crate::build::{self, run, workspace};
use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};
use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

const ROUNDS: usize = 41;
const BIG: u64 = 5 << 30;

/// Runs them all. Needs no privilege.
pub fn measure() -> Result<()> {
    let crit = build::binaries()?.join("crit");
    let scratch = env::temp_dir().join(format!("crit-bench-{}", std::process::id()));
    fs::create_dir(&scratch).with_context(|| format!("create {}", scratch.display()))?;
    let measured = measure_in(&crit, &scratch);
    fs::remove_dir_all(&scratch)?;
    measured
}

fn measure_in(crit: &Path, scratch: &Path) -> Result<()> {
    report("true", None, Command::new("true").stdout(Stdio::null()))?;
    report("crit --version", Some(3.0), command(crit, &["--version"]))?;
    for (name, image, json) in [
        ("files.img of 15000 entries", "files.img", many_files()),
        ("mm-1.img of 30000 areas", "mm-1.img", many_areas()),
    ] {
        let text = scratch.join("image.json");
        let path = scratch.join(image);
        fs::write(&text, json.to_string())?;
        let (text, path) = (text.to_string_lossy(), path.to_string_lossy());
        run(command(crit, &["encode", "-i", &text, "-o", &path]))?;
        let mib = fs::metadata(&*path)?.len() as f64 / f64::from(1 << 20);
        let name = format!("{name}, {mib:.2} MiB");
        report(
            &format!("decode {name}"),
            Some(20.0),
            command(crit, &["decode", "-i", &path]),
        )?;
        report(
            &format!("show {name}"),
            None,
            command(crit, &["show", &path]),
        )?;
        report(
            &format!("encode {name}"),
            None,
            command(crit, &["encode", "-i", &text]),
        )?;
    }
    ghost(crit, scratch)?;
    memory(crit, scratch)
}

fn command<'a>(crit: &Path, arguments: &[&str]) -> &'a mut Command {
    let mut command = Command::new(crit);
    command.args(arguments).stdout(Stdio::null());
    // One leak for each line of the report, in a program that ends after it.
    Box::leak(Box::new(command))
}

/// Milliseconds of processor time that children have used so far.
fn children_ms() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e3)
}

fn report(what: &str, bound: Option<f64>, command: &mut Command) -> Result<()> {
    let (mut walls, mut used) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let before = children_ms()?;
        let started = Instant::now();
        let status = command
            .status()
            .with_context(|| format!("run {command:?}"))?;
        walls.push(started.elapsed().as_secs_f64() * 1e3);
        used.push(children_ms()? - before);
        ensure!(status.success(), "{command:?}: {status}");
    }
    walls.sort_by(f64::total_cmp);
    used.sort_by(f64::total_cmp);
    let middle = |times: &[f64]| times.get(times.len() / 2).copied().unwrap_or(f64::NAN);
    let least = walls.first().copied().unwrap_or(f64::NAN);
    let bound = bound.map_or(String::new(), |bound| format!(" (bound {bound})"));
    println!(
        "{what}: {:.1} ms wall, least {least:.1}, {:.1} ms processor{bound}",
        middle(&walls),
        middle(&used)
    );
    Ok(())
}

fn many_files() -> Value {
    let entry = |id: u64| {
        let fown = json!({"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0});
        let name = format!("/srv/data/store/part-{id:08}.dat");
        json!({"type": "REG", "id": id, "reg": {
            "id": id, "flags": 32770, "pos": 4096 * id, "fown": fown, "name": name,
        }})
    };
    json!({"magic": "FILES", "entries": (1..=15_000).map(entry).collect::<Vec<_>>()})
}

fn area(start: u64, end: u64) -> Value {
    json!({
        "start": start, "end": end, "pgoff": 0, "shmid": 0, "prot": 3, "flags": 34,
        "status": 513, "fd": -1,
    })
}

fn many_areas() -> Value {
    let base = 0x7f00_0000_0000;
    let areas = (0..30_000).map(|at| area(base + at * 8192, base + at * 8192 + 4096));
    let mut mm = serde_json::Map::new();
    for name in [
        "start_code",
        "end_code",
        "start_data",
        "end_data",
        "start_stack",
        "start_brk",
        "brk",
        "arg_start",
        "arg_end",
        "env_start",
        "env_end",
    ] {
        mm.insert(format!("mm_{name}"), json!(base));
    }
    mm.insert("exe_file_id".to_owned(), json!(1));
    mm.insert("vmas".to_owned(), areas.collect());
    json!({"magic": "MM", "entries": [mm]})
}

/// The largest resident size in MiB and the seconds of a shell command.
fn streamed(what: &str, script: &str) -> Result<()> {
    let output = run(Command::new(env::current_exe()?).args(["max-rss", script]))?;
    println!("{what}: {}", String::from_utf8_lossy(&output).trim());
    Ok(())
}

/// Runs a shell command in a process of its own, whose children are only that.
pub fn print_max_rss(script: &str) -> Result<()> {
    let started = Instant::now();
    let status = Command::new("/bin/sh").args(["-c", script]).status()?;
    ensure!(status.success(), "{script}: {status}");
    let kib = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{:.1} MiB resident at most, {seconds:.1} s",
        kib as f64 / 1024.0
    );
    Ok(())
}

fn encode(crit: &Path, json: &Path, image: &Path) -> Result<()> {
    let mut command = Command::new(crit);
    command
        .arg("encode")
        .arg("-i")
        .arg(json)
        .arg("-o")
        .arg(image);
    run(&mut command).map(drop)
}

fn ghost(crit: &Path, scratch: &Path) -> Result<()> {
    let (text, image, again) = (
        scratch.join("ghost.json"),
        scratch.join("ghost-file-1.img"),
        scratch.join("again.img"),
    );
    let head = json!({"magic": "GHOST_FILE", "entries": [
        {"uid": 0, "gid": 0, "mode": 33152, "extra": ""}
    ]});
    fs::write(&text, head.to_string())?;
    encode(crit, &text, &image)?;
    let length = fs::metadata(&image)?.len() + BIG;
    File::options().write(true).open(&image)?.set_len(length)?;
    let (crit, image, again) = (crit.display(), image.display(), again.display());
    let gib = BIG >> 30;
    streamed(
        &format!("decode a ghost file of {gib} GiB"),
        &format!("{crit} decode -i {image} >/dev/null"),
    )?;
    streamed(
        "decode 1 GiB of it, encode that again, compare",
        &format!(
            "truncate -s 1G {image} && {crit} decode -i {image} | {crit} encode -o {again} && \
             cmp {image} {again} && rm {again}"
        ),
    )
}

/// The dump of `loop` with an area of 5 GiB more.
fn memory(crit: &Path, scratch: &Path) -> Result<()> {
    let recorded = workspace().join("tests/data/corpus/loop/img");
    let dir = scratch.join("dump");
    fs::create_dir(&dir)?;
    for entry in fs::read_dir(&recorded)? {
        let path = entry?.path();
        if let Some(name) = path.file_name() {
            fs::copy(&path, dir.join(name))?;
        }
    }
    let start: u64 = 0x1000_0000_0000;
    let pid = edited(crit, &dir, "mm-", |entries| {
        let mm = entries.first_mut().context("an mm entry")?;
        let areas = mm.get_mut("vmas").and_then(Value::as_array_mut);
        let areas = areas.context("areas")?;
        let start_of = |area: &Value| area.get("start").and_then(Value::as_u64);
        let at = areas.partition_point(|area| start_of(area) < Some(start));
        areas.insert(at, area(start, start + BIG));
        Ok(())
    })?;
    edited(crit, &dir, "pagemap-", |entries| {
        let head = entries.first().and_then(|head| head.get("pages_id"));
        let pages = dir.join(format!("pages-{}.img", head.context("pages_id")?));
        let before = |entry: &Value| {
            entry
                .get("vaddr")
                .is_none_or(|vaddr| vaddr.as_u64() < Some(start))
        };
        let at = entries.partition_point(before);
        let run = json!({
            "vaddr": start, "compat_nr_pages": 0, "flags": 4, "nr_pages": BIG / 4096,
        });
        let behind = entries.get(at..).unwrap_or_default().iter();
        let behind: u64 = behind
            .filter_map(|entry| entry.get("nr_pages")?.as_u64())
            .sum();
        ensure!(behind == 0 || at > 0, "runs before and behind");
        entries.insert(at, run);
        insert_hole(&pages, behind * 4096)
    })?;
    let (crit, dir) = (crit.display(), dir.display());
    let gib = BIG >> 30;
    streamed(
        &format!("search the memory of a task with {gib} GiB"),
        &format!(
            "{crit} mem {dir} -p {pid} search --regex 'no such (text|bytes)' 2>&1 | grep -q nothing"
        ),
    )?;
    streamed(
        "check that dump",
        &format!("{crit} check {dir} >/dev/null || true"),
    )
}

/// Makes room for 5 GiB before the last `behind` bytes of a file.
fn insert_hole(path: &Path, behind: u64) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let at = (bytes.len() as u64).saturating_sub(behind) as usize;
    let tail = bytes.split_off(at);
    fs::write(path, &bytes)?;
    let file = File::options().write(true).open(path)?;
    file.set_len(at as u64 + BIG)?;
    std::os::unix::fs::FileExt::write_all_at(&file, &tail, at as u64 + BIG)?;
    Ok(())
}

/// Changes the entries of the one image whose name begins so; gives the number in its name.
fn edited(
    crit: &Path,
    dir: &Path,
    prefix: &str,
    change: impl FnOnce(&mut Vec<Value>) -> Result<()>,
) -> Result<String> {
    let starts = |path: &PathBuf| {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        name.is_some_and(|name| name.starts_with(prefix))
    };
    let paths = fs::read_dir(dir)?.filter_map(|entry| Some(entry.ok()?.path()));
    let image = paths.filter(starts).min().context("no such image")?;
    let json = run(Command::new(crit).arg("decode").arg("-i").arg(&image))?;
    let mut json: Value = serde_json::from_slice(&json)?;
    let entries = json.get_mut("entries").and_then(Value::as_array_mut);
    change(entries.context("entries")?)?;
    let text = dir.join("edited.json");
    fs::write(&text, json.to_string())?;
    encode(crit, &text, &image)?;
    fs::remove_file(&text)?;
    let name = image.to_string_lossy();
    let digits = name
        .rsplit('-')
        .next()
        .and_then(|end| end.strip_suffix(".img"));
    Ok(digits.unwrap_or_default().to_owned())
}
