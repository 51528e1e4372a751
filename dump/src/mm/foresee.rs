//! The areas of big tasks, read before the freeze.
//!
//! What the owner asked of an area stands in smaps alone, and there the kernel walks through all of
//! a task's pages: 17 milliseconds for a gigabyte, as long as a copy-on-write copy takes. So for
//! `--snapshot` it is read while the tree runs still. In the freeze maps, which costs nothing, must
//! say that the areas are the same, and status that nothing is locked (the one property that a copy
//! does not have); otherwise smaps is read once more. When the tree goes on, smaps of the copy shows
//! whether any area had been advised anew in between, without any other change: then the dump fails.

use anyhow::{Context, Result, bail};
use crust_process::pid::HostPid;
use crust_process::proc::ProcDir;
use crust_process::proc::children::parse_children;
use crust_process::proc::maps::parse_maps;
use crust_process::proc::smaps::{SmapsVma, VmFlag, VmFlags, parse_smaps};
use std::collections::HashMap;

/// What a fork's areas do not have of its parent's (dup_mmap of kernel/fork.c), and what changes by
/// itself.
const NOT_INHERITED: [VmFlag; 6] = [
    VmFlag::Locked,
    VmFlag::LockOnFault,
    VmFlag::SoftDirty,
    VmFlag::UffdMissing,
    VmFlag::UffdWp,
    VmFlag::UffdMinor,
];

/// The areas of tasks as they were before the freeze.
#[derive(Debug, Default)]
pub struct Foreseen(HashMap<HostPid, Before>);

#[derive(Debug)]
struct Before {
    /// Of the task: a later one with its pid is another.
    start_time: u64,
    areas: Vec<SmapsVma>,
}

/// Reads the areas of the tasks below `root` that have so many private pages. What cannot be read is
/// read in the freeze.
pub fn foresee(root: HostPid, least_pages: u64) -> Foreseen {
    let mut foreseen = Foreseen::default();
    let mut todo = vec![root];
    while let Some(pid) = todo.pop() {
        let Ok(dir) = ProcDir::open(pid) else {
            continue;
        };
        todo.extend(children(&dir));
        if private_pages(&dir).unwrap_or(0) >= least_pages
            && let Some(before) = look(&dir)
        {
            foreseen.0.insert(pid, before);
        }
    }
    foreseen
}

fn children(dir: &ProcDir) -> Vec<HostPid> {
    let tids = dir.tids().unwrap_or_default();
    let texts = tids
        .iter()
        .filter_map(|tid| dir.read(&format!("task/{tid}/children")).ok());
    let pids = texts
        .filter_map(|text| parse_children(&text).ok())
        .flatten();
    pids.filter_map(HostPid::new).collect()
}

fn look(dir: &ProcDir) -> Option<Before> {
    let start_time = crate::track::start_time(dir.pid()).ok()?;
    let areas = parse_smaps(&dir.read("smaps").ok()?).ok()?;
    let lasts = |area: &SmapsVma| NOT_INHERITED.iter().all(|flag| !area.flags.has(*flag));
    areas
        .iter()
        .all(lasts)
        .then_some(Before { start_time, areas })
}

/// Pages of a task that are no file's: of statm the resident ones less the shared ones.
pub fn private_pages(dir: &ProcDir) -> Option<u64> {
    let text = dir.read("statm").ok()?;
    let text = String::from_utf8_lossy(&text);
    let mut words = text.split_ascii_whitespace().skip(1);
    let mut word = || words.next()?.parse::<u64>().ok();
    Some(word()?.saturating_sub(word()?))
}

impl Foreseen {
    /// The areas of a frozen task, if they are still as they were, as far as can be seen at once.
    pub fn areas(&self, dir: &ProcDir) -> Option<Vec<SmapsVma>> {
        let before = self.0.get(&dir.pid())?;
        let maps = parse_maps(&dir.read("maps").ok()?).ok()?;
        let same = before.areas.iter().map(|area| &area.vma).eq(&maps);
        let start_time = crate::track::start_time(dir.pid()).ok()?;
        let as_was = same && start_time == before.start_time && locks_nothing(dir);
        as_was.then(|| before.areas.clone())
    }
}

/// VmLck of status.
fn locks_nothing(dir: &ProcDir) -> bool {
    let status = dir.read("status").unwrap_or_default();
    let mut lines = status.split(|byte| *byte == b'\n');
    let locked = lines.find_map(|line| line.strip_prefix(b"VmLck:"));
    locked.is_some_and(|size| size.trim_ascii() == b"0 kB")
}

/// Fails if an area was not as foreseen. `dir` is that of the frozen task or of a copy of it.
pub fn expect_as_foreseen(areas: &[SmapsVma], dir: &ProcDir) -> Result<()> {
    let now = parse_smaps(&dir.read("smaps")?).context("read smaps")?;
    if let Some(area) = first_changed(areas, &now) {
        bail!(
            "the area {:x}-{:x} was advised anew (madvise) in the moment before the freeze: dump again",
            area.vma.start,
            area.vma.end
        );
    }
    Ok(())
}

/// The first area that is not as it was; one that no copy has is not expected there.
fn first_changed<'a>(before: &'a [SmapsVma], now: &[SmapsVma]) -> Option<&'a SmapsVma> {
    let now: HashMap<u64, &SmapsVma> = now.iter().map(|area| (area.vma.start, area)).collect();
    let is_same = |area: &SmapsVma| match now.get(&area.vma.start) {
        None => area.flags.has(VmFlag::DontCopy),
        Some(now) => {
            now.vma.end == area.vma.end
                && now.vma.perms == area.vma.perms
                && now.protection_key == area.protection_key
                && inherited(&now.flags) == inherited(&area.flags)
        }
    };
    before.iter().find(|area| !is_same(area))
}

fn inherited(flags: &VmFlags) -> (Vec<VmFlag>, &[Vec<u8>]) {
    let known = flags.iter().filter(|flag| !NOT_INHERITED.contains(flag));
    (known.collect(), &flags.unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn areas(text: &str) -> Vec<SmapsVma> {
        parse_smaps(text.as_bytes()).expect("parses")
    }

    #[test]
    fn what_a_fork_loses_is_no_change_and_advice_is() {
        const LINE: &str =
            "7f00000000-7f00002000 rw-p 00000000 00:00 0 \nVmFlags: rd wr mr mw me ac";
        const GONE: &str = "7f00010000-7f00012000 rw-p 00000000 00:00 0 \nVmFlags: rd wr dc\n";
        let before = areas(&format!("{LINE} lo\n{GONE}"));
        assert_eq!(
            first_changed(&before, &areas(&format!("{LINE} sd\n"))),
            None
        );
        for (now, start) in [
            (format!("{LINE} wf\n"), 0x7f00000000),
            (format!("{LINE} zz\n"), 0x7f00000000),
            (GONE.to_owned(), 0x7f00000000),
            (format!("{LINE}\n{}", GONE.replace(" dc", "")), 0x7f00010000),
        ] {
            let changed = first_changed(&before, &areas(&now)).map(|area| area.vma.start);
            assert_eq!(changed, Some(start), "{now}");
        }
    }
}
