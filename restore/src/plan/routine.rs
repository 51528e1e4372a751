//! Routines: what the broker does in a loop or with a check between its calls, each with everything
//! it needs to know, so that the plan shows it before anything is done. How each is carried out is
//! told where it is: `exec/routines`.

use super::object::{BpfMap, TunDevice};
use super::step::SlotId;
use crate::ipc::Object;
use crust_image::ids::VirtPid;
use crust_process::io_uring::Ring;
use serde::Serialize;

/// What the broker does in more than one call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Routine {
    /// Opens a path as an image says it was open, having checked that it is still what it was.
    OpenFile {
        /// Absolute path.
        path: Vec<u8>,
        /// Flags of open(2).
        flags: i32,
        /// What the file must be.
        expect: FileFacts,
        /// Position from the start. A device that has none stays where it is.
        pos: u64,
        /// Where the descriptor goes.
        slot: SlotId,
    },
    /// Opens pages-ID.img of the image directory, or of the one that many `parent` links away.
    OpenPages {
        /// 0 is the image directory itself.
        level: usize,
        /// ID in the name.
        pages_id: u32,
        /// Where the descriptor goes.
        slot: SlotId,
    },
    /// An object of shared anonymous memory as mmap(MAP_SHARED|MAP_ANONYMOUS) makes it: maps show
    /// it as `/dev/zero (deleted)`, which no memfd can have. The broker maps one, opens it by
    /// /proc/self/map_files and unmaps it.
    SharedAnon {
        /// Bytes, a multiple of the page size.
        size: u64,
        /// 0, or MAP_HUGETLB with the page size in bits 26 to 31.
        huge: u32,
        /// Where the descriptor goes, open for reading and writing.
        slot: SlotId,
    },
    /// An object of an ipc namespace is made, changed or removed.
    Sysv {
        /// A task in the namespace; `None` for the host's.
        member: Option<VirtPid>,
        /// What.
        object: Object,
        /// Where a descriptor of the content goes.
        slot: Option<SlotId>,
    },
    /// A uts namespace is made that no task lives in.
    MakeUts {
        /// The host's name in it.
        nodename: Vec<u8>,
        /// The domain's.
        domainname: Vec<u8>,
        /// Flags of open(2).
        flags: i32,
        /// Where a descriptor of it goes.
        slot: SlotId,
    },
    /// A cgroup directory is made, or checked.
    MakeCgroup(Box<CgroupDir>),
    /// A ghost file is made from ghost-file-ID.img, under its old path if that is free, for
    /// [`Routine::OpenGhost`] to open.
    GhostFile {
        /// Id in the image's name.
        id: u32,
        /// Path to make it at.
        path: Vec<u8>,
        /// Flags of the one description that made it without a name (O_TMPFILE), which can still
        /// be linked to one.
        nameless: Option<i32>,
    },
    /// Opens a ghost file, by this name if that is free.
    OpenGhost {
        /// Id of the ghost.
        id: u32,
        /// Absolute path that this description was opened by.
        path: Vec<u8>,
        /// Flags of open(2).
        flags: i32,
        /// Where the descriptor goes.
        slot: SlotId,
    },
    /// The name of a ghost file goes; those who opened it have it.
    RemoveGhost {
        /// Id of the ghost.
        id: u32,
    },
    /// Opens a file of which the dump made a hard link, by its old name: the link gets that name,
    /// if it is free, for the time of the open.
    OpenLink {
        /// The hard link that is there.
        link: Vec<u8>,
        /// The name that is gone.
        path: Vec<u8>,
        /// Flags of open(2).
        flags: i32,
        /// What the file must be.
        expect: FileFacts,
        /// Where the descriptor goes.
        slot: SlotId,
    },
    /// Binds a unix socket to a path in the file system, in place of a socket file that a dead
    /// process left there.
    BindUnix {
        /// The socket.
        slot: SlotId,
        /// Directory from which a relative name is meant; not empty if the name is relative.
        dir: Vec<u8>,
        /// The name as bind(2) takes it, without a final zero.
        name: Vec<u8>,
        /// Mode, owner and group of the socket file.
        perms: Option<(u32, u32, u32)>,
        /// The name goes again: directories of it that are gone are made for the moment.
        is_deleted: bool,
    },
    /// The packet or segment of a sk-queues entry is sent, so that it lies in the queue of the
    /// socket at the other end.
    SendPacket {
        /// `id_for` of the entry in sk-queues.img: the file id of the receiving socket.
        receiver: u32,
        /// Which of its entries, from 0.
        nth: usize,
        /// The socket to send by.
        via: SlotId,
        /// The receiver's name as sun_path has it; empty if `via` is connected to it.
        to: Vec<u8>,
        /// Descriptors that go with it, in their order.
        rights: Vec<SlotId>,
        /// Process, user and group of the sender, where the receiver asks for them.
        sender: Option<(u32, u32, u32)>,
    },
    /// Arms a timerfd: relative, or to the clock's now and what was left, and sets the count of
    /// expirations that nobody has read.
    ArmTimer {
        /// The timerfd.
        slot: SlotId,
        /// Its clock.
        clock: i32,
        /// Flags of timerfd_settime(2).
        flags: i32,
        /// Nanoseconds left, 0 if it is not armed or has expired.
        left: u64,
        /// Nanoseconds between expirations, 0 for one only.
        interval: u64,
        /// Unread expirations.
        ticks: u64,
    },
    /// Opens both ends of a new pseudo terminal with this index, its modes raw.
    MakePty {
        /// /dev/ptmx, or the one of another devpts.
        path: Vec<u8>,
        /// The number in the slave's name.
        index: u32,
        /// Flags of open(2) for the master.
        flags: i32,
        /// Where the master goes.
        master: SlotId,
        /// Where a descriptor of the slave goes; without one it is not opened, which the master
        /// could tell.
        slave: Option<SlotId>,
    },
    /// What waited at the master of a pair waits there again.
    FeedMaster {
        /// The master.
        master: SlotId,
        /// The slave.
        slave: SlotId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// What waited at the slave waits there again, with its lines and ends of file. The modes are
    /// those it shall have, and stay.
    FeedSlave {
        /// The slave.
        slave: SlotId,
        /// The master.
        master: SlotId,
        /// The bytes.
        bytes: Vec<u8>,
        /// Places in them at which end of file was typed.
        ends: Vec<u64>,
    },
    /// A descriptor that our starter gave us (`--inherit-fd`).
    Inherit {
        /// Its number in our own table.
        fd: i32,
        /// Where a copy goes.
        slot: SlotId,
    },
    /// Opens the terminal of crust-restore once more.
    OwnTerminal {
        /// Flags of open(2).
        flags: i32,
        /// Where the descriptor goes.
        slot: SlotId,
    },
    /// Adds an inotify watch under its own number.
    WatchInode {
        /// The inotify instance.
        slot: SlotId,
        /// The number.
        wd: i32,
        /// IN_* events.
        mask: u32,
        /// The file.
        on: Watched,
    },
    /// Binds an internet socket; a failure names who is in the way.
    BindInet {
        /// The socket.
        slot: SlotId,
        /// sockaddr_in or sockaddr_in6.
        address: Vec<u8>,
    },
    /// Datagrams that waited in a UDP socket are sent to it again.
    PutDatagrams(Box<Datagrams>),
    /// A TCP socket in repair mode becomes the connection of an image.
    RepairTcp(Box<TcpRepair>),
    /// A TCP socket leaves repair mode: from here on its peer hears of it.
    GoLive(Box<GoLive>),
    /// Adds a fanotify mark.
    MarkInode {
        /// The group.
        slot: SlotId,
        /// FAN_MARK_* flags.
        flags: u32,
        /// FAN_* events.
        mask: u64,
        /// The file or mount point.
        on: Watched,
    },
    /// The bytes of a pipes-data or fifo-data entry are written into a descriptor.
    FeedPayload {
        /// Image kind by its crit name: PIPES_DATA or FIFO_DATA.
        image: &'static str,
        /// `pipe_id` of the entry.
        pipe_id: u32,
        /// Lengths of the packets that the bytes are; none for a plain pipe.
        packets: Vec<u32>,
        /// The descriptor.
        slot: SlotId,
    },
    /// A map of the bpf machine is made, filled and frozen.
    MakeBpfMap(Box<BpfMap>),
    /// Makes a ring of io_uring_setup(2), brings it to its counts and writes its memory.
    MakeUring {
        /// What it was.
        ring: Box<Ring>,
        /// Where its descriptor goes.
        slot: SlotId,
    },
    /// Opens the device of tuns and attaches to an interface.
    OpenTun {
        /// Absolute path of the device.
        path: Vec<u8>,
        /// Flags of open(2).
        flags: i32,
        /// What to attach to.
        device: Option<Box<TunDevice>>,
        /// Where the descriptor goes.
        slot: SlotId,
    },
    /// Opens a map of the bpf machine once more.
    OpenBpfMap {
        /// A descriptor of it.
        map: SlotId,
        /// BPF_F_RDONLY, BPF_F_WRONLY or 0 for both.
        flags: u32,
        /// Where the descriptor goes.
        slot: SlotId,
    },
    /// Bytes are written into a descriptor, all of them or an error.
    WriteAll {
        /// The descriptor.
        slot: SlotId,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A file is removed.
    Unlink {
        /// Absolute path.
        path: Vec<u8>,
    },
    /// A slot is not needed any more.
    Close {
        /// The slot.
        slot: SlotId,
    },
}

/// What a watch of inotify or a mark of fanotify is on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Watched {
    /// A descriptor of it, if it has no name.
    pub open: Option<SlotId>,
    /// Its path; empty if only the handle is known.
    pub path: Vec<u8>,
    /// Device of its file system, as the kernel's dev_t.
    pub device: u32,
    /// Type of its file handle.
    pub handle_type: u32,
    /// Its file handle (name_to_handle_at(2)).
    pub handle: Vec<u8>,
}

/// A TCP connection to be put into a socket in repair mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TcpRepair {
    /// The socket.
    pub slot: SlotId,
    /// Inode in the name of the tcp-stream image.
    pub ino: u32,
    /// Our end, as bind(2) takes it.
    pub local: Vec<u8>,
    /// The peer's, as connect(2) takes it.
    pub remote: Vec<u8>,
    /// Sequence number of the first byte that waits to be read.
    pub in_seq: u32,
    /// Sequence number of the first byte not acknowledged.
    pub out_seq: u32,
    /// How many wait to be read.
    pub waiting: u32,
    /// How many were sent and not acknowledged.
    pub sent: u32,
    /// TCP options by kind, with their value.
    pub options: Vec<(u32, u32)>,
    /// The clock of the timestamps option.
    pub timestamp: Option<u32>,
    /// struct tcp_repair_window.
    pub windows: Option<[u32; 5]>,
    /// SO_SNDBUF and SO_RCVBUF, doubled as they are shown.
    pub buffers: [u32; 2],
    /// What has ended, in this order.
    pub endings: Vec<Ending>,
    /// The state that is reached.
    pub state: u32,
}

/// A step towards the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Ending {
    /// We have sent a FIN.
    Ours,
    /// The peer has acknowledged it.
    Acknowledged,
    /// The peer has sent one.
    Theirs,
}

/// What waits in a UDP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Datagrams {
    /// The socket.
    pub slot: SlotId,
    /// Its address, as a sockaddr.
    pub to: Vec<u8>,
    /// Senders, as sockaddrs, and contents, the oldest first.
    pub queue: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The end of repair mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GoLive {
    /// The socket.
    pub slot: SlotId,
    /// Inode in the name of the tcp-stream image.
    pub ino: u32,
    /// So many bytes at the end of the image were never sent.
    pub unsent: u32,
    /// Our side ends behind them.
    pub shut_down: bool,
    /// SO_REUSEADDR, which repair mode clears.
    pub reuse: bool,
    /// A connection was being made: the peer, and the sequence number of the SYN.
    pub connect: Option<(Vec<u8>, u32)>,
    /// O_NONBLOCK is set.
    pub nonblocking: bool,
}

/// A directory of a cgroup hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CgroupDir {
    /// Absolute path.
    pub path: Vec<u8>,
    /// It is not made.
    pub must_exist: bool,
    /// It is an error if it is there.
    pub must_not_exist: bool,
    /// Mode, owner and group, for a directory that is made.
    pub perms: Option<(u32, u32, u32)>,
    /// Files in it with what to write, in order.
    pub properties: Vec<(Vec<u8>, Vec<u8>)>,
    /// When they are written.
    pub set: SetProperties,
}

/// When the properties of a cgroup are set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum SetProperties {
    /// Never.
    #[default]
    Never,
    /// When the directory is made.
    IfMade,
    /// Always.
    Always,
}

/// What a file must be to pass for the one that was dumped. An absent fact is not checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FileFacts {
    /// st_mode, type and permissions.
    pub mode: Option<u32>,
    /// st_size.
    pub size: Option<u64>,
    /// Build-id note of an ELF file, as 32-bit words.
    pub build_id: Vec<u32>,
}
