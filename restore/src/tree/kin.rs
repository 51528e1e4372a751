//! Who forks whom. A session is entered by setsid, or inherited from the one who forks; there is
//! no third way. So a task whose session is not that of its parent was forked while the parent was
//! in it, or by somebody else, who is gone and left it as an orphan:
//!
//! - the parent leads a session now: it was in another before. It is born into that one, forks
//!   this child, and only then calls setsid. This asks the same of its own parent.
//! - the session's leader is dead: a helper under its pid leads it, forks the task, and dies.
//! - the session's leader is alive but no ancestor: a helper of it forks the task, and dies.
//!
//! An orphan goes to the nearest ancestor that is a subreaper: its parent is one for that moment.
//! Groups are joined, not inherited, but need their leader alive in the same session: a helper
//! stands in for a dead one.

use super::Task;
use super::sharing::{self, Act};
use crate::plan::Refusal;
use crate::plan::step::Origin;
use crust_image::ids::VirtPid;
use std::collections::{BTreeMap, BTreeSet};

/// What a node stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// A task of the images, by its index.
    Task(usize),
    /// A process that lives only while the tree is made, and why.
    Helper(String),
}

/// A process to be forked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its pid.
    pub pid: VirtPid,
    /// Task or helper.
    pub role: Role,
    /// Who forks it, as an index; `None` for the root.
    pub maker: Option<usize>,
    /// Whose child it is at the end.
    pub parent: Option<usize>,
    /// It is forked before its maker calls setsid.
    pub before_setsid: bool,
    /// It calls setsid.
    pub leads_session: bool,
    /// It makes a group of its own, besides a session.
    pub leads_group: bool,
    /// The leader of the group it joins; `None` to stay with what it inherits or leads.
    pub joins: Option<usize>,
    /// Threads besides the leader that must exist while files are opened.
    pub threads: Vec<VirtPid>,
    /// The pstree entry that asks for it.
    pub entry: usize,
    /// CLONE_* bits that it is forked with.
    pub flags: u64,
    /// What it does while the tree is made, in order.
    pub acts: Vec<Act>,
}

/// All processes, makers before whom they make.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Kin {
    /// The processes; the first is the root.
    pub nodes: Vec<Node>,
}

/// A dead process below whose /proc entry a file is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcHelper {
    /// Its pid.
    pub pid: VirtPid,
    /// Its threads.
    pub threads: Vec<VirtPid>,
}

/// What decides about names.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// The root may be in a session of somebody else: it joins ours.
    pub shell_job: bool,
    /// Above all pids.
    pub pid_max: u32,
    /// Ours.
    pub own_pid: u32,
}

/// Arranges tasks (checked by the caller: a root first, parents before children) and helpers.
pub fn arrange(
    tasks: &[Task],
    proc_helpers: &[ProcHelper],
    names: Names,
) -> Result<Kin, Vec<Refusal>> {
    let mut room = Room::new(tasks, names);
    let proc_ids = |helper: &ProcHelper| {
        let ids = helper
            .threads
            .iter()
            .chain([&helper.pid])
            .map(|id| id.get());
        ids.collect::<Vec<_>>()
    };
    room.taken.extend(proc_helpers.iter().flat_map(proc_ids));
    room.plan_sessions();
    room.plan_spaces();
    room.plan_groups();
    for helper in proc_helpers {
        // A helper that leads a session or group has the pid already: it serves.
        if let Some(node) = room.nodes.iter_mut().find(|node| node.pid == helper.pid) {
            node.threads = helper.threads.clone();
            continue;
        }
        let why = format!("dead process {} of an open /proc file", helper.pid);
        let node = room.helper(helper.pid, Some(0), 0, why);
        if let Some(node) = room.nodes.get_mut(node) {
            node.threads = helper.threads.clone();
        }
    }
    if !room.faults.is_empty() {
        return Err(room.faults);
    }
    let mut kin = Kin {
        nodes: makers_first(room.nodes),
    };
    sharing::settle(&mut kin, tasks)?;
    Ok(kin)
}

pub(super) struct Room<'t> {
    pub(super) tasks: &'t [Task],
    names: Names,
    pub(super) nodes: Vec<Node>,
    /// Node of each task, by its pid.
    by_pid: BTreeMap<u32, usize>,
    taken: BTreeSet<u32>,
    /// The session into which each task is born, where that matters.
    pub(super) birth: Vec<Option<u32>>,
    /// Helpers that lead a session or group, by its id.
    leaders: BTreeMap<u32, usize>,
    faults: Vec<Refusal>,
}

impl<'t> Room<'t> {
    fn new(tasks: &'t [Task], names: Names) -> Room<'t> {
        let mut by_pid = BTreeMap::new();
        let mut taken = BTreeSet::from([0, 1, names.own_pid]);
        for (at, task) in tasks.iter().enumerate() {
            by_pid.insert(task.pid.get(), at);
            taken.extend([task.pid.get(), task.pgid, task.sid]);
            taken.extend(task.threads.iter().map(|tid| tid.get()));
        }
        let nodes = tasks.iter().enumerate().map(|(at, task)| {
            let parent = task.parent.and_then(|pid| by_pid.get(&pid.get()).copied());
            Node {
                pid: task.pid,
                role: Role::Task(at),
                maker: parent,
                parent,
                before_setsid: false,
                leads_session: task.sid == task.pid.get(),
                leads_group: task.pgid == task.pid.get() && task.sid != task.pid.get(),
                joins: None,
                threads: Vec::new(),
                entry: task.entry,
                flags: 0,
                acts: Vec::new(),
            }
        });
        Room {
            nodes: nodes.collect(),
            birth: vec![None; tasks.len()],
            leaders: BTreeMap::new(),
            faults: Vec::new(),
            tasks,
            names,
            by_pid,
            taken,
        }
    }

    /// The session of whoever started the root, if the root is in it.
    fn outside(&self) -> Option<u32> {
        let root = self.tasks.first()?;
        let inside = self.by_pid.contains_key(&root.sid);
        (!inside && self.names.shell_job).then_some(root.sid)
    }

    pub(super) fn fault(&mut self, task: &Task, why: String) -> &mut Refusal {
        let origin = task.origin(format!("task {}", task.pid));
        self.faults.push(Refusal::new(origin, why));
        let last = self.faults.len() - 1;
        &mut self.faults[last]
    }

    /// Decides for each task into which session it must be born, children before parents, and
    /// finds those that their parent cannot fork there.
    fn plan_sessions(&mut self) {
        let mut orphans = Vec::new();
        for at in (0..self.tasks.len()).rev() {
            let Some(task) = self.tasks.get(at) else {
                continue;
            };
            let leads = task.sid == task.pid.get();
            // A root is born into our session, which is that of no task unless it is a shell job.
            let mut birth = if leads { None } else { Some(task.sid) };
            for child in
                (at + 1..self.tasks.len()).filter(|&c| self.tasks[c].parent == Some(task.pid))
            {
                let Some(wanted) = self.birth[child].filter(|&wanted| wanted != task.sid) else {
                    continue;
                };
                if leads && task.parent.is_some() && *birth.get_or_insert(wanted) == wanted {
                    self.nodes[child].before_setsid = true;
                } else {
                    orphans.push((child, wanted));
                }
            }
            self.birth[at] = birth;
        }
        self.check_root();
        orphans.reverse();
        for (at, session) in orphans {
            self.plan_orphan(at, session);
        }
    }

    fn check_root(&mut self) {
        let Some(root) = self.tasks.first() else {
            return;
        };
        let inside = |id: u32| self.by_pid.contains_key(&id);
        let foreign = root.sid != root.pid.get();
        if foreign && (inside(root.sid) || self.outside().is_none()) {
            let why = format!(
                "the root is in session {} of a process that is not its ancestor",
                root.sid
            );
            self.fault(root, why).hint = "try --shell-job".to_owned();
        }
    }

    /// A task that somebody else must fork, in this session.
    fn plan_orphan(&mut self, at: usize, session: u32) {
        let Some(task) = self.tasks.get(at) else {
            return;
        };
        let Some(parent) = self.nodes[at].parent else {
            return;
        };
        let maker = match self.by_pid.get(&session) {
            Some(&leader) => {
                let Some(pid) = self.free_pid() else {
                    self.fault(task, "no pid is free for a helper".to_owned());
                    return;
                };
                let why = format!("forks task {} in session {session}", task.pid);
                self.helper(pid, Some(leader), task.entry, why)
            }
            None => match self.dead_leader(at, session, parent) {
                Some(maker) => maker,
                None => return,
            },
        };
        if !self.descends(maker, parent) || self.descends(maker, at) {
            let why = format!(
                "is in session {session}, whose leader cannot have been a descendant of its parent {}",
                self.nodes[parent].pid
            );
            self.fault(task, why);
            return;
        }
        let another = |node: &Node| node.maker == Some(maker) && node.parent != Some(maker);
        if self
            .nodes
            .iter()
            .any(|node| another(node) && node.parent != Some(parent))
        {
            let why = format!("orphans of session {session} have more than one parent");
            self.fault(task, why);
            return;
        }
        self.nodes[at].maker = Some(maker);
    }

    /// The helper that leads a session whose leader is dead.
    fn dead_leader(&mut self, at: usize, session: u32, parent: usize) -> Option<usize> {
        if let Some(&leader) = self.leaders.get(&session) {
            return Some(leader);
        }
        let task = self.tasks.get(at)?;
        let pid = VirtPid::new(session);
        let used_by_thread = self
            .tasks
            .iter()
            .flat_map(|task| &task.threads)
            .any(|tid| tid.get() == session);
        let Some(pid) = pid.filter(|_| !used_by_thread) else {
            self.fault(
                task,
                format!("sid {session} is no process that could have led a session"),
            );
            return None;
        };
        let why = format!("dead leader of session {session}");
        let helper = self.helper(pid, Some(parent), task.entry, why);
        self.nodes[helper].leads_session = true;
        self.leaders.insert(session, helper);
        Some(helper)
    }

    pub(super) fn helper(
        &mut self,
        pid: VirtPid,
        maker: Option<usize>,
        entry: usize,
        why: String,
    ) -> usize {
        self.taken.insert(pid.get());
        self.nodes.push(Node {
            pid,
            role: Role::Helper(why),
            maker,
            parent: maker,
            before_setsid: false,
            leads_session: false,
            leads_group: false,
            joins: None,
            threads: Vec::new(),
            entry,
            flags: 0,
            acts: Vec::new(),
        });
        self.nodes.len() - 1
    }

    /// From the top: pids at the bottom are those of the host's own processes.
    pub(super) fn free_pid(&self) -> Option<VirtPid> {
        let free = (2..self.names.pid_max)
            .rev()
            .find(|pid| !self.taken.contains(pid));
        free.and_then(VirtPid::new)
    }

    /// Whether one node is made by another or by one that is.
    pub(super) fn descends(&self, mut node: usize, from: usize) -> bool {
        // As many steps as nodes: a ring of makers ends too.
        for _ in 0..self.nodes.len() {
            match self.nodes.get(node).and_then(|node| node.maker) {
                Some(maker) if maker == from => return true,
                Some(maker) => node = maker,
                None => return false,
            }
        }
        false
    }

    fn plan_groups(&mut self) {
        for at in 0..self.tasks.len() {
            let task = &self.tasks[at];
            if task.pgid == task.pid.get() || self.stays_outside(task) {
                continue;
            }
            if let Some(leader) = self.group_leader(at) {
                self.nodes[at].joins = Some(leader);
            }
        }
    }

    /// In a group of the session outside: it is ours, which every task inherits.
    fn stays_outside(&self, task: &Task) -> bool {
        let group_of_root = self
            .tasks
            .first()
            .is_some_and(|root| root.pgid == task.pgid);
        self.outside() == Some(task.sid) && group_of_root && !self.by_pid.contains_key(&task.pgid)
    }

    fn group_leader(&mut self, at: usize) -> Option<usize> {
        let task = &self.tasks[at];
        if let Some(&leader) = self.leaders.get(&task.pgid) {
            return Some(leader);
        }
        if let Some(&leader) = self.by_pid.get(&task.pgid) {
            let other = &self.tasks[leader];
            if other.sid != task.sid || other.pgid != task.pgid {
                let why = format!(
                    "group {} is led by a task of session {}",
                    task.pgid, other.sid
                );
                self.fault(task, why);
                return None;
            }
            return Some(leader);
        }
        let session = self
            .by_pid
            .get(&task.sid)
            .or(self.leaders.get(&task.sid))
            .copied();
        let maker = session.or((self.outside() == Some(task.sid)).then_some(0));
        let pid = VirtPid::new(task.pgid).filter(|pid| !self.is_thread(*pid));
        let (Some(maker), Some(pid)) = (maker, pid) else {
            let why = format!(
                "pgid {} is no process that could have led a group",
                task.pgid
            );
            self.fault(task, why);
            return None;
        };
        let why = format!("dead leader of group {pid}");
        let helper = self.helper(pid, Some(maker), task.entry, why);
        self.nodes[helper].leads_group = true;
        self.leaders.insert(task.pgid, helper);
        Some(helper)
    }

    fn is_thread(&self, tid: VirtPid) -> bool {
        self.tasks.iter().any(|task| task.threads.contains(&tid))
    }
}

/// Puts makers before whom they make; indices change with it. Nodes that no root leads to (a ring
/// of makers, which `descends` has refused) cannot be.
fn makers_first(nodes: Vec<Node>) -> Vec<Node> {
    let mut made: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        if let Some(children) = node.maker.and_then(|maker| made.get_mut(maker)) {
            children.push(at);
        }
    }
    let mut order = vec![0];
    let mut next = 0;
    while let Some(&at) = order.get(next) {
        order.extend(made.get(at).into_iter().flatten());
        next += 1;
    }
    let mut place = vec![0; nodes.len()];
    for (to, &from) in order.iter().enumerate() {
        place[from] = to;
    }
    let moved = |at: usize| place.get(at).copied().unwrap_or(0);
    let mut slots: Vec<Option<Node>> = nodes.into_iter().map(Some).collect();
    let taken = order.iter().filter_map(|&at| slots.get_mut(at)?.take());
    taken
        .map(|node| Node {
            maker: node.maker.map(moved),
            parent: node.parent.map(moved),
            joins: node.joins.map(moved),
            ..node
        })
        .collect()
}

/// An origin for what is asked by a pstree entry.
pub fn origin_of(node: &Node) -> Origin {
    let what = match &node.role {
        Role::Task(_) => format!("task {}", node.pid),
        Role::Helper(why) => format!("helper {}: {why}", node.pid),
    };
    Origin::new("pstree.img", Some(node.entry), what)
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;

    fn pid(number: u32) -> VirtPid {
        VirtPid::new(number).expect("a pid")
    }

    /// pid, parent, pgid, sid.
    fn tasks(list: &[(u32, u32, u32, u32)]) -> Vec<Task> {
        let task = |(entry, &(own, parent, pgid, sid)): (usize, &(u32, u32, u32, u32))| Task {
            pid: pid(own),
            parent: VirtPid::new(parent),
            pgid,
            sid,
            threads: vec![],
            state: State::Alive,
            entry,
            ids: None,
        };
        list.iter().enumerate().map(task).collect()
    }

    const NAMES: Names = Names {
        shell_job: false,
        pid_max: 32768,
        own_pid: 3,
    };

    /// A root and a child, each in a session of its own, with these behind them.
    fn below_two(more: &[(u32, u32, u32, u32)]) -> Vec<(u32, u32, u32, u32)> {
        [&[(10, 0, 10, 10), (11, 10, 11, 11)], more].concat()
    }

    fn told(list: &[(u32, u32, u32, u32)], names: Names) -> Vec<String> {
        let kin = match arrange(&tasks(list), &[], names) {
            Ok(kin) => kin,
            Err(refusals) => return refusals.iter().map(Refusal::to_string).collect(),
        };
        let pid_of = |at: usize| kin.nodes[at].pid.to_string();
        let tell = |node: &Node| {
            let mut text = node.pid.to_string();
            if let Some(maker) = node.maker {
                text += &format!(" by {}", pid_of(maker));
            }
            if node.before_setsid {
                text += " early";
            }
            if node.parent != node.maker {
                text += &format!(" for {}", node.parent.map(pid_of).unwrap_or_default());
            }
            if node.leads_session {
                text += " setsid";
            }
            if node.leads_group {
                text += " setpgid";
            }
            if let Some(leader) = node.joins {
                text += &format!(" joins {}", pid_of(leader));
            }
            text
        };
        kin.nodes.iter().map(tell).collect()
    }

    #[test]
    fn children_inherit_sessions_and_join_groups() {
        assert_eq!(
            told(&below_two(&[(12, 11, 12, 11), (13, 10, 12, 10)]), NAMES),
            ["task 13 (pstree.img entry 3): group 12 is led by a task of session 11"]
        );
        assert_eq!(
            told(&below_two(&[(12, 11, 12, 11), (13, 11, 12, 11)]), NAMES),
            [
                "10 setsid",
                "11 by 10 setsid",
                "12 by 11 setpgid",
                "13 by 11 joins 12"
            ]
        );
    }

    #[test]
    fn a_child_of_the_session_its_parent_left_is_forked_before() {
        assert_eq!(
            told(&below_two(&[(12, 11, 10, 10)]), NAMES),
            ["10 setsid", "11 by 10 setsid", "12 by 11 early joins 10"]
        );
        // Through two generations: 12 must be born into session 10 too, to bear 13 there.
        assert_eq!(
            told(&below_two(&[(12, 11, 12, 12), (13, 12, 10, 10)]), NAMES),
            [
                "10 setsid",
                "11 by 10 setsid",
                "12 by 11 early setsid",
                "13 by 12 early joins 10"
            ]
        );
    }

    #[test]
    fn a_dead_leader_of_session_and_group_is_stood_in_for() {
        // As in the corpus set dead_leader.
        assert_eq!(
            told(
                &[
                    (2564, 0, 2564, 2564),
                    (2567, 2564, 2566, 2565),
                    (2568, 2564, 2565, 2565)
                ],
                NAMES
            ),
            [
                "2564 setsid",
                "2565 by 2564 setsid",
                "2567 by 2565 for 2564 joins 2566",
                "2568 by 2565 for 2564 joins 2565",
                "2566 by 2565 setpgid",
            ]
        );
    }

    #[test]
    fn an_orphan_of_a_living_session_comes_by_a_helper_of_its_leader() {
        assert_eq!(
            told(&below_two(&[(12, 10, 11, 11)]), NAMES),
            [
                "10 setsid",
                "11 by 10 setsid",
                "32767 by 11",
                "12 by 32767 for 10 joins 11",
            ]
        );
    }

    #[test]
    fn a_shell_job_joins_the_session_outside() {
        let job = [(10, 0, 10, 5), (11, 10, 10, 5)];
        assert!(told(&job, NAMES)[0].ends_with("(try --shell-job)"));
        let shell_job = Names {
            shell_job: true,
            ..NAMES
        };
        assert_eq!(told(&job, shell_job), ["10 setpgid", "11 by 10 joins 10"]);
        let pipeline = [(10, 0, 9, 5), (11, 10, 9, 5)];
        assert_eq!(told(&pipeline, shell_job), ["10", "11 by 10"]);
    }

    #[test]
    fn impossible_families_are_refused() {
        // The session's leader is a child of the task that is to be born into it.
        let told = told(
            &[(10, 0, 10, 10), (11, 10, 12, 12), (12, 11, 12, 12)],
            NAMES,
        );
        assert!(
            told[0].contains("cannot have been a descendant"),
            "{told:?}"
        );
    }

    #[test]
    fn a_helper_of_a_session_serves_as_the_dead_process_of_a_file_too() {
        let helper = ProcHelper {
            pid: pid(2565),
            threads: vec![pid(2569)],
        };
        let tasks = tasks(&[(2564, 0, 2564, 2564), (2568, 2564, 2565, 2565)]);
        let kin = arrange(&tasks, &[helper], NAMES).expect("a tree");
        let found: Vec<&Node> = kin
            .nodes
            .iter()
            .filter(|node| node.pid == pid(2565))
            .collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].threads, [pid(2569)]);
    }
}
