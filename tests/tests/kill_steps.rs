//! SIGKILL for crust-dump and crust-restore at numbered steps: the dumped tree lives on unharmed,
//! a half-restored one leaves nothing. CRUST_TESTS_KILLS=all goes through every step of every
//! target (CRUST_TESTS_LIMIT=100000 with it); a test run takes ten steps of each.

use anyhow::{Context, Result};
use crust_tests::{
    guest::Guest,
    kills::{
        dump_killed_at_steps, has_iptables, killing_dump_killed_at_steps, own_number,
        restore_killed_at_steps, restore_killed_in_world,
    },
    sandbox::Sandbox,
    sandbox_test,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn dumped(sandbox: &Sandbox, guest: &str, arguments: &[&str], options: &[&str]) -> Result<()> {
    let guest = sandbox.start_with(guest, arguments)?;
    dump_killed_at_steps(sandbox, &guest, options, &[])?;
    guest.expect_ok(sandbox)
}

fn killing(sandbox: &Sandbox, guest: &str, options: &[&str]) -> Result<()> {
    let guest = sandbox.start(guest)?;
    killing_dump_killed_at_steps(sandbox, &guest, options)?;
    guest.expect_ok(sandbox)
}

fn restored(sandbox: &Sandbox, guest: &str, options: &[&str]) -> Result<()> {
    let guest = sandbox.start(guest)?;
    restore_killed_at_steps(sandbox, &guest, options)
}

/// Whether a compiler that the machine may lack is there.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("version").output().is_ok();
    if !found {
        println!("SKIPPED: {program} is not installed");
    }
    found
}

/// A program in another language that speaks like our guests: `ready`, then `ok` after SIGTERM.
fn compiled(sandbox: &Sandbox, name: &str, compiler: &[&str], source: &str) -> Result<()> {
    let dir = sandbox.dir("sources")?;
    let path = dir.join(name);
    fs::write(&path, source)?;
    let (program, arguments) = compiler.split_first().context("no compiler")?;
    let mut command = Command::new(program);
    command.current_dir(&dir).args(arguments).arg(&path);
    // Go keeps its objects below the home directory.
    command
        .env("GOCACHE", dir.join("cache"))
        .env("GO111MODULE", "off");
    let outcome = sandbox.run_command(command, None)?;
    outcome.succeeded().map(drop)
}

fn started(sandbox: &Sandbox, program: &str, arguments: &[&str]) -> Result<Guest> {
    let scratch = sandbox.dir("program")?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&scratch);
    let guest = sandbox.spawn(
        Path::new(program)
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or("program"),
        &command,
        &scratch,
    )?;
    guest.wait_for_line(sandbox, "ready")?;
    Ok(guest)
}

/// A cgroup in a cgroup, for a guest; both go with the value.
struct Groups {
    outer: PathBuf,
    inner: PathBuf,
}

impl Groups {
    /// None, with a note, where there is no hierarchy to make them in.
    fn new() -> Result<Option<Groups>> {
        let name = format!("crust-kills-{}", own_number());
        for hierarchy in [
            "/sys/fs/cgroup/pids",
            "/sys/fs/cgroup/unified",
            "/sys/fs/cgroup",
        ] {
            let outer = Path::new(hierarchy).join(&name);
            let inner = outer.join("inner");
            let is_one = Path::new(hierarchy).join("cgroup.procs").exists();
            if is_one && fs::create_dir_all(&inner).is_ok() {
                return Ok(Some(Groups { outer, inner }));
            }
        }
        println!("SKIPPED: there is no hierarchy of cgroups in which to make one");
        Ok(None)
    }

    /// Their tasks are dead.
    fn remove(&self) -> Result<()> {
        for dir in [&self.inner, &self.outer] {
            fs::remove_dir(dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        Ok(())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let _ = self.remove();
    }
}

/// What a runtime with a heap and threads of its own changes all the time.
const RUNTIME: &[&str] = &[" map ", "thread", "Threads", " fd "];

const GO: &str = r#"
package main
import ("fmt"; "os"; "os/signal"; "syscall"; "time")
func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	sums := make(chan uint64)
	done := make(chan struct{})
	for i := 0; i < 8; i++ {
		go func() {
			var n uint64
			for {
				select {
				case <-done: return
				case sums <- n: n++
				case <-time.After(time.Millisecond):
				}
			}
		}()
	}
	fmt.Println("ready")
	var total uint64
	for {
		select {
		case <-stop:
			close(done)
			if total == 0 { fmt.Println("nothing was counted"); os.Exit(1) }
			fmt.Println("ok")
			return
		case <-sums: total++; time.Sleep(100 * time.Microsecond)
		}
	}
}
"#;

const JAVA: &str = r#"
import java.util.concurrent.atomic.AtomicLong;
public class Guest {
    public static void main(String[] a) throws Exception {
        AtomicLong turns = new AtomicLong();
        for (int i = 0; i < 4; i++) {
            Thread t = new Thread(() -> {
                while (true) {
                    byte[][] garbage = new byte[50][];
                    for (int n = 0; n < 50; n++) garbage[n] = new byte[1000];
                    turns.addAndGet(garbage.length);
                    try { Thread.sleep(1); } catch (InterruptedException e) { return; }
                }
            });
            t.setDaemon(true);
            t.start();
        }
        sun.misc.Signal.handle(new sun.misc.Signal("TERM"), s -> {
            System.out.println(turns.get() > 0 ? "ok" : "nothing was counted");
            System.out.flush();
            Runtime.getRuntime().halt(turns.get() > 0 ? 0 : 1);
        });
        System.out.println("ready");
        while (true) Thread.sleep(50);
    }
}
"#;

sandbox_test! {
    fn dump_of_a_loop(sandbox) { dumped(sandbox, "interrupted", &["cpu"], &[]) }
    /// Whoever dies while the cgroup is frozen leaves it thawed.
    fn dump_of_a_frozen_cgroup(sandbox) {
        for hierarchy in ["/sys/fs/cgroup/freezer", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
            let dir = Path::new(hierarchy).join(format!("crust-frozen-{}", own_number()));
            let is_one = Path::new(hierarchy).join("cgroup.procs").exists();
            if !is_one || fs::create_dir(&dir).is_err() {
                println!("SKIPPED: no cgroup can be made in {hierarchy}");
                continue;
            }
            let guest = sandbox.start("loop")?;
            fs::write(dir.join("cgroup.procs"), guest.pid.to_string())?;
            let shown = dir.to_str().context("a path that is text")?;
            dump_killed_at_steps(sandbox, &guest, &["--freeze-cgroup", shown], &[])?;
            guest.expect_ok(sandbox)?;
            fs::remove_dir(&dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        Ok(())
    }

    fn dump_of_a_sleeper(sandbox) { dumped(sandbox, "interrupted", &["nanosleep"], &[]) }
    fn dump_of_threads(sandbox) { dumped(sandbox, "interrupted", &["threads"], &[]) }
    fn dump_of_fifty_threads(sandbox) { dumped(sandbox, "interrupted", &["threads50"], &[]) }
    fn dump_of_a_family(sandbox) { dumped(sandbox, "tree", &[], &[]) }
    fn dump_below_a_seccomp_filter(sandbox) { dumped(sandbox, "seccomp_filter", &[], &[]) }
    fn dump_of_sockets(sandbox) { dumped(sandbox, "unix_stream", &[], &[]) }
    fn dump_of_memory(sandbox) { dumped(sandbox, "mem_shared", &[], &[]) }
    fn dump_with_link_remaps(sandbox) { dumped(sandbox, "link_remap", &[], &["--link-remap"]) }

    fn dump_of_go(sandbox) {
        if !has("go") { return Ok(()); }
        let program = sandbox.dir("sources")?.join("guest");
        let output = program.to_str().context("a path of text")?;
        compiled(sandbox, "guest.go", &["go", "build", "-o", output], GO)?;
        let guest = started(sandbox, output, &[])?;
        dump_killed_at_steps(sandbox, &guest, &[], RUNTIME)?;
        guest.expect_ok(sandbox)
    }

    fn dump_of_java(sandbox) {
        if !has("javac") { return Ok(()); }
        compiled(sandbox, "Guest.java", &["javac", "-Xlint:-options", "-nowarn"], JAVA)?;
        let classes = sandbox.dir("sources")?;
        let options = ["-Xmx64m", "-XX:-UsePerfData", "-cp", classes.to_str().context("text")?, "Guest"];
        let guest = started(sandbox, "java", &options)?;
        dump_killed_at_steps(sandbox, &guest, &[], RUNTIME)?;
        guest.expect_ok(sandbox)
    }

    /// Killed while the network is locked, by the table that goes with its owner.
    fn dump_of_connections(sandbox) { dumped(sandbox, "tcp_busy", &[], &["--tcp-established"]) }
    /// By rules that a survivor deletes.
    fn dump_of_connections_by_iptables(sandbox) {
        if !has_iptables() { return Ok(()); }
        dumped(sandbox, "tcp_busy", &[], &["--tcp-established", "--network-lock", "iptables"])
    }
    fn dump_that_kills_connections_by_iptables(sandbox) {
        if !has_iptables() { return Ok(()); }
        killing(sandbox, "tcp_busy", &["--tcp-established", "--network-lock", "iptables"])
    }
    fn pre_dump(sandbox) { dumped(sandbox, "threads", &[], &["--pre-dump"]) }
    fn dump_that_tracks(sandbox) { dumped(sandbox, "mem_private", &[], &["--track-mem"]) }
    fn dump_with_pre_copy(sandbox) { dumped(sandbox, "bigmem", &["8"], &["--pre-copy", "2"]) }
    fn dump_with_snapshots(sandbox) { dumped(sandbox, "tree", &[], &["--snapshot"]) }
    fn dump_that_lasts(sandbox) { dumped(sandbox, "files", &[], &["--sync", "--digest"]) }

    /// Killed while they kill, after which there is a whole tree or none of it.
    fn dump_that_kills_a_task(sandbox) { killing(sandbox, "loop", &[]) }
    fn dump_that_kills_a_family(sandbox) { killing(sandbox, "tree", &[]) }
    fn dump_that_kills_threads(sandbox) { killing(sandbox, "threads", &[]) }
    fn dump_that_kills_connections(sandbox) { killing(sandbox, "tcp_busy", &["--tcp-established"]) }
    fn dump_that_kills_with_link_remaps(sandbox) { killing(sandbox, "link_remap", &["--link-remap"]) }

    fn restore_of_a_task(sandbox) { restored(sandbox, "loop", &[]) }
    fn restore_of_threads(sandbox) { restored(sandbox, "threads", &[]) }
    fn restore_of_a_family(sandbox) { restored(sandbox, "tree", &[]) }
    fn restore_of_ghosts(sandbox) { restored(sandbox, "ghost", &[]) }
    fn restore_of_link_remaps(sandbox) { restored(sandbox, "link_remap", &["--link-remap"]) }
    fn restore_of_sockets(sandbox) { restored(sandbox, "unix_stream", &[]) }
    fn restore_of_connections(sandbox) { restored(sandbox, "tcp_est", &["--tcp-established"]) }
    fn restore_of_fifos(sandbox) { restored(sandbox, "fifo", &[]) }
    fn restore_of_sysv_objects(sandbox) {
        let guest = sandbox.start("sysv")?;
        restore_killed_at_steps(sandbox, &guest, &[])
    }

    /// Cgroups that a restore makes are gone when it is killed.
    fn restore_of_cgroups(sandbox) {
        let Some(groups) = Groups::new()? else { return Ok(()) };
        let guest = sandbox.start("loop")?;
        fs::write(groups.inner.join("cgroup.procs"), guest.pid.to_string())?;
        restore_killed_in_world(sandbox, &guest, &["--manage-cgroups=full"], &|| groups.remove())
    }

    fn restore_of_dead_processes(sandbox) { restored(sandbox, "proc_dead", &[]) }
    fn restore_of_zombies(sandbox) { restored(sandbox, "proc_zombie", &[]) }
}
