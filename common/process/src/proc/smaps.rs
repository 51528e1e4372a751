//! /proc/PID/smaps: maps plus sizes and, in `VmFlags`, what the owner asked of each vma: locked,
//! dontfork, wipeonfork, dontdump, mergeable, hugepage, growsdown. Nothing else tells these.
//!
//! Reading smaps makes the kernel walk every page table; the size lines come at that price, so
//! a dump reads it once. Sizes we do not use are not kept. VmFlags letters are those of
//! show_smap_vma_flags() (fs/proc/task_mmu.c) and Documentation/filesystems/proc.rst.

use super::maps::{MapsVma, parse_vma_line};
use super::text::{Line, ParseError, lines};

/// One vma of smaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmapsVma {
    /// The first line, as maps has it.
    pub vma: MapsVma,
    /// The VmFlags line.
    pub flags: VmFlags,
    /// Page size of the backing in KiB: 4, or the huge page size of hugetlb.
    pub kernel_page_kb: Option<u64>,
    /// Resident KiB.
    pub rss_kb: Option<u64>,
    /// Anonymous KiB: for a private file mapping, the pages that were written.
    pub anonymous_kb: Option<u64>,
    /// Resident KiB of pages that somebody else maps too.
    pub shared_kb: Option<u64>,
    /// Swapped out KiB, shmem of a shared mapping included.
    pub swap_kb: Option<u64>,
    /// Protection key, on processors that have them.
    pub protection_key: Option<u32>,
}

macro_rules! vm_flags {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// One two-letter word of a VmFlags line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum VmFlag { $($(#[$doc])* $name,)* }

        impl VmFlag {
            /// All flags this module knows.
            pub const ALL: &[VmFlag] = &[$(VmFlag::$name,)*];

            /// The kernel's letters.
            pub const fn code(self) -> &'static str {
                match self { $(VmFlag::$name => $code,)* }
            }

            fn from_code(code: &[u8]) -> Option<VmFlag> {
                VmFlag::ALL.iter().copied().find(|flag| flag.code().as_bytes() == code)
            }
        }
    };
}

vm_flags! {
    /// VM_READ.
    Read = "rd",
    /// VM_WRITE.
    Write = "wr",
    /// VM_EXEC.
    Exec = "ex",
    /// VM_SHARED: shared and writable when mapped.
    Shared = "sh",
    /// VM_MAYREAD.
    MayRead = "mr",
    /// VM_MAYWRITE.
    MayWrite = "mw",
    /// VM_MAYEXEC.
    MayExec = "me",
    /// VM_MAYSHARE.
    MayShare = "ms",
    /// VM_GROWSDOWN, MAP_GROWSDOWN.
    GrowsDown = "gd",
    /// VM_PFNMAP.
    PfnMap = "pf",
    /// VM_DENYWRITE, gone in 5.15.
    DenyWrite = "dw",
    /// VM_LOCKED, mlock(2).
    Locked = "lo",
    /// VM_LOCKONFAULT, mlock2(MLOCK_ONFAULT).
    LockOnFault = "lf",
    /// VM_IO.
    Io = "io",
    /// MADV_SEQUENTIAL.
    SeqRead = "sr",
    /// MADV_RANDOM.
    RandRead = "rr",
    /// MADV_DONTFORK.
    DontCopy = "dc",
    /// VM_DONTEXPAND.
    DontExpand = "de",
    /// VM_ACCOUNT.
    Account = "ac",
    /// MAP_NORESERVE.
    NoReserve = "nr",
    /// VM_HUGETLB.
    HugeTlb = "ht",
    /// MAP_SYNC.
    Sync = "sf",
    /// VM_ARCH_1.
    Arch = "ar",
    /// MADV_WIPEONFORK.
    WipeOnFork = "wf",
    /// MADV_DONTDUMP.
    DontDump = "dd",
    /// VM_SOFTDIRTY.
    SoftDirty = "sd",
    /// VM_MIXEDMAP.
    MixedMap = "mm",
    /// MADV_HUGEPAGE.
    HugePage = "hg",
    /// MADV_NOHUGEPAGE.
    NoHugePage = "nh",
    /// MADV_MERGEABLE.
    Mergeable = "mg",
    /// Registered with userfaultfd, missing mode.
    UffdMissing = "um",
    /// Registered with userfaultfd, write-protect mode.
    UffdWp = "uw",
    /// Registered with userfaultfd, minor mode.
    UffdMinor = "ui",
    /// VM_NONLINEAR, remap_file_pages(2) before 4.0.
    NonLinear = "nl",
    /// VM_MPX, gone in 5.6.
    Mpx = "mp",
    /// arm64 BTI.
    Bti = "bt",
    /// arm64 MTE.
    Mte = "mt",
    /// A shadow stack.
    ShadowStack = "ss",
    /// MAP_DROPPABLE.
    Droppable = "dp",
    /// mseal(2).
    Sealed = "sl",
    /// VM_MAYBE_GUARD: may hold guard regions (MADV_GUARD_INSTALL); printed since 6.19.
    MaybeGuard = "gu",
}

/// The words of one VmFlags line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmFlags {
    known: u64,
    /// Words this module does not know, for a refusal that names them.
    pub unknown: Vec<Vec<u8>>,
}

impl VmFlags {
    /// Whether the word stood in the line.
    pub fn has(&self, flag: VmFlag) -> bool {
        self.known & (1 << flag as u64) != 0
    }

    /// Adds a word.
    pub fn insert(&mut self, flag: VmFlag) {
        self.known |= 1 << flag as u64;
    }

    /// The known words in the order of `VmFlag::ALL`.
    pub fn iter(&self) -> impl Iterator<Item = VmFlag> + '_ {
        VmFlag::ALL.iter().copied().filter(|flag| self.has(*flag))
    }

    fn parse(value: &[u8]) -> VmFlags {
        let mut flags = VmFlags::default();
        for word in value.split(|&b| b == b' ').filter(|w| !w.is_empty()) {
            match VmFlag::from_code(word) {
                Some(flag) => flags.insert(flag),
                None => flags.unknown.push(word.to_vec()),
            }
        }
        flags
    }
}

/// Parses the whole of /proc/PID/smaps.
///
/// A vma without a VmFlags line is an error, except the gate page `[vsyscall]`, which some
/// kernels print bare.
pub fn parse_smaps(text: &[u8]) -> Result<Vec<SmapsVma>, ParseError> {
    let mut vmas = Vec::new();
    let mut open: Option<OpenVma<'_>> = None;
    for line in lines("smaps", text) {
        if is_attribute(line) {
            open.as_mut()
                .ok_or_else(|| line.error("vma before its attributes"))?
                .add(line)?;
        } else {
            vmas.extend(
                open.replace(OpenVma::begin(line)?)
                    .map(OpenVma::close)
                    .transpose()?,
            );
        }
    }
    vmas.extend(open.map(OpenVma::close).transpose()?);
    Ok(vmas)
}

/// Attribute names begin with a capital, addresses are small hexadecimal.
fn is_attribute(line: Line<'_>) -> bool {
    line.text().first().is_some_and(u8::is_ascii_uppercase)
}

struct OpenVma<'a> {
    line: Line<'a>,
    vma: SmapsVma,
    has_flags: bool,
}

impl<'a> OpenVma<'a> {
    fn begin(line: Line<'a>) -> Result<OpenVma<'a>, ParseError> {
        Ok(OpenVma {
            line,
            vma: SmapsVma {
                vma: parse_vma_line(line)?,
                flags: VmFlags::default(),
                kernel_page_kb: None,
                rss_kb: None,
                anonymous_kb: None,
                shared_kb: None,
                swap_kb: None,
                protection_key: None,
            },
            has_flags: false,
        })
    }

    fn add(&mut self, line: Line<'_>) -> Result<(), ParseError> {
        let (key, value) = line.key_value().ok_or_else(|| line.error("attribute"))?;
        let mut words = line.words_of(value);
        match key {
            b"VmFlags" => {
                self.vma.flags = VmFlags::parse(value);
                self.has_flags = true;
            }
            b"KernelPageSize" => self.vma.kernel_page_kb = Some(words.decimal("KernelPageSize")?),
            b"Rss" => self.vma.rss_kb = Some(words.decimal("Rss")?),
            b"Anonymous" => self.vma.anonymous_kb = Some(words.decimal("Anonymous")?),
            b"Shared_Clean" | b"Shared_Dirty" => {
                let more = words.decimal::<u64>("Shared")?;
                self.vma.shared_kb = Some(self.vma.shared_kb.unwrap_or(0).saturating_add(more));
            }
            b"Swap" => self.vma.swap_kb = Some(words.decimal("Swap")?),
            b"ProtectionKey" => self.vma.protection_key = Some(words.decimal("ProtectionKey")?),
            _ => {}
        }
        Ok(())
    }

    fn close(self) -> Result<SmapsVma, ParseError> {
        let bare_gate = self.vma.vma.name == super::maps::VmaName::Vsyscall;
        if self.has_flags || bare_gate {
            Ok(self.vma)
        } else {
            Err(self.line.error("VmFlags of this vma"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::maps::VmaName;
    use super::*;

    /// The first vma from 6.18, the second in the shape of 4.9, the third with a future word.
    const TEXT: &[u8] = b"\
5557b1829000-5557b182b000 r--p 00000000 fe:00 247774                     /usr/bin/sleep
Size:                  8 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                   8 kB
Pss:                   4 kB
Pss_Dirty:             0 kB
Shared_Clean:          8 kB
Shared_Dirty:          0 kB
Private_Clean:         0 kB
Private_Dirty:         0 kB
Referenced:            8 kB
Anonymous:             0 kB
KSM:                   0 kB
LazyFree:              0 kB
AnonHugePages:         0 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
Swap:                  0 kB
SwapPss:               0 kB
Locked:                0 kB
THPeligible:           0
VmFlags: rd mr mw me 
7f0000000000-7f0000200000 rw-p 00000000 00:00 0 
Size:               2048 kB
Rss:                  12 kB
Anonymous:            12 kB
Swap:                  4 kB
KernelPageSize:        4 kB
Locked:               12 kB
ProtectionKey:         3
VmFlags: rd wr mr mw me gd lo lf ac dc dd wf hg mg sd 
7f0000200000-7f0000201000 rw-p 00000000 00:00 0 
VmFlags: rd wr zz 
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn flags_and_sizes() -> Result<(), ParseError> {
        let vmas = parse_smaps(TEXT)?;
        assert_eq!(vmas.len(), 4);
        let codes: Vec<_> = vmas[0].flags.iter().map(VmFlag::code).collect();
        assert_eq!(codes, ["rd", "mr", "mw", "me"]);
        let second = &vmas[1];
        for flag in [
            VmFlag::GrowsDown,
            VmFlag::Locked,
            VmFlag::LockOnFault,
            VmFlag::DontCopy,
            VmFlag::DontDump,
            VmFlag::WipeOnFork,
            VmFlag::HugePage,
            VmFlag::Mergeable,
        ] {
            assert!(second.flags.has(flag), "{flag:?}");
        }
        assert!(!second.flags.has(VmFlag::Exec));
        assert_eq!(vmas[0].shared_kb, Some(8));
        assert_eq!(second.shared_kb, None);
        assert_eq!(second.anonymous_kb, Some(12));
        assert_eq!(second.swap_kb, Some(4));
        assert_eq!(second.protection_key, Some(3));
        assert_eq!(vmas[2].flags.unknown, [b"zz".to_vec()]);
        assert_eq!(vmas[2].rss_kb, None);
        assert_eq!(vmas[3].vma.name, VmaName::Vsyscall);
        Ok(())
    }

    #[test]
    fn a_vma_without_flags_is_an_error() {
        let error = parse_smaps(b"1000-2000 r--p 0 0:0 0 \nSize: 4 kB\n").err();
        assert_eq!(
            error.map(|e| (e.line, e.what)),
            Some((1, "VmFlags of this vma"))
        );
        let error = parse_smaps(b"Size: 4 kB\n").err();
        assert_eq!(error.map(|e| e.line), Some(1));
        let error = parse_smaps(b"1000-2000 r--p 0 0:0 0 \nRss: x kB\n").err();
        assert_eq!(error.map(|e| (e.line, e.what)), Some((2, "Rss")));
    }

    #[test]
    fn flags_fit_the_set() {
        assert!(VmFlag::ALL.len() <= 64);
        for (at, flag) in VmFlag::ALL.iter().enumerate() {
            assert_eq!(VmFlag::from_code(flag.code().as_bytes()), Some(*flag));
            assert_eq!(*flag as usize, at);
        }
    }

    #[test]
    fn our_own_smaps_has_no_unknown_word() {
        let text = std::fs::read("/proc/self/smaps").expect("our own smaps is readable");
        for vma in parse_smaps(&text).expect("the running kernel's format is known") {
            assert!(vma.flags.unknown.is_empty(), "{vma:?}");
        }
    }
}
