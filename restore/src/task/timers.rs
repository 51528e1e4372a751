//! Interval timers and POSIX timers.
//!
//! A POSIX timer comes back under its own id: PR_TIMER_CREATE_RESTORE_IDS (Linux 6.15) lets
//! timer_create take the id from its result argument. Timers are made with the signals, when the
//! thread that a timer notifies exists, and armed last of all: what remains of their time runs from
//! then on. An expired one only leaves its signal pending.
//!
//! timer_getoverrun tells the overruns of the last signal that was taken. To bring them back the
//! timer is armed to an absolute time that lies so many intervals before its next expiration, and
//! the signal that this raises is taken by the thread that it is for. With another such signal in
//! the queue, or on a clock of processor time, which cannot be put forward, the count is lost; one
//! that has gathered behind a signal still in the queue cannot be seen at all.

use super::{Live, Thread};
use crate::plan::calls::prctl;
use crate::plan::step::{Arg, Call, Op, Phase, Piece, Ret};
use crate::plan::{Planner, Refusal};
use crate::tree::ClockShift;
use crust_cli::code::Code;
use crust_proto::criu::{ItimerEntry, PosixTimerEntry};
use nix::libc;

/// linux/prctl.h, since 6.15.
const PR_TIMER_CREATE_RESTORE_IDS: i32 = 77;
const MICROS: u64 = 1_000_000;
const NANOS: u64 = 1_000_000_000;
/// sizeof(struct sigevent).
const SIGEVENT: usize = 64;
/// Long enough for a timer that is due to go off, whatever the load.
const DUE_SECONDS: u64 = 60;
const SIGSET_BYTES: i64 = 8;
const SIGEV_NONE: u32 = libc::SIGEV_NONE as u32;
const SIGEV_THREAD_ID: u32 = libc::SIGEV_THREAD_ID as u32;

/// Plans all timers of a task.
pub fn plan(planner: &mut Planner<'_>, live: &Live<'_>) {
    let (Some(timers), Some(leader)) = (&live.tc.timers, live.leader()) else {
        return;
    };
    plan_posix(planner, live, leader, &timers.posix);
    for (name, which, timer) in [
        ("ITIMER_REAL", libc::ITIMER_REAL, &timers.real),
        ("ITIMER_VIRTUAL", libc::ITIMER_VIRTUAL, &timers.virt),
        ("ITIMER_PROF", libc::ITIMER_PROF, &timers.prof),
    ] {
        plan_interval(planner, leader, Arg::named(name, which as i64), timer);
    }
}

fn plan_interval(planner: &mut Planner<'_>, leader: &Thread<'_>, which: Arg, timer: &ItimerEntry) {
    let words = [timer.isec, timer.iusec, timer.vsec, timer.vusec];
    let origin = leader.origin("interval timer");
    let fits = |seconds: u64, part: u64| seconds <= i64::MAX as u64 && part < MICROS;
    if !fits(timer.isec, timer.iusec) || !fits(timer.vsec, timer.vusec) {
        let why = format!("{which:?} of {words:?} is no time");
        planner.refuse(Refusal::new(origin, why));
    } else if (timer.vsec, timer.vusec) != (0, 0) {
        let args = vec![which, Arg::words(&words), Arg::null()];
        let call = Call::new("setitimer", libc::SYS_setitimer, args);
        planner.call(Phase::Timers, leader.actor(), call, origin);
    }
}

fn plan_posix(
    planner: &mut Planner<'_>,
    live: &Live<'_>,
    leader: &Thread<'_>,
    timers: &[PosixTimerEntry],
) {
    if timers.is_empty() {
        return;
    }
    let origin = leader.origin("ids of POSIX timers");
    if !planner.host.timer_restore_ids {
        let why = "timer ids can only be chosen since Linux 6.15".to_owned();
        planner.refuse(Refusal::new(origin, why).kind(Code::HostKernel));
        return;
    }
    let restore_ids = |on: i64| {
        let args = [Arg::Int(on)];
        prctl(
            "PR_TIMER_CREATE_RESTORE_IDS",
            PR_TIMER_CREATE_RESTORE_IDS,
            args,
        )
    };
    planner.call(
        Phase::Signals,
        leader.actor(),
        restore_ids(1),
        origin.clone(),
    );
    for timer in timers {
        let origin = leader.origin(&format!("POSIX timer {}", timer.it_id));
        if let Err(why) = check(timer, live) {
            planner.refuse(Refusal::new(origin, why));
            continue;
        }
        planner.call(
            Phase::Signals,
            leader.actor(),
            create(timer),
            origin.clone(),
        );
        if (timer.vsec, timer.vnsec) == (0, 0) {
            continue;
        }
        match overrun(timer, planner.tree.clocks, live) {
            Some(op) => plan_overrun(planner, live, leader, timer, op),
            None => {
                planner.call(Phase::Timers, leader.actor(), settime(timer), origin);
            }
        }
    }
    planner.call(Phase::Signals, leader.actor(), restore_ids(0), origin);
}

/// How to arm a timer whose overruns can be brought back.
fn overrun(timer: &PosixTimerEntry, clocks: ClockShift, live: &Live<'_>) -> Option<Op> {
    let clock = timer.clock_id as i32;
    let nanos = |seconds: u64, part: u64| seconds.checked_mul(NANOS)?.checked_add(part);
    let (left, interval) = (
        nanos(timer.vsec, timer.vnsec)?,
        nanos(timer.isec, timer.insec)?,
    );
    let counts = timer.overrun > 0 && interval > 0 && timer.it_sigev_notify != SIGEV_NONE;
    // Of SIGTRAP a breakpoint would be made, and the others cannot wait in a queue.
    let can_wait =
        ![libc::SIGKILL, libc::SIGSTOP, libc::SIGTRAP].contains(&(timer.si_signo as i32));
    let on_wall = [
        libc::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_TAI,
    ];
    let is_possible = counts && can_wait && on_wall.contains(&clock);
    (is_possible && !waits(live, timer.si_signo)).then_some(Op::Overrun {
        id: timer.it_id,
        clock,
        shift: clocks.of(clock),
        left,
        interval,
        overrun: timer.overrun,
    })
}

/// Whether a signal of this number is in one of the queues of a task.
fn waits(live: &Live<'_>, number: u32) -> bool {
    let private = live.threads.iter().map(|thread| &thread.own.signals_p);
    let queues = private.chain([&live.tc.signals_s]).flatten();
    let mut signals = queues.flat_map(|queue| &queue.signals);
    signals.any(|signal| signal.siginfo.first_chunk() == Some(&number.to_le_bytes()))
}

/// Arms it, and has the thread that it notifies take the signal.
fn plan_overrun(
    planner: &mut Planner<'_>,
    live: &Live<'_>,
    leader: &Thread<'_>,
    timer: &PosixTimerEntry,
    op: Op,
) {
    let origin = leader.origin(&format!("overruns of POSIX timer {}", timer.it_id));
    let notified = timer
        .notify_thread_id
        .filter(|_| timer.it_sigev_notify == SIGEV_THREAD_ID);
    let mut threads = live.threads.iter();
    let taker = threads.find(|thread| notified == Some(thread.tid.get() as i32));
    let armed = planner.push(Phase::Timers, leader.actor(), op, origin.clone());
    let args = vec![
        Arg::words(&[1 << (timer.si_signo - 1)]),
        Arg::null(),
        Arg::words(&[DUE_SECONDS, 0]),
        Arg::Int(SIGSET_BYTES),
    ];
    let take = Call::new("rt_sigtimedwait", libc::SYS_rt_sigtimedwait, args);
    let take = take.answers(Ret::Exactly(timer.si_signo.into()));
    let actor = taker.unwrap_or(leader).actor();
    let taken = planner.call(Phase::Timers, actor, take, origin);
    planner.in_turn(armed, taken);
}

fn check(timer: &PosixTimerEntry, live: &Live<'_>) -> Result<(), String> {
    let fits = |seconds: u64, part: u64| seconds <= i64::MAX as u64 && part < NANOS;
    if !fits(timer.isec, timer.insec) || !fits(timer.vsec, timer.vnsec) {
        return Err("isec, insec, vsec, vnsec are no times".to_owned());
    }
    if timer.it_id > i32::MAX as u32 {
        return Err(format!("it_id {} is no timer id", timer.it_id));
    }
    let notify = timer.it_sigev_notify;
    if ![SIGEV_NONE, 0, 2, SIGEV_THREAD_ID].contains(&notify) {
        return Err(format!("it_sigev_notify {notify} is not known"));
    }
    if notify != SIGEV_NONE && !(1..=64).contains(&timer.si_signo) {
        return Err(format!("si_signo {} is no signal", timer.si_signo));
    }
    if notify == SIGEV_THREAD_ID {
        let tid = timer.notify_thread_id.unwrap_or(0);
        if !live
            .threads
            .iter()
            .any(|thread| i64::from(thread.tid.get()) == i64::from(tid))
        {
            return Err(format!("notify_thread_id {tid} is no thread of the task"));
        }
    }
    Ok(())
}

/// timer_create(clock, struct sigevent { value, signo, notify, tid }, id).
fn create(timer: &PosixTimerEntry) -> Call {
    let mut event = timer.sival_ptr.to_le_bytes().to_vec();
    event.extend(timer.si_signo.to_le_bytes());
    event.extend(timer.it_sigev_notify.to_le_bytes());
    event.extend(timer.notify_thread_id.unwrap_or(0).to_le_bytes());
    event.resize(SIGEVENT, 0);
    // Clocks of processes and threads are negative numbers.
    let clock = i64::from(timer.clock_id as i32);
    let id = Arg::Data(vec![Piece::Bytes(timer.it_id.to_le_bytes().to_vec())]);
    let args = vec![Arg::Int(clock), Arg::bytes(event), id];
    Call::new("timer_create", libc::SYS_timer_create, args)
}

fn settime(timer: &PosixTimerEntry) -> Call {
    let spec = [timer.isec, timer.insec, timer.vsec, timer.vnsec];
    let id = Arg::Int(timer.it_id.into());
    let args = vec![id, Arg::Int(0), Arg::words(&spec), Arg::null()];
    Call::new("timer_settime", libc::SYS_timer_settime, args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_has_the_kernels_layout() {
        let timer = PosixTimerEntry {
            it_id: 3,
            clock_id: (-6_i32) as u32,
            si_signo: 34,
            it_sigev_notify: 4,
            sival_ptr: 0x1122,
            notify_thread_id: Some(77),
            ..PosixTimerEntry::default()
        };
        let call = create(&timer);
        assert_eq!(call.args[0], Arg::Int(-6));
        let Arg::Data(pieces) = &call.args[1] else {
            panic!("an event")
        };
        let Piece::Bytes(event) = &pieces[0] else {
            panic!("bytes")
        };
        assert_eq!(event.len(), 64);
        assert_eq!(event[..2], [0x22, 0x11]);
        assert_eq!((event[8], event[12], event[16]), (34, 4, 77));
    }
}
