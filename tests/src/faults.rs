//! Refusals of the kernel, made to order: one system call of a run fails with an error of the
//! test's choice.
//!
//! `programs/refuse.c` runs the executable under test below a seccomp filter that asks it about
//! each call of one number; it lets all go on but one. The tasks that a restore makes are below
//! the same filter. A first run counts the calls of each [`Kind`], so a test goes through all
//! numbers that a run uses.
//!
//! What fails is chosen by kind, never by a place in the whole run: how many calls a run makes
//! differs between machines and from run to run, and so would the choice. CRUST_TESTS_FAULTS says
//! how much is tried: a number of kinds for each system call, the first call of each; `kinds`, the
//! first and the last of every kind; `all`, every call. Without it a few kinds, always the same.

use crate::{
    build::{run, workspace},
    sandbox::Sandbox,
    tools::Outcome,
};
use anyhow::{Context, Result, bail, ensure};
use nix::{errno::Errno, libc};
use std::{collections::BTreeMap, env, fs, path::PathBuf, process::Command};

/// Kinds of each system call that fail, when nobody says how many.
const A_FEW: usize = 2;

/// Calls that are left alone, for a failure of theirs is not one of crust's: the allocator's, those
/// of the runtime's own start and end, and those that have no error.
const LEFT_ALONE: &[i64] = &[
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_execve,
    libc::SYS_close,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_geteuid,
    libc::SYS_getuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    // The seeds of hash maps: the standard library panics.
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
];

/// What the kernel may say, in turn. None of them is a word that means "again" or "not known".
const WORDS: &[Errno] = &[Errno::EIO, Errno::ENOMEM, Errno::EPERM];

/// The launcher, built.
#[derive(Debug)]
pub struct Refuser {
    program: PathBuf,
    report: PathBuf,
}

/// Calls that are alike in any run: their number, who makes them, what they ask, which file they are
/// about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// The system call.
    pub number: i64,
    /// The rest, in the words of `programs/refuse.c`.
    pub key: String,
}

/// One call that is to fail.
#[derive(Clone, Debug)]
pub struct Fault {
    /// What call.
    pub kind: Kind,
    /// The how many'th of its kind.
    pub nth: u64,
    /// With what.
    pub errno: Errno,
}

impl Refuser {
    /// Compiles it.
    pub fn build(sandbox: &Sandbox) -> Result<Refuser> {
        let dir = sandbox.dir("refuser")?;
        let program = dir.join("refuse");
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-Wall", "-Wextra", "-o"]).arg(&program);
        run(cc.arg(workspace().join("tests/programs/refuse.c")))?;
        Ok(Refuser {
            report: dir.join("report.log"),
            program,
        })
    }

    fn command(&self, words: &[String], sandbox: &Sandbox, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(&self.report).args(words);
        command.arg(sandbox.binary(name)).args(args);
        command
    }

    /// The calls that a run makes: how many of each kind.
    pub fn count(
        &self,
        sandbox: &Sandbox,
        name: &str,
        args: &[&str],
    ) -> Result<BTreeMap<Kind, u64>> {
        let command = self.command(&["count".to_owned()], sandbox, name, args);
        sandbox.run_command(command, None)?.succeeded()?;
        let report = fs::read_to_string(&self.report).context("read the report")?;
        let mut calls = BTreeMap::new();
        for line in report.lines() {
            let words: Vec<_> = line.split('\t').collect();
            let [number, count, key] = words[..] else {
                bail!("a line of the report: {line}");
            };
            let (number, key) = (number.parse()?, key.to_owned());
            calls.insert(Kind { number, key }, count.parse()?);
        }
        ensure!(calls.len() > 20, "the run made only the calls {calls:?}");
        Ok(calls)
    }

    /// Runs with one failing call; the outcome, and whether it came to that call.
    pub fn run(
        &self,
        sandbox: &Sandbox,
        fault: &Fault,
        name: &str,
        args: &[&str],
    ) -> Result<(Outcome, bool)> {
        let words = [
            fault.kind.number.to_string(),
            fault.kind.key.clone(),
            fault.nth.to_string(),
            (fault.errno as i32).to_string(),
        ];
        let command = self.command(&words, sandbox, name, args);
        let outcome = sandbox.run_command(command, None)?;
        let report = fs::read_to_string(&self.report).context("read the report")?;
        Ok((outcome, report.starts_with("refused")))
    }
}

/// How much is tried.
enum Wanted {
    Kinds(usize),
    EndsOfKinds,
    All,
}

/// The faults to try on a run that makes these calls.
pub fn faults_of(calls: &BTreeMap<Kind, u64>) -> Result<Vec<Fault>> {
    let wanted = match env::var("CRUST_TESTS_FAULTS").as_deref() {
        Ok("all") => Wanted::All,
        Ok("kinds") => Wanted::EndsOfKinds,
        Ok(text) => Wanted::Kinds(
            text.parse()
                .with_context(|| format!("CRUST_TESTS_FAULTS={text}"))?,
        ),
        Err(_) => Wanted::Kinds(A_FEW),
    };
    let mut by_number: BTreeMap<i64, Vec<(&Kind, u64)>> = BTreeMap::new();
    for (kind, count) in calls {
        if !LEFT_ALONE.contains(&kind.number) {
            by_number
                .entry(kind.number)
                .or_default()
                .push((kind, *count));
        }
    }
    let mut faults = Vec::new();
    for mut kinds in by_number.into_values() {
        // By a hash: a kind that another machine has in addition displaces one other at most.
        kinds.sort_by_key(|(kind, _)| hash_of(kind));
        if let Wanted::Kinds(limit) = wanted {
            kinds.truncate(limit);
        }
        for (kind, count) in kinds {
            let places = match wanted {
                Wanted::Kinds(_) => vec![1],
                Wanted::EndsOfKinds if count > 1 => vec![1, count],
                Wanted::EndsOfKinds => vec![1],
                Wanted::All => (1..=count).collect(),
            };
            faults.extend(places.into_iter().map(|nth| Fault {
                kind: kind.clone(),
                nth,
                errno: word_for(kind, nth),
            }));
        }
    }
    Ok(faults)
}

/// What the kernel says: one of the words, the same in every run.
fn word_for(kind: &Kind, nth: u64) -> Errno {
    let word = hash_of(kind).wrapping_add(nth) % WORDS.len() as u64;
    let word = usize::try_from(word).unwrap_or_default();
    match (kind.number, WORDS.get(word).copied().unwrap_or(Errno::EIO)) {
        // That is how an older kernel answers a request it does not know: no error.
        (libc::SYS_ptrace, Errno::EIO) => Errno::EPERM,
        (_, errno) => errno,
    }
}

/// FNV-1a: the same in every build.
fn hash_of(kind: &Kind) -> u64 {
    let number = kind.number.to_le_bytes();
    let bytes = number.iter().chain(kind.key.as_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of a hash of alike words are alike.
    hash ^ (hash >> 32)
}

/// A failed run ends with one sentence that has the kernel's word and names something: a task, a
/// file, a descriptor, an image entry.
pub fn expect_sentence(outcome: &Outcome, name: &str, fault: &Fault) -> Result<()> {
    let said = outcome.last_line();
    // A configuration that cannot be read ends a run as wrong usage does.
    let status = if said.contains("read configuration") {
        2
    } else {
        1
    };
    ensure!(
        outcome.status.code() == Some(status),
        "{}",
        outcome.report()
    );
    ensure!(!outcome.stderr.contains("panicked"), "{}", outcome.report());
    let sentence = said
        .strip_prefix(&format!("{name}: "))
        .with_context(|| format!("no sentence of {name}\n{}", outcome.report()))?;
    let errno = match (fault.kind.number, fault.errno) {
        // From /proc/PID/mem it says that nothing is mapped there, which is EFAULT.
        (libc::SYS_pread64, Errno::EIO) if sentence.contains("EFAULT") => Errno::EFAULT,
        // pthread_create(3) says that it cannot now.
        (libc::SYS_clone3, Errno::ENOMEM) if sentence.contains("start a thread") => Errno::EAGAIN,
        (_, errno) => errno,
    };
    // A task that shall die by its own hand has nobody to tell why it could not.
    if fault.kind.number == libc::SYS_kill && sentence.contains("its wait status is") {
        return Ok(());
    }
    // So the kernel says that a socket is in use.
    if (fault.kind.number, errno) == (libc::SYS_connect, Errno::EPERM)
        && sentence.contains("that lives")
    {
        return Ok(());
    }
    let words = [
        format!("{errno:?}"),
        std::io::Error::from(errno).to_string(),
    ];
    let words = words.map(|word| word.split(" (os").next().unwrap_or_default().to_owned());
    let at = words.iter().find_map(|word| sentence.find(word.as_str()));
    let at = at.with_context(|| format!("{errno:?} is not told: {said}"))?;
    let before = sentence.get(..at).unwrap_or_default();
    let names_something = before.bytes().any(|b| b == b'/' || b.is_ascii_digit())
        || [".img", ".json"].iter().any(|kind| before.contains(kind))
        || before.split_whitespace().count() >= 3;
    ensure!(names_something, "the sentence names nothing: {said}");
    Ok(())
}
