//! The verbs over whole dumps: views, check, query, transform, lines of JSON.

mod common;

use common::{arg, copy_of, crit, dump, dumps, fail, files, succeed};
use serde_json::Value;
use std::fs;

fn json(arguments: &[&str]) -> Value {
    serde_json::from_slice(&crit(arguments)).unwrap()
}

#[test]
fn every_view_of_every_dump() {
    for dump in dumps() {
        let dir = dump.join("img");
        if !dir.join("pstree.img").exists() {
            continue;
        }
        for view in [
            "ps", "fds", "mems", "rss", "sk", "ns", "mounts", "creds", "timers", "remaps", "stats",
        ] {
            assert!(json(&["x", arg(&dir), view, "--json"]).is_array());
            assert!(
                !crit(&["x", arg(&dir), view]).is_empty(),
                "{} {view}",
                dir.display()
            );
        }
    }
}

#[test]
fn views_tell_what_the_program_had() {
    let ps =
        String::from_utf8(crit(&["x", arg(&dump("tree").join("img")), "ps", "--long"])).unwrap();
    for word in [
        "stopped (19)",
        "zombie",
        "[tree]",
        "/tmp/crust-golden/bin/tree /tmp/crust-golden/tree",
    ] {
        assert!(ps.contains(word), "{ps}");
    }
    let sockets = json(&["x", arg(&dump("tcp_est").join("img")), "sk", "--json"]);
    assert!(
        sockets
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["state"] == "ESTABLISHED" && row["queued"].as_u64() > Some(0))
    );
    let timers = json(&["x", arg(&dump("timers").join("img")), "timers", "--json"]);
    assert!(
        timers
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["timer"] == "ITIMER_REAL" && row["interval"] == "1000.005000")
    );
    let remaps = json(&["x", arg(&dump("proc_dead").join("img")), "remaps", "--json"]);
    assert_eq!(remaps[0]["type"], "PROCFS");
    let fds = json(&["x", arg(&dump("pipes").join("img")), "fds", "--json"]);
    assert!(
        fds[0]["fds"]
            .as_array()
            .unwrap()
            .iter()
            .any(|fd| fd["file"]["type"] == "PIPE")
    );
}

#[test]
fn whole_dumps_pass_the_check_and_broken_ones_do_not() {
    let dir = copy_of(&dump("tree"));
    assert!(
        String::from_utf8(crit(&["check", arg(dir.path())]))
            .unwrap()
            .contains("0 errors")
    );
    crit(&[
        "set",
        arg(&dir.path().join("fdinfo-2.img")),
        "[0].id",
        "9999",
    ]);
    let output = common::crit_with(&["check", arg(dir.path()), "--json"], b"");
    assert_eq!(output.status.code(), Some(1));
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let finding = &findings[0];
    assert_eq!(
        (finding["severity"].as_str(), finding["image"].as_str()),
        (Some("error"), Some("fdinfo-2.img")),
        "{findings}"
    );
}

#[test]
fn queries_join_tasks_and_files() {
    let dir = dump("tree").join("img");
    let states = crit(&[
        "query",
        arg(&dir),
        "-r",
        "[.tasks[] | select(.state == \"zombie\")] | length",
    ]);
    assert_eq!(states, b"2\n");
    let files = crit(&[
        "query",
        arg(&dir),
        "-r",
        ".tasks[0].fds[0].file.entry.name, .tasks[0].exe, (.tasks[0].vmas[0].file.summary)",
    ]);
    assert_eq!(
        String::from_utf8(files).unwrap(),
        "/dev/null\n/tmp/crust-golden/bin/tree\n/tmp/crust-golden/bin/tree\n"
    );
    let same = crit(&[
        "query",
        arg(&dir),
        "-c",
        ".images[\"pstree.img\"].entries[0].pid == .tasks[0].pid",
    ]);
    assert_eq!(same, b"true\n");
    let error = fail(&["query", arg(&dir), "nosuch"], b"", 1);
    assert!(error.contains("nosuch"), "{error}");
}

#[test]
fn a_transform_is_all_or_nothing() {
    let dir = copy_of(&dump("tree"));
    let all = || -> Vec<(String, Vec<u8>)> {
        files(dir.path())
            .into_iter()
            .map(|(name, path)| (name, fs::read(path).unwrap()))
            .collect()
    };
    let before = all();
    // core images get a comm, but pstree.img then has a field that is not its own.
    let error = fail(
        &[
            "transform",
            arg(dir.path()),
            "if .magic == \"CORE\" then .entries[0].tc.comm = \"x\" elif .magic == \"PSTREE\" then .entries[0].comm = \"x\" else . end",
        ],
        b"",
        1,
    );
    assert!(
        error.contains("pstree_entry has no field \"comm\""),
        "{error}"
    );
    assert!(all() == before);
    let error = fail(&["transform", arg(dir.path()), "."], b"", 1);
    assert!(
        error.contains("changes nothing (looked at core-"),
        "{error}"
    );
    crit(&[
        "transform",
        arg(dir.path()),
        "--on",
        "core-*.img",
        ".entries[].tc.comm = \"renamed\"",
    ]);
    let ps = String::from_utf8(crit(&["x", arg(dir.path()), "ps"])).unwrap();
    assert_eq!(
        ps.matches("renamed").count(),
        ps.lines().count() - 1,
        "{ps}"
    );
}

#[test]
fn rules_change_what_they_name() {
    let dir = copy_of(&dump("tree"));
    let rules = dir.path().join("rules.txt");
    fs::write(&rules, "# two images\nfiles.img set [reg.name=/dev/null].reg.name /dev/zero\n\ncore-*.img jq .entries[].tc.comm = \"y\"\n").unwrap();
    crit(&["transform", arg(dir.path()), "--rules", arg(&rules)]);
    assert!(
        String::from_utf8(crit(&["x", arg(dir.path()), "fds"]))
            .unwrap()
            .contains("/dev/zero")
    );
    let error = fail(
        &["transform", arg(dir.path()), "--rules", arg(&rules)],
        b"",
        1,
    );
    assert!(
        error.contains("files.img set [reg.name=/dev/null].reg.name /dev/zero: changes nothing"),
        "{error}"
    );
    fs::write(&rules, "files.img frob x y\n").unwrap();
    let error = fail(
        &["transform", arg(dir.path()), "--rules", arg(&rules)],
        b"",
        1,
    );
    assert!(
        error.contains("rules.txt line 1: frob: no such rule"),
        "{error}"
    );
}

#[test]
fn lines_make_the_same_images() {
    for dump in dumps() {
        let lines = crit(&["decode", "--ndjson", arg(&dump.join("img"))]);
        for line in lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let line: Value = serde_json::from_slice(line).expect("every line is JSON");
            assert!(line["image"].is_string() && line["magic"].is_string());
        }
        let out = tempfile::tempdir().unwrap();
        succeed(&["encode", "--ndjson", "-o", arg(out.path())], &lines);
        let made = files(out.path());
        assert!(!made.is_empty());
        for (name, path) in made {
            let source = dump.join("img").join(&name);
            assert!(
                fs::read(path).unwrap() == fs::read(&source).unwrap(),
                "{}",
                source.display()
            );
        }
    }
}
