//! The one table of image kinds: which files a dump consists of, and how each is built.
//!
//! A row says what the file is called, which magic it bears and in which frame, which message its
//! entries are and which bytes follow an entry outside its message. dump, restore and crit all read
//! this table; nothing else in Crust knows a magic or an image's file name. It holds the kinds
//! CRIU 4.2 writes, those only older versions wrote (still readable), and the raw files that carry
//! foreign data from byte 0. `parent`, the symlink to the previous dump, is not an image: see `dir`.

use std::{ffi::OsStr, fmt, os::unix::ffi::OsStrExt};

/// How an image begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Framing {
    /// Its own magic alone, in v1.0 and v1.1: only the inventory, which tells the version.
    Bare,
    /// v1.1: 0x54564319, then the magic. v1.0: the magic alone.
    Common,
    /// v1.1: 0x55105940, then the magic. v1.0: the magic alone.
    Service,
    /// No head at all: foreign data begins at byte 0.
    Raw,
}

/// First word of every ordinary image of v1.1.
pub const IMG_COMMON_MAGIC: u32 = 0x5456_4319;
/// First word of every service image of v1.1.
pub const IMG_SERVICE_MAGIC: u32 = 0x5510_5940;

impl Framing {
    /// The word that precedes the magic in v1.1, if this framing has one.
    pub fn prefix(self) -> Option<u32> {
        match self {
            Framing::Common => Some(IMG_COMMON_MAGIC),
            Framing::Service => Some(IMG_SERVICE_MAGIC),
            Framing::Bare | Framing::Raw => None,
        }
    }
}

/// The bytes which belong to an entry but lie outside its message (`payload` reads and writes them).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payload {
    /// Nothing follows the message.
    None,
    /// `bytes` bytes of a pipe_data_entry (pipes-data, fifo-data).
    PipeData,
    /// `length` bytes of a sk_packet_entry.
    SkPacket,
    /// `inq_len` bytes, then `outq_len` bytes.
    TcpStream,
    /// The whole content up to the end of the file, or `len` bytes after each further
    /// ghost_chunk_entry.
    GhostFile,
    /// `keys_bytes` bytes, then `values_bytes` bytes.
    BpfmapData,
    /// `nsems` 16-bit values, padded to 8 bytes.
    IpcSem,
    /// `qnum` times a framed ipc_msg and its `msize` bytes, padded to 8.
    IpcMsg,
    /// `size` bytes padded to 4 unless `in_pagemaps`.
    IpcShm,
}

/// How the id inside a file name is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdRadix {
    /// The name has no id: one such file per dump.
    None,
    /// Decimal without leading zeros.
    Decimal,
    /// Lower-case hex without leading zeros or 0x.
    Hex,
}

/// A file name: `prefix`, the id in `radix`, `suffix`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamePattern {
    /// What comes before the id, or the whole name before the suffix.
    pub prefix: &'static str,
    /// How the id is written, if there is one.
    pub radix: IdRadix,
    /// What comes after the id: `.img` but for service images.
    pub suffix: &'static str,
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindSpec {
    /// crit's name of the magic, e.g. `PSTREE`. Kinds can share one (`PAGEMAP`, `STATS`, `RAW`).
    pub name: &'static str,
    /// The magic, 0 for raw images.
    pub magic: u32,
    /// How the file begins.
    pub framing: Framing,
    /// What the file is called.
    pub pattern: NamePattern,
    /// Name of the message of the first entry, and of the others unless `further_message` says
    /// otherwise. `None` for raw images.
    pub entry_message: Option<&'static str>,
    /// Name of the message of every entry after the first where that is another one (pagemaps,
    /// chunked ghost files).
    pub further_message: Option<&'static str>,
    /// What follows a message.
    pub payload: Payload,
    /// Whether CRIU 4.2 writes the kind; false for what only images of older versions have.
    pub written_by_current: bool,
}

macro_rules! pattern {
    ($prefix:literal) => {
        pattern!($prefix, None, ".img")
    };
    ($prefix:literal, $radix:ident) => {
        pattern!($prefix, $radix, ".img")
    };
    ($prefix:literal, $radix:ident, $suffix:literal) => {
        NamePattern {
            prefix: $prefix,
            radix: IdRadix::$radix,
            suffix: $suffix,
        }
    };
}

macro_rules! message {
    (-) => {
        None
    };
    ($message:ident) => {
        Some(stringify!($message))
    };
}

macro_rules! age {
    (now) => {
        true
    };
    (old) => {
        false
    };
}

/// Rows: variant, magic name, magic, framing, file name, entry message, further message, payload,
/// and `now` or `old`. The enum and the table come from the same rows, so that they cannot differ.
macro_rules! kinds {
    ($($kind:ident $name:ident $magic:literal $framing:ident ($($pattern:tt)*) $entry:tt $further:tt
       $payload:ident $age:ident;)*) => {
        /// A kind of image file. The order is that of the table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs, reason = "the table's rows say what each is")]
        pub enum Kind { $($kind),* }

        impl Kind {
            /// Every kind, in table order.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),*];

            /// The row of this kind.
            pub fn spec(self) -> &'static KindSpec {
                match self {
                    $(Kind::$kind => const { &KindSpec {
                        name: stringify!($name),
                        magic: $magic,
                        framing: Framing::$framing,
                        pattern: pattern!($($pattern)*),
                        entry_message: message!($entry),
                        further_message: message!($further),
                        payload: Payload::$payload,
                        written_by_current: age!($age),
                    } },)*
                }
            }
        }
    };
}

kinds! {
    Inventory    INVENTORY    0x5831_3116 Bare   ("inventory")               inventory_entry       - None now;
    Pstree       PSTREE       0x5027_3030 Common ("pstree")                  pstree_entry          - None now;
    Core         CORE         0x5505_3847 Common ("core-", Decimal)          core_entry            - None now;
    Ids          IDS          0x5443_2030 Common ("ids-", Decimal)           task_kobj_ids_entry   - None now;
    Mm           MM           0x5749_2820 Common ("mm-", Decimal)            mm_entry              - None now;
    Fs           FS           0x5140_3912 Common ("fs-", Decimal)            fs_entry              - None now;
    Fdinfo       FDINFO       0x5621_3732 Common ("fdinfo-", Decimal)        fdinfo_entry          - None now;
    Pagemap      PAGEMAP      0x5608_4025 Common ("pagemap-", Decimal)       pagemap_head pagemap_entry None now;
    PagemapShmem PAGEMAP      0x5608_4025 Common ("pagemap-shmem-", Decimal) pagemap_head pagemap_entry None now;
    Pages        RAW          0           Raw    ("pages-", Decimal)         -                     - None now;
    Files        FILES        0x5630_3138 Common ("files")                   file_entry            - None now;
    RemapFpath   REMAP_FPATH  0x5913_3954 Common ("remap-fpath")             remap_file_path_entry - None now;
    GhostFile    GHOST_FILE   0x5258_3605 Common ("ghost-file-", Hex)        ghost_file_entry ghost_chunk_entry GhostFile now;
    PipesData    PIPES_DATA   0x5645_3709 Common ("pipes-data")              pipe_data_entry       - PipeData now;
    FifoData     FIFO_DATA    0x5933_3054 Common ("fifo-data")               pipe_data_entry       - PipeData now;
    SkQueues     SK_QUEUES    0x5626_4026 Common ("sk-queues")               sk_packet_entry       - SkPacket now;
    TcpStream    TCP_STREAM   0x5146_5506 Common ("tcp-stream-", Hex)        tcp_stream_entry      - TcpStream now;
    TtyInfo      TTY_INFO     0x5945_3036 Common ("tty-info")                tty_info_entry        - None now;
    TtyData      TTY_DATA     0x5941_3026 Common ("tty-data")                tty_data_entry        - None now;
    FileLocks    FILE_LOCKS   0x5432_3616 Common ("filelocks")               file_lock_entry       - None now;
    Cgroup       CGROUP       0x5938_3330 Common ("cgroup")                  cgroup_entry          - None now;
    Seccomp      SECCOMP      0x6441_3049 Common ("seccomp")                 seccomp_entry         - None now;
    Apparmor     APPARMOR     0x5942_3047 Common ("apparmor")                apparmor_entry        - None now;
    MemfdInode   MEMFD_INODE  0x4845_3499 Common ("memfd")                   memfd_inode_entry     - None now;
    BpfmapData   BPFMAP_DATA  0x6432_4033 Common ("bpfmap-data")             bpfmap_data_entry     - BpfmapData now;
    Utsns        UTSNS        0x5447_3203 Common ("utsns-", Decimal)         utsns_entry           - None now;
    IpcVar       IPC_VAR      0x5311_5007 Common ("ipcns-var-", Decimal)     ipc_var_entry         - None now;
    IpcnsShm     IPCNS_SHM    0x4628_3044 Common ("ipcns-shm-", Decimal)     ipc_shm_entry         - IpcShm now;
    IpcnsMsg     IPCNS_MSG    0x5545_3737 Common ("ipcns-msg-", Decimal)     ipc_msg_entry         - IpcMsg now;
    IpcnsSem     IPCNS_SEM    0x5957_3019 Common ("ipcns-sem-", Decimal)     ipc_sem_entry         - IpcSem now;
    Mnts         MNTS         0x5556_3928 Common ("mountpoints-", Decimal)   mnt_entry             - None now;
    Userns       USERNS       0x5547_4906 Common ("userns-", Decimal)        userns_entry          - None now;
    Pidns        PIDNS        0x6115_7326 Common ("pidns-", Decimal)         pidns_entry           - None now;
    Timens       TIMENS       0x4311_4433 Common ("timens-", Decimal)        timens_entry          - None now;
    Netns        NETNS        0x5593_3752 Common ("netns-", Decimal)         netns_entry           - None now;
    Netdev       NETDEV       0x5737_3951 Common ("netdev-", Decimal)        net_device_entry      - None now;
    Ifaddr       RAW          0           Raw    ("ifaddr-", Decimal)        -                     - None now;
    Route        RAW          0           Raw    ("route-", Decimal)         -                     - None now;
    Route6       RAW          0           Raw    ("route6-", Decimal)        -                     - None now;
    Rule         RAW          0           Raw    ("rule-", Decimal)          -                     - None now;
    Iptables     RAW          0           Raw    ("iptables-", Decimal)      -                     - None now;
    Ip6tables    RAW          0           Raw    ("ip6tables-", Decimal)     -                     - None now;
    Nftables     RAW          0           Raw    ("nftables-", Decimal)      -                     - None now;
    NetnsCt      RAW          0           Raw    ("netns-ct-", Decimal)      -                     - None now;
    NetnsExp     RAW          0           Raw    ("netns-exp-", Decimal)     -                     - None now;
    TmpfsDev     RAW          0           Raw    ("tmpfs-dev-", Decimal, ".tar.gz.img") -          - None now;
    TmpfsMnt     RAW          0           Raw    ("tmpfs-", Decimal, ".tar.gz.img")     -          - None old;
    Autofs       AUTOFS       0x4935_3943 Common ("autofs-", Decimal)        autofs_entry          - None now;
    BinfmtMisc   BINFMT_MISC  0x6734_3323 Common ("binfmt-misc")             binfmt_misc_entry     - None now;
    BinfmtMiscDev BINFMT_MISC 0x6734_3323 Common ("binfmt-misc-", Decimal)   binfmt_misc_entry     - None old;
    Cpuinfo      CPUINFO      0x6140_4013 Common ("cpuinfo")                 cpuinfo_entry         - None now;
    StatsDump    STATS        0x5709_3306 Service ("stats-dump", None, "")   stats_entry           - None now;
    StatsRestore STATS        0x5709_3306 Service ("stats-restore", None, "") stats_entry          - None now;
    IrmapCache   IRMAP_CACHE  0x5700_4059 Service ("irmap-cache", None, "")  irmap_cache_entry     - None now;
    // Ours, which CRIU passes over: hashes of every image, and of every page of a pages file.
    Digest       RAW          0           Raw    ("crust-digest", None, ".json")           -       - None old;
    DigestPages  RAW          0           Raw    ("crust-digest-", Decimal, ".pages")      -       - None old;

    // Written by older versions only. The first group became fields of core or mm, the second
    // members of files.img.
    Creds        CREDS        0x5402_3547 Common ("creds-", Decimal)         creds_entry           - None old;
    Vmas         VMAS         0x5412_3737 Common ("vmas-", Decimal)          vma_entry             - None old;
    Sigact       SIGACT       0x5534_4201 Common ("sigacts-", Decimal)       sa_entry              - None old;
    Itimers      ITIMERS      0x5746_4056 Common ("itimers-", Decimal)       itimer_entry          - None old;
    PosixTimers  POSIX_TIMERS 0x5260_3957 Common ("posix-timers-", Decimal)  posix_timer_entry     - None old;
    Rlimit       RLIMIT       0x5711_3925 Common ("rlimit-", Decimal)        rlimit_entry          - None old;
    SignalShared SIGNAL       0x5925_5647 Common ("signal-s-", Decimal)      siginfo_entry         - None old;
    SignalPrivate SIGNAL      0x5925_5647 Common ("signal-p-", Decimal)      siginfo_entry         - None old;
    RegFiles     REG_FILES    0x5036_3636 Common ("reg-files")               reg_file_entry        - None old;
    ExtFiles     EXT_FILES    0x5925_5641 Common ("ext-files")               ext_file_entry        - None old;
    NsFiles      NS_FILES     0x6139_4011 Common ("ns-files")                ns_file_entry         - None old;
    Eventfd      EVENTFD_FILE 0x4452_3722 Common ("eventfd")                 eventfd_file_entry    - None old;
    Eventpoll    EVENTPOLL_FILE 0x4502_3858 Common ("eventpoll")             eventpoll_file_entry  - None old;
    EventpollTfd EVENTPOLL_TFD 0x4443_3746 Common ("eventpoll-tfd")          eventpoll_tfd_entry   - None old;
    Signalfd     SIGNALFD     0x5732_3820 Common ("signalfd")                signalfd_entry        - None old;
    Timerfd      TIMERFD      0x5049_3712 Common ("timerfd")                 timerfd_entry         - None old;
    Inotify      INOTIFY_FILE 0x4842_4431 Common ("inotify")                 inotify_file_entry    - None old;
    InotifyWd    INOTIFY_WD   0x5456_2009 Common ("inotify-wd")              inotify_wd_entry      - None old;
    Fanotify     FANOTIFY_FILE 0x5509_6122 Common ("fanotify")               fanotify_file_entry   - None old;
    FanotifyMark FANOTIFY_MARK 0x5650_6035 Common ("fanotify-mark")          fanotify_mark_entry   - None old;
    Pipes        PIPES        0x5651_3555 Common ("pipes")                   pipe_entry            - None old;
    Fifo         FIFO         0x5836_4939 Common ("fifo")                    fifo_entry            - None old;
    Unixsk       UNIXSK       0x5437_3943 Common ("unixsk")                  unix_sk_entry         - None old;
    Inetsk       INETSK       0x5644_3851 Common ("inetsk")                  inet_sk_entry         - None old;
    Packetsk     PACKETSK     0x6045_4618 Common ("packetsk")                packet_sock_entry     - None old;
    Netlinksk    NETLINK_SK   0x5800_5614 Common ("netlinksk")               netlink_sk_entry      - None old;
    Tty          TTY_FILES    0x5943_3025 Common ("tty")                     tty_file_entry        - None old;
    Tunfile      TUNFILE      0x5714_3751 Common ("tunfile")                 tunfile_entry         - None old;
    Pidfd        PIDFD        0x5443_5556 Common ("pidfd")                   pidfd_entry           - None old;
    BpfmapFile   BPFMAP_FILE  0x5750_6142 Common ("bpfmap-file")             bpfmap_file_entry     - None old;
    // (address, page) records behind the head of a pagemap. Its sibling pages-<pid>.img of the same
    // age bears the file name of `Pages` and can only be told by its head.
    PagesShmemOld PAGEMAP     0x5608_4025 Common ("pages-shmem-", Decimal)   -                     - None old;
}

impl Kind {
    /// The kind crit means by a magic; where kinds share one, the first of the table.
    pub fn by_magic(magic: u32) -> Option<Kind> {
        Kind::ALL
            .iter()
            .copied()
            .find(|kind| kind.spec().magic == magic && kind.spec().framing != Framing::Raw)
    }

    /// The kind with crit's name of a magic, e.g. `PSTREE`; where kinds share one, the first of the
    /// table. Raw images have no name of their own and are not found.
    pub fn by_name(name: &str) -> Option<Kind> {
        Kind::ALL
            .iter()
            .copied()
            .find(|kind| kind.spec().name == name && kind.spec().framing != Framing::Raw)
    }

    /// The kind and the id that a file name stands for, `None` for a name no image has. An id is
    /// only taken in the one form [`Kind::file_name`] writes.
    pub fn of_file_name(name: &OsStr) -> Option<(Kind, Option<u64>)> {
        let name = name.as_bytes();
        Kind::ALL
            .iter()
            .find_map(|kind| Some((*kind, kind.spec().pattern.parse_id(name)?)))
    }

    /// Whether the file name of this kind holds an id.
    pub fn has_id(self) -> bool {
        self.spec().pattern.radix != IdRadix::None
    }

    /// The file name of an image of this kind. `id` is left out where the kind has none; a kind
    /// that has one takes `None` as 0.
    pub fn file_name(self, id: Option<u64>) -> String {
        let NamePattern {
            prefix,
            radix,
            suffix,
        } = self.spec().pattern;
        let id = id.unwrap_or(0);
        match radix {
            IdRadix::None => format!("{prefix}{suffix}"),
            IdRadix::Decimal => format!("{prefix}{id}{suffix}"),
            IdRadix::Hex => format!("{prefix}{id:x}{suffix}"),
        }
    }

    /// The message of entry number `index` (0 is the first), `None` for raw images.
    pub fn message_at(self, index: u64) -> Option<&'static str> {
        let spec = self.spec();
        match spec.further_message {
            Some(further) if index > 0 => Some(further),
            _ => spec.entry_message,
        }
    }
}

impl NamePattern {
    /// The id in `name`: `None` if the name does not fit, `Some(None)` if it fits and has no id.
    fn parse_id(&self, name: &[u8]) -> Option<Option<u64>> {
        let digits = name
            .strip_prefix(self.prefix.as_bytes())?
            .strip_suffix(self.suffix.as_bytes())?;
        let radix = match self.radix {
            IdRadix::None => return digits.is_empty().then_some(None),
            IdRadix::Decimal => 10,
            IdRadix::Hex => 16,
        };
        let canonical = matches!(digits, [b'0'] | [b'1'..=b'9' | b'a'..=b'f', ..])
            && digits
                .iter()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        if !canonical {
            return None;
        }
        let digits = std::str::from_utf8(digits).ok()?;
        u64::from_str_radix(digits, radix).ok().map(Some)
    }
}

impl fmt::Display for Kind {
    /// The file name with the place of the id marked, e.g. `core-<id>.img`.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NamePattern {
            prefix,
            radix,
            suffix,
        } = self.spec().pattern;
        match radix {
            IdRadix::None => write!(out, "{prefix}{suffix}"),
            IdRadix::Decimal | IdRadix::Hex => write!(out, "{prefix}<id>{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_name_leads_back_to_its_kind() {
        for kind in Kind::ALL.iter().copied() {
            for id in [0, 7, 10, 0xabc, u64::MAX] {
                let id = kind.has_id().then_some(id);
                let name = kind.file_name(id);
                assert_eq!(
                    Kind::of_file_name(OsStr::new(&name)),
                    Some((kind, id)),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn known_file_names() {
        for (name, expected) in [
            ("pstree.img", Some((Kind::Pstree, None))),
            ("core-4620.img", Some((Kind::Core, Some(4620)))),
            ("pagemap-shmem-12.img", Some((Kind::PagemapShmem, Some(12)))),
            ("ghost-file-1f.img", Some((Kind::GhostFile, Some(0x1f)))),
            ("stats-dump", Some((Kind::StatsDump, None))),
            ("netns-ct-9.img", Some((Kind::NetnsCt, Some(9)))),
            ("tmpfs-dev-77.tar.gz.img", Some((Kind::TmpfsDev, Some(77)))),
            ("route6-3.img", Some((Kind::Route6, Some(3)))),
            ("parent", None),
            ("stats-dump.img", None),
            ("core-.img", None),
            ("core-007.img", None),
            ("core-+7.img", None),
            ("core-a.img", None),
            ("ghost-file-1F.img", None),
            ("core-18446744073709551616.img", None),
            ("", None),
        ] {
            assert_eq!(Kind::of_file_name(OsStr::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn magic_and_name_agree() {
        assert_eq!(Kind::by_magic(0x5027_3030), Some(Kind::Pstree));
        assert_eq!(Kind::by_name("PAGEMAP"), Some(Kind::Pagemap));
        assert_eq!(Kind::by_name("STATS"), Some(Kind::StatsDump));
        assert_eq!(Kind::by_name("RAW"), None);
        assert_eq!(Kind::by_magic(0), None);
        assert_eq!(Kind::by_magic(IMG_COMMON_MAGIC), None);
        for kind in Kind::ALL {
            let spec = kind.spec();
            if spec.framing == Framing::Raw {
                continue;
            }
            let same = Kind::by_magic(spec.magic).expect("every magic of the table is found");
            assert_eq!(same.spec().name, spec.name);
            assert_eq!(Kind::by_name(spec.name), Some(same));
        }
    }

    #[test]
    fn messages_of_entries() {
        assert_eq!(Kind::Pagemap.message_at(0), Some("pagemap_head"));
        assert_eq!(Kind::Pagemap.message_at(1), Some("pagemap_entry"));
        assert_eq!(Kind::Files.message_at(5), Some("file_entry"));
        assert_eq!(Kind::Pages.message_at(0), None);
    }
}
