//! crust-restore: brings a process tree back from its images.
#![forbid(unsafe_code)]

mod cgroup;
mod check;
mod exec;
mod files;
mod host;
mod ipc;
mod mm;
mod network;
mod plan;
mod restore;
mod stats;
mod task;
mod tree;

use crust_cli::options::Tool;
use crust_cli::run::main_of;
use std::cell::Cell;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mirrored = Cell::new(None);
    let code = main_of(Tool::Restore, |options, log| {
        if options.check {
            return check::check(options);
        }
        mirrored.set(restore::restore(options, log)?);
        Ok(())
    });
    mirrored.get().map_or(code, ExitCode::from)
}
