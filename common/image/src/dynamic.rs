//! A message as the wire holds it, driven by the schema instead of generated types.
//!
//! crit must give back the bytes it read: fields this build does not know, enum values without a
//! name, strings that are not UTF-8. A typed message drops the first, a descriptor pool refuses
//! the last and costs milliseconds to build, so this is a small codec of its own over the constant
//! tables of `crust_proto::schema`. It knows the wire format of protobuf (developers.google.com/
//! protocol-buffers/docs/encoding) without groups, which no image has.

mod wire;

use crust_proto::schema::{FieldDef, FieldKind, Label, MessageDef};
pub use wire::WireError;
pub(crate) use wire::{Cursor, Parsed, Scalar, wire_type_of};
use wire::{at, put_bytes, put_key, put_message, put_scalar, put_varint_field};

/// How deep messages may nest. The deepest schema (AppArmor namespaces, cgroup directories) is
/// recursive, so a hostile image could otherwise exhaust the stack.
pub(crate) const MAX_DEPTH: usize = 64;

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
        message
            .merge(Cursor::new(bytes), 0)
            .map_err(|error| *error)?;
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

    /// Adds one occurrence where it comes; [`Message::tidy_up`] must follow before anything else.
    pub(crate) fn append(&mut self, def: &'static FieldDef, value: Value) {
        self.fields.push(Field { def, value });
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

    fn merge(&mut self, mut from: Cursor<'_>, depth: usize) -> Parsed<()> {
        // Each field takes at least two bytes, and most messages have each of theirs once.
        self.fields
            .reserve(self.def.fields.len().min(from.bytes.len() / 2));
        // In ascending number, and none but repeated ones twice.
        let mut tidy = true;
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
            tidy &= number >= self.last;
            self.last = number;
            let Some(def) = self.def.field(number) else {
                let value = from.unknown(wire_type)?;
                self.unknown.push(UnknownField { number, value });
                continue;
            };
            tidy &= ascending || def.label == Label::Repeated;
            self.merge_field(def, wire_type, &mut from, depth)
                .map_err(|mut error| {
                    let dot = if error.field.is_empty() { "" } else { "." };
                    error.field = format!("{}{dot}{}", def.name, error.field);
                    error
                })?;
        }
        self.canonical &= tidy && from.canonical;
        if !tidy {
            self.tidy_up();
        }
        Ok(())
    }

    fn merge_field(
        &mut self,
        def: &'static FieldDef,
        wire_type: u8,
        from: &mut Cursor<'_>,
        depth: usize,
    ) -> Parsed<()> {
        let start = from.offset();
        match (wire_type, wire_type_of(&def.kind)) {
            (2, 2) => {
                let FieldKind::Message(inner_def) = def.kind else {
                    let value = from.scalar(&def.kind)?.into();
                    self.append(def, value);
                    return Ok(());
                };
                let inner = from.length_delimited()?;
                if depth >= MAX_DEPTH {
                    return Err(at(start, "messages nested too deep"));
                }
                let mut message = Message::new(inner_def);
                message.merge(inner, depth + 1)?;
                self.canonical &= message.canonical;
                self.append(def, Value::Message(Box::new(message)));
            }
            (given, meant) if given == meant => {
                let value = from.scalar(&def.kind)?.into();
                self.append(def, value);
            }
            (2, _) if def.label == Label::Repeated => {
                self.canonical = false;
                let mut packed = from.length_delimited()?;
                while !packed.is_empty() {
                    let value = packed.scalar(&def.kind)?.into();
                    self.append(def, value);
                }
            }
            _ => return Err(at(start, "its wire type does not fit the schema")),
        }
        Ok(())
    }

    /// Brings appended fields into ascending order. Of a field that is not repeated the last
    /// occurrence counts, and the occurrences of a message are merged, as the encoding guide asks.
    pub(crate) fn tidy_up(&mut self) {
        self.unknown.sort_by_key(|field| field.number);
        self.fields.sort_by_key(|field| field.def.number);
        let mut merged: Vec<Field> = Vec::with_capacity(self.fields.len());
        // Whether the last of them is a message that took in others.
        let mut grown = false;
        for field in std::mem::take(&mut self.fields) {
            let twice = |there: &&mut Field| {
                there.def.number == field.def.number && field.def.label != Label::Repeated
            };
            let Some(there) = merged.last_mut().filter(twice) else {
                finish_growing(&mut merged, std::mem::take(&mut grown));
                merged.push(field);
                continue;
            };
            match (&mut there.value, field.value) {
                (Value::Message(there), Value::Message(more)) => {
                    there.fields.extend(more.fields);
                    there.unknown.extend(more.unknown);
                    grown = true;
                }
                (there, value) => *there = value,
            }
        }
        finish_growing(&mut merged, grown);
        self.fields = merged;
    }
}

/// Tidies up the last field, a message that took in others.
fn finish_growing(fields: &mut [Field], grown: bool) {
    if grown && let Some(Value::Message(message)) = fields.last_mut().map(|field| &mut field.value)
    {
        message.tidy_up();
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
            Value::Message(message) => put_message(out, number, |out| message.encode_into(out)),
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
