//! The log file. Runtimes grep it, so its lines are the peer's: `(SS.UUUUUU) message` with the
//! time since the start, `Warn  (where): message`, `Error (where): message`.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// How much is told; the number is what `-v` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What failed.
    Error = 1,
    /// What may surprise; the default of the peer.
    Warn = 2,
    /// The stages.
    Info = 3,
    /// Everything.
    Debug = 4,
}

/// A log: where its lines go and from which level on.
#[derive(Debug)]
pub struct Log {
    start: Instant,
    level: u8,
    out: Mutex<Out>,
}

#[derive(Debug)]
enum Out {
    File(File),
    Stderr,
    Nowhere,
}

impl Log {
    /// Lines into a new file (an older one is cut).
    pub fn to_file(path: &Path, level: u8) -> io::Result<Log> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(path)?;
        Ok(Log::new(Out::File(file), level))
    }

    /// Lines onto stderr: what the peer does without `--log-file`.
    pub fn to_stderr(level: u8) -> Log {
        Log::new(Out::Stderr, level)
    }

    /// No lines, for tests.
    pub fn nowhere() -> Log {
        Log::new(Out::Nowhere, 0)
    }

    fn new(out: Out, level: u8) -> Log {
        Log {
            start: Instant::now(),
            level,
            out: Mutex::new(out),
        }
    }

    /// Whether lines of this level are told: for those that are expensive to make.
    pub fn tells(&self, level: Level) -> bool {
        self.level >= level as u8
    }

    /// A stage: `log.info(format_args!("Frozen {n} tasks"))`.
    pub fn info(&self, message: impl fmt::Display) {
        self.line(Level::Info, format_args!("{message}"));
    }

    /// A detail.
    pub fn debug(&self, message: impl fmt::Display) {
        self.line(Level::Debug, format_args!("{message}"));
    }

    /// Something that may surprise. `room` is the place in the code, as `dump/files`.
    pub fn warn(&self, room: &str, message: impl fmt::Display) {
        self.line(Level::Warn, format_args!("Warn  ({room}): {message}"));
    }

    /// A failure.
    pub fn error(&self, room: &str, message: impl fmt::Display) {
        self.line(Level::Error, format_args!("Error ({room}): {message}"));
    }

    fn line(&self, level: Level, message: fmt::Arguments<'_>) {
        if !self.tells(level) {
            return;
        }
        let time = self.start.elapsed();
        let (seconds, micros) = (time.as_secs(), time.subsec_micros());
        let line = format!("({seconds:02}.{micros:06}) {message}\n");
        let mut out = self
            .out
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        // A full disk must not fail the run for the sake of its log.
        let _ = match &mut *out {
            Out::File(file) => file.write_all(line.as_bytes()),
            Out::Stderr => io::stderr().write_all(line.as_bytes()),
            Out::Nowhere => Ok(()),
        };
    }
}
