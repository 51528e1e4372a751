//! The dump from beginning to end: freeze, collect, refuse everything at once, write, let go.
//!
//! Whatever fails, the tree goes on as it was and the images written so far are removed. The
//! inventory comes last: a directory without it is recognisably no dump.

use crate::collect::{Collected, Subject, collect, spaces};
use crate::context::{Context, Task};
use crate::ending::let_go;
use crate::freezing::freeze;
use crate::interrupt::Interrupt;
use crate::inventory::RunId;
use crate::lasting;
use crate::mm::cow;
use crate::mm::foresee::{Foreseen, foresee};
use crate::mm::pages::Counts;
use crate::mm::source::MemoryOf;
use crate::network::Locked;
use crate::predump;
use crate::refusal::{Refusal, Refusals};
use crate::snapshot::{self, Copies};
use crate::stats::{Stats, encode_stats};
use crate::stepped::Stepped;
use crate::task::refuse_foreign_code;
use crate::track::Unchanged;
use crate::track::holder::Holder;
use crate::write::{tell_size, write_images, write_inventory, write_memory, write_shared_objects};
use anyhow::{Context as _, Result};
use crust_cli::code::Code;
use crust_cli::failure::{Failure, OfStage};
use crust_cli::finding::Finding;
use crust_cli::log::Log;
use crust_cli::options::Options;
use crust_cli::progress::Progress;
use crust_cli::scripts::{self, Stage};
use crust_cli::status::tell_started;
use crust_image::sink::write_entry;
use crust_image::{ImageDir, Kind};
use crust_process::fds::{PidFd, reserve_own};
use crust_process::freeze::{Frozen, FrozenTask, TaskState};
use crust_process::memory::TaskMem;
use crust_process::pid::HostPid;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs::File;
use std::path::Path;
use std::time::Instant;

/// Dumps the tree the options name.
pub fn dump(options: &Options, log: &Log) -> Result<()> {
    let root = root_of(options)?;
    let images = ImageDir::open(&options.images_dir).stage(Code::ImagesDir)?;
    images.check_writable().stage(Code::ImagesDir)?;
    let work_dir = ImageDir::open(&options.work_dir).stage(Code::WorkDir)?;
    let progress = Progress::new(options).stage(Code::GivenFd)?;
    allow_many_descriptors(log);
    let interrupt = Interrupt::block(progress).stage(Code::Host)?;
    tell_started(options).stage(Code::GivenFd)?;
    scripts::run(options, log, Stage::PreDump, Some(root.get())).stage(Code::Script)?;
    let mut before = predump::before(options, log, root, &images, &interrupt)?;

    let progress = interrupt.progress();
    progress.stage("freeze", None);
    let foreseen = match options.snapshot {
        true => foresee(root, snapshot::LEAST_PAGES),
        false => Foreseen::default(),
    };
    let mut frozen = freeze(root, options)?;
    progress.stage("collect", None);
    log.info(format_args!(
        "Frozen {} tasks in {:?}",
        frozen.tasks.len(),
        frozen.took
    ));
    let mut stats = Stats {
        freezing: frozen.took,
        ..Stats::default()
    };
    let since = frozen.since;
    let ctx = Context {
        options,
        log,
        stopped: frozen.since + frozen.took,
        tasks: views(&frozen).stage(Code::Collect)?,
        foreseen,
        refusals: Refusals::default(),
    };
    let unchanged = before.settle(&ctx).stage(Code::Track)?;
    let mut collected = look(&ctx, &mut frozen, &interrupt)?;
    let plan = Plan {
        parent: before.parent(),
        unchanged,
        run_id: RunId::new().stage(Code::Host)?,
    };
    let locked = Locked::lock(&ctx, &collected.files, &plan.run_id).stage(Code::NetworkLock)?;
    progress.stage("write", None);
    let mut writing = Writing {
        ctx: &ctx,
        images: &images,
        plan: &plan,
        interrupt: &interrupt,
        stats: &mut stats,
    };
    let written = writing.write(&mut frozen, &mut collected);
    let (held, rest) = match written {
        Ok(written) => written,
        Err(error) => {
            before.remove(&ctx);
            return Err(undo(error, log, frozen, &images));
        }
    };
    progress.stage("let go", None);
    let_go(&ctx, frozen, &mut collected, locked).stage(Code::LetGo)?;
    writing.stats.frozen = since.elapsed();
    log.info(format_args!("Frozen for {:?}", writing.stats.frozen));
    if let Some(rest) = rest
        && let Err(error) = writing.write_rest(&collected, rest)
    {
        before.remove(&ctx);
        discard(log, &images);
        return Err(error);
    }
    log.info(format_args!("{} pages written", stats.pages));
    drop(held);
    predump::dedup(options, log, &images).stage(Code::Afterwards)?;
    if options.digest {
        progress.stage("hash", None);
        lasting::write_digest(&images, log).stage(Code::Afterwards)?;
        if options.sync {
            lasting::sync(&images).stage(Code::Afterwards)?;
        }
    }
    progress.finish();
    write_stats(options, &work_dir, &stats).stage(Code::Afterwards)?;
    if options.display_stats {
        print!("{}", progress.timeline());
    }
    Ok(())
}

/// The task that the options name.
pub fn root_of(options: &Options) -> Result<HostPid> {
    let pid = options
        .tree
        .context("which task to dump is not said: give --tree PID")
        .stage(Code::Usage)?;
    HostPid::new(pid)
        .with_context(|| format!("--tree {pid} is not a process id"))
        .stage(Code::Usage)
}

/// Room for what most dumps need, to be made before there are threads ([`reserve_own`]).
const DESCRIPTORS: usize = 4095;

/// Three descriptors are open for each task, and the usual soft limit of 1024 is for programs that
/// use select(2). Failing to raise it is no error until there are that many tasks.
pub fn allow_many_descriptors(log: &Log) {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(errno) = raised {
        log.warn(
            "dump",
            format_args!("raise the limit of open files: {errno}"),
        );
    }
    reserve_own(DESCRIPTORS);
}

/// Collects everything and refuses what cannot be dumped; writes nothing, so that an older dump in
/// the directory stays as long as this one is not sure. An error thaws the tree (by its drop).
fn look(ctx: &Context, frozen: &mut Frozen, interrupt: &Interrupt) -> Result<Collected> {
    for refusal in frozen.tasks.iter().filter_map(refuse_foreign_code) {
        ctx.refuse(refusal);
    }
    tell_refusals(ctx)?;
    let mut collected = collect(ctx, frozen).stage(Code::Collect)?;
    collected.files.settle(ctx).stage(Code::Collect)?;
    tell_refusals(ctx)?;
    interrupt.check()?;
    Ok(collected)
}

/// What a dump builds on, and its name.
struct Plan<'b> {
    /// Where the link to the dump before leads.
    parent: Option<&'b Path>,
    unchanged: Unchanged,
    run_id: RunId,
}

/// A dump being written.
struct Writing<'w, 'o> {
    ctx: &'w Context<'o>,
    images: &'w ImageDir,
    plan: &'w Plan<'w>,
    interrupt: &'w Interrupt,
    stats: &'w mut Stats,
}

/// What of a dump is written when the tree goes on already.
struct Rest {
    copies: Copies,
    holder: Option<Holder>,
}

impl Writing<'_, '_> {
    /// Writes all that has to be written while the tree stands still: everything, the inventory last,
    /// unless copies of the tasks are made. Gives what to close after the thaw.
    fn write(
        &mut self,
        frozen: &mut Frozen,
        collected: &mut Collected,
    ) -> Result<(Vec<File>, Option<Rest>)> {
        let (ctx, images) = (self.ctx, self.images);
        // Nothing of an older dump may be taken for part of this one. Its pages are held until the
        // tree goes on again: the kernel takes 100 milliseconds to free a gigabyte of them.
        let mut held = old_pages(images).stage(Code::Write)?;
        if let Some(shared) = cow::open_directory(&ctx.options.images_dir).stage(Code::Write)? {
            held.extend(old_pages(&shared).stage(Code::Write)?);
        }
        images.remove_images().stage(Code::Write)?;
        cow::remove_directory(&ctx.options.images_dir).stage(Code::Write)?;
        if let Some(parent) = self.plan.parent {
            images.set_parent(parent).stage(Code::Write)?;
        }
        let sink = &Stepped(images);
        write_images(ctx, sink, frozen, collected).stage(Code::Write)?;
        tell_size(collected, self.interrupt);
        if ctx.options.snapshot {
            let rest = self.write_for_copies(frozen, collected)?;
            return Ok((held, Some(rest)));
        }
        let started = Instant::now();
        let memory = frozen_memory(ctx, collected);
        self.write_memory(collected, &memory, |unchanged, interrupt| {
            let all: Vec<usize> = (0..spaces(&collected.subjects).len()).collect();
            write_memory(ctx, sink, collected, &all, unchanged, interrupt)
        })
        .stage(Code::Write)?;
        self.write_objects(collected).stage(Code::Write)?;
        self.stats.memory = started.elapsed();
        let holder = predump::track_on(ctx, frozen, &self.plan.run_id).stage(Code::Track)?;
        self.finish(collected, holder)?;
        Ok((held, None))
    }

    /// What copies do not have, and the copies.
    fn write_for_copies(&mut self, frozen: &mut Frozen, collected: &mut Collected) -> Result<Rest> {
        let (ctx, sink) = (self.ctx, &Stepped(self.images));
        let is_copied = snapshot::plan_copies(ctx, collected);
        let early = snapshot::put_aside(ctx, collected, &is_copied, self.interrupt);
        self.write_objects(collected).stage(Code::Write)?;
        let copies = snapshot::copy(ctx, frozen, collected, early.stage(Code::Write)?);
        let copies = copies.stage(Code::Write)?;
        copies.check_frozen(collected).stage(Code::Collect)?;
        let alone = copies.missing(collected);
        let unchanged = &self.plan.unchanged;
        let written = write_memory(ctx, sink, collected, &alone, unchanged, self.interrupt);
        self.add(written.stage(Code::Write)?);
        let holder = predump::track_on(ctx, frozen, &self.plan.run_id).stage(Code::Track)?;
        self.interrupt.check()?;
        Ok(Rest { copies, holder })
    }

    /// The memory of the copies, and the inventory.
    fn write_rest(&mut self, collected: &Collected, rest: Rest) -> Result<()> {
        let (ctx, sink) = (self.ctx, &Stepped(self.images));
        let started = Instant::now();
        let Rest { copies, holder } = rest;
        copies.check_copies(collected).stage(Code::Collect)?;
        let memory: Vec<_> = copies.memory();
        let kept = copies.kept();
        self.write_memory(collected, &memory, |unchanged, interrupt| {
            snapshot::write_memory(ctx, sink, collected, &kept, unchanged, interrupt)
        })
        .stage(Code::Write)?;
        drop(copies);
        self.stats.memory = started.elapsed();
        self.finish(collected, holder)
    }

    /// Writes what families share, then, by `write`, what is left of their memory and that of others.
    /// What families of tasks share is written as a dump before this one: a chain has no room for it.
    fn write_memory(
        &mut self,
        collected: &Collected,
        memory: &[Option<MemoryOf>],
        write: impl FnOnce(&Unchanged, &Interrupt) -> Result<Counts>,
    ) -> Result<()> {
        let shared;
        let unchanged = match self.plan.parent {
            Some(_) => &self.plan.unchanged,
            None => {
                shared = self.write_shared(collected, memory)?;
                &shared
            }
        };
        self.add(write(unchanged, self.interrupt)?);
        Ok(())
    }

    fn add(&mut self, counts: Counts) {
        self.stats.pages += counts.written;
        self.stats.in_parent += counts.in_parent;
    }

    fn write_objects(&mut self, collected: &mut Collected) -> Result<()> {
        let sink = &Stepped(self.images);
        self.stats.shmem_pages = write_shared_objects(self.ctx, sink, collected, self.interrupt)?;
        self.interrupt.check()
    }

    fn write_shared(
        &mut self,
        collected: &Collected,
        memory: &[Option<MemoryOf>],
    ) -> Result<Unchanged> {
        let ctx = self.ctx;
        let mut unchanged = Unchanged::default();
        let families = cow::collect_families(ctx, collected, memory)?;
        if families.is_empty() {
            return Ok(unchanged);
        }
        let shared = cow::create_directory(&ctx.options.images_dir)?;
        self.stats.shared = families.write(ctx, &shared, collected, memory, self.interrupt)?;
        write_inventory(ctx, &shared, collected, &self.plan.run_id)?;
        self.images.set_parent(Path::new(cow::DIRECTORY))?;
        for (at, subject) in collected.subjects.iter().enumerate() {
            let task = ctx.tasks.get(subject.task);
            let task = task.context("a task without a view")?;
            unchanged.add(task.pid, families.pages_of(at));
        }
        Ok(unchanged)
    }

    /// The script, and the inventory: from here on the directory holds a dump.
    fn finish(&self, collected: &Collected, holder: Option<Holder>) -> Result<()> {
        let (ctx, options) = (self.ctx, self.ctx.options);
        let root = collected.places.first().map(|place| place.pid.get());
        scripts::run(options, ctx.log, Stage::PostDump, root).stage(Code::Script)?;
        self.interrupt.progress().stage("finish", None);
        if options.sync {
            lasting::sync(self.images).stage(Code::Write)?;
        }
        write_inventory(ctx, &Stepped(self.images), collected, &self.plan.run_id)
            .stage(Code::Write)?;
        if options.sync {
            lasting::sync(self.images).stage(Code::Write)?;
        }
        holder.map_or(Ok(()), Holder::commit).stage(Code::Track)
    }
}

/// The memory of the tasks as they stand still.
fn frozen_memory<'m>(ctx: &'m Context, collected: &'m Collected) -> Vec<Option<MemoryOf<'m>>> {
    let memory = |subject: &'m Subject| {
        let task = ctx.tasks.get(subject.task)?;
        Some(MemoryOf {
            dir: &subject.facts.dir,
            mem: &task.mem,
        })
    };
    collected.subjects.iter().map(memory).collect()
}

fn old_pages(images: &ImageDir) -> Result<Vec<File>> {
    let ids = images.ids_of(Kind::Pages)?;
    let files: crust_image::Result<Vec<Option<File>>> = ids
        .into_iter()
        .map(|id| images.open_file(Kind::Pages, Some(id)))
        .collect();
    Ok(files?.into_iter().flatten().collect())
}

/// Not a zombie.
pub fn is_alive(task: &&FrozenTask) -> bool {
    !matches!(task.state, TaskState::Zombie(_))
}

/// The living tasks as rooms see them.
pub fn views(frozen: &Frozen) -> Result<Vec<Task>> {
    frozen.tasks.iter().filter(is_alive).map(view).collect()
}

fn view(task: &FrozenTask) -> Result<Task> {
    let speaker = task.speaker();
    // A pidfd of a process is one of its leader, of which nothing can be taken when it is dead.
    let pidfd = match task.dead_leader {
        None => PidFd::open(speaker)?,
        Some(_) => PidFd::open_thread(speaker)?,
    };
    Ok(Task {
        pid: speaker,
        virt: task.pid.get().unsigned_abs(),
        ppid: task.ppid,
        tids: task
            .threads
            .iter()
            .map(|thread| thread.stopped.tid())
            .collect(),
        pidfd: pidfd.into(),
        mem: TaskMem::of_thread(task.pid, speaker)?,
    })
}

/// All refusals go to the log, one line each, and into the one sentence of the failure.
fn tell_refusals(ctx: &Context) -> Result<()> {
    let refusals = ctx.refusals.take();
    for refusal in &refusals {
        ctx.log.error("dump", refusal);
    }
    if refusals.is_empty() {
        return Ok(());
    }
    let reasons = refusals.iter().map(reason_of).collect();
    Err(Failure::for_reasons(Code::Refused, "cannot dump", reasons).into())
}

/// A refusal as a check tells it.
pub fn reason_of(refusal: &Refusal) -> Finding {
    Finding::error(Code::Refused, &refusal.object, &refusal.what)
        .of_task(refusal.task.get())
        .remedy(&refusal.hint)
}

/// Lets the tree go on as it was and removes what was written.
fn undo(error: anyhow::Error, log: &Log, frozen: Frozen, images: &ImageDir) -> anyhow::Error {
    if let Err(thaw) = frozen.thaw() {
        log.error("dump", format_args!("let the tree go on: {thaw}"));
    }
    discard(log, images);
    error
}

/// Removes what was written of a dump that failed.
fn discard(log: &Log, images: &ImageDir) {
    if let Err(remove) = cow::remove_directory(images.path()) {
        log.error("dump", format_args!("remove what was shared: {remove:#}"));
    }
    if let Err(remove) = images.remove_images() {
        log.error(
            "dump",
            format_args!("remove the unfinished images: {remove}"),
        );
    }
}

/// Writes stats-dump.
pub fn write_stats(options: &Options, work_dir: &ImageDir, stats: &Stats) -> Result<()> {
    let entry = encode_stats(stats);
    if options.display_stats {
        print_stats(stats);
    }
    Ok(write_entry(work_dir, Kind::StatsDump, None, &entry)?)
}

fn print_stats(stats: &Stats) {
    println!("Freezing time: {} us", stats.freezing.as_micros());
    println!("Frozen time: {} us", stats.frozen.as_micros());
    println!("Memory dump time: {} us", stats.memory.as_micros());
    println!("Memory pages written: {} ({:#x})", stats.pages, stats.pages);
    println!(
        "Shared memory pages written: {} ({:#x})",
        stats.shmem_pages, stats.shmem_pages
    );
}
