//! One message to JSON (`members` is the way back).
//!
//! The form is that of CRIU's crit. What that tool loses has forms of its own, which it ignores:
//! - a field outside the schema stands in `"unknown_fields"`, the last key of its message: an array
//!   of `{"number": N, "varint"|"fixed64"|"fixed32": VALUE}` or `{"number": N, "bytes": BASE64}`;
//! - an enum value without a name is its number;
//! - text that is not UTF-8 (and a unix name whose quoted-printable text would not come back) is
//!   `{"quoted_printable": TEXT}`, every byte outside 33..126, and `=`, as `=XX`.

use super::quoted_printable;
use super::tables::{flag_names, value_names};
use super::write::Sink;
use crate::dynamic::{Message, Scalar, UnknownField, UnknownValue, Value};
use crust_proto::schema::{FieldDef, FieldKind, Label};
use serde_json::Value as Json;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The key that holds what the schema does not know.
pub const UNKNOWN_FIELDS: &str = "unknown_fields";
/// The key of text that JSON cannot hold.
pub const QUOTED_PRINTABLE: &str = "quoted_printable";

/// A value in JSON that does not fit the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// E.g. `reg.flags` or `tc.timers.posix[2].clock_id`, relative to the entry.
    pub path: String,
    pub what: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            return f.write_str(&self.what);
        }
        write!(f, "field {}: {}", self.path, self.what)
    }
}

impl std::error::Error for FieldError {}

impl FieldError {
    pub(super) fn inside(mut self, outer: &str) -> FieldError {
        let dot = if self.path.is_empty() || self.path.starts_with('[') {
            ""
        } else {
            "."
        };
        self.path = format!("{outer}{dot}{}", self.path);
        self
    }
}

/// Writes a message as an object.
pub fn write_message<S: Sink + ?Sized>(
    sink: &mut S,
    message: &Message,
    pretty: bool,
) -> io::Result<()> {
    sink.begin_object()?;
    write_fields(sink, message, pretty, false)?;
    sink.end_object()
}

/// Writes the keys of a message. `hex` says that a field around it shows all numbers in hex.
pub fn write_fields<S: Sink + ?Sized>(
    sink: &mut S,
    message: &Message,
    pretty: bool,
    hex: bool,
) -> io::Result<()> {
    for same in message
        .fields()
        .chunk_by(|a, b| a.def.number == b.def.number)
    {
        let Some(first) = same.first() else { continue };
        let def = first.def;
        sink.key(def.name)?;
        if def.label != Label::Repeated {
            write_value(sink, def, &first.value, pretty, hex)?;
            continue;
        }
        sink.begin_array()?;
        let numbers = same.iter().map(|field| field.value.as_u64());
        match pretty.then(|| address(def, numbers)).flatten() {
            Some(address) => sink.string(&address)?,
            None => same
                .iter()
                .try_for_each(|field| write_value(sink, def, &field.value, pretty, hex))?,
        }
        sink.end_array()?;
    }
    write_unknown(sink, message.unknown())
}

fn write_unknown<S: Sink + ?Sized>(sink: &mut S, unknown: &[UnknownField]) -> io::Result<()> {
    if unknown.is_empty() {
        return Ok(());
    }
    sink.key(UNKNOWN_FIELDS)?;
    sink.begin_array()?;
    for field in unknown {
        sink.begin_object()?;
        sink.key("number")?;
        sink.unsigned(u64::from(field.number))?;
        match &field.value {
            UnknownValue::Varint(value) => sink.key("varint").and_then(|()| sink.unsigned(*value)),
            UnknownValue::Fixed64(value) => {
                sink.key("fixed64").and_then(|()| sink.unsigned(*value))
            }
            UnknownValue::Fixed32(value) => sink
                .key("fixed32")
                .and_then(|()| sink.unsigned(u64::from(*value))),
            UnknownValue::Bytes(bytes) => sink.key("bytes").and_then(|()| sink.base64_bytes(bytes)),
        }?;
        sink.end_object()?;
    }
    sink.end_array()
}

fn write_value<S: Sink + ?Sized>(
    sink: &mut S,
    def: &FieldDef,
    value: &Value,
    pretty: bool,
    hex: bool,
) -> io::Result<()> {
    let scalar = match value {
        Value::Message(message) => {
            sink.begin_object()?;
            write_fields(sink, message, pretty, hex || def.show.hex)?;
            return sink.end_object();
        }
        Value::Bool(value) => Scalar::Bool(*value),
        Value::Enum(number) => Scalar::Enum(*number),
        Value::Bytes(bytes) => Scalar::Bytes(bytes),
        Value::Unsigned(number) => Scalar::Unsigned(*number),
        Value::Signed(number) => Scalar::Signed(*number),
    };
    write_scalar(sink, def, scalar, pretty, hex)
}

/// Writes a value that is no message.
pub(super) fn write_scalar<S: Sink + ?Sized>(
    sink: &mut S,
    def: &FieldDef,
    value: Scalar<'_>,
    pretty: bool,
    hex: bool,
) -> io::Result<()> {
    match (value, &def.kind) {
        (Scalar::Bool(value), _) => sink.boolean(value),
        (Scalar::Enum(number), FieldKind::Enum(names)) => match names.name_of(number) {
            Some(name) => sink.string(name),
            None => sink.signed(number),
        },
        (Scalar::Bytes(bytes), FieldKind::String) => match std::str::from_utf8(bytes) {
            Ok(text) => sink.string(text),
            Err(_) => write_quoted(sink, bytes),
        },
        (Scalar::Bytes(bytes), _) if def.show.conv == Some("unix_name") => {
            let text = quoted_printable::encode(bytes);
            if quoted_printable::decode(&text).as_deref() == Some(bytes) {
                sink.string(&text)
            } else {
                write_quoted(sink, bytes)
            }
        }
        (Scalar::Bytes(bytes), _) => sink.base64_bytes(bytes),
        (Scalar::Unsigned(number), _) if !pretty => sink.unsigned(number),
        (Scalar::Unsigned(number), _) => match shown(def, number, hex) {
            Some(text) => sink.string(&text),
            None => sink.unsigned(number),
        },
        (Scalar::Signed(number) | Scalar::Enum(number), _) => {
            // Signed fields have no option but hex, and a negative number keeps its sign.
            if pretty && (hex || def.show.hex) {
                let sign = if number < 0 { "-" } else { "" };
                sink.string(&format!("{sign}{:#x}", number.unsigned_abs()))
            } else {
                sink.signed(number)
            }
        }
    }
}

fn write_quoted<S: Sink + ?Sized>(sink: &mut S, bytes: &[u8]) -> io::Result<()> {
    sink.begin_object()?;
    sink.key(QUOTED_PRINTABLE)?;
    sink.string(&quoted_printable::encode_strictly(bytes))?;
    sink.end_object()
}

/// The pretty text of an unsigned number, `None` for a plain number.
fn shown(def: &FieldDef, number: u64, hex: bool) -> Option<String> {
    let show = &def.show;
    if hex || show.hex {
        return Some(format!("{number:#x}"));
    }
    if show.dev {
        let (major, minor) = if show.odev {
            split_odev(number)
        } else {
            (number >> 20, number & 0xf_ffff)
        };
        return Some(format!("{major}:{minor}"));
    }
    if let Some(table) = show.flags {
        return Some(
            flag_names(table)
                .map_or_else(|| format!("{number:#x}"), |names| flags_text(names, number)),
        );
    }
    let names = value_names(show.dict?, def.name);
    names
        .iter()
        .find(|(_, value)| *value == number)
        .map(|(name, _)| (*name).to_owned())
}

/// The 64-bit device numbers of the C library (gnu_dev_major(3)).
fn split_odev(number: u64) -> (u64, u64) {
    let major = (number >> 8) & 0xfff | (number >> 32) & 0xffff_f000;
    (major, number & 0xff | (number >> 12) & 0xffff_ff00)
}

fn flags_text(names: &[(&str, u64)], number: u64) -> String {
    let set = names.iter().filter(|(_, bit)| number & bit != 0);
    let mut items: Vec<String> = set.clone().map(|(name, _)| (*name).to_owned()).collect();
    let rest = set.fold(number, |rest, (_, bit)| rest & !bit);
    if rest != 0 {
        items.push(format!("{rest:#x}"));
    }
    items.join(" | ")
}

/// The address in an `ipadd` field; other lengths than 1 and 4 words stay numbers.
pub(super) fn address(def: &FieldDef, values: impl Iterator<Item = Option<u64>>) -> Option<String> {
    if !def.show.ipadd {
        return None;
    }
    let words: Option<Vec<u32>> = values
        .map(|word| word.and_then(|word| u32::try_from(word).ok()))
        .collect();
    let words = words?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes.as_slice())
        .ok()
        .map(|v6| v6_text(Ipv6Addr::from(v6)))
}

/// As inet_ntop(3) has it: addresses of ::/96 end in a dotted quad unless they fit in 16 bits.
fn v6_text(address: Ipv6Addr) -> String {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
            format!(
                "::{}",
                Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))
            )
        }
        _ => address.to_string(),
    }
}

/// What a value is, for an error.
pub(crate) fn described(value: &Json) -> String {
    match value {
        Json::Null => "null".into(),
        Json::Bool(value) => value.to_string(),
        Json::Number(number) => number.to_string(),
        Json::String(text) if text.len() <= 40 => format!("\"{text}\""),
        Json::String(_) => "a long text".into(),
        Json::Array(_) => "an array".into(),
        Json::Object(_) => "an object".into(),
    }
}
