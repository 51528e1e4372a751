//! The files of the tasks: every open file description, once, with an id.
//!
//! [`FileTable`] finds the descriptions that descriptors share. A descriptor is compared first
//! with the same number of the parent (fork inheritance answers nearly always), then inside the
//! bucket of (device, inode, flags, position) by kcmp(2), which gives an order, so a bucket of
//! ten thousand eventfds costs a binary search each. A description seen for the first time goes to
//! the room of its kind. Ids count from 1 in the order of discovery, as the peer's.
//!
//! A taken descriptor is the task's own description: nobody here seeks it or sets its flags.
//! Collecting writes nothing; `write.rs` puts everything into images when no refusal stands.

mod bpfmap;
pub mod by_name;
mod datagram;
mod epoll;
mod eventfd;
mod fanotify;
mod fifo;
mod file_lock;
mod ghost;
mod inet_socket;
mod inotify;
mod irmap;
mod kept_options;
mod kind;
mod link_remap;
mod look;
mod memfd;
mod mounts;
mod multicast;
mod namespace;
mod netlink_socket;
mod packet_socket;
mod path;
mod pidfd;
mod pipe;
mod raw_socket;
mod regfile;
mod remap;
mod signalfd;
mod sock_options;
mod socket;
pub mod tcp;
mod timerfd;
mod tty;
mod tty_queue;
mod tunfile;
mod unix_queue;
mod unix_socket;
mod uring;
mod write;

pub use crust_image::ids::FileId;
pub use file_lock::Locks;
pub use path::PathOf;

use crate::context::{Context, Task};
use crate::ids::Namespaces;
use crate::refusal::Refusal;
use anyhow::{Context as _, Result};
use crust_process::descriptor::{self, OwnTable, Owner, Statx};
use crust_process::kcmp;
use crust_process::pid::HostPid;
use crust_process::proc::fdinfo::{Fdinfo, parse_fdinfo};
use crust_proto::criu::{
    FdTypes, FdinfoEntry, FileEntry, FownEntry, SkOptsEntry, TaskKobjIdsEntry, UtsnsEntry,
};
use kind::{InternalDevices, Kind};
use look::Facts;
use mounts::Inode;
use nix::libc;
use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A descriptor of a task: its number and whether execve(2) closes it. The flag belongs to the
/// number, not to the description, so only the task (or fdinfo) can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The number.
    pub fd: i32,
    /// FD_CLOEXEC.
    pub cloexec: bool,
}

/// Where a description can be compared by kcmp(2): a number in a table, the task's or, for
/// descriptors in flight, our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    pid: HostPid,
    fd: i32,
}

/// A description whose id is given out.
#[derive(Clone, Copy, Debug)]
struct Known {
    id: FileId,
    kind: FdTypes,
    place: Place,
    /// Device and inode, for file locks and epoll targets.
    inode: (u64, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Bucket {
    inode: (u64, u64),
    flags: u32,
    pos: u64,
}

/// Everything found so far.
#[derive(Debug)]
pub struct FileTable {
    /// Where our copies of descriptors tell what they lead to.
    own: Arc<OwnTable>,
    devices: InternalDevices,
    next_id: u32,
    entries: Vec<FileEntry>,
    /// Each list in the order of kcmp(2).
    buckets: HashMap<Bucket, Vec<Known>>,
    /// The descriptors of each dumped table.
    tables: HashMap<HostPid, BTreeMap<i32, Known>>,
    /// Copies of descriptors in flight, kept so that kcmp can compare them.
    in_flight: Vec<OwnedFd>,
    paths: path::Paths,
    mounts: mounts::Mounts,
    remaps: remap::Remaps,
    ghosts: ghost::Ghosts,
    links: link_remap::Links,
    memfds: memfd::Memfds,
    pipes: pipe::Pipes,
    unix: unix_socket::Sockets,
    connections: tcp::Connections,
    netlink: netlink_socket::Listed,
    groups: multicast::Listed,
    packets: packet_socket::Listed,
    ringed: packet_socket::Ringed,
    new_sockets: kept_options::News,
    bpf_maps: bpfmap::Maps,
    rings: uring::Rings,
    tuns: tunfile::Interfaces,
    ttys: tty::Ttys,
    locks: Locks,
    /// Targets of epolls in other tables, until all are known.
    lost_targets: Vec<epoll::Lost>,
    /// Watches on deleted files, until all ghosts are known.
    watched: Vec<inotify::OnDeleted>,
    /// The numbers of the namespaces that the dumper lives in.
    own_ids: TaskKobjIdsEntry,
    namespaces: Namespaces,
    /// The names in uts namespaces in which no task is, by their number.
    held_uts: Vec<(u32, UtsnsEntry)>,
}

/// An open file description as a room sees it.
pub(crate) struct OpenFile<'a> {
    /// The task in whose table it was found.
    task: &'a Task,
    /// Where the task has it.
    holder: Holder,
    /// Our copy of the descriptor.
    fd: BorrowedFd<'a>,
    /// Its attributes; missing only for the `fd` directory of a dead process.
    stat: Option<Statx>,
    /// F_GETFL, as images have it.
    flags: u32,
    pos: u64,
    /// The text of the /proc link.
    link: Vec<u8>,
    /// The inode that the text leads to, if it is a path.
    leads_to: Option<Inode>,
    owner: Option<Owner>,
    options: Option<SkOptsEntry>,
}

/// Where a task has a description.
#[derive(Clone, Debug)]
pub(crate) enum Holder {
    /// Under this number in its table.
    Number(i32),
    /// Behind this magic link: an executable, a mapping, a directory.
    Link(String),
    /// In the queue of a socket.
    InFlight,
}

/// Why a room gave no entry.
#[derive(Debug)]
pub(crate) enum Problem {
    /// The images could not hold it: reported with all others.
    Refused {
        /// What is missing.
        what: String,
        /// What the user may try.
        hint: String,
    },
    /// Looking at it failed.
    Failed(anyhow::Error),
}

/// The result of a room.
pub(crate) type RoomResult<T> = Result<T, Problem>;

impl Problem {
    fn refused(what: impl Into<String>) -> Problem {
        Problem::Refused {
            what: what.into(),
            hint: String::new(),
        }
    }

    fn with_hint(what: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem::Refused {
            what: what.into(),
            hint: hint.into(),
        }
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Problem {
        Problem::Failed(error)
    }
}

impl<'a> OpenFile<'a> {
    fn new(task: &'a Task, holder: Holder, fd: BorrowedFd<'a>, facts: Facts) -> OpenFile<'a> {
        let Facts {
            stat,
            flags,
            pos,
            link,
            leads_to,
            owner,
            options,
        } = facts;
        OpenFile {
            task,
            holder,
            fd,
            stat,
            flags,
            pos,
            link,
            leads_to,
            owner,
            options,
        }
    }

    /// The attributes, for kinds that always have them.
    fn stat(&self) -> RoomResult<&Statx> {
        self.stat
            .as_ref()
            .ok_or_else(|| Problem::refused("fstat fails with ENOENT"))
    }

    /// What the kernel tells of the descriptor in fdinfo, from the task's table or from ours.
    fn fdinfo(&self) -> RoomResult<Fdinfo> {
        Ok(match self.holder {
            Holder::Number(number) => read_fdinfo(self.task.pid, number)?,
            _ => read_fdinfo(HostPid::current(), self.fd.as_raw_fd())?,
        })
    }

    /// Says how much waits in a queue of events, which the kernel lets nobody read and put back.
    fn warn_of_lost_events(&self, ctx: &Context) -> RoomResult<()> {
        let waiting = descriptor::bytes_waiting(self.fd).context("FIONREAD")?;
        if waiting > 0 {
            let (pid, name) = (self.task.pid, self.name());
            let lost = format_args!("task {pid}: {name}: {waiting} bytes of events are lost");
            ctx.log.warn("dump/files", lost);
        }
        Ok(())
    }

    /// The options of a socket.
    fn socket_options(&self) -> RoomResult<SkOptsEntry> {
        match &self.options {
            Some(options) => Ok(options.clone()),
            None => sock_options::collect(self.fd),
        }
    }

    /// Who is told of input and output.
    fn fown(&self, ctx: &Context) -> RoomResult<FownEntry> {
        let owner = match self.owner {
            Some(owner) => owner,
            None => descriptor::owner(self.fd).context("F_GETOWN_EX")?,
        };
        Ok(FownEntry {
            uid: owner.uid,
            euid: owner.euid,
            signum: owner.signum,
            pid_type: owner.pid_type,
            pid: match owner.pid {
                0 => 0,
                pid => ctx.task(pid).map_or(pid as u32, |task| task.virt),
            },
        })
    }

    /// For messages: the number and what it leads to.
    fn name(&self) -> String {
        let link = String::from_utf8_lossy(&self.link);
        match &self.holder {
            Holder::Number(number) => format!("fd {number} ({link})"),
            Holder::Link(path) => format!("{path} ({link})"),
            Holder::InFlight => format!("a descriptor in flight ({link})"),
        }
    }
}

/// An entry of files.img without the member of its type.
fn file_entry(kind: FdTypes, id: FileId) -> FileEntry {
    FileEntry {
        r#type: kind.into(),
        id: id.0,
        ..FileEntry::default()
    }
}

/// Reads and parses /proc/PID/fdinfo/N.
pub(crate) fn read_fdinfo(pid: HostPid, number: i32) -> Result<Fdinfo> {
    let path = format!("/proc/{pid}/fdinfo/{number}");
    let text = std::fs::read(&path).with_context(|| format!("task {pid}: read {path}"))?;
    parse_fdinfo(&text).with_context(|| format!("task {pid}: {path}"))
}

impl FileTable {
    /// An empty table. `own_ids` has the numbers of the namespaces that the dumper lives in,
    /// `namespaces` those of all that the tree lives in too.
    pub fn new(
        own_ids: TaskKobjIdsEntry,
        namespaces: Namespaces,
        locks: Locks,
    ) -> Result<FileTable> {
        Ok(FileTable {
            devices: InternalDevices::learn().context("learning the kernel's internal devices")?,
            own: Arc::new(OwnTable::open().context("opening our own descriptor table")?),
            next_id: 1,
            entries: Vec::new(),
            buckets: HashMap::new(),
            tables: HashMap::new(),
            in_flight: Vec::new(),
            paths: path::Paths::default(),
            mounts: mounts::Mounts::default(),
            remaps: remap::Remaps::default(),
            ghosts: ghost::Ghosts::default(),
            links: link_remap::Links::default(),
            memfds: memfd::Memfds::default(),
            pipes: pipe::Pipes::default(),
            unix: unix_socket::Sockets::default(),
            connections: tcp::Connections::default(),
            netlink: netlink_socket::Listed::default(),
            groups: None,
            packets: packet_socket::Listed::default(),
            ringed: packet_socket::Ringed::default(),
            new_sockets: kept_options::News::default(),
            bpf_maps: bpfmap::Maps::default(),
            rings: uring::Rings::default(),
            tuns: tunfile::Interfaces::default(),
            ttys: tty::Ttys::default(),
            locks,
            lost_targets: Vec::new(),
            watched: Vec::new(),
            own_ids,
            namespaces,
            held_uts: Vec::new(),
        })
    }

    /// Dumps the descriptors of a task's table, for its fdinfo image; those that cannot be dumped
    /// are refused by name and left out.
    pub fn dump_table(
        &mut self,
        ctx: &Context,
        task: &Task,
        descriptors: &[Descriptor],
    ) -> Result<Vec<FdinfoEntry>> {
        let mut entries = Vec::with_capacity(descriptors.len());
        let mut known = self.known_from_parent(task, descriptors)?;
        let numbers = descriptors.iter().map(|descriptor| descriptor.fd);
        let new: Vec<i32> = numbers.filter(|fd| !known.contains_key(fd)).collect();
        let namespace = self.mounts.of(task)?;
        let (devices, own) = (self.devices, Arc::clone(&self.own));
        look::look_at_all(task, &new, (&devices, &own), &namespace, |fd, looked| {
            let place = Place { pid: task.pid, fd };
            let found = match looked {
                Ok((taken, facts)) => self.intern(ctx, task, place, taken.as_fd(), facts)?,
                Err(error) => {
                    let what = format!("cannot be looked at: {error:#}");
                    ctx.refuse(Refusal::new(task.pid, format!("fd {fd}"), what));
                    None
                }
            };
            known.extend(found.map(|found| (fd, found)));
            Ok(())
        })?;
        for descriptor in descriptors {
            let Some(known) = known.get(&descriptor.fd) else {
                continue;
            };
            entries.push(FdinfoEntry {
                id: known.id.0,
                flags: u32::from(descriptor.cloexec) * libc::FD_CLOEXEC as u32,
                r#type: known.kind as i32,
                fd: descriptor.fd as u32,
                xattr_security_selinux: None,
            });
        }
        self.tables.insert(task.pid, known);
        file_lock::dump(ctx, self, task)?;
        epoll::settle_targets(self, task)?;
        Ok(entries)
    }

    /// The descriptors that are, under their number, the very descriptions of the parent.
    fn known_from_parent(
        &self,
        task: &Task,
        descriptors: &[Descriptor],
    ) -> Result<BTreeMap<i32, Known>> {
        let mut known = BTreeMap::new();
        let parent = HostPid::new(task.ppid).and_then(|parent| self.tables.get(&parent));
        let Some(parent) = parent else {
            return Ok(known);
        };
        for fd in descriptors.iter().map(|descriptor| descriptor.fd) {
            let place = Place { pid: task.pid, fd };
            if let Some(theirs) = parent.get(&fd)
                && compare(theirs.place, place)? == Ordering::Equal
            {
                known.insert(fd, *theirs);
            }
        }
        Ok(known)
    }

    /// The id of a description in flight in a socket. Our copy is kept for later comparisons.
    fn intern_in_flight(
        &mut self,
        ctx: &Context,
        task: &Task,
        copy: OwnedFd,
    ) -> Result<Option<FileId>> {
        let place = Place {
            pid: HostPid::current(),
            fd: copy.as_raw_fd(),
        };
        let before = self.next_id;
        let namespace = self.mounts.of(task)?;
        let facts = look::look_at(copy.as_fd(), (&self.devices, &self.own), &namespace)
            .with_context(|| format!("task {}: a descriptor in flight", task.pid))?;
        let known = self.intern(ctx, task, place, copy.as_fd(), facts)?;
        if self.next_id != before {
            self.in_flight.push(copy);
        }
        Ok(known.map(|known| known.id))
    }

    /// The id of a description, given out now if it is new.
    fn intern(
        &mut self,
        ctx: &Context,
        task: &Task,
        place: Place,
        fd: BorrowedFd,
        facts: Facts,
    ) -> Result<Option<Known>> {
        let holder = if place.pid == task.pid {
            Holder::Number(place.fd)
        } else {
            Holder::InFlight
        };
        let file = OpenFile::new(task, holder, fd, facts);
        let inode = match &file.stat {
            Some(stat) => (stat.dev, stat.ino),
            None => (0, read_fdinfo(place.pid, place.fd)?.ino.unwrap_or(0)),
        };
        let bucket = Bucket {
            inode,
            flags: file.flags,
            pos: file.pos,
        };
        let list = self.buckets.entry(bucket).or_default();
        let slot = match search(list, place)? {
            Ok(found) => return Ok(list.get(found).copied()),
            Err(slot) => slot,
        };
        let kind = kind::classify(file.stat.as_ref(), file.flags, &file.link, &self.devices);
        let id = FileId(self.next_id);
        self.next_id += 1;
        let known = Known {
            id,
            kind: fd_type(&kind, &file),
            place,
            inode,
        };
        // Known before its room runs: a socket may be in flight in its own queue.
        list.insert(slot, known);
        match self.room(ctx, &kind, &file, id) {
            Ok(entry) => self.entries.push(entry),
            Err(problem) => {
                refuse_or_fail(ctx, &file, problem)?;
                return Ok(None);
            }
        }
        Ok(Some(known))
    }

    /// The ends of every TCP connection.
    pub fn connections(&self) -> Vec<crust_process::netfilter::Ends> {
        self.connections.ends()
    }

    /// Gives the description to the room of its kind.
    fn room(
        &mut self,
        ctx: &Context,
        kind: &Kind,
        file: &OpenFile,
        id: FileId,
    ) -> RoomResult<FileEntry> {
        match kind {
            Kind::Regular => regfile::dump(ctx, self, file, id),
            Kind::Memfd => memfd::dump(ctx, self, file, id),
            Kind::Pipe => pipe::dump(ctx, self, file, id),
            Kind::Fifo => fifo::dump(ctx, self, file, id),
            Kind::Socket => socket::dump(ctx, self, file, id),
            Kind::Eventfd => eventfd::dump(ctx, file, id),
            Kind::Eventpoll => epoll::dump(ctx, file, id),
            Kind::Signalfd => signalfd::dump(ctx, file, id),
            Kind::Timerfd => timerfd::dump(ctx, file, id),
            Kind::Inotify => inotify::dump(ctx, self, file, id),
            Kind::Fanotify => fanotify::dump(ctx, self, file, id),
            Kind::Pidfd => pidfd::dump(ctx, file, id),
            Kind::Namespace => namespace::dump(self, file, id),
            Kind::Tun => tunfile::dump(ctx, self, file, id),
            Kind::BpfMap => bpfmap::dump(ctx, self, file, id),
            Kind::Uring => uring::dump(ctx, self, file, id),
            Kind::BpfObject(name) => Err(bpfmap::refuse_object(file, name)?),
            Kind::Tty => tty::dump(ctx, self, file, id),
            Kind::Unsupported(name) => Err(Problem::refused(format!("is {name}"))),
        }
    }

    /// Gives out an id for an entry that is no descriptor: a path, a fifo's file, a link remap.
    fn give_id(&mut self) -> FileId {
        let id = FileId(self.next_id);
        self.next_id += 1;
        id
    }
}

/// Where a place is in a list in kcmp's order, or where it belongs.
fn search(list: &[Known], place: Place) -> Result<Result<usize, usize>> {
    let mut failure = None;
    let found = list.binary_search_by(|known| {
        compare(known.place, place).unwrap_or_else(|error| {
            failure.get_or_insert(error);
            Ordering::Less
        })
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

fn compare(one: Place, other: Place) -> Result<Ordering> {
    kcmp::file(one.pid, one.fd, other.pid, other.fd).with_context(|| {
        let Place { pid, fd } = one;
        format!(
            "kcmp of fd {fd} of task {pid} and fd {} of task {}",
            other.fd, other.pid
        )
    })
}

fn fd_type(kind: &Kind, file: &OpenFile) -> FdTypes {
    match kind {
        Kind::Regular => FdTypes::Reg,
        Kind::Memfd => FdTypes::Memfd,
        Kind::Pipe => FdTypes::Pipe,
        Kind::Fifo => FdTypes::Fifo,
        Kind::Socket => socket::fd_type(file),
        Kind::Eventfd => FdTypes::Eventfd,
        Kind::Eventpoll => FdTypes::Eventpoll,
        Kind::Signalfd => FdTypes::Signalfd,
        Kind::Timerfd => FdTypes::Timerfd,
        Kind::Inotify => FdTypes::Inotify,
        Kind::Fanotify => FdTypes::Fanotify,
        Kind::Pidfd => FdTypes::Pidfd,
        Kind::Namespace => FdTypes::Ns,
        Kind::Tty => FdTypes::Tty,
        Kind::Tun => FdTypes::Tunf,
        Kind::BpfMap => FdTypes::Bpfmap,
        Kind::Uring => FdTypes::CrustUring,
        Kind::BpfObject(_) | Kind::Unsupported(_) => FdTypes::Und,
    }
}

/// A refusal joins the list, a failure ends the dump with its subject named.
fn refuse_or_fail(ctx: &Context, file: &OpenFile, problem: Problem) -> Result<()> {
    match problem {
        Problem::Refused { what, hint } => {
            ctx.refuse(Refusal::new(file.task.pid, file.name(), what).hint(hint));
            Ok(())
        }
        Problem::Failed(error) => {
            Err(error).with_context(|| format!("task {}: {}", file.task.pid, file.name()))
        }
    }
}

#[cfg(test)]
mod tests;
