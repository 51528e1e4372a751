//! Copying memory while the tree runs: one round is a pre-dump, `--pre-copy N` makes up to N of
//! them before the freeze.
//!
//! The tree stops only to make the trackers. Then, area by area, what was written since the last
//! round is found and marked clean in one step, and copied: a page written after that is written
//! again in the next round, so a copy may be torn, but is never the last word. Pages that are clean
//! are left to the dump before; a page that is neither has come since, and the next round has it.

use super::holder;
use super::{Trackers, spaces, trackable};
use crate::collect::for_each_task;
use crate::context::{Context, Task};
use crate::ids::KernelIds;
use crate::interrupt::Interrupt;
use crate::inventory::{RunId, encode_inventory};
use crate::mm::copy::{PAGE, PageSource};
use crate::mm::pages::{Counts, create_pagemap};
use crate::mm::ranges::{intersect, subtract};
use crate::stats::Stats;
use anyhow::{Context as _, Result, bail};
use crust_image::pages::DumpChain;
use crust_image::sink::write_entry;
use crust_image::{ImageDir, ImageSink, Kind};
use crust_process::dirty::Tracker;
use crust_process::memory::TaskMem;
use crust_process::pagemap::{PageRun, Pagemap, PrivateOf};
use crust_process::proc::ProcDir;
use crust_process::proc::maps::parse_maps;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Instant;

/// One round over the tasks of `ctx`, written into `images` as a dump of memory alone. `previous`
/// is what it builds on; its link is made by the caller.
pub fn copy_round(
    ctx: &Context,
    images: &ImageDir,
    previous: Option<&ImageDir>,
    trackers: &Trackers,
    run_id: &RunId,
    interrupt: &Interrupt,
    stats: &mut Stats,
) -> Result<()> {
    let start = Instant::now();
    let chain = previous.map(DumpChain::open).transpose()?;
    let numbered: Vec<(u32, Vec<&Task>)> = (1..).zip(spaces(ctx)?).collect();
    let counts = for_each_task(&numbered, |(pages_id, tasks)| {
        let task = tasks.first().context("a space of nobody")?;
        let round = Round {
            images,
            chain: chain.as_ref(),
            task,
            tasks,
            tracker: trackers.of_space(tasks),
            interrupt,
        };
        match round.copy(*pages_id) {
            Ok(counts) => Ok(counts),
            // Its images stay, and nobody will ask for them.
            Err(_) if is_gone(task) => Ok(Counts::default()),
            Err(error) => {
                Err(error).with_context(|| format!("copy the memory of task {}", task.pid))
            }
        }
    })?;
    let counts: Counts = counts.into_iter().sum();
    (stats.pages, stats.in_parent) = (counts.written, counts.in_parent);
    stats.memory = start.elapsed();
    let own = KernelIds::new()?.encode_own();
    let entry = encode_inventory(ctx.options, own, crate::cgroup::OWN_SET, run_id)?;
    Ok(write_entry(images, Kind::Inventory, None, &entry)?)
}

/// Starts the holder if the trackers must outlive us. The caller commits it.
pub fn hold(ctx: &Context, run_id: &RunId, trackers: &Trackers) -> Result<holder::Holder> {
    let holder = holder::start(run_id, trackers)?;
    ctx.log.info(format_args!(
        "Memory is tracked for the next dump, as {}",
        run_id.0
    ));
    Ok(holder)
}

/// Dead, or a zombie, which has no areas any more.
fn is_gone(task: &Task) -> bool {
    let maps = ProcDir::open(task.pid).and_then(|dir| dir.read("maps"));
    maps.map_or(true, |text| text.is_empty())
}

/// The copying of one task.
struct Round<'r> {
    images: &'r ImageDir,
    chain: Option<&'r DumpChain<'r>>,
    /// The first in the address space, and all.
    task: &'r Task,
    tasks: &'r [&'r Task],
    tracker: Option<&'r Tracker>,
    interrupt: &'r Interrupt,
}

impl Round<'_> {
    fn copy(&self, pages_id: u32) -> Result<Counts> {
        let id = u64::from(self.task.virt);
        let stored = match self.chain {
            Some(chain) => super::stored_pages(chain, self.tasks)?,
            None => Vec::new(),
        };
        let file = self
            .images
            .create_raw_file(Kind::Pages, Some(pages_id.into()))?;
        let check = |pages| self.interrupt.check_before(pages);
        let source = Running {
            mem: &self.task.mem,
            missing: Mutex::default(),
        };
        let name = (Kind::Pagemap, id);
        let mut image = create_pagemap(self.images, name, pages_id, &file, &source, &check)?;
        for other in self.tasks.iter().skip(1) {
            let entries = self
                .images
                .create(Kind::Pagemap, Some(u64::from(other.virt)))?;
            image.also_for(entries, pages_id)?;
        }
        let dir = ProcDir::open(self.task.pid)?;
        let mut pagemap = Pagemap::open(&dir)?;
        for vma in &parse_maps(&dir.read("maps")?)? {
            let Some(of) = trackable(vma) else { continue };
            let lazy = of == PrivateOf::Anonymous;
            let plan = self.plan_area(&mut pagemap, vma.start..vma.end, of, &stored)?;
            for (run, in_parent) in plan {
                let pages = (run.end - run.start) / PAGE;
                if in_parent {
                    image.add_parent(run.start, pages, lazy)?;
                } else {
                    image.add(run.start, pages, lazy)?;
                }
            }
        }
        let counts = image.finish()?;
        self.check_missing(&mut pagemap, source)?;
        Ok(counts)
    }

    /// The pages of an area to write, and (`true`) those to leave to the dump before.
    fn plan_area(
        &self,
        pagemap: &mut Pagemap,
        area: Range<u64>,
        of: PrivateOf,
        stored: &[Range<u64>],
    ) -> Result<Vec<(Range<u64>, bool)>> {
        let written = match self.tracker {
            Some(tracker) if tracker.register(&area)? => pagemap.take_written(area.clone(), of)?,
            _ => None,
        };
        let mut present = Vec::new();
        for run in pagemap.pages_to_dump(area, of) {
            if let PageRun::Dump { start, end } = run? {
                present.push(start..end);
            }
        }
        let Some(written) = written else {
            return Ok(present.into_iter().map(|run| (run, false)).collect());
        };
        let kept = intersect(&subtract(&present, &written), stored);
        let mut plan: Vec<(Range<u64>, bool)> =
            written.into_iter().map(|run| (run, false)).collect();
        plan.extend(kept.into_iter().map(|run| (run, true)));
        plan.sort_by_key(|(run, _)| run.start);
        Ok(plan)
    }

    /// A page that could not be read has been unmapped or dropped meanwhile. One that is still
    /// there, and counts as clean, would be missed by the next dump.
    fn check_missing(&self, pagemap: &mut Pagemap, source: Running<'_>) -> Result<()> {
        let missing = source.missing.into_inner().unwrap_or_default();
        for page in missing {
            let clean = pagemap.clean(page..page + PAGE, PrivateOf::Anonymous);
            if self.tracker.is_some() && clean?.is_some_and(|found| !found.is_empty()) {
                bail!("the page at {page:#x} cannot be read");
            }
        }
        Ok(())
    }
}

/// The memory of a task that goes on: pages may vanish before they are read.
struct Running<'m> {
    mem: &'m TaskMem,
    missing: Mutex<Vec<u64>>,
}

impl PageSource for Running<'_> {
    fn read_pages(&self, addr: u64, buf: &mut [u8]) -> Result<()> {
        if self.mem.read_exact_at(addr, buf).is_ok() {
            return Ok(());
        }
        for (at, page) in (addr..)
            .step_by(PAGE as usize)
            .zip(buf.chunks_mut(PAGE as usize))
        {
            if self.mem.read_exact_at(at, page).is_err() {
                page.fill(0);
                let mut missing = self.missing.lock().unwrap_or_else(|all| all.into_inner());
                missing.push(at);
            }
        }
        Ok(())
    }
}
