//! The network lock by the programs of iptables, for hosts whose rules are kept with them: one rule
//! for each connection and direction in the filter table, deleted by the same words. The form of
//! the rules is CRIU's (`--network-lock iptables`), so that either tool unlocks what the other
//! has locked. nf_tables (`netfilter.rs`) needs no program and goes when we die; these rules stay
//! then, and show in `iptables -S` by their mark 0xc114.

use crate::netfilter::{Ends, MARK};
use crate::steps::step;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

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
}

/// Rules in force. They go when this is dropped, unless they are left.
#[derive(Debug)]
pub struct Rules {
    connections: Vec<Ends>,
}

impl Rules {
    /// They stay.
    pub fn leave(mut self) {
        self.connections.clear();
    }
}

impl Drop for Rules {
    /// The safety net and the way back in one; who is told of an error would have to do the same.
    fn drop(&mut self) {
        let _ = unlock(&self.connections);
    }
}

/// Puts the rules in force.
pub fn lock(connections: &[Ends]) -> Result<Rules, IptablesError> {
    apply(connections, "-I")?;
    Ok(Rules {
        connections: connections.to_vec(),
    })
}

/// Deletes the rules of these connections.
pub fn unlock(connections: &[Ends]) -> Result<(), IptablesError> {
    apply(connections, "-D")
}

fn apply(connections: &[Ends], command: &str) -> Result<(), IptablesError> {
    let (four, six): (Vec<Ends>, Vec<Ends>) = connections
        .iter()
        .partition(|ends| ends.local.ip().to_canonical().is_ipv4());
    for (program, connections) in [("iptables-restore", four), ("ip6tables-restore", six)] {
        if !connections.is_empty() {
            run(program, &encode(&connections, command))?;
        }
    }
    Ok(())
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

fn run(program: &'static str, rules: &str) -> Result<(), IptablesError> {
    step();
    let failed = |source| IptablesError::Run { program, source };
    let mut child = Command::new(program)
        .args(["--noflush", "--wait"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
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
