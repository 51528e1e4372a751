//! The crit binary and the recorded dumps, for the tests beside this directory.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Runs crit with `input` on its stdin.
pub fn crit_with(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_crit"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("crit starts");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // crit may end before it has read everything.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("crit ends");
    writer.join().expect("the writer ends");
    output
}

/// Runs crit, which must succeed, and gives its stdout.
pub fn crit(arguments: &[&str]) -> Vec<u8> {
    succeed(arguments, b"")
}

/// The same with input.
pub fn succeed(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let output = crit_with(arguments, input);
    assert!(
        output.status.success(),
        "crit {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Runs crit, which must fail with that exit status, and gives its stderr.
pub fn fail(arguments: &[&str], input: &[u8], status: i32) -> String {
    let output = crit_with(arguments, input);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        output.status.code(),
        Some(status),
        "crit {arguments:?}: {stderr}"
    );
    stderr
}

/// Every recorded dump: the part kept in tests/data, and the whole collection where it is there.
pub fn dumps() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("crit lies in the workspace");
    let kept = root.join("tests/data/corpus");
    assert!(kept.is_dir(), "{} is missing", kept.display());
    let mut found = Vec::new();
    for corpus in [kept, root.join("../shared/corpus")] {
        below(&corpus, &mut found);
    }
    found.sort();
    found
}

/// The pid of the root of a dump.
pub fn root_pid(dir: &Path) -> String {
    let pid = crit(&["get", arg(&dir.join("pstree.img")), "[ppid=0].pid"]);
    let pid = String::from_utf8(pid).expect("a number");
    pid.trim().to_owned()
}

/// The first address of the stack of a task where this text stands.
pub fn stack_address(dir: &Path, pid: &str, text: &str) -> String {
    let search = ["search", "--kind", "stack", "--max", "1", text];
    let found = crit(&[&["mem", arg(dir), "-p", pid][..], &search].concat());
    let found = String::from_utf8(found).expect("text");
    let address = found.split(' ').next().expect("an address");
    address.to_owned()
}

/// One recorded dump of the kept part.
pub fn dump(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("crit lies in the workspace");
    root.join("tests/data/corpus").join(name)
}

fn below(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("the corpus is readable").path();
        if path.join("img").is_dir() {
            found.push(path);
        } else if path.is_dir() {
            below(&path, found);
        }
    }
}

/// Files of a directory by name, sorted.
pub fn files(dir: &Path) -> Vec<(String, PathBuf)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("the directory is readable")
        .map(|entry| entry.expect("the directory is readable").path())
        .filter(|path| path.is_file() && !path.is_symlink())
        .map(|path| {
            (
                path.file_name()
                    .expect("a file has a name")
                    .to_string_lossy()
                    .into_owned(),
                path,
            )
        })
        .collect();
    files.sort();
    files
}

/// A copy of a dump's images in a fresh directory.
pub fn copy_of(dump: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("a directory for a copy");
    for (name, path) in files(&dump.join("img")) {
        fs::write(
            copy.path().join(name),
            fs::read(path).expect("an image is readable"),
        )
        .expect("an image is copied");
    }
    copy
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
