//! The memory of a dumped task: the pages of its images, of parent dumps and of shared objects,
//! put over its areas. Nothing is held; bytes are read where they lie.

use anyhow::{Context, Result, bail};
use crust_image::pages::{DumpChain, PAGE_SIZE, PageRun};
use crust_image::{ImageDir, Kind};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Runs of pages and the files they lie in.
pub struct Pages<'a> {
    chain: &'a DumpChain<'a>,
    runs: Vec<PageRun>,
    open: HashMap<(usize, u64), File>,
}

impl<'a> Pages<'a> {
    /// The pages of a pagemap image; none when there is no such image.
    pub fn of(chain: &'a DumpChain<'a>, kind: Kind, id: u64) -> Result<Pages<'a>> {
        let runs = chain.resolve(kind, id)?.unwrap_or_default();
        Ok(Pages {
            chain,
            runs,
            open: HashMap::new(),
        })
    }

    /// The runs in ascending address.
    pub fn runs(&self) -> &[PageRun] {
        &self.runs
    }

    /// The bytes at `address` as far as one run has them: fills the front of `into` and tells how
    /// many; 0 when no page of the dump covers the address.
    pub fn read_at(&mut self, address: u64, into: &mut [u8]) -> Result<usize> {
        let next = self.runs.partition_point(|run| run.vaddr <= address);
        let Some(run) = next
            .checked_sub(1)
            .and_then(|at| self.runs.get(at))
            .copied()
        else {
            return Ok(0);
        };
        if address >= run.end() {
            return Ok(0);
        }
        let count = (run.end() - address).min(into.len() as u64) as usize;
        let offset = run.source.file_offset + (address - run.vaddr);
        let key = (run.source.level, u64::from(run.source.pages_id));
        let file = match self.open.entry(key) {
            std::collections::hash_map::Entry::Occupied(there) => there.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(self.chain.open_pages(&run.source)?)
            }
        };
        let front = into.get_mut(..count).unwrap_or_default();
        file.read_exact_at(front, offset)
            .with_context(|| format!("read pages-{}.img at {offset:#x}", key.1))?;
        Ok(count)
    }

    /// Where the next run at or behind `address` begins.
    pub fn next_run(&self, address: u64) -> Option<u64> {
        let next = self.runs.partition_point(|run| run.end() <= address);
        self.runs.get(next).map(|run| run.vaddr.max(address))
    }

    /// The bytes of a range; what no page covers is zero.
    pub fn read_range(&mut self, start: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let address = start.saturating_add(done as u64);
            let count = self.read_at(address, rest)?;
            done = match count {
                0 => match self.next_run(address) {
                    Some(next) => usize::try_from(next - start).unwrap_or(length).min(length),
                    None => length,
                },
                count => done + count,
            };
        }
        Ok(bytes)
    }
}

/// Opens a dump for reading memory, whatever the size of its pages.
pub fn open_dir(path: &Path) -> Result<ImageDir> {
    let mut dir = ImageDir::open(path)?;
    // An image that cannot be read is told by whoever needs it.
    let _ = dir.ask_page_size();
    Ok(dir)
}

/// Opens a dump for writing pages, which must be of 4 KiB.
pub fn open_for_change(path: &Path) -> Result<ImageDir> {
    let dir = open_dir(path)?;
    if dir.page_scale() > 1 {
        bail!(
            "{}: pages of {} bytes can be read, but only those of {PAGE_SIZE} bytes changed",
            path.display(),
            dir.page_scale() * PAGE_SIZE
        );
    }
    Ok(dir)
}
