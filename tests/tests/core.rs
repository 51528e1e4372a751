//! `crit core` of a dump of our own: what gdb says of a dynamic, position-independent program with
//! threads is what /proc said of it while it lived.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    build::{run, workspace},
    guest::Guest,
    proc_snapshot::threads,
    sandbox::Sandbox,
    sandbox_test,
    tools::text,
};
use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// The program, built with what gdb needs to name functions.
fn start(sandbox: &Sandbox) -> Result<Guest> {
    let scratch = sandbox.dir("at_work")?;
    let program = scratch.join("at_work");
    let source = workspace().join("tests/programs/at_work.c");
    let mut cc = Command::new("cc");
    cc.args(["-g", "-O1", "-fPIE", "-pie", "-pthread", "-o"]);
    run(cc.arg(&program).arg(source))?;
    let guest = sandbox.spawn("at_work", &Command::new(&program), &scratch)?;
    guest.wait_for_line(sandbox, "ready")?;
    Ok(guest)
}

/// The stack pointer of each thread by its id, once all but the running one sleep where they mean
/// to: in read, futex and twice pause. A line has number, six arguments, stack pointer and counter.
fn asleep(pid: i32) -> Result<BTreeMap<i32, u64>> {
    loop {
        let mut numbers = Vec::new();
        let mut pointers = BTreeMap::new();
        for tid in threads(pid)? {
            let line = fs::read_to_string(format!("/proc/{pid}/task/{tid}/syscall"))?;
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [number, .., sp, _] = words.as_slice() {
                numbers.push((*number).to_owned());
                pointers.insert(tid, u64::from_str_radix(sp.trim_start_matches("0x"), 16)?);
            }
        }
        numbers.sort();
        if numbers == ["0", "202", "34", "34"] {
            return Ok(pointers);
        }
        std::thread::yield_now();
    }
}

fn gdb(program: &Path, core: &Path, commands: &[&str]) -> Result<String> {
    let mut gdb = Command::new("gdb");
    gdb.args(["--nx", "--batch", "-iex", "set debuginfod enabled off"]);
    gdb.args([
        "-iex",
        "set print frame-arguments none",
        "-iex",
        "set width 0",
    ]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    // What it warns of goes to stderr and is part of what a user sees.
    let output = gdb.arg(program).arg(core).output().context("run gdb")?;
    let said = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// The part of gdb's output that is about the thread with this id.
fn about(said: &str, tid: i32) -> Option<&str> {
    let lwp = format!("LWP {tid})");
    said.split("\nThread ")
        .find(|part| part.lines().next().is_some_and(|head| head.contains(&lwp)))
}

/// The first thread whose backtrace has a frame of the function.
fn thread_in<'a>(said: &'a str, pids: &[i32], function: &str) -> Result<(i32, &'a str)> {
    let mut found = pids
        .iter()
        .filter_map(|tid| Some((*tid, about(said, *tid)?)));
    let found = found.find(|(_, part)| part.contains(function));
    found.with_context(|| format!("no thread is in {function}:\n{said}"))
}

/// The names of a backtrace's functions, innermost first.
fn frames(part: &str) -> Vec<&str> {
    let frames = part.lines().filter(|line| line.starts_with('#'));
    frames
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            // `#0  0x... in NAME (...)` or `#0  NAME (...)`
            match words.as_slice() {
                [_, address, "in", name, ..] if address.starts_with("0x") => Some(*name),
                [_, name, ..] => Some(*name),
                _ => None,
            }
        })
        .collect()
}

/// The words of an auxiliary vector by their types.
fn auxiliary_vector(pid: i32) -> Result<Vec<(u64, u64)>> {
    let bytes = fs::read(format!("/proc/{pid}/auxv"))?;
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes))
        .collect();
    let pairs = words
        .chunks_exact(2)
        .filter_map(|pair| Some((*pair.first()?, *pair.last()?)));
    Ok(pairs.collect())
}

/// Start, end, offset and path of each mapping of a file.
fn mapped_files(pid: i32) -> Result<Vec<(u64, u64, u64, String)>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut files = Vec::new();
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [range, _, offset, _, _, path] = words.as_slice() else {
            continue;
        };
        let (start, end) = range.split_once('-').context("a range")?;
        let hex = |text: &str| u64::from_str_radix(text, 16);
        if path.starts_with('/') {
            files.push((hex(start)?, hex(end)?, hex(offset)?, (*path).to_owned()));
        }
    }
    ensure!(files.len() > 8, "few mapped files:\n{maps}");
    Ok(files)
}

sandbox_test! {
    fn gdb_sees_the_threads_where_they_were(sandbox) {
        let guest = start(sandbox)?;
        let program = guest.out.with_file_name("at_work");
        let pids = threads(guest.pid)?;
        ensure!(pids.len() == 5, "threads {pids:?}");
        let stacks = asleep(guest.pid)?;
        let (vector, files) = (auxiliary_vector(guest.pid)?, mapped_files(guest.pid)?);
        let images = sandbox.images("at_work")?;
        sandbox.dump(guest.pid, &images, &[])?.succeeded()?;
        sandbox.reap(&[guest.pid])?;
        let core = images.with_file_name("core");
        let pid = guest.pid.to_string();
        let made = ["core", text(&images)?, "-p", &pid, "-o", text(&core)?];
        sandbox.run("crit", &made, None)?.succeeded()?;

        let said = gdb(&program, &core, &[
            "info threads",
            "thread apply all backtrace",
            "echo \\nRegisters\\n",
            "thread apply all printf \"sp %lx r12 %lx xmm7 %lx st0 %.6f\\n\", (unsigned long)$sp, $r12, $xmm7.v2_int64[0], $st0",
            "thread apply all print $_siginfo",
            "echo \\nVector\\n",
            "info auxv",
            "echo \\nMappings\\n",
            "info proc mappings",
        ])?;
        ensure!(!said.to_lowercase().contains("warning"), "gdb warns:\n{said}");
        let (backtraces, rest) = said.split_once("\nRegisters\n").context("registers")?;
        let (registers, rest) = rest.split_once("\nVector\n").context("vector")?;
        let (auxv, mappings) = rest.split_once("\nMappings\n").context("mappings")?;

        // info threads: all of them, the leader first.
        for tid in &pids {
            ensure!(backtraces.contains(&format!("LWP {tid}")), "{backtraces}");
        }
        for (function, wanted) in [
            ("sleeper", &["sleeps_in_pause", "sleeps_in_pause", "sleeps_in_pause", "sleeps_in_pause", "sleeper"][..]),
            ("reader", &["blocks_in_read", "reader"]),
            ("waiter", &["wants_the_mutex", "waiter"]),
            ("runner", &["spins_with_registers", "runner"]),
            ("main (", &["sleeps_in_pause", "sleeps_in_pause", "main"]),
        ] {
            let (tid, part) = thread_in(backtraces, &pids, function)?;
            let there = frames(part);
            ensure!(there.windows(wanted.len()).any(|names| names == wanted), "{part}");
            ensure!((tid == guest.pid) == (function == "main ("), "{function} is in {tid}");
            // To the very end: the start of the thread, or main, where gdb stops.
            let last = there.last().copied().unwrap_or_default();
            ensure!(last.contains("clone") || last == "main", "{part}");
        }

        for (tid, sp) in &stacks {
            let part = about(registers, *tid).context("the registers of a thread")?;
            ensure!(part.contains(&format!("sp {sp:x} ")), "{tid} at {sp:x}:\n{part}");
        }
        let (runner, _) = thread_in(backtraces, &pids, "runner")?;
        let part = about(registers, runner).context("the runner")?;
        let known = "r12 badc0de0badcafe xmm7 1122334455667788 st0 3.141593";
        ensure!(part.contains(known), "{part}");
        let signals = registers.split("st0").last().unwrap_or_default();
        let pending = about(signals, runner).context("the runner's signal")?;
        ensure!(pending.contains("si_signo = 10") && pending.contains("sival_int = 4711"), "{pending}");

        for (kind, value) in vector.iter().filter(|(kind, _)| *kind != 0) {
            let line = auxv.lines().find(|line| line.split_whitespace().next() == Some(&kind.to_string()));
            let line = line.with_context(|| format!("no {kind} in\n{auxv}"))?;
            let same = line.contains(&format!("{value:#x}")) || line.split_whitespace().any(|word| word == value.to_string());
            ensure!(same, "{kind} is {value:#x}, not {line}");
        }
        for (start, end, offset, path) in files {
            let wanted = [format!("{start:#x}"), format!("{end:#x}"), format!("{:#x}", end - start), format!("{offset:#x}"), path];
            let there = mappings.lines().any(|line| line.split_whitespace().eq(wanted.iter()));
            ensure!(there, "{wanted:?} is not in\n{mappings}");
        }
        sandbox.assert_only(&[])
    }
}
