//! crit reads, checks, queries and edits checkpoint images.
//!
//! One module per verb; what an image means as JSON is in `crust_image::json`. Exit status: 0 done,
//! 1 failed (one line on stderr names file, entry, field and byte), 2 wrong usage; a broken pipe
//! ends it quietly.
#![forbid(unsafe_code)]

mod anonymize;
mod check;
mod cli;
mod color;
mod comfort;
mod core;
mod decode;
mod decode_many;
mod diff;
mod dump;
mod edit;
mod encode;
mod explore;
mod flatten;
mod info;
mod jq;
mod mem;
mod memory;
mod ndjson;
mod output;
mod pack;
mod path;
mod query;
mod raw;
mod remap;
mod task_memory;
mod transaction;
mod transform;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = cli::Arguments::parse();
    let Some(command) = arguments.command else {
        cli::print_usage();
        return ExitCode::from(1);
    };
    // diff(1) tells trouble by 2, since 1 means "different".
    let trouble = if matches!(command, cli::Command::Diff(_)) {
        2
    } else {
        1
    };
    match run(command, arguments.color.is_wanted()) {
        Ok(status) => status,
        // Whoever read our output has seen enough.
        Err(error) if output::is_broken_pipe(&error) => ExitCode::from(141),
        Err(error) => {
            eprintln!("crit: {}", output::error_text(&error));
            ExitCode::from(trouble)
        }
    }
}

fn run(command: cli::Command, color: bool) -> anyhow::Result<ExitCode> {
    match command {
        cli::Command::Decode(options) if options.ndjson => ndjson::decode(&options)?,
        cli::Command::Decode(options) => decode::decode(&options, color)?,
        cli::Command::Show(options) => decode::show(&options, color)?,
        cli::Command::Encode(options) if options.ndjson => ndjson::encode(&options)?,
        cli::Command::Encode(options) => encode::encode(&options)?,
        cli::Command::Info(options) => info::info(&options)?,
        cli::Command::X(options) => explore::explore(&options, color)?,
        cli::Command::Get(options) => edit::get(&options, color)?,
        cli::Command::Set(options) => edit::set(&options)?,
        cli::Command::Del(options) => edit::del(&options)?,
        cli::Command::Edit(options) => edit::edit(&options)?,
        cli::Command::Remap(options) => remap::remap(&options)?,
        cli::Command::Check(options) => return check::check(&options, color),
        cli::Command::Query(options) => query::query(&options, color)?,
        cli::Command::Core(options) => core::core(&options)?,
        cli::Command::Diff(options) => return diff::diff(&options, color),
        cli::Command::Anonymize(options) => anonymize::anonymize(&options)?,
        cli::Command::Flatten(options) => flatten::flatten(&options)?,
        cli::Command::Dedup(options) => flatten::dedup(&options)?,
        cli::Command::Pack(options) => pack::pack(&options)?,
        cli::Command::Unpack(options) => pack::unpack(&options)?,
        cli::Command::Completions(options) => comfort::completions(&options)?,
        cli::Command::Man(options) => comfort::man(&options)?,
        cli::Command::Mem(options) => mem::mem(&options, color)?,
        cli::Command::Transform(options) => transform::transform(&options)?,
    }
    Ok(ExitCode::SUCCESS)
}
