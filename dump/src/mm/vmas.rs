//! The areas of an address space: /proc/PID/smaps as vma_entry.
//!
//! Classification is pure; what a file mapping maps is asked by the caller, who opens
//! /proc/PID/map_files. Memory mapped shared and anonymous is a file there too (a memfd without a
//! name), and that is how the images have it on kernels that let it be opened. What no image can
//! hold (a protection key, a userfaultfd registration) is a refusal.

use crust_process::proc::maps::{MapsVma, VmaName};
use crust_process::proc::smaps::{SmapsVma, VmFlag};
use crust_proto::criu::VmaEntry;
use nix::libc;
use std::ops::Range;

/// vma_entry.status (FORMAT 3).
pub mod status {
    /// An ordinary area.
    pub const REGULAR: u32 = 1;
    /// The gate page, which no restore maps.
    pub const VSYSCALL: u32 = 4;
    /// The code the kernel gives.
    pub const VDSO: u32 = 8;
    /// brk.
    pub const HEAP: u32 = 0x20;
    /// A private mapping of a file.
    pub const FILE_PRIVATE: u32 = 0x40;
    /// A shared mapping of a file.
    pub const FILE_SHARED: u32 = 0x80;
    /// Private memory.
    pub const ANON_PRIVATE: u32 = 0x200;
    /// Shared memory without a file.
    pub const ANON_SHARED: u32 = 0x100;
    /// A SysV segment.
    pub const SYSV: u32 = 0x400;
    /// The rings of a packet socket.
    pub const SOCKET: u32 = 0x800;
    /// The data of the vdso.
    pub const VVAR: u32 = 0x1000;
    /// The ring of an AIO context.
    pub const AIO_RING: u32 = 0x2000;
    /// The file is a memfd, or unnamed shared memory.
    pub const MEMFD: u32 = 0x4000;
    /// A guard region inside another area.
    pub const GUARD: u32 = 0x10000;
}

const MAP_DROPPABLE: u32 = 8;
/// What maps shows of every map of the bpf machine.
const BPF_MAP: &[u8] = b"anon_inode:bpf-map";
/// And of every io_uring.
const RING: &[u8] = b"anon_inode:[io_uring]";
/// MAP_TYPE of include/uapi/linux/mman.h.
const MAP_KIND: u32 = 0xf;

/// What an area is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Private memory without a file.
    Anonymous,
    /// A file on a file system, or a device.
    File,
    /// A memfd or shared anonymous memory.
    Memfd,
    /// A SysV segment.
    Sysv,
    /// The ring of an AIO context.
    Aio,
    /// The rings of a packet socket.
    Socket,
    /// A map of the bpf machine.
    BpfMap,
    /// The memory of an io_uring.
    Ring,
    /// The vdso.
    Vdso,
    /// Its data, [vvar] and [vvar_vclock] as one.
    Vvar,
    /// The gate page.
    Vsyscall,
}

/// An area that the images can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// Its addresses.
    pub range: Range<u64>,
    /// What it is made of.
    pub backing: Backing,
    /// MAP_SHARED.
    pub shared: bool,
    /// As the images have it; `shmid` and `fdflags` of a file mapping are still open.
    pub entry: VmaEntry,
}

impl Vma {
    /// Whether pages of it belong to the task and are in its pagemap.
    pub fn has_own_pages(&self) -> bool {
        // A ring is shared with nobody but the kernel.
        let own = !self.shared || self.backing == Backing::Aio;
        own && !matches!(self.backing, Backing::Vvar | Backing::Vsyscall)
    }

    /// Whether it is private anonymous memory and nothing else.
    pub fn is_plain(&self) -> bool {
        self.backing == Backing::Anonymous && !self.shared
    }

    /// Whether all its pages are dumped, and no pagemap is asked: a restorer on another kernel
    /// compares the vdso with its own, and a ring is as small.
    pub fn is_dumped_whole(&self) -> bool {
        matches!(self.backing, Backing::Vdso | Backing::Aio)
    }

    /// Whether a fork has its pages as they are (dup_mmap of kernel/fork.c), and keeps them: private
    /// huge pages are taken from a fork when the parent needs one (mm/hugetlb.c).
    pub fn is_copied_on_fork(&self) -> bool {
        const NOT_COPIED: u64 = 1 << libc::MADV_DONTFORK | 1 << libc::MADV_WIPEONFORK;
        let flags = self.entry.flags;
        matches!(self.backing, Backing::Anonymous | Backing::File)
            && !self.shared
            && self.entry.madv.unwrap_or(0) & NOT_COPIED == 0
            && flags & libc::MAP_HUGETLB as u32 == 0
            && flags & MAP_KIND != MAP_DROPPABLE
    }

    /// Whether a restore may bring its pages later, when they are touched.
    pub fn may_be_lazy(&self) -> bool {
        self.backing == Backing::Anonymous && self.entry.flags & libc::MAP_LOCKED as u32 == 0
    }
}

/// An area the images cannot hold, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// The area and its name.
    pub object: String,
    /// Why.
    pub what: String,
}

/// Sorts the areas of smaps into those to write and those to refuse.
pub fn plan_vmas(areas: &[SmapsVma]) -> (Vec<Vma>, Vec<Unsupported>) {
    let mut vmas: Vec<Vma> = Vec::with_capacity(areas.len());
    let mut unsupported = Vec::new();
    for area in areas {
        match plan_vma(area) {
            Ok(vma) => match vmas.last_mut() {
                // Since 6.13 the data of the vdso is two areas; the images have one.
                Some(last)
                    if last.backing == Backing::Vvar
                        && vma.backing == Backing::Vvar
                        && last.range.end == vma.range.start =>
                {
                    last.range.end = vma.range.end;
                    last.entry.end = vma.range.end;
                }
                _ => vmas.push(vma),
            },
            Err(what) => unsupported.push(Unsupported {
                object: object_of(&area.vma),
                what,
            }),
        }
    }
    (vmas, unsupported)
}

/// The entry of a guard region (MADV_GUARD_INSTALL): a range without an area of its own, at the
/// end of the list.
pub fn encode_guard(range: &Range<u64>) -> VmaEntry {
    VmaEntry {
        start: range.start,
        end: range.end,
        flags: (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32,
        status: status::GUARD,
        fd: -1,
        ..VmaEntry::default()
    }
}

fn plan_vma(area: &SmapsVma) -> Result<Vma, String> {
    let backing = backing_of(area)?;
    let special = matches!(backing, Backing::Vdso | Backing::Vvar | Backing::Vsyscall);
    if !special {
        refuse_flags(area)?;
    }
    let vma = &area.vma;
    let file = matches!(
        backing,
        Backing::File
            | Backing::Memfd
            | Backing::Aio
            | Backing::Socket
            | Backing::BpfMap
            | Backing::Ring
    );
    let entry = VmaEntry {
        start: vma.start,
        end: vma.end,
        pgoff: if file || backing == Backing::Sysv {
            vma.offset
        } else {
            0
        },
        // The inode number of a segment is its id.
        shmid: if backing == Backing::Sysv {
            vma.inode
        } else {
            0
        },
        prot: vma.perms.prot() as u32,
        flags: flags_of(area, file),
        status: status_of(backing, vma),
        fd: -1,
        madv: madv_of(area),
        fdflags: None,
        crust_anon_name: match &vma.name {
            VmaName::Anon(name) | VmaName::AnonShmem(name) => Some(name.clone()),
            _ => None,
        },
        crust_lock_on_fault: area.flags.has(VmFlag::LockOnFault).then_some(true),
        crust_sealed: (area.flags.has(VmFlag::Sealed) && !special).then_some(true),
    };
    Ok(Vma {
        range: vma.start..vma.end,
        backing,
        shared: vma.perms.shared,
        entry,
    })
}

fn backing_of(area: &SmapsVma) -> Result<Backing, String> {
    let vma = &area.vma;
    Ok(match &vma.name {
        VmaName::Vsyscall => Backing::Vsyscall,
        VmaName::Vdso => Backing::Vdso,
        VmaName::Vvar | VmaName::VvarVclock => Backing::Vvar,
        VmaName::Memfd(_) | VmaName::AnonShmem(_) => Backing::Memfd,
        // Private /dev/zero is private memory from the start; only the shared one is an object.
        VmaName::ZeroShared if vma.perms.shared => Backing::Memfd,
        VmaName::Empty | VmaName::Heap | VmaName::Stack | VmaName::Anon(_) if vma.inode == 0 => {
            Backing::Anonymous
        }
        VmaName::Path { path, .. } if path.starts_with(b"/") => Backing::File,
        VmaName::ZeroShared => Backing::File,
        VmaName::SysV { .. } => Backing::Sysv,
        VmaName::Aio => Backing::Aio,
        // The kernel gives even private memory in huge pages a file.
        VmaName::AnonHugepage if !vma.perms.shared => Backing::Anonymous,
        VmaName::AnonHugepage => Backing::Memfd,
        VmaName::Path { path, .. } if vma.perms.shared && path.starts_with(b"socket:[") => {
            Backing::Socket
        }
        VmaName::Path { path, .. } if vma.perms.shared && path == BPF_MAP => Backing::BpfMap,
        VmaName::Path { path, .. } if vma.perms.shared && path == RING => Backing::Ring,
        VmaName::Path { path, .. } => {
            return Err(format!(
                "maps {}, which is not supported",
                String::from_utf8_lossy(path)
            ));
        }
        other => return Err(format!("is of a kind that is not supported ({other:?})")),
    })
}

fn refuse_flags(area: &SmapsVma) -> Result<(), String> {
    const REFUSED: [(VmFlag, &str); 8] = [
        (
            VmFlag::HugeTlb,
            "is a SysV segment in huge pages, and the kernel tells of no segment how large its pages are",
        ),
        (
            VmFlag::ShadowStack,
            "is a shadow stack, which is not supported yet",
        ),
        (VmFlag::UffdMissing, "is registered with userfaultfd"),
        (VmFlag::UffdWp, "is registered with userfaultfd"),
        (VmFlag::UffdMinor, "is registered with userfaultfd"),
        (VmFlag::Io, "is the memory of a device"),
        (VmFlag::PfnMap, "is the memory of a device"),
        (VmFlag::MixedMap, "is the memory of a device"),
    ];
    let refused = |(flag, _): &&(VmFlag, &str)| {
        // Memory that we know how to make again, with its pages or without.
        let is_known = match flag {
            VmFlag::MixedMap => matches!(
                backing_of(area),
                Ok(Backing::Socket | Backing::BpfMap | Backing::Ring)
            ),
            VmFlag::HugeTlb => {
                let backing = backing_of(area);
                matches!(
                    backing,
                    Ok(Backing::Anonymous | Backing::Memfd | Backing::File)
                )
            }
            _ => false,
        };
        area.flags.has(*flag) && !is_known
    };
    if let Some((_, what)) = REFUSED.iter().find(refused) {
        return Err((*what).into());
    }
    if let Some(key @ 1..) = area.protection_key {
        return Err(format!(
            "has protection key {key}, which the images cannot hold"
        ));
    }
    match area.flags.unknown.first() {
        Some(word) => Err(format!(
            "has the unknown flag '{}'",
            String::from_utf8_lossy(word)
        )),
        None => Ok(()),
    }
}

/// MAP_HUGETLB with the size as mmap(2) has it: its logarithm in bits 26 to 31.
fn huge_flags(area: &SmapsVma) -> u32 {
    if !area.flags.has(VmFlag::HugeTlb) {
        return 0;
    }
    let size = area.kernel_page_kb.unwrap_or(0).saturating_mul(1024);
    let shift = size.checked_ilog2().unwrap_or(0);
    libc::MAP_HUGETLB as u32 | shift << libc::MAP_HUGE_SHIFT
}

fn flags_of(area: &SmapsVma, file: bool) -> u32 {
    let shared = area.vma.perms.shared;
    let droppable = area.flags.has(VmFlag::Droppable);
    let base = match (shared, droppable) {
        (true, _) => libc::MAP_SHARED as u32,
        (false, true) => MAP_DROPPABLE,
        (false, false) => libc::MAP_PRIVATE as u32,
    };
    let bit = |on: bool, flag: i32| if on { flag as u32 } else { 0 };
    base | huge_flags(area)
        | bit(!file, libc::MAP_ANONYMOUS)
        | bit(area.flags.has(VmFlag::GrowsDown), libc::MAP_GROWSDOWN)
        | bit(area.flags.has(VmFlag::Locked), libc::MAP_LOCKED)
        | bit(area.flags.has(VmFlag::NoReserve), libc::MAP_NORESERVE)
}

fn status_of(backing: Backing, vma: &MapsVma) -> u32 {
    let file = if vma.perms.shared {
        status::FILE_SHARED
    } else {
        status::FILE_PRIVATE
    };
    match backing {
        Backing::Anonymous if vma.name == VmaName::Heap => {
            status::REGULAR | status::ANON_PRIVATE | status::HEAP
        }
        Backing::Anonymous => status::REGULAR | status::ANON_PRIVATE,
        Backing::File | Backing::BpfMap | Backing::Ring => status::REGULAR | file,
        Backing::Socket => status::REGULAR | status::SOCKET,
        Backing::Memfd => status::REGULAR | file | status::MEMFD,
        Backing::Aio => status::AIO_RING,
        Backing::Sysv => status::REGULAR | status::ANON_SHARED | status::SYSV,
        Backing::Vdso => status::REGULAR | status::VDSO | status::ANON_PRIVATE,
        Backing::Vvar => status::REGULAR | status::ANON_PRIVATE | status::VVAR,
        Backing::Vsyscall => status::VSYSCALL | status::ANON_PRIVATE,
    }
}

/// A bit for each MADV_ number whose effect lasts.
fn madv_of(area: &SmapsVma) -> Option<u64> {
    const ADVICE: [(VmFlag, i32); 8] = [
        (VmFlag::RandRead, libc::MADV_RANDOM),
        (VmFlag::SeqRead, libc::MADV_SEQUENTIAL),
        (VmFlag::DontCopy, libc::MADV_DONTFORK),
        (VmFlag::Mergeable, libc::MADV_MERGEABLE),
        (VmFlag::HugePage, libc::MADV_HUGEPAGE),
        (VmFlag::NoHugePage, libc::MADV_NOHUGEPAGE),
        (VmFlag::DontDump, libc::MADV_DONTDUMP),
        (VmFlag::WipeOnFork, libc::MADV_WIPEONFORK),
    ];
    if matches!(area.vma.name, VmaName::Vdso | VmaName::Vsyscall) {
        return None;
    }
    // Droppable memory has these two by nature (mm/mmap.c).
    let implied = |flag| {
        area.flags.has(VmFlag::Droppable) && matches!(flag, VmFlag::DontDump | VmFlag::WipeOnFork)
    };
    let given = |(flag, _): &&(VmFlag, i32)| area.flags.has(*flag) && !implied(*flag);
    let bits = ADVICE
        .iter()
        .filter(given)
        .fold(0, |bits, (_, number)| bits | 1 << number);
    // [vvar] may not be copied on fork either, but the images tell only that it is not dumped.
    let vvar = matches!(area.vma.name, VmaName::Vvar | VmaName::VvarVclock);
    Some(if vvar {
        bits & 1 << libc::MADV_DONTDUMP
    } else {
        bits
    })
    .filter(|bits| *bits != 0)
}

fn object_of(vma: &MapsVma) -> String {
    format!("the area {:x}-{:x}", vma.start, vma.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_process::proc::smaps::parse_smaps;

    fn planned(text: &str) -> (Vec<Vma>, Vec<Unsupported>) {
        plan_vmas(&parse_smaps(text.as_bytes()).expect("parses"))
    }

    /// Status, flags, prot and madv as CRIU 4.2 wrote them for such areas.
    #[test]
    fn areas_are_as_the_peer_has_them() {
        let text = "\
00400000-00401000 r--p 00001000 fe:00 77 /bin/loop
VmFlags: rd mr mw me
00500000-00502000 rw-p 00000000 00:00 0 [heap]
VmFlags: rd wr mr mw me ac sd
7f00000000-7f00002000 rw-p 00000000 00:00 0 
VmFlags: rd wr mr mw me lo ac wf
7f00010000-7f00012000 rw-s 00000000 00:01 19070 /memfd:wl-shared (deleted)
VmFlags: rd wr sh mr mw me ms sd
7f00020000-7f00022000 rw-s 00000000 00:01 19072 /dev/zero (deleted)
VmFlags: rd wr sh mr mw me ms sd
7f00030000-7f00034000 r--p 00000000 00:00 0 [vvar]
VmFlags: rd mr pf io de dd sd
7f00034000-7f00036000 r--p 00000000 00:00 0 [vvar_vclock]
VmFlags: rd mr pf io de dd sd
7f00036000-7f00038000 r-xp 00000000 00:00 0 [vdso]
VmFlags: rd ex mr mw me de sd
7fff000000-7fff021000 rw-p 00000000 00:00 0 [stack]
VmFlags: rd wr mr mw me gd ac
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
VmFlags: ex
";
        let (vmas, unsupported) = planned(text);
        assert_eq!(unsupported, []);
        let told: Vec<_> = vmas
            .iter()
            .map(|vma| {
                (
                    vma.entry.status,
                    vma.entry.flags,
                    vma.entry.prot,
                    vma.entry.madv,
                )
            })
            .collect();
        let expected = [
            (0x41, 0x2, 1, None),
            (0x221, 0x22, 3, None),
            (0x201, 0x2022, 3, Some(0x40000)),
            (0x4081, 0x1, 3, None),
            (0x4081, 0x1, 3, None),
            (0x1201, 0x22, 1, Some(0x10000)),
            (0x209, 0x22, 5, None),
            (0x201, 0x122, 3, None),
            (0x204, 0x22, 4, None),
        ];
        assert_eq!(told, expected);
        assert_eq!(vmas[0].entry.pgoff, 0x1000);
        assert_eq!(vmas[5].range, 0x7f00030000..0x7f00036000);
        let own: Vec<bool> = vmas.iter().map(Vma::has_own_pages).collect();
        assert_eq!(
            own,
            [true, true, true, false, false, false, true, true, false]
        );
        let forked: Vec<bool> = vmas.iter().map(Vma::is_copied_on_fork).collect();
        assert_eq!(
            forked,
            [true, true, false, false, false, false, false, true, false]
        );
        let lazy: Vec<bool> = vmas.iter().map(Vma::may_be_lazy).collect();
        assert_eq!(
            lazy,
            [false, true, false, false, false, false, false, true, false]
        );
    }

    /// As CRIU 4.2 wrote it: the id is the inode number.
    #[test]
    fn a_segment_is_named_by_its_id() {
        let text = "7f00010000-7f00012000 rw-s 00001000 00:01 9 /SYSV0000abcd (deleted)\nVmFlags: rd wr sh\n";
        let (vmas, unsupported) = planned(text);
        assert_eq!(unsupported, []);
        let entry = &vmas[0].entry;
        assert_eq!((entry.status, entry.flags, entry.shmid), (0x501, 0x21, 9));
        assert_eq!(entry.pgoff, 0x1000);
        assert!(!vmas[0].has_own_pages());
    }

    #[test]
    fn memory_of_sockets_and_maps_is_that_of_their_descriptor() {
        let text = "\
7f00000000-7f00004000 rw-s 00000000 00:09 5 socket:[5]
VmFlags: rd wr sh mr mw me ms mm
7f00010000-7f00011000 r--s 00001000 00:0f 7 anon_inode:bpf-map
VmFlags: rd sh mr me ms de dd
7f00020000-7f00022000 rw-p 00000000 00:09 5 socket:[5]
VmFlags: rd wr mm
";
        let (vmas, unsupported) = planned(text);
        let told: Vec<_> = vmas
            .iter()
            .map(|vma| (vma.entry.status, vma.entry.flags, vma.entry.pgoff))
            .collect();
        assert_eq!(told, [(0x801, 1, 0), (0x81, 1, 0x1000)]);
        assert!(!vmas.iter().any(Vma::has_own_pages));
        assert_eq!(unsupported.len(), 1);
    }

    #[test]
    fn every_area_that_cannot_be_held_is_told() {
        let text = "\
7f00000000-7f00002000 rw-s 00000000 00:0d 5 anon_inode:[perf_event]
VmFlags: rd wr
7f00020000-7f00022000 rw-p 00000000 00:00 0 
VmFlags: rd wr uw
7f00030000-7f00032000 rw-p 00000000 00:00 0 
ProtectionKey: 3
VmFlags: rd wr
7f00040000-7f00042000 rw-p 00000000 00:00 0 
VmFlags: rd wr zz
";
        let (vmas, unsupported) = planned(text);
        assert!(vmas.is_empty());
        let told: Vec<&str> = unsupported.iter().map(|area| area.what.as_str()).collect();
        for (what, word) in told
            .iter()
            .zip(["perf_event", "userfaultfd", "key 3", "'zz'"])
        {
            assert!(what.contains(word), "{what}");
        }
        assert_eq!(told.len(), 4);
    }
}
