//! Writing into a dumped task's memory.
//!
//! A page that lies in this dump's pages file is changed there. One that does not (it is in the
//! parent dump, or was never touched) gets a page of its own: pagemap and pages file are made anew
//! with it and put in place together. A page of a file mapped shared is the file's, and refused.

use super::number;
use super::search::hex_bytes;
use crate::cli::MemWrite;
use crate::memory::open_for_change;
use crate::output::open_regular;
use crate::task_memory::{Backing, Source, TaskMemory};
use crate::transaction::Transaction;
use anyhow::{Context, Result, bail};
use crust_image::dynamic::Value;
use crust_image::json::frame::Entry;
use crust_image::json::{FrameReader, Image};
use crust_image::pages::PAGE_SIZE;
use crust_image::pages::{PE_PRESENT, Pagemap};
use crust_image::{ImageDir, Kind};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

pub fn write(dir: &Path, memory: &mut TaskMemory<'_>, pid: u64, options: &MemWrite) -> Result<()> {
    let address = number(&options.address)?;
    let bytes = match (&options.hex, &options.text, &options.input) {
        (Some(hex), _, _) => hex_bytes(hex)?,
        (_, Some(text), _) => text.clone().into_bytes(),
        (_, _, Some(file)) => {
            fs::read(file).with_context(|| format!("{}: read", file.display()))?
        }
        _ => bail!("give the bytes with --hex, --text or --input"),
    };
    let pages = changed_pages(memory, address, &bytes)?;
    let mut by_object: BTreeMap<(bool, u64), BTreeMap<u64, Vec<u8>>> = BTreeMap::new();
    for (page, content) in pages {
        let (object, place) = object_of(memory, pid, page)?;
        by_object.entry(object).or_default().insert(place, content);
    }
    let images = open_for_change(dir)?;
    let mut transaction = Transaction::begin(dir)?;
    for ((shared, id), pages) in by_object {
        let kind = if shared {
            Kind::PagemapShmem
        } else {
            Kind::Pagemap
        };
        put_pages(&images, dir, kind, id, &pages, &mut transaction)?;
    }
    transaction.commit()
}

/// The whole pages that the bytes fall into, with the bytes in them.
fn changed_pages(
    memory: &mut TaskMemory<'_>,
    address: u64,
    bytes: &[u8],
) -> Result<BTreeMap<u64, Vec<u8>>> {
    if bytes.is_empty() {
        bail!("nothing to write");
    }
    let last = address
        .checked_add(bytes.len() as u64 - 1)
        .context("the bytes end behind the last address")?;
    let mut pages = BTreeMap::new();
    for page in (address / PAGE_SIZE..=last / PAGE_SIZE).map(|number| number * PAGE_SIZE) {
        let mut content = vec![0; PAGE_SIZE as usize];
        let mut done = 0;
        while let Some(rest) = content.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let (count, source) = memory.read_at(page + done as u64, rest)?;
            if count == 0 || source == Source::Missing {
                bail!(
                    "{:#x}: the page's content is in no area, or not to be had",
                    page + done as u64
                );
            }
            done += count;
        }
        for (at, byte) in bytes.iter().enumerate() {
            let place = address + at as u64;
            if let Some(there) = place
                .checked_sub(page)
                .and_then(|at| content.get_mut(at as usize))
            {
                *there = *byte;
            }
        }
        pages.insert(page, content);
    }
    Ok(pages)
}

/// Which pagemap a page belongs to (shared or not, its id) and at what address or offset there.
fn object_of(memory: &TaskMemory<'_>, pid: u64, page: u64) -> Result<((bool, u64), u64)> {
    let area = memory
        .area_at(page)
        .with_context(|| format!("{page:#x} is in no area"))?;
    match &area.backing {
        Backing::Shared(id) if area.is_shared() => {
            Ok(((true, *id), area.offset + (page - area.start)))
        }
        Backing::File(path) if area.is_shared() => {
            bail!("{page:#x}: a page of {path}, which is mapped shared: its content is the file's")
        }
        Backing::Kernel => bail!("{page:#x}: memory of the kernel"),
        _ => Ok(((false, pid), page)),
    }
}

/// Puts whole pages into the pages of an object.
fn put_pages(
    images: &ImageDir,
    dir: &Path,
    kind: Kind,
    id: u64,
    pages: &BTreeMap<u64, Vec<u8>>,
    transaction: &mut Transaction,
) -> Result<()> {
    let name = kind.file_name(Some(id));
    let pagemap = Pagemap::read(images, kind, id)?
        .with_context(|| format!("{name}: there is no such image to hold the page"))?;
    let path = dir.join(Kind::Pages.file_name(Some(pagemap.pages_id.into())));
    let old = open_regular(&path).with_context(|| format!("{}: open", path.display()))?;
    // What the pagemap holds, a page at a time: its flags and where its content is.
    let mut plan: BTreeMap<u64, (u32, Option<u64>)> = BTreeMap::new();
    for (run, offset) in pagemap.placed_runs() {
        for number in 0..run.nr_pages {
            let at = number * PAGE_SIZE;
            plan.insert(
                run.vaddr + at,
                (run.flags, offset.map(|offset| offset + at)),
            );
        }
    }
    let in_place = pages
        .keys()
        .all(|page| matches!(plan.get(page), Some((_, Some(_)))));
    let new_pages = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    if in_place {
        return put_copy(&old, &new_pages, pages, &plan, transaction);
    }
    for page in pages.keys() {
        let flags = plan
            .get(page)
            .map_or(PE_PRESENT, |(flags, _)| flags & !1 | PE_PRESENT);
        plan.insert(*page, (flags, None));
    }
    transaction.put(&new_pages, |out| {
        let mut content = vec![0; PAGE_SIZE as usize];
        for (page, (_, offset)) in &plan {
            match (pages.get(page), offset) {
                (Some(bytes), _) => out.write_all(bytes)?,
                (None, Some(offset)) => {
                    old.read_exact_at(&mut content, *offset)
                        .context("read a page")?;
                    out.write_all(&content)?;
                }
                // In the parent dump.
                (None, None) => {}
            }
        }
        Ok(())
    })?;
    let image = rebuilt_pagemap(dir, &name, &plan)?;
    transaction.put(&name, |out| Ok(image.write(out)?))
}

/// The same pages file with other content in some pages.
fn put_copy(
    old: &File,
    name: &str,
    pages: &BTreeMap<u64, Vec<u8>>,
    plan: &BTreeMap<u64, (u32, Option<u64>)>,
    transaction: &mut Transaction,
) -> Result<()> {
    let mut changed: Vec<(u64, &Vec<u8>)> = Vec::new();
    for (page, content) in pages {
        if let Some((_, Some(offset))) = plan.get(page) {
            changed.push((*offset, content));
        }
    }
    changed.sort_by_key(|(offset, _)| *offset);
    let length = old.metadata()?.len();
    transaction.put(name, |out| {
        let mut at = 0;
        let mut buffer = vec![0; super::CHUNK];
        for (offset, content) in changed
            .iter()
            .map(|(offset, content)| (*offset, Some(*content)))
            .chain([(length, None)])
        {
            while at < offset {
                let want = (offset - at).min(super::CHUNK as u64) as usize;
                let piece = buffer.get_mut(..want).unwrap_or_default();
                old.read_exact_at(piece, at).context("read pages")?;
                out.write_all(piece)?;
                at += want as u64;
            }
            if let Some(content) = content {
                out.write_all(content)?;
                at += content.len() as u64;
            }
        }
        Ok(())
    })
}

/// The pagemap image with its head as it was and runs made of single pages.
fn rebuilt_pagemap(
    dir: &Path,
    name: &str,
    plan: &BTreeMap<u64, (u32, Option<u64>)>,
) -> Result<Image> {
    let file = open_regular(&dir.join(name)).with_context(|| format!("{name}: open"))?;
    let mut reader = FrameReader::open(std::io::BufReader::new(file))?;
    let head = reader
        .next_entry()?
        .with_context(|| format!("{name}: no head"))?;
    let (kind, version) = (reader.kind(), reader.version());
    let mut entries = vec![(head, Vec::new())];
    let mut runs: Vec<(u64, u64, u32)> = Vec::new();
    for (page, (flags, _)) in plan {
        match runs.last_mut() {
            Some((start, count, same)) if same == flags && *start + *count * PAGE_SIZE == *page => {
                *count += 1
            }
            _ => runs.push((*page, 1, *flags)),
        }
    }
    let def =
        crust_proto::schema::message("pagemap_entry").context("the schema has no pagemap_entry")?;
    for (start, count, flags) in runs {
        let mut message = crust_image::dynamic::Message::new(def);
        let values = [
            ("vaddr", start),
            ("compat_nr_pages", 0),
            ("flags", u64::from(flags)),
            ("nr_pages", count),
        ];
        for (field, value) in values {
            let field = def
                .field_named(field)
                .context("pagemap_entry has other fields")?;
            message.push(field, Value::Unsigned(value));
        }
        let entry = Entry {
            index: entries.len() as u64,
            offset: 0,
            message,
            wire: None,
        };
        entries.push((entry, Vec::new()));
    }
    Ok(Image {
        kind,
        version,
        entries,
    })
}
