//! `crit check`: whether the images of a dump fit together, by the same library crust-restore asks
//! before it does anything.

use crate::cli;
use crate::color::{RED, YELLOW, painted};
use crate::dump::Dump;
use crate::memory::open_dir;
use crate::output::write_output;
use anyhow::Result;
use crust_image::check::{Severity, check_dir};
use std::process::ExitCode;

pub fn check(arguments: &cli::Check, color: bool) -> Result<ExitCode> {
    let dump = Dump::open(&arguments.dir)?;
    let findings = check_dir(&open_dir(dump.path())?);
    let count = |severity: Severity| {
        findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    write_output(None, |out| {
        if arguments.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&findings)?)?;
            return Ok(());
        }
        let shown = findings
            .iter()
            .filter(|finding| !arguments.quiet || finding.severity == Severity::Error);
        for finding in shown {
            let paint = match finding.severity {
                Severity::Error => RED,
                Severity::Warning => YELLOW,
            };
            writeln!(out, "{}", painted(&finding.to_string(), paint, color))?;
        }
        if !arguments.quiet {
            writeln!(out, "{errors} errors, {warnings} warnings")?;
        }
        Ok(())
    })?;
    let failed = errors > 0 || (arguments.strict && warnings > 0);
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
