//! The clocks that count from the boot (CLOCK_MONOTONIC, CLOCK_BOOTTIME) must not run backwards for
//! the program: on another host, or after a reboot, they may be behind what it has seen.
//!
//! timens-N.img has what they showed at the dump. A tree in a time namespace of its own gets one in
//! which they go on from there. A tree in the dumper's gets one only if this host's clocks are
//! behind: where they are ahead the time of the checkpoint has passed, as it has for everybody.
//! The root makes the namespace before it forks anybody, says its offsets, and enters it
//! (time_namespaces(7), Linux 5.6).

use super::Task;
use crate::plan::calls::close;
use crate::plan::step::{Actor, Arg, Call, Origin, Phase, Ret};
use crate::plan::{Planner, Refusal};
use crust_cli::code::Code;
use crust_proto::criu::{TimensEntry, Timespec};
use nix::libc;

/// Its bit of unshare(2); of clone(2) it is a signal.
pub const CLONE_NEWTIME: i32 = 0x80;
const CAP_SYS_TIME: u32 = 25;
const NANOS: i128 = 1_000_000_000;

/// What is added to this host's clocks for the tree, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockShift {
    /// CLOCK_MONOTONIC.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME.
    pub boottime: i64,
}

impl ClockShift {
    /// What is added to a clock by its number.
    pub fn of(&self, clock: i32) -> i64 {
        match clock {
            libc::CLOCK_MONOTONIC => self.monotonic,
            libc::CLOCK_BOOTTIME => self.boottime,
            _ => 0,
        }
    }
}

/// Plans the namespace, if the tree needs one.
pub fn plan(planner: &mut Planner<'_>, tasks: &[Task]) {
    let Some(root) = tasks.first() else { return };
    let own = own_namespace(planner, tasks);
    let image = format!("timens-{}.img", own.unwrap_or(0));
    let origin = Origin::new(image, Some(0), "the clocks of the tree");
    let stored = planner
        .checkpoint
        .namespaces
        .time
        .get(&own.unwrap_or(0).into());
    let Some(stored) = stored else {
        if own.is_some() {
            planner.refuse(Refusal::new(origin, "the image is missing"));
        }
        return;
    };
    let shift = match shift(stored, planner.host.clocks) {
        Ok(shift) => shift,
        Err(why) => return planner.refuse(Refusal::new(origin, why)),
    };
    if own.is_none() && shift.monotonic <= 0 && shift.boottime <= 0 {
        return;
    }
    if let Err(why) = can_make(planner) {
        return planner.refuse(Refusal::new(origin, why).kind(Code::HostKernel));
    }
    // A clock that is ahead here need not be put back.
    let shift = match own {
        Some(_) => shift,
        None => ClockShift {
            monotonic: shift.monotonic.max(0),
            boottime: shift.boottime.max(0),
        },
    };
    planner.tree.clocks = shift;
    for call in calls(shift) {
        planner.call(Phase::Root, Actor::Task(root.pid), call, origin.clone());
    }
}

/// The number of the tree's own time namespace. Tasks in several are refused.
fn own_namespace(planner: &mut Planner<'_>, tasks: &[Task]) -> Option<u32> {
    let host = planner.checkpoint.inventory.root_ids.as_ref();
    let host = host.and_then(|ids| ids.time_ns_id);
    let of_task = |task: &Task| task.ids.as_ref().map(|ids| ids.time_ns_id.or(host));
    let root = tasks.first().and_then(of_task).flatten();
    for task in tasks {
        if of_task(task).is_some_and(|id| id != root) {
            let image = format!("ids-{}.img", task.pid);
            let origin = Origin::new(image, Some(0), format!("task {}", task.pid));
            let why = "is in another time namespace than the root, which cannot be restored yet";
            planner.refuse(Refusal::new(origin, why));
        }
    }
    root.filter(|_| root != host)
}

fn can_make(planner: &Planner<'_>) -> Result<(), String> {
    let host = planner.host;
    if !host.time_namespaces {
        return Err(
            "the clocks of this host are behind those of the images, or the tree has a \
                    time namespace, and this kernel has none"
                .to_owned(),
        );
    }
    if !host.has_cap(CAP_SYS_TIME) {
        return Err(
            "the clocks of this host are behind those of the images, or the tree has a \
                    time namespace, and crust-restore has no CAP_SYS_TIME to set one up"
                .to_owned(),
        );
    }
    Ok(())
}

/// What the clocks of the image are ahead of these, in nanoseconds.
fn shift(stored: &TimensEntry, [monotonic, boottime]: [u64; 2]) -> Result<ClockShift, String> {
    let ahead = |name: &str, time: &Timespec, here: u64| {
        let time = i128::from(time.tv_sec) * NANOS + i128::from(time.tv_nsec);
        let shift = i64::try_from(time - i128::from(here));
        shift.map_err(|_| format!("{name} {time} ns is no time since a boot"))
    };
    Ok(ClockShift {
        monotonic: ahead("monotonic", &stored.monotonic, monotonic)?,
        boottime: ahead("boottime", &stored.boottime, boottime)?,
    })
}

/// The calls of the root: descriptor 0 is free.
fn calls(shift: ClockShift) -> Vec<Call> {
    let open = |path: &str, name: &str, flags: i32| {
        let args = vec![
            Arg::named("AT_FDCWD", libc::AT_FDCWD),
            Arg::Str(path.into()),
            Arg::named(name, flags),
        ];
        Call::new("openat", libc::SYS_openat, args).answers(Ret::Exactly(0))
    };
    let text = format!(
        "{}{}",
        offset("monotonic", shift.monotonic),
        offset("boottime", shift.boottime)
    )
    .into_bytes();
    let len = text.len() as i64;
    let flag = Arg::named("CLONE_NEWTIME", CLONE_NEWTIME);
    let write = vec![Arg::Int(0), Arg::bytes(text), Arg::Int(len)];
    vec![
        Call::new("unshare", libc::SYS_unshare, vec![flag.clone()]),
        open("/proc/self/timens_offsets", "O_WRONLY", libc::O_WRONLY),
        Call::new("write", libc::SYS_write, write).answers(Ret::Exactly(len)),
        close(0),
        open(
            "/proc/self/ns/time_for_children",
            "O_RDONLY",
            libc::O_RDONLY,
        ),
        Call::new("setns", libc::SYS_setns, vec![Arg::Int(0), flag]),
        close(0),
    ]
}

/// A line of timens_offsets: seconds, and nanoseconds that are never negative.
fn offset(clock: &str, shift: i64) -> String {
    let nanos = NANOS as i64;
    let (seconds, rest) = (shift.div_euclid(nanos), shift.rem_euclid(nanos));
    format!("{clock} {seconds} {rest}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(monotonic: (u64, u64), boottime: (u64, u64)) -> TimensEntry {
        let time = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
        TimensEntry {
            monotonic: time(monotonic),
            boottime: time(boottime),
        }
    }

    #[test]
    fn clocks_are_compared() {
        let stored = entry((5, 7), (9, 0));
        let found = shift(&stored, [6_000_000_000, 1_000_000_000]).expect("times");
        assert_eq!(
            (found.monotonic, found.boottime),
            (-999_999_993, 8_000_000_000)
        );
        assert_eq!(found.of(libc::CLOCK_BOOTTIME), 8_000_000_000);
        assert_eq!(found.of(libc::CLOCK_REALTIME), 0);
        assert!(shift(&entry((u64::MAX, 0), (0, 0)), [0, 0]).is_err());
    }

    #[test]
    fn offsets_have_positive_nanoseconds() {
        assert_eq!(offset("monotonic", 8_000_000_005), "monotonic 8 5\n");
        assert_eq!(offset("boottime", -1), "boottime -1 999999999\n");
    }
}
