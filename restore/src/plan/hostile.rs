//! The planner meets images that an enemy made: whatever is in them, it makes a plan or refuses
//! with reasons; it does not panic and takes no memory beyond measure. No privilege is needed.
//!
//! CRUST_TESTS_MUTATIONS says how many damages are tried; without it a few thousand.
//! CRUST_TESTS_SEED makes them others.

use super::golden::{data, options};
use super::print::Text;
use super::step::{Actor, Arg, Call, Op, Plan};
use super::{draft, plan};
use crate::host::tests::recorded;
use crust_image::ImageDir;
use crust_image::checkpoint::Checkpoint;
use crust_image::ids::VirtPid;
use crust_tests::kills::Random;
use crust_tests::mutation::{Set, Victim, read_set};
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

const A_FEW: u64 = 1500;
/// More than the test itself and any honest plan need.
const MOST_MEMORY_KIB: u64 = 1 << 20;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// Every directory of recorded images.
fn image_dirs() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    let mut todo = vec![data().join("corpus")];
    while let Some(dir) = todo.pop() {
        let entries = fs::read_dir(&dir).expect("the corpus is there").flatten();
        for path in entries
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
        {
            match path.ends_with("img") {
                true => dirs.push(path),
                false => todo.push(path),
            }
        }
    }
    dirs.sort();
    dirs
}

/// What came of one damage.
#[derive(Default)]
struct Tally {
    refused: u64,
    planned: u64,
}

/// Loads and plans; a plan is printed and looked at.
fn tried(dir: &Path, tally: &mut Tally) {
    let loaded = ImageDir::open(dir).and_then(|images| Checkpoint::load(&images));
    let Ok(checkpoint) = loaded else {
        tally.refused += 1;
        return;
    };
    let (host, options) = (recorded(), options());
    match plan(&checkpoint, &host, &options) {
        Ok(plan) => {
            assert!(!Text(&plan).to_string().is_empty());
            expect_harmless(&plan, &checkpoint);
            tally.planned += 1;
        }
        Err(refusals) => {
            assert!(!refusals.is_empty(), "refused without a reason");
            assert!(refusals.iter().all(|refusal| !refusal.why.is_empty()));
            draft(&checkpoint, &host, &options);
            tally.refused += 1;
        }
    }
}

/// The plan reaches for no process but those that it makes.
fn expect_harmless(plan: &Plan, checkpoint: &Checkpoint) {
    let mut own: BTreeSet<VirtPid> = checkpoint.cores.keys().copied().collect();
    for step in &plan.steps {
        match step.op {
            Op::Fork { pid, .. } => drop(own.insert(pid)),
            Op::Thread { tid } => drop(own.insert(tid)),
            _ => {}
        }
    }
    let known = |pid: VirtPid| assert!(own.contains(&pid), "reaches for {pid}");
    for step in &plan.steps {
        match step.actor {
            Actor::Broker => {}
            Actor::Task(pid) => known(pid),
            Actor::Thread { pid, tid } => [pid, tid].into_iter().for_each(known),
        }
        match &step.op {
            Op::WriteProc { pid, .. } | Op::Fetch { from: pid, .. } | Op::Reap { pid } => {
                known(*pid);
            }
            Op::Call(call) | Op::LastCall(call) => expect_signals_stay_inside(call, &own),
            _ => {}
        }
    }
}

/// Calls that send a signal, with the argument that says to whom.
const SIGNALLING: [(&str, usize); 5] = [
    ("kill", 0),
    ("tgkill", 0),
    ("tkill", 0),
    ("rt_sigqueueinfo", 0),
    ("rt_tgsigqueueinfo", 0),
];

fn expect_signals_stay_inside(call: &Call, own: &BTreeSet<VirtPid>) {
    let Some((_, index)) = SIGNALLING.iter().find(|(name, _)| *name == call.name) else {
        return;
    };
    let to = match call.args.get(*index) {
        Some(Arg::Int(to)) => u32::try_from(*to).ok(),
        Some(Arg::Hex(to) | Arg::Named(_, to)) => u32::try_from(*to).ok(),
        _ => None,
    };
    let to = to.and_then(VirtPid::new);
    assert!(
        to.is_some_and(|to| own.contains(&to)),
        "signals {to:?}: {call:?}"
    );
}

/// The highest resident size of this process so far.
fn peak_memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    number.expect("a number of kB")
}

#[test]
fn damaged_images_are_planned_or_refused() {
    let wanted = std::env::var("CRUST_TESTS_MUTATIONS").ok();
    let wanted = wanted.map_or(A_FEW, |text| text.parse().expect("a number"));
    let dirs = image_dirs();
    let sets: Vec<Set> = dirs
        .iter()
        .map(|dir| read_set(dir).expect("a set"))
        .collect();
    // In memory: ext4 brings a file that is cut and written anew to the disk at once.
    let memory = PathBuf::from("/dev/shm");
    let scratch = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    let scratch = scratch.join(format!("crust-hostile-{}", std::process::id()));
    let mut victims: Vec<(Victim, PathBuf)> = Vec::new();
    for (number, set) in sets.iter().enumerate() {
        let dir = scratch.join(number.to_string());
        victims.push((Victim::new(&dir, set.clone()).expect("written"), dir));
    }
    let seed = std::env::var("CRUST_TESTS_SEED").ok();
    let seed = seed.map_or(SEED, |text| text.parse().expect("a number that is not 0"));
    let mut random = Random(seed);
    let mut tally = Tally::default();
    let before = peak_memory_kib();
    for round in 0..wanted {
        let number = random.below(victims.len() as u64) as usize;
        let (victim, dir) = &mut victims[number];
        let what = victim.damage(&mut random, &sets).expect("damaged");
        let tried = catch_unwind(AssertUnwindSafe(|| tried(dir, &mut tally)));
        if tried.is_err() {
            // The directory stays for a look.
            panic!("damage {round} of {}: {what}", dir.display());
        }
        let memory = peak_memory_kib().saturating_sub(before);
        assert!(
            memory < MOST_MEMORY_KIB,
            "damage {round} of {}: {what}: {memory} KiB",
            dir.display()
        );
    }
    let Tally { refused, planned } = tally;
    let memory = peak_memory_kib() - before;
    println!("{wanted} damages: {refused} refused, {planned} planned, {memory} KiB at most");
    assert!(refused > 0 && planned > 0, "damages of one kind only");
    fs::remove_dir_all(&scratch).expect("clean up");
}
