//! Images as an enemy would make them: bytes flipped, cut and doubled; messages with one field
//! given another value, taken away or told a thousand times; images of one dump among those of
//! another. What is made depends on the seed only.

use crate::kills::Random;
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Heads of v1.1 images; any other first word is a magic alone.
const PREFIXES: [u32; 2] = [0x5456_4319, 0x5510_5940];
/// Numbers that break what reckons with them.
const NUMBERS: [u64; 18] = [
    0,
    1,
    2,
    3,
    0x7f,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x1000,
    0x7fff_ffff_f000,
    0x7fff_ffff_ffff,
    0x8000_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_f000,
    u64::MAX,
];
/// Names that lead elsewhere.
const NAMES: [&[u8]; 10] = [
    b"",
    b"/",
    b"..",
    b"../../../../../../etc/passwd",
    b"/proc/1/root/etc/shadow",
    b"/proc/self/mem",
    b"/dev/full",
    b"/tmp/crust-golden/canary/file",
    b"a\0b",
    b"\xff\xfe%s%n",
];
/// How often a field may be told over again.
const MANY: u64 = 2000;
/// Nesting of messages that is followed.
const DEEPEST: u32 = 6;

/// A set of images in memory.
pub type Set = BTreeMap<String, Vec<u8>>;

/// Reads the images of a directory, pages too.
pub fn read_set(dir: &Path) -> Result<Set> {
    let mut set = Set::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let is_image = path.extension().is_some_and(|kind| kind == "img");
        if let (Some(name), true) = (name, is_image && path.is_file()) {
            set.insert(name.to_owned(), fs::read(&path)?);
        }
    }
    ensure!(!set.is_empty(), "{} has no images", dir.display());
    Ok(set)
}

/// A copy of a set in a directory, in which one image at a time is another.
#[derive(Debug)]
pub struct Victim {
    dir: PathBuf,
    good: Set,
    touched: Vec<String>,
}

impl Victim {
    /// Writes the set into `dir`.
    pub fn new(dir: &Path, good: Set) -> Result<Victim> {
        fs::create_dir_all(dir)?;
        for (name, bytes) in &good {
            fs::write(dir.join(name), bytes)?;
        }
        Ok(Victim {
            dir: dir.to_owned(),
            good,
            touched: Vec::new(),
        })
    }

    /// Makes everything good again, then damages something; says what.
    pub fn damage(&mut self, random: &mut Random, others: &[Set]) -> Result<String> {
        self.heal()?;
        let names: Vec<String> = self.good.keys().cloned().collect();
        let images: Vec<&String> = names
            .iter()
            .filter(|name| !name.starts_with("pages-"))
            .collect();
        let name = (*choose(&images, random)).clone();
        let good = self.good.get(&name).cloned().unwrap_or_default();
        let (bad, what) = match random.below(12) {
            0 => swapped(&name, others, random),
            1 => return self.remove(&name),
            2..=4 => damaged_bytes(&good, random),
            _ => damaged_message(&good, random),
        };
        fs::write(self.dir.join(&name), &bad)?;
        self.touched.push(name.clone());
        Ok(format!("{name}: {what}"))
    }

    fn remove(&mut self, name: &str) -> Result<String> {
        fs::remove_file(self.dir.join(name))?;
        self.touched.push(name.to_owned());
        Ok(format!("{name}: taken away"))
    }

    /// Makes everything as it was.
    pub fn heal(&mut self) -> Result<()> {
        for name in self.touched.drain(..) {
            if let Some(good) = self.good.get(&name) {
                fs::write(self.dir.join(&name), good)?;
            }
        }
        Ok(())
    }
}

fn choose<'t, T>(from: &'t [T], random: &mut Random) -> &'t T {
    let index = random.below(from.len() as u64) as usize;
    from.get(index)
        .or(from.first())
        .expect("callers choose from something")
}

/// An image of the same kind from another dump.
fn swapped(name: &str, others: &[Set], random: &mut Random) -> (Vec<u8>, String) {
    let kind = |name: &str| name.split(['-', '.']).next().map(str::to_owned);
    let alike: Vec<&Vec<u8>> = others
        .iter()
        .flat_map(|set| set.iter())
        .filter(|(other, _)| kind(other) == kind(name))
        .map(|(_, bytes)| bytes)
        .collect();
    match alike.is_empty() {
        true => (Vec::new(), "empty".to_owned()),
        false => (
            (*choose(&alike, random)).clone(),
            "from another dump".to_owned(),
        ),
    }
}

/// Bytes behind the head: a wrong head ends the reading at once and tests nothing more.
pub fn damaged_bytes(good: &[u8], random: &mut Random) -> (Vec<u8>, String) {
    let mut bad = good.to_vec();
    let behind = good.len().saturating_sub(8) as u64;
    let at = (8 + random.below(behind) as usize).min(good.len());
    let what = match random.below(4) {
        0 => {
            bad.truncate(at);
            format!("cut at {at}")
        }
        1 => {
            bad.iter_mut()
                .skip(at)
                .take(4)
                .for_each(|byte| *byte = 0xff);
            format!("ones at {at}")
        }
        2 => {
            bad.extend_from_slice(&good[at..]);
            format!("its end from {at} on again")
        }
        _ => {
            let bit = random.below(8);
            bad.iter_mut()
                .skip(at)
                .take(1)
                .for_each(|byte| *byte ^= 1 << bit);
            format!("bit {bit} at {at}")
        }
    };
    (bad, what)
}

/// One field of one message is another. Falls back to bytes where no message is found.
pub fn damaged_message(good: &[u8], random: &mut Random) -> (Vec<u8>, String) {
    let entries = entries_of(good);
    if entries.is_empty() {
        return damaged_bytes(good, random);
    }
    let (start, end) = *choose(&entries, random);
    let message = good.get(start..end).unwrap_or_default();
    let Some((bad, what)) = damaged_fields(message, random, 0) else {
        return damaged_bytes(good, random);
    };
    let mut image = good.get(..start - 4).unwrap_or_default().to_vec();
    image.extend((bad.len() as u32).to_le_bytes());
    image.extend(bad);
    image.extend_from_slice(good.get(end..).unwrap_or_default());
    (image, format!("entry at {start}: {what}"))
}

/// Where the messages of the entries are, as far as the frames go on without payloads.
fn entries_of(image: &[u8]) -> Vec<(usize, usize)> {
    let word = |at: usize| -> Option<u32> {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let mut at = match word(0) {
        Some(first) if PREFIXES.contains(&first) => 8,
        _ => 4,
    };
    let mut entries = Vec::new();
    while let Some(size) = word(at) {
        let (start, end) = (at + 4, at + 4 + size as usize);
        if end > image.len() {
            break;
        }
        entries.push((start, end));
        at = end;
    }
    entries
}

/// A field of a message on the wire.
#[derive(Clone, Debug)]
struct Field {
    number: u64,
    wire: u64,
    /// The bytes of the value, without the length of a delimited one.
    value: Vec<u8>,
}

/// The fields of a message, `None` if these bytes are none.
fn fields_of(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes)?;
        let wire = key & 7;
        let len = match wire {
            0 => {
                let before = bytes;
                take_varint(&mut bytes)?;
                let len = before.len() - bytes.len();
                bytes = before;
                len
            }
            1 => 8,
            2 => usize::try_from(take_varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (value, rest) = bytes.split_at_checked(len)?;
        fields.push(Field {
            number: key >> 3,
            wire,
            value: value.to_vec(),
        });
        bytes = rest;
    }
    Some(fields)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(mut value: u64, into: &mut Vec<u8>) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn encoded(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in fields {
        put_varint(field.number << 3 | field.wire, &mut bytes);
        if field.wire == 2 {
            put_varint(field.value.len() as u64, &mut bytes);
        }
        bytes.extend_from_slice(&field.value);
    }
    bytes
}

fn damaged_fields(message: &[u8], random: &mut Random, depth: u32) -> Option<(Vec<u8>, String)> {
    let mut fields = fields_of(message).filter(|fields| !fields.is_empty())?;
    let index = random.below(fields.len() as u64) as usize;
    let field = fields.get(index)?.clone();
    let number = field.number;
    // Into a message inside, mostly: that is where the numbers are.
    if field.wire == 2
        && depth < DEEPEST
        && random.below(4) != 0
        && let Some((value, what)) = damaged_fields(&field.value, random, depth + 1)
    {
        fields.get_mut(index)?.value = value;
        return Some((encoded(&fields), format!("{number}.{what}")));
    }
    let what = match random.below(8) {
        0 => {
            fields.remove(index);
            format!("{number} gone")
        }
        1 => {
            let times = 1 + random.below(MANY);
            let room = (1 << 20) / (field.value.len() as u64 + 1);
            (0..times.min(room)).for_each(|_| fields.insert(index, field.clone()));
            format!("{number} {times} times more")
        }
        _ => {
            let value = another_value(&field, random);
            let what = format!("{number} = {value:x?}");
            fields.get_mut(index)?.value = value;
            what.chars().take(80).collect()
        }
    };
    Some((encoded(&fields), what))
}

fn another_value(field: &Field, random: &mut Random) -> Vec<u8> {
    let number = match random.below(3) {
        0 => *choose(&NUMBERS, random),
        1 => random.below(64),
        // Near to what it was: the next page, pid or id.
        _ => {
            let was = take_varint(&mut field.value.as_slice()).unwrap_or(0);
            was.wrapping_add(*choose(&[1, u64::MAX, 0x1000, 0x10_0000], random))
        }
    };
    match field.wire {
        0 => {
            let mut value = Vec::new();
            put_varint(number, &mut value);
            value
        }
        1 => number.to_le_bytes().to_vec(),
        5 => (number as u32).to_le_bytes().to_vec(),
        _ => match random.below(3) {
            0 => choose(&NAMES, random).to_vec(),
            1 => vec![b'/'; random.below(10_000) as usize],
            _ => {
                let mut value = field.value.clone();
                value.extend_from_slice(choose::<&[u8]>(&NAMES, random));
                value
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were() {
        let mut message = Vec::new();
        put_varint(1 << 3, &mut message);
        put_varint(300, &mut message);
        put_varint(2 << 3 | 2, &mut message);
        put_varint(3, &mut message);
        message.extend(b"abc");
        let fields = fields_of(&message).expect("a message");
        assert_eq!(fields.len(), 2);
        assert_eq!(encoded(&fields), message);
        assert!(fields_of(&message[..4]).is_none());
    }

    #[test]
    fn a_damage_changes_something_and_is_the_same_for_a_seed() {
        let set = read_set(&crate::corpus::recorded("tree").images()).expect("a recorded set");
        let core = set
            .iter()
            .find(|(name, _)| name.starts_with("core-"))
            .expect("a core")
            .1;
        let once = damaged_message(core, &mut Random(7));
        assert_eq!(once, damaged_message(core, &mut Random(7)));
        let changed = (1..200).filter(|seed| damaged_message(core, &mut Random(*seed)).0 != *core);
        assert!(changed.count() > 150);
    }
}
