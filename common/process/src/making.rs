//! Tasks that we make: forked under an exact pid, stopped before their first instruction, and led
//! by batches of system calls until they are let go.
//!
//! They are seized with PTRACE_O_EXITKILL, so that nothing is left of them if we die before the
//! commit. A child or thread that such a task clones with CLONE_PTRACE is attached in the same
//! way from the start (kernel/ptrace.c, ptrace_init_task) and never runs user code before we say.

use crate::error::{Error, Result};
use crate::memory::TaskMem;
use crate::pid::HostPid;
use crate::proc::stat::parse_stat;
use crate::proc::status::TaskState;
use crate::scratch::{Scratch, Table};
use crate::steps::step;
use crate::stub;
use crate::tracee::{self, SigSet, Stop, Stopped, Wait, options};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// struct clone_args of include/uapi/linux/sched.h, version 2 (Linux 5.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CloneArgs {
    /// CLONE_* bits.
    pub flags: u64,
    /// Not used here.
    pub pidfd: u64,
    /// Not used here.
    pub child_tid: u64,
    /// Not used here.
    pub parent_tid: u64,
    /// Signal to the parent at the child's death.
    pub exit_signal: u64,
    /// 0: a copy of the parent's.
    pub stack: u64,
    /// 0.
    pub stack_size: u64,
    /// Not used here.
    pub tls: u64,
    /// Address of the exact pids, innermost namespace first.
    pub set_tid: u64,
    /// How many.
    pub set_tid_size: u64,
}

impl CloneArgs {
    /// The bytes the kernel takes.
    pub fn to_bytes(&self) -> [u8; size_of::<CloneArgs>()] {
        let words = [
            self.flags,
            self.pidfd,
            self.child_tid,
            self.parent_tid,
            self.exit_signal,
            self.stack,
            self.stack_size,
            self.tls,
            self.set_tid,
            self.set_tid_size,
        ];
        let mut bytes = [0; size_of::<CloneArgs>()];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

/// CLONE_CLEAR_SIGHAND of clone3(2).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const ALL_BUT_SIGTRAP: u64 = !(1 << (libc::SIGTRAP - 1));
/// A stop at the entry or exit of a system call shows this signal.
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;
const TRACESYSGOOD: u64 = 1;

/// A thread that we make.
#[derive(Debug)]
pub struct Made {
    thread: Stopped,
}

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All calls answered as they should.
    Done,
    /// The call of this index did not; what it answered stands in the table.
    Failed(usize),
    /// The task is dead, with this raw wait status.
    Exited(i32),
}

/// Seizes the root; what it clones inherits the options. Seccomp can rest by the leave of
/// CAP_SYS_ADMIN only: without it, tasks below seccomp are refused by the plan.
fn seize(root: HostPid) -> Result<()> {
    let plain = options::EXITKILL | TRACESYSGOOD;
    match tracee::seize(root, plain | options::SUSPEND_SECCOMP) {
        Err(error) if matches!(error.errno, Errno::EPERM | Errno::EINVAL) => {
            tracee::seize(root, plain)
        }
        seized => seized,
    }
}

impl Made {
    /// Forks the root of a tree from ourselves: a copy of our memory, default signal actions, all
    /// signals blocked but SIGTRAP. `flags` are further bits of clone3(2); with CLONE_PARENT the
    /// root is our sibling. The kernel's EEXIST means that the pid is busy. `own` is our pidfd.
    ///
    /// The root shares our descriptor table, and must leave it before anything is done to its
    /// descriptors (close_range(2) with CLOSE_RANGE_UNSHARE copies no more than what stays). A copy
    /// made by the fork would be of ten thousand files of a tree, only to be closed.
    pub fn root(pid: HostPid, flags: u64, own: BorrowedFd<'_>) -> Result<Made> {
        let set_tid = pid.get();
        let args = CloneArgs {
            flags: CLONE_CLEAR_SIGHAND | libc::CLONE_FILES as u64 | flags,
            // A sibling takes the signal that we have.
            exit_signal: if flags & libc::CLONE_PARENT as u64 == 0 {
                libc::SIGCHLD as u64
            } else {
                0
            },
            set_tid: std::ptr::from_ref(&set_tid) as u64,
            set_tid_size: 1,
            ..CloneArgs::default()
        };
        let mask = set_own_mask(ALL_BUT_SIGTRAP).map_err(|e| Error::new(pid, "sigprocmask", e))?;
        step();
        // SAFETY: the arguments outlive the call. The child shares no memory with us; it makes
        // nothing but system calls, so that locks held by other threads do not matter.
        let got = unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()) };
        if got == 0 {
            wait_for_tracer(own.as_raw_fd());
        }
        let forked = Errno::result(got);
        let restored = set_own_mask(mask);
        forked.map_err(|errno| Error::new(pid, "clone3 with its exact pid", errno))?;
        let restored = restored.map_err(|errno| Error::new(pid, "sigprocmask", errno));
        let adopted = restored.and_then(|_| {
            step();
            seize(pid)?;
            tracee::interrupt(pid)?;
            Made::adopt(pid)
        });
        adopted.inspect_err(|_| {
            kill(pid);
            // Whatever the wait says: it is ours, and nobody else waits for it.
            let _ = tracee::wait_blocking(pid);
        })
    }

    /// Takes charge of a thread that a task of ours has cloned with CLONE_PTRACE.
    pub fn adopt(tid: HostPid) -> Result<Made> {
        match tracee::wait_blocking(tid)? {
            Wait::Stopped(stop @ (Stop::Trap | Stop::Group(_))) => Ok(Made {
                thread: Stopped::new(tid, stop),
            }),
            Wait::Stopped(stop) => {
                let doing = format!("wait for its first stop: got {stop:?}");
                Err(Error::new(tid, doing, Errno::EPROTO))
            }
            Wait::Exited(_) => Err(Error::new(tid, "wait for its first stop", Errno::ESRCH)),
        }
    }

    /// Its id.
    pub fn tid(&self) -> HostPid {
        self.thread.tid()
    }

    /// Its handle, for registers and the like.
    pub fn stopped(&self) -> &Stopped {
        &self.thread
    }

    /// Lets it run the sealed table; [`Made::finish`] waits for the end. Other tasks may be
    /// started meanwhile.
    pub fn start(&mut self, scratch: &Scratch, table: &mut Table<'_>) -> Result<()> {
        let mut regs = self.thread.regs()?;
        regs.0.rip = scratch.code();
        regs.0.rbx = table.seal();
        regs.0.orig_rax = u64::MAX;
        self.thread.set_regs(&regs)?;
        self.thread.resume()
    }

    /// Waits for the end of what [`Made::start`] began.
    pub fn finish(&mut self, table: &Table<'_>) -> Result<Outcome> {
        loop {
            match tracee::wait_blocking(self.tid())? {
                Wait::Stopped(Stop::Signal(libc::SIGTRAP)) => break,
                Wait::Stopped(stop @ Stop::Signal(libc::SIGSTOP)) => {
                    self.thread.stopped_again(stop)
                }
                Wait::Stopped(Stop::Trap | Stop::Group(_)) => {}
                Wait::Stopped(stop) => {
                    let doing = format!("run system calls: unexpected {stop:?}");
                    return Err(Error::new(self.tid(), doing, Errno::EPROTO));
                }
                Wait::Exited(status) => return Ok(Outcome::Exited(status)),
            }
            self.thread.resume()?;
        }
        self.thread.drop_signal();
        let at = self.thread.regs()?.0.rbx;
        let entry = (at.wrapping_sub(table.start()) / stub::EXEC_ENTRY as u64) as usize;
        if entry >= table.len() {
            Ok(Outcome::Done)
        } else {
            Ok(Outcome::Failed(entry))
        }
    }

    /// Begins one call by a `syscall` instruction at `gadget`, without the scratch memory and
    /// without a breakpoint: stops at the entry and the exit of the call, which are no signals.
    /// [`Made::enter_call`] and [`Made::end_call`] follow; other tasks may be led meanwhile.
    pub fn begin_call(&mut self, gadget: u64, nr: i64, args: [u64; 6]) -> Result<()> {
        let mut regs = self.thread.regs()?;
        let r = &mut regs.0;
        [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] = args;
        r.rax = nr as u64;
        r.orig_rax = u64::MAX;
        r.rip = gadget;
        self.thread.set_regs(&regs)?;
        self.thread.resume_to_syscall()
    }

    /// Waits for the entry of the call that was begun, and lets it be made.
    pub fn enter_call(&mut self) -> Result<()> {
        self.wait_for_syscall_stop()?;
        self.thread.resume_to_syscall()
    }

    /// Waits for the exit of the call and gives what it answered.
    pub fn end_call(&mut self) -> Result<i64> {
        self.wait_for_syscall_stop()?;
        Ok(self.thread.regs()?.0.rax as i64)
    }

    /// One call from beginning to end.
    pub fn call(&mut self, gadget: u64, nr: i64, args: [u64; 6]) -> Result<i64> {
        self.begin_call(gadget, nr, args)?;
        self.enter_call()?;
        self.end_call()
    }

    fn wait_for_syscall_stop(&mut self) -> Result<()> {
        match tracee::wait_blocking(self.tid())? {
            Wait::Stopped(Stop::Signal(SYSCALL_STOP)) => {
                self.thread.drop_signal();
                Ok(())
            }
            other => {
                let doing = format!("a system call by its vdso: {other:?}");
                Err(Error::new(self.tid(), doing, Errno::EPROTO))
            }
        }
    }

    /// Sends the process a signal that stops it and lets the stop happen. Changes the thread's
    /// signal mask: with the signal let through it is taken before any instruction is run.
    pub fn stop_by(&mut self, signal: i32) -> Result<()> {
        let pid = self.tid();
        self.stand_before_breakpoint()?;
        self.thread.set_sigmask(!(1 << (signal.clamp(1, 64) - 1)))?;
        // SAFETY: kill takes numbers only.
        Errno::result(unsafe { libc::kill(pid.get(), signal) })
            .map_err(|errno| Error::new(pid, format!("kill({signal})"), errno))?;
        loop {
            self.thread.resume()?;
            match tracee::wait_blocking(pid)? {
                Wait::Stopped(Stop::Group(_)) => return Ok(()),
                // It has met the breakpoint: the kernel lets only SIGSTOP stop a task of an
                // orphaned process group (kernel/signal.c, get_signal).
                Wait::Stopped(Stop::Signal(libc::SIGTRAP)) => {
                    self.thread.drop_signal();
                    let doing = format!(
                        "stop it by signal {signal}, which stops nobody in an orphaned process group"
                    );
                    return Err(Error::new(pid, doing, Errno::EPERM));
                }
                Wait::Stopped(stop @ Stop::Signal(got)) if got == signal => {
                    self.thread.stopped_again(stop);
                }
                other => {
                    let doing = format!("stop it by signal {signal}: {other:?}");
                    return Err(Error::new(pid, doing, Errno::EPROTO));
                }
            }
        }
    }

    /// A task that goes on in spite of what should stop it meets the breakpoint once more that ended
    /// its last batch, and not whatever lies behind it.
    fn stand_before_breakpoint(&self) -> Result<()> {
        const BREAKPOINT: u8 = 0xcc;
        let mut regs = self.thread.regs()?;
        let at = regs.0.rip.wrapping_sub(1);
        let mut byte = [0];
        TaskMem::open(self.tid())?.read_exact_at(at, &mut byte)?;
        if byte == [BREAKPOINT] {
            regs.0.rip = at;
            regs.0.orig_rax = u64::MAX;
            self.thread.set_regs(&regs)?;
        }
        Ok(())
    }

    /// Waits for the death of a task that was told to die, with all signals let through.
    pub fn wait_for_death(&mut self) -> Result<i32> {
        loop {
            match tracee::wait_blocking(self.tid())? {
                Wait::Exited(status) => return Ok(status),
                Wait::Stopped(stop) => {
                    self.thread.stopped_again(stop);
                    self.thread.resume()?;
                }
            }
        }
    }

    /// Our death kills it, as it does what we have made from the start: for a thread that a task
    /// which outlives us has cloned.
    pub fn die_with_us(&self) -> Result<()> {
        let plain = options::EXITKILL | TRACESYSGOOD;
        match self.thread.set_options(plain | options::SUSPEND_SECCOMP) {
            Err(error) if matches!(error.errno, Errno::EPERM | Errno::EINVAL) => {
                self.thread.set_options(plain)
            }
            set => set,
        }
    }

    /// Our death kills it no more.
    pub fn outlive_us(&self) -> Result<()> {
        self.thread.set_options(0)
    }

    /// Lets go.
    pub fn release(self) -> Result<()> {
        self.thread.detach()
    }

    /// Whether its next instruction is exit(2) and no handler can come before it: so a leader is
    /// written that had ended while its threads lived on.
    pub fn ends_at_once(&self) -> Result<bool> {
        const SYSCALL: [u8; 2] = [0x0f, 0x05];
        const CANNOT_BLOCK: SigSet = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);
        let regs = self.thread.regs()?.0;
        if regs.rax != libc::SYS_exit as u64 || self.thread.sigmask()? | CANNOT_BLOCK != !0 {
            return Ok(false);
        }
        let mut code = [0; 2];
        let read = TaskMem::open(self.tid())?.read_exact_at(regs.rip, &mut code);
        Ok(read.is_ok() && code == SYSCALL)
    }

    /// Lets go of a leader that ends at once, and waits until it has, so that none of its threads
    /// sees it alive. The kernel tells nobody of this death: wait(2) and a pidfd speak of a leader
    /// only when its last thread is gone (delay_group_leader of kernel/exit.c), so its state is
    /// read until it is `Z`. Where somebody stops or freezes it on its way, its threads, which
    /// are of the same process, do not run either: then it is not waited for beyond this second.
    pub fn release_to_end(self) -> Result<()> {
        const LONG_ENOUGH: Duration = Duration::from_secs(1);
        let pid = self.tid();
        self.thread.detach()?;
        let since = Instant::now();
        while since.elapsed() < LONG_ENOUGH {
            let Ok(text) = std::fs::read(format!("/proc/{pid}/stat")) else {
                break;
            };
            match parse_stat(&text).map(|stat| stat.state) {
                Ok(TaskState::Running | TaskState::Sleeping | TaskState::DiskSleep) => {
                    std::thread::yield_now();
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// Kills the process and waits for its end. It may be dead already. A leader's end is told only
    /// when its other threads have been reaped, and there may be some that nobody has adopted: a
    /// batch that failed behind a clone has made them.
    pub fn kill(self) {
        let pid = self.tid();
        kill(pid);
        loop {
            for tid in other_threads(pid) {
                let _ = tracee::try_wait(tid);
            }
            match tracee::try_wait(pid) {
                Ok(Some(Wait::Exited(_))) | Err(_) => return,
                Ok(_) => std::thread::yield_now(),
            }
        }
    }
}

/// The threads of a process besides its leader; none if it is gone.
fn other_threads(pid: HostPid) -> Vec<HostPid> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let tid = |name: std::ffi::OsString| HostPid::new(name.to_str()?.parse().ok()?);
    let tids = entries.flatten().filter_map(|entry| tid(entry.file_name()));
    tids.filter(|tid| *tid != pid).collect()
}

/// The child's first and only code of its own: it sleeps on the pidfd of its maker, whose death
/// before the seize ends it. (A death signal would not do: it is asked for too late if the maker
/// dies at once, and is the parent's, who is another for a sibling.)
fn wait_for_tracer(maker: i32) -> ! {
    let mut dead = libc::pollfd {
        fd: maker,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: system calls on numbers and on a value that outlives them.
    unsafe {
        // As a survivor waits, and for the same reason.
        while libc::ppoll(&mut dead, 1, std::ptr::null(), std::ptr::null()) != 1 {}
        libc::_exit(libc::EXIT_FAILURE)
    }
}

fn kill(pid: HostPid) {
    step();
    // SAFETY: kill takes numbers only.
    unsafe { libc::kill(pid.get(), libc::SIGKILL) };
}

/// Sets the calling thread's mask by the raw call: glibc's hides two signals of its own.
fn set_own_mask(mask: u64) -> std::result::Result<u64, Errno> {
    let mut old = 0u64;
    // SAFETY: both sets outlive the call and have the size told.
    let got = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &mask,
            &mut old,
            8,
        )
    };
    Errno::result(got).map(|_| old)
}
