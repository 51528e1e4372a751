//! The state of a task and of each of its threads, a room for each kind. Here is only who is who:
//! the leader's image holds the state of the task and its own as a thread, the image of another
//! thread only that thread's.

mod creds;
mod limits;
mod regs;
mod rseq;
mod sched;
mod seccomp;
mod signals;
mod small;
mod timers;
mod treatment;
mod xsave;

pub use limits::plan_own_descriptors;

use crate::plan::step::{Actor, Op, Origin, Phase};
use crate::plan::{Planner, Refusal};
use crate::tree::Task;
use crust_image::ids::VirtPid;
use crust_proto::criu::{CoreEntry, TaskCoreEntry, ThreadCoreEntry};

/// A thread and what its image says.
#[derive(Clone, Copy)]
pub struct Thread<'c> {
    /// Its task.
    pub pid: VirtPid,
    /// Its id; the task's for the leader.
    pub tid: VirtPid,
    /// Its image.
    pub core: &'c CoreEntry,
    /// The part of a thread.
    pub own: &'c ThreadCoreEntry,
}

impl Thread<'_> {
    /// Who acts for it.
    pub fn actor(&self) -> Actor {
        if self.is_leader() {
            Actor::Task(self.pid)
        } else {
            Actor::Thread {
                pid: self.pid,
                tid: self.tid,
            }
        }
    }

    /// Whether it is the leader of its task.
    pub fn is_leader(&self) -> bool {
        self.pid == self.tid
    }

    /// The origin of what its image asks for.
    pub fn origin(&self, what: &str) -> Origin {
        let who = if self.is_leader() { "task" } else { "thread" };
        let what = format!("{what} of {who} {}", self.tid);
        Origin::new(format!("core-{}.img", self.tid), Some(0), what)
    }
}

/// A live task: its own state and its threads, the leader first.
pub struct Live<'c> {
    /// As in the tree.
    pub task: Task,
    /// The part of the leader's image that is the task's.
    pub tc: &'c TaskCoreEntry,
    /// Threads.
    pub threads: Vec<Thread<'c>>,
}

impl<'c> Live<'c> {
    /// The leader.
    pub fn leader(&self) -> Option<&Thread<'c>> {
        self.threads.first()
    }
}

/// Plans the state of all live tasks.
pub fn plan(planner: &mut Planner<'_>) {
    let tasks: Vec<Task> = planner.tree.alive().cloned().collect();
    limits::plan_descriptor_numbers(planner);
    let mut live = Vec::new();
    for task in tasks {
        live.extend(live_of(planner, task));
    }
    let stops = signals::plan_stops(planner, &live);
    for task in &live {
        plan_task(planner, task, &stops);
    }
    signals::plan_pending(planner, &live, &stops);
}

fn plan_task(planner: &mut Planner<'_>, live: &Live<'_>, stops: &signals::Stops) {
    let Some(leader) = live.leader() else { return };
    for thread in live.threads.iter().skip(1) {
        if !planner.tree.early_threads.contains(&thread.tid) {
            let op = Op::Thread { tid: thread.tid };
            planner.push(
                Phase::Threads,
                leader.actor(),
                op,
                thread.origin("existence"),
            );
        }
    }
    for thread in &live.threads {
        small::plan_thread(planner, thread);
        rseq::plan(planner, thread);
    }
    small::plan_task(planner, live);
    signals::plan_actions(planner, live, stops);
    timers::plan(planner, live);
    limits::plan(planner, live);
    for thread in &live.threads {
        sched::plan(planner, thread);
        sched::plan_affinity(planner, thread);
        treatment::plan(planner, thread);
        creds::plan(planner, thread);
    }
    small::plan_last(planner, live);
    seccomp::plan_strict(planner, live);
    for thread in &live.threads {
        treatment::plan_last(planner, thread);
        regs::plan(planner, live, thread);
    }
}

fn live_of<'a>(planner: &mut Planner<'a>, task: Task) -> Option<Live<'a>> {
    let checkpoint = planner.checkpoint;
    let mut threads = Vec::new();
    for &tid in [task.pid].iter().chain(&task.threads) {
        let origin = Origin::new(format!("core-{tid}.img"), Some(0), format!("thread {tid}"));
        let Some(core) = checkpoint.core(tid) else {
            planner.refuse(Refusal::new(origin, "the image is missing"));
            continue;
        };
        let Some(own) = core.thread_core.as_ref() else {
            planner.refuse(Refusal::new(origin, "thread_core is missing"));
            continue;
        };
        threads.push(Thread {
            pid: task.pid,
            tid,
            core,
            own,
        });
    }
    // A task without tc is refused where the tree is read.
    let tc = checkpoint.core(task.pid)?.tc.as_ref()?;
    Some(Live { task, tc, threads })
}
