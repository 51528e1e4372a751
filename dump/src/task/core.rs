//! core-TID.img: everything of a thread, and for a leader of its task, that is not memory or files.
//!
//! The presence of fields follows the peer: a leader's signal mask is in the task's part, another
//! thread's in its own; a zombie has the short form.

use crate::task::creds::encode_creds;
use crate::task::facts::ThreadFacts;
use crate::task::questions::{TaskAnswers, ThreadAnswers};
use crate::task::regs::{Layout, encode_fpregs, encode_gpregs};
use crate::task::signals::{encode_action, encode_altstack, encode_queue};
use crate::task::{Traced, images_personality};
use crust_process::proc::status::Status;
use crust_process::regs::Regs;
use crust_process::tracee::{RseqConfig, SigInfo};
use crust_proto::criu::{
    CoreEntry, RlimitEntry, RseqEntry, SeccompMode, TaskCoreEntry, TaskRlimitsEntry,
    TaskTimersEntry, ThreadCoreEntry, ThreadInfoX86, UserX86FpregsEntry, core_entry::March,
};

/// Task states of the images.
const ALIVE: u32 = 1;
const DEAD: u32 = 2;
const STOPPED: u32 = 3;
/// SCHED_RESET_ON_FORK of include/uapi/linux/sched.h.
const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;
const SCHED_FIFO: u32 = 1;
/// Timer slack of init (init/init_task.c), which everybody inherits.
const DEFAULT_TIMER_SLACK: u64 = 50_000;
const SCHED_RR: u32 = 2;

/// A thread as it was collected.
#[derive(Clone, Copy, Debug)]
pub struct ThreadState<'a> {
    /// Registers it goes on with.
    pub regs: Regs,
    /// Its signal mask.
    pub sigmask: u64,
    /// Its restartable sequence.
    pub rseq: Option<RseqConfig>,
    /// What ptrace tells of it.
    pub traced: &'a Traced,
    /// What /proc says of it.
    pub facts: &'a ThreadFacts,
    /// What it told of itself.
    pub answers: &'a ThreadAnswers,
    /// The oldest filter of its chain in seccomp.img.
    pub seccomp_filter: Option<u32>,
    /// Its cgroup set.
    pub cg_set: u32,
}

/// A task as it was collected, without its threads.
#[derive(Debug)]
pub struct TaskState<'a> {
    /// The signal that stopped it, if it is stopped.
    pub stop_signal: Option<u32>,
    /// Pending signals of the process.
    pub pending: Vec<SigInfo>,
    /// What it told of itself.
    pub answers: &'a TaskAnswers,
    /// Its timers.
    pub timers: TaskTimersEntry,
    /// Its personality.
    pub personality: u32,
    /// /proc/PID/loginuid.
    pub loginuid: Option<u32>,
    /// /proc/PID/oom_score_adj.
    pub oom_score_adj: i32,
}

/// The image of a leader.
pub fn encode_leader(
    task: &TaskState,
    leader: &ThreadState,
    fpregs: UserX86FpregsEntry,
) -> CoreEntry {
    let mut core = encode_thread(leader, fpregs);
    // The leader's mask is in the part of the task.
    core.thread_core
        .iter_mut()
        .for_each(|thread| thread.blk_sigset = None);
    core.tc = Some(TaskCoreEntry {
        task_state: if task.stop_signal.is_some() {
            STOPPED
        } else {
            ALIVE
        },
        exit_code: 0,
        personality: images_personality(task.personality).unwrap_or(0),
        crust_personality: Some(task.personality)
            .filter(|personality| images_personality(*personality).is_none()),
        flags: leader.facts.stat.flags,
        blk_sigset: leader.sigmask,
        comm: leader.facts.comm.clone(),
        timers: Some(task.timers.clone()),
        rlimits: Some(TaskRlimitsEntry {
            rlimits: task
                .answers
                .rlimits
                .iter()
                .map(|(cur, max)| RlimitEntry {
                    cur: *cur,
                    max: *max,
                })
                .collect(),
        }),
        cg_set: None,
        signals_s: Some(encode_queue(&task.pending)),
        old_seccomp_mode: None,
        old_seccomp_filter: None,
        loginuid: task.loginuid,
        oom_score_adj: Some(task.oom_score_adj),
        sigactions: task
            .answers
            .actions
            .iter()
            .map(|(_, raw)| encode_action(raw))
            .collect(),
        child_subreaper: Some(task.answers.child_subreaper),
        blk_sigset_extended: None,
        stop_signo: task.stop_signal,
        membarrier_registration_mask: Some(task.answers.membarriers).filter(|mask| *mask != 0),
    });
    core
}

/// The image of a thread that is not the leader.
pub fn encode_thread(thread: &ThreadState, fpregs: UserX86FpregsEntry) -> CoreEntry {
    let answers = thread.answers;
    let policy = answers.treatment.sched.policy & !SCHED_RESET_ON_FORK;
    let real_time = matches!(policy, SCHED_FIFO | SCHED_RR);
    CoreEntry {
        mtype: March::X8664.into(),
        thread_info: Some(ThreadInfoX86 {
            clear_tid_addr: answers.tid_address,
            gpregs: encode_gpregs(&thread.regs),
            fpregs,
            tls: thread.traced.tls.clone(),
        }),
        thread_core: Some(ThreadCoreEntry {
            futex_rla: answers.robust_list.0,
            futex_rla_len: answers.robust_list.1 as u32,
            sched_nice: Some(thread.facts.stat.nice as i32),
            sched_policy: Some(answers.treatment.sched.policy),
            sched_prio: real_time.then_some(thread.facts.stat.rt_priority),
            blk_sigset: Some(thread.sigmask),
            sas: Some(encode_altstack(&answers.altstack)),
            pdeath_sig: Some(answers.pdeath_signal).filter(|signal| *signal != 0),
            signals_p: Some(encode_queue(&thread.traced.pending)),
            creds: Some(encode_creds(&thread.facts.status, answers.securebits)),
            seccomp_mode: seccomp_mode(&thread.facts.status).map(i32::from),
            seccomp_filter: thread.seccomp_filter,
            comm: Some(thread.facts.comm.clone()),
            blk_sigset_extended: None,
            rseq_entry: thread.rseq.map(encode_rseq),
            cg_set: Some(thread.cg_set),
            crust_cpus_allowed: Some(&answers.cpus_allowed)
                .filter(|cpus| !cpus.is_empty())
                .cloned(),
            crust_treatment: answers.treatment.encode(thread.facts),
            crust_timer_slack_ns: Some(answers.timer_slack).filter(|ns| *ns != DEFAULT_TIMER_SLACK),
        }),
        ..CoreEntry::default()
    }
}

/// The image of a zombie: its name and its wait status.
pub fn encode_zombie(comm: Vec<u8>, exit_code: i32) -> CoreEntry {
    CoreEntry {
        mtype: March::X8664.into(),
        tc: Some(TaskCoreEntry {
            task_state: DEAD,
            exit_code: exit_code as u32,
            comm,
            ..TaskCoreEntry::default()
        }),
        ..CoreEntry::default()
    }
}

/// The registers of [`encode_fpregs`], or what is wrong with the area.
pub fn fpregs_of(thread: &ThreadState, layout: &Layout) -> anyhow::Result<UserX86FpregsEntry> {
    encode_fpregs(&thread.traced.xstate, layout).ok_or_else(|| {
        anyhow::anyhow!(
            "the extended state has only {} bytes",
            thread.traced.xstate.len()
        )
    })
}

fn seccomp_mode(status: &Status) -> Option<SeccompMode> {
    match status.seccomp {
        Some(1) => Some(SeccompMode::Strict),
        Some(2) => Some(SeccompMode::Filter),
        _ => None,
    }
}

/// rseq_cs is never written: a thread stopped inside a sequence has been led to its abort
/// handler, as by any preemption (crust_process::freeze).
fn encode_rseq(config: RseqConfig) -> RseqEntry {
    RseqEntry {
        rseq_abi_pointer: config.pointer,
        rseq_abi_size: config.size,
        signature: config.signature,
        rseq_cs_pointer: None,
    }
}
