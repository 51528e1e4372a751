//! A running guest program: started in a session of its own with its output in a file, asked to
//! check itself by SIGTERM, its verdict read from the output.

use crate::sandbox::{GOLDEN, Sandbox};
use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        signal::{Signal, kill},
        wait::WaitStatus,
    },
    unistd::Pid,
};
use std::{
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A guest, or what a restore made of one.
#[derive(Clone, Debug)]
pub struct Guest {
    pub name: String,
    pub pid: i32,
    /// Its standard output and error.
    pub out: PathBuf,
}

impl Sandbox {
    /// Starts the guest `name` as the corpus was recorded (session, paths, stdio) and waits until
    /// its state is set up.
    pub fn start(&self, name: &str) -> Result<Guest> {
        self.start_with(name, &[])
    }

    /// `start` with further arguments behind the scratch directory.
    pub fn start_with(&self, name: &str, arguments: &[&str]) -> Result<Guest> {
        self.start_reading(name, Stdio::null(), arguments)
    }

    /// `start_with` and this standard input.
    pub fn start_reading(
        &self,
        name: &str,
        stdin: impl Into<Stdio>,
        arguments: &[&str],
    ) -> Result<Guest> {
        let program = self.install_guest(name)?;
        let scratch = Path::new(GOLDEN).join(name);
        let mut command = Command::new(program);
        command.arg(&scratch).args(arguments);
        let guest = self.spawn_reading(name, stdin, &command, &scratch)?;
        guest.wait_until_set_up(self)?;
        Ok(guest)
    }

    /// Starts any program below `setsid` with its output in `scratch/out`.
    pub fn spawn(&self, name: &str, program: &Command, scratch: &Path) -> Result<Guest> {
        self.spawn_reading(name, Stdio::null(), program, scratch)
    }

    fn spawn_reading(
        &self,
        name: &str,
        stdin: impl Into<Stdio>,
        program: &Command,
        scratch: &Path,
    ) -> Result<Guest> {
        fs::create_dir_all(scratch).with_context(|| format!("create {}", scratch.display()))?;
        let out = scratch.join("out");
        let file = File::create(&out).with_context(|| format!("create {}", out.display()))?;
        // setsid forks only when it leads a group already, which a child of ours does not: the
        // pid is the program's.
        let mut setsid = Command::new("setsid");
        setsid.arg(program.get_program()).args(program.get_args());
        setsid.envs(
            program
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        setsid.current_dir(program.get_current_dir().unwrap_or(Path::new("/")));
        setsid.stdin(stdin).stderr(file.try_clone()?).stdout(file);
        let child = setsid
            .spawn()
            .with_context(|| format!("start {program:?}"))?;
        Ok(Guest {
            name: name.to_owned(),
            pid: i32::try_from(child.id())?,
            out,
        })
    }
}

impl Guest {
    /// What it has written.
    pub fn output(&self) -> Result<String> {
        let bytes = fs::read(&self.out).with_context(|| format!("read {}", self.out.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The lines the program has written.
    pub fn lines(&self) -> Result<Vec<String>> {
        Ok(self.output()?.lines().map(str::to_owned).collect())
    }

    /// Waits until the guest has said that its state is set up, and its helpers wait too.
    pub fn wait_until_set_up(&self, sandbox: &Sandbox) -> Result<()> {
        self.wait_for_line(sandbox, "ready")?;
        crate::proc_snapshot::settle(self.pid)
    }

    /// Waits until the program has written `line`, woken by each write to its output.
    pub fn wait_for_line(&self, sandbox: &Sandbox, line: &str) -> Result<()> {
        self.wait_until(sandbox, &format!("the line {line:?}"), |text| {
            text.lines().any(|l| l == line)
        })
    }

    /// Waits until what the program has written satisfies `found`.
    pub fn wait_until(
        &self,
        sandbox: &Sandbox,
        what: &str,
        found: impl Fn(&str) -> bool,
    ) -> Result<()> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify
            .add_watch(
                &self.out,
                AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE,
            )
            .with_context(|| format!("watch {}", self.out.display()))?;
        loop {
            let text = self.output()?;
            if found(&text) {
                return Ok(());
            }
            if let Some(status) = sandbox.try_wait(self.pid)? {
                bail!(
                    "{} ended ({status:?}) before it wrote {what}; it wrote:\n{text}",
                    self.name
                );
            }
            match poll(
                &mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)],
                PollTimeout::NONE,
            ) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("poll the inotify descriptor"),
            }
            match inotify.read_events() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(errno).context("read the inotify descriptor"),
            }
        }
    }

    /// Sends a signal to the first process.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid), signal)
            .with_context(|| format!("send {signal} to {} (pid {})", self.name, self.pid))
    }

    /// Asks the guest to check itself and expects `ok`, exit status 0 and no task left over.
    pub fn expect_ok(&self, sandbox: &Sandbox) -> Result<()> {
        // Some guests look at the states of their helpers.
        crate::proc_snapshot::settle(self.pid)?;
        let tree = crate::proc_snapshot::tree(self.pid)?;
        self.expect_verdict(sandbox)?;
        sandbox.reap(&tree)
    }

    /// The same for a single task, which may be busy.
    pub fn expect_verdict(&self, sandbox: &Sandbox) -> Result<()> {
        println!(
            "{} (pid {}): SIGTERM, then wait for its verdict",
            self.name, self.pid
        );
        self.signal(Signal::SIGTERM)?;
        let status = sandbox.wait(self.pid)?;
        let text = self.output()?;
        let verdict = text.lines().last().unwrap_or_default();
        ensure!(
            verdict == "ok" && matches!(status, WaitStatus::Exited(_, 0)),
            "{} ended with {status:?}; it wrote:\n{text}",
            self.name
        );
        Ok(())
    }
}
