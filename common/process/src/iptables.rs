//! The network lock by the programs of iptables, for hosts whose rules are kept with them: one rule
//! for each connection and direction in the filter table, deleted by the same words. The form of
//! the rules is CRIU's (`--network-lock iptables`), so that either tool unlocks what the other
//! has locked. The lock of nf_tables (`netfilter.rs`) needs no program and goes by itself when we
//! die; these rules are deleted then by a survivor (`survivor.rs`), who runs the same programs.
//! What is left of a dump for its restore shows in `iptables -S` by the mark 0xc114.

use crate::error::Error;
use crate::netfilter::{Ends, MARK};
use crate::steps::step;
use crate::survivor::Survivor;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Seek, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Both programs take these: other rules stay, and another user of the tables is waited for.
const OPTIONS: [&str; 2] = ["--noflush", "--wait"];

/// A program that failed or is missing.
#[derive(Debug, thiserror::Error)]
pub enum IptablesError {
    /// It could not be run.
    #[error(
        "run {program}: {source} (is iptables installed? --network-lock nftables needs no program)"
    )]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It refused the rules.
    #[error("{program}: {said}")]
    Refused {
        /// The program.
        program: &'static str,
        /// Its last words.
        said: String,
    },
    /// Who is to delete the rules when we die cannot be told.
    #[error(transparent)]
    Survivor(#[from] Box<Error>),
}

/// Rules in force. They go when this is dropped, or when we die, unless they are left.
#[derive(Debug)]
pub struct Rules {
    connections: Vec<Ends>,
    _survivor: Survivor,
    _undoing: Undoing,
}

/// What a survivor changes rules with: it must stay open.
#[derive(Debug)]
pub struct Undoing {
    _inputs: Vec<File>,
    alive: (PipeReader, PipeWriter),
}

impl Rules {
    /// They stay when we are gone, if this survivor settles.
    pub fn tell(&self, survivor: &Survivor) -> Result<Undoing, IptablesError> {
        note(survivor, &self.connections, "-D")
    }

    /// They stay.
    pub fn leave(mut self) {
        self.connections.clear();
    }
}

impl Drop for Rules {
    /// The safety net and the way back in one; who is told of an error would have to do the same.
    fn drop(&mut self) {
        let _ = unlock(&self.connections, None);
    }
}

/// Puts the rules in force.
pub fn lock(connections: &[Ends]) -> Result<Rules, IptablesError> {
    let survivor = Survivor::start(&|_| false).map_err(Box::new)?;
    let undoing = note(&survivor, connections, "-D")?;
    apply(connections, "-I", Some(&undoing.alive.1))?;
    Ok(Rules {
        connections: connections.to_vec(),
        _survivor: survivor,
        _undoing: undoing,
    })
}

/// Deletes the rules of these connections; who would put them in force again waits for it.
pub fn unlock(connections: &[Ends], undoing: Option<&Undoing>) -> Result<(), IptablesError> {
    let alive = undoing.map(|undoing| &undoing.alive.1);
    apply(connections, "-D", alive)
}

/// Puts the rules in force again, to stay.
pub fn lock_again(connections: &[Ends]) -> Result<(), IptablesError> {
    apply(connections, "-I", None)
}

/// Has the survivor put the rules in force again if we die.
pub fn note_lock(survivor: &Survivor, connections: &[Ends]) -> Result<Undoing, IptablesError> {
    note(survivor, connections, "-I")
}

/// Has a survivor run the programs, when those that we run ourselves have ended.
fn note(
    survivor: &Survivor,
    connections: &[Ends],
    command: &str,
) -> Result<Undoing, IptablesError> {
    let mut inputs = Vec::new();
    for (program, rules) in by_program(connections, command) {
        let failed = |source| IptablesError::Run { program, source };
        let path = find(program).ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
        let file = memfd_create("iptables-rules", MFdFlags::MFD_CLOEXEC);
        let mut input = File::from(file.map_err(|errno| failed(errno.into()))?);
        input.write_all(rules.as_bytes()).map_err(failed)?;
        input.rewind().map_err(failed)?;
        let [first, second] = OPTIONS.map(str::as_bytes);
        let words = [path.as_os_str().as_bytes(), first, second];
        survivor.program(input.as_fd(), &words).map_err(Box::new)?;
        inputs.push(input);
    }
    let program = "iptables-restore";
    let pipe = std::io::pipe().map_err(|source| IptablesError::Run { program, source })?;
    survivor
        .wait_for(pipe.0.as_fd(), pipe.1.as_fd())
        .map_err(Box::new)?;
    Ok(Undoing {
        _inputs: inputs,
        alive: pipe,
    })
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// All programs are run, whatever the first says; `alive` is open in them.
fn apply(
    connections: &[Ends],
    command: &str,
    alive: Option<&PipeWriter>,
) -> Result<(), IptablesError> {
    let runs = by_program(connections, command)
        .into_iter()
        .map(|(program, rules)| run(program, &rules, alive));
    let ended: Vec<_> = runs.collect();
    ended.into_iter().collect()
}

/// What each program is fed with.
fn by_program(connections: &[Ends], command: &str) -> Vec<(&'static str, String)> {
    let (four, six): (Vec<Ends>, Vec<Ends>) = connections
        .iter()
        .partition(|ends| ends.local.ip().to_canonical().is_ipv4());
    let both = [("iptables-restore", four), ("ip6tables-restore", six)];
    both.into_iter()
        .filter(|(_, connections)| !connections.is_empty())
        .map(|(program, connections)| (program, encode(&connections, command)))
        .collect()
}

/// The input of iptables-restore.
fn encode(connections: &[Ends], command: &str) -> String {
    let mut text = "*filter\n".to_owned();
    for ends in connections {
        let (local, remote) = (ends.local, ends.remote);
        for (chain, from, to) in [("INPUT", remote, local), ("OUTPUT", local, remote)] {
            let shown = |ip: IpAddr| ip.to_canonical();
            text.push_str(&format!(
                "{command} {chain} -p tcp -m mark ! --mark {MARK:#x} -s {} --sport {} -d {} --dport {} -j DROP\n",
                shown(from.ip()),
                from.port(),
                shown(to.ip()),
                to.port(),
            ));
        }
    }
    text.push_str("COMMIT\n");
    text
}

fn run(
    program: &'static str,
    rules: &str,
    alive: Option<&PipeWriter>,
) -> Result<(), IptablesError> {
    step();
    let failed = |source| IptablesError::Run { program, source };
    // On success it says nothing.
    let output = match alive {
        Some(alive) => Stdio::from(alive.try_clone().map_err(failed)?),
        None => Stdio::null(),
    };
    let mut child = Command::new(program)
        .args(OPTIONS)
        .stdin(Stdio::piped())
        .stdout(output)
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // A program that ends early says why itself.
        let _ = input.write_all(rules.as_bytes());
    }
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr)
        .trim()
        .replace('\n', " ");
    Err(IptablesError::Refused { program, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_for_each_direction() {
        let ends = Ends {
            local: "[::ffff:10.0.0.1]:80".parse().expect("an address"),
            remote: "[::ffff:10.0.0.2]:4711".parse().expect("an address"),
        };
        let text = encode(&[ends], "-D");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "*filter",
                "-D INPUT -p tcp -m mark ! --mark 0xc114 -s 10.0.0.2 --sport 4711 -d 10.0.0.1 --dport 80 -j DROP",
                "-D OUTPUT -p tcp -m mark ! --mark 0xc114 -s 10.0.0.1 --sport 80 -d 10.0.0.2 --dport 4711 -j DROP",
                "COMMIT",
            ]
        );
    }
}
