//! JSON to one message, read as it comes: each value goes where the schema says, no tree of the
//! JSON is built. What does not fit is told by the path of its field.

use super::message::{FieldError, QUOTED_PRINTABLE, UNKNOWN_FIELDS, described};
use super::quoted_printable;
use super::read::{ReadError, Reader, decode_base64};
use super::tables::{flag_names, value_names};
use crate::dynamic::{Message, UnknownField, UnknownValue, Value};
use crate::required::Seen;
use crust_proto::schema::{FieldDef, FieldKind, Label, MessageDef};
use serde_json::Value as Json;
use std::io::Read;

/// Text that is no JSON, or a value that does not fit the message.
#[derive(Debug)]
pub(super) enum MemberError {
    Json(ReadError),
    Field(FieldError),
}

impl From<ReadError> for MemberError {
    fn from(error: ReadError) -> Self {
        MemberError::Json(error)
    }
}

impl From<FieldError> for MemberError {
    fn from(error: FieldError) -> Self {
        MemberError::Field(error)
    }
}

impl MemberError {
    fn inside(self, outer: &str) -> MemberError {
        match self {
            MemberError::Field(error) => MemberError::Field(error.inside(outer)),
            other => other,
        }
    }
}

type Result<T, E = FieldError> = std::result::Result<T, E>;

fn wrong(what: impl Into<String>) -> FieldError {
    FieldError {
        path: String::new(),
        what: what.into(),
    }
}

fn not_here(wanted: &str, there: &Json) -> FieldError {
    wrong(format!(
        "{wanted} is meant to be here, not {}",
        described(there)
    ))
}

/// A key of an object that is to be a message.
pub(super) enum Key {
    Field(&'static FieldDef),
    Other(String),
}

impl Key {
    /// Reads a key of an object and finds its field.
    pub(super) fn read<R: Read>(
        members: &mut Members,
        from: &mut Reader<R>,
    ) -> Result<Key, ReadError> {
        let fields = members.message.def.fields;
        // Mostly the fields come in order, with those between left out.
        let (before, behind) = fields.split_at(members.next.min(fields.len()));
        from.key_with(|name| {
            let mut order = behind.iter().chain(before).enumerate();
            match order.find(|(_, field)| field.name == name) {
                Some((passed, field)) => {
                    members.next = (members.next + passed + 1) % fields.len();
                    Key::Field(field)
                }
                None => Key::Other(name.to_owned()),
            }
        })
    }
}

/// A message of which members are still to come.
pub(super) struct Members {
    message: Message,
    /// The index of the field behind the one last read.
    next: usize,
    seen: Seen,
    seen_unknown: bool,
}

impl Members {
    pub(super) fn new(def: &'static MessageDef) -> Members {
        Members {
            message: Message::new(def),
            next: 0,
            seen: Seen::default(),
            seen_unknown: false,
        }
    }

    /// Takes the value of `key`, which comes next. Every member must be a field.
    pub(super) fn take<R: Read>(
        &mut self,
        key: Key,
        from: &mut Reader<R>,
    ) -> Result<(), MemberError> {
        match key {
            Key::Field(field) => {
                let fields = self.message.def.fields;
                let at = fields.binary_search_by_key(&field.number, |field| field.number);
                if at.is_ok_and(|at| self.seen.insert(at)) {
                    return Err(twice(from, field.name).into());
                }
                read_field(&mut self.message, field, from).map_err(|error| error.inside(field.name))
            }
            Key::Other(name) if name == UNKNOWN_FIELDS => {
                if std::mem::replace(&mut self.seen_unknown, true) {
                    return Err(twice(from, &name).into());
                }
                let value = from.value()?;
                read_unknown(&mut self.message, &value).map_err(|error| error.inside(&name).into())
            }
            Key::Other(name) => Err(wrong(unknown_key(self.message.def, &name)).into()),
        }
    }

    /// The message; required fields must be there.
    pub(super) fn finish(mut self) -> Result<Message> {
        let mut fields = self.message.def.fields.iter().enumerate();
        let missing =
            fields.find(|(at, field)| field.label == Label::Required && !self.seen.contains(*at));
        if let Some((_, field)) = missing {
            return Err(wrong(format!(
                "the required field {} is missing",
                field.name
            )));
        }
        self.message.tidy_up();
        Ok(self.message)
    }
}

/// The error that a key of an object stands there for the second time.
pub(super) fn twice<R: Read>(from: &Reader<R>, key: &str) -> ReadError {
    from.error(format!("the key \"{key}\" stands twice in one object"))
}

/// Reads an object that is a message.
fn read_message<R: Read>(
    def: &'static MessageDef,
    from: &mut Reader<R>,
) -> Result<Message, MemberError> {
    if from.peek()? != Some(b'{') {
        return Err(not_here("an object", &from.value()?).into());
    }
    let mut members = Members::new(def);
    let mut more = from.open(b'{', b'}')?;
    while more {
        let key = Key::read(&mut members, from)?;
        members.take(key, from)?;
        more = from.more(b'}')?;
    }
    Ok(members.finish()?)
}

/// The message a tree holds.
pub(super) fn message_of(def: &'static MessageDef, value: &Json) -> Result<Message> {
    let text = value.to_string();
    read_message(def, &mut Reader::new(text.as_bytes())).map_err(|error| match error {
        MemberError::Field(error) => error,
        MemberError::Json(error) => wrong(error.to_string()),
    })
}

fn unknown_key(def: &MessageDef, key: &str) -> String {
    let names: Vec<&str> = def.fields.iter().map(|field| field.name).collect();
    format!(
        "{} has no field \"{key}\" (it has {})",
        def.name,
        names.join(", ")
    )
}

fn read_field<R: Read>(
    message: &mut Message,
    def: &'static FieldDef,
    from: &mut Reader<R>,
) -> Result<(), MemberError> {
    if def.label != Label::Repeated {
        let value = read_value(def, from)?;
        message.append(def, value);
        return Ok(());
    }
    if from.peek()? != Some(b'[') {
        return Err(not_here("an array", &from.value()?).into());
    }
    let mut more = from.open(b'[', b']')?;
    if def.show.ipadd && more && from.peek()? == Some(b'"') {
        return read_words(message, def, from);
    }
    let mut index = 0;
    while more {
        let value = read_value(def, from).map_err(|error| error.inside(&format!("[{index}]")))?;
        message.append(def, value);
        index += 1;
        more = from.more(b']')?;
    }
    Ok(())
}

/// The items of an array that is an address, or words as text. An address stands alone: CRIU's
/// crit ignores what follows it, which would lose it.
fn read_words<R: Read>(
    message: &mut Message,
    def: &'static FieldDef,
    from: &mut Reader<R>,
) -> Result<(), MemberError> {
    let mut more = true;
    while more {
        match from.value()? {
            Json::String(text) if !text.starts_with("0x") => {
                for word in read_address(&text)? {
                    message.append(def, Value::Unsigned(u64::from(word)));
                }
            }
            other => message.append(def, scalar(def, other)?),
        }
        more = from.more(b']')?;
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

fn read_value<R: Read>(def: &'static FieldDef, from: &mut Reader<R>) -> Result<Value, MemberError> {
    if let FieldKind::Message(inner) = def.kind {
        return Ok(Value::Message(Box::new(read_message(inner, from)?)));
    }
    let value = from.value()?;
    Ok(scalar(def, value)?)
}

/// The value of a field that is no message.
fn scalar(def: &FieldDef, value: Json) -> Result<Value> {
    Ok(match &def.kind {
        FieldKind::Message(_) => return Err(not_here("an object", &value)),
        FieldKind::Bool => Value::Bool(match (&value, value.as_u64()) {
            (Json::Bool(value), _) => *value,
            (_, Some(number @ (0 | 1))) => number == 1,
            _ => return Err(not_here("true or false", &value)),
        }),
        FieldKind::String | FieldKind::Bytes => Value::Bytes(read_bytes(def, value)?.into()),
        FieldKind::Enum(names) => {
            match &value {
                Json::String(name) => match names.number_of(name) {
                    Some(number) => Value::Enum(i64::from(number)),
                    None => Value::Enum(in_range(plain_integer(name).map_err(|_| {
                        wrong(format!("\"{name}\" is no value of {}", names.name))
                    })?)?),
                },
                _ => Value::Enum(in_range(number(&value)?)?),
            }
        }
        kind => {
            let number = match &value {
                Json::String(text) => text_integer(def, text)?,
                _ => number(&value)?,
            };
            ranged(kind, number)?
        }
    })
}

/// The bytes of a text or bytes field.
fn read_bytes(def: &FieldDef, value: Json) -> Result<Vec<u8>> {
    let not_ascii = || wrong("quoted-printable text is ASCII");
    match value {
        Json::String(text) if matches!(def.kind, FieldKind::String) => Ok(text.into_bytes()),
        Json::String(text) if def.show.conv == Some("unix_name") => {
            quoted_printable::decode(&text).ok_or_else(not_ascii)
        }
        Json::String(text) => decode_base64(&text).map_err(wrong),
        Json::Object(members) if members.len() == 1 => match members.get(QUOTED_PRINTABLE) {
            Some(Json::String(text)) => quoted_printable::decode(text).ok_or_else(not_ascii),
            _ => Err(wrong(format!(
                "text or {{\"{QUOTED_PRINTABLE}\": text}} is meant to be here"
            ))),
        },
        other => Err(not_here("text", &other)),
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
        return Err(not_here("a number", value));
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
        return Err(not_here("an array", value));
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
    let number: u32 = in_range(self::number(members.get("number").ok_or_else(form)?)?)?;
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
        ("varint", _) => UnknownValue::Varint(in_range(self::number(value)?)?),
        ("fixed64", _) => UnknownValue::Fixed64(in_range(self::number(value)?)?),
        ("fixed32", _) => UnknownValue::Fixed32(in_range(self::number(value)?)?),
        ("bytes", Json::String(text)) => {
            UnknownValue::Bytes(decode_base64(text).map_err(wrong)?.into())
        }
        _ => return Err(form()),
    };
    Ok(UnknownField { number, value })
}

fn join_odev(major: u64, minor: u64) -> u64 {
    (major & 0xfff) << 8 | (major & 0xffff_f000) << 32 | minor & 0xff | (minor & 0xffff_ff00) << 12
}
