//! The files of the tasks. Every open file description is made once, by the broker, into a slot;
//! each descriptor table takes its copies, so that what was shared is shared.
//!
//! [`plan`] goes through files.img: what a path leads to is opened when somebody asks for it (a
//! descriptor, cwd, root, executable, mapping, a descriptor in flight); pipes, sockets and event
//! descriptors are made at once, for their ends belong together. Then come the tables
//! (`table.rs`), cwd and root (`fs.rs`), and what needs the tables: epoll targets and locks.
//!
//! An entry of a kind that cannot be brought back is refused by name, whether or not a descriptor
//! refers to it.

mod bpfmap;
mod calls;
mod datagram;
mod epoll;
mod eventfd;
mod fanotify;
mod fifo;
mod file_lock;
mod fown;
mod fs;
#[cfg(test)]
mod golden;
mod inet_socket;
mod inherit;
mod inotify;
mod kept_options;
mod memfd;
mod namespace;
mod netlink_socket;
mod packet_socket;
mod pidfd;
mod pipe;
mod regfile;
mod remap;
mod signalfd;
mod sock_options;
mod table;
pub mod tcp;
mod timerfd;
mod tty;
mod tunfile;
mod unix_connect;
mod unix_name;
mod unix_options;
mod unix_queue;
mod unix_socket;
mod uring;

pub use pidfd::{dead_pidfd_pids, pidfd_threads};
pub use remap::is_nameless;
pub use tty::plan_session_terminal;

use crate::plan::step::{Actor, Call, Origin, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crust_image::ids::{FileId, VirtPid};
use crust_proto::criu::{FdTypes, FileEntry};
use std::collections::{BTreeMap, BTreeSet};

/// What the room remembers.
#[derive(Debug, Default)]
pub struct Files {
    /// The slot of each description that was asked for; `None` if it was refused.
    slots: BTreeMap<FileId, Option<SlotId>>,
    /// Further opens for mappings, by access mode.
    mapped: BTreeMap<(FileId, i32), Option<SlotId>>,
    remaps: remap::Remaps,
    memfds: memfd::Memfds,
    bpf_maps: bpfmap::BpfMaps,
    tuns: tunfile::Interfaces,
    unix: unix_socket::Sockets,
    /// The terminal that the leader of each session takes, to be filled when terminals are made.
    session_terminals: BTreeMap<u32, SlotId>,
    /// Those of them that are made.
    terminals_made: BTreeSet<SlotId>,
    /// Those that somebody gave us (`--inherit-fd`).
    inherited: BTreeSet<FileId>,
    /// Namespaces in which no task lives, by their id.
    made_namespaces: BTreeMap<u32, SlotId>,
    /// The number, unused by every task, under which each holds our pidfd until the commit.
    pub broker_fd: i32,
}

/// An entry of files.img.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File<'c> {
    /// Its number in files.img; older images have other files.
    index: Option<usize>,
    id: FileId,
    entry: &'c FileEntry,
}

impl File<'_> {
    fn origin(self, what: impl Into<String>) -> Origin {
        Origin::new("files.img", self.index, what)
    }

    /// What the file is, for people.
    fn name(self) -> String {
        let entry = self.entry;
        match kind_of(entry) {
            Some(FdTypes::Reg) => entry
                .reg
                .as_ref()
                .map_or(String::new(), |reg| shown(&reg.name)),
            Some(FdTypes::Pipe) => entry
                .pipe
                .as_ref()
                .map_or(String::new(), |pipe| format!("pipe {:#x}", pipe.pipe_id)),
            Some(FdTypes::Unixsk) => entry
                .usk
                .as_ref()
                .map_or(String::new(), |usk| format!("unix socket {:#x}", usk.ino)),
            Some(kind) => format!("{} {:#x}", kind.as_str_name().to_lowercase(), self.id.0),
            None => format!("file {:#x}", self.id.0),
        }
    }
}

/// The type of an entry, `None` for a number this version does not know.
fn kind_of(entry: &FileEntry) -> Option<FdTypes> {
    FdTypes::try_from(entry.r#type).ok()
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Plans all files.
pub fn plan(planner: &mut Planner<'_>) {
    planner.files.broker_fd = table::unused_number(planner.checkpoint);
    remap::read(planner);
    for file in all(planner) {
        refuse_unsupported(planner, file);
    }
    inherit::plan(planner);
    pipe::plan(planner);
    fifo::plan(planner);
    unix_socket::plan(planner);
    tty::plan(planner);
    for file in all(planner) {
        plan_single(planner, file);
    }
    let tables = table::plan(planner);
    unix_queue::plan(planner);
    unix_options::plan(planner);
    epoll::plan(planner, &tables);
    file_lock::plan(planner, &tables);
    fs::plan(planner);
    remap::plan_link_removal(planner);
    inotify::plan_watches(planner);
    fanotify::plan_marks(planner);
}

/// All entries, in the order of ids, which is that of discovery.
fn all<'a>(planner: &Planner<'a>) -> Vec<File<'a>> {
    let mut numbers = planner.checkpoint.file_entries.iter().peekable();
    let files = planner.checkpoint.files.iter();
    files
        .map(|(id, entry)| {
            // Both are in the order of ids.
            while numbers.next_if(|(other, _)| *other < id).is_some() {}
            let index = numbers.next_if(|(other, _)| *other == id);
            File {
                index: index.map(|(_, number)| *number),
                id: *id,
                entry,
            }
        })
        .collect()
}

/// Those of one type, in the same order.
fn of_kind<'a>(planner: &Planner<'a>, kind: FdTypes) -> Vec<File<'a>> {
    let files = planner.checkpoint.files.iter();
    let ids = files.filter(|(_, entry)| kind_of(entry) == Some(kind));
    ids.filter_map(|(id, _)| find(planner, *id)).collect()
}

fn find<'a>(planner: &Planner<'a>, id: FileId) -> Option<File<'a>> {
    let checkpoint = planner.checkpoint;
    let entry = checkpoint.files.get(&id)?;
    let index = checkpoint.file_entries.get(&id).copied();
    Some(File { index, id, entry })
}

/// Descriptions that are one entry and one slot.
fn plan_single(planner: &mut Planner<'_>, file: File<'_>) {
    if planner.files.slots.contains_key(&file.id) {
        return;
    }
    let slot = match kind_of(file.entry) {
        Some(FdTypes::Eventfd) => eventfd::plan(planner, file),
        Some(FdTypes::Eventpoll) => epoll::plan_descriptor(planner, file),
        Some(FdTypes::Signalfd) => signalfd::plan(planner, file),
        Some(FdTypes::Timerfd) => timerfd::plan(planner, file),
        Some(FdTypes::Pidfd) => pidfd::plan(planner, file),
        Some(FdTypes::Ns) => namespace::plan(planner, file),
        Some(FdTypes::Memfd) => memfd::plan(planner, file),
        Some(FdTypes::Inetsk) => inet_socket::plan(planner, file),
        Some(FdTypes::Netlinksk) => netlink_socket::plan(planner, file),
        Some(FdTypes::Packetsk) => packet_socket::plan(planner, file),
        Some(FdTypes::Tunf) => tunfile::plan(planner, file),
        Some(FdTypes::Bpfmap) => bpfmap::plan(planner, file),
        Some(FdTypes::Inotify) => inotify::plan(planner, file),
        Some(FdTypes::Fanotify) => fanotify::plan(planner, file),
        Some(FdTypes::CrustUring) => uring::plan(planner, file),
        // Opened when asked for, or planned with their other ends, or refused before.
        _ => return,
    };
    planner.files.slots.insert(file.id, slot);
}

fn refuse_unsupported(planner: &mut Planner<'_>, file: File<'_>) {
    let (what, hint) = match kind_of(file.entry) {
        Some(
            FdTypes::Reg
            | FdTypes::Pipe
            | FdTypes::Fifo
            | FdTypes::Unixsk
            | FdTypes::Inetsk
            | FdTypes::Netlinksk
            | FdTypes::Packetsk
            | FdTypes::Bpfmap
            | FdTypes::Tunf
            | FdTypes::Inotify
            | FdTypes::Fanotify
            | FdTypes::Tty
            | FdTypes::Eventfd
            | FdTypes::Eventpoll
            | FdTypes::Signalfd
            | FdTypes::Timerfd
            | FdTypes::Memfd
            | FdTypes::Pidfd
            | FdTypes::CrustUring
            | FdTypes::Ns,
        ) => return,
        Some(FdTypes::CtlTty) => ("terminals of old images", ""),
        Some(FdTypes::Ext) => ("files of plugins", ""),
        Some(FdTypes::AutofsPipe) => ("autofs pipes", ""),
        Some(FdTypes::Und) | None => {
            let why = format!("type {} is no type of file", file.entry.r#type);
            planner.refuse(Refusal::new(file.origin(file.name()), why));
            return;
        }
    };
    let why = format!("{what} cannot be restored yet");
    planner.refuse(Refusal::new(file.origin(file.name()), why).hint(hint));
}

/// What the broker does in `Phase::Open` to make a description, or why it cannot be made.
fn plan_calls(
    planner: &mut Planner<'_>,
    origin: Origin,
    calls: Result<Vec<Call>, String>,
) -> Option<()> {
    match calls {
        Ok(calls) => {
            for call in calls {
                planner.call(Phase::Open, Actor::Broker, call, origin.clone());
            }
            Some(())
        }
        Err(why) => {
            planner.refuse(Refusal::new(origin, why));
            None
        }
    }
}

/// The member an entry of its type must have. Says so if it is missing or has another id.
fn member<'c, M>(
    planner: &mut Planner<'_>,
    file: File<'c>,
    member: Option<&'c M>,
    id: impl Fn(&M) -> u32,
) -> Option<&'c M> {
    let why = match member {
        None => "the member of its type is missing".to_owned(),
        Some(member) if id(member) != file.id.0 => {
            format!("id {} is {} in the member of its type", file.id, id(member))
        }
        Some(member) => return Some(member),
    };
    planner.refuse(Refusal::new(file.origin(file.name()), why));
    None
}

/// Whether a number is that of a task, thread, helper, group or session of the tree.
fn known_pid(planner: &Planner<'_>, number: u32) -> bool {
    let Some(pid) = VirtPid::new(number) else {
        return false;
    };
    let tree = &planner.tree;
    tree.has_process(pid)
        || tree
            .tasks
            .iter()
            .any(|task| task.pgid == number || task.sid == number || task.threads.contains(&pid))
}

impl Planner<'_> {
    /// The broker's descriptor of a file object, filled in `Phase::Open` or `Phase::Objects`.
    /// `None` if there is no such object, or if it was refused.
    pub fn file_slot(&mut self, id: FileId) -> Option<SlotId> {
        if let Some(&slot) = self.files.slots.get(&id) {
            return slot;
        }
        let file = find(self, id)?;
        if kind_of(file.entry) != Some(FdTypes::Reg) {
            return None;
        }
        let slot = regfile::plan(self, file);
        self.files.slots.insert(id, slot);
        slot
    }

    /// A descriptor of a file object for a mapping, opened with the access mode in `flags` (the
    /// `fdflags` of a vma). Mappings of one mode share it. `None` as for [`Planner::file_slot`].
    pub fn mapped_file(&mut self, id: FileId, flags: u32) -> Option<SlotId> {
        let access = flags as i32 & nix::libc::O_ACCMODE;
        if let Some(&slot) = self.files.mapped.get(&(id, access)) {
            return slot;
        }
        let file = find(self, id)?;
        let slot = match kind_of(file.entry) {
            Some(FdTypes::Reg) => regfile::plan_mapped(self, file, access),
            Some(FdTypes::Memfd) => memfd::plan_mapped(self, file, access),
            Some(FdTypes::Bpfmap) => bpfmap::plan_mapped(self, file),
            Some(FdTypes::Packetsk | FdTypes::CrustUring) => {
                self.files.slots.get(&id).copied().flatten()
            }
            _ => None,
        };
        self.files.mapped.insert((id, access), slot);
        slot
    }
}
