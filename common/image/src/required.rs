//! Required fields.
//!
//! prost reads an absent required field as zero. In an image that is corruption, or an edit gone
//! wrong: a restore that took it for a value would bring back something else. CRIU refuses such a
//! message, and so does this walk over the bytes, which prost has found well formed before.

use crust_proto::schema::{FieldKind, Label, MessageDef};

/// Nesting that is followed; prost refuses deeper messages before.
const MAX_DEPTH: usize = 100;

/// A required field that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Absent {
    /// The message that lacks it.
    pub message: &'static str,
    /// The field.
    pub field: &'static str,
}

/// The first required field that `bytes`, a `def` message, lacks, those of messages inside it
/// included.
pub fn first_absent(def: &'static MessageDef, bytes: &[u8]) -> Option<Absent> {
    absent_at_depth(def, bytes, 0)
}

fn absent_at_depth(def: &'static MessageDef, bytes: &[u8], depth: usize) -> Option<Absent> {
    if depth > MAX_DEPTH {
        return None;
    }
    let mut seen = Seen::default();
    let mut rest = bytes;
    // Where the bytes make no sense the walk ends: prost has the say on that.
    while let Some(field) = next_field(&mut rest) {
        let Ok(at) = def
            .fields
            .binary_search_by_key(&field.number, |known| known.number)
        else {
            continue;
        };
        seen.insert(at);
        if let (Some(inside), Some(FieldKind::Message(inner))) =
            (field.bytes, def.fields.get(at).map(|known| known.kind))
            && let Some(absent) = absent_at_depth(inner, inside, depth + 1)
        {
            return Some(absent);
        }
    }
    let mut fields = def.fields.iter().enumerate();
    let (_, absent) =
        fields.find(|(at, field)| field.label == Label::Required && !seen.contains(*at))?;
    Some(Absent {
        message: def.name,
        field: absent.name,
    })
}

/// Indexes into the fields of a message. The largest message of an image has under 64 fields;
/// those behind the 256th would count as seen.
#[derive(Default)]
pub(crate) struct Seen([u64; 4]);

impl Seen {
    /// Whether it was there before.
    pub(crate) fn insert(&mut self, at: usize) -> bool {
        let Some(word) = self.0.get_mut(at / 64) else {
            return false;
        };
        let before = *word;
        *word |= 1 << (at % 64);
        before == *word
    }

    pub(crate) fn contains(&self, at: usize) -> bool {
        self.0
            .get(at / 64)
            .is_none_or(|word| word & (1 << (at % 64)) != 0)
    }
}

/// One field on the wire; `bytes` if it is length-delimited.
struct WireField<'a> {
    number: u32,
    bytes: Option<&'a [u8]>,
}

fn next_field<'a>(rest: &mut &'a [u8]) -> Option<WireField<'a>> {
    let key = varint(rest)?;
    let number = u32::try_from(key >> 3).ok()?;
    let bytes = match key & 7 {
        0 => {
            varint(rest)?;
            None
        }
        1 => {
            take(rest, 8)?;
            None
        }
        2 => {
            let len = usize::try_from(varint(rest)?).ok()?;
            Some(take(rest, len)?)
        }
        5 => {
            take(rest, 4)?;
            None
        }
        _ => return None,
    };
    Some(WireField { number, bytes })
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(len)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (byte, left) = rest.split_first()?;
        *rest = left;
        // The tenth byte has one bit of a 64-bit number.
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_proto::{
        criu::{FownEntry, PstreeEntry, RegFileEntry},
        schema,
    };
    use prost::Message;

    fn absent_in(message: &str, bytes: &[u8]) -> Option<&'static str> {
        let def = schema::message(message).expect("a message of the format");
        first_absent(def, bytes).map(|absent| absent.field)
    }

    #[test]
    fn an_absent_field_is_named() {
        let bytes = PstreeEntry::default().encode_to_vec();
        assert_eq!(absent_in("pstree_entry", &bytes), None);
        // Fields 1 and 2 are two bytes each.
        assert_eq!(absent_in("pstree_entry", &bytes[2..]), Some("pid"));
        assert_eq!(absent_in("pstree_entry", &bytes[..6]), Some("sid"));
        assert_eq!(absent_in("pstree_entry", &[]), Some("pid"));
        assert_eq!(absent_in("seccomp_entry", &[]), None);
    }

    #[test]
    fn messages_inside_are_looked_at() {
        let whole = RegFileEntry {
            fown: FownEntry::default(),
            name: b"/tmp/x".to_vec(),
            ..Default::default()
        }
        .encode_to_vec();
        assert_eq!(absent_in("reg_file_entry", &whole), None);
        let fown = FownEntry::default().encode_to_vec();
        let at = whole
            .windows(fown.len())
            .position(|window| window == fown)
            .expect("fown is inside");
        let mut short = whole[..at + fown.len() - 2].to_vec();
        short[at - 1] -= 2;
        short.extend_from_slice(&whole[at + fown.len()..]);
        assert_eq!(absent_in("reg_file_entry", &short), Some("pid"));
    }

    #[test]
    fn nonsense_ends_the_walk() {
        for bytes in [&[0xff][..], &[0x0a, 0xff], &[0x08], &[0x0b, 1], &[0xff; 12]] {
            assert_eq!(absent_in("pstree_entry", bytes), Some("pid"));
        }
    }
}
