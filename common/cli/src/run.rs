//! From the command line to the exit status: 0 for success, 1 for a failed dump or restore, 2 for
//! a wrong command line. The last line on stderr is one sentence that says what failed.

use crate::code::Code;
use crate::config::Defaults;
use crate::failure::{Failure, OfStage, failure_of};
use crate::log::Log;
use crate::options::{Options, Stop, Tool, parse};
use anyhow::Context;
use serde_json::json;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

/// Reads the command line of this process, opens the log and runs `tool`.
pub fn main_of(tool: Tool, run: impl FnOnce(&Options, &Log) -> anyhow::Result<()>) -> ExitCode {
    let defaults = Defaults::below_home(std::env::var_os("HOME"));
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let options = match parse(tool, args.iter().cloned(), &defaults) {
        Ok(options) => options,
        Err(Stop::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(Stop::Usage(sentence)) => {
            tell(tool, args.contains(&"--json".into()), &usage(sentence));
            return ExitCode::from(2);
        }
    };
    match open_log(&options).and_then(|log| logged(tool, &options, &log, run)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(tool, options.json, &failure_of(error, Code::Kernel));
            ExitCode::FAILURE
        }
    }
}

fn usage(sentence: String) -> Failure {
    failure_of(anyhow::Error::msg(sentence), Code::Usage)
}

/// The last line on stderr.
fn tell(tool: Tool, json: bool, failure: &Failure) {
    // Whoever has closed stderr has the exit status, and must not cost us a panic.
    let _ = if json {
        writeln!(io::stderr(), "{}", json!({"error": failure.to_json()}))
    } else {
        writeln!(io::stderr(), "{}: {failure}", tool.name())
    };
}

fn logged(
    tool: Tool,
    options: &Options,
    log: &Log,
    run: impl FnOnce(&Options, &Log) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    log.debug(format_args!(
        "{} {}",
        tool.name(),
        env!("CARGO_PKG_VERSION")
    ));
    let ran = run(options, log);
    if let Some(steps) = crust_process::steps::taken() {
        log.debug(format_args!("{steps} steps taken"));
    }
    ran.inspect_err(|error| {
        let room = tool.name().trim_start_matches("crust-");
        // Without a log file the sentence is on stderr anyway.
        if options.log_file.is_some() {
            log.error(room, format_args!("{error:#}"));
        }
    })
}

fn open_log(options: &Options) -> anyhow::Result<Log> {
    match &options.log_file {
        None => Ok(Log::to_stderr(options.verbosity)),
        Some(file) => Log::to_file(file, options.verbosity)
            .with_context(|| format!("open the log file {}", file.display()))
            .stage(Code::LogFile),
    }
}
