//! Tasks: parents, threads, sessions and groups, and the images each task must have.

use super::{Findings, Place};
use crate::{
    checkpoint::{TASK_ALIVE, TASK_DEAD, TASK_STOPPED, Task},
    ids::{FilesId, VirtPid},
    kind::Kind,
};
use crust_proto::criu::{CoreEntry, PstreeEntry};
use std::collections::{BTreeMap, BTreeSet};

pub fn check(findings: &mut Findings<'_>) {
    let entries: Vec<PstreeEntry> = findings.checkpoint.pstree.clone();
    if entries.is_empty() {
        findings.error(Place::of(Kind::Pstree, None), "the tree has no task");
    }
    check_order(findings, &entries);
    check_kin(findings, &entries);
    let checkpoint = findings.checkpoint;
    for task in checkpoint.tasks() {
        check_task(findings, &task);
        for tid in std::iter::once(task.pid).chain(task.other_threads()) {
            if let Some(core) = checkpoint.core(tid) {
                check_thread(findings, tid, core);
            }
        }
    }
}

fn place(entry: usize, field: &'static str) -> Place<'static> {
    Place::of(Kind::Pstree, None).entry(entry).field(field)
}

/// Ids are valid and used once, parents come first, the first task alone is the root.
fn check_order(findings: &mut Findings<'_>, entries: &[PstreeEntry]) {
    let mut parents = BTreeSet::new();
    let mut used = BTreeSet::new();
    for (number, task) in entries.iter().enumerate() {
        let pid = task.pid;
        if VirtPid::new(pid).is_none() {
            findings.error(place(number, "pid"), format!("{pid} is no pid"));
        }
        if !used.insert(pid) {
            let what = format!("{pid} is the id of a task or thread before");
            findings.error(place(number, "pid"), what);
        }
        match (number, task.ppid) {
            (0, 0) => {}
            (0, ppid) => {
                let what = format!("the first task is the root and has no parent, not {ppid}");
                findings.error(place(number, "ppid"), what);
            }
            (_, 0) => {
                let what = "0 marks the root, and the first task is the root";
                findings.error(place(number, "ppid"), what);
            }
            (_, ppid) if !parents.contains(&ppid) => {
                let what = format!("no task before has the pid {ppid}");
                findings.error(place(number, "ppid"), what);
            }
            _ => {}
        }
        parents.insert(pid);
        check_threads(findings, number, task, &mut used);
    }
}

fn check_threads(
    findings: &mut Findings<'_>,
    number: usize,
    task: &PstreeEntry,
    used: &mut BTreeSet<u32>,
) {
    let dead = VirtPid::new(task.pid)
        .and_then(|pid| findings.checkpoint.core(pid)?.tc.as_ref())
        .is_some_and(|tc| tc.task_state == TASK_DEAD);
    // A zombie has no threads; [0] is what is written for it.
    if dead {
        return;
    }
    if task.threads.first() != Some(&task.pid) {
        let what = format!("the first thread is not the leader {}", task.pid);
        findings.error(place(number, "threads"), what);
    }
    for tid in task.threads.iter().copied().filter(|tid| *tid != task.pid) {
        if VirtPid::new(tid).is_none() {
            findings.error(place(number, "threads"), format!("{tid} is no thread id"));
        } else if !used.insert(tid) {
            let what = format!("{tid} is the id of a task or thread before");
            findings.error(place(number, "threads"), what);
        }
    }
}

/// Sessions and groups. A leader that is not in the tree is fine, a short-lived helper takes its
/// place; one that is there must be in the session or group it leads.
fn check_kin(findings: &mut Findings<'_>, entries: &[PstreeEntry]) {
    let tasks: BTreeMap<u32, &PstreeEntry> = entries.iter().map(|task| (task.pid, task)).collect();
    let threads: BTreeSet<u32> = entries
        .iter()
        .flat_map(|task| task.threads.iter().filter(|tid| **tid != task.pid))
        .copied()
        .collect();
    let mut session_of_group = BTreeMap::new();
    for (number, task) in entries.iter().enumerate() {
        let (sid, pgid) = (task.sid, task.pgid);
        if let Some(leader) = tasks.get(&sid).filter(|leader| leader.sid != sid) {
            let what = format!(
                "task {sid} leads no session, it is in session {}",
                leader.sid
            );
            findings.error(place(number, "sid"), what);
        }
        if let Some(leader) = tasks.get(&pgid).filter(|leader| leader.pgid != pgid) {
            let what = format!("task {pgid} leads no group, it is in group {}", leader.pgid);
            findings.error(place(number, "pgid"), what);
        }
        for (field, id) in [("sid", sid), ("pgid", pgid)] {
            if threads.contains(&id) {
                let what = format!("{id} is a thread: nothing that leads can have its id");
                findings.error(place(number, field), what);
            }
        }
        // 0 stands for whatever is outside the pid namespace; that can be several.
        let session = *session_of_group.entry(pgid).or_insert(sid);
        if pgid != 0 && session != sid {
            let what = format!("group {pgid} is in session {session} and in session {sid}");
            findings.error(place(number, "pgid"), what);
        }
    }
}

fn check_task(findings: &mut Findings<'_>, task: &Task<'_>) {
    let id = Some(u64::from(task.pid.get()));
    let core = Place::of(Kind::Core, id).entry(0);
    let Some(state) = task.state() else {
        let what = "absent in the core of a leader";
        findings.error(core.field("tc"), what);
        return;
    };
    match state {
        TASK_DEAD => return,
        TASK_ALIVE | TASK_STOPPED => {}
        other => findings.error(core.field("tc.task_state"), format!("{other} is no state")),
    }
    for (kind, found) in [
        (Kind::Ids, task.ids.is_some()),
        (Kind::Mm, task.mm.is_some()),
        (Kind::Fs, task.fs.is_some()),
    ] {
        if !found {
            let what = format!("missing for task {}, which is alive", task.pid);
            findings.error(Place::of(kind, id), what);
        }
    }
    let table = task.ids.map(|ids| FilesId(ids.files_id));
    if let Some(table) = table.filter(|table| !findings.checkpoint.fdinfo.contains_key(table)) {
        let what = format!("there is no fdinfo-{table}.img");
        findings.error(Place::of(Kind::Ids, id).entry(0).field("files_id"), what);
    }
}

fn check_thread(findings: &mut Findings<'_>, tid: VirtPid, core: &CoreEntry) {
    let at = |field| {
        Place::of(Kind::Core, Some(tid.get().into()))
            .entry(0)
            .field(field)
    };
    let Some(thread) = &core.thread_core else {
        // Only a zombie has none, and a missing tc is told with the task.
        let dead = core
            .tc
            .as_ref()
            .is_some_and(|tc| tc.task_state == TASK_DEAD);
        if !dead {
            findings.error(at("thread_core"), "absent");
        }
        return;
    };
    let checkpoint = findings.checkpoint;
    let filters = checkpoint.seccomp.len();
    if let Some(filter) = thread.seccomp_filter.filter(|at| *at as usize >= filters) {
        let what = format!("{filter}, but seccomp.img has {filters} filters");
        findings.error(at("thread_core.seccomp_filter"), what);
    }
    let known_sets = checkpoint.cgroup.iter().flat_map(|cgroup| &cgroup.sets);
    let mut known_sets = known_sets
        .map(|set| set.id)
        .chain(checkpoint.inventory.root_cg_set);
    if let Some(set) = thread
        .cg_set
        .filter(|set| known_sets.all(|known| known != *set))
    {
        let what = format!("cgroup.img has no set {set}, and the dumper's is another");
        findings.error(at("thread_core.cg_set"), what);
    }
}
