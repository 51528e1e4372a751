//! `crit flatten` and `crit dedup`: chains of incremental dumps.
//!
//! Flatten makes a dump that needs no parent: every pagemap is resolved down the chain and its pages
//! are written into one file. Dedup frees, in the parents, pages that a later dump holds anew: nobody
//! reads them through the chain any more (the parent alone is no whole dump after that).

use crate::cli;
use crate::dump::Dump;
use crate::memory::open_for_change;
use crate::transaction::{Transaction, digest_as, renew_digest};
use anyhow::{Context, Result, bail};
use crust_image::Kind;
use crust_image::dynamic::{Message, Value};
use crust_image::json::Image;
use crust_image::json::frame::Entry;
use crust_image::pages::{DumpChain, PAGE_SIZE, PE_LAZY, PE_PRESENT, PageRun, Pagemap};
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub fn flatten(arguments: &cli::Flatten) -> Result<()> {
    let dump = Dump::open(&arguments.dir)?;
    let dir = open_for_change(dump.path())?;
    let chain = DumpChain::open(&dir)?;
    let out = &arguments.out;
    fs::create_dir(out).with_context(|| format!("{}: create", out.display()))?;
    let filled = fill(&dump, &chain, out);
    if filled.is_err() {
        // A part of a dump is worth nothing, and the directory is ours.
        fs::remove_dir_all(out)
            .with_context(|| format!("{}: remove what was written", out.display()))?;
    }
    filled
}

fn fill(dump: &Dump, chain: &DumpChain<'_>, out: &Path) -> Result<()> {
    let mut transaction = Transaction::begin(out)?;
    for name in dump.names()? {
        let Some((kind, id)) = Kind::of_file_name(std::ffi::OsStr::new(&name)) else {
            continue;
        };
        match kind {
            // Written with the pagemap that names them, and behind everything else.
            Kind::Pages | Kind::Digest | Kind::DigestPages => {}
            Kind::Pagemap | Kind::PagemapShmem => {
                let image = dump
                    .image(kind, id)?
                    .with_context(|| format!("{name}: it went away"))?;
                let runs = chain.resolve(kind, id.unwrap_or(0))?.unwrap_or_default();
                let pages_id = image
                    .messages()
                    .next()
                    .and_then(|head| head.u64("pages_id"));
                let pages_id = pages_id.with_context(|| format!("{name}: no head"))?;
                transaction.put(&Kind::Pages.file_name(Some(pages_id)), |out| {
                    copy_pages(chain, &runs, out)
                })?;
                let image = whole_pagemap(image, &runs)?;
                transaction.put(&name, |out| Ok(image.write(out)?))?;
            }
            _ => {
                let mut from = dump
                    .read_file(&name)?
                    .with_context(|| format!("{name}: it went away"))?;
                transaction.put(&name, |out| Ok(io::copy(&mut from, out).map(drop)?))?;
            }
        }
    }
    transaction.commit()?;
    digest_as(dump.path(), out)
}

fn copy_pages(chain: &DumpChain<'_>, runs: &[PageRun], out: &mut dyn Write) -> Result<()> {
    for run in runs {
        let mut file = chain.open_pages(&run.source)?;
        file.seek(SeekFrom::Start(run.source.file_offset))?;
        let copied = io::copy(&mut file.take(run.len()), out)?;
        if copied < run.len() {
            bail!(
                "the pages at {:#x} end after {copied} of {} bytes",
                run.vaddr,
                run.len()
            );
        }
    }
    Ok(())
}

/// The pagemap with its head, and runs that are all present.
fn whole_pagemap(mut image: Image, runs: &[PageRun]) -> Result<Image> {
    let def =
        crust_proto::schema::message("pagemap_entry").context("the schema has no pagemap_entry")?;
    image.entries.truncate(1);
    let mut merged: Vec<(u64, u64, u64)> = Vec::new();
    for run in runs {
        let flags = u64::from(PE_PRESENT | if run.lazy { PE_LAZY } else { 0 });
        match merged.last_mut() {
            Some((start, pages, same))
                if *same == flags && *start + *pages * PAGE_SIZE == run.vaddr =>
            {
                *pages += run.nr_pages
            }
            _ => merged.push((run.vaddr, run.nr_pages, flags)),
        }
    }
    for (start, pages, flags) in merged {
        let mut message = Message::new(def);
        for (field, value) in [
            ("vaddr", start),
            ("compat_nr_pages", 0),
            ("flags", flags),
            ("nr_pages", pages),
        ] {
            let field = def
                .field_named(field)
                .context("pagemap_entry has other fields")?;
            message.push(field, Value::Unsigned(value));
        }
        let index = image.entries.len() as u64;
        image.entries.push((
            Entry {
                index,
                offset: 0,
                message,
                wire: None,
            },
            Vec::new(),
        ));
    }
    Ok(image)
}

pub fn dedup(arguments: &cli::Dedup) -> Result<()> {
    let dir = open_for_change(&arguments.dir)?;
    let chain = DumpChain::open(&dir)?;
    if chain.levels() == 1 {
        bail!("{}: it has no parent", arguments.dir.display());
    }
    let mut freed = 0;
    for kind in [Kind::Pagemap, Kind::PagemapShmem] {
        for id in dir.ids_of(kind)? {
            freed += dedup_object(&chain, kind, id)?;
        }
    }
    println!("{} bytes freed in the parent dumps", freed);
    Ok(())
}

/// Frees the pages of an object that a nearer dump has too.
fn dedup_object(chain: &DumpChain<'_>, kind: Kind, id: u64) -> Result<u64> {
    // Ranges that nearer dumps have, by their starts, without overlap.
    let mut nearer: Vec<(u64, u64)> = Vec::new();
    let mut freed = 0;
    for level in 0..chain.levels() {
        let Some(dir) = chain.dir(level) else { break };
        let Some(pagemap) = Pagemap::read(dir, kind, id)? else {
            break;
        };
        let name = Kind::Pages.file_name(Some(pagemap.pages_id.into()));
        let mut file: Option<File> = None;
        for (run, offset) in pagemap.placed_runs() {
            let Some(offset) = offset else { continue };
            let first = nearer.partition_point(|(_, end)| *end <= run.vaddr);
            let behind = nearer.get(first..).unwrap_or_default().iter();
            for (start, end) in behind.take_while(|(start, _)| *start < run.end()) {
                let (from, to) = (run.vaddr.max(*start), run.end().min(*end));
                let path = dir.path().join(&name);
                let file = match &mut file {
                    Some(file) => file,
                    none => none.insert(
                        File::options()
                            .write(true)
                            // A link in an untrusted directory must not lead the hole elsewhere.
                            .custom_flags(OFlag::O_NOFOLLOW.bits())
                            .open(&path)
                            .with_context(|| format!("{}: open", path.display()))?,
                    ),
                };
                punch(file, offset + (from - run.vaddr), to - from)
                    .with_context(|| format!("{}: free pages", path.display()))?;
                freed += to - from;
            }
        }
        if file.is_some() {
            renew_digest(dir.path(), &[name])?;
        }
        let present = pagemap.placed_runs().filter(|(_, offset)| offset.is_some());
        nearer.extend(present.map(|(run, _)| (run.vaddr, run.end())));
        nearer.sort_unstable();
        nearer.dedup_by(|next, kept| {
            let joins = next.0 <= kept.1;
            kept.1 = if joins { kept.1.max(next.1) } else { kept.1 };
            joins
        });
    }
    Ok(freed)
}

fn punch(file: &File, offset: u64, length: u64) -> Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(
        file,
        flags,
        i64::try_from(offset)?,
        i64::try_from(length)?,
    )?)
}
