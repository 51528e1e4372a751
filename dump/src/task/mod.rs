//! Tasks and threads: everything of them that is neither memory nor files.
//!
//! It is collected in two steps: what /proc says (facts, on any thread), then what only ptrace
//! and the task itself can tell (here, on the thread that traces).

pub mod core;
pub mod creds;
pub mod facts;
pub mod questions;
pub mod regs;
pub mod seccomp;
pub mod signals;
pub mod timers;

use crate::refusal::Refusal;
use anyhow::{Context, Result};
use crust_process::freeze::{FrozenTask, FrozenThread};
use crust_process::memory::TaskMem;
use crust_process::pid::HostPid;
use crust_process::remote::Remote;
use crust_process::tracee::{Queue, SeccompFilter, SigInfo};
use crust_proto::criu::UserDescT;
use facts::TaskFacts;
use questions::{TaskAnswers, ThreadAnswers, collect_task, collect_thread};

/// Status mode 2.
const SECCOMP_FILTER: u32 = 2;
/// SCHED_DEADLINE and SCHED_EXT, whose parameters the images have no place for.
const SCHED_DEADLINE: u32 = 6;
const SCHED_EXT: u32 = 7;
const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;

/// What ptrace tells of a thread.
#[derive(Debug)]
pub struct Traced {
    /// Its XSAVE area.
    pub xstate: Vec<u8>,
    /// Its segments.
    pub tls: Vec<UserDescT>,
    /// Its own pending signals, one that was being delivered first.
    pub pending: Vec<SigInfo>,
    /// Its seccomp filters, the oldest first.
    pub filters: Vec<SeccompFilter>,
}

/// What the task and its threads tell of themselves.
#[derive(Debug)]
pub struct Told {
    /// The task, and its leader.
    pub task: TaskAnswers,
    /// The other threads, in order.
    pub threads: Vec<ThreadAnswers>,
}

/// Reads what ptrace tells of a thread.
pub fn collect_traced(thread: &FrozenThread, seccomp_mode: Option<u32>) -> Result<Traced> {
    let stopped = &thread.stopped;
    let mut pending = Vec::new();
    if stopped.signal_in_hand() != 0 {
        // Taken off the queue for delivery; in the images it waits again.
        pending.push(stopped.siginfo_in_hand()?);
    }
    pending.extend(stopped.pending(Queue::Private)?);
    let filters = match seccomp_mode {
        Some(SECCOMP_FILTER) => seccomp::collect_filters(stopped)?,
        _ => Vec::new(),
    };
    let mut tls = Vec::new();
    for entry in regs::THREAD_AREAS {
        tls.extend(stopped.thread_area(entry)?.map(regs::encode_thread_area));
    }
    let mut xstate = stopped.xstate()?;
    // It was read into room for the largest processor; a thousand threads keep theirs.
    xstate.shrink_to_fit();
    Ok(Traced {
        xstate,
        tls,
        pending,
        filters,
    })
}

/// Asks a task and all its threads about themselves, by system calls run inside them.
pub fn collect_told(task: &mut FrozenTask, mem: &TaskMem, facts: &TaskFacts) -> Result<Told> {
    let pid = task.pid;
    let rsp = task.threads.first().map_or(0, |leader| leader.regs.0.rsp);
    let remote = Remote::place(mem, &facts.site(rsp))?;
    let told = ask_all(task, &remote, facts);
    remote.close()?;
    told.with_context(|| format!("ask task {pid} about itself"))
}

fn ask_all(task: &mut FrozenTask, remote: &Remote, facts: &TaskFacts) -> Result<Told> {
    let timers: Vec<u64> = facts.timers.iter().map(|timer| timer.id as u64).collect();
    let mut threads = task.threads.iter_mut();
    let leader = threads.next().context("it has no thread")?;
    let mut entered = remote.enter(&mut leader.stopped, &leader.regs)?;
    let told = collect_task(&mut entered, task.pid, &timers, &facts.fds)?;
    entered.leave()?;
    let mut others = Vec::new();
    for thread in threads {
        let tid = thread.stopped.tid();
        let mut entered = remote.enter(&mut thread.stopped, &thread.regs)?;
        others.push(collect_thread(&mut entered, tid)?);
        entered.leave()?;
    }
    Ok(Told {
        task: told,
        threads: others,
    })
}

/// What of a task no image can hold.
pub fn refuse_task(
    pid: HostPid,
    task: &FrozenTask,
    facts: &TaskFacts,
    told: &Told,
) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let mut refuse = |object: String, what: String| refusals.push(Refusal::new(pid, object, what));
    if images_personality(facts.personality).is_none() {
        refuse(
            "its personality".into(),
            format!("{:#x} has no form in the images", facts.personality),
        );
    }
    if let Some(label) = &facts.lsm_label
        && !matches!(label.as_slice(), b"unconfined" | b"kernel")
    {
        let label = String::from_utf8_lossy(label);
        refuse(
            "its security label".into(),
            format!("'{label}' is not supported yet"),
        );
    }
    let answers = std::iter::once(&told.task.leader).chain(&told.threads);
    for ((thread, facts), answers) in task.threads.iter().zip(&facts.threads).zip(answers) {
        let name = format!("thread {}", thread.stopped.tid());
        if !regs::is_native(&thread.regs) {
            refuse(
                name.clone(),
                "runs 32-bit code, which is not supported yet".into(),
            );
        }
        for object in &facts.apart {
            let what = format!("has a {object} of its own, which the images cannot hold");
            refuse(name.clone(), what);
        }
        if facts
            .status
            .thread_features
            .iter()
            .any(|feature| feature == b"shstk")
        {
            refuse(
                name.clone(),
                "has a shadow stack, which is not supported yet".into(),
            );
        }
        if matches!(
            answers.sched_policy & !SCHED_RESET_ON_FORK,
            SCHED_DEADLINE | SCHED_EXT
        ) {
            refuse(
                name,
                "has a scheduling policy whose parameters the images cannot hold".into(),
            );
        }
    }
    refusals
}

/// The personality as the images have it: the kernel's hexadecimal digits read as decimal ones
/// (a defect of the peer's writer that its readers rely on by ignoring the field). A value with a
/// digit above 9 has no such form.
pub fn images_personality(personality: u32) -> Option<u32> {
    format!("{personality:x}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_personality_is_its_hexadecimal_digits() {
        // The value of the corpus: ADDR_NO_RANDOMIZE and SHORT_INODE.
        assert_eq!(images_personality(0x104_0000), Some(1_040_000));
        assert_eq!(images_personality(0xc_0000), None);
    }
}
