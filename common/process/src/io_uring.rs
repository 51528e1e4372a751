//! Rings of io_uring(7): what one is, as far as the kernel remembers, and the same again.
//!
//! The kernel tells little of a ring in fdinfo, not even what it was made with; it is read where the
//! kernel keeps it, struct io_ring_ctx, by the places that its own type information gives. A ring is
//! idle when all requests it has ever allocated lie on its list of free ones.
//!
//! Head of the submission queue and tail of the completion queue are counts that the kernel keeps
//! for itself and that begin at 0: as many requests that do nothing (IORING_OP_NOP, with a
//! completion or without) bring a new ring to them, and messages of another ring
//! (IORING_OP_MSG_RING) to a tail that is ahead of the head. The rest is memory shared with the
//! program, which is written as it was. Numbers are those of include/uapi/linux/io_uring.h, names of
//! members those of Linux 6.18; a kernel that has others is told by their names.

use crate::btf::{Btf, Place};
use crate::kernel_memory::KernelMemory;
use nix::errno::Errno;
use serde::Serialize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Flags of io_uring_setup(2).
pub mod setup {
    pub const CQSIZE: u32 = 1 << 3;
    pub const CLAMP: u32 = 1 << 4;
    pub const R_DISABLED: u32 = 1 << 6;
    pub const SUBMIT_ALL: u32 = 1 << 7;
    pub const COOP_TASKRUN: u32 = 1 << 8;
    pub const TASKRUN_FLAG: u32 = 1 << 9;
    pub const SQE128: u32 = 1 << 10;
    pub const CQE32: u32 = 1 << 11;
    pub const SINGLE_ISSUER: u32 = 1 << 12;
    pub const DEFER_TASKRUN: u32 = 1 << 13;
    pub const NO_SQARRAY: u32 = 1 << 16;
    /// Those that a ring can be made with again.
    pub const CARRIED: u32 = CQSIZE
        | CLAMP
        | R_DISABLED
        | SUBMIT_ALL
        | COOP_TASKRUN
        | TASKRUN_FLAG
        | SQE128
        | CQE32
        | NO_SQARRAY;
    /// All names, by bit.
    pub const NAMES: [&str; 19] = [
        "IOPOLL",
        "SQPOLL",
        "SQ_AFF",
        "CQSIZE",
        "CLAMP",
        "ATTACH_WQ",
        "R_DISABLED",
        "SUBMIT_ALL",
        "COOP_TASKRUN",
        "TASKRUN_FLAG",
        "SQE128",
        "CQE32",
        "SINGLE_ISSUER",
        "DEFER_TASKRUN",
        "NO_MMAP",
        "REGISTERED_FD_ONLY",
        "NO_SQARRAY",
        "HYBRID_IOPOLL",
        "CQE_MIXED",
    ];
}

/// Offsets of mmap(2): the rings, and the entries of the submission queue.
pub const OFF_RINGS: u64 = 0;
/// The completion queue, which since Linux 5.4 is in the same memory as the submission queue.
pub const OFF_CQ: u64 = 0x800_0000;
/// The entries of the submission queue.
pub const OFF_SQES: u64 = 0x1000_0000;
/// Entries of the submission queue at the most, twice as many of the completion queue.
pub const MOST_ENTRIES: u32 = 32768;

/// Bytes before the completions, generously.
const FURTHEST: u32 = 4096;
const NOP: u8 = 0;
const MSG_RING: u8 = 40;
/// IOSQE_CQE_SKIP_SUCCESS.
const NO_COMPLETION: u8 = 1 << 6;
const CLOCK_MONOTONIC: u32 = 1;
/// Entries of the ring that sends messages.
const SENDER: u32 = 64;

/// Where the words of the rings lie, in the order head, tail, mask, entries, flags, dropped of the
/// submission queue, head, tail, mask, entries, overflow, entries' start, flags of the completion
/// queue.
pub type Layout = [u32; 13];

/// A ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ring {
    /// See [`setup`].
    pub setup: u32,
    /// Entries of the submission queue, a power of two.
    pub sq_entries: u32,
    /// Entries of the completion queue, a power of two.
    pub cq_entries: u32,
    /// How many requests have been taken.
    pub sq_head: u32,
    /// How many completions have been given.
    pub cq_tail: u32,
    /// Where the words of the rings lie.
    pub layout: Layout,
    /// The memory of the rings, zeros at its end left out.
    #[serde(skip)]
    pub rings: Vec<u8>,
    /// That of the entries of the submission queue, likewise.
    #[serde(skip)]
    pub sqes: Vec<u8>,
}

impl Ring {
    /// Whether there can be such a ring. Says what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        refuse_setup(self.setup)?;
        let (sq, cq) = (self.sq_entries, self.cq_entries);
        let sizes = sq.is_power_of_two() && cq.is_power_of_two();
        if !sizes || sq > MOST_ENTRIES || cq < sq || cq > 2 * MOST_ENTRIES {
            return Err(format!("there is no ring of {sq} and {cq} entries"));
        }
        let highest = self.layout.iter().max();
        if highest.is_none_or(|highest| *highest > FURTHEST) {
            return Err("its layout is that of no kernel".to_owned());
        }
        let disabled = self.setup & setup::R_DISABLED != 0;
        if disabled && (self.sq_head, self.cq_tail) != (0, 0) {
            return Err("it is disabled and has taken requests".to_owned());
        }
        if self.rings.len() > self.ends().1 || self.sqes.len() > self.sqes_len() {
            return Err("its memory is larger than it".to_owned());
        }
        Ok(())
    }

    fn sqe_size(&self) -> usize {
        if self.setup & setup::SQE128 != 0 {
            128
        } else {
            64
        }
    }

    fn has_array(&self) -> bool {
        self.setup & setup::NO_SQARRAY == 0
    }

    /// Where the array of indices is, and the end of all.
    fn ends(&self) -> (usize, usize) {
        let [.., cqes, _flags] = self.layout;
        // With entries of 32 bytes the kernel doubles what is before them, too (rings_size).
        let wide = u32::from(self.setup & setup::CQE32 != 0);
        let end = (cqes as usize + self.cq_entries as usize * 16) << wide;
        if !self.has_array() {
            return (end, end);
        }
        // A line of the cache.
        let array = end.next_multiple_of(64);
        (array, array + self.sq_entries as usize * 4)
    }

    fn sqes_len(&self) -> usize {
        self.sq_entries as usize * self.sqe_size()
    }
}

/// Looks at rings.
#[derive(Debug)]
pub struct Looker {
    memory: KernelMemory,
    places: Places,
}

/// Where the members lie that are read.
#[derive(Debug)]
struct Places {
    task_files: Place,
    task_uring: Place,
    files_table: Place,
    table_fds: Place,
    file_private: Place,
    flags: Place,
    sq_entries: Place,
    cq_entries: Place,
    sq_head: Place,
    cq_tail: Place,
    allocated: Place,
    free_list: Place,
    overflow: Place,
    users: Place,
    user_task: Place,
    registered: Place,
    clock: Place,
    layout: Layout,
    /// Members that are zero in a ring to which nothing was added, and what they say else.
    added: Vec<(Place, &'static str)>,
}

impl Places {
    fn of(btf: &Btf) -> Result<Places, String> {
        let (ring, rings) = (btf.structure("io_ring_ctx")?, btf.structure("io_rings")?);
        let task = btf.structure("task_struct")?;
        let ctx = |path: &str| ring.place(path);
        let word = |path: &str| Ok::<u32, String>(rings.place(path)?.offset() as u32);
        let added = [
            ("restricted", "restrictions are registered with it"),
            ("file_table.data.nr", "files are registered with it"),
            ("buf_table.nr", "buffers are registered with it"),
            ("io_ev_fd", "an eventfd is registered with it"),
            (
                "personalities.xa_head",
                "personalities are registered with it",
            ),
            (
                "io_bl_xa.xa_head",
                "rings of buffers are registered with it",
            ),
            ("zcrx_ctxs.xa_head", "it receives without copies"),
            (
                "iowq_limits_set",
                "limits of workers are registered with it",
            ),
            ("nr_drained", "requests are being drained"),
        ];
        let added = added.map(|(path, what)| Ok::<_, String>((ctx(path)?, what)));
        Ok(Places {
            task_files: task.place("files")?,
            task_uring: task.place("io_uring")?,
            files_table: btf.structure("files_struct")?.place("fdt")?,
            table_fds: btf.structure("fdtable")?.place("fd")?,
            file_private: btf.structure("file")?.place("private_data")?,
            flags: ctx("flags")?,
            sq_entries: ctx("sq_entries")?,
            cq_entries: ctx("cq_entries")?,
            sq_head: ctx("cached_sq_head")?,
            cq_tail: ctx("cached_cq_tail")?,
            allocated: ctx("nr_req_allocated")?,
            free_list: ctx("submit_state.free_list.next")?,
            overflow: ctx("cq_overflow_list.next")?,
            users: ctx("tctx_list.next")?,
            user_task: btf.structure("io_tctx_node")?.place("task")?,
            registered: btf.structure("io_uring_task")?.place("registered_rings")?,
            clock: ctx("clockid")?,
            layout: [
                word("sq.head")?,
                word("sq.tail")?,
                word("sq_ring_mask")?,
                word("sq_ring_entries")?,
                word("sq_flags")?,
                word("sq_dropped")?,
                word("cq.head")?,
                word("cq.tail")?,
                word("cq_ring_mask")?,
                word("cq_ring_entries")?,
                word("cq_overflow")?,
                word("cqes")?,
                word("cq_flags")?,
            ],
            added: added.into_iter().collect::<Result<_, _>>()?,
        })
    }
}

impl Looker {
    /// Makes ready to look. Says why it cannot.
    pub fn open() -> Result<Looker, String> {
        let btf = Btf::of_kernel().map_err(|error| format!("{}: {error}", crate::btf::PATH))?;
        let places = Places::of(&btf)?;
        let memory = KernelMemory::open().map_err(|errno| format!("BPF_PROG_LOAD: {errno}"))?;
        Ok(Looker { memory, places })
    }

    /// What a ring is that we have open. Says why it cannot be made again: it is busy, or something
    /// was added to it.
    pub fn look(&self, fd: BorrowedFd<'_>) -> Result<Ring, String> {
        let places = &self.places;
        let ctx = self.context_of(fd)?;
        let word = |place: Place| Ok::<u32, String>(self.number(ctx, place)? as u32);
        let setup = word(places.flags)?;
        refuse_setup(setup)?;
        for (place, what) in &places.added {
            if self.number(ctx, *place)? != 0 {
                return Err((*what).to_owned());
            }
        }
        if word(places.clock)? != CLOCK_MONOTONIC {
            return Err("a clock is registered with it".to_owned());
        }
        if self.number(ctx, places.overflow)? != ctx + places.overflow.offset() {
            return Err("completions wait behind its full queue".to_owned());
        }
        let busy = self.in_flight(ctx, word(places.allocated)?)?;
        if busy > 0 {
            return Err(format!("{busy} of its requests are under way"));
        }
        self.refuse_registered(ctx)?;
        let mut ring = Ring {
            // How the sizes were asked for.
            setup: setup & !(setup::CLAMP | setup::CQSIZE),
            sq_entries: word(places.sq_entries)?,
            cq_entries: word(places.cq_entries)?,
            sq_head: word(places.sq_head)?,
            cq_tail: word(places.cq_tail)?,
            layout: places.layout,
            rings: Vec::new(),
            sqes: Vec::new(),
        };
        let told = |errno: Errno| format!("map its memory: {errno}");
        let len = ring.ends().1;
        let rings = Region::map(fd, len, OFF_RINGS).map_err(told)?;
        let sqes = Region::map(fd, ring.sqes_len(), OFF_SQES).map_err(told)?;
        let [sq_head, .., cq_tail, _, _, _, _, _] = ring.layout;
        let [seen_head, seen_tail] = [sq_head, cq_tail].map(|at| rings.load(at));
        if (seen_head, seen_tail) != (Some(ring.sq_head), Some(ring.cq_tail)) {
            return Err("its queues are being worked on".to_owned());
        }
        ring.rings = rings.content();
        ring.sqes = sqes.content();
        Ok(ring)
    }

    /// The address of struct io_ring_ctx.
    fn context_of(&self, fd: BorrowedFd<'_>) -> Result<u64, String> {
        let places = &self.places;
        let task = self.memory.current_task();
        let task = task.map_err(|errno| format!("BPF_PROG_TEST_RUN: {errno}"))?;
        let files = self.number(task, places.task_files)?;
        let table = self.number(files, places.files_table)?;
        let fds = self.number(table, places.table_fds)?;
        let mut file = [0; 8];
        self.read(fds + 8 * fd.as_raw_fd().unsigned_abs() as u64, &mut file)?;
        self.number(u64::from_le_bytes(file), places.file_private)
    }

    /// Requests that are not free.
    fn in_flight(&self, ctx: u64, allocated: u32) -> Result<u32, String> {
        let mut free = 0;
        let mut at = self.number(ctx, self.places.free_list)?;
        while at != 0 && free < allocated {
            free += 1;
            let mut next = [0; 8];
            self.read(at, &mut next)?;
            at = u64::from_le_bytes(next);
        }
        Ok(allocated - free)
    }

    /// A thread may have the ring by a number of its own (IORING_REGISTER_RING_FDS).
    fn refuse_registered(&self, ctx: u64) -> Result<(), String> {
        /// Generously.
        const USERS: usize = 1 << 16;
        const NUMBERS: usize = 16;
        let places = &self.places;
        let end = ctx + places.users.offset();
        let mut at = self.number(ctx, places.users)?;
        for _ in 0..USERS {
            if at == end {
                return Ok(());
            }
            let task = self.number(at, places.user_task)?;
            let uring = self.number(task, places.task_uring)?;
            let mut registered = [0; 8 * NUMBERS];
            if uring != 0 {
                self.read(uring + places.registered.offset(), &mut registered)?;
            }
            if registered.iter().any(|byte| *byte != 0) {
                return Err("a thread has it registered (IORING_REGISTER_RING_FDS)".to_owned());
            }
            let mut next = [0; 8];
            self.read(at, &mut next)?;
            at = u64::from_le_bytes(next);
        }
        Err("its users cannot be counted".to_owned())
    }

    fn number(&self, base: u64, place: Place) -> Result<u64, String> {
        let mut bytes = [0; 8];
        self.read(base + place.offset(), &mut bytes)?;
        Ok(place.value(bytes))
    }

    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), String> {
        let told = |errno| format!("read what the kernel knows of it: {errno}");
        self.memory.read(address, into).map_err(told)
    }
}

fn refuse_setup(flags: u32) -> Result<(), String> {
    let foreign = flags & !setup::CARRIED;
    if foreign == 0 {
        return Ok(());
    }
    let bit = foreign.trailing_zeros();
    match setup::NAMES.get(bit as usize) {
        Some(name) => Err(format!("it was made with IORING_SETUP_{name}")),
        None => Err(format!("it was made with an unknown flag, bit {bit}")),
    }
}

/// Memory of a ring, shared with the kernel.
#[derive(Debug)]
struct Region {
    at: NonNull<u8>,
    len: usize,
}

impl Region {
    fn map(fd: BorrowedFd<'_>, len: usize, offset: u64) -> nix::Result<Region> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let (flags, fd) = (libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd());
        let offset = offset as libc::off_t;
        // SAFETY: a new mapping where the kernel likes; no memory in use is touched.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let at = NonNull::new(at.cast()).ok_or(Errno::EFAULT)?;
        Ok(Region { at, len })
    }

    /// A word, which the kernel writes too.
    fn word(&self, at: u32) -> Option<&AtomicU32> {
        let end = (at as usize).checked_add(4)?;
        if end > self.len || !at.is_multiple_of(4) {
            return None;
        }
        // SAFETY: within the mapping, which lives as long as `self`, and aligned; the kernel writes
        // such words as wholes.
        Some(unsafe { AtomicU32::from_ptr(self.at.as_ptr().add(at as usize).cast()) })
    }

    fn load(&self, at: u32) -> Option<u32> {
        Some(self.word(at)?.load(Ordering::Acquire))
    }

    fn store(&self, at: u32, value: u32) -> nix::Result<()> {
        let word = self.word(at).ok_or(Errno::EFAULT)?;
        word.store(value, Ordering::Release);
        Ok(())
    }

    /// All of it but the zeros at the end.
    fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        // SAFETY: both are as long; the tasks stand still and no request is under way, so nobody
        // writes meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(self.at.as_ptr(), bytes.as_mut_ptr(), self.len) };
        let end = bytes.iter().rposition(|byte| *byte != 0);
        bytes.truncate(end.map_or(0, |last| last + 1));
        bytes
    }

    /// Writes at an offset; what does not fit is an error.
    fn write(&self, at: usize, bytes: &[u8]) -> nix::Result<()> {
        let end = at.checked_add(bytes.len()).ok_or(Errno::EFAULT)?;
        if end > self.len {
            return Err(Errno::EFAULT);
        }
        // SAFETY: within the mapping; nobody else has the ring yet.
        unsafe {
            let to = self.at.as_ptr().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

/// struct io_uring_params.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    reserved: [u32; 3],
    /// head, tail, mask, entries, flags, dropped, array, and what is reserved.
    sq: [u32; 10],
    /// head, tail, mask, entries, overflow, entries' start, flags, and what is reserved.
    cq: [u32; 10],
}

impl Params {
    fn layout(&self) -> Layout {
        let ([a, b, c, d, e, f, ..], [g, h, i, j, k, l, m, ..]) = (self.sq, self.cq);
        [a, b, c, d, e, f, g, h, i, j, k, l, m]
    }
}

fn set_up(entries: u32, params: &mut Params) -> nix::Result<OwnedFd> {
    let address = std::ptr::from_mut(params);
    // SAFETY: the kernel reads and writes one struct io_uring_params, which outlives the call.
    let got = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, address) };
    let fd = Errno::result(got)?;
    // SAFETY: the kernel just gave us this descriptor, which no other code knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes a ring as one was, without anything that a mapping of it would not show.
pub fn make(wanted: &Ring) -> Result<OwnedFd, String> {
    let mut params = Params {
        cq_entries: wanted.cq_entries,
        flags: wanted.setup | setup::CQSIZE,
        ..Params::default()
    };
    let made = set_up(wanted.sq_entries, &mut params);
    let fd = made.map_err(|errno| format!("io_uring_setup: {errno}"))?;
    let (_, end) = wanted.ends();
    let array = if wanted.has_array() {
        wanted.ends().0
    } else {
        0
    };
    let [.., made_array, _, _, _] = params.sq;
    let fits = (params.sq_entries, params.cq_entries) == (wanted.sq_entries, wanted.cq_entries)
        && params.layout() == wanted.layout
        && made_array as usize == array;
    if !fits {
        return Err("this kernel lays its rings out in another way".to_owned());
    }
    let told = |doing: &'static str| move |errno: Errno| format!("{doing}: {errno}");
    let rings = Region::map(fd.as_fd(), end, OFF_RINGS).map_err(told("map the rings"))?;
    let sqes = Region::map(fd.as_fd(), wanted.sqes_len(), OFF_SQES);
    let sqes = sqes.map_err(told("map the entries"))?;
    let filled = Filled {
        fd: fd.as_fd(),
        wanted,
        rings,
        sqes,
    };
    if wanted.setup & setup::R_DISABLED == 0 {
        filled
            .advance()
            .map_err(told("bring its counts to where they were"))?;
    }
    let written = filled.rings.write(0, &wanted.rings);
    written
        .and_then(|()| filled.sqes.write(0, &wanted.sqes))
        .map_err(told("write its memory"))?;
    Ok(fd)
}

/// A new ring that is brought to where the old one was.
struct Filled<'r> {
    fd: BorrowedFd<'r>,
    wanted: &'r Ring,
    rings: Region,
    sqes: Region,
}

impl Filled<'_> {
    fn advance(&self) -> nix::Result<()> {
        let (taken, given) = (self.wanted.sq_head, self.wanted.cq_tail);
        let both = taken.min(given);
        if self.wanted.has_array() {
            let array = self.wanted.ends().0;
            for index in 0..self.wanted.sq_entries {
                let at = array + 4 * index as usize;
                self.rings.write(at, &index.to_le_bytes())?;
            }
        }
        self.submit(both, 0)?;
        self.submit(taken - both, NO_COMPLETION)?;
        self.send(given - both)
    }

    /// Requests that do nothing.
    fn submit(&self, count: u32, flags: u8) -> nix::Result<()> {
        let size = self.wanted.sqe_size();
        // Entries are taken in the order of the queue, wherever it is: all need the same flags.
        for index in 0..self.wanted.sq_entries {
            self.sqes.write(index as usize * size, &[NOP, flags])?;
        }
        let mut left = count;
        while left > 0 {
            let now = left.min(self.wanted.sq_entries);
            let [_, tail, ..] = self.wanted.layout;
            let at = self.rings.load(tail).ok_or(Errno::EFAULT)?;
            self.rings.store(tail, at.wrapping_add(now))?;
            enter(self.fd, now)?;
            self.take_completions()?;
            left -= now;
        }
        Ok(())
    }

    /// Completions without requests, by messages of another ring.
    fn send(&self, count: u32) -> nix::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let mut params = Params::default();
        let sender = set_up(SENDER, &mut params)?;
        let [_, tail, .., array, _, _, _] = params.sq;
        let len = array as usize + SENDER as usize * 4;
        let rings = Region::map(sender.as_fd(), len, OFF_RINGS)?;
        let sqes = Region::map(sender.as_fd(), SENDER as usize * 64, OFF_SQES)?;
        for index in 0..SENDER {
            rings.write(array as usize + 4 * index as usize, &index.to_le_bytes())?;
            let at = index as usize * 64;
            sqes.write(at, &[MSG_RING, NO_COMPLETION])?;
            sqes.write(at + 4, &self.fd.as_raw_fd().to_le_bytes())?;
        }
        let mut left = count;
        while left > 0 {
            let now = left.min(SENDER).min(self.wanted.cq_entries);
            let at = rings.load(tail).ok_or(Errno::EFAULT)?;
            rings.store(tail, at.wrapping_add(now))?;
            enter(sender.as_fd(), now)?;
            self.take_completions()?;
            left -= now;
        }
        Ok(())
    }

    /// Makes room for the next ones.
    fn take_completions(&self) -> nix::Result<()> {
        let [_, _, _, _, _, _, head, tail, ..] = self.wanted.layout;
        let at = self.rings.load(tail).ok_or(Errno::EFAULT)?;
        self.rings.store(head, at)
    }
}

/// Submits so many requests, all of which must be taken.
fn enter(ring: BorrowedFd<'_>, count: u32) -> nix::Result<()> {
    let (ring, none) = (ring.as_raw_fd(), std::ptr::null::<u8>());
    // SAFETY: the call takes numbers; the mask of signals is absent.
    let got = unsafe { libc::syscall(libc::SYS_io_uring_enter, ring, count, 0, 0, none, 0) };
    match Errno::result(got)? {
        taken if taken == libc::c_long::from(count) => Ok(()),
        _ => Err(Errno::EPROTO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looker() -> Result<Option<Looker>, String> {
        match Looker::open() {
            Err(why) if why.contains("EPERM") => {
                println!("SKIPPED: {why}");
                Ok(None)
            }
            looker => looker.map(Some),
        }
    }

    fn fresh(entries: u32, setup: u32) -> Result<OwnedFd, String> {
        let mut params = Params {
            flags: setup,
            ..Params::default()
        };
        set_up(entries, &mut params).map_err(|errno| format!("io_uring_setup: {errno}"))
    }

    #[test]
    fn a_ring_comes_back_as_it_was() -> Result<(), String> {
        let shapes = [
            0,
            setup::SQE128 | setup::CQE32,
            setup::NO_SQARRAY | setup::COOP_TASKRUN | setup::TASKRUN_FLAG,
            setup::SUBMIT_ALL,
        ];
        let Some(looker) = looker()? else {
            return Ok(());
        };
        for shape in shapes {
            let mut ring = looker.look(fresh(8, shape)?.as_fd())?;
            assert_eq!(
                (ring.setup, ring.sq_entries, ring.cq_entries),
                (shape, 8, 16)
            );
            for (sq_head, cq_tail) in [(0, 0), (5, 5), (1003, 1000), (3, 1000), (17, 0)] {
                (ring.sq_head, ring.cq_tail) = (sq_head, cq_tail);
                ring.rings = counted(&ring);
                ring.sqes = vec![7; ring.sqes_len()];
                let made = make(&ring)?;
                assert_eq!(looker.look(made.as_fd())?, ring, "{shape:#x}");
            }
        }
        Ok(())
    }

    /// Memory of a ring with these counts, whose queues are empty.
    fn counted(ring: &Ring) -> Vec<u8> {
        let mut bytes = vec![0; ring.ends().1];
        let [sq_head, sq_tail, _, _, _, _, cq_head, cq_tail, ..] = ring.layout;
        for (at, value) in [
            (sq_head, ring.sq_head),
            (sq_tail, ring.sq_head),
            (cq_head, ring.cq_tail),
            (cq_tail, ring.cq_tail),
        ] {
            let at = at as usize;
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        *bytes.last_mut().unwrap_or(&mut 0) = 9;
        bytes
    }

    #[test]
    fn what_cannot_come_back_is_named() -> Result<(), String> {
        let Some(looker) = looker()? else {
            return Ok(());
        };
        let single = fresh(8, setup::SINGLE_ISSUER | setup::DEFER_TASKRUN)?;
        let why = "it was made with IORING_SETUP_SINGLE_ISSUER".to_owned();
        assert_eq!(looker.look(single.as_fd()), Err(why));
        Ok(())
    }
}
