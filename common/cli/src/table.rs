//! The table of every option the peer knows, and what each of our executables makes of it.
//!
//! A row that is `NotYet` for an executable is refused by its name; one that is `Inert` has no
//! meaning there for the peer either and is accepted because scripts pass one list to both.

use Take::{Flag, Many, One, Optional};
use Use::{Inert, NotYet, Works};

/// What an executable makes of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It does what it says.
    Works,
    /// It has no meaning here.
    Inert,
    /// Known and not built: refused by name.
    NotYet,
}

/// What follows an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// Nothing; `--no-NAME` takes it back.
    Flag,
    /// A value; the last one counts.
    One(&'static str),
    /// A value after `=` or nothing, which means the second string.
    Optional(&'static str, &'static str),
    /// A value, as often as one likes.
    Many(&'static str),
}

/// An option.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The long name, without dashes.
    pub long: &'static str,
    /// The letter.
    pub short: Option<char>,
    /// What follows it.
    pub take: Take,
    /// In crust-dump.
    pub dump: Use,
    /// In crust-restore.
    pub restore: Use,
    /// One line.
    pub help: &'static str,
}

const fn row(
    long: &'static str,
    short: Option<char>,
    take: Take,
    uses: (Use, Use),
    help: &'static str,
) -> Row {
    Row {
        long,
        short,
        take,
        dump: uses.0,
        restore: uses.1,
        help,
    }
}

/// All options but `-v`, `--help` and `--version`.
pub const ROWS: &[Row] = &[
    row(
        "tree",
        Some('t'),
        One("PID"),
        (Works, Inert),
        "the task to dump, with its descendants",
    ),
    row(
        "images-dir",
        Some('D'),
        One("DIR"),
        (Works, Works),
        "where the images are (default .)",
    ),
    row(
        "work-dir",
        Some('W'),
        One("DIR"),
        (Works, Works),
        "where log, pid and stats files are (default: images dir)",
    ),
    row(
        "log-file",
        Some('o'),
        One("FILE"),
        (Works, Works),
        "the log, below the work dir (default: stderr)",
    ),
    row(
        "log-pid",
        None,
        Flag,
        (Inert, NotYet),
        "a log for each restored task",
    ),
    row(
        "config",
        None,
        One("FILE"),
        (Works, Works),
        "a file of options, read after the default ones",
    ),
    row(
        "no-default-config",
        None,
        Flag,
        (Works, Works),
        "do not read the default configuration files",
    ),
    row(
        "timeout",
        None,
        One("SECONDS"),
        (Works, Inert),
        "how long a task may take to stop (default 10)",
    ),
    row(
        "status-fd",
        None,
        One("FD"),
        (Works, Works),
        "write a zero byte to this descriptor when started",
    ),
    row(
        "display-stats",
        None,
        Flag,
        (Works, Works),
        "print the numbers of the stats file",
    ),
    row(
        "action-script",
        None,
        Many("FILE"),
        (Works, Works),
        "run this at each stage",
    ),
    row(
        "pidfile",
        None,
        One("FILE"),
        (Inert, Works),
        "write the root's pid here",
    ),
    // What becomes of the tree.
    row(
        "leave-running",
        Some('R'),
        Flag,
        (Works, Inert),
        "let the tree go on after the dump",
    ),
    row(
        "leave-stopped",
        Some('s'),
        Flag,
        (Works, Works),
        "leave the tree stopped",
    ),
    row(
        "restore-detached",
        Some('d'),
        Flag,
        (Inert, Works),
        "do not wait for the restored root",
    ),
    row(
        "restore-sibling",
        Some('S'),
        Flag,
        (Inert, Works),
        "restore the root as our sibling (with --restore-detached)",
    ),
    row(
        "shell-job",
        Some('j'),
        Flag,
        (Works, Works),
        "allow a session leader and terminal outside the tree",
    ),
    row(
        "plan",
        None,
        Optional("FORMAT", "text"),
        (Inert, Works),
        "print the plan (text or json) and do nothing",
    ),
    row(
        "check",
        None,
        Flag,
        (Works, Works),
        "say what would be refused, and do nothing",
    ),
    row(
        "json",
        None,
        Flag,
        (Works, Works),
        "reports and failures as JSON",
    ),
    row(
        "digest",
        None,
        Flag,
        (Works, Works),
        "write a manifest of hashes, or demand one",
    ),
    row(
        "sync",
        None,
        Flag,
        (Works, Inert),
        "bring the images to the disk before the dump counts as done",
    ),
    row(
        "progress-fd",
        None,
        One("FD"),
        (Works, Works),
        "write progress as JSON lines to this descriptor",
    ),
    // Files.
    row(
        "root",
        Some('r'),
        One("DIR"),
        (Inert, NotYet),
        "the root of the restored mount namespace",
    ),
    row(
        "file-locks",
        Some('l'),
        Flag,
        (Works, Works),
        "carry file locks",
    ),
    row(
        "ext-unix-sk",
        Some('x'),
        Optional("INODES", ""),
        (Works, Works),
        "allow unix sockets connected to the outside",
    ),
    row(
        "external",
        None,
        Many("RESOURCE"),
        (Works, Works),
        "a resource that is outside of the dump",
    ),
    row(
        "inherit-fd",
        None,
        Many("fd[N]:RESOURCE"),
        (Inert, Works),
        "use this descriptor of ours for a resource",
    ),
    row(
        "link-remap",
        None,
        Flag,
        (Works, Inert),
        "allow temporary hard links to deleted files",
    ),
    row(
        "ghost-limit",
        None,
        One("SIZE"),
        (Works, Inert),
        "the largest deleted file to carry (default 1M; K, M, G)",
    ),
    row(
        "ghost-fiemap",
        None,
        Flag,
        (NotYet, Inert),
        "find the holes of deleted files by FIEMAP where SEEK_DATA cannot",
    ),
    row(
        "evasive-devices",
        None,
        Flag,
        (NotYet, Inert),
        "use any path to a device if its own is gone",
    ),
    row(
        "force-irmap",
        None,
        Flag,
        (Works, Inert),
        "look for watched files by name",
    ),
    row(
        "irmap-scan-path",
        None,
        Many("DIR"),
        (Works, Inert),
        "where to look for watched files",
    ),
    row(
        "file-validation",
        None,
        One("MODE"),
        (Works, Works),
        "how files are told to be the same: filesize or buildid (default)",
    ),
    // Network.
    row(
        "tcp-established",
        None,
        Flag,
        (Works, Works),
        "carry established TCP connections",
    ),
    row(
        "tcp-close",
        None,
        Flag,
        (Works, Works),
        "restore TCP connections as closed",
    ),
    row(
        "skip-in-flight",
        None,
        Flag,
        (Works, Inert),
        "leave out connections still being made",
    ),
    row(
        "network-lock",
        None,
        One("METHOD"),
        (Works, Works),
        "how the network is locked: nftables (the default), iptables or skip",
    ),
    row(
        "veth-pair",
        None,
        Many("IN=OUT"),
        (Inert, NotYet),
        "the outer name of a veth device",
    ),
    row(
        "weak-sysctls",
        None,
        Flag,
        (Inert, NotYet),
        "go on if a sysctl cannot be restored",
    ),
    // Namespaces.
    row(
        "empty-ns",
        None,
        Many("NS"),
        (NotYet, NotYet),
        "create this namespace without its content",
    ),
    row(
        "join-ns",
        Some('J'),
        Many("NS:PATH"),
        (NotYet, NotYet),
        "restore into an existing namespace",
    ),
    row(
        "ext-mount-map",
        Some('M'),
        Many("KEY:VALUE"),
        (NotYet, NotYet),
        "an external mount",
    ),
    row(
        "enable-external-sharing",
        None,
        Flag,
        (NotYet, NotYet),
        "allow external mounts in shared groups",
    ),
    row(
        "enable-external-masters",
        None,
        Flag,
        (NotYet, NotYet),
        "allow external mounts that are slaves",
    ),
    row(
        "enable-fs",
        None,
        Many("LIST"),
        (NotYet, NotYet),
        "filesystems to carry as they are",
    ),
    row(
        "skip-mnt",
        None,
        Many("PATH"),
        (NotYet, NotYet),
        "a mount to leave out",
    ),
    row(
        "mntns-compat-mode",
        None,
        Flag,
        (Inert, NotYet),
        "restore mounts in the old way",
    ),
    // Cgroups.
    row(
        "manage-cgroups",
        None,
        Optional("MODE", "soft"),
        (Works, Works),
        "none, props, soft (default), full, strict or ignore",
    ),
    row(
        "cgroup-root",
        None,
        Many("[CTL:]PATH"),
        (Inert, Works),
        "put the root's cgroup, and those below it, here instead",
    ),
    row(
        "cgroup-props",
        None,
        One("TEXT"),
        (Works, Inert),
        "properties of cgroups to carry",
    ),
    row(
        "cgroup-props-file",
        None,
        One("FILE"),
        (Works, Inert),
        "the same in a file",
    ),
    row(
        "cgroup-props-ignore-default",
        None,
        Flag,
        (Works, Inert),
        "carry no others than these",
    ),
    row(
        "cgroup-dump-controller",
        None,
        Many("CTL"),
        (Works, Inert),
        "controllers to carry",
    ),
    row(
        "cgroup-yard",
        None,
        One("DIR"),
        (Works, Works),
        "where the cgroup filesystems are",
    ),
    row(
        "freeze-cgroup",
        None,
        One("DIR"),
        (Works, Inert),
        "freeze by this cgroup",
    ),
    // Memory.
    row(
        "pre-dump",
        None,
        Flag,
        (Works, Inert),
        "copy memory while the tree runs, and track its changes for the next dump",
    ),
    row(
        "pre-copy",
        None,
        One("N"),
        (Works, Inert),
        "copy memory in up to N rounds while the tree runs, then freeze it",
    ),
    row(
        "snapshot",
        None,
        Flag,
        (Works, Inert),
        "copy memory after the tree goes on, from a copy-on-write copy (with --leave-running)",
    ),
    row(
        "track-mem",
        None,
        Flag,
        (Works, Inert),
        "track changes of memory for the next dump",
    ),
    row(
        "prev-images-dir",
        None,
        One("DIR"),
        (Works, Inert),
        "the dump to be incremental to, seen from the images dir",
    ),
    row(
        "auto-dedup",
        None,
        Flag,
        (Works, NotYet),
        "punch pages out of earlier dumps that this one has again",
    ),
    row(
        "pre-dump-mode",
        None,
        One("MODE"),
        (Works, Inert),
        "splice or read: accepted, a pre-dump always reads",
    ),
    row(
        "lazy-pages",
        None,
        Flag,
        (NotYet, NotYet),
        "leave memory for later",
    ),
    row(
        "page-server",
        None,
        Flag,
        (NotYet, Inert),
        "send pages to a page server",
    ),
    row(
        "address",
        None,
        One("ADDRESS"),
        (NotYet, NotYet),
        "of the page server",
    ),
    row(
        "port",
        None,
        One("PORT"),
        (NotYet, NotYet),
        "of the page server",
    ),
    row(
        "ps-socket",
        None,
        One("FD"),
        (NotYet, NotYet),
        "a connected socket to the page server",
    ),
    row(
        "tls",
        None,
        Flag,
        (NotYet, NotYet),
        "encrypt the connection to the page server",
    ),
    row(
        "stream",
        None,
        Flag,
        (NotYet, NotYet),
        "images through a streamer",
    ),
    // The rest.
    row(
        "cpu-cap",
        Some('c'),
        Optional("CAP", "all"),
        (Works, Works),
        "what of the CPU must be the same",
    ),
    row(
        "lsm-profile",
        None,
        One("TYPE:NAME"),
        (Inert, Works),
        "the profile to restore with",
    ),
    row(
        "lsm-mount-context",
        None,
        One("CONTEXT"),
        (Inert, NotYet),
        "the mount context to restore with",
    ),
    row(
        "libdir",
        Some('L'),
        One("DIR"),
        (NotYet, NotYet),
        "where plugins are",
    ),
    row(
        "unprivileged",
        None,
        Flag,
        (Works, Works),
        "go on without root's capabilities",
    ),
    row(
        "allow-uprobes",
        None,
        Flag,
        (NotYet, NotYet),
        "allow a mapping of uprobes",
    ),
    row(
        "deprecated",
        None,
        Flag,
        (NotYet, NotYet),
        "allow what is deprecated",
    ),
    row(
        "exec-cmd",
        None,
        Flag,
        (Inert, NotYet),
        "run a command after the restore",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_letters_are_unique() {
        for (index, row) in ROWS.iter().enumerate() {
            for other in &ROWS[index + 1..] {
                assert_ne!(row.long, other.long);
                assert!(
                    row.short.is_none() || row.short != other.short,
                    "{}",
                    other.long
                );
            }
        }
    }
}
