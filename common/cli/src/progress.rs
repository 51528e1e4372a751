//! How far a run is: a bar on a terminal when it takes longer than a second, and JSON lines on the
//! descriptor of `--progress-fd`.
//!
//! A line has the stage, what is done of it and what there is to do in bytes (absent where that is
//! not known), and the microseconds since the start. One is written when a stage begins and when
//! it ends, and in between ten a second at most. Nobody waits for a reader: what does not fit the
//! pipe is left out.

use crate::options::Options;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::fcntl::OFlag;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two lines of one stage.
const INTERVAL: Duration = Duration::from_millis(100);
const BAR: &str = "{msg:12} {bar:40} {bytes}/{total_bytes} {binary_bytes_per_sec}";
const COUNTER: &str = "{msg:12} {bytes} {elapsed}";

/// The progress of a run; several threads may add to it.
#[derive(Debug)]
pub struct Progress(Mutex<State>);

#[derive(Debug)]
struct State {
    start: Instant,
    told: Instant,
    began: Duration,
    timeline: Vec<(&'static str, Duration, Duration)>,
    stage: &'static str,
    done: u64,
    total: Option<u64>,
    lines: Option<File>,
    /// Only on a terminal.
    bar: Option<ProgressBar>,
    is_shown: bool,
}

#[derive(Serialize)]
struct Line {
    stage: &'static str,
    done: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    elapsed_us: u64,
}

impl Progress {
    /// As the options ask for it.
    pub fn new(options: &Options) -> anyhow::Result<Progress> {
        let lines = match options.progress_fd {
            None => None,
            Some(fd) => Some(opened(fd).with_context(|| format!("open --progress-fd {fd}"))?),
        };
        let has_terminal = std::io::stderr().is_terminal() && !options.json;
        let bar = has_terminal.then(|| ProgressBar::with_draw_target(None, hidden()));
        Ok(Progress::with(lines, bar))
    }

    /// Telling nobody, for tests.
    pub fn silent() -> Progress {
        Progress::with(None, None)
    }

    fn with(lines: Option<File>, bar: Option<ProgressBar>) -> Progress {
        let now = Instant::now();
        Progress(Mutex::new(State {
            start: now,
            told: now,
            began: Duration::ZERO,
            timeline: Vec::new(),
            stage: "",
            done: 0,
            total: None,
            lines,
            bar,
            is_shown: false,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stage before, if any, is done; this one begins. `total` in bytes, if it is known.
    pub fn stage(&self, stage: &'static str, total: Option<u64>) {
        let mut state = self.state();
        state.end_stage();
        state.stage = stage;
        state.began = state.start.elapsed();
        state.done = 0;
        state.total = total;
        state.tell();
    }

    /// So many bytes more of the stage are done.
    pub fn add(&self, bytes: u64) {
        let mut state = self.state();
        state.done += bytes;
        // An estimate that was too low is no reason to show more than everything.
        let done = state.done;
        state.total = state.total.map(|total| total.max(done));
        if state.told.elapsed() >= INTERVAL {
            state.tell();
        }
    }

    /// Everything is done.
    pub fn finish(&self) {
        let mut state = self.state();
        state.end_stage();
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// The stages that have ended, for `--display-stats`: when each began, and how long it took.
    pub fn timeline(&self) -> String {
        let state = self.state();
        let line = |(stage, began, ended): &(&'static str, Duration, Duration)| {
            let (at, took) = (began.as_micros(), ended.saturating_sub(*began).as_micros());
            format!("{at:>10} us  {took:>10} us  {stage}\n")
        };
        let lines: String = state.timeline.iter().map(line).collect();
        format!("Timeline (begin, length, stage):\n{lines}")
    }
}

impl State {
    fn end_stage(&mut self) {
        if !self.stage.is_empty() {
            self.total = self.total.map(|_| self.done);
            self.tell();
            self.timeline
                .push((self.stage, self.began, self.start.elapsed()));
            self.stage = "";
        }
    }

    fn tell(&mut self) {
        self.told = Instant::now();
        let elapsed = self.start.elapsed();
        let line = Line {
            stage: self.stage,
            done: self.done,
            total: self.total,
            elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        };
        if let Some(file) = &mut self.lines
            && let Ok(mut text) = serde_json::to_vec(&line)
        {
            text.push(b'\n');
            // A reader that is slow or gone must not hold up or fail the run.
            let _ = file.write(&text);
        }
        if let Some(bar) = &self.bar
            && elapsed >= PATIENCE
        {
            if !self.is_shown {
                bar.set_draw_target(ProgressDrawTarget::stderr());
                self.is_shown = true;
            }
            show(bar, &line);
        }
    }
}

fn hidden() -> ProgressDrawTarget {
    ProgressDrawTarget::hidden()
}

fn show(bar: &ProgressBar, line: &Line) {
    let template = if line.total.is_some() { BAR } else { COUNTER };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(line.stage);
    bar.set_length(line.total.unwrap_or(line.done));
    bar.set_position(line.done);
}

/// The file behind a descriptor that our starter gave us, opened once more so that it does not
/// block us.
fn opened(fd: i32) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(format!("/proc/self/fd/{fd}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, pipe};
    use std::os::fd::AsRawFd;

    #[test]
    fn stages_begin_and_end_with_a_line() {
        let (mut reader, writer) = pipe().expect("a pipe");
        let progress = Progress::with(Some(opened(writer.as_raw_fd()).expect("opened")), None);
        progress.stage("freeze", None);
        progress.stage("memory", Some(100));
        progress.add(60);
        progress.add(80);
        progress.finish();
        assert_eq!(progress.timeline().lines().count(), 3);
        drop((progress, writer));
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        let lines: Vec<(String, u64, Option<u64>)> = text
            .lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
                let stage = line["stage"].as_str().expect("a stage").to_owned();
                (
                    stage,
                    line["done"].as_u64().expect("bytes"),
                    line["total"].as_u64(),
                )
            })
            .collect();
        let line = |stage: &str, done, total| (stage.to_owned(), done, total);
        assert_eq!(
            lines,
            [
                line("freeze", 0, None),
                line("freeze", 0, None),
                line("memory", 0, Some(100)),
                line("memory", 140, Some(140)),
            ]
        );
    }

    #[test]
    fn a_reader_that_is_gone_or_slow_holds_up_nobody() {
        let (reader, writer) = pipe().expect("a pipe");
        let progress = Progress::with(Some(opened(writer.as_raw_fd()).expect("opened")), None);
        for _ in 0..100_000 {
            progress.stage("full", None);
        }
        drop(reader);
        progress.stage("gone", None);
        progress.finish();
    }
}
