//! What a thread has asked the kernel for beside its nice value: scheduling parameters (sched_getattr(2)),
//! I/O priority, memory policy, what it does at a broken page of memory, whether it may read the
//! processor's clock, and mitigations of speculation.
//!
//! All of it is the thread's own and inherited by what it forks. CRIU has no fields for it but for the
//! policy, so ours hold it, and only what is not as every thread has it. Not asked for, as no effect
//! lasts or nothing tells of it: policies of single areas (mbind(2)), flushing of the L1 cache, the
//! size of the hash of private futexes. Refused: what no kernel here has, so that it cannot be tried.

use crate::task::facts::ThreadFacts;
use crate::task::questions::{Asked, without_end, word, word32};
use crust_process::batch::{Arg, Batch, BufId, CallId};
use crust_proto::criu::CrustTreatmentEntry;
use nix::libc;

/// Numbers of linux/prctl.h and of asm/prctl.h.
const PR_GET_TSC: u64 = 25;
const PR_MCE_KILL_GET: u64 = 34;
const PR_SCHED_CORE: u64 = 62;
const ARCH_GET_CPUID: u64 = 0x1011;
/// As every thread has them.
const TSC_ENABLED: u32 = 1;
const MCE_KILL_DEFAULT: u32 = 2;
const UTIL_MAX: u32 = 1024;
/// Values of PR_SET_SPECULATION_CTRL.
const SPEC_DISABLE: u32 = 4;
const SPEC_FORCE_DISABLE: u32 = 8;
/// PR_SET_IO_FLUSHER, as /proc/PID/stat tells it: PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE.
const IO_FLUSHER: u32 = 0x0018_0000;
const IOPRIO_WHO_PROCESS: u64 = 1;
/// Bits of a mask of nodes: more than the kernel has (MAX_NUMNODES is 1024).
const NODES: u64 = 1025;
const NODE_BYTES: usize = 136;
/// struct sched_attr, version 1.
const SCHED_ATTR: usize = 56;
const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;
const FLAG_RESET_ON_FORK: u64 = 1;
const SCHED_DEADLINE: u32 = 6;
const SCHED_EXT: u32 = 7;

/// The parameters of scheduling; times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sched {
    /// As sched_getscheduler(2) gives it, with SCHED_RESET_ON_FORK.
    pub policy: u32,
    /// Other flags.
    flags: u64,
    runtime: u64,
    deadline: u64,
    period: u64,
    utilization: (u32, u32),
}

/// What a thread tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Treatment {
    /// Its scheduling.
    pub sched: Sched,
    ioprio: u32,
    memory_policy: u32,
    memory_nodes: Vec<u8>,
    mce_kill: u32,
    tsc: u32,
    /// Whether it may ask the processor what it is.
    has_cpuid: bool,
    /// The group of threads that may share a core with it, 0 for all.
    core_cookie: u64,
}

/// The questions.
pub struct TreatmentQuestions {
    sched: BufId,
    ioprio: CallId,
    policy: (BufId, BufId),
    mce_kill: CallId,
    tsc: BufId,
    cpuid: CallId,
    core: BufId,
}

impl TreatmentQuestions {
    /// Adds them to a batch.
    pub(super) fn ask(asked: &mut Asked) -> TreatmentQuestions {
        let none = Arg::Val(0);
        let sched = asked.batch.zeroed(SCHED_ATTR);
        let args = [none, sched.into(), (SCHED_ATTR as u64).into(), none];
        asked.must(libc::SYS_sched_getattr, args, "sched_getattr");
        let policy = (asked.batch.zeroed(4), asked.batch.zeroed(NODE_BYTES));
        let args = [policy.0.into(), policy.1.into(), NODES.into(), none, none];
        asked.may(libc::SYS_get_mempolicy, args);
        let core = asked.batch.zeroed(8);
        let args = [Arg::Val(PR_SCHED_CORE), none, none, none, core.into()];
        asked.may(libc::SYS_prctl, args);
        let tsc = asked.batch.zeroed(4);
        let args = [Arg::Val(PR_GET_TSC), tsc.into(), none, none, none];
        asked.may(libc::SYS_prctl, args);
        TreatmentQuestions {
            sched,
            policy,
            core,
            tsc,
            ioprio: asked.may(libc::SYS_ioprio_get, [Arg::Val(IOPRIO_WHO_PROCESS), none]),
            mce_kill: asked.may_prctl(PR_MCE_KILL_GET),
            cpuid: asked.may(libc::SYS_arch_prctl, [Arg::Val(ARCH_GET_CPUID), none]),
        }
    }

    /// What came of them.
    pub(super) fn answers(&self, batch: &Batch) -> Treatment {
        let or = |call: CallId, other: u32| batch.result(call).map_or(other, |value| value as u32);
        Treatment {
            sched: parse_sched(batch.bytes(self.sched), |at| word(batch, self.sched, at)),
            ioprio: or(self.ioprio, 0),
            memory_policy: word32(batch, self.policy.0),
            memory_nodes: without_end(batch.bytes(self.policy.1)),
            mce_kill: or(self.mce_kill, MCE_KILL_DEFAULT),
            tsc: match word32(batch, self.tsc) {
                0 => TSC_ENABLED,
                tsc => tsc,
            },
            has_cpuid: or(self.cpuid, 1) != 0,
            core_cookie: word(batch, self.core, 0),
        }
    }
}

/// struct sched_attr of include/uapi/linux/sched/types.h.
fn parse_sched(attr: &[u8], word: impl Fn(usize) -> u64) -> Sched {
    let half = |at: usize| {
        let bytes = attr.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    };
    let flags = word(8);
    let reset = match flags & FLAG_RESET_ON_FORK {
        0 => 0,
        _ => SCHED_RESET_ON_FORK,
    };
    Sched {
        policy: half(4) | reset,
        flags: flags & !FLAG_RESET_ON_FORK,
        runtime: word(24),
        deadline: word(32),
        period: word(40),
        utilization: (half(48), half(52)),
    }
}

impl Treatment {
    /// The policy without flags.
    fn policy(&self) -> u32 {
        self.sched.policy & !SCHED_RESET_ON_FORK
    }

    /// What no image can hold.
    pub fn refusals(&self, facts: &ThreadFacts) -> Vec<&'static str> {
        let clamped = !matches!(self.sched.utilization, (0, 0 | UTIL_MAX));
        let refused = [
            (
                self.policy() == SCHED_EXT,
                "is scheduled by a program (SCHED_EXT), whose state is its own",
            ),
            (
                clamped,
                "has limits of utilization (sched_setattr), which is not supported yet",
            ),
            (
                self.core_cookie != 0,
                "is in a group of core scheduling, whose number is the kernel's",
            ),
            (
                !self.has_cpuid,
                "has the instruction cpuid forbidden (ARCH_SET_CPUID), which is not supported yet",
            ),
            (
                facts.stat.flags & IO_FLUSHER == IO_FLUSHER,
                "is an I/O flusher (PR_SET_IO_FLUSHER), which is not supported yet",
            ),
            (
                facts.status.untag_mask.is_some_and(|mask| mask != u64::MAX),
                "has tagged addresses (LAM), which is not supported yet",
            ),
        ];
        let refused = refused.into_iter().filter(|(is_so, _)| *is_so);
        refused.map(|(_, what)| what).collect()
    }

    /// Forgets the slice of a thread of the fair class that has not asked for another than `usual`.
    pub fn forget_slice(&mut self, usual: u64) {
        if self.policy() != SCHED_DEADLINE && self.sched.runtime == usual {
            self.sched.runtime = 0;
        }
    }

    /// The entry, unless all of it is as every thread has it.
    pub fn encode(&self, facts: &ThreadFacts) -> Option<CrustTreatmentEntry> {
        let other = |value: u32, usual: u32| Some(value).filter(|value| *value != usual);
        let is_deadline = self.policy() == SCHED_DEADLINE;
        let of_deadline = |time: u64| Some(time).filter(|_| is_deadline);
        let entry = CrustTreatmentEntry {
            ioprio: other(self.ioprio, 0),
            memory_policy: other(self.memory_policy, 0),
            memory_nodes: Some(self.memory_nodes.clone()).filter(|nodes| !nodes.is_empty()),
            mce_kill: other(self.mce_kill, MCE_KILL_DEFAULT),
            tsc: other(self.tsc, TSC_ENABLED),
            store_bypass: speculation(facts.status.store_bypass.as_deref()),
            indirect_branch: speculation(facts.status.indirect_branch.as_deref()),
            sched_runtime: Some(self.sched.runtime).filter(|runtime| *runtime != 0),
            sched_deadline: of_deadline(self.sched.deadline),
            sched_period: of_deadline(self.sched.period),
            sched_flags: of_deadline(self.sched.flags).map(|flags| flags as u32),
        };
        (entry != CrustTreatmentEntry::default()).then_some(entry)
    }
}

/// What of a mitigation is the thread's own choice (proc_pid_status of fs/proc/array.c): `thread force
/// mitigated`, `conditional disabled`; others are the machine's.
fn speculation(told: Option<&[u8]>) -> Option<u32> {
    match told? {
        b"thread force mitigated" | b"conditional force disabled" => Some(SPEC_FORCE_DISABLE),
        b"thread mitigated" | b"conditional disabled" => Some(SPEC_DISABLE),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mitigation_is_told_if_the_thread_chose_it() {
        let told = |text: &str| speculation(Some(text.as_bytes()));
        assert_eq!(told("thread force mitigated"), Some(SPEC_FORCE_DISABLE));
        assert_eq!(told("conditional disabled"), Some(SPEC_DISABLE));
        for text in [
            "vulnerable",
            "thread vulnerable",
            "globally mitigated",
            "always enabled",
        ] {
            assert_eq!(told(text), None);
        }
    }

    #[test]
    fn the_attributes_of_scheduling_keep_their_places() {
        let mut attr = [0; SCHED_ATTR];
        attr[4] = 6;
        attr[8] = 5;
        attr[24] = 10;
        attr[32] = 20;
        attr[40] = 30;
        let word = |at: usize| u64::from(attr[at]);
        let sched = parse_sched(&attr, word);
        assert_eq!((sched.policy, sched.flags), (6 | SCHED_RESET_ON_FORK, 4));
        let times = (sched.runtime, sched.deadline, sched.period);
        assert_eq!(times, (10, 20, 30));
    }
}
