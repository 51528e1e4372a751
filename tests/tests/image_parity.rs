//! What crust-dump writes beside what CRIU writes of the same program: the very binary of the
//! corpus is started at the recorded paths and dumped, and both sets of images are compared as
//! crit's JSON: the names of the images, every field's presence, type and number, and every value
//! that does not differ from run to run.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    corpus::{Recorded, recorded},
    sandbox::{GOLDEN, Sandbox},
    sandbox_test,
    tools::text,
};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path, process::Command};

/// Fields whose values differ between two runs of CRIU itself: only presence, type and number
/// are compared. A name stands for the field wherever it is.
const VARYING: &[(&str, &[&str])] = &[
    (
        "addresses",
        &[
            "start",
            "end",
            "vaddr",
            "mm_start_code",
            "mm_end_code",
            "mm_start_data",
            "mm_end_data",
            "mm_start_stack",
            "mm_start_brk",
            "mm_brk",
            "mm_arg_start",
            "mm_arg_end",
            "mm_env_start",
            "mm_env_end",
            "clear_tid_addr",
            "futex_rla",
            "ss_sp",
            "rseq_abi_pointer",
            "sigaction",
            "restorer",
            "gpregs",
            "fpregs",
            "sival_ptr",
            "mm_saved_auxv",
            "rseq_cs_pointer",
        ],
    ),
    (
        "ids given in order of discovery",
        &[
            "id",
            "shmid",
            "exe_file_id",
            "cwd_id",
            "root_id",
            "orig_id",
            "reg_file_id",
            "regf_id",
            "pages_id",
            "vm_id",
            "files_id",
            "fs_id",
            "sighand_id",
            "pid_ns_id",
            "net_ns_id",
            "ipc_ns_id",
            "uts_ns_id",
            "mnt_ns_id",
            "user_ns_id",
            "cgroup_ns_id",
            "time_ns_id",
            "inode_id",
            "root_cg_set",
            "cg_set",
            "id_for",
        ],
    ),
    (
        "inodes and devices",
        &[
            "ino", "inode", "pipe_id", "peer", "dev", "i_ino", "s_dev", "mnt_id",
        ],
    ),
    (
        "times",
        &[
            "tv_sec", "tv_nsec", "vsec", "vusec", "vnsec", "overrun", "atim", "mtim",
        ],
    ),
    // The limits of the recording machine's shell, its login, a fresh number of each dump, which
    // locking tool it found, and raw siginfo with pids in it.
    (
        "the recording",
        &[
            "rlimits",
            "loginuid",
            "dump_criu_run_id",
            "network_lock_method",
            "siginfo",
            "sk_opts",
        ],
    ),
    // Ports, sequence numbers and clocks of a connection, and the windows that its first segments
    // happened to leave.
    (
        "a connection",
        &[
            "src_port",
            "dst_port",
            "inq_seq",
            "outq_seq",
            "timestamp",
            "snd_wl1",
            "snd_wnd",
            "max_window",
            "rcv_wnd",
            "rcv_wup",
            "portid",
        ],
    ),
    // Which pages are dirty depends on the moment; the runs are compared by nobody but a restore.
    ("pages", &["nr_pages"]),
];

/// Fields that hold pids: compared after both sets' pids became `task 0`, `thread 0.1`, ...
const PIDS: &[&str] = &[
    "pid",
    "ppid",
    "pgid",
    "sid",
    "threads",
    "remap_id",
    "notify_thread_id",
    "nspid",
];

/// Differences that are meant, with the reason: set, image, path, why.
const JUSTIFIED: &[(&str, &str, &str, &str)] = &[
    (
        "proc_zombie",
        "pstree.img",
        ".entries[].threads",
        "CRIU left memory it had not written there (555024192) for the zombie; a zombie has [0]",
    ),
    (
        "proc_zombie",
        "files.img",
        ".entries[].reg.name",
        "CRIU has /proc/PID/ for the directory of a zombie; the kernel's link has no slash",
    ),
    (
        "tcp_est",
        "files.img",
        ".entries[].isk.state",
        "whether a FIN is acknowledged by the time of the dump depends on the moment",
    ),
    (
        "attrs",
        "core-0.img",
        ".entries[].thread_core.crust_timer_slack_ns",
        "a field of our own, which CRIU ignores",
    ),
    (
        "attrs",
        "mm-0.img",
        ".entries[].crust_coredump_filter",
        "a field of our own, which CRIU ignores",
    ),
    (
        "unix_stream",
        "sk-#1.img",
        ".entries[].crust_sender",
        "a field of our own, which CRIU ignores",
    ),
    (
        "epoll",
        "files.img",
        ".entries[].usk.crust_peer_pid",
        "a field of our own, which CRIU ignores",
    ),
    (
        "unix_scm",
        "files.img",
        ".entries[].usk.crust_peer_pid",
        "a field of our own, which CRIU ignores",
    ),
    (
        "unix_stream",
        "files.img",
        ".entries[].usk.crust_peer_pid",
        "a field of our own, which CRIU ignores",
    ),
    (
        "timers",
        "core-0.img",
        ".entries[].tc.signals_s.signals[]",
        "a timer signal may be pending at the moment of the dump or not",
    ),
];

/// Images of a set as JSON, by name with every pid and id replaced by its order.
type Images = BTreeMap<String, Value>;

/// Order of pids and tids, from pstree: `task 0` for the root, `thread 0.1` for its second thread.
struct Pids(BTreeMap<u64, String>);

impl Pids {
    fn of(pstree: &Value) -> Result<Self> {
        let entries = pstree
            .pointer("/entries")
            .and_then(Value::as_array)
            .context("no entries")?;
        let mut pids = BTreeMap::new();
        for (task, entry) in entries.iter().enumerate() {
            let threads = entry
                .get("threads")
                .and_then(Value::as_array)
                .context("no threads")?;
            for (thread, tid) in threads.iter().filter_map(Value::as_u64).enumerate() {
                pids.insert(tid, format!("{task}.{thread}"));
            }
            let pid = entry.get("pid").and_then(Value::as_u64).context("no pid")?;
            pids.insert(pid, format!("{task}"));
        }
        Ok(Self(pids))
    }

    fn name(&self, pid: u64) -> String {
        match pid {
            0 => "0".to_owned(),
            _ => self
                .0
                .get(&pid)
                .map_or_else(|| "another".to_owned(), Clone::clone),
        }
    }
}

/// `core-12.img` as `core-0.img`. Numbers that are no pids become their order among the images
/// of the kind.
fn renamed(name: &str, pids: &Pids, order: &mut BTreeMap<String, usize>) -> String {
    let Some((kind, number)) = name.trim_end_matches(".img").rsplit_once('-') else {
        return name.to_owned();
    };
    let shown = match (kind, number.parse()) {
        ("core" | "mm" | "fs" | "ids" | "pagemap", Ok(pid)) => pids.name(pid),
        ("stats", _) => number.to_owned(),
        ("timens", _) => number.to_owned(),
        _ => {
            let count = order.entry(kind.to_owned()).or_default();
            *count += 1;
            format!("#{count}")
        }
    };
    format!("{kind}-{shown}.img")
}

fn by_order(images: BTreeMap<String, Value>) -> Result<(Images, Pids)> {
    let pids = Pids::of(images.get("pstree.img").context("no pstree.img")?)?;
    let mut order = BTreeMap::new();
    // Numerically: fdinfo-10 comes behind fdinfo-9.
    let mut names: Vec<_> = images.into_iter().collect();
    names.sort_by_key(|(name, _)| (name.len(), name.clone()));
    let images = names
        .into_iter()
        .map(|(name, json)| (renamed(&name, &pids, &mut order), json))
        .collect();
    Ok((images, pids))
}

fn recorded_images(set: &Recorded) -> Result<BTreeMap<String, Value>> {
    let mut images = BTreeMap::new();
    for entry in fs::read_dir(set.dir.join("decode")).context("list the recorded JSON")? {
        let path = entry?.path();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // Statistics are no part of a checkpoint.
        if !name.starts_with("stats-") {
            images.insert(name, serde_json::from_slice(&fs::read(&path)?)?);
        }
    }
    Ok(images)
}

fn dumped_images(sandbox: &Sandbox, dir: &Path) -> Result<BTreeMap<String, Value>> {
    let mut images = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if !name.ends_with(".img") || name.starts_with("pages-") {
            continue;
        }
        let json = sandbox
            .run("crit", &["decode", "-i", text(&path)?], None)?
            .succeeded()?;
        images.insert(name, serde_json::from_slice(&json.stdout)?);
    }
    Ok(images)
}

/// The values at each path of an image, sorted; varying ones by their type only.
fn leaves(image: &Value, pids: &Pids) -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    collect(image, "", "", pids, &mut found);
    found.values_mut().for_each(|values| values.sort());
    found
}

fn collect(
    value: &Value,
    path: &str,
    field: &str,
    pids: &Pids,
    found: &mut BTreeMap<String, Vec<String>>,
) {
    let varying = VARYING.iter().any(|(_, fields)| fields.contains(&field));
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name_below = if varying { field } else { name };
                collect(value, &format!("{path}.{name}"), name_below, pids, found);
            }
        }
        Value::Array(values) if values.first().is_some_and(Value::is_object) => {
            for value in values {
                collect(value, &format!("{path}[]"), field, pids, found);
            }
        }
        Value::Array(values) => {
            let shown = values.iter().map(|value| leaf(value, field, varying, pids));
            let shown: Vec<_> = shown.collect();
            // The auxiliary vector, register blocks: the length is part of the format.
            let text = if varying {
                format!("{} numbers", values.len())
            } else {
                shown.join(",")
            };
            found.entry(path.to_owned()).or_default().push(text);
        }
        _ => {
            let text = leaf(value, field, varying, pids);
            found.entry(path.to_owned()).or_default().push(text);
        }
    }
}

fn leaf(value: &Value, field: &str, varying: bool, pids: &Pids) -> String {
    match value {
        _ if varying => type_of(value).to_owned(),
        Value::Number(number) if PIDS.contains(&field) => number
            .as_u64()
            .map_or_else(|| number.to_string(), |pid| pids.name(pid)),
        // A payload in base64 has digits that are no pids.
        Value::String(text) if ["extra", "inq", "outq"].contains(&field) => text.clone(),
        Value::String(text) => without_pids(text, pids),
        _ => value.to_string(),
    }
}

/// A path below /proc with its pid by order; names that the guests make with their pid.
fn without_pids(text: &str, pids: &Pids) -> String {
    let mut out = String::new();
    let mut digits = String::new();
    for character in text.chars().chain(['\0']) {
        if character.is_ascii_digit() {
            digits.push(character);
            continue;
        }
        match digits.parse().ok().and_then(|pid: u64| pids.0.get(&pid)) {
            Some(name) => out.push_str(&format!("<{name}>")),
            // Pids of the dead are nobody's now; so is a number of more than two digits.
            None if digits.len() > 2 || text.starts_with("/proc/") && !digits.is_empty() => {
                out.push_str("<another>");
            }
            None => out.push_str(&digits),
        }
        digits.clear();
        if character != '\0' {
            out.push(character);
        }
    }
    out
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "message",
    }
}

/// What is only on one side of two sorted lists.
fn only_in(mine: &[String], other: &[String]) -> Vec<String> {
    let mut rest = other.to_vec();
    mine.iter()
        .filter(
            |value| match rest.iter().position(|candidate| &candidate == value) {
                Some(at) => {
                    rest.swap_remove(at);
                    false
                }
                None => true,
            },
        )
        .cloned()
        .collect()
}

/// Values for a reader; a payload is cut.
fn shown(values: &[String]) -> String {
    let cut = |value: &String| match value.char_indices().nth(120) {
        Some((at, _)) => {
            format!(
                "{}... ({} bytes)",
                value.get(..at).unwrap_or_default(),
                value.len()
            )
        }
        None => value.clone(),
    };
    values.iter().map(cut).collect::<Vec<_>>().join(" | ")
}

fn justified(set: &str, image: &str, path: &str) -> bool {
    JUSTIFIED.iter().any(|(in_set, in_image, at, _)| {
        set == *in_set && image == *in_image && path.starts_with(at)
    })
}

fn differences(set: &str, criu: &(Images, Pids), crust: &(Images, Pids)) -> Vec<String> {
    let mut found = Vec::new();
    let names: std::collections::BTreeSet<_> = criu.0.keys().chain(crust.0.keys()).collect();
    for name in names {
        let (theirs, ours) = match (criu.0.get(name), crust.0.get(name)) {
            (Some(theirs), Some(ours)) => (leaves(theirs, &criu.1), leaves(ours, &crust.1)),
            (Some(_), None) if !justified(set, name, "") => {
                found.push(format!("{name}: only CRIU writes it"));
                continue;
            }
            (None, Some(_)) if !justified(set, name, "") => {
                found.push(format!("{name}: only Crust writes it"));
                continue;
            }
            _ => continue,
        };
        let paths: std::collections::BTreeSet<_> = theirs.keys().chain(ours.keys()).collect();
        for path in paths {
            // How many runs of pages there are depends on the moment.
            if name.starts_with("pagemap") && path.starts_with(".entries[]") {
                let both = theirs.contains_key(path) && ours.contains_key(path);
                if !both && !justified(set, name, path) {
                    found.push(format!("{name} {path}: only one writes it"));
                }
                continue;
            }
            let none = Vec::new();
            let (theirs, ours) = (
                theirs.get(path).unwrap_or(&none),
                ours.get(path).unwrap_or(&none),
            );
            let (in_criu, in_crust) = (only_in(theirs, ours), only_in(ours, theirs));
            let same = in_criu.is_empty() && in_crust.is_empty();
            if !same && !justified(set, name, path) {
                found.push(format!(
                    "{name} {path}:\n  - CRIU ({}): {}\n  + Crust ({}): {}",
                    theirs.len(),
                    shown(&in_criu),
                    ours.len(),
                    shown(&in_crust)
                ));
            }
        }
    }
    found
}

fn same_as_recorded(sandbox: &Sandbox, name: &str) -> Result<()> {
    let set = recorded(name);
    let (_, recorded_guest) = sandbox.unpack(&set)?;
    let program = Path::new(GOLDEN).join("bin").join(&set.program);
    // What the recorded run left in its scratch directory is not what a fresh one starts from.
    let scratch = Path::new(GOLDEN).join(&recorded_guest.name);
    fs::remove_dir_all(&scratch).context("empty the scratch directory")?;
    let mut command = Command::new(program);
    command.arg(&scratch);
    let guest = sandbox.spawn(&set.program, &command, &scratch)?;
    guest.wait_until_set_up(sandbox)?;
    let dir = sandbox.images("ours")?;
    // ghost, link_remap and tcp_est need these; they change nothing for the others.
    let options = ["--ghost-limit", "2M", "--link-remap", "--tcp-established"];
    sandbox.dump_and_kill(&guest, &dir, &options)?;
    let criu = by_order(recorded_images(&set)?)?;
    let crust = by_order(dumped_images(sandbox, &dir)?)?;
    let found = differences(name, &criu, &crust);
    ensure!(
        found.is_empty(),
        "{} differences to the images CRIU wrote of {name}:\n{}",
        found.len(),
        found.join("\n")
    );
    Ok(())
}

/// The comparison sees a field that is missing, one too many and a changed value.
#[test]
fn differences_are_seen() -> Result<()> {
    let load = || by_order(recorded_images(&recorded("proc_dead"))?);
    let criu = load()?;
    ensure!(
        differences("proc_dead", &criu, &load()?).is_empty(),
        "a set differs from itself"
    );
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 4] = [
        ("umask", |image| image["entries"][0]["umask"] = 0.into()),
        ("cwd_id", |image| {
            image["entries"][0]
                .as_object_mut()
                .map(|entry| entry.remove("cwd_id"));
        }),
        ("more", |image| image["entries"][0]["more"] = 1.into()),
        ("root_id", |image| {
            image["entries"][0]["root_id"] = "9".into()
        }),
    ];
    for (field, change) in changes {
        let mut changed = load()?;
        change(changed.0.get_mut("fs-0.img").context("no fs image")?);
        let found = differences("proc_dead", &criu, &changed);
        ensure!(
            found.len() == 1 && found[0].contains(field),
            "{field}: {found:?}"
        );
    }
    let mut changed = load()?;
    changed.0.remove("ids-0.img");
    ensure!(differences("proc_dead", &criu, &changed) == ["ids-0.img: only CRIU writes it"]);
    Ok(())
}

macro_rules! sets {
    ($($name:ident $set:literal;)*) => {
        sandbox_test! {
            $(fn $name(sandbox) { same_as_recorded(sandbox, $set) })*
        }
    };
}

sets! {
    lone "loop";
    threads "threads";
    tree "tree";
    dead_leader "dead_leader";
    proc_dead "proc_dead";
    proc_zombie "proc_zombie";
    mem_private "mem_private";
    mem_shared "mem_shared";
    pipes "pipes";
    unix_stream "unix_stream";
    sigaction "sigaction";
    sigpending "sigpending";
    timers "timers";
    attrs "attrs";
    files "files";
    rootdir "rootdir";
    fifo "fifo";
    ghost "ghost";
    memfd "memfd";
    unix_scm "unix_scm";
    epoll "epoll";
    link_remap "link_remap";
    pidfd "pidfd";
    timerfd "timerfd";
    tcp_est "tcp_est";
    netlink "netlink";
}
