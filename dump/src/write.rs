//! Writing: everything collected goes into the images, pages in parallel, the inventory last.

use crate::check::needs::resident;
use crate::collect::{Collected, Subject, Zombie, for_each_task, spaces};
use crate::context::{Context, Task};
use crate::cpuinfo;
use crate::interrupt::Interrupt;
use crate::inventory::{RunId, encode_inventory};
use crate::mm::absent::without;
use crate::mm::copy::{PAGE, PageSource};
use crate::mm::pages::{Counts, PagemapImage, create_pagemap};
use crate::mm::ranges::split;
use crate::mm::shmem::write_shmem;
use crate::mm::source::{Early, private_of};
use crate::mm::vmas::{Vma, encode_guard};
use crate::task::core;
use crate::task::core::{ThreadState, encode_leader, encode_thread, encode_zombie, fpregs_of};
use crate::task::dead_leader;
use crate::task::regs::Layout;
use crate::task::seccomp::Chains;
use crate::task::timers::{Reading, encode_timers, lost_overruns};
use crate::timens;
use crate::track::Unchanged;
use crate::tree::encode_place;
use anyhow::{Context as _, Result};
use crust_image::sink::{write_entries, write_entry};
use crust_image::{ImageSink, Kind};
use crust_process::freeze::{Frozen, FrozenTask, FrozenThread, TaskState};
use crust_process::pagemap::{PageRun, Pagemap};
use crust_process::proc::ProcDir;
use crust_process::tracee::{Queue, SigInfo};
use crust_proto::criu::MmEntry;
use rayon::prelude::*;
use std::iter;
use std::ops::Range;
use std::time::Instant;

/// Threads fewer than this are not worth being shared out.
const WORTH_THREADS: usize = 32;

/// Writes all images but those of memory, and the inventory.
pub fn write_images(
    ctx: &Context,
    images: &dyn ImageSink,
    frozen: &Frozen,
    collected: &mut Collected,
) -> Result<()> {
    let places: Vec<_> = collected.places.iter().map(encode_place).collect();
    write_entries(images, Kind::Pstree, None, &places)?;
    let mut chains = Chains::default();
    let layout = Layout::of_this_cpu();
    for subject in &collected.subjects {
        let task = ctx
            .tasks
            .get(subject.task)
            .context("a task without a view")?;
        write_task(ctx, images, frozen, task, subject, &mut chains, &layout)
            .with_context(|| format!("encode task {}", task.pid))?;
    }
    for zombie in &collected.zombies {
        write_zombie(images, zombie)?;
    }
    write_entry(images, Kind::Seccomp, None, &chains.encode())?;
    timens::write(images, collected)?;
    cpuinfo::write(ctx.options, images)?;
    if let Some(cgroups) = collected.cgroups.encode()? {
        write_entry(images, Kind::Cgroup, None, &cgroups)?;
    }
    collected.files.write(ctx, images)
}

/// Writes the inventory: from here on the directory holds a dump.
pub fn write_inventory(
    ctx: &Context,
    images: &dyn ImageSink,
    collected: &Collected,
    run_id: &RunId,
) -> Result<()> {
    let own = collected.ids.encode_own();
    let entry = encode_inventory(ctx.options, own, crate::cgroup::OWN_SET, run_id)?;
    Ok(write_entry(images, Kind::Inventory, None, &entry)?)
}

/// Everything of a task that is neither memory nor files.
fn write_task(
    ctx: &Context,
    images: &dyn ImageSink,
    frozen: &Frozen,
    view: &Task,
    subject: &Subject,
    chains: &mut Chains,
    layout: &Layout,
) -> Result<()> {
    let id = Some(u64::from(view.virt));
    write_entry(images, Kind::Ids, id, &subject.ids)?;
    write_entry(images, Kind::Fs, id, &subject.fs)?;
    if let Some(fdinfo) = &subject.fdinfo {
        let id = Some(u64::from(subject.ids.files_id));
        write_entries(images, Kind::Fdinfo, id, fdinfo)?;
    }
    let task = frozen
        .tasks
        .get(subject.frozen)
        .context("it is not frozen")?;
    let threads = thread_states(task, subject, chains);
    let speaker = threads.first().zip(task.threads.first());
    let (first, stopped) = speaker.context("it has no thread")?;
    let of_task = task_state(ctx, task.state, subject, stopped)?;
    let others = match task.dead_leader {
        None => {
            let entry = encode_leader(&of_task, first, fpregs_of(first, layout)?);
            write_entry(images, Kind::Core, id, &entry)?;
            threads.get(1..).unwrap_or_default()
        }
        Some(status) => {
            let code = dead_leader::find_syscall(&view.mem, &subject.facts.areas)?;
            let regs = dead_leader::ending_regs(&first.regs, code, status);
            let answers = dead_leader::ending_answers(first.answers);
            let leader = dead_leader::ending_state(first, regs, &answers);
            let mut entry = encode_leader(&of_task, &leader, fpregs_of(&leader, layout)?);
            dead_leader::name(&mut entry, dead_leader::read_comm(task.pid)?);
            write_entry(images, Kind::Core, id, &entry)?;
            &threads
        }
    };
    let write = |thread: &ThreadState| write_thread(images, thread, layout);
    if others.len() < WORTH_THREADS {
        others.iter().try_for_each(write)
    } else {
        let others = others.par_iter().with_min_len(WORTH_THREADS / 2);
        others.try_for_each(write)
    }
}

fn write_thread(images: &dyn ImageSink, thread: &ThreadState, layout: &Layout) -> Result<()> {
    let entry = encode_thread(thread, fpregs_of(thread, layout)?);
    let tid = u64::from(thread.facts.stat.pid.unsigned_abs());
    Ok(write_entry(images, Kind::Core, Some(tid), &entry)?)
}

/// What was collected of each thread, brought together.
fn thread_states<'a>(
    task: &FrozenTask,
    subject: &'a Subject,
    chains: &mut Chains,
) -> Vec<ThreadState<'a>> {
    let answers = iter::once(&subject.told.task.leader).chain(&subject.told.threads);
    let facts = subject.facts.threads.iter().zip(&subject.cg_sets);
    let threads = task
        .threads
        .iter()
        .zip(&subject.traced)
        .zip(facts)
        .zip(answers);
    let alone = task.threads.len() == 1;
    threads
        .map(
            |(((thread, traced), (facts, cg_set)), answers)| ThreadState {
                regs: thread.regs,
                sigmask: thread.sigmask,
                rseq: thread.rseq,
                traced,
                facts,
                answers,
                seccomp_filter: chains.add(&traced.filters, alone),
                cg_set: *cg_set,
            },
        )
        .collect()
}

fn task_state<'a>(
    ctx: &Context,
    state: TaskState,
    subject: &'a Subject,
    leader: &FrozenThread,
) -> Result<core::TaskState<'a>> {
    let facts = &subject.facts;
    let answers = &subject.told.task;
    let pending = leader.stopped.pending(Queue::Shared)?;
    let private = subject.traced.iter().flat_map(|traced| &traced.pending);
    let queued: Vec<SigInfo> = private.chain(&pending).copied().collect();
    let reading = Reading {
        stopped: ctx.stopped,
        asked: answers.asked,
        peeked: Instant::now(),
        queued: &queued,
    };
    for lost in lost_overruns(answers, &facts.timers, &reading) {
        ctx.log.warn("timers", lost);
    }
    Ok(core::TaskState {
        stop_signal: match state {
            TaskState::Stopped(signal) => Some(signal as u32),
            _ => None,
        },
        pending,
        timers: encode_timers(answers, &facts.timers, &reading, |tid| tid),
        answers,
        personality: facts.personality,
        loginuid: facts.loginuid,
        oom_score_adj: facts.oom_score_adj,
    })
}

fn write_zombie(images: &dyn ImageSink, zombie: &Zombie) -> Result<()> {
    let entry = encode_zombie(zombie.stat.comm.clone(), zombie.exit_code);
    let id = u64::from(zombie.stat.pid.unsigned_abs());
    Ok(write_entry(images, Kind::Core, Some(id), &entry)?)
}

/// The memory of these address spaces (by their places in [`spaces`]) as they are now, all at once:
/// each has its pages file, and a pagemap for each task in it.
pub fn write_memory(
    ctx: &Context,
    images: &dyn ImageSink,
    collected: &Collected,
    places: &[usize],
    unchanged: &Unchanged,
    interrupt: &Interrupt,
) -> Result<Counts> {
    let spaces = spaces(&collected.subjects);
    // What else was collected does not concern other threads.
    let all = collected.subjects.as_slice();
    let pages = for_each_task(places, |place| {
        let space = spaces.get(*place).context("an address space unheard of")?;
        let subjects: Option<Vec<&Subject>> = space.iter().map(|at| all.get(*at)).collect();
        let subjects = subjects.context("a task unheard of")?;
        let tasks = subjects.iter().map(|subject| ctx.tasks.get(subject.task));
        let tasks: Option<Vec<&Task>> = tasks.collect();
        let tasks = tasks.context("a task without a view")?;
        let (task, subject) = (tasks.first().zip(subjects.first())).context("a space of nobody")?;
        let from = Pages {
            dir: &subject.facts.dir,
            source: &task.mem,
            early: None,
        };
        let unchanged = unchanged.of(task.pid);
        let name = (tasks.as_slice(), pages_id(*place));
        write_space(images, name, subject, unchanged, interrupt, &from)
            .with_context(|| format!("dump the memory of task {}", task.pid))
    })?;
    Ok(pages.into_iter().sum())
}

/// The number of the pages file of an address space, by its place in [`spaces`].
pub fn pages_id(space: usize) -> u32 {
    u32::try_from(space + 1).unwrap_or(u32::MAX)
}

/// Tells how much there is to copy.
pub fn tell_size(collected: &Collected, interrupt: &Interrupt) {
    let spaces = spaces(&collected.subjects);
    let first = |space: &Vec<usize>| collected.subjects.get(*space.first()?);
    let resident = |subject: &Subject| resident(&subject.facts.dir);
    let total = spaces.iter().filter_map(first).filter_map(resident).sum();
    interrupt.progress().stage("memory", Some(total));
}

/// Objects of shared memory, which change while any of their tasks runs.
pub fn write_shared_objects(
    ctx: &Context,
    images: &dyn ImageSink,
    collected: &mut Collected,
    interrupt: &Interrupt,
) -> Result<u64> {
    let first = pages_id(spaces(&collected.subjects).len());
    let (shmem, next) = write_shmem(ctx, images, &collected.files, first, interrupt)?;
    collected.uts.write(images)?;
    Ok(shmem + collected.ipc.write(images, next, interrupt)?)
}

/// Where the pages of a task come from.
pub struct Pages<'a, S> {
    /// Whose page map tells which there are.
    pub dir: &'a ProcDir,
    /// What they are read from.
    pub source: &'a S,
    /// What was put aside of areas that `dir` does not know.
    pub early: Option<&'a Early>,
}

/// mm, pagemap and pages of an address space, of which `subject` is the first task. The images of
/// the others say the same and lead to the same pages, those of file `pages_id`. `unchanged` are
/// pages that the dump before has as they are.
pub fn write_space<S: PageSource>(
    images: &dyn ImageSink,
    (tasks, pages_id): (&[&Task], u32),
    subject: &Subject,
    unchanged: &[Range<u64>],
    interrupt: &Interrupt,
    from: &Pages<S>,
) -> Result<Counts> {
    let (task, others) = tasks.split_first().context("a space of nobody")?;
    let id = u64::from(task.virt);
    let file = images.create_raw_file(Kind::Pages, Some(u64::from(pages_id)))?;
    let check = |pages| interrupt.check_before(pages);
    let name = (Kind::Pagemap, id);
    let mut writing = Writing {
        image: create_pagemap(images, name, pages_id, &file, from.source, &check)?,
        mm: subject.mm.clone(),
        absent: &subject.absent,
        unchanged,
    };
    for other in others {
        let entries = images.create(Kind::Pagemap, Some(u64::from(other.virt)))?;
        writing.image.also_for(entries, pages_id)?;
    }
    let mut pagemap = Pagemap::open(from.dir)?;
    // Neighbours of anonymous memory are looked at with one call, which for ten thousand small ones
    // is most of the time; others one by one, for what is a file's own page depends on the area.
    let alike = |one: &Vma, other: &Vma| {
        one.is_plain() && other.is_plain() && one.is_copied_on_fork() == other.is_copied_on_fork()
    };
    for vmas in subject.vmas.chunk_by(alike) {
        let (Some(first), Some(last)) = (vmas.first(), vmas.last()) else {
            continue;
        };
        let range = first.range.start..last.range.end;
        if first.is_dumped_whole() {
            let pages = (range.end - range.start) / PAGE;
            writing.image.add(range.start, pages, false)?;
            continue;
        }
        if !first.has_own_pages() {
            continue;
        }
        match from.early.filter(|_| !first.is_copied_on_fork()) {
            Some(early) => {
                for run in early.runs_in(&range) {
                    writing.add(run, vmas)?;
                }
            }
            None => {
                for run in pagemap.pages_to_dump(range, private_of(first)) {
                    writing.add(run?, vmas)?;
                }
            }
        }
    }
    let counts = writing.image.finish()?;
    for task in tasks {
        write_entry(images, Kind::Mm, Some(u64::from(task.virt)), &writing.mm)?;
    }
    Ok(counts)
}

/// The images of a task's memory under way.
struct Writing<'a, S> {
    image: PagemapImage<'a, S>,
    mm: MmEntry,
    absent: &'a [Range<u64>],
    unchanged: &'a [Range<u64>],
}

impl<S: PageSource> Writing<'_, S> {
    fn add(&mut self, run: PageRun, vmas: &[Vma]) -> Result<()> {
        let (PageRun::Guard { start, end } | PageRun::Dump { start, end }) = run;
        for (vma, part) in by_area(start..end, vmas) {
            if let PageRun::Guard { .. } = run {
                self.mm.vmas.push(encode_guard(&part));
                continue;
            }
            for part in without(part, self.absent) {
                add_pages(&mut self.image, part, self.unchanged, vma.may_be_lazy())?;
            }
        }
        Ok(())
    }
}

/// The parts of a run by the areas they are in.
fn by_area(run: Range<u64>, vmas: &[Vma]) -> impl Iterator<Item = (&Vma, Range<u64>)> {
    let first = vmas.partition_point(|vma| vma.range.end <= run.start);
    let inside = vmas.iter().skip(first);
    let inside = inside.take_while(move |vma| vma.range.start < run.end);
    inside.map(move |vma| {
        let part = run.start.max(vma.range.start)..run.end.min(vma.range.end);
        (vma, part)
    })
}

fn add_pages<S: PageSource>(
    image: &mut PagemapImage<'_, S>,
    run: Range<u64>,
    unchanged: &[Range<u64>],
    lazy: bool,
) -> Result<()> {
    for (part, in_parent) in split(run, unchanged) {
        let pages = (part.end - part.start) / PAGE;
        if in_parent {
            image.add_parent(part.start, pages, lazy)?;
        } else {
            image.add(part.start, pages, lazy)?;
        }
    }
    Ok(())
}
