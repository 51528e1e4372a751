//! The names crit gives to bits and numbers in its pretty form. They are part of that form, not
//! of the image format: a bit without a name is printed in hex, so nothing is lost when the
//! kernel or CRIU has grown one (`VMA_AREA_NONE`, value 0, never prints).

/// Bits of the table a `flags` option names; `None` when there is no such table.
pub fn flag_names(table: &str) -> Option<&'static [(&'static str, u64)]> {
    Some(match table {
        "mmap.prot" => &[("PROT_READ", 1), ("PROT_WRITE", 2), ("PROT_EXEC", 4)],
        "mmap.flags" => &[
            ("MAP_SHARED", 0x1),
            ("MAP_PRIVATE", 0x2),
            ("MAP_DROPPABLE", 0x8),
            ("MAP_ANON", 0x20),
            ("MAP_GROWSDOWN", 0x100),
        ],
        "mmap.status" => VMA_STATUS,
        "rfile.flags" => OPEN_FLAGS,
        "pmap.flags" => &[("PE_PARENT", 1), ("PE_LAZY", 2), ("PE_PRESENT", 4)],
        "seals.flags" => &[
            ("F_SEAL_SEAL", 0x1),
            ("F_SEAL_SHRINK", 0x2),
            ("F_SEAL_GROW", 0x4),
            ("F_SEAL_WRITE", 0x8),
            ("F_SEAL_FUTURE_WRITE", 0x10),
        ],
        _ => return None,
    })
}

const VMA_STATUS: &[(&str, u64)] = &[
    ("VMA_AREA_NONE", 0),
    ("VMA_AREA_REGULAR", 0x1),
    ("VMA_AREA_STACK", 0x2),
    ("VMA_AREA_VSYSCALL", 0x4),
    ("VMA_AREA_VDSO", 0x8),
    ("VMA_AREA_HEAP", 0x20),
    ("VMA_FILE_PRIVATE", 0x40),
    ("VMA_FILE_SHARED", 0x80),
    ("VMA_ANON_SHARED", 0x100),
    ("VMA_ANON_PRIVATE", 0x200),
    ("VMA_AREA_SYSVIPC", 0x400),
    ("VMA_AREA_SOCKET", 0x800),
    ("VMA_AREA_VVAR", 0x1000),
    ("VMA_AREA_AIORING", 0x2000),
    ("VMA_AREA_MEMFD", 0x4000),
    ("VMA_AREA_SHSTK", 0x8000),
    ("VMA_AREA_UPROBES", 0x20000),
    ("VMA_UNSUPP", 0x8000_0000),
];

const OPEN_FLAGS: &[(&str, u64)] = &[
    ("O_WRONLY", 0x1),
    ("O_RDWR", 0x2),
    ("O_CREAT", 0x40),
    ("O_EXCL", 0x80),
    ("O_NOCTTY", 0x100),
    ("O_TRUNC", 0x200),
    ("O_APPEND", 0x400),
    ("O_NONBLOCK", 0x800),
    ("O_DSYNC", 0x1000),
    ("FASYNC", 0x2000),
    ("O_DIRECT", 0x4000),
    ("O_LARGEFILE", 0x8000),
    ("O_DIRECTORY", 0x10000),
    ("O_NOFOLLOW", 0x20000),
    ("O_NOATIME", 0x40000),
    ("O_CLOEXEC", 0x80000),
];

/// Names of single values, by the dictionary a `dict` option names and the field's name.
pub fn value_names(dict: &str, field: &str) -> &'static [(&'static str, u64)] {
    match (dict, field) {
        // 4.2 writes 1 alive, 2 dead, 3 stopped; its crit still shows older names (3 as "Zombie",
        // 2 as a number). "Zombie" is read as what that tool meant by it; the first name wins when
        // a number is shown.
        ("gen", "task_state") => &[("Alive", 1), ("Dead", 2), ("Stopped", 3), ("Zombie", 3)],
        ("sk", "family") => &[
            ("UNIX", 1),
            ("INET", 2),
            ("INET6", 10),
            ("NETLINK", 16),
            ("PACKET", 17),
        ],
        ("sk", "type") => &[
            ("STREAM", 1),
            ("DGRAM", 2),
            ("RAW", 3),
            ("SEQPACKET", 5),
            ("PACKET", 10),
        ],
        ("sk", "state") => &[
            ("ESTABLISHED", 1),
            ("SYN_SENT", 2),
            ("SYN_RECV", 3),
            ("FIN_WAIT1", 4),
            ("FIN_WAIT2", 5),
            ("TIME_WAIT", 6),
            ("CLOSE", 7),
            ("CLOSE_WAIT", 8),
            ("LAST_ACK", 9),
            ("LISTEN", 10),
        ],
        ("sk", "proto") => &[("IP", 0), ("TCP", 6), ("UDP", 17), ("UDPLITE", 136)],
        _ => &[],
    }
}
