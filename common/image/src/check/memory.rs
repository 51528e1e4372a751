//! Areas and pages.
//!
//! Every stored page lies in an area, every mapped object exists, and the pages files are exactly
//! as long as the pagemaps say.

use super::{Findings, Place};
use crate::{
    ids::{FileId, ShmId, VirtPid},
    kind::Kind,
    pages::{PAGE_SIZE, PageRun},
};
use crust_proto::criu::{MmEntry, VmaEntry};
use std::collections::BTreeSet;

// Bits of vma_entry.status.
const VMA_FILE_PRIVATE: u32 = 0x40;
const VMA_FILE_SHARED: u32 = 0x80;
const VMA_AREA_SYSVIPC: u32 = 0x400;
const VMA_AREA_SOCKET: u32 = 0x800;
const VMA_AREA_MEMFD: u32 = 0x4000;
const VMA_AREA_GUARD: u32 = 0x10000;
/// Bits 28 to 31 are a tool's own; the last says that it could not store the area.
const VMA_PRIVATE_BITS: u32 = 0xf000_0000;

pub fn check(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    for (pid, mm) in &checkpoint.mms {
        check_vmas(findings, *pid, mm);
        check_task_pages(findings, *pid, mm);
    }
    check_objects(findings);
}

fn at_mm(pid: VirtPid, field: &'static str) -> Place<'static> {
    Place::of(Kind::Mm, Some(pid.get().into()))
        .entry(0)
        .field(field)
}

fn check_vmas(findings: &mut Findings<'_>, pid: VirtPid, mm: &MmEntry) {
    let mut last_end = 0;
    for (number, vma) in mm.vmas.iter().enumerate() {
        let shown = format!("vma {number} ({:#x}-{:#x})", vma.start, vma.end);
        let aligned = vma.start.is_multiple_of(PAGE_SIZE) && vma.end.is_multiple_of(PAGE_SIZE);
        if vma.start >= vma.end || !aligned {
            findings.error(at_mm(pid, "vmas"), format!("{shown} is no range of pages"));
        }
        // Guard ranges are no areas of the kernel and lie inside them.
        if vma.status & VMA_AREA_GUARD == 0 {
            if vma.start < last_end {
                let what = format!("{shown} overlaps the one before");
                findings.error(at_mm(pid, "vmas.start"), what);
            }
            last_end = vma.end;
        }
        if vma.status & VMA_PRIVATE_BITS != 0 {
            let what = format!("{shown}: {:#x} has bits no image may have", vma.status);
            findings.error(at_mm(pid, "vmas.status"), what);
        }
        if let Err(what) = resolve_object(findings, vma) {
            findings.error(at_mm(pid, "vmas.shmid"), format!("{shown}: {what}"));
        }
    }
}

/// Whether the object an area maps is there.
fn resolve_object(findings: &Findings<'_>, vma: &VmaEntry) -> Result<(), String> {
    let checkpoint = findings.checkpoint;
    let has = |bits| vma.status & bits != 0;
    let file = u32::try_from(vma.shmid)
        .ok()
        .and_then(|id| checkpoint.file(FileId(id)));
    let found = if has(VMA_AREA_MEMFD) {
        file.is_some_and(|file| file.memfd.is_some())
    } else if has(VMA_AREA_SOCKET) {
        file.is_some_and(|file| file.psk.is_some())
    } else if has(VMA_FILE_PRIVATE | VMA_FILE_SHARED) {
        file.is_some_and(|file| {
            file.reg.is_some() || file.bpf.is_some() || file.crust_uring.is_some()
        })
    } else if has(VMA_AREA_SYSVIPC) {
        let mut segments = checkpoint.namespaces.ipc_shm.values().flatten();
        segments.any(|segment| u64::from(segment.entry.desc.id) == vma.shmid)
    } else {
        true
    };
    if found {
        return Ok(());
    }
    let wanted = if has(VMA_AREA_MEMFD) {
        "memfd"
    } else if has(VMA_AREA_SOCKET) {
        "packet socket"
    } else if has(VMA_AREA_SYSVIPC) {
        "SysV segment"
    } else {
        "regular file"
    };
    Err(format!("{} is the id of no {wanted}", vma.shmid))
}

fn check_task_pages(findings: &mut Findings<'_>, pid: VirtPid, mm: &MmEntry) {
    let place = || Place::of(Kind::Pagemap, Some(pid.get().into()));
    let runs = match findings.checkpoint.task_pages(pid) {
        Ok(runs) => runs,
        Err(error) => return findings.error(place(), error.to_string()),
    };
    let mut areas: Vec<(u64, u64)> = mm
        .vmas
        .iter()
        .filter(|vma| vma.status & VMA_AREA_GUARD == 0)
        .map(|vma| (vma.start, vma.end))
        .collect();
    areas.sort_unstable();
    for run in runs {
        if let Some(at) = first_outside(run, &areas) {
            let what = format!("the page at {at:#x} lies in no vma of task {pid}");
            findings.error(place().field("vaddr"), what);
        }
    }
}

/// The first address of a run that no area holds. `areas` ascend and do not overlap.
fn first_outside(run: &PageRun, areas: &[(u64, u64)]) -> Option<u64> {
    let mut at = run.vaddr;
    let first = areas.partition_point(|(_, end)| *end <= at);
    for (start, end) in areas.iter().skip(first) {
        if at >= run.end() || *start > at {
            break;
        }
        at = *end;
    }
    (at < run.end()).then_some(at)
}

/// Pages of shared memory lie within an object somebody has.
fn check_objects(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    let mapped: BTreeSet<u64> = checkpoint
        .mms
        .values()
        .flat_map(|mm| &mm.vmas)
        .map(|vma| vma.shmid)
        .collect();
    for (shmid, pages) in &checkpoint.shmem_pages {
        let place = || Place::of(Kind::PagemapShmem, Some(shmid.0));
        let runs = match pages {
            Ok(runs) => runs,
            Err(error) => {
                findings.error(place(), error.to_string());
                continue;
            }
        };
        let size = object_size(findings, *shmid);
        if size.is_none() && !mapped.contains(&shmid.0) {
            findings.warning(place(), "nothing maps or has open this shared memory");
        }
        let end = runs.last().map_or(0, PageRun::end);
        if let Some(size) = size.filter(|size| end > size.next_multiple_of(PAGE_SIZE)) {
            let what = format!("pages up to {end:#x}, the object has {size:#x} bytes");
            findings.error(place().field("vaddr"), what);
        }
    }
}

/// The size of a memfd or SysV segment. That of an anonymous mapping is only in its areas.
fn object_size(findings: &Findings<'_>, shmid: ShmId) -> Option<u64> {
    let checkpoint = findings.checkpoint;
    let mut memfds = checkpoint.memfds.values();
    let memfd = memfds.find(|memfd| u64::from(memfd.shmid) == shmid.0);
    if let Some(memfd) = memfd {
        return Some(memfd.size.min(u64::MAX - PAGE_SIZE));
    }
    let mut segments = checkpoint.namespaces.ipc_shm.values().flatten();
    let segment = segments.find(|segment| u64::from(segment.entry.desc.id) == shmid.0)?;
    Some(segment.entry.size.min(u64::MAX - PAGE_SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::PagesId, pages::PageSource};

    #[test]
    fn pages_outside_of_areas_are_found() {
        let run = |vaddr, nr_pages| PageRun {
            vaddr,
            nr_pages,
            source: PageSource {
                level: 0,
                pages_id: PagesId(1),
                file_offset: 0,
            },
            lazy: false,
        };
        let areas = [(0x1000, 0x3000), (0x3000, 0x4000), (0x6000, 0x7000)];
        assert_eq!(first_outside(&run(0x1000, 3), &areas), None);
        assert_eq!(first_outside(&run(0x2000, 1), &areas), None);
        assert_eq!(first_outside(&run(0x3000, 2), &areas), Some(0x4000));
        assert_eq!(first_outside(&run(0x5000, 2), &areas), Some(0x5000));
        assert_eq!(first_outside(&run(0x8000, 1), &areas), Some(0x8000));
        assert_eq!(first_outside(&run(0x1000, 1), &[]), Some(0x1000));
    }
}
