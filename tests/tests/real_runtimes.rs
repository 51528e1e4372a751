//! Runtimes and servers with all that a big program brings: a postgres of its own user with its
//! workers and shared memory, a java that collects garbage under several threads, a node with
//! timers and workers. Each is dumped (which kills it), restored, and must do its work after. One
//! that is not installed is a skip with its reason.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    build::run,
    guest::Guest,
    proc_snapshot::{Snapshot, tree},
    sandbox::Sandbox,
    sandbox_test,
    tools::text,
};
use nix::sys::{signal::Signal, wait::WaitStatus};
use std::{fs, path::Path, process::Command};

/// True, with a note, if a program of the test is missing.
fn missing(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        println!("SKIPPED: {program} is not installed");
    }
    !found
}

/// The first of these that can be run: distributions keep postgres out of the path.
fn postgres_dir() -> Option<String> {
    let versions = (12..20).map(|version| format!("/usr/lib/postgresql/{version}/bin/"));
    let mut dirs = std::iter::once(String::new()).chain(versions);
    dirs.find(|dir| {
        let runs = |name: &str| {
            Command::new(format!("{dir}{name}"))
                .arg("--version")
                .output()
        };
        runs("initdb").is_ok() && runs("postgres").is_ok()
    })
}

fn through_a_dump(sandbox: &Sandbox, guest: &Guest) -> Result<()> {
    let images = sandbox.images("runtime")?;
    sandbox.dump_and_kill(guest, &images, &[])?;
    sandbox.assert_only(&[])?;
    sandbox.restore(&images, &[])?.succeeded()?;
    Ok(())
}

/// A command as the user who owns the database.
fn as_owner(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=postgres",
        "--regid=postgres",
        "--init-groups",
        program,
    ]);
    command.args(arguments);
    command
}

/// One statement after the other by a new connection; gives what the last one answered.
fn sql(dir: &Path, statements: &[&str]) -> Result<String> {
    let mut psql = Command::new("psql");
    psql.args([
        "-h",
        text(dir)?,
        "-U",
        "postgres",
        "-q",
        "-A",
        "-t",
        "-v",
        "ON_ERROR_STOP=1",
    ]);
    for statement in statements {
        psql.args(["-c", statement]);
    }
    Ok(String::from_utf8_lossy(&run(&mut psql)?).trim().to_owned())
}

const JAVA: &str = r#"
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;

public class Garbage {
    static final AtomicLong turns = new AtomicLong();
    static final ConcurrentHashMap<Integer, byte[]> kept = new ConcurrentHashMap<>();
    static volatile boolean stop;

    static long collections() {
        long sum = 0;
        for (var bean : java.lang.management.ManagementFactory.getGarbageCollectorMXBeans())
            sum += bean.getCollectionCount();
        return sum;
    }

    static void work(int me) {
        var random = new Random(me);
        while (!stop) {
            for (int i = 0; i < 200; i++) {
                byte[] piece = new byte[random.nextInt(4096) + 1];
                piece[0] = (byte) me;
                kept.put(me * 1000 + random.nextInt(1000), piece);
            }
            turns.incrementAndGet();
        }
    }

    public static void main(String[] args) throws Exception {
        var threads = new ArrayList<Thread>();
        for (int i = 0; i < 4; i++) {
            int me = i;
            var thread = new Thread(() -> work(me), "worker-" + i);
            thread.setDaemon(true);
            thread.start();
            threads.add(thread);
        }
        while (collections() < 3 || turns.get() < 100) Thread.sleep(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                long before = turns.get(), collected = collections();
                while (turns.get() < before + 100 || collections() < collected + 3) Thread.sleep(1);
                stop = true;
                for (var thread : threads) thread.join();
                boolean ok = true;
                for (var entry : kept.entrySet())
                    ok &= entry.getValue()[0] == (byte) (entry.getKey() / 1000);
                System.out.println(ok ? "ok" : "FAIL");
                System.out.flush();
                Runtime.getRuntime().halt(ok ? 0 : 1);
            } catch (Throwable error) {
                error.printStackTrace();
                Runtime.getRuntime().halt(1);
            }
        }));
        System.out.println("ready");
        System.out.flush();
        while (true) Thread.sleep(1000);
    }
}
"#;

const NODE: &str = r#"
const { Worker, isMainThread, parentPort } = require("worker_threads");
if (!isMainThread) {
    parentPort.on("message", n => parentPort.postMessage(n * n));
} else {
    let ticks = 0, answers = 0, asked = 0, wrong = 0;
    const kept = new Map();
    const worker = new Worker(__filename);
    worker.on("message", n => { if (n !== answers * answers) wrong++; answers++; });
    const timer = setInterval(() => {
        ticks++;
        worker.postMessage(asked++);
        for (let i = 0; i < 100; i++) kept.set(i, { text: "value " + i, garbage: new Array(100) });
        if (ticks === 20) console.log("ready");
    }, 5);
    process.on("SIGTERM", () => {
        const before = [ticks, answers];
        setInterval(() => {
            if (ticks < before[0] + 20 || answers < before[1] + 20) return;
            clearInterval(timer);
            const ok = wrong === 0 && kept.size === 100 && kept.get(7).text === "value 7";
            require("fs").writeSync(1, ok ? "ok\n" : "FAIL\n");
            process.exit(ok ? 0 : 1);
        }, 1);
    });
}
"#;

sandbox_test! {
    /// A database of another user than ours: its limits cannot be asked from outside without
    /// CAP_SYS_RESOURCE. Its table and a second connection after the restore.
    fn postgres(sandbox) {
        let Some(bin) = postgres_dir() else {
            println!("SKIPPED: postgres is not installed");
            return Ok(());
        };
        if missing("psql") || nix::unistd::User::from_name("postgres")?.is_none() {
            println!("SKIPPED: there is no psql or no user postgres");
            return Ok(());
        }
        let dir = sandbox.dir("postgres")?;
        run(Command::new("chown").args(["postgres", text(&dir)?]))?;
        let data = dir.join("data");
        let initdb = format!("{bin}initdb");
        run(as_owner(&initdb, &["-A", "trust", "-D", text(&data)?]).current_dir(&dir))?;
        let arguments = ["-D", text(&data)?, "-k", text(&dir)?, "-c", "listen_addresses="];
        let mut server = as_owner(&format!("{bin}postgres"), &arguments);
        let guest = sandbox.spawn("postgres", server.current_dir(&dir), &sandbox.dir("log")?)?;
        guest.wait_until(sandbox, "that it is ready", |text| text.contains("ready to accept"))?;
        let made = "create table t as select n, n * n as square from generate_series(1, 10000) n";
        sql(&dir, &[made])?;
        let user = fs::metadata(format!("/proc/{}", guest.pid))?;
        ensure!(std::os::unix::fs::MetadataExt::uid(&user) != 0, "it runs as root");
        ensure!(tree(guest.pid)?.len() > 4, "it has no workers");
        through_a_dump(sandbox, &guest)?;
        let answer = sql(&dir, &[
            "insert into t values (10001, 0)",
            "create index on t (square)",
            "checkpoint",
            "select count(*), sum(n), sum(square) from t",
        ])?;
        ensure!(answer == "10001|50015001|333383335000", "it answered {answer:?}");
        guest.signal(Signal::SIGINT)?;
        let ended = sandbox.wait(guest.pid)?;
        ensure!(matches!(ended, WaitStatus::Exited(_, 0)), "postgres ended with {ended:?}");
        let log = guest.lines()?.join("\n");
        ensure!(log.contains("database system is shut down"), "{log}");
        ensure!(!log.contains("PANIC") && !log.contains("terminated by signal"), "{log}");
        sandbox.assert_only(&[])
    }

    fn java(sandbox) {
        if missing("java") || missing("javac") {
            return Ok(());
        }
        let dir = sandbox.dir("java")?;
        fs::write(dir.join("Garbage.java"), JAVA)?;
        run(Command::new("javac").arg("Garbage.java").current_dir(&dir))?;
        let mut java = Command::new("java");
        java.args(["-Xmx64m", "-Xmn8m", "-XX:+UseParallelGC", "-cp", text(&dir)?, "Garbage"]);
        let guest = sandbox.spawn("java", java.current_dir(&dir), &dir)?;
        guest.wait_for_line(sandbox, "ready")?;
        through_a_dump(sandbox, &guest)?;
        guest.expect_verdict(sandbox)?;
        sandbox.assert_only(&[])
    }

    fn node(sandbox) {
        if missing("node") {
            return Ok(());
        }
        let dir = sandbox.dir("node")?;
        fs::write(dir.join("ticks.js"), NODE)?;
        let mut node = Command::new("node");
        node.arg("ticks.js").current_dir(&dir);
        let guest = sandbox.spawn("node", &node, &dir)?;
        guest.wait_for_line(sandbox, "ready").context("start node")?;
        let before = Snapshot::of_tree(guest.pid)?;
        through_a_dump(sandbox, &guest)?;
        // It wakes its loop by an eventfd, from one moment to the next.
        let moving = ["VmSize", "VmRSS", "Rss", "smaps", "maps", "pending", "eventfd-count"];
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &moving)?;
        guest.expect_verdict(sandbox)?;
        sandbox.assert_only(&[])
    }
}
