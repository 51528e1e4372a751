//! Loading much memory with two processors: the task reads the first part of a large load itself,
//! and meanwhile we write the rest into it through /proc/PID/mem. We copy twice where the task
//! copies once, so its part is the larger one.

use super::compile::read_calls;
use super::{ExecError, Executor};
use crate::plan::step::{Op, PageLoad, SlotId, Step};
use crust_image::ids::VirtPid;
use crust_process::making::Outcome;
use crust_process::memory::TaskMem;
use crust_process::scratch::Table;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Below it, 32 MiB, the task loads alone: it takes ten milliseconds.
const LARGE: u64 = 32 << 20;
/// Bytes of a hundred that the task loads.
const SHARE: u64 = 62;
/// Bytes that we carry at once, which stay in the cache.
const PIECE: usize = 256 << 10;
const PAGE: u64 = 4096;

/// Whether a step is a load that is worth two.
pub(super) fn is_large(op: &Op) -> bool {
    match op {
        Op::LoadPages { runs, .. } => bytes_of(runs) >= LARGE,
        _ => false,
    }
}

fn bytes_of(runs: &[PageLoad]) -> u64 {
    runs.iter().fold(0, |sum, run| sum.saturating_add(run.len))
}

impl<'p> Executor<'p> {
    /// Runs a large [`Op::LoadPages`].
    pub(super) fn load_by_two(&mut self, step: &'p Step, pid: VirtPid) -> Result<(), ExecError> {
        let Op::LoadPages { fd, pages, runs } = &step.op else {
            return Err(ExecError::step(step, "", Errno::EINVAL));
        };
        let (own, ours) = share(runs);
        let lane = self.task(step, pid)?.lane;
        let mut table = Table::new(&self.scratch, self.areas[lane]);
        read_calls(&mut table, *fd, &own).ok_or_else(|| ExecError::step(step, "", Errno::E2BIG))?;
        let gone = || ExecError::step(step, "find the task", Errno::ESRCH);
        let from = self.file_in(step, *pages)?;
        let task = self.tasks.get_mut(&pid).ok_or_else(gone)?;
        let failed = |error: crust_process::error::Error| ExecError::step(step, "", error);
        let memory = TaskMem::open(task.leader.tid()).map_err(failed)?;
        task.leader
            .start(&self.scratch, &mut table)
            .map_err(failed)?;
        // The task is waited for whatever comes of our part.
        let carried = carry(step, &from, &memory, &ours);
        match task.leader.finish(&table).map_err(failed)? {
            Outcome::Done => carried,
            Outcome::Failed(entry) => {
                let why = format!("preadv answered {}", table.ret(entry));
                Err(ExecError::step(step, "", why))
            }
            Outcome::Exited(status) => {
                let why = format!("the task died, wait status {status:#x}");
                Err(ExecError::step(step, "", why))
            }
        }
    }

    fn file_in(&self, step: &Step, slot: SlotId) -> Result<File, ExecError> {
        let fd = self.slots.get(slot.0 as usize).and_then(Option::as_ref);
        let fd = fd.ok_or_else(|| ExecError::step(step, "empty slot", Errno::EBADF))?;
        let copy = fd.as_fd().try_clone_to_owned().map(File::from);
        copy.map_err(|error| ExecError::step(step, "dup", error))
    }
}

/// What the task loads, and what we do: a run may be cut in two, at a page.
fn share(runs: &[PageLoad]) -> (Vec<PageLoad>, Vec<PageLoad>) {
    let mut left = bytes_of(runs) / 100 * SHARE / PAGE * PAGE;
    let (mut own, mut ours) = (Vec::new(), Vec::new());
    for run in runs {
        let now = run.len.min(left);
        left -= now;
        let head = PageLoad { len: now, ..*run };
        let tail = PageLoad {
            to: run.to + now,
            offset: run.offset + now,
            len: run.len - now,
        };
        own.extend(Some(head).filter(|head| head.len > 0));
        ours.extend(Some(tail).filter(|tail| tail.len > 0));
    }
    (own, ours)
}

fn carry(step: &Step, from: &File, memory: &TaskMem, runs: &[PageLoad]) -> Result<(), ExecError> {
    let mut buffer = vec![0; PIECE];
    for run in runs {
        let mut done = 0;
        while done < run.len {
            let len = (run.len - done).min(PIECE as u64);
            let piece = &mut buffer[..len as usize];
            from.read_exact_at(piece, run.offset + done)
                .map_err(|error| ExecError::step(step, "read pages", error))?;
            memory
                .write_all_at(run.to + done, piece)
                .map_err(|error| ExecError::step(step, "", error))?;
            done += len;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_cut_once_at_a_page() {
        let run = |to: u64, len: u64| PageLoad {
            to,
            offset: to / 2,
            len,
        };
        let runs = [run(0x1000, 40 << 20), run(0x1000_0000, 60 << 20)];
        let (own, ours) = share(&runs);
        assert_eq!(bytes_of(&own) + bytes_of(&ours), 100 << 20);
        assert_eq!(own.len(), 2);
        assert_eq!(ours.len(), 1);
        let cut = own[1].len;
        assert!(cut.is_multiple_of(PAGE));
        assert_eq!(
            (ours[0].to, ours[0].offset),
            (own[1].to + cut, own[1].offset + cut)
        );
    }
}
