//! Golden plans: what is planned from images that CRIU wrote, and of what CRIU does not dump from our
//! own, as text, for a host like the one they were recorded on. No privilege is needed, no process is touched. `UPDATE_PLANS=1` writes
//! the texts anew; the difference is then for a person to judge.

use super::print::Text;
use super::{Refusal, plan};
use crate::host::tests::recorded;
use crust_cli::config::Defaults;
use crust_cli::options::{Options, Tool, parse};
use crust_image::ImageDir;
use crust_image::checkpoint::Checkpoint;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data")
}

pub(crate) fn options() -> Options {
    let defaults = Defaults::below_home(None);
    let args = ["--no-default-config", "--tcp-established"].map(OsString::from);
    parse(Tool::Restore, args, &defaults).expect("a command line with few options")
}

pub(crate) fn planned(set: &str) -> Result<String, Vec<Refusal>> {
    planned_from(&data().join("corpus"), set)
}

fn planned_from(sets: &Path, set: &str) -> Result<String, Vec<Refusal>> {
    let images = ImageDir::open(&sets.join(set).join("img"));
    let images = images.unwrap_or_else(|error| panic!("{set}: {error}"));
    let checkpoint = Checkpoint::load(&images).unwrap_or_else(|error| panic!("{set}: {error}"));
    Ok(Text(&plan(&checkpoint, &recorded(), &options())?).to_string())
}

/// Compares a plan from a set of `corpus` or `own` with the text of its file.
fn golden(sets: &str, set: &str) {
    let text = planned_from(&data().join(sets), set);
    let text = text.unwrap_or_else(|refusals| panic!("{set}: {refusals:#?}"));
    let file = data()
        .join("plans")
        .join(format!("{}.txt", set.replace('/', "-")));
    if std::env::var_os("UPDATE_PLANS").is_some() {
        fs::write(&file, &text).expect("writes the plan");
    }
    let golden =
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let differs = golden
        .lines()
        .zip(text.lines())
        .position(|(golden, now)| golden != now);
    if let Some(at) = differs {
        let line = |text: &str| text.lines().nth(at).unwrap_or_default().to_owned();
        panic!(
            "{set}: line {}:\n golden {}\n now    {}",
            at + 1,
            line(&golden),
            line(&text)
        );
    }
    assert_eq!(
        golden.lines().count(),
        text.lines().count(),
        "{set}: number of steps"
    );
}

macro_rules! golden_plans {
    ($($name:ident: $sets:literal $set:literal,)*) => {
        $(#[test] fn $name() { golden($sets, $set); })*
    };
}

golden_plans! {
    one_task: "corpus" "loop",
    threads: "corpus" "threads",
    a_tree_with_sessions_stops_and_zombies: "corpus" "tree",
    dead_leaders: "corpus" "dead_leader",
    a_dead_process_below_proc: "corpus" "proc_dead",
    private_memory: "corpus" "mem_private",
    shared_memory: "corpus" "mem_shared",
    pipes: "corpus" "pipes",
    signal_actions: "corpus" "sigaction",
    pending_signals: "corpus" "sigpending",
    timers: "corpus" "timers",
    attributes: "corpus" "attrs",
    images_of_version_one: "corpus" "format_v1_0",
    a_chain_of_dumps: "corpus" "parent_chain/3",
    an_address_space_of_several_tasks: "own" "clone_vm",
    a_time_namespace: "own" "clocks",
    requests_of_threads: "own" "treatment",
    memory_changed_for_good: "own" "mem_for_good",
    overruns_of_timers: "own" "timer_overrun",
    rings: "own" "uring",
}

#[test]
fn a_plan_is_the_same_every_time() {
    assert_eq!(planned("tree"), planned("tree"));
}

#[test]
fn all_that_cannot_be_is_told_at_once() {
    let refusals = planned("tun").expect_err("namespaces and descriptors");
    let told: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    for word in ["net namespace of its own", "does not say what interface"] {
        assert!(told.iter().any(|why| why.contains(word)), "{told:?}");
    }
}
