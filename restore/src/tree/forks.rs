//! The steps that make the tree and take its helpers away: forks, sessions and groups in
//! `Phase::Fork`, the deaths of helpers and zombies in `Phase::Deaths`.
//!
//! A helper has no exit signal, so that its parent sees no SIGCHLD of it; the parent reaps it
//! (__WALL). A task that a helper forked goes to the parent it belongs to when the helper dies:
//! that parent is a subreaper for the moment, and only one parent at a time, or a nearer one
//! would catch the orphan.

use super::kin::{Kin, Node, Role, origin_of};
use super::procfs::early_threads;
use super::sharing::Act;
use super::{State, Task};
use crate::mm::inherit;
use crate::plan::calls::prctl;
use crate::plan::step::{Actor, Arg, Call, Op, Origin, Phase, SlotId};
use crate::plan::{Planner, StepId};
use nix::libc;

const UNSHARE: &[(u64, &str)] = &[
    (libc::CLONE_FILES as u64, "CLONE_FILES"),
    (libc::CLONE_FS as u64, "CLONE_FS"),
];

/// Pushes all steps of the tree.
pub fn plan(planner: &mut Planner<'_>, kin: &Kin) {
    for node in &kin.nodes {
        if let Role::Helper(_) = node.role {
            planner.tree.helpers.insert(node.pid);
        }
    }
    planner.mm.early = inherit::plan_inheritance(planner, kin);
    let leads = (0..kin.nodes.len())
        .map(|at| plan_node(planner, kin, at))
        .collect::<Vec<_>>();
    plan_joins(planner, kin, &leads);
    plan_early_threads(planner);
    plan_helpers_deaths(planner, kin);
    plan_zombies(planner, kin);
}

/// The root, forked by the broker. Its memory is cleared before anybody is forked from it:
/// children are cheap then.
pub fn plan_root(planner: &mut Planner<'_>, root: &Task) {
    let op = Op::Fork {
        pid: root.pid,
        flags: if planner.options.restore_sibling {
            libc::CLONE_PARENT as u64
        } else {
            0
        },
        exit_signal: libc::SIGCHLD,
    };
    let origin = root.origin(format!("task {}", root.pid));
    let fork = planner.push(Phase::Root, Actor::Broker, op, origin);
    planner.tree.forks.insert(root.pid, fork);
    let origin = root.origin("an empty address space");
    planner.push(Phase::Root, Actor::Task(root.pid), Op::ClearMemory, origin);
}

/// What one process does in the fork phase; gives the step that makes it a leader.
fn plan_node(planner: &mut Planner<'_>, kin: &Kin, at: usize) -> Option<StepId> {
    let node = kin.nodes.get(at)?;
    let (actor, origin) = (Actor::Task(node.pid), origin_of(node));
    inherit::plan_early(planner, node.pid);
    let mut leads = None;
    if node.leads_group && !node.leads_session {
        leads = Some(planner.call(Phase::Fork, actor, setpgid(0), origin.clone()));
    }
    for act in &node.acts {
        match *act {
            Act::Fork(child) => {
                if let Some(child) = kin.nodes.get(child) {
                    plan_fork(planner, kin, node, child);
                }
            }
            Act::Setsid => {
                let call = Call::new("setsid", libc::SYS_setsid, vec![]);
                leads = Some(planner.call(Phase::Fork, actor, call, origin.clone()));
                // Before it forks: who is in the session already does not get its terminal.
                crate::files::plan_session_terminal(planner, node.pid);
            }
            Act::Unshare(flags) => {
                let args = vec![Arg::flags(flags, UNSHARE)];
                let call = Call::new("unshare", libc::SYS_unshare, args);
                planner.call(Phase::Fork, actor, call, origin.clone());
            }
        }
    }
    if let Role::Helper(_) = node.role {
        for &tid in &node.threads {
            planner.push(Phase::Fork, actor, Op::Thread { tid }, origin_of(node));
        }
    }
    leads
}

fn setpgid(group: i64) -> Call {
    Call::new(
        "setpgid",
        libc::SYS_setpgid,
        vec![Arg::Int(0), Arg::Int(group)],
    )
}

fn plan_fork(planner: &mut Planner<'_>, kin: &Kin, maker: &Node, child: &Node) {
    let exit_signal = match child.role {
        // A sibling has its maker's (clone(2), CLONE_PARENT).
        Role::Task(_) if child.flags & libc::CLONE_PARENT as u64 != 0 => 0,
        Role::Task(_) => libc::SIGCHLD,
        Role::Helper(_) => 0,
    };
    let op = Op::Fork {
        pid: child.pid,
        flags: child.flags,
        exit_signal,
    };
    let before = child.before_setsid && kin.nodes.len() > 1;
    let mut origin = origin_of(child);
    if before {
        origin
            .what
            .push_str(", born before its parent leaves its session");
    }
    let fork = planner.push(Phase::Fork, Actor::Task(maker.pid), op, origin);
    planner.tree.forks.insert(child.pid, fork);
}

fn task_of<'t>(planner: &'t Planner<'_>, node: &Node) -> Option<&'t Task> {
    match node.role {
        Role::Task(at) => planner.tree.tasks.get(at),
        Role::Helper(_) => None,
    }
}

/// Groups are joined when their leaders lead.
fn plan_joins(planner: &mut Planner<'_>, kin: &Kin, leads: &[Option<StepId>]) {
    let inherited = inherited_groups(kin);
    for (at, node) in kin.nodes.iter().enumerate() {
        let Some(leader) = node.joins else { continue };
        if inherited.get(at) == Some(&Some(leader)) {
            continue;
        }
        let Some(group) = kin.nodes.get(leader) else {
            continue;
        };
        let call = setpgid(group.pid.get().into());
        let join = planner.call(Phase::Fork, Actor::Task(node.pid), call, origin_of(node));
        if let Some(&Some(leads)) = leads.get(leader) {
            planner.in_turn(leads, join);
        }
    }
}

/// The group, by its leader, that each process has after its fork without doing anything.
fn inherited_groups(kin: &Kin) -> Vec<Option<usize>> {
    let mut inherited: Vec<Option<usize>> = Vec::new();
    for node in &kin.nodes {
        let group = node.maker.and_then(|at| {
            let maker = kin.nodes.get(at)?;
            let leads = maker.leads_session || maker.leads_group;
            if leads && !node.before_setsid {
                Some(at)
            } else {
                inherited.get(at).copied().flatten()
            }
        });
        inherited.push(group);
    }
    inherited
}

fn plan_early_threads(planner: &mut Planner<'_>) {
    let early: Vec<(Task, Vec<_>)> = planner
        .tree
        .alive()
        .map(|task| (task.clone(), early_threads(&planner.tree, task)))
        .collect();
    for (task, threads) in early {
        for tid in threads {
            let origin = task.origin(format!(
                "thread {tid}, a file below whose /proc entry is open"
            ));
            planner.push(
                Phase::Fork,
                Actor::Task(task.pid),
                Op::Thread { tid },
                origin,
            );
        }
    }
}

/// Helpers die from the last made to the first: a helper's helper before itself.
fn plan_helpers_deaths(planner: &mut Planner<'_>, kin: &Kin) {
    let mut last: Option<SlotId> = None;
    for (at, node) in kin.nodes.iter().enumerate().rev() {
        let (Role::Helper(_), Some(maker)) = (&node.role, node.maker) else {
            continue;
        };
        let Some(maker) = kin.nodes.get(maker) else {
            continue;
        };
        let orphan = |child: &&Node| child.maker == Some(at) && child.parent != Some(at);
        let adopter = kin.nodes.iter().find(orphan).and_then(|child| child.parent);
        let adopter = adopter.and_then(|parent| kin.nodes.get(parent));
        if let Some(adopter) = adopter {
            let on = plan_subreaper(planner, adopter, node, true);
            last.into_iter().for_each(|last| planner.after(on, last));
            last = Some(planner.done(on));
        }
        let origin = origin_of(node);
        let die = Op::Die { status: 0 };
        let die = planner.push(Phase::Deaths, Actor::Task(node.pid), die, origin.clone());
        last.into_iter().for_each(|last| planner.after(die, last));
        let reap = Op::Reap { pid: node.pid };
        let reap = planner.push(Phase::Deaths, Actor::Task(maker.pid), reap, origin);
        planner.in_turn(die, reap);
        if let Some(adopter) = adopter {
            let off = plan_subreaper(planner, adopter, node, false);
            planner.in_turn(reap, off);
            last = Some(planner.done(off));
        } else {
            last = Some(planner.done(reap));
        }
    }
}

fn plan_subreaper(planner: &mut Planner<'_>, adopter: &Node, helper: &Node, on: bool) -> StepId {
    let origin = Origin {
        what: format!(
            "the children of helper {} go to task {}",
            helper.pid, adopter.pid
        ),
        ..origin_of(helper)
    };
    let args = [Arg::Int(on.into())];
    let call = prctl("PR_SET_CHILD_SUBREAPER", libc::PR_SET_CHILD_SUBREAPER, args);
    planner.call(Phase::Deaths, Actor::Task(adopter.pid), call, origin)
}

/// Zombies die when all helpers are gone: one may have forked a helper.
fn plan_zombies(planner: &mut Planner<'_>, kin: &Kin) {
    for node in &kin.nodes {
        let Some(task) = task_of(planner, node) else {
            continue;
        };
        let State::Zombie(status) = task.state else {
            continue;
        };
        let origin = Origin::new(
            format!("core-{}.img", node.pid),
            Some(0),
            format!("zombie {}", node.pid),
        );
        let core = planner.checkpoint.core(node.pid);
        let comm = core.and_then(|core| core.tc.as_ref()).map(|tc| &tc.comm);
        if let Some(comm) = comm.filter(|comm| !comm.contains(&0)) {
            let name = prctl("PR_SET_NAME", libc::PR_SET_NAME, [Arg::Str(comm.clone())]);
            planner.call(Phase::Deaths, Actor::Task(node.pid), name, origin.clone());
        }
        let die = Op::Die { status };
        planner.push(Phase::Deaths, Actor::Task(node.pid), die, origin);
    }
}
