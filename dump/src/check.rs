//! `--check`: everything that would be refused, in one list, and what the dump would need.
//!
//! The tree is frozen and looked at as for a dump, for the few milliseconds that this takes, and
//! goes on; nothing is written. What a room refuses it refuses here too: rooms know no check.

pub mod needs;

use crate::collect::{Collected, collect, spaces};
use crate::context::Context;
use crate::dump::{allow_many_descriptors, reason_of, root_of, views};
use crate::freezing::freeze;
use crate::interrupt::Interrupt;
use crate::mm::foresee::Foreseen;
use crate::refusal::Refusals;
use crate::task::refuse_foreign_code;
use anyhow::Result;
use crust_cli::capabilities::{Needs, own_effective};
use crust_cli::code::Code;
use crust_cli::failure::{Failure, OfStage, failure_of};
use crust_cli::finding::{Finding, Severity};
use crust_cli::log::Log;
use crust_cli::options::{Options, Tool};
use crust_cli::progress::Progress;
use crust_cli::report::Report;
use crust_image::ImageDir;
use crust_process::freeze::Frozen;
use nix::sys::statvfs::fstatvfs;
use std::time::Duration;

/// Looks, tells, and fails if the dump would.
pub fn check(options: &Options, log: &Log) -> Result<()> {
    let root = root_of(options)?;
    let mut findings = Vec::new();
    let images = ImageDir::open(&options.images_dir)
        .and_then(|images| images.check_writable().map(|()| images))
        .stage(Code::ImagesDir);
    let images = noted(&mut findings, images);
    allow_many_descriptors(log);
    let interrupt = Interrupt::block(Progress::silent()).stage(Code::Host)?;
    let frozen = freeze(root, options);
    let mut needs = Needs::default();
    let mut time = None;
    if let Some(mut frozen) = noted(&mut findings, frozen) {
        let seen = look(options, log, &mut frozen);
        let since = frozen.since;
        frozen.thaw().stage(Code::LetGo)?;
        time = Some(since.elapsed());
        interrupt.check()?;
        if let Some(seen) = noted(&mut findings, seen) {
            findings.extend(seen.refusals);
            needs = seen.needs;
            findings.extend(images.and_then(|images| is_too_full(&images, seen.bytes)));
        }
    }
    report(options, findings, &needs, time)
}

/// What comes of looking at a frozen tree.
struct Seen {
    refusals: Vec<Finding>,
    needs: Needs,
    /// Bytes of memory that the images may hold, at most.
    bytes: u64,
}

fn look(options: &Options, log: &Log, frozen: &mut Frozen) -> Result<Seen> {
    let ctx = Context {
        options,
        log,
        stopped: frozen.since + frozen.took,
        tasks: views(frozen).stage(Code::Collect)?,
        foreseen: Foreseen::default(),
        refusals: Refusals::default(),
    };
    let foreign: Vec<_> = frozen
        .tasks
        .iter()
        .filter_map(refuse_foreign_code)
        .collect();
    if !foreign.is_empty() {
        // Nothing may run in these, so nothing else can be asked.
        return Ok(Seen {
            refusals: foreign.iter().map(reason_of).collect(),
            needs: Needs::default(),
            bytes: 0,
        });
    }
    let collected = collect_all(&ctx, frozen).stage(Code::Collect);
    let mut refusals: Vec<Finding> = ctx.refusals.take().iter().map(reason_of).collect();
    let collected = noted(&mut refusals, collected);
    let mut seen = Seen {
        refusals,
        needs: Needs::default(),
        bytes: 0,
    };
    if let Some(collected) = collected {
        seen.needs = needs::of(&collected, options);
        let spaces = spaces(&collected.subjects);
        let first = spaces
            .iter()
            .filter_map(|space| collected.subjects.get(*space.first()?));
        let resident = first.filter_map(|subject| needs::resident(&subject.facts.dir));
        seen.bytes = resident.sum();
    }
    Ok(seen)
}

fn collect_all(ctx: &Context, frozen: &mut Frozen) -> Result<Collected> {
    let mut collected = collect(ctx, frozen)?;
    collected.files.settle(ctx)?;
    Ok(collected)
}

/// The value, or a finding in its place.
fn noted<T>(findings: &mut Vec<Finding>, result: Result<T>) -> Option<T> {
    let error = match result {
        Ok(value) => return Some(value),
        Err(error) => error,
    };
    let failure = failure_of(error, Code::Kernel);
    if failure.findings().is_empty() {
        findings.push(failure.as_finding());
    } else {
        findings.extend_from_slice(failure.findings());
    }
    None
}

/// Resident memory is more than what is written: pages of files are not, unless changed.
fn is_too_full(images: &ImageDir, bytes: u64) -> Option<Finding> {
    let stat = fstatvfs(images).ok()?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    let what = format!("up to {bytes} bytes of memory will be written and {free} bytes are free");
    (bytes > free).then(|| Finding::warning(Code::NoSpace, "the images directory", what))
}

fn report(
    options: &Options,
    findings: Vec<Finding>,
    needs: &Needs,
    time: Option<Duration>,
) -> Result<()> {
    let effective = own_effective().stage(Code::Host)?;
    let mut report = Report::new(Tool::Dump, findings, needs, effective);
    if let Some(time) = time {
        report = report.frozen(time);
    }
    report.print(options.json).stage(Code::Afterwards)?;
    let errors: Vec<Finding> = report
        .findings()
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .cloned()
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    Err(Failure::for_reasons(Code::Refused, "cannot dump", errors).into())
}
