//! kcmp(2): whether two tasks share a kernel object, and which of two objects comes first in an
//! order that is fixed until reboot. Needs CONFIG_KCMP (CONFIG_CHECKPOINT_RESTORE before 5.12) and
//! ptrace access to both tasks.
//!
//! The order makes sorting possible: the groups of n objects need n log n calls, at 1.2
//! microseconds each. Two cheaper questions come first: whether a task's descriptor is the one
//! under the same number in its parent, which is so nearly always, and whether two descriptions
//! can be the same at all, having the same inode, flags and position.

use crate::error::{Error, Result};
use crate::pid::HostPid;
use nix::errno::Errno;
use nix::libc;
use std::cmp::Ordering;
use std::collections::HashMap;
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

/// Sorts descriptors by the description they share. `K` is what equal descriptions have equal:
/// device, inode, flags and position.
#[derive(Debug)]
pub struct FileSorter<K> {
    next: usize,
    /// The first descriptor of each group, in the order of kcmp within its bucket.
    buckets: HashMap<K, Sorted<(HostPid, i32)>>,
    tables: HashMap<(HostPid, i32), Group>,
}

impl<K> Default for FileSorter<K> {
    fn default() -> FileSorter<K> {
        FileSorter {
            next: 0,
            buckets: HashMap::new(),
            tables: HashMap::new(),
        }
    }
}

impl<K: Eq + Hash> FileSorter<K> {
    /// The group of descriptor `fd` of `task`, if the same number of `parent` is the same
    /// description. Asked before the descriptor is fetched at all.
    pub fn inherited(&mut self, task: HostPid, fd: i32, parent: HostPid) -> Result<Option<Group>> {
        let Some(&group) = self.tables.get(&(parent, fd)) else {
            return Ok(None);
        };
        if file(parent, fd, task, fd)? != Ordering::Equal {
            return Ok(None);
        }
        self.tables.insert((task, fd), group);
        Ok(Some(group))
    }

    /// The group of descriptor `fd` of `task`, new if no descriptor in the bucket of `key` is on
    /// the same description.
    pub fn group(&mut self, task: HostPid, fd: i32, key: K) -> Result<Group> {
        let bucket = self.buckets.entry(key).or_default();
        let found = search(bucket, |(known, known_fd)| {
            file(*known, *known_fd, task, fd)
        })?;
        let group = match found {
            Ok(group) => group,
            Err(slot) => {
                let group = Group(self.next);
                bucket.insert(slot, ((task, fd), group));
                self.next += 1;
                group
            }
        };
        self.tables.insert((task, fd), group);
        Ok(group)
    }

    /// Number of groups.
    pub fn len(&self) -> usize {
        self.next
    }

    /// No descriptor was seen.
    pub fn is_empty(&self) -> bool {
        self.next == 0
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
    fn descriptors_are_grouped_by_description() -> Result<()> {
        let own = HostPid::current();
        let originals: Vec<_> = (0..40).map(|_| eventfd()).collect();
        let copies: Vec<_> = originals.iter().rev().map(|fd| fd.try_clone()).collect();
        let mut sorter = FileSorter::default();
        for (at, fd) in originals.iter().enumerate() {
            assert_eq!(sorter.group(own, fd.as_raw_fd(), 1)?, Group(at));
        }
        for (at, copy) in copies.iter().enumerate() {
            let copy = copy.as_ref().expect("a descriptor can be duplicated");
            assert_eq!(sorter.group(own, copy.as_raw_fd(), 1)?, Group(39 - at));
        }
        assert_eq!(sorter.len(), 40);
        // Another bucket is not searched.
        assert_eq!(sorter.group(own, originals[0].as_raw_fd(), 2)?, Group(40));
        Ok(())
    }

    #[test]
    fn a_number_is_inherited_or_not() -> Result<()> {
        let shared = eventfd();
        let (_one, one_pid) = Holder::spawn(shared.try_clone().expect("duplicable"));
        let (_two, two_pid) = Holder::spawn(shared);
        let (_three, three_pid) = Holder::spawn(eventfd());
        let mut sorter = FileSorter::default();
        let group = sorter.group(one_pid, 0, ())?;
        assert_eq!(sorter.inherited(two_pid, 0, one_pid)?, Some(group));
        assert_eq!(sorter.inherited(three_pid, 0, one_pid)?, None);
        assert_eq!(sorter.inherited(three_pid, 0, two_pid)?, None);
        assert_eq!(sorter.inherited(three_pid, 1, two_pid)?, None);
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
