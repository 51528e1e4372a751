//! Reading a TCP connection by TCP_REPAIR (net/ipv4/tcp.c, Linux 3.5) without ever leaving it in
//! repair mode.
//!
//! Sequence numbers, windows and the queue of sent bytes are shown in repair mode only, and a
//! socket in repair mode is broken for its program: read(2) answers EPERM. If we set the mode and
//! were killed, it would stay. The task itself cannot switch it off, for that needs CAP_NET_ADMIN.
//! So a child of ours, the reader, does it: it survives our death, has one socket in repair mode
//! at a time, for the few microseconds that reading takes, before all others on its processor
//! (SCHED_FIFO), and it touches no further one from the moment when the kernel begins to take our
//! thread apart ([`Alive`]), before it lets our tasks run. It makes system calls only and writes into
//! memory shared with us. Only a SIGKILL to the reader itself, within such a moment, would harm.
//!
//! TCP_REPAIR sets SO_REUSEADDR as a side effect and clears it at the end; the reader puts it back.

use nix::errno::Errno;
use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// include/uapi/linux/tcp.h: the values of TCP_REPAIR and TCP_REPAIR_QUEUE.
const REPAIR_ON: i32 = 1;
const REPAIR_OFF_NO_PROBE: i32 = -1;
const NO_QUEUE: i32 = 0;
const RECEIVE_QUEUE: i32 = 1;
const SEND_QUEUE: i32 = 2;
/// include/uapi/linux/sockios.h.
const SIOCOUTQNSD: u64 = 0x894b;
/// Bytes of a set of pending signals, as the kernel takes it.
const SIGSET: usize = 8;
/// Told by the kernel when the thread that forked the reader dies. Blocked, only looked for.
const DEATH: i32 = libc::SIGUSR1;

/// A connection to be read.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// A copy of the descriptor.
    pub fd: BorrowedFd<'a>,
    /// SO_REUSEADDR, to be put back.
    pub reuse: bool,
    /// Room for this many bytes of the send queue.
    pub room: usize,
}

/// The windows, as TCP_REPAIR_WINDOW has them (Linux 4.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// Sequence number of the segment that set the send window last.
    pub snd_wl1: u32,
    /// The peer's window.
    pub snd_wnd: u32,
    /// The largest it has ever had.
    pub max_window: u32,
    /// Our window.
    pub rcv_wnd: u32,
    /// Sequence number up to which it was told.
    pub rcv_wup: u32,
}

/// What repair mode shows of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// Sequence number of the next byte to come (rcv_nxt), the peer's FIN counted.
    pub in_seq: u32,
    /// Sequence number behind the last byte written (write_seq), our FIN counted.
    pub out_seq: u32,
    /// Largest segment that the peer takes.
    pub mss_clamp: u32,
    /// The clock of the timestamps option.
    pub timestamp: u32,
    /// `None` before Linux 4.8.
    pub windows: Option<Windows>,
    /// Bytes that wait to be read (SIOCINQ), FIN not counted.
    pub waiting: usize,
    /// Bytes not acknowledged (SIOCOUTQ), our FIN counted.
    pub unacked: usize,
    /// Of those the ones never sent (SIOCOUTQNSD), our FIN counted.
    pub unsent: usize,
    /// The bytes not acknowledged, as many as there was room for.
    pub sent: Vec<u8>,
    /// There were more than the room.
    pub truncated: bool,
}

/// Why a connection could not be read: the call, and the kernel's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {errno}")]
pub struct RepairError {
    /// The call.
    pub call: &'static str,
    /// The kernel's word.
    pub errno: Errno,
}

/// The calls of the reader on one socket, by the number with which it tells of a failure.
const CALLS: [&str; 14] = [
    "nothing was done: the reader ended early",
    "setsockopt(TCP_REPAIR)",
    "getsockopt(TCP_MAXSEG)",
    "getsockopt(TCP_TIMESTAMP)",
    "setsockopt(TCP_REPAIR_QUEUE)",
    "getsockopt(TCP_QUEUE_SEQ)",
    "setsockopt(TCP_REPAIR_QUEUE)",
    "getsockopt(TCP_QUEUE_SEQ)",
    "ioctl(SIOCINQ)",
    "ioctl(SIOCOUTQ)",
    "ioctl(SIOCOUTQNSD)",
    "recv(MSG_PEEK) of the send queue",
    "getsockopt(TCP_REPAIR_WINDOW)",
    "setsockopt(TCP_REPAIR), the end of repair mode, twice",
];

/// One socket in the shared memory: what to read, and what was read.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Record {
    fd: i32,
    reuse: i32,
    /// Where the bytes of the queue go, from the start of the mapping, and how many.
    at: u64,
    room: u64,
    /// The first failed call as an index of [`CALLS`]; `CALLS.len()` when all went well.
    failed: u32,
    errno: i32,
    words: Words,
    has_windows: i32,
    got: i64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Words {
    in_seq: u32,
    out_seq: u32,
    mss_clamp: u32,
    timestamp: u32,
    windows: [u32; 5],
    waiting: u32,
    unacked: u32,
    unsent: u32,
}

/// Anonymous memory shared with a child.
struct Shared {
    base: NonNull<c_void>,
    len: usize,
}

impl Shared {
    fn map(len: usize) -> nix::Result<Shared> {
        let len = len.max(1);
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping where the kernel likes; no memory in use is touched.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let base = NonNull::new(base).ok_or(Errno::ENOMEM)?;
        Ok(Shared { base, len })
    }

    fn record(&self, index: usize) -> *mut Record {
        assert!((index + 1) * size_of::<Record>() <= self.len, "made so");
        // SAFETY: inside the mapping by the assertion, and aligned: a mapping begins at a page.
        unsafe { self.base.as_ptr().cast::<Record>().add(index) }
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len, "the reader was given this room");
        let mut bytes = vec![0; len];
        // SAFETY: inside the mapping by the assertion; the reader is dead, nobody writes.
        unsafe {
            let from = self.base.as_ptr().cast::<u8>().add(at);
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), len);
        }
        bytes
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.base.as_ptr(), self.len) };
    }
}

/// Reads connections by a reader of our own. None is in repair mode afterwards, whatever happens
/// to us meanwhile. Needs CAP_NET_ADMIN in the user namespace of their network.
pub fn read_connections(
    subjects: &[Subject<'_>],
) -> nix::Result<Vec<Result<Connection, RepairError>>> {
    if subjects.is_empty() {
        return Ok(Vec::new());
    }
    let records = subjects.len() * size_of::<Record>();
    // One byte more than is expected shows a queue that has grown.
    let queues: usize = subjects.iter().map(|subject| subject.room + 1).sum();
    let shared = Shared::map(records + queues)?;
    let mut at = records;
    for (index, subject) in subjects.iter().enumerate() {
        let record = Record {
            fd: subject.fd.as_raw_fd(),
            reuse: subject.reuse.into(),
            at: at as u64,
            room: subject.room as u64 + 1,
            failed: 0,
            errno: libc::ECANCELED,
            words: Words::default(),
            has_windows: 0,
            got: 0,
        };
        // SAFETY: a place of the mapping for this record; the reader is not there yet.
        unsafe { shared.record(index).write(record) };
        at += subject.room + 1;
    }
    run_reader(&shared, subjects.len())?;
    Ok((0..subjects.len())
        // SAFETY: written above, and by the reader, which is dead, with values of these types.
        .map(|index| result(&shared, unsafe { shared.record(index).read() }))
        .collect())
}

fn result(shared: &Shared, record: Record) -> Result<Connection, RepairError> {
    if let Some(call) = CALLS.get(record.failed as usize) {
        let errno = Errno::from_raw(record.errno);
        return Err(RepairError { call, errno });
    }
    let words = record.words;
    let [snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup] = words.windows;
    let windows = Windows {
        snd_wl1,
        snd_wnd,
        max_window,
        rcv_wnd,
        rcv_wup,
    };
    let got = record.got.clamp(0, record.room as i64) as usize;
    let room = record.room as usize - 1;
    Ok(Connection {
        in_seq: words.in_seq,
        out_seq: words.out_seq,
        mss_clamp: words.mss_clamp,
        timestamp: words.timestamp,
        windows: (record.has_windows != 0).then_some(windows),
        waiting: words.waiting as usize,
        unacked: words.unacked as usize,
        unsent: words.unsent as usize,
        sent: shared.bytes(record.at as usize, got.min(room)),
        truncated: got > room,
    })
}

/// A lock that the calling thread holds as long as it lives. The kernel marks it when the thread
/// dies, in exit_mm of kernel/exit.c, which is before it lets go of the tasks that the thread traces
/// (exit_notify): who finds it held knows that they stand still.
struct Alive {
    shared: Shared,
}

impl Alive {
    fn hold() -> nix::Result<Alive> {
        let shared = Shared::map(size_of::<libc::pthread_mutex_t>())?;
        let told = |code: i32| match code {
            0 => Ok(()),
            code => Err(Errno::from_raw(code)),
        };
        // SAFETY: the attributes live here, the lock in the mapping, which begins at a page; it is
        // made before anybody has it.
        unsafe {
            let mut how: libc::pthread_mutexattr_t = std::mem::zeroed();
            told(libc::pthread_mutexattr_init(&mut how))?;
            libc::pthread_mutexattr_setpshared(&mut how, libc::PTHREAD_PROCESS_SHARED);
            libc::pthread_mutexattr_setrobust(&mut how, libc::PTHREAD_MUTEX_ROBUST);
            let lock = shared.base.as_ptr().cast();
            told(libc::pthread_mutex_init(lock, &how))?;
            told(libc::pthread_mutex_lock(lock))?;
        }
        Ok(Alive { shared })
    }

    /// For the reader: whether the thread that holds it lives.
    fn is_held(&self) -> bool {
        // SAFETY: the lock was made in the mapping; trying takes no other lock and no memory.
        unsafe { libc::pthread_mutex_trylock(self.shared.base.as_ptr().cast()) == libc::EBUSY }
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        // SAFETY: this thread holds the lock, and the reader, the only other one, is dead.
        unsafe { libc::pthread_mutex_unlock(self.shared.base.as_ptr().cast()) };
    }
}

/// Forks the reader and waits for its end.
fn run_reader(shared: &Shared, count: usize) -> nix::Result<()> {
    let alive = Alive::hold()?;
    // SAFETY: the child makes system calls only, on memory of ours that it has a copy of and on
    // the shared mapping, so that locks held by our other threads do not matter; it never returns.
    match Errno::result(unsafe { libc::fork() })? {
        0 => unsafe { read_as_child(shared, count, &alive) },
        reader => loop {
            let mut status = 0;
            // SAFETY: fills one int, which outlives the call.
            let waited = unsafe { libc::waitpid(reader, &mut status, 0) };
            match Errno::result(waited) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => return Ok(()),
            }
        },
    }
}

/// The life of the reader.
///
/// # Safety
/// In a child just forked, with the mapping of the parent and its descriptors.
unsafe fn read_as_child(shared: &Shared, count: usize, alive: &Alive) -> ! {
    let all = u64::MAX;
    // SAFETY: system calls with buffers of ours that outlive them; records are inside the mapping.
    unsafe {
        let set = std::ptr::from_ref(&all);
        let none = std::ptr::null_mut::<u64>();
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            set,
            none,
            SIGSET,
        );
        libc::prctl(libc::PR_SET_PDEATHSIG, DEATH);
        // Not with the group of our parent, should a terminal or a shell kill that.
        libc::setsid();
        // A reader that waits for a processor leaves a socket as it is meanwhile. Where we may not
        // ask for it, it is as it was.
        let first = libc::sched_param { sched_priority: 1 };
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &first);
        for index in 0..count {
            if !alive.is_held() || is_told_of_death() {
                break;
            }
            read_one(shared, &mut *shared.record(index));
        }
        libc::_exit(0)
    }
}

/// # Safety
/// None beyond that of a system call with a buffer of its own.
unsafe fn is_told_of_death() -> bool {
    let mut pending = 0u64;
    // SAFETY: fills one set of signals, which outlives the call.
    unsafe { libc::syscall(libc::SYS_rt_sigpending, &mut pending, SIGSET) };
    pending & (1 << (DEATH - 1)) != 0
}

/// Reads one socket, in repair mode from the first call to the last but one.
///
/// # Safety
/// `record` is one of the mapping, with its place for the queue.
unsafe fn read_one(shared: &Shared, record: &mut Record) {
    // SAFETY: see the functions called; the socket is a descriptor that we inherited.
    unsafe {
        let fd = record.fd;
        if set(fd, libc::TCP_REPAIR, REPAIR_ON) != 0 {
            record.failed = 1;
            record.errno = last_errno();
            return;
        }
        record.failed = CALLS.len() as u32;
        if let Err(call) = look(shared, record) {
            record.failed = call;
            record.errno = last_errno();
        }
        // Without repair mode a chosen queue still shows (TCP_QUEUE_SEQ).
        set(fd, libc::TCP_REPAIR_QUEUE, NO_QUEUE);
        // Once more, for nobody else will: a socket left in this mode is broken.
        if set(fd, libc::TCP_REPAIR, REPAIR_OFF_NO_PROBE) != 0
            && set(fd, libc::TCP_REPAIR, REPAIR_OFF_NO_PROBE) != 0
        {
            record.failed = 13;
            record.errno = last_errno();
        }
        if record.reuse != 0 {
            let (level, name) = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
            let value = std::ptr::from_ref(&record.reuse).cast();
            libc::setsockopt(fd, level, name, value, 4);
        }
    }
}

/// The questions to a socket in repair mode; the number of the call that failed.
///
/// # Safety
/// As [`read_one`].
unsafe fn look(shared: &Shared, record: &mut Record) -> Result<(), u32> {
    // SAFETY: every buffer is a word of the record or the record's room in the mapping.
    unsafe {
        let fd = record.fd;
        let words = &mut record.words;
        let check = |got: i32, call: u32| if got == 0 { Ok(()) } else { Err(call) };
        check(get(fd, libc::TCP_MAXSEG, &mut words.mss_clamp), 2)?;
        check(get(fd, libc::TCP_TIMESTAMP, &mut words.timestamp), 3)?;
        check(set(fd, libc::TCP_REPAIR_QUEUE, RECEIVE_QUEUE), 4)?;
        check(get(fd, libc::TCP_QUEUE_SEQ, &mut words.in_seq), 5)?;
        check(libc::ioctl(fd, libc::FIONREAD, &mut words.waiting), 8)?;
        check(set(fd, libc::TCP_REPAIR_QUEUE, SEND_QUEUE), 6)?;
        check(get(fd, libc::TCP_QUEUE_SEQ, &mut words.out_seq), 7)?;
        check(libc::ioctl(fd, libc::TIOCOUTQ, &mut words.unacked), 9)?;
        check(libc::ioctl(fd, SIOCOUTQNSD, &mut words.unsent), 10)?;
        record.has_windows = i32::from(get(fd, libc::TCP_REPAIR_WINDOW, &mut words.windows) == 0);
        if record.has_windows == 0 && last_errno() != libc::ENOPROTOOPT {
            return Err(12);
        }
        if words.unacked == 0 {
            return Ok(());
        }
        let room = shared.base.as_ptr().cast::<u8>().add(record.at as usize);
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        record.got = libc::recv(fd, room.cast(), record.room as usize, flags) as i64;
        // A queue that holds nothing but our FIN.
        if record.got < 0 && last_errno() == libc::EAGAIN {
            record.got = 0;
        }
        if record.got < 0 { Err(11) } else { Ok(()) }
    }
}

/// # Safety
/// None beyond that of a system call with a buffer of its own.
unsafe fn set(fd: i32, name: i32, value: i32) -> i32 {
    // SAFETY: reads one int, which outlives the call.
    unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, name, (&raw const value).cast(), 4) }
}

/// # Safety
/// None beyond that of a system call that fills `value`.
unsafe fn get<T>(fd: i32, name: i32, value: &mut T) -> i32 {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: fills at most the size of value, plain words, which outlive the call.
    unsafe {
        let value = std::ptr::from_mut(value).cast();
        libc::getsockopt(fd, libc::IPPROTO_TCP, name, value, &mut len)
    }
}

/// # Safety
/// The location of errno is that of the calling thread.
unsafe fn last_errno() -> i32 {
    // SAFETY: always valid for the calling thread.
    unsafe { *libc::__errno_location() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::sockopt_int;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is up");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connects");
        let (server, _) = listener.accept().expect("a connection waits");
        (client, server)
    }

    fn subject(socket: &TcpStream) -> Subject<'_> {
        Subject {
            fd: socket.as_fd(),
            reuse: sockopt_int(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR) == Ok(1),
            room: 1 << 16,
        }
    }

    #[test]
    fn both_ends_agree_and_go_on() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs CAP_NET_ADMIN");
            return;
        }
        let (mut client, mut server) = pair();
        client.write_all(b"hello").expect("sent");
        server.write_all(b"hi").expect("sent");
        let mut peeked = [0; 8];
        // What is sent over loopback has arrived, or arrives as the sender's call ends; a peek
        // waits for it.
        assert_eq!(server.peek(&mut peeked).expect("bytes"), 5);
        assert_eq!(client.peek(&mut peeked).expect("bytes"), 2);
        let read = read_connections(&[subject(&client), subject(&server)]).expect("a reader");
        let [client_read, server_read] = read.as_slice() else {
            panic!("{read:?}");
        };
        let (one, other) = (client_read.clone(), server_read.clone());
        let (one, other) = (one.expect("read"), other.expect("read"));
        assert_eq!(one.out_seq, other.in_seq);
        assert_eq!(one.in_seq, other.out_seq);
        assert_eq!((one.waiting, other.waiting), (2, 5));
        assert!(one.mss_clamp > 1000 && one.windows.is_some());
        let mut bytes = [0; 5];
        server.read_exact(&mut bytes).expect("not in repair mode");
        client
            .read_exact(&mut bytes[..2])
            .expect("not in repair mode");
        client.write_all(b"more").expect("not in repair mode");
        server.read_exact(&mut bytes[..4]).expect("it still flows");
    }

    #[test]
    fn a_socket_that_is_none_is_told() {
        let file = std::fs::File::open("/dev/null").expect("there");
        let subject = Subject {
            fd: file.as_fd(),
            reuse: false,
            room: 0,
        };
        let read = read_connections(&[subject]).expect("a reader");
        let error = read[0].clone().expect_err("no socket");
        assert_eq!(error.errno, Errno::ENOTSOCK);
        assert!(error.to_string().contains("TCP_REPAIR"), "{error}");
    }

    #[test]
    fn reuse_of_the_address_is_as_before() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs CAP_NET_ADMIN");
            return;
        }
        let (client, server) = pair();
        let reuse = |socket: &TcpStream| {
            sockopt_int(socket.as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR).expect("asked")
        };
        // TcpListener sets it, and what is accepted inherits it.
        let before = (reuse(&client), reuse(&server));
        assert_ne!(before.0, before.1);
        read_connections(&[subject(&client), subject(&server)]).expect("a reader");
        assert_eq!((reuse(&client), reuse(&server)), before);
    }
}
