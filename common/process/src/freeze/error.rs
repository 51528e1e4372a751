//! The ways in which a freeze fails. Whoever freezes tells them apart: most can be mended by the user.

use crate::error::Error;
use crate::pid::HostPid;
use crate::proc::status::TaskState as ProcState;

/// A tree that cannot be frozen, and why.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// There is no such process.
    #[error("task {0}: No such process")]
    NoSuchTask(HostPid),
    /// A thread of the kernel has nothing to dump.
    #[error("task {0} is a kernel thread")]
    KernelThread(HostPid),
    /// A thread that is not the leader was named.
    #[error("{tid} is a thread of task {tgid}, not a task")]
    NotALeader {
        /// What was named.
        tid: HostPid,
        /// Its task.
        tgid: HostPid,
    },
    /// The process named is already dead.
    #[error("task {0} is a zombie: it waits only for its parent to reap it")]
    RootIsZombie(HostPid),
    /// We are a part of the tree.
    #[error("task {0} is in the tree: a process cannot dump itself")]
    ContainsUs(HostPid),
    /// Somebody else traces a thread, for example a debugger.
    #[error("thread {tid} of task {pid} is traced by process {tracer}")]
    Traced {
        /// The task.
        pid: HostPid,
        /// Its thread.
        tid: HostPid,
        /// The tracer.
        tracer: i32,
    },
    /// A thread waits in vfork(2) for its child to exec or to end, and cannot be stopped.
    #[error(
        "thread {tid} of task {pid} is in the middle of a vfork: its child {child} runs in its \
         memory and has neither exec'ed nor ended"
    )]
    Vfork {
        /// The task.
        pid: HostPid,
        /// Its thread.
        tid: HostPid,
        /// The child.
        child: HostPid,
    },
    /// A thread does not stop.
    #[error("thread {tid} of task {pid} does not stop ({state:?}): it sleeps uninterruptibly")]
    Unstoppable {
        /// The task.
        pid: HostPid,
        /// Its thread.
        tid: HostPid,
        /// What /proc says of it.
        state: ProcState,
    },
    /// Somebody has frozen the cgroup.
    #[error("task {pid} does not stop: its cgroup {cgroup} is frozen")]
    InFrozenCgroup {
        /// The root.
        pid: HostPid,
        /// The directory of the cgroup.
        cgroup: String,
    },
    /// The cgroup to freeze by is not that of the tree.
    #[error("task {pid} is not in the cgroup {cgroup}")]
    NotInCgroup {
        /// The root.
        pid: HostPid,
        /// The directory of the cgroup.
        cgroup: String,
    },
    /// We would freeze ourselves.
    #[error("we are in the cgroup {0} too, and would be frozen")]
    CgroupContainsUs(String),
    /// The kernel refused a step.
    #[error(transparent)]
    Os(#[from] Error),
}
