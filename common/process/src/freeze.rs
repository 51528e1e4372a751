//! Stops every thread of a process tree and keeps it stopped.
//!
//! Threads are seized and interrupted; the children of a task are listed when all of its threads
//! stand still, for a frozen task can neither fork nor clone. Only a task that dies meanwhile
//! hands its children to another one, whose list may have been read: then all is looked at again,
//! until a whole pass meets no death and nothing new. Nothing of the tasks is changed, and our
//! death lets all of them go.
//!
//! A leader that has ended while other threads live (pthread_exit in main) is a zombie that nobody
//! can trace; its threads are frozen without it.

mod error;

use crate::cgroup_freezer;
use crate::error::{Error, Result as OsResult};
use crate::kcmp::{TaskObject, task_object};
use crate::leftover;
use crate::memory::TaskMem;
use crate::pid::HostPid;
use crate::proc::ProcDir;
use crate::proc::children::parse_children;
use crate::proc::stat::{Stat, parse_stat};
use crate::proc::status::TaskState as ProcState;
use crate::regs::{RESTART_CODE, Regs};
use crate::steps::step;
use crate::tracee::{self, RseqConfig, SigSet, Stop, Stopped, Wait, options};
pub use error::FreezeError;
use nix::errno::Errno;
use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// PF_KTHREAD of include/linux/sched.h, in the flags of /proc/PID/stat.
const PF_KTHREAD: u32 = 0x0020_0000;

/// What a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Running or sleeping.
    Alive,
    /// Stopped by this signal.
    Stopped(i32),
    /// Dead, not reaped, with this raw wait status.
    Zombie(i32),
}

/// A thread stopped by us.
#[derive(Debug)]
pub struct FrozenThread {
    /// Its handle.
    pub stopped: Stopped,
    /// The registers it goes on with: as found, but an EINTR that is only our doing is undone
    /// and a restartable sequence is aborted, as any preemption may.
    pub regs: Regs,
    /// The signals it blocks.
    pub sigmask: SigSet,
    /// Its restartable sequence.
    pub rseq: Option<RseqConfig>,
}

/// A task of the tree.
#[derive(Debug)]
pub struct FrozenTask {
    /// Its id.
    pub pid: HostPid,
    /// Its parent's id; the root's parent is outside the tree.
    pub ppid: i32,
    /// What it was doing.
    pub state: TaskState,
    /// Its threads, the leader first; none for a zombie.
    pub threads: Vec<FrozenThread>,
    /// The raw wait status of a leader that ended before its threads: it is not among them.
    pub dead_leader: Option<i32>,
}

impl FrozenTask {
    fn new(pid: HostPid, ppid: i32, state: TaskState) -> FrozenTask {
        FrozenTask {
            pid,
            ppid,
            state,
            threads: Vec::new(),
            dead_leader: None,
        }
    }

    /// The thread by which /proc tells of the task, whose leader may be dead: its memory, files
    /// and descriptors are those of any living thread. The task's own id for a zombie.
    pub fn speaker(&self) -> HostPid {
        let first = self.threads.first();
        first.map_or(self.pid, |thread| thread.stopped.tid())
    }
}

/// A frozen tree. Dropping it lets everything go on.
#[derive(Debug)]
pub struct Frozen {
    /// Parents before their children, depth first.
    pub tasks: Vec<FrozenTask>,
    /// How long it took from the first seize to the last stop.
    pub took: Duration,
    /// When the first thread was asked to stop.
    pub since: Instant,
}

/// Freezes the tree below `root`. SIGCHLD must be blocked in all threads of the caller. A thread
/// that has not stopped after `timeout` is an error; whatever was frozen goes on then. With a
/// cgroup, all tasks in it are frozen while those of the tree are asked to stop.
pub fn freeze_tree(
    root: HostPid,
    timeout: Duration,
    cgroup: Option<&Path>,
) -> Result<Frozen, FreezeError> {
    check_root(root)?;
    check_cgroups(root)?;
    let since = Instant::now();
    let mut freezer = Freezer {
        frozen: Frozen {
            tasks: Vec::new(),
            took: Duration::ZERO,
            since,
        },
        places: HashMap::new(),
        seized: HashSet::new(),
        asked: HashSet::new(),
        deaths: 0,
        deadline: since + timeout,
    };
    if let Some(cgroup) = cgroup {
        let frozen = freeze_cgroup(root, cgroup, freezer.deadline)?;
        freezer.ask_all(root)?;
        frozen.thaw()?;
    }
    while freezer.pass(root)? == Pass::Unsettled {}
    freezer.order(root);
    freezer.frozen.took = since.elapsed();
    Ok(freezer.frozen)
}

/// A task in a frozen cgroup does not stop (v1), or stops but runs nothing that we ask of it (v2).
fn check_cgroups(root: HostPid) -> Result<(), FreezeError> {
    for version in [cgroup_freezer::Version::V1, cgroup_freezer::Version::V2] {
        let freezer = cgroup_freezer::Freezer::of_task(root, version);
        if let Some(frozen) = freezer.filter(cgroup_freezer::Freezer::is_frozen) {
            let cgroup = frozen.dir().display().to_string();
            return Err(FreezeError::InFrozenCgroup { pid: root, cgroup });
        }
    }
    Ok(())
}

fn freeze_cgroup(
    root: HostPid,
    dir: &Path,
    deadline: Instant,
) -> Result<cgroup_freezer::FrozenCgroup, FreezeError> {
    let freezer = cgroup_freezer::Freezer::open(dir)?;
    let cgroup = dir.display().to_string();
    if freezer.is_frozen() {
        return Err(FreezeError::InFrozenCgroup { pid: root, cgroup });
    }
    if !freezer.holds(root) {
        return Err(FreezeError::NotInCgroup { pid: root, cgroup });
    }
    if freezer.holds(HostPid::current()) {
        return Err(FreezeError::CgroupContainsUs(cgroup));
    }
    Ok(freezer.freeze(deadline)?)
}

fn check_root(root: HostPid) -> Result<(), FreezeError> {
    let stat = stat_of(root, root)?.ok_or(FreezeError::NoSuchTask(root))?;
    if stat.flags & PF_KTHREAD != 0 {
        return Err(FreezeError::KernelThread(root));
    }
    if stat.state == ProcState::Zombie && thread_ids(root)?.len() < 2 {
        return Err(FreezeError::RootIsZombie(root));
    }
    match status_number(root, "Tgid")? {
        Some(tgid) if tgid != root.get() => Err(FreezeError::NotALeader {
            tid: root,
            tgid: HostPid::new(tgid).unwrap_or(root),
        }),
        _ => Ok(()),
    }
}

/// How a pass over the tree ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Nothing can have been missed.
    Settled,
    /// A task died or was found after others had been looked at.
    Unsettled,
}

struct Freezer {
    frozen: Frozen,
    /// Where each task is in `frozen`.
    places: HashMap<HostPid, usize>,
    seized: HashSet<HostPid>,
    /// Threads that were asked to stop and not waited for yet.
    asked: HashSet<HostPid>,
    /// Tasks and threads met that were dead or died under our hands.
    deaths: usize,
    deadline: Instant,
}

impl Freezer {
    /// One pass over the tree.
    fn pass(&mut self, root: HostPid) -> Result<Pass, FreezeError> {
        let (deaths, mut found) = (self.deaths, false);
        let first = self.frozen.tasks.is_empty();
        let mut todo = vec![root];
        while let Some(pid) = todo.pop() {
            found |= self.freeze_task(pid)?;
            todo.extend(children(pid)?);
        }
        if deaths == self.deaths && (first || !found) {
            Ok(Pass::Settled)
        } else {
            Ok(Pass::Unsettled)
        }
    }

    fn freeze_task(&mut self, pid: HostPid) -> Result<bool, FreezeError> {
        if pid == HostPid::current() {
            return Err(FreezeError::ContainsUs(pid));
        }
        let Some(stat) = stat_of(pid, pid)? else {
            self.deaths += 1;
            return Ok(false);
        };
        let known = self.places.get(&pid).copied();
        let index = match known {
            // A subreaper may have inherited the task since.
            Some(index) => {
                self.frozen.tasks[index].ppid = stat.ppid;
                if matches!(self.frozen.tasks[index].state, TaskState::Zombie(_)) {
                    return Ok(false);
                }
                index
            }
            None if stat.state == ProcState::Zombie && thread_ids(pid)?.len() < 2 => {
                self.deaths += 1;
                self.add(pid, stat.ppid, TaskState::Zombie(stat.exit_code));
                return Ok(true);
            }
            None => self.add(pid, stat.ppid, TaskState::Alive),
        };
        let mut found = known.is_none();
        while self.freeze_new_threads(index)? {
            found = true;
        }
        let task = &mut self.frozen.tasks[index];
        if task.threads.is_empty() {
            // It died between the listing and the seize; the next pass sees what became of it.
            self.deaths += 1;
            self.remove(index);
            return Ok(true);
        }
        task.dead_leader = None;
        if task.threads[0].stopped.tid() != pid {
            task.dead_leader = stat_of(pid, pid)?.map(|stat| stat.exit_code);
        }
        Ok(found)
    }

    /// Seizes every thread of a tree whose cgroup is frozen and asks it to stop, which it does when
    /// the cgroup is thawed.
    fn ask_all(&mut self, root: HostPid) -> Result<(), FreezeError> {
        let mut todo = vec![root];
        while let Some(pid) = todo.pop() {
            if pid == HostPid::current() {
                return Err(FreezeError::ContainsUs(pid));
            }
            for tid in thread_ids(pid)? {
                if self.seize(pid, tid)? {
                    self.seized.insert(tid);
                    self.asked.insert(tid);
                    interrupt_if_there(tid)?;
                }
            }
            todo.extend(children(pid)?);
        }
        Ok(())
    }

    fn add(&mut self, pid: HostPid, ppid: i32, state: TaskState) -> usize {
        let index = self.frozen.tasks.len();
        self.frozen.tasks.push(FrozenTask::new(pid, ppid, state));
        self.places.insert(pid, index);
        index
    }

    fn remove(&mut self, index: usize) {
        let gone = self.frozen.tasks.swap_remove(index);
        self.places.remove(&gone.pid);
        if let Some(moved) = self.frozen.tasks.get(index) {
            self.places.insert(moved.pid, index);
        }
    }

    /// Seizes and stops the threads not yet ours; all are asked before any is waited for.
    fn freeze_new_threads(&mut self, index: usize) -> Result<bool, FreezeError> {
        let pid = self.frozen.tasks[index].pid;
        let mut asked = Vec::new();
        let mut waiting = Vec::new();
        for tid in thread_ids(pid)? {
            if self.asked.remove(&tid) {
                waiting.push(tid);
            } else if !self.seized.contains(&tid) && self.seize(pid, tid)? {
                self.seized.insert(tid);
                asked.push(tid);
            }
        }
        for tid in &asked {
            interrupt_if_there(*tid)?;
        }
        asked.append(&mut waiting);
        let mut reader = None;
        for tid in &asked {
            self.wait_for(index, *tid, &mut reader)?;
        }
        self.frozen.tasks[index].threads.sort_by_key(|thread| {
            let tid = thread.stopped.tid();
            (tid != pid, tid)
        });
        Ok(!asked.is_empty())
    }

    fn seize(&self, pid: HostPid, tid: HostPid) -> Result<bool, FreezeError> {
        let error = match seize_with_seccomp(tid) {
            Ok(()) => return Ok(true),
            Err(error) => error,
        };
        let Some(stat) = stat_of(pid, tid)? else {
            return Ok(false);
        };
        if matches!(stat.state, ProcState::Zombie | ProcState::Dead) {
            return Ok(false);
        }
        match status_number(tid, "TracerPid")? {
            Some(tracer) if tracer != 0 => Err(FreezeError::Traced { pid, tid, tracer }),
            _ => Err(error.into()),
        }
    }

    fn wait_for(
        &mut self,
        index: usize,
        tid: HostPid,
        reader: &mut Option<Reader>,
    ) -> Result<(), FreezeError> {
        let pid = self.frozen.tasks[index].pid;
        let stop = match tracee::wait_stopped(tid, Some(self.deadline)) {
            Ok(Wait::Stopped(stop)) => stop,
            Ok(Wait::Exited(_)) => {
                self.deaths += 1;
                return Ok(());
            }
            Err(error) if error.errno == Errno::ETIMEDOUT => {
                let stat = stat_of(pid, tid)?;
                let state = stat.map_or(ProcState::Dead, |stat| stat.state);
                return Err(match vfork_child(pid)? {
                    Some(child) => FreezeError::Vfork { pid, tid, child },
                    None => FreezeError::Unstoppable { pid, tid, state },
                });
            }
            Err(error) => return Err(error.into()),
        };
        if let Stop::Group(signal) = stop {
            self.frozen.tasks[index].state = TaskState::Stopped(signal);
        }
        let stopped = Stopped::new(tid, stop);
        if is_worker(pid, &stopped)? {
            return Ok(stopped.detach()?);
        }
        match Reader::of(reader, pid, tid).and_then(|reader| FrozenThread::read(reader, stopped)) {
            Ok(thread) => self.frozen.tasks[index].threads.push(thread),
            Err(error) if error.is_gone() => self.deaths += 1,
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Brings parents before their children, siblings in order of their pids.
    fn order(&mut self, root: HostPid) {
        let mut left: HashMap<i32, FrozenTask> = HashMap::new();
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        for task in std::mem::take(&mut self.frozen.tasks) {
            children.entry(task.ppid).or_default().push(task.pid.get());
            left.insert(task.pid.get(), task);
        }
        let mut todo = vec![root.get()];
        while let Some(pid) = todo.pop() {
            self.frozen.tasks.extend(left.remove(&pid));
            let mut below = children.remove(&pid).unwrap_or_default();
            // Descending, so that the lowest is popped first.
            below.sort_unstable_by_key(|pid| std::cmp::Reverse(*pid));
            todo.append(&mut below);
        }
        // Reparented out of the tree while it was being frozen: no part of it any more.
    }
}

/// Filters must rest, or the first call of ours that a filter dislikes kills the task. An
/// unprivileged dumper may not ask for it, and then must not touch a filtered task.
fn seize_with_seccomp(tid: HostPid) -> OsResult<()> {
    match tracee::seize(tid, options::SUSPEND_SECCOMP) {
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::EPERM) => {
            match status_number(tid, "Seccomp") {
                Ok(Some(0)) => tracee::seize(tid, 0),
                Ok(_) => Err(error),
                Err(unreadable) => Err(unreadable),
            }
        }
        other => other,
    }
}

/// What is needed to look at the threads of one task.
struct Reader {
    pid: HostPid,
    mem: TaskMem,
    /// Where threads were stopped that is not inside a stub: many wait at the same place.
    outside: RefCell<HashSet<u64>>,
}

impl Reader {
    /// That of the task, opened by the first thread that has stopped: the leader may be dead.
    fn of(known: &mut Option<Reader>, pid: HostPid, thread: HostPid) -> OsResult<&Reader> {
        Ok(match known {
            Some(reader) => reader,
            None => known.insert(Reader {
                pid,
                mem: TaskMem::of_thread(pid, thread)?,
                outside: RefCell::default(),
            }),
        })
    }

    /// Leads a thread out of the stub of a dead dumper; gives the registers it has then.
    fn lead_out(&self, stopped: &mut Stopped) -> OsResult<Regs> {
        let regs = stopped.regs()?;
        if self.outside.borrow().contains(&regs.0.rip) {
            return Ok(regs);
        }
        if leftover::lead_out(&self.mem, stopped)? {
            return stopped.regs();
        }
        self.outside.borrow_mut().insert(regs.0.rip);
        Ok(regs)
    }
}

impl FrozenThread {
    fn read(reader: &Reader, mut stopped: Stopped) -> OsResult<FrozenThread> {
        let pid = reader.pid;
        let found = reader.lead_out(&mut stopped)?;
        let mut thread = FrozenThread {
            regs: found,
            sigmask: stopped.sigmask()?,
            rseq: stopped.rseq()?,
            stopped,
        };
        if thread.stopped.signal_in_hand() == 0 && !thread.has_deliverable_signal(pid)? {
            thread.regs.undo_tracer_eintr();
        }
        if thread.regs.is_restarting() {
            let mut code = [0; RESTART_CODE];
            let at = thread.regs.0.rip.wrapping_sub(RESTART_CODE as u64);
            // Where nothing can be read nothing is named.
            let _ = reader.mem.read_exact_at(at, &mut code);
            thread.regs.name_restarted_call(code);
        }
        thread.abort_rseq(&reader.mem)?;
        if thread.regs.0.rip != found.0.rip {
            // Now, not at the thaw: what we read from here on is what the thread goes on with.
            thread.stopped.set_regs(&thread.regs)?;
        }
        Ok(thread)
    }

    fn has_deliverable_signal(&self, pid: HostPid) -> OsResult<bool> {
        if !matches!(self.regs.0.rax as i64, -4) || self.regs.syscall().is_none() {
            return Ok(false);
        }
        let tid = self.stopped.tid();
        let private = status_hex(pid, tid, "SigPnd")?.unwrap_or(0);
        let shared = status_hex(pid, tid, "ShdPnd")?.unwrap_or(0);
        Ok((private | shared) & !self.sigmask != 0)
    }

    /// A thread inside a restartable sequence must not be resumed there by us: the kernel forgets
    /// the sequence when the thread runs our code, and would not abort it later. We abort it
    /// right away, as the kernel does at any preemption (kernel/rseq.c, rseq_ip_fixup).
    fn abort_rseq(&mut self, mem: &TaskMem) -> OsResult<()> {
        const RSEQ_CS_OFFSET: u64 = 8;
        let Some(config) = self.rseq else {
            return Ok(());
        };
        if self.regs.syscall().is_some() {
            return Ok(());
        }
        let cs_at = config.pointer + RSEQ_CS_OFFSET;
        let Ok(cs) = mem.read_u64(cs_at) else {
            return Ok(());
        };
        if cs == 0 {
            return Ok(());
        }
        // struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip.
        let mut words = [0; 32];
        mem.read_exact_at(cs, &mut words)?;
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| words[at + i]));
        let (start, length, abort) = (word(8), word(16), word(24));
        if self.regs.0.rip.wrapping_sub(start) < length {
            self.regs.0.rip = abort;
        }
        Ok(())
    }
}

impl Frozen {
    /// Lets every thread go on as it was. All threads are tried; the first error is returned. A
    /// thread killed meanwhile is no error.
    pub fn thaw(mut self) -> OsResult<()> {
        self.detach_all()
    }

    /// Kills every task and waits until all are gone.
    pub fn kill(mut self) -> OsResult<()> {
        let tasks = std::mem::take(&mut self.tasks);
        let mut result = Ok(());
        for task in tasks.iter().filter(|task| !task.threads.is_empty()) {
            step();
            let sent = nix::sys::signal::kill(task.pid.into(), nix::sys::signal::SIGKILL);
            if let Err(errno) = sent
                && errno != Errno::ESRCH
            {
                result = Err(Error::new(task.pid, "kill", errno));
            }
        }
        result?;
        for task in &tasks {
            // The leader is reported last, when the other threads have been reaped.
            for thread in task.threads.iter().rev() {
                wait_for_exit(thread.stopped.tid())?;
            }
        }
        Ok(())
    }

    /// Stops every task with SIGSTOP and lets go: each is found stopped.
    pub fn leave_stopped(mut self) -> OsResult<()> {
        let mut told = Vec::new();
        for task in &self.tasks {
            if task.state == TaskState::Alive {
                step();
                let sent = nix::sys::signal::kill(task.pid.into(), nix::sys::signal::SIGSTOP);
                sent.map_err(|errno| Error::new(task.pid, "kill(SIGSTOP)", errno))?;
                told.push(task.pid);
            }
        }
        let detached = self.detach_all();
        told.into_iter().for_each(wait_until_stopped_again);
        detached
    }

    fn detach_all(&mut self) -> OsResult<()> {
        let stopped = |task: &&FrozenTask| matches!(task.state, TaskState::Stopped(_));
        let stopped: Vec<HostPid> = self
            .tasks
            .iter()
            .filter(stopped)
            .map(|task| task.pid)
            .collect();
        let mut result = Ok(());
        for thread in self.tasks.drain(..).flat_map(|task| task.threads) {
            match thread.stopped.detach() {
                Err(error) if !error.is_gone() && result.is_ok() => result = Err(error),
                _ => {}
            }
        }
        stopped.into_iter().for_each(wait_until_stopped_again);
        result
    }
}

/// A stopped task that is detached runs for a moment inside the kernel before it stops again
/// (ptrace(2), "the transition is visible"), and so does one that finds its SIGSTOP then; we are done
/// when it has. Nobody but its parent is
/// told, so /proc is asked. It may have been continued or killed meanwhile: that is not awaited.
pub fn wait_until_stopped_again(pid: HostPid) {
    const MOMENT: Duration = Duration::from_millis(100);
    let end = Instant::now() + MOMENT;
    let runs = || {
        let stat = stat_of(pid, pid).ok().flatten();
        stat.is_some_and(|stat| stat.state != ProcState::Stopped)
    };
    while runs() && Instant::now() < end {
        std::thread::yield_now();
    }
}

impl Drop for Frozen {
    /// The safety net of an early return. An error means the thread is gone.
    fn drop(&mut self) {
        let _ = self.detach_all();
    }
}

fn wait_for_exit(tid: HostPid) -> OsResult<()> {
    loop {
        match tracee::wait_blocking(tid) {
            Ok(Wait::Exited(_)) => return Ok(()),
            Ok(Wait::Stopped(_)) => {}
            // Reaped with its leader.
            Err(error) if error.errno == Errno::ECHILD => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Whether a thread is one of the kernel's own in a process: a worker of an io_uring or of vhost,
/// which stops and is listed as others are but has no user code, so no registers for any
/// (copy_thread of arch/x86/kernel/process.c). The kernel makes it when it needs it, and a request
/// that it is working on is found with the ring.
fn is_worker(pid: HostPid, stopped: &Stopped) -> OsResult<bool> {
    /// PF_IO_WORKER and PF_USER_WORKER of include/linux/sched.h.
    const WORKER: u32 = 0x10 | 0x4000;
    let regs = match stopped.regs() {
        Err(error) if error.is_gone() => return Ok(false),
        regs => regs?.0,
    };
    if (regs.rip, regs.rsp) != (0, 0) {
        return Ok(false);
    }
    let stat = stat_of(pid, stopped.tid())?;
    Ok(stat.is_some_and(|stat| stat.flags & WORKER != 0))
}

/// The ids of a task's threads; none if it is gone.
fn thread_ids(pid: HostPid) -> OsResult<Vec<HostPid>> {
    let path = format!("/proc/{pid}/task");
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(pid, format!("list {path}"), &error)),
    };
    let mut tids = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => tids.extend(parse_pid(&entry.file_name().to_string_lossy())),
            Err(error) if is_gone(&error) => break,
            Err(error) => return Err(Error::io(pid, format!("list {path}"), &error)),
        }
    }
    Ok(tids)
}

/// The children of all threads of a task.
fn children(pid: HostPid) -> OsResult<Vec<HostPid>> {
    let mut children = Vec::new();
    let mut text = Vec::new();
    let dir = match ProcDir::open(pid) {
        Err(error) if error.errno == Errno::ENOENT => return Ok(children),
        dir => dir?,
    };
    for tid in thread_ids(pid)? {
        let name = format!("task/{tid}/children");
        match dir.read_into(&name, &mut text) {
            Ok(()) => {
                let pids = parse_children(&text).map_err(|error| {
                    Error::new(pid, format!("parse {name}: {error}"), Errno::EPROTO)
                })?;
                children.extend(pids.into_iter().filter_map(HostPid::new));
            }
            Err(error) if matches!(error.errno, Errno::ENOENT | Errno::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

/// The child that runs in its parent's memory.
fn vfork_child(pid: HostPid) -> OsResult<Option<HostPid>> {
    for child in children(pid)? {
        match task_object(TaskObject::Vm, pid, child) {
            Ok(Ordering::Equal) => return Ok(Some(child)),
            Err(error) if !error.is_gone() => return Err(error),
            _ => {}
        }
    }
    Ok(None)
}

fn interrupt_if_there(tid: HostPid) -> OsResult<()> {
    match tracee::interrupt(tid) {
        Err(error) if !error.is_gone() => Err(error),
        _ => Ok(()),
    }
}

fn parse_pid(text: &str) -> Option<HostPid> {
    text.parse().ok().and_then(HostPid::new)
}

fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// /proc/PID/task/TID/stat; `None` if the thread is gone.
fn stat_of(pid: HostPid, tid: HostPid) -> OsResult<Option<Stat>> {
    let path = format!("/proc/{pid}/task/{tid}/stat");
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(Error::io(tid, format!("read {path}"), &error)),
    };
    parse_stat(&bytes)
        .map(Some)
        .map_err(|error| Error::new(tid, format!("parse {path}: {error}"), Errno::EPROTO))
}

fn status_number(tid: HostPid, key: &str) -> OsResult<Option<i32>> {
    Ok(status_line(tid, tid, key)?.and_then(|value| value.parse().ok()))
}

fn status_hex(pid: HostPid, tid: HostPid, key: &str) -> OsResult<Option<u64>> {
    Ok(status_line(pid, tid, key)?.and_then(|value| u64::from_str_radix(&value, 16).ok()))
}

fn status_line(pid: HostPid, tid: HostPid, key: &str) -> OsResult<Option<String>> {
    let path = format!("/proc/{pid}/task/{tid}/status");
    let bytes = match fs::read(if pid == tid {
        format!("/proc/{tid}/status")
    } else {
        path.clone()
    }) {
        Ok(bytes) => bytes,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(Error::io(tid, format!("read {path}"), &error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    Ok(line.map(|value| value.trim().to_owned()))
}
