//! /proc/PID/mountinfo: the mounts of a mount namespace below the task's root, as
//! show_mountinfo() of fs/proc_namespace.c prints them (proc_pid_mountinfo(5)).
//!
//! Paths escape blank, tab, newline and backslash in octal; file system types and sources also
//! `#`. A mount whose root lies outside the reader's view prints a root that need not be a path
//! ("mnt:[4026532758]" for a bound namespace file), so root and mountpoint stay bytes.

use super::text::{Line, ParseError, Words, decimal, lines, unescape_octal};

/// What the kernel escapes in paths, and more than it in types and sources.
const ESCAPED: &[u8] = b" \t\n\\#";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Mount id, as in fdinfo and statx(2) (STATX_MNT_ID). Reused after unmounting.
    pub mnt_id: u32,
    /// Id of the mount this one sits on; its own for the root of the hierarchy.
    pub parent_mnt_id: u32,
    /// Major number of st_dev.
    pub dev_major: u32,
    /// Minor number of st_dev.
    pub dev_minor: u32,
    /// The directory of the file system that is the root of this mount; "//deleted" at the end
    /// when it was removed.
    pub root: Vec<u8>,
    /// Mountpoint below the task's root.
    pub mountpoint: Vec<u8>,
    /// Per-mount options, comma-separated: rw, nosuid, relatime.
    pub options: Vec<u8>,
    /// Peer group (MS_SHARED).
    pub shared: Option<u32>,
    /// Peer group this mount is a slave of.
    pub master: Option<u32>,
    /// Nearest dominant peer group below the task's root, when it is not the master.
    pub propagate_from: Option<u32>,
    /// MS_UNBINDABLE.
    pub unbindable: bool,
    /// File system type, with the subtype as `fuse.sshfs`.
    pub fstype: Vec<u8>,
    /// Source as given to mount(2), or "none".
    pub source: Vec<u8>,
    /// Superblock options, comma-separated.
    pub super_options: Vec<u8>,
}

/// Parses the whole of /proc/PID/mountinfo, in the kernel's order: parents need not come first.
pub fn parse_mountinfo(text: &[u8]) -> Result<Vec<MountInfo>, ParseError> {
    lines("mountinfo", text).map(parse_mount_line).collect()
}

fn parse_mount_line(line: Line<'_>) -> Result<MountInfo, ParseError> {
    let mut words = line.words();
    let mnt_id = words.decimal("mount id")?;
    let parent_mnt_id = words.decimal("parent id")?;
    let (dev_major, dev_minor) = parse_dev(&mut words)?;
    let root = unescape_octal(words.word("root")?, ESCAPED);
    let mountpoint = unescape_octal(words.word("mountpoint")?, ESCAPED);
    let options = words.word("options")?.to_vec();
    let mut mount = MountInfo {
        mnt_id,
        parent_mnt_id,
        dev_major,
        dev_minor,
        root,
        mountpoint,
        options,
        shared: None,
        master: None,
        propagate_from: None,
        unbindable: false,
        fstype: Vec::new(),
        source: Vec::new(),
        super_options: Vec::new(),
    };
    parse_propagation(&mut words, &mut mount)?;
    parse_superblock(words, &mut mount)?;
    Ok(mount)
}

/// `major:minor`, both decimal here and hexadecimal everywhere else in /proc.
fn parse_dev(words: &mut Words<'_>) -> Result<(u32, u32), ParseError> {
    let word = words.word("device")?;
    let mut parts = word.splitn(2, |&b| b == b':').map(decimal);
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => Ok((major, minor)),
        _ => Err(words.error("device")),
    }
}

/// Optional fields up to the lone dash. proc_pid_mountinfo(5) asks readers to ignore unknown ones.
fn parse_propagation(words: &mut Words<'_>, mount: &mut MountInfo) -> Result<(), ParseError> {
    loop {
        let word = words.word("separator")?;
        if word == b"-" {
            return Ok(());
        }
        let group = |tag: &[u8]| word.strip_prefix(tag).map(decimal::<u32>);
        if let Some(id) = group(b"shared:") {
            mount.shared = Some(id.ok_or_else(|| words.error("shared"))?);
        } else if let Some(id) = group(b"master:") {
            mount.master = Some(id.ok_or_else(|| words.error("master"))?);
        } else if let Some(id) = group(b"propagate_from:") {
            mount.propagate_from = Some(id.ok_or_else(|| words.error("propagate_from"))?);
        } else if word == b"unbindable" {
            mount.unbindable = true;
        }
    }
}

/// Type, source and options. An empty source prints as nothing between two blanks.
fn parse_superblock(mut words: Words<'_>, mount: &mut MountInfo) -> Result<(), ParseError> {
    mount.fstype = unescape_octal(words.word("file system type")?, ESCAPED);
    let mut last = words.clone().raw_words();
    let source = last.next().ok_or_else(|| words.error("source"))?;
    let options = last
        .next()
        .ok_or_else(|| words.error("superblock options"))?;
    mount.source = unescape_octal(source, ESCAPED);
    mount.super_options = unescape_octal(options, ESCAPED);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard,resuid=65534
36 35 98:0 /mnt1/a\\040b /mnt\\0112\\134x rw,noatime master:7 propagate_from:2 - ext3 /dev/root rw,errors=continue
40 27 0:4 mnt:[4026532758] /run/ns rw unbindable newtag:3 - nsfs nsfs rw
41 27 0:50 /gone//deleted /m rw shared:5 master:6 - fuse.sshfs a\\043b rw,user_id=0
42 27 0:51 / /e rw - tmpfs  rw
";

    #[test]
    fn mounts_of_several_kinds() -> Result<(), ParseError> {
        let mounts = parse_mountinfo(TEXT)?;
        let [proc, ext, escaped, bound, fuse, empty] = mounts.as_slice() else {
            panic!("six mounts, not {}", mounts.len());
        };
        assert_eq!((proc.mnt_id, proc.parent_mnt_id), (22, 27));
        assert_eq!(
            (ext.dev_major, ext.dev_minor, ext.shared),
            (254, 0, Some(1))
        );
        assert_eq!(ext.super_options, b"rw,discard,resuid=65534");
        assert_eq!(escaped.root, b"/mnt1/a b");
        assert_eq!(escaped.mountpoint, b"/mnt\t2\\x");
        assert_eq!((escaped.master, escaped.propagate_from), (Some(7), Some(2)));
        assert_eq!(
            (bound.root.as_slice(), bound.unbindable),
            (&b"mnt:[4026532758]"[..], true)
        );
        assert_eq!((fuse.shared, fuse.master), (Some(5), Some(6)));
        assert_eq!(fuse.root, b"/gone//deleted");
        assert_eq!(
            (fuse.fstype.as_slice(), fuse.source.as_slice()),
            (&b"fuse.sshfs"[..], &b"a#b"[..])
        );
        assert_eq!(
            (empty.source.as_slice(), empty.super_options.as_slice()),
            (&b""[..], &b"rw"[..])
        );
        Ok(())
    }

    #[test]
    fn broken_lines_are_named() {
        for (bad, what) in [
            (&b"x 27 0:21 / /proc rw - proc proc rw"[..], "mount id"),
            (b"22 27 0 / /proc rw - proc proc rw", "device"),
            (b"22 27 0:21 / /proc rw proc proc rw", "separator"),
            (b"22 27 0:21 / /proc rw shared:x - proc proc rw", "shared"),
            (b"22 27 0:21 / /proc rw -", "file system type"),
            (b"22 27 0:21 / /proc rw - proc proc", "superblock options"),
        ] {
            assert_eq!(
                parse_mountinfo(bad).err().map(|e| (e.line, e.what)),
                Some((1, what))
            );
        }
    }

    #[test]
    fn our_own_mounts_parse() {
        let text = std::fs::read("/proc/self/mountinfo").expect("our own mountinfo is readable");
        let mounts = parse_mountinfo(&text).expect("the running kernel's format is known");
        assert!(mounts.iter().any(|mount| mount.mountpoint == b"/proc"));
    }
}
