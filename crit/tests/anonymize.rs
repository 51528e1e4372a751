//! `crit anonymize`: no word of the program is left, every size is, and the set still passes check.

mod common;

use common::{arg, crit, crit_with, dump, dumps, files};
use std::fs;

#[test]
fn nothing_of_the_program_is_left() {
    let source = dump("unix_stream").join("img");
    let out = tempfile::tempdir().unwrap();
    let copy = out.path().join("copy");
    crit(&["anonymize", arg(&source), "-o", arg(&copy)]);
    for (name, path) in files(&copy) {
        let bytes = fs::read(&path).unwrap();
        for word in ["crust-golden", "unix_stream", "listen.sock", "wl-abstract"] {
            let found = bytes
                .windows(word.len())
                .any(|window| window == word.as_bytes());
            assert!(!found, "{word} in {name}");
        }
        if name.starts_with("pages-") {
            assert!(bytes.iter().all(|byte| *byte == 0), "{name}");
        }
        // A register that becomes zero is a shorter number in its message.
        if name.starts_with("core-") {
            continue;
        }
        assert_eq!(
            bytes.len() as u64,
            source.join(&name).metadata().unwrap().len(),
            "{name}"
        );
    }
    assert_eq!(files(&copy).len(), files(&source).len());
    // What was one path is one path still: descriptors 1 and 2 have the same file.
    let fds = String::from_utf8(crit(&["x", arg(&copy), "fds"])).unwrap();
    assert!(fds.contains("/dev/null"), "{fds}");
    assert_eq!(
        fds.lines().count(),
        String::from_utf8(crit(&["x", arg(&source), "fds"]))
            .unwrap()
            .lines()
            .count()
    );
}

/// Findings of the copy that the original does not have.
#[test]
fn what_fits_together_does_so_afterwards() {
    let mut checked = 0;
    for dump in dumps() {
        let dir = dump.join("img");
        if dir.join("parent").exists() || !dir.join("pstree.img").exists() {
            continue;
        }
        let out = tempfile::tempdir().unwrap();
        let copy = out.path().join("copy");
        crit(&["anonymize", arg(&dir), "-o", arg(&copy)]);
        let errors = |dir: &std::path::Path| {
            let output = crit_with(&["check", "-q", arg(dir)], b"");
            String::from_utf8(output.stdout).unwrap().lines().count()
        };
        assert_eq!(errors(&copy), errors(&dir), "{}", dir.display());
        assert_eq!(files(&copy).len(), files(&dir).len(), "{}", dir.display());
        checked += 1;
    }
    assert!(checked > 20, "only {checked} dumps");
}
