//! The output of crit beside what CRIU's crit gave for the same images, byte for byte. The
//! exceptions are that tool's defects (CRIT-JSON.md section 8), each named here.

mod common;

use common::{arg, crit, dumps, files, succeed};
use rayon::prelude::*;
use std::fs;
use std::path::Path;

/// Defect 1: the peer takes the entries behind the first segment for its content.
fn swallows_entries(name: &str) -> bool {
    name.starts_with("ipcns-shm-")
}

/// Defect 6: the peer shows a dead task's state as a number and a stopped one as "Zombie".
fn with_todays_state_names(pretty: &str) -> String {
    pretty
        .replace("\"task_state\": \"Zombie\"", "\"task_state\": \"Stopped\"")
        .replace("\"task_state\": 2", "\"task_state\": \"Dead\"")
}

fn check_image(dump: &Path, name: &str, image: &Path) {
    let decoded = dump.join("decode").join(format!("{name}.json"));
    let Ok(decoded) = fs::read_to_string(&decoded) else {
        // `parent` is a link to the directory of the previous dump, kept as a file in the corpus.
        let expected = name.starts_with("pages-") || is_raw(name) || name == "parent";
        assert!(expected, "{}: no recorded JSON", image.display());
        return;
    };
    let pretty =
        fs::read_to_string(dump.join("pretty").join(format!("{name}.json"))).expect("recorded");
    let ours = crit(&["decode", "-i", arg(image)]);
    let shown = crit(&["show", arg(image)]);
    if !swallows_entries(name) {
        assert_eq!(
            String::from_utf8_lossy(&ours),
            decoded,
            "decode {}",
            image.display()
        );
        assert_eq!(
            String::from_utf8_lossy(&shown),
            with_todays_state_names(&pretty),
            "show {}",
            image.display()
        );
        let old = dump.ends_with("format_v1_0");
        let version: &[&str] = if old {
            &["encode", "--image-version", "1.0"]
        } else {
            &["encode"]
        };
        let bytes = fs::read(image).expect("readable");
        // Ours are the recorded ones, letter for letter, but for names of states.
        let renamed = (shown != pretty.as_bytes()).then_some(shown.as_slice());
        let recorded = [decoded.as_bytes(), pretty.as_bytes()];
        for json in recorded.into_iter().chain(renamed) {
            assert!(
                succeed(version, json) == bytes,
                "encode of {}",
                image.display()
            );
        }
    } else {
        let bytes = fs::read(image).expect("readable");
        assert!(
            succeed(&["encode"], &ours) == bytes,
            "encode of {}",
            image.display()
        );
        assert!(
            succeed(&["encode"], &shown) == bytes,
            "encode of {}",
            image.display()
        );
        let entries = String::from_utf8_lossy(&ours)
            .matches("in_pagemaps")
            .count();
        assert_eq!(entries, 3, "{}", image.display());
    }
}

fn is_raw(name: &str) -> bool {
    let raw = [
        "ifaddr-",
        "route-",
        "route6-",
        "rule-",
        "iptables-",
        "ip6tables-",
        "nftables-",
        "netns-ct-",
        "tmpfs-",
    ];
    raw.iter().any(|prefix| name.starts_with(prefix))
}

#[test]
fn decode_show_and_encode() {
    let checked: usize = dumps()
        .par_iter()
        .map(|dump| {
            let images = files(&dump.join("img"));
            for (name, image) in &images {
                check_image(dump, name, image);
            }
            images.len()
        })
        .sum();
    assert!(checked > 200, "only {checked} images");
}

#[test]
fn explore() {
    let mut checked = 0;
    for dump in dumps() {
        if !dump.join("img/pstree.img").exists() {
            continue; // A pre-dump has memory only.
        }
        for view in ["ps", "fds", "mems", "rss"] {
            let ours = crit(&["x", arg(&dump.join("img")), view]);
            if let Ok(recorded) = fs::read_to_string(dump.join("x").join(format!("{view}.txt"))) {
                assert_eq!(
                    String::from_utf8_lossy(&ours),
                    recorded,
                    "x {} {view}",
                    dump.display()
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 40, "only {checked} views");
}

#[test]
fn info_counts_the_entries() {
    for dump in dumps() {
        for (name, image) in files(&dump.join("img")) {
            let Ok(decoded) = fs::read_to_string(dump.join("decode").join(format!("{name}.json")))
            else {
                continue;
            };
            let json: serde_json::Value = serde_json::from_str(&decoded).expect("recorded JSON");
            let mut count = json["entries"].as_array().expect("an array").len();
            count -= usize::from(json["magic"] == "PAGEMAP");
            if swallows_entries(&name) {
                count = 3;
            }
            let magic = json["magic"].as_str().expect("a name");
            let wanted = format!("{{\n    \"magic\": \"{magic}\",\n    \"count\": {count}\n}}\n");
            assert_eq!(
                String::from_utf8_lossy(&crit(&["info", arg(&image)])),
                wanted,
                "{}",
                image.display()
            );
        }
    }
}
