//! Namespaces of its own for a test.
//!
//! The test executable starts itself again for the one test, below `unshare`, as pid 1 of a new
//! pid namespace with its own mounts, /proc and network. So the body of a test is the init of its
//! small world: dumped trees that lose their parent become its children, which it reaps, and
//! whatever is left dies with it. Namespaces of the network and of SysV objects keep the abstract
//! unix names, ports and segments of tests that run at the same time apart.
//!
//! Nothing in there waits with a timeout: `timeout` outside ends a test that hangs, and what the
//! test has said so far is in the report.

use crate::build;
use anyhow::{Context, Result, bail, ensure};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        signal::Signal::SIGKILL,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    env, fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Set for the process that runs the body of a test inside the namespaces.
const INSIDE: &str = "CRUST_TESTS_INSIDE";
/// Seconds after which a test that has not ended counts as hung.
const DEFAULT_LIMIT: u32 = 150;
/// Where the corpus was recorded: its images hold paths below, and so do ours, to be comparable.
pub const GOLDEN: &str = "/tmp/crust-golden";

/// Declares tests whose bodies run in a sandbox: `sandbox_test! { fn name(sandbox) { ... } }`.
/// A body gives `anyhow::Result<()>`.
#[macro_export]
macro_rules! sandbox_test {
    ($($(#[$attribute:meta])* fn $name:ident($sandbox:ident) $body:block)*) => {$(
        $(#[$attribute])*
        #[test]
        fn $name() {
            $crate::sandbox::run(concat!(module_path!(), "::", stringify!($name)), |$sandbox| $body);
        }
    )*};
}

/// The world of one test.
pub struct Sandbox {
    binaries: PathBuf,
    guests: PathBuf,
}

/// Runs `body` in a sandbox, or says why it cannot. `path` is the test's path with the crate.
pub fn run(path: &str, body: impl FnOnce(&Sandbox) -> Result<()>) {
    if env::var_os(INSIDE).is_some() {
        let outcome = Sandbox::enter().and_then(|sandbox| body(&sandbox));
        if let Err(error) = outcome {
            panic!("{error:?}");
        }
        return;
    }
    if let Some(reason) = missing_privilege() {
        eprintln!("SKIPPED {path}: {reason}");
        return;
    }
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    if let Err(error) = run_inside(name) {
        panic!("{error:?}");
    }
}

/// What this process lacks to make a sandbox and to dump, if it lacks something.
pub fn missing_privilege() -> Option<String> {
    (!nix::unistd::geteuid().is_root())
        .then(|| "needs root: new namespaces, ptrace, and pids chosen by number".to_owned())
}

/// `unshare` with this executable behind it, to be pid 1 of a sandbox.
fn inside(limit: &str) -> Result<Command> {
    let (binaries, guests) = (build::binaries()?, build::guests()?);
    // The mount point has to exist before the mount namespace does; it stays empty outside.
    fs::create_dir_all(GOLDEN).with_context(|| format!("create {GOLDEN}"))?;
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", limit])
        .args([
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount",
            "--net",
            "--ipc",
            "--mount-proc",
        ])
        .arg("--")
        .arg(env::current_exe().context("ask for the path of the test executable")?)
        .env(INSIDE, "1")
        .env("CRUST_TESTS_BINARIES", &binaries)
        .env("CRUST_TESTS_GUESTS", &guests);
    Ok(command)
}

/// Starts this executable again for the test `name` in new namespaces and waits for its end.
fn run_inside(name: &str) -> Result<()> {
    let limit = env::var("CRUST_TESTS_LIMIT").unwrap_or_else(|_| DEFAULT_LIMIT.to_string());
    let output = inside(&limit)?
        .args([
            "--exact",
            name,
            "--nocapture",
            "--test-threads=1",
            "--include-ignored",
        ])
        .output()
        .context("run timeout (coreutils) and unshare (util-linux)")?;
    let text = format!(
        "{}{}",
        // What failed first, then the steps that led there.
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    if env::var_os("CRUST_TESTS_VERBOSE").is_some() {
        print!("{text}");
    }
    // The first process of a pid namespace has no default action for SIGTERM: timeout(1) then kills
    // it, and itself, by SIGKILL.
    let timed_out =
        output.status.code() == Some(124) || output.status.signal() == Some(SIGKILL as i32);
    ensure!(!timed_out, "not done after {limit} s:\n{text}");
    ensure!(output.status.success(), "{}:\n{text}", output.status);
    // A filter that matches no test succeeds too.
    ensure!(
        text.contains("1 passed"),
        "the sandbox did not run {name}:\n{text}"
    );
    for line in text
        .lines()
        .filter(|line| line.starts_with("SKIPPED") || line.starts_with("NOTE"))
    {
        eprintln!("{line}");
    }
    Ok(())
}

/// Runs a whole program, not a test, in a sandbox: its `main` calls this, and is started again
/// with the same arguments. `limit` is in seconds, 0 for none.
pub fn run_program(limit: u32, body: impl FnOnce(&Sandbox) -> Result<()>) -> Result<()> {
    if env::var_os(INSIDE).is_some() {
        return body(&Sandbox::enter()?);
    }
    if let Some(reason) = missing_privilege() {
        bail!("{reason}");
    }
    let status = inside(&limit.to_string())?
        .args(env::args_os().skip(1))
        .status()
        .context("run timeout (coreutils) and unshare (util-linux)")?;
    ensure!(status.success(), "inside the sandbox: {status}");
    Ok(())
}

/// Closes what the shell or CI runner that started the tests left open: guests would inherit it,
/// and their dumps differ from machine to machine.
fn close_inherited() -> Result<()> {
    let open: Vec<i32> = fs::read_dir("/proc/self/fd")
        .context("list our own descriptors")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        // EBADF for the descriptor of the listing itself.
        let _ = nix::unistd::close(fd);
    }
    Ok(())
}

/// The numbers of pseudo terminals are those of a devpts: with the machine's, a restore would find
/// the number of its guest given to another sandbox meanwhile.
fn own_terminals() -> Result<()> {
    let none: Option<&str> = None;
    mount(
        Some("devpts"),
        "/dev/pts",
        Some("devpts"),
        MsFlags::empty(),
        Some("newinstance,ptmxmode=0666,mode=0620"),
    )?;
    mount(
        Some("/dev/pts/ptmx"),
        "/dev/ptmx",
        none,
        MsFlags::MS_BIND,
        none,
    )?;
    Ok(())
}

impl Sandbox {
    /// Sets up the inside: an own file system where guests live, loopback up.
    fn enter() -> Result<Self> {
        ensure!(
            nix::unistd::getpid().as_raw() == 1,
            "the sandbox is no pid namespace of its own"
        );
        close_inherited()?;
        mount(
            Some("crust-golden"),
            GOLDEN,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=0755"),
        )
        .with_context(|| format!("mount a tmpfs on {GOLDEN}"))?;
        own_terminals().context("mount a devpts of the sandbox's own")?;
        // Only what talks over loopback needs it, and says so itself when iproute2 is missing.
        let _ = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .output();
        let given = |name: &str| {
            env::var_os(name)
                .map(PathBuf::from)
                .context(name.to_owned())
        };
        Ok(Self {
            binaries: given("CRUST_TESTS_BINARIES")?,
            guests: given("CRUST_TESTS_GUESTS")?,
        })
    }

    /// The path of an executable under test: `crust-dump`, `crust-restore` or `crit`.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.binaries.join(name)
    }

    /// Puts the program of a guest at the path that the corpus has for it.
    pub fn install_guest(&self, name: &str) -> Result<PathBuf> {
        let bin = Path::new(GOLDEN).join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("create {}", bin.display()))?;
        let program = bin.join(name);
        if !program.exists() {
            let built = self.guests.join(name);
            fs::copy(&built, &program).with_context(|| format!("copy {}", built.display()))?;
        }
        Ok(program)
    }

    /// A new empty directory that vanishes with the sandbox.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = Path::new(GOLDEN).join("run").join(name);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(dir)
    }

    /// Waits until the kernel has taken back each of these pids, as an init does for orphans: a
    /// zombie keeps its pid busy. A pid that is not (or not yet) our child is waited for through
    /// whoever of our children keeps it.
    pub fn reap(&self, pids: &[i32]) -> Result<()> {
        while pids
            .iter()
            .any(|pid| Path::new(&format!("/proc/{pid}")).exists())
        {
            match waitpid(Pid::from_raw(-1), None) {
                // EINVAL: nix has no name for the real-time signal that ended the one it reaped.
                Ok(_) | Err(Errno::EINTR | Errno::EINVAL) => {}
                Err(Errno::ECHILD) => break,
                Err(errno) => return Err(errno).context("waitpid(-1)"),
            }
        }
        let left: Vec<_> = pids
            .iter()
            .filter(|pid| Path::new(&format!("/proc/{pid}")).exists())
            .collect();
        ensure!(
            left.is_empty(),
            "pids {left:?} are still there and nobody's to reap"
        );
        Ok(())
    }

    /// Waits for the end of a child of the sandbox and gives how it ended.
    pub fn wait(&self, pid: i32) -> Result<WaitStatus> {
        loop {
            match waitpid(Pid::from_raw(pid), None) {
                Err(Errno::EINTR) => {}
                other => return other.with_context(|| format!("wait for pid {pid}")),
            }
        }
    }

    /// How a child of the sandbox ended, if it has.
    pub fn try_wait(&self, pid: i32) -> Result<Option<WaitStatus>> {
        let status = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG))
            .with_context(|| format!("wait for pid {pid}"))?;
        Ok((status != WaitStatus::StillAlive).then_some(status))
    }

    /// The pids of every process of the sandbox but its init, zombies not yet reaped included.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").context("list /proc")? {
            let pid = entry?.file_name().to_string_lossy().parse::<i32>();
            pids.extend(pid.ok().filter(|pid| *pid != 1));
        }
        Ok(pids)
    }

    /// Fails if a process is left beyond `expected`: a run that failed or ended leaves no task.
    pub fn assert_only(&self, expected: &[i32]) -> Result<()> {
        while matches!(
            waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..))
        ) {}
        let more: Vec<String> = self
            .processes()?
            .into_iter()
            .filter(|pid| !expected.contains(pid))
            .map(|pid| {
                let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                format!("{pid} ({})", comm.trim_end())
            })
            .collect();
        ensure!(more.is_empty(), "tasks are left: {}", more.join(", "));
        Ok(())
    }
}
