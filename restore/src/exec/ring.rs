//! Maps an io_uring in a task, at the address it had.
//!
//! The kernel takes no address for such a mapping, with MAP_FIXED either and for mremap(2) neither:
//! io_uring_get_unmapped_area of io_uring/memmap.c answers EINVAL to any. It takes the highest gap
//! below mmap_base that is large enough, or else the lowest one: so all gaps but the wanted one are
//! taken for the moment by memory that nobody may touch, which costs nothing.

use super::{ExecError, Executor, host_pid};
use crate::plan::step::{Op, Step};
use crust_image::ids::VirtPid;
use crust_process::pid::HostPid;
use crust_process::proc::ProcDir;
use crust_process::proc::maps::parse_maps;
use crust_process::scratch::Check;
use nix::errno::Errno;
use nix::libc;
use std::iter::once;
use std::ops::Range;

/// Where the memory of a 64-bit program ends (TASK_SIZE_MAX with four levels of tables, and without
/// a hint with five).
const END: u64 = 0x7fff_ffff_f000;
/// Calls that fit into one batch with room to spare.
const AT_ONCE: usize = 128;

impl<'p> Executor<'p> {
    /// Runs [`Op::MapRing`].
    pub(super) fn map_ring(&mut self, step: &'p Step, pid: VirtPid) -> Result<(), ExecError> {
        let Op::MapRing {
            at,
            len,
            prot,
            offset,
        } = step.op
        else {
            return Err(ExecError::step(step, "", Errno::EINVAL));
        };
        let told = |why: String| ExecError::step(step, "find the gaps of its memory", why);
        let gaps = gaps(host_pid(step, pid)?, at..at + len).map_err(told)?;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let kind = (kind | libc::MAP_FIXED_NOREPLACE) as u64;
        for gaps in gaps.chunks(AT_ONCE) {
            self.run_table(step, pid, |table| {
                gaps.iter().try_fold(0, |_, gap| {
                    let args = [gap.start, gap.end - gap.start, 0, kind, u64::MAX, 0];
                    table.push(libc::SYS_mmap, args, Check::Exactly(gap.start as i64))
                })
            })?;
        }
        self.run_table(step, pid, |table| {
            let args = [0, len, prot.into(), libc::MAP_SHARED as u64, 0, offset];
            table.push(libc::SYS_mmap, args, Check::Exactly(at as i64))
        })?;
        for gaps in gaps.chunks(AT_ONCE) {
            self.run_table(step, pid, |table| {
                gaps.iter().try_fold(0, |_, gap| {
                    let args = [gap.start, gap.end - gap.start, 0, 0, 0, 0];
                    table.push(libc::SYS_munmap, args, Check::Exactly(0))
                })
            })?;
        }
        Ok(())
    }
}

/// What is free in the memory of a task but a range, which must be.
fn gaps(pid: HostPid, wanted: Range<u64>) -> Result<Vec<Range<u64>>, String> {
    let lowest = std::fs::read_to_string("/proc/sys/vm/mmap_min_addr");
    let lowest = lowest.ok().and_then(|text| text.trim().parse().ok());
    let maps = ProcDir::open(pid).and_then(|dir| dir.read("maps"));
    let maps = maps.map_err(|error| error.to_string())?;
    let maps = parse_maps(&maps).map_err(|error| error.to_string())?;
    let taken = maps.iter().map(|vma| vma.start..vma.end);
    around(taken, wanted, lowest.unwrap_or(0x1_0000u64).max(4096))
}

/// The gaps between ascending ranges, from `lowest` on, without the wanted one.
fn around(
    taken: impl Iterator<Item = Range<u64>>,
    wanted: Range<u64>,
    lowest: u64,
) -> Result<Vec<Range<u64>>, String> {
    let (mut gaps, mut from, mut is_there) = (Vec::new(), lowest, false);
    for taken in taken.chain(once(END..u64::MAX)) {
        let gap = from..taken.start.min(END);
        if gap.start <= wanted.start && wanted.end <= gap.end {
            is_there = true;
            gaps.extend([gap.start..wanted.start, wanted.end..gap.end]);
        } else {
            gaps.push(gap);
        }
        from = from.max(taken.end);
    }
    gaps.retain(|gap| gap.start < gap.end);
    if is_there {
        return Ok(gaps);
    }
    Err(format!("{:x}-{:x} is taken", wanted.start, wanted.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_wanted_range() {
        let taken = || [0x2000..0x3000, 0x9000..0xa000].into_iter();
        let gaps = around(taken(), 0x5000..0x6000, 0x1000);
        let wanted = [0x1000..0x2000, 0x3000..0x5000, 0x6000..0x9000, 0xa000..END];
        assert_eq!(gaps, Ok(wanted.to_vec()));
        let gaps = around(taken(), 0x3000..0x9000, 0x2000);
        assert_eq!(gaps, Ok(once(0xa000..END).collect()));
        assert!(around(taken(), 0x8000..0xb000, 0x1000).is_err());
        assert!(around(taken(), END - 0x1000..END + 0x1000, 0x1000).is_err());
    }
}
