//! Memory shared between the restorer and every task it makes, at one address in all of them.
//!
//! Shared memory survives the fork of the root and of all its children, so a table of system
//! calls is written in our own memory and read by the task in its own: no system call carries it
//! over. It is cut into areas, one for each task that may run at the same time; pages that nobody
//! touches cost nothing. The address is chosen where no task will have a mapping.

use crate::stub;
use nix::errno::Errno;
use std::ptr::NonNull;

const PAGE: u64 = 4096;

/// The shared memory. Unmapped when dropped; the tasks unmap theirs at the commit.
#[derive(Debug)]
pub struct Scratch {
    base: NonNull<u8>,
    len: usize,
}

/// A part of the scratch memory that one task uses at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    offset: usize,
    len: usize,
}

/// What a call in a table must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Anything.
    Any,
    /// No error.
    Ok,
    /// This value.
    Exactly(i64),
}

/// A table of calls being written into an area: entries from its start, data from its end.
#[derive(Debug)]
pub struct Table<'s> {
    scratch: &'s Scratch,
    area: Area,
    entries: usize,
    data_at: usize,
}

impl Scratch {
    /// Maps `len` bytes at `addr`, which must be free, and puts the exec stub at their start.
    pub fn map(addr: u64, len: usize) -> Result<Scratch, Errno> {
        // SAFETY: MAP_FIXED_NOREPLACE never touches an existing mapping.
        let base = unsafe {
            libc::mmap(
                addr as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let base = NonNull::new(base.cast()).ok_or(Errno::ENOMEM)?;
        let scratch = Scratch { base, len };
        if scratch.base() != addr {
            // A kernel before 4.17 ignores the flag.
            return Err(Errno::EEXIST);
        }
        scratch.write(0, stub::exec());
        Ok(scratch)
    }

    /// Address in every task.
    pub fn base(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has a length.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of the exec stub.
    pub fn code(&self) -> u64 {
        self.base()
    }

    /// The area from `offset` on; `None` if it is not inside, or covers the stub.
    pub fn area(&self, offset: usize, len: usize) -> Option<Area> {
        let end = offset.checked_add(len)?;
        (offset >= PAGE as usize && end <= self.len && len.is_multiple_of(8))
            .then_some(Area { offset, len })
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(
            offset + bytes.len() <= self.len,
            "bounds are the caller's invariant"
        );
        // SAFETY: inside the mapping by the assertion. No reference to it is ever made, and no
        // task that shares it runs while we write (tables are written for stopped tasks).
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.base.as_ptr().add(offset),
                bytes.len(),
            );
        }
    }

    fn read(&self, offset: usize, bytes: &mut [u8]) {
        assert!(
            offset + bytes.len() <= self.len,
            "bounds are the caller's invariant"
        );
        // SAFETY: as in `write`, with the directions exchanged.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.base.as_ptr().add(offset),
                bytes.as_mut_ptr(),
                bytes.len(),
            );
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: our own mapping, to which nobody holds a reference.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

// SAFETY: plain memory; who may write when is the owner's affair and does not depend on threads.
unsafe impl Send for Scratch {}

impl<'s> Table<'s> {
    /// An empty table in `area`.
    pub fn new(scratch: &'s Scratch, area: Area) -> Table<'s> {
        Table {
            scratch,
            area,
            entries: 0,
            data_at: area.len,
        }
    }

    /// Calls so far.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Puts `bytes` into the area and gives their address in the task; `None` if it is full.
    pub fn data(&mut self, bytes: &[u8]) -> Option<u64> {
        let at = self.data_at.checked_sub(bytes.len().next_multiple_of(8))?;
        if at < self.entries_end() + stub::EXEC_ENTRY {
            return None;
        }
        self.data_at = at;
        self.scratch.write(self.area.offset + at, bytes);
        Some(self.scratch.base() + (self.area.offset + at) as u64)
    }

    /// Adds a call; `None` if the area is full.
    pub fn push(&mut self, nr: i64, args: [u64; 6], check: Check) -> Option<usize> {
        // Room for the end as well.
        if self.entries_end() + 2 * stub::EXEC_ENTRY > self.data_at {
            return None;
        }
        let (kind, value) = match check {
            Check::Any => (0, 0),
            Check::Ok => (1, 0),
            Check::Exactly(value) => (2, value as u64),
        };
        self.write_entry(self.entries, nr as u64, args, kind, value);
        self.entries += 1;
        Some(self.entries - 1)
    }

    /// A place to come back to if what follows does not fit.
    pub fn mark(&self) -> (usize, usize) {
        (self.entries, self.data_at)
    }

    /// Forgets all that came after the mark.
    pub fn rewind(&mut self, (entries, data_at): (usize, usize)) {
        self.entries = entries;
        self.data_at = data_at;
    }

    /// Writes the end and gives the address of the first entry.
    pub fn seal(&mut self) -> u64 {
        self.write_entry(self.entries, stub::END, [0; 6], 0, 0);
        self.start()
    }

    /// Address of the first entry.
    pub fn start(&self) -> u64 {
        self.scratch.base() + self.area.offset as u64
    }

    /// What the call answered.
    pub fn ret(&self, entry: usize) -> i64 {
        let mut bytes = [0; 8];
        self.scratch
            .read(self.area.offset + entry * stub::EXEC_ENTRY + 56, &mut bytes);
        i64::from_le_bytes(bytes)
    }

    /// Bytes that calls have written at an address of this table's data.
    pub fn read_data(&self, addr: u64, bytes: &mut [u8]) {
        let offset = addr.saturating_sub(self.scratch.base()) as usize;
        self.scratch.read(offset, bytes);
    }

    fn entries_end(&self) -> usize {
        self.entries * stub::EXEC_ENTRY
    }

    fn write_entry(&self, entry: usize, nr: u64, args: [u64; 6], kind: u64, value: u64) {
        let [a, b, c, d, e, f] = args;
        let words = [nr, a, b, c, d, e, f, 0, kind, value];
        let mut bytes = [0; stub::EXEC_ENTRY];
        for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        self.scratch
            .write(self.area.offset + entry * stub::EXEC_ENTRY, &bytes);
    }
}
