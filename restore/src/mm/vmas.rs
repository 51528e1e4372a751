//! The vmas of one address space: what each entry of mm-PID.img is, and whether it can be.
//!
//! Everything is checked here (ranges, alignment, overlap, protection, flags), so that the rooms
//! that make steps meet only mappings the kernel can make. `status` tells the kind (FORMAT 3);
//! `shmid` is a file id, an object number or nothing by that kind.

use crate::host::Host;
use crust_proto::criu::VmaEntry;
use nix::libc;

/// Bits of `vma_entry.status`.
pub mod status {
    /// The gate page at the end of the address space.
    pub const VSYSCALL: u32 = 0x4;
    /// The vdso's code.
    pub const VDSO: u32 = 0x8;
    /// A private mapping of a file.
    pub const FILE_PRIVATE: u32 = 0x40;
    /// A shared mapping of a file.
    pub const FILE_SHARED: u32 = 0x80;
    /// Shared anonymous memory, named by its inode.
    pub const ANON_SHARED: u32 = 0x100;
    /// Private anonymous memory.
    pub const ANON_PRIVATE: u32 = 0x200;
    /// A SysV segment.
    pub const SYSV: u32 = 0x400;
    /// The ring of a packet socket.
    pub const SOCKET: u32 = 0x800;
    /// The vdso's data.
    pub const VVAR: u32 = 0x1000;
    /// The ring of an AIO context.
    pub const AIO_RING: u32 = 0x2000;
    /// A shadow stack.
    pub const SHADOW_STACK: u32 = 0x8000;
    /// A guard range inside another vma.
    pub const GUARD: u32 = 0x10000;
    /// The page of uprobes.
    pub const UPROBES: u32 = 0x20000;
}

/// mmap(2) type bits and flags that an image may hold.
const MAP_TYPE: u32 = 0xf;
const MAP_DROPPABLE: u32 = 0x8;
const HUGE_SIZE_BITS: u32 = 0x3f << 26;
const KNOWN_FLAGS: u32 = MAP_TYPE
    | libc::MAP_ANONYMOUS as u32
    | libc::MAP_GROWSDOWN as u32
    | libc::MAP_LOCKED as u32
    | libc::MAP_NORESERVE as u32
    | libc::MAP_STACK as u32
    | libc::MAP_HUGETLB as u32
    | HUGE_SIZE_BITS;

/// What a vma is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Private anonymous memory.
    Anon,
    /// A file, by the id of its file object; a memfd, a packet socket or a bpf map too.
    File {
        /// Number of the file object.
        id: u32,
        /// MAP_SHARED.
        shared: bool,
    },
    /// A shared anonymous object, by its inode number.
    SharedAnon(u64),
    /// A SysV segment, by its id.
    Sysv(u32),
    /// The ring of an AIO context.
    AioRing,
    /// The vdso's code.
    Vdso,
    /// The vdso's data.
    Vvar,
    /// The gate page: part of no address space.
    Vsyscall,
    /// A range under MADV_GUARD_INSTALL inside other vmas.
    Guard,
}

impl Kind {
    /// Whether pages of the task's own pagemap belong into it.
    pub fn takes_pages(self) -> bool {
        let private = matches!(self, Kind::Anon | Kind::File { shared: false, .. });
        private || self == Kind::AioRing
    }
}

/// A checked vma.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma {
    /// Index in the entry's list.
    pub index: usize,
    /// First address.
    pub start: u64,
    /// Behind the last.
    pub end: u64,
    /// Offset in the object, in bytes.
    pub pgoff: u64,
    /// PROT_* bits.
    pub prot: u32,
    /// MAP_* bits as stored.
    pub flags: u32,
    /// Flags of open(2) for the file of a mapping.
    pub open_flags: u32,
    /// Bit set by MADV_* number.
    pub madv: u64,
    /// The kind.
    pub kind: Kind,
}

impl Vma {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Flags for the mmap call that makes it, MAP_FIXED_NOREPLACE included. MAP_LOCKED is left
    /// out: it would populate a private file mapping before its pages are loaded.
    pub fn map_flags(&self) -> u32 {
        let kept = self.flags & !(libc::MAP_LOCKED as u32 | libc::MAP_STACK as u32);
        let anonymous = match self.kind {
            Kind::Anon => libc::MAP_ANONYMOUS as u32,
            _ => 0,
        };
        (kept & !(libc::MAP_ANONYMOUS as u32)) | anonymous | libc::MAP_FIXED_NOREPLACE as u32
    }

    /// MAP_HUGETLB with the page size, if it is memory in huge pages; else 0.
    pub fn huge_flags(&self) -> u32 {
        match self.flags & libc::MAP_HUGETLB as u32 {
            0 => 0,
            huge => huge | self.flags & HUGE_SIZE_BITS,
        }
    }

    /// Whether it is kept in memory by mlock(2).
    pub fn locked(&self) -> bool {
        self.flags & libc::MAP_LOCKED as u32 != 0
    }

    /// For people: `7f00-8000`.
    pub fn range(&self) -> String {
        format!("{:x}-{:x}", self.start, self.end)
    }
}

/// Checks all vmas of an address space. Errors name index, field and value.
pub fn check(entries: &[VmaEntry], host: &Host) -> Result<Vec<Vma>, Vec<(usize, String)>> {
    let mut vmas = Vec::new();
    let mut errors = Vec::new();
    let mut end = 0;
    for (index, entry) in entries.iter().enumerate() {
        match check_one(index, entry, host) {
            // Guard ranges come behind the vmas they lie in.
            Ok(vma) if vma.kind != Kind::Guard && vma.start < end => {
                let why = format!(
                    "start {:#x} lies before the end {end:#x} of the one before",
                    vma.start
                );
                errors.push((index, why));
            }
            Ok(vma) => {
                if vma.kind != Kind::Guard {
                    end = vma.end;
                }
                vmas.push(vma);
            }
            Err(why) => errors.push((index, why)),
        }
    }
    errors.extend(stray_guards(&vmas));
    if errors.is_empty() {
        Ok(vmas)
    } else {
        Err(errors)
    }
}

fn check_one(index: usize, entry: &VmaEntry, host: &Host) -> Result<Vma, String> {
    let kind = kind_of(entry)?;
    let aligned = |value: u64| value.is_multiple_of(host.page_size);
    if entry.start >= entry.end || !aligned(entry.start) || !aligned(entry.end) {
        return Err(format!(
            "range {:#x}-{:#x} is no range of pages",
            entry.start, entry.end
        ));
    }
    let in_task = entry.start >= host.mmap_min && entry.end <= host.task_end;
    if kind != Kind::Vsyscall && !in_task {
        let why = "is outside of what a task may map on this host";
        return Err(format!("range {:#x}-{:#x} {why}", entry.start, entry.end));
    }
    let ends = entry.pgoff.checked_add(entry.end - entry.start);
    if !aligned(entry.pgoff) || ends.is_none_or(|end| end > i64::MAX as u64) {
        return Err(format!("pgoff {:#x} is no offset in a file", entry.pgoff));
    }
    if entry.prot & !7 != 0 {
        return Err(format!("prot {:#x} has unknown bits", entry.prot));
    }
    check_flags(entry, kind)?;
    let writes_file = matches!(kind, Kind::File { shared: true, .. }) && entry.prot & 2 != 0;
    // Images without fdflags have nothing but what the mapping needs.
    let least = if writes_file {
        libc::O_RDWR
    } else {
        libc::O_RDONLY
    } as u32;
    Ok(Vma {
        index,
        start: entry.start,
        end: entry.end,
        pgoff: entry.pgoff,
        prot: entry.prot,
        flags: entry.flags,
        open_flags: entry.fdflags.unwrap_or(least),
        madv: entry.madv.unwrap_or(0),
        kind,
    })
}

fn kind_of(entry: &VmaEntry) -> Result<Kind, String> {
    let is = |bits: u32| entry.status & bits == bits;
    for (bits, what) in [
        (status::SHADOW_STACK, "a shadow stack"),
        (status::UPROBES, "the page of uprobes"),
    ] {
        if is(bits) {
            return Err(format!(
                "{what} cannot be restored yet (status {:#x})",
                entry.status
            ));
        }
    }
    let file = |shared| {
        let id = u32::try_from(entry.shmid);
        let id = id.map_err(|_| format!("shmid {:#x} is no id of a file", entry.shmid))?;
        Ok(Kind::File { id, shared })
    };
    if is(status::VSYSCALL) {
        Ok(Kind::Vsyscall)
    } else if is(status::GUARD) {
        Ok(Kind::Guard)
    } else if is(status::VDSO) {
        Ok(Kind::Vdso)
    } else if is(status::VVAR) {
        Ok(Kind::Vvar)
    } else if is(status::AIO_RING) {
        Ok(Kind::AioRing)
    } else if is(status::SYSV) {
        let id = u32::try_from(entry.shmid);
        id.map(Kind::Sysv)
            .map_err(|_| format!("shmid {:#x} is no id of a segment", entry.shmid))
    } else if is(status::FILE_PRIVATE) {
        file(false)
    } else if is(status::FILE_SHARED) || is(status::SOCKET) {
        file(true)
    } else if is(status::ANON_SHARED) {
        Ok(Kind::SharedAnon(entry.shmid))
    } else if is(status::ANON_PRIVATE) {
        Ok(Kind::Anon)
    } else {
        Err(format!(
            "status {:#x} tells no kind of mapping",
            entry.status
        ))
    }
}

fn check_flags(entry: &VmaEntry, kind: Kind) -> Result<(), String> {
    let unknown = entry.flags & !KNOWN_FLAGS;
    if unknown != 0 {
        return Err(format!(
            "flags {:#x} have unknown bits {unknown:#x}",
            entry.flags
        ));
    }
    let fits = match (kind, entry.flags & MAP_TYPE) {
        (
            Kind::File { shared: true, .. } | Kind::SharedAnon(_) | Kind::Sysv(_) | Kind::AioRing,
            bits,
        ) => bits == libc::MAP_SHARED as u32,
        (Kind::Anon, bits) => bits == libc::MAP_PRIVATE as u32 || bits == MAP_DROPPABLE,
        (Kind::File { shared: false, .. }, bits) => bits == libc::MAP_PRIVATE as u32,
        (Kind::Vdso | Kind::Vvar | Kind::Vsyscall | Kind::Guard, _) => true,
    };
    if fits {
        Ok(())
    } else {
        let (flags, status) = (entry.flags, entry.status);
        Err(format!(
            "flags {flags:#x} are not those of a mapping of status {status:#x}"
        ))
    }
}

/// Guard ranges that do not lie wholly in vmas.
fn stray_guards(vmas: &[Vma]) -> Vec<(usize, String)> {
    let covers = |at: u64| {
        vmas.iter()
            .find(|vma| vma.kind != Kind::Guard && vma.start <= at && at < vma.end)
    };
    let mut errors = Vec::new();
    for guard in vmas.iter().filter(|vma| vma.kind == Kind::Guard) {
        let mut at = guard.start;
        while let Some(vma) = covers(at).filter(|_| at < guard.end) {
            at = vma.end;
        }
        if at < guard.end {
            errors.push((
                guard.index,
                format!("guard range {} has no mapping at {at:#x}", guard.range()),
            ));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::recorded;

    fn anon(start: u64, end: u64) -> VmaEntry {
        VmaEntry {
            start,
            end,
            prot: 3,
            flags: 0x22,
            status: 0x201,
            fd: -1,
            ..VmaEntry::default()
        }
    }

    fn errors(entries: &[VmaEntry]) -> Vec<String> {
        let errors = check(entries, &recorded()).expect_err("refused");
        errors
            .into_iter()
            .map(|(index, why)| format!("{index}: {why}"))
            .collect()
    }

    #[test]
    fn a_good_mapping_passes() {
        let vmas = check(&[anon(0x10000, 0x12000)], &recorded()).expect("good");
        assert_eq!(vmas[0].kind, Kind::Anon);
        assert_eq!(vmas[0].map_flags(), 0x100022);
    }

    #[test]
    fn bad_ranges_are_named() {
        assert_eq!(
            errors(&[anon(0x12000, 0x12000)]),
            ["0: range 0x12000-0x12000 is no range of pages"]
        );
        assert_eq!(
            errors(&[anon(0x12001, 0x13000)]),
            ["0: range 0x12001-0x13000 is no range of pages"]
        );
        assert!(errors(&[anon(0x1000, 0x2000)])[0].contains("outside"));
        assert!(errors(&[anon(0x7fff_ffff_f000, !0xfff)])[0].contains("outside"));
    }

    #[test]
    fn overlap_is_named() {
        let entries = [anon(0x10000, 0x14000), anon(0x13000, 0x15000)];
        assert_eq!(
            errors(&entries),
            ["1: start 0x13000 lies before the end 0x14000 of the one before"]
        );
    }

    #[test]
    fn flags_must_fit_the_kind() {
        let shared = VmaEntry {
            flags: 0x21,
            ..anon(0x10000, 0x11000)
        };
        assert!(errors(&[shared])[0].contains("not those of a mapping"));
        let unknown = VmaEntry {
            flags: 0x8000_0022 | 0x80,
            ..anon(0x10000, 0x11000)
        };
        assert!(errors(&[unknown])[0].contains("unknown bits 0x80"));
    }

    #[test]
    fn a_guard_must_lie_in_a_mapping() {
        let guard = VmaEntry {
            status: 0x10000,
            ..anon(0x11000, 0x13000)
        };
        assert!(check(&[anon(0x10000, 0x13000), guard.clone()], &recorded()).is_ok());
        assert_eq!(
            errors(&[anon(0x10000, 0x12000), guard]),
            ["1: guard range 11000-13000 has no mapping at 0x12000"]
        );
    }

    #[test]
    fn what_is_not_built_is_refused_by_name() {
        let uprobes = VmaEntry {
            status: 0x20001,
            ..anon(0x10000, 0x11000)
        };
        assert!(errors(&[uprobes])[0].contains("uprobes"));
    }
}
