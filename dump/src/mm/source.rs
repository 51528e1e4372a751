//! Where the pages of a task are looked at and read: the frozen task itself, or a copy-on-write copy
//! of it when the task goes on already.
//!
//! What a copy does not have (crust_process::snapshot) is put aside from the frozen task, in a file
//! without a name: [`Early`].

use crate::collect::Subject;
use crate::mm::absent::without;
use crate::mm::copy::{Copier, PAGE, PageSource};
use crate::mm::vmas::{Backing, Vma};
use anyhow::{Context, Result};
use crust_process::memory::TaskMem;
use crust_process::pagemap::{PageRun, Pagemap, PrivateOf};
use crust_process::proc::ProcDir;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The page map and the memory of a process.
#[derive(Clone, Copy, Debug)]
pub struct MemoryOf<'a> {
    /// Its directory in /proc.
    pub dir: &'a ProcDir,
    /// Its memory.
    pub mem: &'a TaskMem,
}

/// What of a task was put aside while it was frozen.
#[derive(Debug)]
pub struct Early {
    file: File,
    /// What the page map told of the areas, ascending.
    runs: Vec<PageRun>,
    /// Which addresses are at which offset of the file, ascending.
    places: Vec<(Range<u64>, u64)>,
}

/// The pages of a task that goes on.
#[derive(Clone, Copy, Debug)]
pub struct Kept<'a> {
    /// The copy's.
    pub copy: MemoryOf<'a>,
    /// What the copy does not have.
    pub early: &'a Early,
}

/// What pages of an area are a task's own.
pub fn private_of(vma: &Vma) -> PrivateOf {
    match vma.backing {
        Backing::Anonymous => PrivateOf::Anonymous,
        _ => PrivateOf::File,
    }
}

impl Early {
    /// Puts aside, in a file below `images`, what a copy of the frozen task would not have.
    pub fn collect(
        images: &Path,
        subject: &Subject,
        mem: &TaskMem,
        check: &(dyn Fn(u64) -> Result<()> + Sync),
    ) -> Result<Early> {
        let file = nameless(images)?;
        let (mut runs, mut places) = (Vec::new(), Vec::new());
        let mut copier = Copier::new(mem, &file, check);
        let mut offset = 0;
        let mut put_aside = |range: Range<u64>| {
            let pages = (range.end - range.start) / PAGE;
            places.push((range.clone(), offset));
            offset += pages * PAGE;
            copier.add(range.start, pages)
        };
        let mut pagemap = Pagemap::open(&subject.facts.dir)?;
        let is_missed = |vma: &&Vma| vma.has_own_pages() && !vma.is_copied_on_fork();
        for vma in subject.vmas.iter().filter(is_missed) {
            if vma.is_dumped_whole() {
                put_aside(vma.range.clone())?;
                continue;
            }
            for run in pagemap.pages_to_dump(vma.range.clone(), private_of(vma)) {
                let run = run?;
                if let PageRun::Dump { start, end } = run {
                    for part in without(start..end, &subject.absent) {
                        put_aside(part)?;
                    }
                }
                runs.push(run);
            }
        }
        copier.finish()?;
        Ok(Early { file, runs, places })
    }

    /// What the page map told of an area.
    pub fn runs_in(&self, area: &Range<u64>) -> impl Iterator<Item = PageRun> + '_ {
        let area = area.clone();
        let is_inside = move |run: &PageRun| {
            let (PageRun::Guard { start, end } | PageRun::Dump { start, end }) = *run;
            area.start <= start && end <= area.end
        };
        self.runs.iter().copied().filter(is_inside)
    }

    /// Where the page at an address is in the file.
    fn offset_of(&self, addr: u64) -> Option<u64> {
        let at = self.places.partition_point(|(range, _)| range.end <= addr);
        let (range, offset) = self.places.get(at)?;
        range.contains(&addr).then(|| offset + (addr - range.start))
    }
}

impl PageSource for Kept<'_> {
    /// A run is in one area, so all of it is here or there.
    fn read_pages(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        match self.early.offset_of(addr) {
            Some(offset) => self.early.file.read_pages(offset, buf),
            None => {
                let read = self.copy.mem.read_pages(addr, buf);
                read.context("the copy of the task is gone, if somebody has killed it")
            }
        }
    }
}

/// A file on the disk of the images, where room for pages is; in memory if that file system has no
/// files without names.
fn nameless(images: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let on_disk = options
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(images);
    on_disk.or_else(|_| {
        let flags = MFdFlags::MFD_CLOEXEC;
        let file = memfd_create("crust-early-pages", flags).context("memfd_create")?;
        Ok(File::from(file))
    })
}
