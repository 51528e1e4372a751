//! A message to JSON straight from its bytes, without the tree of `dynamic` in between.
//!
//! Nearly every message of an image is plain: in the form CRIU writes, with all required and no
//! unknown fields. That is found out first, in one pass that keeps nothing; a plain message's bytes
//! then are in the order of its JSON. It takes a third of the time and no memory. What is not plain
//! goes the long way, which has the errors, the unknown fields and the merging.

use super::message::{address, write_scalar};
use super::write::Sink;
use crate::dynamic::{Cursor, MAX_DEPTH, Parsed, Scalar, wire_type_of};
use crust_proto::schema::{FieldDef, FieldKind, Label, MessageDef};
use std::io;

/// Whether the bytes are a message in canonical form with all required and only known fields.
pub fn is_plain(def: &'static MessageDef, bytes: &[u8]) -> bool {
    is_plain_at(def, Cursor::new(bytes), 0).unwrap_or(false)
}

fn is_plain_at(def: &'static MessageDef, mut from: Cursor<'_>, depth: usize) -> Parsed<bool> {
    let mut fields = def.fields.iter();
    let mut current: Option<&FieldDef> = None;
    while !from.is_empty() {
        let (number, wire_type) = key(&mut from)?;
        let field = match current {
            Some(there) if u64::from(there.number) == number => {
                if there.label != Label::Repeated {
                    return Ok(false);
                }
                there
            }
            _ => match skip_to(&mut fields, number) {
                Some(field) => field,
                None => return Ok(false),
            },
        };
        current = Some(field);
        if wire_type != u64::from(wire_type_of(&field.kind)) {
            return Ok(false);
        }
        match field.kind {
            FieldKind::Message(inner) => {
                let bytes = from.length_delimited()?;
                if depth >= MAX_DEPTH || !is_plain_at(inner, bytes, depth + 1)? {
                    return Ok(false);
                }
            }
            kind => {
                from.scalar(&kind)?;
            }
        }
    }
    Ok(from.canonical && fields.all(|field| field.label != Label::Required))
}

/// The field of that number among those that follow; `None` when there is none or a required one
/// comes before it.
fn skip_to(
    fields: &mut std::slice::Iter<'static, FieldDef>,
    number: u64,
) -> Option<&'static FieldDef> {
    for field in fields {
        if u64::from(field.number) == number {
            return Some(field);
        }
        if u64::from(field.number) > number || field.label == Label::Required {
            return None;
        }
    }
    None
}

#[inline]
fn key(from: &mut Cursor<'_>) -> Parsed<(u64, u64)> {
    let key = from.varint()?;
    Ok((key >> 3, key & 7))
}

/// Writes the keys of a plain message.
pub fn write_plain<S: Sink + ?Sized>(
    sink: &mut S,
    def: &'static MessageDef,
    bytes: &[u8],
    pretty: bool,
) -> io::Result<()> {
    write_fields(sink, def, Cursor::new(bytes), pretty, false)
}

fn write_fields<S: Sink + ?Sized>(
    sink: &mut S,
    def: &'static MessageDef,
    mut from: Cursor<'_>,
    pretty: bool,
    hex: bool,
) -> io::Result<()> {
    let mut fields = def.fields.iter();
    let mut ahead = next_number(&mut from)?;
    while let Some(number) = ahead {
        let field = fields.find(|field| u64::from(field.number) == number);
        let field = field.ok_or_else(|| io::Error::other("a message that is not plain"))?;
        sink.key(field.name)?;
        if field.label != Label::Repeated {
            write_value(sink, field, &mut from, pretty, hex)?;
            ahead = next_number(&mut from)?;
            continue;
        }
        sink.begin_array()?;
        if pretty && field.show.ipadd {
            ahead = write_address(sink, field, &mut from, hex)?;
        } else {
            while ahead == Some(number) {
                write_value(sink, field, &mut from, pretty, hex)?;
                ahead = next_number(&mut from)?;
            }
        }
        sink.end_array()?;
    }
    Ok(())
}

/// The number of the field that comes next, `None` at the end. Its key is taken.
#[inline]
fn next_number(from: &mut Cursor<'_>) -> io::Result<Option<u64>> {
    if from.is_empty() {
        return Ok(None);
    }
    key(from)
        .map(|(number, _)| Some(number))
        .map_err(io::Error::other)
}

fn write_value<S: Sink + ?Sized>(
    sink: &mut S,
    def: &FieldDef,
    from: &mut Cursor<'_>,
    pretty: bool,
    hex: bool,
) -> io::Result<()> {
    if let FieldKind::Message(inner) = def.kind {
        let bytes = from.length_delimited().map_err(io::Error::other)?;
        sink.begin_object()?;
        write_fields(sink, inner, bytes, pretty, hex || def.show.hex)?;
        return sink.end_object();
    }
    let scalar = from.scalar(&def.kind).map_err(io::Error::other)?;
    write_scalar(sink, def, scalar, pretty, hex)
}

/// The words of an address, as text when they are one. Gives the number of the field behind.
fn write_address<S: Sink + ?Sized>(
    sink: &mut S,
    def: &FieldDef,
    from: &mut Cursor<'_>,
    hex: bool,
) -> io::Result<Option<u64>> {
    let mut words = Vec::new();
    let mut ahead = Some(u64::from(def.number));
    while ahead == Some(u64::from(def.number)) {
        match from.scalar(&def.kind).map_err(io::Error::other)? {
            Scalar::Unsigned(word) => words.push(word),
            _ => return Err(io::Error::other("an address that is no number")),
        }
        ahead = next_number(from)?;
    }
    match address(def, words.iter().map(|word| Some(*word))) {
        Some(address) => sink.string(&address)?,
        None => {
            for word in words {
                write_scalar(sink, def, Scalar::Unsigned(word), true, hex)?;
            }
        }
    }
    Ok(ahead)
}
