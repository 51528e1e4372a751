//! A process that outlives us and takes back what we have put into the world.
//!
//! PTRACE_O_EXITKILL ends half-made tasks when we die, but no such thing exists for files: a ghost
//! file, the name of a socket, a cgroup, a hard link of a dump would stay. And EXITKILL is taken
//! off one task after the other at the commit: a death in between would leave a part of a tree.
//! So everything is noted in memory that we share with a child before it is done; the child
//! sleeps on our pidfd and, when we are dead, undoes what is noted, the latest first.
//!
//! A dump that kills its tree is the other way about: once its images are whole, what it has begun
//! is to be ended. Such notes are carried out after [`Survivor::settle`] only.
//!
//! The child shares our descriptor table (CLONE_FILES): it holds nothing open that we have closed,
//! and finds the pidfds and directories that a note names. It makes system calls only and
//! allocates nothing, so the locks of other threads of ours do not matter. All signals are
//! blocked in it and it has a session of its own: what a terminal or a process group is sent does
//! not reach it. Its exit signal is 0, so nobody who waits for children meets it.

use crate::error::{Error, Result};
use crate::fds::PidFd;
use crate::making::CloneArgs;
use crate::pid::HostPid;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of notes: pages that are not used cost nothing.
const ROOM: usize = 16 << 20;
/// Behind the head.
const FIRST: usize = 64;
/// Head of a note: state, kind, descriptor, number (of a signal, of bytes).
const NOTE: usize = 16;
/// Bytes of cgroup.procs read at a time.
const MEMBERS: usize = 4096;
/// How many milliseconds the dead are given to leave a cgroup.
const SWITCHES: u32 = 500;
const CLONE_FILES: u64 = libc::CLONE_FILES as u64;

/// When a note is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum When {
    /// If we die before [`Survivor::settle`].
    BeforeSettled = 1,
    /// If we die after it.
    AfterSettled = 2,
    /// Whenever we die.
    Ever = 3,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Deed {
    RemoveFile = 1,
    RemoveDirectory = 2,
    Signal = 3,
    Send = 4,
    Silence = 5,
    ThawV1 = 6,
    ThawV2 = 7,
    Await = 8,
    Run = 9,
}

/// A note, by which it can be crossed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note(usize);

/// The child and the memory shared with it.
#[derive(Debug)]
pub struct Survivor {
    notes: Notes,
    child: HostPid,
    /// Our own, on which the child sleeps; open in the shared table as long as we live.
    _own: OwnedFd,
}

/// The shared memory: a word that says how far notes go, one that says settled, then the notes.
#[derive(Debug)]
struct Notes {
    base: NonNull<u8>,
}

impl Survivor {
    /// Starts the child. `is_taken` are the pids of the tasks that are going to be made: it must
    /// not have one of them (so the kernel must let us choose pids), and waits for their deaths
    /// before it removes the cgroup they are in.
    pub fn start(is_taken: &dyn Fn(i32) -> bool) -> Result<Survivor> {
        let own: OwnedFd = PidFd::open(HostPid::current())?.into();
        let failed = |doing: &str, errno| Error::new(HostPid::current(), doing, errno);
        let notes = Notes::map().map_err(|errno| failed("map notes for the survivor", errno))?;
        let child = clone_child(&notes, own.as_raw_fd(), is_taken);
        let child = child.map_err(|errno| failed("clone the survivor", errno))?;
        Ok(Survivor {
            notes,
            child,
            _own: own,
        })
    }

    /// A file is about to be made.
    pub fn file(&self, dir: Option<BorrowedFd<'_>>, path: &[u8], when: When) -> Result<Note> {
        self.note(Deed::RemoveFile, dir, path, when)
    }

    /// A directory is about to be made.
    pub fn directory(&self, path: &[u8], when: When) -> Result<Note> {
        self.note(Deed::RemoveDirectory, None, path, when)
    }

    /// A task is about to be let off EXITKILL. The pidfd must stay open until the end.
    pub fn task(&self, pidfd: BorrowedFd<'_>) -> Result<Note> {
        self.note_number(Deed::Signal, pidfd, b"", libc::SIGKILL, When::BeforeSettled)
    }

    /// A task shall get this signal from us once it is settled; if we die then, it gets it all the
    /// same. The pidfd must stay open until the end.
    pub fn signal(&self, pidfd: BorrowedFd<'_>, signal: i32) -> Result<Note> {
        self.note_number(Deed::Signal, pidfd, b"", signal, When::AfterSettled)
    }

    /// Something is about to be made that goes by a message into this socket, which must stay open.
    pub fn message(&self, socket: BorrowedFd<'_>, message: &[u8]) -> Result<Note> {
        let len = message.len() as i32;
        self.note_number(Deed::Send, socket, message, len, When::BeforeSettled)
    }

    /// Something is about to be made that goes by a program, given by the words of its command line
    /// with its path first, that is fed with this file.
    pub fn program(&self, input: BorrowedFd<'_>, words: &[&[u8]]) -> Result<Note> {
        let mut bytes = words.join(&0);
        bytes.push(0);
        let len = bytes.len() as i32;
        self.note_number(Deed::Run, input, &bytes, len, When::BeforeSettled)
    }

    /// What is noted before this waits until all who have the writing end of a pipe are dead: a
    /// program of ours that is still at work.
    pub fn wait_for(&self, reader: BorrowedFd<'_>, writer: BorrowedFd<'_>) -> Result<Note> {
        let number = writer.as_raw_fd();
        self.note_number(Deed::Await, reader, b"", number, When::BeforeSettled)
    }

    /// A TCP socket shall be closed without a word to its peer once it is settled.
    pub fn silent_close(&self, socket: BorrowedFd<'_>) -> Result<Note> {
        self.note(Deed::Silence, Some(socket), b"", When::AfterSettled)
    }

    /// A cgroup is about to be frozen; this word written to this file thaws it.
    pub fn thaw(&self, file: &[u8], word: &str) -> Result<Note> {
        let deed = match word {
            "0" => Deed::ThawV2,
            _ => Deed::ThawV1,
        };
        self.note(deed, None, file, When::Ever)
    }

    /// What was noted need not be done any more.
    pub fn cross_out(&self, note: Note) {
        self.notes.word(note.0).store(0, Ordering::Release);
    }

    /// From now on the work is done, and only what says so is undone.
    pub fn settle(&self) {
        self.notes.settled().store(1, Ordering::Release);
    }

    fn note(
        &self,
        deed: Deed,
        dir: Option<BorrowedFd<'_>>,
        path: &[u8],
        when: When,
    ) -> Result<Note> {
        let fd = dir.map_or(libc::AT_FDCWD, |dir| dir.as_raw_fd());
        self.told(self.notes.add(deed, fd, 0, path, when))
    }

    fn note_number(
        &self,
        deed: Deed,
        fd: BorrowedFd<'_>,
        bytes: &[u8],
        number: i32,
        when: When,
    ) -> Result<Note> {
        self.told(self.notes.add(deed, fd.as_raw_fd(), number, bytes, when))
    }

    fn told(&self, note: std::result::Result<Note, Errno>) -> Result<Note> {
        note.map_err(|errno| Error::new(self.child, "note what is to be undone", errno))
    }
}

impl Drop for Survivor {
    /// Nothing is left to undo, or somebody has done it.
    fn drop(&mut self) {
        // Should it outlive us after all, it finds nothing to do.
        self.notes.end().store(FIRST as u32, Ordering::Release);
        // SAFETY: system calls on numbers; the child is ours and not reaped by anybody else. It is
        // waited for only if it has to end.
        unsafe {
            if libc::kill(self.child.get(), libc::SIGKILL) == 0 {
                libc::waitpid(self.child.get(), std::ptr::null_mut(), libc::__WALL);
            }
        }
    }
}

// SAFETY: the mapping is of nobody else in this process, words of it are used as atomics, and a
// path is written before the note that has it counts; so it may move to another thread.
unsafe impl Send for Notes {}

impl Notes {
    fn map() -> std::result::Result<Notes, Errno> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes; no memory in use is touched.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), ROOM, prot, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let base = NonNull::new(base.cast()).ok_or(Errno::ENOMEM)?;
        let notes = Notes { base };
        notes.end().store(FIRST as u32, Ordering::Release);
        Ok(notes)
    }

    /// A word of the mapping.
    fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4) && at + 4 <= ROOM, "inside the notes");
        // SAFETY: inside the mapping and aligned by the assertion; both processes use these
        // words as atomics only.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(at).cast()) }
    }

    fn end(&self) -> &AtomicU32 {
        self.word(0)
    }

    fn settled(&self) -> &AtomicU32 {
        self.word(4)
    }

    /// Appends a note: its words, its path with a zero, its length behind it for the way back.
    fn add(
        &self,
        deed: Deed,
        fd: i32,
        number: i32,
        path: &[u8],
        when: When,
    ) -> std::result::Result<Note, Errno> {
        let at = self.end().load(Ordering::Acquire) as usize;
        let path_room = (path.len() + 1).next_multiple_of(4);
        let end = at + NOTE + path_room + 4;
        if end > ROOM {
            return Err(Errno::ENOSPC);
        }
        // SAFETY: the path fits before `end`, which is inside the mapping; fresh pages are zero,
        // so a zero byte follows it. The child reads no note behind the stored end.
        unsafe {
            let to = self.base.as_ptr().add(at + NOTE);
            std::ptr::copy_nonoverlapping(path.as_ptr(), to, path.len());
        }
        self.word(at).store(when as u32, Ordering::Relaxed);
        self.word(at + 4).store(deed as u32, Ordering::Relaxed);
        self.word(at + 8).store(fd as u32, Ordering::Relaxed);
        self.word(at + 12).store(number as u32, Ordering::Relaxed);
        self.word(end - 4)
            .store((end - at) as u32, Ordering::Relaxed);
        // The note counts once it is whole.
        self.end().store(end as u32, Ordering::Release);
        Ok(Note(at))
    }

    /// Everything that is to be done now, the latest first.
    fn carry_out(&self, is_ours: &dyn Fn(i32) -> bool) {
        let now = match self.settled().load(Ordering::Acquire) {
            0 => When::BeforeSettled,
            _ => When::AfterSettled,
        };
        let mut end = self.end().load(Ordering::Acquire) as usize;
        while end > FIRST {
            let at = end - self.word(end - 4).load(Ordering::Relaxed) as usize;
            if self.word(at).load(Ordering::Acquire) & now as u32 != 0 {
                self.carry_out_one(at, is_ours);
            }
            end = at;
        }
    }

    fn carry_out_one(&self, at: usize, is_ours: &dyn Fn(i32) -> bool) {
        let deed = self.word(at + 4).load(Ordering::Relaxed);
        let fd = self.word(at + 8).load(Ordering::Relaxed) as i32;
        // SAFETY: a note has its path, ended by a zero, at this place.
        let path = unsafe { self.base.as_ptr().add(at + NOTE).cast::<libc::c_char>() };
        let number = self.word(at + 12).load(Ordering::Relaxed);
        if deed == Deed::Signal as u32 {
            // SAFETY: numbers and a null pointer, which means no siginfo.
            unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, 0, 0) };
            return;
        }
        if deed == Deed::Send as u32 {
            // SAFETY: so many bytes were noted, and they outlive the call.
            unsafe { libc::send(fd, path.cast(), number as usize, 0) };
            return;
        }
        if deed == Deed::Await as u32 {
            let mut byte = 0u8;
            // SAFETY: system calls on numbers and a byte that outlives them. The table that we share
            // is ours alone by now.
            unsafe {
                libc::close(number as i32);
                while libc::read(fd, std::ptr::from_mut(&mut byte).cast(), 1) > 0 {}
            }
            return;
        }
        if deed == Deed::Run as u32 {
            run(fd, path, number as usize);
            return;
        }
        if deed == Deed::Silence as u32 {
            let on = 1i32;
            let (value, len) = (std::ptr::from_ref(&on).cast(), size_of::<i32>() as u32);
            // SAFETY: the value outlives the call and has the length told.
            unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, value, len) };
            return;
        }
        for (thaw, word) in [(Deed::ThawV1, "THAWED"), (Deed::ThawV2, "0")] {
            if deed == thaw as u32 {
                // SAFETY: system calls on numbers, the path and a word that outlive them.
                unsafe {
                    let file = libc::openat(fd, path, libc::O_WRONLY);
                    libc::write(file, word.as_ptr().cast(), word.len());
                    libc::close(file);
                }
                return;
            }
        }
        let flags = match deed == Deed::RemoveDirectory as u32 {
            true => libc::AT_REMOVEDIR,
            false => 0,
        };
        let mut patience = SWITCHES;
        loop {
            // SAFETY: the path ends with a zero and outlives the call.
            let done = unsafe { libc::unlinkat(fd, path, flags) } == 0;
            if done || Errno::last() != Errno::EBUSY {
                return;
            }
            // SAFETY: as above.
            let dir = unsafe { libc::openat(fd, path, libc::O_PATH | libc::O_DIRECTORY) };
            // A cgroup empties when its last task has died. A stranger in it may stay.
            match wait_for_members(dir, is_ours) {
                Members::Ours => {}
                // The dead are counted until they have left the processor for the last time, which
                // no event tells.
                Members::Nobody if patience > 0 => {
                    patience -= 1;
                    let moment = libc::timespec {
                        tv_sec: 0,
                        tv_nsec: 1_000_000,
                    };
                    // SAFETY: the value outlives the call, which may take a null pointer.
                    unsafe { libc::nanosleep(&moment, std::ptr::null_mut()) };
                }
                Members::Nobody | Members::Strangers => return,
            }
        }
    }
}

/// Words of a command line, at most.
const WORDS: usize = 8;

/// Runs a program and waits for its end. Its command line is so many bytes, a zero behind each word.
fn run(input: i32, words: *const libc::c_char, len: usize) {
    let mut line = [std::ptr::null::<libc::c_char>(); WORDS + 1];
    let (mut at, mut count) = (0, 0);
    while at < len && count < WORDS {
        // SAFETY: the bytes of the note outlive the program's start, and a zero ends each word.
        unsafe {
            line[count] = words.add(at);
            at += libc::strlen(line[count]) + 1;
        }
        count += 1;
    }
    let path: [*const libc::c_char; 2] = [
        c"PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin".as_ptr(),
        std::ptr::null(),
    ];
    let none = 0u64;
    // SAFETY: a plain fork: the child has a copy of our memory and descriptors, makes system calls
    // only and ends by execve or _exit; we wait for it by its number.
    unsafe {
        let child = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
        if child == 0 {
            let nothing = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            libc::dup2(input, 0);
            libc::dup2(nothing, 1);
            libc::dup2(nothing, 2);
            let old = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &none, old, 8);
            libc::execve(line[0], line.as_ptr(), path.as_ptr());
            libc::_exit(127);
        }
        if child > 0 {
            libc::waitpid(child as i32, std::ptr::null_mut(), libc::__WALL);
        }
    }
}

/// Who was found in a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Members {
    Nobody,
    Strangers,
    /// Some of our tasks, maybe strangers too.
    Ours,
}

/// Waits for the deaths of those of our tasks, which are all killed, that are in a cgroup. Closes
/// the directory.
fn wait_for_members(dir: i32, is_ours: &dyn Fn(i32) -> bool) -> Members {
    let mut found = Members::Nobody;
    // SAFETY: system calls on numbers and on values that outlive them; nothing is allocated.
    unsafe {
        let file = libc::openat(dir, c"cgroup.procs".as_ptr(), libc::O_RDONLY);
        libc::close(dir);
        let mut text = [0u8; MEMBERS];
        let mut pid = 0i32;
        loop {
            let len = libc::read(file, text.as_mut_ptr().cast(), MEMBERS);
            let Some(read) = usize::try_from(len).ok().and_then(|len| text.get(..len)) else {
                break;
            };
            if read.is_empty() {
                break;
            }
            for byte in read {
                if byte.is_ascii_digit() {
                    pid = pid.wrapping_mul(10).wrapping_add(i32::from(byte - b'0'));
                } else {
                    if pid > 0 && is_ours(pid) {
                        found = Members::Ours;
                        wait_for_death(pid);
                    } else if found == Members::Nobody {
                        found = Members::Strangers;
                    }
                    pid = 0;
                }
            }
        }
        libc::close(file);
    }
    found
}

/// Returns at once if nobody has the pid any more.
fn wait_for_death(pid: i32) {
    // SAFETY: system calls on numbers and on a value that outlives them.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        if fd >= 0 {
            wait_until_readable(fd);
            libc::close(fd);
        }
    }
}

/// A pidfd is readable when its process is dead. By ppoll(2): below a filter whose listener is gone
/// (tests/programs/refuse.c) poll(2) fails for ever.
fn wait_until_readable(fd: i32) {
    let mut dead = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the value outlives the call.
    while unsafe { libc::ppoll(&mut dead, 1, std::ptr::null(), std::ptr::null()) } != 1 {}
}

/// Clones the child, under a high pid if some are taken.
fn clone_child(
    notes: &Notes,
    own: i32,
    is_taken: &dyn Fn(i32) -> bool,
) -> std::result::Result<HostPid, Errno> {
    let mut pid = highest_pid();
    loop {
        while pid > 1 && is_taken(pid) {
            pid -= 1;
        }
        match clone_with(notes, own, is_taken, Some(pid)) {
            Err(Errno::EEXIST) if pid > 1 => pid -= 1,
            // Numbers cannot be chosen without a privilege: then nobody else chooses any either.
            Err(Errno::EPERM) => return clone_with(notes, own, is_taken, None),
            other => return other,
        }
    }
}

fn highest_pid() -> i32 {
    const DEFAULT: i32 = 32768;
    let text = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap_or_default();
    text.trim().parse().unwrap_or(DEFAULT) - 1
}

fn clone_with(
    notes: &Notes,
    own: i32,
    is_taken: &dyn Fn(i32) -> bool,
    pid: Option<i32>,
) -> std::result::Result<HostPid, Errno> {
    let set_tid = pid.unwrap_or(0);
    let args = CloneArgs {
        flags: CLONE_FILES,
        set_tid: if pid.is_some() {
            std::ptr::from_ref(&set_tid) as u64
        } else {
            0
        },
        set_tid_size: pid.map_or(0, |_| 1),
        ..CloneArgs::default()
    };
    // SAFETY: the arguments outlive the call. The child shares no memory with us but the notes
    // and makes system calls only, so that locks held by other threads do not matter.
    let got = unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<CloneArgs>()) };
    if got == 0 {
        outlive(notes, own, is_taken);
    }
    Errno::result(got).and_then(|pid| HostPid::new(pid as i32).ok_or(Errno::ESRCH))
}

/// The whole life of the child.
fn outlive(notes: &Notes, parent: i32, is_ours: &dyn Fn(i32) -> bool) -> ! {
    let all = !0u64;
    // SAFETY: system calls on numbers and on values that outlive them; nothing is allocated.
    unsafe {
        let none = std::ptr::null_mut::<u64>();
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &all, none, 8);
        libc::setsid();
        libc::prctl(libc::PR_SET_NAME, c"crust-survivor".as_ptr());
    }
    wait_until_readable(parent);
    notes.carry_out(is_ours);
    // SAFETY: ends this process only, without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};

    fn scratch(name: &str) -> PathBuf {
        let dir =
            std::env::temp_dir().join(format!("crust-survivor-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a scratch directory");
        dir
    }

    fn note(survivor: &Survivor, path: &Path, when: When) -> Note {
        survivor
            .file(None, path.as_os_str().as_bytes(), when)
            .expect("noted")
    }

    /// Runs `body` in a child process that is killed at its end, and waits until its survivor is
    /// gone too: the survivor holds the writing end of a pipe.
    fn killed_after(body: impl FnOnce()) {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        // SAFETY: the child uses nothing that another thread could have locked but the allocator,
        // which glibc makes fit for use after a fork.
        match unsafe { libc::fork() } {
            0 => {
                drop(reader);
                body();
                std::mem::forget(writer);
                // SAFETY: takes numbers only.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                unreachable!("killed");
            }
            pid => {
                drop(writer);
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut reader, &mut bytes).expect("its end");
                // SAFETY: the child is ours; no status is asked for.
                unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            }
        }
    }

    #[test]
    fn what_was_noted_goes_when_we_die() {
        let dir = scratch("dies");
        let (file, sub, crossed) = (dir.join("file"), dir.join("sub"), dir.join("crossed"));
        let in_sub = sub.join("file");
        killed_after(|| {
            let survivor = Survivor::start(&|_| false).expect("started");
            note(&survivor, &file, When::BeforeSettled);
            std::fs::write(&file, "x").expect("write");
            survivor
                .directory(sub.as_os_str().as_bytes(), When::Ever)
                .expect("noted");
            std::fs::create_dir(&sub).expect("mkdir");
            note(&survivor, &in_sub, When::Ever);
            std::fs::write(&in_sub, "x").expect("write");
            let gone = note(&survivor, &crossed, When::Ever);
            std::fs::write(&crossed, "x").expect("write");
            survivor.cross_out(gone);
            std::mem::forget(survivor);
        });
        assert!(!file.exists() && !sub.exists() && crossed.exists());
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn after_the_commit_only_what_says_so_goes() {
        let dir = scratch("settled");
        let (kept, link) = (dir.join("kept"), dir.join("link"));
        std::fs::write(&link, "x").expect("write");
        killed_after(|| {
            let survivor = Survivor::start(&|_| false).expect("started");
            note(&survivor, &kept, When::BeforeSettled);
            std::fs::write(&kept, "x").expect("write");
            note(&survivor, &link, When::AfterSettled);
            survivor.settle();
            std::mem::forget(survivor);
        });
        assert!(kept.exists() && !link.exists());
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn tasks_that_were_let_off_die_with_us() {
        let mut sleeper = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .expect("sleep");
        let pid = HostPid::new(sleeper.id() as i32).expect("a pid");
        killed_after(|| {
            let pidfd = PidFd::open(pid).expect("a pidfd");
            let survivor = Survivor::start(&|_| false).expect("started");
            survivor.task(pidfd.as_fd()).expect("noted");
            std::mem::forget((survivor, pidfd));
        });
        let status = sleeper.wait().expect("reaped");
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(libc::SIGKILL)
        );
    }

    #[test]
    fn what_was_begun_is_ended() {
        let sleep = || std::process::Command::new("sleep").arg("1000").spawn();
        let mut sleepers = [sleep().expect("sleep"), sleep().expect("sleep")];
        let pids = sleepers
            .each_ref()
            .map(|child| HostPid::new(child.id() as i32));
        let (mine, other) = std::os::unix::net::UnixDatagram::pair().expect("a pair");
        killed_after(|| {
            let pidfds = pids.map(|pid| PidFd::open(pid.expect("a pid")).expect("a pidfd"));
            let survivor = Survivor::start(&|_| false).expect("started");
            survivor.message(mine.as_fd(), b"undone").expect("noted");
            for pidfd in &pidfds {
                survivor
                    .signal(pidfd.as_fd(), libc::SIGTERM)
                    .expect("noted");
            }
            survivor.settle();
            std::mem::forget((survivor, pidfds));
        });
        for sleeper in &mut sleepers {
            let status = sleeper.wait().expect("reaped");
            let signal = std::os::unix::process::ExitStatusExt::signal(&status);
            assert_eq!(signal, Some(libc::SIGTERM));
        }
        killed_after(|| {
            let survivor = Survivor::start(&|_| false).expect("started");
            survivor.message(mine.as_fd(), b"undone").expect("noted");
            std::mem::forget(survivor);
        });
        let mut told = [0; 16];
        let len = other.recv(&mut told).expect("a message");
        assert_eq!(&told[..len], b"undone");
        other.set_nonblocking(true).expect("set");
        assert!(other.recv(&mut told).is_err());
    }

    #[test]
    fn a_program_is_run_when_another_has_ended() {
        use std::io::{Seek, Write};
        let dir = scratch("program");
        let file = dir.join("file");
        let said = format!("test -e {0}.first && : > {0}", file.display());
        let mut input = File::from(
            nix::sys::memfd::memfd_create("input", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
                .expect("a memfd"),
        );
        input.write_all(said.as_bytes()).expect("written");
        input.rewind().expect("a file");
        killed_after(|| {
            let survivor = Survivor::start(&|_| false).expect("started");
            survivor
                .program(input.as_fd(), &[b"/bin/sh", b"-s"])
                .expect("noted");
            let (reader, writer) = std::io::pipe().expect("a pipe");
            survivor
                .wait_for(reader.as_fd(), writer.as_fd())
                .expect("noted");
            // It is at work until we are dead, and a moment longer.
            let first = format!(
                "while read -r _ _ _ parent _ < /proc/$$/stat; [ $parent = {} ]; do :; done; : > {}.first",
                std::process::id(),
                file.display()
            );
            let slow = std::process::Command::new("/bin/sh")
                .args(["-c", &first])
                .stdout(writer.try_clone().expect("a copy"))
                .spawn();
            std::mem::forget((survivor, reader, writer, slow.expect("runs")));
        });
        assert!(file.exists());
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn a_survivor_that_is_dismissed_does_nothing() {
        let dir = scratch("dismissed");
        let file = dir.join("file");
        let taken = highest_pid();
        let survivor = Survivor::start(&|pid| pid == taken).expect("started");
        assert_ne!(survivor.child.get(), taken);
        note(&survivor, &file, When::Ever);
        std::fs::write(&file, "x").expect("write");
        let child = survivor.child;
        drop(survivor);
        assert!(!Path::new(&format!("/proc/{child}")).exists());
        assert!(file.exists());
        std::fs::remove_dir_all(&dir).expect("clean up");
    }
}
