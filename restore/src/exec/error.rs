//! The error of a step: what failed, and why, with the kernel's word as a number beside the text.

use crate::plan::step::Step;
use crust_process::error::Error as TaskError;
use nix::errno::Errno;
use std::{error, fmt, io};

/// A step that failed.
#[derive(Debug)]
pub struct ExecError {
    /// What failed: `restore pipe 0x1a (files.img entry 7): broker: pipe2()`.
    pub what: String,
    /// The kernel's word or ours.
    pub why: Why,
}

impl fmt::Display for ExecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why.text)
    }
}

impl error::Error for ExecError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.why.word.as_ref().map(|word| match word {
            Word::Errno(errno) => errno as _,
            Word::Io(error) => error as _,
        })
    }
}

impl ExecError {
    /// Of a step; `doing` may be empty.
    pub fn step(step: &Step, doing: &str, why: impl Into<Why>) -> ExecError {
        let doing = if doing.is_empty() {
            String::new()
        } else {
            format!(": {doing}")
        };
        let what = format!("restore {} in {}{doing}", step.origin, step.actor);
        ExecError::new(what, why)
    }

    /// Of anything else.
    pub fn new(what: impl Into<String>, why: impl Into<Why>) -> ExecError {
        ExecError {
            what: what.into(),
            why: why.into(),
        }
    }
}

/// Why it failed. The text ends with the kernel's word, if that was it.
#[derive(Debug)]
pub struct Why {
    text: String,
    word: Option<Word>,
}

/// The kernel's word in the type whose text it was told by: so it is told once.
#[derive(Debug)]
enum Word {
    Errno(Errno),
    Io(io::Error),
}

impl Word {
    fn of(cause: &(dyn error::Error + 'static)) -> Option<Word> {
        if let Some(error) = cause.downcast_ref::<TaskError>() {
            return Some(Word::Errno(error.errno));
        }
        let of_io = |error: &io::Error| error.raw_os_error().map(io::Error::from_raw_os_error);
        let io = || cause.downcast_ref().and_then(of_io).map(Word::Io);
        let errno = cause.downcast_ref::<Errno>().copied();
        errno.map(Word::Errno).or_else(io)
    }
}

impl From<Errno> for Why {
    fn from(errno: Errno) -> Why {
        Why {
            text: errno.to_string(),
            word: Some(Word::Errno(errno)),
        }
    }
}

impl From<TaskError> for Why {
    fn from(error: TaskError) -> Why {
        Why {
            text: error.to_string(),
            word: Some(Word::Errno(error.errno)),
        }
    }
}

impl From<io::Error> for Why {
    fn from(error: io::Error) -> Why {
        Why {
            text: error.to_string(),
            word: Word::of(&error),
        }
    }
}

impl From<anyhow::Error> for Why {
    fn from(error: anyhow::Error) -> Why {
        Why {
            text: format!("{error:#}"),
            word: error.chain().last().and_then(Word::of),
        }
    }
}

impl From<String> for Why {
    fn from(text: String) -> Why {
        Why { text, word: None }
    }
}

impl From<&str> for Why {
    fn from(text: &str) -> Why {
        text.to_owned().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};
    use crust_cli::code::Code;
    use crust_cli::failure::failure_of;

    #[test]
    fn the_kernels_word_is_told_once_and_as_a_number() {
        let of_io = || io::Error::from_raw_os_error(13);
        let cases: Vec<(Why, &str, &str)> = vec![
            (
                Errno::EBUSY.into(),
                "EBUSY",
                "x: EBUSY: Device or resource busy",
            ),
            (
                anyhow!(Errno::EIO).context("seek").into(),
                "EIO",
                "x: seek: EIO: I/O error",
            ),
            (
                Err::<(), _>(of_io())
                    .context("open")
                    .expect_err("it is one")
                    .into(),
                "EACCES",
                "x: open: Permission denied (os error 13)",
            ),
        ];
        for (why, errno, sentence) in cases {
            let failure = failure_of(ExecError::new("x", why).into(), Code::Execute);
            assert_eq!(failure.to_json()["errno"], errno);
            assert_eq!(failure.sentence(), sentence);
        }
        let none = failure_of(ExecError::new("x", "no slot").into(), Code::Execute);
        assert!(none.to_json().get("errno").is_none());
    }
}
