//! timerfd_create(2): a timer that counts its expirations until they are read.
//!
//! Saved are the clock, the time left, the interval, the unread ticks and the flags of the last
//! timerfd_settime(2). The kernel answers a periodic timer that expired and was not read with no
//! time left: until the read it stands still, and the read starts it again (fs/timerfd.c). Such a
//! timer is stored with the time left to the expiration it would have next, its interval, because
//! a restorer that found 0 there would arm nothing (the peer's does). The time left is relative,
//! whatever TFD_TIMER_ABSTIME says, as the peer stores it. It is what was left when the tree stopped.

use super::{OpenFile, RoomResult, file_entry};
use crate::context::Context;
use anyhow::Context as _;
use crust_image::ids::FileId;
use crust_process::proc::fdinfo::TimerfdInfo;
use crust_proto::criu::{FdTypes, FileEntry, FownEntry, TimerfdEntry};
use std::time::Duration;

/// Dumps a descriptor.
pub fn dump(ctx: &Context, file: &OpenFile, id: FileId) -> RoomResult<FileEntry> {
    let mut info = file.fdinfo()?.timerfd.context("fdinfo tells no clockid")?;
    if info.value != (0, 0) {
        info.value = later(info.value, ctx.stopped.elapsed());
    }
    Ok(FileEntry {
        tfd: Some(Box::new(encode(id, file.flags, file.fown(ctx)?, &info))),
        ..file_entry(FdTypes::Timerfd, id)
    })
}

fn later(value: (u64, u64), passed: Duration) -> (u64, u64) {
    let part = u32::try_from(value.1).unwrap_or(u32::MAX);
    let value = Duration::from_secs(value.0).saturating_add(Duration::from_nanos(part.into()));
    let later = value.saturating_add(passed);
    (later.as_secs(), later.subsec_nanos().into())
}

fn encode(id: FileId, flags: u32, fown: FownEntry, info: &TimerfdInfo) -> TimerfdEntry {
    let waits_for_read = info.ticks > 0 && info.value == (0, 0) && info.interval != (0, 0);
    let value = if waits_for_read {
        info.interval
    } else {
        info.value
    };
    TimerfdEntry {
        id: id.0,
        flags,
        fown,
        clockid: info.clock_id as u32,
        ticks: info.ticks,
        settime_flags: info.settime_flags,
        vsec: value.0,
        vnsec: value.1,
        isec: info.interval.0,
        insec: info.interval.1,
    }
}

#[cfg(test)]
mod tests {
    use super::super::regfile::no_owner;
    use super::*;

    fn encoded(ticks: u64, value: (u64, u64), interval: (u64, u64)) -> TimerfdEntry {
        let info = TimerfdInfo {
            clock_id: 1,
            ticks,
            settime_flags: 0,
            value,
            interval,
        };
        encode(FileId(4), 2, no_owner(), &info)
    }

    #[test]
    fn a_periodic_timer_with_unread_ticks_keeps_firing() {
        let entry = encoded(1, (0, 0), (0, 70_000_000));
        assert_eq!((entry.ticks, entry.vsec, entry.vnsec), (1, 0, 70_000_000));
    }

    #[test]
    fn a_spent_one_shot_timer_stays_disarmed() {
        let entry = encoded(1, (0, 0), (0, 0));
        assert_eq!((entry.ticks, entry.vsec, entry.vnsec), (1, 0, 0));
    }

    #[test]
    fn a_running_timer_keeps_the_time_left() {
        let entry = encoded(2, (3, 5), (7, 0));
        assert_eq!(
            (entry.ticks, entry.vsec, entry.vnsec, entry.isec),
            (2, 3, 5, 7)
        );
    }
}
