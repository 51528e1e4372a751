//! Shared anonymous memory named by its inode (status 0x100): one object for all the vmas of all
//! tasks that name it. The broker makes the object and fills it; tasks map it like a file.
//!
//! Its size is nowhere in the images: it is what the vmas show of it. Objects stored as memfds
//! (status 0x4081) are the files room's.

use super::pages::{self, StoredRun};
use super::vmas::{self, Kind};
use super::{Loads, pages_slot};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Op, Origin, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crate::tree::Task;
use crust_image::ids::ShmId;
use std::collections::BTreeMap;

/// Makes and fills every object that a vma names.
pub(super) fn plan(planner: &mut Planner<'_>, tasks: &[Task]) {
    for (shmid, (size, huge, origin)) in objects(planner, tasks) {
        let slot = planner.slot();
        planner.mm.shared.insert(shmid, slot);
        let routine = Routine::SharedAnon { size, huge, slot };
        planner.push(Phase::Open, Actor::Broker, Op::Routine(routine), origin);
        fill(planner, ShmId(shmid), size, slot);
    }
}

/// The objects, each with the size its vmas ask for, the flags of huge pages, and the first of these.
fn objects(planner: &Planner<'_>, tasks: &[Task]) -> BTreeMap<u64, (u64, u32, Origin)> {
    let mut objects = BTreeMap::new();
    for task in tasks {
        let Some(entry) = planner.checkpoint.mm(task.pid) else {
            continue;
        };
        // Bad vmas are refused where each task's memory is planned.
        let Ok(vmas) = vmas::check(&entry.vmas, planner.host) else {
            continue;
        };
        for vma in vmas {
            let Kind::SharedAnon(shmid) = vma.kind else {
                continue;
            };
            let origin = || {
                let what = format!("shared memory {shmid} of vma {}", vma.index);
                Origin::new(format!("mm-{}.img", task.pid), Some(0), what)
            };
            let object = objects
                .entry(shmid)
                .or_insert_with(|| (0, vma.huge_flags(), origin()));
            object.0 = object.0.max(vma.pgoff + vma.len());
        }
    }
    objects
}

/// Copies the stored pages of an object into its file.
pub fn fill(planner: &mut Planner<'_>, shmid: ShmId, size: u64, to: SlotId) {
    fill_in(planner, Phase::Open, shmid, size, to);
}

/// The same for an object that is made in a later phase.
pub fn fill_in(planner: &mut Planner<'_>, phase: Phase, shmid: ShmId, size: u64, to: SlotId) {
    let origin = Origin::new(
        format!("pagemap-shmem-{shmid}.img"),
        None,
        format!("pages of shared memory {shmid}"),
    );
    let runs: Vec<StoredRun> = match planner.checkpoint.shmem_pages(shmid) {
        Ok(runs) => runs.iter().map(StoredRun::from).collect(),
        Err(error) => {
            planner.refuse(Refusal::new(origin, error.to_string()));
            return;
        }
    };
    let mut loads = Loads::new();
    for run in runs {
        if run
            .load
            .to
            .checked_add(run.load.len)
            .is_none_or(|end| end > size)
        {
            let why = format!("pages at {:#x} lie behind the end {size:#x}", run.load.to);
            planner.refuse(Refusal::new(origin, why));
            return;
        }
        pages::add(loads.entry(run.source).or_default(), run.load);
    }
    for (source, runs) in loads {
        let from = pages_slot(planner, source);
        let copy = Op::CopyPages { from, to, runs };
        planner.push(phase, Actor::Broker, copy, origin.clone());
    }
}
