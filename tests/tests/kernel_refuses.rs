//! The kernel refuses something at any place: each system call that a dump or a restore makes
//! fails once, with an error that is not expected there. Each run then succeeds all the same, or
//! ends with one sentence that has the kernel's word; the target of a dump goes on as it was, and
//! a restore leaves nothing behind.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    faults::{Fault, Refuser, expect_sentence, faults_of},
    guest::Guest,
    kills::{
        Left, expect_alive, expect_running, expect_same_files, wait_for_survivors, what_is_left,
        world,
    },
    proc_snapshot::Snapshot,
    sandbox::{GOLDEN, Sandbox},
    sandbox_test,
    tools::{Outcome, text},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{collections::BTreeMap, fs, path::Path};

fn emptied(dir: &Path) -> Result<()> {
    fs::remove_dir_all(dir)?;
    fs::create_dir(dir).with_context(|| format!("make {}", dir.display()))
}

/// What a run of faults was worth: a test tells all that is wrong, not the first.
#[derive(Default)]
struct Tally {
    tried: u32,
    failed: u32,
    wrong: Vec<String>,
}

impl Tally {
    fn note(&mut self, fault: &Fault, outcome: &Outcome, came: bool, judged: Result<()>) {
        self.tried += u32::from(came);
        if !outcome.status.success() {
            self.failed += 1;
            println!("{fault:?}: {}", outcome.last_line());
        }
        if let Err(error) = judged {
            self.wrong.push(format!("{fault:?}: {error:#}"));
        }
    }

    fn told(self, what: &str) -> Result<()> {
        let Tally {
            tried,
            failed,
            wrong,
        } = self;
        println!("NOTE {what}: {tried} refusals, of which {failed} ended the run");
        ensure!(tried > 0, "no call of the run could be made to fail");
        ensure!(
            wrong.is_empty(),
            "{} of {tried}:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        Ok(())
    }
}

fn dumped(sandbox: &Sandbox, guest: &str, options: &[&str]) -> Result<()> {
    let guest = sandbox.start(guest)?;
    let refuser = Refuser::build(sandbox)?;
    let (whole, images) = (sandbox.images("whole")?, sandbox.images("refused")?);
    let pid = guest.pid.to_string();
    let args = [&["-R", "-t", &pid, "-D", text(&images)?], options].concat();
    let options = [&["--leave-running"], options].concat();
    sandbox.dump(guest.pid, &whole, &options)?.succeeded()?;
    let before = Snapshot::of_tree(guest.pid)?;
    let calls = refuser.count(sandbox, "crust-dump", &args)?;
    let good = sizes(&images)?;
    let world_before = world()?;
    let mut tally = Tally::default();
    for fault in faults_of(&calls)? {
        emptied(&images)?;
        let (outcome, came) = refuser.run(sandbox, &fault, "crust-dump", &args)?;
        let judged = judge_dump(&images, &good, &fault, &outcome);
        tally.note(&fault, &outcome, came, judged);
        let context = || format!("{fault:?}\n{}", outcome.report());
        remove_named(&outcome)?;
        expect_alive(sandbox, &guest).with_context(context)?;
        expect_running(&guest).with_context(context)?;
        let after = Snapshot::of_tree(guest.pid)?;
        before.expect_same(&after, &[]).with_context(context)?;
        expect_same_files(&world_before, &world()?).with_context(context)?;
    }
    sandbox.dump(guest.pid, &whole, &options)?.succeeded()?;
    tally.told(&format!("dump of {}", guest.name))?;
    guest.expect_ok(sandbox)
}

/// What a run could not remove, because the removal is what was refused, it names.
fn remove_named(outcome: &Outcome) -> Result<()> {
    for word in outcome.last_line().split([' ', ':']) {
        let is_link = word.starts_with(GOLDEN) && word.contains("link_remap.");
        if is_link && Path::new(word).exists() {
            fs::remove_file(word).with_context(|| format!("remove {word}"))?;
        }
    }
    Ok(())
}

/// The files of a dump with their sizes; 0 for those in which numbers grow with time.
fn sizes(images: &Path) -> Result<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    for entry in fs::read_dir(images)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let grows = ["stats", "core", "timens", "inventory", "crust-digest"];
        let grows = grows.iter().any(|kind| name.starts_with(kind));
        let size = if grows { 0 } else { entry.metadata()?.len() };
        sizes.insert(name, size);
    }
    Ok(sizes)
}

/// A dump that fails says so; one that succeeds has lost nothing.
fn judge_dump(
    images: &Path,
    good: &BTreeMap<String, u64>,
    fault: &Fault,
    outcome: &Outcome,
) -> Result<()> {
    if outcome.status.success() {
        let sizes = sizes(images)?;
        let lost: Vec<_> = good
            .iter()
            .filter(|(name, size)| sizes.get(*name).is_none_or(|got| got < *size))
            .collect();
        ensure!(
            lost.is_empty(),
            "it succeeded without {lost:?}\n{}",
            outcome.report()
        );
        return Ok(());
    }
    expect_sentence(outcome, "crust-dump", fault)
}

/// Kills what a restore has made in spite of a refusal.
fn clear(sandbox: &Sandbox) -> Result<()> {
    loop {
        let pids = sandbox.processes()?;
        if pids.is_empty() {
            return Ok(());
        }
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        sandbox.reap(&pids)?;
    }
}

/// `moving` are lines of the snapshot in which the names of ghost files are.
fn restored(sandbox: &Sandbox, guest: &str, options: &[&str], moving: &[&str]) -> Result<()> {
    let guest = sandbox.start(guest)?;
    let refuser = Refuser::build(sandbox)?;
    let images = sandbox.images("good")?;
    let before = Snapshot::of_tree(guest.pid)?;
    sandbox.dump_and_kill(&guest, &images, options)?;
    let args = [&["-d", "-D", text(&images)?], options].concat();
    let calls = refuser.count(sandbox, "crust-restore", &args)?;
    again(sandbox, &guest, &images, options)?;
    let mut world_before = world()?;
    let mut tally = Tally::default();
    for fault in faults_of(&calls)? {
        let (outcome, came) = refuser.run(sandbox, &fault, "crust-restore", &args)?;
        if outcome.status.success() {
            tally.note(&fault, &outcome, came, Ok(()));
            let context = || format!("{fault:?}\n{}", outcome.report());
            again(sandbox, &guest, &images, options).with_context(context)?;
            world_before = world()?;
            continue;
        }
        let said = expect_sentence(&outcome, "crust-restore", &fault);
        if is_behind_the_commit(&outcome) {
            tally.note(&fault, &outcome, came, said);
            again(sandbox, &guest, &images, options)?;
            world_before = world()?;
            continue;
        }
        let judged = said.and_then(|()| expect_nothing_left(sandbox, &guest, &world_before));
        tally.note(&fault, &outcome, came, judged);
        clear(sandbox)?;
    }
    sandbox.restore(&images, options)?.succeeded()?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, moving)?;
    tally.told(&format!("restore of {}", guest.name))?;
    guest.expect_ok(sandbox)
}

/// What comes behind the commit may fail too: then the whole tree runs.
fn is_behind_the_commit(outcome: &Outcome) -> bool {
    let behind = [
        "stats-restore",
        "it is whole, and goes on when crust-restore ends",
    ];
    behind
        .iter()
        .any(|words| outcome.last_line().contains(words))
}

fn expect_nothing_left(sandbox: &Sandbox, guest: &Guest, world_before: &[String]) -> Result<()> {
    wait_for_survivors(sandbox)?;
    let left = what_is_left(sandbox, guest)?;
    ensure!(left == Left::Nothing, "a failed restore left the tree");
    expect_same_files(world_before, &world()?)
}

/// The tree that was restored below a filter cannot go on without the one who answers. A good
/// restore and a dump of it put everything back to where it was.
fn again(sandbox: &Sandbox, guest: &Guest, images: &Path, options: &[&str]) -> Result<()> {
    clear(sandbox)?;
    sandbox.restore(images, options)?.succeeded()?;
    emptied(images)?;
    sandbox.dump_and_kill(guest, images, options)
}

sandbox_test! {
    fn dump_of_files(sandbox) { dumped(sandbox, "files", &[]) }
    fn dump_of_threads(sandbox) { dumped(sandbox, "threads", &["--digest", "--sync"]) }
    fn dump_of_a_family(sandbox) { dumped(sandbox, "tree", &[]) }
    fn dump_of_memory(sandbox) { dumped(sandbox, "mem_shared", &[]) }
    fn dump_of_sockets(sandbox) { dumped(sandbox, "unix_stream", &[]) }
    fn dump_of_connections(sandbox) { dumped(sandbox, "tcp_est", &["--tcp-established"]) }
    fn dump_of_a_terminal(sandbox) { dumped(sandbox, "pty", &[]) }
    fn dump_with_link_remaps(sandbox) { dumped(sandbox, "link_remap", &["--link-remap"]) }

    fn restore_of_files(sandbox) { restored(sandbox, "files", &[], &[]) }
    fn restore_of_threads(sandbox) { restored(sandbox, "threads", &[], &[]) }
    fn restore_of_a_family(sandbox) { restored(sandbox, "tree", &[], &[]) }
    fn restore_of_memory(sandbox) { restored(sandbox, "mem_shared", &[], &[" map "]) }
    fn restore_of_sockets(sandbox) { restored(sandbox, "unix_stream", &[], &[]) }
    fn restore_of_connections(sandbox) { restored(sandbox, "tcp_est", &["--tcp-established"], &[]) }
    fn restore_of_a_terminal(sandbox) { restored(sandbox, "pty", &[], &[]) }
    fn restore_of_ghosts(sandbox) { restored(sandbox, "ghost", &[], &["target"]) }
}
