//! TCP connections whose other end is not dumped: the test itself is the peer, and must notice
//! nothing but a pause. With it what stands in the way of a connection (an option that is missing,
//! a port or address that is not to be had), and what is left of the network lock.

use anyhow::{Context, Result, ensure};
use crust_process::netfilter;
use crust_tests::{
    guest::Guest,
    kills::{firewall, has_iptables},
    round_trip::{self, Case},
    sandbox::Sandbox,
    sandbox_test,
    tools::text,
};
use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::Command,
};

const ESTABLISHED: &[&str] = &["--tcp-established"];

/// A python that accepts one connection and gives each byte back with the lowest bit changed. It
/// says where it listens.
const ECHO: &str = r#"
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
peer, _ = listener.accept()
print("accepted", flush=True)
while True:
    data = peer.recv(65536)
    if not data:
        break
    peer.sendall(bytes(byte ^ 1 for byte in data))
peer.sendall(b"end")
print("ok", flush=True)
"#;

fn changed(data: &[u8]) -> Vec<u8> {
    data.iter().map(|byte| byte ^ 1).collect()
}

/// Starts the echo and connects to it; `None`, with a note, without python.
fn echo(sandbox: &Sandbox) -> Result<Option<(Guest, TcpStream)>> {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("SKIPPED: python3 is not installed");
        return Ok(None);
    }
    let scratch = sandbox.dir("echo")?;
    let mut command = Command::new("python3");
    command.args(["-c", ECHO]);
    let guest = sandbox.spawn("python3", &command, &scratch)?;
    guest.wait_until(sandbox, "its port", |text| text.ends_with('\n'))?;
    let lines = guest.lines()?;
    let port: u16 = lines.first().context("no port")?.parse()?;
    let peer = TcpStream::connect(("127.0.0.1", port))?;
    guest.wait_for_line(sandbox, "accepted")?;
    Ok(Some((guest, peer)))
}

fn expect(peer: &mut TcpStream, wanted: &[u8]) -> Result<()> {
    let mut got = vec![0; wanted.len()];
    peer.read_exact(&mut got).context("read from the program")?;
    ensure!(
        got == wanted,
        "{} bytes are not what was sent",
        wanted.len()
    );
    Ok(())
}

/// The peer ends; the program says so and ends too.
fn expect_end(sandbox: &Sandbox, guest: &Guest, mut peer: TcpStream) -> Result<()> {
    peer.shutdown(Shutdown::Write)?;
    expect(&mut peer, b"end")?;
    ensure!(peer.read(&mut [0])? == 0, "the program has closed its end");
    sandbox.wait(guest.pid)?;
    ensure!(guest.lines()?.last().is_some_and(|line| line == "ok"));
    Ok(())
}

/// The name of the table that a dump leaves.
fn table_of(sandbox: &Sandbox, images: &Path) -> Result<String> {
    let inventory = images.join("inventory.img");
    let json = sandbox.run("crit", &["decode", "-i", text(&inventory)?], None)?;
    let json: serde_json::Value = serde_json::from_slice(&json.succeeded()?.stdout)?;
    let id = json.pointer("/entries/0/dump_criu_run_id");
    let id = id
        .and_then(serde_json::Value::as_str)
        .context("no run id")?;
    Ok(format!("CRIU-{id}"))
}

/// All locks of the network by tables.
fn locks() -> Result<Vec<String>> {
    let tables = netfilter::left::tables()?;
    Ok(tables.into_iter().map(|(table, _)| table).collect())
}

sandbox_test! {
    fn peer_outside_the_tree(sandbox) {
        let Some((guest, mut peer)) = echo(sandbox)? else { return Ok(()) };
        peer.write_all(b"before")?;
        expect(&mut peer, &changed(b"before"))?;
        let images = sandbox.images("outside")?;
        sandbox.dump_and_kill(&guest, &images, ESTABLISHED)?;
        // What is sent while nobody is there waits at the peer: the network is locked.
        let data: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        peer.write_all(&data)?;
        sandbox.restore(&images, ESTABLISHED)?.succeeded()?;
        expect(&mut peer, &changed(&data))?;
        peer.write_all(b"after")?;
        expect(&mut peer, &changed(b"after"))?;
        ensure!(!netfilter::remove(&table_of(sandbox, &images)?)?, "a lock is left");
        expect_end(sandbox, &guest, peer)
    }

    fn left_running_with_a_peer_outside(sandbox) {
        let Some((guest, mut peer)) = echo(sandbox)? else { return Ok(()) };
        let images = sandbox.images("running")?;
        let options = ["--tcp-established", "--leave-running"];
        sandbox.dump(guest.pid, &images, &options)?.succeeded()?;
        ensure!(!netfilter::remove(&table_of(sandbox, &images)?)?, "a lock is left");
        peer.write_all(b"after")?;
        expect(&mut peer, &changed(b"after"))?;
        expect_end(sandbox, &guest, peer)
    }

    /// By the rules that CRIU would have made, and which it would delete again.
    fn locked_by_iptables(sandbox) {
        if !has_iptables() { return Ok(()) }
        let rules = || Command::new("iptables").arg("-S").output();
        let locked = || anyhow::Ok(String::from_utf8(rules()?.stdout)?.contains("0xc114"));
        let Some((guest, mut peer)) = echo(sandbox)? else { return Ok(()) };
        let images = sandbox.images("iptables")?;
        let by = ["--tcp-established", "--network-lock", "iptables"];
        sandbox.dump_and_kill(&guest, &images, &by)?;
        ensure!(locked()?, "no rule is in force");
        peer.write_all(b"waits")?;
        sandbox.restore(&images, ESTABLISHED)?.succeeded()?;
        ensure!(!locked()?, "a rule is left");
        expect(&mut peer, &changed(b"waits"))?;
        let running = [&by[..], &["--leave-running"]].concat();
        sandbox.dump(guest.pid, &sandbox.images("again")?, &running)?.succeeded()?;
        ensure!(!locked()?, "a rule is left of a dump that leaves the tree running");
        expect_end(sandbox, &guest, peer)
    }

    /// The lock of a tree that was left stopped: the next dump tells of it, and a restore of either
    /// leaves none.
    fn locked_by_two_dumps(sandbox) {
        let Some((guest, mut peer)) = echo(sandbox)? else { return Ok(()) };
        let (first, second) = (sandbox.images("first")?, sandbox.images("second")?);
        let stopped = ["--tcp-established", "--leave-stopped"];
        let outcome = sandbox.dump(guest.pid, &first, &stopped)?.succeeded()?;
        let lock = table_of(sandbox, &first)?;
        outcome.logs(&[&format!("nft delete table inet {lock}"), "stay locked"])?;
        ensure!(locks()? == [lock.as_str()], "{:?}", locks()?);
        peer.write_all(b"waits")?;
        let running = ["--tcp-established", "--leave-running"];
        let outcome = sandbox.dump(guest.pid, &second, &running)?.succeeded()?;
        outcome.logs(&[&format!("nft delete table inet {lock}"), "another dump"])?;
        ensure!(locks()? == [lock.as_str()], "a dump that leaves the tree takes its own lock along");
        fs::remove_dir_all(&second)?;
        let second = sandbox.images("second")?;
        sandbox.dump_and_kill(&guest, &second, ESTABLISHED)?;
        ensure!(locks()?.len() == 2, "{:?}", locks()?);
        sandbox.restore(&second, ESTABLISHED)?.succeeded()?;
        ensure!(locks()?.is_empty(), "{:?}", locks()?);
        // It was stopped, and comes back so.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(guest.pid), nix::sys::signal::SIGCONT)?;
        expect(&mut peer, &changed(b"waits"))?;
        expect_end(sandbox, &guest, peer)
    }

    /// A script that fails when all is restored and unlocked: it is locked again for the next try.
    fn locked_again_by_a_late_failure(sandbox) {
        for lock in [&[][..], &["--network-lock", "iptables"]] {
            if !lock.is_empty() && !has_iptables() { continue; }
            let Some((guest, mut peer)) = echo(sandbox)? else { return Ok(()) };
            let images = sandbox.images("late")?;
            sandbox.dump_and_kill(&guest, &images, &[ESTABLISHED, lock].concat())?;
            let (script, before) = (images.join("script"), firewall());
            ensure!(!before.is_empty(), "nothing is locked");
            fs::write(&script, "#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != pre-resume ]\n")?;
            fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            let failing = ["--tcp-established", "--action-script", text(&script)?];
            sandbox.restore(&images, &failing)?.exited_with(1)?.says(&["pre-resume"])?;
            sandbox.assert_only(&[])?;
            ensure!(firewall() == before, "{:?} was {before:?}", firewall());
            peer.write_all(b"waits")?;
            sandbox.restore(&images, ESTABLISHED)?.succeeded()?;
            ensure!(locks()?.is_empty(), "{:?}", locks()?);
            expect(&mut peer, &changed(b"waits"))?;
            expect_end(sandbox, &guest, peer)?;
            fs::remove_dir_all(&images)?;
        }
        Ok(())
    }

    /// The peer's end comes while the program is away: it is sent again.
    fn peer_ends_meanwhile(sandbox) {
        let Some((guest, mut peer)) = echo(sandbox)? else { return Ok(()) };
        let images = sandbox.images("ends")?;
        sandbox.dump_and_kill(&guest, &images, ESTABLISHED)?;
        peer.write_all(b"last")?;
        peer.shutdown(Shutdown::Write)?;
        sandbox.restore(&images, ESTABLISHED)?.succeeded()?;
        expect(&mut peer, &changed(b"last"))?;
        expect(&mut peer, b"end")?;
        sandbox.wait(guest.pid)?;
        Ok(())
    }

    fn without_the_option_nothing_is_dumped(sandbox) {
        let Some((guest, mut peer)) = echo(sandbox)? else { return Ok(()) };
        let outcome = sandbox.dump(guest.pid, &sandbox.images("refused")?, &[])?.exited_with(1)?;
        let port = peer.local_addr()?.port().to_string();
        outcome.says(&["--tcp-established", "127.0.0.1", &port, &guest.pid.to_string()])?;
        peer.write_all(b"after")?;
        expect(&mut peer, &changed(b"after"))?;
        expect_end(sandbox, &guest, peer)
    }

    fn without_the_option_nothing_is_restored(sandbox) {
        let Some((guest, _peer)) = echo(sandbox)? else { return Ok(()) };
        let images = sandbox.images("refused")?;
        sandbox.dump_and_kill(&guest, &images, ESTABLISHED)?;
        sandbox.restore(&images, &[])?.exited_with(1)?.says(&["--tcp-established", "tcp 127.0.0.1"])?;
        sandbox.assert_only(&[])
    }

    /// Asked for at the dump or at the restore: the program finds its connection at an end.
    fn closed_connections(sandbox) {
        for (dump, restore) in [("--tcp-close", &[][..]), ("--tcp-established", &["--tcp-close"])] {
            let Some((guest, _peer)) = echo(sandbox)? else { return Ok(()) };
            let images = sandbox.images(dump.trim_start_matches('-'))?;
            sandbox.dump_and_kill(&guest, &images, &[dump])?;
            sandbox.restore(&images, restore)?.succeeded()?;
            // It reads the end of file, and writes into what is closed.
            guest.wait_until(sandbox, "why it ends", |text| text.contains("BrokenPipe"))?;
            sandbox.wait(guest.pid)?;
            fs::remove_dir_all(&images)?;
        }
        Ok(())
    }

    fn in_flight_restored(sandbox) {
        round_trip::restored(sandbox, &in_flight())
    }
    fn in_flight_left_running(sandbox) {
        round_trip::left_running(sandbox, &in_flight())
    }

    /// Somebody else has the port: it is told who, and nothing is forked or left over.
    fn port_in_use(sandbox) {
        let guest = sandbox.start("tcp_listen")?;
        let images = sandbox.images("busy")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        let port = first_port(sandbox, &images)?;
        let other = TcpListener::bind(("0.0.0.0", port))?;
        let outcome = sandbox.restore(&images, &[])?.exited_with(1)?;
        outcome.says(&[&format!("tcp port {port}"), "in use by process 1 ("])?;
        sandbox.assert_only(&[])?;
        drop(other);
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }

    /// An address that this host has not.
    fn address_of_another_host(sandbox) {
        let Some((guest, _peer)) = echo(sandbox)? else { return Ok(()) };
        let images = sandbox.images("away")?;
        sandbox.dump_and_kill(&guest, &images, ESTABLISHED)?;
        let files = images.join("files.img");
        let json = sandbox.run("crit", &["decode", "-i", text(&files)?], None)?.succeeded()?;
        // 127.0.0.1 becomes 10.9.8.7, as the words of an image.
        let away = String::from_utf8(json.stdout)?.replace("16777343", "117967114");
        let edited = images.join("files.json");
        fs::write(&edited, away)?;
        sandbox.run("crit", &["encode", "-i", text(&edited)?, "-o", text(&files)?], None)?.succeeded()?;
        let outcome = sandbox.restore(&images, ESTABLISHED)?.exited_with(1)?;
        outcome.says(&["10.9.8.7", "EADDRNOTAVAIL", "no such address"])?;
        sandbox.assert_only(&[])
    }

    /// A restore that fails keeps the lock of the dump: the next one finds the peer waiting.
    fn a_failed_restore_can_be_tried_again(sandbox) {
        let Some((guest, mut peer)) = echo(sandbox)? else { return Ok(()) };
        let images = sandbox.images("again")?;
        sandbox.dump_and_kill(&guest, &images, ESTABLISHED)?;
        peer.write_all(b"waiting")?;
        let mut taker = Command::new("sleep").arg("1000").spawn()?;
        // The pid of the program is busy: the sandbox counts on.
        let taken = i32::try_from(taker.id())?;
        if taken != guest.pid {
            fs::write("/proc/sys/kernel/ns_last_pid", (guest.pid - 1).to_string())?;
            taker.kill()?;
            taker.wait()?;
            taker = Command::new("sleep").arg("1000").spawn()?;
        }
        sandbox.restore(&images, ESTABLISHED)?.exited_with(1)?;
        taker.kill()?;
        taker.wait()?;
        sandbox.restore(&images, ESTABLISHED)?.succeeded()?;
        expect(&mut peer, &changed(b"waiting"))?;
        expect_end(sandbox, &guest, peer)
    }
}

fn in_flight() -> Case {
    Case {
        guest: "tcp_in_flight",
        // The connection that is skipped is reset at its other end.
        lost: &["fd 4 socket"],
        dump: &["--tcp-established", "--skip-in-flight"],
        restore: ESTABLISHED,
        ..Case::default()
    }
}

fn first_port(sandbox: &Sandbox, images: &Path) -> Result<u16> {
    let files = images.join("files.img");
    let json = sandbox.run("crit", &["decode", "-i", text(&files)?], None)?;
    let json: serde_json::Value = serde_json::from_slice(&json.succeeded()?.stdout)?;
    let entries = json
        .pointer("/entries")
        .and_then(serde_json::Value::as_array);
    let mut sockets = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.get("isk"));
    let port = sockets.find_map(|isk| isk.get("src_port")?.as_u64());
    Ok(u16::try_from(port.context("no socket")?)?)
}
