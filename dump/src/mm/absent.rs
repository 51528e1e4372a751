//! The pages our own table will lie in, and which of them the task did not have.
//!
//! Asking a task runs system calls inside it, with their table in the lowest pages of its main
//! stack (crust_process::remote). What was in them is put back, but a page that was not there
//! before is there afterwards, full of zeros: it must not be added to the images.

use crate::mm::copy::PAGE;
use anyhow::Result;
use crust_process::pagemap::{PageRun, Pagemap, PrivateOf};
use crust_process::proc::ProcDir;
use std::ops::Range;

/// More pages than a table takes.
const TABLE_PAGES: u64 = 16;

/// The pages at the low end of a stack that the task has no page in. To be asked before anything
/// runs in the task.
pub fn collect_absent(dir: &ProcDir, stack: &Range<u64>) -> Result<Vec<Range<u64>>> {
    let end = stack.end.min(stack.start + TABLE_PAGES * PAGE);
    let mut absent = Vec::new();
    let mut at = stack.start;
    for run in Pagemap::open(dir)?.pages_to_dump(stack.start..end, PrivateOf::Anonymous) {
        if let PageRun::Dump { start, end } = run? {
            absent.push(at..start);
            at = end;
        }
    }
    absent.push(at..end);
    absent.retain(|range| !range.is_empty());
    Ok(absent)
}

/// The parts of a run outside of the absent pages.
pub fn without(run: Range<u64>, absent: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut from = run.start;
    for hole in absent
        .iter()
        .filter(|hole| hole.start < run.end && hole.end > run.start)
    {
        parts.push(from..hole.start);
        from = hole.end;
    }
    parts.push(from..run.end);
    parts.retain(|part| part.start < part.end);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_cut_out() {
        let cut = |run, holes: &[(u64, u64)]| -> Vec<(u64, u64)> {
            let holes: Vec<Range<u64>> = holes.iter().map(|(from, to)| *from..*to).collect();
            without(run, &holes)
                .into_iter()
                .map(|part| (part.start, part.end))
                .collect()
        };
        assert_eq!(cut(0..10, &[]), [(0, 10)]);
        assert_eq!(cut(0..10, &[(2, 4), (6, 20)]), [(0, 2), (4, 6)]);
        assert_eq!(cut(4..10, &[(0, 5), (9, 10)]), [(5, 9)]);
        assert_eq!(cut(4..10, &[(0, 20)]), []);
        assert_eq!(cut(4..10, &[(0, 4), (10, 12)]), [(4, 10)]);
    }

    #[test]
    fn our_own_stack_end_is_told() {
        let dir = ProcDir::open(crust_process::pid::HostPid::current()).expect("we have a /proc");
        assert_eq!(collect_absent(&dir, &(0..0)).expect("an empty stack"), []);
    }
}
