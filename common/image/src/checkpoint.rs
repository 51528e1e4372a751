//! A whole set of images, typed and keyed by what names each thing.
//!
//! Loading reads everything a restore plans from: the inventory, the tree with its cores, memory
//! layouts and resolved page runs, files with what belongs to them, namespaces. Images of older
//! versions are brought into today's form on the way (`old`, `files`). What can be large and is
//! only copied (pages, ghost files, TCP queues, raw images) stays on disk: here is only where it
//! is. The values are as the images have them: whether ids lead somewhere and the tree is one is
//! the business of `check` and of the planner.

mod files;
mod namespaces;
mod old;
mod tasks;

pub use files::{Remap, RemapTarget};
pub use namespaces::Namespaces;

use crate::{
    dir::{FileReader, ImageDir},
    entry::Version,
    error::{Error, Result},
    ids::{FileId, FilesId, PipeId, ShmId, VirtPid},
    kind::Kind,
    pages::{DumpChain, PageRun},
    payload::{PayloadEntry, PipeData, SkPacket},
};
use crust_proto::criu::{
    ApparmorEntry, BinfmtMiscEntry, BpfmapDataEntry, CgroupEntry, CoreEntry, CpuinfoEntry,
    FdinfoEntry, FileEntry, FileLockEntry, FsEntry, InventoryEntry, MemfdInodeEntry, MmEntry,
    PstreeEntry, SeccompEntry, SeccompFilter, TaskKobjIdsEntry, TcpStreamEntry, TtyDataEntry,
    TtyInfoEntry,
};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};

/// `task_core_entry.task_state` of a running or sleeping task.
pub const TASK_ALIVE: u32 = 1;
/// `task_core_entry.task_state` of a zombie.
pub const TASK_DEAD: u32 = 2;
/// `task_core_entry.task_state` of a task stopped by a signal.
pub const TASK_STOPPED: u32 = 3;

/// The page runs of one pagemap, or why they cannot be had. A chain of dumps that lost pages is
/// told with everything else that is against a restore, so it does not end the loading.
pub type PagesResult = Result<Vec<PageRun>, Error>;

/// Everything a set of images says, short of bulk data.
#[derive(Debug)]
pub struct Checkpoint {
    /// The version of the heads.
    pub version: Version,
    /// inventory.img.
    pub inventory: InventoryEntry,
    /// pstree.img, in its order: depth first, parents before children.
    pub pstree: Vec<PstreeEntry>,
    /// `core-<tid>.img` of every leader, thread and zombie.
    pub cores: BTreeMap<VirtPid, CoreEntry>,
    /// `ids-<pid>.img`.
    pub ids: BTreeMap<VirtPid, TaskKobjIdsEntry>,
    /// `mm-<pid>.img`.
    pub mms: BTreeMap<VirtPid, MmEntry>,
    /// `fs-<pid>.img`.
    pub fs: BTreeMap<VirtPid, FsEntry>,
    /// `pagemap-<pid>.img` through the chain of dumps. Every task with an mm has one.
    pub task_pages: BTreeMap<VirtPid, PagesResult>,
    /// `pagemap-shmem-<shmid>.img` through the chain of dumps.
    pub shmem_pages: BTreeMap<ShmId, PagesResult>,
    /// `fdinfo-<files_id>.img`.
    pub fdinfo: BTreeMap<FilesId, Vec<FdinfoEntry>>,
    /// files.img, with the file images of older versions merged in. A tun descriptor, which has two
    /// entries (TUNF and REG), is one TUNF entry with both members.
    pub files: BTreeMap<FileId, FileEntry>,
    /// For each file its number in files.img, for messages. Files of older images have none.
    pub file_entries: BTreeMap<FileId, usize>,
    /// remap-fpath.img, in its order.
    pub remaps: Vec<Remap>,
    /// pipes-data.img.
    pub pipes_data: BTreeMap<PipeId, PipeData>,
    /// fifo-data.img.
    pub fifo_data: BTreeMap<PipeId, PipeData>,
    /// sk-queues.img: for each receiving socket its packets, oldest first.
    pub sk_queues: BTreeMap<FileId, Vec<SkPacket>>,
    /// `tcp-stream-<inode>.img` by inode: the numbers of each connection; the bytes of its queues
    /// stay on disk.
    pub tcp_streams: BTreeMap<u32, TcpStreamEntry>,
    /// tty-info.img by `id`.
    pub ttys: BTreeMap<u32, TtyInfoEntry>,
    /// tty-data.img: the unread input by tty id.
    pub tty_data: BTreeMap<u32, TtyDataEntry>,
    /// memfd.img by `inode_id`.
    pub memfds: BTreeMap<u64, MemfdInodeEntry>,
    /// bpfmap-data.img by `map_id`; the contents stay on disk.
    pub bpf_maps: BTreeMap<u32, BpfmapDataEntry>,
    /// filelocks.img.
    pub file_locks: Vec<FileLockEntry>,
    /// seccomp.img; `seccomp_filter` and `prev` are indexes into it.
    pub seccomp: Vec<SeccompFilter>,
    /// cgroup.img.
    pub cgroup: Option<CgroupEntry>,
    /// apparmor.img.
    pub apparmor: Option<ApparmorEntry>,
    /// cpuinfo.img.
    pub cpuinfo: Option<CpuinfoEntry>,
    /// binfmt-misc.img.
    pub binfmt_misc: Vec<BinfmtMiscEntry>,
    /// The images of namespaces, by kind and namespace id.
    pub namespaces: Namespaces,
    /// Every image of the set, also those not read: ghost files, TCP streams, raw images.
    pub images: BTreeSet<(Kind, Option<u64>)>,
}

/// One task with what is stored for it.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    /// Number of the entry in pstree.img.
    pub entry: usize,
    /// Its id.
    pub pid: VirtPid,
    /// Its place in the tree.
    pub pstree: &'a PstreeEntry,
    /// The core of the leader.
    pub core: Option<&'a CoreEntry>,
    /// Shared-object ids; none for a zombie.
    pub ids: Option<&'a TaskKobjIdsEntry>,
    /// The memory layout; none for a zombie.
    pub mm: Option<&'a MmEntry>,
    /// cwd, root and umask; none for a zombie.
    pub fs: Option<&'a FsEntry>,
}

impl Task<'_> {
    /// `TASK_*`, `None` if the core is missing or says nothing.
    pub fn state(&self) -> Option<u32> {
        Some(self.core?.tc.as_ref()?.task_state)
    }

    /// Whether it is a zombie: it has a core and a place in the tree, nothing else.
    pub fn is_dead(&self) -> bool {
        self.state() == Some(TASK_DEAD)
    }

    /// The threads besides the leader, in order. Numbers that are no ids are left out.
    pub fn other_threads(&self) -> impl Iterator<Item = VirtPid> + '_ {
        let threads = self.pstree.threads.iter().copied();
        threads
            .filter_map(VirtPid::new)
            .filter(|tid| *tid != self.pid)
    }
}

impl Checkpoint {
    /// Loads the set in `dir`. Fails on an image that is missing, of the wrong kind or broken, and
    /// on a directory without pstree.img: a pre-dump is only the parent of a dump.
    pub fn load(dir: &ImageDir) -> Result<Checkpoint> {
        let (inventory, version) = dir.inventory()?;
        let loader = Loader {
            dir,
            images: dir.list()?.into_iter().collect(),
        };
        check_inventory(&loader, &inventory)?;
        let tree = tasks::load(&loader)?;
        let chain = DumpChain::open(dir)?;
        let task_pages = tree.mms.keys().map(|pid| (*pid, task_pages(&chain, *pid)));
        let (files, file_entries) = files::load(&loader)?;
        let seccomp: Option<SeccompEntry> = loader.entry(Kind::Seccomp)?;
        Ok(Checkpoint {
            version,
            inventory,
            task_pages: task_pages.collect(),
            shmem_pages: shmem_pages(&loader, &chain),
            pstree: tree.pstree,
            cores: tree.cores,
            ids: tree.ids,
            mms: tree.mms,
            fs: tree.fs,
            fdinfo: files::load_fdinfo(&loader)?,
            files,
            file_entries,
            remaps: files::load_remaps(&loader)?,
            pipes_data: files::load_pipes_data(&loader, Kind::PipesData)?,
            fifo_data: files::load_pipes_data(&loader, Kind::FifoData)?,
            sk_queues: files::load_queues(&loader)?,
            tcp_streams: files::load_tcp_streams(&loader)?,
            ttys: loader.keyed(Kind::TtyInfo, None, "id", |tty: &TtyInfoEntry| tty.id)?,
            tty_data: files::load_tty_data(&loader)?,
            memfds: loader.keyed(
                Kind::MemfdInode,
                None,
                "inode_id",
                |memfd: &MemfdInodeEntry| memfd.inode_id,
            )?,
            bpf_maps: files::load_bpf_maps(&loader)?,
            file_locks: loader.entries(Kind::FileLocks, None)?,
            seccomp: seccomp.unwrap_or_default().seccomp_filters,
            cgroup: loader.entry(Kind::Cgroup)?,
            apparmor: loader.entry(Kind::Apparmor)?,
            cpuinfo: loader.entry(Kind::Cpuinfo)?,
            binfmt_misc: loader.entries(Kind::BinfmtMisc, None)?,
            namespaces: Namespaces::load(&loader)?,
            images: loader.images,
        })
    }

    /// pstree.img, in its order.
    pub fn pstree(&self) -> &[PstreeEntry] {
        &self.pstree
    }

    /// The tasks in the order of pstree.img. Entries whose pid is none are left out.
    pub fn tasks(&self) -> impl Iterator<Item = Task<'_>> {
        let entries = self.pstree.iter().enumerate();
        entries.filter_map(|(entry, pstree)| {
            let pid = VirtPid::new(pstree.pid)?;
            Some(Task {
                entry,
                pid,
                pstree,
                core: self.core(pid),
                ids: self.ids(pid),
                mm: self.mm(pid),
                fs: self.fs(pid),
            })
        })
    }

    /// The core of a leader or thread.
    pub fn core(&self, tid: VirtPid) -> Option<&CoreEntry> {
        self.cores.get(&tid)
    }

    /// The shared-object ids of a task.
    pub fn ids(&self, pid: VirtPid) -> Option<&TaskKobjIdsEntry> {
        self.ids.get(&pid)
    }

    /// The memory layout of a task.
    pub fn mm(&self, pid: VirtPid) -> Option<&MmEntry> {
        self.mms.get(&pid)
    }

    /// cwd, root and umask of a task.
    pub fn fs(&self, pid: VirtPid) -> Option<&FsEntry> {
        self.fs.get(&pid)
    }

    /// A file.
    pub fn file(&self, id: FileId) -> Option<&FileEntry> {
        self.files.get(&id)
    }

    /// The remap of a file, if its path does not lead to it.
    pub fn remap(&self, id: FileId) -> Option<&Remap> {
        self.remaps.iter().find(|remap| remap.orig_id == id)
    }

    /// The runs of a task's stored pages, ascending; none for a zombie.
    pub fn task_pages(&self, pid: VirtPid) -> Result<&[PageRun], &Error> {
        self.task_pages
            .get(&pid)
            .map_or(Ok(&[]), |pages| pages.as_deref())
    }

    /// The runs of a shared memory object's stored pages, ascending; none for an empty one.
    pub fn shmem_pages(&self, shmid: ShmId) -> Result<&[PageRun], &Error> {
        self.shmem_pages
            .get(&shmid)
            .map_or(Ok(&[]), |pages| pages.as_deref())
    }

    /// Whether the set has an image, read here or not.
    pub fn has_image(&self, kind: Kind, id: Option<u64>) -> bool {
        self.images.contains(&(kind, id))
    }
}

/// Refuses what even CRIU's restore refuses: descriptor tables by task, which very old dumps have.
fn check_inventory(loader: &Loader<'_>, inventory: &InventoryEntry) -> Result<()> {
    if inventory.fdinfo_per_id == Some(true) {
        return Ok(());
    }
    Err(Error::Field {
        file: loader.shown(Kind::Inventory, None),
        entry: 0,
        field: "fdinfo_per_id",
        what: "not set: the descriptor tables of these images are of a form no longer read"
            .to_owned(),
    })
}

fn task_pages(chain: &DumpChain<'_>, pid: VirtPid) -> PagesResult {
    let id = u64::from(pid.get());
    chain
        .resolve(Kind::Pagemap, id)?
        .ok_or_else(|| Error::Missing {
            file: Kind::Pagemap.file_name(Some(id)),
        })
}

fn shmem_pages(loader: &Loader<'_>, chain: &DumpChain<'_>) -> BTreeMap<ShmId, PagesResult> {
    let resolve = |id| {
        chain
            .resolve(Kind::PagemapShmem, id)
            .map(Option::unwrap_or_default)
    };
    loader
        .ids_of(Kind::PagemapShmem)
        .map(|id| (ShmId(id), resolve(id)))
        .collect()
}

/// Reads images that the listing of the directory has; nothing is opened in vain.
struct Loader<'a> {
    dir: &'a ImageDir,
    images: BTreeSet<(Kind, Option<u64>)>,
}

impl Loader<'_> {
    fn shown(&self, kind: Kind, id: Option<u64>) -> String {
        self.dir
            .path()
            .join(kind.file_name(id))
            .display()
            .to_string()
    }

    fn ids_of(&self, kind: Kind) -> impl Iterator<Item = u64> + '_ {
        self.images
            .range((kind, None)..)
            .take_while(move |(found, _)| *found == kind)
            .filter_map(|(_, id)| *id)
    }

    fn open(&self, kind: Kind, id: Option<u64>) -> Result<Option<FileReader>> {
        if !self.images.contains(&(kind, id)) {
            return Ok(None);
        }
        self.dir.open_image(kind, id)
    }

    fn entries<M: Message + Default>(&self, kind: Kind, id: Option<u64>) -> Result<Vec<M>> {
        match self.open(kind, id)? {
            Some(mut reader) => reader.rest(),
            None => Ok(Vec::new()),
        }
    }

    /// The entry of an image of which a dump has one at most.
    fn entry<M: Message + Default>(&self, kind: Kind) -> Result<Option<M>> {
        self.entry_of(kind, None)
    }

    fn entry_of<M: Message + Default>(&self, kind: Kind, id: Option<u64>) -> Result<Option<M>> {
        match self.open(kind, id)? {
            Some(mut reader) => reader.only().map(Some),
            None => Ok(None),
        }
    }

    /// The entries by a key that must be unique.
    fn keyed<M: Message + Default, K: Ord>(
        &self,
        kind: Kind,
        id: Option<u64>,
        field: &'static str,
        key: impl Fn(&M) -> K,
    ) -> Result<BTreeMap<K, M>> {
        let mut keyed = BTreeMap::new();
        let Some(mut reader) = self.open(kind, id)? else {
            return Ok(keyed);
        };
        while let Some(entry) = reader.next_entry::<M>()? {
            if keyed.insert(key(&entry), entry).is_some() {
                return Err(reader.field_error(field, "an entry before has the same"));
            }
        }
        Ok(keyed)
    }

    /// The entries with payload by a key that must be unique.
    fn keyed_payloads<T: PayloadEntry, K: Ord>(
        &self,
        kind: Kind,
        field: &'static str,
        key: impl Fn(&T) -> K,
    ) -> Result<BTreeMap<K, T>> {
        let mut keyed = BTreeMap::new();
        let Some(mut reader) = self.open(kind, None)? else {
            return Ok(keyed);
        };
        while let Some(entry) = T::read(&mut reader)? {
            if keyed.insert(key(&entry), entry).is_some() {
                return Err(reader.field_error(field, "an entry before has the same"));
            }
        }
        Ok(keyed)
    }
}
