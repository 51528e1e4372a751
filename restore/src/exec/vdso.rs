//! Our own vdso and its data pages, which every task inherits by the fork of the root: where they
//! are, where they are parked while a task's memory is made, and where its `syscall` is.

use crate::plan::step::VdsoArea;
use crust_process::proc::maps::{MapsVma, VmaName, parse_maps};
use std::fs;
use std::io::{Read, Seek, SeekFrom};

/// Offset of the parked areas in the scratch memory, behind the stub's page.
pub const PARKING_AT: usize = 4096;
/// Bytes kept for them: vvar has 4 pages, vvar_vclock 2, vdso 2 on Linux 6.18.
pub const PARKING: usize = 16 * 4096;
/// Clearance of the scratch memory from any mapping: stacks must be able to grow.
const CLEARANCE: u64 = 256 << 20;
/// End of the address space of an x86_64 task (TASK_SIZE_MAX with four-level tables).
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// An area of the host, in address order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostArea {
    /// First address, in us and in a task just forked.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
    /// Whether it is the code.
    pub is_code: bool,
}

/// The vdso of this kernel.
#[derive(Clone, Debug)]
pub struct HostVdso {
    /// Its areas, ascending and adjacent.
    pub areas: Vec<HostArea>,
    /// Offset of a `syscall` instruction from the first area's start.
    pub syscall_at: u64,
}

impl HostVdso {
    /// Reads /proc/self/maps and the code.
    pub fn read() -> Result<HostVdso, String> {
        let areas: Vec<HostArea> = own_maps()?.iter().filter_map(area_of).collect();
        let code = areas
            .iter()
            .find(|area| area.is_code)
            .ok_or("there is none")?;
        let mut bytes = vec![0; (code.end - code.start) as usize];
        let mut mem = fs::File::open("/proc/self/mem").map_err(|error| error.to_string())?;
        mem.seek(SeekFrom::Start(code.start))
            .and_then(|_| mem.read_exact(&mut bytes))
            .map_err(|error| format!("read it: {error}"))?;
        let syscall = bytes.windows(2).position(|pair| pair == [0x0f, 0x05]);
        let syscall = syscall.ok_or("it has no syscall instruction")?;
        Ok(HostVdso {
            syscall_at: code.start - areas[0].start + syscall as u64,
            areas,
        })
    }

    /// First address of all.
    pub fn start(&self) -> u64 {
        self.areas.first().map_or(0, |area| area.start)
    }

    /// Where the whole begins in a task whose image has these areas: they must cover the same
    /// bytes as ours, moved. The image may tell two data areas as one.
    pub fn start_in(&self, image: &[VdsoArea]) -> Option<u64> {
        let start = image.first()?.start;
        let end = image.last()?.end;
        let own_end = self.areas.last()?.end;
        let code = image.iter().find(|area| area.is_code)?;
        let own_code = self.areas.iter().find(|area| area.is_code)?;
        let same = end.checked_sub(start)? == own_end - self.start()
            && code.start.checked_sub(start)? == own_code.start - self.start()
            && image.windows(2).all(|pair| pair[0].end == pair[1].start);
        same.then_some(start)
    }
}

fn area_of(vma: &MapsVma) -> Option<HostArea> {
    let is_code = match &vma.name {
        VmaName::Vdso => true,
        VmaName::Vvar | VmaName::VvarVclock => false,
        _ => return None,
    };
    Some(HostArea {
        start: vma.start,
        end: vma.end,
        is_code,
    })
}

fn own_maps() -> Result<Vec<MapsVma>, String> {
    let text = fs::read("/proc/self/maps").map_err(|error| error.to_string())?;
    parse_maps(&text).map_err(|error| error.to_string())
}

/// An address range that is free in us and in every task of the plan.
pub fn find_gap(used: &[(u64, u64)], len: u64) -> Result<u64, String> {
    const FIRST: u64 = 1 << 32;
    let mut ranges = used.to_vec();
    ranges.extend(own_maps()?.iter().map(|vma| (vma.start, vma.end)));
    ranges.sort_unstable();
    let mut at = FIRST;
    for (start, end) in ranges {
        if start >= at.saturating_add(len + 2 * CLEARANCE) {
            break;
        }
        at = at.max(end);
    }
    let gap = at + CLEARANCE;
    if gap.saturating_add(len + CLEARANCE) > TASK_SIZE {
        return Err("no gap is free in all tasks".into());
    }
    Ok(gap)
}
