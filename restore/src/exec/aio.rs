//! Makes an AIO context in a task: the one thing whose later calls need what an earlier one answered.

use super::{ExecError, Executor};
use crate::plan::step::{Op, SlotId, Step};
use crust_image::ids::VirtPid;
use crust_process::making::Outcome;
use crust_process::scratch::{Check, Table};
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// Offset of `tail` in struct aio_ring (fs/aio.c).
const TAIL_AT: u64 = 12;
/// Bytes of the ring's header and of an event, struct io_event.
const EVENT: u64 = 32;
/// struct iocb.
const IOCB: usize = 64;
const IOCB_CMD_PREAD: u16 = 0;
/// Requests completed with one call: as many as the smallest context takes.
const AT_ONCE: u32 = 8;
/// Rounds of two calls that fit into one batch.
const ROUNDS: u32 = 256;

/// Calls with what they must answer, being written.
type Calls<'w, 's> = &'w mut Table<'s>;

impl<'p> Executor<'p> {
    /// Runs [`Op::AioRing`].
    pub(super) fn make_aio_ring(&mut self, step: &'p Step, pid: VirtPid) -> Result<(), ExecError> {
        let Op::AioRing {
            at,
            len,
            requests,
            pages,
            offset,
        } = step.op
        else {
            return Err(ExecError::step(step, "", Errno::EINVAL));
        };
        let tail = self.stored_tail(step, pages, offset)?;
        if u64::from(tail) >= len / EVENT - 1 {
            let why = format!("the stored ring says that its tail is {tail}");
            return Err(ExecError::step(step, "", why));
        }
        let mut result = 0;
        self.run_table(step, pid, |table| {
            result = table.data(&[0; 8])?;
            let args = [requests.into(), result, 0, 0, 0, 0];
            table.push(libc::SYS_io_setup, args, Check::Exactly(0))
        })?;
        let lane = self.task(step, pid)?.lane;
        let mut name = [0; 8];
        Table::new(&self.scratch, self.areas[lane]).read_data(result, &mut name);
        let ring = u64::from_le_bytes(name);
        let mut left = tail;
        while left > 0 {
            let now = left.min(AT_ONCE * ROUNDS);
            self.run_table(step, pid, |table| complete(table, ring, now))?;
            left -= now;
        }
        if ring == at {
            return Ok(());
        }
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        self.run_table(step, pid, |table| {
            let args = [ring, len, len, flags, at, 0];
            table.push(libc::SYS_mremap, args, Check::Exactly(at as i64))
        })
    }

    fn stored_tail(&self, step: &Step, pages: SlotId, offset: u64) -> Result<u32, ExecError> {
        let fd = self.slots.get(pages.0 as usize).and_then(Option::as_ref);
        let fd = fd.ok_or_else(|| ExecError::step(step, "empty slot", Errno::EBADF))?;
        let mut word = [0; 4];
        let file = fd.as_fd().try_clone_to_owned().map(File::from);
        file.and_then(|file| file.read_exact_at(&mut word, offset + TAIL_AT))
            .map_err(|error| ExecError::step(step, "read the header of the ring", error))?;
        Ok(u32::from_le_bytes(word))
    }

    /// Runs some calls in the task, all of which must answer as they should.
    pub(super) fn run_table(
        &mut self,
        step: &'p Step,
        pid: VirtPid,
        write: impl FnOnce(Calls<'_, '_>) -> Option<usize>,
    ) -> Result<(), ExecError> {
        let lane = self.task(step, pid)?.lane;
        let mut table = Table::new(&self.scratch, self.areas[lane]);
        write(&mut table).ok_or_else(|| ExecError::step(step, "", Errno::E2BIG))?;
        let gone = || ExecError::step(step, "find the task", Errno::ESRCH);
        let task = self.tasks.get_mut(&pid).ok_or_else(gone)?;
        let outcome = task
            .leader
            .start(&self.scratch, &mut table)
            .and_then(|()| task.leader.finish(&table));
        match outcome.map_err(|error| ExecError::step(step, "", error))? {
            Outcome::Done => Ok(()),
            Outcome::Failed(entry) => {
                let doing = format!("call {entry} answered {}", table.ret(entry));
                Err(ExecError::step(step, &doing, Errno::EPROTO))
            }
            Outcome::Exited(status) => {
                let why = format!("the task died, wait status {status:#x}");
                Err(ExecError::step(step, "", why))
            }
        }
    }
}

/// Submits so many reads of /dev/null and takes their events.
fn complete(table: Calls<'_, '_>, ring: u64, count: u32) -> Option<usize> {
    let path = table.data(b"/dev/null\0")?;
    let cwd = libc::AT_FDCWD as i64 as u64;
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    // Number 0 is free in this phase.
    let open = [cwd, path, flags, 0, 0, 0];
    table.push(libc::SYS_openat, open, Check::Exactly(0))?;
    let mut iocb = [0; IOCB];
    iocb[16..18].copy_from_slice(&IOCB_CMD_PREAD.to_le_bytes());
    let iocb = table.data(&iocb)?;
    let pointers: Vec<u8> = (0..AT_ONCE).flat_map(|_| iocb.to_le_bytes()).collect();
    let pointers = table.data(&pointers)?;
    let events = table.data(&[0; AT_ONCE as usize * EVENT as usize])?;
    let mut left = count;
    while left > 0 {
        let now = left.min(AT_ONCE);
        let answer = Check::Exactly(now.into());
        let submit = [ring, now.into(), pointers, 0, 0, 0];
        table.push(libc::SYS_io_submit, submit, answer)?;
        let take = [ring, now.into(), now.into(), events, 0, 0];
        table.push(libc::SYS_io_getevents, take, answer)?;
        left -= now;
    }
    table.push(libc::SYS_close, [0; 6], Check::Exactly(0))
}
