//! Which pages of a task hold something that only a dump can keep: /proc/PID/pagemap, read by
//! PAGEMAP_SCAN (Linux 6.7) or, where that is missing, entry by entry.
//!
//! A page is dumped when it is present or swapped out, unless it is the zero page, or, in a private
//! mapping of a file, still the page of the file. Guard pages (MADV_GUARD_INSTALL) hold nothing and
//! fault when touched; since 6.15 the kernel tells them apart and they are reported as what they
//! are. On 6.13 and 6.14 guard pages exist and look swapped out: reading them fails with EFAULT.
//!
//! The scan walks page tables, not addresses: 100 GiB of nothing take 20 microseconds, against 95
//! milliseconds by reading entries. See Documentation/admin-guide/mm/pagemap.rst.

use crate::error::{Error, Result};
use crate::pid::HostPid;
use crate::proc::ProcDir;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

/// What the kernel says of a page: PAGE_IS_* of include/uapi/linux/fs.h.
pub mod category {
    /// Userfaultfd write-protection is armed for asynchronous mode.
    pub const WPALLOWED: u64 = 1 << 0;
    /// Written since it was write-protected.
    pub const WRITTEN: u64 = 1 << 1;
    /// A page of a file, shared anonymous memory included.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap; also guard pages and other markers.
    pub const SWAPPED: u64 = 1 << 4;
    /// The zero page, small or huge.
    pub const PFNZERO: u64 = 1 << 5;
    /// Mapped by a huge entry.
    pub const HUGE: u64 = 1 << 6;
    /// Written since soft-dirty bits were cleared.
    pub const SOFT_DIRTY: u64 = 1 << 7;
    /// A guard page; since 6.15.
    pub const GUARD: u64 = 1 << 8;
}

/// Page size of the only architecture we know.
const PAGE: u64 = 4096;
/// _IOWR('f', 16, struct pm_scan_arg).
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
/// Regions taken by one scan, 192 KiB: enough that the call's cost vanishes.
const REGIONS: usize = 8192;
/// Entries read at once by the fallback, 512 KiB.
const ENTRIES: usize = 65536;

/// struct pm_scan_arg.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// struct page_region: pages of the same categories, of those asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// First address behind.
    pub end: u64,
    /// [`category`] bits, of those in `Query::returned`.
    pub categories: u64,
}

/// Which pages a scan returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// All of these.
    pub all: u64,
    /// None of these.
    pub none: u64,
    /// At least one of these, if any are named.
    pub any: u64,
    /// What to tell of them. Every bit here may split a region in two.
    pub returned: u64,
    /// What is done about writes to them.
    pub writes: Writes,
}

/// What a scan does about writes, for areas registered by [`crate::dirty::Tracker`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Writes {
    /// Nothing; areas need not be registered.
    #[default]
    Ignore,
    /// It fails with EPERM unless all areas are registered.
    Check,
    /// The same, and the pages found count as clean from here on until they are written: found and
    /// marked in one step, so that no write in between is missed.
    Mark,
}

impl Writes {
    /// PM_SCAN_WP_MATCHING and PM_SCAN_CHECK_WPASYNC.
    fn flags(self) -> u64 {
        match self {
            Writes::Ignore => 0,
            Writes::Check => 2,
            Writes::Mark => 1 | 2,
        }
    }
}

impl Query {
    /// The kernel's own test, for the fallback (pagemap_scan_is_interesting_page()).
    fn matches(&self, categories: u64) -> bool {
        categories & self.all == self.all
            && categories & self.none == 0
            && (self.any == 0 || categories & self.any != 0)
    }
}

/// What a private vma maps, for [`Pagemap::pages_to_dump`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivateOf {
    /// Nothing: anonymous memory.
    Anonymous,
    /// A file: pages not written to are the file's and come back from it.
    File,
}

/// Consecutive pages of a vma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageRun {
    /// To be dumped.
    Dump {
        /// First address.
        start: u64,
        /// First address behind.
        end: u64,
    },
    /// To be guarded again.
    Guard {
        /// First address.
        start: u64,
        /// First address behind.
        end: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// PAGEMAP_SCAN, with the categories this kernel knows.
    Scan { known: u64 },
    /// Entries. The frame of the zero page tells it, where frames are shown (CAP_SYS_ADMIN).
    Entries { zero_frame: Option<u64> },
}

/// The pagemap of a task. Each thread that scans opens its own.
#[derive(Debug)]
pub struct Pagemap {
    pid: HostPid,
    file: File,
    method: Method,
    regions: Vec<PageRegion>,
    entries: Vec<u8>,
}

impl Pagemap {
    /// Opens the pagemap of a task and finds out what this kernel can.
    pub fn open(dir: &ProcDir) -> Result<Pagemap> {
        let mut map = Pagemap::open_with(dir, Method::Scan { known: 0 })?;
        map.method = match map.known_categories()? {
            Some(known) => Method::Scan { known },
            None => Method::Entries {
                zero_frame: zero_frame(),
            },
        };
        Ok(map)
    }

    fn open_with(dir: &ProcDir, method: Method) -> Result<Pagemap> {
        Ok(Pagemap {
            pid: dir.pid(),
            file: File::from(dir.open_file("pagemap", OFlag::O_RDONLY)?),
            method,
            regions: Vec::new(),
            entries: Vec::new(),
        })
    }

    /// Whether the kernel tells guard pages from swapped ones. False before 6.15, except that
    /// without PAGEMAP_SCAN nobody knows and it is assumed.
    pub fn tells_guards(&self) -> bool {
        match self.method {
            Method::Scan { known } => known & category::GUARD != 0,
            Method::Entries { .. } => true,
        }
    }

    /// The runs of pages of a private vma that a dump must keep, ascending.
    pub fn pages_to_dump(&mut self, range: Range<u64>, of: PrivateOf) -> PagesToDump<'_> {
        use category::{FILE, GUARD, PFNZERO, PRESENT, SWAPPED};
        let query = Query {
            all: 0,
            none: match of {
                PrivateOf::Anonymous => PFNZERO,
                PrivateOf::File => PFNZERO | FILE,
            },
            any: PRESENT | SWAPPED,
            returned: GUARD,
            writes: Writes::Ignore,
        };
        PagesToDump {
            regions: self.regions(range, query),
            open: None,
        }
    }

    /// The pages to dump of a range registered by a [`crate::dirty::Tracker`] that have been written
    /// since they were marked, ascending; `None` if something in the range is not registered. They
    /// are marked now.
    pub fn take_written(
        &mut self,
        range: Range<u64>,
        of: PrivateOf,
    ) -> Result<Option<Vec<Range<u64>>>> {
        self.tracked(range, of, category::WRITTEN, 0, Writes::Mark)
    }

    /// Those that have not been written since they were marked.
    pub fn clean(&mut self, range: Range<u64>, of: PrivateOf) -> Result<Option<Vec<Range<u64>>>> {
        self.tracked(range, of, 0, category::WRITTEN, Writes::Check)
    }

    /// The frame numbers of the pages of a range that hold private memory of more than one task; 0
    /// for any other page, and for all of them without CAP_SYS_ADMIN. They mean something only
    /// while all tasks concerned are stopped, and only to be compared with each other.
    pub fn shared_frames(&self, range: Range<u64>, frames: &mut Vec<u64>) -> Result<()> {
        const FRAME: u64 = (1 << 55) - 1;
        const EXCLUSIVE: u64 = 1 << 56;
        const FILE: u64 = 1 << 61;
        const PRESENT: u64 = 1 << 63;
        let pages = (range.end - range.start) / PAGE;
        let mut entries = vec![0; pages as usize * 8];
        self.file
            .read_exact_at(&mut entries, range.start / PAGE * 8)
            .map_err(|error| {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                self.error("read pagemap", range.start, range.end, errno)
            })?;
        let (entries, _) = entries.as_chunks::<8>();
        frames.clear();
        frames.extend(entries.iter().map(|entry| {
            let entry = u64::from_ne_bytes(*entry);
            match entry & (PRESENT | FILE | EXCLUSIVE) {
                PRESENT => entry & FRAME,
                _ => 0,
            }
        }));
        Ok(())
    }

    fn tracked(
        &mut self,
        range: Range<u64>,
        of: PrivateOf,
        all: u64,
        none: u64,
        writes: Writes,
    ) -> Result<Option<Vec<Range<u64>>>> {
        use category::{FILE, GUARD, PFNZERO, PRESENT, SWAPPED};
        let Method::Scan { known } = self.method else {
            return Ok(None);
        };
        let absent = match of {
            PrivateOf::Anonymous => PFNZERO | GUARD,
            PrivateOf::File => PFNZERO | GUARD | FILE,
        };
        // Asking for written pages alone, the kernel would mark what was never touched as well,
        // and fill the page tables of sparse memory with it.
        let query = Query {
            all,
            none: none | absent & known,
            any: PRESENT | SWAPPED,
            returned: 0,
            writes,
        };
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for region in self.regions(range, query) {
            match region {
                Ok(region) => match ranges.last_mut() {
                    Some(last) if last.end == region.start => last.end = region.end,
                    _ => ranges.push(region.start..region.end),
                },
                Err(error) if error.errno == Errno::EPERM => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(ranges))
    }

    /// The regions of a range that match a query, ascending and disjoint. Neighbours of equal
    /// categories may come in two pieces.
    pub fn regions(&mut self, range: Range<u64>, query: Query) -> Regions<'_> {
        Regions {
            query,
            next: range.start,
            end: range.end,
            at: 0,
            filled: 0,
            failed: false,
            map: self,
        }
    }

    /// Fills `self.regions` from `start` on; gives their number and where to go on.
    fn fill(&mut self, start: u64, end: u64, query: &Query) -> Result<(usize, u64)> {
        match self.method {
            Method::Scan { known } => self.scan(start, end, query, known),
            Method::Entries { zero_frame } => self.read_entries(start, end, query, zero_frame),
        }
    }

    fn scan(&mut self, start: u64, end: u64, query: &Query, known: u64) -> Result<(usize, u64)> {
        self.regions.resize(REGIONS, PageRegion::default());
        let mut arg = ScanArg {
            flags: query.writes.flags(),
            start,
            end,
            category_inverted: query.none,
            category_mask: query.all | query.none,
            category_anyof_mask: query.any,
            return_mask: query.returned & known,
            ..ScanArg::default()
        };
        let filled = scan_ioctl(&self.file, &mut arg, &mut self.regions)
            .map_err(|errno| self.error("PAGEMAP_SCAN", start, end, errno))?;
        // Measured on 6.18: when the vector fills, walk_end may lie before the end of the last
        // region returned, and going on from there reports those pages twice.
        let last = self.regions.get(..filled).and_then(<[_]>::last);
        let resume = arg.walk_end.max(last.map_or(0, |region| region.end));
        if resume <= start {
            return Err(self.error("PAGEMAP_SCAN stands still", start, end, Errno::EPROTO));
        }
        Ok((filled, resume))
    }

    fn read_entries(
        &mut self,
        start: u64,
        end: u64,
        query: &Query,
        zero_frame: Option<u64>,
    ) -> Result<(usize, u64)> {
        let pages = ((end - start) / PAGE).min(ENTRIES as u64);
        self.entries.resize(pages as usize * 8, 0);
        self.file
            .read_exact_at(&mut self.entries, start / PAGE * 8)
            .map_err(|error| {
                let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
                self.error("read pagemap", start, end, errno)
            })?;
        self.regions.clear();
        let (entries, _) = self.entries.as_chunks::<8>();
        for (addr, entry) in (start..).step_by(PAGE as usize).zip(entries) {
            let categories = categories_of(u64::from_ne_bytes(*entry), zero_frame);
            if query.matches(categories) {
                push_page(&mut self.regions, addr, categories & query.returned);
            }
        }
        Ok((self.regions.len(), start + pages * PAGE))
    }

    /// The categories PAGEMAP_SCAN of this kernel knows; `None` without PAGEMAP_SCAN. The kernel
    /// refuses masks with unknown bits (EINVAL), and an empty range costs nothing.
    fn known_categories(&self) -> Result<Option<u64>> {
        use category::{GUARD, SOFT_DIRTY};
        let first = GUARD - 1;
        for known in [first | GUARD, first, first & !SOFT_DIRTY] {
            let mut arg = ScanArg {
                category_anyof_mask: known,
                return_mask: known,
                ..ScanArg::default()
            };
            match scan_ioctl(&self.file, &mut arg, &mut [PageRegion::default()]) {
                Ok(_) => return Ok(Some(known)),
                Err(Errno::EINVAL) => {}
                Err(Errno::ENOTTY) => return Ok(None),
                Err(errno) => return Err(self.error("PAGEMAP_SCAN", 0, 0, errno)),
            }
        }
        Ok(None)
    }

    fn error(&self, doing: &str, start: u64, end: u64, errno: Errno) -> Error {
        Error::new(self.pid, format!("{doing} {start:#x}-{end:#x}"), errno)
    }
}

/// Runs one scan into `regions`; gives the number filled and leaves walk_end in `arg`.
fn scan_ioctl(file: &File, arg: &mut ScanArg, regions: &mut [PageRegion]) -> nix::Result<usize> {
    arg.size = size_of::<ScanArg>() as u64;
    arg.vec = regions.as_mut_ptr() as u64;
    arg.vec_len = regions.len() as u64;
    // SAFETY: arg is a pm_scan_arg whose size it states; the kernel writes at most vec_len
    // regions to vec, which is the slice we hold exclusively, and any bytes make a PageRegion.
    let got = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, std::ptr::from_mut(arg)) };
    Errno::result(got).map(|filled| (filled as usize).min(regions.len()))
}

/// The bits of a pagemap entry (fs/proc/task_mmu.c) as categories.
fn categories_of(entry: u64, zero_frame: Option<u64>) -> u64 {
    const FRAME: u64 = (1 << 55) - 1;
    let present = entry & 1 << 63 != 0;
    let zero = present && zero_frame == Some(entry & FRAME);
    [
        (present, category::PRESENT),
        (entry & 1 << 62 != 0, category::SWAPPED),
        (entry & 1 << 61 != 0, category::FILE),
        (entry & 1 << 58 != 0, category::GUARD),
        (entry & 1 << 55 != 0, category::SOFT_DIRTY),
        (zero, category::PFNZERO),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .fold(0, |all, (_, bit)| all | bit)
}

fn push_page(regions: &mut Vec<PageRegion>, addr: u64, categories: u64) {
    match regions.last_mut() {
        Some(last) if last.end == addr && last.categories == categories => last.end += PAGE,
        _ => regions.push(PageRegion {
            start: addr,
            end: addr + PAGE,
            categories,
        }),
    }
}

/// The frame of the zero page, from a page of ours that was read and never written. `None` where
/// frames are hidden: zero pages are then dumped like others, which costs room and nothing else.
fn zero_frame() -> Option<u64> {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
    let len = std::num::NonZero::new(PAGE as usize)?;
    // SAFETY: a fresh private mapping touches no memory of ours.
    let page = unsafe { mmap_anonymous(None, len, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE) };
    let page = page.ok()?;
    // SAFETY: the page is mapped and readable until the munmap below.
    unsafe { page.as_ptr().cast::<u8>().read_volatile() };
    let mut entry = [0; 8];
    let read = File::open("/proc/self/pagemap")
        .and_then(|file| file.read_exact_at(&mut entry, page.as_ptr() as u64 / PAGE * 8));
    // SAFETY: this is the mapping made above, and no reference to it is left.
    let unmapped = unsafe { munmap(page, PAGE as usize) };
    read.ok().and(unmapped.ok())?;
    let entry = u64::from_ne_bytes(entry);
    let frame = entry & ((1 << 55) - 1);
    (entry & 1 << 63 != 0 && frame != 0).then_some(frame)
}

/// See [`Pagemap::regions`].
#[derive(Debug)]
pub struct Regions<'a> {
    map: &'a mut Pagemap,
    query: Query,
    next: u64,
    end: u64,
    at: usize,
    filled: usize,
    failed: bool,
}

impl Iterator for Regions<'_> {
    type Item = Result<PageRegion>;

    fn next(&mut self) -> Option<Result<PageRegion>> {
        // A call may well return no region and go on: only the address says when it is over.
        while self.at >= self.filled {
            if self.failed || self.next >= self.end {
                return None;
            }
            match self.map.fill(self.next, self.end, &self.query) {
                Ok((filled, next)) => (self.at, self.filled, self.next) = (0, filled, next),
                Err(error) => {
                    self.failed = true;
                    return Some(Err(error));
                }
            }
        }
        let region = self.map.regions.get(self.at).copied();
        self.at += 1;
        region.map(Ok)
    }
}

/// See [`Pagemap::pages_to_dump`]. Neighbouring pieces are joined.
#[derive(Debug)]
pub struct PagesToDump<'a> {
    regions: Regions<'a>,
    open: Option<PageRegion>,
}

impl Iterator for PagesToDump<'_> {
    type Item = Result<PageRun>;

    fn next(&mut self) -> Option<Result<PageRun>> {
        loop {
            let region = match self.regions.next() {
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(region)) => Some(region),
                None => None,
            };
            match (&mut self.open, region) {
                (Some(open), Some(region))
                    if open.end == region.start && open.categories == region.categories =>
                {
                    open.end = region.end;
                }
                (_, region) => match (std::mem::replace(&mut self.open, region), region) {
                    (Some(closed), _) => return Some(Ok(run_of(&closed))),
                    (None, None) => return None,
                    (None, Some(_)) => {}
                },
            }
        }
    }
}

fn run_of(region: &PageRegion) -> PageRun {
    let PageRegion { start, end, .. } = *region;
    if region.categories & category::GUARD != 0 {
        PageRun::Guard { start, end }
    } else {
        PageRun::Dump { start, end }
    }
}

#[cfg(test)]
#[path = "pagemap_tests.rs"]
mod tests;
