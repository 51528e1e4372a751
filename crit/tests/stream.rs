//! A large payload passes through decode and encode without being held.

mod common;

use std::fs;
use std::process::Command;

#[test]
fn a_ghost_file_larger_than_the_memory_allowed() {
    const SIZE: u64 = 112 << 20;
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("ghost-file-1.img");
    let head = common::succeed(
        &["encode"],
        br#"{"magic": "GHOST_FILE", "entries": [{"uid": 0, "gid": 0, "mode": 33152, "extra": ""}]}"#,
    );
    fs::write(&image, &head).unwrap();
    // Zeros behind the head: the content, which takes no room on the disk.
    fs::File::options()
        .write(true)
        .open(&image)
        .unwrap()
        .set_len(head.len() as u64 + SIZE)
        .unwrap();
    let again = dir.path().join("again.img");
    // 96 MiB of addresses for either program: it must not hold the payload, nor its text.
    let script = format!(
        "ulimit -v 98304; {crit} decode -i {image} | {crit} encode -o {again}",
        crit = env!("CARGO_BIN_EXE_crit"),
        image = common::arg(&image),
        again = common::arg(&again)
    );
    let output = Command::new("/bin/sh")
        .args(["-c", &script])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(again.metadata().unwrap().len(), head.len() as u64 + SIZE);
    let compared = Command::new("cmp").args([&image, &again]).status().unwrap();
    assert!(compared.success());
}
