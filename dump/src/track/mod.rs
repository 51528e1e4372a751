//! Write tracking between the dumps of a chain: who is tracked, and what of it is still as the dump
//! before has it.
//!
//! A tracker is bound to an address space, of whose tasks the first speaks for all (CLONE_VM), and
//! named by pid and start time: a pid that was given to
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
use std::collections::HashMap;
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

    /// That of an address space, by the tasks in it.
    pub fn of_space(&self, tasks: &[&Task]) -> Option<&Tracker> {
        tasks.iter().find_map(|task| self.of(task.pid))
    }

    /// Makes one for each address space of a frozen tree that has none yet. A task that cannot have
    /// one (a full descriptor table) is told of and dumped whole each time.
    pub fn add_missing(&mut self, ctx: &Context, frozen: &mut Frozen) -> Result<()> {
        for space in spaces(ctx)? {
            let Some(view) = space.first() else { continue };
            if self.of_space(&space).is_some() {
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
        for space in spaces(ctx)? {
            let Some(tracker) = self.of_space(&space) else {
                continue;
            };
            let found = clean_pages(tracker)
                .with_context(|| format!("find the clean pages of task {}", tracker.pid()))?;
            let both = ranges::intersect(&found, &stored_pages(&chain, &space)?);
            for task in space {
                unchanged.0.insert(task.pid, both.clone());
            }
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

/// The address spaces of the tree, each with the tasks in it. Two of these could not both have a
/// tracker, and what the one would be told of as written the other would not. A task that dies while
/// the tree runs may take others of this round with it, which is no loss: they are copied whole later.
pub fn spaces<'c>(ctx: &'c Context) -> Result<Vec<Vec<&'c Task>>> {
    let mut sorter = TaskSorter::new(TaskObject::Vm);
    let mut places: HashMap<Group, usize> = HashMap::new();
    let mut spaces: Vec<Vec<&Task>> = Vec::new();
    for task in &ctx.tasks {
        let group = match sorter.group(task.pid) {
            Err(error) if error.is_gone() => continue,
            group => group?,
        };
        let place = *places.entry(group).or_insert(spaces.len());
        match spaces.get_mut(place) {
            Some(space) => space.push(task),
            None => spaces.push(vec![task]),
        }
    }
    Ok(spaces)
}

/// When a task was started, in clock ticks after the boot.
pub fn start_time(pid: HostPid) -> Result<u64> {
    let text = ProcDir::open(pid)?.read("stat")?;
    let stat = parse_stat(&text).with_context(|| format!("task {pid}: read stat"))?;
    Ok(stat.starttime)
}

/// The pages that a dump has of every task of an address space, ascending: one that has come into it
/// since is not in that dump.
fn stored_pages(chain: &DumpChain<'_>, space: &[&Task]) -> Result<Vec<Range<u64>>> {
    let stored = |task: &Task| -> Result<Vec<Range<u64>>> {
        let runs = chain.resolve(Kind::Pagemap, u64::from(task.virt))?;
        let runs = runs.unwrap_or_default();
        Ok(ranges::join(runs.iter().map(|run| run.vaddr..run.end())))
    };
    let Some((first, others)) = space.split_first() else {
        return Ok(Vec::new());
    };
    let mut common = stored(first)?;
    for task in others {
        common = ranges::intersect(&common, &stored(task)?);
    }
    Ok(common)
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
