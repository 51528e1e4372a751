//! Search through a task's memory as a stream: a match may cross pages and areas' runs, memory use
//! does not grow with the target.

use super::filter::Filter;
use super::{CHUNK, number};
use crate::cli::MemSearch;
use crate::color::{RED, painted};
use crate::output::write_output;
use crate::task_memory::{Area, Source, TaskMemory};
use anyhow::{Context, Result, bail};
use regex::bytes::{Regex, RegexBuilder};
use std::io::Write;

/// The longest match of a regular expression that is sure to be found across the end of a piece.
const OVERLAP: usize = 4096;

pub fn search(memory: &mut TaskMemory<'_>, options: &MemSearch, color: bool) -> Result<()> {
    let (regex, overlap) = pattern(options)?;
    let areas = Filter::new(&options.areas)?.of(memory);
    let most = options.max.as_deref().map(number).transpose()?;
    let mut found = Found {
        left: most.unwrap_or(u64::MAX),
        any: false,
        color,
    };
    write_output(None, |out| {
        let mut buffer = vec![0; CHUNK];
        for area in areas {
            let mut scan = Scan {
                regex: &regex,
                overlap,
                held: Vec::new(),
                at: area.start,
            };
            let mut address = area.start;
            while address < area.end && found.left > 0 {
                let want = (area.end - address).min(CHUNK as u64) as usize;
                let piece = buffer.get_mut(..want).unwrap_or_default();
                let (count, source) = memory.read_at(address, piece)?;
                if count == 0 {
                    break;
                }
                let readable =
                    source == Source::Dumped || (options.files && source == Source::File);
                let bytes = readable.then(|| piece.get(..count).unwrap_or_default());
                scan.piece(address, bytes, |place, bytes| {
                    found.tell(out, &area, place, bytes)
                })?;
                address += count as u64;
            }
            scan.piece(address, None, |place, bytes| {
                found.tell(out, &area, place, bytes)
            })?;
        }
        Ok(())
    })?;
    if !found.any {
        bail!("nothing found");
    }
    Ok(())
}

/// What is told of matches.
struct Found {
    /// How many more are wanted.
    left: u64,
    any: bool,
    color: bool,
}

impl Found {
    fn tell(&mut self, out: &mut dyn Write, area: &Area, place: u64, bytes: &[u8]) -> Result<()> {
        let Some(left) = self.left.checked_sub(1) else {
            return Ok(());
        };
        self.left = left;
        self.any = true;
        let start = bytes.get(..bytes.len().min(64)).unwrap_or_default();
        let text = painted(&start.escape_ascii().to_string(), RED, self.color);
        let (protection, name) = (area.protection(), area.name());
        Ok(writeln!(out, "{place:#x}  {protection}  {name}  {text}")?)
    }
}

/// The expression and how much of a piece's end must be kept for the next.
fn pattern(options: &MemSearch) -> Result<(Regex, usize)> {
    let (text, overlap) = if options.regex {
        (options.pattern.clone(), OVERLAP)
    } else if options.hex {
        let bytes = hex_bytes(&options.pattern)?;
        (
            bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect(),
            bytes.len(),
        )
    } else {
        (regex::escape(&options.pattern), options.pattern.len())
    };
    if text.is_empty() {
        bail!("an empty pattern is everywhere");
    }
    let regex = RegexBuilder::new(&text)
        .unicode(!options.hex)
        .dot_matches_new_line(true)
        .build();
    Ok((
        regex.with_context(|| format!("pattern {}", options.pattern))?,
        overlap.max(1),
    ))
}

/// The bytes of hex digits, blanks between them allowed.
pub fn hex_bytes(text: &str) -> Result<Vec<u8>> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let bytes: Option<Vec<u8>> = digits
        .chunks(2)
        .map(|pair| match pair {
            [_, _] => u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok(),
            _ => None,
        })
        .collect();
    bytes.with_context(|| format!("{text}: pairs of hex digits are meant to be here"))
}

/// Pieces that follow each other, searched together over their joints.
struct Scan<'a> {
    regex: &'a Regex,
    overlap: usize,
    held: Vec<u8>,
    /// Address of the first byte held.
    at: u64,
}

impl Scan<'_> {
    /// The next piece; `None` is a gap: what is held is searched to its end.
    fn piece(
        &mut self,
        address: u64,
        bytes: Option<&[u8]>,
        mut found: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        if let Some(bytes) = bytes {
            if self.held.is_empty() {
                self.at = address;
            }
            self.held.extend_from_slice(bytes);
        }
        // A match that begins behind this could go on in the next piece.
        let sure = if bytes.is_some() {
            self.held.len().saturating_sub(self.overlap)
        } else {
            self.held.len()
        };
        let mut keep_from = sure;
        for place in self
            .regex
            .find_iter(&self.held)
            .filter(|place| !place.is_empty())
        {
            if place.start() >= sure {
                break;
            }
            found(self.at + place.start() as u64, place.as_bytes())?;
            keep_from = keep_from.max(place.end());
        }
        self.held.drain(..keep_from.min(self.held.len()));
        self.at += keep_from as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_cross_pieces_and_not_gaps() {
        let regex = Regex::new("needle").unwrap();
        let mut scan = Scan {
            regex: &regex,
            overlap: 6,
            held: Vec::new(),
            at: 0,
        };
        let mut found = Vec::new();
        let pieces: [(u64, Option<&[u8]>); 5] = [
            (100, Some(b"xxnee")),
            (105, Some(b"dle needle")),
            (115, None),
            (200, Some(b"nee")),
            (203, None),
        ];
        for (address, bytes) in pieces {
            scan.piece(address, bytes, |place, _| {
                found.push(place);
                Ok(())
            })
            .unwrap();
        }
        assert_eq!(found, [102, 109]);
    }

    #[test]
    fn hex() {
        assert_eq!(hex_bytes("00 fF1a").unwrap(), [0, 0xff, 0x1a]);
        assert!(hex_bytes("0").is_err() && hex_bytes("0g").is_err());
    }
}
