//! A message as the wire holds it, driven by the schema instead of generated types.
//!
//! crit must give back the bytes it read: fields this build does not know, enum values without a
//! name, strings that are not UTF-8. A typed message drops the first, a descriptor pool refuses
//! the last and costs milliseconds to build, so this is a small codec of its own over the constant
//! tables of `crust_proto::schema`. It knows the wire format of protobuf (developers.google.com/
//! protocol-buffers/docs/encoding) without groups, which no image has.

use crust_proto::schema::{FieldDef, FieldKind, Label, MessageDef};
use std::fmt;

/// How deep messages may nest. The deepest schema (AppArmor namespaces, cgroup directories) is
/// recursive, so a hostile image could otherwise exhaust the stack.
const MAX_DEPTH: usize = 64;

/// One message: its known fields in ascending number, and what the schema does not know.
#[derive(Debug, Clone)]
pub struct Message {
    pub def: &'static MessageDef,
    fields: Vec<Field>,
    unknown: Vec<UnknownField>,
    /// The number of the field read last, and whether all before stood in the canonical form.
    last: u32,
    canonical: bool,
}

/// One occurrence of a field. A repeated field has several in a row.
#[derive(Debug, Clone)]
pub struct Field {
    pub def: &'static FieldDef,
    pub value: Value,
}

/// The value of one occurrence.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Bool(bool),
    /// The number, with a name or not.
    Enum(i64),
    /// `bytes` and `string` fields alike.
    Bytes(Box<[u8]>),
    Message(Box<Message>),
}

/// A field whose number is not in the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownField {
    pub number: u32,
    pub value: UnknownValue,
}

/// What can be told of such a field without its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnknownValue {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Box<[u8]>),
}

/// Bytes that are no such message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireError {
    /// Bytes from the start of the outermost message.
    pub offset: usize,
    /// The field's path, e.g. `reg.fown`, empty when no field was reached.
    pub field: String,
    pub what: &'static str,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            return f.write_str(self.what);
        }
        write!(f, "field {}: {}", self.field, self.what)
    }
}

impl std::error::Error for WireError {}

/// Two messages are equal when they say the same: order and form on the wire do not count.
impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self.def, other.def)
            && self.unknown == other.unknown
            && self.fields.len() == other.fields.len()
            && self
                .fields
                .iter()
                .zip(&other.fields)
                .all(|(a, b)| a.def.number == b.def.number && a.value == b.value)
    }
}

impl Message {
    /// A message without any field.
    pub fn new(def: &'static MessageDef) -> Message {
        Message {
            def,
            fields: Vec::new(),
            unknown: Vec::new(),
            last: 0,
            canonical: true,
        }
    }

    /// Reads a whole message. Required fields are not asked for: see [`Message::first_missing`].
    pub fn decode(def: &'static MessageDef, bytes: &[u8]) -> Result<Message, WireError> {
        let mut message = Message::new(def);
        message.merge(
            Cursor {
                bytes,
                at: 0,
                base: 0,
                canonical: true,
            },
            0,
        )?;
        Ok(message)
    }

    /// Whether the bytes it was read from are those [`Message::encode`] gives, which is the form
    /// CRIU writes. Says nothing any more once the message was changed.
    pub fn was_canonical(&self) -> bool {
        self.canonical
    }

    /// The known fields in ascending number.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The known fields, to change their values in place.
    pub fn fields_mut(&mut self) -> impl Iterator<Item = (&'static FieldDef, &mut Value)> {
        self.fields
            .iter_mut()
            .map(|field| (field.def, &mut field.value))
    }

    /// The fields outside the schema, in ascending number.
    pub fn unknown(&self) -> &[UnknownField] {
        &self.unknown
    }

    /// Adds one occurrence behind those already there.
    pub fn push(&mut self, def: &'static FieldDef, value: Value) {
        let field = Field { def, value };
        match self.fields.last() {
            Some(last) if last.def.number > def.number => {
                let at = self.fields.partition_point(|f| f.def.number <= def.number);
                self.fields.insert(at, field);
            }
            _ => self.fields.push(field),
        }
    }

    /// Adds a field the schema does not know.
    pub fn push_unknown(&mut self, field: UnknownField) {
        let at = self.unknown.partition_point(|f| f.number <= field.number);
        self.unknown.insert(at, field);
    }

    /// The first occurrence of the named field.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.fields
            .iter()
            .find(|field| field.def.name == name)
            .map(|field| &field.value)
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Value> {
        self.fields
            .iter_mut()
            .find(|field| field.def.name == name)
            .map(|field| &mut field.value)
    }

    /// Every occurrence of the named field.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.fields
            .iter()
            .filter(move |field| field.def.name == name)
            .map(|field| &field.value)
    }

    /// An unsigned, enum or non-negative signed number.
    pub fn u64(&self, name: &str) -> Option<u64> {
        self.get(name).and_then(Value::as_u64)
    }

    /// Any number that fits.
    pub fn i64(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(Value::as_i64)
    }

    /// A bool field; absent counts as false.
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Value::Bool(true)))
    }

    /// The bytes of a `bytes` or `string` field.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        match self.get(name) {
            Some(Value::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// A sub-message.
    pub fn message(&self, name: &str) -> Option<&Message> {
        self.get(name).and_then(Value::as_message)
    }

    /// Every sub-message of a repeated field.
    pub fn messages<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Message> {
        self.all(name).filter_map(Value::as_message)
    }

    /// The path of the first required field that is not there, sub-messages included.
    pub fn first_missing(&self) -> Option<String> {
        // Both lists ascend in number.
        let mut there = self.fields.iter().map(|field| field.def.number).peekable();
        for field in self.def.fields {
            while there.next_if(|number| *number < field.number).is_some() {}
            if field.label == Label::Required && there.peek() != Some(&field.number) {
                return Some(field.name.to_owned());
            }
        }
        self.fields.iter().find_map(|field| {
            let inner = field.value.as_message()?.first_missing()?;
            Some(format!("{}.{inner}", field.def.name))
        })
    }

    /// The message in canonical form: fields in ascending number, known and unknown together,
    /// shortest varints, no packed fields. It is the form CRIU writes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out
    }

    fn encode_into(&self, out: &mut Vec<u8>) {
        let mut unknown = self.unknown.iter().peekable();
        for field in &self.fields {
            while let Some(extra) = unknown.next_if(|extra| extra.number < field.def.number) {
                extra.encode_into(out);
            }
            field.encode_into(out);
        }
        unknown.for_each(|extra| extra.encode_into(out));
    }

    fn merge(&mut self, mut from: Cursor<'_>, depth: usize) -> Result<(), WireError> {
        // Each field takes at least two bytes, and most messages have each of theirs once.
        self.fields
            .reserve(self.def.fields.len().min(from.bytes.len() / 2));
        while !from.is_empty() {
            let start = from.offset();
            let key = from.varint()?;
            let number =
                u32::try_from(key >> 3).map_err(|_| at(start, "field number out of range"))?;
            if !(1..1 << 29).contains(&number) {
                return Err(at(start, "field number out of range"));
            }
            let wire_type = (key & 7) as u8;
            let ascending = number > self.last;
            self.canonical &= number >= self.last;
            self.last = number;
            let Some(def) = self.def.field(number) else {
                self.push_unknown(UnknownField {
                    number,
                    value: from.unknown(wire_type)?,
                });
                continue;
            };
            self.canonical &= ascending || def.label == Label::Repeated;
            self.merge_field(def, wire_type, &mut from, depth)
                .map_err(|mut error| {
                    let dot = if error.field.is_empty() { "" } else { "." };
                    error.field = format!("{}{dot}{}", def.name, error.field);
                    error
                })?;
        }
        self.canonical &= from.canonical;
        Ok(())
    }

    fn merge_field(
        &mut self,
        def: &'static FieldDef,
        wire_type: u8,
        from: &mut Cursor<'_>,
        depth: usize,
    ) -> Result<(), WireError> {
        let start = from.offset();
        match (wire_type, wire_type_of(&def.kind)) {
            (2, 2) => {
                let inner = from.length_delimited()?;
                let FieldKind::Message(inner_def) = def.kind else {
                    self.set_or_push(def, Value::Bytes(inner.bytes.into()));
                    return Ok(());
                };
                if depth >= MAX_DEPTH {
                    return Err(at(start, "messages nested too deep"));
                }
                // A message that comes twice is merged, as the encoding guide asks.
                if def.label != Label::Repeated
                    && let Some(Value::Message(there)) = self.there(def.number)
                {
                    return there.merge(inner, depth + 1);
                }
                let mut message = Message::new(inner_def);
                message.merge(inner, depth + 1)?;
                self.canonical &= message.canonical;
                self.push(def, Value::Message(Box::new(message)));
            }
            (given, meant) if given == meant => {
                let value = from.scalar(&def.kind)?;
                self.set_or_push(def, value);
            }
            (2, _) if def.label == Label::Repeated => {
                self.canonical = false;
                let mut packed = from.length_delimited()?;
                while !packed.is_empty() {
                    let value = packed.scalar(&def.kind)?;
                    self.push(def, value);
                }
            }
            _ => return Err(at(start, "its wire type does not fit the schema")),
        }
        Ok(())
    }

    fn there(&mut self, number: u32) -> Option<&mut Value> {
        if self.fields.last()?.def.number < number {
            return None;
        }
        let mut fields = self.fields.iter_mut();
        fields
            .find(|field| field.def.number == number)
            .map(|field| &mut field.value)
    }

    /// The last occurrence of a field that is not repeated wins.
    fn set_or_push(&mut self, def: &'static FieldDef, value: Value) {
        if def.label != Label::Repeated
            && let Some(there) = self.there(def.number)
        {
            *there = value;
            return;
        }
        self.push(def, value);
    }
}

impl Value {
    /// The number, unless it is negative or no number.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) | Value::Enum(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    /// The number, unless it is above `i64::MAX` or no number.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Value::Unsigned(number) => i64::try_from(*number).ok(),
            Value::Signed(number) | Value::Enum(number) => Some(*number),
            _ => None,
        }
    }

    /// The sub-message.
    pub fn as_message(&self) -> Option<&Message> {
        match self {
            Value::Message(message) => Some(message),
            _ => None,
        }
    }

    /// The bytes of a `bytes` or `string` value.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}

impl Field {
    fn encode_into(&self, out: &mut Vec<u8>) {
        let number = self.def.number;
        let kind = &self.def.kind;
        match &self.value {
            Value::Message(message) => put_bytes(out, number, &message.encode()),
            Value::Bytes(bytes) => put_bytes(out, number, bytes),
            Value::Bool(value) => put_varint_field(out, number, u64::from(*value)),
            Value::Enum(value) => put_varint_field(out, number, value.cast_unsigned()),
            Value::Unsigned(value) => put_scalar(out, number, kind, *value),
            Value::Signed(value) => {
                let zigzag = matches!(kind, FieldKind::Sint32 | FieldKind::Sint64);
                let raw = if zigzag {
                    (value << 1) ^ (value >> 63)
                } else {
                    *value
                };
                put_scalar(out, number, kind, raw.cast_unsigned());
            }
        }
    }
}

impl UnknownField {
    fn encode_into(&self, out: &mut Vec<u8>) {
        match &self.value {
            UnknownValue::Varint(value) => put_varint_field(out, self.number, *value),
            UnknownValue::Bytes(bytes) => put_bytes(out, self.number, bytes),
            UnknownValue::Fixed64(value) => {
                put_key(out, self.number, 1);
                out.extend_from_slice(&value.to_le_bytes());
            }
            UnknownValue::Fixed32(value) => {
                put_key(out, self.number, 5);
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
    }
}

fn put_key(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
    put_key(out, number, 0);
    put_varint(out, value);
}

fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_key(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn put_scalar(out: &mut Vec<u8>, number: u32, kind: &FieldKind, raw: u64) {
    match wire_type_of(kind) {
        1 => {
            put_key(out, number, 1);
            out.extend_from_slice(&raw.to_le_bytes());
        }
        5 => {
            put_key(out, number, 5);
            out.extend_from_slice(&(raw as u32).to_le_bytes());
        }
        _ => put_varint_field(out, number, raw),
    }
}

fn wire_type_of(kind: &FieldKind) -> u8 {
    match kind {
        FieldKind::Fixed64 | FieldKind::Sfixed64 => 1,
        FieldKind::String | FieldKind::Bytes | FieldKind::Message(_) => 2,
        FieldKind::Fixed32 | FieldKind::Sfixed32 => 5,
        _ => 0,
    }
}

fn at(offset: usize, what: &'static str) -> WireError {
    WireError {
        offset,
        field: String::new(),
        what,
    }
}

/// A place in the bytes of a message; `base` is where they begin in the outermost one.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    base: usize,
    /// No number so far had a shorter form.
    canonical: bool,
}

impl<'a> Cursor<'a> {
    fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn offset(&self) -> usize {
        self.base + self.at
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| at(self.offset(), "the message ends inside the field"))?;
        self.at += count;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let start = self.offset();
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let Some(byte) = self.bytes.get(self.at) else {
                return Err(at(start, "the message ends inside a number"));
            };
            self.at += 1;
            // The tenth byte has room for one bit; what is above it is lost, so it is refused.
            if shift == 63 && byte & 0x7e != 0 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                self.canonical &= *byte != 0 || shift == 0;
                return Ok(value);
            }
        }
        Err(at(start, "a number of more than 64 bits"))
    }

    fn length_delimited(&mut self) -> Result<Cursor<'a>, WireError> {
        let start = self.offset();
        let length = self.varint()?;
        let length = usize::try_from(length).map_err(|_| at(start, "length out of range"))?;
        let base = self.offset();
        Ok(Cursor {
            bytes: self.take(length)?,
            at: 0,
            base,
            canonical: true,
        })
    }

    fn fixed32(&mut self) -> Result<u32, WireError> {
        let bytes = self.take(4)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn fixed64(&mut self) -> Result<u64, WireError> {
        let bytes = self.take(8)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// A number of which the low 32 bits count.
    fn varint32(&mut self) -> Result<u32, WireError> {
        let raw = self.varint()?;
        self.canonical &= raw <= u64::from(u32::MAX);
        Ok(raw as u32)
    }

    fn scalar(&mut self, kind: &FieldKind) -> Result<Value, WireError> {
        Ok(match kind {
            FieldKind::Uint32 => Value::Unsigned(u64::from(self.varint32()?)),
            FieldKind::Uint64 => Value::Unsigned(self.varint()?),
            FieldKind::Int32 => {
                // Negative numbers take ten bytes: the sign goes up to bit 63.
                let raw = self.varint()?.cast_signed();
                self.canonical &= i32::try_from(raw).is_ok();
                Value::Signed(i64::from(raw as i32))
            }
            FieldKind::Int64 => Value::Signed(self.varint()?.cast_signed()),
            FieldKind::Sint32 => Value::Signed(unzigzag(u64::from(self.varint32()?))),
            FieldKind::Sint64 => Value::Signed(unzigzag(self.varint()?)),
            FieldKind::Bool => {
                let raw = self.varint()?;
                self.canonical &= raw <= 1;
                Value::Bool(raw != 0)
            }
            FieldKind::Enum(_) => Value::Enum(self.varint()?.cast_signed()),
            FieldKind::Fixed32 => Value::Unsigned(u64::from(self.fixed32()?)),
            FieldKind::Sfixed32 => Value::Signed(i64::from(self.fixed32()?.cast_signed())),
            FieldKind::Fixed64 => Value::Unsigned(self.fixed64()?),
            FieldKind::Sfixed64 => Value::Signed(self.fixed64()?.cast_signed()),
            FieldKind::String | FieldKind::Bytes | FieldKind::Message(_) => {
                return Err(at(self.offset(), "its wire type does not fit the schema"));
            }
        })
    }

    fn unknown(&mut self, wire_type: u8) -> Result<UnknownValue, WireError> {
        let start = self.offset();
        Ok(match wire_type {
            0 => UnknownValue::Varint(self.varint()?),
            1 => UnknownValue::Fixed64(self.fixed64()?),
            2 => UnknownValue::Bytes(self.length_delimited()?.bytes.into()),
            5 => UnknownValue::Fixed32(self.fixed32()?),
            _ => return Err(at(start, "unknown field of a wire type that no image has")),
        })
    }
}

fn unzigzag(raw: u64) -> i64 {
    ((raw >> 1) as i64) ^ -((raw & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_proto::schema;

    fn def(name: &str) -> &'static MessageDef {
        schema::message(name).expect("a message of the schema")
    }

    #[test]
    fn unknown_fields_keep_their_place() {
        // pipe_data_entry { pipe_id: 7, bytes: 0 } with field 100 (bytes) behind.
        let bytes = [8, 7, 16, 0, 0xa2, 6, 2, 1, 2];
        let message = Message::decode(def("pipe_data_entry"), &bytes).unwrap();
        assert_eq!(message.u64("pipe_id"), Some(7));
        assert_eq!(message.unknown().len(), 1);
        assert_eq!(message.encode(), bytes);
    }

    #[test]
    fn negative_and_zigzag_numbers() {
        for value in [-1, 0, 1, i64::from(i32::MIN), i64::from(i32::MAX)] {
            for (name, field) in [("autofs_entry", "fd"), ("reg_file_entry", "mnt_id")] {
                let def = def(name);
                let mut message = Message::new(def);
                message.push(def.field_named(field).unwrap(), Value::Signed(value));
                let again = Message::decode(def, &message.encode()).unwrap();
                assert_eq!(again.i64(field), Some(value), "{name}.{field}");
            }
        }
    }

    #[test]
    fn an_error_names_field_and_offset() {
        // file_entry { type, id, reg { id: cut short
        let error = Message::decode(def("file_entry"), &[8, 1, 16, 1, 26, 2, 8, 0x80]).unwrap_err();
        assert_eq!((error.offset, error.field.as_str()), (7, "reg.id"));
    }

    #[test]
    fn required_fields_are_found_missing_below() {
        // fown_entry inside reg has none of its fields.
        let message = Message::decode(def("file_entry"), &[8, 1, 16, 1, 26, 2, 8, 1]).unwrap();
        assert_eq!(message.first_missing().as_deref(), Some("reg.flags"));
    }

    #[test]
    fn canonical_is_what_encode_gives() {
        let canonical = [8, 7, 16, 0, 0xa2, 6, 2, 1, 2];
        let others: [&[u8]; 6] = [
            &[16, 0, 8, 7],
            &[8, 0x87, 0, 16, 0],
            &[8, 6, 8, 7, 16, 0],
            &[0xa2, 6, 0, 8, 7, 16, 0],
            &[8, 7, 16, 0x80, 0x80, 0x80, 0x80, 0x10],
            &[0x88, 0, 7, 16, 0],
        ];
        for bytes in others.into_iter().chain([&canonical[..]]) {
            let message = Message::decode(def("pipe_data_entry"), bytes).unwrap();
            assert_eq!(
                message.was_canonical(),
                message.encode() == bytes,
                "{bytes:?}"
            );
            assert_eq!(message.was_canonical(), bytes == canonical, "{bytes:?}");
        }
        for (name, bytes) in [
            ("netns_entry", &[10, 2, 1, 2][..]), // def_conf packed
            ("autofs_entry", &[8, 0xff, 0xff, 0xff, 0xff, 0x0f]), // -1 in five bytes
            ("reg_file_entry", &[56, 0x81, 0x80, 0x80, 0x80, 0x20]), // a sint32 of 33 bits
            ("task_core_entry", &[0x90, 1, 2]),  // a bool of 2
        ] {
            let message = Message::decode(def(name), bytes).unwrap();
            assert!(!message.was_canonical(), "{name}");
            assert_ne!(message.encode(), bytes, "{name}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        // aa_namespace.namespaces (field 3) inside itself, 100 deep.
        let mut bytes = Vec::new();
        for _ in 0..100 {
            let mut outer = Vec::new();
            put_bytes(&mut outer, 3, &bytes);
            bytes = outer;
        }
        let error = Message::decode(def("aa_namespace"), &bytes).unwrap_err();
        assert_eq!(error.what, "messages nested too deep");
    }
}
