//! Namespaces that differ from the dumper's. The ids of a task are compared with those of the
//! dumper in the inventory: equal means the host's namespace, which is inherited. A uts or ipc
//! namespace is made by the first of its tasks before that forks anybody, and inherited from there;
//! what is in ipc namespaces is planned in ipc.rs, time namespaces in timens.rs. Every other kind in which a task differs is
//! refused by name.

use super::Task;
use crate::ipc;
use crate::plan::step::{Actor, Arg, Call, Origin, Phase};
use crate::plan::{Planner, Refusal};
use crust_image::ids::VirtPid;
use crust_proto::criu::{TaskKobjIdsEntry, UtsnsEntry};
use nix::libc;
use std::collections::BTreeMap;

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
    plan_uts(planner, tasks);
    ipc::plan_namespaces(planner, tasks);
    refuse(planner, tasks);
}

/// Has each namespace of a kind made by the first task of it; its children inherit it. Gives these
/// tasks, with the phase in which they make it, by the namespace's id.
pub fn plan_new(
    planner: &mut Planner<'_>,
    tasks: &[Task],
    (kind, flag): (&str, Arg),
    id_of: impl Fn(&TaskKobjIdsEntry) -> Option<u32>,
) -> BTreeMap<u32, (Phase, VirtPid)> {
    let host = planner.checkpoint.inventory.root_ids.as_ref();
    let host = host.and_then(&id_of);
    let id_of = |task: &Task| task.ids.as_ref().and_then(&id_of);
    let mut makers: BTreeMap<u32, (Phase, VirtPid)> = BTreeMap::new();
    for (at, task) in tasks.iter().enumerate() {
        let Some(id) = id_of(task) else { continue };
        let parent = tasks.iter().find(|other| Some(other.pid) == task.parent);
        let inherited = parent.and_then(id_of).or(host);
        if Some(id) == inherited {
            continue;
        }
        let what = format!("{kind} namespace {id} of task {}", task.pid);
        let origin = Origin::new(format!("ids-{}.img", task.pid), Some(0), what);
        let phase = if at == 0 { Phase::Root } else { Phase::Fork };
        if Some(id) == host || makers.insert(id, (phase, task.pid)).is_some() {
            let why = "is neither its parent's nor a new one, and cannot be restored yet";
            planner.refuse(Refusal::new(origin, why));
            continue;
        }
        let call = Call::new("unshare", libc::SYS_unshare, vec![flag.clone()]);
        planner.call(phase, Actor::Task(task.pid), call, origin);
    }
    makers
}

fn plan_uts(planner: &mut Planner<'_>, tasks: &[Task]) {
    let kind = ("uts", Arg::named("CLONE_NEWUTS", libc::CLONE_NEWUTS));
    let checkpoint = planner.checkpoint;
    for (id, (phase, pid)) in plan_new(planner, tasks, kind, |ids| ids.uts_ns_id) {
        let image = format!("utsns-{id}.img");
        let origin = Origin::new(image, Some(0), format!("uts namespace {id}"));
        let stored = checkpoint.namespaces.uts.get(&id.into());
        let checked = stored
            .ok_or("the image is missing".to_owned())
            .and_then(|names| uts_names(names).map(|()| names));
        match checked {
            Ok(names) => {
                for call in name_calls(names) {
                    planner.call(phase, Actor::Task(pid), call, origin.clone());
                }
            }
            Err(why) => planner.refuse(Refusal::new(origin, why)),
        }
    }
}

/// Whether the kernel takes these names.
pub fn uts_names(names: &UtsnsEntry) -> Result<(), String> {
    let fields = [
        ("nodename", &names.nodename),
        ("domainname", &names.domainname),
    ];
    for (field, name) in fields {
        if name.len() > UTS_LEN || name.contains(&0) {
            return Err(format!(
                "{field} is longer than {UTS_LEN} bytes or has a zero in it"
            ));
        }
    }
    Ok(())
}

fn name_calls(names: &UtsnsEntry) -> [Call; 2] {
    let call = |call, number, name: &[u8]| {
        let args = vec![Arg::Str(name.to_vec()), Arg::Int(name.len() as i64)];
        Call::new(call, number, args)
    };
    [
        call("sethostname", libc::SYS_sethostname, &names.nodename),
        call("setdomainname", libc::SYS_setdomainname, &names.domainname),
    ]
}

/// Refuses tasks in namespaces of their own.
fn refuse(planner: &mut Planner<'_>, tasks: &[Task]) {
    let Some(host) = &planner.checkpoint.inventory.root_ids else {
        return;
    };
    let mut refusals = Vec::new();
    for task in tasks {
        let Some(ids) = &task.ids else { continue };
        for name in own(ids, host) {
            if ["uts", "ipc", "time"].contains(&name) {
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
