//! Write tracking between the dumps of a chain: who is tracked, and what of it is still as the dump
//! before has it.
//!
//! A tracker is bound to an address space and named by pid and start time: a pid that was given to
//! another process meanwhile, or a task that has executed another program, is dumped whole. What a
//! tracker says is checked against the images of the dump before: a page is left to it only if it
//! is there.

pub mod holder;
pub mod rounds;

use crate::context::{Context, Task};
use crate::mm::ranges;
use anyhow::{Context as _, Result};
use crust_image::pages::DumpChain;
use crust_image::{ImageDir, Kind};
use crust_process::dirty::Tracker;
use crust_process::freeze::{Frozen, FrozenTask};
use crust_process::kcmp::{Group, TaskObject, TaskSorter};
use crust_process::pagemap::{Pagemap, PrivateOf};
use crust_process::pid::HostPid;
use crust_process::proc::ProcDir;
use crust_process::proc::maps::{MapsVma, VmaName, parse_maps};
use crust_process::proc::stat::parse_stat;
use crust_process::proc::status::parse_status;
use crust_process::remote::{Remote, Site};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// The trackers of a tree.
#[derive(Debug, Default)]
pub struct Trackers(HashMap<HostPid, Tracker>);

/// The pages of each task that the dump before has as they are.
#[derive(Debug, Default)]
pub struct Unchanged(HashMap<HostPid, Vec<Range<u64>>>);

impl Trackers {
    /// Those of a list.
    pub fn new(trackers: Vec<Tracker>) -> Trackers {
        Trackers(trackers.into_iter().map(|t| (t.pid(), t)).collect())
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Tracker> {
        self.0.values()
    }

    /// That of a task, if it is this very task's.
    pub fn of(&self, pid: HostPid) -> Option<&Tracker> {
        let tracker = self.0.get(&pid)?;
        (start_time(pid).ok()? == tracker.start_time()).then_some(tracker)
    }

    /// Makes one for each task of a frozen tree that has none yet. A task that cannot have one (a
    /// full descriptor table) is told of and dumped whole each time.
    pub fn add_missing(&mut self, ctx: &Context, frozen: &mut Frozen) -> Result<()> {
        let alone = alone(ctx)?;
        for view in &ctx.tasks {
            if self.of(view.pid).is_some() {
                continue;
            }
            if !alone.contains(&view.pid) {
                ctx.log.info(format_args!(
                    "task {} shares its memory with another and is dumped whole each time",
                    view.pid
                ));
                continue;
            }
            let task = frozen.tasks.iter_mut().find(|task| task.pid == view.pid);
            match create(task.context("a task that is not frozen")?, view) {
                Ok(tracker) => drop(self.0.insert(view.pid, tracker)),
                Err(error) => ctx.log.warn(
                    "dump/track",
                    format_args!("task {} cannot be tracked: {error:#}", view.pid),
                ),
            }
        }
        Ok(())
    }

    /// What of each frozen task is as the dump in `previous` has it. The trackers are used up: the
    /// tasks are as if they had never been tracked.
    pub fn settle(self, ctx: &Context, previous: &ImageDir) -> Result<Unchanged> {
        let chain = DumpChain::open(previous)?;
        let mut unchanged = Unchanged::default();
        for task in &ctx.tasks {
            let Some(tracker) = self.of(task.pid) else {
                continue;
            };
            let found = clean_pages(tracker)
                .with_context(|| format!("find the clean pages of task {}", task.pid))?;
            let stored = stored_pages(&chain, task)?;
            let both = ranges::intersect(&found, &stored);
            unchanged.0.insert(task.pid, both);
        }
        Ok(unchanged)
    }
}

impl Unchanged {
    /// Adds a task.
    pub fn add(&mut self, pid: HostPid, pages: Vec<Range<u64>>) {
        self.0.insert(pid, pages);
    }

    /// The pages of a task, ascending.
    pub fn of(&self, pid: HostPid) -> &[Range<u64>] {
        self.0.get(&pid).map_or(&[], Vec::as_slice)
    }
}

/// The tasks with an address space of their own. Two with one could not both have a tracker, and
/// what the one would be told of as written the other would not.
fn alone(ctx: &Context) -> Result<HashSet<HostPid>> {
    let mut sorter = TaskSorter::new(TaskObject::Vm);
    let mut users: HashMap<Group, Vec<HostPid>> = HashMap::new();
    for task in &ctx.tasks {
        users
            .entry(sorter.group(task.pid)?)
            .or_default()
            .push(task.pid);
    }
    let alone = users.into_values().filter(|tasks| tasks.len() == 1);
    Ok(alone.flatten().collect())
}

/// When a task was started, in clock ticks after the boot.
pub fn start_time(pid: HostPid) -> Result<u64> {
    let text = ProcDir::open(pid)?.read("stat")?;
    let stat = parse_stat(&text).with_context(|| format!("task {pid}: read stat"))?;
    Ok(stat.starttime)
}

/// The pages that a dump has of a task, ascending; none if it has none of it.
fn stored_pages(chain: &DumpChain<'_>, task: &Task) -> Result<Vec<Range<u64>>> {
    let runs = chain.resolve(Kind::Pagemap, u64::from(task.virt))?;
    let runs = runs.unwrap_or_default();
    Ok(ranges::join(runs.iter().map(|run| run.vaddr..run.end())))
}

fn create(task: &mut FrozenTask, view: &Task) -> Result<Tracker> {
    let dir = ProcDir::open(view.pid)?;
    let leader = task.threads.first_mut().context("it has no thread")?;
    let site = site_of(&dir, leader.regs.0.rsp)?;
    let start_time = start_time(view.pid)?;
    let remote = Remote::place(&view.mem, &site, 1)?;
    let (own, mask) = (leader.regs, leader.sigmask);
    let mut entered = remote.enter(0, &mut leader.stopped, &own, mask)?;
    let pidfd = std::os::fd::AsFd::as_fd(&view.pidfd);
    let tracker = Tracker::create(&mut entered, &dir, start_time, pidfd);
    entered.leave()?;
    remote.close()?;
    Ok(tracker?)
}

/// By maps, which unlike smaps costs no walk over the page tables.
fn site_of(dir: &ProcDir, rsp: u64) -> Result<Site> {
    let read = |name| format!("task {}: read {name}", dir.pid());
    let maps = parse_maps(&dir.read("maps")?).with_context(|| read("maps"))?;
    let status = parse_status(&dir.read("status")?).with_context(|| read("status"))?;
    Ok(Site::of_maps(maps.iter(), rsp, status.sig_cgt))
}

/// What a private area maps, if its pages are the task's own and can be tracked.
pub fn trackable(vma: &MapsVma) -> Option<PrivateOf> {
    match &vma.name {
        _ if vma.perms.shared => None,
        VmaName::Vdso | VmaName::Vvar | VmaName::VvarVclock | VmaName::Vsyscall => None,
        VmaName::OtherSpecial(_) => None,
        _ if vma.inode == 0 => Some(PrivateOf::Anonymous),
        _ => Some(PrivateOf::File),
    }
}

fn clean_pages(tracker: &Tracker) -> Result<Vec<Range<u64>>> {
    let dir = ProcDir::open(tracker.pid())?;
    let mut pagemap = Pagemap::open(&dir)?;
    let mut clean = Vec::new();
    for vma in &parse_maps(&dir.read("maps")?)? {
        let Some(of) = trackable(vma) else { continue };
        let range = vma.start..vma.end;
        // Registering what is registered changes nothing, and tells another's area from ours.
        if !tracker.register(&range)? {
            continue;
        }
        clean.extend(pagemap.clean(range, of)?.unwrap_or_default());
    }
    Ok(ranges::join(clean))
}

/// Marks everything that the tasks have: all of it is in the dump under way.
pub fn mark_all(trackers: &Trackers) -> Result<()> {
    for tracker in trackers.iter() {
        let dir = ProcDir::open(tracker.pid())?;
        let mut pagemap = Pagemap::open(&dir)?;
        for vma in &parse_maps(&dir.read("maps")?)? {
            let Some(of) = trackable(vma) else { continue };
            let range = vma.start..vma.end;
            if tracker.register(&range)? {
                pagemap.take_written(range, of)?;
            }
        }
    }
    Ok(())
}
