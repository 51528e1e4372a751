//! Every verb that reads a set of images, on sets that were tampered with: it ends with one of its
//! exit statuses and a message, never by a signal, a panic, in minutes or with much memory.
//!
//! Bounded here; longer by hand: `CRIT_HOSTILE_ROUNDS=5000 cargo test --release -p crit --test
//! hostile -- --nocapture`, and another seed by `CRIT_HOSTILE_SEED`.

mod common;

use common::{arg, crit, dump, files};
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Sets with little memory and many kinds of images.
const SETS: [&str; 18] = [
    "tree",
    "threads",
    "pipes",
    "fifo",
    "ghost",
    "sysv",
    "tcp_est",
    "unix_scm",
    "memfd",
    "mem_shared",
    "proc_dead",
    "timers",
    "sigpending",
    "mntns",
    "pty",
    "cgroup",
    "locks",
    "format_v1_0",
];

/// A sequence that is the same for the same seed (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// One change to the bytes of an image.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) -> String {
    let at = random.below(bytes.len());
    let end = bytes.len();
    match random.below(9) {
        0 if end > 0 => {
            bytes[at] ^= 1 << random.below(8);
            format!("a bit at {at}")
        }
        1 if end > 0 => {
            bytes[at] = [0, 0xff, 0x7f, 0x80][random.below(4)];
            format!("the byte at {at}")
        }
        2 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        3 if end >= 4 => {
            let at = random.below(end - 3);
            let word = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX, 1 << 20][random.below(6)];
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            format!("{word:#x} at {at}")
        }
        4 => {
            let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
            let over = (at + random.below(11)).min(end);
            bytes.splice(at..over, huge);
            format!("a number of 64 bits at {at}")
        }
        5 => {
            let length = random.below(64).min(end - at);
            let copy = bytes[at..at + length].to_vec();
            let times = 1 + random.below(3);
            (0..times).for_each(|_| drop(bytes.splice(at..at, copy.clone())));
            format!("{times} more of {length} bytes at {at}")
        }
        6 => {
            let length = random.below(64).min(end - at);
            bytes.drain(at..at + length);
            format!("without {length} bytes at {at}")
        }
        7 => {
            let copy = bytes.clone();
            bytes.extend(copy);
            "twice".to_owned()
        }
        _ => {
            bytes.extend((0..random.below(40)).map(|_| random.next() as u8));
            "with more behind".to_owned()
        }
    }
}

/// What stands in an image's place; the image is not a plain file afterwards.
fn replace(path: &Path, random: &mut Random) -> String {
    fs::remove_file(path).expect("an image goes");
    match random.below(4) {
        0 => {
            nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
            "a fifo".to_owned()
        }
        1 => {
            let target = ["/dev/zero", "/etc/passwd", "/", "files.img"][random.below(4)];
            std::os::unix::fs::symlink(target, path).expect("a link");
            format!("a link to {target}")
        }
        2 => {
            fs::create_dir(path).expect("a directory");
            "a directory".to_owned()
        }
        _ => "nothing".to_owned(),
    }
}

/// Changes one to three images of a set; says how.
fn tamper(dir: &Path, random: &mut Random) -> (PathBuf, String) {
    let images: Vec<(String, PathBuf)> = files(dir)
        .into_iter()
        .filter(|(name, _)| !name.starts_with("pages-"))
        .collect();
    let mut said = String::new();
    let mut last = PathBuf::new();
    for _ in 0..1 + random.below(3) {
        let (name, path) = &images[random.below(images.len())];
        last = path.clone();
        let Ok(mut bytes) = fs::read(path) else {
            continue; // Something else stands there by now.
        };
        let how = match random.below(12) {
            0 => replace(path, random),
            1 => {
                let (other, from) = &images[random.below(images.len())];
                bytes = fs::read(from).unwrap_or_default();
                fs::write(path, bytes).expect("an image is written");
                format!("the content of {other}")
            }
            _ => {
                let how = mutate(&mut bytes, random);
                fs::write(path, bytes).expect("an image is written");
                how
            }
        };
        said += &format!("{name}: {how}; ");
    }
    (last, said)
}

/// Runs crit with little time and memory.
fn run(arguments: &[&str], said: &str) -> bool {
    let limited = "ulimit -t 30 -v 524288; exec \"$0\" \"$@\"";
    let output = Command::new("/bin/sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_crit")])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .expect("crit runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    assert!(
        matches!(code, Some(0..=2)) && !stderr.contains("panicked"),
        "crit {arguments:?} after {said}: {} (signal {:?})\n{stderr}",
        output.status,
        output.status.signal()
    );
    assert!(
        code == Some(0) || !stderr.is_empty() || ["check", "diff"].contains(&arguments[0]),
        "crit {arguments:?} after {said} says nothing"
    );
    code == Some(0)
}

const VIEWS: [&str; 11] = [
    "ps", "fds", "mems", "rss", "sk", "ns", "mounts", "creds", "timers", "remaps", "stats",
];

/// The verbs on one tampered set; how many runs there were and how many of them succeeded.
fn every_verb(
    whole: &Path,
    dir: &Path,
    image: &Path,
    pid: &str,
    out: &Path,
    said: &str,
) -> (u64, u64) {
    let (mut runs, mut good) = (0, 0);
    let mut one = |arguments: &[&str]| {
        runs += 1;
        good += u64::from(run(arguments, said));
        // What it made is of no interest; a directory may hold what it could not remove.
        let _ = fs::remove_dir_all(out).or_else(|_| fs::remove_file(out));
    };
    let (whole, dir, image, made) = (arg(whole), arg(dir), arg(image), arg(out));
    // A fifo that a user names is read like any other: it waits for somebody to write.
    if Path::new(image).is_file() {
        one(&["decode", "-i", image]);
        one(&["show", "--lenient", image]);
        one(&["show", "--nopl", image]);
        one(&["info", image]);
        one(&["get", image, "[*]"]);
    }
    one(&["decode", "--ndjson", dir]);
    for view in VIEWS {
        one(&["x", dir, view, "--json"]);
    }
    for view in ["ps", "fds", "mems", "rss"] {
        one(&["x", dir, view]);
    }
    one(&["x", dir, "ps", "--long"]);
    one(&["check", dir]);
    one(&["query", dir, ".tasks | length"]);
    one(&["diff", whole, dir]);
    one(&["diff", dir, whole, "--json"]);
    one(&["mem", dir, "-p", pid, "maps"]);
    one(&["mem", dir, "-p", pid, "search", "--regex", "nee+dle"]);
    one(&["mem", dir, "-p", pid, "read", "0x7ffff0000000", "64"]);
    one(&["core", dir, "-p", pid, "-o", made]);
    one(&["flatten", dir, "-o", made]);
    one(&["anonymize", dir, "-o", made]);
    one(&[
        "remap",
        dir,
        "--pid",
        &format!("{pid}=54321"),
        "--path",
        "/tmp=/srv",
        "--out",
        made,
    ]);
    one(&["transform", dir, "--out", made, "--on", "*", "."]);
    one(&[
        "transform",
        dir,
        "--out",
        made,
        "if .magic == \"PSTREE\" then .entries[0].pid = 7 else . end",
    ]);
    one(&["pack", dir, "-o", &format!("{made}.tar.zst")]);
    // What was packed of it, by the reading verbs and back.
    let packed = format!("{made}.tar.zst");
    if Path::new(&packed).exists() {
        one(&["x", &packed, "fds"]);
        one(&["unpack", &packed, "-o", made]);
        let _ = fs::remove_file(&packed);
    }
    // These change the set itself, so they come last.
    one(&[
        "mem",
        dir,
        "-p",
        pid,
        "write",
        "0x7ffff0000000",
        "--text",
        "x",
    ]);
    one(&["dedup", dir]);
    one(&["remap", dir, "--pid", &format!("{pid}=54321")]);
    (runs, good)
}

#[test]
fn every_verb_on_tampered_sets() {
    let (rounds, seed) = (
        number("CRIT_HOSTILE_ROUNDS", 30),
        number("CRIT_HOSTILE_SEED", 1),
    );
    let mut random = Random(seed);
    let (mut runs, mut good) = (0, 0);
    for _ in 0..rounds {
        let name = SETS[random.below(SETS.len())];
        let whole = dump(name).join("img");
        let copy = common::copy_of(&dump(name));
        let pid = String::from_utf8(crit(&["get", arg(&whole.join("pstree.img")), "[0].pid"]))
            .expect("text");
        let (image, said) = tamper(copy.path(), &mut random);
        let out = tempfile::tempdir().expect("a directory");
        let out = out.path().join("made");
        let said = format!("{name}: {said}(seed {seed})");
        let (more, passed) = every_verb(&whole, copy.path(), &image, pid.trim(), &out, &said);
        runs += more;
        good += passed;
    }
    println!("{rounds} tampered sets, {runs} runs, {good} with exit status 0");
    // Some changes are harmless, and many verbs do not read the image that was hit.
    assert!(good > 0 && good < runs);
}

/// Archives: cut, and with bytes changed.
#[test]
fn tampered_archives() {
    let rounds = number("CRIT_HOSTILE_ROUNDS", 30);
    let mut random = Random(number("CRIT_HOSTILE_SEED", 1) ^ 0xa5);
    let scratch = tempfile::tempdir().expect("a directory");
    let made = scratch.path().join("made");
    for kind in ["tar", "tar.gz", "tar.zst"] {
        let archive = scratch.path().join(format!("set.{kind}"));
        crit(&[
            "pack",
            arg(&dump("proc_dead").join("img")),
            "-o",
            arg(&archive),
        ]);
        let whole = fs::read(&archive).expect("the archive is there");
        for _ in 0..rounds {
            let mut bytes = whole.clone();
            let said: Vec<String> = (0..1 + random.below(4))
                .map(|_| mutate(&mut bytes, &mut random))
                .collect();
            fs::write(&archive, &bytes).expect("the archive is written");
            let said = format!("{kind}: {}", said.join("; "));
            for arguments in [
                vec!["x", arg(&archive), "fds"],
                vec!["unpack", arg(&archive), "-o", arg(&made)],
            ] {
                run(&arguments, &said);
                let _ = fs::remove_dir_all(&made);
            }
        }
    }
}

/// A small file of zeros that unpacks to very much: nothing of it is an image.
#[test]
fn an_archive_that_grows_is_passed_over() {
    let scratch = tempfile::tempdir().expect("a directory");
    let bomb = scratch.path().join("bomb.tar.zst");
    let file = File::create(&bomb).expect("the archive is made");
    let mut out = zstd::stream::Encoder::new(file, 1).expect("a compressor");
    let size: u64 = 1 << 30;
    let mut builder = tar::Builder::new(&mut out);
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    let zeros = std::io::Read::take(std::io::repeat(0), size);
    builder
        .append_data(&mut header, "not-an-image", zeros)
        .expect("an entry");
    builder.finish().expect("the end");
    drop(builder);
    out.finish().expect("the end");
    assert!(bomb.metadata().expect("it is there").len() < 1 << 20);
    assert!(!run(&["x", arg(&bomb), "ps"], "a bomb"));
}
