//! Other names of the same length, one to one.

use std::collections::{HashMap, HashSet};

/// Letters of made-up names.
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789_ABCDEFGHIJKLMNOPQRSTUVWXYZ";

/// The names given so far.
#[derive(Default)]
pub struct Names {
    given: HashMap<Vec<u8>, Vec<u8>>,
    taken: HashSet<Vec<u8>>,
    /// How many names of a length were made.
    made: HashMap<usize, u64>,
    addresses: HashMap<Vec<u64>, Vec<u64>>,
}

/// Components that every system has and that restores depend on.
const KEPT: [&[u8]; 19] = [
    b"", b".", b"..", b"proc", b"dev", b"sys", b"null", b"zero", b"full", b"random", b"urandom",
    b"tty", b"pts", b"ptmx", b"shm", b"console", b"self", b"task", b"lo",
];

impl Names {
    /// A path, or any text: each component becomes another one of its length. Numbers below /proc are
    /// ids of the set and stay, and so does what follows them.
    pub fn path(&mut self, path: &[u8]) -> Box<[u8]> {
        let (path, zero) = path
            .strip_suffix(b"\0")
            .map_or((path, &b""[..]), |path| (path, &b"\0"[..]));
        let (lead, path) = path
            .strip_prefix(b"\0")
            .map_or((&b""[..], path), |path| (&b"\0"[..], path));
        let of_proc = path.starts_with(b"/proc/");
        let parts: Vec<Vec<u8>> = path
            .split(|byte| *byte == b'/')
            .map(|part| {
                if of_proc {
                    part.to_vec()
                } else {
                    self.name(part)
                }
            })
            .collect();
        [lead, &parts.join(&b'/'), zero].concat().into()
    }

    fn name(&mut self, name: &[u8]) -> Vec<u8> {
        if KEPT.contains(&name) {
            return name.to_vec();
        }
        if let Some(given) = self.given.get(name) {
            return given.clone();
        }
        let mut made = self.made.get(&name.len()).copied().unwrap_or(0);
        let new = loop {
            let candidate = spelled(made, name.len());
            made += 1;
            match candidate {
                Some(candidate)
                    if self.taken.contains(&candidate) || KEPT.contains(&candidate.as_slice()) => {}
                Some(candidate) => break candidate,
                None => break self.left_over(name),
            }
        };
        self.made.insert(name.len(), made);
        self.taken.insert(new.clone());
        self.given.insert(name.to_vec(), new.clone());
        new
    }

    /// A name of one byte when the letters are used up.
    fn left_over(&self, name: &[u8]) -> Vec<u8> {
        let mut bytes = (1..=255u8)
            .filter(|byte| *byte != b'/')
            .map(|byte| vec![byte]);
        let free = |name: &Vec<u8>| !self.taken.contains(name) && !KEPT.contains(&name.as_slice());
        bytes
            .find(free)
            .filter(|_| name.len() == 1)
            .unwrap_or_else(|| name.to_vec())
    }

    /// An address in the words of an inet socket. Loopback and "any" stay.
    pub fn address(&mut self, words: &[u64]) -> Vec<u64> {
        let (any, loopback) = match words {
            [word] => (*word == 0, *word & 0xff == 127),
            [0, 0, 0, last] => (*last == 0, *last == 0x0100_0000),
            [0, 0, 0xffff_0000, last] => (*last == 0, *last & 0xff == 127),
            _ => (words.is_empty(), false),
        };
        if any || loopback {
            return words.to_vec();
        }
        let number = self.addresses.len() as u64 + 1;
        let made = || {
            let mut new = words.to_vec();
            // The last word as it stands in memory: 10.x.y.z, or a host part under the old family.
            let word =
                u32::from_le_bytes([10, (number >> 16) as u8, (number >> 8) as u8, number as u8]);
            match new.as_mut_slice() {
                [only] => *only = u64::from(word),
                // 2001:db8:: is for documentation (RFC 3849).
                [first, second, third, last] if *third != 0xffff_0000 => {
                    (*first, *second, *third, *last) = (0xb80d_0120, 0, 0, u64::from(word));
                }
                [.., last] => *last = u64::from(word),
                [] => {}
            }
            new
        };
        self.addresses
            .entry(words.to_vec())
            .or_insert_with(made)
            .clone()
    }
}

/// The name of that number among those of a length; `None` behind the last.
fn spelled(mut number: u64, length: usize) -> Option<Vec<u8>> {
    let base = LETTERS.len() as u64;
    let mut name = vec![LETTERS.first().copied().unwrap_or(b'a'); length];
    for place in name.iter_mut().rev() {
        *place = LETTERS
            .get((number % base) as usize)
            .copied()
            .unwrap_or(b'a');
        number /= base;
    }
    (number == 0).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_for_the_same_and_of_its_length() {
        let mut names = Names::default();
        let first = names.path(b"/home/alice/data");
        assert_eq!(first.len(), b"/home/alice/data".len());
        assert_ne!(&*first, b"/home/alice/data");
        assert_eq!(names.path(b"/home/alice/data"), first);
        assert_ne!(names.path(b"/home/carol/data"), first);
        assert_eq!(&*names.path(b"/dev/null"), b"/dev/null");
        assert_eq!(&*names.path(b"/proc/12/stat"), b"/proc/12/stat");
        assert_eq!(names.path(b"\0abstract\0").len(), 10);
    }

    #[test]
    fn short_names_stay_different() {
        let mut names = Names::default();
        let old: Vec<u8> = (1..=255u8)
            .filter(|byte| *byte != b'/' && *byte != b'.')
            .collect();
        let made: HashSet<Vec<u8>> = old
            .iter()
            .map(|byte| names.path(&[*byte]).to_vec())
            .collect();
        assert_eq!(made.len(), old.len());
    }

    #[test]
    fn addresses() {
        let mut names = Names::default();
        assert_eq!(names.address(&[0x0100_007f]), [0x0100_007f]);
        let new = names.address(&[0x0101_a8c0]);
        assert_ne!(new, [0x0101_a8c0]);
        assert_eq!(names.address(&[0x0101_a8c0]), new);
        assert_ne!(names.address(&[0x0201_a8c0]), new);
    }
}
