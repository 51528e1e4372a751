//! crust-dump: freezes a process tree, writes its state into images, and lets it go on or ends it.
#![forbid(unsafe_code)]

mod cgroup;
mod check;
mod collect;
mod context;
mod dump;
mod files;
mod freezing;
mod ids;
mod interrupt;
mod inventory;
mod mm;
mod refusal;
mod stats;
mod task;
mod tree;
mod write;

use crust_cli::options::Tool;
use crust_cli::run::main_of;
use std::process::ExitCode;

fn main() -> ExitCode {
    main_of(Tool::Dump, |options, log| match options.check {
        true => check::check(options, log),
        false => dump::dump(options, log),
    })
}
