//! What only the task itself can tell, asked in one batch of system calls run inside it.
//!
//! Everything here reads and changes nothing: the batch may be cut short at any call by our own
//! death. (umask(2) could be asked too, but only by setting it; /proc/PID/status has it.)

use crate::task::signals::{SIGACTION_LEN, SIGNALS, STACK_LEN, has_action};
use crate::task::treatment::{Treatment, TreatmentQuestions};
use crust_process::batch::{Arg, Batch, BufId, CallId};
use crust_process::error::{Error, Result};
use crust_process::pid::HostPid;
use nix::libc;
use std::time::Instant;

/// The resources of getrlimit(2) that the kernel numbers from 0 on.
/// keyctl(2).
const KEYCTL_GET_KEYRING_ID: u64 = 0;
/// Keyrings of a thread and of a process, by their numbers for keyctl(2).
const KEYRINGS: [(i64, &str); 2] = [(-1, "thread"), (-2, "process")];
const RLIMITS: u64 = 16;
const ITIMERS: u64 = 3;
/// Of a mask of processors: more than any kernel for x86_64 is built for (NR_CPUS is at most 8192).
const CPU_BYTES: usize = 1024;
/// membarrier(2), since Linux 6.3.
const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;
/// prctl(2) options that libc does not name everywhere.
const PR_GET_TID_ADDRESS: u64 = 40;
const PR_GET_THP_DISABLE: u64 = 42;
const PR_GET_MDWE: u64 = 66;
const PR_GET_MEMORY_MERGE: u64 = 68;

/// A timer's interval and what is left, in seconds and parts of them as the call counts these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerValue {
    /// Seconds and parts of the interval.
    pub interval: (u64, u64),
    /// Seconds and parts until it expires; 0 is disarmed.
    pub left: (u64, u64),
}

/// What a thread tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadAnswers {
    /// The alternate signal stack, as stack_t.
    pub altstack: [u8; STACK_LEN],
    /// What the kernel clears when the thread exits.
    pub tid_address: u64,
    /// The list of robust futexes and the length of its head.
    pub robust_list: (u64, u64),
    /// The signal sent when the parent dies, 0 for none.
    pub pdeath_signal: u32,
    /// PR_GET_SECUREBITS.
    pub securebits: u32,
    /// The policy, with SCHED_RESET_ON_FORK, and other requests to the kernel.
    pub treatment: Treatment,
    /// PR_GET_TIMERSLACK, in nanoseconds.
    pub timer_slack: u64,
    /// Which of [`KEYRINGS`] it has.
    pub has_keyring: [bool; 2],
    /// sched_getaffinity(2): bit n of byte n / 8, without zero bytes at the end; empty if unknown.
    pub cpus_allowed: Vec<u8>,
}

/// What a task tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskAnswers {
    /// Signal number and the kernel's struct sigaction, for each that can be changed.
    pub actions: Vec<(u32, [u8; SIGACTION_LEN])>,
    /// ITIMER_REAL, VIRTUAL, PROF in microseconds.
    pub itimers: [TimerValue; ITIMERS as usize],
    /// POSIX timers by the ids asked for: nanoseconds and the overrun count.
    pub posix_timers: Vec<(TimerValue, u32)>,
    /// A moment before the timers were read.
    pub asked: Instant,
    /// Soft and hard limits in the kernel's order.
    pub rlimits: Vec<(u64, u64)>,
    /// PR_GET_DUMPABLE.
    pub dumpable: i32,
    /// PR_GET_CHILD_SUBREAPER.
    pub child_subreaper: bool,
    /// PR_GET_THP_DISABLE: bit 0 and its flags, 0 if it is not set.
    pub thp_disable: u32,
    /// PR_GET_MDWE.
    pub mdwe: u32,
    /// PR_GET_MEMORY_MERGE.
    pub memory_merge: bool,
    /// The commands registered with membarrier(2); 0 on kernels that cannot say.
    pub membarriers: u32,
    /// Where brk is.
    pub brk: u64,
    /// Of each number asked for, whether execve(2) closes it; `None` if it is not open.
    pub cloexec: Vec<Option<bool>>,
    /// What the leader tells of itself.
    pub leader: ThreadAnswers,
}

/// What is asked of a thread, and of its whole task by the first one; to be run in the thread.
pub struct Questions {
    asked: Asked,
    of_task: Option<TaskQuestions>,
    of_thread: ThreadQuestions,
}

/// What a thread answered.
pub enum Answers {
    /// Of the task and of the thread that spoke for it.
    Task(Box<TaskAnswers>),
    /// Of a thread.
    Thread(ThreadAnswers),
}

impl Questions {
    /// Questions to the thread that speaks for the task. `timers` are the ids of the task's POSIX
    /// timers, `fds` its descriptors.
    pub fn to_task(tid: HostPid, timers: &[u64], fds: &[i32]) -> Questions {
        let mut asked = Asked::new(tid);
        let of_task = TaskQuestions::ask(&mut asked, timers, fds);
        let of_thread = ThreadQuestions::ask(&mut asked);
        Questions {
            asked,
            of_task: Some(of_task),
            of_thread,
        }
    }

    /// Questions to another thread.
    pub fn to_thread(tid: HostPid) -> Questions {
        let mut asked = Asked::new(tid);
        let of_thread = ThreadQuestions::ask(&mut asked);
        Questions {
            asked,
            of_task: None,
            of_thread,
        }
    }

    /// The calls to run.
    pub fn batch(&mut self) -> &mut Batch {
        &mut self.asked.batch
    }

    /// What came of them. `shadowed` is the action that was set aside while they ran.
    pub fn answers(self, shadowed: Option<(i32, [u8; SIGACTION_LEN])>) -> Result<Answers> {
        let batch = self.asked.checked()?;
        let of_thread = self.of_thread.answers(&batch);
        Ok(match self.of_task {
            None => Answers::Thread(of_thread),
            Some(of_task) => Answers::Task(Box::new(of_task.answers(&batch, shadowed, of_thread))),
        })
    }
}

/// The questions about a whole task.
struct TaskQuestions {
    asked: Instant,
    actions: Vec<(u32, BufId)>,
    itimers: Vec<BufId>,
    timers: Vec<(BufId, CallId)>,
    rlimits: Vec<BufId>,
    dumpable: CallId,
    thp: CallId,
    mdwe: CallId,
    memory_merge: CallId,
    subreaper: BufId,
    membarriers: CallId,
    brk: CallId,
    fds: Vec<CallId>,
}

impl TaskQuestions {
    fn ask(asked: &mut Asked, timers: &[u64], fds: &[i32]) -> TaskQuestions {
        TaskQuestions {
            asked: Instant::now(),
            actions: ask_actions(asked),
            itimers: (0..ITIMERS)
                .map(|which| asked.fill(libc::SYS_getitimer, [Arg::Val(which)], 32, "getitimer"))
                .collect(),
            timers: timers.iter().map(|id| asked.posix_timer(*id)).collect(),
            rlimits: (0..RLIMITS)
                .map(|resource| {
                    let args = [Arg::Val(0), Arg::Val(resource), Arg::Val(0)];
                    asked.fill(libc::SYS_prlimit64, args, 16, "prlimit64")
                })
                .collect(),
            dumpable: asked.prctl(libc::PR_GET_DUMPABLE as u64, "prctl(PR_GET_DUMPABLE)"),
            thp: asked.may_prctl(PR_GET_THP_DISABLE),
            mdwe: asked.may_prctl(PR_GET_MDWE),
            memory_merge: asked.may_prctl(PR_GET_MEMORY_MERGE),
            subreaper: asked.prctl_fills(
                libc::PR_GET_CHILD_SUBREAPER as u64,
                4,
                "prctl(PR_GET_CHILD_SUBREAPER)",
            ),
            membarriers: asked.may(
                libc::SYS_membarrier,
                [
                    Arg::Val(MEMBARRIER_CMD_GET_REGISTRATIONS),
                    0.into(),
                    0.into(),
                ],
            ),
            // 0 is below any heap: the call only tells.
            brk: asked.must(libc::SYS_brk, [Arg::Val(0)], "brk"),
            fds: fds
                .iter()
                .map(|fd| {
                    let args = [(*fd).into(), libc::F_GETFD.into()];
                    asked.may(libc::SYS_fcntl, args)
                })
                .collect(),
        }
    }

    fn answers(
        self,
        batch: &Batch,
        shadowed: Option<(i32, [u8; SIGACTION_LEN])>,
        leader: ThreadAnswers,
    ) -> TaskAnswers {
        let optional = |call: CallId| batch.result(call).unwrap_or(0);
        TaskAnswers {
            asked: self.asked,
            actions: self
                .actions
                .into_iter()
                .map(|(signal, buf)| match shadowed {
                    Some((own, action)) if own == signal as i32 => (signal, action),
                    _ => (signal, batch.array(buf)),
                })
                .collect(),
            itimers: std::array::from_fn(|which| timer_value(batch, self.itimers[which])),
            posix_timers: self
                .timers
                .into_iter()
                .map(|(buf, overrun)| (timer_value(batch, buf), optional(overrun) as u32))
                .collect(),
            rlimits: self
                .rlimits
                .into_iter()
                .map(|buf| (word(batch, buf, 0), word(batch, buf, 8)))
                .collect(),
            dumpable: batch.ret(self.dumpable) as i32,
            child_subreaper: word32(batch, self.subreaper) != 0,
            thp_disable: optional(self.thp) as u32,
            mdwe: optional(self.mdwe) as u32,
            memory_merge: optional(self.memory_merge) != 0,
            membarriers: optional(self.membarriers) as u32,
            brk: batch.ret(self.brk) as u64,
            cloexec: self
                .fds
                .into_iter()
                .map(|call| batch.result(call).ok())
                .map(|flags| Some(flags? & libc::FD_CLOEXEC as u64 != 0))
                .collect(),
            leader,
        }
    }
}

fn ask_actions(asked: &mut Asked) -> Vec<(u32, BufId)> {
    let signals = (1..=SIGNALS).filter(|signal| has_action(*signal));
    signals
        .map(|signal| {
            let buf = asked.batch.zeroed(SIGACTION_LEN);
            let args = [
                Arg::Val(signal.into()),
                Arg::Val(0),
                buf.into(),
                Arg::Val(8),
            ];
            asked.must(libc::SYS_rt_sigaction, args, "rt_sigaction");
            (signal, buf)
        })
        .collect()
}

/// The questions asked of every thread.
struct ThreadQuestions {
    altstack: BufId,
    tid_address: BufId,
    robust: (BufId, BufId),
    pdeath_signal: BufId,
    securebits: CallId,
    treatment: TreatmentQuestions,
    timer_slack: CallId,
    cpus_allowed: (CallId, BufId),
    keyrings: [CallId; 2],
}

impl ThreadQuestions {
    fn ask(asked: &mut Asked) -> ThreadQuestions {
        let robust = (asked.batch.zeroed(8), asked.batch.zeroed(8));
        let args = [Arg::Val(0), robust.0.into(), robust.1.into()];
        asked.must(libc::SYS_get_robust_list, args, "get_robust_list");
        let cpus = asked.batch.zeroed(CPU_BYTES);
        let args = [Arg::Val(0), (CPU_BYTES as u64).into(), cpus.into()];
        let cpus_allowed = (asked.may(libc::SYS_sched_getaffinity, args), cpus);
        // Not the session's: to ask for that one would make it (lookup_user_key).
        let keyrings = KEYRINGS.map(|(number, _)| {
            let args = [
                Arg::Val(KEYCTL_GET_KEYRING_ID),
                Arg::Val(number as u64),
                Arg::Val(0),
            ];
            asked.may(libc::SYS_keyctl, args)
        });
        ThreadQuestions {
            keyrings,
            cpus_allowed,
            robust,
            altstack: asked.fill(
                libc::SYS_sigaltstack,
                [Arg::Val(0)],
                STACK_LEN,
                "sigaltstack",
            ),
            tid_address: asked.prctl_fills(PR_GET_TID_ADDRESS, 8, "prctl(PR_GET_TID_ADDRESS)"),
            pdeath_signal: asked.prctl_fills(
                libc::PR_GET_PDEATHSIG as u64,
                4,
                "prctl(PR_GET_PDEATHSIG)",
            ),
            securebits: asked.prctl(libc::PR_GET_SECUREBITS as u64, "prctl(PR_GET_SECUREBITS)"),
            treatment: TreatmentQuestions::ask(asked),
            timer_slack: asked.prctl(libc::PR_GET_TIMERSLACK as u64, "prctl(PR_GET_TIMERSLACK)"),
        }
    }

    fn answers(&self, batch: &Batch) -> ThreadAnswers {
        ThreadAnswers {
            altstack: batch.array(self.altstack),
            tid_address: word(batch, self.tid_address, 0),
            robust_list: (word(batch, self.robust.0, 0), word(batch, self.robust.1, 0)),
            pdeath_signal: word32(batch, self.pdeath_signal),
            securebits: batch.ret(self.securebits) as u32,
            treatment: self.treatment.answers(batch),
            timer_slack: batch.ret(self.timer_slack) as u64,
            has_keyring: self.keyrings.map(|call| batch.ret(call) > 0),
            cpus_allowed: match batch.result(self.cpus_allowed.0) {
                Ok(_) => without_end(batch.bytes(self.cpus_allowed.1)),
                Err(_) => Vec::new(),
            },
        }
    }
}

impl ThreadAnswers {
    /// The kinds of keyrings that the thread has.
    pub fn keyrings(&self) -> impl Iterator<Item = &'static str> + '_ {
        let kinds = KEYRINGS.iter().zip(self.has_keyring);
        kinds.filter(|(_, has)| *has).map(|((_, kind), _)| *kind)
    }
}

/// The bytes up to the last that is not zero.
pub fn without_end(mask: &[u8]) -> Vec<u8> {
    let len = mask.iter().rposition(|byte| *byte != 0);
    mask.get(..len.map_or(0, |last| last + 1))
        .unwrap_or_default()
        .to_vec()
}

/// A batch that remembers which of its calls must not fail.
pub(super) struct Asked {
    tid: HostPid,
    pub(super) batch: Batch,
    required: Vec<(CallId, &'static str)>,
}

impl Asked {
    fn new(tid: HostPid) -> Asked {
        Asked {
            tid,
            batch: Batch::new(),
            required: Vec::new(),
        }
    }

    /// A call that old kernels may not have.
    pub(super) fn may<const N: usize>(&mut self, nr: i64, args: [Arg; N]) -> CallId {
        self.batch.call(nr, args)
    }

    pub(super) fn must<const N: usize>(
        &mut self,
        nr: i64,
        args: [Arg; N],
        what: &'static str,
    ) -> CallId {
        let call = self.batch.call(nr, args);
        self.required.push((call, what));
        call
    }

    /// prctl(2) without arguments.
    pub(super) fn may_prctl(&mut self, option: u64) -> CallId {
        let none = Arg::Val(0);
        self.may(libc::SYS_prctl, [Arg::Val(option), none, none, none, none])
    }

    /// A call whose last argument is the address of `len` bytes to fill.
    pub(super) fn fill<const N: usize>(
        &mut self,
        nr: i64,
        args: [Arg; N],
        len: usize,
        what: &'static str,
    ) -> BufId {
        let buf = self.batch.zeroed(len);
        let mut all = [Arg::Val(0); 6];
        all[..N].copy_from_slice(&args);
        all[N] = buf.into();
        self.must(nr, all, what);
        buf
    }

    fn prctl(&mut self, option: u64, what: &'static str) -> CallId {
        self.must(
            libc::SYS_prctl,
            [Arg::Val(option), 0.into(), 0.into(), 0.into(), 0.into()],
            what,
        )
    }

    fn prctl_fills(&mut self, option: u64, len: usize, what: &'static str) -> BufId {
        self.fill(libc::SYS_prctl, [Arg::Val(option)], len, what)
    }

    fn posix_timer(&mut self, id: u64) -> (BufId, CallId) {
        let value = self.fill(libc::SYS_timer_gettime, [Arg::Val(id)], 32, "timer_gettime");
        (
            value,
            self.must(
                libc::SYS_timer_getoverrun,
                [Arg::Val(id)],
                "timer_getoverrun",
            ),
        )
    }

    /// The batch when it has run, if no call failed that must not.
    fn checked(self) -> Result<Batch> {
        for (call, what) in &self.required {
            if let Err(errno) = self.batch.result(*call) {
                // The kernel's own errno says more than EPROTO, even if it should never come.
                return Err(Error::new(
                    self.tid,
                    format!("{what}, run in the task"),
                    errno,
                ));
            }
        }
        Ok(self.batch)
    }
}

fn timer_value(batch: &Batch, buf: BufId) -> TimerValue {
    let at = |offset| word(batch, buf, offset);
    TimerValue {
        interval: (at(0), at(8)),
        left: (at(16), at(24)),
    }
}

pub(super) fn word(batch: &Batch, buf: BufId, at: usize) -> u64 {
    let bytes = batch
        .bytes(buf)
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u64::from_le_bytes)
}

pub(super) fn word32(batch: &Batch, buf: BufId) -> u32 {
    u32::from_le_bytes(batch.array(buf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_value_has_interval_and_rest() {
        let mut batch = Batch::new();
        let words = [1u64, 2, 3, 4];
        let buf = batch.buffer(
            words
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect::<Vec<u8>>(),
        );
        assert_eq!(
            timer_value(&batch, buf),
            TimerValue {
                interval: (1, 2),
                left: (3, 4)
            }
        );
        assert_eq!(word(&batch, buf, 32), 0);
    }
}
