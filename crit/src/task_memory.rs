//! The memory a dumped task would see: its own pages, those of shared objects, the files it maps,
//! zeros where nothing was dumped; through the parents of an incremental dump.

use crate::dump::{Dump, Files};
use crate::memory::Pages;
use crate::output::open_regular;
use anyhow::{Context, Result, bail};
use crust_image::Kind;
use crust_image::dynamic::Message;
use crust_image::pages::DumpChain;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bits of vma_entry.status.
mod status {
    pub const STACK: u64 = 0x2;
    pub const VSYSCALL: u64 = 0x4;
    pub const VDSO: u64 = 0x8;
    pub const HEAP: u64 = 0x20;
    pub const FILE_PRIVATE: u64 = 0x40;
    pub const FILE_SHARED: u64 = 0x80;
    pub const ANON_SHARED: u64 = 0x100;
    pub const SYSVIPC: u64 = 0x400;
    pub const VVAR: u64 = 0x1000;
    pub const MEMFD: u64 = 0x4000;
}

/// What lies behind pages that were not dumped with the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    Zero,
    /// A shared memory object by its shmid.
    Shared(u64),
    File(String),
    /// Memory of the kernel: [vsyscall], [vvar].
    Kernel,
}

/// One area.
#[derive(Debug, Clone)]
pub struct Area {
    pub start: u64,
    pub end: u64,
    pub prot: u64,
    pub flags: u64,
    /// Offset of `start` in the file or object, in bytes.
    pub offset: u64,
    pub backing: Backing,
    /// heap, stack, anon, file, shared, vdso or kernel.
    pub kind: &'static str,
}

impl Area {
    fn of(vma: &Message, files: &Files, memfds: &HashMap<u64, u64>) -> Area {
        let number = |name: &str| vma.u64(name).unwrap_or(0);
        let has = |bit: u64| number("status") & bit != 0;
        let shmid = number("shmid");
        let mapped = has(status::FILE_PRIVATE | status::FILE_SHARED);
        let backing = if has(status::VSYSCALL | status::VVAR) {
            Backing::Kernel
        } else if mapped && has(status::MEMFD) {
            let inode = files
                .get(shmid)
                .and_then(|file| file.message("memfd")?.u64("inode_id"));
            inode
                .and_then(|inode| memfds.get(&inode))
                .map_or(Backing::Zero, |shmid| Backing::Shared(*shmid))
        } else if mapped {
            files.path(shmid).map_or(Backing::Zero, Backing::File)
        } else if has(status::ANON_SHARED | status::SYSVIPC) {
            Backing::Shared(shmid)
        } else {
            Backing::Zero
        };
        const MAP_GROWSDOWN: u64 = 0x100;
        let kind = match &backing {
            Backing::Kernel => "kernel",
            Backing::Shared(_) => "shared",
            Backing::File(_) => "file",
            Backing::Zero if has(status::HEAP) => "heap",
            Backing::Zero if has(status::STACK) || number("flags") & MAP_GROWSDOWN != 0 => "stack",
            Backing::Zero if has(status::VDSO) => "vdso",
            Backing::Zero => "anon",
        };
        Area {
            start: number("start"),
            end: number("end"),
            prot: number("prot"),
            flags: number("flags"),
            offset: number("pgoff"),
            backing,
            kind,
        }
    }

    /// `rwx` with dashes.
    pub fn protection(&self) -> String {
        [(1, 'r'), (2, 'w'), (4, 'x')]
            .iter()
            .map(|(bit, letter)| if self.prot & bit != 0 { *letter } else { '-' })
            .collect()
    }

    /// Whether changes are seen by others who map the same.
    pub fn is_shared(&self) -> bool {
        self.flags & 1 != 0
    }

    /// What the area maps, in words.
    pub fn name(&self) -> String {
        match &self.backing {
            Backing::File(path) => path.clone(),
            Backing::Shared(id) => format!("shared memory {id}"),
            Backing::Zero | Backing::Kernel => format!("[{}]", self.kind),
        }
    }
}

/// Where bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Pages of the dump.
    Dumped,
    /// The file on this host.
    File,
    /// Never touched.
    Zero,
    /// Not to be had: the file is not there, or it is the kernel's.
    Missing,
}

/// Opens a mapped file of this host, as seen from `root`: neither `..` nor a link leads out of it.
fn open_mapped(root: Option<&Path>, path: &str) -> Option<File> {
    let Some(root) = root else {
        return open_regular(Path::new(path)).ok();
    };
    let root = File::open(root).ok()?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(openat2(root, path, how).ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}

/// A task's memory.
pub struct TaskMemory<'a> {
    pub areas: Vec<Area>,
    own: Pages<'a>,
    shared: HashMap<u64, Pages<'a>>,
    files: HashMap<String, Option<File>>,
    /// Where mapped files are looked for.
    root: Option<PathBuf>,
}

impl<'a> TaskMemory<'a> {
    pub fn open(
        dump: &Dump,
        chain: &'a DumpChain<'a>,
        pid: u64,
        root: Option<PathBuf>,
    ) -> Result<TaskMemory<'a>> {
        let Some(mm) = dump.message(Kind::Mm, Some(pid))? else {
            let tasks: Vec<String> = dump
                .tasks()?
                .iter()
                .map(|task| task.pid.to_string())
                .collect();
            bail!(
                "{}: task {pid} has no memory in this dump (its tasks are {})",
                dump.shown(),
                tasks.join(", ")
            );
        };
        let files = dump.files()?;
        let mut memfds = HashMap::new();
        if let Some(image) = dump.image(Kind::MemfdInode, None)? {
            for inode in image.messages() {
                if let (Some(id), Some(shmid)) = (inode.u64("inode_id"), inode.u64("shmid")) {
                    memfds.insert(id, shmid);
                }
            }
        }
        let areas: Vec<Area> = mm
            .messages("vmas")
            .map(|vma| Area::of(vma, &files, &memfds))
            .collect();
        let mut shared = HashMap::new();
        for area in &areas {
            if let Backing::Shared(id) = area.backing
                && !shared.contains_key(&id)
            {
                shared.insert(id, Pages::of(chain, Kind::PagemapShmem, id)?);
            }
        }
        let own = Pages::of(chain, Kind::Pagemap, pid)?;
        Ok(TaskMemory {
            areas,
            own,
            shared,
            files: HashMap::new(),
            root,
        })
    }

    /// The area of an address.
    pub fn area_at(&self, address: u64) -> Option<&Area> {
        self.areas
            .iter()
            .find(|area| area.start <= address && address < area.end)
    }

    /// Bytes of one area and one source from `address` on: how many of `into` were filled, and
    /// from where. 0 where no area is.
    pub fn read_at(&mut self, address: u64, into: &mut [u8]) -> Result<(usize, Source)> {
        let Some(area) = self.area_at(address).cloned() else {
            return Ok((0, Source::Missing));
        };
        let mut count = (area.end - address).min(into.len() as u64) as usize;
        let done = self
            .own
            .read_at(address, into.get_mut(..count).unwrap_or_default())?;
        if done > 0 {
            return Ok((done, Source::Dumped));
        }
        if let Some(next) = self.own.next_run(address) {
            count = count.min((next - address) as usize);
        }
        let into = into.get_mut(..count).unwrap_or_default();
        let offset = area.offset.saturating_add(address - area.start);
        match &area.backing {
            Backing::Zero => {
                into.fill(0);
                Ok((count, Source::Zero))
            }
            Backing::Kernel => Ok((count, Source::Missing)),
            Backing::Shared(id) => self.read_shared(*id, offset, into),
            Backing::File(path) => self.read_file(path, offset, into),
        }
    }

    fn read_shared(&mut self, id: u64, offset: u64, into: &mut [u8]) -> Result<(usize, Source)> {
        let Some(pages) = self.shared.get_mut(&id) else {
            return Ok((into.len(), Source::Missing));
        };
        let done = pages.read_at(offset, into)?;
        if done > 0 {
            return Ok((done, Source::Dumped));
        }
        let until = pages
            .next_run(offset)
            .map_or(into.len(), |next| into.len().min((next - offset) as usize));
        into.get_mut(..until).unwrap_or_default().fill(0);
        Ok((until, Source::Zero))
    }

    fn read_file(&mut self, path: &str, offset: u64, into: &mut [u8]) -> Result<(usize, Source)> {
        let root = self.root.as_deref();
        let file = self
            .files
            .entry(path.to_owned())
            .or_insert_with(|| open_mapped(root, path));
        let Some(file) = file else {
            return Ok((into.len(), Source::Missing));
        };
        let count = file
            .read_at(into, offset)
            .with_context(|| format!("read {path}"))?;
        if count == 0 {
            // Behind the file's end, up to the end of its last page.
            into.fill(0);
            return Ok((into.len(), Source::Zero));
        }
        Ok((count, Source::File))
    }
}
