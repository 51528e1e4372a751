//! /proc/PID/smaps: maps plus sizes and, in `VmFlags`, what the owner asked of each vma: locked,
//! dontfork, wipeonfork, dontdump, mergeable, hugepage, growsdown. Nothing else tells these.
//!
//! Reading smaps makes the kernel walk every page table; the size lines come at that price, so
//! a dump reads it once. Sizes we do not use are not kept. VmFlags letters are those of
//! show_smap_vma_flags() (fs/proc/task_mmu.c) and Documentation/filesystems/proc.rst.

use super::maps::{MapsVma, parse_vma_line};
use super::text::{Line, ParseError};

/// One vma of smaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmapsVma {
    /// The first line, as maps has it.
    pub vma: MapsVma,
    /// The VmFlags line.
    pub flags: VmFlags,
    /// Page size of the backing in KiB: 4, or the huge page size of hugetlb.
    pub kernel_page_kb: Option<u64>,
    /// Resident KiB of pages that somebody else maps too.
    pub shared_kb: Option<u64>,
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
                match std::str::from_utf8(code).ok()? {
                    $($code => Some(VmFlag::$name),)*
                    _ => None,
                }
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
    let mut parser = SmapsParser::default();
    parser.feed(text)?;
    parser.finish()
}

/// Parses smaps while it is read: ten thousand vmas are ten megabytes of text.
#[derive(Debug, Default)]
pub struct SmapsParser {
    vmas: Vec<SmapsVma>,
    /// Number of the first line of the last vma, and whether it has its VmFlags.
    begun: (usize, bool),
    lines: usize,
    /// The VmFlags line met last, for the next is nearly always the same.
    last: (Vec<u8>, VmFlags),
}

impl SmapsParser {
    /// Goes on with whole lines.
    pub fn feed(&mut self, text: &[u8]) -> Result<(), ParseError> {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', text) {
            self.line(&text[start..end])?;
            start = end + 1;
        }
        match &text[start..] {
            [] => Ok(()),
            rest => self.line(rest),
        }
    }

    /// All vmas.
    pub fn finish(self) -> Result<Vec<SmapsVma>, ParseError> {
        self.close()?;
        Ok(self.vmas)
    }

    fn line(&mut self, text: &[u8]) -> Result<(), ParseError> {
        self.lines += 1;
        let line = Line::new("smaps", self.lines, text);
        // Attribute names begin with a capital, addresses are small hexadecimal.
        match text.first() {
            Some(first) if first.is_ascii_uppercase() => self.attribute(line),
            _ => self.begin(line),
        }
    }

    fn begin(&mut self, line: Line<'_>) -> Result<(), ParseError> {
        self.close()?;
        self.begun = (self.lines, false);
        self.vmas.push(SmapsVma {
            vma: parse_vma_line(line)?,
            flags: VmFlags::default(),
            kernel_page_kb: None,
            shared_kb: None,
            protection_key: None,
        });
        Ok(())
    }

    fn attribute(&mut self, line: Line<'_>) -> Result<(), ParseError> {
        // Most lines are sizes that nobody asks for.
        if !matches!(line.text(), [b'V' | b'K' | b'S' | b'P', ..]) && !self.vmas.is_empty() {
            return Ok(());
        }
        let vma = self.vmas.last_mut();
        let vma = vma.ok_or_else(|| line.error("vma before its attributes"))?;
        let (key, value) = line.key_value().ok_or_else(|| line.error("attribute"))?;
        let mut words = line.words_of(value);
        match key {
            b"VmFlags" => {
                if self.last.0 != value {
                    self.last = (value.to_vec(), VmFlags::parse(value));
                }
                vma.flags = self.last.1.clone();
                self.begun.1 = true;
            }
            b"KernelPageSize" => vma.kernel_page_kb = Some(words.decimal("KernelPageSize")?),
            b"Shared_Clean" | b"Shared_Dirty" => {
                let more = words.decimal::<u64>("Shared")?;
                vma.shared_kb = Some(vma.shared_kb.unwrap_or(0).saturating_add(more));
            }
            b"ProtectionKey" => vma.protection_key = Some(words.decimal("ProtectionKey")?),
            _ => {}
        }
        Ok(())
    }

    /// The last vma is complete.
    fn close(&self) -> Result<(), ParseError> {
        let Some(SmapsVma { vma, .. }) = self.vmas.last() else {
            return Ok(());
        };
        if self.begun.1 || vma.name == super::maps::VmaName::Vsyscall {
            return Ok(());
        }
        let text = format!("{:x}-{:x}", vma.start, vma.end);
        let line = Line::new("smaps", self.begun.0, text.as_bytes());
        Err(line.error("VmFlags of this vma"))
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
        assert_eq!(second.protection_key, Some(3));
        assert_eq!(vmas[2].flags.unknown, [b"zz".to_vec()]);
        assert_eq!(vmas[2].kernel_page_kb, None);
        assert_eq!(vmas[3].vma.name, VmaName::Vsyscall);
        Ok(())
    }

    #[test]
    fn pieces_are_as_good_as_the_whole() -> Result<(), ParseError> {
        for cut in memchr::memchr_iter(b'\n', TEXT) {
            let mut parser = SmapsParser::default();
            parser.feed(&TEXT[..=cut])?;
            parser.feed(&TEXT[cut + 1..])?;
            assert_eq!(parser.finish()?, parse_smaps(TEXT)?);
        }
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
        let error = parse_smaps(b"1000-2000 r--p 0 0:0 0 \nShared_Dirty: x kB\n").err();
        assert_eq!(error.map(|e| (e.line, e.what)), Some((2, "Shared")));
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
