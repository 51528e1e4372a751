//! Copies of stopped tasks that share their memory copy-on-write: a fork, whose memory is what the
//! task's was at that instant, however long it is read while the task goes on.
//!
//! The copy must leave no trace in the task. A child of its own would be told of by wait(2) and lie
//! there as a zombie when it dies. So the task clones a *helper* that shares its memory, which costs
//! nothing; the helper forks the copy (once through the page tables, some 15 milliseconds for a
//! gigabyte of small pages) and dies; the task reaps it (remote/lend.rs), and the copy is a child of
//! init, or of the next subreaper above the task. If we die at any instant all of this happens
//! without us: helper and copy are killed (PTRACE_O_EXITKILL), and before we can say so their own
//! registers lead them to exit(2).
//!
//! The copy runs nothing but three system calls that we lead it through: it gives up the descriptors
//! (which would keep files, sockets and locks alive behind the program's back), and takes a name by
//! which people see what it is. It is the first to go when memory runs out.
//!
//! Not in a copy: areas that are not copied on fork (MADV_DONTFORK) or emptied (MADV_WIPEONFORK,
//! MAP_DROPPABLE), and shared memory, which changes on. Private huge pages may be taken from it
//! (unmap_ref_private of mm/hugetlb.c). Memory must be read by /proc/PID/mem: process_vm_readv(2)
//! pins pages, and the kernel copies a pinned page at the next fork or write.

use crate::error::{Error, Result};
use crate::freeze::FrozenThread;
use crate::making::Made;
use crate::memory::TaskMem;
use crate::pid::HostPid;
use crate::proc::ProcDir;
use crate::remote::{Entered, Remote, Site};
use crate::steps::step;
use crate::stub;
use nix::errno::Errno;
use nix::libc;

/// What ps(1) shows.
const NAME: &[u8; 15] = b"crust-snapshot\0";
/// oom_score_adj of the first to be killed.
const MOST_EXPENDABLE: &str = "1000";

/// A copy of a task. It is killed when dropped.
#[derive(Debug)]
pub struct Snapshot {
    copy: Option<Made>,
    mem: TaskMem,
    dir: ProcDir,
}

impl Snapshot {
    /// Its memory.
    pub fn mem(&self) -> &TaskMem {
        &self.mem
    }

    /// Its directory, for the page map.
    pub fn dir(&self) -> &ProcDir {
        &self.dir
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Some(copy) = self.copy.take() {
            copy.kill();
        }
    }
}

/// A task to copy, all of whose threads are stopped.
#[derive(Debug)]
pub struct Origin<'t> {
    /// Its memory.
    pub mem: &'t TaskMem,
    /// Where its stub may go.
    pub site: Site,
    /// The thread that clones.
    pub thread: &'t mut FrozenThread,
}

/// Copies these tasks, all at the same time. A task that cannot be copied (a limit of processes, no
/// memory to be promised) has its own error and is as it was; an error of the whole means that a
/// task could not be put back as it was.
pub fn take_all(origins: &mut [Origin<'_>]) -> Result<Vec<Result<Snapshot>>> {
    let remotes: Vec<Result<Remote>> = origins
        .iter()
        .map(|origin| Remote::place(origin.mem, &origin.site, 1))
        .collect();
    let mut makings: Vec<Result<Making>> = origins
        .iter_mut()
        .zip(&remotes)
        .map(|(origin, remote)| {
            let remote = remote.as_ref().map_err(Error::clone)?;
            Making::begin(remote, origin.thread)
        })
        .collect();
    // The walks through the page tables are what takes the time.
    for step in [
        Making::begin_fork,
        Making::enter_fork,
        Making::end_fork,
        Making::prepare,
    ] {
        makings
            .iter_mut()
            .flatten()
            .for_each(|making| making.go_on(step));
    }
    let ended: Vec<Result<Making>> = makings
        .into_iter()
        .map(|making| making.map(Making::end_helper))
        .collect();
    let mut snapshots = Vec::new();
    let mut failed = Ok(());
    for making in ended {
        match making.map(Making::leave) {
            Ok((left, snapshot)) => {
                failed = failed.and(left);
                snapshots.push(snapshot);
            }
            Err(error) => snapshots.push(Err(error)),
        }
    }
    for remote in remotes.into_iter().flatten() {
        failed = failed.and(remote.close());
    }
    failed.map(|()| snapshots)
}

/// A copy being made.
struct Making<'r, 'm> {
    remote: &'r Remote<'m>,
    entered: Entered<'r, 'm>,
    helper: Option<Made>,
    copy: Result<Option<Snapshot>>,
}

impl<'r, 'm> Making<'r, 'm> {
    fn begin(remote: &'r Remote<'m>, thread: &'r mut FrozenThread) -> Result<Making<'r, 'm>> {
        let (own, mask) = (thread.regs, thread.sigmask);
        let mut entered = remote.enter(0, &mut thread.stopped, &own, mask)?;
        let helper = entered.lend_child()?;
        Ok(Making {
            remote,
            entered,
            helper: Some(helper),
            copy: Ok(None),
        })
    }

    fn go_on(&mut self, step: fn(&mut Self) -> Result<()>) {
        if self.copy.is_ok()
            && let Err(error) = step(self)
        {
            self.copy = Err(error);
        }
    }

    fn helper(&mut self) -> Result<&mut Made> {
        let none = Error::new(self.entered.tid(), "lead its helper", Errno::ESRCH);
        self.helper.as_mut().ok_or(none)
    }

    fn begin_fork(&mut self) -> Result<()> {
        // The table of descriptors is not copied: the copy gives it up at once.
        let flags = (libc::CLONE_PTRACE | libc::CLONE_FILES) as u64;
        let gadget = self.remote.gadget();
        let args = [flags, 0, 0, 0, 0, stub::ENDS_CHILD];
        self.helper()?.begin_call(gadget, libc::SYS_clone, args)
    }

    fn enter_fork(&mut self) -> Result<()> {
        self.helper()?.enter_call()
    }

    fn end_fork(&mut self) -> Result<()> {
        let got = self.helper()?.end_call()?;
        let pid = i32::try_from(got).ok().and_then(HostPid::new);
        let Some(pid) = pid.filter(|_| got > 0) else {
            let errno = Errno::from_raw(-got as i32);
            return Err(Error::new(self.entered.tid(), "fork a copy of it", errno));
        };
        let copy = Made::adopt(pid)?;
        match (TaskMem::open(pid), ProcDir::open(pid)) {
            (Ok(mem), Ok(dir)) => {
                let copy = Some(copy);
                self.copy = Ok(Some(Snapshot { copy, mem, dir }));
                Ok(())
            }
            (Err(error), _) | (_, Err(error)) => {
                copy.kill();
                Err(error)
            }
        }
    }

    /// Cuts what ties the copy to the world, and takes our own bytes out of its memory.
    fn prepare(&mut self) -> Result<()> {
        let (gadget, [code, table]) = (self.remote.gadget(), self.remote.borrowed());
        let Ok(Some(snapshot)) = &mut self.copy else {
            return Ok(());
        };
        let Some(copy) = &mut snapshot.copy else {
            return Ok(());
        };
        // With its own table, of which nothing is copied (__close_range of fs/file.c).
        let all = [
            0,
            u64::from(u32::MAX),
            libc::CLOSE_RANGE_UNSHARE.into(),
            0,
            0,
            0,
        ];
        let closed = copy.call(gadget, libc::SYS_close_range, all)?;
        if closed != 0 {
            let errno = Errno::from_raw(-closed as i32);
            return Err(Error::new(
                copy.tid(),
                "close the descriptors of a copy",
                errno,
            ));
        }
        snapshot.mem.write_all_at(table.0, NAME)?;
        let name = [libc::PR_SET_NAME as u64, table.0, 0, 0, 0, 0];
        // Nothing depends on the name.
        copy.call(gadget, libc::SYS_prctl, name)?;
        for (at, bytes) in [table, code] {
            snapshot.mem.write_all_at(at, &bytes)?;
        }
        // Without it the kernel chooses between task and copy by their size.
        step();
        let _ = std::fs::write(
            format!("/proc/{}/oom_score_adj", copy.tid()),
            MOST_EXPENDABLE,
        );
        Ok(())
    }

    fn end_helper(mut self) -> Self {
        if let Some(helper) = self.helper.take() {
            helper.kill();
        }
        self
    }

    /// Leads the thread out: whether that succeeded, and what was made.
    fn leave(mut self) -> (Result<()>, Result<Snapshot>) {
        let tid = self.entered.tid();
        let reaped = self.entered.reap_child();
        let left = reaped.and(self.entered.leave());
        let nothing = || Error::new(tid, "fork a copy of it", Errno::ECANCELED);
        (left, self.copy.and_then(|copy| copy.ok_or_else(nothing)))
    }
}
