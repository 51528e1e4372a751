//! Which stored pages go into which vma. A pagemap says where pages lie in pages files; here they
//! are cut along the vmas of the task, put into the order of the file and joined where both sides
//! go on, so that the task reads them with few calls.

use super::vmas::{Kind, Vma};
use crate::plan::step::PageLoad;
use crust_image::pages::PageRun;
use std::collections::BTreeMap;

/// A pages file: how many `parent` links away it is, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// 0 is the image directory itself.
    pub level: usize,
    /// N of pages-N.img.
    pub pages_id: u32,
}

/// A run of pages, with the entry of the pagemap that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredRun {
    /// Where it is.
    pub source: Source,
    /// Address and file offset.
    pub load: PageLoad,
}

impl From<&PageRun> for StoredRun {
    fn from(run: &PageRun) -> StoredRun {
        StoredRun {
            source: Source {
                level: run.source.level,
                pages_id: run.source.pages_id.0,
            },
            load: PageLoad {
                to: run.vaddr,
                offset: run.source.file_offset,
                len: run.len(),
            },
        }
    }
}

/// Bytes at the start of an AIO ring that the kernel has written for the context it belongs to:
/// `id` and `nr` of struct aio_ring (fs/aio.c).
const RING_IDENTITY: u64 = 8;

/// Pages to read, by file, in the order of the file.
pub type Loads = BTreeMap<Source, Vec<PageLoad>>;

/// Cuts `runs` (ascending by address) along `vmas` (ascending).
pub fn split(runs: &[StoredRun], vmas: &[Vma]) -> Result<Loads, String> {
    let mut loads = Loads::new();
    let mut at = 0;
    let mapped: Vec<&Vma> = vmas.iter().filter(|vma| vma.kind != Kind::Guard).collect();
    for run in runs {
        let mut rest = run.load;
        while rest.len > 0 {
            while mapped.get(at).is_some_and(|vma| vma.end <= rest.to) {
                at += 1;
            }
            let vma = mapped.get(at).filter(|vma| vma.start <= rest.to);
            let vma = vma.ok_or_else(|| format!("pages at {:#x} lie in no vma", rest.to))?;
            let len = rest.len.min(vma.end - rest.to);
            let mut piece = PageLoad { len, ..rest };
            if vma.kind == Kind::AioRing && rest.to == vma.start {
                // Number and size of the new context stay.
                piece.to += RING_IDENTITY;
                piece.offset += RING_IDENTITY;
                piece.len -= RING_IDENTITY;
            }
            if vma.kind.takes_pages() {
                add(loads.entry(run.source).or_default(), piece);
            } else if !is_vdso(vma.kind) {
                let range = vma.range();
                return Err(format!(
                    "pages at {:#x} lie in the shared vma {range}",
                    rest.to
                ));
            }
            rest = PageLoad {
                to: rest.to + len,
                offset: rest.offset + len,
                len: rest.len - len,
            };
        }
    }
    for runs in loads.values_mut() {
        runs.sort_by_key(|run| run.offset);
    }
    Ok(loads)
}

/// The kernel's own pages are this kernel's, not those of the images.
fn is_vdso(kind: Kind) -> bool {
    matches!(kind, Kind::Vdso | Kind::Vvar | Kind::Vsyscall)
}

/// Appends a run, or makes the last one longer.
pub fn add(runs: &mut Vec<PageLoad>, piece: PageLoad) {
    match runs.last_mut() {
        Some(last) if last.to + last.len == piece.to && last.offset + last.len == piece.offset => {
            last.len += piece.len;
        }
        _ => runs.push(piece),
    }
}

/// Whether any page is stored for a vma. `runs` ascend by address.
pub fn any_in(runs: &[StoredRun], vma: &Vma) -> bool {
    let first = runs.partition_point(|run| run.load.to + run.load.len <= vma.start);
    runs.get(first).is_some_and(|run| run.load.to < vma.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Source = Source {
        level: 0,
        pages_id: 1,
    };

    fn vma(start: u64, end: u64, kind: Kind) -> Vma {
        Vma {
            index: 0,
            start,
            end,
            pgoff: 0,
            prot: 3,
            flags: 0x22,
            open_flags: 0,
            madv: 0,
            kind,
        }
    }

    fn run(to: u64, offset: u64, len: u64) -> StoredRun {
        StoredRun {
            source: FILE,
            load: PageLoad { to, offset, len },
        }
    }

    #[test]
    fn a_run_over_neighbours_stays_one() {
        let vmas = [
            vma(0x1000, 0x2000, Kind::Anon),
            vma(0x2000, 0x4000, Kind::Anon),
        ];
        let runs = [run(0x1000, 0, 0x3000)];
        let loads = split(&runs, &vmas).expect("fits");
        assert_eq!(loads[&FILE], [run(0x1000, 0, 0x3000).load]);
        assert!(any_in(&runs, &vmas[1]));
        assert!(!any_in(&runs, &vma(0x4000, 0x5000, Kind::Anon)));
    }

    #[test]
    fn pages_of_the_vdso_are_left_out() {
        let vmas = [
            vma(0x1000, 0x2000, Kind::Anon),
            vma(0x2000, 0x3000, Kind::Vdso),
        ];
        let loads = split(&[run(0x1000, 0, 0x2000)], &vmas).expect("fits");
        assert_eq!(loads[&FILE], [run(0x1000, 0, 0x1000).load]);
    }

    #[test]
    fn stray_pages_are_named() {
        let vmas = [vma(0x1000, 0x2000, Kind::Anon)];
        let error = split(&[run(0x1000, 0, 0x2000)], &vmas).expect_err("one page too much");
        assert_eq!(error, "pages at 0x2000 lie in no vma");
        let shared = [vma(0x1000, 0x2000, Kind::SharedAnon(1))];
        assert!(split(&[run(0x1000, 0, 0x1000)], &shared).is_err());
    }
}
