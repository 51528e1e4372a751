//! A dump with a manifest (`crust-dump --digest`) that crit edits: the manifest goes along, and
//! still tells damage from edits.

mod common;

use common::{arg, copy_of, crit, crit_with, dump, fail, files, root_pid, stack_address};
use crust_image::{ImageDir, digest};
use std::fs;
use std::path::Path;

fn differences(dir: &Path) -> usize {
    let dir = ImageDir::open(dir).expect("a directory");
    let found = digest::verify(&dir).expect("a manifest that can be read");
    found.expect("a manifest").len()
}

#[test]
fn an_edit_is_no_damage() {
    let copy = copy_of(&dump("loop"));
    let dir = copy.path();
    digest::write(&ImageDir::open(dir).expect("a directory")).expect("a manifest");
    let pid = root_pid(dir);
    let fs_image = dir.join(format!("fs-{pid}.img"));
    let address = &stack_address(dir, &pid, "loop");
    crit(&["set", arg(&fs_image), "[0].umask", "63"]);
    assert_eq!(differences(dir), 0, "set");
    crit(&[
        "transform",
        arg(dir),
        "--on",
        "fs-*.img",
        ".entries[0].umask = 18",
    ]);
    assert_eq!(differences(dir), 0, "transform");
    crit(&["mem", arg(dir), "-p", &pid, "write", address, "--text", "x"]);
    assert_eq!(differences(dir), 0, "mem write");
    crit(&[
        "remap",
        arg(dir),
        "--pid",
        &format!("{pid}=54321"),
        "--path",
        "/tmp=/srv",
    ]);
    assert_eq!(differences(dir), 0, "remap");
    let json = crit(&["decode", "-i", arg(&dir.join("pstree.img"))]);
    let json = String::from_utf8(json)
        .expect("text")
        .replace("\"sid\": 54321", "\"sid\": 0");
    let output = crit_with(
        &["encode", "-o", arg(&dir.join("pstree.img"))],
        json.as_bytes(),
    );
    assert!(output.status.success());
    assert_eq!(differences(dir), 0, "encode");
    let out = tempfile::tempdir().expect("a directory");
    for verb in ["anonymize", "flatten"] {
        let made = out.path().join(verb);
        crit(&[verb, arg(dir), "-o", arg(&made)]);
        assert_eq!(differences(&made), 0, "{verb}");
    }
    // What crit did not do is found.
    let damaged = dir.join("files.img");
    let mut bytes = fs::read(&damaged).expect("an image");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&damaged, bytes).expect("it is written");
    crit(&["set", arg(&dir.join("fs-54321.img")), "[0].umask", "7"]);
    assert_eq!(
        differences(dir),
        1,
        "damage is blessed by an edit of another image"
    );
    fail(&["check", arg(dir)], b"", 1);
    assert!(
        files(dir)
            .iter()
            .any(|(name, _)| name == "crust-digest.json")
    );
}
