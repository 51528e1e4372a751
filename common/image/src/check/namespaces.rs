//! Namespace ids: each differs from the dumper's only if its images are there.

use super::{Findings, Place};
use crate::{ids::FileId, kind::Kind};
use crust_proto::criu::{FileEntry, TaskKobjIdsEntry};
use std::collections::BTreeSet;

/// The field of `ids-<pid>.img`, how to get it, and the image a namespace of its own must have.
/// A pid namespace has one only when it is external, a cgroup namespace none at all.
type Row = (
    &'static str,
    fn(&TaskKobjIdsEntry) -> Option<u32>,
    Option<Kind>,
);

const ROWS: [Row; 8] = [
    ("net_ns_id", |ids| ids.net_ns_id, Some(Kind::Netns)),
    ("ipc_ns_id", |ids| ids.ipc_ns_id, Some(Kind::IpcVar)),
    ("uts_ns_id", |ids| ids.uts_ns_id, Some(Kind::Utsns)),
    ("mnt_ns_id", |ids| ids.mnt_ns_id, Some(Kind::Mnts)),
    ("user_ns_id", |ids| ids.user_ns_id, Some(Kind::Userns)),
    ("time_ns_id", |ids| ids.time_ns_id, Some(Kind::Timens)),
    ("pid_ns_id", |ids| ids.pid_ns_id, None),
    ("cgroup_ns_id", |ids| ids.cgroup_ns_id, None),
];

pub fn check(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    for (pid, ids) in &checkpoint.ids {
        for (field, id_of, kind) in ROWS {
            let own = checkpoint.inventory.root_ids.as_ref().and_then(id_of);
            let Some(id) = id_of(ids).filter(|id| Some(*id) != own) else {
                continue;
            };
            let Some(kind) = kind.filter(|kind| !checkpoint.has_image(*kind, Some(id.into())))
            else {
                continue;
            };
            let place = Place::of(Kind::Ids, Some(pid.get().into())).entry(0);
            let what = format!(
                "{id} is not the dumper's, but {} is missing",
                kind.file_name(Some(id.into()))
            );
            findings.error(place.field(field), what);
        }
    }
    check_files(findings);
}

/// Namespaces that files refer to are those of some task, of the dumper, or stored.
fn check_files(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    let tasks = checkpoint.ids.values();
    let with_root = tasks.chain(&checkpoint.inventory.root_ids);
    let mut known: BTreeSet<u64> = with_root
        .flat_map(|ids| ROWS.iter().filter_map(|(_, id_of, _)| id_of(ids)))
        .map(u64::from)
        .collect();
    let stored = ROWS.iter().filter_map(|(_, _, kind)| *kind);
    for kind in stored.chain([Kind::Pidns]) {
        let images = checkpoint.images.iter().filter(|(found, _)| *found == kind);
        known.extend(images.filter_map(|(_, id)| *id));
    }
    for (id, file) in &checkpoint.files {
        if let Some((field, ns_id)) =
            namespace_of(file).filter(|(_, ns)| !known.contains(&(*ns).into()))
        {
            let place = findings.file_place(FileId(id.0)).field(field);
            findings.error(place, format!("no namespace has the id {ns_id}"));
        }
    }
}

fn namespace_of(file: &FileEntry) -> Option<(&'static str, u32)> {
    let named = |field, id: Option<u32>| id.filter(|id| *id != 0).map(|id| (field, id));
    None.or_else(|| named("nsf.ns_id", Some(file.nsf.as_ref()?.ns_id)))
        .or_else(|| named("isk.ns_id", file.isk.as_ref()?.ns_id))
        .or_else(|| named("usk.ns_id", file.usk.as_ref()?.ns_id))
        .or_else(|| named("nlsk.ns_id", file.nlsk.as_ref()?.ns_id))
        .or_else(|| named("psk.ns_id", file.psk.as_ref()?.ns_id))
        .or_else(|| named("tunf.ns_id", file.tunf.as_ref()?.ns_id))
}
