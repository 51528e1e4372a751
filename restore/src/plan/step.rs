//! The plan: what a restore will do, as a value.
//!
//! A step says who acts, what the act is and which image entry asks for it. Steps are pure data:
//! no descriptor, pid or address of this host is in them, only slots that the executor fills.
//! They are few in kind, so that the executor knows no resource: a pipe, a timer and a mapping
//! are all calls. Printed, a plan reads like strace; compared, it is a golden test; refused, it
//! has touched nothing.

use super::routine::Routine;
use crust_image::ids::VirtPid;
use serde::Serialize;
use std::borrow::Cow;
use std::fmt;

/// Who acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Actor {
    /// crust-restore itself.
    Broker,
    /// The leader of a task that is being made, or a helper or a zombie-to-be.
    Task(VirtPid),
    /// Another thread of a task.
    Thread {
        /// The task.
        pid: VirtPid,
        /// The thread.
        tid: VirtPid,
    },
}

/// Barriers: every step of a phase is done before the first of the next. The order has
/// reasons; each is told where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Phase {
    /// The broker opens and checks what needs no task: a file that is gone or changed is found
    /// before anything is forked.
    Open,
    /// The root is forked and its memory cleared, so that its children are cheap to fork.
    Root,
    /// Parents fork their children; sessions and groups are entered.
    Fork,
    /// Objects that need a live task: entries of /proc/PID, sockets with the creds of their peer.
    Objects,
    /// Each task maps and fills its memory. Descriptor 0 is still free: every file to be mapped
    /// lands there for the time of its mmap.
    Memory,
    /// Working and root directory, through descriptor 0 too; helpers are still alive.
    Fs,
    /// Descriptors come to their numbers.
    Fds,
    /// Helpers and zombies die: all that needed them alive is done. Before signal actions, or an
    /// ignored SIGCHLD would reap a zombie at once.
    Deaths,
    /// Threads are made; each sets its own state.
    Threads,
    /// Signal actions, timers, pending signals.
    Signals,
    /// Limits, capabilities, ids: earlier steps needed the privileges.
    Creds,
    /// Registers; the scratch memory goes.
    Commit,
    /// Nothing can fail any more but this and the timers: the network is unlocked and connections
    /// go on.
    Network,
    /// Timers are armed, a moment before everybody is let go: what is left of them is left when the
    /// program goes on, however long the action scripts took.
    Timers,
}

impl Phase {
    /// For people and progress.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Open => "open",
            Phase::Root => "root",
            Phase::Fork => "fork",
            Phase::Objects => "objects",
            Phase::Memory => "memory",
            Phase::Fs => "directories",
            Phase::Fds => "descriptors",
            Phase::Deaths => "deaths",
            Phase::Threads => "threads",
            Phase::Signals => "signals",
            Phase::Creds => "credentials",
            Phase::Commit => "commit",
            Phase::Network => "network",
            Phase::Timers => "timers",
        }
    }
}

/// Something that exists only at run time: a descriptor of the broker, or the fact that another
/// step is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct SlotId(pub u32);

/// What in the images asks for a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// File name of the image.
    pub image: Cow<'static, str>,
    /// Index of the entry in it, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<usize>,
    /// What the step is for, as a short phrase: `pipe 0x1a`, `vma 7f00-8000 [heap]`.
    pub what: String,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// When.
    pub phase: Phase,
    /// Who.
    pub actor: Actor,
    /// What.
    pub op: Op,
    /// Slots that must be filled before, besides those named in `op`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<SlotId>,
    /// A slot that says that this step is done, for the `after` of others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<SlotId>,
    /// Why.
    pub origin: Origin,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Op {
    /// A system call.
    Call(Call),
    /// Task: a copy of a descriptor that the broker holds appears as this number, which must be
    /// the lowest free one (pidfd_getfd(2) chooses).
    Take {
        /// The broker's descriptor.
        slot: SlotId,
        /// The number in the task.
        at: i32,
        /// Whether close-on-exec is set.
        cloexec: bool,
    },
    /// Broker: a copy of a task's descriptor comes into a slot.
    Fetch {
        /// The task.
        from: VirtPid,
        /// The number there.
        number: i32,
        /// Where it goes.
        slot: SlotId,
    },
    /// The broker makes the root, any other task its child. The new task has all signals blocked
    /// but SIGTRAP, default actions, and no descriptors but its parent's.
    Fork {
        /// Exact pid of the child.
        pid: VirtPid,
        /// CLONE_* bits besides the exact pid.
        flags: u64,
        /// Signal to the parent at its death; 0 for a helper, whose parent must not notice.
        exit_signal: i32,
    },
    /// Task: everything of crust-restore's own memory is unmapped; only the scratch memory and
    /// the parked vdso stay.
    ClearMemory,
    /// Task: the parked vdso and vvar areas come to these addresses.
    MoveVdso {
        /// Ranges of the image, in ascending order.
        areas: Vec<VdsoArea>,
    },
    /// Task: pages of a pages file, open in the task as this number, are read to where they
    /// belong.
    LoadPages {
        /// Descriptor in the task.
        fd: i32,
        /// The same file with the broker, which may help.
        pages: SlotId,
        /// Runs in ascending order of file offset.
        runs: Vec<PageLoad>,
    },
    /// Task: an AIO context is made, as many requests are completed in it as the stored ring tells
    /// (fs/aio.c counts on from there), and its ring comes to this address.
    AioRing {
        /// Address of the ring, which names the context.
        at: u64,
        /// Bytes of the ring.
        len: u64,
        /// Requests asked for.
        requests: u32,
        /// The pages file.
        pages: SlotId,
        /// Where the ring is in it.
        offset: u64,
    },
    /// Task: memory of the io_uring that is number 0 comes to this address. The kernel chooses where
    /// to map a ring and takes no wish (io_uring/memmap.c, io_uring_get_unmapped_area), so everything
    /// else of the address space is taken for the time of the call.
    MapRing {
        /// First address.
        at: u64,
        /// Bytes.
        len: u64,
        /// PROT_* bits.
        prot: u32,
        /// Which memory of it: an offset of mmap(2).
        offset: u64,
    },
    /// Broker: pages are copied from a pages file into a file (a memfd, a SysV segment's file).
    CopyPages {
        /// The pages file.
        from: SlotId,
        /// The file to fill; addresses of the runs are offsets in it.
        to: SlotId,
        /// The runs.
        runs: Vec<PageLoad>,
    },
    /// Broker: writes a file below /proc/PID of a task, or /proc/PID/task/TID of a thread.
    WriteProc {
        /// The task.
        pid: VirtPid,
        /// The thread, unless it is the leader.
        tid: Option<VirtPid>,
        /// File name below it.
        file: &'static str,
        /// What to write.
        text: String,
    },
    /// Task: a thread is made with this exact id. It has the leader's state until its own steps.
    Thread {
        /// Its id.
        tid: VirtPid,
    },
    /// A task dies: with this raw wait status (exit code or signal), not to be reaped.
    Die {
        /// The status.
        status: i32,
    },
    /// Task: a periodic POSIX timer is armed so that it has expired just now, `overrun` times more
    /// than once: its signal, when it is taken off the queue, leaves that count and the next
    /// expiration at its time (posixtimer_deliver_signal of kernel/time/posix-timers.c).
    Overrun {
        /// The timer.
        id: u32,
        /// Its clock.
        clock: i32,
        /// What the clock of the task is ahead of ours, in nanoseconds.
        shift: i64,
        /// Nanoseconds until the next expiration.
        left: u64,
        /// Nanoseconds between two.
        interval: u64,
        /// The count.
        overrun: u32,
    },
    /// Task: a helper among its children, that has died, is reaped; no SIGCHLD is left.
    Reap {
        /// The helper.
        pid: VirtPid,
    },
    /// Task: the process is stopped by this signal, as it was; it stays so when let go.
    Stop {
        /// SIGSTOP or a terminal's.
        signal: i32,
    },
    /// Thread or leader: registers, extended state and signal mask, with which it goes on.
    SetRegs(Box<ThreadState>),
    /// Task: one last call, made outside the scratch memory, right before the commit; no
    /// breakpoint of ours follows it. For the action of SIGTRAP, which a breakpoint would reset.
    LastCall(Call),
    /// Broker: a loop or a check whose result decides the next call; named, with its arguments.
    Routine(Routine),
}

/// The registers of a thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThreadState {
    /// In the order of user_regs_struct (sys/user.h): r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax
    /// rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base ds es fs gs.
    pub gpregs: [u64; 27],
    /// XSAVE area in the standard (not compacted) layout, legacy part and header at least; the
    /// executor fits it to the host's size. Empty: leave the initial state.
    pub xstate: Vec<u8>,
    /// Blocked signals.
    pub sigmask: u64,
}

/// An area of the vdso in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VdsoArea {
    /// The code, or data pages of the kernel.
    pub is_code: bool,
    /// First address.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
}

/// A run of pages to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PageLoad {
    /// Address in the task, or offset in a file.
    pub to: u64,
    /// Offset in the pages file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A system call with symbolic arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// Its name, for people.
    pub name: &'static str,
    /// Its number.
    pub nr: i64,
    /// Up to six arguments.
    pub args: Vec<Arg>,
    /// What it must answer.
    pub ret: Ret,
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Arg {
    /// A number, printed in decimal.
    Int(i64),
    /// Bits or an address, printed in hex.
    Hex(u64),
    /// A name for people with its value: `SIGTERM`, `PROT_READ|PROT_WRITE`.
    Named(String, u64),
    /// The address of these bytes with a zero behind them.
    Str(Vec<u8>),
    /// The address of a structure.
    Data(Vec<Piece>),
    /// The address of this many bytes for the call to fill.
    Out(usize),
    /// Broker: a descriptor of its own.
    Fd(SlotId),
    /// Broker: the address of `/proc/self/fd/N` of a descriptor of its own: to open the same file
    /// once more, with other flags.
    FdPath(SlotId),
}

/// A part of a structure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Piece {
    /// Bytes as they are.
    Bytes(Vec<u8>),
    /// A 64-bit pointer to another argument's bytes.
    Ptr(Box<Arg>),
}

/// What a call must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Ret {
    /// Anything but an error.
    Ok,
    /// This value.
    Exactly(i64),
    /// Whatever.
    Any,
    /// Broker: a new descriptor, which fills the slot.
    Fd(SlotId),
    /// Broker: two new descriptors in the `Out` argument of this index (pipe2, socketpair).
    FdPair(usize, SlotId, SlotId),
}

/// A whole plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// In the order in which they run.
    pub steps: Vec<Step>,
    /// The root of the tree.
    pub root: Option<VirtPid>,
    /// Address ranges used by any task, merged and ascending: the scratch memory avoids them.
    pub used: Vec<(u64, u64)>,
    /// The number, unused by every task, at which each holds the broker's pidfd until the commit.
    pub broker_fd: i32,
    /// How many slots there are.
    pub slots: u32,
    /// How many descriptors the broker holds at most.
    pub held: u64,
}

impl Op {
    /// A task takes a descriptor for a while, with close-on-exec set.
    pub fn take(slot: SlotId, at: i32) -> Op {
        let cloexec = true;
        Op::Take { slot, at, cloexec }
    }
}

impl Call {
    /// A call that must not fail.
    pub fn new(name: &'static str, nr: i64, args: Vec<Arg>) -> Call {
        Call {
            name,
            nr,
            args,
            ret: Ret::Ok,
        }
    }

    /// The same, with another demand on its answer.
    pub fn answers(mut self, ret: Ret) -> Call {
        self.ret = ret;
        self
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Broker => f.write_str("broker"),
            Actor::Task(pid) => write!(f, "{pid}"),
            Actor::Thread { pid, tid } => write!(f, "{pid}/{tid}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry {
            Some(entry) => write!(f, "{} ({} entry {entry})", self.what, self.image),
            None => write!(f, "{} ({})", self.what, self.image),
        }
    }
}
