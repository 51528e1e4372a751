//! The wire format itself: keys, numbers and lengths, read from bytes and put to bytes. Groups,
//! which no image has, are refused.

use super::{UnknownValue, Value};
use crust_proto::schema::FieldKind;
use std::fmt;

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

pub(super) fn put_key(out: &mut Vec<u8>, number: u32, wire_type: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire_type));
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_varint_field(out: &mut Vec<u8>, number: u32, value: u64) {
    put_key(out, number, 0);
    put_varint(out, value);
}

pub(super) fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_key(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A length-delimited field whose content `put` appends.
pub(super) fn put_message(out: &mut Vec<u8>, number: u32, put: impl FnOnce(&mut Vec<u8>)) {
    put_key(out, number, 2);
    // Most lengths take one byte; for a longer one the content moves up.
    let at = out.len();
    out.push(0);
    put(out);
    let length = out.len() - at - 1;
    if let (Ok(short @ 0..=0x7f), Some(byte)) = (u8::try_from(length), out.get_mut(at)) {
        *byte = short;
        return;
    }
    let mut long = Vec::with_capacity(10);
    put_varint(&mut long, length as u64);
    out.splice(at..=at, long);
}

pub(super) fn put_scalar(out: &mut Vec<u8>, number: u32, kind: &FieldKind, raw: u64) {
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

#[inline]
pub(crate) fn wire_type_of(kind: &FieldKind) -> u8 {
    match kind {
        FieldKind::Fixed64 | FieldKind::Sfixed64 => 1,
        FieldKind::String | FieldKind::Bytes | FieldKind::Message(_) => 2,
        FieldKind::Fixed32 | FieldKind::Sfixed32 => 5,
        _ => 0,
    }
}

pub(super) fn at(offset: usize, what: &'static str) -> Box<WireError> {
    Box::new(WireError {
        offset,
        field: String::new(),
        what,
    })
}

/// The error is boxed: it is rare, and what is returned a million times stays in registers.
pub(crate) type Parsed<T> = Result<T, Box<WireError>>;

/// A value of one occurrence of a field that is no message, where it stands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scalar<'a> {
    Unsigned(u64),
    Signed(i64),
    Bool(bool),
    Enum(i64),
    Bytes(&'a [u8]),
}

impl From<Scalar<'_>> for Value {
    fn from(scalar: Scalar<'_>) -> Value {
        match scalar {
            Scalar::Unsigned(number) => Value::Unsigned(number),
            Scalar::Signed(number) => Value::Signed(number),
            Scalar::Bool(value) => Value::Bool(value),
            Scalar::Enum(number) => Value::Enum(number),
            Scalar::Bytes(bytes) => Value::Bytes(bytes.into()),
        }
    }
}

/// A place in the bytes of a message; `base` is where they begin in the outermost one.
pub(crate) struct Cursor<'a> {
    pub(crate) bytes: &'a [u8],
    at: usize,
    base: usize,
    /// No number so far had a shorter form.
    pub(crate) canonical: bool,
}

impl<'a> Cursor<'a> {
    /// The start of an outermost message.
    pub(crate) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor {
            bytes,
            at: 0,
            base: 0,
            canonical: true,
        }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(crate) fn offset(&self) -> usize {
        self.base + self.at
    }

    #[inline]
    pub(crate) fn take(&mut self, count: usize) -> Parsed<&'a [u8]> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| at(self.offset(), "the message ends inside the field"))?;
        self.at += count;
        Ok(taken)
    }

    #[inline]
    pub(crate) fn varint(&mut self) -> Parsed<u64> {
        // Nine of ten numbers of an image fit in one byte.
        if let Some(byte @ 0..=0x7f) = self.bytes.get(self.at) {
            self.at += 1;
            return Ok(u64::from(*byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Parsed<u64> {
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

    #[inline]
    pub(crate) fn length_delimited(&mut self) -> Parsed<Cursor<'a>> {
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

    fn fixed32(&mut self) -> Parsed<u32> {
        let bytes = self.take(4)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    fn fixed64(&mut self) -> Parsed<u64> {
        let bytes = self.take(8)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// A number of which the low 32 bits count.
    #[inline]
    fn varint32(&mut self) -> Parsed<u32> {
        let raw = self.varint()?;
        self.canonical &= raw <= u64::from(u32::MAX);
        Ok(raw as u32)
    }

    #[inline]
    pub(crate) fn scalar(&mut self, kind: &FieldKind) -> Parsed<Scalar<'a>> {
        Ok(match kind {
            FieldKind::Uint32 => Scalar::Unsigned(u64::from(self.varint32()?)),
            FieldKind::Uint64 => Scalar::Unsigned(self.varint()?),
            FieldKind::Int32 => {
                // Negative numbers take ten bytes: the sign goes up to bit 63.
                let raw = self.varint()?.cast_signed();
                self.canonical &= i32::try_from(raw).is_ok();
                Scalar::Signed(i64::from(raw as i32))
            }
            FieldKind::Int64 => Scalar::Signed(self.varint()?.cast_signed()),
            FieldKind::Sint32 => Scalar::Signed(unzigzag(u64::from(self.varint32()?))),
            FieldKind::Sint64 => Scalar::Signed(unzigzag(self.varint()?)),
            FieldKind::Bool => {
                let raw = self.varint()?;
                self.canonical &= raw <= 1;
                Scalar::Bool(raw != 0)
            }
            FieldKind::Enum(_) => Scalar::Enum(self.varint()?.cast_signed()),
            FieldKind::Fixed32 => Scalar::Unsigned(u64::from(self.fixed32()?)),
            FieldKind::Sfixed32 => Scalar::Signed(i64::from(self.fixed32()?.cast_signed())),
            FieldKind::Fixed64 => Scalar::Unsigned(self.fixed64()?),
            FieldKind::Sfixed64 => Scalar::Signed(self.fixed64()?.cast_signed()),
            FieldKind::String | FieldKind::Bytes => Scalar::Bytes(self.length_delimited()?.bytes),
            FieldKind::Message(_) => {
                return Err(at(self.offset(), "its wire type does not fit the schema"));
            }
        })
    }

    pub(crate) fn unknown(&mut self, wire_type: u8) -> Parsed<UnknownValue> {
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
