//! Where the members of the kernel's own structures lie: read off the type information that the
//! running kernel carries about itself in /sys/kernel/btf/vmlinux, so that nothing is assumed of
//! its version. The format is Documentation/bpf/btf.rst; of it only structures and unions matter
//! here.

use std::io;
use std::ops::Range;

/// Where the kernel shows it.
pub const PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const INT: u32 = 1;
const POINTER: u32 = 2;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const ENUM64: u32 = 19;
/// Typedef, volatile, const, restrict and a tag stand for the type that they name.
const STAND_FOR: [u32; 5] = [8, 9, 10, 11, 18];
/// Bytes of what every type begins with: name, kind, size or another type.
const HEAD: usize = 12;
/// Structures without a name inside each other, and names for names, generously.
const DEPTH: u32 = 16;

/// Types of the kernel.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    strings: Range<usize>,
    /// Where each type begins; number 1 comes first.
    types: Vec<usize>,
}

/// Where a member lies in its structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bits from the start of the structure.
    bits: u64,
    /// Bits of a number, a bit field or a pointer; 0 for anything else.
    width: u32,
}

impl Place {
    /// Bytes from the start of the structure.
    pub fn offset(self) -> u64 {
        self.bits / 8
    }

    /// The value of a number or a pointer in the bytes from `offset` on.
    pub fn value(self, bytes: [u8; 8]) -> u64 {
        let value = u64::from_le_bytes(bytes) >> (self.bits % 8);
        match self.width {
            0 => value,
            width => {
                value
                    & u64::MAX
                        .checked_shr(64u32.saturating_sub(width))
                        .unwrap_or(0)
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Type {
    name: u32,
    kind: u32,
    count: usize,
    /// Offsets of members have the width of bit fields in their upper byte.
    has_widths: bool,
    /// Or the type it stands for.
    size: u32,
    /// Where what follows the head begins.
    body: usize,
}

impl Btf {
    /// Those of the running kernel.
    pub fn of_kernel() -> io::Result<Btf> {
        let data = std::fs::read(PATH)?;
        Btf::parse(data).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is cut off"))
    }

    fn parse(data: Vec<u8>) -> Option<Btf> {
        if half(&data, 0)? != MAGIC {
            return None;
        }
        let [head, types_at, types_len] = [word(&data, 4)?, word(&data, 8)?, word(&data, 12)?];
        let [strings_at, strings_len] = [word(&data, 16)?, word(&data, 20)?];
        let part = |at: u32, len: u32| {
            let start = head.checked_add(at)? as usize;
            let end = start.checked_add(len as usize)?;
            (end <= data.len()).then_some(start..end)
        };
        let (all, strings) = (part(types_at, types_len)?, part(strings_at, strings_len)?);
        let (mut types, mut at) = (Vec::new(), all.start);
        while at < all.end {
            types.push(at);
            let found = type_at(&data, at)?;
            at = found.body.checked_add(body_len(found)?)?;
        }
        Some(Btf {
            data,
            strings,
            types,
        })
    }

    /// A structure by its name.
    pub fn structure<'b>(&'b self, name: &'b str) -> Result<Structure<'b>, String> {
        let named = |found: &Type| {
            found.kind == STRUCT && found.count > 0 && self.name(found.name) == name.as_bytes()
        };
        let mut types = self.types.iter().filter_map(|at| type_at(&self.data, *at));
        let found = types.find(named);
        let found = found.ok_or_else(|| format!("this kernel has no struct {name}"))?;
        let btf = self;
        Ok(Structure { btf, name, found })
    }

    /// A member and its type.
    fn member(&self, within: Type, wanted: &str, depth: u32) -> Option<(Place, Type)> {
        for number in 0..within.count {
            let at = within.body + number * HEAD;
            let [name, of, offset] = [0, 4, 8].map(|by| word(&self.data, at + by));
            let place = match within.has_widths {
                true => Place {
                    bits: u64::from(offset? & 0xff_ffff),
                    width: offset? >> 24,
                },
                false => Place {
                    bits: u64::from(offset?),
                    width: 0,
                },
            };
            let Some(member) = self.stands_for(of?) else {
                continue;
            };
            if self.name(name?) == wanted.as_bytes() {
                let whole = match member.kind {
                    INT | ENUM | ENUM64 => member.size.saturating_mul(8),
                    POINTER => 64,
                    _ => 0,
                };
                let width = if place.width == 0 { whole } else { place.width };
                return Some((Place { width, ..place }, member));
            }
            let is_nameless = name? == 0 && matches!(member.kind, STRUCT | UNION) && depth > 0;
            if let Some((inner, of)) = is_nameless
                .then(|| self.member(member, wanted, depth - 1))
                .flatten()
            {
                let bits = place.bits + inner.bits;
                return Some((Place { bits, ..inner }, of));
            }
        }
        None
    }

    fn stands_for(&self, mut number: u32) -> Option<Type> {
        for _ in 0..DEPTH {
            let at = self.types.get(number.checked_sub(1)? as usize)?;
            let found = type_at(&self.data, *at)?;
            if !STAND_FOR.contains(&found.kind) {
                return Some(found);
            }
            number = found.size;
        }
        None
    }

    fn name(&self, at: u32) -> &[u8] {
        let strings = self.data.get(self.strings.clone()).unwrap_or_default();
        let name = strings.get(at as usize..).unwrap_or_default();
        name.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// A structure of the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Structure<'b> {
    btf: &'b Btf,
    name: &'b str,
    found: Type,
}

impl Structure<'_> {
    /// Where a member is: `path` names it, and with dots members of members. What is in a structure
    /// or union without a name counts as a member of the one around it.
    pub fn place(&self, path: &str) -> Result<Place, String> {
        let name = self.name;
        let unknown = || format!("this kernel's struct {name} has no member {path}");
        let mut place = Place { bits: 0, width: 0 };
        let mut within = self.found;
        for step in path.split('.') {
            if !matches!(within.kind, STRUCT | UNION) {
                return Err(unknown());
            }
            let (found, member) = self.btf.member(within, step, DEPTH).ok_or_else(unknown)?;
            place = Place {
                bits: place.bits + found.bits,
                width: found.width,
            };
            within = member;
        }
        Ok(place)
    }
}

fn type_at(data: &[u8], at: usize) -> Option<Type> {
    let info = word(data, at + 4)?;
    Some(Type {
        name: word(data, at)?,
        kind: info >> 24 & 0x1f,
        count: (info & 0xffff) as usize,
        has_widths: info >> 31 == 1,
        size: word(data, at + 8)?,
        body: at + HEAD,
    })
}

/// Bytes behind the head of a type (Documentation/bpf/btf.rst, 2.2).
fn body_len(found: Type) -> Option<usize> {
    Some(match found.kind {
        1 | 14 | 17 => 4,
        2 | 7..=12 | 16 | 18 => 0,
        3 => 12,
        STRUCT | UNION | 15 | 19 => 12 * found.count,
        6 | 13 => 8 * found.count,
        _ => return None,
    })
}

fn half(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// struct outer { int plain; struct { unsigned low : 3, high : 5; named inner; }; } where
    /// named is a typedef of struct inner { int it; }.
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0plain\0low\0high\0inner\0it\0named\0";
        let of = |kind: u32, count: u32| kind << 24 | count;
        let fields = 1 << 31;
        #[rustfmt::skip]
        let types = words(&[
            0, of(1, 0), 4, 32, // 1: int
            22, of(STRUCT, 1), 4, 28, 1, 0, // 2: inner
            31, of(8, 0), 2, // 3: named
            0, fields | of(STRUCT, 3), 8, 13, 1, 3 << 24, 17, 1, 5 << 24 | 3, 22, 3, 32, // 4
            1, of(STRUCT, 2), 12, 7, 1, 0, 0, 4, 32, // 5: outer
        ]);
        let len = types.len() as u32;
        let mut data = words(&[0x0001_eb9f, 24, 0, len, len, strings.len() as u32]);
        data.extend(types);
        data.extend(strings);
        data
    }

    #[test]
    fn members_are_found_where_they_lie() -> Result<(), String> {
        let btf = Btf::parse(sample()).ok_or("no types")?;
        let outer = btf.structure("outer")?;
        assert_eq!(outer.place("plain")?.offset(), 0);
        assert_eq!(outer.place("inner.it")?.offset(), 8);
        let high = outer.place("high")?;
        let bytes = 0b1010_1110u64.to_le_bytes();
        assert_eq!((high.offset(), high.value(bytes)), (4, 0b10101));
        assert_eq!(outer.place("low")?.value(bytes), 0b110);
        assert!(outer.place("plain.it").is_err());
        let unknown = outer.place("it").err().unwrap_or_default();
        assert_eq!(unknown, "this kernel's struct outer has no member it");
        assert!(btf.structure("nothing").is_err());
        Ok(())
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let whole = sample();
        for end in 0..whole.len() {
            assert!(Btf::parse(whole[..end].to_vec()).is_none(), "{end}");
        }
    }
}
