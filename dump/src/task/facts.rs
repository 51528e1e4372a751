//! What /proc says of a frozen task and its threads. Read on any thread, before anything runs
//! inside the task.

use crate::mm::foresee::Foreseen;
use crate::task::lsm::{Label, collect_labels};
use anyhow::{Context, Result};
use crust_process::error::Error as TaskError;
use crust_process::kcmp::{TaskObject, task_object};
use crust_process::pid::HostPid;
use crust_process::proc::auxv::parse_auxv;
use crust_process::proc::cgroup::{CgroupMembership, parse_cgroup};
use crust_process::proc::ids::{
    parse_coredump_filter, parse_loginuid, parse_oom_score_adj, parse_personality,
};
use crust_process::proc::maps::VmaName;
use crust_process::proc::smaps::{SmapsParser, SmapsVma};
use crust_process::proc::stat::{Stat, parse_stat};
use crust_process::proc::status::{Status, parse_status};
use crust_process::proc::timers::{PosixTimer, parse_timers};
use crust_process::proc::{ParseError, ProcDir};
use crust_process::remote::Site;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use rayon::prelude::*;
use std::cmp::Ordering;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::mpsc;

/// What /proc says of a thread.
#[derive(Debug)]
pub struct ThreadFacts {
    /// task/TID/stat.
    pub stat: Stat,
    /// task/TID/status.
    pub status: Status,
    /// task/TID/comm, which unlike the name in status is cut nowhere and escapes nothing.
    pub comm: Vec<u8>,
    /// task/TID/cgroup.
    pub cgroup: Vec<CgroupMembership>,
    /// Objects that a thread may have of its own, and this one does, though it is not the leader:
    /// `descriptor table`, `net namespace`.
    pub apart: Vec<String>,
}

/// What /proc says of a task.
#[derive(Debug)]
pub struct TaskFacts {
    /// The directory, for rooms that need more.
    pub dir: ProcDir,
    /// The numbers of its descriptors, ascending, and maybe others that are not open: the task is
    /// asked about each of them.
    pub fds: Vec<i32>,
    /// Its areas.
    pub areas: Vec<SmapsVma>,
    /// Whether they were read before the freeze and must be checked after it.
    pub foreseen: bool,
    /// The words of its auxiliary vector.
    pub auxv: Vec<u64>,
    /// Its POSIX timers.
    pub timers: Vec<PosixTimer>,
    /// personality(2).
    pub personality: u32,
    /// The audit login id; `None` on a kernel without auditing.
    pub loginuid: Option<u32>,
    /// oom_score_adj.
    pub oom_score_adj: i32,
    /// coredump_filter; `None` on a kernel that writes no core files.
    pub coredump_filter: Option<u32>,
    /// The labels of a security module, if one is active, each with what has it.
    pub labels: Vec<(String, Label)>,
    /// Its threads, the leader first.
    pub threads: Vec<ThreadFacts>,
}

/// Threads fewer than this are not worth being shared out.
const WORTH_THREADS: usize = 32;

/// Reads everything of a task with these threads, of which the first speaks for it.
pub fn collect_facts(pid: HostPid, tids: &[HostPid], before: &Foreseen) -> Result<TaskFacts> {
    let dir = ProcDir::open(pid)?;
    let own = OwnNamespaces::read(&dir)?;
    let thread = |tid: &HostPid| collect_thread(&dir, &own, *tid);
    let threads: Result<Vec<_>> = if tids.len() < WORTH_THREADS {
        tids.iter().map(thread).collect()
    } else {
        tids.par_iter()
            .with_min_len(WORTH_THREADS / 2)
            .map(thread)
            .collect()
    };
    let threads = threads?;
    let ids: Vec<i32> = tids.iter().map(|tid| tid.get()).collect();
    let mut text = Vec::new();
    let mut timers = parsed(&dir, "timers", &mut text, parse_timers)?;
    // The kernel tells the newest first; restorers that cannot choose an id count upwards.
    timers.sort_by_key(|timer| timer.id);
    let foreseen = before.areas(&dir);
    Ok(TaskFacts {
        fds: numbers(&dir, threads.first())?,
        threads,
        foreseen: foreseen.is_some(),
        areas: match foreseen {
            Some(areas) => areas,
            None => collect_areas(&dir)?,
        },
        auxv: parsed(&dir, "auxv", &mut text, parse_auxv)?.words,
        timers,
        personality: parsed(&dir, "personality", &mut text, parse_personality)?,
        loginuid: if_there(parsed(&dir, "loginuid", &mut text, parse_loginuid))?,
        oom_score_adj: parsed(&dir, "oom_score_adj", &mut text, parse_oom_score_adj)?,
        coredump_filter: if_there(parsed(
            &dir,
            "coredump_filter",
            &mut text,
            parse_coredump_filter,
        ))?
        .flatten(),
        labels: collect_labels(&dir, &ids)?,
        dir,
    })
}

/// Bytes of smaps that are parsed together: some three hundred areas.
const BLOCK: usize = 256 << 10;

/// The areas. The text of many is parsed by another thread while the kernel makes it.
fn collect_areas(dir: &ProcDir) -> Result<Vec<SmapsVma>> {
    let failed = || format!("task {}: read smaps", dir.pid());
    let mut text = File::from(dir.open_file("smaps", OFlag::O_RDONLY)?);
    let mut parser = SmapsParser::default();
    let mut behind = Vec::new();
    let (first, is_last) = next_lines(&mut text, &mut behind).with_context(failed)?;
    parser.feed(&first).with_context(failed)?;
    if is_last {
        return parser.finish().with_context(failed);
    }
    let (lines, parsed) = (mpsc::channel::<Vec<u8>>(), mpsc::channel());
    rayon::in_place_scope(|scope| -> Result<()> {
        let (sender, receiver) = lines;
        let done = parsed.0;
        scope.spawn(move |_| {
            let fed = receiver.iter().try_for_each(|lines| parser.feed(&lines));
            // Nobody waits for it if the reading has failed.
            let _ = done.send(fed.and_then(|()| parser.finish()));
        });
        loop {
            let (lines, is_last) = next_lines(&mut text, &mut behind).with_context(failed)?;
            // A parser that has met an error has gone and says why at the end.
            if sender.send(lines).is_err() || is_last {
                return Ok(());
            }
        }
    })?;
    let areas = parsed.1.recv().context("the parser of smaps is gone")?;
    areas.with_context(failed)
}

/// Reads whole lines, a block of them, and says whether they are the last. What follows the last
/// newline of a block is kept in `behind` for the next.
fn next_lines(text: &mut File, behind: &mut Vec<u8>) -> io::Result<(Vec<u8>, bool)> {
    let mut lines = std::mem::take(behind);
    lines.reserve(BLOCK);
    let got = text.take(BLOCK as u64).read_to_end(&mut lines)?;
    if got < BLOCK {
        return Ok((lines, true));
    }
    let end = lines.iter().rposition(|byte| *byte == b'\n');
    *behind = lines.split_off(end.map_or(0, |at| at + 1));
    Ok((lines, false))
}

/// Below so many, listing them costs nothing.
const MANY_FDS: i64 = 256;

/// The numbers to ask the task about. Listing makes the kernel set up an inode for each of them, which
/// for ten thousand is the longest of all that is read here: then every number of the table is
/// asked about, unless most of them are not in use.
fn numbers(dir: &ProcDir, leader: Option<&ThreadFacts>) -> Result<Vec<i32>> {
    // How many are open, since 6.2; 0 before.
    let open = dir.stat("fd")?.st_size;
    let size = leader.map_or(0, |leader| leader.status.fd_size);
    if open >= MANY_FDS && i64::from(size) <= 4 * open {
        return Ok((0..size as i32).collect());
    }
    Ok(dir.fds()?)
}

fn collect_thread(task: &ProcDir, own: &OwnNamespaces, tid: HostPid) -> Result<ThreadFacts> {
    let dir = task.task(tid)?;
    let apart = if tid == task.pid() {
        Vec::new()
    } else {
        collect_apart(task, own, &dir)?
    };
    let mut text = Vec::new();
    let stat = parsed(&dir, "stat", &mut text, parse_stat)?;
    Ok(ThreadFacts {
        status: parsed(&dir, "status", &mut text, parse_status)?,
        cgroup: parsed(&dir, "cgroup", &mut text, parse_cgroup)?,
        // comm in stat is raw and ends at the last parenthesis: the very bytes of the name.
        comm: stat.comm.clone(),
        stat,
        apart,
    })
}

/// Namespaces that one thread may change for itself. The others go with something else: a mount
/// namespace only with a working directory of its own, user and time namespaces only with a
/// single thread (unshare(2), setns(2)).
const NAMESPACES: [&str; 4] = ["net", "uts", "ipc", "cgroup"];

/// Those of the thread that speaks for the task.
struct OwnNamespaces([Option<Vec<u8>>; NAMESPACES.len()]);

impl OwnNamespaces {
    fn read(dir: &ProcDir) -> Result<OwnNamespaces> {
        let mut links = [const { None }; NAMESPACES.len()];
        for (link, kind) in links.iter_mut().zip(NAMESPACES) {
            *link = namespace_link(dir, kind)?;
        }
        Ok(OwnNamespaces(links))
    }
}

/// What a thread does not share with its task: unshare(2) and setns(2) act on single threads, and
/// the images have one of each for the whole task.
fn collect_apart(task: &ProcDir, own: &OwnNamespaces, thread: &ProcDir) -> Result<Vec<String>> {
    const OBJECTS: [(TaskObject, &str); 2] = [
        (TaskObject::Files, "descriptor table"),
        (TaskObject::Fs, "working directory and root"),
    ];
    let mut apart = Vec::new();
    for (object, name) in OBJECTS {
        if task_object(object, task.pid(), thread.pid())? != Ordering::Equal {
            apart.push(name.into());
        }
    }
    for (kind, own) in NAMESPACES.iter().zip(&own.0) {
        if namespace_link(thread, kind)? != *own {
            apart.push(format!("{kind} namespace"));
        }
    }
    Ok(apart)
}

fn parsed<T>(
    dir: &ProcDir,
    name: &str,
    text: &mut Vec<u8>,
    parse: impl FnOnce(&[u8]) -> Result<T, ParseError>,
) -> Result<T> {
    dir.read_into(name, text)?;
    parse(text).with_context(|| format!("task {}: read {name}", dir.pid()))
}

/// Without an active security module the read fails (EINVAL).
/// A kernel that is built without something has no file for it.
fn if_there<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.downcast_ref::<TaskError>() {
            Some(error) if error.errno == Errno::ENOENT => Ok(None),
            _ => Err(error),
        },
    }
}

/// The link of a namespace; `None` if the kernel has none of this kind.
pub fn namespace_link(dir: &ProcDir, name: &str) -> Result<Option<Vec<u8>>> {
    let link = dir.readlink(&format!("ns/{name}"));
    if_there(link.map_err(anyhow::Error::from))
}

impl TaskFacts {
    /// What the kernel calls the leader.
    pub fn leader(&self) -> Option<&ThreadFacts> {
        self.threads.first()
    }

    /// Where a stub may go.
    pub fn site(&self, main_rsp: u64) -> Site {
        let caught = self.leader().map_or(0, |leader| leader.status.sig_cgt);
        Site::of_maps(self.areas.iter().map(|area| &area.vma), main_rsp, caught)
    }

    /// The main stack; empty if the task has unmapped it.
    pub fn stack(&self) -> Range<u64> {
        let stack = self
            .areas
            .iter()
            .find(|area| area.vma.name == VmaName::Stack);
        stack.map_or(0..0, |area| area.vma.start..area.vma.end)
    }
}
