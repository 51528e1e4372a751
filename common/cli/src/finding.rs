//! What a check finds: one thing that is against a dump or a restore, or that a user should know
//! before it. A list of them is the answer of `--check`, as text or as JSON.

use crate::code::Code;
use serde::Serialize;
use std::fmt;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The run would fail or be refused.
    Error,
    /// The run may fail, or something will be less exact.
    Warning,
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of thing.
    pub code: Code,
    /// The task that has it, if it is one task's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<i32>,
    /// The object: `fd 5`, `pid 12`, `files.img entry 7`; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub object: String,
    /// What is wrong with it.
    pub what: String,
    /// What to try, as a phrase; may be empty.
    #[serde(rename = "try", skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

impl Finding {
    /// An error with the remedy of its code.
    pub fn error(code: Code, object: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding {
            severity: Severity::Error,
            code,
            task: None,
            object: object.into(),
            what: what.into(),
            remedy: code.remedy().to_owned(),
        }
    }

    /// The same as a warning.
    pub fn warning(code: Code, object: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding {
            severity: Severity::Warning,
            ..Finding::error(code, object, what)
        }
    }

    /// The same of one task.
    pub fn of_task(self, task: i32) -> Finding {
        Finding {
            task: Some(task),
            ..self
        }
    }

    /// The same with a remedy of its own.
    pub fn remedy(self, remedy: impl Into<String>) -> Finding {
        Finding {
            remedy: remedy.into(),
            ..self
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(task) = self.task {
            write!(f, "task {task}: ")?;
        }
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        f.write_str(&self.what)?;
        if !self.remedy.is_empty() {
            write!(f, " ({})", self.remedy)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_sentence_and_an_object() {
        let finding = Finding::error(Code::PidBusy, "pid 12", "is in use by \"sh\"").of_task(7);
        assert!(
            finding
                .to_string()
                .starts_with("task 7: pid 12: is in use by \"sh\" (restore in a new")
        );
        let json = serde_json::to_value(finding.remedy("")).expect("serializes");
        let expected = serde_json::json!({
            "severity": "error", "code": "pid-busy", "task": 7, "object": "pid 12",
            "what": "is in use by \"sh\"",
        });
        assert_eq!(json, expected);
    }
}
