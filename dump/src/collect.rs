//! Collecting: everything the images will say of the frozen tree, but the pages themselves.
//!
//! Order matters: /proc is read and the pages of the stack's end are looked at before anything
//! runs inside a task, whose table lies in just these pages.

use crate::cgroup::{CgSets, OWN_SET};
use crate::context::{Context, Task};
use crate::files::{Descriptor, FileTable, Locks, PathOf};
use crate::ids::KernelIds;
use crate::ipc::{Ipc, collect_ipc};
use crate::mm::absent::collect_absent;
use crate::mm::vmas::{Backing, Vma, plan_vmas};
use crate::refusal::Refusal;
use crate::task::facts::{TaskFacts, collect_facts};
use crate::task::{
    Told, Traced, collect_filters, collect_pending, collect_told, collect_traced, refuse_task,
    refuse_traps,
};
use crate::timens::refuse_several;
use crate::track::holder::end_tracking;
use crate::tree::{Place, refuse_places};
use crate::uts::{UtsNamespaces, collect_uts};
use anyhow::{Context as _, Result, bail};
use crust_cli::code::Code;
use crust_cli::failure::OfStage;
use crust_cli::options::CgroupMode;
use crust_process::cgroup_freezer::{Freezer, Version};
use crust_process::freeze::{Frozen, FrozenTask, TaskState};
use crust_process::memory::TaskMem;
use crust_process::pid::HostPid;
use crust_process::proc::ProcDir;
use crust_process::proc::maps::MapsVma;
use crust_process::proc::smaps::{SmapsVma, VmFlag};
use crust_process::proc::stat::{Stat, parse_stat};
use crust_proto::criu::{AioRingEntry, FdinfoEntry, FsEntry, MmEntry, TaskKobjIdsEntry};
use nix::libc;
use nix::sys::stat::Mode;
use rayon::prelude::*;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// MMF_DUMP_FILTER_DEFAULT of include/linux/mm_types.h, as /proc/PID/coredump_filter shows it.
const DEFAULT_COREDUMP_FILTER: u32 = 0x33;
/// Words of the auxiliary vector that the peer's reader has room for.
const AUXV_WORDS: usize = 44;

/// A task with everything collected of it.
#[derive(Debug)]
pub struct Subject {
    /// Where it is in [`Frozen::tasks`].
    pub frozen: usize,
    /// Where it is in [`Context::tasks`].
    pub task: usize,
    /// What /proc says.
    pub facts: TaskFacts,
    /// Its areas.
    pub vmas: Vec<Vma>,
    /// Pages at the end of the stack that were not there before we ran anything in the task.
    pub absent: Vec<Range<u64>>,
    /// What it told of itself.
    pub told: Told,
    /// What ptrace tells of each thread.
    pub traced: Vec<Traced>,
    /// The cgroup set of each thread.
    pub cg_sets: Vec<u32>,
    /// The objects it shares with others.
    pub ids: TaskKobjIdsEntry,
    /// Its address space.
    pub mm: MmEntry,
    /// Its directories.
    pub fs: FsEntry,
    /// Its descriptors, unless it shares the table of a task before it.
    pub fdinfo: Option<Vec<FdinfoEntry>>,
}

/// A zombie.
#[derive(Debug)]
pub struct Zombie {
    /// Its stat file.
    pub stat: Stat,
    /// Its wait status.
    pub exit_code: i32,
}

/// The whole tree.
#[derive(Debug)]
pub struct Collected {
    /// All tasks and zombies, in the order of pstree.img.
    pub places: Vec<Place>,
    /// The tasks.
    pub subjects: Vec<Subject>,
    /// The zombies.
    pub zombies: Vec<Zombie>,
    /// The numbers of shared objects.
    pub ids: KernelIds,
    /// The files.
    pub files: FileTable,
    /// The cgroup sets.
    pub cgroups: CgSets,
    /// SysV objects.
    pub ipc: Ipc,
    /// The names in uts namespaces that are not ours.
    pub uts: UtsNamespaces,
}

/// What is known of a task before anything runs in it.
struct Seen {
    facts: TaskFacts,
    absent: Vec<Range<u64>>,
    /// Its namespaces that are not ours.
    foreign: Vec<&'static str>,
}

/// The numbers of the objects of a task, and its namespaces that cannot be carried.
type Numbers = (TaskKobjIdsEntry, Vec<&'static str>);

/// What the thread that traces has learned of a task.
struct Heard {
    traced: Vec<Traced>,
    told: Told,
}

/// Collects everything; what cannot be dumped goes to the list of refusals.
pub fn collect(ctx: &Context, frozen: &mut Frozen) -> Result<Collected> {
    let mut ids = KernelIds::new()?;
    let (seen, traced) = see(ctx, frozen, &ids)?;
    let descriptors = seen.iter().map(|seen| seen.facts.fds.len()).sum();
    let locks = Locks::of_tree(descriptors)?;
    check_cgroups(&seen)?;
    let numbers = number(&mut ids, &seen)?;
    let heard = hear(ctx, frozen, &seen, &numbers, traced)?;
    let mut collector = Collector::new(ctx, ids, locks)?;
    let places = alive(frozen).into_iter().zip(0..);
    let known = seen.into_iter().zip(heard).zip(numbers);
    for ((in_frozen, in_tasks), ((seen, heard), ids)) in places.zip(known) {
        let task = &frozen.tasks[in_frozen];
        collector
            .collect_task(task, (in_frozen, in_tasks), seen, heard, ids)
            .with_context(|| format!("collect task {}", task.pid))?;
    }
    collector.finish(frozen)
}

/// Reads /proc on other threads while this one, the tracer, asks ptrace. Neither changes anything.
fn see(ctx: &Context, frozen: &Frozen, ids: &KernelIds) -> Result<(Vec<Seen>, Vec<Vec<Traced>>)> {
    const WORTH_THREADS: usize = 16;
    let threads: usize = ctx.tasks.iter().map(|task| task.tids.len()).sum();
    if threads < WORTH_THREADS {
        let seen = for_each_task(&ctx.tasks, |task| look(ctx, task, ids))?;
        return Ok((seen, trace_all(frozen)?));
    }
    let mut seen = None;
    let traced = rayon::in_place_scope(|scope| {
        scope.spawn(|_| seen = Some(for_each_task(&ctx.tasks, |task| look(ctx, task, ids))));
        trace_all(frozen)
    });
    Ok((seen.context("nobody has read /proc")??, traced?))
}

/// A task in a frozen cgroup of v2 has stopped for us, but would run nothing that we ask of it.
fn check_cgroups(seen: &[Seen]) -> Result<()> {
    let mut known = HashSet::new();
    let threads = seen.iter().flat_map(|seen| &seen.facts.threads);
    for thread in threads {
        let mut unified = thread.cgroup.iter().filter(|member| member.hierarchy == 0);
        if !unified
            .next()
            .is_some_and(|member| known.insert(&member.path))
        {
            continue;
        }
        let tid = HostPid::new(thread.stat.pid);
        let freezer = tid.and_then(|tid| Freezer::of_task(tid, Version::V2));
        if let Some(frozen) = freezer.filter(Freezer::is_frozen) {
            let (tid, cgroup) = (thread.stat.pid, frozen.dir().display());
            bail!("thread {tid} is in the cgroup {cgroup}, which is frozen: thaw it");
        }
    }
    Ok(())
}

/// Tasks in the order of the tree: the first to have an object gives it its number.
fn number(ids: &mut KernelIds, seen: &[Seen]) -> Result<Vec<Numbers>> {
    let number = |seen: &Seen| ids.collect(&seen.facts.dir, seen.foreign.clone());
    seen.iter().map(number).collect()
}

fn trace_all(frozen: &Frozen) -> Result<Vec<Vec<Traced>>> {
    let living = frozen.tasks.iter().filter(|task| is_alive(task));
    living
        .map(|task| task.threads.iter().map(collect_traced).collect())
        .collect()
}

/// What only ptrace and the tasks themselves can tell.
fn hear(
    ctx: &Context,
    frozen: &mut Frozen,
    seen: &[Seen],
    numbers: &[Numbers],
    mut traced: Vec<Vec<Traced>>,
) -> Result<Vec<Heard>> {
    let mut tasks: Vec<&mut FrozenTask> = frozen.tasks.iter_mut().filter(|t| is_alive(t)).collect();
    for ((task, traced), seen) in tasks.iter().zip(&mut traced).zip(seen) {
        for ((thread, traced), facts) in task.threads.iter().zip(traced).zip(&seen.facts.threads) {
            traced.filters = collect_filters(thread, facts.status.seccomp)?;
        }
    }
    let known = ctx.tasks.iter().zip(seen);
    let known: Vec<_> = known.map(|(view, seen)| (&view.mem, &seen.facts)).collect();
    let told = ask_in_waves(&mut tasks, &known, numbers)?;
    for ((task, traced), seen) in tasks.iter().zip(&mut traced).zip(seen) {
        // A timer that was read as running may have sent a thread its signal since, and none that was
        // read as expired only now: queues are read behind the timers.
        if !seen.facts.timers.is_empty() {
            for (thread, traced) in task.threads.iter().zip(traced) {
                traced.pending = collect_pending(thread)?;
            }
        }
    }
    let heard = traced.into_iter().zip(told);
    Ok(heard.map(|(traced, told)| Heard { traced, told }).collect())
}

/// Two tasks in one address space would use the same table at the same time: one asks after the
/// other, and all address spaces at once.
fn ask_in_waves(
    tasks: &mut [&mut FrozenTask],
    known: &[(&TaskMem, &TaskFacts)],
    numbers: &[Numbers],
) -> Result<Vec<Told>> {
    let mut users: HashMap<u32, usize> = HashMap::new();
    let mut wave_of = |(ids, _): &Numbers| {
        let user = users.entry(ids.vm_id).or_default();
        *user += 1;
        *user
    };
    let waves: Vec<usize> = numbers.iter().map(&mut wave_of).collect();
    let mut told: Vec<(usize, Told)> = Vec::new();
    for wave in 1..=waves.iter().copied().max().unwrap_or(0) {
        let of_wave = |at: &usize| waves.get(*at) == Some(&wave);
        let places: Vec<usize> = (0..tasks.len()).filter(of_wave).collect();
        let asked = tasks.iter_mut().enumerate();
        let asked = asked.filter(|(at, _)| of_wave(at));
        let mut asked: Vec<&mut FrozenTask> = asked.map(|(_, task)| &mut **task).collect();
        let known: Vec<_> = places
            .iter()
            .filter_map(|at| known.get(*at))
            .copied()
            .collect();
        told.extend(places.into_iter().zip(collect_told(&mut asked, &known)?));
    }
    told.sort_by_key(|(at, _)| *at);
    Ok(told.into_iter().map(|(_, told)| told).collect())
}

/// The address spaces, each with the places of its task and of those that share it (CLONE_VM).
pub fn spaces(subjects: &[Subject]) -> Vec<Vec<usize>> {
    let mut places: HashMap<u32, usize> = HashMap::new();
    let mut spaces: Vec<Vec<usize>> = Vec::new();
    for (at, subject) in subjects.iter().enumerate() {
        let place = *places.entry(subject.ids.vm_id).or_insert(spaces.len());
        match spaces.get_mut(place) {
            Some(space) => space.push(at),
            None => spaces.push(vec![at]),
        }
    }
    spaces
}

fn is_alive(task: &FrozenTask) -> bool {
    !matches!(task.state, TaskState::Zombie(_))
}

/// Runs `work` on all tasks at once; on one alone without starting threads for it.
pub fn for_each_task<T: Sync, R: Send>(
    tasks: &[T],
    work: impl Fn(&T) -> Result<R> + Send + Sync,
) -> Result<Vec<R>> {
    match tasks {
        [only] => Ok(vec![work(only)?]),
        all => all.par_iter().map(work).collect(),
    }
}

/// Indexes of the tasks that are not zombies.
fn alive(frozen: &Frozen) -> Vec<usize> {
    (0..frozen.tasks.len())
        .filter(|index| is_alive(&frozen.tasks[*index]))
        .collect()
}

fn look(ctx: &Context, task: &Task, ids: &KernelIds) -> Result<Seen> {
    let mut facts = collect_facts(task.pid, &task.tids, &ctx.foreseen)?;
    let is_tracked = |area: &SmapsVma| area.flags.has(VmFlag::UffdWp);
    if facts.areas.iter().any(is_tracked) && ended_tracking(task.pid)? {
        facts = collect_facts(task.pid, &task.tids, &ctx.foreseen)?;
    }
    let absent = collect_absent(&facts.dir, &facts.stack())?;
    Ok(Seen {
        foreign: ids.foreign_namespaces(&facts.dir)?,
        facts,
        absent,
    })
}

/// An earlier dump's tracking goes, or the images would hold what it made of the task.
fn ended_tracking(pid: HostPid) -> Result<bool> {
    let ended = end_tracking(pid);
    let ended = ended.with_context(|| format!("end the write tracking of task {pid}"));
    ended.stage(Code::Track)
}

/// What grows while the tasks are collected one after the other.
struct Collector<'a> {
    ctx: &'a Context<'a>,
    ids: KernelIds,
    cgroups: CgSets,
    files: FileTable,
    /// The descriptor tables met so far.
    tables: HashSet<u32>,
    subjects: Vec<Subject>,
}

impl<'a> Collector<'a> {
    fn new(ctx: &'a Context<'a>, ids: KernelIds, locks: Locks) -> Result<Collector<'a>> {
        Ok(Collector {
            ctx,
            files: FileTable::new(ids.encode_own(), ids.namespaces(), locks)?,
            ids,
            cgroups: CgSets::new(ctx.options)?,
            tables: HashSet::new(),
            subjects: Vec::new(),
        })
    }

    /// Everything of one task; `places` are its places in the frozen tree and in the context.
    fn collect_task(
        &mut self,
        task: &FrozenTask,
        places: (usize, usize),
        seen: Seen,
        heard: Heard,
        numbers: Numbers,
    ) -> Result<()> {
        let view = self.ctx.tasks.get(places.1).context("it has no view")?;
        let facts = seen.facts;
        let Heard { traced, told } = heard;
        let (vmas, unsupported) = plan_vmas(&facts.areas);
        if !vmas.iter().any(|vma| vma.backing == Backing::Vdso) {
            let what = "is not there any more: the last call of a restore is made in it";
            self.ctx.refuse(Refusal::new(view.pid, "its vdso", what));
        }
        for area in unsupported {
            self.ctx
                .refuse(Refusal::new(view.pid, area.object, area.what));
        }
        for refusal in refuse_task(view.pid, task, &facts, &told) {
            self.ctx.refuse(refusal);
        }
        for refusal in refuse_traps(view.pid, task, &traced) {
            self.ctx.refuse(refusal);
        }
        let mut subject = Subject {
            frozen: places.0,
            task: places.1,
            absent: seen.absent,
            traced,
            cg_sets: self.cg_sets(&facts),
            ids: self.check_ids(view, numbers),
            mm: encode_mm(&facts, &vmas, &told),
            fs: encode_fs(&facts),
            fdinfo: None,
            vmas,
            told,
            facts,
        };
        subject.mm.aios = collect_rings(self.ctx, view, &subject.vmas)?;
        self.collect_files(view, &mut subject)?;
        log_subject(self.ctx, view, &subject);
        self.subjects.push(subject);
        Ok(())
    }

    fn cg_sets(&mut self, facts: &TaskFacts) -> Vec<u32> {
        let threads = facts.threads.iter();
        match self.ctx.options.manage_cgroups {
            CgroupMode::Ignore => threads.map(|_| OWN_SET).collect(),
            _ => threads
                .map(|thread| self.cgroups.add(&thread.cgroup))
                .collect(),
        }
    }

    fn check_ids(&mut self, view: &Task, (ids, foreign): Numbers) -> TaskKobjIdsEntry {
        for kind in foreign {
            let what = "is not ours, which is not supported yet";
            self.ctx.refuse(Refusal::new(
                view.pid,
                format!("its namespace {kind}"),
                what,
            ));
        }
        ids
    }

    /// Files in the peer's order: mappings and executable, descriptors, directories.
    fn collect_files(&mut self, view: &Task, subject: &mut Subject) -> Result<()> {
        let ctx = self.ctx;
        collect_mapped(ctx, view, subject, &mut self.files)?;
        subject.mm.exe_file_id = self.path_id(view, PathOf::Exe)?;
        if self.tables.insert(subject.ids.files_id) {
            let flags = &subject.told.task.cloexec;
            let numbers = subject.facts.fds.iter().zip(flags);
            let descriptors: Vec<Descriptor> = numbers
                .filter_map(|(fd, cloexec)| {
                    Some(Descriptor {
                        fd: *fd,
                        cloexec: (*cloexec)?,
                    })
                })
                .collect();
            subject.fdinfo = Some(self.files.dump_table(ctx, view, &descriptors)?);
        }
        collect_mapped_descriptors(ctx, view, subject, &self.files);
        subject.fs.cwd_id = self.path_id(view, PathOf::Cwd)?;
        subject.fs.root_id = self.path_id(view, PathOf::Root)?;
        Ok(())
    }

    /// The id of a file that the task holds by a path; 0 if it was refused.
    fn path_id(&mut self, view: &Task, which: PathOf) -> Result<u32> {
        let file = self.files.add_path(self.ctx, view, which)?;
        Ok(file.map_or(0, |file| file.id.0))
    }

    fn finish(self, frozen: &Frozen) -> Result<Collected> {
        let (places, zombies) = collect_tree(frozen, &self.subjects)?;
        for refusal in refuse_places(&places, self.ctx.options.shell_job) {
            self.ctx.refuse(refusal);
        }
        let ipc = collect_ipc(self.ctx, &self.ids, &self.subjects)?;
        let uts = collect_uts(&self.ids, &self.subjects, self.files.held_uts())?;
        let collected = Collected {
            ipc,
            uts,
            places,
            zombies,
            subjects: self.subjects,
            ids: self.ids,
            files: self.files,
            cgroups: self.cgroups,
        };
        refuse_several(self.ctx, &collected);
        Ok(collected)
    }
}

/// The AIO contexts, by the headers of their rings (struct aio_ring of fs/aio.c). What the kernel
/// rounds a context's size up to depends on nothing but the number asked for.
fn collect_rings(ctx: &Context, view: &Task, vmas: &[Vma]) -> Result<Vec<AioRingEntry>> {
    const MAGIC: u32 = 0xa10a_10a1;
    let mut rings = Vec::new();
    for vma in vmas.iter().filter(|vma| vma.backing == Backing::Aio) {
        let mut header = [0; 20];
        view.mem.read_exact_at(vma.range.start, &mut header)?;
        let (words, _) = header.as_chunks::<4>();
        let word = |at: usize| words.get(at).map_or(0, |word| u32::from_le_bytes(*word));
        let (events, magic) = (word(1), word(4));
        if magic != MAGIC || events < 4 {
            let object = format!("the AIO ring at {:#x}", vma.range.start);
            let what = format!("has no header: magic {magic:#x}, {events} events");
            ctx.refuse(Refusal::new(view.pid, object, what));
            continue;
        }
        rings.push(AioRingEntry {
            id: vma.range.start,
            nr_req: (events - 2) / 2,
            ring_len: u32::try_from(vma.range.end - vma.range.start).unwrap_or(u32::MAX),
        });
    }
    Ok(rings)
}

fn log_subject(ctx: &Context, view: &Task, subject: &Subject) {
    ctx.log.debug(format_args!(
        "Collected task {}: {} threads, {} areas, {} descriptors",
        view.pid,
        view.tids.len(),
        subject.vmas.len(),
        subject.told.task.cloexec.iter().flatten().count()
    ));
}

/// The umask; the directories are files and come later.
fn encode_fs(facts: &TaskFacts) -> FsEntry {
    FsEntry {
        umask: facts.leader().and_then(|leader| leader.status.umask),
        ..FsEntry::default()
    }
}

/// The address space, but its files and guard regions.
fn encode_mm(facts: &TaskFacts, vmas: &[Vma], told: &Told) -> MmEntry {
    let Some(leader) = facts.leader() else {
        return MmEntry::default();
    };
    let stat = &leader.stat;
    MmEntry {
        mm_start_code: stat.start_code,
        mm_end_code: stat.end_code,
        mm_start_data: stat.start_data,
        mm_end_data: stat.end_data,
        mm_start_stack: stat.start_stack,
        mm_start_brk: stat.start_brk,
        mm_brk: told.task.brk,
        mm_arg_start: stat.arg_start,
        mm_arg_end: stat.arg_end,
        mm_env_start: stat.env_start,
        mm_env_end: stat.env_end,
        exe_file_id: 0,
        mm_saved_auxv: facts.auxv.iter().copied().take(AUXV_WORDS).collect(),
        vmas: vmas.iter().map(|vma| vma.entry.clone()).collect(),
        dumpable: Some(told.task.dumpable),
        aios: Vec::new(),
        thp_disabled: Some(told.task.thp_disable != 0),
        // Bit 0 is what the field above says.
        crust_thp_disable_flags: Some(told.task.thp_disable & !1).filter(|flags| *flags != 0),
        crust_mdwe: Some(told.task.mdwe).filter(|flags| *flags != 0),
        crust_memory_merge: told.task.memory_merge.then_some(true),
        crust_coredump_filter: facts
            .coredump_filter
            .filter(|filter| *filter != DEFAULT_COREDUMP_FILTER),
    }
}

/// Gives each file mapping the id of its file and the mode to open it with.
fn collect_mapped(
    ctx: &Context,
    task: &Task,
    subject: &mut Subject,
    files: &mut FileTable,
) -> Result<()> {
    let areas = subject
        .facts
        .areas
        .iter()
        .map(|area| (area.vma.start, &area.vma));
    let areas: HashMap<u64, &MapsVma> = areas.collect();
    // An ELF file has five areas, and a program may have a thousand of one file.
    let mut known = HashMap::new();
    for (vma, entry) in subject.vmas.iter().zip(&mut subject.mm.vmas) {
        if matches!(vma.backing, Backing::Sysv | Backing::Aio) {
            entry.fdflags = Some(open_mode(&subject.facts.dir, &vma.range)?);
        }
        if !matches!(vma.backing, Backing::File | Backing::Memfd) {
            continue;
        }
        entry.fdflags = Some(open_mode(&subject.facts.dir, &vma.range)?);
        let area = areas
            .get(&vma.range.start)
            .context("an area without its line of maps")?;
        let file = (area.dev_major, area.dev_minor, area.inode, &area.name);
        entry.shmid = match known.entry(file) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let file = files.add_mapped(ctx, task, area)?;
                *new.insert(file.map_or(0, |file| u64::from(file.id.0)))
            }
        };
    }
    Ok(())
}

/// Gives each mapping of a socket, a bpf map or an io_uring the id of a descriptor of it.
fn collect_mapped_descriptors(
    ctx: &Context,
    task: &Task,
    subject: &mut Subject,
    files: &FileTable,
) {
    for (vma, entry) in subject.vmas.iter().zip(&mut subject.mm.vmas) {
        let found = match vma.backing {
            Backing::Socket => files.mapped_socket(task, &vma.range),
            Backing::BpfMap => files.mapped_bpf_map(ctx, task, &vma.range, entry.pgoff),
            Backing::Ring => files.mapped_ring(task, &vma.range),
            _ => continue,
        };
        match found {
            Ok(id) => entry.shmid = id.0.into(),
            Err(what) => {
                let Range { start, end } = vma.range;
                let object = format!("the area {start:x}-{end:x}");
                ctx.refuse(Refusal::new(task.pid, object, what));
            }
        }
    }
}

/// What the file of a mapping was opened for: the permission bits of the link tell.
fn open_mode(dir: &ProcDir, range: &Range<u64>) -> Result<u32> {
    let name = format!("map_files/{:x}-{:x}", range.start, range.end);
    let stat = nix::sys::stat::fstatat(
        dir.as_fd(),
        name.as_str(),
        nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .with_context(|| format!("task {}: lstat {name}", dir.pid()))?;
    let mode = Mode::from_bits_truncate(stat.st_mode);
    Ok(
        match (mode.contains(Mode::S_IRUSR), mode.contains(Mode::S_IWUSR)) {
            (true, true) => libc::O_RDWR as u32,
            (false, true) => libc::O_WRONLY as u32,
            _ => libc::O_RDONLY as u32,
        },
    )
}

fn collect_tree(frozen: &Frozen, subjects: &[Subject]) -> Result<(Vec<Place>, Vec<Zombie>)> {
    let mut places = Vec::new();
    let mut zombies = Vec::new();
    for (index, task) in frozen.tasks.iter().enumerate() {
        let is_root = index == 0;
        if let TaskState::Zombie(exit_code) = task.state {
            let text = ProcDir::open(task.pid)?.read("stat")?;
            let stat =
                parse_stat(&text).with_context(|| format!("task {}: read stat", task.pid))?;
            places.push(Place::new(task.pid, is_root, &stat, Vec::new()));
            zombies.push(Zombie { stat, exit_code });
            continue;
        }
        let subject = subjects.iter().find(|subject| subject.frozen == index);
        let leader = subject.and_then(|subject| subject.facts.leader());
        let stat = &leader.context("a task without a leader")?.stat;
        // A dead leader is in the tree all the same (write/leader).
        let leader = task.dead_leader.map(|_| task.pid);
        let threads = task.threads.iter().map(|thread| thread.stopped.tid());
        let tids = leader.into_iter().chain(threads).collect();
        places.push(Place::new(task.pid, is_root, stat, tids));
    }
    Ok((places, zombies))
}
