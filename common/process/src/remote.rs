//! System calls run inside a stopped task that must live on unharmed if we are killed between any
//! two of our instructions.
//!
//! The code (stub.rs) goes into zero bytes at the end of an executable mapping, by choice the
//! vdso; the table into the part of the main stack that no thread uses. From the moment a thread's
//! registers point into the stub, running it without a tracer leads back to the thread's own code:
//! the batch ends in a fixed tail that restores the signal mask and heals the registers. While we
//! live, the tail's first entry hands the thread back to us: tgkill of itself with a signal that
//! the program does not catch is a signal-delivery-stop under a tracer and nothing without one.
//! Several threads may be inside at once, each with a table of its own ([`run_together`]): on a
//! busy machine it is the waiting for one thread after the other that takes the time.
//!
//! The order of our own steps matters and is argued where it is made. With us killed at random
//! instants 0 of 600 targets died, against 133 to 164 of 200 with a batch that ends in a breakpoint.

mod lend;

use crate::batch::{Arg, Batch};
use crate::error::{Error, Result};
use crate::memory::TaskMem;
use crate::pid::HostPid;
use crate::proc::maps::{MapsVma, VmaName};
use crate::regs::Regs;
use crate::stub;
use crate::tracee::{self, SigSet, Stop, Stopped, Wait};
use nix::errno::Errno;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

const PAGE: u64 = 4096;
/// What a table may take of the stack. 64 sigactions with their results need 6 KiB; without us a
/// signal handler may run on the rest, while the thread takes its registers out of the tail.
const TABLE_PAGES: u64 = 4;
/// Selector of 64-bit user code (arch/x86/include/asm/segment.h).
const USER_CS: u64 = 0x33;
/// Tables that a task with many threads may have.
const MOST_TABLES: u64 = 8;
/// Bytes of the tail: three calls, the healing entry with its words.
const TAIL: usize = 3 * stub::HEAL_ENTRY + 8 + stub::HEAL_WORDS * 8;
/// What stands in place of an answer until the call has answered. No call answers this.
const UNANSWERED: [u8; 8] = 0x5a5a_5a5a_0000_0001_u64.to_le_bytes();
/// Behind the tail: the signal mask, the shadowed sigaction, an ignoring one, and the mark.
const TAIL_DATA: usize = 8 + 2 * SIGACTION + MARK.len();
/// Ends every table, so that the table of a killed dumper is known for dead bytes.
const MARK: &[u8; 16] = b"crust call table";
/// Bytes of the kernel's struct sigaction on x86_64: handler, flags, restorer, mask.
const SIGACTION: usize = 32;
const IGNORE_HANDLER: u64 = libc::SIG_IGN as u64;
const SIG_SETMASK: u64 = 2;
/// Ignored by default: the candidates for the hand-back. Others would kill without a tracer.
const HARMLESS: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];

/// What a task's mappings say about where the stub may go. Filled from /proc/PID/maps.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// Executable mappings to look for zero bytes at the end of, best first.
    pub code: Vec<Range<u64>>,
    /// The main stack.
    pub stack: Range<u64>,
    /// The stack pointer of the main thread.
    pub main_rsp: u64,
    /// Signals with a handler, from SigCgt of /proc/PID/status.
    pub caught: SigSet,
}

impl Site {
    /// The vdso first, whose last bytes are unused, then the code of files.
    pub fn of_maps<'m>(
        maps: impl Iterator<Item = &'m MapsVma> + Clone,
        main_rsp: u64,
        caught: SigSet,
    ) -> Site {
        let range = |vma: &MapsVma| vma.start..vma.end;
        let named = |name: VmaName| maps.clone().filter(move |vma| vma.name == name);
        let is_code = |vma: &&MapsVma| {
            vma.perms.exec && !vma.perms.shared && matches!(vma.name, VmaName::Path { .. })
        };
        let code = named(VmaName::Vdso).chain(maps.clone().filter(is_code));
        Site {
            code: code.map(range).collect(),
            // Empty if the task has unmapped it.
            stack: named(VmaName::Stack).next().map_or(0..0, range),
            main_rsp,
            caught,
        }
    }
}

/// The stub placed in a task. Nothing of the task is changed but dead bytes, which
/// [`Remote::close`] puts back.
#[derive(Debug)]
pub struct Remote<'m> {
    mem: &'m TaskMem,
    tgid: HostPid,
    code: u64,
    /// One for each thread that may be inside at the same time, lowest first.
    tables: Vec<Range<u64>>,
    saved_tables: Vec<u8>,
    caught: SigSet,
    closed: bool,
    /// A thread could not be taken out: it leads itself out by what is written, which must stay.
    occupied: AtomicBool,
}

/// A thread that goes into the stub with its first batch and is inside between batches.
#[derive(Debug)]
pub struct Entered<'r, 'm> {
    remote: &'r Remote<'m>,
    thread: &'r mut Stopped,
    table: Range<u64>,
    own: Regs,
    mask: SigSet,
    signal: i32,
    shadowed: bool,
    inside: bool,
    left: bool,
}

impl<'m> Remote<'m> {
    /// Places the stub. `mem` is the task's, all of whose threads are stopped; `at_once` is how
    /// many of them should run at the same time. There may be room for fewer, not for none.
    pub fn place(mem: &'m TaskMem, site: &Site, at_once: usize) -> Result<Remote<'m>> {
        let code = find_code(mem, &site.code)?;
        let tables = find_tables(mem, site, at_once)?;
        let mut saved_tables = Vec::new();
        for table in &tables {
            let mut saved = vec![0; (table.end - table.start) as usize];
            mem.read_exact_at(table.start, &mut saved)?;
            if saved.ends_with(MARK) {
                saved.fill(0);
            }
            saved_tables.append(&mut saved);
        }
        mem.write_all_at(code, stub::heal())?;
        Ok(Remote {
            mem,
            tgid: mem.pid(),
            code,
            tables,
            saved_tables,
            caught: site.caught,
            closed: false,
            occupied: AtomicBool::new(false),
        })
    }

    /// The bytes of the task that differ from its own until [`Remote::close`]: where the code is
    /// (zero bytes) and where the tables are, with what was there.
    pub fn borrowed(&self) -> [(u64, Vec<u8>); 2] {
        [
            (self.code, vec![0; stub::heal().len()]),
            (self.tables_at(), self.saved_tables.clone()),
        ]
    }

    /// Where a `syscall` instruction is, for a child that is led call by call: behind a clone that
    /// has [`stub::ENDS_CHILD`] its child ends.
    pub fn gadget(&self) -> u64 {
        self.code + stub::heal_gadget()
    }

    /// How many threads may be inside at the same time.
    pub fn room(&self) -> usize {
        self.tables.len()
    }

    /// Prepares a thread of the task for the stub, with the table of this number (below
    /// [`Remote::room`]), which no other thread has now. `own` are the registers with which the
    /// thread shall go on, `mask` the signals it blocks.
    pub fn enter<'r>(
        &'r self,
        table: usize,
        thread: &'r mut Stopped,
        own: &Regs,
        mask: SigSet,
    ) -> Result<Entered<'r, 'm>> {
        if own.0.cs != USER_CS {
            // The stub is 64-bit code, and would be something else to this thread.
            let doing = "run system calls in a thread that runs 32-bit code";
            return Err(Error::new(thread.tid(), doing, Errno::ENOEXEC));
        }
        let (signal, shadowed) = self.hand_back_signal(mask);
        let no_table = || Error::new(thread.tid(), "find it a table", Errno::EINVAL);
        let table = self.tables.get(table).cloned().ok_or_else(no_table)?;
        Ok(Entered {
            remote: self,
            thread,
            table,
            own: *own,
            mask,
            signal,
            shadowed,
            inside: false,
            left: false,
        })
    }

    /// Whether a thread that blocks these signals has to be alone in the stub: the action of its
    /// hand-back signal, which all threads share, is set aside meanwhile.
    pub fn must_be_alone(&self, mask: SigSet) -> bool {
        self.hand_back_signal(mask).1
    }

    /// Puts the borrowed bytes back. Every thread must have left.
    pub fn close(mut self) -> Result<()> {
        self.closed = true;
        self.put_back()
    }

    fn put_back(&self) -> Result<()> {
        if self.occupied.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.mem
            .write_all_at(self.tables_at(), &self.saved_tables)?;
        self.mem
            .write_all_at(self.code, &vec![0; stub::heal().len()])
    }

    fn tables_at(&self) -> u64 {
        self.tables.first().map_or(0, |table| table.start)
    }

    /// A signal that does nothing to the program when nobody traces it. Only a program that
    /// catches all three (Go's runtime does) needs one of its actions shadowed for the time.
    fn hand_back_signal(&self, mask: SigSet) -> (i32, bool) {
        let free = |signal: &&i32| (self.caught | mask) & (1 << (**signal - 1)) == 0;
        match HARMLESS.iter().find(free) {
            Some(signal) => (*signal, false),
            None => (libc::SIGURG, true),
        }
    }
}

impl Drop for Remote<'_> {
    /// The safety net of an early return; an error here has nobody to go to, and the bytes are
    /// dead ones.
    fn drop(&mut self) {
        if !self.closed {
            let _ = self.put_back();
        }
    }
}

impl Entered<'_, '_> {
    /// The thread.
    pub fn tid(&self) -> HostPid {
        self.thread.tid()
    }

    /// Runs a batch in the thread. Results and buffers are in the batch afterwards.
    pub fn run(&mut self, batch: &mut Batch) -> Result<()> {
        run_together(&mut [(self, batch)])
    }

    /// The action of the hand-back signal, and its number, if it is shadowed: what the task's own
    /// rt_sigaction would tell was put there by us.
    pub fn shadowed_action(&self) -> Result<Option<(i32, [u8; SIGACTION])>> {
        if !self.shadowed {
            return Ok(None);
        }
        let mut action = [0; SIGACTION];
        self.remote
            .mem
            .read_exact_at(self.shadow_at(), &mut action)?;
        Ok(Some((self.signal, action)))
    }

    /// Takes the thread out of the stub: it will go on with the registers given at the entry.
    pub fn leave(mut self) -> Result<()> {
        self.left = true;
        self.take_out()
    }

    /// A thread that the kernel does not let us take out goes by itself when it is let go, as if we
    /// were dead: so the code and the tables stay.
    fn take_out(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.inside) {
            return Ok(());
        }
        let taken = self.try_take_out();
        if taken.is_err() {
            self.remote.occupied.store(true, Ordering::Relaxed);
        }
        taken
    }

    fn try_take_out(&mut self) -> Result<()> {
        if self.shadowed {
            self.put_back_action()?;
            self.shadowed = false;
        }
        // The mask first: until the registers are the thread's own, it is the tail that would run
        // without us, and that sets the same mask. Once more if that is refused: a task that was
        // stopped would run its tail, and be as it was, only when somebody continues it.
        let put_back = self.thread.set_sigmask(self.mask);
        put_back.or_else(|_| self.thread.set_sigmask(self.mask))?;
        let put_back = self.thread.set_regs(&self.own);
        put_back.or_else(|_| self.thread.set_regs(&self.own))
    }

    /// Behind this call the hand-back signal means something to the program again, so it cannot
    /// hand back. The thread sleeps instead until we interrupt it, or for a moment if we are dead;
    /// pselect6 is a sleep that leaves the thread's restart_block alone.
    fn put_back_action(&mut self) -> Result<()> {
        const UNTOUCHED: u64 = 0x7fff_0000;
        const MOMENT: [u64; 2] = [0, 100_000_000];
        let start = self.table.start;
        let timeout_at = start + 3 * stub::HEAL_ENTRY as u64;
        let mut bytes = Vec::new();
        let signal = self.signal as u64;
        push_entry(
            &mut bytes,
            libc::SYS_rt_sigaction,
            [signal, self.shadow_at(), 0, 8, 0, 0],
        );
        let ret_at = start + bytes.len() as u64 - 8;
        bytes.truncate(bytes.len() - 8);
        bytes.extend_from_slice(&UNTOUCHED.to_le_bytes());
        push_entry(&mut bytes, libc::SYS_pselect6, [0, 0, 0, 0, timeout_at, 0]);
        push_entry(
            &mut bytes,
            stub::JUMP as i64,
            [self.quiet_tail_at(), 0, 0, 0, 0, 0],
        );
        MOMENT
            .iter()
            .for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        self.remote.mem.write_all_at(start, &bytes)?;
        self.thread.set_sigmask(!0)?;
        self.thread.set_regs(&self.regs_at(start))?;
        self.thread.resume()?;
        while self.remote.mem.read_u64(ret_at)? == UNTOUCHED {
            std::thread::yield_now();
        }
        let tid = self.thread.tid();
        tracee::interrupt(tid)?;
        match tracee::wait_blocking(tid)? {
            Wait::Stopped(stop) => self.thread.stopped_again(stop),
            Wait::Exited(_) => {
                return Err(Error::new(tid, "put back a signal action", Errno::ESRCH));
            }
        }
        Ok(())
    }

    fn room(&self) -> usize {
        (self.tail_at() - self.table.start) as usize
    }

    fn data_at(&self) -> u64 {
        self.table.end - TAIL_DATA as u64
    }

    fn tail_at(&self) -> u64 {
        self.data_at() - TAIL as u64
    }

    /// The part of the tail that sets the mask and heals: all there is to do for a thread whose
    /// signal actions are its own.
    fn quiet_tail_at(&self) -> u64 {
        self.tail_at() + 2 * stub::HEAL_ENTRY as u64
    }

    fn shadow_at(&self) -> u64 {
        self.data_at() + 8
    }

    fn ignore_at(&self) -> u64 {
        self.shadow_at() + SIGACTION as u64
    }

    /// The thread's own registers, but in the stub with the table at `rbx`. orig_rax is -1, or the
    /// kernel would restart the interrupted call over our rax and rip.
    fn regs_at(&self, table: u64) -> Regs {
        let mut regs = self.own;
        regs.0.rip = self.remote.code;
        regs.0.rbx = table;
        regs.0.rax = 0;
        regs.0.orig_rax = u64::MAX;
        regs
    }

    fn tail_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(TAIL + TAIL_DATA);
        let (tgid, tid) = (
            self.remote.tgid.get() as u64,
            self.thread.tid().get() as u64,
        );
        let signal = self.signal as u64;
        push_entry(&mut bytes, libc::SYS_tgkill, [tgid, tid, signal, 0, 0, 0]);
        // A program without a shadowed action gets a harmless call in its place.
        if self.shadowed {
            let args = [signal, self.shadow_at(), 0, 8, 0, 0];
            push_entry(&mut bytes, libc::SYS_rt_sigaction, args);
        } else {
            push_entry(&mut bytes, libc::SYS_getpid, [0; 6]);
        }
        let args = [SIG_SETMASK, self.data_at(), 0, 8, 0, 0];
        push_entry(&mut bytes, libc::SYS_rt_sigprocmask, args);
        let r = self.own.resumed_in_place().0;
        let healed = [
            stub::HEAL,
            r.r15,
            r.r14,
            r.r13,
            r.r12,
            r.rbp,
            r.rbx,
            r.r11,
            r.r10,
            r.r9,
            r.r8,
            r.rax,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            r.rip,
            r.cs,
            r.eflags,
            r.rsp,
            r.ss,
        ];
        healed
            .iter()
            .for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        debug_assert_eq!(bytes.len(), TAIL);
        bytes.extend_from_slice(&self.mask.to_le_bytes());
        bytes.resize(bytes.len() + SIGACTION, 0);
        bytes.extend_from_slice(&IGNORE_HANDLER.to_le_bytes());
        bytes.resize(TAIL + TAIL_DATA - MARK.len(), 0);
        bytes.extend_from_slice(MARK);
        bytes
    }

    /// Writes the tail, the first time, and the calls of a chunk, and lets the thread run them.
    fn start(&mut self, batch: &Batch, chunk: &mut Chunk) -> Result<()> {
        let mem = self.remote.mem;
        if !self.inside {
            mem.write_all_at(self.tail_at(), &self.tail_bytes())?;
        }
        let start = self.table.start;
        let mut bytes = Vec::with_capacity(chunk.len);
        if let Some(args) = self.shadowing(chunk)? {
            push_entry(&mut bytes, libc::SYS_rt_sigaction, args);
        }
        chunk.first = bytes.len();
        let address = |arg: Arg| match arg {
            Arg::Val(value) => value,
            Arg::Buf(id) => start + (chunk.buffers_at() + chunk.offset_of(id.0)) as u64,
        };
        for call in &batch.calls[chunk.calls.clone()] {
            push_entry(&mut bytes, call.nr, call.args.map(address));
        }
        let last_answer = bytes.len() - UNANSWERED.len();
        bytes[last_answer..].copy_from_slice(&UNANSWERED);
        push_entry(
            &mut bytes,
            stub::JUMP as i64,
            [self.tail_at(), 0, 0, 0, 0, 0],
        );
        for (id, _) in &chunk.buffers {
            bytes.extend_from_slice(&batch.bufs[*id]);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        mem.write_all_at(start, &bytes)?;
        self.thread.set_regs(&self.regs_at(start))?;
        if !self.inside {
            // The registers point at the table before the mask changes: the tail restores the
            // mask, so there is no instant at which our death would leave signals blocked.
            self.inside = true;
            self.thread.set_sigmask(!(1 << (self.signal - 1)))?;
        }
        self.thread.resume()
    }

    /// The arguments of the first entry of all, in a program that catches every harmless signal:
    /// the tail may put back only what this one has saved. Said again by later batches it would
    /// save our own action, so it runs only while the shadow is still empty.
    fn shadowing(&self, chunk: &Chunk) -> Result<Option<[u64; 6]>> {
        if !self.shadowed || chunk.calls.start != 0 {
            return Ok(None);
        }
        let untouched = self
            .shadowed_action()?
            .is_some_and(|(_, action)| action == [0; SIGACTION]);
        let (ignore, shadow) = (self.ignore_at(), self.shadow_at());
        Ok(untouched.then_some([self.signal as u64, ignore, shadow, 8, 0, 0]))
    }

    /// Waits until the thread has run what [`Entered::start`] began, and takes the answers over.
    fn finish(&mut self, batch: &mut Batch, chunk: &Chunk) -> Result<()> {
        let mut bytes = vec![0; chunk.len];
        loop {
            self.wait_until_handed_back()?;
            self.remote
                .mem
                .read_exact_at(self.table.start, &mut bytes)?;
            let last_answer = chunk.answer_at(chunk.calls.len() - 1);
            if bytes[last_answer..][..8] != UNANSWERED {
                break;
            }
            // A signal of the same number from outside: the calls are not done.
            self.thread.resume()?;
        }
        for (index, call) in batch.calls[chunk.calls.clone()].iter_mut().enumerate() {
            let at = chunk.answer_at(index);
            call.ret = i64::from_le_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
        }
        for (id, offset) in &chunk.buffers {
            let buffer = &mut batch.bufs[*id];
            let at = chunk.buffers_at() + offset;
            let len = buffer.len();
            buffer.copy_from_slice(&bytes[at..at + len]);
        }
        Ok(())
    }

    /// Waits until the tail's tgkill, or a signal of the same number, brings the thread back.
    fn wait_until_handed_back(&mut self) -> Result<()> {
        let tid = self.thread.tid();
        loop {
            match tracee::wait_blocking(tid)? {
                Wait::Stopped(Stop::Signal(signal)) if signal == self.signal => {
                    // Ours, or one from outside that the program ignores: either way it is not
                    // to be delivered.
                    self.thread.drop_signal();
                    return Ok(());
                }
                // SIGSTOP cannot be blocked: let it stop the process as it would have, and go on
                // inside; the kernel stops the thread again when we detach.
                Wait::Stopped(stop @ Stop::Signal(libc::SIGSTOP)) => {
                    self.thread.stopped_again(stop)
                }
                Wait::Stopped(Stop::Group(_) | Stop::Trap) => {}
                Wait::Stopped(Stop::Signal(signal)) => {
                    let doing = format!("run system calls: unexpected signal {signal}");
                    return Err(Error::new(tid, doing, Errno::EPROTO));
                }
                Wait::Stopped(Stop::Event(event)) => {
                    let doing = format!("run system calls: unexpected ptrace event {event}");
                    return Err(Error::new(tid, doing, Errno::EPROTO));
                }
                Wait::Exited(_) => {
                    return Err(Error::new(
                        tid,
                        "run system calls: killed meanwhile",
                        Errno::ESRCH,
                    ));
                }
            }
            self.thread.resume()?;
        }
    }
}

/// Runs a batch in each of these threads, all at the same time.
pub fn run_together(jobs: &mut [(&mut Entered<'_, '_>, &mut Batch)]) -> Result<()> {
    let mut from = vec![0; jobs.len()];
    loop {
        let mut running = Vec::new();
        let mut failed = None;
        for (job, (entered, batch)) in jobs.iter_mut().enumerate() {
            if from[job] >= batch.calls.len() {
                continue;
            }
            let chunk = Chunk::plan(batch, from[job], entered.room());
            match chunk.and_then(|mut chunk| entered.start(batch, &mut chunk).map(|()| chunk)) {
                Ok(chunk) => running.push((job, chunk)),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let done = running.is_empty();
        // Those that run are waited for even then: nobody sets a running thread's registers.
        for (job, chunk) in running {
            let (entered, batch) = &mut jobs[job];
            match entered.finish(batch, &chunk) {
                Ok(()) => from[job] = chunk.calls.end,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) => return Err(error),
            None if done => return Ok(()),
            None => {}
        }
    }
}

impl Drop for Entered<'_, '_> {
    /// The safety net of an early return: if even this fails the thread is gone, or heals itself
    /// by the tail.
    fn drop(&mut self) {
        if !self.left {
            let _ = self.take_out();
        }
    }
}

/// Calls of a batch that fit the table together with their buffers.
#[derive(Debug)]
struct Chunk {
    calls: Range<usize>,
    /// Buffers used, with their offsets from the first.
    buffers: Vec<(usize, usize)>,
    /// Most bytes of the table that it takes.
    len: usize,
    /// Offset of its first call in the table.
    first: usize,
}

impl Chunk {
    fn plan(batch: &Batch, from: usize, room: usize) -> Result<Chunk> {
        // The shadowing entry and the jump.
        let fixed = 2 * stub::HEAL_ENTRY;
        let mut chunk = Chunk {
            calls: from..from,
            buffers: Vec::new(),
            len: fixed,
            first: 0,
        };
        let mut buffers_len = 0;
        for call in &batch.calls[from..] {
            let mut more = Vec::new();
            let mut more_len = 0;
            for arg in call.args {
                if let Arg::Buf(id) = arg
                    && !chunk
                        .buffers
                        .iter()
                        .chain(&more)
                        .any(|(known, _)| *known == id.0)
                {
                    more.push((id.0, buffers_len + more_len));
                    more_len += batch.bufs[id.0].len().next_multiple_of(8);
                }
            }
            let len = chunk.len + stub::HEAL_ENTRY + more_len;
            if len > room {
                break;
            }
            chunk.len = len;
            chunk.calls.end += 1;
            chunk.buffers.extend(more);
            buffers_len += more_len;
        }
        if chunk.calls.is_empty() {
            let doing = format!("fit a system call's buffers into {room} bytes");
            return Err(Error::new(HostPid::current(), doing, Errno::E2BIG));
        }
        Ok(chunk)
    }

    /// Where a call, counted in the chunk, has its answer in the table.
    fn answer_at(&self, call: usize) -> usize {
        self.first + (call + 1) * stub::HEAL_ENTRY - 8
    }

    /// Buffers lie behind the calls and the jump.
    fn buffers_at(&self) -> usize {
        self.first + (self.calls.len() + 1) * stub::HEAL_ENTRY
    }

    fn offset_of(&self, buffer: usize) -> usize {
        self.buffers
            .iter()
            .find(|(id, _)| *id == buffer)
            .map_or(0, |(_, offset)| *offset)
    }
}

fn push_entry(bytes: &mut Vec<u8>, nr: i64, args: [u64; 6]) {
    bytes.extend_from_slice(&nr.to_le_bytes());
    args.iter()
        .for_each(|arg| bytes.extend_from_slice(&arg.to_le_bytes()));
    bytes.extend_from_slice(&[0; 8]);
}

/// The first mapping whose last bytes are zero for the length of the stub.
fn find_code(mem: &TaskMem, mappings: &[Range<u64>]) -> Result<u64> {
    let len = stub::heal().len().next_multiple_of(16) as u64;
    for mapping in mappings
        .iter()
        .filter(|mapping| mapping.end - mapping.start >= PAGE)
    {
        let mut end = vec![0; len as usize];
        mem.read_exact_at(mapping.end - len, &mut end)?;
        if end.iter().all(|byte| *byte == 0) || is_left_over_stub(&end) {
            return Ok(mapping.end - len);
        }
    }
    let doing = "find room for the stub: no executable mapping ends in zero bytes";
    Err(Error::new(mem.pid(), doing, Errno::ENOSPC))
}

/// A dumper that was killed leaves its code behind, which no thread runs any more.
fn is_left_over_stub(bytes: &[u8]) -> bool {
    bytes.starts_with(stub::heal())
}

/// The lowest pages of the main stack, which a program reaches last. They are dead if they are
/// all zero, or if the main thread's stack pointer is on this stack and above them by more than
/// the red zone (System V ABI 3.2.2); what they hold is put back afterwards all the same. More
/// than one table is made only in the second case.
fn find_tables(mem: &TaskMem, site: &Site, at_once: usize) -> Result<Vec<Range<u64>>> {
    const CLEARANCE: u64 = 2 * PAGE;
    const TABLE: u64 = TABLE_PAGES * PAGE;
    let stack = &site.stack;
    let own = stack.contains(&site.main_rsp);
    let limit = if own {
        site.main_rsp.saturating_sub(CLEARANCE).min(stack.end)
    } else {
        stack.end
    };
    for pages in (1..=TABLE_PAGES).rev() {
        let table = stack.start..stack.start + pages * PAGE;
        if table.end > limit {
            continue;
        }
        if own {
            let fit = (limit - stack.start) / TABLE;
            let tables = fit.min(at_once as u64).min(MOST_TABLES);
            let more = (1..tables).map(|nth| stack.start + nth * TABLE);
            let more = more.map(|start| start..start + TABLE);
            return Ok(std::iter::once(table).chain(more).collect());
        }
        let mut bytes = vec![0; (pages * PAGE) as usize];
        mem.read_exact_at(table.start, &mut bytes)?;
        if bytes.iter().all(|byte| *byte == 0) || bytes.ends_with(MARK) {
            return Ok(vec![table]);
        }
    }
    let doing = format!(
        "find room for a table on the stack {:#x}-{:#x}",
        stack.start, stack.end
    );
    Err(Error::new(mem.pid(), doing, Errno::ENOSPC))
}
