//! What is written into a directory that is not trusted stays in it: images that are links are
//! replaced or refused, and no name or link of an archive leads out of where it is unpacked.

mod common;

use common::{arg, copy_of, crit, crit_with, dump, files, root_pid, stack_address};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A set of which every image is a link to a file outside, beside files that must not change.
struct Trap {
    dir: tempfile::TempDir,
    outside: tempfile::TempDir,
    before: BTreeMap<String, Vec<u8>>,
}

fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |(name, path): (String, PathBuf)| (name, fs::read(path).expect("readable"));
    files(dir).into_iter().map(read).collect()
}

impl Trap {
    fn new(name: &str) -> Trap {
        let outside = copy_of(&dump(name));
        let dir = tempfile::tempdir().expect("a directory");
        for (name, path) in files(outside.path()) {
            symlink(&path, dir.path().join(name)).expect("a link");
        }
        let before = contents(outside.path());
        Trap {
            dir,
            outside,
            before,
        }
    }

    fn expect_unharmed(&self, what: &str) {
        assert!(
            contents(self.outside.path()) == self.before,
            "{what} wrote outside"
        );
    }
}

/// Runs crit, whatever comes of it, and gives whether it succeeded.
fn attempt(arguments: &[&str], input: &[u8]) -> bool {
    let output = crit_with(arguments, input);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
    output.status.success()
}

#[test]
fn images_that_are_links_are_not_written_through() {
    let dir = dump("loop").join("img");
    let pid = &root_pid(&dir);
    let address = &stack_address(&dir, pid, "loop");
    let json = crit(&["decode", "--ndjson", arg(&dump("loop").join("img"))]);
    let edits = String::from_utf8(json.clone())
        .expect("text")
        .replace("\"umask\": 18", "\"umask\": 63");
    assert_ne!(edits.as_bytes(), json);
    let fs_json = crit(&[
        "decode",
        "-i",
        arg(&dump("loop").join(format!("img/fs-{pid}.img"))),
    ]);

    let (new_pid, script) = (format!("{pid}=54321"), ".entries[0].umask? = 63");
    let fs_image = format!("fs-{pid}.img");
    for (what, arguments, input) in [
        (
            "remap",
            vec!["remap", "DIR", "--pid", &new_pid, "--path", "/tmp=/srv"],
            &b""[..],
        ),
        (
            "transform",
            vec!["transform", "DIR", "--on", "fs-*.img", script],
            b"",
        ),
        ("set", vec!["set", "DIR/FS", "[0].umask", "63"], b""),
        ("del", vec!["del", "DIR/FS", "[0].umask"], b""),
        (
            "mem write",
            vec!["mem", "DIR", "-p", pid, "write", address, "--text", "x"],
            b"",
        ),
        (
            "encode --ndjson",
            vec!["encode", "--ndjson", "-o", "DIR"],
            edits.as_bytes(),
        ),
        ("encode", vec!["encode", "-o", "DIR/FS"], &fs_json[..]),
        (
            "decode",
            vec!["decode", "-i", "DIR/pstree.img", "-o", "DIR/FS"],
            b"",
        ),
        ("core", vec!["core", "DIR", "-p", pid, "-o", "DIR/FS"], b""),
        (
            "mem export",
            vec![
                "mem", "DIR", "-p", pid, "export", "--kind", "stack", "-o", "DIR/FS",
            ],
            b"",
        ),
        ("pack", vec!["pack", "DIR", "-o", "DIR/FS"], b""),
    ] {
        let trap = Trap::new("loop");
        let given: Vec<String> = arguments
            .iter()
            .map(|word| {
                word.replace("DIR", arg(trap.dir.path()))
                    .replace("FS", &fs_image)
            })
            .collect();
        attempt(&given.iter().map(String::as_str).collect::<Vec<_>>(), input);
        trap.expect_unharmed(what);
    }
}

/// The pages that dedup frees are those of the parent's own file.
#[test]
fn dedup_frees_nothing_behind_a_link() {
    let outside = copy_of(&dump("parent_chain/1"));
    let before = contents(outside.path());
    let parent = tempfile::tempdir().expect("a directory");
    for (name, path) in files(outside.path()) {
        symlink(&path, parent.path().join(name)).expect("a link");
    }
    let child = copy_of(&dump("parent_chain/2"));
    symlink(parent.path(), child.path().join("parent")).expect("a link");
    attempt(&["dedup", arg(child.path())], b"");
    assert!(contents(outside.path()) == before, "dedup wrote outside");
}

fn entry(builder: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o600);
    // Straight into the field: the crate's own setter refuses names that lead upwards.
    let field = &mut header.as_old_mut().name;
    field[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    builder.append(&header, bytes).expect("an entry");
}

fn link(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_path(name).expect("a name");
    header.set_link_name(target).expect("a target");
    header.set_cksum();
    builder.append(&header, &b""[..]).expect("an entry");
}

#[test]
fn archives_do_not_lead_out() {
    let scratch = tempfile::tempdir().expect("a directory");
    let victims = scratch.path().join("victims");
    fs::create_dir(&victims).expect("a directory");
    let victim = victims.join("files.img");
    fs::write(&victim, b"mine").expect("a file");
    let images: Vec<(String, Vec<u8>)> = contents(&dump("loop").join("img")).into_iter().collect();
    let bytes = &images
        .iter()
        .find(|(name, _)| name == "files.img")
        .expect("files.img")
        .1;
    let absolute = arg(&victim).to_owned();
    for (what, build) in [
        (
            "a name that leads upwards",
            &(|builder: &mut tar::Builder<Vec<u8>>| {
                entry(builder, "../victims/files.img", bytes);
            }) as &dyn Fn(&mut tar::Builder<Vec<u8>>),
        ),
        ("an absolute name", &|builder: &mut tar::Builder<
            Vec<u8>,
        >| {
            entry(builder, &absolute, bytes)
        }),
        (
            "a link and a file of its name",
            &|builder: &mut tar::Builder<Vec<u8>>| {
                link(builder, tar::EntryType::Symlink, "files.img", &absolute);
                entry(builder, "files.img", bytes);
            },
        ),
        (
            "a hard link and a file of its name",
            &|builder: &mut tar::Builder<Vec<u8>>| {
                link(builder, tar::EntryType::Link, "files.img", &absolute);
                entry(builder, "files.img", bytes);
            },
        ),
        (
            "a directory that is a link",
            &|builder: &mut tar::Builder<Vec<u8>>| {
                link(
                    builder,
                    tar::EntryType::Symlink,
                    "checkpoint",
                    arg(&victims),
                );
                entry(builder, "checkpoint/files.img", bytes);
            },
        ),
        ("the same name twice", &|builder: &mut tar::Builder<
            Vec<u8>,
        >| {
            entry(builder, "files.img", bytes);
            entry(builder, "files.img", b"other");
        }),
        ("a parent that is a link", &|builder: &mut tar::Builder<
            Vec<u8>,
        >| {
            link(builder, tar::EntryType::Symlink, "parent", arg(&victims));
            entry(builder, "files.img", bytes);
        }),
    ] {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        let archive = scratch.path().join("hostile.tar");
        fs::write(&archive, builder.into_inner().expect("an archive")).expect("it is written");
        let made = scratch.path().join("made");
        attempt(&["unpack", arg(&archive), "-o", arg(&made)], b"");
        attempt(&["x", arg(&archive), "fds"], b"");
        assert_eq!(fs::read(&victim).expect("the victim"), b"mine", "{what}");
        assert_eq!(
            fs::read_dir(&victims).expect("a directory").count(),
            1,
            "{what}"
        );
        for entry in fs::read_dir(&made).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            assert!(
                path.is_file() && !path.is_symlink(),
                "{what}: {}",
                path.display()
            );
        }
        let _ = fs::remove_dir_all(&made);
    }
}
