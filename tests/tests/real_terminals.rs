//! Programs that live on terminals: an interactive bash whose terminal is the caller's
//! (`--shell-job`), one whose terminal is given by `--inherit-fd`, `script`, tmux with two panes.
//! Each is dumped, which kills it, restored, and must go on with what it knew and with what was
//! half typed.

use anyhow::{Context, Result, ensure};
use crust_tests::{
    guest::Guest,
    proc_snapshot::{Snapshot, settle, tree},
    sandbox::Sandbox,
    sandbox_test,
    tools::{Outcome, text},
};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    pty::{OpenptyResult, openpty},
    sys::{
        signal::{Signal, kill},
        stat::fstat,
    },
    unistd::{Pid, read, ttyname, write},
};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// True, with a note, if a program of the test is missing.
fn missing(program: &str) -> bool {
    let found = Command::new(program).arg("-V").output().is_ok();
    if !found {
        println!("SKIPPED: {program} is not installed");
    }
    !found
}

/// A terminal with us at its master.
struct Screen {
    master: OwnedFd,
    slave: OwnedFd,
    /// All that was read so far.
    seen: Vec<u8>,
}

impl Screen {
    fn new() -> Result<Self> {
        let OpenptyResult { master, slave } = openpty(None, None).context("openpty")?;
        // Or the programs would have the master too.
        for end in [&master, &slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("F_SETFD")?;
        }
        Ok(Self {
            master,
            slave,
            seen: Vec::new(),
        })
    }

    fn path(&self) -> Result<PathBuf> {
        ttyname(&self.slave).context("ttyname")
    }

    fn type_in(&self, keys: &str) -> Result<()> {
        let done = write(&self.master, keys.as_bytes()).context("type")?;
        ensure!(done == keys.len(), "only {done} bytes of {keys:?}");
        Ok(())
    }

    /// Waits until the text is on the screen, behind what was waited for before.
    fn wait_for(&mut self, wanted: &str) -> Result<()> {
        loop {
            let seen = String::from_utf8_lossy(&self.seen).into_owned();
            if let Some(at) = seen.find(wanted) {
                let rest = seen.get(at + wanted.len()..).unwrap_or_default();
                self.seen = rest.as_bytes().to_vec();
                return Ok(());
            }
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::NONE).context("poll the master")?;
            let mut room = [0; 4096];
            let got = read(&self.master, &mut room)
                .with_context(|| format!("waiting for {wanted:?} behind {seen:?}"))?;
            ensure!(got > 0, "the end, waiting for {wanted:?} behind {seen:?}");
            self.seen.extend_from_slice(&room[..got]);
        }
    }
}

/// An interactive bash that leads a session of its own on the screen.
fn start_bash(sandbox: &Sandbox, screen: &Screen) -> Result<Guest> {
    let scratch = sandbox.dir("bash")?;
    let stdio = || -> Result<Stdio> { Ok(screen.slave.try_clone()?.into()) };
    let mut command = Command::new("setsid");
    command.args(["--ctty", "bash", "--noprofile", "--norc", "-i"]);
    command
        .current_dir(&scratch)
        .env("PS1", "ready> ")
        .env("TERM", "dumb")
        .env("HISTFILE", "/dev/null");
    command.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?);
    let child = command.spawn().context("start bash")?;
    Ok(Guest {
        name: "bash".to_owned(),
        pid: i32::try_from(child.id())?,
        out: scratch.join("out"),
    })
}

/// crust-restore, detached, by a shell that opens `number` on the file for it.
fn restore_with(
    sandbox: &Sandbox,
    images: &Path,
    redirection: &str,
    options: &[&str],
) -> Result<Outcome> {
    let binary = sandbox.binary("crust-restore");
    let mut command = Command::new("sh");
    let script = format!("exec \"$0\" \"$@\" {redirection}");
    command.args(["-c", &script, text(&binary)?]);
    command.args(["-d", "-v4", "-o", "restore.log", "-D", text(images)?]);
    command.args(options);
    let mut outcome = sandbox.run_command(command, None)?;
    outcome.log = fs::read_to_string(images.join("restore.log")).unwrap_or_default();
    Ok(outcome)
}

/// What the shell knew, what was half typed, and that it is still in charge of its jobs.
fn bash_goes_on(sandbox: &Sandbox, bash: &Guest, screen: &mut Screen) -> Result<()> {
    screen.type_in("ue $x\"\n")?;
    screen.wait_for("value 77")?;
    screen.type_in("jobs\n")?;
    screen.wait_for("sleep 1000")?;
    // ^C ends what is in the foreground, and the shell takes its terminal back.
    screen.type_in("echo started; sleep 2000\n")?;
    screen.wait_for("\nstarted")?;
    wait_for_foreground(bash.pid)?;
    screen.type_in("\x03")?;
    screen.type_in("echo after $((6*7))\n")?;
    screen.wait_for("after 42")?;
    let pids = tree(bash.pid)?;
    screen.type_in("kill %1; wait; exit 3\n")?;
    let status = sandbox.wait(bash.pid)?;
    let exited = matches!(status, nix::sys::wait::WaitStatus::Exited(_, 3));
    ensure!(exited, "bash ended with {status:?}");
    sandbox.reap(&pids)
}

/// Waits until another group than the shell's has the terminal, and is asleep in it.
fn wait_for_foreground(shell: i32) -> Result<()> {
    loop {
        let stat = fs::read_to_string(format!("/proc/{shell}/stat"))?;
        let fields = stat.rsplit_once(") ").context("stat")?.1;
        let group: i32 = fields.split(' ').nth(5).context("tpgid")?.parse()?;
        let comm = fs::read_to_string(format!("/proc/{group}/comm")).unwrap_or_default();
        if group != shell && comm.trim_end() == "sleep" {
            return Ok(());
        }
        std::thread::yield_now();
    }
}

fn set_up_bash(sandbox: &Sandbox, screen: &mut Screen) -> Result<Guest> {
    let bash = start_bash(sandbox, screen)?;
    screen.wait_for("ready> ")?;
    screen.type_in("x=77; sleep 1000 &\n")?;
    screen.wait_for("ready> ")?;
    // Half a line, which readline has read already and shown.
    screen.type_in("echo \"val")?;
    screen.wait_for("echo \"val")?;
    settle(bash.pid)?;
    Ok(bash)
}

fn bash_as_a_shell_job(sandbox: &Sandbox) -> Result<()> {
    let mut screen = Screen::new()?;
    let bash = set_up_bash(sandbox, &mut screen)?;
    let images = sandbox.images("bash")?;
    let refused = sandbox.dump(bash.pid, &images, &[])?.exited_with(1)?;
    refused.says(&["other end of the terminal", "--shell-job"])?;
    sandbox.dump_and_kill(&bash, &images, &["--shell-job"])?;
    let mut other = Screen::new()?;
    let redirection = format!("0<>{}", text(&other.path()?)?);
    restore_with(sandbox, &images, &redirection, &["--shell-job"])?.succeeded()?;
    bash_goes_on(sandbox, &bash, &mut other)
}

fn bash_on_a_given_terminal(sandbox: &Sandbox) -> Result<()> {
    let mut screen = Screen::new()?;
    let bash = set_up_bash(sandbox, &mut screen)?;
    let images = sandbox.images("bash")?;
    let stat = fstat(&screen.slave).context("fstat")?;
    let key = format!("tty[{:x}:{:x}]", stat.st_rdev, stat.st_dev);
    sandbox.dump_and_kill(&bash, &images, &["--external", &key])?;
    let refused = sandbox.restore(&images, &[])?.exited_with(1)?;
    refused.says(&["--inherit-fd", &key])?;
    let mut other = Screen::new()?;
    let redirection = format!("7<>{}", text(&other.path()?)?);
    let inherit = format!("fd[7]:{key}");
    restore_with(sandbox, &images, &redirection, &["--inherit-fd", &inherit])?.succeeded()?;
    bash_goes_on(sandbox, &bash, &mut other)
}

fn bash_left_running(sandbox: &Sandbox) -> Result<()> {
    let mut screen = Screen::new()?;
    let bash = set_up_bash(sandbox, &mut screen)?;
    let before = Snapshot::of_tree(bash.pid)?;
    let images = sandbox.images("bash")?;
    let options = ["--shell-job", "--leave-running"];
    sandbox.dump(bash.pid, &images, &options)?.succeeded()?;
    before.expect_same(&Snapshot::of_tree(bash.pid)?, &[])?;
    bash_goes_on(sandbox, &bash, &mut screen)
}

/// Waits until a file has the text, woken by each write to it.
fn wait_for_text(sandbox: &Sandbox, program: &Guest, wanted: &str) -> Result<()> {
    program.wait_until(sandbox, wanted, |seen| seen.contains(wanted))
}

fn script_of_a_bash(sandbox: &Sandbox) -> Result<()> {
    if missing("script") {
        return Ok(());
    }
    let scratch = sandbox.dir("script")?;
    let fifo = scratch.join("keys");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).context("mkfifo")?;
    // Read and write: neither open waits, and the program never reads an end.
    let mut keys = OpenOptions::new().read(true).write(true).open(&fifo)?;
    let out = scratch.join("typescript");
    File::create(&out)?;
    let mut command = Command::new("setsid");
    command.args(["script", "--quiet", "--flush", "--command"]);
    command.args(["PS1='ready> ' bash --noprofile --norc -i", text(&out)?]);
    command
        .current_dir(&scratch)
        .env("PS1", "ready> ")
        .env("TERM", "dumb");
    let null = || OpenOptions::new().read(true).write(true).open("/dev/null");
    command
        .stdin(File::open(&fifo)?)
        .stdout(null()?)
        .stderr(null()?);
    let child = command.spawn().context("start script")?;
    let script = Guest {
        name: "script".to_owned(),
        pid: i32::try_from(child.id())?,
        out,
    };
    wait_for_text(sandbox, &script, "ready> ")?;
    keys.write_all(b"x=77; echo start $((1+1))\n")?;
    wait_for_text(sandbox, &script, "start 2")?;
    settle(script.pid)?;
    let images = sandbox.images("script")?;
    sandbox.dump_and_kill(&script, &images, &[])?;
    sandbox.restore(&images, &[])?.succeeded()?;
    keys.write_all(b"echo value $x\n")?;
    wait_for_text(sandbox, &script, "value 77")?;
    let pids = tree(script.pid)?;
    keys.write_all(b"exit\n")?;
    sandbox.wait(script.pid)?;
    sandbox.reap(&pids)
}

/// tmux, with a socket of the test's own.
struct Tmux {
    dir: PathBuf,
}

impl Tmux {
    fn ask(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.args(["-u", "-f", "/dev/null", "-S"]);
        command.arg(self.dir.join("socket")).args(arguments);
        command
            .current_dir(&self.dir)
            .env("LC_ALL", "C.UTF-8")
            .env("SHELL", "/bin/sh")
            .env("TERM", "screen")
            .env_remove("TMUX");
        let output = command.stdin(Stdio::null()).output().context("run tmux")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "tmux {arguments:?}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Types a command into a pane and waits until it is done.
    fn run(&self, pane: &str, command: &str) -> Result<()> {
        let socket = self.dir.join("socket");
        let line = format!("{command}; tmux -S {} wait-for -S done", text(&socket)?);
        self.ask(&["send-keys", "-t", pane, "-l", &line])?;
        self.ask(&["send-keys", "-t", pane, "Enter"])?;
        self.ask(&["wait-for", "done"]).map(drop)
    }
}

/// Waits until the clients that told us of their end have ended: the panes have shells only.
fn only_shells_are_left(server: i32) -> Result<()> {
    let is_shell = |pid: &i32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        matches!(comm.trim_end(), "sh" | "bash")
    };
    // One that has ended meanwhile has no comm, and is looked for again.
    while !tree(server).is_ok_and(|pids| pids.iter().skip(1).all(is_shell)) {
        std::thread::yield_now();
    }
    settle(server)
}

/// A look at the server when it has closed what its last clients left: two looks are equal.
fn steady(server: i32) -> Result<Snapshot> {
    loop {
        let looks = [Snapshot::of_tree(server), Snapshot::of_tree(server)];
        if let [Ok(one), Ok(two)] = looks
            && one == two
        {
            return Ok(one);
        }
        ensure!(
            Path::new(&format!("/proc/{server}")).exists(),
            "tmux has ended"
        );
    }
}

fn tmux_with_two_panes(sandbox: &Sandbox) -> Result<()> {
    if missing("tmux") {
        return Ok(());
    }
    let dir = sandbox.dir("tmux")?;
    let tmux = Tmux { dir: dir.clone() };
    let shell = "bash --noprofile --norc";
    tmux.ask(&[
        "new-session",
        "-d",
        "-s",
        "s",
        "-x",
        "90",
        "-y",
        "30",
        shell,
    ])?;
    tmux.ask(&["split-window", "-t", "s:0", shell])?;
    let pid: i32 = tmux
        .ask(&["display-message", "-p", "#{pid}"])?
        .trim()
        .parse()?;
    for (pane, value) in [("s:0.0", "11"), ("s:0.1", "22")] {
        tmux.run(pane, &format!("x={value}; echo pane {value}"))?;
    }
    let server = Guest {
        name: "tmux".to_owned(),
        pid,
        out: dir.join("out"),
    };
    let images = sandbox.images("tmux")?;
    only_shells_are_left(pid)?;
    let before = steady(pid)?;
    sandbox.dump_and_kill(&server, &images, &[])?;
    sandbox.restore(&images, &[])?.succeeded()?;
    before.expect_same(&Snapshot::of_tree(pid)?, &[])?;
    for (pane, value) in [("s:0.0", "11"), ("s:0.1", "22")] {
        tmux.run(pane, "echo still $x in $(tput cols) columns")?;
        let shown = tmux.ask(&["capture-pane", "-p", "-t", pane])?;
        ensure!(shown.contains(&format!("pane {value}")), "{pane}: {shown}");
        ensure!(
            shown.contains(&format!("still {value} in 90 columns")),
            "{pane}: {shown}"
        );
    }
    // A window's size goes through the pair, as before.
    tmux.ask(&["resize-window", "-t", "s:0", "-x", "70", "-y", "20"])?;
    // tmux resizes the terminals of its panes some time after it has answered.
    let resized = "until [ $(tput cols) = 70 ]; do :; done; echo now $(tput cols)";
    tmux.run("s:0.0", resized)?;
    let shown = tmux.ask(&["capture-pane", "-p", "-t", "s:0.0"])?;
    ensure!(shown.contains("now 70"), "{shown}");
    let pids = tree(pid)?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).context("kill tmux")?;
    sandbox.reap(&pids)
}

sandbox_test! {
    fn shell_job(sandbox) { bash_as_a_shell_job(sandbox) }
    fn given_terminal(sandbox) { bash_on_a_given_terminal(sandbox) }
    fn left_running(sandbox) { bash_left_running(sandbox) }
    fn script(sandbox) { script_of_a_bash(sandbox) }
    fn tmux(sandbox) { tmux_with_two_panes(sandbox) }
}
