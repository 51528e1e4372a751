//! `crit remap`: every place of a pid or path changes, nothing else does, and nothing at all when
//! it is refused.

mod common;

use common::{arg, copy_of, crit, crit_with, dump, dumps, fail, files, root_pid};
use std::fs;
use std::path::Path;

/// The JSON of every image of a directory, by name.
fn decoded(dir: &Path) -> Vec<(String, serde_json::Value)> {
    let images = files(dir)
        .into_iter()
        .filter(|(name, _)| !name.starts_with("pages-"));
    images
        .filter_map(|(name, path)| {
            let output = crit_with(&["decode", "-i", arg(&path)], b"");
            output
                .status
                .success()
                .then(|| (name, serde_json::from_slice(&output.stdout).unwrap()))
        })
        .collect()
}

#[test]
fn the_dead_process_moves_with_its_paths() {
    let dir = copy_of(&dump("proc_dead"));
    let remaps = String::from_utf8(crit(&[
        "get",
        arg(&dir.path().join("remap-fpath.img")),
        "[0].remap_id",
    ]))
    .unwrap();
    let (dead, root) = (remaps.trim().to_owned(), root_pid(dir.path()));
    crit(&[
        "remap",
        arg(dir.path()),
        "--pid",
        &format!("{dead}=70001"),
        "--pid",
        &format!("{root}=70002"),
    ]);
    // A register of the task happens to hold the number: memory and registers are not changed.
    let images = decoded(dir.path())
        .into_iter()
        .filter(|(name, _)| !name.starts_with("core-"));
    let text: String = images
        .map(|(name, json)| format!("{name} {json}\n"))
        .collect();
    assert!(!text.contains(&dead), "{text}");
    assert!(
        text.contains("/proc/70001/mountinfo")
            && text.contains("/proc/70001/stat")
            && text.contains("/proc/70002/status")
    );
    for name in [
        "core-70002.img",
        "mm-70002.img",
        "ids-70002.img",
        "fs-70002.img",
        "pagemap-70002.img",
    ] {
        assert!(dir.path().join(name).exists(), "{name}");
        assert!(
            !dir.path().join(name.replace("70002", &root)).exists(),
            "{name}"
        );
    }
    let again = crit(&[
        "remap",
        arg(dir.path()),
        "--pid",
        &format!("{dead}=70001"),
        "--pid",
        &format!("{root}=70002"),
    ]);
    assert!(again.is_empty(), "{}", String::from_utf8_lossy(&again));
}

/// Mapping every pid away and back gives the very bytes of every image again.
#[test]
fn there_and_back() {
    for name in [
        "tree",
        "threads",
        "dead_leader",
        "pty",
        "locks",
        "pidfd",
        "timers",
        "sigpending",
        "format_v1_0",
    ] {
        let Some(source) = dumps().into_iter().find(|path| path.ends_with(name)) else {
            continue;
        };
        let dir = copy_of(&source);
        let pstree =
            String::from_utf8(crit(&["decode", "-i", arg(&dir.path().join("pstree.img"))]))
                .unwrap();
        let pstree: serde_json::Value = serde_json::from_str(&pstree).unwrap();
        let mut ids = Vec::new();
        for task in pstree["entries"].as_array().unwrap() {
            ids.extend(["pid", "pgid", "sid"].map(|field| task[field].as_u64().unwrap()));
            ids.extend(
                task["threads"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|tid| tid.as_u64().unwrap()),
            );
        }
        ids.retain(|id| *id != 0);
        ids.sort_unstable();
        ids.dedup();
        let run = |add: u64, back: bool| {
            let maps: Vec<String> = ids
                .iter()
                .map(|id| {
                    if back {
                        format!("{}={id}", id + add)
                    } else {
                        format!("{id}={}", id + add)
                    }
                })
                .collect();
            let mut arguments = vec!["remap", arg(dir.path())];
            maps.iter().for_each(|map| arguments.extend(["--pid", map]));
            crit(&arguments)
        };
        assert!(!run(100_000, false).is_empty());
        assert_ne!(root_pid(dir.path()), ids[0].to_string());
        crit(&["x", arg(dir.path()), "ps"]);
        run(100_000, true);
        for (file, path) in files(&source.join("img")) {
            assert!(
                fs::read(&path).unwrap() == fs::read(dir.path().join(&file)).unwrap(),
                "{name}: {file}"
            );
        }
        assert_eq!(
            files(dir.path()).len(),
            files(&source.join("img")).len(),
            "{name}"
        );
    }
}

#[test]
fn a_taken_pid_is_refused_and_two_can_swap() {
    let dir = copy_of(&dump("tree"));
    let before = decoded(dir.path());
    let pstree = before
        .iter()
        .find(|(name, _)| name == "pstree.img")
        .unwrap()
        .1
        .clone();
    let (a, b) = (
        pstree["entries"][0]["pid"].to_string(),
        pstree["entries"][1]["pid"].to_string(),
    );
    let error = fail(
        &["remap", arg(dir.path()), "--pid", &format!("{a}={b}")],
        b"",
        1,
    );
    assert!(
        error.contains(&format!("{b} is taken in this dump")),
        "{error}"
    );
    assert_eq!(decoded(dir.path()), before);
    let (ab, ba) = (format!("{a}={b}"), format!("{b}={a}"));
    crit(&["remap", arg(dir.path()), "--pid", &ab, "--pid", &ba]);
    assert_ne!(decoded(dir.path()), before);
    crit(&["remap", arg(dir.path()), "--pid", &ab, "--pid", &ba]);
    assert_eq!(decoded(dir.path()), before);
}

#[test]
fn paths_change_by_whole_components() {
    let dir = copy_of(&dump("unix_stream"));
    crit(&[
        "remap",
        arg(dir.path()),
        "--path",
        "/tmp/crust-golden/unix_stream=/srv/new",
    ]);
    let text =
        String::from_utf8(crit(&["decode", "-i", arg(&dir.path().join("files.img"))])).unwrap();
    assert!(
        text.contains("\"/srv/new/out\"") && text.contains("\"name_dir\": \"/srv/new\""),
        "{text}"
    );
    assert!(text.contains("/tmp/crust-golden/bin/unix_stream"), "{text}");
    let error = fail(&["remap", arg(dir.path()), "--path", "/no/such=/x"], b"", 1);
    assert!(
        error.contains("nothing of what is to be mapped is there"),
        "{error}"
    );
}

#[test]
fn both_ends_of_a_connection_inside_move() {
    let dir = copy_of(&dump("tcp_est"));
    let files = dir.path().join("files.img");
    let port =
        String::from_utf8(crit(&["get", arg(&files), "[type=INETSK].isk.src_port"])).unwrap();
    let port = port.lines().next().unwrap().to_owned();
    let ends = |port: &str| {
        let text = String::from_utf8(crit(&["decode", "-i", arg(&files)])).unwrap();
        (
            text.matches(&format!("\"src_port\": {port},")).count(),
            text.matches(&format!("\"dst_port\": {port},")).count(),
        )
    };
    let before = ends(&port);
    assert_eq!(before.1, 1);
    crit(&[
        "remap",
        arg(dir.path()),
        "--port",
        &format!("{port}=999"),
        "--addr",
        "127.0.0.1=127.0.0.7",
    ]);
    assert_eq!(ends("999"), before);
    assert_eq!(ends(&port), (0, 0));
    assert!(
        String::from_utf8(crit(&["x", arg(dir.path()), "sk"]))
            .unwrap()
            .contains("127.0.0.7:999")
    );
}

#[test]
fn a_copy_leaves_the_original() {
    let source = dump("tree").join("img");
    let before = decoded(&source);
    let out = tempfile::tempdir().unwrap();
    let copy = out.path().join("copy");
    crit(&[
        "remap",
        arg(&source),
        "--pid",
        &format!("{}=70001", root_pid(&source)),
        "--out",
        arg(&copy),
    ]);
    assert_eq!(decoded(&source), before);
    assert_eq!(root_pid(&copy), "70001");
    let refused = out.path().join("refused");
    fail(
        &[
            "remap",
            arg(&source),
            "--pid",
            "1=70001",
            "--out",
            arg(&refused),
        ],
        b"",
        1,
    );
    assert!(!refused.exists());
}
