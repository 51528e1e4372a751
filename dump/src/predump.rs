//! Dumps that build on each other: `--pre-dump`, the rounds of `--pre-copy`, and what a dump does
//! with the one before (`--prev-images-dir`) and for the one after (`--track-mem`).
//!
//! The images of a chain are the format's own: a `parent` link, and runs of a pagemap that say that
//! their pages are there. The rounds of `--pre-copy` lie in directories below the images dir.

use crate::context::Context;
use crate::dump::{allow_many_descriptors, root_of, views, write_stats};
use crate::freezing::freeze;
use crate::interrupt::Interrupt;
use crate::inventory::RunId;
use crate::mm::foresee::Foreseen;
use crate::refusal::Refusals;
use crate::stats::Stats;
use crate::track::holder::Holder;
use crate::track::rounds::{copy_round, hold};
use crate::track::{Trackers, Unchanged, holder, mark_all};
use anyhow::{Context as _, Result, bail};
use crust_cli::code::Code;
use crust_cli::failure::OfStage;
use crust_cli::log::Log;
use crust_cli::options::Options;
use crust_cli::progress::Progress;
use crust_cli::scripts::{self, Stage};
use crust_cli::status::tell_started;
use crust_image::ImageDir;
use crust_image::dedup::punch_superseded;
use crust_process::freeze::Frozen;
use crust_process::pid::HostPid;
use std::path::{Path, PathBuf};

/// Directories of the rounds of `--pre-copy`, followed by a number from 1.
const ROUND: &str = "pre-copy-";
/// A round that wrote fewer pages than this, 4 MiB, needs no other: they are copied in two
/// milliseconds.
const FEW_PAGES: u64 = 1024;

/// `--pre-dump`: one round, whose images are the parent of the next dump.
pub fn pre_dump(options: &Options, log: &Log) -> Result<()> {
    let root = root_of(options)?;
    let images = ImageDir::open(&options.images_dir).stage(Code::ImagesDir)?;
    images.check_writable().stage(Code::ImagesDir)?;
    let work_dir = ImageDir::open(&options.work_dir).stage(Code::WorkDir)?;
    allow_many_descriptors(log);
    let interrupt =
        Interrupt::block(Progress::new(options).stage(Code::GivenFd)?).stage(Code::Host)?;
    tell_started(options).stage(Code::GivenFd)?;
    scripts::run(options, log, Stage::PreDump, Some(root.get())).stage(Code::Script)?;
    let (previous, trackers) = match previous(options, log, &images)? {
        Some((dir, trackers)) => (Some(dir), trackers),
        None => (None, Trackers::default()),
    };
    let mut stats = Stats::default();
    let (ctx, trackers) = begin(options, log, root, trackers, &mut stats)?;
    let run_id = RunId::new()?;
    images.remove_images()?;
    let written = (|| {
        if let Some(target) = &options.prev_images_dir {
            images.set_parent(target)?;
        }
        let holder = hold(&ctx, &run_id, &trackers)?;
        let parent = previous.as_ref();
        copy_round(
            &ctx, &images, parent, &trackers, &run_id, &interrupt, &mut stats,
        )?;
        holder.commit()
    })();
    if written.is_err() {
        remove(log, &images);
    }
    written.stage(Code::Track)?;
    dedup(options, log, &images).stage(Code::Afterwards)?;
    tell_round(log, 1, &stats);
    interrupt.progress().finish();
    write_stats(options, &work_dir, &stats).stage(Code::Afterwards)
}

/// Stops the tree for the moment that making the trackers takes.
fn begin<'o>(
    options: &'o Options,
    log: &'o Log,
    root: HostPid,
    mut trackers: Trackers,
    stats: &mut Stats,
) -> Result<(Context<'o>, Trackers)> {
    let mut frozen = freeze(root, options)?;
    stats.freezing = frozen.took;
    let since = frozen.since;
    let ctx = Context {
        options,
        log,
        stopped: frozen.since + frozen.took,
        tasks: views(&frozen)?,
        foreseen: Foreseen::default(),
        refusals: Refusals::default(),
    };
    trackers.add_missing(&ctx, &mut frozen)?;
    frozen.thaw()?;
    stats.frozen = since.elapsed();
    log.info(format_args!(
        "Frozen for {:?} to begin tracking",
        stats.frozen
    ));
    if trackers.iter().next().is_none() {
        bail!("no task can be tracked, so that a pre-dump would be of no use; the log says why");
    }
    Ok((ctx, trackers))
}

/// The dump before, and its trackers if somebody holds them.
fn previous(
    options: &Options,
    log: &Log,
    images: &ImageDir,
) -> Result<Option<(ImageDir, Trackers)>> {
    let Some(target) = &options.prev_images_dir else {
        return Ok(None);
    };
    let dir = ImageDir::open(&options.images_dir.join(target))
        .with_context(|| format!("--prev-images-dir {}", target.display()))?;
    if dir.identity()? == images.identity()? {
        bail!("--prev-images-dir is the images dir: a dump cannot build on itself");
    }
    let (inventory, _) = dir.inventory()?;
    let run_id = inventory.dump_criu_run_id.unwrap_or_default();
    let run_id = RunId(String::from_utf8_lossy(&run_id).into_owned());
    let trackers = holder::take(&run_id)?;
    if trackers.is_none() {
        log.warn(
            "dump/track",
            "nobody has tracked memory since the dump in --prev-images-dir (it was made without \
             --track-mem, or not by crust-dump, or the holder is gone): all pages are written",
        );
    }
    Ok(Some((dir, trackers.unwrap_or_default())))
}

/// What a dump builds on.
#[derive(Debug, Default)]
pub struct Before {
    /// Where the parent link leads, and the directory there.
    parent: Option<(PathBuf, ImageDir)>,
    trackers: Trackers,
    rounds: Vec<ImageDir>,
}

/// Opens the dump before, or makes the rounds of `--pre-copy`.
pub fn before(
    options: &Options,
    log: &Log,
    root: HostPid,
    images: &ImageDir,
    interrupt: &Interrupt,
) -> Result<Before> {
    if options.pre_copy > 0 {
        return pre_copy(options, log, root, interrupt);
    }
    let Some((dir, trackers)) = previous(options, log, images)? else {
        return Ok(Before::default());
    };
    let target = options.prev_images_dir.clone().unwrap_or_default();
    Ok(Before {
        parent: Some((target, dir)),
        trackers,
        rounds: Vec::new(),
    })
}

impl Before {
    /// Where the parent link leads.
    pub fn parent(&self) -> Option<&Path> {
        self.parent.as_ref().map(|(target, _)| target.as_path())
    }

    /// What of the frozen tasks the dump before has; the tracking ends.
    pub fn settle(&mut self, ctx: &Context) -> Result<Unchanged> {
        match &self.parent {
            Some((_, dir)) => std::mem::take(&mut self.trackers).settle(ctx, dir),
            None => Ok(Unchanged::default()),
        }
    }

    /// Removes the rounds of a dump that failed.
    pub fn remove(&self, ctx: &Context) {
        for round in &self.rounds {
            remove(ctx.log, round);
            if let Err(error) = std::fs::remove_dir(round.path()) {
                let path = round.path().display();
                ctx.log
                    .error("dump", format_args!("remove {path}: {error}"));
            }
        }
    }
}

fn pre_copy(options: &Options, log: &Log, root: HostPid, interrupt: &Interrupt) -> Result<Before> {
    let mut stats = Stats::default();
    let (ctx, trackers) = begin(options, log, root, Trackers::default(), &mut stats)?;
    let mut before = Before::default();
    let copied = rounds(&ctx, &mut before, &trackers, interrupt, &mut stats);
    if let Err(error) = copied {
        before.remove(&ctx);
        return Err(error);
    }
    before.trackers = trackers;
    let last = before.rounds.last();
    before.parent = last
        .map(|last| {
            let name = last.path().file_name().unwrap_or_default();
            Ok::<_, anyhow::Error>((PathBuf::from(name), ImageDir::open(last.path())?))
        })
        .transpose()?;
    Ok(before)
}

/// Rounds until one has little left to copy, or no less than the one before.
fn rounds(
    ctx: &Context,
    before: &mut Before,
    trackers: &Trackers,
    interrupt: &Interrupt,
    stats: &mut Stats,
) -> Result<()> {
    let mut pages = u64::MAX;
    for number in 1..=ctx.options.pre_copy {
        let path = ctx.options.images_dir.join(format!("{ROUND}{number}"));
        if !path.is_dir() {
            std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        }
        let dir = ImageDir::open(&path)?;
        dir.remove_images()?;
        if number > 1 {
            dir.set_parent(Path::new(&format!("../{ROUND}{}", number - 1)))?;
        }
        before.rounds.push(dir);
        let (Some(dir), last) = (before.rounds.last(), before.rounds.len().checked_sub(2)) else {
            continue;
        };
        let last = last.and_then(|last| before.rounds.get(last));
        copy_round(ctx, dir, last, trackers, &RunId::new()?, interrupt, stats)?;
        tell_round(ctx.log, number, stats);
        if stats.pages < FEW_PAGES || stats.pages > pages / 8 * 7 {
            break;
        }
        pages = stats.pages;
    }
    Ok(())
}

/// `--auto-dedup`, when the tree goes on and the dump is complete.
pub fn dedup(options: &Options, log: &Log, images: &ImageDir) -> Result<()> {
    if options.auto_dedup {
        let bytes = punch_superseded(images)?;
        log.info(format_args!(
            "{bytes} bytes of earlier dumps are not needed any more"
        ));
    }
    Ok(())
}

fn tell_round(log: &Log, number: u32, stats: &Stats) {
    log.info(format_args!(
        "Round {number}: {} pages copied in {:?} while the tree ran, {} left to the round before",
        stats.pages, stats.memory, stats.in_parent
    ));
}

fn remove(log: &Log, images: &ImageDir) {
    if let Err(error) = images.remove_images() {
        log.error(
            "dump",
            format_args!("remove the unfinished images: {error}"),
        );
    }
}

/// `--track-mem` with `--leave-running`: from here on writes are tracked for the next dump.
pub fn track_on(ctx: &Context, frozen: &mut Frozen, run_id: &RunId) -> Result<Option<Holder>> {
    if !(ctx.options.track_mem && ctx.options.leave_running) {
        return Ok(None);
    }
    let mut trackers = Trackers::default();
    trackers.add_missing(ctx, frozen)?;
    mark_all(&trackers)?;
    hold(ctx, run_id, &trackers).map(Some)
}
