//! One message to JSON and back.
//!
//! The form is that of CRIU's crit. What that tool loses has forms of its own, which it ignores:
//! - a field outside the schema stands in `"unknown_fields"`, the last key of its message: an array
//!   of `{"number": N, "varint"|"fixed64"|"fixed32": VALUE}` or `{"number": N, "bytes": BASE64}`;
//! - an enum value without a name is its number;
//! - text that is not UTF-8 (and a unix name whose quoted-printable text would not come back) is
//!   `{"quoted_printable": TEXT}`, every byte outside 33..126, and `=`, as `=XX`.

use super::quoted_printable;
use super::read::decode_base64;
use super::tables::{flag_names, value_names};
use super::write::Sink;
use crate::dynamic::{Message, UnknownField, UnknownValue, Value};
use crust_proto::schema::{FieldDef, FieldKind, Label, MessageDef};
use serde_json::{Map, Value as Json};
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

type Result<T> = std::result::Result<T, FieldError>;

fn wrong(what: impl Into<String>) -> FieldError {
    FieldError {
        path: String::new(),
        what: what.into(),
    }
}

impl FieldError {
    fn inside(mut self, outer: &str) -> FieldError {
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
pub fn write_message(sink: &mut dyn Sink, message: &Message, pretty: bool) -> io::Result<()> {
    sink.begin_object()?;
    write_fields(sink, message, pretty, false)?;
    sink.end_object()
}

/// Writes the keys of a message. `hex` says that a field around it shows all numbers in hex.
pub fn write_fields(
    sink: &mut dyn Sink,
    message: &Message,
    pretty: bool,
    hex: bool,
) -> io::Result<()> {
    let mut rest = message.fields();
    while let Some(first) = rest.first() {
        let def = first.def;
        let same = rest
            .iter()
            .take_while(|field| field.def.number == def.number)
            .count();
        let (values, behind) = rest.split_at(same);
        rest = behind;
        sink.key(def.name)?;
        let values = values.iter().map(|field| &field.value);
        if def.label != Label::Repeated {
            values
                .take(1)
                .try_for_each(|value| write_value(sink, def, value, pretty, hex))?;
            continue;
        }
        sink.begin_array()?;
        match pretty.then(|| address(def, values.clone())).flatten() {
            Some(address) => sink.string(&address)?,
            None => values
                .into_iter()
                .try_for_each(|v| write_value(sink, def, v, pretty, hex))?,
        }
        sink.end_array()?;
    }
    write_unknown(sink, message.unknown())
}

fn write_unknown(sink: &mut dyn Sink, unknown: &[UnknownField]) -> io::Result<()> {
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

fn write_value(
    sink: &mut dyn Sink,
    def: &FieldDef,
    value: &Value,
    pretty: bool,
    hex: bool,
) -> io::Result<()> {
    match (value, &def.kind) {
        (Value::Message(message), _) => {
            sink.begin_object()?;
            write_fields(sink, message, pretty, hex || def.show.hex)?;
            sink.end_object()
        }
        (Value::Bool(value), _) => sink.boolean(*value),
        (Value::Enum(number), FieldKind::Enum(names)) => match names.name_of(*number) {
            Some(name) => sink.string(name),
            None => sink.signed(*number),
        },
        (Value::Bytes(bytes), FieldKind::String) => match std::str::from_utf8(bytes) {
            Ok(text) => sink.string(text),
            Err(_) => write_quoted(sink, bytes),
        },
        (Value::Bytes(bytes), _) if def.show.conv == Some("unix_name") => {
            let text = quoted_printable::encode(bytes);
            if quoted_printable::decode(&text).as_deref() == Some(bytes) {
                sink.string(&text)
            } else {
                write_quoted(sink, bytes)
            }
        }
        (Value::Bytes(bytes), _) => sink.base64_bytes(bytes),
        (Value::Unsigned(number), _) => match pretty.then(|| shown(def, *number, hex)).flatten() {
            Some(text) => sink.string(&text),
            None => sink.unsigned(*number),
        },
        (Value::Signed(number) | Value::Enum(number), _) => {
            // Signed fields have no option but hex, and a negative number keeps its sign.
            if pretty && (hex || def.show.hex) {
                let sign = if *number < 0 { "-" } else { "" };
                sink.string(&format!("{sign}{:#x}", number.unsigned_abs()))
            } else {
                sink.signed(*number)
            }
        }
    }
}

fn write_quoted(sink: &mut dyn Sink, bytes: &[u8]) -> io::Result<()> {
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

fn join_odev(major: u64, minor: u64) -> u64 {
    (major & 0xfff) << 8 | (major & 0xffff_f000) << 32 | minor & 0xff | (minor & 0xffff_ff00) << 12
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
fn address<'a>(def: &FieldDef, values: impl Iterator<Item = &'a Value>) -> Option<String> {
    if !def.show.ipadd {
        return None;
    }
    let words: Option<Vec<u32>> = values
        .map(|value| value.as_u64().and_then(|word| u32::try_from(word).ok()))
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

/// Builds a message from the members of an object. Every member must be a field; required fields
/// must be there.
pub fn read_message(def: &'static MessageDef, members: &Map<String, Json>) -> Result<Message> {
    let mut message = Message::new(def);
    for (key, value) in members {
        if key == UNKNOWN_FIELDS {
            read_unknown(&mut message, value).map_err(|error| error.inside(key))?;
            continue;
        }
        let Some(field) = def.field_named(key) else {
            return Err(wrong(unknown_key(def, key)));
        };
        read_field(&mut message, field, value).map_err(|error| error.inside(key))?;
    }
    for field in def.fields {
        if field.label == Label::Required && message.get(field.name).is_none() {
            return Err(wrong(format!(
                "the required field {} is missing",
                field.name
            )));
        }
    }
    Ok(message)
}

fn unknown_key(def: &MessageDef, key: &str) -> String {
    let names: Vec<&str> = def.fields.iter().map(|field| field.name).collect();
    format!(
        "{} has no field \"{key}\" (it has {})",
        def.name,
        names.join(", ")
    )
}

fn read_field(message: &mut Message, def: &'static FieldDef, value: &Json) -> Result<()> {
    if def.label != Label::Repeated {
        message.push(def, read_value(def, value)?);
        return Ok(());
    }
    let Json::Array(items) = value else {
        return Err(wrong(format!(
            "an array is meant to be here, not {}",
            described(value)
        )));
    };
    if let (true, Some(Json::String(text))) = (def.show.ipadd, items.first())
        && !text.starts_with("0x")
    {
        for word in read_address(text)? {
            message.push(def, Value::Unsigned(u64::from(word)));
        }
        return Ok(());
    }
    for (index, item) in items.iter().enumerate() {
        let value = read_value(def, item).map_err(|error| error.inside(&format!("[{index}]")))?;
        message.push(def, value);
    }
    Ok(())
}

fn read_address(text: &str) -> Result<Vec<u32>> {
    let bytes = match text.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(v4)) => v4.octets().to_vec(),
        Ok(std::net::IpAddr::V6(v6)) => v6.octets().to_vec(),
        Err(_) => return Err(wrong(format!("\"{text}\" is no address"))),
    };
    let words = bytes.chunks_exact(4);
    Ok(words
        .map(|word| {
            word.iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u32::from(*byte))
        })
        .collect())
}

fn read_value(def: &'static FieldDef, value: &Json) -> Result<Value> {
    Ok(match &def.kind {
        FieldKind::Message(inner) => {
            let Json::Object(members) = value else {
                return Err(wrong(format!(
                    "an object is meant to be here, not {}",
                    described(value)
                )));
            };
            Value::Message(Box::new(read_message(inner, members)?))
        }
        FieldKind::Bool => Value::Bool(match (value, value.as_u64()) {
            (Json::Bool(value), _) => *value,
            (_, Some(number @ (0 | 1))) => number == 1,
            _ => {
                return Err(wrong(format!(
                    "true or false is meant to be here, not {}",
                    described(value)
                )));
            }
        }),
        FieldKind::String | FieldKind::Bytes => Value::Bytes(read_bytes(def, value)?.into()),
        FieldKind::Enum(names) => {
            match value {
                Json::String(name) => match names.number_of(name) {
                    Some(number) => Value::Enum(i64::from(number)),
                    None => Value::Enum(in_range(plain_integer(name).map_err(|_| {
                        wrong(format!("\"{name}\" is no value of {}", names.name))
                    })?)?),
                },
                _ => Value::Enum(in_range(number(value)?)?),
            }
        }
        kind => {
            let number = match value {
                Json::String(text) => text_integer(def, text)?,
                _ => number(value)?,
            };
            ranged(kind, number)?
        }
    })
}

/// The bytes of a text or bytes field.
fn read_bytes(def: &FieldDef, value: &Json) -> Result<Vec<u8>> {
    let not_ascii = || wrong("quoted-printable text is ASCII");
    match value {
        Json::String(text) if matches!(def.kind, FieldKind::String) => {
            Ok(text.clone().into_bytes())
        }
        Json::String(text) if def.show.conv == Some("unix_name") => {
            quoted_printable::decode(text).ok_or_else(not_ascii)
        }
        Json::String(text) => decode_base64(text).map_err(wrong),
        Json::Object(members) if members.len() == 1 => match members.get(QUOTED_PRINTABLE) {
            Some(Json::String(text)) => quoted_printable::decode(text).ok_or_else(not_ascii),
            _ => Err(wrong(format!(
                "text or {{\"{QUOTED_PRINTABLE}\": text}} is meant to be here"
            ))),
        },
        _ => Err(wrong(format!(
            "text is meant to be here, not {}",
            described(value)
        ))),
    }
}

/// A number of a pretty field that stands as text.
fn text_integer(def: &FieldDef, text: &str) -> Result<i128> {
    let show = &def.show;
    let split = text.split_once(':').filter(|_| show.dev);
    if let Some((major, minor)) = split {
        let part = |part: &str| part.trim().parse::<u32>().map(u64::from).ok();
        let (Some(major), Some(minor)) = (part(major), part(minor)) else {
            return Err(wrong(format!("\"{text}\" is no major:minor")));
        };
        if show.odev {
            return Ok(i128::from(join_odev(major, minor)));
        }
        if minor > 0xf_ffff {
            return Err(wrong(format!(
                "minor number {minor} needs more than 20 bits"
            )));
        }
        return Ok(i128::from(major << 20 | minor));
    }
    if let Some(names) = show.flags.and_then(flag_names) {
        return flags_number(names, text);
    }
    let names = show
        .dict
        .map_or(&[][..], |dict| value_names(dict, def.name));
    match names.iter().find(|(name, _)| *name == text) {
        Some((_, number)) => Ok(i128::from(*number)),
        None => plain_integer(text),
    }
}

/// The bits of `A | B | 0x10`. A name that stands twice is one bit.
fn flags_number(names: &[(&str, u64)], text: &str) -> Result<i128> {
    if text.trim().is_empty() {
        return Ok(0);
    }
    text.split('|').map(str::trim).try_fold(0, |sum, item| {
        let named = names.iter().find(|(name, _)| *name == item);
        let bits = match named {
            Some((_, bits)) => i128::from(*bits),
            None => plain_integer(item)
                .map_err(|_| wrong(format!("\"{item}\" is no flag of this field and no number")))?,
        };
        Ok(sum | bits)
    })
}

/// Decimal, or with the prefix 0x, 0o or 0b; leading zeros are refused, as they could mean octal.
fn plain_integer(text: &str) -> Result<i128> {
    let no_number = || wrong(format!("\"{text}\" is no number"));
    let trimmed = text.trim();
    let (negative, digits) = match trimmed.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, trimmed),
    };
    let (radix, digits) = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (16, digits.get(2..).unwrap_or_default()),
        Some("0o") => (8, digits.get(2..).unwrap_or_default()),
        Some("0b") => (2, digits.get(2..).unwrap_or_default()),
        _ if digits.len() > 1 && digits.starts_with('0') => return Err(no_number()),
        _ => (10, digits),
    };
    if digits.starts_with(['+', '-']) {
        return Err(no_number());
    }
    let value = u64::from_str_radix(digits, radix).map_err(|_| no_number())?;
    Ok(if negative {
        -i128::from(value)
    } else {
        i128::from(value)
    })
}

fn number(value: &Json) -> Result<i128> {
    let Json::Number(number) = value else {
        return Err(wrong(format!(
            "a number is meant to be here, not {}",
            described(value)
        )));
    };
    if let Some(number) = number.as_u64() {
        return Ok(i128::from(number));
    }
    if let Some(number) = number.as_i64() {
        return Ok(i128::from(number));
    }
    // A tool in between may have written 3 as 3.0; beyond 2^53 it has lost digits.
    match number.as_f64() {
        Some(float) if float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0 => {
            Ok(float as i128)
        }
        _ => Err(wrong(format!("{number} is no whole number of 64 bits"))),
    }
}

fn in_range<T: TryFrom<i128>>(number: i128) -> Result<T> {
    T::try_from(number).map_err(|_| wrong(format!("{number} is out of range")))
}

fn ranged(kind: &FieldKind, number: i128) -> Result<Value> {
    Ok(match kind {
        FieldKind::Uint32 | FieldKind::Fixed32 => {
            Value::Unsigned(u64::from(in_range::<u32>(number)?))
        }
        FieldKind::Uint64 | FieldKind::Fixed64 => Value::Unsigned(in_range(number)?),
        FieldKind::Int32 | FieldKind::Sint32 | FieldKind::Sfixed32 => {
            Value::Signed(i64::from(in_range::<i32>(number)?))
        }
        _ => Value::Signed(in_range(number)?),
    })
}

fn read_unknown(message: &mut Message, value: &Json) -> Result<()> {
    let Json::Array(items) = value else {
        return Err(wrong(format!(
            "an array is meant to be here, not {}",
            described(value)
        )));
    };
    for (index, item) in items.iter().enumerate() {
        let field =
            unknown_field(message.def, item).map_err(|e| e.inside(&format!("[{index}]")))?;
        message.push_unknown(field);
    }
    Ok(())
}

fn unknown_field(def: &MessageDef, item: &Json) -> Result<UnknownField> {
    let form = || {
        wrong(
            "an object with \"number\" and one of \"varint\", \"fixed64\", \"fixed32\", \"bytes\" is meant to be here",
        )
    };
    let members = item
        .as_object()
        .filter(|members| members.len() == 2)
        .ok_or_else(form)?;
    let number: u32 = in_range(super::message::number(
        members.get("number").ok_or_else(form)?,
    )?)?;
    if number == 0 || number >= 1 << 29 {
        return Err(wrong(format!("{number} is no field number")));
    }
    if let Some(known) = def.field(number) {
        return Err(wrong(format!(
            "field {number} is {}: give it by its name",
            known.name
        )));
    }
    let (key, value) = members
        .iter()
        .find(|(key, _)| *key != "number")
        .ok_or_else(form)?;
    let value = match (key.as_str(), value) {
        ("varint", _) => UnknownValue::Varint(in_range(super::message::number(value)?)?),
        ("fixed64", _) => UnknownValue::Fixed64(in_range(super::message::number(value)?)?),
        ("fixed32", _) => UnknownValue::Fixed32(in_range(super::message::number(value)?)?),
        ("bytes", Json::String(text)) => {
            UnknownValue::Bytes(decode_base64(text).map_err(wrong)?.into())
        }
        _ => return Err(form()),
    };
    Ok(UnknownField { number, value })
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
