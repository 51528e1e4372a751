//! `--snapshot`: the tree stands still only until its memory is copied copy-on-write, and goes on
//! while the copies are written into the images.
//!
//! Everything that is not private memory is written in the freeze as ever, and so is the memory of
//! tasks that have little of it, or that cannot be copied: below a subreaper of the tree, which
//! would be told of the death of the copy, in seccomp's strict mode, which lets nothing reap, and
//! where the kernel refuses (limits of processes or of memory). What a copy does not have of its
//! task is put aside first. A dump that kills the tree has nothing to gain: it takes no copies.

use crate::collect::{Collected, Subject, for_each_task, spaces};
use crate::context::{Context, Task};
use crate::interrupt::Interrupt;
use crate::mm::copy::PAGE;
use crate::mm::foresee::{expect_as_foreseen, private_pages};
use crate::mm::pages::Counts;
use crate::mm::source::{Early, Kept, MemoryOf};
use crate::track::Unchanged;
use crate::write::{Pages, pages_id, write_space};
use anyhow::{Context as _, Result};
use crust_image::ImageSink;
use crust_process::freeze::Frozen;
use crust_process::proc::ProcDir;
use crust_process::snapshot::{Origin, Snapshot, take_all};

/// Private memory that is copied in the time that a copy-on-write copy takes: 2 MiB.
pub const LEAST_PAGES: u64 = 2 << 20 >> PAGE.ilog2();
/// Status mode 1.
const SECCOMP_STRICT: u32 = 1;

/// The copies of the tasks, in the order of [`Collected::subjects`].
#[derive(Debug)]
pub struct Copies(Vec<Option<Copy>>);

#[derive(Debug)]
struct Copy {
    snapshot: Snapshot,
    early: Early,
}

/// Which tasks are to be copied.
pub fn plan_copies(ctx: &Context, collected: &Collected) -> Vec<bool> {
    let mut is_copied = vec![false; collected.subjects.len()];
    for space in spaces(&collected.subjects) {
        let Some(subject) = space.first().and_then(|at| collected.subjects.get(*at)) else {
            continue;
        };
        let Some(task) = ctx.tasks.get(subject.task) else {
            continue;
        };
        let pages = private_pages(&subject.facts.dir).unwrap_or(0);
        let is_worth = pages >= LEAST_PAGES;
        match (space.as_slice(), is_worth) {
            ([at], true) => {
                if let Some(place) = is_copied.get_mut(*at) {
                    *place = may_be_copied(ctx, collected, subject, task);
                }
            }
            (_, true) => tell_frozen(ctx, task, "several tasks run in it (CLONE_VM)"),
            _ => {}
        }
    }
    is_copied
}

fn may_be_copied(ctx: &Context, collected: &Collected, subject: &Subject, task: &Task) -> bool {
    let threads = &subject.facts.threads;
    let is_strict = |mode: Option<u32>| mode == Some(SECCOMP_STRICT);
    let why = if is_below_subreaper(ctx, collected, task) {
        "a subreaper of the tree would be told of the copy's death"
    } else if threads
        .iter()
        .any(|thread| is_strict(thread.status.seccomp))
    {
        "it is in seccomp's strict mode"
    } else {
        return true;
    };
    tell_frozen(ctx, task, why);
    false
}

fn tell_frozen(ctx: &Context, task: &Task, why: impl std::fmt::Display) {
    let pid = task.pid;
    ctx.log.warn(
        "dump/snapshot",
        format_args!("the memory of task {pid} is written while it stands still: {why}"),
    );
}

/// Whether the task, or a task of the tree above it, adopts orphans.
fn is_below_subreaper(ctx: &Context, collected: &Collected, task: &Task) -> bool {
    let subreaper = |task: &Task| {
        let place = ctx.tasks.iter().position(|other| other.pid == task.pid);
        let mut subjects = collected.subjects.iter();
        let subject = subjects.find(|subject| Some(subject.task) == place);
        subject.is_some_and(|subject| subject.told.task.child_subreaper)
    };
    let mut above = Some(task);
    while let Some(task) = above {
        if subreaper(task) {
            return true;
        }
        above = ctx.task(task.ppid);
    }
    false
}

/// Puts aside what copies of these tasks would not have.
pub fn put_aside(
    ctx: &Context,
    collected: &Collected,
    is_copied: &[bool],
    interrupt: &Interrupt,
) -> Result<Vec<Option<Early>>> {
    let check = |_| interrupt.check();
    let subjects = collected.subjects.iter().zip(is_copied);
    let early = subjects.map(|(subject, is_copied)| {
        if !is_copied {
            return Ok(None);
        }
        let task = ctx.tasks.get(subject.task);
        let task = task.context("a task without a view")?;
        Early::collect(&ctx.options.images_dir, subject, &task.mem, &check)
            .with_context(|| format!("put aside memory of task {}", task.pid))
            .map(Some)
    });
    early.collect()
}

/// Copies the tasks of which something was put aside. One that cannot be copied is told of.
pub fn copy(
    ctx: &Context,
    frozen: &mut Frozen,
    collected: &Collected,
    early: Vec<Option<Early>>,
) -> Result<Copies> {
    let mut at_subject = vec![None; frozen.tasks.len()];
    for (at, (subject, early)) in collected.subjects.iter().zip(&early).enumerate() {
        if let Some(place) = at_subject.get_mut(subject.frozen)
            && early.is_some()
        {
            *place = Some(at);
        }
    }
    let (mut origins, mut whose) = (Vec::new(), Vec::new());
    for (task, at) in frozen.tasks.iter_mut().zip(at_subject) {
        let Some((at, subject)) = at.and_then(|at| Some((at, collected.subjects.get(at)?))) else {
            continue;
        };
        let view = ctx
            .tasks
            .get(subject.task)
            .context("a task without a view")?;
        let leader = task.dead_leader.is_none();
        let thread = task
            .threads
            .first_mut()
            .context("a task without a thread")?;
        // A dead leader's stack pointer is gone.
        let rsp = if leader { thread.regs.0.rsp } else { 0 };
        origins.push(Origin {
            mem: &view.mem,
            site: subject.facts.site(rsp),
            thread,
        });
        whose.push((at, view));
    }
    for subject in whose
        .iter()
        .filter_map(|(at, _)| collected.subjects.get(*at))
    {
        let pid = subject.facts.dir.pid();
        let when = ["in", "before"][usize::from(subject.facts.foreseen)];
        let line = format_args!("Areas of task {pid} were read {when} the freeze");
        ctx.log.info(line);
    }
    let taken = take_all(&mut origins).context("copy the tasks copy-on-write")?;
    let mut early = early;
    let mut copies: Vec<Option<Copy>> = early.iter().map(|_| None).collect();
    for (snapshot, (at, view)) in taken.into_iter().zip(whose) {
        match snapshot {
            Ok(snapshot) => {
                let early = early.get_mut(at).and_then(Option::take);
                if let Some((place, early)) = copies.get_mut(at).zip(early) {
                    *place = Some(Copy { snapshot, early });
                }
            }
            Err(error) => tell_frozen(ctx, view, error),
        }
    }
    Ok(Copies(copies))
}

impl Copies {
    /// Fails if an area of a task was not as was foreseen before the freeze. Those without a copy
    /// must still be frozen.
    pub fn check_frozen(&self, collected: &Collected) -> Result<()> {
        let tasks = collected.subjects.iter().zip(&self.0);
        let mut foreseen = tasks.filter(|(subject, copy)| subject.facts.foreseen && copy.is_none());
        foreseen.try_for_each(|(subject, _)| check(subject, &subject.facts.dir))
    }

    /// The same for the tasks with copies, which may go on.
    pub fn check_copies(&self, collected: &Collected) -> Result<()> {
        for (subject, copy) in collected.subjects.iter().zip(&self.0) {
            if let Some(copy) = copy
                && subject.facts.foreseen
            {
                check(subject, copy.snapshot.dir())?;
            }
        }
        Ok(())
    }

    /// The places of the address spaces without a copy.
    pub fn missing(&self, collected: &Collected) -> Vec<usize> {
        let is_copied = |at: &usize| self.0.get(*at).is_some_and(Option::is_some);
        let spaces = spaces(&collected.subjects);
        let places = spaces.iter().enumerate();
        let missing = places.filter(|(_, space)| !space.iter().any(is_copied));
        missing.map(|(place, _)| place).collect()
    }

    /// Where the memory of each task is looked at.
    pub fn memory(&self) -> Vec<Option<MemoryOf<'_>>> {
        let copies = self.0.iter();
        copies.map(|copy| copy.as_ref().map(Copy::memory)).collect()
    }

    /// The tasks with copies, by their places.
    pub fn kept(&self) -> Vec<(usize, Kept<'_>)> {
        let copies = self.0.iter().enumerate();
        let kept = copies.filter_map(|(at, copy)| {
            let copy = copy.as_ref()?;
            let kept = Kept {
                copy: copy.memory(),
                early: &copy.early,
            };
            Some((at, kept))
        });
        kept.collect()
    }
}

impl Copy {
    fn memory(&self) -> MemoryOf<'_> {
        MemoryOf {
            dir: self.snapshot.dir(),
            mem: self.snapshot.mem(),
        }
    }
}

/// The memory of the copied tasks.
pub fn write_memory(
    ctx: &Context,
    images: &dyn ImageSink,
    collected: &Collected,
    kept: &[(usize, Kept)],
    unchanged: &Unchanged,
    interrupt: &Interrupt,
) -> Result<Counts> {
    let spaces = spaces(&collected.subjects);
    let all = collected.subjects.as_slice();
    let counts = for_each_task(kept, |(at, kept)| {
        let subject = all.get(*at).context("a task unheard of")?;
        let task = ctx.tasks.get(subject.task);
        let task = task.context("a task without a view")?;
        let place = spaces.iter().position(|space| space.as_slice() == [*at]);
        let place = place.context("a task in the memory of another")?;
        let from = Pages {
            dir: kept.copy.dir,
            source: kept,
            early: Some(kept.early),
        };
        let (name, unchanged) = ([task], unchanged.of(task.pid));
        let name = (name.as_slice(), pages_id(place));
        write_space(images, name, subject, unchanged, interrupt, &from)
            .with_context(|| format!("dump the memory of task {}", task.pid))
    })?;
    Ok(counts.into_iter().sum())
}

fn check(subject: &Subject, dir: &ProcDir) -> Result<()> {
    let pid = subject.facts.dir.pid();
    expect_as_foreseen(&subject.facts.areas, dir).with_context(|| format!("task {pid}"))
}
