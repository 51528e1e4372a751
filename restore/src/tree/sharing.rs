//! What tasks share besides files: an address space (CLONE_VM), signal actions (CLONE_SIGHAND), a
//! descriptor table (CLONE_FILES), directories and umask (CLONE_FS). ids-PID.img numbers each.
//!
//! A table is inherited at a fork, and only then. So all who are on the way from one of its tasks to
//! another, along makers, are born with it; who is not to keep it forks the others first and then
//! calls unshare(2). That brings back every history of forks and unshares. An address space and
//! signal actions cannot be left like this: whoever has one is forked by another who has it, as its
//! sibling (CLONE_PARENT) if they have one parent, else by a helper that dies and leaves an orphan.
//! A task that executed another program after it had forked one in its old memory cannot be made.

use super::Task;
use super::kin::{Kin, Node, Role, Room};
use crate::plan::Refusal;
use crate::plan::step::Origin;
use crust_proto::criu::TaskKobjIdsEntry;
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};

/// A kind of object that tasks share.
struct Kind {
    what: &'static str,
    flag: u64,
    id: fn(&TaskKobjIdsEntry) -> u32,
    /// unshare(2) gives a task one of its own.
    can_be_left: bool,
}

const KINDS: [Kind; 4] = [
    Kind {
        what: "its address space",
        flag: libc::CLONE_VM as u64,
        id: |ids| ids.vm_id,
        can_be_left: false,
    },
    Kind {
        what: "its signal actions",
        flag: libc::CLONE_SIGHAND as u64,
        id: |ids| ids.sighand_id,
        can_be_left: false,
    },
    Kind {
        what: "its descriptor table",
        flag: libc::CLONE_FILES as u64,
        id: |ids| ids.files_id,
        can_be_left: true,
    },
    Kind {
        what: "its directories and umask",
        flag: libc::CLONE_FS as u64,
        id: |ids| ids.fs_id,
        can_be_left: true,
    },
];

/// What a process does while the tree is made, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It forks the node of this index.
    Fork(usize),
    /// It begins a session.
    Setsid,
    /// It leaves what it shares with its maker: CLONE_* bits.
    Unshare(u64),
}

/// An object of one kind, by its number in the images.
type Object = u32;

/// The objects of a node for the time in which it forks: it has the first at its birth and leaves
/// each for the next.
type Stages = Vec<Object>;

impl Room<'_> {
    /// Finds another maker for a task that is in an address space of others, but not of its parent.
    pub(super) fn plan_spaces(&mut self) {
        let mut spaces: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (at, task) in self.tasks.iter().enumerate() {
            let Some(ids) = task.ids.as_ref().filter(|_| task.is_live()) else {
                continue;
            };
            let known = spaces.entry(ids.vm_id).or_default();
            let maker = self.nodes.get(at).and_then(|node| node.maker);
            let by_maker = maker.is_some_and(|maker| known.contains(&maker));
            let others = known.clone();
            known.push(at);
            if !others.is_empty() && !by_maker {
                self.plan_maker(at, &others);
            }
        }
    }

    /// `others` have the address space that the task of this index is in.
    fn plan_maker(&mut self, at: usize, others: &[usize]) {
        let Some(parent) = self.nodes.get(at).and_then(|node| node.parent) else {
            return;
        };
        // A session's helper has been found to fork it already, and has no such memory.
        let is_free = self
            .nodes
            .get(at)
            .is_some_and(|node| node.maker == node.parent);
        let siblings = others.iter().copied();
        let mut siblings = siblings.filter(|other| self.nodes[*other].parent == Some(parent));
        let sibling = siblings.find(|other| self.session_at_fork(*other, at).is_some());
        let below = others.iter().copied();
        let mut below = below.filter(|other| self.descends(*other, parent));
        let (maker, node) = match (sibling.filter(|_| is_free), below.next()) {
            (Some(sibling), _) => (sibling, at),
            (None, Some(other)) if is_free && self.session_at_fork(other, at).is_some() => {
                let (Some(pid), Some(task)) = (self.free_pid(), self.tasks.get(at)) else {
                    return;
                };
                let why = format!("forks task {} in the memory of another", task.pid);
                let helper = self.helper(pid, Some(other), task.entry, why);
                self.nodes[at].maker = Some(helper);
                (other, helper)
            }
            _ => {
                let Some(task) = self.tasks.get(at) else {
                    return;
                };
                let other = others.first().and_then(|other| self.tasks.get(*other));
                let why = format!(
                    "is in the address space of task {}, but its parent is not, and was not forked by \
                     one that is: its parent must have executed a program since, which cannot be made",
                    other.map_or(0, |other| other.pid.get())
                );
                self.fault(task, why);
                return;
            }
        };
        let before_setsid = self.session_at_fork(maker, at) == Some(true);
        let node = &mut self.nodes[node];
        node.before_setsid = before_setsid;
        node.maker = Some(maker);
    }

    /// Whether a maker forks a task before its own setsid, that the task be born in the right
    /// session; `None` if that is impossible.
    fn session_at_fork(&self, maker: usize, child: usize) -> Option<bool> {
        let wanted = self.birth.get(child).copied().flatten();
        let task = self.tasks.get(maker)?;
        match wanted {
            None => Some(false),
            Some(wanted) if wanted == task.sid => Some(false),
            Some(wanted) => {
                (self.birth.get(maker).copied().flatten() == Some(wanted)).then_some(true)
            }
        }
    }
}

/// Finds for every node the CLONE_* bits it is forked with, and what each does in which order.
pub fn settle(kin: &mut Kin, tasks: &[Task]) -> Result<(), Vec<Refusal>> {
    let mut faults = Vec::new();
    let mut stages = Vec::new();
    let mut births = Vec::new();
    for kind in &KINDS {
        let born = births_of(kin, tasks, kind, &mut faults);
        for (node, object) in kin.nodes.iter_mut().zip(&born) {
            if object.is_some() {
                node.flags |= kind.flag;
            }
        }
        stages.push(stages_of(kin, tasks, kind, &born, &mut faults));
        births.push(born);
    }
    for at in 0..kin.nodes.len() {
        let stages: Vec<&Stages> = stages.iter().filter_map(|all| all.get(at)).collect();
        match acts_of(kin, at, &stages, &births) {
            Some(acts) => kin.nodes[at].acts = acts,
            None => {
                let why = "would have to leave a shared table before and after it begins a session";
                faults.extend(kin.nodes.get(at).map(|node| fault(node, why.to_owned())));
            }
        }
    }
    for at in siblings(kin) {
        kin.nodes[at].flags |= libc::CLONE_PARENT as u64;
    }
    for node in &kin.nodes {
        let sighand = libc::CLONE_SIGHAND as u64;
        if node.flags & sighand != 0 && node.flags & libc::CLONE_VM as u64 == 0 {
            let why = "shares its signal actions with a task, but not its address space";
            faults.push(fault(node, why.to_owned()));
        }
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(faults)
    }
}

/// Those whom a task makes that is not their parent: it has the same one. (What a helper makes goes
/// to its parent as an orphan.)
fn siblings(kin: &Kin) -> Vec<usize> {
    let is_sibling = |node: &Node| {
        let maker = node.maker.and_then(|maker| kin.nodes.get(maker));
        let maker = maker.filter(|_| node.maker != node.parent);
        maker.is_some_and(|maker| matches!(maker.role, Role::Task(_)))
    };
    let nodes = kin.nodes.iter().enumerate();
    let siblings = nodes.filter(|(_, node)| is_sibling(node));
    siblings.map(|(at, _)| at).collect()
}

fn fault(node: &Node, why: String) -> Refusal {
    let image = format!("ids-{}.img", node.pid);
    Refusal::new(
        Origin::new(image, Some(0), format!("task {}", node.pid)),
        why,
    )
}

/// The object of a task; a helper or a zombie has none that matters.
fn object_of(node: &Node, tasks: &[Task], kind: &Kind) -> Option<Object> {
    let Role::Task(at) = node.role else {
        return None;
    };
    let task = tasks.get(at).filter(|task| task.is_live())?;
    task.ids.as_ref().map(kind.id)
}

/// The object that each node shares with its maker when it is forked.
fn births_of(
    kin: &Kin,
    tasks: &[Task],
    kind: &Kind,
    faults: &mut Vec<Refusal>,
) -> Vec<Option<Object>> {
    let mut members: BTreeMap<Object, Vec<usize>> = BTreeMap::new();
    for (at, node) in kin.nodes.iter().enumerate() {
        if let Some(object) = object_of(node, tasks, kind) {
            members.entry(object).or_default().push(at);
        }
    }
    let mut births: Vec<Option<Object>> = vec![None; kin.nodes.len()];
    for (object, members) in members {
        let Some(top) = members
            .iter()
            .copied()
            .reduce(|a, b| common_maker(kin, a, b))
        else {
            continue;
        };
        for mut at in members {
            while at != top && births.get(at) != Some(&Some(object)) {
                let (Some(node), Some(birth)) = (kin.nodes.get(at), births.get_mut(at)) else {
                    break;
                };
                if birth.replace(object).is_some() {
                    let what = kind.what;
                    let why = format!("would have to be born with two tables to share {what}");
                    faults.push(fault(node, why));
                }
                at = node.maker.unwrap_or(top);
            }
        }
    }
    births
}

/// The nearest that made both, or one of them. Makers are before whom they make.
fn common_maker(kin: &Kin, mut one: usize, mut other: usize) -> usize {
    while one != other {
        let higher = if one > other { &mut one } else { &mut other };
        *higher = kin
            .nodes
            .get(*higher)
            .and_then(|node| node.maker)
            .unwrap_or(0);
    }
    one
}

/// What each node has, one after the other, while it forks.
fn stages_of(
    kin: &Kin,
    tasks: &[Task],
    kind: &Kind,
    births: &[Option<Object>],
    faults: &mut Vec<Refusal>,
) -> Vec<Stages> {
    let mut handed: BTreeMap<usize, BTreeSet<Object>> = BTreeMap::new();
    for (node, object) in kin.nodes.iter().zip(births) {
        if let (Some(maker), Some(object)) = (node.maker, object) {
            handed.entry(maker).or_default().insert(*object);
        }
    }
    let none = BTreeSet::new();
    let mut all = Vec::new();
    for (at, node) in kin.nodes.iter().enumerate() {
        let own = object_of(node, tasks, kind);
        let birth = births.get(at).copied().flatten();
        let handed = handed.get(&at).unwrap_or(&none);
        let others = handed.iter().copied();
        let others = others.filter(|object| Some(*object) != own && Some(*object) != birth);
        let mut stages: Stages = birth.into_iter().collect();
        stages.extend(others);
        stages.extend(own.filter(|own| Some(*own) != birth));
        let keeps = birth.is_some() && birth == own;
        if stages.len() > 1 && (keeps || !kind.can_be_left) {
            let what = kind.what;
            let why = format!(
                "would have to hand on to others what is not {what}, which the kernel does not do"
            );
            faults.push(fault(node, why));
        }
        all.push(stages);
    }
    all
}

/// The order of forks, setsid and unshares: each fork while its maker has what the child shares,
/// and in its session. `None` if there is no such order.
fn acts_of(
    kin: &Kin,
    at: usize,
    stages: &[&Stages],
    births: &[Vec<Option<Object>>],
) -> Option<Vec<Act>> {
    let node = kin.nodes.get(at)?;
    let made = kin.nodes.iter().enumerate();
    let made: Vec<(usize, &Node)> = made.filter(|(_, child)| child.maker == Some(at)).collect();
    let early = made.iter().filter(|(_, child)| child.before_setsid);
    let late = made.iter().filter(|(_, child)| !child.before_setsid);
    let mut acts: Vec<Act> = early.map(|(child, _)| Act::Fork(*child)).collect();
    if node.leads_session {
        acts.push(Act::Setsid);
    }
    acts.extend(late.map(|(child, _)| Act::Fork(*child)));
    // The stage that a child is forked in, by kind; behind each but the last is an unshare.
    let stage_of = |child: usize, kind: usize| {
        let object = births.get(kind)?.get(child).copied().flatten()?;
        stages.get(kind)?.iter().position(|stage| *stage == object)
    };
    let setsid = acts.iter().position(|act| *act == Act::Setsid);
    let mut before: Vec<(usize, usize)> = Vec::new();
    for (place, act) in acts.iter().enumerate() {
        let (Act::Fork(child), Some(setsid)) = (act, setsid) else {
            continue;
        };
        let early = kin.nodes.get(*child)?.before_setsid;
        before.push(if early {
            (place, setsid)
        } else {
            (setsid, place)
        });
    }
    let forks = acts.clone();
    for (number, kind) in KINDS.iter().enumerate() {
        let mut last = None;
        for left in 1..stages.get(number)?.len() {
            let place = acts.len();
            acts.push(Act::Unshare(kind.flag));
            before.extend(last.map(|last| (last, place)));
            last = Some(place);
            for (fork, act) in forks.iter().enumerate() {
                let Act::Fork(child) = act else { continue };
                match stage_of(*child, number) {
                    Some(stage) if stage < left => before.push((fork, place)),
                    Some(_) => before.push((place, fork)),
                    None => {}
                }
            }
        }
    }
    in_order(&acts, &before)
}

/// A stable order in which the first of each pair comes before the second.
fn in_order(acts: &[Act], before: &[(usize, usize)]) -> Option<Vec<Act>> {
    let mut waits = vec![0_usize; acts.len()];
    let mut later: Vec<Vec<usize>> = vec![Vec::new(); acts.len()];
    for (first, second) in before {
        *waits.get_mut(*second)? += 1;
        later.get_mut(*first)?.push(*second);
    }
    let ready = |(place, waits): (usize, &usize)| (*waits == 0).then_some(place);
    let mut ready: BTreeSet<usize> = waits.iter().enumerate().filter_map(ready).collect();
    let mut ordered = Vec::new();
    while let Some(place) = ready.pop_first() {
        ordered.push(*acts.get(place)?);
        for next in later.get(place)? {
            let waits = waits.get_mut(*next)?;
            *waits -= 1;
            if *waits == 0 {
                ready.insert(*next);
            }
        }
    }
    (ordered.len() == acts.len()).then_some(ordered)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::super::kin::{Names, arrange};
    use super::*;
    use crust_image::ids::VirtPid;

    /// pid, parent, and the numbers of its address space and signal actions, its descriptor table,
    /// its directories. All are in the root's session.
    type Row = (u32, u32, u32, u32, u32);

    fn told(list: &[Row]) -> Vec<String> {
        let task = |(entry, &(pid, parent, vm, files, fs)): (usize, &Row)| Task {
            pid: VirtPid::new(pid).expect("a pid"),
            parent: VirtPid::new(parent),
            pgid: 10,
            sid: 10,
            threads: vec![],
            state: State::Alive,
            entry,
            ids: Some(TaskKobjIdsEntry {
                vm_id: vm,
                sighand_id: pid,
                files_id: files,
                fs_id: fs,
                ..TaskKobjIdsEntry::default()
            }),
        };
        let tasks: Vec<Task> = list.iter().enumerate().map(task).collect();
        let names = Names {
            shell_job: false,
            pid_max: 32768,
            own_pid: 3,
        };
        let kin = match arrange(&tasks, &[], names) {
            Ok(kin) => kin,
            Err(refusals) => return refusals.iter().map(Refusal::to_string).collect(),
        };
        let tell = |node: &Node| {
            let acts = node.acts.iter().map(|act| match act {
                Act::Fork(child) => {
                    let child = &kin.nodes[*child];
                    format!(" {}{}", child.pid, letters(child.flags))
                }
                Act::Setsid => String::new(),
                Act::Unshare(flags) => format!(" leave{}", letters(*flags)),
            });
            format!("{}:{}", node.pid, acts.collect::<String>())
        };
        let busy = kin
            .nodes
            .iter()
            .filter(|node| node.acts.iter().any(|act| *act != Act::Setsid));
        busy.map(tell).collect()
    }

    fn letters(flags: u64) -> String {
        let letters = [
            (libc::CLONE_VM, 'v'),
            (libc::CLONE_FILES, 'f'),
            (libc::CLONE_FS, 's'),
            (libc::CLONE_PARENT, 'p'),
        ];
        let set = letters.iter().filter(|(flag, _)| flags & *flag as u64 != 0);
        set.map(|(_, letter)| *letter)
            .fold(String::new(), |all, letter| {
                format!("{all}{}{letter}", if all.is_empty() { "+" } else { "" })
            })
    }

    #[test]
    fn a_child_shares_with_its_parent() {
        assert_eq!(
            told(&[(10, 0, 1, 1, 1), (11, 10, 1, 2, 2), (12, 10, 3, 1, 1)]),
            ["10: 11+v 12+fs"]
        );
    }

    #[test]
    fn siblings_have_a_table_that_their_parent_leaves() {
        // 13 is a copy of the parent, whenever it is forked.
        let family = [
            (10, 0, 1, 1, 1),
            (11, 10, 2, 5, 2),
            (12, 10, 3, 5, 3),
            (13, 10, 4, 6, 1),
        ];
        assert_eq!(told(&family), ["10: 11+f 12+f 13+s leave+f"]);
    }

    #[test]
    fn a_grandchild_shares_what_its_parent_has_left() {
        // 14 has the table that 11 has now.
        let family = [
            (10, 0, 1, 1, 1),
            (11, 10, 2, 2, 1),
            (12, 11, 3, 1, 3),
            (14, 11, 4, 2, 4),
        ];
        assert_eq!(told(&family), ["10: 11+fs", "11: 12+f leave+f 14+f"]);
    }

    #[test]
    fn a_sibling_in_one_address_space_is_forked_by_the_other() {
        let family = [(10, 0, 1, 1, 1), (11, 10, 2, 2, 2), (12, 10, 2, 3, 3)];
        assert_eq!(told(&family), ["10: 11", "11: 12+vp"]);
    }

    #[test]
    fn an_orphan_in_an_address_space_comes_by_a_helper() {
        let family = [
            (10, 0, 1, 1, 1),
            (11, 10, 2, 2, 2),
            (12, 11, 3, 3, 3),
            (13, 10, 3, 4, 4),
        ];
        assert_eq!(
            told(&family),
            ["10: 11", "11: 12", "12: 32767+v", "32767: 13+v"]
        );
    }

    #[test]
    fn what_no_fork_can_bring_about_is_refused() {
        let exec_of_the_parent = [(10, 0, 1, 1, 1), (11, 10, 2, 2, 2), (12, 11, 1, 3, 3)];
        assert!(told(&exec_of_the_parent)[0].contains("executed a program"));
        // 11 would have to be born with 10's table and with 13's.
        let two_tables = [
            (10, 0, 1, 1, 1),
            (11, 10, 2, 2, 2),
            (12, 11, 3, 1, 3),
            (13, 10, 4, 5, 4),
            (14, 11, 5, 5, 5),
        ];
        assert!(told(&two_tables)[0].contains("born with two tables"));
    }
}
