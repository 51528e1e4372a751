//! The beginning and the end of a task's life under us: its memory is cleared, helpers and
//! zombies die, and at last the scratch memory goes, registers are set and everybody is let go.
//!
//! All that may fail comes before the action scripts and the network, but for the tasks that have
//! timers: these are armed behind the scripts, which may take any time, and so the scratch memory
//! stays in their tasks until then.

use super::{AREA, Actor, ExecError, Executor, Task, Why, compile, host_pid, vdso};
use crate::plan::step::{Op, Phase, Plan, Step, ThreadState};
use crust_image::ids::VirtPid;
use crust_process::error::Error as TaskError;
use crust_process::fds::{PidFd, close_all};
use crust_process::freeze::wait_until_stopped_again;
use crust_process::making::{Made, Outcome};
use crust_process::pid::HostPid;
use crust_process::regs::Regs;
use crust_process::scratch::{Check, Table};
use crust_process::survivor::Survivor;
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

/// RSEQ_FLAG_UNREGISTER of rseq(2).
const RSEQ_UNREGISTER: u64 = 1;
const SYS_RSEQ: i64 = 334;
/// Bytes of the kernel's struct sigaction: handler, flags, restorer, mask.
const KERNEL_SIGACTION: usize = 32;
const LAST_SIGNAL: u64 = 64;
const SIGKILL: u64 = libc::SIGKILL as u64;
const SIGSTOP: u64 = libc::SIGSTOP as u64;

/// What a call is for, its number and its arguments.
type RawCall = (String, i64, [u64; 6]);

/// What came of the end of a restore.
pub(super) struct Finished {
    pub(super) root: HostPid,
    pub(super) left: Vec<String>,
    pub(super) unreleased: Option<TaskError>,
}

/// A task on its way out of the scratch memory.
struct Leaving {
    pid: VirtPid,
    /// Address of a `syscall` instruction.
    gadget: u64,
    calls: Vec<RawCall>,
}

impl<'p> Executor<'p> {
    /// Address of the parked vdso.
    pub(super) fn parking(&self) -> u64 {
        self.scratch.base() + vdso::PARKING_AT as u64
    }

    /// Leaves a task with the scratch memory, the parked vdso and our pidfd.
    pub(super) fn clear_memory(&mut self, step: &'p Step, pid: VirtPid) -> Result<(), ExecError> {
        use std::os::fd::AsRawFd;
        let (own_pidfd, at) = (
            self.own_pidfd.as_raw_fd() as u64,
            self.plan.broker_fd as u64,
        );
        let (parking, vdso) = (self.parking(), self.vdso.clone());
        let scratch = self.scratch.base()..self.scratch.base() + self.scratch.len() as u64;
        let task = self.task(step, pid)?;
        let rseq = task.leader.stopped().rseq();
        let rseq = rseq.map_err(|error| ExecError::step(step, "", error))?;
        self.run_own_calls(step, pid, |default_action, calls| {
            // CLONE_CLEAR_SIGHAND keeps what our own parent had us ignore (kernel/fork.c,
            // copy_sighand: flush_signal_handlers without force).
            for signal in (1..=LAST_SIGNAL).filter(|n| ![SIGKILL, SIGSTOP].contains(n)) {
                calls(libc::SYS_rt_sigaction, [signal, default_action, 0, 8, 0, 0])?;
            }
            if let Some(rseq) = rseq {
                // A registration that outlives its memory is a SIGSEGV at the next return to
                // user space.
                let size = u64::from(rseq.size);
                let signature = u64::from(rseq.signature);
                calls(
                    SYS_RSEQ,
                    [rseq.pointer, size, RSEQ_UNREGISTER, signature, 0, 0],
                )?;
            }
            calls(
                libc::SYS_prctl,
                [libc::PR_SET_PDEATHSIG as u64, 0, 0, 0, 0, 0],
            )?;
            // Out of our table before anything is done to it: of what is not kept nothing is copied.
            let unshare = libc::CLOSE_RANGE_UNSHARE.into();
            let behind = [own_pidfd + 1, u32::MAX.into(), unshare, 0, 0, 0];
            calls(libc::SYS_close_range, behind)?;
            if own_pidfd != at {
                calls(
                    libc::SYS_dup3,
                    [own_pidfd, at, libc::O_CLOEXEC as u64, 0, 0, 0],
                )?;
            }
            if at > 0 {
                calls(libc::SYS_close_range, [0, at - 1, 0, 0, 0, 0])?;
            }
            calls(libc::SYS_close_range, [at + 1, u32::MAX.into(), 0, 0, 0, 0])?;
            for area in &vdso.areas {
                let (offset, len) = (area.start - vdso.start(), area.end - area.start);
                let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
                calls(
                    libc::SYS_mremap,
                    [area.start, len, len, flags, parking + offset, 0],
                )?;
            }
            calls(libc::SYS_munmap, [0, scratch.start, 0, 0, 0, 0])?;
            calls(
                libc::SYS_munmap,
                [scratch.end, vdso::TASK_SIZE - scratch.end, 0, 0, 0, 0],
            )
        })
    }

    /// Runs calls of the executor itself in a task's leader; each must answer without an error.
    /// `write` is given the address of an all-zero sigaction.
    fn run_own_calls(
        &mut self,
        step: &'p Step,
        pid: VirtPid,
        write: impl FnOnce(u64, &mut dyn FnMut(i64, [u64; 6]) -> Option<()>) -> Option<()>,
    ) -> Result<(), ExecError> {
        let lane = self.task(step, pid)?.lane;
        let mut table = Table::new(&self.scratch, self.areas[lane]);
        let mut names = Vec::new();
        let default_action = table.data(&[0; KERNEL_SIGACTION]);
        let written = default_action.and_then(|address| {
            write(address, &mut |nr, args| {
                names.push(nr);
                table.push(nr, args, Check::Ok).map(drop)
            })
        });
        written
            .ok_or_else(|| ExecError::step(step, "", format!("more than {AREA} bytes of calls")))?;
        let gone = || ExecError::step(step, "find the task", Errno::ESRCH);
        let task = self.tasks.get_mut(&pid).ok_or_else(gone)?;
        let outcome = task
            .leader
            .start(&self.scratch, &mut table)
            .and_then(|()| task.leader.finish(&table))
            .map_err(|error| ExecError::step(step, "", error))?;
        match outcome {
            Outcome::Done => Ok(()),
            Outcome::Failed(entry) => {
                let errno = Errno::from_raw(-table.ret(entry) as i32);
                let doing = format!("system call {}", names.get(entry).copied().unwrap_or(-1));
                Err(ExecError::step(step, &doing, errno))
            }
            Outcome::Exited(status) => Err(ExecError::step(
                step,
                "",
                format!("the task died, wait status {status:#x}"),
            )),
        }
    }

    /// The task dies by its own hand with this raw wait status. We take the tracer's notice of
    /// it; it stays a zombie for its parent.
    pub(super) fn let_die(
        &mut self,
        step: &'p Step,
        pid: VirtPid,
        status: i32,
    ) -> Result<(), ExecError> {
        let lane = self.task(step, pid)?.lane;
        let signal = status & 0x7f;
        let tid = host_pid(step, pid)?.get() as u64;
        let mut table = Table::new(&self.scratch, self.areas[lane]);
        let pushed = if signal == 0 {
            let code = (status >> 8 & 0xff) as u64;
            table.push(libc::SYS_exit_group, [code, 0, 0, 0, 0, 0], Check::Any)
        } else {
            // No core file: the program that dumped core is long dead.
            let limit = table.data(&[0; 16]);
            let core = u64::from(libc::RLIMIT_CORE);
            let open_mask = table.data(&[0; 8]);
            limit.zip(open_mask).and_then(|(limit, mask)| {
                table.push(libc::SYS_prlimit64, [0, core, limit, 0, 0, 0], Check::Any)?;
                let args = [tid, signal as u64, 0, 0, 0, 0];
                table.push(libc::SYS_kill, args, Check::Any)?;
                let args = [libc::SIG_SETMASK as u64, mask, 0, 8, 0, 0];
                table.push(libc::SYS_rt_sigprocmask, args, Check::Any)
            })
        };
        pushed.ok_or_else(|| ExecError::step(step, "", Errno::E2BIG))?;
        let gone = || ExecError::step(step, "find the task", Errno::ESRCH);
        let task = self.tasks.get_mut(&pid).ok_or_else(gone)?;
        let mut die = || {
            task.leader.start(&self.scratch, &mut table)?;
            // A leader's end is told only when its other threads have been reaped.
            for (_, mut thread) in std::mem::take(&mut task.threads) {
                thread.wait_for_death()?;
            }
            task.leader.wait_for_death()
        };
        let died = die().map_err(|error| ExecError::step(step, "", error))?;
        task.dead = true;
        // Bit 7 says that a core was written, which is not done twice.
        if died & 0xff7f != status & 0xff7f {
            let why = format!("its wait status is {died:#x}, not {status:#x}");
            return Err(ExecError::step(step, "", why));
        }
        Ok(())
    }

    /// Everything is in place: the last calls, the last unmapping, the registers; then all go.
    pub(super) fn finish(
        &mut self,
        before_release: impl FnOnce(HostPid, Option<&Survivor>) -> Result<(), ExecError>,
    ) -> Result<Finished, ExecError> {
        let root = self
            .plan
            .root
            .and_then(|root| HostPid::new(root.get() as i32));
        let root = root.ok_or_else(|| ExecError::new("find the root of the plan", Errno::ESRCH))?;
        let host_xstate = self.host_xstate()?;
        let late = with_timers(self.plan);
        self.complete(|pid| !late.contains(&pid), host_xstate)?;
        self.routines
            .finish()
            .map_err(|why| ExecError::new("remove temporary names", why))?;
        before_release(root, self.routines.survivor())?;
        self.go_live()?;
        self.arm_timers()?;
        self.complete(|pid| late.contains(&pid), host_xstate)?;
        // A reader must not find us among the writers of its pipe when it goes on.
        close_all(std::mem::take(&mut self.slots).into_iter().flatten());
        let (left, unreleased) = self.release_all()?;
        Ok(Finished {
            root,
            left,
            unreleased,
        })
    }

    /// The last calls and the registers of some of the tasks.
    fn complete(
        &mut self,
        is_meant: impl Fn(VirtPid) -> bool,
        host_xstate: usize,
    ) -> Result<(), ExecError> {
        self.leave_scratch(&is_meant)?;
        let tasks = self.tasks.iter().filter(|(pid, _)| is_meant(**pid));
        for (_, task) in tasks.filter(|(_, task)| !task.dead) {
            set_states(task, host_xstate)?;
        }
        Ok(())
    }

    fn arm_timers(&mut self) -> Result<(), ExecError> {
        let steps = self.plan.steps.as_slice();
        let first = steps.partition_point(|step| step.phase < Phase::Timers);
        self.run_phase(steps.get(first..).unwrap_or_default())
    }

    /// The broker's steps of the network's phase: no task takes part any more.
    fn go_live(&mut self) -> Result<(), ExecError> {
        let plan = self.plan;
        for step in &plan.steps {
            if step.phase == Phase::Network {
                self.run_broker_step(step)?;
            }
        }
        Ok(())
    }

    /// The last calls of these tasks, the unmapping of the scratch memory behind them: by the vdso's
    /// own `syscall`, for the stub's page is what goes. All of them make their first call at the
    /// same time, then their second.
    fn leave_scratch(&mut self, is_meant: impl Fn(VirtPid) -> bool) -> Result<(), ExecError> {
        let vdsos = self.vdsos();
        let living = self.tasks.iter().filter(|(_, task)| !task.dead);
        let living = living.filter(|(pid, _)| is_meant(**pid));
        let mut leaving = Vec::new();
        for (pid, task) in living {
            let vdso = vdsos.get(pid).copied().ok_or_else(|| {
                let what = format!("find a system call instruction in {pid}");
                ExecError::new(what, "the images have no vdso like this kernel's")
            })?;
            if !task.last_calls.is_empty() {
                // No breakpoint follows, and a SIGTRAP may be put into the queue.
                let blocked = task.leader.stopped().set_sigmask(!0);
                blocked.map_err(|error| {
                    ExecError::new(format!("block all signals of {pid}"), error)
                })?;
            }
            leaving.push(Leaving {
                pid: *pid,
                gadget: vdso + self.vdso.syscall_at,
                calls: self.calls_at_end(*pid, task)?,
            });
        }
        // All make their last call together: the scratch memory may be that of several tasks.
        let most = leaving.iter().map(|task| task.calls.len()).max();
        for left in (1..=most.unwrap_or(0)).rev() {
            self.make_calls(&leaving, left)?;
        }
        Ok(())
    }

    /// The size of the extended state, which is that of any task of this host.
    fn host_xstate(&self) -> Result<usize, ExecError> {
        let Some(task) = self.tasks.values().find(|task| !task.dead) else {
            return Ok(0);
        };
        let area = task.leader.stopped().xstate();
        let area = area.map_err(|error| ExecError::new("read the extended state", error))?;
        Ok(area.len())
    }

    /// The calls that a task makes without the scratch memory.
    fn calls_at_end(&self, pid: VirtPid, task: &Task<'p>) -> Result<Vec<RawCall>, ExecError> {
        let lane = self.lanes.get(&pid).copied().unwrap_or(0);
        let mut table = Table::new(&self.scratch, self.areas[lane]);
        let mut calls = Vec::new();
        for &step in &task.last_calls {
            let Op::LastCall(call) = &step.op else {
                continue;
            };
            let mut args = [0; 6];
            for (to, arg) in args.iter_mut().zip(&call.args) {
                *to = compile::argument(self, &mut table, step, arg)?
                    .ok_or_else(|| ExecError::step(step, call.name, Errno::E2BIG))?;
            }
            calls.push((format!("restore {}", step.origin), call.nr, args));
        }
        let broker_fd = [self.plan.broker_fd as u64, 0, 0, 0, 0, 0];
        calls.push(("close our pidfd".into(), libc::SYS_close, broker_fd));
        let (base, len) = (self.scratch.base(), self.scratch.len() as u64);
        let scratch = [base, len, 0, 0, 0, 0];
        calls.push(("unmap the scratch memory".into(), libc::SYS_munmap, scratch));
        Ok(calls)
    }

    /// The call of every task behind which so many are left with it, if it has so many.
    fn make_calls(&mut self, leaving: &[Leaving], left: usize) -> Result<(), ExecError> {
        type Part = fn(&mut Made, u64, i64, [u64; 6]) -> crust_process::error::Result<i64>;
        let parts: [Part; 3] = [
            |made, gadget, nr, args| made.begin_call(gadget, nr, args).map(|()| 0),
            |made, _, _, _| made.enter_call().map(|()| 0),
            |made, _, _, _| made.end_call(),
        ];
        for part in parts {
            for task in leaving {
                let nth = task.calls.len().checked_sub(left);
                let Some((what, nr, args)) = nth.and_then(|nth| task.calls.get(nth)) else {
                    continue;
                };
                let error = |why: Why| ExecError::new(format!("{what} in {}", task.pid), why);
                let Some(made) = self.tasks.get_mut(&task.pid) else {
                    continue;
                };
                let answer = part(&mut made.leader, task.gadget, *nr, *args);
                let answer = answer.map_err(|why| error(why.into()))?;
                // The table may be shared, and closed by the first of its users.
                let closed_before = *nr == libc::SYS_close && answer == -i64::from(libc::EBADF);
                if answer < 0 && !closed_before {
                    return Err(error(Errno::from_raw(-answer as i32).into()));
                }
            }
        }
        Ok(())
    }

    /// Where the vdso is in each task: where the plan has moved it, for all in the address space.
    fn vdsos(&self) -> BTreeMap<VirtPid, u64> {
        let spaces = spaces_of(self.plan);
        let moved = self.plan.steps.iter().filter_map(|step| match &step.op {
            Op::MoveVdso { areas } => Some((step.actor, areas)),
            _ => None,
        });
        let starts: BTreeMap<VirtPid, u64> = moved
            .filter_map(|(actor, areas)| match actor {
                Actor::Task(pid) => Some((*spaces.get(&pid)?, self.vdso.start_in(areas)?)),
                _ => None,
            })
            .collect();
        let of_task = |(pid, space): (&VirtPid, &VirtPid)| Some((*pid, *starts.get(space)?));
        spaces.iter().filter_map(of_task).collect()
    }

    /// First our death must not kill anybody any more, then everybody goes. Until the last one is
    /// let off the survivor holds the first ones to their end. Gives what could not be tidied up.
    /// What could not be tidied up, and the first task that could not be let go. That is no failure
    /// of the restore any more: the whole tree lives, and goes on at the latest when we end.
    fn release_all(&mut self) -> Result<(Vec<String>, Option<TaskError>), ExecError> {
        let mut unreleased = None;
        let failed = |error| ExecError::new("let the tree go", error);
        let held = self.hold_by_survivor().map_err(failed)?;
        for task in self.tasks.values().filter(|task| !task.dead) {
            for made in std::iter::once(&task.leader).chain(task.threads.values()) {
                made.outlive_us().map_err(failed)?;
            }
        }
        let left = self.routines.commit();
        drop(held);
        for (_, task) in std::mem::take(&mut self.tasks) {
            if task.dead {
                continue;
            }
            for released in let_go(task) {
                // Somebody has killed it meanwhile, as may happen to any task.
                if let Err(error) = released
                    && !error.is_gone()
                {
                    unreleased = unreleased.or(Some(error));
                }
            }
        }
        for step in &self.plan.steps {
            if let (Op::Stop { .. }, Actor::Task(pid)) = (&step.op, step.actor)
                && let Some(pid) = HostPid::new(pid.get() as i32)
            {
                wait_until_stopped_again(pid);
            }
        }
        Ok((left, unreleased))
    }

    /// Tells the survivor of every task. The descriptors are what it knows them by.
    fn hold_by_survivor(&self) -> crust_process::error::Result<Vec<PidFd>> {
        let Some(survivor) = self.routines.survivor() else {
            return Ok(Vec::new());
        };
        let mut held = Vec::new();
        for task in self.tasks.values().filter(|task| !task.dead) {
            let pidfd = PidFd::open(task.leader.tid())?;
            survivor.task(pidfd.as_fd())?;
            held.push(pidfd);
        }
        Ok(held)
    }
}

/// Lets the threads of a task go, the leader last; but first one that had ended, which none of its
/// threads may see alive.
fn let_go(task: Task<'_>) -> Vec<crust_process::error::Result<()>> {
    let (leader, threads) = (task.leader, task.threads.into_values());
    if threads.len() > 0 && matches!(leader.ends_at_once(), Ok(true)) {
        let ended = leader.release_to_end();
        return std::iter::once(ended)
            .chain(threads.map(Made::release))
            .collect();
    }
    let mut released: Vec<_> = threads.map(Made::release).collect();
    released.push(leader.release());
    released
}

/// The tasks that have timers to be armed, and whoever shares their memory, which they all leave
/// together.
fn with_timers(plan: &Plan) -> BTreeSet<VirtPid> {
    let armed = plan.steps.iter().filter(|step| step.phase == Phase::Timers);
    let pids = armed.filter_map(|step| match step.actor {
        Actor::Task(pid) | Actor::Thread { pid, .. } => Some(pid),
        Actor::Broker => None,
    });
    let pids: BTreeSet<VirtPid> = pids.collect();
    let spaces = spaces_of(plan);
    let theirs: BTreeSet<_> = pids.iter().filter_map(|pid| spaces.get(pid)).collect();
    let users = spaces.iter().filter(|(_, space)| theirs.contains(space));
    users.map(|(pid, _)| *pid).collect()
}

/// The first process in the address space of each, itself in most cases.
fn spaces_of(plan: &Plan) -> BTreeMap<VirtPid, VirtPid> {
    let mut spaces = BTreeMap::new();
    for step in &plan.steps {
        let Op::Fork { pid, flags, .. } = step.op else {
            continue;
        };
        let space = match step.actor {
            Actor::Task(maker) if flags & libc::CLONE_VM as u64 != 0 => spaces.get(&maker).copied(),
            _ => None,
        };
        spaces.insert(pid, space.unwrap_or(pid));
    }
    spaces
}

fn set_states(task: &Task<'_>, host_xstate: usize) -> Result<(), ExecError> {
    for (tid, state) in &task.states {
        let made = match tid {
            None => &task.leader,
            Some(tid) => match task.threads.get(tid) {
                Some(made) => made,
                None => continue,
            },
        };
        set_state(made, state, host_xstate)
            .map_err(|error| ExecError::new("set registers", error))?;
    }
    Ok(())
}

/// `host_xstate` is the size that the extended state has on this host.
fn set_state(
    made: &Made,
    state: &ThreadState,
    host_xstate: usize,
) -> crust_process::error::Result<()> {
    let stopped = made.stopped();
    if !state.xstate.is_empty() {
        let mut area = state.xstate.clone();
        area.resize(host_xstate, 0);
        stopped.set_xstate(&area)?;
    }
    stopped.set_regs(&Regs::from_words(&state.gpregs))?;
    stopped.set_sigmask(state.sigmask)
}
