//! A timerfd as it was: armed to the rest of its time, with the expirations nobody had read.
//!
//! An image has the time that was left, also for a timer armed to an absolute time, so that one is
//! armed to now and the rest. A periodic timer that has expired and was not read shows nothing
//! left: the kernel goes on counting periods only when it is read. Such a timer is armed to go off
//! at once, which brings it into just that state, and then gets its count.

use anyhow::{Context, Result, bail};
use crust_process::broker::{self, OwnArg};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use std::os::fd::{AsRawFd, BorrowedFd};

/// _IOW('T', 0, u64) of linux/timerfd.h: since Linux 3.17, with CONFIG_CHECKPOINT_RESTORE.
const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
/// Nanoseconds in a second.
const SECOND: u64 = 1_000_000_000;
/// Long enough for a timer that is due to go off, whatever the load.
const DUE_MS: u16 = 10_000;

/// Arms `timer` and sets its count of unread expirations. Times are in nanoseconds.
pub fn arm(
    timer: BorrowedFd<'_>,
    clock: i32,
    flags: i32,
    left: u64,
    interval: u64,
    ticks: u64,
) -> Result<()> {
    if left == 0 && interval != 0 && ticks != 0 {
        set_time(timer, 0, 1, interval)?;
        wait_until_due(timer)?;
    } else if left != 0 || interval != 0 {
        let start = if flags & libc::TFD_TIMER_ABSTIME != 0 {
            now(clock)?
        } else {
            0
        };
        set_time(timer, flags, start.saturating_add(left), interval)?;
    }
    if ticks != 0 {
        let mut count = ticks.to_ne_bytes();
        let mut args = [
            OwnArg::Val(timer.as_raw_fd() as u64),
            OwnArg::Val(TFD_IOC_SET_TICKS),
            // The broker's calls want room for the largest ioctl argument.
            OwnArg::Bytes(&mut [0; 64]),
        ];
        if let Some(OwnArg::Bytes(bytes)) = args.last_mut() {
            for (to, from) in bytes.iter_mut().zip(&mut count) {
                *to = *from;
            }
        }
        broker::call(libc::SYS_ioctl, &mut args, &mut [])
            .with_context(|| format!("TFD_IOC_SET_TICKS {ticks}"))?;
    }
    Ok(())
}

/// struct itimerspec: interval and value, each of seconds and nanoseconds.
fn set_time(timer: BorrowedFd<'_>, flags: i32, value: u64, interval: u64) -> Result<()> {
    let mut spec: Vec<u8> = [
        interval / SECOND,
        interval % SECOND,
        value / SECOND,
        value % SECOND,
    ]
    .iter()
    .flat_map(|word| word.to_ne_bytes())
    .collect();
    let mut args = [
        OwnArg::Val(timer.as_raw_fd() as u64),
        OwnArg::Val(flags as u64),
        OwnArg::Bytes(&mut spec),
        OwnArg::Val(0),
    ];
    broker::call(libc::SYS_timerfd_settime, &mut args, &mut []).with_context(|| {
        format!("timerfd_settime with flags {flags:#x}, value {value} ns, interval {interval} ns")
    })?;
    Ok(())
}

/// Now, by a timer's clock. The alarm clocks can only be read where there is an RTC, and tell the
/// same as those they are made from.
fn now(clock: i32) -> Result<u64> {
    let clock = match clock {
        libc::CLOCK_REALTIME_ALARM => libc::CLOCK_REALTIME,
        libc::CLOCK_BOOTTIME_ALARM => libc::CLOCK_BOOTTIME,
        clock => clock,
    };
    let now = clock_gettime(ClockId::from_raw(clock))
        .with_context(|| format!("clock_gettime of clock {clock}"))?;
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(part(now.tv_sec()).saturating_mul(SECOND) + part(now.tv_nsec()))
}

fn wait_until_due(timer: BorrowedFd<'_>) -> Result<()> {
    let mut fds = [PollFd::new(timer, PollFlags::POLLIN)];
    loop {
        match poll(&mut fds, PollTimeout::from(DUE_MS)) {
            Ok(0) => bail!("a timer of 1 ns did not expire in {DUE_MS} ms"),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("poll the timer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags};
    use std::os::fd::AsFd;
    use std::time::Duration;

    fn timer() -> TimerFd {
        TimerFd::new(TimerClock::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK).expect("timerfd")
    }

    fn unread(timer: &TimerFd) -> u64 {
        let mut count = [0; 8];
        nix::unistd::read(timer.as_fd(), &mut count).expect("an expiration");
        u64::from_ne_bytes(count)
    }

    #[test]
    fn a_periodic_timer_that_expired_keeps_its_interval_and_its_count() {
        let timer = timer();
        arm(timer.as_fd(), libc::CLOCK_MONOTONIC, 0, 0, 3600 * SECOND, 5).expect("armed");
        let Ok(Some(Expiration::IntervalDelayed(left, interval))) = timer.get() else {
            panic!("not periodic: {:?}", timer.get());
        };
        assert_eq!(Duration::from(interval), Duration::from_secs(3600));
        assert!(Duration::from(left) <= Duration::from_secs(3600));
        assert_eq!(unread(&timer), 5);
    }

    #[test]
    fn an_absolute_timer_has_the_rest_of_its_time() {
        let timer = timer();
        let flags = libc::TFD_TIMER_ABSTIME;
        arm(
            timer.as_fd(),
            libc::CLOCK_MONOTONIC,
            flags,
            100 * SECOND,
            0,
            0,
        )
        .expect("armed");
        let Ok(Some(Expiration::OneShot(left))) = timer.get() else {
            panic!("not armed once: {:?}", timer.get());
        };
        let left = Duration::from(left).as_secs();
        assert!((90..=100).contains(&left), "{left}");
    }

    #[test]
    fn an_expired_timer_has_only_its_count() {
        let timer = timer();
        arm(timer.as_fd(), libc::CLOCK_MONOTONIC, 0, 0, 0, 1).expect("set");
        assert_eq!(timer.get(), Ok(None));
        assert_eq!(unread(&timer), 1);
    }
}
