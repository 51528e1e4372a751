//! Several images at once, images of archives without unpacking, colours, links to descriptors.

mod common;

use common::{arg, crit, crit_with, dump, fail, files, succeed};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

fn images(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let all = files(dir).into_iter();
    all.map(|(name, path)| (name, fs::read(path).expect("readable")))
        .filter(|(name, _)| !name.starts_with("pages-"))
        .collect()
}

#[test]
fn a_whole_directory_is_decoded_and_encoded_again() {
    for (name, pretty) in [
        ("pipes", false),
        ("tree", true),
        ("ghost", false),
        ("sysv", true),
    ] {
        let dir = dump(name).join("img");
        let form: &[&str] = if pretty { &["--pretty"] } else { &[] };
        let text = crit(&[&["decode", arg(&dir)], form].concat());
        let json: Value = serde_json::from_slice(&text).expect("one object");
        assert_eq!(json["pstree.img"]["magic"], "PSTREE");
        let one = crit(&[&["decode", "-i", arg(&dir.join("files.img"))], form].concat());
        let one: Value = serde_json::from_slice(&one).expect("an image");
        assert_eq!(json["files.img"], one);
        // What is pretty is pretty all the way down.
        let again = String::from_utf8(text.clone()).expect("text");
        assert_eq!(
            pretty,
            again.lines().any(|line| line == "    \"pstree.img\": {")
        );
        let out = tempfile::tempdir().expect("a directory");
        succeed(&["encode", "-o", arg(out.path())], &text);
        assert!(images(out.path()) == images(&dir), "{name}");

        let each = tempfile::tempdir().expect("a directory");
        crit(&[&["decode", arg(&dir), "-o", arg(each.path())], form].concat());
        let file = fs::read(each.path().join("pstree.img.json")).expect("a file for each");
        let file: Value = serde_json::from_slice(&file).expect("an image");
        assert_eq!(file, json["pstree.img"]);
    }
}

#[test]
fn encoding_several_is_all_or_nothing() {
    let dir = dump("pipes").join("img");
    let mut json: Value = serde_json::from_slice(&crit(&["decode", arg(&dir)])).expect("an object");
    json["pstree.img"]["entries"][0]["pid"] = "none".into();
    let out = tempfile::tempdir().expect("a directory");
    let input = json.to_string();
    let error = fail(&["encode", "-o", arg(out.path())], input.as_bytes(), 1);
    assert!(error.contains("pstree.img: entry 0: field pid"), "{error}");
    assert_eq!(fs::read_dir(out.path()).expect("a directory").count(), 0);
    let error = fail(&["encode", "-o", arg(out.path())], br#"{"../x": {}}"#, 1);
    assert!(error.contains("the name of no image"), "{error}");
    let error = fail(&["decode", arg(&dir), arg(&dir)], b"", 1);
    assert!(error.contains("a second image of that name"), "{error}");
}

#[test]
fn an_image_of_an_archive_is_read_in_place() {
    let dir = dump("proc_dead").join("img");
    let out = tempfile::tempdir().expect("a directory");
    for kind in ["tar", "tar.gz", "tar.zst"] {
        let archive = out.path().join(format!("set.{kind}"));
        crit(&["pack", arg(&dir), "-o", arg(&archive)]);
        for arguments in [&["decode", "-i"][..], &["show"], &["info"]] {
            let inside = archive.join("files.img");
            let image = dir.join("files.img");
            let ours = crit(&[arguments, &[arg(&inside)]].concat());
            assert_eq!(ours, crit(&[arguments, &[arg(&image)]].concat()), "{kind}");
        }
        let path = arg(&archive).to_owned() + "/remap-fpath.img";
        let there = crit(&["get", &path, "[0].remap_id"]);
        assert_eq!(
            there,
            crit(&["get", arg(&dir.join("remap-fpath.img")), "[0].remap_id"])
        );
        let error = fail(&["show", &(arg(&archive).to_owned() + "/mm-9.img")], b"", 1);
        assert!(error.contains("no such image"), "{error}");
        let whole: Value = serde_json::from_slice(&crit(&["decode", arg(&archive)])).expect("JSON");
        assert_eq!(whole["files.img"]["magic"], "FILES");
    }
}

#[test]
fn colours_only_where_they_are_wanted() {
    let dir = dump("proc_dead").join("img");
    let (image, dir) = (dir.join("files.img"), arg(&dir).to_owned());
    let image = arg(&image);
    let plain = crit(&["show", image]);
    assert!(!plain.contains(&0x1b));
    let painted = crit(&["show", image, "--color", "always"]);
    assert!(painted.contains(&0x1b));
    let mut text = String::from_utf8(painted).expect("text");
    for color in [
        "\x1b[31m",
        "\x1b[32m",
        "\x1b[33m",
        "\x1b[36m",
        "\x1b[34;1m",
        "\x1b[0m",
    ] {
        text = text.replace(color, "");
    }
    assert_eq!(text.as_bytes(), plain);
    // -o never, even if asked for.
    let out = tempfile::tempdir().expect("a directory");
    let file = out.path().join("files.json");
    crit(&["decode", "-i", image, "-o", arg(&file), "--color=always"]);
    assert!(!fs::read(&file).expect("JSON").contains(&0x1b));
    // On a terminal: script(1) gives one.
    let crit = env!("CARGO_BIN_EXE_crit");
    for (set, wanted) in [
        ("TERM=xterm", true),
        ("NO_COLOR=1", false),
        ("TERM=dumb", false),
    ] {
        let command = format!("{crit} x {dir} remaps --json");
        let output = Command::new("script")
            .args([
                "-qec",
                &format!("env -u NO_COLOR {set} {command}"),
                "/dev/null",
            ])
            .output()
            .expect("script runs");
        assert!(output.status.success());
        assert_eq!(output.stdout.contains(&0x1b), wanted, "{set}");
    }
}

/// /dev/stdout is a link, and means our own output.
#[test]
fn a_link_to_our_own_output_is_followed() {
    let image = dump("proc_dead").join("img/files.img");
    let output = crit_with(&["decode", "-i", arg(&image), "-o", "/dev/stdout"], b"");
    assert!(output.status.success());
    let mut same = crit(&["decode", "-i", arg(&image)]);
    same.pop();
    assert_eq!(output.stdout, same);
}

/// What is wrong in an archive is told by the archive's name, not by where it was unpacked.
#[test]
fn messages_name_the_archive() {
    let out = tempfile::tempdir().expect("a directory");
    let broken = out.path().join("broken");
    fs::create_dir(&broken).expect("made");
    for (name, path) in files(&dump("pipes").join("img")) {
        fs::copy(&path, broken.join(&name)).expect("copied");
    }
    let pstree = broken.join("pstree.img");
    let good = fs::read(&pstree).expect("readable");
    fs::write(&pstree, &good[..good.len() - 1]).expect("written");
    let archive = out.path().join("broken.tar");
    crit(&["pack", arg(&broken), "-o", arg(&archive)]);
    for arguments in [&["x", arg(&archive), "ps"][..], &["decode", arg(&archive)]] {
        let output = crit_with(arguments, b"");
        let said = String::from_utf8_lossy(&output.stderr);
        let wanted = format!("{}/pstree.img", archive.display());
        assert!(
            !output.status.success() && said.contains(&wanted),
            "{arguments:?}: {said}"
        );
    }
}
