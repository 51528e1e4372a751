//! Runs of the executables under test, with everything they said kept for the report.

use crate::{guest::Guest, proc_snapshot, sandbox::Sandbox};
use anyhow::{Context, Result, ensure};
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

/// How a run ended and what it said.
#[derive(Debug)]
pub struct Outcome {
    pub command: String,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
    pub log: String,
}

impl Outcome {
    /// Fails with all the run said unless it succeeded.
    pub fn succeeded(self) -> Result<Self> {
        ensure!(self.status.success(), "{}", self.report());
        Ok(self)
    }

    /// Fails unless the run ended with this exit status.
    pub fn exited_with(self, code: i32) -> Result<Self> {
        ensure!(
            self.status.code() == Some(code),
            "expected exit status {code}\n{}",
            self.report()
        );
        Ok(self)
    }

    /// The last line on stderr: one sentence for the user.
    pub fn last_line(&self) -> &str {
        self.stderr
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or_default()
    }

    /// Fails unless stderr has each of the words, in upper or lower case.
    pub fn says(&self, words: &[&str]) -> Result<()> {
        let said = self.stderr.to_lowercase();
        for word in words {
            let there = said.contains(&word.to_lowercase());
            ensure!(there, "stderr does not say {word:?}\n{}", self.report());
        }
        ensure!(!self.stderr.contains("panicked"), "{}", self.report());
        Ok(())
    }

    /// Fails unless the log has each of these texts.
    pub fn logs(&self, texts: &[&str]) -> Result<()> {
        for text in texts {
            let there = self.log.contains(text);
            ensure!(there, "the log does not say {text:?}\n{}", self.report());
        }
        Ok(())
    }

    /// The end of the log is what a reader of a failed test wants first.
    pub fn report(&self) -> String {
        let lines: Vec<_> = self.log.lines().collect();
        let tail = lines
            .get(lines.len().saturating_sub(60)..)
            .unwrap_or_default()
            .join("\n");
        let Self {
            command,
            status,
            stderr,
            ..
        } = self;
        format!("{command}: {status}\n--- stderr\n{stderr}\n--- end of the log\n{tail}\n---")
    }
}

impl Sandbox {
    /// Runs an executable under test. Output goes to files, not pipes: a restored task that kept
    /// an end of a pipe would keep a reader waiting.
    pub fn run(&self, name: &str, arguments: &[&str], stdin: Option<&Path>) -> Result<Outcome> {
        let mut command = Command::new(self.binary(name));
        command.args(arguments);
        self.run_command(command, stdin)
    }

    /// `run` for any command.
    pub fn run_command(&self, command: Command, stdin: Option<&Path>) -> Result<Outcome> {
        let input = match stdin {
            Some(path) => File::open(path)
                .with_context(|| format!("open {}", path.display()))?
                .into(),
            None => Stdio::null(),
        };
        self.run_with(command, input)
    }

    /// `run` for any command with any standard input.
    pub fn run_with(&self, mut command: Command, input: Stdio) -> Result<Outcome> {
        let output = || -> Result<(File, File)> {
            let path = self.dir("output")?.join("captured");
            let write = File::create(&path)?;
            let read = File::open(&path)?;
            fs::remove_file(&path)?;
            Ok((write, read))
        };
        let (stdout, mut stdout_read) = output().context("make a file for stdout")?;
        let (stderr, mut stderr_read) = output().context("make a file for stderr")?;
        let text = format!("{command:?}");
        println!("run {text}");
        let status = command
            .stdin(input)
            .stdout(stdout)
            .stderr(stderr)
            .status()
            .with_context(|| format!("run {text}"))?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        stdout_read.read_to_end(&mut out)?;
        stderr_read.read_to_end(&mut err)?;
        let stderr = String::from_utf8_lossy(&err).into_owned();
        let outcome = Outcome {
            command: text,
            status,
            stdout: out,
            stderr,
            log: String::new(),
        };
        self.expect_told_by_check(&command, &outcome)?;
        Ok(outcome)
    }

    /// Whatever a run refuses, `--check` of the same command line refuses too, in the same words.
    /// It is asked behind the run, since a refusal leaves everything as it was.
    fn expect_told_by_check(&self, command: &Command, outcome: &Outcome) -> Result<()> {
        let program = Path::new(command.get_program());
        let tools = ["crust-dump", "crust-restore"];
        let name = tools.into_iter().find(|name| program == self.binary(name));
        let is_check = command.get_args().any(|word| word == "--check");
        let (Some(name), false) = (name, is_check) else {
            return Ok(());
        };
        let start = format!("{name}: cannot {}", name.trim_start_matches("crust-"));
        let refusal = outcome.last_line().strip_prefix(&start);
        // One reason behind a colon, or several behind their number and semicolons.
        let Some((_, reasons)) = refusal.and_then(|text| text.split_once(": ")) else {
            return Ok(());
        };
        let mut check = Command::new(program);
        check.args(command.get_args()).arg("--check");
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => check.env(variable, value),
                None => check.env_remove(variable),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            check.current_dir(dir);
        }
        let told = self.run_with(check, Stdio::null())?.exited_with(1)?;
        let said = String::from_utf8_lossy(&told.stdout) + told.stderr.as_str();
        let untold: Vec<_> = reasons
            .split("; ")
            .filter(|why| !said.contains(*why))
            .collect();
        ensure!(
            untold.is_empty(),
            "--check does not say {untold:?}\n{said}\n{}",
            outcome.report()
        );
        Ok(())
    }

    /// crust-dump of the tree below `pid`.
    pub fn dump(&self, pid: i32, images: &Path, options: &[&str]) -> Result<Outcome> {
        let pid = pid.to_string();
        let mut arguments = vec!["-t", &pid, "-D", text(images)?, "-v4", "-o", "dump.log"];
        arguments.extend(options);
        let mut outcome = self.run("crust-dump", &arguments, None)?;
        outcome.log = read_log(&images.join("dump.log"));
        // The inventory is written last, so it tells a dump from a run that only said it was one.
        ensure!(
            !outcome.status.success() || images.join("inventory.img").exists(),
            "there is no inventory.img\n{}",
            outcome.report()
        );
        Ok(outcome)
    }

    /// crust-restore, detached; the restored root becomes a child of the sandbox.
    pub fn restore(&self, images: &Path, options: &[&str]) -> Result<Outcome> {
        let mut arguments = vec!["-d", "-D", text(images)?, "-v4", "-o", "restore.log"];
        arguments.extend(options);
        let mut outcome = self.run("crust-restore", &arguments, None)?;
        outcome.log = read_log(&images.join("restore.log"));
        Ok(outcome)
    }

    /// Dumps a guest, which kills it, and waits until its pids are free again.
    pub fn dump_and_kill(&self, guest: &Guest, images: &Path, options: &[&str]) -> Result<()> {
        let mut pids = proc_snapshot::tree(guest.pid)?;
        self.dump(guest.pid, images, options)?.succeeded()?;
        // Tasks that were forked since the look above.
        let of_guest = |pid: &i32| proc_snapshot::session(*pid) == Some(guest.pid);
        pids.extend(self.processes()?.into_iter().filter(of_guest));
        self.reap(&pids)
    }

    /// An empty images directory.
    pub fn images(&self, name: &str) -> Result<PathBuf> {
        self.dir(&format!("images-{name}"))
    }
}

/// A path of the harness as an argument; all of them are text.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}

fn read_log(path: &Path) -> String {
    fs::read(path)
        .map(|log| String::from_utf8_lossy(&log).into_owned())
        .unwrap_or_default()
}
