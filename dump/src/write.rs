//! Writing: everything collected goes into the images, pages in parallel, the inventory last.

use crate::collect::{Collected, Subject, Zombie, for_each_task};
use crate::context::{Context, Task};
use crate::interrupt::Interrupt;
use crate::inventory::{encode_inventory, encode_timens};
use crate::mm::absent::without;
use crate::mm::copy::PAGE;
use crate::mm::pages::create_pagemap;
use crate::mm::shmem::write_shmem;
use crate::mm::vmas::{Backing, encode_guard};
use crate::stats::Stats;
use crate::task::core;
use crate::task::core::{ThreadState, encode_leader, encode_thread, encode_zombie, fpregs_of};
use crate::task::images_personality;
use crate::task::regs::Layout;
use crate::task::seccomp::Chains;
use crate::task::timers::encode_timers;
use crate::tree::encode_place;
use anyhow::{Context as _, Result};
use crust_image::sink::{write_entries, write_entry};
use crust_image::{ImageSink, Kind};
use crust_process::freeze::{Frozen, FrozenTask, FrozenThread, TaskState};
use crust_process::pagemap::{PageRun, Pagemap, PrivateOf};
use crust_process::tracee::Queue;
use std::iter;
use std::time::Instant;

/// The time namespace of the dumper, for which there is an image too.
const OWN_TIMENS: u64 = 0;

/// Writes all images but the inventory.
pub fn write_images(
    ctx: &Context,
    images: &dyn ImageSink,
    frozen: &Frozen,
    collected: &mut Collected,
    interrupt: &Interrupt,
    stats: &mut Stats,
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
        write_task(images, frozen, task, subject, &mut chains, &layout)
            .with_context(|| format!("encode task {}", task.pid))?;
    }
    for zombie in &collected.zombies {
        write_zombie(images, zombie)?;
    }
    write_entry(images, Kind::Seccomp, None, &chains.encode())?;
    write_entry(images, Kind::Timens, Some(OWN_TIMENS), &encode_timens()?)?;
    if let Some(cgroups) = collected.cgroups.encode()? {
        write_entry(images, Kind::Cgroup, None, &cgroups)?;
    }
    collected.files.write(ctx, images)?;
    write_memory(ctx, images, collected, interrupt, stats)?;
    interrupt.check()
}

/// Writes the inventory: from here on the directory holds a dump.
pub fn write_inventory(ctx: &Context, images: &dyn ImageSink, collected: &Collected) -> Result<()> {
    let own = collected.ids.encode_own();
    let entry = encode_inventory(ctx.options, own, crate::cgroup::OWN_SET)?;
    Ok(write_entry(images, Kind::Inventory, None, &entry)?)
}

/// Everything of a task that is neither memory nor files.
fn write_task(
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
    for (index, thread) in thread_states(task, subject, chains).iter().enumerate() {
        let fpregs = fpregs_of(thread, layout)?;
        let entry = match task.threads.first() {
            Some(leader) if index == 0 => {
                encode_leader(&task_state(task.state, subject, leader)?, thread, fpregs)
            }
            _ => encode_thread(thread, fpregs),
        };
        let tid = u64::from(thread.facts.stat.pid.unsigned_abs());
        write_entry(images, Kind::Core, Some(tid), &entry)?;
    }
    Ok(())
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
    state: TaskState,
    subject: &'a Subject,
    leader: &FrozenThread,
) -> Result<core::TaskState<'a>> {
    let facts = &subject.facts;
    let answers = &subject.told.task;
    Ok(core::TaskState {
        stop_signal: match state {
            TaskState::Stopped(signal) => Some(signal as u32),
            _ => None,
        },
        pending: leader.stopped.pending(Queue::Shared)?,
        timers: encode_timers(answers, &facts.timers, |tid| tid),
        answers,
        personality: images_personality(facts.personality).unwrap_or(0),
        loginuid: facts.loginuid,
        oom_score_adj: facts.oom_score_adj,
    })
}

fn write_zombie(images: &dyn ImageSink, zombie: &Zombie) -> Result<()> {
    let entry = encode_zombie(zombie.stat.comm.clone(), zombie.exit_code);
    let id = u64::from(zombie.stat.pid.unsigned_abs());
    Ok(write_entry(images, Kind::Core, Some(id), &entry)?)
}

/// All tasks at once: each has its pagemap and its pages file.
fn write_memory(
    ctx: &Context,
    images: &dyn ImageSink,
    collected: &Collected,
    interrupt: &Interrupt,
    stats: &mut Stats,
) -> Result<()> {
    let start = Instant::now();
    let numbered: Vec<(u32, &Subject)> = (1..).zip(&collected.subjects).collect();
    let pages = for_each_task(&numbered, |(pages_id, subject)| {
        let task = ctx
            .tasks
            .get(subject.task)
            .context("a task without a view")?;
        write_task_memory(images, task, subject, *pages_id, interrupt)
            .with_context(|| format!("dump the memory of task {}", task.pid))
    })?;
    stats.pages = pages.iter().sum();
    let first = collected.subjects.len() as u32 + 1;
    stats.shmem_pages = write_shmem(ctx, images, &collected.files, first, interrupt)?;
    stats.memory = start.elapsed();
    Ok(())
}

/// mm, pagemap and pages of a task; gives the number of pages.
fn write_task_memory(
    images: &dyn ImageSink,
    task: &Task,
    subject: &Subject,
    pages_id: u32,
    interrupt: &Interrupt,
) -> Result<u64> {
    let id = u64::from(task.virt);
    let file = images.create_raw_file(Kind::Pages, Some(u64::from(pages_id)))?;
    let check = || interrupt.check();
    let name = (Kind::Pagemap, id);
    let mut image = create_pagemap(images, name, pages_id, &file, &task.mem, &check)?;
    let mut pagemap = Pagemap::open(&subject.facts.dir)?;
    let mut mm = subject.mm.clone();
    for vma in subject.vmas.iter().filter(|vma| vma.has_own_pages()) {
        if vma.backing == Backing::Vdso {
            image.add(
                vma.range.start,
                (vma.range.end - vma.range.start) / PAGE,
                false,
            )?;
            continue;
        }
        let of = match vma.backing {
            Backing::Anonymous => PrivateOf::Anonymous,
            _ => PrivateOf::File,
        };
        for run in pagemap.pages_to_dump(vma.range.clone(), of) {
            match run? {
                PageRun::Guard { start, end } => mm.vmas.push(encode_guard(&(start..end))),
                PageRun::Dump { start, end } => {
                    for part in without(start..end, &subject.absent) {
                        image.add(
                            part.start,
                            (part.end - part.start) / PAGE,
                            vma.may_be_lazy(),
                        )?;
                    }
                }
            }
        }
    }
    let pages = image.finish()?;
    write_entry(images, Kind::Mm, Some(id), &mm)?;
    Ok(pages)
}
