//! ptrace(2): a thread that is stopped under our hands, and what only a tracer may read or set.
//!
//! A thread is seized without PTRACE_O_EXITKILL: if the dumper dies, the kernel detaches and the
//! thread runs on with the registers it has. Whoever changes a thread must keep it fit to run on
//! at every instant; remote.rs shows how. Every request must come from the thread that seized
//! (ptrace(2)), so a `Stopped` is not `Send`.

use crate::error::{Error, Result};
use crate::pid::HostPid;
use crate::regs::Regs;
use crate::steps::step;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// PTRACE_GETSIGMASK and friends, from include/uapi/linux/ptrace.h; libc has not all of them.
const PTRACE_SEIZE: libc::c_uint = 0x4206;
const PTRACE_INTERRUPT: libc::c_uint = 0x4207;
const PTRACE_PEEKSIGINFO: libc::c_uint = 0x4209;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
const PTRACE_PEEKSIGINFO_SHARED: u32 = 1;
const PTRACE_GET_THREAD_AREA: libc::c_uint = 25;
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
const PTRACE_SECCOMP_GET_METADATA: libc::c_uint = 0x420d;
const NT_X86_XSTATE: usize = 0x202;

/// Options of a seize.
pub mod options {
    /// Kill the tracee when the tracer dies. For restore only, until its commit.
    pub const EXITKILL: u64 = 1 << 20;
    /// Filters and strict mode rest while we are attached (Linux 4.3; needs CAP_SYS_ADMIN).
    pub const SUSPEND_SECCOMP: u64 = 1 << 21;
}

/// A raw siginfo of the kernel.
pub type SigInfo = [u8; 128];

/// A signal set as the kernel has it: signal n is bit n-1.
pub type SigSet = u64;

/// Which queue of pending signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Sent to the one thread.
    Private,
    /// Sent to the whole process.
    Shared,
}

/// A registered restartable sequence (rseq(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RseqConfig {
    /// Address of the thread's `struct rseq`.
    pub pointer: u64,
    /// Its registered size in bytes.
    pub size: u32,
    /// The signature before every abort handler.
    pub signature: u32,
}

/// A seccomp filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeccompFilter {
    /// Struct sock_filter after struct sock_filter, 8 bytes each.
    pub instructions: Vec<u8>,
    /// SECCOMP_FILTER_FLAG_* as the kernel keeps them.
    pub flags: u64,
}

/// Why a thread stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// By PTRACE_INTERRUPT, or newly attached by CLONE_PTRACE.
    Trap,
    /// Its process is stopped by this signal (group-stop).
    Group(i32),
    /// This signal has been taken off the queue and waits for our decision.
    Signal(i32),
    /// Another ptrace event.
    Event(i32),
}

/// How a wait for a thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It stopped.
    Stopped(Stop),
    /// It is gone, with this raw wait status.
    Exited(i32),
}

/// A thread in a ptrace-stop. Dropping it does nothing: the owner decides between `detach` and a
/// kill, and our own death detaches.
#[derive(Debug)]
pub struct Stopped {
    tid: HostPid,
    /// A signal on its way to the thread: handed back by the next resume or by the detach.
    signal: i32,
    not_send: PhantomData<*const ()>,
}

/// Attaches to a running thread without stopping it. `options` are bits of [`options`].
pub fn seize(tid: HostPid, options: u64) -> Result<()> {
    request(PTRACE_SEIZE, tid, 0, options as usize, || {
        "PTRACE_SEIZE".into()
    })
    .map(drop)
}

/// Asks a seized thread to stop; the stop is seen by [`wait_stopped`].
pub fn interrupt(tid: HostPid) -> Result<()> {
    request(PTRACE_INTERRUPT, tid, 0, 0, || "PTRACE_INTERRUPT".into()).map(drop)
}

/// The longest sleep between two looks. A signal for the process goes to any thread that does not
/// block it (complete_signal, kernel/signal.c): in a process of which not all threads block SIGCHLD,
/// such as a test, one may be taken between a look and the sleep, and would cost the whole deadline.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Waits until a seized thread stops or is gone. SIGCHLD should be blocked in every thread of the
/// calling process, or a wake-up may come late; `None` waits for ever. ETIMEDOUT names a thread
/// that does not stop: it sleeps uninterruptibly, for example in a vfork(2) whose child has not
/// exec'ed.
pub fn wait_stopped(tid: HostPid, deadline: Option<Instant>) -> Result<Wait> {
    loop {
        match wait_once(tid, libc::WNOHANG)? {
            Some(wait) => return Ok(wait),
            None => wait_for_sigchld(tid, deadline)?,
        }
    }
}

/// Waits for a thread without a deadline, sleeping in waitpid(2) itself.
pub fn wait_blocking(tid: HostPid) -> Result<Wait> {
    loop {
        if let Some(wait) = wait_once(tid, 0)? {
            return Ok(wait);
        }
    }
}

/// Whether a thread has stopped or ended by now.
pub fn try_wait(tid: HostPid) -> Result<Option<Wait>> {
    wait_once(tid, libc::WNOHANG)
}

fn wait_once(tid: HostPid, flags: i32) -> Result<Option<Wait>> {
    step();
    let mut status = 0;
    // SAFETY: status outlives the call.
    let got = unsafe { libc::waitpid(tid.get(), &mut status, flags | libc::__WALL) };
    match Errno::result(got) {
        Ok(0) | Err(Errno::EINTR) => Ok(None),
        Ok(_) => Ok(Some(wait_of(status))),
        Err(errno) => Err(Error::new(tid, "waitpid", errno)),
    }
}

fn wait_of(status: i32) -> Wait {
    if !libc::WIFSTOPPED(status) {
        return Wait::Exited(status);
    }
    let signal = libc::WSTOPSIG(status);
    Wait::Stopped(match status >> 16 {
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Trap,
        libc::PTRACE_EVENT_STOP => Stop::Group(signal),
        event => Stop::Event(event),
    })
}

fn wait_for_sigchld(tid: HostPid, deadline: Option<Instant>) -> Result<()> {
    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
    if left == Some(Duration::ZERO) {
        return Err(Error::new(
            tid,
            "waiting for the thread to stop",
            Errno::ETIMEDOUT,
        ));
    }
    let left = left.map_or(LOOK_AGAIN, |left| left.min(LOOK_AGAIN));
    let timeout = libc::timespec {
        tv_sec: left.as_secs() as libc::time_t,
        tv_nsec: left.subsec_nanos() as libc::c_long,
    };
    let mut set = nix::sys::signal::SigSet::empty();
    set.add(Signal::SIGCHLD);
    // SAFETY: the set and the timeout outlive the call; no siginfo is asked for. A wake-up, a
    // time-out and an interruption are alike for the caller, who looks again.
    unsafe { libc::sigtimedwait(set.as_ref(), std::ptr::null_mut(), &timeout) };
    Ok(())
}

impl Stopped {
    /// Takes charge of a seized thread of which [`wait_stopped`] has just said that it stopped.
    pub fn new(tid: HostPid, stop: Stop) -> Stopped {
        let signal = match stop {
            Stop::Signal(signal) => signal,
            _ => 0,
        };
        Stopped {
            tid,
            signal,
            not_send: PhantomData,
        }
    }

    /// The thread's id.
    pub fn tid(&self) -> HostPid {
        self.tid
    }

    /// The signal that was about to be delivered when the thread stopped, 0 if none.
    pub fn signal_in_hand(&self) -> i32 {
        self.signal
    }

    /// Reads the general registers.
    pub fn regs(&self) -> Result<Regs> {
        // SAFETY: user_regs_struct is plain integers, for which zero is a value.
        let mut regs: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let data = std::ptr::from_mut(&mut regs) as usize;
        self.request(libc::PTRACE_GETREGS, 0, data, "PTRACE_GETREGS")?;
        Ok(Regs(regs))
    }

    /// Sets the general registers.
    pub fn set_regs(&self, regs: &Regs) -> Result<()> {
        let data = std::ptr::from_ref(&regs.0) as usize;
        self.request(libc::PTRACE_SETREGS, 0, data, "PTRACE_SETREGS")
            .map(drop)
    }

    /// Reads the whole extended state in the layout of XSAVE (not compacted), 576 bytes or more.
    pub fn xstate(&self) -> Result<Vec<u8>> {
        // The second is more than with the 8 KiB of AMX, the largest component there is.
        for room in [4 << 10, 32 << 10] {
            let mut area = vec![0u8; room];
            let mut iov = libc::iovec {
                iov_base: area.as_mut_ptr().cast(),
                iov_len: area.len(),
            };
            let data = std::ptr::from_mut(&mut iov) as usize;
            let what = "PTRACE_GETREGSET(NT_X86_XSTATE)";
            self.request(libc::PTRACE_GETREGSET, NT_X86_XSTATE, data, what)?;
            if iov.iov_len < room {
                area.truncate(iov.iov_len);
                return Ok(area);
            }
        }
        let doing = "PTRACE_GETREGSET(NT_X86_XSTATE): larger than any processor has it";
        Err(Error::new(self.tid, doing, Errno::E2BIG))
    }

    /// Sets the extended state from an XSAVE area as long as [`Stopped::xstate`] gives it.
    pub fn set_xstate(&self, area: &[u8]) -> Result<()> {
        let mut iov = libc::iovec {
            iov_base: area.as_ptr().cast_mut().cast(),
            iov_len: area.len(),
        };
        let data = std::ptr::from_mut(&mut iov) as usize;
        let what = "PTRACE_SETREGSET(NT_X86_XSTATE)";
        self.request(libc::PTRACE_SETREGSET, NT_X86_XSTATE, data, what)
            .map(drop)
    }

    /// The signals the thread blocks.
    pub fn sigmask(&self) -> Result<SigSet> {
        let mut mask: SigSet = 0;
        let data = std::ptr::from_mut(&mut mask) as usize;
        self.request(
            PTRACE_GETSIGMASK,
            size_of::<SigSet>(),
            data,
            "PTRACE_GETSIGMASK",
        )?;
        Ok(mask)
    }

    /// Sets the signals the thread blocks. It stays when we die: only for a thread that will set
    /// its own mask again (remote.rs), or for one being restored.
    pub fn set_sigmask(&self, mask: SigSet) -> Result<()> {
        let data = std::ptr::from_ref(&mask) as usize;
        self.request(
            PTRACE_SETSIGMASK,
            size_of::<SigSet>(),
            data,
            "PTRACE_SETSIGMASK",
        )
        .map(drop)
    }

    /// The pending signals of one queue, oldest first, without taking them.
    pub fn pending(&self, queue: Queue) -> Result<Vec<SigInfo>> {
        #[repr(C)]
        struct PeekArgs {
            off: u64,
            flags: u32,
            nr: i32,
        }
        const AT_ONCE: usize = 32;
        let mut all = Vec::new();
        loop {
            let mut infos: [SigInfo; AT_ONCE] = [[0; 128]; AT_ONCE];
            let args = PeekArgs {
                off: all.len() as u64,
                flags: if queue == Queue::Shared {
                    PTRACE_PEEKSIGINFO_SHARED
                } else {
                    0
                },
                nr: AT_ONCE as i32,
            };
            let addr = std::ptr::from_ref(&args) as usize;
            let data = infos.as_mut_ptr() as usize;
            let got = self.request(PTRACE_PEEKSIGINFO, addr, data, "PTRACE_PEEKSIGINFO")? as usize;
            all.extend_from_slice(&infos[..got.min(AT_ONCE)]);
            if got < AT_ONCE {
                return Ok(all);
            }
        }
    }

    /// The siginfo of the signal in hand.
    pub fn siginfo_in_hand(&self) -> Result<SigInfo> {
        let mut info: SigInfo = [0; 128];
        let data = info.as_mut_ptr() as usize;
        self.request(libc::PTRACE_GETSIGINFO, 0, data, "PTRACE_GETSIGINFO")?;
        Ok(info)
    }

    /// The registered restartable sequence; `None` when there is none or the kernel (before 5.13)
    /// cannot say.
    pub fn rseq(&self) -> Result<Option<RseqConfig>> {
        #[repr(C)]
        #[derive(Default)]
        struct Raw {
            pointer: u64,
            size: u32,
            signature: u32,
            flags: u32,
            pad: u32,
        }
        let mut raw = Raw::default();
        let data = std::ptr::from_mut(&mut raw) as usize;
        let what = "PTRACE_GET_RSEQ_CONFIGURATION";
        match self.request(PTRACE_GET_RSEQ_CONFIGURATION, size_of::<Raw>(), data, what) {
            Err(error) if error.errno == Errno::EIO => Ok(None),
            Err(error) => Err(error),
            Ok(_) if raw.pointer == 0 => Ok(None),
            Ok(_) => Ok(Some(RseqConfig {
                pointer: raw.pointer,
                size: raw.size,
                signature: raw.signature,
            })),
        }
    }

    /// A segment of the thread's own in the GDT (entries 12 to 14): the four words of a struct
    /// user_desc. 32-bit code uses them; `None` if the kernel has none (no IA32 emulation).
    pub fn thread_area(&self, entry: u32) -> Result<Option<[u32; 4]>> {
        let mut desc = [0u32; 4];
        let data = desc.as_mut_ptr() as usize;
        let what = "PTRACE_GET_THREAD_AREA";
        match self.request(PTRACE_GET_THREAD_AREA, entry as usize, data, what) {
            Ok(_) => Ok(Some(desc)),
            Err(error) if error.errno == Errno::EIO => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A seccomp filter of the thread and its flags (1 log... as struct seccomp_metadata has
    /// them), the oldest having index 0; `None` behind the newest. The filter is 8-byte
    /// instructions. Needs CAP_SYS_ADMIN.
    pub fn seccomp_filter(&self, index: u64) -> Result<Option<SeccompFilter>> {
        let what = "PTRACE_SECCOMP_GET_FILTER";
        let len = match self.request(PTRACE_SECCOMP_GET_FILTER, index as usize, 0, what) {
            Ok(len) => len as usize,
            Err(error) if error.errno == Errno::ENOENT => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut instructions = vec![0u8; len * 8];
        let data = instructions.as_mut_ptr() as usize;
        self.request(PTRACE_SECCOMP_GET_FILTER, index as usize, data, what)?;
        // struct seccomp_metadata: the index of the filter, its flags.
        let mut metadata = [index, 0];
        let data = metadata.as_mut_ptr() as usize;
        let what = "PTRACE_SECCOMP_GET_METADATA";
        self.request(
            PTRACE_SECCOMP_GET_METADATA,
            size_of_val(&metadata),
            data,
            what,
        )?;
        Ok(Some(SeccompFilter {
            instructions,
            flags: metadata[1],
        }))
    }

    /// Lets the thread run, with the signal in hand if any, until its next stop.
    pub fn resume(&mut self) -> Result<()> {
        let signal = std::mem::take(&mut self.signal);
        self.request(libc::PTRACE_CONT, 0, signal as usize, "PTRACE_CONT")
            .map(drop)
    }

    /// Lets the thread run until it enters or leaves a system call.
    pub fn resume_to_syscall(&mut self) -> Result<()> {
        let signal = std::mem::take(&mut self.signal);
        self.request(libc::PTRACE_SYSCALL, 0, signal as usize, "PTRACE_SYSCALL")
            .map(drop)
    }

    /// Notes the stop that followed a resume.
    pub fn stopped_again(&mut self, stop: Stop) {
        self.signal = match stop {
            Stop::Signal(signal) => signal,
            _ => 0,
        };
    }

    /// The signal in hand is dropped: it was our own, or is ignored anyway.
    pub fn drop_signal(&mut self) {
        self.signal = 0;
    }

    /// Changes the options given at the seize.
    pub fn set_options(&self, options: u64) -> Result<()> {
        self.request(
            libc::PTRACE_SETOPTIONS,
            0,
            options as usize,
            "PTRACE_SETOPTIONS",
        )
        .map(drop)
    }

    /// Lets go of the thread; a signal in hand is delivered. ESRCH is no error to the caller who
    /// knows that the thread was killed meanwhile.
    pub fn detach(self) -> Result<()> {
        self.request(
            libc::PTRACE_DETACH,
            0,
            self.signal as usize,
            "PTRACE_DETACH",
        )
        .map(drop)
    }

    fn request(&self, nr: libc::c_uint, addr: usize, data: usize, what: &str) -> Result<i64> {
        request(nr, self.tid, addr, data, || what.into())
    }
}

fn request(
    nr: libc::c_uint,
    tid: HostPid,
    addr: usize,
    data: usize,
    what: impl FnOnce() -> String,
) -> Result<i64> {
    step();
    // SAFETY: every caller in this file passes, for its request, numbers or the addresses of
    // values of the type the request reads or writes, which outlive the call. The peek requests
    // that return data in the result are not used.
    let result = unsafe { libc::ptrace(nr, tid.get(), addr, data) };
    Errno::result(result).map_err(|errno| Error::new(tid, what(), errno))
}
