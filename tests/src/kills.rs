//! Killing crust at a numbered step or at a random instant, and looking at what is left.
//!
//! The executables that tests use count their steps (crust-process, steps.rs): a run with -v4 says
//! in its log how many it took, and CRUST_DIE_AT_STEP=N in its environment ends it by SIGKILL
//! before the Nth. CRUST_TESTS_KILLS says how many kills each test makes: a number, or `all` for
//! every step there is; without it a few, spread over the run, which differ from test to test but
//! not from run to run.

use crate::{
    guest::Guest,
    proc_snapshot::{self, Snapshot},
    sandbox::{GOLDEN, Sandbox},
    tools::text,
};
use anyhow::{Context, Result, ensure};
use crust_process::netfilter;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::{
    env, fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        process::ExitStatusExt,
    },
    path::Path,
    process::{Command, Stdio},
};

/// Kills of a test when nobody says how many.
const A_FEW: u64 = 10;

/// xorshift64: random, but the same in each run.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

/// The steps at which to kill, of a run of `taken` steps.
pub fn steps_to_die_at(taken: u64, seed: &str) -> Result<Vec<u64>> {
    let wanted = match env::var("CRUST_TESTS_KILLS").as_deref() {
        Ok("all") => taken,
        Ok(text) => text
            .parse()
            .with_context(|| format!("CRUST_TESTS_KILLS={text}"))?,
        Err(_) => A_FEW,
    };
    if wanted >= taken {
        return Ok((1..=taken).collect());
    }
    let mut random = Random(seed.bytes().fold(0x9e37_79b9_7f4a_7c15, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    }));
    // One in each of as many equal parts as there are kills: no phase is left out by chance.
    let part = |n: u64| n * taken / wanted;
    let step = |n: u64| 1 + part(n) + random.below(part(n + 1) - part(n));
    Ok((0..wanted).map(step).collect())
}

/// How many steps the log of a run says it took.
pub fn steps_taken(log: &str) -> Result<u64> {
    let line = log
        .lines()
        .rev()
        .find_map(|line| line.strip_suffix(" steps taken"));
    let number = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    number.with_context(|| format!("the log does not say how many steps were taken:\n{log}"))
}

/// Runs crust with SIGKILL before a step; false if it had ended before.
pub fn killed_at(sandbox: &Sandbox, name: &str, arguments: &[&str], step: u64) -> Result<bool> {
    let mut command = Command::new(sandbox.binary(name));
    command
        .args(arguments)
        .env("CRUST_DIE_AT_STEP", step.to_string());
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("run {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let killed = output.status.signal() == Some(9);
    ensure!(
        killed || output.status.success(),
        "{command:?}: {}\n{said}",
        output.status
    );
    Ok(killed)
}

/// No thread of a tree is traced. One may be stopped by a signal, as it was.
pub fn expect_running(guest: &Guest) -> Result<()> {
    for pid in proc_snapshot::tree(guest.pid)? {
        for tid in proc_snapshot::threads(pid)? {
            let path = format!("/proc/{pid}/task/{tid}/status");
            let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            let line = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().trim()
            };
            ensure!(
                line("TracerPid:") == "0",
                "thread {tid} is still traced\n{status}"
            );
            let state = line("State:");
            ensure!(!state.starts_with('t'), "thread {tid} is in state {state}");
        }
    }
    Ok(())
}

/// What a killed restore has left.
#[derive(Debug, PartialEq, Eq)]
pub enum Left {
    /// No process.
    Nothing,
    /// The whole tree runs: it died after its commit.
    Tree,
}

/// Waits until it is clear what a killed restore has left: tasks that the kernel or the survivor
/// kills need a moment to die, and one that lives shows it by running.
pub fn what_is_left(sandbox: &Sandbox, guest: &Guest) -> Result<Left> {
    let switches = || -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", guest.pid)).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line?.trim().parse().ok()
    };
    let mut first = None;
    loop {
        while matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))
        ) {}
        let processes = sandbox.processes()?;
        if processes.is_empty() {
            return Ok(Left::Nothing);
        }
        let is_survivor = |pid: &i32| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            comm.trim_end() == "crust-survivor"
        };
        if !processes.iter().any(is_survivor)
            && let Some(now) = switches()
        {
            // A task that was killed by now is gone before it naps twice.
            match first {
                None => first = Some(now),
                Some(first) if now >= first + 2 => return Ok(Left::Tree),
                Some(_) => {}
            }
        }
        std::thread::yield_now();
    }
}

/// Everything in the world of a test that a run could leave something in: files with their inodes
/// and sizes (ghost files and link remaps among them), mounts, cgroups, sysctls, SysV objects, what
/// the sockets of others listen on, and the rules of the firewall: network locks of nf_tables, the
/// rest as far as there is a program that tells it.
pub fn world() -> Result<Vec<String>> {
    let mut world = Vec::new();
    list(Path::new(GOLDEN), &mut world)?;
    for table in [
        "/proc/self/mountinfo",
        "/proc/sysvipc/shm",
        "/proc/sysvipc/sem",
        "/proc/sysvipc/msg",
    ] {
        let text = fs::read_to_string(table).with_context(|| format!("read {table}"))?;
        world.extend(text.lines().map(|line| format!("{table}: {line}")));
    }
    list_cgroups(Path::new("/sys/fs/cgroup"), &own_number(), &mut world);
    list_sysctls(Path::new("/proc/sys/net"), &mut world);
    list_sysctls(Path::new("/proc/sys/kernel"), &mut world);
    list_firewall(&mut world);
    world.sort();
    Ok(world)
}

/// A number that no other sandbox on the machine has: that of its pid namespace. What tests make
/// outside of their namespaces has it in its name.
pub fn own_number() -> String {
    let link = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let digits = |c: &char| c.is_ascii_digit();
    link.to_string_lossy().chars().filter(digits).collect()
}

/// Cgroups are the whole machine's, where others come and go: those of this sandbox count, and
/// those that CRIU or crust would make for themselves.
fn list_cgroups(dir: &Path, own: &str, into: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            let name = path.display().to_string();
            if name.contains(own) || name.contains(".criu") || name.contains("cgyard") {
                into.push(name);
            }
            list_cgroups(&path, own, into);
        }
    }
}

/// Settings by their values, but for those that move by themselves.
fn list_sysctls(dir: &Path, into: &mut Vec<String>) {
    const MOVING: [&str; 6] = [
        "random",
        "ns_last_pid",
        "pty",
        "tainted",
        "perf_event",
        "usermodehelper",
    ];
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.display().to_string();
        if MOVING.iter().any(|moving| name.contains(moving)) {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => list_sysctls(&path, into),
            _ => into.extend(
                fs::read_to_string(&path)
                    .ok()
                    .map(|value| format!("{name} = {value}")),
            ),
        }
    }
}

/// Our own locks of the network need no program to be told.
fn list_firewall(into: &mut Vec<String>) {
    // The locks that dumps make, by netlink: nft(8) is hardly ever installed.
    for (table, is_owned) in crust_process::netfilter::left::tables().unwrap_or_default() {
        into.push(format!("nf_tables: {table}, owned: {is_owned}"));
    }
    let locks = netfilter::left::tables().unwrap_or_default();
    into.extend(locks.into_iter().map(|(lock, _)| format!("lock: {lock}")));
    for (program, arguments) in [("nft", &["list", "ruleset"][..]), ("iptables-save", &[])] {
        let output = Command::new(program).args(arguments).output();
        let rules = output.map(|output| output.stdout).unwrap_or_default();
        let rules = String::from_utf8_lossy(&rules).into_owned();
        // Comments have the time in them, chains the numbers of packets; a table is there from its
        // first rule on.
        let is_rule = |line: &&str| !line.starts_with(['#', ':', '*']) && *line != "COMMIT";
        into.extend(
            rules
                .lines()
                .filter(is_rule)
                .map(|rule| format!("{program}: {rule}")),
        );
    }
}

fn list(dir: &Path, into: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        let stat = fs::symlink_metadata(&path)?;
        // What the harness and the log write is not what the restore leaves.
        if path.ends_with("output") || path.extension().is_some_and(|kind| kind == "log") {
            continue;
        }
        if stat.is_dir() {
            into.push(path.display().to_string());
            list(&path, into)?;
        } else if stat.file_type().is_socket() {
            // A restore takes away the names of sockets that are dead before it binds its own.
        } else if path.file_name().is_some_and(|name| name != "out") {
            into.push(format!("{} {} {}", path.display(), stat.ino(), stat.size()));
        }
    }
    Ok(())
}

/// Fails with what has come and gone between two looks at the world.
pub fn expect_same_world(before: &[String], after: &[String]) -> Result<()> {
    let missing = |from: &[String], of: &[String]| -> Vec<String> {
        of.iter()
            .filter(|line| !from.contains(line))
            .cloned()
            .collect()
    };
    let (came, went) = (missing(before, after), missing(after, before));
    ensure!(
        came.is_empty() && went.is_empty(),
        "came: {came:#?}\nwent: {went:#?}"
    );
    Ok(())
}

/// Whether the network can be locked by iptables; a note if not.
pub fn has_iptables() -> bool {
    let rules = Command::new("iptables").arg("-S").output();
    let found = rules.is_ok_and(|output| output.status.success());
    if !found {
        println!("SKIPPED: iptables is not installed, or not for this kernel");
    }
    found
}

/// The rules of the firewall, our locks among them.
pub fn firewall() -> Vec<String> {
    let mut rules = Vec::new();
    list_firewall(&mut rules);
    rules.sort();
    rules
}

/// Dumps `guest` over and over, killed at each of some steps. After each it must run as before, be
/// good for a whole dump, and look the same in /proc, but for what is `moving` by itself.
pub fn dump_killed_at_steps(
    sandbox: &Sandbox,
    guest: &Guest,
    options: &[&str],
    moving: &[&str],
) -> Result<()> {
    let before = Snapshot::of_tree(guest.pid)?;
    let (whole, killed) = (sandbox.images("whole")?, sandbox.images("killed")?);
    let mut leaving = vec!["--leave-running"];
    // A whole dump ends the tracking that another has begun.
    let tracks = |option: &&&str| ["--pre-dump", "--track-mem"].contains(*option);
    let plain: Vec<&str> = leaving
        .iter()
        .chain(options.iter().filter(|option| !tracks(option)))
        .copied()
        .collect();
    leaving.extend(options);
    let first = sandbox.dump(guest.pid, &whole, &leaving)?.succeeded()?;
    let taken = steps_taken(&first.log)?;
    sandbox.dump(guest.pid, &whole, &plain)?.succeeded()?;
    let world_before = world()?;
    let pid = guest.pid.to_string();
    let mut arguments = vec!["-t", &pid, "-D", text(&killed)?];
    arguments.extend(leaving.iter().copied());
    let mut deaths = 0;
    for step in steps_to_die_at(taken, &guest.name)? {
        let context = || format!("dump of {} killed at step {step} of {taken}", guest.name);
        deaths += u32::from(killed_at(sandbox, "crust-dump", &arguments, step)?);
        expect_alive(sandbox, guest).with_context(context)?;
        expect_running(guest).with_context(context)?;
        // It shows that the target can be dumped, and waits for it to have left whatever the dead
        // dumper made it run.
        let again = sandbox.dump(guest.pid, &whole, &plain)?.succeeded();
        again.with_context(context)?;
        let after = Snapshot::of_tree(guest.pid)?;
        before.expect_same(&after, moving).with_context(context)?;
        fs::remove_dir_all(&killed)?;
        fs::create_dir(&killed)?;
        wait_for_others(sandbox, guest)?;
        expect_same_files(&world_before, &world()?).with_context(context)?;
    }
    println!(
        "NOTE {}: {deaths} dumps killed over {taken} steps",
        guest.name
    );
    Ok(())
}

/// Steps before the end of a dump that kills its tree at all of which it is killed in any case: the
/// killing is among them.
const LAST_STEPS: u64 = 15;

/// Dumps `guest`, which is to be killed by that, over and over, killed at each of some steps. After
/// each the whole tree runs as before, or all of it is dead and a restore brings it back.
pub fn killing_dump_killed_at_steps(
    sandbox: &Sandbox,
    guest: &Guest,
    options: &[&str],
) -> Result<()> {
    let before = Snapshot::of_tree(guest.pid)?;
    let unlocked = firewall();
    let tree = proc_snapshot::tree(guest.pid)?;
    let (images, whole) = (sandbox.images("killing")?, sandbox.images("whole")?);
    let leaving = [&["--leave-running"], options].concat();
    let first = sandbox.dump(guest.pid, &images, options)?.succeeded()?;
    let taken = steps_taken(&first.log)?;
    sandbox.reap(&tree)?;
    sandbox.restore(&images, options)?.succeeded()?;
    let pid = guest.pid.to_string();
    let arguments = [&["-t", &pid, "-D", text(&images)?], options].concat();
    let mut steps = steps_to_die_at(taken, &guest.name)?;
    steps.extend(taken.saturating_sub(LAST_STEPS)..=taken);
    let (mut deaths, mut ended) = (0, 0);
    for step in steps {
        let context = || format!("dump of {} killed at step {step} of {taken}", guest.name);
        fs::remove_dir_all(&images)?;
        fs::create_dir(&images)?;
        deaths += u32::from(killed_at(sandbox, "crust-dump", &arguments, step)?);
        wait_for_survivors(sandbox)?;
        // A whole dump is for a whole tree only, and waits for it to have left what the dead dumper
        // made it run. Tasks that were killed may still be on their way out.
        if sandbox.dump(guest.pid, &whole, &leaving)?.status.success() {
            expect_alive(sandbox, guest).with_context(context)?;
            expect_running(guest).with_context(context)?;
            let after = Snapshot::of_tree(guest.pid)?;
            before.expect_same(&after, &[]).with_context(context)?;
            expect_same_world(&unlocked, &firewall()).with_context(context)?;
            continue;
        }
        ended += 1;
        sandbox.reap(&tree).with_context(context)?;
        sandbox.assert_only(&[]).with_context(context)?;
        sandbox
            .restore(&images, options)?
            .succeeded()
            .with_context(context)?;
        before
            .expect_same(&Snapshot::of_tree(guest.pid)?, &[])
            .with_context(context)?;
        expect_same_world(&unlocked, &firewall()).with_context(context)?;
    }
    println!(
        "NOTE {}: {deaths} killing dumps killed over {taken} steps, {ended} of them behind the end of the tree",
        guest.name
    );
    Ok(())
}

/// The same world but for the images of whole dumps, which are written anew.
pub fn expect_same_files(before: &[String], after: &[String]) -> Result<()> {
    let others = |world: &[String]| -> Vec<String> {
        let images = |line: &&String| !line.contains("/run/images-");
        world.iter().filter(images).cloned().collect()
    };
    expect_same_world(&others(before), &others(after))
}

/// Waits until no survivor of a dead restore is at work.
pub fn wait_for_survivors(sandbox: &Sandbox) -> Result<()> {
    for pid in sandbox.processes()? {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if comm.trim_end() == "crust-survivor" {
            sandbox.reap(&[pid])?;
        }
    }
    Ok(())
}

/// Survivors and copies of a dead dumper end by themselves.
fn wait_for_others(sandbox: &Sandbox, guest: &Guest) -> Result<()> {
    let tree = proc_snapshot::tree(guest.pid)?;
    let mut others = sandbox.processes()?;
    others.retain(|pid| !tree.contains(pid));
    sandbox.reap(&others)
}

/// The guest has not ended.
pub fn expect_alive(sandbox: &Sandbox, guest: &Guest) -> Result<()> {
    if let Some(status) = sandbox.try_wait(guest.pid)? {
        let said = guest.lines()?.join("\n");
        anyhow::bail!("{} ended with {status:?}; it wrote:\n{said}", guest.name);
    }
    Ok(())
}

/// Restores a guest over and over, killed at each of some steps: nothing is left, or, behind the
/// commit, the whole tree; the images stay good all the time.
pub fn restore_killed_at_steps(sandbox: &Sandbox, guest: &Guest, options: &[&str]) -> Result<()> {
    restore_killed_in_world(sandbox, guest, options, &|| Ok(()))
}

/// The same where something of the world, such as a cgroup, is to be gone before a restore: `tidy`
/// takes it away whenever the tree is dead.
pub fn restore_killed_in_world(
    sandbox: &Sandbox,
    guest: &Guest,
    options: &[&str],
    tidy: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let before = Snapshot::of_tree(guest.pid)?;
    let images = sandbox.images("killed")?;
    sandbox.dump_and_kill(guest, &images, options)?;
    tidy()?;
    // A first whole restore counts the steps; its tree is dumped again to go on.
    let first = sandbox.restore(&images, options)?.succeeded()?;
    let taken = steps_taken(&first.log)?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    fs::remove_dir_all(&images)?;
    fs::create_dir(&images)?;
    sandbox.dump_and_kill(guest, &images, options)?;
    tidy()?;
    let world_before = world()?;
    let mut arguments = vec!["-d", "-D", text(&images)?];
    arguments.extend(options);
    let (mut deaths, mut trees) = (0, 0);
    for step in steps_to_die_at(taken, &guest.name)? {
        let context = || format!("restore of {} killed at step {step} of {taken}", guest.name);
        let killed = killed_at(sandbox, "crust-restore", &arguments, step)?;
        deaths += u32::from(killed);
        if what_is_left(sandbox, guest).with_context(context)? == Left::Tree {
            trees += 1;
            let after = Snapshot::of_tree(guest.pid)?;
            before.expect_same(&after, &[]).with_context(context)?;
            // Away with it; the same restore must succeed next.
            let _ = fs::remove_file(images.join("stats-restore"));
            fs::remove_dir_all(&images)?;
            fs::create_dir(&images)?;
            sandbox.dump_and_kill(guest, &images, options)?;
            tidy()?;
            continue;
        }
        ensure!(killed, "a restore that succeeded has left nothing");
        expect_same_files(&world_before, &world()?).with_context(context)?;
    }
    println!(
        "NOTE {}: {deaths} restores killed over {taken} steps, {trees} of them after the commit",
        guest.name
    );
    sandbox.restore(&images, options)?.succeeded()?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    guest.expect_ok(sandbox)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_spread_and_in_range() -> Result<()> {
        let steps = steps_to_die_at(100, "a guest")?;
        ensure!(steps.len() == A_FEW as usize, "{steps:?}");
        ensure!(steps.is_sorted() && steps.iter().all(|step| (1..=100).contains(step)));
        ensure!(steps_to_die_at(3, "a guest")? == [1, 2, 3]);
        ensure!(steps_taken("(00.1) x\n(00.2) 41 steps taken\n(00.3) y")? == 41);
        Ok(())
    }
}
