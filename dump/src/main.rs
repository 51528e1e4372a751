//! crust-dump: freezes a process tree, writes its state into images, and lets it go on or ends it.
#![forbid(unsafe_code)]

mod cgroup;
mod check;
mod collect;
mod context;
mod cpuinfo;
mod dump;
mod ending;
mod files;
mod freezing;
mod ids;
mod interrupt;
mod inventory;
mod ipc;
mod lasting;
mod mm;
mod network;
mod predump;
mod refusal;
mod snapshot;
mod stats;
mod stepped;
mod task;
mod timens;
mod track;
mod tree;
mod uts;
mod write;

use crust_cli::options::Tool;
use crust_cli::run::main_of;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some(track::holder::ARGUMENT), Some(run_id)) => match track::holder::hold(&run_id) {
            Ok(()) => ExitCode::SUCCESS,
            // Nobody is there to be told: the next dump finds no holder and is a whole one.
            Err(_) => ExitCode::FAILURE,
        },
        _ => main_of(Tool::Dump, |options, log| {
            if options.check {
                check::check(options, log)
            } else if options.pre_dump {
                predump::pre_dump(options, log)
            } else {
                dump::dump(options, log)
            }
        }),
    }
}
