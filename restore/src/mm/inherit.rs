//! Memory that a child inherits from the task it is forked from, so that both go on sharing it
//! copy-on-write.
//!
//! Two tasks share a page if their images lead to one place in one pages file at the same address
//! (crust-dump writes what a family shares once; see its mm/cow.rs). Then the maker maps the areas
//! concerned and loads just these pages before it forks; the child keeps what of it fits its own
//! areas, unmaps the rest, and drops pages that it has not. Everything else, and all protections,
//! advice and locks, is planned as for any task, after the forks: here are only ranges. A tree
//! whose images share nothing is planned as if this file were not there.

use super::pages::StoredRun;
use super::vmas::{self, Kind, Vma};
use super::{ADVICE_BEFORE_LOAD, Loads, close, map_call, pages, pages_slot};
use crate::plan::Planner;
use crate::plan::step::{Actor, Arg, Call, Op, Origin, Phase};
use crate::tree::Task;
use crate::tree::kin::{Kin, Role};
use crust_image::ids::VirtPid;
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::slice::from_ref;

type Ranges = Vec<Range<u64>>;

/// What a task does about inherited memory before it forks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Early {
    /// Inherited, and in nobody's place but the maker's.
    unmap: Ranges,
    /// Pages inherited that the task has not.
    drop: Ranges,
    /// Areas, as (index in the list of vmas, range), mapped for the children.
    map: Vec<(Vma, Range<u64>)>,
    /// Pages loaded for the children.
    load: Vec<StoredRun>,
    /// Inherited areas that stay.
    kept: Ranges,
    /// All that is mapped when the children are forked: inherited and own.
    pub mapped: Ranges,
    /// Pages that are in place then.
    pub loaded: Ranges,
    /// All pages in what is mapped then, right ones and wrong ones.
    resident: Ranges,
}

impl Early {
    /// Whether a part of an area was mapped by somebody else, with another protection perhaps.
    pub fn keeps_part_of(&self, vma: &Vma) -> bool {
        !intersect(&self.kept, from_ref(&(vma.start..vma.end))).is_empty()
    }
}

/// A task's memory as the images have it.
struct Space {
    vmas: Vec<Vma>,
    runs: Vec<StoredRun>,
}

/// Plans what is inherited in the whole tree.
pub fn plan_inheritance(planner: &Planner<'_>, kin: &Kin) -> BTreeMap<VirtPid, Early> {
    let makers = task_makers(planner, kin);
    let shared = shared_pages(planner, &makers);
    let mut planned: BTreeMap<VirtPid, Early> = BTreeMap::new();
    if shared.is_empty() {
        return planned;
    }
    let mut needs: BTreeMap<VirtPid, Ranges> = BTreeMap::new();
    let mut spaces: BTreeMap<VirtPid, Space> = BTreeMap::new();
    for (child, maker) in &makers {
        if let Some(pages) = shared.get(child) {
            let need = needs.entry(*maker).or_default();
            *need = unite(need, pages);
        }
        for pid in [child, maker] {
            if let (false, Some(space)) = (spaces.contains_key(pid), space_of(planner, *pid)) {
                spaces.insert(*pid, space);
            }
        }
    }
    let none = Early::default();
    // Makers come before whom they make.
    for node in &kin.nodes {
        let Some(space) = spaces.get(&node.pid) else {
            continue;
        };
        let maker = makers.iter().find(|(child, _)| *child == node.pid);
        let (before, maker_vmas) = match maker {
            Some((_, maker)) => (
                planned.get(maker).unwrap_or(&none),
                spaces.get(maker).map_or(&[][..], |space| &space.vmas),
            ),
            None => (&none, &[][..]),
        };
        let inherited = shared.get(&node.pid).map_or(&[][..], Vec::as_slice);
        let need = needs.get(&node.pid).map_or(&[][..], Vec::as_slice);
        let early = early_of(space, before, maker_vmas, inherited, need);
        planned.insert(node.pid, early);
    }
    planned
}

/// For each live task with an address space of its own the task whose memory it is forked with;
/// helpers in between hand it on.
fn task_makers(planner: &Planner<'_>, kin: &Kin) -> Vec<(VirtPid, VirtPid)> {
    let task = |at: usize| match kin.nodes.get(at).map(|node| &node.role) {
        Some(Role::Task(task)) => planner.tree.tasks.get(*task).filter(|task| task.is_live()),
        _ => None,
    };
    let vm = |task: &Task| task.ids.as_ref().map(|ids| ids.vm_id);
    let mut users: BTreeMap<u32, usize> = BTreeMap::new();
    for id in planner.tree.alive().filter_map(vm) {
        *users.entry(id).or_default() += 1;
    }
    // What one of several tasks did to their address space, all would have done.
    let alone = |task: &Task| vm(task).is_some_and(|id| users.get(&id) == Some(&1));
    let mut makers = Vec::new();
    for (at, node) in kin.nodes.iter().enumerate() {
        let Some(child) = task(at) else { continue };
        let mut maker = node.maker;
        while let Some(above) = maker {
            if let Some(found) = task(above) {
                if alone(found) && alone(child) {
                    makers.push((child.pid, found.pid));
                }
                break;
            }
            maker = kin.nodes.get(above).and_then(|node| node.maker);
        }
    }
    makers
}

fn space_of(planner: &Planner<'_>, pid: VirtPid) -> Option<Space> {
    // What is wrong with them is refused where each task's memory is planned.
    let vmas = vmas::check(&planner.checkpoint.mm(pid)?.vmas, planner.host).ok()?;
    let runs = planner.checkpoint.task_pages(pid).ok()?;
    Some(Space {
        vmas,
        runs: runs.iter().map(StoredRun::from).collect(),
    })
}

/// What each task shares with the one it is forked from; tasks that share nothing are not there.
fn shared_pages(planner: &Planner<'_>, makers: &[(VirtPid, VirtPid)]) -> BTreeMap<VirtPid, Ranges> {
    let files = |pid: VirtPid| -> BTreeSet<(usize, u32)> {
        let runs = planner.checkpoint.task_pages(pid).unwrap_or_default();
        let file = |run: &crust_image::pages::PageRun| (run.source.level, run.source.pages_id.0);
        runs.iter().map(file).collect()
    };
    let mut known: BTreeMap<VirtPid, BTreeSet<(usize, u32)>> = BTreeMap::new();
    let mut shared = BTreeMap::new();
    for (child, maker) in makers {
        for pid in [child, maker] {
            known.entry(*pid).or_insert_with(|| files(*pid));
        }
        // In ordinary images every task has files of its own, and that is all there is to do.
        let disjoint = match (known.get(child), known.get(maker)) {
            (Some(one), Some(other)) => one.is_disjoint(other),
            _ => true,
        };
        if disjoint {
            continue;
        }
        let (Some(one), Some(other)) = (space_of(planner, *child), space_of(planner, *maker))
        else {
            continue;
        };
        let pages = same_places(&one.runs, &other.runs);
        let areas: Ranges = like_areas(&one.vmas, &other.vmas)
            .into_iter()
            .map(|(_, range)| range)
            .collect();
        let pages = intersect(&pages, &areas);
        if !pages.is_empty() {
            shared.insert(*child, pages);
        }
    }
    shared
}

/// Addresses at which both have the same place in the same file.
fn same_places(one: &[StoredRun], other: &[StoredRun]) -> Ranges {
    let mut same = Vec::new();
    let mut others = other.iter().peekable();
    for run in one {
        let end = run.load.to + run.load.len;
        while others
            .next_if(|other| other.load.to + other.load.len <= run.load.to)
            .is_some()
        {}
        // The last may reach into the next run: it is looked at again.
        for other in others.clone().take_while(|other| other.load.to < end) {
            let base = |run: &StoredRun| run.load.offset.wrapping_sub(run.load.to);
            if run.source == other.source && base(run) == base(other) {
                let start = run.load.to.max(other.load.to);
                same.push(start..end.min(other.load.to + other.load.len));
            }
        }
    }
    same
}

/// Where the areas of two tasks lie over each other and one can pass for the other: private memory
/// made by the same flags of mmap, loaded under the same advice. The first's areas are told.
fn like_areas(one: &[Vma], other: &[Vma]) -> Vec<(Vma, Range<u64>)> {
    let mut like = Vec::new();
    let mut first = 0;
    for vma in one.iter().filter(|vma| is_inheritable(vma)) {
        while other
            .get(first)
            .is_some_and(|other| other.end <= vma.start && other.kind != Kind::Guard)
        {
            first += 1;
        }
        let over = other
            .iter()
            .skip(first)
            .take_while(|other| other.start < vma.end);
        for other in over.filter(|other| is_inheritable(other) && other.end > vma.start) {
            let early = |vma: &Vma| vma.madv & ADVICE_BEFORE_LOAD;
            if vma.map_flags() == other.map_flags() && early(vma) == early(other) {
                like.push((*vma, vma.start.max(other.start)..vma.end.min(other.end)));
            }
        }
    }
    like
}

fn is_inheritable(vma: &Vma) -> bool {
    let flags = libc::MAP_PRIVATE as u32 | libc::MAP_HUGETLB as u32;
    vma.kind == Kind::Anon && vma.flags & flags == libc::MAP_PRIVATE as u32
}

/// `before` is what its maker has when it forks, with these areas; `inherited` are the pages that
/// the task then has rightly, `need` those that its own children shall have.
fn early_of(
    space: &Space,
    before: &Early,
    maker_vmas: &[Vma],
    inherited: &[Range<u64>],
    need: &[Range<u64>],
) -> Early {
    let touches =
        |range: &Range<u64>, set: &[Range<u64>]| !intersect(from_ref(range), set).is_empty();
    let like = like_areas(&space.vmas, maker_vmas);
    let useful = like
        .into_iter()
        .filter(|(vma, _)| touches(&(vma.start..vma.end), inherited));
    let like: Ranges = useful.map(|(_, range)| range).collect();
    let kept = intersect(&before.mapped, &like);
    let stored: Ranges = space
        .runs
        .iter()
        .map(|run| run.load.to..run.load.to + run.load.len)
        .collect();
    let found = intersect(&before.resident, &kept);
    let drop = subtract(&found, &stored);
    let for_children = space
        .vmas
        .iter()
        .filter(|vma| is_inheritable(vma) && touches(&(vma.start..vma.end), need));
    let own: Vec<(Vma, Range<u64>)> = for_children
        .flat_map(|vma| {
            without(vma.start..vma.end, &kept)
                .into_iter()
                .map(|range| (*vma, range))
        })
        .collect();
    let load = subtract(need, inherited);
    let own_ranges: Ranges = own.iter().map(|(_, range)| range.clone()).collect();
    Early {
        unmap: subtract(&before.mapped, &kept),
        mapped: unite(&kept, &own_ranges),
        loaded: unite(&intersect(inherited, &kept), &load),
        resident: unite(&subtract(&found, &drop), &load),
        load: cut(&space.runs, &load),
        map: own,
        drop,
        kept,
    }
}

/// The parts of runs that lie in these ranges.
pub fn cut(runs: &[StoredRun], ranges: &[Range<u64>]) -> Vec<StoredRun> {
    let of_run = |run: &StoredRun| {
        let run = *run;
        let span = run.load.to..run.load.to + run.load.len;
        let parts = intersect(from_ref(&span), ranges);
        parts.into_iter().map(move |part| {
            let mut piece = run;
            piece.load.offset += part.start - run.load.to;
            piece.load.to = part.start;
            piece.load.len = part.end - part.start;
            piece
        })
    };
    runs.iter().flat_map(of_run).collect()
}

/// The parts of runs that lie outside of these ranges.
pub fn cut_out(runs: &[StoredRun], ranges: &[Range<u64>]) -> Vec<StoredRun> {
    let all: Ranges = runs
        .iter()
        .map(|run| run.load.to..run.load.to + run.load.len)
        .collect();
    cut(runs, &subtract(&all, ranges))
}

/// Pushes the steps of one task, in front of its forks.
pub fn plan_early(planner: &mut Planner<'_>, pid: VirtPid) {
    let Some(early) = planner.mm.early.get(&pid).cloned() else {
        return;
    };
    let actor = Actor::Task(pid);
    let image = format!("mm-{pid}.img");
    let origin = |what: &str| Origin::new(image.clone(), Some(0), format!("{what} of task {pid}"));
    let span = |range: &Range<u64>| {
        vec![
            Arg::Hex(range.start),
            Arg::Int((range.end - range.start) as i64),
        ]
    };
    for range in &early.unmap {
        let call = Call::new("munmap", libc::SYS_munmap, span(range));
        planner.call(
            Phase::Fork,
            actor,
            call,
            origin("memory of the parent that is none"),
        );
    }
    for range in &early.drop {
        let mut args = span(range);
        args.push(Arg::named("MADV_DONTNEED", libc::MADV_DONTNEED));
        let call = Call::new("madvise", libc::SYS_madvise, args);
        planner.call(
            Phase::Fork,
            actor,
            call,
            origin("pages of the parent that are none"),
        );
    }
    for (vma, range) in &early.map {
        let part = Vma {
            start: range.start,
            end: range.end,
            ..*vma
        };
        let what = format!("vma {} {}, for its children,", vma.index, part.range());
        planner.call(
            Phase::Fork,
            actor,
            map_call(&part, true, false),
            origin(&what),
        );
        for call in super::advice_before_load(&part) {
            planner.call(Phase::Fork, actor, call, origin(&what));
        }
    }
    let mut loads = Loads::new();
    for run in &early.load {
        pages::add(loads.entry(run.source).or_default(), run.load);
    }
    for (source, mut runs) in loads {
        runs.sort_by_key(|run| run.offset);
        let slot = pages_slot(planner, source);
        let what = format!(
            "pages for the children of task {pid} in pages-{}.img",
            source.pages_id
        );
        let origin = Origin::new(format!("pagemap-{pid}.img"), None, what);
        let take = Op::take(slot, 0);
        planner.push(Phase::Fork, actor, take, origin.clone());
        for load in super::load_ops(&runs, slot) {
            planner.push(Phase::Fork, actor, load, origin.clone());
        }
        planner.call(Phase::Fork, actor, close(0), origin);
    }
}

/// Each range of one set with those of the other that overlap it. Sets are ascending and disjoint.
fn overlaps<'s>(
    one: &'s [Range<u64>],
    mut other: &'s [Range<u64>],
) -> impl Iterator<Item = (&'s Range<u64>, &'s [Range<u64>])> {
    one.iter().map(move |range| {
        let before = other.partition_point(|other| other.end <= range.start);
        other = other.get(before..).unwrap_or_default();
        let within = other.partition_point(|other| other.start < range.end);
        (range, other.get(..within).unwrap_or_default())
    })
}

/// What is in both sets.
fn intersect(one: &[Range<u64>], other: &[Range<u64>]) -> Ranges {
    overlaps(one, other)
        .flat_map(|(range, others)| {
            let part = |other: &Range<u64>| range.start.max(other.start)..range.end.min(other.end);
            others.iter().map(part)
        })
        .collect()
}

/// What of a range is not in a set.
pub fn without(range: Range<u64>, set: &[Range<u64>]) -> Ranges {
    subtract(from_ref(&range), set)
}

/// What is in the first set and not in the other.
fn subtract(one: &[Range<u64>], other: &[Range<u64>]) -> Ranges {
    let mut left = Vec::new();
    for (range, others) in overlaps(one, other) {
        let mut at = range.start;
        for other in others {
            if at < other.start {
                left.push(at..other.start);
            }
            at = at.max(other.end);
        }
        if at < range.end {
            left.push(at..range.end);
        }
    }
    left
}

fn unite(one: &[Range<u64>], other: &[Range<u64>]) -> Ranges {
    let mut all = [one, other].concat();
    all.sort_by_key(|range| range.start);
    let mut united: Ranges = Vec::new();
    for range in all {
        match united.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => united.push(range),
        }
    }
    united
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // a set of one range is meant
mod tests {
    use super::super::pages::Source;
    use super::*;
    use crate::plan::step::PageLoad;

    fn vma(range: Range<u64>) -> Vma {
        Vma {
            index: 0,
            start: range.start,
            end: range.end,
            pgoff: 0,
            prot: 3,
            flags: 0x22,
            open_flags: 0,
            madv: 0,
            kind: Kind::Anon,
        }
    }

    fn run(pages_id: u32, to: u64, offset: u64, len: u64) -> StoredRun {
        StoredRun {
            source: Source { level: 1, pages_id },
            load: PageLoad { to, offset, len },
        }
    }

    #[test]
    fn the_same_place_is_the_same_page() {
        let parent = [run(1, 0x1000, 0, 0x4000), run(2, 0x8000, 0, 0x1000)];
        let child = [run(1, 0x2000, 0x1000, 0x2000), run(3, 0x8000, 0, 0x1000)];
        assert_eq!(same_places(&child, &parent), [0x2000..0x4000]);
        let moved = [run(1, 0x3000, 0x1000, 0x1000)];
        assert_eq!(same_places(&moved, &parent), []);
        let pieces = [run(1, 0x1000, 0, 0x1000), run(1, 0x2000, 0x1000, 0x1000)];
        assert_eq!(
            same_places(&pieces, &parent),
            [0x1000..0x2000, 0x2000..0x3000]
        );
    }

    /// A child whose area has moved its end and which has dropped a page.
    #[test]
    fn a_child_keeps_what_fits() {
        let maker = Space {
            vmas: vec![vma(0x1000..0x9000), vma(0xa000..0xb000)],
            runs: vec![run(1, 0x1000, 0, 0x8000), run(1, 0xa000, 0x8000, 0x1000)],
        };
        let need = [0x1000..0x4000, 0xa000..0xb000];
        let none = Early::default();
        let first = early_of(&maker, &none, &[], &[], &need);
        assert_eq!(first.mapped, [0x1000..0x9000, 0xa000..0xb000]);
        assert_eq!(first.loaded, need);
        assert_eq!(
            first.load,
            [run(1, 0x1000, 0, 0x3000), run(1, 0xa000, 0x8000, 0x1000)]
        );
        let child = Space {
            vmas: vec![vma(0x1000..0x6000)],
            runs: vec![run(1, 0x1000, 0, 0x2000), run(7, 0x5000, 0, 0x1000)],
        };
        let inherited = [0x1000..0x3000];
        let second = early_of(&child, &first, &maker.vmas, &inherited, &[]);
        assert_eq!(second.unmap, [0x6000..0x9000, 0xa000..0xb000]);
        assert_eq!(second.drop, [0x3000..0x4000]);
        assert_eq!(second.mapped, [0x1000..0x6000]);
        assert_eq!(second.loaded, inherited);
        assert!(second.load.is_empty() && second.map.is_empty());
        assert_eq!(
            cut_out(&child.runs, &second.loaded),
            [run(7, 0x5000, 0, 0x1000)]
        );
        let strange = Space {
            vmas: vec![Vma {
                flags: 0x4022,
                ..vma(0x1000..0x6000)
            }],
            runs: child.runs.clone(),
        };
        let third = early_of(&strange, &first, &maker.vmas, &[], &[]);
        assert_eq!(third.unmap, first.mapped);
    }
}
