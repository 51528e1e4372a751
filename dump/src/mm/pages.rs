//! Which pages of a task go into its images, and the pagemap image that says where they are.
//!
//! PAGEMAP_SCAN finds the pages: present or swapped, not the zero page, and in a mapping of a file
//! only those the task has written (what is still the file's is the file's to bring back). The vdso
//! is written whole: a restorer on another kernel compares it with its own. Runs are written to the
//! pagemap while they are found, so nothing grows with the size of the task.

use crate::mm::copy::{Copier, PAGE, PageSource};
use anyhow::{Context, Result};
use crust_image::sink::SinkWriter;
use crust_image::{ImageSink, Kind};
use crust_proto::criu::{PagemapEntry, PagemapHead};
use std::fs::File;

/// pagemap_entry.flags: the pages are in the pages file.
const PRESENT: u32 = 4;
/// The pages are in the dump before.
const PARENT: u32 = 1;
/// The pages may be restored later, when they are touched.
const LAZY: u32 = 2;

/// A pagemap image under way, with its pages file.
pub struct PagemapImage<'a, S> {
    entries: SinkWriter,
    /// The same for other tasks in the same address space.
    copies: Vec<SinkWriter>,
    copier: Copier<'a, S>,
    /// The run that the next one may prolong.
    last: Option<Run>,
    in_parent: u64,
}

/// How many pages an object has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Written.
    pub written: u64,
    /// Left to the dump before.
    pub in_parent: u64,
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Counts>>(all: I) -> Counts {
        all.fold(Counts::default(), |sum, one| Counts {
            written: sum.written + one.written,
            in_parent: sum.in_parent + one.in_parent,
        })
    }
}

/// Pages one after the other, with the same flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    addr: u64,
    pages: u64,
    flags: u32,
}

/// Begins the pagemap of an object (`kind` and `id` name its image). `check` is asked now and then
/// whether to go on.
pub fn create_pagemap<'a, S: PageSource>(
    images: &dyn ImageSink,
    (kind, id): (Kind, u64),
    pages_id: u32,
    pages: &'a File,
    source: &'a S,
    check: &'a (dyn Fn(u64) -> Result<()> + Sync),
) -> Result<PagemapImage<'a, S>> {
    let mut entries = images.create(kind, Some(id))?;
    entries.entry(&PagemapHead { pages_id })?;
    Ok(PagemapImage {
        entries,
        copies: Vec::new(),
        copier: Copier::new(source, pages, check),
        last: None,
        in_parent: 0,
    })
}

impl<S: PageSource> PagemapImage<'_, S> {
    /// Another task has the same memory: a pagemap of its own leads to the same pages file. To be
    /// said before any page is added.
    pub fn also_for(&mut self, mut entries: SinkWriter, pages_id: u32) -> Result<()> {
        entries.entry(&PagemapHead { pages_id })?;
        self.copies.push(entries);
        Ok(())
    }

    /// Adds a run of pages behind all before it.
    pub fn add(&mut self, addr: u64, pages: u64, lazy: bool) -> Result<()> {
        self.copier.add(addr, pages)?;
        self.add_run(addr, pages, if lazy { PRESENT | LAZY } else { PRESENT })
    }

    /// Adds a run of pages that lie in the pages file already, written for another pagemap.
    pub fn add_written(&mut self, addr: u64, pages: u64, lazy: bool) -> Result<()> {
        self.add_run(addr, pages, if lazy { PRESENT | LAZY } else { PRESENT })
    }

    /// Adds a run of pages that are in the dump before.
    pub fn add_parent(&mut self, addr: u64, pages: u64, lazy: bool) -> Result<()> {
        self.in_parent += pages;
        self.add_run(addr, pages, if lazy { PARENT | LAZY } else { PARENT })
    }

    fn add_run(&mut self, addr: u64, pages: u64, flags: u32) -> Result<()> {
        match &mut self.last {
            Some(last) if last.flags == flags && last.addr + last.pages * PAGE == addr => {
                last.pages += pages;
            }
            _ => {
                self.write_last()?;
                self.last = Some(Run { addr, pages, flags });
            }
        }
        Ok(())
    }

    /// Copies what is left.
    pub fn finish(mut self) -> Result<Counts> {
        self.write_last()?;
        let written = self.copier.finish()?;
        for entries in std::iter::once(self.entries).chain(self.copies) {
            entries.finish().context("write the end of a pagemap")?;
        }
        Ok(Counts {
            written,
            in_parent: self.in_parent,
        })
    }

    fn write_last(&mut self) -> Result<()> {
        if let Some(run) = self.last.take() {
            let entry = PagemapEntry {
                vaddr: run.addr,
                // Readers of our time look at nr_pages only, and the peer writes 0 here.
                compat_nr_pages: 0,
                in_parent: None,
                flags: Some(run.flags),
                nr_pages: Some(run.pages),
            };
            for entries in std::iter::once(&mut self.entries).chain(&mut self.copies) {
                entries.entry(&entry)?;
            }
        }
        Ok(())
    }
}
