//! Namespaces that differ from the dumper's. The ids of a task are compared with those of the
//! dumper in the inventory: equal means the host's namespace, which is inherited; none can be made
//! yet, so every kind in which a task differs is refused by name.

use super::Task;
use crate::plan::step::Origin;
use crate::plan::{Planner, Refusal};
use crust_proto::criu::TaskKobjIdsEntry;

/// The name of each kind, with where its id is.
type Kind = (&'static str, fn(&TaskKobjIdsEntry) -> Option<u32>);

const KINDS: [Kind; 8] = [
    ("pid", |ids| ids.pid_ns_id),
    ("net", |ids| ids.net_ns_id),
    ("ipc", |ids| ids.ipc_ns_id),
    ("uts", |ids| ids.uts_ns_id),
    ("mount", |ids| ids.mnt_ns_id),
    ("user", |ids| ids.user_ns_id),
    ("cgroup", |ids| ids.cgroup_ns_id),
    ("time", |ids| ids.time_ns_id),
];

/// Refuses tasks in namespaces of their own.
pub fn refuse(planner: &mut Planner<'_>, tasks: &[Task]) {
    let Some(host) = &planner.checkpoint.inventory.root_ids else {
        return;
    };
    let mut refusals = Vec::new();
    for task in tasks {
        let Some(ids) = &task.ids else { continue };
        for name in own(ids, host) {
            let image = format!("ids-{}.img", task.pid);
            let origin = Origin::new(image, Some(0), format!("task {}", task.pid));
            let why = format!("is in a {name} namespace of its own, which cannot be restored yet");
            refusals.push(Refusal::new(origin, why));
        }
    }
    refusals
        .into_iter()
        .for_each(|refusal| planner.refuse(refusal));
}

fn own(ids: &TaskKobjIdsEntry, host: &TaskKobjIdsEntry) -> Vec<&'static str> {
    let differs = |(_, id): &&Kind| id(ids).is_some() && id(ids) != id(host);
    KINDS
        .iter()
        .filter(differs)
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_its_own() {
        let host = TaskKobjIdsEntry {
            net_ns_id: Some(2),
            uts_ns_id: Some(4),
            ..TaskKobjIdsEntry::default()
        };
        assert!(own(&host, &host).is_empty());
        let uts = TaskKobjIdsEntry {
            uts_ns_id: Some(9),
            ..host
        };
        assert_eq!(own(&uts, &host), ["uts"]);
        // Images from before a kind of namespace existed.
        let old = TaskKobjIdsEntry {
            net_ns_id: None,
            ..host
        };
        assert!(own(&old, &host).is_empty());
    }
}
