//! kcmp(2): whether two tasks share a kernel object, and which of two objects comes first in an
//! order that is fixed until reboot. Needs CONFIG_KCMP (CONFIG_CHECKPOINT_RESTORE before 5.12) and
//! ptrace access to both tasks.
//!
//! The order makes sorting possible: the groups of n objects need n log n calls, at 1.2
//! microseconds each. A caller asks cheaper questions first: whether a descriptor is the one
//! under the same number in the parent, which is so nearly always, and whether two descriptions
//! can be the same at all, having the same inode, flags and position.

use crate::error::{Error, Result};
use crate::pid::HostPid;
use nix::errno::Errno;
use nix::libc;
use std::cmp::Ordering;
use std::hash::Hash;

/// KCMP_* of include/uapi/linux/kcmp.h.
const KCMP_FILE: i32 = 0;
const KCMP_EPOLL_TFD: i32 = 7;

/// An object that a whole task has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskObject {
    /// Address space (CLONE_VM).
    Vm = 1,
    /// Descriptor table (CLONE_FILES).
    Files = 2,
    /// cwd, root and umask (CLONE_FS).
    Fs = 3,
    /// Signal actions (CLONE_SIGHAND).
    Sighand = 4,
    /// I/O context (CLONE_IO). Tasks that have none compare equal.
    Io = 5,
    /// System V semaphore undo list (CLONE_SYSVSEM). Tasks that have none compare equal.
    SysvSem = 6,
}

/// Compares an object of two tasks.
pub fn task_object(object: TaskObject, one: HostPid, other: HostPid) -> Result<Ordering> {
    kcmp(object as i32, one, 0, other, 0)
}

/// Compares the descriptions behind descriptor `fd` of `one` and `other_fd` of `other`. EBADF
/// when one is closed.
pub fn file(one: HostPid, fd: i32, other: HostPid, other_fd: i32) -> Result<Ordering> {
    kcmp(KCMP_FILE, one, fd as u64, other, other_fd as u64)
}

/// A registration in an epoll: struct kcmp_epoll_slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollSlot {
    /// Descriptor of the epoll.
    pub epoll_fd: u32,
    /// Descriptor number at registration.
    pub target_fd: u32,
    /// Which of the registrations under this number, counted from 0 in the order of fdinfo: a
    /// number can be registered again after its first description moved to another.
    pub offset: u32,
}

/// Compares descriptor `fd` of `one` with the target of a registration in an epoll of `owner`.
/// ENOENT when there is no such registration. Since 4.13.
pub fn epoll_target(one: HostPid, fd: i32, owner: HostPid, slot: EpollSlot) -> Result<Ordering> {
    let address = std::ptr::from_ref(&slot) as u64;
    kcmp(KCMP_EPOLL_TFD, one, fd as u64, owner, address)
}

fn kcmp(kind: i32, one: HostPid, index: u64, other: HostPid, other_index: u64) -> Result<Ordering> {
    // SAFETY: the indexes are numbers, or for KCMP_EPOLL_TFD the address of a slot that the
    // caller holds across the call and the kernel only reads.
    let got = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            one.get(),
            other.get(),
            kind,
            index,
            other_index,
        )
    };
    let errno = match got {
        0 => return Ok(Ordering::Equal),
        1 => return Ok(Ordering::Less),
        2 => return Ok(Ordering::Greater),
        -1 => Errno::last(),
        _ => Errno::EPROTO,
    };
    let doing = match kind {
        KCMP_FILE => format!("kcmp of fd {index} with fd {other_index} of task {other}"),
        KCMP_EPOLL_TFD => format!("kcmp of fd {index} with an epoll target of task {other}"),
        _ => format!("kcmp {kind} with task {other}"),
    };
    Err(Error::new(one, doing, errno))
}

/// A group of places that share an object, numbered from 0 in the order of discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub usize);

/// The first place of each group, in the order of kcmp.
type Sorted<P> = Vec<(P, Group)>;

/// Sorts tasks by the object of one kind that they share.
#[derive(Debug)]
pub struct TaskSorter {
    object: TaskObject,
    /// The first task of each group, in the order of kcmp.
    sorted: Sorted<HostPid>,
}

impl TaskSorter {
    /// One that has seen no task.
    pub fn new(object: TaskObject) -> TaskSorter {
        TaskSorter {
            object,
            sorted: Vec::new(),
        }
    }

    /// The group of a task; a new one if it shares with none before it.
    pub fn group(&mut self, task: HostPid) -> Result<Group> {
        let next = Group(self.sorted.len());
        match search(&self.sorted, |known| task_object(self.object, *known, task))? {
            Ok(group) => Ok(group),
            Err(slot) => {
                self.sorted.insert(slot, (task, next));
                Ok(next)
            }
        }
    }
}

/// Binary search with a question that can fail: the group, or where it would stand.
fn search<P>(
    sorted: &[(P, Group)],
    mut compare: impl FnMut(&P) -> Result<Ordering>,
) -> Result<std::result::Result<Group, usize>> {
    let (mut low, mut high) = (0, sorted.len());
    while let Some((place, group)) = sorted.get(low..high).and_then(|s| s.get(s.len() / 2)) {
        let middle = low + (high - low) / 2;
        match compare(place)? {
            Ordering::Equal => return Ok(Ok(*group)),
            Ordering::Less => low = middle + 1,
            Ordering::Greater => high = middle,
        }
    }
    Ok(Err(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
    use nix::sys::eventfd::EventFd;
    use std::os::fd::{AsFd, AsRawFd, OwnedFd};
    use std::process::{Child, Command, Stdio};

    fn eventfd() -> OwnedFd {
        EventFd::new().expect("eventfd works").into()
    }

    /// A child that holds a descriptor as its 0 and ends with the test.
    struct Holder(Child);

    impl Holder {
        fn spawn(stdin: OwnedFd) -> (Holder, HostPid) {
            let mut command = Command::new("sleep");
            command.arg("1000").stdin(Stdio::from(stdin));
            let child = command.spawn().expect("sleep runs");
            let pid = HostPid::new(child.id() as i32).expect("a child's pid is positive");
            (Holder(child), pid)
        }
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            self.0.kill().expect("the child is ours");
            self.0.wait().expect("the child is ours");
        }
    }

    #[test]
    fn the_order_is_one() -> Result<()> {
        let own = HostPid::current();
        let (a, b) = (eventfd(), eventfd());
        let there = file(own, a.as_raw_fd(), own, b.as_raw_fd())?;
        let back = file(own, b.as_raw_fd(), own, a.as_raw_fd())?;
        assert_ne!(there, Ordering::Equal);
        assert_eq!(there, back.reverse());
        let error = file(own, a.as_raw_fd(), own, 99_999).expect_err("no such descriptor");
        assert_eq!(error.errno, Errno::EBADF);
        Ok(())
    }

    #[test]
    fn tasks_are_grouped_by_what_they_share() -> Result<()> {
        let own = HostPid::current();
        // SAFETY: gettid takes nothing and cannot fail.
        let tid = HostPid::new(unsafe { libc::gettid() }).expect("a tid is positive");
        let (_child, child_pid) = Holder::spawn(eventfd());
        for object in [
            TaskObject::Vm,
            TaskObject::Files,
            TaskObject::Fs,
            TaskObject::Sighand,
        ] {
            let mut sorter = TaskSorter::new(object);
            assert_eq!(sorter.group(own)?, Group(0));
            assert_eq!(sorter.group(child_pid)?, Group(1), "{object:?}");
            assert_eq!(sorter.group(tid)?, Group(0), "{object:?}");
        }
        Ok(())
    }

    #[test]
    fn an_epoll_knows_its_targets() -> Result<()> {
        let own = HostPid::current();
        let (target, other) = (eventfd(), eventfd());
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("epoll works");
        epoll
            .add(target.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 1))
            .expect("an eventfd can be watched");
        let slot = EpollSlot {
            epoll_fd: epoll.0.as_raw_fd() as u32,
            target_fd: target.as_raw_fd() as u32,
            offset: 0,
        };
        let copy = target.try_clone().expect("duplicable");
        assert_eq!(
            epoll_target(own, copy.as_raw_fd(), own, slot)?,
            Ordering::Equal
        );
        assert_ne!(
            epoll_target(own, other.as_raw_fd(), own, slot)?,
            Ordering::Equal
        );
        let none = EpollSlot { offset: 1, ..slot };
        let error = epoll_target(own, copy.as_raw_fd(), own, none).expect_err("one registration");
        assert_eq!(error.errno, Errno::ENOENT);
        Ok(())
    }
}
