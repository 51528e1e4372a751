//! The tree: pstree.img and the images that bear the id of a task or thread.

use super::{Loader, TASK_DEAD, old};
use crate::{
    error::{Error, Result},
    ids::VirtPid,
    kind::Kind,
};
use crust_proto::criu::{CoreEntry, FsEntry, MmEntry, PstreeEntry, TaskKobjIdsEntry};
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
    for entry in 0..tree.pstree.len() {
        // The number of the entry is in range; a pid that is none is left to the planner.
        let Some(pstree) = tree.pstree.get(entry).cloned() else {
            continue;
        };
        if let Some(pid) = VirtPid::new(pstree.pid) {
            load_task(loader, &mut tree, pid, &pstree)?;
        }
    }
    Ok(tree)
}

fn load_task(
    loader: &Loader<'_>,
    tree: &mut Tree,
    pid: VirtPid,
    pstree: &PstreeEntry,
) -> Result<()> {
    let number = Some(u64::from(pid.get()));
    let mut leader = load_core(loader, pid)?;
    let dead = leader
        .tc
        .as_ref()
        .is_some_and(|tc| tc.task_state == TASK_DEAD);
    // A zombie has nothing but its core; whatever bears its number is of an older task.
    if !dead {
        old::complete_leader(loader, pid, &mut leader)?;
        // Before it had an image of its own the message was in the core.
        let ids = loader.entry_of(Kind::Ids, number)?.or(leader.ids);
        tree.ids.extend(ids.map(|ids| (pid, ids)));
        let fs = loader.entry_of(Kind::Fs, number)?;
        tree.fs.extend(fs.map(|fs| (pid, fs)));
        if let Some(mut mm) = loader.entry_of(Kind::Mm, number)? {
            old::complete_mm(loader, pid, &mut mm)?;
            tree.mms.insert(pid, mm);
        }
        load_threads(loader, tree, pid, pstree, &leader)?;
    }
    tree.cores.insert(pid, leader);
    Ok(())
}

fn load_threads(
    loader: &Loader<'_>,
    tree: &mut Tree,
    pid: VirtPid,
    pstree: &PstreeEntry,
    leader: &CoreEntry,
) -> Result<()> {
    let threads = pstree.threads.iter().copied().filter_map(VirtPid::new);
    for tid in threads.filter(|tid| *tid != pid) {
        let mut core = load_core(loader, tid)?;
        old::complete_thread(loader, pid, tid, leader, &mut core)?;
        tree.cores.insert(tid, core);
    }
    Ok(())
}

fn load_core(loader: &Loader<'_>, tid: VirtPid) -> Result<CoreEntry> {
    let number = Some(u64::from(tid.get()));
    loader
        .entry_of(Kind::Core, number)?
        .ok_or_else(|| Error::Missing {
            file: loader.shown(Kind::Core, number),
        })
}
