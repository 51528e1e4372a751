//! Objects of shared memory: memfds and memory mapped shared and anonymous.
//!
//! An object has a pagemap of its own, whose addresses are offsets; only pages that are there are
//! written, which SEEK_DATA and SEEK_HOLE tell. An object without any page has no image.

use crate::context::Context;
use crate::files::FileTable;
use crate::interrupt::Interrupt;
use crate::mm::copy::{PAGE, PageSource};
use crate::mm::pages::create_pagemap;
use anyhow::{Context as _, Result};
use crust_image::{ImageSink, Kind};
use crust_process::huge_pages::huge_page_of;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;

/// Writes every object the files know of; its pages files are numbered from `first` on. Gives the
/// number of pages, and the number of the next pages file.
pub fn write_shmem(
    ctx: &Context,
    images: &dyn ImageSink,
    files: &FileTable,
    first: u32,
    interrupt: &Interrupt,
) -> Result<(u64, u32)> {
    let mut pages_id = first;
    let mut pages = 0;
    for object in files.shmem() {
        let doing = || format!("dump the memory object {}", object.shmid);
        let source = files.open_shmem(ctx, &object).with_context(doing)?;
        let shmid = u64::from(object.shmid);
        let written = write_object(images, shmid, (&source, object.size), pages_id, interrupt)
            .with_context(doing)?;
        pages += written.unwrap_or(0);
        pages_id += u32::from(written.is_some());
    }
    Ok((pages, pages_id))
}

/// Writes the pagemap and pages of one object of so many bytes; `None` if it has no page, and no
/// image then.
pub fn write_object(
    images: &dyn ImageSink,
    shmid: u64,
    (source, size): (&File, u64),
    pages_id: u32,
    interrupt: &Interrupt,
) -> Result<Option<u64>> {
    let check = |pages| interrupt.check_before(pages);
    let extents = Extents {
        file: source,
        at: 0,
        size,
    };
    let runs: Box<dyn Iterator<Item = Result<Range<u64>>>> =
        match huge_page_of(source.as_fd()).context("fstatfs")? {
            None => Box::new(extents),
            Some(page) => Box::new(touched_pages(source, size, page)),
        };
    let mut runs = runs.peekable();
    if runs.peek().is_none() {
        return Ok(None);
    }
    let file = images.create_raw_file(Kind::Pages, Some(u64::from(pages_id)))?;
    let name = (Kind::PagemapShmem, shmid);
    let mut image = create_pagemap(images, name, pages_id, &file, source, &check)?;
    for run in runs {
        let run = run?;
        image.add(run.start, (run.end - run.start) / PAGE, false)?;
    }
    Ok(Some(image.finish()?.written))
}

/// The pages of a file of huge pages that hold something. The file system does not tell holes; a page
/// of zeros is as good as one.
fn touched_pages(
    file: &File,
    size: u64,
    page: u64,
) -> impl Iterator<Item = Result<Range<u64>>> + '_ {
    const PIECE: u64 = 256 << 10;
    let is_touched = move |range: &Range<u64>| -> Result<bool> {
        let mut piece = vec![0; PIECE.min(page) as usize];
        for at in range.clone().step_by(piece.len()) {
            file.read_pages(at, &mut piece)?;
            if piece.iter().any(|byte| *byte != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let pages = (0..size).step_by(page as usize);
    let pages = pages.map(move |start| start..(start + page).min(size));
    pages.filter_map(move |range| match is_touched(&range) {
        Ok(true) => Some(Ok(range)),
        Ok(false) => None,
        Err(error) => Some(Err(error)),
    })
}

/// The extents of a file that hold data, in whole pages.
struct Extents<'a> {
    file: &'a File,
    at: u64,
    size: u64,
}

impl Iterator for Extents<'_> {
    type Item = Result<Range<u64>>;

    fn next(&mut self) -> Option<Result<Range<u64>>> {
        if self.at >= self.size {
            return None;
        }
        let seek = |from: u64, whence| lseek(self.file, from as i64, whence).map(|at| at as u64);
        let start = match seek(self.at, Whence::SeekData) {
            Ok(start) => start / PAGE * PAGE,
            Err(Errno::ENXIO) => return None,
            Err(errno) => return Some(Err(errno).context("SEEK_DATA")),
        };
        let end = match seek(start.max(self.at), Whence::SeekHole) {
            Ok(end) => end.next_multiple_of(PAGE),
            Err(errno) => return Some(Err(errno).context("SEEK_HOLE")),
        };
        self.at = end;
        Some(Ok(start..end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn only_pages_with_data_are_found() {
        let name = format!("crust-extents-{}", std::process::id());
        let file = File::from(
            nix::sys::memfd::memfd_create(name.as_str(), nix::sys::memfd::MFdFlags::empty())
                .expect("memfd"),
        );
        let size = 20 * PAGE + 100;
        file.set_len(size).expect("truncate");
        let runs = |file| -> Vec<_> {
            Extents { file, at: 0, size }
                .map(|run| run.expect("seeks"))
                .collect()
        };
        assert_eq!(runs(&file), []);
        for page in [0, 1, 7, 20] {
            file.write_all_at(b"x", page * PAGE).expect("write");
        }
        assert_eq!(
            runs(&file),
            [0..2 * PAGE, 7 * PAGE..8 * PAGE, 20 * PAGE..21 * PAGE]
        );
    }
}
