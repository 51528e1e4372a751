//! Signal actions and pending signals.
//!
//! The images have an action for every signal but SIGKILL and SIGSTOP, in order. A pending signal
//! is the kernel's raw siginfo of 128 bytes; a task may queue any siginfo to itself, kernel codes
//! included (kernel/signal.c, do_rt_sigqueueinfo), so each thread queues its own private ones and
//! the leader the shared ones, in the stored order. All signals but SIGTRAP are blocked until the
//! task is let go.

use super::{Live, Thread};
use crate::plan::calls::signal;
use crate::plan::step::{Arg, Call, Op, Phase, Ret};
use crate::plan::{Planner, Refusal, StepId};
use crate::tree::{State, Task};
use crust_image::ids::VirtPid;
use crust_proto::criu::{SaEntry, SignalQueueEntry, ThreadSasEntry};
use nix::libc;
use std::collections::BTreeMap;

const SIGSET_BYTES: i64 = 8;
const SIGINFO_BYTES: usize = 128;
const LAST_SIGNAL: i32 = 64;
/// A queue longer than any limit allows is a broken image.
const MAX_QUEUE: usize = 1 << 20;

/// Signals that have an action in the images, in order.
fn with_action() -> impl Iterator<Item = i32> {
    (1..=LAST_SIGNAL).filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number))
}

/// Plans the actions that differ from those of a new task. Tasks that share them (CLONE_SIGHAND)
/// have them from the first, when all have been stopped that are to be.
pub fn plan_actions(planner: &mut Planner<'_>, live: &Live<'_>, stops: &Stops) {
    let Some(leader) = live.leader() else { return };
    let is_owner = |owner: &Task| owner.pid == live.task.pid;
    if !planner.tree.owners(|ids| ids.sighand_id).any(is_owner) {
        return;
    }
    let group = live.task.ids.as_ref().map(|ids| ids.sighand_id);
    let stops = group.and_then(|group| stops.by_actions.get(&group));
    // What a task does itself it does in order.
    let others = stops.into_iter().flatten();
    let others = others.filter(|(pid, _)| *pid != live.task.pid);
    let before: Vec<StepId> = others.map(|(_, stop)| *stop).collect();
    let actions = &live.tc.sigactions;
    let wanted = with_action().count();
    if !actions.is_empty() && actions.len() != wanted {
        let why = format!("tc.sigactions has {} entries, not {wanted}", actions.len());
        planner.refuse(Refusal::new(leader.origin("signal actions"), why));
        return;
    }
    for (number, action) in with_action().zip(actions) {
        if (action.sigaction, action.flags, action.mask) == (0, 0, 0) {
            continue;
        }
        let call = sigaction(number, action);
        let origin = leader.origin(&format!("action of signal {number}"));
        if number == libc::SIGTRAP {
            // Our breakpoints end with SIGTRAP, which the kernel forces: an ignored one would be
            // reset to the default.
            planner.push(Phase::Commit, leader.actor(), Op::LastCall(call), origin);
        } else {
            let set = planner.call(Phase::Signals, leader.actor(), call, origin);
            for stop in &before {
                planner.in_turn(*stop, set);
            }
        }
    }
}

/// struct kernel_sigaction: handler, flags, restorer, mask.
fn sigaction(number: i32, action: &SaEntry) -> Call {
    let words = [action.sigaction, action.flags, action.restorer, action.mask];
    let args = vec![
        signal(number),
        Arg::words(&words),
        Arg::null(),
        Arg::Int(SIGSET_BYTES),
    ];
    Call::new("rt_sigaction", libc::SYS_rt_sigaction, args)
}

/// The stops of stopped tasks.
#[derive(Debug, Default)]
pub struct Stops {
    by_parent: BTreeMap<VirtPid, Vec<StepId>>,
    /// By sighand_id, with who is stopped.
    by_actions: BTreeMap<u32, Vec<(VirtPid, StepId)>>,
}

/// Plans the stops, before any action is set: a stop is the default action, and a program may
/// have a handler for SIGTSTP.
pub fn plan_stops(planner: &mut Planner<'_>, tasks: &[Live<'_>]) -> Stops {
    let mut stops = Stops::default();
    for live in tasks {
        let number = match live.task.state {
            State::Stopped(number) => number,
            State::Alive if planner.options.leave_stopped => libc::SIGSTOP,
            _ => continue,
        };
        let Some(leader) = live.leader() else {
            continue;
        };
        let origin = leader.origin("stop");
        // Of the signals that stop only SIGSTOP cannot be blocked; all others are.
        let unblock = sigprocmask("SIG_UNBLOCK", libc::SIG_UNBLOCK, number);
        planner.call(Phase::Signals, leader.actor(), unblock, origin.clone());
        let op = Op::Stop { signal: number };
        let stop = planner.push(Phase::Signals, leader.actor(), op, origin.clone());
        let block = sigprocmask("SIG_BLOCK", libc::SIG_BLOCK, number);
        planner.call(Phase::Signals, leader.actor(), block, origin);
        if let Some(parent) = live.task.parent {
            stops.by_parent.entry(parent).or_default().push(stop);
        }
        if let Some(ids) = &live.task.ids {
            let stops = stops.by_actions.entry(ids.sighand_id);
            stops.or_default().push((live.task.pid, stop));
        }
    }
    stops
}

fn sigprocmask(name: &str, how: i32, number: i32) -> Call {
    let args = vec![
        Arg::named(name, how),
        Arg::words(&[1 << (number - 1)]),
        Arg::null(),
        Arg::Int(SIGSET_BYTES),
    ];
    Call::new("rt_sigprocmask", libc::SYS_rt_sigprocmask, args)
}

/// Plans all pending signals. A child that dies or stops sends its parent SIGCHLD: what did not
/// wait in the dumped task is taken away before the stored queue is put in place.
pub fn plan_pending(planner: &mut Planner<'_>, tasks: &[Live<'_>], stops: &Stops) {
    for live in tasks {
        let Some(leader) = live.leader() else {
            continue;
        };
        // Before the private queue too: that is where the leader would take a signal from first.
        if planner.tree.children(live.task.pid).next().is_some() {
            let flush = plan_flush(planner, leader);
            for &stop in stops.by_parent.get(&live.task.pid).into_iter().flatten() {
                planner.in_turn(stop, flush);
            }
        }
        for thread in &live.threads {
            plan_queue(planner, thread, thread.own.signals_p.as_ref(), false);
        }
        plan_queue(planner, leader, live.tc.signals_s.as_ref(), true);
    }
}

/// SIGCHLD is queued once at most, whatever number of children died.
fn plan_flush(planner: &mut Planner<'_>, leader: &Thread<'_>) -> StepId {
    let sigchld = 1_u64 << (libc::SIGCHLD - 1);
    let args = vec![
        Arg::words(&[sigchld]),
        Arg::null(),
        Arg::words(&[0, 0]),
        Arg::Int(SIGSET_BYTES),
    ];
    let call = Call::new("rt_sigtimedwait", libc::SYS_rt_sigtimedwait, args).answers(Ret::Any);
    let origin = leader.origin("SIGCHLD of children that died or stopped while being restored");
    planner.call(Phase::Signals, leader.actor(), call, origin)
}

fn plan_queue(
    planner: &mut Planner<'_>,
    thread: &Thread<'_>,
    queue: Option<&SignalQueueEntry>,
    shared: bool,
) {
    let Some(queue) = queue else { return };
    let field = if shared {
        "tc.signals_s"
    } else {
        "thread_core.signals_p"
    };
    if queue.signals.len() > MAX_QUEUE {
        let why = format!("{field} has {} signals", queue.signals.len());
        planner.refuse(Refusal::new(thread.origin("pending signals"), why));
        return;
    }
    for (at, entry) in queue.signals.iter().enumerate() {
        let origin = thread.origin(&format!("pending signal {at}"));
        match parse_siginfo(&entry.siginfo, thread.is_leader()) {
            // Behind the last of our breakpoints, which it would pass for.
            Ok(libc::SIGTRAP) => {
                let call = queue_call(thread, libc::SIGTRAP, &entry.siginfo, shared);
                planner.push(Phase::Commit, thread.actor(), Op::LastCall(call), origin);
            }
            Ok(number) => {
                let call = queue_call(thread, number, &entry.siginfo, shared);
                planner.call(Phase::Signals, thread.actor(), call, origin);
            }
            Err(why) => planner.refuse(Refusal::new(origin, format!("{field}[{at}]: {why}"))),
        }
    }
}

/// The signal number of a raw siginfo. The last calls of a task are its leader's, and the kernel lets
/// nobody else say that it was a breakpoint (do_rt_tgsigqueueinfo).
fn parse_siginfo(raw: &[u8], is_leader: bool) -> Result<i32, String> {
    if raw.len() != SIGINFO_BYTES {
        return Err(format!(
            "siginfo has {} bytes, not {SIGINFO_BYTES}",
            raw.len()
        ));
    }
    let word = raw.first_chunk::<4>().copied().unwrap_or_default();
    let number = i32::from_le_bytes(word);
    if !(1..=LAST_SIGNAL).contains(&number) {
        return Err(format!("si_signo {number} is no signal"));
    }
    // The first two cannot be blocked and would act at once.
    let stays = match number {
        libc::SIGKILL | libc::SIGSTOP => false,
        libc::SIGTRAP => is_leader,
        _ => true,
    };
    if !stays {
        return Err(format!("signal {number} cannot be left pending"));
    }
    Ok(number)
}

fn queue_call(thread: &Thread<'_>, number: i32, siginfo: &[u8], shared: bool) -> Call {
    let pid = Arg::Int(thread.pid.get().into());
    let info = Arg::bytes(siginfo);
    if shared {
        let args = vec![pid, signal(number), info];
        return Call::new("rt_sigqueueinfo", libc::SYS_rt_sigqueueinfo, args);
    }
    let tid = Arg::Int(thread.tid.get().into());
    let args = vec![pid, tid, signal(number), info];
    Call::new("rt_tgsigqueueinfo", libc::SYS_rt_tgsigqueueinfo, args)
}

/// Plans an alternate signal stack. A fork copies that of its parent (the root's parent is
/// crust-restore, where Rust's runtime set one), so the first thread of a task is told to have
/// none; a thread made with CLONE_VM starts without (copy_thread of arch/x86/kernel/process.c).
pub fn plan_altstack(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    const SS_ONSTACK: u32 = 1;
    const SS_DISABLE: u32 = 2;
    const SS_AUTODISARM: u32 = 1 << 31;
    let none = ThreadSasEntry {
        ss_sp: 0,
        ss_size: 0,
        ss_flags: SS_DISABLE,
    };
    let stack = thread.own.sas.as_ref().unwrap_or(&none);
    let origin = thread.origin("alternate signal stack");
    if stack.ss_flags & !(SS_ONSTACK | SS_DISABLE | SS_AUTODISARM) != 0 {
        let why = format!("sas.ss_flags {:#x} has unknown bits", stack.ss_flags);
        planner.refuse(Refusal::new(origin, why));
        return;
    }
    if stack.ss_flags & SS_DISABLE != 0 && !thread.is_leader() {
        return;
    }
    // SS_ONSTACK only reports: the stack pointer tells the kernel whether it is in use.
    let flags = stack.ss_flags & !SS_ONSTACK;
    let words = [stack.ss_sp, flags.into(), stack.ss_size];
    let call = Call::new(
        "sigaltstack",
        libc::SYS_sigaltstack,
        vec![Arg::words(&words), Arg::null()],
    );
    planner.call(Phase::Threads, thread.actor(), call, origin);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn siginfo(number: i32) -> Vec<u8> {
        let mut raw = number.to_le_bytes().to_vec();
        raw.resize(SIGINFO_BYTES, 0);
        raw
    }

    #[test]
    fn sixty_two_signals_have_an_action() {
        assert_eq!(with_action().count(), 62);
        assert_eq!(with_action().nth(8), Some(10));
    }

    #[test]
    fn siginfos_are_checked() {
        let parsed = |number, is_leader| parse_siginfo(&siginfo(number), is_leader);
        assert_eq!(parsed(10, false), Ok(10));
        assert_eq!(parsed(5, true), Ok(5));
        for (number, is_leader) in [(0, true), (65, true), (9, true), (5, false)] {
            assert!(parsed(number, is_leader).is_err());
        }
        assert!(parse_siginfo(&[10, 0, 0], true).is_err());
    }
}
