//! The address space of a task: its mappings, their pages, the vdso, and what the kernel keeps
//! beside them (exe link, brk, the places of arguments, environment and auxiliary vector).
//!
//! The task does all of it itself in `Phase::Memory`, with nothing in its descriptor table: each
//! file appears as number 0 for the time of its mmap. Order inside a task: the vdso first, for its
//! parking place is in nobody's way but its own; mappings with the write permission that loading
//! needs; pages; then protection, advice, guards and locks as they were, each of which could
//! forbid or undo a load; the exe link last, which wants the mapping of the executable.

mod aio;
pub mod inherit;
mod layout;
mod pages;
pub mod shmem;
mod sysv;
pub mod vdso;
pub mod vmas;

use crate::plan::calls::{close, prctl};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Arg, Call, Op, Origin, PageLoad, Phase, Ret, SlotId, VdsoArea};
use crate::plan::{Planner, Refusal};
use crate::tree::Task;
use crust_cli::code::Code;
use crust_image::ids::{FileId, VirtPid};
use crust_proto::criu::MmEntry;
use nix::libc;
use pages::{Loads, Source, StoredRun};
use std::collections::BTreeMap;
use vmas::{Kind, Vma};

const PROT: &[(u64, &str)] = &[
    (libc::PROT_READ as u64, "PROT_READ"),
    (libc::PROT_WRITE as u64, "PROT_WRITE"),
    (libc::PROT_EXEC as u64, "PROT_EXEC"),
];
const MAP: &[(u64, &str)] = &[
    (libc::MAP_SHARED as u64, "MAP_SHARED"),
    (libc::MAP_PRIVATE as u64, "MAP_PRIVATE"),
    (8, "MAP_DROPPABLE"),
    (libc::MAP_ANONYMOUS as u64, "MAP_ANONYMOUS"),
    (libc::MAP_GROWSDOWN as u64, "MAP_GROWSDOWN"),
    (libc::MAP_NORESERVE as u64, "MAP_NORESERVE"),
    (libc::MAP_HUGETLB as u64, "MAP_HUGETLB"),
    (libc::MAP_FIXED_NOREPLACE as u64, "MAP_FIXED_NOREPLACE"),
];
const MADV_HUGEPAGE: u32 = libc::MADV_HUGEPAGE as u32;
const MADV_NOHUGEPAGE: u32 = libc::MADV_NOHUGEPAGE as u32;
/// Since Linux 5.17 (include/uapi/linux/prctl.h).
const PR_SET_VMA: i32 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: i32 = 0;
/// Since Linux 6.13 (include/uapi/asm-generic/mman-common.h).
const MADV_GUARD_INSTALL: i32 = 102;
/// Advice that is a lasting attribute of a vma; all other numbers act once.
const ADVICE: [(u32, &str); 9] = [
    (libc::MADV_RANDOM as u32, "MADV_RANDOM"),
    (libc::MADV_SEQUENTIAL as u32, "MADV_SEQUENTIAL"),
    (libc::MADV_DONTFORK as u32, "MADV_DONTFORK"),
    (libc::MADV_MERGEABLE as u32, "MADV_MERGEABLE"),
    (MADV_HUGEPAGE, "MADV_HUGEPAGE"),
    (MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE"),
    (libc::MADV_DONTDUMP as u32, "MADV_DONTDUMP"),
    (18, "MADV_WIPEONFORK"),
    (21, "MADV_COLLAPSE"),
];

/// Advice that must be there before pages come: bits of `vma_entry.madv`.
const ADVICE_BEFORE_LOAD: u64 = 1 << MADV_HUGEPAGE | 1 << MADV_NOHUGEPAGE;

/// What the room remembers over all tasks.
#[derive(Debug, Default)]
pub struct Mm {
    /// Ranges that tasks use.
    pub used: Vec<(u64, u64)>,
    /// What tasks inherit from those they are forked from.
    pub early: BTreeMap<VirtPid, inherit::Early>,
    pages: BTreeMap<Source, SlotId>,
    shared: BTreeMap<u64, SlotId>,
}

/// Plans the memory of every live task; the first in an address space makes it for all who are in
/// it (CLONE_VM), and whose images say the same.
pub fn plan(planner: &mut Planner<'_>) {
    let tasks: Vec<Task> = planner.tree.owners(|ids| ids.vm_id).cloned().collect();
    shmem::plan(planner, &tasks);
    for task in &tasks {
        plan_task(planner, task);
    }
}

/// One task, while its memory is planned.
struct Room<'e> {
    pid: VirtPid,
    actor: Actor,
    image: String,
    entry: &'e MmEntry,
    vmas: Vec<Vma>,
    runs: Vec<StoredRun>,
    loads: Loads,
    early: inherit::Early,
    /// The file that is number 0 right now.
    held: Option<SlotId>,
}

impl Room<'_> {
    fn origin(&self, what: impl Into<String>) -> Origin {
        Origin::new(self.image.clone(), Some(0), what)
    }

    fn of_vma(&self, vma: &Vma) -> Origin {
        let range = vma.range();
        self.origin(format!("vma {} {range} of task {}", vma.index, self.pid))
    }
}

fn plan_task(planner: &mut Planner<'_>, task: &Task) {
    let image = format!("mm-{}.img", task.pid);
    let origin = Origin::new(
        image.clone(),
        Some(0),
        format!("memory of task {}", task.pid),
    );
    let Some(entry) = planner.checkpoint.mm(task.pid) else {
        planner.refuse(Refusal::new(origin, "the image is missing"));
        return;
    };
    let vmas = match vmas::check(&entry.vmas, planner.host) {
        Ok(vmas) => vmas,
        Err(errors) => {
            for (index, why) in errors {
                let what = format!("vma {index} of task {}", task.pid);
                planner.refuse(Refusal::new(Origin::new(image.clone(), Some(0), what), why));
            }
            return;
        }
    };
    let runs = stored_runs(planner, task.pid);
    let early = planner.mm.early.get(&task.pid).cloned().unwrap_or_default();
    let to_load = match early.loaded.as_slice() {
        [] => None,
        loaded => Some(inherit::cut_out(&runs, loaded)),
    };
    let loads = match pages::split(to_load.as_ref().unwrap_or(&runs), &vmas) {
        Ok(loads) => loads,
        Err(why) => {
            let what = format!("pages of task {}", task.pid);
            let origin = Origin::new(format!("pagemap-{}.img", task.pid), None, what);
            planner.refuse(Refusal::new(origin, why));
            return;
        }
    };
    let room = Room {
        pid: task.pid,
        actor: Actor::Task(task.pid),
        image,
        entry,
        vmas,
        runs,
        loads,
        early,
        held: None,
    };
    plan_room(planner, room);
}

fn plan_room(planner: &mut Planner<'_>, mut room: Room<'_>) {
    let mapped = room.vmas.iter().filter(|vma| vma.kind != Kind::Vsyscall);
    planner
        .mm
        .used
        .extend(mapped.map(|vma| (vma.start, vma.end)));
    plan_vdso(planner, &room);
    sysv::plan_attachments(planner, &room);
    aio::plan_rings(planner, &room);
    for at in 0..room.vmas.len() {
        if let Some(&vma) = room.vmas.get(at) {
            plan_map(planner, &mut room, &vma);
        }
    }
    release(planner, &mut room);
    plan_advice(planner, &room, true);
    plan_loads(planner, &mut room);
    plan_protection(planner, &room);
    plan_advice(planner, &room, false);
    plan_names(planner, &room);
    plan_guards(planner, &room);
    plan_locks(planner, &room);
    layout::plan(planner, &mut room);
}

fn stored_runs(planner: &mut Planner<'_>, pid: VirtPid) -> Vec<StoredRun> {
    match planner.checkpoint.task_pages(pid) {
        Ok(runs) => runs.iter().map(StoredRun::from).collect(),
        Err(error) => {
            let what = format!("pages of task {pid}");
            let origin = Origin::new(format!("pagemap-{pid}.img"), None, what);
            planner.refuse(Refusal::new(origin, error.to_string()));
            Vec::new()
        }
    }
}

/// The vdso must be this kernel's own: it reads data pages whose layout is the kernel's secret.
/// Only its place is the image's.
fn plan_vdso(planner: &mut Planner<'_>, room: &Room<'_>) {
    let area = |vma: &Vma| VdsoArea {
        is_code: vma.kind == Kind::Vdso,
        start: vma.start,
        end: vma.end,
    };
    let special = |vma: &&Vma| matches!(vma.kind, Kind::Vdso | Kind::Vvar);
    let areas: Vec<VdsoArea> = room.vmas.iter().filter(special).map(area).collect();
    let size = |code: bool| -> u64 {
        let of_kind = areas.iter().filter(|area| area.is_code == code);
        of_kind.map(|area| area.end - area.start).sum()
    };
    let (code, data) = (size(true), size(false));
    let origin = room.origin(format!("vdso of task {}", room.pid));
    let (host_code, host_data) = (planner.host.vdso_code, planner.host.vdso_data);
    if areas.is_empty() {
        let why = "the task has none: its last call before it goes on is made there";
        planner.refuse(Refusal::new(origin, why.to_owned()));
        return;
    }
    if (code, data) != (host_code, host_data) {
        let why = format!(
            "{code:#x} bytes of code and {data:#x} of data in the images, {host_code:#x} and \
             {host_data:#x} on this host: another kernel's vdso cannot be replaced yet"
        );
        planner.refuse(Refusal::new(origin, why).kind(Code::HostKernel));
        return;
    }
    planner.push(Phase::Memory, room.actor, Op::MoveVdso { areas }, origin);
}

fn plan_map(planner: &mut Planner<'_>, room: &mut Room<'_>, vma: &Vma) {
    let origin = room.of_vma(vma);
    let slot = match vma.kind {
        Kind::Vdso | Kind::Vvar | Kind::Vsyscall | Kind::Guard => return,
        Kind::Sysv(_) | Kind::AioRing => return,
        Kind::Anon => None,
        Kind::SharedAnon(shmid) => planner.mm.shared.get(&shmid).copied(),
        Kind::File { id, .. } => match planner.mapped_file(FileId(id), vma.open_flags) {
            Some(slot) => Some(slot),
            None => {
                let why = format!("shmid {id} is no file that can be mapped");
                planner.refuse(Refusal::new(origin, why));
                return;
            }
        },
    };
    hold(planner, room, slot, &origin);
    let is_ring = match vma.kind {
        Kind::File { id, .. } => {
            let file = planner.checkpoint.file(FileId(id));
            file.is_some_and(|file| file.crust_uring.is_some())
        }
        _ => false,
    };
    let loaded = pages::any_in(&room.runs, vma);
    // What the task has inherited, or mapped for its children, is there.
    let missing = inherit::without(vma.start..vma.end, &room.early.mapped);
    for range in missing {
        let part = Vma {
            start: range.start,
            end: range.end,
            pgoff: vma.pgoff + (range.start - vma.start),
            ..*vma
        };
        if is_ring {
            let map = Op::MapRing {
                at: part.start,
                len: part.len(),
                prot: part.prot,
                offset: part.pgoff,
            };
            planner.push(Phase::Memory, room.actor, map, origin.clone());
            continue;
        }
        let call = map_call(&part, loaded, slot.is_some());
        planner.call(Phase::Memory, room.actor, call, origin.clone());
    }
}

/// Makes a file number 0 of the task, if it is not already.
fn hold(planner: &mut Planner<'_>, room: &mut Room<'_>, slot: Option<SlotId>, origin: &Origin) {
    let Some(slot) = slot else { return };
    if room.held == Some(slot) {
        return;
    }
    release(planner, room);
    planner.push(Phase::Memory, room.actor, Op::take(slot, 0), origin.clone());
    room.held = Some(slot);
}

fn release(planner: &mut Planner<'_>, room: &mut Room<'_>) {
    if room.held.take().is_some() {
        let origin = room.origin("the file is mapped");
        planner.call(Phase::Memory, room.actor, close(0), origin);
    }
}

fn map_call(vma: &Vma, loaded: bool, from_file: bool) -> Call {
    let mut prot = u64::from(vma.prot);
    if loaded {
        prot |= libc::PROT_WRITE as u64;
    }
    let args = vec![
        Arg::Hex(vma.start),
        Arg::Int(vma.len() as i64),
        Arg::flags(prot, PROT),
        Arg::flags(vma.map_flags().into(), MAP),
        Arg::Int(if from_file { 0 } else { -1 }),
        Arg::Hex(if from_file { vma.pgoff } else { 0 }),
    ];
    Call::new("mmap", libc::SYS_mmap, args).answers(Ret::Exactly(vma.start as i64))
}

/// Reads the pages, file by file.
fn plan_loads(planner: &mut Planner<'_>, room: &mut Room<'_>) {
    for (source, runs) in std::mem::take(&mut room.loads) {
        let slot = pages_slot(planner, source);
        let origin = Origin::new(
            format!("pagemap-{}.img", room.pid),
            None,
            format!(
                "pages of task {} in pages-{}.img",
                room.pid, source.pages_id
            ),
        );
        hold(planner, room, Some(slot), &origin);
        for op in load_ops(&runs, slot) {
            planner.push(Phase::Memory, room.actor, op, origin.clone());
        }
        release(planner, room);
    }
}

/// Loads from file 0 in pieces that one batch of calls can carry, whether each run needs a call
/// of its own or not.
fn load_ops(runs: &[PageLoad], pages: SlotId) -> impl Iterator<Item = Op> + '_ {
    const RUNS: usize = 1024;
    runs.chunks(RUNS).map(move |runs| Op::LoadPages {
        fd: 0,
        pages,
        runs: runs.to_vec(),
    })
}

/// The slot of a pages file, opened once for all.
fn pages_slot(planner: &mut Planner<'_>, source: Source) -> SlotId {
    if let Some(&slot) = planner.mm.pages.get(&source) {
        return slot;
    }
    let slot = planner.slot();
    planner.mm.pages.insert(source, slot);
    let routine = Routine::OpenPages {
        level: source.level,
        pages_id: source.pages_id,
        slot,
    };
    let origin = Origin::new(
        format!("pages-{}.img", source.pages_id),
        None,
        "stored pages",
    );
    planner.push(Phase::Open, Actor::Broker, Op::Routine(routine), origin);
    slot
}

/// Takes back the write permission that was only for loading.
fn plan_protection(planner: &mut Planner<'_>, room: &Room<'_>) {
    for vma in &room.vmas {
        let writable = vma.prot & libc::PROT_WRITE as u32 != 0;
        let as_mapped = writable && !room.early.keeps_part_of(vma);
        if as_mapped || !vma.kind.takes_pages() || !pages::any_in(&room.runs, vma) {
            continue;
        }
        let args = vec![
            Arg::Hex(vma.start),
            Arg::Int(vma.len() as i64),
            Arg::flags(vma.prot.into(), PROT),
        ];
        let call = Call::new("mprotect", libc::SYS_mprotect, args);
        planner.call(Phase::Memory, room.actor, call, room.of_vma(vma));
    }
}

/// Advice about huge pages comes before the load, so that pages come as the program wanted them;
/// all other advice after it.
fn plan_advice(planner: &mut Planner<'_>, room: &Room<'_>, before_load: bool) {
    for vma in &room.vmas {
        if vma.madv == 0
            || matches!(
                vma.kind,
                Kind::Vdso | Kind::Vvar | Kind::Vsyscall | Kind::Guard
            )
        {
            continue;
        }
        let known = ADVICE
            .iter()
            .fold(0, |bits, (number, _)| bits | 1_u64 << number);
        if vma.madv & !known != 0 {
            let why = format!(
                "madv {:#x} has advice that is no attribute of a vma",
                vma.madv
            );
            planner.refuse(Refusal::new(room.of_vma(vma), why));
            continue;
        }
        for (number, name) in ADVICE {
            let early = ADVICE_BEFORE_LOAD >> number & 1 == 1;
            if vma.madv >> number & 1 == 1 && early == before_load {
                let call = madvise(vma, Arg::named(name, number));
                planner.call(Phase::Memory, room.actor, call, room.of_vma(vma));
            }
        }
    }
}

fn advice_before_load(vma: &Vma) -> impl Iterator<Item = Call> + '_ {
    let early = |(number, _): &(u32, &str)| (vma.madv & ADVICE_BEFORE_LOAD) >> number & 1 == 1;
    let advice = ADVICE.into_iter().filter(early);
    advice.map(|(number, name)| madvise(vma, Arg::named(name, number)))
}

fn madvise(vma: &Vma, advice: Arg) -> Call {
    let args = vec![Arg::Hex(vma.start), Arg::Int(vma.len() as i64), advice];
    Call::new("madvise", libc::SYS_madvise, args)
}

/// Names of anonymous memory, which /proc/PID/maps shows.
fn plan_names(planner: &mut Planner<'_>, room: &Room<'_>) {
    for vma in &room.vmas {
        let stored = room.entry.vmas.get(vma.index);
        let Some(name) = stored.and_then(|stored| stored.crust_anon_name.clone()) else {
            continue;
        };
        let args = [
            Arg::named("PR_SET_VMA_ANON_NAME", PR_SET_VMA_ANON_NAME),
            Arg::Hex(vma.start),
            Arg::Int(vma.len() as i64),
            Arg::Str(name),
        ];
        let call = prctl("PR_SET_VMA", PR_SET_VMA, args);
        planner.call(Phase::Memory, room.actor, call, room.of_vma(vma));
    }
}

/// Guards drop the pages in their range, so they come behind the load; and the kernel refuses
/// them in locked memory, so they come before the locks.
fn plan_guards(planner: &mut Planner<'_>, room: &Room<'_>) {
    for vma in room.vmas.iter().filter(|vma| vma.kind == Kind::Guard) {
        let call = madvise(vma, Arg::named("MADV_GUARD_INSTALL", MADV_GUARD_INSTALL));
        planner.call(Phase::Memory, room.actor, call, room.of_vma(vma));
    }
}

fn plan_locks(planner: &mut Planner<'_>, room: &Room<'_>) {
    for vma in room.vmas.iter().filter(|vma| vma.locked()) {
        let mut args = vec![Arg::Hex(vma.start), Arg::Int(vma.len() as i64)];
        let stored = room.entry.vmas.get(vma.index);
        let on_fault = stored.and_then(|stored| stored.crust_lock_on_fault);
        let mut call = if on_fault == Some(true) {
            args.push(Arg::named("MLOCK_ONFAULT", libc::MLOCK_ONFAULT));
            Call::new("mlock2", libc::SYS_mlock2, args)
        } else {
            Call::new("mlock", libc::SYS_mlock, args)
        };
        let guarded = |guard: &&Vma| {
            guard.kind == Kind::Guard && guard.start < vma.end && vma.start < guard.end
        };
        // The vma is marked locked before its pages are faulted in; pages that cannot be, for
        // lack of permission or behind a guard, make an error of a lock that is there.
        if vma.prot == 0 || room.vmas.iter().any(|vma| guarded(&vma)) {
            call = call.answers(Ret::Any);
        }
        planner.call(Phase::Memory, room.actor, call, room.of_vma(vma));
    }
}
