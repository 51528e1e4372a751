//! timens-N.img: the clocks that count from the boot, as the tasks read them at the dump. N is 0 for
//! tasks in the dumper's time namespace, else the number of theirs (time_namespaces(7)).
//!
//! What a namespace adds to the clocks of the initial one is in /proc/PID/timens_offsets, ours too.
//! One image holds the clocks of one namespace: tasks in several are refused.

use crate::collect::Collected;
use crate::context::Context;
use crate::refusal::Refusal;
use anyhow::{Context as _, Result};
use crust_image::sink::write_entry;
use crust_image::{ImageSink, Kind};
use crust_process::pid::HostPid;
use crust_process::proc::ProcDir;
use crust_proto::criu::{TimensEntry, Timespec};
use nix::time::{ClockId, clock_gettime};

const NANOS: i128 = 1_000_000_000;
/// The time namespace of the dumper, for which there is an image too.
const OWN: u64 = 0;

/// What a namespace adds to the initial one's clocks, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Offsets {
    monotonic: i128,
    boottime: i128,
}

/// Refuses tasks in other time namespaces than the root's.
pub fn refuse_several(ctx: &Context, collected: &Collected) {
    let mut subjects = collected.subjects.iter();
    let root = subjects.next().map(|root| root.ids.time_ns_id);
    for subject in subjects.filter(|subject| Some(subject.ids.time_ns_id) != root) {
        if let Some(task) = ctx.tasks.get(subject.task) {
            let what = "is not that of the root task, and the images have room for one only";
            ctx.refuse(Refusal::new(task.pid, "its namespace time", what));
        }
    }
}

/// Writes the image.
pub fn write(images: &dyn ImageSink, collected: &Collected) -> Result<()> {
    let root = collected
        .subjects
        .first()
        .context("a tree without a task")?;
    let number = root.ids.time_ns_id;
    let (id, entry) = if number == collected.ids.encode_own().time_ns_id {
        (OWN, encode(Offsets::default())?)
    } else {
        let theirs = offsets(&root.facts.dir)?;
        let ours = offsets(&ProcDir::open(HostPid::current())?)?;
        let beside = Offsets {
            monotonic: theirs.monotonic - ours.monotonic,
            boottime: theirs.boottime - ours.boottime,
        };
        (u64::from(number.unwrap_or(0)), encode(beside)?)
    };
    Ok(write_entry(images, Kind::Timens, Some(id), &entry)?)
}

fn offsets(dir: &ProcDir) -> Result<Offsets> {
    let text = dir.read("timens_offsets")?;
    let text = String::from_utf8_lossy(&text);
    parse_offsets(&text)
        .with_context(|| format!("task {}: timens_offsets says {text:?}", dir.pid()))
}

/// Lines of a clock's name, seconds and nanoseconds.
fn parse_offsets(text: &str) -> Option<Offsets> {
    let of = |clock: &str| {
        let mut lines = text.lines().map(str::split_ascii_whitespace);
        let mut words =
            lines.find_map(|mut words| (words.next() == Some(clock)).then_some(words))?;
        let seconds: i128 = words.next()?.parse().ok()?;
        let rest: i128 = words.next()?.parse().ok()?;
        Some(seconds * NANOS + rest)
    };
    Some(Offsets {
        monotonic: of("monotonic")?,
        boottime: of("boottime")?,
    })
}

fn encode(beside_ours: Offsets) -> Result<TimensEntry> {
    Ok(TimensEntry {
        monotonic: now(ClockId::CLOCK_MONOTONIC, beside_ours.monotonic)?,
        boottime: now(ClockId::CLOCK_BOOTTIME, beside_ours.boottime)?,
    })
}

/// What a clock shows where it is so many nanoseconds before ours.
pub fn now(clock: ClockId, beside_ours: i128) -> Result<Timespec> {
    let time = clock_gettime(clock).with_context(|| format!("read {clock:?}"))?;
    let time = i128::from(time.tv_sec()) * NANOS + i128::from(time.tv_nsec()) + beside_ours;
    let time = u64::try_from(time).context("a clock stands before its boot")?;
    Ok(Timespec {
        tv_sec: time / NANOS as u64,
        tv_nsec: time % NANOS as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_both_clocks() {
        let text = "monotonic      100000         0\nboottime           -2 999999999\n";
        let expected = Offsets {
            monotonic: 100_000 * NANOS,
            boottime: -NANOS - 1,
        };
        assert_eq!(parse_offsets(text), Some(expected));
        assert_eq!(parse_offsets("monotonic 1\n"), None);
    }
}
