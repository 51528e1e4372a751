//! Every kind of failure of crust-dump and crust-restore, provoked: one sentence on stderr that
//! says what was being done, to what, the kernel's word and what to try, and with `--json` the
//! same with its code. A failed run leaves everything as it was.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    corpus::recorded,
    edited::processor_with_everything,
    guest::Guest,
    proc_snapshot::{Snapshot, threads},
    sandbox::Sandbox,
    sandbox_test,
    tools::{Outcome, text},
};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

/// What a failed run must say.
struct Expected<'w> {
    status: i32,
    code: &'w str,
    errno: Option<&'w str>,
    words: &'w [&'w str],
}

/// Exit status 1 and this code.
const fn failure<'w>(code: &'w str, errno: Option<&'w str>, words: &'w [&'w str]) -> Expected<'w> {
    Expected {
        status: 1,
        code,
        errno,
        words,
    }
}

/// Runs the command in both forms and compares what it says with what it must.
fn expect(sandbox: &Sandbox, command: &dyn Fn() -> Command, expected: &Expected<'_>) -> Result<()> {
    let plain = sandbox
        .run_command(command(), None)?
        .exited_with(expected.status)?;
    plain.says(expected.words)?;
    let mut with_json = command();
    with_json.arg("--json");
    let outcome = sandbox
        .run_command(with_json, None)?
        .exited_with(expected.status)?;
    let error = error_of(&outcome)?;
    let is = |key: &str| error.get(key).and_then(Value::as_str);
    ensure!(
        is("code") == Some(expected.code),
        "{error:#} is not {}",
        expected.code
    );
    ensure!(
        is("errno") == expected.errno,
        "{error:#}: errno is not {:?}",
        expected.errno
    );
    let what = is("what").context("no sentence")?.to_lowercase();
    let missing = expected
        .words
        .iter()
        .find(|word| !what.contains(&word.to_lowercase()));
    ensure!(missing.is_none(), "{what:?} has no {missing:?}");
    // What to try is in the sentence for people.
    if let Some(remedy) = is("try") {
        ensure!(
            plain.last_line().ends_with(&format!("({remedy})")),
            "{}",
            plain.report()
        );
    }
    Ok(())
}

/// The object of the last line on stderr.
fn error_of(outcome: &Outcome) -> Result<Value> {
    let line: Value =
        serde_json::from_str(outcome.last_line()).with_context(|| outcome.report())?;
    line.get("error").cloned().with_context(|| outcome.report())
}

/// Dumps that fail: the guest lives and is as it was.
struct Dumps<'s> {
    sandbox: &'s Sandbox,
    guest: Guest,
    images: PathBuf,
}

impl<'s> Dumps<'s> {
    fn of(sandbox: &'s Sandbox, guest: &str) -> Result<Dumps<'s>> {
        Ok(Dumps {
            guest: sandbox.start(guest)?,
            images: sandbox.images("failing")?,
            sandbox,
        })
    }

    /// `options` come last, so they win; `below` is a command to run crust-dump with.
    fn fails(&self, below: &[&str], options: &[&str], expected: &Expected<'_>) -> Result<()> {
        let before = Snapshot::of_tree(self.guest.pid)?;
        let (pid, images) = (self.guest.pid.to_string(), text(&self.images)?);
        let standard = ["-t", &pid, "-D", images];
        let command = || self.command(below, &[&standard, options].concat());
        expect(self.sandbox, &command, expected)
            .with_context(|| format!("crust-dump {options:?} below {below:?}"))?;
        before.expect_same(&Snapshot::of_tree(self.guest.pid)?, &[])
    }

    fn command(&self, below: &[&str], arguments: &[&str]) -> Command {
        crust(self.sandbox, "crust-dump", below, arguments)
    }
}

fn crust(sandbox: &Sandbox, name: &str, below: &[&str], arguments: &[&str]) -> Command {
    let program = sandbox.binary(name);
    let mut command = match below.split_first() {
        None => Command::new(program),
        Some((wrapper, rest)) => {
            let mut command = Command::new(wrapper);
            command.args(rest).arg(program);
            command
        }
    };
    command.args(arguments);
    command
}

/// A dumped and dead guest.
fn dead(sandbox: &Sandbox, guest: &str) -> Result<(Guest, PathBuf)> {
    let guest = sandbox.start(guest)?;
    let images = sandbox.images("of-the-dead")?;
    sandbox.dump_and_kill(&guest, &images, &[])?;
    Ok((guest, images))
}

/// A restore that fails: no task is left.
fn restore_fails(
    sandbox: &Sandbox,
    images: &Path,
    below: &[&str],
    options: &[&str],
    expected: &Expected<'_>,
) -> Result<()> {
    let standard = ["-d", "-D", text(images)?];
    let command = || {
        crust(
            sandbox,
            "crust-restore",
            below,
            &[&standard, options].concat(),
        )
    };
    expect(sandbox, &command, expected).with_context(|| format!("crust-restore {options:?}"))?;
    sandbox.assert_only(&[])
}

/// A good restore afterwards: nothing was spoilt.
fn restore_succeeds(sandbox: &Sandbox, guest: &Guest, images: &Path) -> Result<()> {
    sandbox.restore(images, &[])?.succeeded()?;
    guest.expect_ok(sandbox)
}

fn script(sandbox: &Sandbox, body: &str) -> Result<PathBuf> {
    let path = sandbox.dir("scripts")?.join("action");
    fs::write(&path, format!("#!/bin/sh\n{body}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    Ok(path)
}

fn mounted(sandbox: &Sandbox, name: &str, flags: MsFlags, data: &str) -> Result<PathBuf> {
    let dir = sandbox.dir(name)?;
    mount(Some("tmpfs"), &dir, Some("tmpfs"), flags, Some(data))?;
    Ok(dir)
}

sandbox_test! {
    fn wrong_command_lines(sandbox) {
        for (name, arguments, words) in [
            ("crust-dump", &["-D", "/tmp"][..], &["--tree"][..]),
            ("crust-dump", &["-t", "0"], &["--tree 0"]),
            ("crust-dump", &["-t", "1", "-R", "-s"], &["contradict"]),
            ("crust-restore", &["--no-such-option"], &["--no-such-option"]),
            ("crust-restore", &["--plan=nonsense"], &["--plan", "nonsense"]),
            ("crust-restore", &["--lazy-pages"], &["--lazy-pages", "not built"]),
        ] {
            let expected = Expected { status: 2, ..failure("usage", None, words) };
            expect(sandbox, &|| crust(sandbox, name, &[], arguments), &expected)?;
        }
        Ok(())
    }

    fn places_that_were_given(sandbox) {
        let dumps = Dumps::of(sandbox, "loop")?;
        let read_only = mounted(sandbox, "read-only", MsFlags::MS_RDONLY, "size=1m")?;
        let enoent = Some("ENOENT");
        dumps.fails(&[], &["-o", "no/such/log"], &failure("log-file", enoent, &["no/such/log"]))?;
        dumps.fails(&[], &["-D", "/no/such/dir"], &failure("images-dir", enoent, &["/no/such/dir", "No such file"]))?;
        dumps.fails(&[], &["-D", text(&read_only)?], &failure("images-dir", Some("EROFS"), &["Read-only"]))?;
        dumps.fails(&[], &["-W", "/no/such/dir"], &failure("work-dir", enoent, &["/no/such/dir"]))?;
        dumps.fails(&[], &["--status-fd", "99"], &failure("given-fd", enoent, &["--status-fd 99"]))?;
        let fails = script(sandbox, "exit 3")?;
        dumps.fails(&[], &["--action-script", text(&fails)?], &failure("script", None, &["pre-dump", "exit status: 3"]))?;
        let signals = script(sandbox, "kill -TERM $PPID")?;
        dumps.fails(&[], &["--action-script", text(&signals)?], &failure("interrupted", None, &["SIGTERM"]))?;
        dumps.guest.expect_ok(sandbox)
    }

    fn resources_that_end(sandbox) {
        let dumps = Dumps::of(sandbox, "mem_private")?;
        let full = mounted(sandbox, "full", MsFlags::empty(), "size=64k")?;
        dumps.fails(&[], &["-D", text(&full)?], &failure("no-space", Some("ENOSPC"), &["No space left"]))?;
        let few = ["prlimit", "--nofile=8:8"];
        dumps.fails(&few, &[], &failure("resources", Some("EMFILE"), &["open files"]))?;
        let small = ["prlimit", "--fsize=65536"];
        dumps.fails(&small, &[], &failure("no-space", Some("EFBIG"), &["too large"]))?;
        dumps.guest.expect_ok(sandbox)
    }

    fn privileges_that_are_missing(sandbox) {
        let dumps = Dumps::of(sandbox, "loop")?;
        fs::set_permissions(&dumps.images, fs::Permissions::from_mode(0o777))?;
        let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
        let pid = dumps.guest.pid.to_string();
        dumps.fails(&nobody, &[], &failure("privilege", Some("EPERM"), &[&pid]))?;
        dumps.guest.expect_ok(sandbox)
    }

    fn trees_that_cannot_be_frozen(sandbox) {
        let images = text(&sandbox.images("none")?)?.to_owned();
        let dump = |pid: &str, expected: &Expected<'_>| {
            expect(sandbox, &|| crust(sandbox, "crust-dump", &[], &["-t", pid, "-D", &images]), expected)
        };
        dump("4000000", &failure("no-such-task", None, &["4000000", "No such process"]))?;
        dump("1", &failure("contains-us", None, &["cannot dump itself"]))?;
        let guest = sandbox.start("threads")?;
        let tids = threads(guest.pid)?;
        let tid = tids.iter().find(|tid| **tid != guest.pid).context("no second thread")?;
        dump(&tid.to_string(), &failure("not-a-leader", None, &[&tid.to_string(), &guest.pid.to_string()]))?;
        guest.expect_ok(sandbox)?;
        let traced = Dumps::of(sandbox, "traced")?;
        traced.fails(&[], &[], &failure("traced", None, &["traced by process"]))?;
        traced.guest.expect_ok(sandbox)?;
        let mut child = Command::new("true").spawn()?;
        let pid = i32::try_from(child.id())?;
        let id = nix::sys::wait::Id::Pid(Pid::from_raw(pid));
        use nix::sys::wait::WaitPidFlag;
        nix::sys::wait::waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
        dump(&pid.to_string(), &failure("zombie", None, &[&pid.to_string(), "zombie"]))?;
        child.wait()?;
        Ok(())
    }

    fn a_vfork_in_progress(sandbox) {
        let program = sandbox.install_guest("vfork")?;
        let mut command = Command::new(program);
        command.arg("/tmp/crust-golden/vfork");
        let guest = sandbox.spawn("vfork", &command, Path::new("/tmp/crust-golden/vfork"))?;
        guest.wait_for_line(sandbox, "vforks")?;
        let pid = guest.pid.to_string();
        let child = || -> Result<i32> {
            loop {
                let tree = crust_tests::proc_snapshot::tree(guest.pid)?;
                if let Some(child) = tree.into_iter().find(|pid| *pid != guest.pid) {
                    return Ok(child);
                }
            }
        };
        let kid = child()?;
        let images = sandbox.images("vfork")?;
        let arguments = ["-t", &pid, "-D", text(&images)?, "--timeout", "1"];
        let words = [pid.as_str(), "vfork"];
        let expected = failure("vfork", None, &words);
        expect(sandbox, &|| crust(sandbox, "crust-dump", &[], &arguments), &expected)?;
        kill(Pid::from_raw(kid), Signal::SIGUSR1)?;
        guest.wait_for_line(sandbox, "ready")?;
        guest.expect_ok(sandbox)
    }

    fn what_cannot_be_carried(sandbox) {
        let dumps = Dumps::of(sandbox, "unsupported")?;
        dumps.fails(&[], &[], &failure("refused", None, &["cannot dump", "vsock"]))?;
        dumps.guest.expect_ok(sandbox)
    }

    fn images_that_are_damaged(sandbox) {
        let empty = sandbox.images("empty")?;
        restore_fails(sandbox, &empty, &[], &[], &failure("incomplete", None, &["inventory.img", "not finished"]))?;
        let missing = failure("images-dir", Some("ENOENT"), &["/no/such/dir"]);
        restore_fails(sandbox, &empty, &[], &["-D", "/no/such/dir"], &missing)?;
        let (guest, images) = dead(sandbox, "loop")?;
        let core = images.join(format!("core-{}.img", guest.pid));
        let good = fs::read(&core)?;
        fs::write(&core, &good[..good.len() - 1])?;
        restore_fails(sandbox, &images, &[], &[], &failure("image", None, &["core-", "entry 0"]))?;
        fs::remove_file(&core)?;
        restore_fails(sandbox, &images, &[], &[], &failure("incomplete", None, &["core-", "missing"]))?;
        fs::write(&core, good)?;
        restore_succeeds(sandbox, &guest, &images)
    }

    fn hosts_that_have_changed(sandbox) {
        let (guest, images) = dead(sandbox, "tcp_listen")?;
        let program = sandbox.install_guest("tcp_listen")?;
        let aside = program.with_extension("aside");
        fs::rename(&program, &aside)?;
        restore_fails(sandbox, &images, &[], &[], &failure("file", None, &["bin/tcp_listen is gone"]))?;
        fs::rename(&aside, &program)?;
        let poor = ["setpriv", "--bounding-set", "-setuid"];
        restore_fails(sandbox, &images, &poor, &[], &failure("capability", None, &["capabilities that crust-restore has not"]))?;
        let few = ["prlimit", "--nofile=10:10"];
        restore_fails(sandbox, &images, &few, &[], &failure("limit", None, &["hard limit"]))?;
        // The address goes with the interface: only the step itself can find that out.
        let down = Command::new("ip").args(["link", "set", "lo", "down"]).status();
        if down.is_ok_and(|status| status.success()) {
            restore_fails(sandbox, &images, &[], &[], &failure("execute", None, &["bind", "EADDRNOTAVAIL", "files.img entry"]))?;
            Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
        } else {
            println!("SKIPPED: no ip to take the loopback interface down");
        }
        restore_succeeds(sandbox, &guest, &images)
    }

    fn another_kernel(sandbox) {
        let (guest, images) = dead(sandbox, "loop")?;
        // The note of the build id is in the code of the vdso, whose pages are in the images.
        let pages = images.join("pages-1.img");
        let good = fs::read(&pages)?;
        let note = [&4u32.to_le_bytes()[..], &20u32.to_le_bytes(), &3u32.to_le_bytes(), b"GNU\0"].concat();
        let found: Vec<usize> = good.windows(note.len()).enumerate()
            .filter(|(_, window)| *window == note).map(|(at, _)| at + note.len()).collect();
        ensure!(!found.is_empty(), "the dump has no vdso with a build id");
        let file = OpenOptions::new().write(true).open(&pages)?;
        for at in found {
            file.write_all_at(&[!good[at]], at as u64)?;
        }
        restore_fails(sandbox, &images, &[], &[], &failure("host-kernel", None, &["vdso", "another kernel"]))?;
        fs::write(&pages, good)?;
        restore_succeeds(sandbox, &guest, &images)
    }

    fn pids_and_ports_that_are_taken(sandbox) {
        let guest = sandbox.start("tcp_listen")?;
        let images = sandbox.images("busy")?;
        sandbox.dump(guest.pid, &images, &["--leave-running"])?.succeeded()?;
        let arguments = ["-d", "-D", text(&images)?];
        // Two kinds of reasons are one plan that cannot be carried out.
        let expected = failure("plan", None, &["2 reasons", "tcp_listen", "tcp port"]);
        let expected = Expected { words: &expected.words[1..], ..expected };
        expect(sandbox, &|| crust(sandbox, "crust-restore", &[], &arguments), &expected)?;
        guest.expect_ok(sandbox)?;
        let guest = sandbox.start("loop")?;
        sandbox.dump(guest.pid, &images, &["--leave-running"])?.succeeded()?;
        let pid = format!("pid {}", guest.pid);
        let words = [pid.as_str(), "loop"];
        let expected = failure("pid-busy", None, &words);
        expect(sandbox, &|| crust(sandbox, "crust-restore", &[], &arguments), &expected)?;
        guest.expect_ok(sandbox)
    }

    fn a_processor_that_lacks_something(sandbox) {
        let (images, _) = sandbox.unpack(&recorded("cpuinfo"))?;
        processor_with_everything(sandbox, &images)?;
        restore_fails(sandbox, &images, &[], &[], &failure("cpu", None, &["processor feature"]))
    }

    fn scripts_and_places_of_a_restore(sandbox) {
        let (guest, images) = dead(sandbox, "loop")?;
        let fails = script(sandbox, "test $CRTOOLS_SCRIPT_ACTION != pre-restore")?;
        let options = ["--action-script", text(&fails)?];
        restore_fails(sandbox, &images, &[], &options, &failure("script", None, &["pre-restore", "exit status: 1"]))?;
        let late = script(sandbox, "test $CRTOOLS_SCRIPT_ACTION != pre-resume")?;
        let options = ["--action-script", text(&late)?];
        restore_fails(sandbox, &images, &[], &options, &failure("execute", None, &["pre-resume", "exit status: 1"]))?;
        restore_fails(sandbox, &images, &[], &["-o", "no/such/log"], &failure("log-file", Some("ENOENT"), &["no/such/log"]))?;
        restore_succeeds(sandbox, &guest, &images)
    }

    /// Nobody reads what is said: the exit status says it.
    fn a_closed_stderr(sandbox) {
        let dumps = Dumps::of(sandbox, "loop")?;
        let mut command = dumps.command(&[], &["-t", "4000000", "-D", text(&dumps.images)?]);
        let full = File::options().write(true).open("/dev/full")?;
        let status = command.stderr(full).status()?;
        ensure!(status.code() == Some(1), "{status}");
        dumps.guest.expect_ok(sandbox)
    }
}
