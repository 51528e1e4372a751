//! timerfd_create(2): a timer that is read.
//!
//! timerfd_entry has the clock, the flags it was armed with, the time left (also of a timer armed
//! to an absolute time), the interval and the count of unread expirations. It is armed last, when
//! everything else is done, so that the time of the restore is not taken from it. A timer armed to
//! an absolute time gets the time of the restore plus what was left: the images do not say when
//! they were made.

use super::{File, fown, member};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Arg, Call, Op, Phase, Ret, SlotId};
use crate::plan::{Planner, Refusal};
use crust_proto::criu::TimerfdEntry;
use nix::libc;

const TFD: &[(u64, &str)] = &[
    (libc::TFD_CLOEXEC as u64, "TFD_CLOEXEC"),
    (libc::TFD_NONBLOCK as u64, "TFD_NONBLOCK"),
];
const CLOCKS: [(i32, &str); 5] = [
    (libc::CLOCK_REALTIME, "CLOCK_REALTIME"),
    (libc::CLOCK_MONOTONIC, "CLOCK_MONOTONIC"),
    (libc::CLOCK_BOOTTIME, "CLOCK_BOOTTIME"),
    (libc::CLOCK_REALTIME_ALARM, "CLOCK_REALTIME_ALARM"),
    (libc::CLOCK_BOOTTIME_ALARM, "CLOCK_BOOTTIME_ALARM"),
];
const SETTIME_FLAGS: u32 = (libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET) as u32;
const SECOND: u64 = 1_000_000_000;

/// A checked timer; times in nanoseconds.
#[derive(Debug, PartialEq, Eq)]
struct Timer {
    clock: (i32, &'static str),
    left: u64,
    interval: u64,
}

/// Makes the timer now and arms it last.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let tfd = member(planner, file, file.entry.tfd.as_ref(), |tfd| tfd.id)?;
    let origin = file.origin(file.name());
    let timer = match check(tfd) {
        Ok(timer) => timer,
        Err(why) => {
            planner.refuse(Refusal::new(origin, why));
            return None;
        }
    };
    let slot = planner.slot();
    let flags = tfd.flags as i32;
    let args = vec![
        Arg::named(timer.clock.1, timer.clock.0),
        Arg::flags(
            (libc::TFD_CLOEXEC | (flags & libc::TFD_NONBLOCK)) as u64,
            TFD,
        ),
    ];
    let call = Call::new("timerfd_create", libc::SYS_timerfd_create, args).answers(Ret::Fd(slot));
    planner.call(Phase::Open, Actor::Broker, call, origin.clone());
    if timer.left != 0 || timer.interval != 0 || tfd.ticks != 0 {
        let routine = Routine::ArmTimer {
            slot,
            clock: timer.clock.0,
            flags: tfd.settime_flags as i32,
            left: timer.left,
            interval: timer.interval,
            ticks: tfd.ticks,
        };
        planner.push(Phase::Timers, Actor::Broker, Op::Routine(routine), origin);
    }
    fown::plan(planner, file, slot, flags, &tfd.fown);
    Some(slot)
}

fn check(tfd: &TimerfdEntry) -> Result<Timer, String> {
    let clock = CLOCKS
        .iter()
        .find(|(number, _)| *number as u32 == tfd.clockid);
    let clock =
        *clock.ok_or_else(|| format!("clockid {} is no clock of a timerfd", tfd.clockid))?;
    if tfd.settime_flags & !SETTIME_FLAGS != 0 {
        return Err(format!(
            "settime_flags {:#x} has bits that are not known",
            tfd.settime_flags
        ));
    }
    Ok(Timer {
        clock,
        left: nanoseconds(("vsec", tfd.vsec), ("vnsec", tfd.vnsec))?,
        interval: nanoseconds(("isec", tfd.isec), ("insec", tfd.insec))?,
    })
}

fn nanoseconds(seconds: (&str, u64), rest: (&str, u64)) -> Result<u64, String> {
    if rest.1 >= SECOND {
        return Err(format!("{} {} is a second or more", rest.0, rest.1));
    }
    let whole = seconds
        .1
        .checked_mul(SECOND)
        .and_then(|whole| whole.checked_add(rest.1));
    // The kernel's ktime_t is signed.
    whole
        .filter(|time| i64::try_from(*time).is_ok())
        .ok_or_else(|| {
            format!(
                "{} {} is more than any timer can have",
                seconds.0, seconds.1
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(clockid: u32, vsec: u64, vnsec: u64) -> TimerfdEntry {
        TimerfdEntry {
            clockid,
            vsec,
            vnsec,
            isec: 1,
            ..Default::default()
        }
    }

    #[test]
    fn times_are_checked() {
        let timer = check(&entry(1, 2, 3)).expect("a timer");
        assert_eq!((timer.left, timer.interval), (2 * SECOND + 3, SECOND));
        assert!(check(&entry(1, 0, SECOND)).is_err());
        assert!(check(&entry(1, u64::MAX, 0)).is_err());
        assert!(check(&entry(1, 10_000_000_000, 0)).is_err());
        assert!(check(&entry(2, 0, 0)).is_err());
    }
}
