//! get, set, del, edit and encode: what changes, what is refused, and that a refusal leaves the
//! image as it was.

mod common;

use common::{arg, copy_of, crit, crit_with, dump, fail, succeed};
use std::fs;
use std::process::Command;

#[test]
fn a_value_is_read_and_changed() {
    let dir = copy_of(&dump("proc_dead"));
    let files = dir.path().join("files.img");
    let before = crit(&["decode", "-i", arg(&files)]);
    let name = crit(&["get", "-r", arg(&files), "[reg.name=/dev/null].reg.name"]);
    assert_eq!(name, b"/dev/null\n");
    crit(&[
        "set",
        arg(&files),
        "[reg.name=/dev/null].reg.name",
        "/dev/zero",
    ]);
    assert_eq!(
        crit(&["get", "-r", arg(&files), "[reg.name=/dev/zero].reg.name"]),
        b"/dev/zero\n"
    );
    let after = String::from_utf8(crit(&["decode", "-i", arg(&files)])).unwrap();
    assert_eq!(
        after,
        String::from_utf8(before)
            .unwrap()
            .replace("/dev/null", "/dev/zero")
    );
}

#[test]
fn an_optional_field_can_be_added_and_taken_out() {
    let dir = copy_of(&dump("proc_dead"));
    let files = dir.path().join("files.img");
    let before = fs::read(&files).unwrap();
    crit(&["set", arg(&files), "[0].reg.ext", "true"]);
    assert_eq!(crit(&["get", arg(&files), "[0].reg.ext"]), b"true\n");
    crit(&["del", arg(&files), "[0].reg.ext"]);
    assert_eq!(fs::read(&files).unwrap(), before);
}

#[test]
fn what_does_not_fit_leaves_the_image() {
    let dir = copy_of(&dump("proc_dead"));
    let files = dir.path().join("files.img");
    let before = fs::read(&files).unwrap();
    for (arguments, wanted) in [
        (
            vec!["set", arg(&files), "[0].reg.nme", "/x"],
            "reg_file_entry has no field \"nme\"",
        ),
        (
            vec!["set", arg(&files), "[0].reg.pos", "-1"],
            "field reg.pos: -1 is out of range",
        ),
        (
            vec!["set", arg(&files), "[77].reg.pos", "1"],
            "items, the first",
        ),
        (
            vec!["set", arg(&files), "[0].id", "1", "[0].type", "WHAT"],
            "\"WHAT\" is no value of fd_types",
        ),
        (
            vec!["del", arg(&files), "[0].id"],
            "the required field id is missing",
        ),
        (
            vec!["del", arg(&files), "[reg.name=/nowhere]"],
            "nothing at `[reg.name=/nowhere]`",
        ),
    ] {
        let error = fail(&arguments, b"", 1);
        assert!(error.contains(wanted), "{arguments:?} said {error}");
        assert_eq!(fs::read(&files).unwrap(), before, "{arguments:?}");
    }
    let left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .filter(|e| {
            e.as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .starts_with('.')
        })
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_failed_encode_gives_nothing() {
    let json = br#"{"magic": "FS", "entries": [{"cwd_id": 1, "root_id": 2, "umask": 3}, {"cwd_id": "x"}]}"#;
    let output = common::crit_with(&["encode"], json);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "{:?}", output.stdout);
}

#[test]
fn a_failed_encode_leaves_the_output() {
    let dir = copy_of(&dump("loop"));
    let image = dir.path().join("pstree.img");
    let before = fs::read(&image).unwrap();
    for json in [
        "",
        "{",
        "{\"magic\": \"PSTREE\", \"entries\": [{}]}",
        "{\"magic\": \"PSTREE\", \"entries\": []} x",
    ] {
        fail(&["encode", "-o", arg(&image)], json.as_bytes(), 1);
        assert_eq!(fs::read(&image).unwrap(), before, "{json}");
    }
}

#[test]
fn the_version_of_an_old_image_is_kept() {
    let dir = copy_of(&dump("format_v1_0"));
    let image = dir.path().join("pstree.img");
    let before = fs::read(&image).unwrap();
    let pid = String::from_utf8(crit(&["get", arg(&image), "[0].pid"])).unwrap();
    crit(&["set", arg(&image), "[0].pid", "77"]);
    assert_eq!(fs::read(&image).unwrap()[..4], before[..4]);
    crit(&["set", arg(&image), "[0].pid", pid.trim()]);
    assert_eq!(fs::read(&image).unwrap(), before);
    let kept = crit(&["decode", "--keep-version", "-i", arg(&image)]);
    assert_eq!(succeed(&["encode"], &kept), before);
}

/// Runs `crit edit` with a sed command as the editor.
fn edit(image: &str, sed: &str) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_crit"))
        .args(["edit", image])
        .env("VISUAL", format!("sed -i {sed}"))
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn an_editor_changes_an_image() {
    let dir = copy_of(&dump("proc_dead"));
    let image = dir.path().join("remap-fpath.img");
    let before = fs::read(&image).unwrap();
    let output = edit(arg(&image), "'s/\"remap_id\": [0-9]*/\"remap_id\": 4242/'");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(crit(&["get", arg(&image), "[0].remap_id"]), b"4242\n");
    assert_eq!(
        fs::read(dir.path().join("remap-fpath.img~")).unwrap(),
        before
    );

    let before = fs::read(&image).unwrap();
    let output = edit(arg(&image), "'s/4242/nonsense/'");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read(&image).unwrap(), before);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    let draft = message
        .split("the edited JSON is in ")
        .nth(1)
        .expect("the draft is kept")
        .trim()
        .to_owned();
    assert!(fs::read_to_string(&draft).unwrap().contains("nonsense"));
    fs::remove_file(draft).unwrap();
}

#[test]
fn exit_statuses() {
    assert_eq!(crit_with(&[], b"").status.code(), Some(1));
    assert_eq!(crit_with(&["frobnicate"], b"").status.code(), Some(2));
    assert_eq!(crit_with(&["decode", "--nope"], b"").status.code(), Some(2));
    assert_eq!(crit_with(&["--version"], b"").status.code(), Some(0));
    let error = fail(&["decode", "-i", "/nonexistent/x.img"], b"", 1);
    assert!(
        error.contains("/nonexistent/x.img: open: No such file"),
        "{error}"
    );
    let error = fail(&["decode"], b"\x01\x02\x03\x04", 1);
    assert!(error.contains("stdin: unknown magic 0x4030201"), "{error}");
    let pages = dump("loop").join("img/pages-1.img");
    let error = fail(&["decode", "-i", arg(&pages)], b"", 1);
    assert!(
        error.contains("a raw file of a dump") && error.contains("pages of memory"),
        "{error}"
    );
}

#[test]
fn a_broken_pipe_is_quiet() {
    let image = dump("loop")
        .join("img")
        .read_dir()
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.to_string_lossy().contains("core-"))
        .unwrap();
    let script = format!(
        "{} show {} 2>&1 >/dev/full; {} show {} | true",
        env!("CARGO_BIN_EXE_crit"),
        arg(&image),
        env!("CARGO_BIN_EXE_crit"),
        arg(&image)
    );
    let output = Command::new("/bin/sh")
        .args(["-c", &script])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("No space left"), "{text}");
}

#[test]
fn a_link_in_the_directory_is_not_written_through() {
    let dir = copy_of(&dump("proc_dead"));
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim.img");
    let image = dir.path().join("remap-fpath.img");
    fs::rename(&image, &victim).unwrap();
    let before = fs::read(&victim).unwrap();
    std::os::unix::fs::symlink(&victim, &image).unwrap();
    for arguments in [
        vec!["set", arg(&image), "[0].remap_id", "77"],
        vec!["del", arg(&image), "[0]"],
    ] {
        let error = fail(&arguments, b"", 1);
        assert!(error.contains("a symbolic link"), "{error}");
    }
    // Verbs over the directory put a file in the link's place.
    crit(&[
        "transform",
        arg(dir.path()),
        "--on",
        "remap-fpath.img",
        ".entries[0].remap_id = 77",
    ]);
    assert!(!image.is_symlink());
    assert_eq!(fs::read(&victim).unwrap(), before);
    // The copy that `edit` keeps is not written through a link either.
    std::os::unix::fs::symlink(&victim, dir.path().join("remap-fpath.img~")).unwrap();
    let output = edit(arg(&image), "'s/77/78/'");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(fs::read(&victim).unwrap(), before);
    assert_eq!(crit(&["get", arg(&image), "[0].remap_id"]), b"77\n");
}
