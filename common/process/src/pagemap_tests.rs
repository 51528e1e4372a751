//! A child with memory of every kind, scanned both ways.

use super::*;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::num::NonZero;
use std::os::unix::fs::MetadataExt;

const MADV_GUARD_INSTALL: i32 = 102;

/// A private mapping of ours, inherited by the child.
struct Mapping {
    at: std::ptr::NonNull<std::ffi::c_void>,
    pages: u64,
}

impl Mapping {
    fn new(pages: u64, file: Option<&File>) -> Mapping {
        let len = NonZero::new((pages * PAGE) as usize).expect("a mapping has pages");
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: fresh mappings where the kernel likes them touch no memory of ours.
        let at = unsafe {
            match file {
                Some(file) => mmap(None, len, prot, flags, file, 0),
                None => mmap_anonymous(None, len, prot, flags),
            }
        };
        let at = at.expect("there is room for a test's mapping");
        let mapping = Mapping { at, pages };
        // Huge pages would make neighbours of a touched page present.
        mapping.advise(0, pages, libc::MADV_NOHUGEPAGE);
        mapping
    }

    fn addr(&self, page: u64) -> u64 {
        self.at.as_ptr() as u64 + page * PAGE
    }

    fn range(&self) -> Range<u64> {
        self.addr(0)..self.addr(self.pages)
    }

    fn write(&self, page: u64) {
        assert!(page < self.pages);
        // SAFETY: the page lies in our own writable mapping, to which no reference exists.
        unsafe { (self.addr(page) as *mut u8).write_volatile(7) }
    }

    fn read(&self, page: u64) {
        assert!(page < self.pages);
        // SAFETY: the page lies in our own readable mapping.
        unsafe { (self.addr(page) as *const u8).read_volatile() };
    }

    fn advise(&self, page: u64, pages: u64, advice: i32) -> bool {
        assert!(page + pages <= self.pages);
        let len = (pages * PAGE) as usize;
        // SAFETY: the range lies in our own mapping, whose content nobody relies on.
        unsafe { libc::madvise(self.addr(page) as *mut _, len, advice) == 0 }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and no reference to it exists.
        let unmapped = unsafe { munmap(self.at, (self.pages * PAGE) as usize) };
        unmapped.expect("our own mapping can be unmapped");
    }
}

/// A child that ran `prepare` and waits.
struct Child {
    pid: Pid,
    /// Closed at our end, it ends the child, however the test ends.
    _hold: PipeWriter,
}

impl Child {
    /// `prepare` runs between fork and wait in a process with one thread of many: it may touch
    /// memory and make system calls, and must not allocate.
    fn fork(prepare: impl FnOnce() -> bool) -> Child {
        let (hold_read, hold) = std::io::pipe().expect("pipes can be made");
        let (mut said, say) = std::io::pipe().expect("pipes can be made");
        // SAFETY: the child calls only what is allowed after fork in a threaded process.
        match unsafe { fork() }.expect("fork works") {
            ForkResult::Child => wait_in_child(prepare(), say, hold, hold_read),
            ForkResult::Parent { child } => {
                drop((say, hold_read));
                let mut word = [0];
                said.read_exact(&mut word).expect("the child speaks");
                assert_eq!(&word, b"y", "the child's preparations failed");
                Child {
                    pid: child,
                    _hold: hold,
                }
            }
        }
    }

    fn dir(&self) -> ProcDir {
        let pid = HostPid::new(self.pid.as_raw()).expect("a child's pid is positive");
        ProcDir::open(pid).expect("the child lives")
    }
}

fn wait_in_child(good: bool, mut say: PipeWriter, hold: PipeWriter, mut until: PipeReader) -> ! {
    drop(hold);
    let said = say.write_all(if good { b"y" } else { b"n" });
    let ended = until.read(&mut [0]);
    // SAFETY: _exit takes a number and never returns.
    unsafe { libc::_exit(i32::from(said.is_err() || ended.is_err())) }
}

impl Drop for Child {
    fn drop(&mut self) {
        nix::sys::signal::kill(self.pid, nix::sys::signal::Signal::SIGKILL).expect("it is ours");
        waitpid(self.pid, None).expect("it is ours");
    }
}

/// The pagemap by each method this kernel has.
fn both(child: &Child) -> [Pagemap; 2] {
    let dir = child.dir();
    let scan = Pagemap::open(&dir).expect("the child's pagemap opens");
    let method = Method::Entries {
        zero_frame: zero_frame(),
    };
    let entries = Pagemap::open_with(&dir, method).expect("the child's pagemap opens");
    [scan, entries]
}

fn runs(map: &mut Pagemap, mapping: &Mapping, of: PrivateOf) -> Vec<PageRun> {
    let runs: Result<_> = map.pages_to_dump(mapping.range(), of).collect();
    runs.expect("the child's pagemap can be read")
}

fn dump(mapping: &Mapping, from: u64, to: u64) -> PageRun {
    PageRun::Dump {
        start: mapping.addr(from),
        end: mapping.addr(to),
    }
}

#[test]
fn anonymous_memory_without_holes_and_zero_pages() {
    let mapping = Mapping::new(64, None);
    let child = Child::fork(|| {
        (3..6).for_each(|page| mapping.write(page));
        (6..9).for_each(|page| mapping.read(page));
        mapping.write(9);
        mapping.write(63);
        true
    });
    let frames = zero_frame().is_some();
    for mut map in both(&child) {
        let found = runs(&mut map, &mapping, PrivateOf::Anonymous);
        // Without CAP_SYS_ADMIN the fallback cannot know the zero page.
        if matches!(map.method, Method::Entries { .. }) && !frames {
            assert_eq!(found, [dump(&mapping, 3, 10), dump(&mapping, 63, 64)]);
        } else {
            let pieces = [dump(&mapping, 3, 6), dump(&mapping, 9, 10)];
            assert_eq!(found, [pieces[0], pieces[1], dump(&mapping, 63, 64)]);
        }
    }
}

#[test]
fn only_written_pages_of_a_file() {
    let path = std::env::temp_dir().join(format!("crust-pagemap-{}", std::process::id()));
    std::fs::write(&path, vec![1; 16 * PAGE as usize]).expect("a test can write its file");
    let file = File::open(&path).expect("the file is there");
    std::fs::remove_file(&path).expect("the file is ours");
    assert_eq!(file.metadata().expect("the file is open").size(), 16 * PAGE);
    let mapping = Mapping::new(16, Some(&file));
    let child = Child::fork(|| {
        (0..8).for_each(|page| mapping.read(page));
        mapping.write(2);
        mapping.write(12);
        true
    });
    for mut map in both(&child) {
        let found = runs(&mut map, &mapping, PrivateOf::File);
        assert_eq!(found, [dump(&mapping, 2, 3), dump(&mapping, 12, 13)]);
    }
}

#[test]
fn guard_pages_are_told_apart() {
    let mapping = Mapping::new(16, None);
    if !mapping.advise(0, 1, MADV_GUARD_INSTALL) {
        eprintln!("skipped: this kernel has no MADV_GUARD_INSTALL (6.13)");
        return;
    }
    let child = Child::fork(|| {
        (1..10).for_each(|page| mapping.write(page));
        mapping.advise(4, 2, MADV_GUARD_INSTALL)
    });
    let guard = |from, to| PageRun::Guard {
        start: mapping.addr(from),
        end: mapping.addr(to),
    };
    for mut map in both(&child) {
        let found = runs(&mut map, &mapping, PrivateOf::Anonymous);
        let pieces = [dump(&mapping, 1, 4), guard(4, 6), dump(&mapping, 6, 10)];
        let tells = map.tells_guards();
        assert!(
            tells,
            "this kernel has guard pages and does not tell them: {found:?}"
        );
        assert_eq!(found, [guard(0, 1), pieces[0], pieces[1], pieces[2]]);
    }
}

/// More regions than one call returns: nothing is lost or reported twice where calls meet.
#[test]
fn more_regions_than_a_call_returns() {
    let every_second = 3 * REGIONS as u64;
    let mapping = Mapping::new(2 * every_second + 512, None);
    let child = Child::fork(|| {
        (0..every_second).for_each(|at| mapping.write(2 * at));
        (0..512).for_each(|at| mapping.write(2 * every_second + at));
        true
    });
    for mut map in both(&child) {
        let found = runs(&mut map, &mapping, PrivateOf::Anonymous);
        let (last, scattered) = found.split_last().expect("there are many runs");
        assert_eq!(scattered.len() as u64, every_second);
        for (at, run) in (0..).zip(scattered) {
            assert_eq!(*run, dump(&mapping, 2 * at, 2 * at + 1));
        }
        let tail = 2 * every_second;
        assert_eq!(*last, dump(&mapping, tail, tail + 512));
    }
}

#[test]
fn a_long_run_is_one_and_emptiness_none() {
    let full = Mapping::new(3 * ENTRIES as u64 / 2, None);
    let empty = Mapping::new(1 << 24, None);
    let child = Child::fork(|| {
        (0..full.pages).for_each(|page| full.write(page));
        true
    });
    let [mut scan, mut entries] = both(&child);
    for map in [&mut scan, &mut entries] {
        assert_eq!(
            runs(map, &full, PrivateOf::Anonymous),
            [dump(&full, 0, full.pages)]
        );
    }
    // 64 GiB of nothing; by entries it would take long, and says nothing new.
    assert_eq!(runs(&mut scan, &empty, PrivateOf::Anonymous), []);
}

#[test]
fn queries_choose_and_tell() {
    let mapping = Mapping::new(8, None);
    let child = Child::fork(|| {
        mapping.write(1);
        mapping.read(2);
        true
    });
    let query = Query {
        all: category::PRESENT,
        none: category::FILE,
        any: 0,
        returned: category::PRESENT | category::PFNZERO,
        ..Query::default()
    };
    for mut map in both(&child) {
        if map.method == (Method::Entries { zero_frame: None }) {
            eprintln!("skipped: without CAP_SYS_ADMIN entries do not tell the zero page");
            continue;
        }
        let found: Result<Vec<_>> = map.regions(mapping.range(), query).collect();
        let region = |page, categories| PageRegion {
            start: mapping.addr(page),
            end: mapping.addr(page + 1),
            categories,
        };
        let zero = category::PRESENT | category::PFNZERO;
        let both = [region(1, category::PRESENT), region(2, zero)];
        assert_eq!(found.expect("the child's pagemap can be read"), both);
    }
}
