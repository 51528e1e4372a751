//! Questions to an open file description of another task, asked on a descriptor of our own that
//! pidfd_getfd(2) or a message gave us.
//!
//! Such a descriptor is the very description the task holds, so nothing here seeks, sets flags,
//! reads or writes. The one exception is [`PeekOffset`], which changes a socket option that only
//! a reader with MSG_PEEK can see, and puts it back. No error names a task: the caller knows whose
//! descriptor it is.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

/// fcntl(2) commands of include/uapi/asm-generic/fcntl.h that libc does not have everywhere.
const F_GETSIG: i32 = 11;
const F_GETOWN_EX: i32 = 16;
const F_GETOWNER_UIDS: i32 = 17;
/// include/uapi/linux/un.h: an O_PATH descriptor of the inode a unix socket is bound to.
const SIOCUNIXFILE: libc::c_ulong = 0x89e0;

/// The result of a question: the kernel's bare word, to which the caller adds the subject.
pub type Result<T> = nix::Result<T>;

/// Who is told of input or output (fcntl(2), F_SETOWN_EX and F_SETSIG). All zero when nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Real user id of the task that set the owner.
    pub uid: u32,
    /// Its effective user id.
    pub euid: u32,
    /// The signal, 0 for SIGIO.
    pub signum: u32,
    /// As F_GETOWN_EX numbers it: 0 a thread, 1 a process, 2 a process group.
    pub pid_type: u32,
    /// The thread, process or group as our pid namespace numbers it; 0 for none.
    pub pid: i32,
}

/// Reads the owner; nobody for an O_PATH descriptor, which has none and answers EBADF.
pub fn owner(fd: BorrowedFd) -> Result<Owner> {
    #[repr(C)]
    #[derive(Default)]
    struct OwnerEx {
        kind: i32,
        pid: i32,
    }
    let mut ex = OwnerEx::default();
    // SAFETY: F_GETOWN_EX fills the two words of ex, which outlives the call.
    let got = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &mut ex) };
    match Errno::result(got) {
        Err(Errno::EBADF) => return Ok(Owner::default()),
        other => other?,
    };
    let signum = fcntl_get(fd, F_GETSIG)? as u32;
    if ex.pid == 0 {
        return Ok(Owner {
            signum,
            ..Owner::default()
        });
    }
    let mut uids = [0u32; 2];
    // SAFETY: F_GETOWNER_UIDS fills the two words of uids, which outlives the call.
    let got = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWNER_UIDS, &mut uids) };
    Errno::result(got)?;
    Ok(Owner {
        uid: uids[0],
        euid: uids[1],
        signum,
        pid_type: ex.kind as u32,
        pid: ex.pid,
    })
}

/// The status flags of the description, the access mode among them (F_GETFL).
pub fn status_flags(fd: BorrowedFd) -> Result<i32> {
    fcntl_get(fd, libc::F_GETFL)
}

/// The capacity of a pipe in bytes.
pub fn pipe_size(fd: BorrowedFd) -> Result<i32> {
    fcntl_get(fd, libc::F_GETPIPE_SZ)
}

/// The seals of a memfd.
pub fn seals(fd: BorrowedFd) -> Result<u32> {
    fcntl_get(fd, libc::F_GET_SEALS).map(|seals| seals as u32)
}

/// The lease on a file that this description holds: F_RDLCK, F_WRLCK or F_UNLCK.
pub fn lease(fd: BorrowedFd) -> Result<i32> {
    fcntl_get(fd, libc::F_GETLEASE)
}

fn fcntl_get(fd: BorrowedFd, command: i32) -> Result<i32> {
    // SAFETY: the commands passed here take no argument.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), command) })
}

/// The bytes that wait in a pipe or socket (FIONREAD).
pub fn bytes_waiting(fd: BorrowedFd) -> Result<usize> {
    let mut len: i32 = 0;
    // SAFETY: FIONREAD fills one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &mut len) })?;
    Ok(len.max(0) as usize)
}

/// The bytes that a socket has accepted and not sent (SIOCOUTQ).
pub fn bytes_unsent(socket: BorrowedFd) -> Result<usize> {
    let mut len: i32 = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ, fills one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &mut len) })?;
    Ok(len.max(0) as usize)
}

/// The position of the description, 0 for what has none. lseek(2) by 0 from where it stands moves
/// nothing; it is a question only.
pub fn position(fd: BorrowedFd) -> Result<u64> {
    // SAFETY: plain numbers.
    match Errno::result(unsafe { libc::lseek64(fd.as_raw_fd(), 0, libc::SEEK_CUR) }) {
        Ok(pos) => Ok(pos as u64),
        Err(Errno::ESPIPE | Errno::EBADF | Errno::EINVAL | Errno::ENXIO) => Ok(0),
        Err(errno) => Err(errno),
    }
}

/// What statx(2) says of an open description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statx {
    /// The mount it was opened through, as in mountinfo; `None` before Linux 5.8.
    pub mnt_id: Option<u64>,
    /// Mode with the type bits.
    pub mode: u32,
    /// Device of the file system, as `makedev`.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Hard links left.
    pub nlink: u32,
    /// Length in bytes.
    pub size: u64,
    /// Device of a device node, as `makedev`.
    pub rdev: u64,
    /// Owner and group.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Reads the attributes of an open description without waking a network file system's server.
pub fn statx(fd: BorrowedFd) -> Result<Statx> {
    // SAFETY: struct statx is plain integers, for which zero is a value.
    let mut st: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_BASIC_STATS | libc::STATX_MNT_ID;
    // SAFETY: the empty path and st outlive the call.
    let got = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            mask,
            &mut st,
        )
    };
    Errno::result(got)?;
    Ok(Statx {
        mnt_id: (st.stx_mask & libc::STATX_MNT_ID != 0).then_some(st.stx_mnt_id),
        mode: u32::from(st.stx_mode),
        dev: libc::makedev(st.stx_dev_major, st.stx_dev_minor),
        ino: st.stx_ino,
        nlink: st.stx_nlink,
        size: st.stx_size,
        rdev: libc::makedev(st.stx_rdev_major, st.stx_rdev_minor),
        uid: st.stx_uid,
        gid: st.stx_gid,
    })
}

/// What poll(2) tells of a description: of a pipe, on one end, which ends are open somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollState {
    /// POLLHUP: no writer is left.
    pub hung_up: bool,
    /// POLLERR: no reader is left.
    pub error: bool,
    /// POLLIN: something waits, or the end was reached.
    pub readable: bool,
    /// POLLPRI: urgent data waits.
    pub urgent: bool,
    /// POLLRDHUP: a socket will get nothing more.
    pub ended: bool,
}

/// Polls once without waiting.
pub fn poll_state(fd: BorrowedFd) -> Result<PollState> {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN | libc::POLLPRI | libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one pollfd, which outlives the call.
    Errno::result(unsafe { libc::poll(&mut poll, 1, 0) })?;
    Ok(PollState {
        hung_up: poll.revents & libc::POLLHUP != 0,
        error: poll.revents & libc::POLLERR != 0,
        readable: poll.revents & libc::POLLIN != 0,
        urgent: poll.revents & libc::POLLPRI != 0,
        ended: poll.revents & libc::POLLRDHUP != 0,
    })
}

/// Copies everything that waits in a pipe, which keeps it: tee(2) duplicates references to the
/// pipe's buffers into a pipe of ours. `source` must be open for reading; `capacity` is its size.
///
/// A packet-mode pipe (O_DIRECT) keeps its packets apart: the answer is one element for each
/// buffer there, and a single element for an ordinary pipe, none when it is empty.
pub fn tee_all(source: BorrowedFd, capacity: usize, packets: bool) -> Result<Vec<Vec<u8>>> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    // As many slots as the source, or tee would copy a part only.
    let want = i32::try_from(capacity).unwrap_or(i32::MAX);
    // SAFETY: a number for an argument.
    Errno::result(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, want) })?;
    // SAFETY: plain numbers; both descriptors live through the call.
    let copied = unsafe {
        libc::tee(
            source.as_raw_fd(),
            writer.as_raw_fd(),
            i32::MAX as usize,
            libc::SPLICE_F_NONBLOCK,
        )
    };
    let copied = match Errno::result(copied) {
        Ok(copied) => copied as usize,
        Err(Errno::EAGAIN) => 0,
        Err(errno) => return Err(errno),
    };
    drop(writer);
    read_pipe(File::from(reader), copied, packets)
}

fn read_pipe(mut reader: File, len: usize, packets: bool) -> Result<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    let mut left = len;
    // tee keeps the packet mark of each buffer, and a read stops at a marked one, so every read
    // with room for the largest packet (PIPE_BUF, pipe(2)) gives one packet.
    let at_once = if packets { libc::PIPE_BUF } else { len };
    while left > 0 {
        let mut part = vec![0; at_once.min(left)];
        let got = if packets {
            let got = reader.read(&mut part).map_err(errno_of)?;
            part.truncate(got);
            got
        } else {
            reader.read_exact(&mut part).map_err(errno_of)?;
            part.len()
        };
        if got == 0 {
            break;
        }
        left -= got;
        parts.push(part);
    }
    Ok(parts)
}

fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Reads a socket option whose value is one int.
pub fn sockopt_int(socket: BorrowedFd, level: i32, name: i32) -> Result<i32> {
    let mut value = [0u8; 4];
    let len = sockopt_bytes(socket, level, name, &mut value)?;
    // Some options are a single byte, for example IP_MULTICAST_TTL.
    Ok(if len == 1 {
        i32::from(value[0])
    } else {
        i32::from_ne_bytes(value)
    })
}

/// Reads a socket option into `value` and gives the length the kernel filled.
pub fn sockopt_bytes(socket: BorrowedFd, level: i32, name: i32, value: &mut [u8]) -> Result<usize> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: value is writable for len bytes and both outlive the call.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &mut len,
        )
    };
    Errno::result(got)?;
    Ok((len as usize).min(value.len()))
}

/// Sets a socket option to these bytes.
pub fn set_sockopt(socket: BorrowedFd, level: i32, name: i32, value: &[u8]) -> Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: value is readable for len bytes and outlives the call.
    let got =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    Errno::result(got).map(drop)
}

/// The classic filter of a socket (SO_ATTACH_FILTER), each instruction as one word; none when
/// there is none. EACCES for an eBPF program, which cannot be read.
pub fn socket_filter(socket: BorrowedFd) -> Result<Vec<u64>> {
    let mut count: libc::socklen_t = 0;
    // SAFETY: SO_GET_FILTER counts instructions, not bytes; with 0 it writes only the count.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            std::ptr::null_mut(),
            &mut count,
        )
    };
    Errno::result(got)?;
    let mut words = vec![0u64; count as usize];
    if words.is_empty() {
        return Ok(words);
    }
    // SAFETY: words has room for count instructions of 8 bytes.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            words.as_mut_ptr().cast(),
            &mut count,
        )
    };
    Errno::result(got)?;
    words.truncate(count as usize);
    Ok(words)
}

/// The address of a socket, as the raw bytes of its sockaddr.
pub fn local_address(socket: BorrowedFd) -> Result<Vec<u8>> {
    address_by(socket, libc::getsockname)
}

/// The address of a socket's peer; ENOTCONN when it has none.
pub fn peer_address(socket: BorrowedFd) -> Result<Vec<u8>> {
    address_by(socket, libc::getpeername)
}

type AddressCall =
    unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn address_by(socket: BorrowedFd, call: AddressCall) -> Result<Vec<u8>> {
    // SAFETY: sockaddr_storage is plain bytes, for which zero is a value.
    let mut address = vec![0u8; size_of::<libc::sockaddr_storage>()];
    let mut len = address.len() as libc::socklen_t;
    // SAFETY: address is writable for len bytes; the kernel checks no alignment.
    let got = unsafe { call(socket.as_raw_fd(), address.as_mut_ptr().cast(), &mut len) };
    Errno::result(got)?;
    address.truncate(len as usize);
    Ok(address)
}

/// An O_PATH descriptor of the inode a unix socket is bound to. ENOENT when it is bound to none,
/// EPERM without CAP_NET_ADMIN.
pub fn bound_inode(socket: BorrowedFd) -> Result<OwnedFd> {
    // SAFETY: SIOCUNIXFILE takes no argument and answers with a new descriptor.
    let fd = Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCUNIXFILE, 0) })?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Where peeks of a socket begin: -1 for always at the start, the state of a new socket.
pub fn peek_offset(socket: BorrowedFd) -> Result<i32> {
    sockopt_int(socket, libc::SOL_SOCKET, libc::SO_PEEK_OFF)
}

/// Where peeks of a socket begin. SO_PEEK_OFF (socket(7)) makes each recvmsg(2) with MSG_PEEK go
/// on behind the last one; it is a property of the socket, so the task's own value is put back.
#[derive(Debug)]
pub struct PeekOffset<'fd> {
    socket: BorrowedFd<'fd>,
    before: i32,
    restored: bool,
}

impl<'fd> PeekOffset<'fd> {
    /// Remembers the offset and sets it to the start of the queue.
    pub fn rewind(socket: BorrowedFd<'fd>) -> Result<PeekOffset<'fd>> {
        let before = peek_offset(socket)?;
        let offset = PeekOffset {
            socket,
            before,
            restored: false,
        };
        offset.set(0)?;
        Ok(offset)
    }

    /// Puts the task's own offset back.
    pub fn finish(mut self) -> Result<()> {
        self.restored = true;
        self.set(self.before)
    }

    fn set(&self, value: i32) -> Result<()> {
        // SAFETY: the option is one int, which outlives the call.
        let got = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEEK_OFF,
                (&raw const value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        Errno::result(got).map(drop)
    }
}

impl Drop for PeekOffset<'_> {
    fn drop(&mut self) {
        if !self.restored {
            // The failure that brought us here is the one to report.
            let _ = self.set(self.before);
        }
    }
}

/// A message that was looked at in the queue of a socket.
#[derive(Debug, Default)]
pub struct Peeked {
    /// The bytes.
    pub data: Vec<u8>,
    /// The descriptors in flight with it, as new ones of ours.
    pub rights: Vec<OwnedFd>,
    /// The message has more bytes than there was room for.
    pub truncated: bool,
    /// Not all descriptors could be installed: our table is full.
    pub rights_truncated: bool,
    /// The sender's address, empty for none.
    pub sender: Vec<u8>,
    /// Its process, user and group, where the socket asks for them (SO_PASSCRED).
    pub sender_ids: Option<(i32, u32, u32)>,
}

/// include/linux/socket.h, since Linux 6.5.
const SCM_PIDFD: i32 = 0x04;
/// SCM_MAX_FD of the kernel (include/net/scm.h).
const MAX_RIGHTS: usize = 253;

/// Looks at the message at the peek offset, up to `room` bytes of it. `None` when the queue ends
/// there. The message stays queued.
pub fn peek_message(socket: BorrowedFd, room: usize) -> Result<Option<Peeked>> {
    let mut data = vec![0u8; room];
    // Rights, credentials, a pidfd and a security label may come together; u64s align the buffer.
    let mut control = [0u64; (MAX_RIGHTS * size_of::<i32>() + 512) / 8];
    let mut sender = vec![0u8; size_of::<libc::sockaddr_un>()];
    let mut iov = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: msghdr is plain integers and pointers, for which zero is a value.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_name = sender.as_mut_ptr().cast();
    msg.msg_namelen = sender.len() as libc::socklen_t;
    msg.msg_iov = &mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.as_mut_ptr().cast();
    msg.msg_controllen = size_of_val(&control);
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every buffer msg names is writable for its length and outlives the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut msg, flags) };
    let len = match Errno::result(got) {
        Ok(len) => len as usize,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let (rights, sender_ids) = control_of(&msg);
    data.truncate(len);
    sender.truncate(msg.msg_namelen as usize);
    Ok(Some(Peeked {
        data,
        rights,
        truncated: msg.msg_flags & libc::MSG_TRUNC != 0,
        rights_truncated: msg.msg_flags & libc::MSG_CTRUNC != 0,
        sender,
        sender_ids,
    }))
}

/// The descriptors and the credentials that came with a message.
fn control_of(msg: &libc::msghdr) -> (Vec<OwnedFd>, Option<(i32, u32, u32)>) {
    let mut rights = Vec::new();
    let mut ids = None;
    // SAFETY: recvmsg has filled the control buffer and set its length; the CMSG macros stay
    // inside it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(msg) };
    while !next.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers that lie inside the buffer.
        let header = unsafe { std::ptr::read_unaligned(next) };
        // SO_PASSPIDFD asks for a descriptor of the sender; it is taken too, to be closed.
        let kept = header.cmsg_type == libc::SCM_RIGHTS;
        let installed =
            header.cmsg_level == libc::SOL_SOCKET && (kept || header.cmsg_type == SCM_PIDFD);
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) {
            // SAFETY: the kernel has put a struct ucred behind this header.
            let sent: libc::ucred =
                unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(next).cast()) };
            ids = Some((sent.pid, sent.uid, sent.gid));
        }
        // SAFETY: CMSG_LEN(0) is the length of a header, no memory is touched.
        let head = unsafe { libc::CMSG_LEN(0) } as usize;
        let count = header.cmsg_len.saturating_sub(head) / size_of::<i32>();
        // SAFETY: the data of the message follows its header.
        let data = unsafe { libc::CMSG_DATA(next) }.cast::<i32>();
        for index in 0..if installed { count } else { 0 } {
            // SAFETY: index is below the count of descriptors in the message, each of which the
            // kernel has just installed for us.
            let fd = unsafe { OwnedFd::from_raw_fd(data.add(index).read_unaligned()) };
            rights.extend(kept.then_some(fd));
        }
        // SAFETY: next is a header of this message.
        next = unsafe { libc::CMSG_NXTHDR(msg, next) };
    }
    (rights, ids)
}

/// Another description of the same file, opened through our own table: for what must be read
/// although the task's description is write-only or has its own position. `flags` are those of
/// open(2); give O_NONBLOCK for what may block.
pub fn reopen(fd: BorrowedFd, flags: i32) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}\0", fd.as_raw_fd());
    // SAFETY: the path ends with a zero byte and outlives the call.
    let got = unsafe { libc::open(path.as_ptr().cast(), flags | libc::O_CLOEXEC) };
    let fd = Errno::result(got)?;
    // SAFETY: open has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Our own table in /proc, opened once: from there a link is found in one step of the lookup.
#[derive(Debug)]
pub struct OwnTable(OwnedFd);

impl OwnTable {
    /// Opens it.
    pub fn open() -> Result<OwnTable> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open("/proc/self/fd", flags, Mode::empty()).map(OwnTable)
    }

    /// What it calls the file.
    pub fn link_of(&self, fd: BorrowedFd) -> Result<OsString> {
        nix::fcntl::readlinkat(&self.0, fd.as_raw_fd().to_string().as_str())
    }
}

/// What our own table calls the file: the link of /proc/self/fd.
pub fn link_of(fd: BorrowedFd) -> Result<OsString> {
    nix::fcntl::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str())
}

/// A file handle (name_to_handle_at(2)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHandle {
    /// The kind, private to the file system.
    pub kind: i32,
    /// The identity, up to 128 bytes.
    pub bytes: Vec<u8>,
}

/// Opens a file handle relative to any descriptor on the same mount, as O_PATH. ESTALE when the
/// file is gone; EPERM without CAP_DAC_READ_SEARCH.
pub fn open_handle(mount: BorrowedFd, handle: &FileHandle) -> Result<OwnedFd> {
    let mut raw = Vec::with_capacity(8 + handle.bytes.len());
    raw.extend_from_slice(&(handle.bytes.len() as u32).to_ne_bytes());
    raw.extend_from_slice(&handle.kind.to_ne_bytes());
    raw.extend_from_slice(&handle.bytes);
    // SAFETY: raw is a struct file_handle with its bytes behind it and outlives the call; the
    // kernel copies it and checks no alignment.
    let got = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            raw.as_ptr(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    let fd = Errno::result(got)? as i32;
    // SAFETY: the call has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The extents of a file that hold data, as (offset, length): holes are left out. It seeks, so it
/// takes a file of our own, never one a task shares.
pub fn data_extents(own: &File, size: u64) -> Result<Vec<(u64, u64)>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(own, at, libc::SEEK_DATA) {
            Ok(start) => start,
            Err(Errno::ENXIO) => break,
            // A file system that knows no holes.
            Err(Errno::EINVAL) if at == 0 => return Ok(vec![(0, size)]),
            Err(errno) => return Err(errno),
        };
        let end = seek(own, start, libc::SEEK_HOLE)?.min(size);
        if end <= start {
            break;
        }
        extents.push((start, end - start));
        at = end;
    }
    Ok(extents)
}

fn seek(own: &File, at: u64, whence: i32) -> Result<u64> {
    let at = i64::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: plain numbers.
    let got = unsafe { libc::lseek64(own.as_fd().as_raw_fd(), at, whence) };
    Errno::result(got).map(|pos| pos as u64)
}

/// What a terminal has, as the kernel's `struct termios` of TCGETS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Termios {
    /// Input modes.
    pub iflag: u32,
    /// Output modes.
    pub oflag: u32,
    /// Control modes, the speed among them.
    pub cflag: u32,
    /// Local modes.
    pub lflag: u32,
    /// Line discipline.
    pub line: u8,
    /// Control characters.
    pub cc: [u8; 19],
}

/// `struct winsize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WindowSize {
    /// Rows in characters.
    pub rows: u16,
    /// Columns in characters.
    pub columns: u16,
    /// Width in pixels.
    pub xpixel: u16,
    /// Height in pixels.
    pub ypixel: u16,
}

/// A number that a terminal tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TtyNumber {
    /// TIOCGPTN: the index of the pair, of a pty master.
    PtyIndex = 0x8004_5430,
    /// TIOCGPKT: packet mode, of a pty master.
    PacketMode = 0x8004_5438,
    /// TIOCGPTLCK: the slave cannot be opened, of a pty master.
    Locked = 0x8004_5439,
    /// TIOCGEXCL: nobody but root may open it.
    Exclusive = 0x8004_5440,
}

/// Asks a terminal; ENOTTY when its kind has no such number, EIO when it was hung up.
pub fn tty_number(tty: BorrowedFd, which: TtyNumber) -> Result<i32> {
    let mut value: i32 = 0;
    // SAFETY: each of these requests fills one int, which outlives the call.
    let got = unsafe { libc::ioctl(tty.as_raw_fd(), which as u32 as libc::c_ulong, &mut value) };
    Errno::result(got).map(|_| value)
}

/// The modes of a terminal; of a pty both ends tell the same.
pub fn tty_modes(tty: BorrowedFd) -> Result<Termios> {
    let mut modes = Termios::default();
    // SAFETY: TCGETS fills a struct termios, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TCGETS, &mut modes) })?;
    Ok(modes)
}

/// Which modes of a terminal are locked (TIOCGLCKTRMIOS).
pub fn tty_locked_modes(tty: BorrowedFd) -> Result<Termios> {
    let mut modes = Termios::default();
    // SAFETY: TIOCGLCKTRMIOS fills a struct termios, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGLCKTRMIOS, &mut modes) })?;
    Ok(modes)
}

/// The window size of a terminal.
pub fn tty_window(tty: BorrowedFd) -> Result<WindowSize> {
    let mut size = WindowSize::default();
    // SAFETY: TIOCGWINSZ fills a struct winsize, which outlives the call.
    Errno::result(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGWINSZ, &mut size) })?;
    Ok(size)
}

/// A path that cannot be UTF-8 checked: bytes of an OsString.
pub fn bytes_of(text: OsString) -> Vec<u8> {
    text.into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType};
    use nix::sys::socket::{sendmsg, socketpair};
    use std::io::{IoSlice, Write};

    #[test]
    fn tee_leaves_the_data_in_the_pipe() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        File::from(writer).write_all(b"kept").unwrap();
        let parts = tee_all(reader.as_fd(), 65536, false).unwrap();
        assert_eq!(parts, vec![b"kept".to_vec()]);
        let mut left = String::new();
        File::from(reader).read_to_string(&mut left).unwrap();
        assert_eq!(left, "kept");
    }

    #[test]
    fn tee_keeps_packets_apart() {
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_DIRECT).unwrap();
        let mut writer = File::from(writer);
        writer.write_all(b"one").unwrap();
        writer.write_all(b"second").unwrap();
        let parts = tee_all(reader.as_fd(), 65536, true).unwrap();
        assert_eq!(parts, vec![b"one".to_vec(), b"second".to_vec()]);
    }

    #[test]
    fn an_empty_pipe_has_no_parts() {
        let (reader, _writer) = nix::unistd::pipe().unwrap();
        assert!(tee_all(reader.as_fd(), 65536, false).unwrap().is_empty());
    }

    #[test]
    fn peeking_sees_every_message_and_its_descriptors_and_leaves_them() {
        let (one, two) = socketpair(
            AddressFamily::Unix,
            SockType::Datagram,
            None,
            SockFlag::empty(),
        )
        .unwrap();
        let sent = File::open("/dev/null").unwrap();
        let rights = [sent.as_raw_fd()];
        for (text, control) in [
            (&b"first"[..], &[ControlMessage::ScmRights(&rights)][..]),
            (b"", &[]),
            (b"last", &[]),
        ] {
            let iov = [IoSlice::new(text)];
            sendmsg::<()>(one.as_raw_fd(), &iov, control, MsgFlags::empty(), None).unwrap();
        }
        for _ in 0..2 {
            let offset = PeekOffset::rewind(two.as_fd()).unwrap();
            let first = peek_message(two.as_fd(), 64).unwrap().unwrap();
            assert_eq!(
                (first.data.as_slice(), first.rights.len()),
                (&b"first"[..], 1)
            );
            assert_eq!(link_of(first.rights[0].as_fd()).unwrap(), "/dev/null");
            let mut rest = Vec::new();
            while let Some(message) = peek_message(two.as_fd(), 64).unwrap() {
                rest.push(message.data);
            }
            assert_eq!(rest.last().unwrap(), b"last");
            offset.finish().unwrap();
        }
        let off = sockopt_int(two.as_fd(), libc::SOL_SOCKET, libc::SO_PEEK_OFF).unwrap();
        assert_eq!(off, -1);
    }

    #[test]
    fn holes_are_left_out() {
        let path = std::env::temp_dir().join(format!("crust-extents-{}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        nix::sys::uio::pwrite(&file, b"x", 1 << 20).unwrap();
        let extents = data_extents(&file, 1 << 30).unwrap();
        assert_eq!(extents.len(), 1);
        assert_eq!(extents[0].0, 1 << 20);
    }
}
