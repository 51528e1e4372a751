//! The bytes of areas in sparse files, with a table of what is where on stdout.

use super::CHUNK;
use super::filter::Filter;
use crate::output::{write_output, write_seekable};
use crate::task_memory::{Area, Source, TaskMemory};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

pub fn export(memory: &mut TaskMemory<'_>, filter: &Filter<'_>, output: &Path) -> Result<()> {
    let areas = filter.of(memory);
    if areas.is_empty() {
        bail!("no such area (`crit mem ... maps` lists them)");
    }
    let mut table = Vec::new();
    if output.is_dir() {
        for area in &areas {
            let name = format!("{:x}-{:x}.{}", area.start, area.end, area.kind);
            let mut there = 0;
            write_seekable(&output.join(&name), |file| {
                file.set_len(area.end - area.start)?;
                there = put(memory, area, file, 0)?;
                Ok(())
            })?;
            table.push(row(area, &name, there));
        }
    } else {
        write_seekable(output, |file| {
            let mut next = 0u64;
            for area in &areas {
                // A range stays one piece, with holes between its areas.
                let at = filter.range.map_or(next, |(start, _)| area.start - start);
                next = at
                    .checked_add(area.end - area.start)
                    .context("more than a file can hold")?;
                let there = put(memory, area, file, at)?;
                table.push(row(area, &format!("{at:#x}"), there));
            }
            let end = filter.range.map_or(next, |(start, end)| end - start);
            file.set_len(end).context("make the file that long")
        })?;
    }
    write_output(None, |out| {
        table
            .iter()
            .try_for_each(|line| Ok(writeln!(out, "{line}")?))
    })
}

/// Place, area and what came of it.
fn row(area: &Area, place: &str, missing: u64) -> String {
    let note = match missing {
        0 => String::new(),
        bytes => format!("  ({bytes} bytes are not in the dump and cannot be had)"),
    };
    format!(
        "{place:<14} {:x}-{:x} {} {}{note}",
        area.start,
        area.end,
        area.protection(),
        area.name()
    )
}

/// Writes the bytes of an area at an offset of the file; how many were not to be had.
fn put(memory: &mut TaskMemory<'_>, area: &Area, file: &mut File, at: u64) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut address = area.start;
    let mut missing = 0;
    while address < area.end {
        let want = (area.end - address).min(CHUNK as u64) as usize;
        let (count, source) =
            memory.read_at(address, buffer.get_mut(..want).unwrap_or_default())?;
        if count == 0 {
            break;
        }
        match source {
            Source::Dumped | Source::File => {
                file.seek(SeekFrom::Start(at + (address - area.start)))?;
                file.write_all(buffer.get(..count).unwrap_or_default())?;
            }
            Source::Missing => missing += count as u64,
            Source::Zero => {}
        }
        address += count as u64;
    }
    Ok(missing)
}
