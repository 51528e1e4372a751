//! Files that nothing in the set refers to, and pages files of the wrong length.
//!
//! A stray image does no harm to a restore, but tells of an edit that forgot a file name or of an
//! older dump in the same directory.

use super::{Findings, Place};
use crate::{
    checkpoint::RemapTarget,
    dir::{ImageDir, PARENT_LINK},
    ids::VirtPid,
    kind::Kind,
    pages::Pagemap,
};
use std::collections::{BTreeMap, BTreeSet};

pub fn check(findings: &mut Findings<'_>, dir: &ImageDir) {
    check_names(findings, dir);
    check_ids(findings);
    check_pages_files(findings, dir);
}

/// Names no image has.
fn check_names(findings: &mut Findings<'_>, dir: &ImageDir) {
    let names = match dir.names() {
        Ok(names) => names,
        Err(error) => return findings.error(Place::named("."), error.to_string()),
    };
    for name in names {
        let shown = name.to_string_lossy();
        // Logs and other files of the user live here too; only what looks like an image counts.
        if shown.ends_with(".img") && Kind::of_file_name(&name).is_none() && name != PARENT_LINK {
            findings.warning(Place::named(&shown), "no image has such a name");
        }
    }
}

/// Images of tasks, tables and ghosts that nothing names.
fn check_ids(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    let pids: BTreeSet<u64> = checkpoint
        .pstree
        .iter()
        .map(|task| task.pid.into())
        .collect();
    let mut tids = pids.clone();
    let threads = checkpoint.pstree.iter().flat_map(|task| &task.threads);
    tids.extend(threads.map(|tid| u64::from(*tid)));
    let tables = checkpoint.ids.values().map(|ids| u64::from(ids.files_id));
    let tables: BTreeSet<u64> = tables.collect();
    let ghosts = checkpoint
        .remaps
        .iter()
        .filter_map(|remap| match remap.target {
            RemapTarget::Ghost(id) => Some(u64::from(id)),
            RemapTarget::Linked(_) | RemapTarget::Procfs(_) => None,
        });
    let ghosts: BTreeSet<u64> = ghosts.collect();
    let sockets = checkpoint.files.values();
    let sockets: BTreeSet<u64> = sockets
        .filter_map(|file| Some(file.isk.as_ref()?.ino.into()))
        .collect();
    for (kind, id) in &checkpoint.images {
        let Some(id) = *id else { continue };
        let (used, whose) = match kind {
            Kind::Core | Kind::SignalPrivate => (&tids, "thread"),
            Kind::Ids | Kind::Mm | Kind::Fs | Kind::Pagemap => (&pids, "task"),
            Kind::Fdinfo => (&tables, "descriptor table"),
            Kind::GhostFile => (&ghosts, "remap"),
            Kind::TcpStream => (&sockets, "socket"),
            _ => continue,
        };
        if !used.contains(&id) {
            let what = format!("no {whose} has the id in its name");
            findings.warning(Place::of(*kind, Some(id)), what);
        }
    }
}

/// Each pages file belongs to one pagemap, or to those of one address space, and is as long as that
/// says.
fn check_pages_files(findings: &mut Findings<'_>, dir: &ImageDir) {
    let checkpoint = findings.checkpoint;
    let mut owners: BTreeMap<u64, (Kind, u64, Place<'_>)> = BTreeMap::new();
    for (kind, id) in &checkpoint.images {
        let (Kind::Pagemap | Kind::PagemapShmem, Some(id)) = (kind, *id) else {
            continue;
        };
        // One that cannot be read was told with its task's pages.
        let Ok(Some(pagemap)) = Pagemap::read(dir, *kind, id) else {
            continue;
        };
        let place = Place::of(*kind, Some(id)).entry(0).field("pages_id");
        let pages_id = u64::from(pagemap.pages_id);
        match owners.insert(pages_id, (*kind, id, place)) {
            Some(owner) if !share_memory(findings, (*kind, id), (owner.0, owner.1)) => {
                let owner = owner.2.image_name();
                let what = format!("pages-{pages_id}.img is that of {owner} too");
                findings.error(place, what);
            }
            _ => {}
        }
        check_length(findings, dir, &pagemap);
    }
    for (kind, id) in &checkpoint.images {
        if let (Kind::Pages, Some(id)) = (kind, id)
            && !owners.contains_key(id)
        {
            findings.warning(Place::of(*kind, Some(*id)), "no pagemap has these pages");
        }
    }
}

/// Whether two pagemaps are those of tasks in one address space (CLONE_VM), with the same memory.
fn share_memory(findings: &Findings<'_>, one: (Kind, u64), other: (Kind, u64)) -> bool {
    let space = |(kind, id): (Kind, u64)| {
        let pid = VirtPid::new(u32::try_from(id).ok()?).filter(|_| kind == Kind::Pagemap)?;
        Some(findings.checkpoint.ids(pid)?.vm_id)
    };
    space(one).is_some_and(|id| space(other) == Some(id))
}

fn check_length(findings: &mut Findings<'_>, dir: &ImageDir, pagemap: &Pagemap) {
    let id = Some(u64::from(pagemap.pages_id));
    // A missing or short file is told with the pages that cannot be had.
    let Ok(Some(file)) = dir.open_file(Kind::Pages, id) else {
        return;
    };
    let found = file.metadata().map(|metadata| metadata.len());
    let wanted = pagemap.pages_len().unwrap_or(u64::MAX);
    if let Ok(found) = found
        && found > wanted
    {
        let what = format!("has {found} bytes, its pagemap speaks of {wanted}");
        findings.warning(Place::of(Kind::Pages, id), what);
    }
}
