//! Nobody hears of the end of a dumped program: between the dump that kills it and the restore no
//! FIN and no RST goes over the wire, in whatever state its connections are, and its peer, another
//! program that is not dumped, goes on with them afterwards.

use anyhow::{Context, Result, ensure};
use crust_tests::{guest::Guest, sandbox::Sandbox, sandbox_test, wire::Wire};
use std::process::Command;

/// The program and its peer, which are ready, and who hears what they say.
struct Pair {
    program: Guest,
    peer: Guest,
    wire: Wire,
}

fn started(sandbox: &Sandbox, states: &str) -> Result<Pair> {
    let start = |name: &str, port: &str| {
        let scratch = sandbox.dir(name)?;
        let mut command = Command::new(sandbox.install_guest("tcp_wire")?);
        command.arg(&scratch).args([states, port]);
        sandbox.spawn(name, &command, &scratch)
    };
    let wire = Wire::listen()?;
    let program = start("program", "0")?;
    program.wait_until(sandbox, "its port", |text| text.ends_with('\n'))?;
    let lines = program.lines()?;
    let port = lines.first().and_then(|line| line.strip_prefix("port "));
    let peer = start("peer", port.context("no port")?)?;
    program.wait_until_set_up(sandbox)?;
    peer.wait_until_set_up(sandbox)?;
    // The peer's half of a connection, for one: it does hear what passes.
    ensure!(
        !wire.ends()?.is_empty(),
        "the peer has ended a connection unheard"
    );
    Ok(Pair {
        program,
        peer,
        wire,
    })
}

/// Both go on with every connection; resets are for those who lost one.
fn go_on(sandbox: &Sandbox, pair: &Pair) -> Result<()> {
    use nix::sys::signal::Signal::SIGTERM;
    for guest in [&pair.peer, &pair.program] {
        guest.signal(SIGTERM)?;
    }
    let mut said = Vec::new();
    for guest in [&pair.program, &pair.peer] {
        sandbox.wait(guest.pid)?;
        said.push(guest.lines()?.last().cloned().unwrap_or_default());
    }
    ensure!(said == ["ok", "ok"], "the program and its peer: {said:#?}");
    let ends = pair.wire.ends()?;
    ensure!(
        !ends.is_empty() && !ends.iter().any(|end| end.starts_with("RST")),
        "{ends:?}"
    );
    Ok(())
}

fn silent(sandbox: &Sandbox, states: &str, lock: &str) -> Result<()> {
    let pair = started(sandbox, states)?;
    let options = ["--tcp-established", "--network-lock", lock];
    for generation in ["first", "second"] {
        let images = sandbox.images(generation)?;
        sandbox.dump_and_kill(&pair.program, &images, &options)?;
        let ends = pair.wire.ends()?;
        // Ends in flight were sent again before the dump.
        let is_known = |end: &String| states == "busy" && end.starts_with("FIN");
        ensure!(ends.iter().all(is_known), "the dump was heard: {ends:?}");
        sandbox.restore(&images, &options)?.succeeded()?;
        // Without a lock an end that was sent before is sent once more.
        let resets = pair.wire.ends()?;
        ensure!(
            resets.iter().all(|end| end.starts_with("FIN")),
            "{resets:?}"
        );
    }
    go_on(sandbox, &pair)
}

sandbox_test! {
    fn established_and_half_closed(sandbox) { silent(sandbox, "quiet", "nftables") }
    /// No lock that would keep back what a dying socket says: it says nothing.
    fn without_a_lock(sandbox) { silent(sandbox, "quiet", "skip") }
    /// Ends that nobody has acknowledged are sent again and again, by both.
    fn with_ends_in_flight(sandbox) { silent(sandbox, "busy", "nftables") }

    fn left_running(sandbox) {
        let pair = started(sandbox, "busy")?;
        let images = sandbox.images("running")?;
        let options = ["--tcp-established", "--leave-running"];
        sandbox.dump(pair.program.pid, &images, &options)?.succeeded()?;
        go_on(sandbox, &pair)
    }
}
