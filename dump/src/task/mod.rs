//! Tasks and threads: everything of them that is neither memory nor files.
//!
//! It is collected in two steps: what /proc says (facts, on any thread), then what only ptrace
//! and the task itself can tell (here, on the thread that traces).

pub mod core;
pub mod creds;
pub mod dead_leader;
pub mod facts;
pub mod lsm;
pub mod questions;
pub mod regs;
pub mod seccomp;
pub mod signals;
pub mod timers;
pub mod treatment;

use crate::refusal::Refusal;
use anyhow::{Context, Result};
use crust_process::freeze::{FrozenTask, FrozenThread};
use crust_process::memory::TaskMem;
use crust_process::pid::HostPid;
use crust_process::remote::{Remote, run_together};
use crust_process::sched::own_slice;
use crust_process::tracee::{Queue, SeccompFilter, SigInfo};
use crust_proto::criu::UserDescT;
use facts::TaskFacts;
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use questions::{Answers, Questions, TaskAnswers, ThreadAnswers, without_end};
use std::ops::Range;

/// Status mode 2.
const SECCOMP_FILTER: u32 = 2;

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

/// Reads what ptrace tells of a thread, but its filters.
pub fn collect_traced(thread: &FrozenThread) -> Result<Traced> {
    let stopped = &thread.stopped;
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
        pending: collect_pending(thread)?,
        filters: Vec::new(),
    })
}

/// The signals that wait for a thread of its own.
pub fn collect_pending(thread: &FrozenThread) -> Result<Vec<SigInfo>> {
    let stopped = &thread.stopped;
    let mut pending = Vec::new();
    if stopped.signal_in_hand() != 0 {
        // Taken off the queue for delivery; in the images it waits again.
        pending.push(stopped.siginfo_in_hand()?);
    }
    pending.extend(stopped.pending(Queue::Private)?);
    Ok(pending)
}

/// The filters of a thread whose status tells that it has some.
pub fn collect_filters(thread: &FrozenThread, mode: Option<u32>) -> Result<Vec<SeccompFilter>> {
    match mode {
        Some(SECCOMP_FILTER) => Ok(seccomp::collect_filters(&thread.stopped)?),
        _ => Ok(Vec::new()),
    }
}

/// Asks these tasks and all their threads about themselves, by system calls run inside them: as
/// many threads at the same time as there is room for in their tasks.
pub fn collect_told(
    tasks: &mut [&mut FrozenTask],
    known: &[(&TaskMem, &TaskFacts)],
) -> Result<Vec<Told>> {
    let mut remotes = Vec::new();
    for (task, (mem, facts)) in tasks.iter().zip(known) {
        let remote = place(task, mem, facts);
        remotes.push(remote.with_context(|| format!("ask task {} about itself", task.pid))?);
    }
    let told = ask_all(tasks, &remotes, known);
    for remote in remotes {
        remote.close()?;
    }
    let (mut told, own) = (told?, own_cpus()?);
    let slice = own_slice().context("ask for our own slice of time")?;
    for told in &mut told {
        // What is as it is here is to be as it is there.
        for thread in std::iter::once(&mut told.task.leader).chain(&mut told.threads) {
            if thread.cpus_allowed == own {
                thread.cpus_allowed.clear();
            }
            thread.treatment.forget_slice(slice);
        }
    }
    Ok(told)
}

/// The processors that we may run on, as [`ThreadAnswers`] has them.
fn own_cpus() -> Result<Vec<u8>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("ask for our own processors")?;
    let mut mask = vec![0; CpuSet::count() / 8];
    for cpu in 0..CpuSet::count() {
        if set.is_set(cpu).unwrap_or(false) {
            mask[cpu / 8] |= 1 << (cpu % 8);
        }
    }
    Ok(without_end(&mask))
}

/// Tasks in which nothing of ours can run, and which must not be asked.
pub fn refuse_foreign_code(task: &FrozenTask) -> Option<Refusal> {
    let is_foreign = |thread: &&FrozenThread| !regs::is_native(&thread.regs);
    let thread = task.threads.iter().find(is_foreign)?;
    let what = "runs 32-bit code (IA32), which is not supported";
    let name = format!("thread {}", thread.stopped.tid());
    Some(Refusal::new(task.pid, name, what))
}

fn place<'m>(task: &FrozenTask, mem: &'m TaskMem, facts: &TaskFacts) -> Result<Remote<'m>> {
    // The leader's stack pointer tells how deep the main stack is in use; a dead one's is gone.
    let leader = task.threads.first().filter(|_| task.dead_leader.is_none());
    let rsp = leader.map_or(0, |leader| leader.regs.0.rsp);
    Ok(Remote::place(mem, &facts.site(rsp), task.threads.len())?)
}

fn ask_all(
    tasks: &mut [&mut FrozenTask],
    remotes: &[Remote<'_>],
    known: &[(&TaskMem, &TaskFacts)],
) -> Result<Vec<Told>> {
    let mut answers: Vec<Vec<Answers>> = tasks.iter().map(|_| Vec::new()).collect();
    loop {
        let wave: Vec<Range<usize>> = tasks
            .iter()
            .zip(remotes)
            .zip(&answers)
            .map(|((task, remote), done)| next_threads(task, remote, done.len()))
            .collect();
        if wave.iter().all(Range::is_empty) {
            break;
        }
        ask_wave(tasks, remotes, known, &wave, &mut answers)?;
    }
    answers.into_iter().map(told_of).collect()
}

/// The threads of a task to ask next, from this one on.
fn next_threads(task: &FrozenTask, remote: &Remote<'_>, from: usize) -> Range<usize> {
    let left = task.threads.get(from..).unwrap_or_default();
    let alone = |thread: &FrozenThread| remote.must_be_alone(thread.sigmask);
    let together = left.iter().take(remote.room());
    let count = together.take_while(|thread| !alone(thread)).count();
    from..from + count.max(left.len().min(1))
}

fn ask_wave(
    tasks: &mut [&mut FrozenTask],
    remotes: &[Remote<'_>],
    known: &[(&TaskMem, &TaskFacts)],
    wave: &[Range<usize>],
    answers: &mut [Vec<Answers>],
) -> Result<()> {
    let (mut entered, mut questions) = (Vec::new(), Vec::new());
    for (at, task) in tasks.iter_mut().enumerate() {
        let (remote, range) = (&remotes[at], &wave[at]);
        let threads = task.threads.iter_mut().enumerate();
        let threads = threads.skip(range.start).take(range.len());
        for (table, (index, thread)) in threads.enumerate() {
            questions.push((at, questions_to(index, thread, known[at].1)));
            let (own, mask) = (thread.regs, thread.sigmask);
            entered.push(remote.enter(table, &mut thread.stopped, &own, mask)?);
        }
    }
    let batches = questions.iter_mut().map(|(_, asked)| asked.batch());
    run_together(&mut entered.iter_mut().zip(batches).collect::<Vec<_>>())?;
    for (entered, (at, questions)) in entered.into_iter().zip(questions) {
        let shadowed = entered.shadowed_action()?;
        entered.leave()?;
        answers[at].push(questions.answers(shadowed)?);
    }
    Ok(())
}

/// The first thread speaks for the task.
fn questions_to(index: usize, thread: &FrozenThread, facts: &TaskFacts) -> Questions {
    let tid = thread.stopped.tid();
    if index > 0 {
        return Questions::to_thread(tid);
    }
    let timers: Vec<u64> = facts.timers.iter().map(|timer| timer.id as u64).collect();
    Questions::to_task(tid, &timers, &facts.fds)
}

fn told_of(answers: Vec<Answers>) -> Result<Told> {
    let (mut task, mut threads) = (None, Vec::new());
    for answer in answers {
        match answer {
            Answers::Task(answer) => task = Some(*answer),
            Answers::Thread(answer) => threads.push(answer),
        }
    }
    Ok(Told {
        task: task.context("a task has no thread")?,
        threads,
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
    for (object, label) in &facts.labels {
        if let Some(why) = label.refusal() {
            refuse(object.clone(), why);
        }
    }
    let answers = std::iter::once(&told.task.leader).chain(&told.threads);
    for ((thread, facts), answers) in task.threads.iter().zip(&facts.threads).zip(answers) {
        let name = format!("thread {}", thread.stopped.tid());
        for keyring in answers.keyrings() {
            // Its keys may be secrets that only the kernel knows, and the number is the kernel's.
            refuse(
                name.clone(),
                format!("has a {keyring} keyring, which cannot be carried"),
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
        for what in answers.treatment.refusals(facts) {
            refuse(name.clone(), what.into());
        }
    }
    refusals
}

/// A SIGTRAP that waits for a thread alone: all that a restore does in the thread ends with one, and
/// nobody else may put it back. (A leader's goes behind the last of these.)
pub fn refuse_traps(pid: HostPid, task: &FrozenTask, traced: &[Traced]) -> Vec<Refusal> {
    let is_trap = |info: &SigInfo| info.starts_with(&libc::SIGTRAP.to_le_bytes());
    let others = task.threads.iter().zip(traced).skip(1);
    let trapped = others.filter(|(_, traced)| traced.pending.iter().any(is_trap));
    let refuse = |(thread, _): (&FrozenThread, _)| {
        let name = format!("thread {}", thread.stopped.tid());
        Refusal::new(pid, name, "has a SIGTRAP waiting, which cannot be put back")
    };
    trapped.map(refuse).collect()
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
