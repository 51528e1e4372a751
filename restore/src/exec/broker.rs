//! What the broker does itself: calls of its own, descriptors fetched from tasks, files below
//! /proc, pages of shared objects. The root is forked here too, for it is our child.

use super::{ExecError, Executor, Why, routines};
use crate::check::pids::holder;
use crate::plan::routine::Routine;
use crate::plan::step::{Arg, Call, Op, PageLoad, Phase, Piece, Ret, SlotId, Step};
use crust_image::ids::VirtPid;
use crust_process::broker::{self, Answer, Inner, OwnArg};
use crust_process::fds::PidFd;
use crust_process::huge_pages::{huge_page_of, write_within_page};
use crust_process::making::Made;
use nix::errno::Errno;
use std::collections::hash_map::Entry;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Bytes copied at a time from a pages file into a shared object.
const COPY: usize = 256 << 10;

impl<'p> Executor<'p> {
    /// Runs one step of the broker.
    pub(super) fn run_broker_step(&mut self, step: &'p Step) -> Result<(), ExecError> {
        match &step.op {
            Op::Call(call) => self.broker_call(step, call),
            Op::Fetch { from, number, slot } => self.fetch(step, *from, *number, *slot),
            Op::Fork { pid, flags, .. } => {
                let pid_here = super::host_pid(step, *pid)?;
                let root = Made::root(pid_here, *flags, self.own_pidfd)
                    .map_err(|error| busy_or(step, *pid, error))?;
                self.insert_task(*pid, root);
                Ok(())
            }
            Op::CopyPages { from, to, runs } => self.copy_pages(step, *from, *to, runs),
            Op::WriteProc {
                pid,
                tid,
                file,
                text,
            } => write_proc(step, *pid, *tid, file, text),
            // The images need it as long as the restore can fail.
            Op::Routine(Routine::Unlink { path }) if step.phase == Phase::Commit => self
                .routines
                .remove_at_commit(path)
                .map_err(|why| ExecError::step(step, "", why)),
            Op::Routine(routine) => {
                let mut slots = routines::Slots::new(&mut self.slots);
                routines::run(routine, &mut self.routines, &mut slots)
                    .map_err(|why| ExecError::step(step, "", why))
            }
            _ => Err(ExecError::step(
                step,
                "not a step of the broker",
                Errno::EINVAL,
            )),
        }
    }

    fn broker_call(&mut self, step: &Step, call: &Call) -> Result<(), ExecError> {
        let doing = || crate::plan::print::op(&step.op);
        let answer = self
            .own_call(call)
            .map_err(|why| ExecError::step(step, &doing(), why))?;
        match (call.ret, answer) {
            (Ret::Fd(slot), Answer::Fd(fd)) => self.put(step, slot, fd),
            (Ret::FdPair(_, first, second), Answer::Pair(a, b)) => {
                self.put(step, first, a)?;
                self.put(step, second, b)
            }
            (Ret::Exactly(value), Answer::Value(got)) if got == value as u64 => Ok(()),
            (Ret::Ok | Ret::Any, _) => Ok(()),
            (_, answer) => Err(ExecError::step(
                step,
                &doing(),
                format!("answered {answer:?}"),
            )),
        }
    }

    fn put(&mut self, step: &Step, slot: SlotId, fd: OwnedFd) -> Result<(), ExecError> {
        let place = self.slots.get_mut(slot.0 as usize);
        *place.ok_or_else(|| ExecError::step(step, "no such slot", Errno::EINVAL))? = Some(fd);
        Ok(())
    }

    /// Makes the call.
    fn own_call(&self, call: &Call) -> Result<Answer, Why> {
        let mut flat = Flat::default();
        let mut values = Vec::new();
        for arg in &call.args {
            values.push(self.flatten(arg, &mut flat)?);
        }
        let mut buffers: Vec<Option<&mut [u8]>> = flat
            .buffers
            .iter_mut()
            .map(|bytes| Some(bytes.as_mut_slice()))
            .collect();
        let mut args: Vec<OwnArg<'_>> = Vec::new();
        for value in &values {
            args.push(match value {
                Value::Number(number) => OwnArg::Val(*number),
                Value::Buffer(index) => {
                    let bytes = buffers.get_mut(*index).and_then(Option::take);
                    OwnArg::Bytes(bytes.ok_or("a buffer is used twice")?)
                }
            });
        }
        let mut inner = Vec::new();
        let mut placed: Vec<usize> = Vec::new();
        // Holders were flattened after what they point to, so from the back they come first.
        for (holder, at, pointed) in flat.pointers.iter().rev() {
            let argument = values
                .iter()
                .position(|value| *value == Value::Buffer(*holder));
            let inner_at = || placed.iter().position(|inner| inner == holder);
            let holder = argument.or_else(|| Some(call.args.len() + inner_at()?));
            let bytes = buffers.get_mut(*pointed).and_then(Option::take);
            inner.push(Inner {
                holder: holder.ok_or("a pointer without a holder")?,
                at: *at,
                bytes: bytes.ok_or("a buffer is pointed to twice")?,
            });
            placed.push(*pointed);
        }
        match broker::call(call.nr, &mut args, &mut inner) {
            Err(_) if call.ret == Ret::Any => Ok(Answer::Value(0)),
            answer => Ok(answer?),
        }
    }

    fn flatten(&self, arg: &Arg, flat: &mut Flat) -> Result<Value, String> {
        Ok(match arg {
            Arg::Int(value) => Value::Number(*value as u64),
            Arg::Hex(value) | Arg::Named(_, value) => Value::Number(*value),
            Arg::Fd(slot) => Value::Number(self.fd(*slot)? as u64),
            Arg::FdPath(slot) => {
                flat.buffer(format!("/proc/self/fd/{}\0", self.fd(*slot)?).into_bytes())
            }
            Arg::Str(bytes) => {
                let mut bytes = bytes.clone();
                bytes.push(0);
                flat.buffer(bytes)
            }
            Arg::Out(len) => flat.buffer(vec![0; *len]),
            Arg::Data(pieces) => {
                let mut bytes = Vec::new();
                let mut pointers = Vec::new();
                for piece in pieces {
                    match piece {
                        Piece::Bytes(more) => bytes.extend_from_slice(more),
                        Piece::Ptr(arg) => match self.flatten(arg, flat)? {
                            Value::Number(number) => bytes.extend_from_slice(&number.to_ne_bytes()),
                            Value::Buffer(index) => {
                                pointers.push((bytes.len(), index));
                                bytes.extend_from_slice(&[0; 8]);
                            }
                        },
                    }
                }
                let value = flat.buffer(bytes);
                if let Value::Buffer(holder) = value {
                    flat.pointers
                        .extend(pointers.into_iter().map(|(at, to)| (holder, at, to)));
                }
                value
            }
        })
    }

    fn fd(&self, slot: SlotId) -> Result<i32, String> {
        let fd = self.slots.get(slot.0 as usize).and_then(Option::as_ref);
        fd.map(AsRawFd::as_raw_fd)
            .ok_or_else(|| format!("slot {} is empty", slot.0))
    }

    fn fetch(
        &mut self,
        step: &Step,
        from: VirtPid,
        number: i32,
        slot: SlotId,
    ) -> Result<(), ExecError> {
        let pid = super::host_pid(step, from)?;
        let failed = |error| ExecError::step(step, &format!("fetch fd {number}"), error);
        let pidfd = match self.pidfds.entry(pid) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(PidFd::open(pid).map_err(failed)?),
        };
        let fd = pidfd.take(number).map_err(failed)?;
        self.put(step, slot, fd)
    }

    fn copy_pages(
        &self,
        step: &Step,
        from: SlotId,
        to: SlotId,
        runs: &[PageLoad],
    ) -> Result<(), ExecError> {
        let file = |slot: SlotId| -> Result<File, ExecError> {
            let fd = self.slots.get(slot.0 as usize).and_then(Option::as_ref);
            let fd = fd.ok_or_else(|| ExecError::step(step, "empty slot", Errno::EBADF))?;
            let copy = fd.as_fd().try_clone_to_owned();
            copy.map(File::from)
                .map_err(|error| ExecError::step(step, "dup", error))
        };
        let (from, to) = (file(from)?, file(to)?);
        let huge = huge_page_of(to.as_fd());
        let huge = huge.map_err(|errno| ExecError::step(step, "fstatfs", errno))?;
        let write = |bytes: &[u8], at: u64| match huge {
            None => to.write_all_at(bytes, at),
            Some(page) => Ok(write_within_page(&to, at, bytes, page)?),
        };
        let mut buffer = vec![0; COPY];
        for run in runs {
            let mut done = 0;
            while done < run.len {
                // Never across the end of a huge page.
                let whole = COPY as u64;
                let within = whole - (run.to + done) % whole;
                let len = (run.len - done).min(within) as usize;
                from.read_exact_at(&mut buffer[..len], run.offset + done)
                    .and_then(|()| write(&buffer[..len], run.to + done))
                    .map_err(|error| {
                        let doing = format!("copy {len} bytes to offset {:#x}", run.to + done);
                        ExecError::step(step, &doing, error)
                    })?;
                done += len as u64;
            }
        }
        Ok(())
    }
}

/// An argument made ready for the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    Number(u64),
    /// Index of a buffer.
    Buffer(usize),
}

/// The buffers of a call and the pointers between them, as (holder, offset, pointed to).
#[derive(Debug, Default)]
struct Flat {
    buffers: Vec<Vec<u8>>,
    pointers: Vec<(usize, usize, usize)>,
}

impl Flat {
    fn buffer(&mut self, bytes: Vec<u8>) -> Value {
        self.buffers.push(bytes);
        Value::Buffer(self.buffers.len() - 1)
    }
}

fn write_proc(
    step: &Step,
    pid: VirtPid,
    tid: Option<VirtPid>,
    file: &str,
    text: &str,
) -> Result<(), ExecError> {
    let path = match tid {
        None => format!("/proc/{pid}/{file}"),
        Some(tid) => format!("/proc/{pid}/task/{tid}/{file}"),
    };
    crust_process::steps::step();
    fs::write(&path, text)
        .map_err(|error| ExecError::step(step, &format!("write {text:?} to {path}"), error))
}

/// A pid that is taken is told with its holder.
fn busy_or(step: &Step, pid: VirtPid, error: crust_process::error::Error) -> ExecError {
    if error.errno != Errno::EEXIST {
        return ExecError::step(step, "", error);
    }
    ExecError::step(step, "", busy(pid))
}

/// Who has a pid.
pub(super) fn busy(pid: VirtPid) -> String {
    match holder(pid) {
        None => format!("pid {pid} is in use as a process, thread, group or session id"),
        Some(comm) => format!("pid {pid} is in use by {comm:?}"),
    }
}
