//! Preflight: everything that is against a restore, in one list, before anything is touched.
//!
//! A restore asks the same questions before its first step and stops with the same list;
//! `--check` asks and prints. [`CHECKS`] is where a resource adds what it can look up on this
//! host without making anything: a check gets the steps of the plan, also when the planner has
//! refused something, and answers with findings. It must not open what an open would change.

mod cpu;
pub mod digest;
mod holders;
mod huge_pages;
mod ids;
mod needs;
mod network;
pub mod pids;
mod ports;

use crate::exec::routines::preflight::{Opened, open_files, problems_of_files};
use crate::host::Host;
use crate::mm;
use crate::plan::step::{Origin, Step};
use crate::plan::{Refusal, draft};
use anyhow::Result;
use crust_cli::capabilities::Needs;
use crust_cli::code::Code;
use crust_cli::failure::{Failure, OfStage, failure_of};
use crust_cli::finding::{Finding, Severity};
use crust_cli::options::{Options, Tool};
use crust_cli::report::Report;
use crust_cli::workers;
use crust_image::ImageDir;
use crust_image::check::{self, Given};
use crust_image::checkpoint::Checkpoint;
use holders::holders_of;

/// What a check may look at.
pub struct Subject<'a> {
    /// The command line.
    pub options: &'a Options,
    /// The images.
    pub images: &'a ImageDir,
    /// What they say.
    pub checkpoint: &'a Checkpoint,
    /// The steps of the plan; not in order if the plan was refused.
    pub steps: &'a [Step],
}

/// A question to this host.
type Check = fn(&Subject<'_>) -> Vec<Finding>;

/// All of them, the cheapest first, files last.
const CHECKS: &[Check] = &[
    cpu::check,
    huge_pages::check,
    ids::check,
    network::check,
    pids::check,
    ports::check,
    vdso,
    files,
];

/// What stands against a restore by these steps.
pub fn ask(subject: &Subject<'_>) -> Vec<Finding> {
    CHECKS.iter().flat_map(|check| check(subject)).collect()
}

/// The same before a restore, which goes on with the files that were opened for the answer. Action
/// scripts may change files before they are opened: then all are only looked at.
pub fn ask_and_open(subject: &Subject<'_>) -> (Vec<Finding>, Opened) {
    if !subject.options.action_scripts.is_empty() {
        return (ask(subject), Opened::default());
    }
    let others = CHECKS
        .iter()
        .filter(|check| !std::ptr::fn_addr_eq(**check, files as Check));
    let mut findings: Vec<Finding> = others.flat_map(|check| check(subject)).collect();
    let (problems, opened) = open_files(subject.steps);
    findings.extend(tell_files(subject, problems));
    (findings, opened)
}

/// What an unprivileged restore would lose: told before its first step, not when a step fails.
pub fn of_privileges(options: &Options, host: &Host, steps: &[Step]) -> Vec<Finding> {
    match options.unprivileged {
        true => needs::of(steps).missing(host.creds.cap_eff),
        false => Vec::new(),
    }
}

/// What in the images does not fit together: the answer of `crit check`, by the same library.
pub fn of_images(options: &Options, images: &ImageDir, checkpoint: &Checkpoint) -> Vec<Finding> {
    let given = Given {
        tcp_close: options.tcp_close,
    };
    let found = check::check(checkpoint, images, given);
    found.into_iter().map(of_image).collect()
}

fn of_image(found: check::Finding) -> Finding {
    let mut object = found.image;
    if let Some(entry) = found.entry {
        object += &format!(" entry {entry}");
    }
    let what = match found.field {
        Some(field) => format!("{field}: {}", found.what),
        None => found.what,
    };
    let finding = match found.severity {
        check::Severity::Error => Finding::error(Code::Image, object, what),
        check::Severity::Warning => Finding::warning(Code::Image, object, what),
    };
    match found.fix {
        Some(fix) => finding.remedy(fix),
        None => finding,
    }
}

/// Fails with the whole list if there is one.
pub fn expect_nothing(findings: Vec<Finding>) -> Result<()> {
    let errors = errors(findings);
    let code = errors.first().map_or(Code::Plan, |first| first.code);
    let code = match errors.iter().all(|finding| finding.code == code) {
        true => code,
        false => Code::Plan,
    };
    match errors.is_empty() {
        true => Ok(()),
        false => Err(Failure::for_reasons(code, "cannot restore", errors).into()),
    }
}

fn errors(findings: Vec<Finding>) -> Vec<Finding> {
    let is_error = |finding: &Finding| finding.severity == Severity::Error;
    findings.into_iter().filter(is_error).collect()
}

/// Looks, tells, and fails if the restore would.
pub fn check(options: &Options) -> Result<()> {
    workers::start();
    let mut needs = Needs::default();
    let host = Host::probe(options).stage(Code::Host)?;
    let findings = match look(options, &host, &mut needs) {
        Ok(findings) => findings,
        Err(error) => vec![failure_of(error, Code::Kernel).as_finding()],
    };
    let report = Report::new(Tool::Restore, findings, &needs, host.creds.cap_eff);
    report.print(options.json).stage(Code::Afterwards)?;
    expect_nothing(report.findings().to_vec())
}

fn look(options: &Options, host: &Host, needs: &mut Needs) -> Result<Vec<Finding>> {
    let images = ImageDir::open(&options.images_dir).stage(Code::ImagesDir)?;
    let damage = digest::check(options, &images);
    let checkpoint = match Checkpoint::load(&images).stage(Code::Image) {
        // The damage tells why.
        Err(_) if !damage.is_empty() => return Ok(damage),
        loaded => loaded?,
    };
    let draft = draft(&checkpoint, host, options);
    *needs = needs::of(&draft.steps);
    let mut findings = damage;
    findings.extend(of_images(options, &images, &checkpoint));
    findings.extend(draft.refusals.iter().map(reason_of));
    findings.extend(ask(&Subject {
        options,
        images: &images,
        checkpoint: &checkpoint,
        steps: &draft.steps,
    }));
    Ok(findings)
}

/// A refusal of the planner as a finding.
pub fn reason_of(refusal: &Refusal) -> Finding {
    let finding = Finding::error(refusal.code, refusal.origin.to_string(), &refusal.why);
    match refusal.hint.as_str() {
        "" => finding,
        hint => finding.remedy(hint),
    }
}

/// Every executable, library and open file that is gone or has changed.
fn files(subject: &Subject<'_>) -> Vec<Finding> {
    tell_files(subject, problems_of_files(subject.steps))
}

fn tell_files(subject: &Subject<'_>, problems: Vec<(&Origin, String)>) -> Vec<Finding> {
    problems
        .into_iter()
        .map(|(origin, what)| {
            let entry = origin.entry.filter(|_| origin.image == "files.img");
            let holders = entry.map(|entry| holders_of(subject.checkpoint, entry));
            let object = match holders.unwrap_or_default().as_str() {
                "" => origin.to_string(),
                holders => format!("{origin}, {holders}"),
            };
            Finding::error(Code::File, object, what)
        })
        .collect()
}

/// The kernel's functions must be where the program knows them to be.
fn vdso(subject: &Subject<'_>) -> Vec<Finding> {
    let checked = mm::vdso::check(subject.images, subject.checkpoint).stage(Code::HostKernel);
    let failure = |error| failure_of(error, Code::HostKernel).as_finding();
    checked.err().map(failure).into_iter().collect()
}
