//! Images as they should not be: whatever the bytes, decoding gives an error or JSON that encodes
//! to the very same bytes. Every image of the corpus is cut at every length, has every byte
//! changed, and has its size words set to extremes.

use crust_image::Kind;
use crust_image::json::{
    DecodeOptions, EncodeOptions, Error, Layout, Reader, Writer, image_to_json, json_to_image,
};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

const OPTIONS: DecodeOptions = DecodeOptions {
    keep_version: true,
    ..DecodeOptions::COMPACT
};
const PRETTY: DecodeOptions = DecodeOptions {
    pretty: true,
    ..OPTIONS
};

fn corpus_images() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/corpus");
    let mut images = Vec::new();
    collect(&root, &mut images);
    assert!(
        images.len() > 100,
        "only {} images below {}",
        images.len(),
        root.display()
    );
    images.sort();
    images
}

fn collect(dir: &Path, images: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("the corpus is readable") {
        let path = entry.expect("the corpus is readable").path();
        if path.is_symlink() {
            continue;
        }
        let in_dump = path.parent().is_some_and(|dir| dir.ends_with("img"));
        if path.is_dir() {
            collect(&path, images);
        } else if in_dump && path.metadata().is_ok_and(|meta| meta.len() < 3000) {
            images.push(path);
        }
    }
}

fn decode(bytes: &[u8], options: DecodeOptions) -> Result<Vec<u8>, Error> {
    let layout = if options.pretty {
        Layout::Pretty
    } else {
        Layout::Compact
    };
    let mut writer = Writer::new(Vec::new(), layout);
    image_to_json(bytes, &mut writer, options)?;
    Ok(writer.finish().expect("a Vec takes everything"))
}

fn encode(json: &[u8]) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    json_to_image(&mut Reader::new(json), &mut out, EncodeOptions::default())?;
    Ok(out)
}

/// An error, or the same bytes again. Says whether it decoded.
fn check(bytes: &[u8], what: &str) -> bool {
    for options in [OPTIONS, PRETTY] {
        let Ok(json) = decode(bytes, options) else {
            return false;
        };
        match encode(&json) {
            Ok(again) => assert!(again == bytes, "{what}: other bytes came back"),
            Err(error) => panic!("{what}: {error}"),
        }
    }
    true
}

#[test]
fn every_image_as_it_is() {
    let decoded = corpus_images()
        .iter()
        .filter(|path| check(&fs::read(path).unwrap(), &path.display().to_string()))
        .count();
    assert!(decoded > 100, "only {decoded} decoded");
}

/// One image of each kind, the smallest: what the mutations run on every time.
fn one_of_each_kind() -> Vec<PathBuf> {
    let mut images = corpus_images();
    images.sort_by_key(|path| path.metadata().map(|meta| meta.len()).unwrap_or(0));
    let mut seen = HashSet::new();
    images.retain(|path| {
        let kind = Kind::of_file_name(path.file_name().expect("a file has a name"));
        kind.is_some_and(|(kind, _)| seen.insert(kind))
    });
    assert!(images.len() > 20, "only {} kinds", images.len());
    images
}

/// How many mutations there were, and how many of them still decoded.
#[derive(Default)]
struct Count {
    all: u64,
    decoded: u64,
}

impl Count {
    fn check(&mut self, bytes: &[u8], what: &str) {
        self.all += 1;
        self.decoded += u64::from(check(bytes, what));
    }

    fn tell(&self, what: &str) {
        println!("{what}: {} mutations, {} decoded", self.all, self.decoded);
        assert!(self.all > 1000);
    }
}

fn truncate_each(images: &[PathBuf]) {
    let mut count = Count::default();
    for path in images {
        let bytes = fs::read(path).unwrap();
        for length in 0..bytes.len() {
            count.check(
                &bytes[..length],
                &format!("{} cut to {length}", path.display()),
            );
        }
    }
    count.tell("cut at each length");
}

fn change_each_byte(images: &[PathBuf]) {
    let mut count = Count::default();
    for path in images {
        let mut bytes = fs::read(path).unwrap();
        for at in 0..bytes.len() {
            let was = bytes[at];
            for other in [was ^ 1, was ^ 0x80, 0xff] {
                bytes[at] = other;
                count.check(
                    &bytes,
                    &format!("{} with {other:#x} at {at}", path.display()),
                );
            }
            bytes[at] = was;
        }
    }
    count.tell("each byte changed");
}

fn set_each_word(images: &[PathBuf]) {
    let mut count = Count::default();
    for path in images {
        let bytes = fs::read(path).unwrap();
        for at in 4..bytes.len().saturating_sub(4) {
            for size in [-1, i32::MAX] {
                let mut bytes = bytes.clone();
                bytes[at..at + 4].copy_from_slice(&size.to_le_bytes());
                count.check(&bytes, &format!("{} with {size} at {at}", path.display()));
            }
        }
    }
    count.tell("each word extreme");
}

#[test]
fn every_truncation() {
    truncate_each(&one_of_each_kind());
}

#[test]
fn every_byte_changed() {
    change_each_byte(&one_of_each_kind());
}

#[test]
fn every_word_extreme() {
    set_each_word(&one_of_each_kind());
}

#[test]
#[ignore = "minutes; by hand in a release build"]
fn the_whole_corpus_mutated() {
    let images = corpus_images();
    truncate_each(&images);
    change_each_byte(&images);
    set_each_word(&images);
}

/// A frame around one message.
fn image(magic: u32, messages: &[&[u8]]) -> Vec<u8> {
    let mut bytes = 0x5456_4319u32.to_le_bytes().to_vec();
    bytes.extend(magic.to_le_bytes());
    for message in messages {
        bytes.extend((message.len() as u32).to_le_bytes());
        bytes.extend(*message);
    }
    bytes
}

const FDINFO: u32 = 0x5621_3732;
const REG_FILES: u32 = 0x5036_3636;
const UNIXSK: u32 = 0x5437_3943;
const FS: u32 = 0x5140_3912;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(decode(bytes, OPTIONS).unwrap()).unwrap()
}

#[test]
fn what_the_peer_loses_comes_back() {
    // An enum value without a name (type 99), and an unknown field of each wire type.
    let fdinfo = [
        8, 1, 16, 0, 24, 99, 32, 3, 0xa0, 6, 5, 0xaa, 6, 1, 7, 0xb5, 6, 1, 2, 3, 4,
    ];
    let bytes = image(FDINFO, &[&fdinfo]);
    assert!(check(&bytes, "unknown values"));
    let json = text(&bytes);
    assert!(json.contains(r#""type": 99"#), "{json}");
    assert!(json.contains(r#""unknown_fields": [{"number": 100, "varint": 5}, {"number": 101, "bytes": "Bw==\n"}, {"number": 102, "fixed32": 67305985}]"#), "{json}");

    // Text that is not UTF-8.
    let mut reg = vec![
        8, 1, 16, 0, 24, 0, 42, 10, 8, 0, 16, 0, 24, 0, 32, 0, 40, 0, 50, 7,
    ];
    reg.extend(b"/tmp/\xff\xfe");
    let bytes = image(REG_FILES, &[&reg]);
    assert!(check(&bytes, "bytes in a path"));
    assert!(
        text(&bytes).contains(r#""name": {"quoted_printable": "/tmp/=FF=FE"}"#),
        "{}",
        text(&bytes)
    );

    // Fields out of order and a number longer than it need be: the message is kept beside.
    let bytes = image(FS, &[&[16, 2, 8, 0x81, 0, 24, 18]]);
    assert!(check(&bytes, "not canonical"));
    assert!(
        text(&bytes).contains(r#""wire": "EAIIgQAYEg==\n""#),
        "{}",
        text(&bytes)
    );
}

#[test]
fn an_edit_of_a_message_that_was_not_canonical_counts() {
    let bytes = image(FS, &[&[16, 2, 8, 1, 24, 18]]);
    let edited = text(&bytes).replace(r#""umask": 18"#, r#""umask": 63"#);
    let again = encode(edited.as_bytes()).unwrap();
    assert_eq!(again, image(FS, &[&[8, 1, 16, 2, 24, 63]]));
}

#[test]
fn names_of_sockets_with_any_bytes() {
    let mut seed = 1u32;
    for length in 0..200usize {
        // Few different bytes, so that dots, blanks and line ends meet.
        let name: Vec<u8> = (0..length)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                [b'a', b'.', b' ', b'\t', b'\r', b'\n', b'=', 0, 0xff][(seed >> 16) as usize % 9]
            })
            .collect();
        let mut message = vec![
            8, 1, 16, 1, 24, 1, 32, 1, 40, 0, 48, 0, 56, 0, 64, 0, 74, 10, 8, 0, 16, 0, 24, 0, 32,
            0, 40, 0,
        ];
        message.extend([
            82,
            8,
            8,
            0,
            16,
            0,
            40,
            0,
            48,
            0,
            90,
            length as u8 & 0x7f | if length > 127 { 0x80 } else { 0 },
        ]);
        if length > 127 {
            message.push(1);
        }
        message.extend(&name);
        let bytes = image(UNIXSK, &[&message]);
        let lenient = DecodeOptions {
            lenient: true,
            ..OPTIONS
        };
        let json = String::from_utf8(decode(&bytes, lenient).unwrap()).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let shown = &json["entries"][0]["name"];
        let quoted = shown
            .as_str()
            .or_else(|| shown["quoted_printable"].as_str())
            .unwrap();
        assert_eq!(
            crust_image::json::quoted_printable::decode(quoted).unwrap(),
            name,
            "{quoted}"
        );
    }
}

#[test]
fn errors_name_entry_and_byte() {
    let bytes = image(FS, &[&[8, 1, 16, 2, 24, 18], &[8, 1, 16, 2, 24]]);
    let error = decode(&bytes, OPTIONS).unwrap_err().to_string();
    assert_eq!(
        error,
        "entry 1: byte 0x1b: field umask: the message ends inside a number"
    );
    let error = decode(&image(FS, &[&[8, 1]]), OPTIONS)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "entry 0: byte 0x8: the required field root_id is missing"
    );
    let mut wrong_head = image(FS, &[]);
    wrong_head[..4].copy_from_slice(&0x5510_5940u32.to_le_bytes());
    let error = decode(&wrong_head, OPTIONS).unwrap_err().to_string();
    assert_eq!(error, "byte 0x0: FS images do not begin with 0x55105940");
}

#[test]
fn json_that_does_not_fit_is_refused_by_place() {
    for (json, wanted) in [
        (
            r#"{"magic": "FS", "entries": [{"cwd_id": 1, "umask": 2}]}"#,
            "entry 0: the required field root_id is missing",
        ),
        (
            r#"{"magic": "FS", "entries": [{"cwd_id": -1, "root_id": 2, "umask": 0}]}"#,
            "entry 0: field cwd_id: -1 is out of range",
        ),
        (
            r#"{"magic": "FS", "entries": [{"cwd_id": null, "root_id": 2, "umask": 0}]}"#,
            "entry 0: field cwd_id: a number is meant to be here, not null",
        ),
        (
            r#"{"magic": "FS", "entries": [{"cwd": 1}]}"#,
            "entry 0: fs_entry has no field \"cwd\"",
        ),
        (
            r#"{"magic": "FOO", "entries": []}"#,
            "field magic: \"FOO\" is the magic of no image",
        ),
        (r#"{"entries": []}"#, "the key \"magic\" is missing"),
        (r#"{"magic": "FS"}"#, "the key \"entries\" is missing"),
        (
            r#"{"magic": "FS", "entries": [}"#,
            "line 1 column 29: a value is meant to be here, not `}`",
        ),
        (
            r#"{"magic": "PIPES_DATA", "entries": [{"pipe_id": 1, "bytes": 3, "extra": "YWI="}]}"#,
            "entry 0: field extra: 2 bytes where the message says 3",
        ),
        (
            r#"{"magic": "PIPES_DATA", "entries": [{"pipe_id": 1, "bytes": 3, "extra": "... <3B>"}]}"#,
            "left out (--nopl)",
        ),
        (
            r#"{"magic": "FDINFO", "entries": [{"id": 1, "flags": 0, "type": "NOPE", "fd": 0}]}"#,
            "entry 0: field type: \"NOPE\" is no value of fd_types",
        ),
        (
            r#"{"magic": "REG_FILES", "entries": [{"id": 1, "flags": "O_RDWR | O_NOPE"}]}"#,
            "entry 0: field flags: \"O_NOPE\" is no flag",
        ),
    ] {
        let error = encode(json.as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains(wanted),
            "{json}\n gave  {error}\n not   {wanted}"
        );
    }
}

#[test]
fn any_key_order_and_a_repeated_flag() {
    let bytes = encode(
        br#"{"entries": [{"umask": "0x12", "root_id": 2.0, "cwd_id": "1"}], "magic": "FS"}"#,
    )
    .unwrap();
    assert_eq!(bytes, image(FS, &[&[8, 1, 16, 2, 24, 18]]));
    let json = br#"{"magic": "PAGEMAP", "entries": [{"pages_id": 1}, {"vaddr": "0x1000", "compat_nr_pages": 0, "flags": "PE_PRESENT|PE_PRESENT | 0x10"}]}"#;
    let bytes = encode(json).unwrap();
    assert!(text(&bytes).contains(r#""flags": 20"#), "{}", text(&bytes));
}

#[test]
fn an_old_head_comes_back_when_asked_for() {
    let mut bytes = FS.to_le_bytes().to_vec();
    bytes.extend([6, 0, 0, 0, 8, 1, 16, 2, 24, 18]);
    let plain = decode(&bytes, DecodeOptions::COMPACT).unwrap();
    assert_eq!(
        encode(&plain).unwrap(),
        image(FS, &[&[8, 1, 16, 2, 24, 18]])
    );
    let kept = decode(&bytes, OPTIONS).unwrap();
    assert!(kept.starts_with(br#"{"magic": "FS", "image_version": "1.0", "entries""#));
    assert_eq!(encode(&kept).unwrap(), bytes);
}

#[test]
fn an_address_of_odd_length_stays_numbers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/corpus/tcp_est/img");
    let bytes = fs::read(root.join("files.img")).unwrap();
    let mut json: serde_json::Value =
        serde_json::from_slice(&decode(&bytes, OPTIONS).unwrap()).unwrap();
    let entries = json["entries"].as_array_mut().unwrap();
    let socket = entries.iter_mut().find(|entry| entry["isk"].is_object());
    let socket = &mut socket.expect("a socket")["isk"];
    socket["src_addr"] = serde_json::json!([16_777_343, 7]);
    let port = socket["src_port"].clone();
    let bytes = encode(json.to_string().as_bytes()).unwrap();
    let pretty = decode(&bytes, PRETTY).unwrap();
    assert_eq!(encode(&pretty).unwrap(), bytes);
    let pretty: serde_json::Value = serde_json::from_slice(&pretty).unwrap();
    let entries = pretty["entries"].as_array().unwrap();
    let same = |entry: &&serde_json::Value| entry["isk"]["src_port"] == port;
    let socket = entries.iter().find(same).expect("the socket");
    assert_eq!(
        socket["isk"]["src_addr"],
        serde_json::json!([16_777_343, 7])
    );
}

/// Fields in turns, none of them in order: what is merged or sorted one by one takes hours.
#[test]
fn a_large_message_out_of_order_takes_no_time() {
    // netns_entry: def_conf (1) and all_conf (2) are repeated numbers.
    let mut message = Vec::new();
    for turn in 0..400_000u32 {
        message.extend([if turn % 2 == 0 { 16 } else { 8 }, (turn % 100) as u8]);
    }
    let bytes = image(0x5593_3752, &[&message]);
    let kind = crust_image::json::FrameReader::open(bytes.as_slice()).map(|reader| reader.kind());
    assert_eq!(kind.ok(), Some(Kind::Netns));
    check(&bytes, "fields in turns");
    assert!(decode(&bytes, OPTIONS).is_ok());
    // core_entry.tc (3), again and again: each is merged with what was there.
    let mut message = Vec::new();
    for _ in 0..300_000 {
        message.extend([26, 2, 8, 1]);
    }
    check(&image(0x5505_3847, &[&message]), "a message in pieces");
}
