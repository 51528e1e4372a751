//! SIGTERM, SIGINT and SIGHUP end a dump in good order: the tree runs on, the images go.
//!
//! They are blocked, not caught: a handler could do nothing but set a flag, and a signalfd is one.
//! What is under way (copying memory, above all) asks it between its steps.

use crate::mm::copy::PAGE;
use anyhow::{Context, Result, anyhow};
use crust_cli::code::Code;
use crust_cli::failure::failure_of;
use crust_cli::progress::Progress;
use crust_cli::workers;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// Tells whether the dump was told to end, and on the way how far it is.
#[derive(Debug)]
pub struct Interrupt {
    signals: SignalFd,
    progress: Progress,
}

impl Interrupt {
    /// Blocks the signals, and SIGCHLD, by which tracees report, in this thread and all that it
    /// will start.
    pub fn block(progress: Progress) -> Result<Interrupt> {
        let ending: SigSet = ENDING.into_iter().collect();
        let mut blocked = ending;
        blocked.add(Signal::SIGCHLD);
        // A limit of file sizes shall be an error of the write, not our end.
        blocked.add(Signal::SIGXFSZ);
        blocked.thread_block().context("block signals")?;
        // They block what this thread does.
        workers::start();
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Interrupt {
            signals: SignalFd::with_flags(&ending, flags)
                .context("make the descriptor that tells of signals (signalfd)")?,
            progress,
        })
    }

    /// How far the dump is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Between two pieces of copying: so many pages come next.
    pub fn check_before(&self, pages: u64) -> Result<()> {
        self.check()?;
        self.progress.add(pages * PAGE);
        Ok(())
    }

    /// An error if one of the signals has come.
    pub fn check(&self) -> Result<()> {
        match self
            .signals
            .read_signal()
            .context("look whether a signal has come (signalfd)")?
        {
            None => Ok(()),
            Some(info) => {
                let name =
                    Signal::try_from(info.ssi_signo as i32).map_or("a signal", Signal::as_str);
                let why = anyhow!("interrupted by {name} from process {}", info.ssi_pid);
                Err(failure_of(why, Code::Interrupted).into())
            }
        }
    }
}
