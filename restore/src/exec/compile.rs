//! Steps of a task as entries of a table of system calls.

use super::{Actor, ExecError, Executor, Why, host_pid};
use crate::plan::step::{Arg, Call, Op, PageLoad, Piece, Ret, SlotId, Step, VdsoArea};
use crust_process::making::CloneArgs;
use crust_process::scratch::{Check, Table};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use std::os::fd::AsRawFd;

/// The kernel's limit of an iovec (UIO_MAXIOV).
const MOST_IOVECS: usize = 1024;
/// The most a read transfers (read(2), "Notes").
const MOST_BYTES: u64 = 0x7fff_f000;
const NANOS: i128 = 1_000_000_000;
const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_PTRACE;

/// A batch under construction.
pub struct Compiled<'p> {
    /// Who runs it.
    pub actor: Actor,
    /// Each step with the entry behind its last.
    steps: Vec<(&'p Step, usize)>,
}

/// Whether a step becomes entries of a table.
pub fn is_batched(op: &Op) -> bool {
    match op {
        large if super::load::is_large(large) => false,
        Op::Call(_)
        | Op::Take { .. }
        | Op::Fork { .. }
        | Op::MoveVdso { .. }
        | Op::LoadPages { .. }
        | Op::Thread { .. }
        | Op::Overrun { .. }
        | Op::Reap { .. } => true,
        Op::Fetch { .. }
        | Op::ClearMemory
        | Op::AioRing { .. }
        | Op::MapRing { .. }
        | Op::CopyPages { .. }
        | Op::WriteProc { .. }
        | Op::Die { .. }
        | Op::Stop { .. }
        | Op::SetRegs(_)
        | Op::LastCall(_)
        | Op::Routine(_) => false,
    }
}

impl<'p> Compiled<'p> {
    /// An empty batch.
    pub fn new(actor: Actor) -> Compiled<'p> {
        Compiled {
            actor,
            steps: Vec::new(),
        }
    }

    /// Whether nothing has been added.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The first step.
    pub fn first_step(&self) -> Option<&'p Step> {
        self.steps.first().map(|(step, _)| *step)
    }

    /// The steps.
    pub fn into_steps(self) -> impl Iterator<Item = &'p Step> {
        self.steps.into_iter().map(|(step, _)| step)
    }

    /// Adds a step; false if the table is full. A step that does not fit an empty table is an
    /// error.
    pub fn add(
        &mut self,
        executor: &Executor<'p>,
        table: &mut Table<'_>,
        step: &'p Step,
    ) -> Result<bool, ExecError> {
        let mark = table.mark();
        match (Writer {
            executor,
            table,
            step,
        })
        .write()?
        {
            Some(()) => {
                self.steps.push((step, table.len()));
                Ok(true)
            }
            None if self.steps.is_empty() => Err(ExecError::step(
                step,
                "more data than a batch can carry",
                Errno::E2BIG,
            )),
            None => {
                table.rewind(mark);
                Ok(false)
            }
        }
    }

    /// The error of an entry that did not answer as it should.
    pub fn failure(&self, entry: usize, ret: i64) -> ExecError {
        let step = self
            .steps
            .iter()
            .find(|(_, end)| entry < *end)
            .map(|(step, _)| *step);
        let why = match ret {
            -4095..=-1 => match (step.map(|step| &step.op), Errno::from_raw(-ret as i32)) {
                (Some(Op::Fork { pid: busy, .. } | Op::Thread { tid: busy }), Errno::EEXIST) => {
                    Why::from(super::broker::busy(*busy))
                }
                (_, errno) => errno.into(),
            },
            _ => format!("answered {ret} ({ret:#x})").into(),
        };
        match step {
            Some(step) => ExecError::step(step, &crate::plan::print::op(&step.op), why),
            None => ExecError::new(format!("run a batch in {}", self.actor), why),
        }
    }
}

/// The value of one argument, with its data in the table; `None` if that is full.
pub fn argument<'p>(
    executor: &Executor<'p>,
    table: &mut Table<'_>,
    step: &'p Step,
    arg: &Arg,
) -> Result<Option<u64>, ExecError> {
    (Writer {
        executor,
        table,
        step,
    })
    .arg(arg)
}

/// Writes one step. `None` everywhere means that the table is full.
struct Writer<'w, 's, 'p> {
    executor: &'w Executor<'p>,
    table: &'w mut Table<'s>,
    step: &'p Step,
}

type Fits = Result<Option<()>, ExecError>;

/// Goes on if there was room, else reports that there was none.
macro_rules! room {
    ($value:expr) => {
        match $value {
            Some(value) => value,
            None => return Ok(None),
        }
    };
}

impl Writer<'_, '_, '_> {
    fn write(&mut self) -> Fits {
        match &self.step.op {
            Op::Call(call) => self.call(call),
            Op::Take { slot, at, cloexec } => self.take(*slot, *at, *cloexec),
            Op::Fork {
                pid,
                flags,
                exit_signal,
            } => {
                let flags = flags | libc::CLONE_PTRACE as u64;
                self.clone(host_pid(self.step, *pid)?.get(), flags, *exit_signal as u64)
            }
            Op::Thread { tid } => {
                self.clone(host_pid(self.step, *tid)?.get(), THREAD_FLAGS as u64, 0)
            }
            Op::MoveVdso { areas } => self.move_vdso(areas),
            Op::LoadPages { fd, runs, .. } => Ok(read_calls(self.table, *fd, runs)),
            Op::Overrun { .. } => self.overrun(),
            Op::Reap { pid } => {
                let pid = host_pid(self.step, *pid)?.get();
                let args = [pid as u64, 0, libc::__WALL as u64, 0, 0, 0];
                self.push(libc::SYS_wait4, args, Check::Exactly(pid.into()))
            }
            _ => Err(ExecError::step(
                self.step,
                "not a step of a task",
                Errno::EINVAL,
            )),
        }
    }

    fn push(&mut self, nr: i64, args: [u64; 6], check: Check) -> Fits {
        Ok(self.table.push(nr, args, check).map(drop))
    }

    fn call(&mut self, call: &Call) -> Fits {
        let mut args = [0; 6];
        if call.args.len() > args.len() {
            return Err(ExecError::step(self.step, call.name, Errno::EINVAL));
        }
        for (to, arg) in args.iter_mut().zip(&call.args) {
            *to = room!(self.arg(arg)?);
        }
        let check = match call.ret {
            Ret::Ok => Check::Ok,
            Ret::Exactly(value) => Check::Exactly(value),
            Ret::Any => Check::Any,
            Ret::Fd(_) | Ret::FdPair(..) => {
                let doing = "a task's call cannot fill a slot; Fetch does";
                return Err(ExecError::step(self.step, doing, Errno::EINVAL));
            }
        };
        self.push(call.nr, args, check)
    }

    fn arg(&mut self, arg: &Arg) -> Result<Option<u64>, ExecError> {
        Ok(match arg {
            Arg::Int(value) => Some(*value as u64),
            Arg::Hex(value) | Arg::Named(_, value) => Some(*value),
            Arg::Str(bytes) => {
                let mut bytes = bytes.clone();
                bytes.push(0);
                self.table.data(&bytes)
            }
            Arg::Data(pieces) => {
                let mut bytes = Vec::new();
                for piece in pieces {
                    match piece {
                        Piece::Bytes(more) => bytes.extend_from_slice(more),
                        Piece::Ptr(arg) => {
                            let address = room!(self.arg(arg)?);
                            bytes.extend_from_slice(&address.to_le_bytes());
                        }
                    }
                }
                self.table.data(&bytes)
            }
            Arg::Out(len) => self.table.data(&vec![0; *len]),
            Arg::Fd(_) | Arg::FdPath(_) => return Err(self.foreign_fd()),
        })
    }

    fn foreign_fd(&self) -> ExecError {
        let doing = "a task cannot use a descriptor of the broker; Take brings it";
        ExecError::step(self.step, doing, Errno::EBADF)
    }

    fn take(&mut self, slot: SlotId, at: i32, cloexec: bool) -> Fits {
        let fd = self
            .executor
            .slots
            .get(slot.0 as usize)
            .and_then(Option::as_ref);
        let fd = fd.ok_or_else(|| ExecError::step(self.step, "empty slot", Errno::EBADF))?;
        let args = [
            self.executor.plan.broker_fd as u64,
            fd.as_raw_fd() as u64,
            0,
            0,
            0,
            0,
        ];
        room!(self.push(libc::SYS_pidfd_getfd, args, Check::Exactly(at.into()))?);
        if cloexec {
            return Ok(Some(()));
        }
        // It comes with close-on-exec set.
        let args = [at as u64, libc::F_SETFD as u64, 0, 0, 0, 0];
        self.push(libc::SYS_fcntl, args, Check::Ok)
    }

    fn clone(&mut self, tid: i32, flags: u64, exit_signal: u64) -> Fits {
        let set_tid = room!(self.table.data(&tid.to_le_bytes()));
        let clone_args = CloneArgs {
            flags,
            exit_signal,
            set_tid,
            set_tid_size: 1,
            ..CloneArgs::default()
        };
        let bytes = clone_args.to_bytes();
        let at = room!(self.table.data(&bytes));
        let args = [at, bytes.len() as u64, 0, 0, 0, 0];
        self.push(libc::SYS_clone3, args, Check::Exactly(tid.into()))
    }

    /// The clock is read here, a moment before the call is made: an interval that ends in between
    /// is one more overrun, as it would have been for a program that was slow.
    fn overrun(&mut self) -> Fits {
        let Op::Overrun {
            id,
            clock,
            shift,
            left,
            interval,
            overrun,
        } = self.step.op
        else {
            return Ok(None);
        };
        let now = clock_gettime(ClockId::from_raw(clock))
            .map_err(|errno| ExecError::step(self.step, "read its clock", errno))?;
        let now = i128::from(now.tv_sec()) * NANOS + i128::from(now.tv_nsec());
        let passed = i128::from(interval) * (i128::from(overrun) + 1);
        let first = now + i128::from(shift) + i128::from(left) - passed;
        let Ok(first) = u64::try_from(first.max(1)) else {
            return Err(ExecError::step(self.step, "", Errno::EOVERFLOW));
        };
        let nanos = NANOS as u64;
        let words = [
            interval / nanos,
            interval % nanos,
            first / nanos,
            first % nanos,
        ];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let spec = room!(self.table.data(&bytes));
        let absolute = libc::TIMER_ABSTIME as u64;
        let args = [id.into(), absolute, spec, 0, 0, 0];
        self.push(libc::SYS_timer_settime, args, Check::Ok)
    }

    fn move_vdso(&mut self, image: &[VdsoArea]) -> Fits {
        let vdso = &self.executor.vdso;
        let to = vdso.start_in(image).ok_or_else(|| {
            let doing = "the vdso of the images has another layout than this kernel's";
            ExecError::step(self.step, doing, Errno::ENOEXEC)
        })?;
        let parked = self.executor.parking();
        for area in &vdso.areas {
            let (offset, len) = (area.start - vdso.start(), area.end - area.start);
            room!(self.mremap(parked + offset, len, to + offset)?);
        }
        Ok(Some(()))
    }

    fn mremap(&mut self, from: u64, len: u64, to: u64) -> Fits {
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        let args = [from, len, len, flags, to, 0];
        self.push(libc::SYS_mremap, args, Check::Exactly(to as i64))
    }
}

/// Reads pages; runs that lie one behind the other in the file are one preadv. `None` if the table
/// is full.
pub(super) fn read_calls(table: &mut Table<'_>, fd: i32, runs: &[PageLoad]) -> Option<()> {
    let mut runs = split_runs(runs).peekable();
    while let Some(first) = runs.next() {
        let mut iovecs = Vec::new();
        let mut total = first.len;
        iovecs.extend_from_slice(&first.to.to_le_bytes());
        iovecs.extend_from_slice(&first.len.to_le_bytes());
        let mut count = 1;
        while let Some(next) = runs.next_if(|next| {
            next.offset == first.offset + total
                && count < MOST_IOVECS
                && total + next.len <= MOST_BYTES
        }) {
            iovecs.extend_from_slice(&next.to.to_le_bytes());
            iovecs.extend_from_slice(&next.len.to_le_bytes());
            total += next.len;
            count += 1;
        }
        let at = table.data(&iovecs)?;
        let args = [fd as u64, at, count as u64, first.offset, 0, 0];
        table.push(libc::SYS_preadv, args, Check::Exactly(total as i64))?;
    }
    Some(())
}

/// No run longer than one call reads.
fn split_runs(runs: &[PageLoad]) -> impl Iterator<Item = PageLoad> + '_ {
    runs.iter().flat_map(|run| {
        let parts = run.len.div_ceil(MOST_BYTES);
        (0..parts).map(move |part| {
            let done = part * MOST_BYTES;
            PageLoad {
                to: run.to + done,
                offset: run.offset + done,
                len: (run.len - done).min(MOST_BYTES),
            }
        })
    })
}
