//! The restore from beginning to end: read, plan, refuse everything at once, execute, let go.
//!
//! Nothing is touched until the plan is whole: `--plan` prints it and stops there. A failure of
//! the execution leaves no task and no file behind.

use crate::check::{self, Subject};
use crate::exec::routines::preflight::Opened;
use crate::exec::{ExecError, Restored, Run, execute, make_room};
use crate::host::Host;
use crate::network::{Locked, Unlocked};
use crate::plan::plan;
use crate::plan::print::Text;
use crate::plan::step::Plan;
use crate::stats::encode_stats;
use anyhow::{Context as _, Result};
use crust_cli::code::Code;
use crust_cli::failure::OfStage;
use crust_cli::finding::Severity;
use crust_cli::log::Log;
use crust_cli::options::{Options, PlanFormat};
use crust_cli::progress::Progress;
use crust_cli::scripts::{self, Stage};
use crust_cli::status::tell_started;
use crust_cli::workers;
use crust_image::checkpoint::Checkpoint;
use crust_image::sink::write_entry;
use crust_image::{ImageDir, Kind};
use crust_process::fds::{PidFd, reserve_own};
use crust_process::pid::HostPid;
use crust_process::survivor::Survivor;
use crust_process::tracee::{self, Wait};
use crust_proto::criu::StatsEntry;
use std::fs;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::time::Instant;

/// Room for what most restores need ([`reserve_own`]).
const DESCRIPTORS: usize = 1023;
/// Bit that a shell adds to the number of the signal that killed a program.
const KILLED: i32 = 128;

/// Restores the tree of the images directory. Gives the exit status to end with, if it is the
/// root's.
pub fn restore(options: &Options, log: &Log) -> Result<Option<u8>> {
    let start = Instant::now();
    let progress = Progress::new(options).stage(Code::GivenFd)?;
    progress.stage("read", None);
    let images = ImageDir::open(&options.images_dir).stage(Code::ImagesDir)?;
    reserve_own(DESCRIPTORS);
    // What ends with the process is not taken apart piece by piece.
    let checkpoint = match are_many(&images).stage(Code::ImagesDir)? {
        true => workers::during(|| load(options, &images)),
        false => load(options, &images),
    };
    let checkpoint = ManuallyDrop::new(checkpoint?);
    let host = Host::probe(options).stage(Code::Host)?;
    log.debug(format_args!("Images read in {:?}", start.elapsed()));
    progress.stage("plan", None);
    let plan = ManuallyDrop::new(plan_checked(options, log, &images, &checkpoint, &host)?);
    log.info(format_args!(
        "Planned {} steps in {:?}",
        plan.steps.len(),
        start.elapsed()
    ));
    if let Some(format) = options.plan {
        print_plan(&plan, format).stage(Code::Afterwards)?;
        return Ok(None);
    }
    progress.stage("ask host", None);
    check::expect_nothing(check::of_privileges(options, &host, &plan.steps))?;
    make_room(&plan)
        .context("raise our own soft limit RLIMIT_NOFILE")
        .stage(Code::Host)?;
    let own_pidfd = PidFd::open(HostPid::current()).stage(Code::Host)?;
    let opened = ask_host(options, log, &images, &checkpoint, &plan)?;
    tell_started(options).stage(Code::GivenFd)?;
    scripts::run(options, log, Stage::PreRestore, None).stage(Code::Script)?;
    let locked = Locked::lock(options, &checkpoint, log);
    let run = Run {
        plan: &plan,
        images: &images,
        progress: &progress,
        opened,
        own_pidfd: own_pidfd.as_fd(),
    };
    let mut unlocked = None;
    let restored = execute(run, |root, survivor| {
        unlocked = Some(before_release(options, log, root, survivor, locked)?);
        Ok(())
    })
    .stage(Code::Execute)?;
    if let Some(unlocked) = unlocked {
        unlocked.keep();
    }
    progress.finish();
    if let Some(error) = restored.unreleased {
        let why = "let the restored tree go; it is whole, and goes on when crust-restore ends";
        return Err(anyhow::Error::from(error).context(why)).stage(Code::Afterwards);
    }
    scripts::run(options, log, Stage::PostResume, Some(restored.root.get())).stage(Code::Script)?;
    tell(log, &restored);
    write_stats(options, &checkpoint, &restored).stage(Code::Afterwards)?;
    if options.display_stats {
        print!("{}", progress.timeline());
    }
    if options.restore_detached {
        return Ok(None);
    }
    wait_for(restored.root).map(Some).stage(Code::Afterwards)
}

/// Whether the images are worth threads.
fn are_many(images: &ImageDir) -> Result<bool> {
    const MANY_TASKS: usize = 32;
    let list = images.list()?;
    let cores = list.iter().filter(|(kind, _)| *kind == Kind::Core).count();
    Ok(cores >= MANY_TASKS || list.iter().any(|(kind, _)| *kind == Kind::Digest))
}

fn load(options: &Options, images: &ImageDir) -> Result<Checkpoint> {
    if options.plan.is_none() {
        check::expect_nothing(check::digest::check(options, images))?;
    }
    Checkpoint::load(images).stage(Code::Image)
}

/// The plan, if the images fit together and the planner refuses nothing. All reasons against it
/// are told at once.
fn plan_checked(
    options: &Options,
    log: &Log,
    images: &ImageDir,
    checkpoint: &Checkpoint,
    host: &Host,
) -> Result<Plan> {
    let mut findings = check::of_images(options, images, checkpoint);
    let plan = plan(checkpoint, host, options);
    let refusals = plan.as_ref().err().into_iter().flatten();
    findings.extend(refusals.map(check::reason_of));
    for finding in &findings {
        match finding.severity {
            Severity::Error => log.error("restore", finding),
            Severity::Warning => log.warn("restore", finding),
        }
    }
    check::expect_nothing(findings)?;
    // The planner does not fail without a reason.
    plan.map_err(|_| anyhow::anyhow!("cannot restore"))
}

/// Everything of this host that stands against the plan, before anything is done. Gives the files
/// that were opened for the answer.
fn ask_host(
    options: &Options,
    log: &Log,
    images: &ImageDir,
    checkpoint: &Checkpoint,
    plan: &Plan,
) -> Result<Opened> {
    let (findings, opened) = check::ask_and_open(&Subject {
        options,
        images,
        checkpoint,
        steps: &plan.steps,
    });
    for finding in &findings {
        log.error("restore", finding);
    }
    check::expect_nothing(findings)?;
    Ok(opened)
}

fn print_plan(plan: &Plan, format: PlanFormat) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let printed = match format {
        PlanFormat::Text => write!(out, "{}", Text(plan)),
        PlanFormat::Json => {
            serde_json::to_writer(&mut out, plan).context("write the plan")?;
            writeln!(out)
        }
    };
    printed.context("write the plan")
}

/// What must be done while the tree is whole but does not run yet.
fn before_release(
    options: &Options,
    log: &Log,
    root: HostPid,
    survivor: Option<&Survivor>,
    locked: Locked,
) -> Result<Unlocked, ExecError> {
    if let Some(pidfile) = &options.pidfile {
        let written = fs::write(pidfile, root.to_string());
        written.map_err(|why| ExecError::new(format!("write {}", pidfile.display()), why))?;
    }
    let script = |stage: Stage| {
        let run = scripts::run(options, log, stage, Some(root.get()));
        run.map_err(|why| ExecError::new("run an action script", why))
    };
    script(Stage::PostRestore)?;
    let unlocked = locked.unlock(survivor, log);
    let unlocked = unlocked.map_err(|why| ExecError::new("unlock the network", why))?;
    script(Stage::NetworkUnlock)?;
    script(Stage::PreResume)?;
    Ok(unlocked)
}

fn tell(log: &Log, restored: &Restored) {
    for (phase, ended) in &restored.phases {
        log.debug(format_args!("{phase:?} ended at {ended:?}"));
    }
    for left in &restored.left {
        log.warn("restore", left);
    }
    log.info(format_args!("Restored: the root is {}", restored.root));
}

fn write_stats(options: &Options, checkpoint: &Checkpoint, restored: &Restored) -> Result<()> {
    let work_dir = ImageDir::open(&options.work_dir).context("write stats-restore")?;
    let entry = encode_stats(checkpoint, &restored.phases);
    if options.display_stats {
        print_stats(&entry);
    }
    Ok(write_entry(&work_dir, Kind::StatsRestore, None, &entry)?)
}

fn print_stats(entry: &StatsEntry) {
    let Some(stats) = &entry.restore else { return };
    println!("Pages restored: {}", stats.pages_restored.unwrap_or(0));
    println!("Forking time: {} us", stats.forking_time);
    println!("Restore time: {} us", stats.restore_time);
}

/// The root is our child: its end is ours. A stop of it is not told.
fn wait_for(root: HostPid) -> Result<u8> {
    let status = loop {
        let wait = tracee::wait_blocking(root);
        if let Wait::Exited(status) = wait.context("wait for the root task")? {
            break status;
        }
    };
    // A raw wait status: the signal in the low seven bits, else the exit code above them.
    Ok(match status & 0x7f {
        0 => (status >> 8 & 0xff) as u8,
        signal => (KILLED + signal) as u8,
    })
}
