//! Memory that relatives share copy-on-write is written once.
//!
//! The images have a pagemap for each task, and every page of it in a pages file of its own: a
//! family of 21 tasks that share 200 MiB would take 4 GiB. But a page may also be in the *parent*
//! dump, looked up by address in the pagemap of the same name there. So what a family shares goes
//! into a parent made for it, the directory `shared-pages`: one pages file for the task that the
//! others were forked from, and for each of them a pagemap that leads to this file. CRIU reads it
//! as any chain of dumps; crust-restore sees that the pages of two tasks are one place in one file
//! and lets the child inherit them.
//!
//! Pages are the same when they are in the same frame at the same address in parent and child.
//! Which areas to ask for tells smaps, so a task without relatives costs nothing. A page that the
//! parent has written since, and siblings still share, is each sibling's own. Below
//! [`LEAST_PAGES`] a family is written as CRIU would.

use crate::collect::{Collected, Subject, for_each_task};
use crate::context::Context;
use crate::interrupt::Interrupt;
use crate::mm::pages::{Counts, create_pagemap};
use crate::mm::ranges::{intersect, join};
use crate::mm::source::MemoryOf;
use crate::mm::vmas::Backing;
use anyhow::{Context as _, Result};
use crust_image::pages::PAGE_SIZE;
use crust_image::{ImageDir, ImageSink, Kind};
use crust_process::pagemap::{PageRun, Pagemap, PrivateOf};
use crust_process::pid::HostPid;
use crust_process::proc::ProcDir;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

/// The directory below the images dir.
pub const DIRECTORY: &str = "shared-pages";
/// A family that would save less, 1 MiB, is written as always.
const LEAST_PAGES: u64 = 256;
/// Pages compared at once.
const PIECE: u64 = 16384;

/// A task and those that share memory with it because they were forked from it.
#[derive(Debug)]
struct Family {
    /// The index of the task in [`Collected::subjects`].
    owner: usize,
    /// What the others share with it.
    pages: Vec<Range<u64>>,
    /// The others, with what each shares.
    members: Vec<(usize, Vec<Range<u64>>)>,
}

/// What all families share, and what is left for the task's own images.
#[derive(Debug, Default)]
pub struct Families(Vec<Family>);

/// Finds the families of the frozen tree. `memory` says of each subject where its pages are looked
/// at and read; one that is nowhere belongs to no family.
pub fn collect_families(
    ctx: &Context,
    collected: &Collected,
    memory: &[Option<MemoryOf>],
) -> Result<Families> {
    let subjects = &collected.subjects;
    let index: HashMap<HostPid, usize> = subjects
        .iter()
        .enumerate()
        .filter_map(|(at, subject)| Some((ctx.tasks.get(subject.task)?.pid, at)))
        .collect();
    let memory_of = |subject: usize| memory.get(subject).copied().flatten();
    let parent_of = |subject: &Subject| {
        let parent = HostPid::new(ctx.tasks.get(subject.task)?.ppid)?;
        let parent = index.get(&parent).copied()?;
        memory_of(parent).is_some().then_some(parent)
    };
    let mut users: HashMap<u32, usize> = HashMap::new();
    for subject in subjects {
        *users.entry(subject.ids.vm_id).or_default() += 1;
    }
    // The whole of an address space with several tasks is written once as it is.
    let is_alone = |at: usize| {
        let subject = subjects.get(at);
        subject.is_some_and(|subject| users.get(&subject.ids.vm_id) == Some(&1))
    };
    let pairs: Vec<(usize, usize)> = subjects
        .iter()
        .enumerate()
        .filter(|(at, subject)| memory_of(*at).is_some() && is_alone(*at) && shares_memory(subject))
        .filter_map(|(at, subject)| Some((at, parent_of(subject)?)))
        .filter(|(_, parent)| is_alone(*parent))
        .collect();
    if pairs.is_empty() {
        return Ok(Families::default());
    }
    let shared = for_each_task(&pairs, |(child, parent)| {
        let of = |at: usize| Some((subjects.get(at)?, memory_of(at)?.dir));
        let pair = of(*child).zip(of(*parent));
        pair.map_or(Ok(Vec::new()), |(child, parent)| {
            shared_pages(child, parent).context("compare the pages of relatives")
        })
    })?;
    let mut kin = Kin::default();
    for ((child, parent), pages) in pairs.into_iter().zip(shared) {
        if !pages.is_empty() {
            kin.children.entry(parent).or_default().push(child);
            kin.shared.insert(child, pages);
        }
    }
    Ok(Families(kin.families(subjects.len())))
}

/// Who shares what with its parent.
#[derive(Debug, Default)]
struct Kin {
    children: HashMap<usize, Vec<usize>>,
    shared: HashMap<usize, Vec<Range<u64>>>,
}

impl Kin {
    /// From the root down: whoever saves enough owns a family, and a member of one owns none.
    fn families(&self, tasks: usize) -> Vec<Family> {
        let mut taken = HashSet::new();
        let mut families = Vec::new();
        for owner in 0..tasks {
            if taken.contains(&owner) || !self.children.contains_key(&owner) {
                continue;
            }
            let mut members = Vec::new();
            self.gather(owner, None, &mut members);
            let saved: u64 = members.iter().map(|(_, pages)| page_count(pages)).sum();
            if saved < LEAST_PAGES {
                continue;
            }
            taken.extend(members.iter().map(|(member, _)| *member));
            let mut all: Vec<Range<u64>> = Vec::new();
            for (_, pages) in &members {
                all = unite(all, pages);
            }
            families.push(Family {
                owner,
                pages: all,
                members,
            });
        }
        families
    }

    /// What the descendants of `of` share with the owner, of `within` only.
    fn gather(
        &self,
        of: usize,
        within: Option<&[Range<u64>]>,
        members: &mut Vec<(usize, Vec<Range<u64>>)>,
    ) {
        for child in self.children.get(&of).into_iter().flatten() {
            let Some(shared) = self.shared.get(child) else {
                continue;
            };
            let pages = within.map_or_else(|| shared.clone(), |own| intersect(shared, own));
            if !pages.is_empty() {
                self.gather(*child, Some(&pages), members);
                members.push((*child, pages));
            }
        }
    }
}

fn page_count(pages: &[Range<u64>]) -> u64 {
    pages
        .iter()
        .map(|range| (range.end - range.start) / PAGE_SIZE)
        .sum()
}

/// What is in one of the sets, or in both.
fn unite(one: Vec<Range<u64>>, other: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut all = one;
    all.extend_from_slice(other);
    all.sort_by_key(|range| range.start);
    let mut united: Vec<Range<u64>> = Vec::new();
    for range in all {
        match united.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => united.push(range),
        }
    }
    united
}

/// The areas with memory of a task that another one maps too.
fn sharing(subject: &Subject) -> impl Iterator<Item = Range<u64>> + '_ {
    let shared: HashSet<u64> = subject
        .facts
        .areas
        .iter()
        .filter(|area| area.shared_kb.unwrap_or(0) > 0)
        .map(|area| area.vma.start)
        .collect();
    subject
        .vmas
        .iter()
        .filter(move |vma| vma.backing == Backing::Anonymous && !vma.shared)
        .filter(move |vma| shared.contains(&vma.range.start))
        .map(|vma| vma.range.clone())
}

fn shares_memory(subject: &Subject) -> bool {
    sharing(subject).next().is_some()
}

/// The pages that are the same in both, ascending.
fn shared_pages(
    (child, child_dir): (&Subject, &ProcDir),
    (parent, parent_dir): (&Subject, &ProcDir),
) -> Result<Vec<Range<u64>>> {
    let of_parent: Vec<Range<u64>> = sharing(parent).collect();
    let mut child_map = Pagemap::open(child_dir)?;
    let own = Pagemap::open(child_dir)?;
    let parents = Pagemap::open(parent_dir)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut same = Vec::new();
    for area in intersect(&sharing(child).collect::<Vec<_>>(), &of_parent) {
        for run in child_map.pages_to_dump(area, PrivateOf::Anonymous) {
            let PageRun::Dump { start, end } = run? else {
                continue;
            };
            for start in (start..end).step_by((PIECE * PAGE_SIZE) as usize) {
                let piece = start..end.min(start + PIECE * PAGE_SIZE);
                own.shared_frames(piece.clone(), &mut ours)?;
                parents.shared_frames(piece.clone(), &mut theirs)?;
                let frames = ours
                    .iter()
                    .zip(&theirs)
                    .zip(piece.step_by(PAGE_SIZE as usize));
                let equal = frames.filter(|((one, other), _)| **one != 0 && one == other);
                same.extend(equal.map(|(_, page)| page..page + PAGE_SIZE));
            }
        }
    }
    Ok(join(same))
}

impl Families {
    /// Whether nothing is shared.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What of a task, by its index, is in the shared directory.
    pub fn pages_of(&self, subject: usize) -> Vec<Range<u64>> {
        let own = |family: &Family| match family.owner == subject {
            true => Some(family.pages.clone()),
            false => {
                let mut members = family.members.iter();
                members
                    .find(|(member, _)| *member == subject)
                    .map(|(_, pages)| pages.clone())
            }
        };
        self.0.iter().find_map(own).unwrap_or_default()
    }

    /// Writes the pagemaps and pages of all families; the inventory is the caller's.
    pub fn write(
        &self,
        ctx: &Context,
        images: &ImageDir,
        collected: &Collected,
        memory: &[Option<MemoryOf>],
        interrupt: &Interrupt,
    ) -> Result<u64> {
        let numbered: Vec<(u32, &Family)> = (1..).zip(&self.0).collect();
        let subjects = &collected.subjects;
        let view = |subject: usize| ctx.tasks.get(subjects.get(subject)?.task);
        let counts = for_each_task(&numbered, |(pages_id, family)| {
            let owner = memory.get(family.owner).copied().flatten();
            let owner = owner.context("an owner without memory")?;
            let file = images.create_raw_file(Kind::Pages, Some(u64::from(*pages_id)))?;
            let nothing = std::fs::File::open("/dev/null")?;
            let check = |pages| interrupt.check_before(pages);
            let mut written = Counts::default();
            let owners = std::iter::once(family.owner);
            for subject in owners.chain(family.members.iter().map(|(member, _)| *member)) {
                let task = view(subject).context("a member without a view")?;
                let name = (Kind::Pagemap, u64::from(task.virt));
                let is_owner = subject == family.owner;
                let out = if is_owner { &file } else { &nothing };
                let mut image = create_pagemap(images, name, *pages_id, out, owner.mem, &check)?;
                for range in &family.pages {
                    let pages = (range.end - range.start) / PAGE_SIZE;
                    if is_owner {
                        image.add(range.start, pages, true)?;
                    } else {
                        image.add_written(range.start, pages, true)?;
                    }
                }
                let counts = image.finish()?;
                written = if is_owner { counts } else { written };
            }
            Ok(written.written)
        })?;
        Ok(counts.into_iter().sum())
    }
}

/// Makes the directory for what families share.
pub fn create_directory(images: &Path) -> Result<ImageDir> {
    let path = images.join(DIRECTORY);
    std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(ImageDir::open(&path)?)
}

/// Opens the one that an older dump, or one that failed, has left.
pub fn open_directory(images: &Path) -> Result<Option<ImageDir>> {
    let path = images.join(DIRECTORY);
    // A link would lead to somebody else's images.
    if !std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
        return Ok(None);
    }
    Ok(Some(ImageDir::open(&path)?))
}

/// Removes it with its images.
pub fn remove_directory(images: &Path) -> Result<()> {
    let Some(directory) = open_directory(images)? else {
        return Ok(());
    };
    directory.remove_images()?;
    let path = directory.path();
    std::fs::remove_dir(path).with_context(|| format!("remove {}", path.display()))
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // a set of one range is meant
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// 0 forks 1 and 2, 1 forks 3; 4 stands alone with its child 5.
    fn kin(shared: [(usize, Range<u64>); 4]) -> Kin {
        Kin {
            children: HashMap::from([(0, vec![1, 2]), (1, vec![3]), (4, vec![5])]),
            shared: shared
                .into_iter()
                .map(|(child, pages)| (child, vec![pages]))
                .collect(),
        }
    }

    #[test]
    fn grandchildren_share_what_their_parents_do() {
        let shared = [
            (1, 0..2 * MIB),
            (2, MIB..3 * MIB),
            (3, MIB..8 * MIB),
            (5, 0..4096),
        ];
        let families = kin(shared).families(6);
        assert_eq!(families.len(), 1, "one page is no family");
        assert_eq!(families[0].pages, [0..3 * MIB]);
        let of = |task| {
            Families(
                kin([
                    (1, 0..2 * MIB),
                    (2, MIB..3 * MIB),
                    (3, MIB..8 * MIB),
                    (5, 0..4096),
                ])
                .families(6),
            )
            .pages_of(task)
        };
        assert_eq!(of(3), [MIB..2 * MIB]);
        assert_eq!(of(0), [0..3 * MIB]);
        assert!(of(5).is_empty());
    }

    #[test]
    fn a_family_too_small_leaves_its_members_to_their_own() {
        let shared = [(1, 0..4096), (2, 0..4096), (3, MIB..8 * MIB), (5, 0..4096)];
        let families = kin(shared).families(6);
        assert_eq!(families.len(), 1);
        assert_eq!(
            (families[0].owner, families[0].pages.as_slice()),
            (1, &[MIB..8 * MIB][..])
        );
    }
}
