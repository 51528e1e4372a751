//! The tree: pstree.img and the images that bear the id of a task or thread.

use super::{Loader, TASK_DEAD, old};
use crate::{
    error::{Error, Result},
    ids::VirtPid,
    kind::Kind,
};
use crust_proto::criu::{CoreEntry, FsEntry, MmEntry, PstreeEntry, TaskKobjIdsEntry};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// What is stored by task or thread.
pub struct Tree {
    pub pstree: Vec<PstreeEntry>,
    pub cores: BTreeMap<VirtPid, CoreEntry>,
    pub ids: BTreeMap<VirtPid, TaskKobjIdsEntry>,
    pub mms: BTreeMap<VirtPid, MmEntry>,
    pub fs: BTreeMap<VirtPid, FsEntry>,
}

pub fn load(loader: &Loader<'_>) -> Result<Tree> {
    let mut reader = loader
        .open(Kind::Pstree, None)?
        .ok_or_else(|| Error::Missing {
            file: loader.shown(Kind::Pstree, None),
        })?;
    let mut tree = Tree {
        pstree: reader.rest()?,
        cores: BTreeMap::new(),
        ids: BTreeMap::new(),
        mms: BTreeMap::new(),
        fs: BTreeMap::new(),
    };
    // A pid that is none is left to the planner.
    let entries = tree.pstree.iter();
    let entries: Vec<_> = entries
        .filter_map(|entry| Some((VirtPid::new(entry.pid)?, entry)))
        .collect();
    let parts = each(&entries, |(pid, pstree)| load_task(loader, *pid, pstree))?;
    for part in parts {
        tree.cores.extend(part.cores);
        tree.ids.extend(part.ids);
        tree.mms.extend(part.mm);
        tree.fs.extend(part.fs);
    }
    Ok(tree)
}

/// Loads many things on all processors, a few by the caller alone.
fn each<T: Sync, R: Send>(
    things: &[T],
    load: impl Fn(&T) -> Result<R> + Send + Sync,
) -> Result<Vec<R>> {
    const WORTH_THREADS: usize = 32;
    if things.len() < WORTH_THREADS {
        return things.iter().map(load).collect();
    }
    let things = things.par_iter().with_min_len(WORTH_THREADS / 2);
    things.map(load).collect()
}

/// The images of one task.
#[derive(Default)]
struct Part {
    cores: Vec<(VirtPid, CoreEntry)>,
    ids: Option<(VirtPid, TaskKobjIdsEntry)>,
    mm: Option<(VirtPid, MmEntry)>,
    fs: Option<(VirtPid, FsEntry)>,
}

fn load_task(loader: &Loader<'_>, pid: VirtPid, pstree: &PstreeEntry) -> Result<Part> {
    let number = Some(u64::from(pid.get()));
    let mut leader = load_core(loader, pid)?;
    let dead = leader
        .tc
        .as_ref()
        .is_some_and(|tc| tc.task_state == TASK_DEAD);
    let mut part = Part::default();
    // A zombie has nothing but its core; whatever bears its number is of an older task.
    if !dead {
        old::complete_leader(loader, pid, &mut leader)?;
        // Before it had an image of its own the message was in the core.
        let ids = loader.entry_of(Kind::Ids, number)?.or(leader.ids);
        part.ids = ids.map(|ids| (pid, ids));
        part.fs = loader.entry_of(Kind::Fs, number)?.map(|fs| (pid, fs));
        if let Some(mut mm) = loader.entry_of(Kind::Mm, number)? {
            old::complete_mm(loader, pid, &mut mm)?;
            part.mm = Some((pid, mm));
        }
        part.cores = load_threads(loader, pid, pstree, &leader)?;
    }
    part.cores.push((pid, leader));
    Ok(part)
}

fn load_threads(
    loader: &Loader<'_>,
    pid: VirtPid,
    pstree: &PstreeEntry,
    leader: &CoreEntry,
) -> Result<Vec<(VirtPid, CoreEntry)>> {
    let threads = pstree.threads.iter().copied().filter_map(VirtPid::new);
    let threads: Vec<_> = threads.filter(|tid| *tid != pid).collect();
    each(&threads, |&tid| {
        let mut core = load_core(loader, tid)?;
        old::complete_thread(loader, pid, tid, leader, &mut core)?;
        Ok((tid, core))
    })
}

fn load_core(loader: &Loader<'_>, tid: VirtPid) -> Result<CoreEntry> {
    let number = Some(u64::from(tid.get()));
    loader
        .entry_of(Kind::Core, number)?
        .ok_or_else(|| Error::Missing {
            file: loader.shown(Kind::Core, number),
        })
}
