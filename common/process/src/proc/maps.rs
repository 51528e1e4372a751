//! /proc/PID/maps: the vmas of a task in address order, as show_map_vma() of fs/proc/task_mmu.c
//! prints them.
//!
//! The range, protection, file offset, device and inode are exact. The name is not: maps escapes
//! only the newline, so a file called `a\012b` and one with a real newline look the same, and a
//! file whose name ends in " (deleted)" looks unlinked. Who must know opens
//! /proc/PID/map_files/START-END. What the kernel prints in place of a path becomes a `VmaName`.

use super::text::{Line, ParseError, Words, hex, lines, split_deleted, unescape_octal};

/// One line of maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapsVma {
    /// First address.
    pub start: u64,
    /// First address behind the vma.
    pub end: u64,
    /// Protection and sharing.
    pub perms: Perms,
    /// Offset in the file in bytes; for SysV segments and shared anonymous memory in the
    /// segment, and 0 for private anonymous memory.
    pub offset: u64,
    /// Major number of the file's device.
    pub dev_major: u32,
    /// Minor number of the file's device.
    pub dev_minor: u32,
    /// Inode number, 0 without a file. For a SysV segment it is the shmid.
    pub inode: u64,
    /// What stands in the last column.
    pub name: VmaName,
}

/// The four letters of the second column. The last is `shared`, VM_MAYSHARE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perms {
    /// PROT_READ.
    pub read: bool,
    /// PROT_WRITE.
    pub write: bool,
    /// PROT_EXEC.
    pub exec: bool,
    /// MAP_SHARED instead of MAP_PRIVATE.
    pub shared: bool,
}

impl Perms {
    /// PROT_* bits.
    pub fn prot(&self) -> i32 {
        let bit = |on: bool, bit: i32| if on { bit } else { 0 };
        bit(self.read, libc::PROT_READ)
            | bit(self.write, libc::PROT_WRITE)
            | bit(self.exec, libc::PROT_EXEC)
    }
}

/// The last column of maps.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum VmaName {
    /// Nothing: private anonymous memory.
    Empty,
    /// `[heap]`: the vma overlaps brk.
    Heap,
    /// `[stack]` of the main thread, and `[stack:TID]` of kernels before 4.5.
    Stack,
    /// `[vdso]`.
    Vdso,
    /// `[vvar]`.
    Vvar,
    /// `[vvar_vclock]`, a separate vma since 6.13.
    VvarVclock,
    /// `[vsyscall]`, the gate page: it is in no mm.
    Vsyscall,
    /// `[anon:NAME]`, from PR_SET_VMA_ANON_NAME on private memory.
    Anon(Vec<u8>),
    /// `[anon_shmem:NAME]`, the same on shared anonymous memory.
    AnonShmem(Vec<u8>),
    /// `/dev/zero (deleted)`: shared anonymous memory.
    ZeroShared,
    /// `/SYSVkkkkkkkk`: a SysV segment with this key. The kernel always prints " (deleted)".
    SysV {
        /// IPC key.
        key: u32,
    },
    /// `/memfd:NAME (deleted)`.
    Memfd(Vec<u8>),
    /// `/[aio] (deleted)`: the ring of an AIO context.
    Aio,
    /// `/anon_hugepage (deleted)`: MAP_ANONYMOUS | MAP_HUGETLB.
    AnonHugepage,
    /// `[...]` of a kind not listed here, with its brackets: `[uprobes]`, `[shadow stack]`.
    OtherSpecial(Vec<u8>),
    /// A path, or `anon_inode:[...]` or `socket:[...]`.
    Path {
        /// Path in the reader's root, newline escapes undone, without the deletion mark.
        path: Vec<u8>,
        /// Whether the kernel added " (deleted)".
        deleted: bool,
    },
}

/// Parses the whole of /proc/PID/maps.
pub fn parse_maps(text: &[u8]) -> Result<Vec<MapsVma>, ParseError> {
    lines("maps", text).map(parse_vma_line).collect()
}

/// Parses one line; smaps begins each vma with the same.
pub(super) fn parse_vma_line(line: Line<'_>) -> Result<MapsVma, ParseError> {
    let mut words = line.words();
    let (start, end) = parse_range(line, &mut words)?;
    let perms = parse_perms(words.word("permissions")?).ok_or_else(|| line.error("permissions"))?;
    let offset = words.hex("offset")?;
    let (dev_major, dev_minor) =
        parse_dev(words.word("device")?).ok_or_else(|| line.error("device"))?;
    Ok(MapsVma {
        start,
        end,
        perms,
        offset,
        dev_major,
        dev_minor,
        inode: words.decimal("inode")?,
        name: parse_name(words.remainder()),
    })
}

fn parse_range(line: Line<'_>, words: &mut Words<'_>) -> Result<(u64, u64), ParseError> {
    let word = words.word("range")?;
    split_range(word).ok_or_else(|| line.error("range"))
}

fn split_range(word: &[u8]) -> Option<(u64, u64)> {
    let dash = word.iter().position(|&b| b == b'-')?;
    let start = hex(word.get(..dash)?)?;
    let end = hex(word.get(dash + 1..)?)?;
    (start < end).then_some((start, end))
}

fn parse_perms(word: &[u8]) -> Option<Perms> {
    let [r, w, x, s] = word else { return None };
    let letter = |byte: u8, set: u8| match byte {
        b if b == set => Some(true),
        b'-' => Some(false),
        _ => None,
    };
    Some(Perms {
        read: letter(*r, b'r')?,
        write: letter(*w, b'w')?,
        exec: letter(*x, b'x')?,
        shared: match s {
            b's' => true,
            b'p' => false,
            _ => return None,
        },
    })
}

/// Splits `major:minor`, both hexadecimal, as maps and locks print them.
pub(super) fn parse_dev(word: &[u8]) -> Option<(u32, u32)> {
    let colon = word.iter().position(|&b| b == b':')?;
    Some((hex(word.get(..colon)?)?, hex(word.get(colon + 1..)?)?))
}

fn parse_name(text: &[u8]) -> VmaName {
    if text.starts_with(b"[") && text.ends_with(b"]") {
        return parse_bracketed(text);
    }
    let (path, deleted) = split_deleted(text);
    match path {
        b"" => VmaName::Empty,
        b"/dev/zero" if deleted => VmaName::ZeroShared,
        b"/[aio]" if deleted => VmaName::Aio,
        b"/anon_hugepage" if deleted => VmaName::AnonHugepage,
        _ => parse_path(path, deleted),
    }
}

fn parse_path(path: &[u8], deleted: bool) -> VmaName {
    if deleted {
        if let Some(name) = path.strip_prefix(b"/memfd:") {
            return VmaName::Memfd(unescape_octal(name, b"\n"));
        }
        let key = path.strip_prefix(b"/SYSV").filter(|k| k.len() == 8);
        if let Some(key) = key.and_then(hex) {
            return VmaName::SysV { key };
        }
    }
    VmaName::Path {
        path: unescape_octal(path, b"\n"),
        deleted,
    }
}

fn parse_bracketed(text: &[u8]) -> VmaName {
    let inside = |prefix: &[u8]| {
        let name = text.strip_prefix(prefix)?.strip_suffix(b"]")?;
        Some(name.to_vec())
    };
    match text {
        b"[heap]" => VmaName::Heap,
        b"[stack]" => VmaName::Stack,
        b"[vdso]" => VmaName::Vdso,
        b"[vvar]" => VmaName::Vvar,
        b"[vvar_vclock]" => VmaName::VvarVclock,
        b"[vsyscall]" => VmaName::Vsyscall,
        _ => {
            if let Some(name) = inside(b"[anon:") {
                VmaName::Anon(name)
            } else if let Some(name) = inside(b"[anon_shmem:") {
                VmaName::AnonShmem(name)
            } else if inside(b"[stack:").is_some() {
                VmaName::Stack
            } else {
                VmaName::OtherSpecial(text.to_vec())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of 4.4, 5.15 and 6.18 in one text; the trailing blank of nameless lines is real.
    const TEXT: &[u8] = b"\
5557b1829000-5557b182b000 r--p 00000000 fe:00 247774                     /usr/bin/sleep
5557b182b000-5557b1830000 r-xp 00002000 fe:00 247774                     /usr/bin/my prog (deleted)
5557b3000000-5557b3021000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 rw-p 00000000 00:00 0 
7f0000001000-7f0000002000 rw-s 00000000 00:01 1025                       /dev/zero (deleted)
7f0000002000-7f0000003000 rw-s 00000000 00:01 3                          /SYSV0000abcd (deleted)
7f0000003000-7f0000004000 rw-s 00001000 00:01 1026                       /memfd:a b (deleted)
7f0000004000-7f0000005000 rw-s 00000000 00:0b 1027                       /[aio] (deleted)
7f0000005000-7f0000205000 rw-p 00000000 00:0f 1028                       /anon_hugepage (deleted)
7f0000205000-7f0000206000 rw-p 00000000 00:00 0                          [anon:my heap]
7f0000206000-7f0000207000 rw-s 00000000 00:01 1029                       [anon_shmem:ring]
7f0000207000-7f0000208000 ---p 00000000 00:00 0                          [stack:4321]
7f0000208000-7f0000209000 rw-s 00000000 08:01 77                         /tmp/a\\012b
7f0000209000-7f000020a000 rw-s 10000000 00:0d 1030                       anon_inode:[io_uring]
7fff01000000-7fff01021000 rw-p 00000000 00:00 0                          [stack]
7fff01100000-7fff01104000 r--p 00000000 00:00 0                          [vvar]
7fff01104000-7fff01106000 r--p 00000000 00:00 0                          [vvar_vclock]
7fff01106000-7fff01108000 r-xp 00000000 00:00 0                          [vdso]
7fff01108000-7fff01109000 r-xp 00000000 00:00 0                          [uprobes]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    fn path(path: &[u8], deleted: bool) -> VmaName {
        VmaName::Path {
            path: path.to_vec(),
            deleted,
        }
    }

    #[test]
    fn every_name_has_its_kind() -> Result<(), ParseError> {
        let names: Vec<_> = parse_maps(TEXT)?.into_iter().map(|v| v.name).collect();
        assert_eq!(
            names,
            [
                path(b"/usr/bin/sleep", false),
                path(b"/usr/bin/my prog", true),
                VmaName::Heap,
                VmaName::Empty,
                VmaName::ZeroShared,
                VmaName::SysV { key: 0xabcd },
                VmaName::Memfd(b"a b".to_vec()),
                VmaName::Aio,
                VmaName::AnonHugepage,
                VmaName::Anon(b"my heap".to_vec()),
                VmaName::AnonShmem(b"ring".to_vec()),
                VmaName::Stack,
                path(b"/tmp/a\nb", false),
                path(b"anon_inode:[io_uring]", false),
                VmaName::Stack,
                VmaName::Vvar,
                VmaName::VvarVclock,
                VmaName::Vdso,
                VmaName::OtherSpecial(b"[uprobes]".to_vec()),
                VmaName::Vsyscall,
            ]
        );
        Ok(())
    }

    #[test]
    fn the_numbers_of_a_line() -> Result<(), ParseError> {
        let vmas = parse_maps(TEXT)?;
        let vma = &vmas[6];
        assert_eq!((vma.start, vma.end), (0x7f0000003000, 0x7f0000004000));
        assert_eq!(vma.perms.prot(), libc::PROT_READ | libc::PROT_WRITE);
        assert!(vma.perms.shared);
        assert_eq!((vma.offset, vma.inode), (0x1000, 1026));
        assert_eq!((vmas[0].dev_major, vmas[0].dev_minor), (0xfe, 0));
        Ok(())
    }

    #[test]
    fn a_broken_line_is_named() {
        for (bad, what) in [
            (&b"5557-x r--p 0 0:0 0"[..], "range"),
            (b"2000-1000 r--p 0 0:0 0", "range"),
            (b"1000-2000 r--q 0 0:0 0", "permissions"),
            (b"1000-2000 r-- 0 0:0 0", "permissions"),
            (b"1000-2000 r--p zz 0:0 0", "offset"),
            (b"1000-2000 r--p 0 00 0", "device"),
            (b"1000-2000 r--p 0 0:0", "inode"),
            (b"", "range"),
        ] {
            let text = [&b"1000-2000 r--p 00000000 00:00 0 \n"[..], bad, b"\n"].concat();
            let error = parse_maps(&text).err();
            assert_eq!(error.map(|e| (e.line, e.what)), Some((2, what)));
        }
    }

    #[test]
    fn our_own_maps_parse() {
        let text = std::fs::read("/proc/self/maps").expect("our own maps are readable");
        let vmas = parse_maps(&text).expect("the running kernel's format is known");
        assert!(vmas.iter().any(|v| v.name == VmaName::Stack));
        assert!(vmas.windows(2).all(|w| w[0].end <= w[1].start));
    }
}
