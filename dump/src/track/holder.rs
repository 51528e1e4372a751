//! Trackers between two runs of crust-dump: a process that does nothing but hold them.
//!
//! Tracking lasts as long as a descriptor of it is open, and the tracked task shall have none. So a
//! dump that is to be followed by another starts this program again as a holder, which listens at
//! an abstract socket named after the run id in the dump's inventory. The next dump of the chain
//! connects, takes copies of the descriptors with pidfd_getfd(2), and closes; then the holder ends,
//! as it does when every tracked task is dead. Killed, it takes the tracking with it and nothing
//! else: the next dump is a whole one.

use super::Trackers;
use crate::inventory::RunId;
use anyhow::{Context, Result, bail, ensure};
use crust_cli::code::Code;
use crust_cli::failure::failure_of;
use crust_process::dirty::Tracker;
use crust_process::error::Error as TaskError;
use crust_process::fds::PidFd;
use crust_process::pid::HostPid;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Command, Stdio};

/// The first argument that makes crust-dump a holder.
pub const ARGUMENT: &str = "hold-trackers";
/// The question of who wants everything; any other is `pid start-time` of a task.
const ANYWAY: &str = "all";
/// How long a holder may take to end, in milliseconds: it has nothing else to do.
const MOST_PATIENCE: u16 = 10_000;
/// The holder listens.
const READY: u8 = b'r';
/// The holder cannot hold: its errno in four bytes (0: none) and a sentence follow.
const FAILED: u8 = b'f';
/// The images of the dump are complete: hold on.
const COMMIT: u8 = b'c';

/// A holder that has everything and waits for the dump to be complete. Dropped before, it ends.
#[derive(Debug)]
pub struct Holder(UnixStream);

/// Starts a holder for the trackers of a dump.
pub fn start(run_id: &RunId, trackers: &Trackers) -> Result<Holder> {
    let (mut ours, theirs) = UnixStream::pair().context("make a socket pair")?;
    let mut child = Command::new("/proc/self/exe")
        .args([ARGUMENT, &run_id.0])
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start the holder of the write tracking")?;
    let told = tell(&mut ours, trackers.iter());
    let mut answer = Vec::new();
    // A holder that cannot hold may say so before it has heard everything.
    match (
        Read::by_ref(&mut ours).take(1).read_to_end(&mut answer),
        answer.as_slice(),
    ) {
        (Ok(_), [READY]) => told.context("hand the write tracking on to its holder")?,
        (Ok(_), [FAILED]) => return Err(failure_of_holder(&mut ours)),
        (read, _) => {
            let status = child
                .wait()
                .context("wait for the holder of the write tracking")?;
            read.with_context(|| format!("hear the holder of the write tracking ({status})"))?;
            bail!("the holder of the write tracking answers {answer:?} and ends with {status}");
        }
    }
    // It outlives us and is reaped by whoever inherits it.
    drop(child);
    Ok(Holder(ours))
}

/// What a holder says after `FAILED`.
fn failure_of_holder(from: &mut UnixStream) -> anyhow::Error {
    let mut said = Vec::new();
    // It ends by a reset when it has not heard all that we told it; what it said is there.
    let read = from.read_to_end(&mut said);
    let error = match (said.split_first_chunk(), read) {
        (Some((errno, what)), _) => {
            let what = String::from_utf8_lossy(what).into_owned();
            match i32::from_ne_bytes(*errno) {
                0 => anyhow::Error::msg(what),
                errno => anyhow::Error::from(Errno::from_raw(errno)).context(what),
            }
        }
        (None, Err(error)) => anyhow::Error::from(error).context("it does not say why"),
        (None, Ok(_)) => anyhow::Error::msg("it does not say why"),
    };
    error.context("start the holder of the write tracking")
}

impl Holder {
    /// The dump is complete.
    pub fn commit(mut self) -> Result<()> {
        self.0.write_all(&[COMMIT]).context("tell the holder")
    }
}

/// Takes the trackers of the dump with this run id from its holder; `None` if it has none.
pub fn take(run_id: &RunId) -> Result<Option<Trackers>> {
    let trackers = ask(run_id, ANYWAY)?;
    Ok(trackers.map(Trackers::new))
}

/// Ends the tracking of a task by whatever holder has it, for a dump that knows of no dump before:
/// what is tracked looks like the program's own userfaultfd. False if there is none.
pub fn end_tracking(pid: HostPid) -> Result<bool> {
    let question = format!("{pid} {}", super::start_time(pid)?);
    let mut is_ended = false;
    for process in std::fs::read_dir("/proc").context("list /proc")? {
        let Ok(cmdline) = std::fs::read(process?.path().join("cmdline")) else {
            continue;
        };
        let mut words = cmdline.split(|byte| *byte == 0).skip(1);
        if words.next() != Some(ARGUMENT.as_bytes()) {
            continue;
        }
        let run_id = words.next().unwrap_or_default();
        let run_id = RunId(String::from_utf8_lossy(run_id).into_owned());
        match ask(&run_id, &question)? {
            // It is about to end, or dies while we ask: it may have been the one.
            None => is_ended = true,
            Some(trackers) if trackers.is_empty() => {}
            Some(_) => return Ok(true),
        }
    }
    Ok(is_ended)
}

/// What a holder hands over; `None` if there is no such holder, or none any more.
fn ask(run_id: &RunId, question: &str) -> Result<Option<Vec<Tracker>>> {
    let Ok(mut stream) = UnixStream::connect_addr(&address(run_id)?) else {
        return Ok(None);
    };
    let holder = match peer_of(&stream) {
        Err(error) if is_of_death(&error) => return Ok(None),
        holder => holder?,
    };
    match writeln!(stream, "{question}") {
        // What it has said is still there to be read.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.context("ask the holder")?,
    }
    let trackers = receive(&stream, &holder)?;
    drop(stream);
    if trackers.as_ref().is_none_or(|some| !some.is_empty()) {
        // While it has its copies, giving up ours would end nothing. One that has broken off is
        // dying, and the tracking with it.
        let mut dead = [PollFd::new(holder.as_fd(), PollFlags::POLLIN)];
        let ended = poll(&mut dead, MOST_PATIENCE).context("wait for the end of the holder")?;
        ensure!(ended == 1, "the holder {} does not end", holder.pid());
    }
    Ok(trackers)
}

fn address(run_id: &RunId) -> Result<SocketAddr> {
    let name = format!("crust-dump/{}", run_id.0);
    SocketAddr::from_abstract_name(name).context("name the holder's socket")
}

/// One line for each tracker, `pid start-time descriptor`, and an empty one.
fn tell<'t>(to: &mut UnixStream, trackers: impl Iterator<Item = &'t Tracker>) -> Result<()> {
    let mut text = String::new();
    for tracker in trackers {
        let (pid, start, fd) = (
            tracker.pid(),
            tracker.start_time(),
            tracker.uffd().as_raw_fd(),
        );
        text.push_str(&format!("{pid} {start} {fd}\n"));
    }
    text.push('\n');
    Ok(to.write_all(text.as_bytes())?)
}

/// Who is at the other end. It must be ours: its descriptors become part of a dump.
fn peer_of(stream: &UnixStream) -> Result<PidFd> {
    let peer = getsockopt(stream, PeerCredentials).context("ask who is at the other end")?;
    ensure!(
        peer.uid() == nix::unistd::geteuid().as_raw(),
        "the other end of the holder's socket belongs to user {}",
        peer.uid()
    );
    let process = HostPid::new(peer.pid()).context("the holder is in another pid namespace")?;
    Ok(PidFd::open(process)?)
}

/// Whether the kernel says that there is no such process.
fn is_of_death(error: &anyhow::Error) -> bool {
    let errno = error.downcast_ref().map(|error: &TaskError| error.errno);
    errno == Some(Errno::ESRCH)
}

/// Copies what the process at the other end tells of; `None` if it breaks off, because it dies.
fn receive(from: &UnixStream, process: &PidFd) -> Result<Option<Vec<Tracker>>> {
    let mut trackers = Vec::new();
    for line in BufReader::new(from).lines() {
        let line = match line {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
            line => line.context("read from the holder's socket")?,
        };
        if line.is_empty() {
            return Ok(Some(trackers));
        }
        let mut words = line.split(' ').map(str::parse::<u64>);
        let mut word = || words.next().and_then(Result::ok);
        let (Some(pid), Some(start), Some(fd)) = (word(), word(), word()) else {
            bail!("the holder says '{line}'");
        };
        let pid = i32::try_from(pid).ok().and_then(HostPid::new);
        let pid = pid.with_context(|| format!("the holder says '{line}'"))?;
        let uffd = process.take(i32::try_from(fd).unwrap_or(-1));
        let uffd = uffd.with_context(|| format!("take over the tracker of task {pid}"))?;
        trackers.push(Tracker::from_parts(pid, start, uffd));
    }
    Ok(None)
}

/// The life of a holder; its standard input is the socket of the dump that started it.
pub fn hold(run_id: &str) -> Result<()> {
    let mut dump = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let (trackers, listener) = match begin(run_id, &dump) {
        Ok(begun) => begun,
        Err(error) => {
            let failure = failure_of(error, Code::Track);
            let errno = failure.errno().map_or(0, |errno| errno as i32);
            // Nobody else is there to be told.
            dump.write_all(&[FAILED])?;
            dump.write_all(&errno.to_ne_bytes())?;
            return Ok(dump.write_all(failure.sentence().as_bytes())?);
        }
    };
    dump.write_all(&[READY])?;
    let mut said = [0];
    if dump.read(&mut said)? == 0 || said != [COMMIT] {
        return Ok(());
    }
    drop(dump);
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2_stdin(null)?;
    wait(&listener, trackers)
}

/// Everything that can fail before the dump is told that its trackers are held.
fn begin(run_id: &str, dump: &UnixStream) -> Result<(Vec<Tracker>, UnixListener)> {
    nix::unistd::setsid().context("begin a session: setsid")?;
    let trackers = receive(dump, &peer_of(dump)?)?.context("the dump has broken off")?;
    let listener = UnixListener::bind_addr(&address(&RunId(run_id.to_owned()))?);
    Ok((trackers, listener.context("listen at its socket")?))
}

/// Until the next dump has taken over, or nobody is left to be tracked.
fn wait(listener: &UnixListener, trackers: Vec<Tracker>) -> Result<()> {
    let mut alive = Vec::new();
    for tracker in trackers {
        let Ok(pidfd) = PidFd::open(tracker.pid()) else {
            continue;
        };
        if super::start_time(tracker.pid()).ok() == Some(tracker.start_time()) {
            alive.push((tracker, pidfd));
        }
    }
    while !alive.is_empty() {
        let tasks = alive.iter().map(|(_, pidfd)| pidfd.as_fd());
        let all = std::iter::once(listener.as_fd()).chain(tasks);
        let mut polled: Vec<PollFd> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut polled, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other.context("poll")?,
        };
        let ready: Vec<bool> = polled.iter().map(|fd| fd.any() == Some(true)).collect();
        if ready.first() == Some(&true) && hand_over(listener, &alive)? {
            return Ok(());
        }
        let mut dead = ready.into_iter().skip(1);
        alive.retain(|_| dead.next() != Some(true));
    }
    Ok(())
}

/// True when a dump of ours has taken everything.
fn hand_over(listener: &UnixListener, alive: &[(Tracker, PidFd)]) -> Result<bool> {
    let (mut stream, _) = listener.accept().context("accept")?;
    let peer = getsockopt(&stream, PeerCredentials).context("ask who connects")?;
    if peer.uid() != nix::unistd::geteuid().as_raw() {
        return Ok(false);
    }
    let mut question = String::new();
    if BufReader::new(&stream).read_line(&mut question).is_err() {
        return Ok(false);
    }
    let question = question.trim_end();
    let is_meant = |tracker: &Tracker| {
        let task = format!("{} {}", tracker.pid(), tracker.start_time());
        question == ANYWAY || question == task
    };
    let trackers = || alive.iter().map(|(tracker, _)| tracker);
    if !trackers().any(is_meant) {
        // A failure is the other's loss.
        let _ = tell(&mut stream, std::iter::empty());
        return Ok(false);
    }
    let told = tell(&mut stream, trackers());
    // It closes when it has taken its copies.
    let mut nothing = Vec::new();
    Ok(told.is_ok() && stream.read_to_end(&mut nothing).is_ok())
}
