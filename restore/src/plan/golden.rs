//! Golden plans: what is planned from images that CRIU wrote, as text, for a host like the one
//! they were recorded on. No privilege is needed, no process is touched. `UPDATE_PLANS=1` writes
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
use std::path::PathBuf;

pub(crate) fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/data")
}

pub(crate) fn options() -> Options {
    let defaults = Defaults::below_home(None);
    let args = ["--no-default-config", "--tcp-established"].map(OsString::from);
    parse(Tool::Restore, args, &defaults).expect("a command line with few options")
}

pub(crate) fn planned(set: &str) -> Result<String, Vec<Refusal>> {
    let images = ImageDir::open(&data().join("corpus").join(set).join("img"));
    let images = images.unwrap_or_else(|error| panic!("{set}: {error}"));
    let checkpoint = Checkpoint::load(&images).unwrap_or_else(|error| panic!("{set}: {error}"));
    Ok(Text(&plan(&checkpoint, &recorded(), &options())?).to_string())
}

/// Compares a plan with the text of its file.
fn golden(set: &str) {
    let text = planned(set).unwrap_or_else(|refusals| panic!("{set}: {refusals:#?}"));
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
    ($($name:ident: $set:literal,)*) => {
        $(#[test] fn $name() { golden($set); })*
    };
}

golden_plans! {
    one_task: "loop",
    threads: "threads",
    a_tree_with_sessions_stops_and_zombies: "tree",
    dead_leaders: "dead_leader",
    a_dead_process_below_proc: "proc_dead",
    private_memory: "mem_private",
    shared_memory: "mem_shared",
    pipes: "pipes",
    signal_actions: "sigaction",
    pending_signals: "sigpending",
    timers: "timers",
    attributes: "attrs",
    images_of_version_one: "format_v1_0",
    a_chain_of_dumps: "parent_chain/3",
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
