//! SysV shared memory, semaphores and message queues.
//!
//! An ipc namespace of the tree's own is written whole: its objects with their ids and its sysctls.
//! In the dumper's namespace objects belong to nobody, so only the segments that the tree has
//! attached are written, and only if nobody else has; its semaphores and queues stay where they
//! are and are there after the restore. (CRIU refuses the segments; its restorer does not look at
//! images with the number of the host's namespace.) SEM_UNDO adjustments cannot be read and are
//! lost. The content of a segment goes into a pagemap like that of any shared memory.

use crate::collect::Subject;
use crate::context::Context;
use crate::ids::KernelIds;
use crate::interrupt::Interrupt;
use crate::mm::shmem::write_object;
use crate::mm::vmas::Backing;
use crate::refusal::Refusal;
use anyhow::{Context as _, Result};
use crust_image::payload::{IpcMsgQueue, IpcSem, IpcShm};
use crust_image::sink::{write_entry, write_payload_entries};
use crust_image::{ImageSink, Kind};
use crust_process::namespace;
use crust_process::sysv::{self, Perm, Queue, Segment, SemSet};
use crust_proto::criu::{IpcDescEntry, IpcMsg, IpcMsgEntry, IpcSemEntry, IpcShmEntry, IpcVarEntry};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::os::fd::AsFd;

/// What is dumped of all ipc namespaces.
#[derive(Debug, Default)]
pub struct Ipc(Vec<Space>);

/// One namespace.
#[derive(Debug)]
struct Space {
    id: u32,
    segments: Vec<(Segment, File)>,
    sets: Vec<SemSet>,
    queues: Vec<Queue>,
    sysctls: Option<IpcVarEntry>,
}

/// How often the tree has attached each segment, by namespace and id, and a task that has.
type Attached<'s> = BTreeMap<u32, BTreeMap<i32, (u64, &'s Subject)>>;

/// Reads the namespaces of the frozen tree; what cannot be carried goes to the refusals.
pub fn collect_ipc(ctx: &Context, ids: &KernelIds, subjects: &[Subject]) -> Result<Ipc> {
    let attached = attached(subjects);
    let own = ids.encode_own().ipc_ns_id;
    let mut spaces: BTreeMap<u32, &Subject> = BTreeMap::new();
    for subject in subjects {
        let id = subject.ids.ipc_ns_id;
        let is_needed = |id: &u32| Some(*id) != own || attached.contains_key(id);
        if let Some(id) = id.filter(is_needed) {
            spaces.entry(id).or_insert(subject);
        }
    }
    let none = BTreeMap::new();
    let mut all = Vec::new();
    for (id, subject) in spaces {
        let ours = attached.get(&id).unwrap_or(&none);
        let whole = Some(id) != own;
        let found = if whole {
            let dir = &subject.facts.dir;
            let namespace = dir.open_file("ns/ipc", nix::fcntl::OFlag::O_RDONLY)?;
            namespace::inside(namespace.as_fd(), CloneFlags::CLONE_NEWIPC, || {
                read_space(ours, whole)
            })
            .context("enter the ipc namespace")?
        } else {
            read_space(ours, whole)
        };
        let space = found.with_context(|| format!("read the SysV objects of namespace {id}"))?;
        refuse_others(ctx, &space, ours);
        all.push(Space { id, ..space });
    }
    Ok(Ipc(all))
}

fn attached(subjects: &[Subject]) -> Attached<'_> {
    let mut attached = Attached::new();
    let mut spaces = HashSet::new();
    for subject in subjects
        .iter()
        .filter(|subject| spaces.insert(subject.ids.vm_id))
    {
        let Some(namespace) = subject.ids.ipc_ns_id else {
            continue;
        };
        for vma in subject
            .vmas
            .iter()
            .filter(|vma| vma.backing == Backing::Sysv)
        {
            let of_namespace = attached.entry(namespace).or_default();
            let id = vma.entry.shmid as i32;
            of_namespace.entry(id).or_insert((0, subject)).0 += 1;
        }
    }
    attached
}

/// Runs inside the namespace.
fn read_space(ours: &BTreeMap<i32, (u64, &Subject)>, whole: bool) -> Result<Space> {
    let mut segments = Vec::new();
    for segment in sysv::segments().context("list the segments")? {
        let id = segment.perm.id;
        if whole || ours.contains_key(&id) {
            let file = sysv::open_segment(id).with_context(|| format!("open segment {id}"))?;
            segments.push((segment, File::from(file)));
        }
    }
    Ok(Space {
        id: 0,
        segments,
        sets: unless_missing(whole, sysv::sem_sets).context("read the semaphores")?,
        queues: unless_missing(whole, sysv::queues).context("read the message queues")?,
        sysctls: whole.then(read_sysctls).transpose()?,
    })
}

fn unless_missing<T>(
    wanted: bool,
    read: impl FnOnce() -> Result<Vec<T>, Errno>,
) -> Result<Vec<T>, Errno> {
    if wanted { read() } else { Ok(Vec::new()) }
}

/// A segment that somebody outside of the tree has attached is not ours to bring back.
fn refuse_others(ctx: &Context, space: &Space, ours: &BTreeMap<i32, (u64, &Subject)>) {
    for (segment, _) in &space.segments {
        let Some((count, subject)) = ours.get(&segment.perm.id) else {
            continue;
        };
        if segment.attaches > *count {
            let others = segment.attaches - count;
            let object = format!("its SysV segment {}", segment.perm.id);
            let what = format!("is attached {others} times by tasks outside of the tree");
            if let Some(task) = ctx.tasks.get(subject.task) {
                ctx.refuse(Refusal::new(task.pid, object, what));
            }
        }
    }
}

fn read_sysctls() -> Result<IpcVarEntry> {
    let text = |name: &str| {
        let path = format!("/proc/sys/{name}");
        fs::read_to_string(&path).with_context(|| format!("read {path}"))
    };
    let wide = |name: &str| -> Result<u64> {
        let text = text(name)?;
        text.trim()
            .parse()
            .with_context(|| format!("{name} says '{}'", text.trim()))
    };
    let number =
        |name: &str| Ok::<u32, anyhow::Error>(u32::try_from(wide(name)?).unwrap_or(u32::MAX));
    // A kernel without POSIX message queues has no such files.
    let mqueue = |name: &str| number(&format!("fs/mqueue/{name}")).unwrap_or(0);
    let sem = text("kernel/sem")?;
    Ok(IpcVarEntry {
        sem_ctls: sem
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect(),
        msg_ctlmax: number("kernel/msgmax")?,
        msg_ctlmnb: number("kernel/msgmnb")?,
        msg_ctlmni: number("kernel/msgmni")?,
        auto_msgmni: number("kernel/auto_msgmni").unwrap_or(0),
        shm_ctlmax: wide("kernel/shmmax")?,
        shm_ctlall: wide("kernel/shmall")?,
        shm_ctlmni: number("kernel/shmmni")?,
        shm_rmid_forced: number("kernel/shm_rmid_forced")?,
        mq_queues_max: mqueue("queues_max"),
        mq_msg_max: mqueue("msg_max"),
        mq_msgsize_max: mqueue("msgsize_max"),
        mq_msg_default: Some(mqueue("msg_default")),
        mq_msgsize_default: Some(mqueue("msgsize_default")),
        ..IpcVarEntry::default()
    })
}

impl Ipc {
    /// Writes everything; pages files are numbered from `first` on. Gives the number of pages.
    pub fn write(&self, images: &dyn ImageSink, first: u32, interrupt: &Interrupt) -> Result<u64> {
        let mut pages = 0;
        let mut pages_id = first;
        for space in &self.0 {
            let id = Some(u64::from(space.id));
            if let Some(sysctls) = &space.sysctls {
                write_entry(images, Kind::IpcVar, id, sysctls)?;
            }
            let segments: Vec<IpcShm> = space.segments.iter().map(encode_segment).collect();
            write_payload_entries(images, Kind::IpcnsShm, id, &segments)?;
            let sets: Vec<IpcSem> = space.sets.iter().map(encode_set).collect();
            write_payload_entries(images, Kind::IpcnsSem, id, &sets)?;
            let queues: Vec<IpcMsgQueue> = space.queues.iter().map(encode_queue).collect();
            write_payload_entries(images, Kind::IpcnsMsg, id, &queues)?;
            for (segment, file) in &space.segments {
                let shmid = segment.perm.id as u32;
                let size = segment.size.next_multiple_of(4096);
                let written =
                    write_object(images, u64::from(shmid), (file, size), pages_id, interrupt)
                        .with_context(|| format!("dump the SysV segment {shmid}"))?;
                pages += written.unwrap_or(0);
                pages_id += u32::from(written.is_some());
            }
        }
        Ok(pages)
    }
}

fn encode_perm(perm: &Perm) -> IpcDescEntry {
    IpcDescEntry {
        key: perm.key as u32,
        uid: perm.uid,
        gid: perm.gid,
        cuid: perm.cuid,
        cgid: perm.cgid,
        mode: perm.mode,
        id: perm.id as u32,
    }
}

fn encode_segment((segment, _): &(Segment, File)) -> IpcShm {
    IpcShm {
        entry: IpcShmEntry {
            desc: encode_perm(&segment.perm),
            size: segment.size,
            in_pagemaps: Some(true),
            hugetlb_flag: None,
        },
        content: None,
    }
}

fn encode_set(set: &SemSet) -> IpcSem {
    IpcSem {
        entry: IpcSemEntry {
            desc: encode_perm(&set.perm),
            nsems: set.values.len() as u32,
        },
        values: set.values.clone(),
    }
}

fn encode_queue(queue: &Queue) -> IpcMsgQueue {
    let message = |(mtype, text): &(i64, Vec<u8>)| {
        let head = IpcMsg {
            mtype: *mtype as u64,
            msize: text.len() as u32,
        };
        (head, text.clone())
    };
    IpcMsgQueue {
        entry: IpcMsgEntry {
            desc: encode_perm(&queue.perm),
            qbytes: u32::try_from(queue.qbytes).unwrap_or(u32::MAX),
            qnum: queue.messages.len() as u32,
        },
        messages: queue.messages.iter().map(message).collect(),
    }
}
