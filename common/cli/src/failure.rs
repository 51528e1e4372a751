//! A failed run: one sentence for people, and the same with a stable code for programs.
//!
//! Rooms return plain errors with context. Where a stage of a run begins and ends, [`Stage`] says
//! what kind of failure an error of it is, unless the error itself tells a closer kind (a full
//! disk, a missing privilege, an image).

use crate::code::Code;
use crate::finding::{Finding, Severity};
use crust_image::error::Error as ImageError;
use crust_process::error::Error as TaskError;
use nix::errno::Errno;
use serde_json::{Map, Value, json};
use std::error::Error;
use std::fmt;
use std::io;

/// A failure that knows its kind.
#[derive(Debug)]
pub struct Failure {
    code: Code,
    sentence: String,
    errno: Option<Errno>,
    task: Option<i32>,
    findings: Vec<Finding>,
}

impl Failure {
    /// A failure for a list of reasons: `cannot dump: ...`.
    pub fn for_reasons(code: Code, what: &str, findings: Vec<Finding>) -> Failure {
        let list: Vec<String> = findings.iter().map(Finding::to_string).collect();
        let sentence = match list.as_slice() {
            [one] => format!("{what}: {one}"),
            many => format!("{what}, for {} reasons: {}", many.len(), many.join("; ")),
        };
        let task = match findings.as_slice() {
            [only] => only.task,
            _ => None,
        };
        Failure {
            code,
            sentence,
            errno: None,
            task,
            findings,
        }
    }

    /// The kind.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The kernel's word, if it was one that failed the run.
    pub fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// What went wrong, without what to try.
    pub fn sentence(&self) -> &str {
        &self.sentence
    }

    /// The failure as one thing found by a check.
    pub fn as_finding(&self) -> Finding {
        Finding {
            severity: Severity::Error,
            code: self.code,
            // The sentence names it.
            task: None,
            object: String::new(),
            what: self.sentence.clone(),
            remedy: self.remedy().to_owned(),
        }
    }

    /// What stands against the run, where that is a list.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// An object for `--json`.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("code".into(), json!(self.code));
        object.insert("what".into(), json!(self.sentence));
        if let Some(task) = self.task {
            object.insert("task".into(), json!(task));
        }
        if let Some(errno) = self.errno {
            object.insert("errno".into(), json!(format!("{errno:?}")));
        }
        if !self.remedy().is_empty() {
            object.insert("try".into(), json!(self.remedy()));
        }
        if !self.findings.is_empty() {
            object.insert("findings".into(), json!(self.findings));
        }
        Value::Object(object)
    }

    /// What to try; a list of reasons has it with each.
    fn remedy(&self) -> &'static str {
        if self.findings.is_empty() {
            self.code.remedy()
        } else {
            ""
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)?;
        match self.remedy() {
            "" => Ok(()),
            remedy => write!(f, " ({remedy})"),
        }
    }
}

impl Error for Failure {}

/// The failure that an error is: itself, if it is one, or one of this kind.
pub fn failure_of(error: anyhow::Error, stage: Code) -> Failure {
    let sentence = sentence_of(&error);
    match error.downcast::<Failure>() {
        Ok(failure) => failure,
        Err(error) => {
            let errno = error.chain().find_map(errno_of);
            Failure {
                code: closer_kind(&error, errno, stage),
                errno,
                task: error.chain().find_map(task_of),
                sentence,
                findings: Vec::new(),
            }
        }
    }
}

/// What went wrong from the outside in. Some errors have the text of their cause at their end
/// already, which is told once.
fn sentence_of(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if sentence.ends_with(&text) {
            continue;
        }
        if !sentence.is_empty() {
            sentence += ": ";
        }
        sentence += &text;
    }
    sentence
}

/// Names the stage of which a result is.
pub trait OfStage<T> {
    /// An error is of this kind, unless it knows better.
    fn stage(self, code: Code) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OfStage<T> for Result<T, E> {
    fn stage(self, code: Code) -> anyhow::Result<T> {
        self.map_err(|error| failure_of(error.into(), code).into())
    }
}

/// A few kinds are told by the error whatever the stage is.
fn closer_kind(error: &anyhow::Error, errno: Option<Errno>, stage: Code) -> Code {
    // Whoever hears these must know that the work is done, whatever went wrong behind it.
    if matches!(stage, Code::LetGo | Code::Afterwards) {
        return stage;
    }
    let of_image = |cause: &&ImageError| match cause {
        ImageError::Io { .. } => None,
        ImageError::Missing { .. } | ImageError::Incomplete { .. } => Some(Code::Incomplete),
        _ => Some(Code::Image),
    };
    let image = error.chain().find_map(|cause| {
        let image = cause.downcast_ref::<ImageError>();
        image.as_ref().and_then(of_image)
    });
    if let Some(code) = image {
        return code;
    }
    match errno {
        Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => Code::NoSpace,
        Some(Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN) => Code::Resources,
        Some(Errno::EPERM | Errno::EACCES) if !names_a_place(stage) => Code::Privilege,
        _ => stage,
    }
}

/// For these the place that was given is what to change, whatever the kernel's word.
fn names_a_place(stage: Code) -> bool {
    use Code::{File, GivenFd, ImagesDir, LogFile, Script, WorkDir};
    matches!(
        stage,
        ImagesDir | WorkDir | LogFile | GivenFd | Script | File
    )
}

fn errno_of(cause: &(dyn Error + 'static)) -> Option<Errno> {
    let io_errno = |error: &io::Error| error.raw_os_error().map(Errno::from_raw);
    if let Some(errno) = cause.downcast_ref::<Errno>() {
        return Some(*errno);
    }
    if let Some(error) = cause.downcast_ref::<TaskError>() {
        // EPROTO is our own word for an answer that no kernel should give.
        return (error.errno != Errno::EPROTO).then_some(error.errno);
    }
    if let Some(error) = cause.downcast_ref::<ImageError>() {
        return error.errno().map(Errno::from_raw);
    }
    cause.downcast_ref::<io::Error>().and_then(io_errno)
}

fn task_of(cause: &(dyn Error + 'static)) -> Option<i32> {
    let error = cause.downcast_ref::<TaskError>()?;
    Some(error.pid.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};
    use crust_process::pid::HostPid;

    #[test]
    fn the_stage_tells_the_kind() {
        let failed: anyhow::Result<()> = Err(anyhow!("no such socket")).stage(Code::Collect);
        let failure = failure_of(failed.context("outer").unwrap_err(), Code::Write);
        assert_eq!(failure.code(), Code::Collect);
        assert_eq!(failure.to_string(), "no such socket");
    }

    #[test]
    fn the_kernels_word_tells_a_closer_kind() {
        let full = failure_of(anyhow!(Errno::ENOSPC).context("write x"), Code::Write);
        assert_eq!(full.code(), Code::NoSpace);
        assert_eq!(full.to_json()["errno"], "ENOSPC");
        assert!(full.to_string().starts_with("write x: ENOSPC"), "{full}");
        let pid = HostPid::new(7).expect("a pid");
        let refused = TaskError::new(pid, "PTRACE_SEIZE", Errno::EPERM);
        let refused = failure_of(refused.into(), Code::Freeze);
        assert_eq!(refused.code(), Code::Privilege);
        assert_eq!(refused.to_json()["task"], 7);
    }

    #[test]
    fn what_fails_behind_the_work_is_told_as_that() {
        let late = failure_of(anyhow!(Errno::ENOSPC).context("write x"), Code::Afterwards);
        assert_eq!(late.code(), Code::Afterwards);
        assert_eq!(late.to_json()["errno"], "ENOSPC");
    }

    #[test]
    fn a_cause_is_told_once() {
        let cause = io::Error::from_raw_os_error(5);
        let told = format!("a.img: flush: {cause}");
        let failure = failure_of(anyhow!(cause).context(told).context("outer"), Code::Write);
        let sentence = failure.to_string();
        assert_eq!(sentence.matches("Input/output error").count(), 1);
        assert!(
            sentence.starts_with("outer: a.img: flush: Input"),
            "{sentence}"
        );
    }

    #[test]
    fn a_list_of_reasons_is_told_whole() {
        let findings = vec![
            Finding::error(Code::Refused, "fd 1", "is a tty").remedy("try --shell-job"),
            Finding::error(Code::Refused, "fd 2", "is a tun"),
        ];
        let failure = Failure::for_reasons(Code::Refused, "cannot dump", findings);
        assert_eq!(
            failure.to_string(),
            "cannot dump, for 2 reasons: fd 1: is a tty (try --shell-job); fd 2: is a tun"
        );
        assert_eq!(failure.to_json()["findings"][1]["object"], "fd 2");
    }
}
