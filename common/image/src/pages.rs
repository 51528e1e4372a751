//! Pagemaps and the pages they lead to.
//!
//! A pagemap image lists runs of pages by address; the pages themselves lie back to back in
//! pages-N.img, in the order of the runs that are marked present. A run can instead say that its
//! content is in the previous dump (`parent`), where it is looked up by address in the image of the
//! same name, piece by piece, and so on down the chain. Addresses are those of a task, or byte
//! offsets into a shared memory object. This module reads and validates pagemaps, resolves chains
//! into runs with one place in one file each, and collects the runs of a new dump.

use crate::{
    dir::{FileReader, ImageDir},
    error::{Error, Result},
    ids::PagesId,
    kind::Kind,
    sink::ImageSink,
};
use crust_proto::criu::{PagemapEntry, PagemapHead};
use std::{fs::File, ops::Range};

/// Bytes of a page of x86-64. Images of machines with larger pages are read as runs of several
/// ([`ImageDir::ask_page_size`]).
pub const PAGE_SIZE: u64 = 4096;

/// `pagemap_entry.flags`: the content is in the parent dump.
pub const PE_PARENT: u32 = 1;
/// `pagemap_entry.flags`: may be brought in after the task runs (private anonymous memory).
pub const PE_LAZY: u32 = 2;
/// `pagemap_entry.flags`: the pages are in the pages file of this dump.
pub const PE_PRESENT: u32 = 4;

/// How many dumps a chain may have: a bound for hostile directories, far above real ones.
const MAX_CHAIN: usize = 1024;

/// A run of pages of one pagemap, with the rules for old images applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagemapRun {
    /// Address of the first page, in bytes.
    pub vaddr: u64,
    /// Number of pages, at least 1.
    pub nr_pages: u64,
    /// `PE_*` bits.
    pub flags: u32,
}

impl PagemapRun {
    /// Reads an entry: `nr_pages` rules over `compat_nr_pages`, which images before 4.2 have
    /// alone; without `flags`, `in_parent` tells parent from present. On failure the field and
    /// what is wrong with it.
    pub fn of_entry(entry: &PagemapEntry) -> Result<PagemapRun, (&'static str, String)> {
        let in_parent = entry.in_parent.unwrap_or(false);
        let flags = match (entry.flags, in_parent) {
            (None, false) => PE_PRESENT,
            (None, true) => PE_PARENT,
            (Some(flags), false) => flags,
            (Some(flags), true) => flags | PE_PARENT,
        };
        let run = PagemapRun {
            vaddr: entry.vaddr,
            nr_pages: entry.nr_pages.unwrap_or(entry.compat_nr_pages.into()),
            flags,
        };
        if !run.vaddr.is_multiple_of(PAGE_SIZE) {
            return Err((
                "vaddr",
                format!("{:#x} is not the start of a page", run.vaddr),
            ));
        }
        if run.nr_pages == 0 {
            return Err(("nr_pages", format!("a run of no pages at {:#x}", run.vaddr)));
        }
        if run.checked_end().is_none() {
            let what = format!(
                "{} pages at {:#x} pass the last address",
                run.nr_pages, run.vaddr
            );
            return Err(("nr_pages", what));
        }
        Ok(run)
    }

    fn checked_end(&self) -> Option<u64> {
        self.vaddr
            .checked_add(self.nr_pages.checked_mul(PAGE_SIZE)?)
    }

    /// Address behind the last page.
    pub fn end(&self) -> u64 {
        // Checked where the run was made; saturating only says so to the compiler.
        self.vaddr.saturating_add(self.len())
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.nr_pages.saturating_mul(PAGE_SIZE)
    }

    /// Never true: a run has at least one page.
    pub fn is_empty(&self) -> bool {
        self.nr_pages == 0
    }

    /// Whether the pages are in the pages file of the same dump.
    pub fn is_present(&self) -> bool {
        self.flags & PE_PRESENT != 0
    }

    /// Whether the pages must be looked for in the parent dump.
    pub fn is_in_parent(&self) -> bool {
        self.flags & (PE_PARENT | PE_PRESENT) == PE_PARENT
    }

    /// The entry as CRIU 4.2 writes it.
    pub fn encode(&self) -> PagemapEntry {
        PagemapEntry {
            vaddr: self.vaddr,
            compat_nr_pages: 0,
            in_parent: None,
            flags: Some(self.flags),
            nr_pages: Some(self.nr_pages),
        }
    }
}

/// One pagemap image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pagemap {
    /// Names the pages file.
    pub pages_id: PagesId,
    /// Ascending and without overlap.
    pub runs: Vec<PagemapRun>,
}

impl Pagemap {
    /// Reads and validates one, `None` if there is none. `kind` is `Pagemap` or `PagemapShmem`.
    pub fn read(dir: &ImageDir, kind: Kind, id: u64) -> Result<Option<Pagemap>> {
        match dir.open_image(kind, Some(id))? {
            Some(mut reader) => Self::read_from(&mut reader, dir.page_scale()).map(Some),
            None => Ok(None),
        }
    }

    fn read_from(reader: &mut FileReader, scale: u64) -> Result<Pagemap> {
        let Some(head) = reader.next_entry::<PagemapHead>()? else {
            return Err(reader.frame_error("the image ends before its pagemap_head"));
        };
        let mut runs: Vec<PagemapRun> = Vec::new();
        while let Some(mut entry) = reader.next_entry::<PagemapEntry>()? {
            if scale > 1 {
                let pages = entry.nr_pages.unwrap_or(entry.compat_nr_pages.into());
                entry.nr_pages = Some(pages.saturating_mul(scale));
            }
            let run = PagemapRun::of_entry(&entry)
                .map_err(|(field, what)| reader.field_error(field, what))?;
            if let Some(before) = runs.last().filter(|before| before.end() > run.vaddr) {
                let what = format!(
                    "{:#x} is below {:#x}, the end of the run before",
                    run.vaddr,
                    before.end()
                );
                return Err(reader.field_error("vaddr", what));
            }
            runs.push(run);
        }
        Ok(Pagemap {
            pages_id: PagesId(head.pages_id),
            runs,
        })
    }

    /// How many bytes the pages file must have, `None` if more than any file can.
    pub fn pages_len(&self) -> Option<u64> {
        self.runs
            .iter()
            .filter(|run| run.is_present())
            .try_fold(0u64, |sum, run| sum.checked_add(run.len()))
    }

    /// The runs with, for those present, their offset in the pages file.
    pub fn placed_runs(&self) -> impl Iterator<Item = (PagemapRun, Option<u64>)> + '_ {
        self.runs.iter().scan(0u64, |next, run| {
            let offset = run.is_present().then_some(*next);
            if run.is_present() {
                *next = next.saturating_add(run.len());
            }
            Some((*run, offset))
        })
    }
}

/// Where the pages of a run are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageSource {
    /// Which dump of the chain: 0 is the one asked for, 1 its parent.
    pub level: usize,
    /// The pages file there.
    pub pages_id: PagesId,
    /// Offset of the first page in that file, in bytes.
    pub file_offset: u64,
}

/// A run of pages with its one place in one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRun {
    /// Address of the first page, in bytes.
    pub vaddr: u64,
    /// Number of pages, at least 1.
    pub nr_pages: u64,
    /// Where their content is.
    pub source: PageSource,
    /// May be brought in after the task runs.
    pub lazy: bool,
}

impl PageRun {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.nr_pages.saturating_mul(PAGE_SIZE)
    }

    /// Never true: a run has at least one page.
    pub fn is_empty(&self) -> bool {
        self.nr_pages == 0
    }

    /// Address behind the last page.
    pub fn end(&self) -> u64 {
        self.vaddr.saturating_add(self.len())
    }
}

/// A dump and the ones it builds on, nearest first.
#[derive(Debug)]
pub struct DumpChain<'a> {
    dir: &'a ImageDir,
    parents: Vec<ImageDir>,
}

impl<'a> DumpChain<'a> {
    /// Opens the parents of `dir`. A chain that runs in a circle is refused.
    pub fn open(dir: &'a ImageDir) -> Result<DumpChain<'a>> {
        let mut seen = vec![dir.identity()?];
        let mut parents: Vec<ImageDir> = Vec::new();
        while let Some(parent) = parents.last().unwrap_or(dir).parent()? {
            let identity = parent.identity()?;
            if seen.contains(&identity) || parents.len() == MAX_CHAIN {
                return Err(Error::Chain {
                    file: parent.path().display().to_string(),
                    what: "the chain of parent dumps does not end".to_owned(),
                });
            }
            seen.push(identity);
            parents.push(parent);
        }
        Ok(DumpChain { dir, parents })
    }

    /// The directory of a level, 0 being the dump itself.
    pub fn dir(&self, level: usize) -> Option<&ImageDir> {
        match level.checked_sub(1) {
            None => Some(self.dir),
            Some(parent) => self.parents.get(parent),
        }
    }

    /// How many dumps the chain has.
    pub fn levels(&self) -> usize {
        self.parents.len() + 1
    }

    /// Opens the pages file of a run.
    pub fn open_pages(&self, source: &PageSource) -> Result<File> {
        let dir = self.dir(source.level).unwrap_or(self.dir);
        let id = Some(source.pages_id.into());
        dir.open_file(Kind::Pages, id)?
            .ok_or_else(|| Error::Missing {
                file: dir
                    .path()
                    .join(Kind::Pages.file_name(id))
                    .display()
                    .to_string(),
            })
    }

    /// The runs of a pagemap in ascending order, each with the place of its content; `None` if
    /// there is no such pagemap. `kind` is `Pagemap` or `PagemapShmem`. Every page the pagemap
    /// promises has a place inside an existing file, or this fails.
    pub fn resolve(&self, kind: Kind, id: u64) -> Result<Option<Vec<PageRun>>> {
        let mut levels = Vec::new();
        for level in 0..self.levels() {
            let Some(pagemap) = self.load_level(level, kind, id)? else {
                break;
            };
            let goes_on = pagemap.runs.iter().any(|(run, _)| run.is_in_parent());
            levels.push(pagemap);
            if !goes_on {
                break;
            }
        }
        let Some(first) = levels.first() else {
            return Ok(None);
        };
        let mut resolver = Resolver {
            levels: &levels,
            resolved: Vec::new(),
            file: kind.file_name(Some(id)),
        };
        for (run, _) in &first.runs {
            resolver.resolve(0, run.vaddr..run.end(), run.flags & PE_LAZY != 0)?;
        }
        Ok(Some(resolver.resolved))
    }

    fn load_level(&self, level: usize, kind: Kind, id: u64) -> Result<Option<LevelPagemap>> {
        let Some(dir) = self.dir(level) else {
            return Ok(None);
        };
        let Some(pagemap) = Pagemap::read(dir, kind, id)? else {
            return Ok(None);
        };
        let source = PageSource {
            level,
            pages_id: pagemap.pages_id,
            file_offset: 0,
        };
        self.check_pages_len(dir, &pagemap, &source)?;
        Ok(Some(LevelPagemap {
            pages_id: pagemap.pages_id,
            runs: pagemap.placed_runs().collect(),
            shown: dir
                .path()
                .join(kind.file_name(Some(id)))
                .display()
                .to_string(),
        }))
    }

    fn check_pages_len(
        &self,
        dir: &ImageDir,
        pagemap: &Pagemap,
        source: &PageSource,
    ) -> Result<()> {
        let wanted = pagemap.pages_len().unwrap_or(u64::MAX);
        if wanted == 0 {
            return Ok(());
        }
        let name = Kind::Pages.file_name(Some(pagemap.pages_id.into()));
        let shown = dir.path().join(name).display().to_string();
        let found = self
            .open_pages(source)?
            .metadata()
            .map_err(|source| Error::io(&shown, "stat", source))?
            .len();
        if found >= wanted {
            return Ok(());
        }
        Err(Error::Chain {
            file: shown,
            what: format!("has {found} bytes, its pagemap speaks of {wanted}"),
        })
    }
}

/// A pagemap of one level, each present run with its offset in the pages file.
struct LevelPagemap {
    pages_id: PagesId,
    runs: Vec<(PagemapRun, Option<u64>)>,
    shown: String,
}

struct Resolver<'a> {
    levels: &'a [LevelPagemap],
    resolved: Vec<PageRun>,
    file: String,
}

impl Resolver<'_> {
    /// Finds every page of `range` at `level` or below. The depth is the length of the chain.
    fn resolve(&mut self, level: usize, range: Range<u64>, lazy: bool) -> Result<()> {
        let Some(pagemap) = self.levels.get(level) else {
            return Err(Error::Chain {
                file: self.file.clone(),
                what: format!(
                    "the pages at {:#x} are said to be in a parent dump, which has no such image",
                    range.start
                ),
            });
        };
        let mut at = range.start;
        let first = pagemap.runs.partition_point(|(run, _)| run.end() <= at);
        for (run, offset) in pagemap.runs.iter().skip(first) {
            if at >= range.end || run.vaddr > at {
                break;
            }
            let end = run.end().min(range.end);
            match offset {
                Some(offset) => self.place(level, at..end, offset + (at - run.vaddr), lazy),
                None if run.is_in_parent() => self.resolve(level + 1, at..end, lazy)?,
                None => break,
            }
            at = end;
        }
        if at >= range.end {
            return Ok(());
        }
        Err(Error::Chain {
            file: pagemap.shown.clone(),
            what: format!("the page at {at:#x} has no content in this dump or a parent"),
        })
    }

    fn place(&mut self, level: usize, range: Range<u64>, file_offset: u64, lazy: bool) {
        let Some(pagemap) = self.levels.get(level) else {
            return;
        };
        self.resolved.push(PageRun {
            vaddr: range.start,
            nr_pages: (range.end - range.start) / PAGE_SIZE,
            source: PageSource {
                level,
                pages_id: pagemap.pages_id,
                file_offset,
            },
            lazy,
        });
    }
}

/// Resolves one pagemap of `dir` through its parents; see [`DumpChain::resolve`]. For more than one
/// pagemap open the chain once.
pub fn resolve_runs(dir: &ImageDir, kind: Kind, id: u64) -> Result<Option<Vec<PageRun>>> {
    DumpChain::open(dir)?.resolve(kind, id)
}

/// The pagemap of a new dump: runs in ascending order, neighbours with equal flags made one.
#[derive(Debug, Default, Clone)]
pub struct PagemapWriter {
    runs: Vec<PagemapRun>,
    pages_len: u64,
}

impl PagemapWriter {
    /// No run yet.
    pub fn new() -> PagemapWriter {
        PagemapWriter::default()
    }

    /// Adds a run behind all others. For a present run the result is the offset in the pages file,
    /// in bytes, where its pages belong; otherwise it has no meaning.
    pub fn push(&mut self, vaddr: u64, nr_pages: u64, flags: u32) -> u64 {
        let run = PagemapRun {
            vaddr,
            nr_pages,
            flags,
        };
        debug_assert!(run.checked_end().is_some() && vaddr.is_multiple_of(PAGE_SIZE));
        debug_assert!(self.runs.last().is_none_or(|last| last.end() <= vaddr));
        let offset = self.pages_len;
        if nr_pages == 0 {
            return offset;
        }
        if run.is_present() {
            self.pages_len += run.len();
        }
        match self.runs.last_mut() {
            Some(last) if last.end() == vaddr && last.flags == flags => last.nr_pages += nr_pages,
            _ => self.runs.push(run),
        }
        offset
    }

    /// Length of the pages file that belongs to the runs so far, in bytes.
    pub fn pages_len(&self) -> u64 {
        self.pages_len
    }

    /// The runs so far.
    pub fn runs(&self) -> &[PagemapRun] {
        &self.runs
    }

    /// Writes the image: head and entries. `kind` is `Pagemap` or `PagemapShmem`.
    pub fn write(
        &self,
        sink: &dyn ImageSink,
        kind: Kind,
        id: u64,
        pages_id: PagesId,
    ) -> Result<()> {
        let mut writer = sink.create(kind, Some(id))?;
        writer.entry(&PagemapHead {
            pages_id: pages_id.0,
        })?;
        for run in &self.runs {
            writer.entry(&run.encode())?;
        }
        writer.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{entry::Version, sink::write_entry, testing::TestDir};
    use crust_proto::criu::InventoryEntry;
    use std::path::Path;

    fn entry(vaddr: u64) -> PagemapEntry {
        PagemapEntry {
            vaddr,
            ..Default::default()
        }
    }

    #[test]
    fn lengths_and_flags_of_old_and_new_entries() {
        let run = |entry: PagemapEntry| PagemapRun::of_entry(&entry).unwrap();
        let old = PagemapEntry {
            compat_nr_pages: 3,
            ..entry(0x1000)
        };
        assert_eq!((run(old).nr_pages, run(old).flags), (3, PE_PRESENT));
        let old_parent = PagemapEntry {
            in_parent: Some(true),
            ..old
        };
        assert_eq!(run(old_parent).flags, PE_PARENT);
        let both = PagemapEntry {
            flags: Some(PE_LAZY),
            nr_pages: Some(9),
            ..old_parent
        };
        assert_eq!(
            (run(both).nr_pages, run(both).flags),
            (9, PE_PARENT | PE_LAZY)
        );
    }

    #[test]
    fn impossible_runs_are_refused() {
        let refused = |vaddr, nr_pages| {
            PagemapRun::of_entry(&PagemapEntry {
                nr_pages: Some(nr_pages),
                ..entry(vaddr)
            })
            .is_err()
        };
        assert!(refused(1, 1));
        assert!(refused(0x1000, 0));
        assert!(refused(0x1000, u64::MAX / PAGE_SIZE));
        assert!(refused(0, u64::MAX));
        assert!(refused(0u64.wrapping_sub(PAGE_SIZE), 1));
        assert!(!refused(0x1000, 1));
    }

    #[test]
    fn neighbours_are_merged() {
        let mut writer = PagemapWriter::new();
        assert_eq!(writer.push(0x1000, 2, PE_PRESENT), 0);
        assert_eq!(writer.push(0x3000, 1, PE_PRESENT), 0x2000);
        assert_eq!(writer.push(0x4000, 1, PE_PRESENT | PE_LAZY), 0x3000);
        writer.push(0x5000, 1, PE_PARENT);
        assert_eq!(writer.push(0x7000, 1, PE_PRESENT), 0x4000);
        assert_eq!(writer.pages_len(), 0x5000);
        let runs: Vec<_> = writer
            .runs()
            .iter()
            .map(|run| (run.vaddr, run.nr_pages))
            .collect();
        assert_eq!(runs, [(0x1000, 3), (0x4000, 1), (0x5000, 1), (0x7000, 1)]);
    }

    /// Makes a dump with one pagemap and a pages file that fits.
    fn dump(at: &TestDir, name: &str, runs: &[(u64, u64, u32)], parent: Option<&str>) -> ImageDir {
        let dir = at.subdir(name);
        let inventory = InventoryEntry {
            img_version: 2,
            ..Default::default()
        };
        write_entry(&dir, Kind::Inventory, None, &inventory).unwrap();
        let mut writer = PagemapWriter::new();
        for (vaddr, nr_pages, flags) in runs {
            writer.push(*vaddr, *nr_pages, *flags);
        }
        writer.write(&dir, Kind::Pagemap, 7, PagesId(1)).unwrap();
        let pages = dir.create_raw_file(Kind::Pages, Some(1)).unwrap();
        pages.set_len(writer.pages_len()).unwrap();
        if let Some(parent) = parent {
            dir.set_parent(Path::new(parent)).unwrap();
        }
        assert_eq!(dir.version().unwrap(), Version::V1_1);
        dir
    }

    fn places(dir: &ImageDir) -> Result<Vec<(u64, u64, usize, u64)>> {
        let runs = resolve_runs(dir, Kind::Pagemap, 7)?.unwrap();
        Ok(runs
            .iter()
            .map(|run| {
                (
                    run.vaddr,
                    run.nr_pages,
                    run.source.level,
                    run.source.file_offset,
                )
            })
            .collect())
    }

    #[test]
    fn runs_are_found_through_parents_piece_by_piece() {
        let at = TestDir::new();
        dump(
            &at,
            "1",
            &[(0x1000, 4, PE_PRESENT), (0x8000, 2, PE_PRESENT)],
            None,
        );
        dump(
            &at,
            "2",
            &[
                (0x1000, 1, PE_PARENT),
                (0x2000, 1, PE_PRESENT),
                (0x3000, 2, PE_PARENT),
                (0x8000, 2, PE_PARENT),
            ],
            Some("../1"),
        );
        let last = dump(
            &at,
            "3",
            &[
                (0x1000, 4, PE_PARENT),
                (0x5000, 1, PE_PRESENT),
                (0x9000, 1, PE_PARENT),
            ],
            Some("../2"),
        );
        assert_eq!(
            places(&last).unwrap(),
            [
                (0x1000, 1, 2, 0),
                (0x2000, 1, 1, 0),
                (0x3000, 2, 2, 0x2000),
                (0x5000, 1, 0, 0),
                (0x9000, 1, 2, 0x5000),
            ]
        );
    }

    #[test]
    fn a_page_the_parent_does_not_have_is_an_error() {
        let at = TestDir::new();
        dump(
            &at,
            "1",
            &[(0x1000, 1, PE_PRESENT), (0x3000, 1, PE_PRESENT)],
            None,
        );
        let last = dump(&at, "2", &[(0x1000, 3, PE_PARENT)], Some("../1"));
        let told = places(&last).unwrap_err().to_string();
        assert!(told.contains("the page at 0x2000"), "{told}");
        let alone = dump(&at, "3", &[(0x1000, 3, PE_PARENT)], None);
        let told = places(&alone).unwrap_err().to_string();
        assert!(
            told.contains("parent dump, which has no such image"),
            "{told}"
        );
    }

    #[test]
    fn a_circle_of_parents_is_refused() {
        let at = TestDir::new();
        let first = dump(&at, "1", &[(0x1000, 1, PE_PARENT)], None);
        dump(&at, "2", &[(0x1000, 1, PE_PARENT)], Some("../1"));
        first.set_parent(Path::new("../2")).unwrap();
        assert!(
            places(&first)
                .unwrap_err()
                .to_string()
                .contains("does not end")
        );
    }

    #[test]
    fn a_short_pages_file_is_refused() {
        let at = TestDir::new();
        let dir = dump(&at, "1", &[(0x1000, 4, PE_PRESENT)], None);
        let pages = dir.create_raw_file(Kind::Pages, Some(1)).unwrap();
        pages.set_len(4 * PAGE_SIZE - 1).unwrap();
        let told = places(&dir).unwrap_err().to_string();
        assert!(
            told.contains("has 16383 bytes, its pagemap speaks of 16384"),
            "{told}"
        );
        dir.remove_image(Kind::Pages, Some(1)).unwrap();
        assert!(matches!(places(&dir), Err(Error::Missing { .. })));
    }

    #[test]
    fn overlapping_runs_are_refused() {
        let at = TestDir::new();
        let dir = dump(&at, "1", &[], None);
        let mut writer = dir.create(Kind::Pagemap, Some(7)).unwrap();
        writer.entry(&PagemapHead { pages_id: 1 }).unwrap();
        for vaddr in [0x1000, 0x2000] {
            let run = PagemapRun {
                vaddr,
                nr_pages: 2,
                flags: PE_PRESENT,
            };
            writer.entry(&run.encode()).unwrap();
        }
        writer.finish().unwrap();
        let told = places(&dir).unwrap_err().to_string();
        assert!(
            told.contains("entry 2: vaddr: 0x2000 is below 0x3000"),
            "{told}"
        );
    }
}
