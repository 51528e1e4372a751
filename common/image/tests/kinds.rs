//! Every kind of image with every field of its messages set, and with as few as may be: to JSON in
//! both forms and back. It holds the kinds that CRIU's crit lacks, too (PIDFD, SIGNAL, BINFMT_MISC,
//! segments with content, bpf maps), of which the corpus has no example.

use crust_image::Kind;
use crust_image::dynamic::{Message, UnknownField, UnknownValue, Value};
use crust_image::json::frame::{Entry, Version};
use crust_image::json::{
    DecodeOptions, EncodeOptions, Image, Layout, Payloads, Reader, Writer, image_to_json,
    json_to_image,
};
use crust_image::kind::{Framing, Payload};
use crust_proto::schema::{self, FieldDef, FieldKind, Label, MessageDef};

/// A message with all fields, or only the required ones. `seed` makes values differ.
fn filled(def: &'static MessageDef, all: bool, depth: usize, seed: &mut u64) -> Message {
    let mut message = Message::new(def);
    for field in def.fields {
        let wanted = field.label == Label::Required || (all && depth < 4);
        let times = if !wanted {
            0
        } else if field.label == Label::Repeated {
            4
        } else {
            1
        };
        for _ in 0..times {
            let value = value(field, all, depth, seed);
            message.push(field, value);
        }
    }
    if all {
        message.push_unknown(UnknownField {
            number: 4000,
            value: UnknownValue::Varint(u64::MAX),
        });
        message.push_unknown(UnknownField {
            number: 4001,
            value: UnknownValue::Fixed64(1 << 60),
        });
    }
    message
}

fn value(field: &FieldDef, all: bool, depth: usize, seed: &mut u64) -> Value {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    let number = *seed >> 8;
    match field.kind {
        FieldKind::Message(inner) => Value::Message(Box::new(filled(inner, all, depth + 1, seed))),
        FieldKind::Bool => Value::Bool(number & 1 == 1),
        FieldKind::String => Value::Bytes(
            format!("/t\u{e9}xt \"{}\"\n", number % 97)
                .into_bytes()
                .into(),
        ),
        FieldKind::Bytes => Value::Bytes(number.to_le_bytes().into()),
        // Some have names and some have none.
        FieldKind::Enum(_) => Value::Enum((number % 30) as i64),
        FieldKind::Uint32 | FieldKind::Fixed32 => Value::Unsigned(u64::from(number as u32)),
        FieldKind::Uint64 | FieldKind::Fixed64 => Value::Unsigned(number << 8 | number),
        FieldKind::Int32 | FieldKind::Sint32 | FieldKind::Sfixed32 => {
            Value::Signed(i64::from(number as i32))
        }
        FieldKind::Int64 | FieldKind::Sint64 | FieldKind::Sfixed64 => {
            Value::Signed(number as i64 - (1 << 54))
        }
    }
}

fn set(message: &mut Message, name: &str, value: u64) {
    if let Some(there) = message.get_mut(name) {
        *there = Value::Unsigned(value);
    }
}

/// Makes the lengths in a message those of a payload, which is given.
fn payload(kind: Kind, message: &mut Message, first: bool) -> Vec<u8> {
    let bytes: Vec<u8> = (0..200u8).collect();
    let take = |count: usize| bytes[..count].to_vec();
    match kind.spec().payload {
        Payload::None => Vec::new(),
        Payload::PipeData => {
            set(message, "bytes", 117);
            take(117)
        }
        Payload::SkPacket => {
            set(message, "length", 3);
            take(3)
        }
        Payload::TcpStream => {
            set(message, "inq_len", 60);
            set(message, "outq_len", 57);
            take(117)
        }
        Payload::BpfmapData => {
            set(message, "keys_bytes", 8);
            set(message, "values_bytes", 58);
            take(66)
        }
        Payload::IpcSem => {
            set(message, "nsems", 5);
            [take(10), vec![0; 6]].concat()
        }
        Payload::IpcMsg => {
            set(message, "qnum", 1);
            let def = schema::message("ipc_msg").unwrap();
            let mut head = filled(def, false, 0, &mut 7);
            set(&mut head, "msize", 11);
            let head = head.encode();
            [
                (head.len() as u32).to_le_bytes().to_vec(),
                head,
                take(11),
                vec![0; 5],
            ]
            .concat()
        }
        Payload::IpcShm => {
            if message.flag("in_pagemaps") {
                return Vec::new();
            }
            set(message, "size", 9);
            [take(9), vec![0; 3]].concat()
        }
        Payload::GhostFile if first && message.flag("chunks") => Vec::new(),
        Payload::GhostFile if first => take(130),
        Payload::GhostFile => {
            set(message, "len", 58);
            take(58)
        }
    }
}

fn round_trip(image: &Image) {
    let name = image.kind.spec().name;
    let mut bytes = Vec::new();
    image.write(&mut bytes).unwrap();
    for pretty in [false, true] {
        for layout in [Layout::Compact, Layout::Pretty] {
            let options = DecodeOptions {
                pretty,
                keep_version: true,
                ..DecodeOptions::COMPACT
            };
            let mut writer = Writer::new(Vec::new(), layout);
            image_to_json(bytes.as_slice(), &mut writer, options)
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            let json = writer.finish().unwrap();
            let mut again = Vec::new();
            json_to_image(
                &mut Reader::new(json.as_slice()),
                &mut again,
                EncodeOptions::default(),
            )
            .unwrap_or_else(|error| panic!("{name}: {error}\n{}", String::from_utf8_lossy(&json)));
            assert!(
                again == bytes,
                "{name}, pretty {pretty}\n{}",
                String::from_utf8_lossy(&json)
            );
        }
    }
    let options = DecodeOptions {
        payloads: Payloads::Size,
        ..DecodeOptions::COMPACT
    };
    let mut writer = Writer::new(Vec::new(), Layout::Compact);
    image_to_json(bytes.as_slice(), &mut writer, options)
        .unwrap_or_else(|error| panic!("{name} without payload: {error}"));
    let (_, count) = crust_image::json::decode::count_entries(bytes.as_slice()).unwrap();
    assert_eq!(count, image.entries.len() as u64, "{name}");
}

#[test]
fn every_kind_comes_back() {
    let mut kinds = 0;
    let mut seed = 1;
    for kind in Kind::ALL.iter().copied() {
        if kind.spec().framing == Framing::Raw
            || kind.message_at(0).is_none()
            || Kind::by_magic(kind.spec().magic) != Some(kind)
        {
            continue;
        }
        kinds += 1;
        for (all, version) in [
            (true, Version::V1_1),
            (false, Version::V1_1),
            (true, Version::V1_0),
        ] {
            let version = if kind.spec().framing == Framing::Bare {
                Version::V1_1
            } else {
                version
            };
            for flag in [false, true] {
                let mut entries = Vec::new();
                for index in 0..3 {
                    let def = schema::message(kind.message_at(index).unwrap()).unwrap();
                    let mut message = filled(def, all, 0, &mut seed);
                    // Segments with and without content, ghost files whole and in chunks.
                    for name in ["in_pagemaps", "chunks"] {
                        if let Some(there) = message.get_mut(name) {
                            *there = Value::Bool(flag);
                        }
                    }
                    let whole_ghost =
                        kind == Kind::GhostFile && !message.flag("chunks") && index == 0;
                    let payload = payload(kind, &mut message, index == 0);
                    entries.push((
                        Entry {
                            index,
                            offset: 0,
                            message,
                            wire: None,
                        },
                        payload,
                    ));
                    if whole_ghost {
                        break;
                    }
                }
                round_trip(&Image {
                    kind,
                    version,
                    entries,
                });
            }
        }
        round_trip(&Image {
            kind,
            version: Version::V1_1,
            entries: Vec::new(),
        });
    }
    assert!(kinds >= 68, "only {kinds}");
}

/// The sizes --nopl shows, by kind (CRIT-JSON section 4).
#[test]
fn sizes_in_place_of_payloads() {
    let mut seed = 3;
    for (kind, wanted) in [
        (Kind::PipesData, "... <117B>"),
        (Kind::SkQueues, "... <3B>"),
        (Kind::TcpStream, "... <117B>"),
        (Kind::BpfmapData, "... <66B>"),
        (Kind::IpcnsSem, "... <10B>"),
        (Kind::IpcnsShm, "... <9B>"),
    ] {
        let def = schema::message(kind.message_at(0).unwrap()).unwrap();
        let mut message = filled(def, false, 0, &mut seed);
        let payload = payload(kind, &mut message, true);
        let image = Image {
            kind,
            version: Version::V1_1,
            entries: vec![(
                Entry {
                    index: 0,
                    offset: 0,
                    message,
                    wire: None,
                },
                payload,
            )],
        };
        let mut bytes = Vec::new();
        image.write(&mut bytes).unwrap();
        let options = DecodeOptions {
            payloads: Payloads::Size,
            ..DecodeOptions::COMPACT
        };
        let mut writer = Writer::new(Vec::new(), Layout::Compact);
        image_to_json(bytes.as_slice(), &mut writer, options).unwrap();
        let json = String::from_utf8(writer.finish().unwrap()).unwrap();
        assert!(
            json.ends_with(&format!("\"extra\": \"{wanted}\"}}]}}")),
            "{json}"
        );
    }
}
