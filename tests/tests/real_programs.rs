//! Programs that know nothing of checkpoints: sleep, bash loops and pipelines, python3 with
//! threads and sqlite, perl, redis-server with 20000 keys. Each is dumped (which kills it),
//! restored, and must go on with what it knew; and the same left running.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    guest::Guest,
    proc_snapshot::{Snapshot, tree},
    sandbox::Sandbox,
    sandbox_test,
};
use nix::{sys::signal::Signal, unistd::Pid};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    process::Command,
};

/// How a program is taken through a dump.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    KilledAndRestored,
    LeftRunning,
}

/// True, with a note, if a program of the test is missing.
fn missing(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("SKIPPED: {program} is not installed");
    }
    !found
}

fn start(sandbox: &Sandbox, program: &str, arguments: &[&str]) -> Result<Guest> {
    let scratch = sandbox.dir("program")?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&scratch);
    sandbox.spawn(program, &command, &scratch)
}

fn through_a_dump(sandbox: &Sandbox, guest: &Guest, way: Way) -> Result<()> {
    let images = sandbox.images("program")?;
    match way {
        Way::KilledAndRestored => {
            sandbox.dump_and_kill(guest, &images, &[])?;
            sandbox.restore(&images, &[])?.succeeded()?;
        }
        Way::LeftRunning => {
            sandbox
                .dump(guest.pid, &images, &["--leave-running"])?
                .succeeded()?;
        }
    }
    Ok(())
}

/// Ends a program that does not end by itself.
fn end(sandbox: &Sandbox, guest: &Guest) -> Result<()> {
    let pids = tree(guest.pid)?;
    for pid in &pids {
        // A child may have ended by now.
        let _ = nix::sys::signal::kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    sandbox.reap(&pids)
}

/// Waits until a started `sleep` is asleep: setsid and the loader are behind it. Gives the number
/// of its system call, nanosleep or clock_nanosleep.
fn asleep(guest: &Guest) -> Result<String> {
    loop {
        let syscall = fs::read_to_string(format!("/proc/{}/syscall", guest.pid))?;
        match syscall.split_whitespace().next().unwrap_or_default() {
            number @ ("35" | "230") => return Ok(number.to_owned()),
            _ => std::thread::yield_now(),
        }
    }
}

fn sleep_1000(sandbox: &Sandbox, way: Way) -> Result<()> {
    let guest = start(sandbox, "sleep", &["1000"])?;
    let before = asleep(&guest)?;
    let snapshot = Snapshot::of_tree(guest.pid)?;
    through_a_dump(sandbox, &guest, way)?;
    snapshot.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    // It is let go on its way back into the kernel, where it may be in restart_syscall (219).
    loop {
        let syscall = fs::read_to_string(format!("/proc/{}/syscall", guest.pid))?;
        match syscall.split_whitespace().next().unwrap_or_default() {
            "running" => std::thread::yield_now(),
            now if now == before || now == "219" => break,
            now => anyhow::bail!("sleep is in system call {now}, was in {before}"),
        }
    }
    end(sandbox, &guest)
}

/// A sleep ends by itself, after its full time and with success.
fn sleep_2(sandbox: &Sandbox, way: Way) -> Result<()> {
    let started = std::time::Instant::now();
    let guest = start(sandbox, "sleep", &["2"])?;
    asleep(&guest)?;
    through_a_dump(sandbox, &guest, way)?;
    let status = sandbox.wait(guest.pid)?;
    let took = started.elapsed().as_secs_f64();
    let exited = matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0));
    ensure!(exited, "sleep ended with {status:?}");
    ensure!((2.0..5.0).contains(&took), "sleep 2 took {took} s");
    Ok(())
}

fn last_number(text: &str) -> u64 {
    text.lines()
        .rev()
        .find_map(|line| line.parse().ok())
        .unwrap_or(0)
}

/// A program that writes 1, 2, 3, ...: none may be missing or doubled, and it must go on.
fn counting(sandbox: &Sandbox, way: Way, program: &str, script: &str) -> Result<()> {
    let guest = start(sandbox, program, &["-c", script])?;
    guest.wait_until(sandbox, "some numbers", |text| last_number(text) >= 5)?;
    through_a_dump(sandbox, &guest, way)?;
    let at_dump = last_number(&fs::read_to_string(&guest.out)?);
    guest.wait_until(sandbox, "further numbers", |text| {
        last_number(text) >= at_dump + 10
    })?;
    end(sandbox, &guest)?;
    for (index, line) in fs::read_to_string(&guest.out)?.lines().enumerate() {
        ensure!(
            line.parse() == Ok(index + 1),
            "line {} is {line:?}",
            index + 1
        );
    }
    Ok(())
}

const BASH_LOOP: &str = "i=0; while :; do i=$((i+1)); echo $i; read -t 0.01 < <(:) ; done";
const BASH_LOOP_WITH_SLEEP: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";
const BASH_PIPELINE: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done \
    | while read n; do echo $((n * 2)); done | while read n; do echo $((n / 2)); done";

/// The program checks itself on SIGTERM, like a guest.
fn self_checking(sandbox: &Sandbox, way: Way, program: &str, script: &str) -> Result<()> {
    let flag = if program == "perl" { "-e" } else { "-c" };
    let guest = start(sandbox, program, &[flag, script])?;
    guest.wait_for_line(sandbox, "ready")?;
    let before = Snapshot::of_tree(guest.pid)?;
    through_a_dump(sandbox, &guest, way)?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    guest.expect_ok(sandbox)
}

const PYTHON: &str = r#"
import os, signal, sqlite3, sys, threading, time
memory = sqlite3.connect(":memory:")
disk = sqlite3.connect("numbers.db")
for db in (memory, disk):
    db.execute("create table numbers (n integer primary key, text)")
    db.executemany("insert into numbers values (?, ?)", ((i, "text %d" % i) for i in range(5000)))
    db.commit()
counts = [0] * 4
lock = threading.Lock()
def count(me):
    while True:
        with lock:
            counts[me] += 1
        time.sleep(0.001 * (me + 1))
for me in range(4):
    threading.Thread(target=count, args=(me,), daemon=True).start()
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
known = os.urandom(1 << 20)
digest = hash(known)
print("ready", flush=True)
asked.wait()
before = list(counts)
deadline = time.monotonic() + 20
while any(now <= then for now, then in zip(counts, before)) and time.monotonic() < deadline:
    time.sleep(0.001)
ok = all(now > then for now, then in zip(counts, before)) and hash(bytes(known)) == digest
for db in (memory, disk):
    ok = ok and db.execute("select count(*), sum(n) from numbers").fetchone() == (5000, 12497500)
    db.execute("insert into numbers values (5000, 'after')")
    db.commit()
    ok = ok and db.execute("select text from numbers where n = 5000").fetchone() == ("after",)
print("ok" if ok else "FAIL", flush=True)
os._exit(0 if ok else 1)
"#;

const PERL: &str = r#"
$| = 1;
my %squares = map { $_ => $_ * $_ } 1 .. 10000;
my ($turns, $term) = (0, 0);
$SIG{TERM} = sub { $term = 1 };
open(my $file, '+>', 'perl.txt') or die;
print $file "line $_\n" for 1 .. 100;
seek($file, 0, 0);
my $first = <$file>;
print "ready\n";
while (!$term) { $turns++; select(undef, undef, undef, 0.01); }
my $second = <$file>;
my $sum = 0;
$sum += $squares{$_} for 1 .. 10000;
my $ok = $sum == 333383335000 && $second eq "line 2\n" && $turns > 0;
print $ok ? "ok\n" : "FAIL: sum $sum, line $second\n";
exit($ok ? 0 : 1);
"#;

/// A connection to redis speaking its inline protocol.
struct Redis<S: Read + Write> {
    stream: BufReader<S>,
}

impl<S: Read + Write> Redis<S> {
    fn new(stream: S) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .context("read the answer of redis")?;
        Ok(line.trim_end().to_owned())
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.stream
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())?;
        let line = self.line()?;
        if line.starts_with('$') {
            return self.line();
        }
        Ok(line)
    }

    /// Ends the connection and waits until redis has closed its side.
    fn quit(mut self) -> Result<()> {
        self.ask("QUIT")?;
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(())
    }
}

const KEYS: usize = 20_000;

fn redis<S: Read + Write>(
    sandbox: &Sandbox,
    way: Way,
    options: &[&str],
    connect: impl Fn() -> Result<S>,
) -> Result<()> {
    let mut arguments = vec!["--save", "", "--appendonly", "no"];
    arguments.extend(options);
    let guest = start(sandbox, "redis-server", &arguments)?;
    let listening =
        |text: &str| text.contains("eady to accept connections") || text.contains("now ready");
    guest.wait_until(sandbox, "that it is ready", listening)?;
    let mut client = Redis::new(connect()?);
    let mut load = String::new();
    for key in 0..KEYS {
        load.push_str(&format!("SET key:{key} value-{}\r\n", key * 7));
    }
    client.stream.get_mut().write_all(load.as_bytes())?;
    for _ in 0..KEYS {
        ensure!(client.line()? == "+OK", "redis did not take a key");
    }
    client.quit()?;
    through_a_dump(sandbox, &guest, way)?;
    let mut client = Redis::new(connect()?);
    let size = client.ask("DBSIZE")?;
    ensure!(size == format!(":{KEYS}"), "redis has {size} keys");
    for key in (0..KEYS).step_by(997) {
        let value = client.ask(&format!("GET key:{key}"))?;
        ensure!(
            value == format!("value-{}", key * 7),
            "key {key} is {value}"
        );
    }
    ensure!(client.ask("INCR after")? == ":1", "redis takes no new key");
    client.stream.get_mut().write_all(b"SHUTDOWN NOSAVE\r\n")?;
    let status = sandbox.wait(guest.pid)?;
    ensure!(
        matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0)),
        "redis ended with {status:?}"
    );
    Ok(())
}

fn redis_on_tcp(sandbox: &Sandbox, way: Way) -> Result<()> {
    if missing("redis-server") {
        return Ok(());
    }
    redis(sandbox, way, &[], || {
        TcpStream::connect("127.0.0.1:6379").context("connect to redis")
    })
}

fn redis_on_a_unix_socket(sandbox: &Sandbox, way: Way) -> Result<()> {
    if missing("redis-server") {
        return Ok(());
    }
    let path = sandbox.dir("program")?.join("redis.sock");
    let socket = crust_tests::tools::text(&path)?;
    redis(
        sandbox,
        way,
        &["--port", "0", "--unixsocket", socket],
        || UnixStream::connect(&path).context("connect to redis"),
    )
}

fn python(sandbox: &Sandbox, way: Way) -> Result<()> {
    if missing("python3") {
        return Ok(());
    }
    self_checking(sandbox, way, "python3", PYTHON)
}

fn perl(sandbox: &Sandbox, way: Way) -> Result<()> {
    if missing("perl") {
        return Ok(());
    }
    self_checking(sandbox, way, "perl", PERL)
}

macro_rules! programs {
    ($($name:ident: $body:expr;)*) => {$(
        mod $name {
            use super::*;
            sandbox_test! {
                fn restored(sandbox) { $body(sandbox, Way::KilledAndRestored) }
                fn left_running(sandbox) { $body(sandbox, Way::LeftRunning) }
            }
        }
    )*};
}

programs! {
    sleeping: sleep_1000;
    sleeping_shortly: sleep_2;
    bash_loop: |s, w| counting(s, w, "bash", BASH_LOOP);
    bash_loop_with_sleep: |s, w| counting(s, w, "bash", BASH_LOOP_WITH_SLEEP);
    bash_pipeline: |s, w| counting(s, w, "bash", BASH_PIPELINE);
    python3: python;
    perl5: perl;
    redis_tcp: redis_on_tcp;
    redis_unix: redis_on_a_unix_socket;
}
