//! Interval timers (setitimer(2)) and POSIX timers (timer_create(2)).
//!
//! The images hold what is left, not when: the time until the restore does not count. Id, clock
//! and notification come from /proc/PID/timers, value and overrun from the task itself.

use crate::task::questions::{TaskAnswers, TimerValue};
use crust_process::proc::timers::PosixTimer;
use crust_proto::criu::{ItimerEntry, PosixTimerEntry, TaskTimersEntry};

/// Notify the thread `notify_thread_id` (include/uapi/asm-generic/siginfo.h).
const SIGEV_THREAD_ID: i32 = 4;

/// Encodes all timers of a task. `posix` are in the order in which they were asked for;
/// `virt` gives the id of a thread in the images.
pub fn encode_timers(
    answers: &TaskAnswers,
    posix: &[PosixTimer],
    virt: impl Fn(i32) -> i32,
) -> TaskTimersEntry {
    let [real, virtual_, prof] = answers.itimers.map(encode_itimer);
    let values = &answers.posix_timers;
    TaskTimersEntry {
        real,
        virt: virtual_,
        prof,
        posix: posix
            .iter()
            .zip(values)
            .map(|(timer, (value, overrun))| encode_posix(timer, *value, *overrun, &virt))
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
