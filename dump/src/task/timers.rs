//! Interval timers (setitimer(2)) and POSIX timers (timer_create(2)).
//!
//! The images hold what is left, not when: the time until the restore does not count. Id, clock
//! and notification come from /proc/PID/timers, value and overrun from the task itself.
//!
//! Timers run while their task stands still. What is stored is what was left when the tree stopped,
//! so the time until they were read is added. One that has expired between that reading and the look
//! at the queues is known by its signal there, and by having had less left than that took: it is
//! stored as it is behind its expiration, or the program would get the signal twice.
//!
//! Overruns that gather behind a signal in the queue can be seen only by taking it, and an overrun of
//! a clock of processor time cannot be made (restore, task/timers.rs): the log tells of both.

use crate::task::questions::{TaskAnswers, TimerValue};
use crust_process::proc::timers::PosixTimer;
use crust_process::tracee::SigInfo;
use crust_proto::criu::{ItimerEntry, PosixTimerEntry, TaskTimersEntry};
use nix::libc;
use std::time::{Duration, Instant};

/// Notify the thread `notify_thread_id` (include/uapi/asm-generic/siginfo.h).
const SIGEV_THREAD_ID: i32 = 4;

/// si_code of a signal of a POSIX timer (include/uapi/asm-generic/siginfo.h).
const SI_TIMER: i32 = -2;
const MICRO: Duration = Duration::from_micros(1);
const NANO: Duration = Duration::from_nanos(1);

/// When timers were read, and what waited in the queues of the task after that.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// When the tree had stopped.
    pub stopped: Instant,
    /// A moment before the timers were read.
    pub asked: Instant,
    /// A moment after the queues were read.
    pub peeked: Instant,
    /// All signals of the queues.
    pub queued: &'a [SigInfo],
}

impl Reading<'_> {
    /// What was left when the tree stopped; times count in `unit`s behind the seconds.
    fn settle(&self, value: TimerValue, unit: Duration, has_signal: bool) -> TimerValue {
        let parts = |(seconds, part): (u64, u64)| {
            let part = u32::try_from(part).unwrap_or(u32::MAX);
            Duration::from_secs(seconds).saturating_add(unit.saturating_mul(part))
        };
        let (mut left, interval) = (parts(value.left), parts(value.interval));
        if left.is_zero() {
            return value;
        }
        let watched = self.peeked.saturating_duration_since(self.asked);
        if has_signal && left <= watched {
            if interval.is_zero() {
                return TimerValue {
                    left: (0, 0),
                    ..value
                };
            }
            left = left.saturating_add(interval);
        }
        left = left.saturating_add(self.asked.saturating_duration_since(self.stopped));
        let part = u128::from(left.subsec_nanos()) / unit.as_nanos();
        TimerValue {
            left: (left.as_secs(), part as u64),
            ..value
        }
    }

    fn holds_signal(&self, signal: i32) -> bool {
        self.queued.iter().any(|info| field(info, 0) == signal)
    }

    /// Whether a signal that this timer has sent is in a queue.
    fn holds_signal_of(&self, timer: &PosixTimer) -> bool {
        self.queued.iter().any(|info| {
            let of_timer = (field(info, 8), field(info, 16)) == (SI_TIMER, timer.id);
            of_timer && field(info, 0) == timer.signo
        })
    }
}

/// A 32-bit field of a siginfo.
fn field(info: &SigInfo, at: usize) -> i32 {
    let bytes = info.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| i32::from_le_bytes(*bytes))
}

/// Clocks that go on while a task stands still. The others are negative numbers of a task's clock,
/// or those of whoever asks.
fn is_wall_clock(clock: i32) -> bool {
    let own = [
        libc::CLOCK_PROCESS_CPUTIME_ID,
        libc::CLOCK_THREAD_CPUTIME_ID,
    ];
    clock >= 0 && !own.contains(&clock)
}

/// What the images cannot tell of timers, in words.
pub fn lost_overruns(
    answers: &TaskAnswers,
    posix: &[PosixTimer],
    reading: &Reading<'_>,
) -> Vec<String> {
    let mut lost = Vec::new();
    for (timer, (value, overrun)) in posix.iter().zip(&answers.posix_timers) {
        let id = timer.id;
        if value.interval != (0, 0) && reading.holds_signal_of(timer) {
            lost.push(format!(
                "POSIX timer {id}: its signal waits in a queue, and how often it has expired \
                 since cannot be seen"
            ));
        }
        if *overrun != 0 && !is_wall_clock(timer.clock_id) {
            lost.push(format!(
                "POSIX timer {id}: its {overrun} overruns are those of a clock of processor time, \
                 which begins anew"
            ));
        }
    }
    lost
}

/// Encodes all timers of a task. `posix` are in the order in which they were asked for;
/// `virt` gives the id of a thread in the images.
pub fn encode_timers(
    answers: &TaskAnswers,
    posix: &[PosixTimer],
    reading: &Reading<'_>,
    virt: impl Fn(i32) -> i32,
) -> TaskTimersEntry {
    let [real, virtual_, prof] = answers.itimers;
    let real = reading.settle(real, MICRO, reading.holds_signal(libc::SIGALRM));
    let [real, virtual_, prof] = [real, virtual_, prof].map(encode_itimer);
    let settled = |timer: &PosixTimer, value: TimerValue| match is_wall_clock(timer.clock_id) {
        true => reading.settle(value, NANO, reading.holds_signal_of(timer)),
        false => value,
    };
    let values = &answers.posix_timers;
    TaskTimersEntry {
        real,
        virt: virtual_,
        prof,
        posix: posix
            .iter()
            .zip(values)
            .map(|(timer, (value, overrun))| {
                encode_posix(timer, settled(timer, *value), *overrun, &virt)
            })
            .collect(),
    }
}

fn encode_itimer(value: TimerValue) -> ItimerEntry {
    ItimerEntry {
        isec: value.interval.0,
        iusec: value.interval.1,
        vsec: value.left.0,
        vusec: value.left.1,
    }
}

fn encode_posix(
    timer: &PosixTimer,
    value: TimerValue,
    overrun: u32,
    virt: impl Fn(i32) -> i32,
) -> PosixTimerEntry {
    PosixTimerEntry {
        it_id: timer.id as u32,
        clock_id: timer.clock_id as u32,
        si_signo: timer.signo as u32,
        it_sigev_notify: timer.notify as u32,
        sival_ptr: timer.sigev_value,
        overrun,
        isec: value.interval.0,
        insec: value.interval.1,
        vsec: value.left.0,
        vnsec: value.left.1,
        notify_thread_id: (timer.notify & SIGEV_THREAD_ID != 0).then(|| virt(timer.pid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNAL: i32 = 34;

    fn queued(id: i32) -> SigInfo {
        let mut info = [0; 128];
        for (at, word) in [(0, SIGNAL), (8, SI_TIMER), (16, id)] {
            info[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        info
    }

    /// Milliseconds left of a timer that was read 5 ms after the stop, 2 ms before its queue.
    fn settled(left: u64, interval: u64, queue: &[SigInfo]) -> u64 {
        let stopped = Instant::now();
        let asked = stopped + Duration::from_millis(5);
        let reading = Reading {
            stopped,
            asked,
            peeked: asked + Duration::from_millis(2),
            queued: queue,
        };
        let timer = PosixTimer {
            id: 3,
            signo: SIGNAL,
            sigev_value: 0,
            notify: 0,
            pid: 1,
            clock_id: 1,
        };
        let value = TimerValue {
            interval: (0, interval * 1_000_000),
            left: (0, left * 1_000_000),
        };
        let settled = reading.settle(value, NANO, reading.holds_signal_of(&timer));
        settled.left.0 * 1000 + settled.left.1 / 1_000_000
    }

    #[test]
    fn what_is_left_counts_from_the_stop() {
        assert_eq!(settled(100, 0, &[]), 105);
        assert_eq!(settled(999, 7, &[]), 1004);
        assert_eq!(settled(0, 7, &[]), 0);
    }

    #[test]
    fn a_timer_that_expires_before_its_queue_is_read_expires_once() {
        assert_eq!(settled(1, 0, &[queued(3)]), 0);
        assert_eq!(settled(1, 50, &[queued(3)]), 56);
        // Another's signal, or one that waited before and is not this expiration's.
        assert_eq!(settled(1, 0, &[queued(4)]), 6);
        assert_eq!(settled(30, 50, &[queued(3)]), 35);
    }

    #[test]
    fn only_a_thread_directed_timer_names_its_thread() {
        let timer = |notify| PosixTimer {
            id: 3,
            signo: 36,
            sigev_value: 5,
            notify,
            pid: 3884,
            clock_id: 7,
        };
        let value = TimerValue {
            interval: (77, 88),
            left: (2, 999),
        };
        let process = encode_posix(&timer(0), value, 4, |tid| tid);
        assert_eq!(
            (process.isec, process.insec, process.vsec, process.vnsec),
            (77, 88, 2, 999)
        );
        assert_eq!((process.overrun, process.notify_thread_id), (4, None));
        let thread = encode_posix(&timer(4), value, 0, |tid| tid - 3880);
        assert_eq!(thread.notify_thread_id, Some(4));
    }
}
