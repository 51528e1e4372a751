//! The answer of `--check`: everything that is against a dump or a restore in one list, and what
//! the run would need.

use crate::capabilities::{Need, Needs};
use crate::finding::{Finding, Severity};
use crate::options::Tool;
use anyhow::Context;
use serde::Serialize;
use std::fmt;
use std::io::Write;
use std::time::Duration;

/// A check's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    tool: &'static str,
    /// Nothing is against the run.
    ok: bool,
    findings: Vec<Finding>,
    capabilities: Vec<Need>,
    /// Microseconds for which the tree stood still for this check.
    #[serde(skip_serializing_if = "Option::is_none")]
    frozen_us: Option<u64>,
}

impl Report {
    /// A report; errors come first. `effective` are our capabilities: those that miss are
    /// findings too.
    pub fn new(tool: Tool, mut findings: Vec<Finding>, needs: &Needs, effective: u64) -> Report {
        findings.extend(needs.missing(effective));
        findings.sort_by_key(|finding| finding.severity);
        let is_error = |finding: &Finding| finding.severity == Severity::Error;
        Report {
            tool: tool.name(),
            ok: !findings.iter().any(is_error),
            findings,
            capabilities: needs.beside(effective),
            frozen_us: None,
        }
    }

    /// The same with how long the tree was frozen.
    pub fn frozen(self, time: Duration) -> Report {
        let frozen_us = u64::try_from(time.as_micros()).ok();
        Report { frozen_us, ..self }
    }

    /// Everything found, errors first.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether the run may be tried.
    pub fn is_ok(&self) -> bool {
        self.ok
    }

    /// Prints it onto stdout.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        let printed = if json {
            serde_json::to_writer(&mut out, self).context("write the report")?;
            writeln!(out)
        } else {
            write!(out, "{self}")
        };
        printed.context("write the report")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let severity = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            writeln!(f, "{severity}: {finding}")?;
        }
        for need in &self.capabilities {
            let has = if need.present { "needs" } else { "lacks" };
            writeln!(f, "{has} {}: {}", need.capability.name(), need.reason)?;
        }
        if let Some(time) = self.frozen_us {
            writeln!(f, "the tree was frozen for {time} us")?;
        }
        let verdict = if self.ok {
            "nothing stands against it"
        } else {
            "it would fail"
        };
        writeln!(f, "{}: {verdict}", self.tool)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Code;

    #[test]
    fn errors_come_first_and_decide() {
        let findings = vec![
            Finding::warning(Code::NoSpace, "", "may not fit").remedy(""),
            Finding::error(Code::Refused, "fd 5", "is an io_uring"),
        ];
        let report = Report::new(Tool::Dump, findings, &Needs::default(), 0);
        let report = report.frozen(Duration::from_micros(1500));
        assert!(!report.is_ok());
        assert_eq!(
            report.to_string(),
            "error: fd 5: is an io_uring\nwarning: may not fit\n\
             the tree was frozen for 1500 us\ncrust-dump: it would fail\n"
        );
        let only_warnings = vec![Finding::warning(Code::NoSpace, "", "may not fit")];
        assert!(Report::new(Tool::Dump, only_warnings, &Needs::default(), 0).is_ok());
    }
}
