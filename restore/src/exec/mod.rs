//! Runs a plan. The executor knows no resource: it makes tasks, runs calls in the actors the plan
//! names, carries descriptors between them and lets everybody go at the end.
//!
//! Phases are barriers. Inside a phase each lane (the tasks that share a descriptor table) has its
//! steps in the plan's order; lanes run at the same time, each as far as its slots are filled, a
//! run of steps as one batch in the task. Any error kills every task made so far and undoes what
//! the broker has put into the file system; so does our own death, by PTRACE_O_EXITKILL.

mod aio;
mod broker;
mod commit;
mod compile;
mod error;
mod load;
mod ring;
pub mod routines;
mod vdso;

use crate::plan::routine::Routine;
use crate::plan::slots::needs;
use crate::plan::step::{Actor, Op, Phase, Plan, SlotId, Step, ThreadState};
use compile::Compiled;
use crust_cli::progress::Progress;
use crust_image::dir::ImageDir;
use crust_image::ids::VirtPid;
use crust_process::error::Error as TaskError;
use crust_process::fds::{PidFd, reserve_own};
use crust_process::making::{Made, Outcome};
use crust_process::pid::HostPid;
use crust_process::scratch::{Area, Scratch, Table};
use crust_process::survivor::Survivor;
pub use error::ExecError;
use error::Why;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use routines::preflight::Opened;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use vdso::HostVdso;

/// Table and data of one lane. Seccomp filters and iovecs are the largest data there is.
const AREA: usize = 128 << 10;
/// Where areas begin: behind the stub and the parked vdso.
const AREAS_AT: usize = vdso::PARKING_AT + vdso::PARKING;

/// What came of a plan.
#[derive(Debug)]
pub struct Restored {
    /// The root, which runs.
    pub root: HostPid,
    /// When each phase ended, from the start of the execution.
    pub phases: Vec<(Phase, Duration)>,
    /// What could not be tidied up behind a tree that runs.
    pub left: Vec<String>,
    /// The first task that could not be let go: it goes on when we end.
    pub unreleased: Option<TaskError>,
}

/// A task being made.
struct Task<'p> {
    leader: Made,
    threads: BTreeMap<VirtPid, Made>,
    lane: usize,
    states: Vec<(Option<VirtPid>, &'p ThreadState)>,
    last_calls: Vec<&'p Step>,
    dead: bool,
}

struct Executor<'p> {
    plan: &'p Plan,
    slots: Vec<Option<OwnedFd>>,
    /// Of each slot that says that a step is done, whether it is.
    done: Vec<bool>,
    scratch: Scratch,
    vdso: HostVdso,
    lanes: HashMap<VirtPid, usize>,
    areas: Vec<Area>,
    tasks: BTreeMap<VirtPid, Task<'p>>,
    own_pidfd: BorrowedFd<'p>,
    /// Those of tasks that descriptors were fetched from.
    pidfds: HashMap<HostPid, PidFd>,
    routines: routines::Ctx<'p>,
    progress: &'p Progress,
}

/// Makes room for the descriptors that we will hold, as far as the hard limit lets us. Before the
/// survivor is there, which shares our table.
pub fn make_room(plan: &Plan) -> nix::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if plan.held > soft {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    reserve_own(usize::try_from(plan.held).unwrap_or(usize::MAX));
    Ok(())
}

/// What to run.
pub struct Run<'p> {
    /// The plan.
    pub plan: &'p Plan,
    /// The images it was made from.
    pub images: &'p ImageDir,
    /// Who is told how far it is.
    pub progress: &'p Progress,
    /// Files of its first phase that are open already.
    pub opened: Opened,
    /// Our pidfd, opened before them: see [`Made::root`].
    pub own_pidfd: BorrowedFd<'p>,
}

/// So many slots, some of which are filled.
fn filled(slots: u32, opened: Opened) -> Vec<Option<OwnedFd>> {
    let mut filled: Vec<Option<OwnedFd>> = (0..slots).map(|_| None).collect();
    for (slot, fd) in opened {
        if let Some(place) = filled.get_mut(slot.0 as usize) {
            *place = Some(fd);
        }
    }
    filled
}

/// Runs the whole plan. On success every task runs, or waits to be continued if it was stopped.
/// `before_release` is called when all is restored and nothing has run yet; its error undoes all.
pub fn execute(
    run: Run<'_>,
    before_release: impl FnOnce(HostPid, Option<&Survivor>) -> Result<(), ExecError>,
) -> Result<Restored, ExecError> {
    let start = Instant::now();
    let mut executor = Executor::new(run)?;
    let mut phases = Vec::new();
    let result = executor.run_phases(start, &mut phases);
    let finished = match result.and_then(|()| executor.finish(before_release)) {
        Ok(finished) => finished,
        Err(error) => {
            executor.kill_all();
            return Err(error);
        }
    };
    phases.push((Phase::Commit, start.elapsed()));
    Ok(Restored {
        root: finished.root,
        phases,
        left: finished.left,
        unreleased: finished.unreleased,
    })
}

impl<'p> Executor<'p> {
    fn new(run: Run<'p>) -> Result<Executor<'p>, ExecError> {
        let Run {
            plan,
            images,
            progress,
            opened,
            own_pidfd,
        } = run;
        let vdso = HostVdso::read().map_err(|why| ExecError::new("find our own vdso", why))?;
        let lanes = lanes_of(plan);
        let lane_count = lanes.values().max().map_or(0, |last| last + 1);
        let len = AREAS_AT + lane_count * AREA;
        let at = vdso::find_gap(&plan.used, len as u64)
            .map_err(|why| ExecError::new("find room for the scratch memory", why))?;
        let scratch = Scratch::map(at, len)
            .map_err(|errno| ExecError::new(format!("map scratch memory at {at:#x}"), errno))?;
        let areas = (0..lane_count)
            .map(|lane| scratch.area(AREAS_AT + lane * AREA, AREA))
            .collect::<Option<_>>()
            .ok_or_else(|| ExecError::new("divide the scratch memory", Errno::E2BIG))?;
        let survivor = start_survivor(plan)?;
        Ok(Executor {
            plan,
            slots: filled(plan.slots, opened),
            done: vec![false; plan.slots as usize],
            scratch,
            vdso,
            lanes,
            areas,
            tasks: BTreeMap::new(),
            own_pidfd,
            pidfds: HashMap::new(),
            routines: routines::Ctx::new(images, survivor),
            progress,
        })
    }

    fn run_phases(
        &mut self,
        start: Instant,
        times: &mut Vec<(Phase, Duration)>,
    ) -> Result<(), ExecError> {
        for steps in self.plan.steps.chunk_by(|a, b| a.phase == b.phase) {
            // The last ones have their place in the commit.
            if steps
                .first()
                .is_some_and(|step| step.phase >= Phase::Network)
            {
                break;
            }
            if let Some(first) = steps.first() {
                self.progress.stage(first.phase.name(), bytes_of(steps));
            }
            self.run_phase(steps)?;
            times.extend(steps.first().map(|step| (step.phase, start.elapsed())));
        }
        Ok(())
    }

    /// Rounds: the broker goes as far as it can, every lane that can go on is started, all are
    /// waited for.
    fn run_phase(&mut self, steps: &'p [Step]) -> Result<(), ExecError> {
        let mut broker: VecDeque<&Step> = VecDeque::new();
        let mut lanes: BTreeMap<usize, VecDeque<&Step>> = BTreeMap::new();
        for step in steps {
            match self.lane_of(step.actor) {
                None => broker.push_back(step),
                Some(lane) => lanes.entry(lane).or_default().push_back(step),
            }
        }
        while !broker.is_empty() || !lanes.is_empty() {
            let mut moved = self.run_broker(&mut broker)?;
            moved |= self.run_lanes(&mut lanes)?;
            lanes.retain(|_, queue| !queue.is_empty());
            if !moved {
                let stuck = broker
                    .front()
                    .or(lanes.values().find_map(|queue| queue.front()));
                let what = stuck.map_or(String::new(), |step| step.origin.to_string());
                return Err(ExecError::new(
                    format!("run the plan: nothing can go on, {what} waits"),
                    Errno::EDEADLK,
                ));
            }
        }
        Ok(())
    }

    fn run_broker(&mut self, queue: &mut VecDeque<&'p Step>) -> Result<bool, ExecError> {
        let mut moved = false;
        while let Some(step) = queue.front().copied().filter(|step| self.is_ready(step)) {
            queue.pop_front();
            self.run_broker_step(step)?;
            self.tell_progress(step);
            self.note_done(step);
            moved = true;
        }
        Ok(moved)
    }

    fn run_lanes(
        &mut self,
        lanes: &mut BTreeMap<usize, VecDeque<&'p Step>>,
    ) -> Result<bool, ExecError> {
        let mut moved = false;
        let mut running = Vec::new();
        for (lane, queue) in lanes.iter_mut() {
            while let Some(step) = queue.front().copied().filter(|step| self.is_ready(step)) {
                moved = true;
                if self.run_special(step)? {
                    queue.pop_front();
                    self.note_done(step);
                } else {
                    running.push(self.start_batch(step.actor, *lane, queue)?);
                    break;
                }
            }
        }
        for compiled in running {
            self.finish_batch(compiled)?;
        }
        Ok(moved)
    }

    /// Ready: its slots are filled and its actor exists.
    fn is_ready(&self, step: &Step) -> bool {
        let actor_exists = match step.actor {
            Actor::Broker => true,
            Actor::Task(pid) => self.tasks.contains_key(&pid),
            Actor::Thread { pid, tid } => self
                .tasks
                .get(&pid)
                .is_some_and(|task| task.threads.contains_key(&tid)),
        };
        let mut ready = actor_exists;
        needs(step, &mut |slot| ready &= self.is_filled(slot));
        ready
    }

    fn is_filled(&self, slot: SlotId) -> bool {
        self.done.get(slot.0 as usize) == Some(&true)
            || self.slots.get(slot.0 as usize).is_some_and(Option::is_some)
    }

    fn note_done(&mut self, step: &Step) {
        let place = step
            .done
            .and_then(|slot| self.done.get_mut(slot.0 as usize));
        place.into_iter().for_each(|done| *done = true);
    }

    fn lane_of(&self, actor: Actor) -> Option<usize> {
        match actor {
            Actor::Broker => None,
            Actor::Task(pid) => self.lanes.get(&pid).copied(),
            Actor::Thread { tid, .. } => self.lanes.get(&tid).copied(),
        }
    }

    /// Steps of a task that are not calls in it.
    fn run_special(&mut self, step: &'p Step) -> Result<bool, ExecError> {
        let (pid, tid) = match step.actor {
            Actor::Broker => return Ok(false),
            Actor::Task(pid) => (pid, None),
            Actor::Thread { pid, tid } => (pid, Some(tid)),
        };
        match &step.op {
            Op::ClearMemory => self.clear_memory(step, pid)?,
            Op::AioRing { .. } => self.make_aio_ring(step, pid)?,
            Op::MapRing { .. } => self.map_ring(step, pid)?,
            large if load::is_large(large) && tid.is_none() => self.load_by_two(step, pid)?,
            Op::Die { status } => self.let_die(step, pid, *status)?,
            Op::Stop { signal } => {
                let task = self.task(step, pid)?;
                let stopped = task.leader.stop_by(*signal);
                stopped.map_err(|error| ExecError::step(step, "", error))?;
            }
            Op::SetRegs(state) => self.task(step, pid)?.states.push((tid, state)),
            Op::LastCall(_) => self.task(step, pid)?.last_calls.push(step),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn task(&mut self, step: &Step, pid: VirtPid) -> Result<&mut Task<'p>, ExecError> {
        let task = self.tasks.get_mut(&pid).filter(|task| !task.dead);
        task.ok_or_else(|| ExecError::step(step, "find the task", Errno::ESRCH))
    }

    /// Starts the longest run of ready steps of one actor as a batch.
    fn start_batch(
        &mut self,
        actor: Actor,
        lane: usize,
        queue: &mut VecDeque<&'p Step>,
    ) -> Result<Running<'p>, ExecError> {
        let mut compiled = Compiled::new(actor);
        let area = self.areas[lane];
        let mut table = Table::new(&self.scratch, area);
        while let Some(step) = queue.front().copied() {
            let fits = step.actor == actor
                && (compiled.is_empty() || self.is_ready(step))
                && compile::is_batched(&step.op);
            if !fits || !compiled.add(self, &mut table, step)? {
                break;
            }
            queue.pop_front();
        }
        let Some(step) = compiled.first_step() else {
            return Err(ExecError::new(
                format!("run a batch in {actor}"),
                Errno::EINVAL,
            ));
        };
        let state = table.mark();
        let made = made_of(&mut self.tasks, actor);
        let made = made.ok_or_else(|| ExecError::step(step, "find the task", Errno::ESRCH))?;
        made.start(&self.scratch, &mut table)
            .map_err(|error| ExecError::step(step, "", error))?;
        Ok(Running {
            compiled,
            area,
            state,
        })
    }

    fn finish_batch(&mut self, running: Running<'p>) -> Result<(), ExecError> {
        let Running {
            compiled,
            area,
            state,
        } = running;
        let batch = || format!("run a batch in {}", compiled.actor);
        let mut table = Table::new(&self.scratch, area);
        table.rewind(state);
        let made = made_of(&mut self.tasks, compiled.actor);
        let made = made.ok_or_else(|| ExecError::new(batch(), Errno::ESRCH))?;
        match made.finish(&table) {
            Ok(Outcome::Done) => {}
            Ok(Outcome::Failed(entry)) => return Err(compiled.failure(entry, table.ret(entry))),
            Ok(Outcome::Exited(status)) => {
                let why = format!("the task died, wait status {status:#x}");
                return Err(ExecError::new(batch(), why));
            }
            Err(error) => return Err(ExecError::new(batch(), error)),
        }
        for step in compiled.into_steps() {
            self.adopt(step)?;
            self.note_done(step);
        }
        Ok(())
    }

    /// Takes charge of what a batch has cloned.
    fn adopt(&mut self, step: &'p Step) -> Result<(), ExecError> {
        self.tell_progress(step);
        match (&step.op, step.actor) {
            (Op::Fork { pid, .. }, Actor::Task(_)) => {
                let leader = adopt_thread(step, *pid)?;
                self.insert_task(*pid, leader);
            }
            (Op::Thread { tid }, Actor::Task(pid)) => {
                let thread = adopt_thread(step, *tid)?;
                self.task(step, pid)?.threads.insert(*tid, thread);
            }
            _ => {}
        }
        Ok(())
    }

    fn tell_progress(&self, step: &Step) {
        let bytes = bytes_of_step(step);
        if bytes > 0 {
            self.progress.add(bytes);
        }
    }

    fn insert_task(&mut self, pid: VirtPid, leader: Made) {
        let lane = self.lanes.get(&pid).copied().unwrap_or(0);
        let task = Task {
            leader,
            threads: BTreeMap::new(),
            lane,
            states: Vec::new(),
            last_calls: Vec::new(),
            dead: false,
        };
        self.tasks.insert(pid, task);
    }

    fn kill_all(&mut self) {
        for (_, task) in std::mem::take(&mut self.tasks) {
            if !task.dead {
                task.leader.kill();
            }
        }
        self.routines.undo();
    }
}

/// Bytes of memory that a step fills.
fn bytes_of_step(step: &Step) -> u64 {
    match &step.op {
        Op::LoadPages { runs, .. } | Op::CopyPages { runs, .. } => {
            runs.iter().fold(0, |sum, run| sum.saturating_add(run.len))
        }
        _ => 0,
    }
}

/// The same of a phase; none if it is not about memory.
fn bytes_of(steps: &[Step]) -> Option<u64> {
    let sum = steps.iter().map(bytes_of_step).fold(0, u64::saturating_add);
    (sum > 0).then_some(sum)
}

/// Somebody has to take back what we cannot if we are killed: names in file systems, the network
/// unlocked, and the first tasks of a tree that were let off EXITKILL when the last were not yet.
fn start_survivor(plan: &Plan) -> Result<Option<Survivor>, ExecError> {
    let ids = |step: &Step| match step.op {
        Op::Fork { pid, .. } => Some(pid),
        Op::Thread { tid } => Some(tid),
        _ => None,
    };
    let taken: HashSet<i32> = plan
        .steps
        .iter()
        .filter_map(|step| Some(ids(step)?.get() as i32))
        .collect();
    let is_fork = |step: &&Step| matches!(step.op, Op::Fork { .. });
    let leaves_something = |step: &Step| {
        matches!(
            step.op,
            Op::Routine(
                Routine::GhostFile { .. }
                    | Routine::OpenGhost { .. }
                    | Routine::OpenLink { .. }
                    | Routine::BindUnix { .. }
                    | Routine::MakeCgroup(_)
                    | Routine::Unlink { .. }
                    | Routine::GoLive(_)
            )
        )
    };
    let is_needed = plan.steps.iter().filter(is_fork).nth(1).is_some()
        || plan.steps.iter().any(leaves_something);
    if !is_needed {
        return Ok(None);
    }
    let started = Survivor::start(&|pid| taken.contains(&pid));
    started
        .map(Some)
        .map_err(|error| ExecError::new("start the survivor", error))
}

fn made_of<'t>(tasks: &'t mut BTreeMap<VirtPid, Task<'_>>, actor: Actor) -> Option<&'t mut Made> {
    match actor {
        Actor::Broker => None,
        Actor::Task(pid) => Some(&mut tasks.get_mut(&pid)?.leader),
        Actor::Thread { pid, tid } => tasks.get_mut(&pid)?.threads.get_mut(&tid),
    }
}

/// A batch on its way.
struct Running<'p> {
    compiled: Compiled<'p>,
    area: Area,
    state: (usize, usize),
}

fn adopt_thread(step: &Step, tid: VirtPid) -> Result<Made, ExecError> {
    let tid = host_pid(step, tid)?;
    Made::adopt(tid).map_err(|error| ExecError::step(step, "", error))
}

/// The pid by which we know a task of the images. We are in the tree's pid namespace, so the
/// numbers are the same; this is the only place that says so.
fn host_pid(step: &Step, pid: VirtPid) -> Result<HostPid, ExecError> {
    HostPid::new(pid.get() as i32)
        .ok_or_else(|| ExecError::step(step, "", format!("{pid} is no pid")))
}

/// Tasks that share a descriptor table are one lane: descriptor 0 is the landing place of one of
/// them at a time. A thread only sets its own state, and has a lane for itself.
fn lanes_of(plan: &Plan) -> HashMap<VirtPid, usize> {
    let mut lanes = HashMap::new();
    let mut count = 0;
    let mut new = || {
        count += 1;
        count - 1
    };
    for step in &plan.steps {
        let (id, lane) = match (&step.op, step.actor) {
            (Op::Fork { pid, flags, .. }, Actor::Task(parent))
                if flags & libc::CLONE_FILES as u64 != 0 =>
            {
                (*pid, lanes.get(&parent).copied())
            }
            (Op::Fork { pid, .. }, _) => (*pid, None),
            (Op::Thread { tid }, _) => (*tid, None),
            _ => continue,
        };
        lanes.insert(id, lane.unwrap_or_else(&mut new));
    }
    lanes
}
