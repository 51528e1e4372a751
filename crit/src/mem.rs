//! `crit mem DIR -p PID`: read, search, write and export the memory of a dumped task.

mod export;
mod filter;
mod search;
mod write;

use crate::cli::{self, MemVerb};
use crate::dump::Dump;
use crate::memory::open_dir;
use crate::output::write_output;
use crate::task_memory::{Area, Source, TaskMemory};
use anyhow::{Context, Result, bail};
use crust_image::pages::DumpChain;
use filter::Filter;
use std::io::Write;

/// How much is read at once.
pub(crate) const CHUNK: usize = 1 << 20;

pub fn mem(arguments: &cli::Mem, color: bool) -> Result<()> {
    let dump = Dump::open(&arguments.dir)?;
    let dir = open_dir(dump.path())?;
    let chain = DumpChain::open(&dir)?;
    let mut memory = TaskMemory::open(&dump, &chain, arguments.pid, arguments.root.clone())?;
    match &arguments.verb {
        MemVerb::Maps { areas } => maps(&Filter::new(areas)?.of(&memory)),
        MemVerb::Read {
            address,
            length,
            output,
            hex,
        } => {
            let (start, length) = (number(address)?, number(length)?);
            let to_terminal =
                output.is_none() && std::io::IsTerminal::is_terminal(&std::io::stdout());
            write_output(output.as_deref(), |out| {
                if *hex || to_terminal {
                    return hex_dump(&mut memory, start, length, out);
                }
                each_piece(&mut memory, start, length, |_, bytes| {
                    Ok(out.write_all(bytes)?)
                })
            })
        }
        MemVerb::Search(options) => search::search(&mut memory, options, color),
        MemVerb::Write(options) => {
            dump.must_be_a_directory()?;
            write::write(&arguments.dir, &mut memory, arguments.pid, options)
        }
        MemVerb::Export { areas, output } => {
            export::export(&mut memory, &Filter::new(areas)?, output)
        }
    }
}

/// A number in decimal or with 0x.
pub fn number(text: &str) -> Result<u64> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.with_context(|| format!("{text}: a number is meant to be here"))
}

/// `START-END`, both hex as in maps, with or without 0x.
pub fn range(text: &str) -> Result<(u64, u64)> {
    let parts = text
        .split_once('-')
        .with_context(|| format!("{text}: START-END is meant to be here"))?;
    let hex = |part: &str| u64::from_str_radix(part.trim_start_matches("0x"), 16);
    match (hex(parts.0), hex(parts.1)) {
        (Ok(start), Ok(end)) if start < end => Ok((start, end)),
        _ => bail!("{text}: START-END in hex is meant to be here"),
    }
}

fn maps(areas: &[Area]) -> Result<()> {
    write_output(None, |out| {
        for area in areas {
            let shared = if area.is_shared() { 's' } else { 'p' };
            let offset = area.offset;
            writeln!(
                out,
                "{:x}-{:x} {}{shared} {offset:08x} {:<6} {}",
                area.start,
                area.end,
                area.protection(),
                area.kind,
                area.name()
            )?;
        }
        Ok(())
    })
}

/// Calls `each` with the bytes of a range, piece by piece. A byte that is in no area or not to be
/// had is an error.
fn each_piece(
    memory: &mut TaskMemory<'_>,
    start: u64,
    length: u64,
    mut each: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK.min(usize::try_from(length).unwrap_or(CHUNK))];
    let mut done = 0;
    while done < length {
        let address = start
            .checked_add(done)
            .context("the range ends behind the last address")?;
        let want = (length - done).min(buffer.len() as u64) as usize;
        let (count, source) =
            memory.read_at(address, buffer.get_mut(..want).unwrap_or_default())?;
        match (count, source) {
            (0, _) => bail!("address {address:#x} is in no area of the task"),
            (_, Source::Missing) => bail!(
                "{address:#x}: {} is not in the dump and cannot be opened (--root)",
                memory.area_at(address).map(Area::name).unwrap_or_default()
            ),
            _ => each(address, buffer.get(..count).unwrap_or_default())?,
        }
        done += count as u64;
    }
    Ok(())
}

/// Sixteen bytes a line: address, hex, text.
fn hex_dump(
    memory: &mut TaskMemory<'_>,
    start: u64,
    length: u64,
    out: &mut dyn Write,
) -> Result<()> {
    let mut held: Vec<u8> = Vec::new();
    let mut at = start;
    let mut line = |at: u64, bytes: &[u8]| -> Result<()> {
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = bytes
            .iter()
            .map(|byte| {
                if (0x20..0x7f).contains(byte) {
                    char::from(*byte)
                } else {
                    '.'
                }
            })
            .collect();
        Ok(writeln!(out, "{at:016x}  {:<47}  {text}", hex.join(" "))?)
    };
    each_piece(memory, start, length, |_, bytes| {
        held.extend_from_slice(bytes);
        let whole = held.len() / 16 * 16;
        for chunk in held.get(..whole).unwrap_or_default().chunks(16) {
            line(at, chunk)?;
            at += 16;
        }
        held.drain(..whole);
        Ok(())
    })?;
    if held.is_empty() {
        Ok(())
    } else {
        line(at, &held)
    }
}
