//! flatten, dedup, pack and unpack, archives in place of directories, completions and man pages.

mod common;

use common::{arg, copy_of, crit, dump, fail, files, root_pid};
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// A copy of the chain of three dumps, with links; gives the directory that holds 1, 2 and 3.
fn chain() -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for level in ["1", "2", "3"] {
        let dir = copy.path().join(level);
        fs::create_dir(&dir).unwrap();
        for (name, path) in files(&dump("parent_chain").join(level).join("img")) {
            fs::write(dir.join(name), fs::read(path).unwrap()).unwrap();
        }
    }
    for (level, parent) in [("2", "../1"), ("3", "../2")] {
        let link = copy.path().join(level).join("parent");
        let _ = fs::remove_file(&link);
        symlink(parent, link).unwrap();
    }
    copy
}

/// Every page that the top of a chain promises, by address.
fn memory(dir: &Path) -> Vec<(u64, Vec<u8>)> {
    let pid = root_pid(dir);
    let rss: serde_json::Value =
        serde_json::from_slice(&crit(&["x", arg(dir), "rss", "--json"])).unwrap();
    let runs = rss[0]["runs"].as_array().unwrap();
    let mut pages = Vec::new();
    for run in runs {
        let start =
            u64::from_str_radix(run["start"].as_str().unwrap().trim_start_matches("0x"), 16)
                .unwrap();
        let bytes = crit(&[
            "mem",
            arg(dir),
            "-p",
            &pid,
            "read",
            &start.to_string(),
            &(run["pages"].as_u64().unwrap() * 4096).to_string(),
        ]);
        pages.extend(
            bytes
                .chunks(4096)
                .enumerate()
                .map(|(at, page)| (start + at as u64 * 4096, page.to_vec())),
        );
    }
    pages
}

#[test]
fn a_flat_dump_has_the_memory_of_the_chain() {
    let chain = chain();
    let top = chain.path().join("3");
    let flat = chain.path().join("flat");
    crit(&["flatten", arg(&top), "-o", arg(&flat)]);
    assert!(!flat.join("parent").exists());
    let before = memory(&top);
    assert!(before.len() > 50);
    // Nothing of the chain is needed any more.
    for level in ["1", "2", "3"] {
        fs::remove_dir_all(chain.path().join(level)).unwrap();
    }
    assert!(memory(&flat) == before);
    let said = String::from_utf8(crit(&["check", arg(&flat)])).unwrap();
    assert!(said.contains("0 errors"), "{said}");
    let error = fail(&["flatten", arg(&flat), "-o", arg(&flat)], b"", 1);
    assert!(error.contains("create"), "{error}");
}

#[test]
fn a_broken_chain_leaves_nothing() {
    let chain = chain();
    let pages: PathBuf = files(&chain.path().join("1"))
        .into_iter()
        .find(|(name, _)| name.starts_with("pages-"))
        .unwrap()
        .1;
    fs::write(&pages, b"short").unwrap();
    let flat = chain.path().join("flat");
    fail(
        &["flatten", arg(&chain.path().join("3")), "-o", arg(&flat)],
        b"",
        1,
    );
    assert!(!flat.exists());
}

#[test]
fn dedup_frees_what_nobody_reads() {
    let chain = chain();
    let top = chain.path().join("3");
    let before = memory(&top);
    let blocks = || -> u64 {
        ["1", "2"]
            .iter()
            .flat_map(|level| files(&chain.path().join(level)))
            .map(|(_, path)| path.metadata().unwrap().blocks())
            .sum()
    };
    let (had, said) = (
        blocks(),
        String::from_utf8(crit(&["dedup", arg(&top)])).unwrap(),
    );
    let freed: u64 = said.split(' ').next().unwrap().parse().unwrap();
    assert!(freed > 0 && blocks() < had, "{said}");
    assert!(memory(&top) == before);
    let error = fail(&["dedup", arg(&dump("loop").join("img"))], b"", 1);
    assert!(error.contains("has no parent"), "{error}");
}

#[test]
fn a_dump_is_packed_and_unpacked() {
    let source = dump("tree").join("img");
    let out = tempfile::tempdir().unwrap();
    for name in ["dump.tar", "dump.tar.zst", "dump.tar.gz"] {
        let archive = out.path().join(name);
        crit(&["pack", arg(&source), "-o", arg(&archive)]);
        let unpacked = out.path().join(format!("{name}.d"));
        crit(&["unpack", arg(&archive), "-o", arg(&unpacked)]);
        let again = files(&unpacked);
        assert_eq!(again.len(), files(&source).len());
        for (file, path) in again {
            assert!(
                fs::read(path).unwrap() == fs::read(source.join(&file)).unwrap(),
                "{name}: {file}"
            );
        }
        // The reading verbs take the archive as it is.
        for view in ["ps", "fds", "mems"] {
            assert_eq!(
                crit(&["x", arg(&archive), view]),
                crit(&["x", arg(&source), view]),
                "{name}"
            );
        }
        assert!(
            String::from_utf8(crit(&["check", arg(&archive)]))
                .unwrap()
                .contains("0 errors")
        );
        let error = fail(
            &[
                "remap",
                arg(&archive),
                "--pid",
                &format!("{}=70001", root_pid(&source)),
            ],
            b"",
            1,
        );
        assert!(
            error.contains("an archive cannot be changed in place"),
            "{error}"
        );
    }
    let error = fail(
        &[
            "pack",
            arg(&chain().path().join("3")),
            "-o",
            arg(&out.path().join("x.tar")),
        ],
        b"",
        1,
    );
    assert!(error.contains("crit flatten"), "{error}");
}

/// A tar with the given paths, links as named.
fn tar(path: &Path, members: &[(&str, &[u8])], links: &[(&str, &str)]) {
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, target) in links {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        builder.append_link(&mut header, name, target).unwrap();
    }
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        // The name as it is, "..", and all.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.finish().unwrap();
}

#[test]
fn an_archive_cannot_write_outside() {
    let out = tempfile::tempdir().unwrap();
    let archive = out.path().join("evil.tar");
    let pstree = fs::read(dump("loop").join("img/pstree.img")).unwrap();
    let outside = out.path().join("victim");
    fs::create_dir(&outside).unwrap();
    tar(
        &archive,
        &[
            ("../victim/pstree.img", &pstree),
            ("../victim/run.sh", b"x"),
        ],
        &[("files.img", "/etc/passwd")],
    );
    let unpacked = out.path().join("into");
    crit(&["unpack", arg(&archive), "-o", arg(&unpacked)]);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    let names: Vec<String> = files(&unpacked).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["pstree.img"]);
    tar(
        &archive,
        &[("a/pstree.img", &pstree), ("b/pstree.img", &pstree)],
        &[],
    );
    let error = fail(&["x", arg(&archive), "ps"], b"", 1);
    assert!(error.contains("images in two places"), "{error}");
    fs::write(&archive, b"this is no tar at all").unwrap();
    fail(&["x", arg(&archive), "ps"], b"", 1);
}

/// The layout podman and CRI-O give an exported checkpoint.
#[test]
fn a_checkpoint_of_a_container_is_read() {
    let out = tempfile::tempdir().unwrap();
    let archive = out.path().join("checkpoint.tar");
    let source = dump("loop").join("img");
    let images: Vec<(String, Vec<u8>)> = files(&source)
        .into_iter()
        .map(|(name, path)| (format!("checkpoint/{name}"), fs::read(path).unwrap()))
        .collect();
    let mut members: Vec<(&str, &[u8])> = vec![("config.dump", b"{}"), ("spec.dump", b"{}")];
    members.extend(
        images
            .iter()
            .map(|(name, bytes)| (name.as_str(), bytes.as_slice())),
    );
    tar(&archive, &members, &[]);
    assert_eq!(
        crit(&["x", arg(&archive), "ps"]),
        crit(&["x", arg(&source), "ps"])
    );
    let pid = root_pid(&source);
    assert_eq!(
        crit(&["mem", arg(&archive), "-p", &pid, "maps"]),
        crit(&["mem", arg(&source), "-p", &pid, "maps"])
    );
}

#[test]
fn completions_and_pages_name_every_verb() {
    let help = String::from_utf8(crit(&["--help"])).unwrap();
    let commands = help
        .split("Commands:")
        .nth(1)
        .unwrap()
        .split("Options:")
        .next()
        .unwrap();
    let verbs: Vec<&str> = commands
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(verbs.len() > 15, "{verbs:?}");
    let pages = tempfile::tempdir().unwrap();
    crit(&["man", "--dir", arg(pages.path())]);
    for shell in ["bash", "zsh", "fish"] {
        let text = String::from_utf8(crit(&["completions", shell])).unwrap();
        for verb in &verbs {
            assert!(text.contains(verb), "{shell}: {verb}");
            assert!(
                pages.path().join(format!("crit-{verb}.1")).exists(),
                "{verb}"
            );
        }
    }
    assert!(
        String::from_utf8(crit(&["man"]))
            .unwrap()
            .starts_with(".ie")
    );
}

#[test]
fn a_copy_is_a_copy() {
    // copy_of is what other tests build on: it must not share files with the corpus.
    let source = dump("loop");
    let copy = copy_of(&source);
    for (name, path) in files(copy.path()) {
        assert_ne!(
            path.metadata().unwrap().ino(),
            source.join("img").join(name).metadata().unwrap().ino()
        );
    }
}

/// The parents know the tasks by their old pids: a chain must be flat before pids change.
#[test]
fn the_pids_of_a_chain_change_when_it_is_flat() {
    let chain = chain();
    let top = chain.path().join("3");
    let flat = chain.path().join("flat");
    let moved = chain.path().join("moved");
    let pids = format!("{}=70001", root_pid(&top));
    let remap = ["remap", arg(&top), "--pid", &pids, "--out", arg(&moved)];
    assert!(fail(&remap, b"", 1).contains("crit flatten"));
    assert!(!moved.exists());
    crit(&["flatten", arg(&top), "--out", arg(&flat)]);
    crit(&["remap", arg(&flat), "--pid", &pids, "--out", arg(&moved)]);
    assert_eq!(root_pid(&moved), "70001");
    assert_eq!(memory(&moved), memory(&top));
    crit(&["check", arg(&moved)]);
}
