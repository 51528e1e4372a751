//! Copies pages of a frozen task, or of a memory object, into a pages file.
//!
//! Two threads each read 256 KiB, which stays in the L2 cache, and write them where they belong:
//! measured within a few percent of one write(2) of our own memory (`crust-bench`). Reads go
//! through /proc/PID/mem, which neither pins nor unshares pages. What is held at a time is
//! bounded by [`Copier::BATCH_PAGES`], whatever the task's size.

use anyhow::{Context, Result};
use crust_process::memory::TaskMem;
use rayon::prelude::*;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Size of a page in the images.
pub const PAGE: u64 = 4096;
/// Pages read and written at once.
const PIECE_PAGES: u64 = 64;

/// Something pages are read from, by several threads at once.
pub trait PageSource: Sync {
    /// Fills `buf` from `addr`, an address or an offset, on.
    fn read_pages(&self, addr: u64, buf: &mut [u8]) -> Result<()>;
}

impl PageSource for TaskMem {
    fn read_pages(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        Ok(self.read_exact_at(addr, buf)?)
    }
}

impl PageSource for File {
    /// The last page of an object whose size is no multiple of pages ends in zeros.
    fn read_pages(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.read_at(&mut buf[done..], addr + done as u64)? {
                0 => {
                    buf[done..].fill(0);
                    break;
                }
                len => done += len,
            }
        }
        Ok(())
    }
}

/// Pages that go to the pages file one after the other: pieces of runs.
#[derive(Debug, Default)]
struct Piece {
    /// Offset in the pages file.
    offset: u64,
    /// Addresses and numbers of pages.
    parts: Vec<(u64, u64)>,
    pages: u64,
}

/// Gathers runs of pages and copies them in batches.
pub struct Copier<'a, S> {
    source: &'a S,
    out: &'a File,
    /// Asked before each batch of so many pages, some 30 milliseconds apart: an error ends the
    /// copying.
    check: &'a (dyn Fn(u64) -> Result<()> + Sync),
    pieces: Vec<Piece>,
    waiting: u64,
    written: u64,
}

impl<'a, S: PageSource> Copier<'a, S> {
    /// 64 MiB: large enough that the end of a batch, where one thread waits for the other, does
    /// not count; what is kept for each is its list of runs only.
    const BATCH_PAGES: u64 = 16384;
    /// 2 MiB are copied in the time it takes to start threads.
    const PIECES_ALONE: usize = 8;

    /// Copies from `source` to the beginning of `out`.
    pub fn new(
        source: &'a S,
        out: &'a File,
        check: &'a (dyn Fn(u64) -> Result<()> + Sync),
    ) -> Copier<'a, S> {
        Copier {
            source,
            out,
            check,
            pieces: Vec::new(),
            waiting: 0,
            written: 0,
        }
    }

    /// Adds a run of pages; it may be copied later.
    pub fn add(&mut self, mut addr: u64, mut pages: u64) -> Result<()> {
        while pages > 0 {
            let now = pages.min(PIECE_PAGES - self.open_piece().pages);
            let piece = self.open_piece();
            piece.parts.push((addr, now));
            piece.pages += now;
            addr += now * PAGE;
            pages -= now;
            self.waiting += now;
            if self.waiting >= Self::BATCH_PAGES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Copies what waits; gives the number of pages written in all.
    pub fn finish(mut self) -> Result<u64> {
        self.flush()?;
        Ok(self.written)
    }

    /// The piece that still has room.
    fn open_piece(&mut self) -> &mut Piece {
        if self
            .pieces
            .last()
            .is_none_or(|piece| piece.pages == PIECE_PAGES)
        {
            let offset = (self.written + self.waiting) * PAGE;
            self.pieces.push(Piece {
                offset,
                ..Piece::default()
            });
        }
        let last = self.pieces.len() - 1;
        &mut self.pieces[last]
    }

    fn flush(&mut self) -> Result<()> {
        (self.check)(self.waiting)?;
        let pieces = std::mem::take(&mut self.pieces);
        let (source, out) = (self.source, self.out);
        if pieces.len() <= Self::PIECES_ALONE {
            let mut buf = Vec::new();
            pieces
                .iter()
                .try_for_each(|piece| copy_piece(source, out, piece, &mut buf))?;
        } else {
            copy_together(source, out, &pieces)?;
        }
        self.written += self.waiting;
        self.waiting = 0;
        Ok(())
    }
}

/// As many threads as there are, each with one buffer, take piece after piece.
fn copy_together<S: PageSource>(source: &S, out: &File, pieces: &[Piece]) -> Result<()> {
    let next = AtomicUsize::new(0);
    let copy_some = |_| {
        let mut buf = Vec::new();
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            copy_piece(source, out, piece, &mut buf)?;
        }
        Ok(())
    };
    (0..rayon::current_num_threads())
        .into_par_iter()
        .with_max_len(1)
        .try_for_each(copy_some)
}

fn copy_piece<S: PageSource>(
    source: &S,
    out: &File,
    piece: &Piece,
    buf: &mut Vec<u8>,
) -> Result<()> {
    crust_process::steps::step();
    buf.resize((PIECE_PAGES * PAGE) as usize, 0);
    let mut rest = &mut buf[..(piece.pages * PAGE) as usize];
    for (addr, pages) in &piece.parts {
        let (part, behind) = rest.split_at_mut((pages * PAGE) as usize);
        source
            .read_pages(*addr, part)
            .with_context(|| format!("read {pages} pages at {addr:#x}"))?;
        rest = behind;
    }
    let len = (piece.pages * PAGE) as usize;
    out.write_all_at(&buf[..len], piece.offset)
        .with_context(|| format!("write {len} bytes of pages"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Every page of it is filled with its own number.
    #[derive(Default)]
    struct Numbered(Mutex<u64>);

    impl PageSource for Numbered {
        fn read_pages(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
            let (pages, _) = buf.as_chunks_mut::<{ PAGE as usize }>();
            for (index, page) in pages.iter_mut().enumerate() {
                page.fill(((addr / PAGE + index as u64) % 251) as u8);
            }
            *self.0.lock().expect("no reader panics") += 1;
            Ok(())
        }
    }

    #[test]
    fn runs_land_one_after_the_other() {
        let path = std::env::temp_dir().join(format!("crust-copy-{}", std::process::id()));
        let options = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .clone();
        let out = options.open(&path).expect("open a file");
        let source = Numbered::default();
        let mut copier = Copier::new(&source, &out, &|_| Ok(()));
        // Many small runs, one that crosses pieces, one that crosses batches.
        let mut expected = Vec::new();
        for run in (0..300)
            .map(|n| (n * 7, 1))
            .chain([(5000, 200), (9000, 40000)])
        {
            copier.add(run.0 * PAGE, run.1).expect("adds");
            expected.extend((run.0..run.0 + run.1).map(|page| (page % 251) as u8));
        }
        assert_eq!(copier.finish().expect("finishes"), expected.len() as u64);
        let bytes = std::fs::read(&path).expect("read it back");
        assert_eq!(bytes.len() as u64, expected.len() as u64 * PAGE);
        for (page, number) in bytes.chunks(PAGE as usize).zip(expected) {
            assert!(page.iter().all(|byte| *byte == number));
        }
        std::fs::remove_file(&path).expect("remove");
    }
}
