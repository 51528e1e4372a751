//! What a thread makes for us and takes back, by itself if we die in between: a descriptor of which
//! we take a copy, or a child that we lead.
//!
//! The table of a loan is the call that makes, the hand-back, the call that takes back, and the tail.
//! What the second call needs of the first is in the table before the thread can go on without us:
//! the number that a descriptor will get is foreseen, the pid of a child is put there by the kernel
//! (CLONE_PARENT_SETTID) within the clone itself.

use super::{Entered, UNANSWERED, push_entry};
use crate::error::{Error, Result};
use crate::making::Made;
use crate::pid::HostPid;
use crate::stub;
use nix::errno::Errno;
use nix::libc;

/// A pid that nobody has (PID_MAX_LIMIT of include/linux/threads.h is far below): a wait for it
/// fails at once.
const NOBODY: u64 = i32::MAX as u64;

/// The places of the calls in the table.
const MAKING: usize = 0;
const TAKING_BACK: usize = 2;

impl Entered<'_, '_> {
    /// Runs a call that opens a descriptor, lets `copy` take a copy of it, and closes it. If we die
    /// in between the thread closes it by itself, by the number it is expected to get: the lowest
    /// that is free.
    pub fn lend_fd<T>(
        &mut self,
        nr: i64,
        args: [u64; 6],
        expected: i32,
        copy: impl FnOnce(i32) -> Result<T>,
    ) -> Result<T> {
        let close = (libc::SYS_close, [expected as u64, 0, 0, 0, 0, 0]);
        let got = self.make((nr, args), close)?;
        let result = match i32::try_from(got) {
            Ok(fd @ 0..) => {
                if fd != expected {
                    // A table shared with a task outside of the tree.
                    self.set_taken_back(fd as u64)?;
                }
                copy(fd)
            }
            _ => {
                self.set_taken_back(u64::MAX)?;
                let doing = format!("run system call {nr} for a descriptor");
                Err(Error::new(self.tid(), doing, Errno::from_raw(-got as i32)))
            }
        };
        self.take_back()?;
        result
    }

    /// Clones a child that shares the memory and the descriptors of the task, stopped before its
    /// first instruction. If we die it ends, whatever it is at, and the thread reaps it: the task
    /// gets no signal for it (its exit signal is 0). [`Entered::reap_child`] must follow.
    pub fn lend_child(&mut self) -> Result<Made> {
        let flags =
            libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_PTRACE | libc::CLONE_PARENT_SETTID;
        let pid_at = self.entry(TAKING_BACK) + 8;
        let args = [flags as u64, 0, pid_at, 0, 0, stub::ENDS_CHILD];
        let wait = [NOBODY, 0, libc::__WALL as u64, 0, 0, 0];
        let got = self.make((libc::SYS_clone, args), (libc::SYS_wait4, wait))?;
        let pid = i32::try_from(got).ok().and_then(HostPid::new);
        let Some(pid) = pid.filter(|_| got > 0) else {
            let errno = Errno::from_raw(-got as i32);
            return Err(Error::new(self.tid(), "clone a child for us", errno));
        };
        let led = adopt(pid);
        if led.is_err() {
            self.reap_child()?;
        }
        led
    }

    /// Lets the thread reap the child, which must be dead, and have been waited for by us.
    pub fn reap_child(&mut self) -> Result<()> {
        self.take_back()
    }

    /// Runs the first call of a loan and gives what it answered.
    fn make(&mut self, making: (i64, [u64; 6]), taking_back: (i64, [u64; 6])) -> Result<i64> {
        // A batch shadows the hand-back signal's action, if that must be, before it is sent here.
        let mut nothing = crate::batch::Batch::new();
        nothing.call(libc::SYS_getpid, []);
        self.run(&mut nothing)?;
        let mut bytes = Vec::new();
        let push_unanswered = |bytes: &mut Vec<u8>, (nr, args): (i64, [u64; 6])| {
            push_entry(bytes, nr, args);
            let answer = bytes.len() - UNANSWERED.len();
            bytes[answer..].copy_from_slice(&UNANSWERED);
        };
        push_unanswered(&mut bytes, making);
        let (tgid, tid) = (self.remote.tgid.get() as u64, self.tid().get() as u64);
        let to_us = [tgid, tid, self.signal as u64, 0, 0, 0];
        push_entry(&mut bytes, libc::SYS_tgkill, to_us);
        push_unanswered(&mut bytes, taking_back);
        let tail = [self.tail_at(), 0, 0, 0, 0, 0];
        push_entry(&mut bytes, stub::JUMP as i64, tail);
        let start = self.table.start;
        self.remote.mem.write_all_at(start, &bytes)?;
        self.thread.set_regs(&self.regs_at(start))?;
        self.resume_until_answered(self.answer(MAKING))?;
        Ok(self.remote.mem.read_u64(self.answer(MAKING))? as i64)
    }

    /// Changes the first argument of the call that takes back.
    fn set_taken_back(&self, value: u64) -> Result<()> {
        let at = self.entry(TAKING_BACK) + 8;
        self.remote.mem.write_all_at(at, &value.to_le_bytes())
    }

    fn take_back(&mut self) -> Result<()> {
        self.resume_until_answered(self.answer(TAKING_BACK))
    }

    fn entry(&self, index: usize) -> u64 {
        self.table.start + (index * stub::HEAL_ENTRY) as u64
    }

    fn answer(&self, index: usize) -> u64 {
        self.entry(index) + 56
    }

    /// Resumes the thread until it comes back with the answer at this address written: a signal of
    /// the same number from outside brings it back too soon.
    fn resume_until_answered(&mut self, answer: u64) -> Result<()> {
        loop {
            self.thread.resume()?;
            self.wait_until_handed_back()?;
            if self.remote.mem.read_u64(answer)? != u64::from_le_bytes(UNANSWERED) {
                return Ok(());
            }
        }
    }
}

/// Takes charge of a child. Its registers end it if we die before it is ours; from here on it may be
/// led.
fn adopt(pid: HostPid) -> Result<Made> {
    let child = Made::adopt(pid)?;
    match child.die_with_us() {
        Ok(()) => Ok(child),
        Err(error) => {
            child.kill();
            Err(error)
        }
    }
}
