//! Namespaces that differ from the dumper's. The ids of a task are compared with those of the
//! dumper in the inventory: equal means the host's namespace, which is inherited. A uts namespace
//! that the whole tree shares is made by the root before it forks anybody; ipc namespaces are planned
//! in ipc.rs; every other kind in
//! which a task differs is refused by name.

use super::Task;
use crate::ipc;
use crate::plan::step::{Actor, Arg, Call, Origin, Phase};
use crate::plan::{Planner, Refusal};
use crust_proto::criu::TaskKobjIdsEntry;
use nix::libc;

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

/// Longest name of a host (__NEW_UTS_LEN).
const UTS_LEN: usize = 64;

/// Plans what can be made and refuses tasks in other namespaces of their own. The root's fork is
/// planned already.
pub fn plan(planner: &mut Planner<'_>, tasks: &[Task]) {
    let uts = shared_uts(planner, tasks);
    if let Some(id) = uts {
        plan_uts(planner, tasks, id);
    }
    ipc::plan_namespaces(planner, tasks);
    refuse(planner, tasks, uts.is_some());
}

/// The uts namespace of the tree, if it is not the host's and all tasks share it.
fn shared_uts(planner: &Planner<'_>, tasks: &[Task]) -> Option<u32> {
    let host = planner.checkpoint.inventory.root_ids.as_ref()?;
    let mut ids = tasks.iter().filter_map(|task| task.ids.as_ref());
    let own = ids.next()?.uts_ns_id?;
    let shared = ids.all(|ids| ids.uts_ns_id == Some(own));
    (shared && host.uts_ns_id != Some(own)).then_some(own)
}

fn plan_uts(planner: &mut Planner<'_>, tasks: &[Task], id: u32) {
    let checkpoint = planner.checkpoint;
    let Some(root) = tasks.first() else { return };
    let image = format!("utsns-{id}.img");
    let origin = Origin::new(image, Some(0), format!("uts namespace {id}"));
    let Some(names) = checkpoint.namespaces.uts.get(&id.into()) else {
        return planner.refuse(Refusal::new(origin, "the image is missing"));
    };
    let new = Arg::named("CLONE_NEWUTS", libc::CLONE_NEWUTS);
    let mut calls = vec![Call::new("unshare", libc::SYS_unshare, vec![new])];
    for (call, number, field, name) in [
        (
            "sethostname",
            libc::SYS_sethostname,
            "nodename",
            &names.nodename,
        ),
        (
            "setdomainname",
            libc::SYS_setdomainname,
            "domainname",
            &names.domainname,
        ),
    ] {
        if name.len() > UTS_LEN || name.contains(&0) {
            let why = format!("{field} is longer than {UTS_LEN} bytes or has a zero in it");
            return planner.refuse(Refusal::new(origin, why));
        }
        let args = vec![Arg::Str(name.clone()), Arg::Int(name.len() as i64)];
        calls.push(Call::new(call, number, args));
    }
    for call in calls {
        planner.call(Phase::Root, Actor::Task(root.pid), call, origin.clone());
    }
}

/// Refuses tasks in namespaces of their own.
fn refuse(planner: &mut Planner<'_>, tasks: &[Task], uts_is_made: bool) {
    let Some(host) = &planner.checkpoint.inventory.root_ids else {
        return;
    };
    let mut refusals = Vec::new();
    for task in tasks {
        let Some(ids) = &task.ids else { continue };
        for name in own(ids, host) {
            if (uts_is_made && name == "uts") || name == "ipc" {
                continue;
            }
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
