//! /proc/PID/fdinfo/N: position, flags and mount of an open description, the locks it holds, and
//! what its kind has to say: the counter of an eventfd, the targets of an epoll, the watches of an
//! inotify (proc_pid_fdinfo(5), the show_fdinfo functions of each kind).
//!
//! `flags` is the only place outside the task that tells close-on-exec, and it does so per
//! descriptor, not per description. Kinds announce themselves by their lines alone, so the parsed
//! value holds them all side by side; what is absent is `None` or empty. Lines of kinds not known
//! here stay raw in `other`.

use super::locks::{Lock, parse_lock};
use super::text::{Line, ParseError, Words, decimal, hex, lines};

/// O_CLOEXEC as x86 and the generic ABI number it.
const O_CLOEXEC: u32 = libc::O_CLOEXEC as u32;

/// A parsed fdinfo file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fdinfo {
    /// Position in the file.
    pub pos: i64,
    /// O_* of the description, and O_CLOEXEC of the descriptor.
    pub flags: u32,
    /// Mount, as in mountinfo; since 3.15.
    pub mnt_id: Option<u32>,
    /// Inode; since 5.14.
    pub ino: Option<u64>,
    /// Locks this description holds on its inode.
    pub locks: Vec<Lock>,
    /// eventfd.
    pub eventfd: Option<EventfdInfo>,
    /// Targets of an epoll, ordered by (file, fd) as the kernel's tree is.
    pub epoll: Vec<EpollTarget>,
    /// Mask of a signalfd: bit 0 is signal 1.
    pub sigmask: Option<u64>,
    /// timerfd.
    pub timerfd: Option<TimerfdInfo>,
    /// Watches of an inotify.
    pub inotify: Vec<InotifyWatch>,
    /// fanotify.
    pub fanotify: Option<FanotifyInfo>,
    /// pidfd.
    pub pidfd: Option<PidfdInfo>,
    /// Index of the pty of a /dev/ptmx master.
    pub tty_index: Option<u32>,
    /// Interface of a tun descriptor.
    pub tun_iff: Option<Vec<u8>>,
    /// Descriptors in flight in the queue of a unix socket; since 5.10.
    pub scm_fds: Option<u32>,
    /// Lines of other kinds.
    pub other: Vec<Vec<u8>>,
}

impl Fdinfo {
    /// FD_CLOEXEC of the descriptor.
    pub fn cloexec(&self) -> bool {
        self.flags & O_CLOEXEC != 0
    }

    /// O_* of the description alone, as F_GETFL gives them.
    pub fn status_flags(&self) -> u32 {
        self.flags & !O_CLOEXEC
    }
}

/// eventfd(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventfdInfo {
    /// Counter.
    pub count: u64,
    /// Kernel-wide number of the eventfd; since 5.2.
    pub id: Option<i32>,
    /// EFD_SEMAPHORE; since 6.5.
    pub semaphore: Option<bool>,
}

/// One registration in an epoll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollTarget {
    /// Descriptor number at registration. It may be closed or mean another file by now.
    pub fd: i32,
    /// EPOLL* bits.
    pub events: u32,
    /// epoll_data.
    pub data: u64,
    /// Position, inode and device of the target; since 4.13.
    pub file: Option<EpollFile>,
}

/// The target of an epoll registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpollFile {
    /// Position.
    pub pos: i64,
    /// Inode.
    pub ino: u64,
    /// s_dev in the kernel's internal encoding: major << 20 | minor.
    pub sdev: u32,
}

/// timerfd_create(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimerfdInfo {
    /// Clock.
    pub clock_id: i32,
    /// Expirations not yet read.
    pub ticks: u64,
    /// Flags of timerfd_settime(2).
    pub settime_flags: u32,
    /// Time left, seconds and nanoseconds; relative even for TFD_TIMER_ABSTIME.
    pub value: (u64, u64),
    /// Interval.
    pub interval: (u64, u64),
}

/// A file handle as name_to_handle_at(2) gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handle {
    /// Type, private to the file system.
    pub handle_type: u32,
    /// Bytes.
    pub bytes: Vec<u8>,
}

/// One watch of an inotify. Without CONFIG_EXPORTFS there is no handle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InotifyWatch {
    /// Watch descriptor.
    pub wd: i32,
    /// Inode.
    pub ino: u64,
    /// s_dev in the kernel's internal encoding: major << 20 | minor.
    pub sdev: u32,
    /// IN_* bits.
    pub mask: u32,
    /// Always 0 since 4.16.
    pub ignored_mask: u32,
    /// How to find the inode.
    pub handle: Option<Handle>,
}

/// fanotify_init(2) and its marks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FanotifyInfo {
    /// Flags of fanotify_init(2), without FAN_CLOEXEC and FAN_NONBLOCK.
    pub flags: u32,
    /// event_f_flags.
    pub event_flags: u32,
    /// Marks.
    pub marks: Vec<FanotifyMark>,
}

/// One fanotify mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FanotifyMark {
    /// What is marked.
    pub object: FanotifyObject,
    /// FAN_MARK_* kept by the mark.
    pub mark_flags: u32,
    /// FAN_* events.
    pub mask: u64,
    /// FAN_* events ignored.
    pub ignored_mask: u64,
}

/// What a fanotify mark sits on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FanotifyObject {
    /// An inode.
    Inode {
        /// Inode number.
        ino: u64,
        /// s_dev in the kernel's internal encoding.
        sdev: u32,
        /// How to find it.
        handle: Option<Handle>,
    },
    /// A mount.
    Mount(i32),
    /// A whole file system, s_dev in the kernel's internal encoding.
    Filesystem(u32),
    /// A mount namespace; since 6.14.
    MountNamespace(u64),
}

/// pidfd_open(2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PidfdInfo {
    /// Pid in the reader's namespace; 0 when it is not in it, -1 when the process is reaped.
    pub pid: i32,
    /// Pids from the reader's namespace to the innermost.
    pub ns_pid: Vec<i32>,
}

/// Parses the whole of a fdinfo file.
pub fn parse_fdinfo(text: &[u8]) -> Result<Fdinfo, ParseError> {
    let mut info = Fdinfo::default();
    let mut seen = (false, false);
    for line in lines("fdinfo", text) {
        match line.key_value() {
            Some((b"pos", _)) => {
                info.pos = line.value_of("pos")?.decimal("pos")?;
                seen.0 = true;
            }
            Some((b"flags", _)) => {
                info.flags = line.value_of("flags")?.octal("flags")?;
                seen.1 = true;
            }
            Some((key, value)) => parse_detail(&mut info, line, key, value)?,
            None => info.other.push(line.text().to_vec()),
        }
    }
    let missing = |what| Line::new("fdinfo", 0, b"").error(what);
    match seen {
        (true, true) => Ok(info),
        (false, _) => Err(missing("pos")),
        (_, false) => Err(missing("flags")),
    }
}

/// The flags line alone, for a reader that wants close-on-exec of many descriptors and not the
/// ten thousand targets of an epoll.
pub fn parse_fdinfo_flags(text: &[u8]) -> Result<u32, ParseError> {
    let flags = lines("fdinfo", text).find_map(|line| line.value_of("flags").ok());
    flags
        .ok_or_else(|| Line::new("fdinfo", 0, b"").error("flags"))?
        .octal("flags")
}

/// The locks alone, for a reader that wants those of many descriptors.
pub fn parse_fdinfo_locks(text: &[u8]) -> Result<Vec<Lock>, ParseError> {
    let locks = lines("fdinfo", text).filter_map(|line| match line.key_value() {
        Some((b"lock", value)) => Some(parse_lock(line.words_of(value))),
        _ => None,
    });
    locks.collect()
}

fn parse_detail(
    info: &mut Fdinfo,
    line: Line<'_>,
    key: &[u8],
    value: &[u8],
) -> Result<(), ParseError> {
    let mut words = line.words_of(value);
    match key {
        b"mnt_id" => info.mnt_id = Some(words.decimal("mnt_id")?),
        b"ino" => info.ino = Some(words.decimal("ino")?),
        b"lock" => info.locks.push(parse_lock(words)?),
        b"tfd" => info.epoll.push(parse_epoll_target(words)?),
        b"sigmask" => info.sigmask = Some(words.hex("sigmask")?),
        b"tty-index" => info.tty_index = Some(words.decimal("tty-index")?),
        b"iff" => info.tun_iff = Some(value.to_vec()),
        b"scm_fds" => info.scm_fds = Some(words.decimal("scm_fds")?),
        b"Pid" => pidfd(info).pid = words.decimal("Pid")?,
        b"NSpid" => pidfd(info).ns_pid = words.decimals("NSpid")?,
        b"inotify wd" => info.inotify.push(parse_inotify(line)?),
        _ if key.starts_with(b"eventfd-") => parse_eventfd(info, line, key, words)?,
        _ if key.starts_with(b"fanotify ") => parse_fanotify(info, line)?,
        b"clockid" | b"ticks" | b"settime flags" | b"it_value" | b"it_interval" => {
            parse_timerfd(info, line, key, words)?
        }
        _ => info.other.push(line.text().to_vec()),
    }
    Ok(())
}

fn pidfd(info: &mut Fdinfo) -> &mut PidfdInfo {
    info.pidfd.get_or_insert_default()
}

fn parse_eventfd(
    info: &mut Fdinfo,
    line: Line<'_>,
    key: &[u8],
    mut words: Words<'_>,
) -> Result<(), ParseError> {
    let eventfd = info.eventfd.get_or_insert_default();
    match key {
        b"eventfd-count" => eventfd.count = words.hex("eventfd-count")?,
        b"eventfd-id" => eventfd.id = Some(words.decimal("eventfd-id")?),
        b"eventfd-semaphore" => {
            eventfd.semaphore = Some(words.decimal::<u8>("eventfd-semaphore")? != 0);
        }
        _ => info.other.push(line.text().to_vec()),
    }
    Ok(())
}

/// `3 events: 19 data: 3  pos:0 ino:40e sdev:10`
fn parse_epoll_target(mut words: Words<'_>) -> Result<EpollTarget, ParseError> {
    let fd = words.decimal("tfd")?;
    words.tagged("events:")?;
    let events = words.hex("events")?;
    words.tagged("data:")?;
    let data = words.hex("data")?;
    let file = match words.clone().next_word() {
        None => None,
        Some(_) => Some(EpollFile {
            pos: decimal(words.tagged("pos:")?).ok_or_else(|| words.error("pos:"))?,
            ino: words.tagged_hex("ino:")?,
            sdev: words.tagged_hex("sdev:")?,
        }),
    };
    Ok(EpollTarget {
        fd,
        events,
        data,
        file,
    })
}

fn parse_timerfd(
    info: &mut Fdinfo,
    line: Line<'_>,
    key: &[u8],
    mut words: Words<'_>,
) -> Result<(), ParseError> {
    let timerfd = info.timerfd.get_or_insert_default();
    match key {
        b"clockid" => timerfd.clock_id = words.decimal("clockid")?,
        b"ticks" => timerfd.ticks = words.decimal("ticks")?,
        b"settime flags" => timerfd.settime_flags = words.octal("settime flags")?,
        b"it_value" => timerfd.value = parse_time(words)?,
        b"it_interval" => timerfd.interval = parse_time(words)?,
        _ => return Err(line.error("timerfd")),
    }
    Ok(())
}

/// `(99, 999957684)`
fn parse_time(mut words: Words<'_>) -> Result<(u64, u64), ParseError> {
    let seconds = words.word("seconds")?;
    let nanoseconds = words.word("nanoseconds")?;
    let seconds = seconds
        .strip_prefix(b"(")
        .and_then(|s| s.strip_suffix(b","));
    let nanoseconds = nanoseconds.strip_suffix(b")").and_then(decimal);
    match (seconds.and_then(decimal), nanoseconds) {
        (Some(seconds), Some(nanoseconds)) => Ok((seconds, nanoseconds)),
        _ => Err(words.error("time")),
    }
}

/// `inotify wd:1 ino:3c4a7 sdev:fe00000 mask:2 ignored_mask:0 fhandle-bytes:8 ...`, all
/// hexadecimal.
fn parse_inotify(line: Line<'_>) -> Result<InotifyWatch, ParseError> {
    let mut words = line.words();
    words.tagged("inotify")?;
    Ok(InotifyWatch {
        wd: words.tagged_hex("wd:")?,
        ino: words.tagged_hex("ino:")?,
        sdev: words.tagged_hex("sdev:")?,
        mask: words.tagged_hex("mask:")?,
        ignored_mask: words.tagged_hex("ignored_mask:")?,
        handle: parse_handle(words)?,
    })
}

/// `fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000`
fn parse_handle(mut words: Words<'_>) -> Result<Option<Handle>, ParseError> {
    if words.clone().next_word().is_none() {
        return Ok(None);
    }
    let len: usize = words.tagged_hex("fhandle-bytes:")?;
    let handle_type = words.tagged_hex("fhandle-type:")?;
    let digits = words.tagged("f_handle:")?;
    let (pairs, odd) = digits.as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs.iter().map(|pair| hex(pair)).collect();
    match bytes {
        Some(bytes) if odd.is_empty() && bytes.len() == len => {
            Ok(Some(Handle { handle_type, bytes }))
        }
        _ => Err(words.error("f_handle:")),
    }
}

fn parse_fanotify(info: &mut Fdinfo, line: Line<'_>) -> Result<(), ParseError> {
    let fanotify = info.fanotify.get_or_insert_default();
    let mut words = line.words();
    words.tagged("fanotify")?;
    let kind = words.clone().word("fanotify kind")?;
    if kind.starts_with(b"flags:") {
        fanotify.flags = words.tagged_hex("flags:")?;
        fanotify.event_flags = words.tagged_hex("event-flags:")?;
        return Ok(());
    }
    let mut object = if kind.starts_with(b"mnt_id:") {
        FanotifyObject::Mount(words.tagged_hex("mnt_id:")?)
    } else if kind.starts_with(b"mnt_ns:") {
        let word = words.tagged("mnt_ns:")?;
        FanotifyObject::MountNamespace(decimal(word).ok_or_else(|| words.error("mnt_ns:"))?)
    } else if kind.starts_with(b"sdev:") {
        FanotifyObject::Filesystem(words.tagged_hex("sdev:")?)
    } else {
        FanotifyObject::Inode {
            ino: words.tagged_hex("ino:")?,
            sdev: words.tagged_hex("sdev:")?,
            handle: None,
        }
    };
    let mark_flags = words.tagged_hex("mflags:")?;
    let mask = words.tagged_hex("mask:")?;
    let ignored_mask = words.tagged_hex("ignored_mask:")?;
    if let FanotifyObject::Inode { handle, .. } = &mut object {
        *handle = parse_handle(words)?;
    }
    fanotify.marks.push(FanotifyMark {
        object,
        mark_flags,
        mask,
        ignored_mask,
    });
    Ok(())
}

#[cfg(test)]
#[path = "fdinfo_tests.rs"]
mod tests;
