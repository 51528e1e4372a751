//! Maps of the bpf machine (bpf(2)): what they are, their content, and making them again.
//!
//! A map is found by a descriptor or, with CAP_SYS_ADMIN, by its number. Contents are read and
//! written in batches where the kind has them (Linux 5.6), else key by key. A value of a per-CPU
//! kind is as many values as there are possible processors, each padded to 8 bytes. Numbers of
//! commands and layouts are those of include/uapi/linux/bpf.h.

use crate::pid::HostPid;
use nix::errno::Errno;
use nix::libc;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Kinds of maps: `BPF_MAP_TYPE_*`.
pub mod kind {
    pub const HASH: u32 = 1;
    pub const ARRAY: u32 = 2;
    pub const PERCPU_HASH: u32 = 5;
    pub const PERCPU_ARRAY: u32 = 6;
    pub const LRU_HASH: u32 = 9;
    pub const LRU_PERCPU_HASH: u32 = 10;
    pub const LPM_TRIE: u32 = 11;
    pub const QUEUE: u32 = 22;
    pub const STACK: u32 = 23;
    pub const RINGBUF: u32 = 27;
}

/// Names of all kinds, by number.
pub const KINDS: [&str; 35] = [
    "unspec",
    "hash",
    "array",
    "prog_array",
    "perf_event_array",
    "percpu_hash",
    "percpu_array",
    "stack_trace",
    "cgroup_array",
    "lru_hash",
    "lru_percpu_hash",
    "lpm_trie",
    "array_of_maps",
    "hash_of_maps",
    "devmap",
    "sockmap",
    "cpumap",
    "xskmap",
    "sockhash",
    "cgroup_storage",
    "reuseport_sockarray",
    "percpu_cgroup_storage",
    "queue",
    "stack",
    "sk_storage",
    "devmap_hash",
    "struct_ops",
    "ringbuf",
    "inode_storage",
    "task_storage",
    "bloom_filter",
    "user_ringbuf",
    "cgrp_storage",
    "arena",
    "insn_array",
];

/// Flags of a map that stay with it: `BPF_F_*`.
pub mod flag {
    pub const NUMA_NODE: u32 = 1 << 2;
    /// Of a descriptor, not of the map.
    pub const RDONLY: u32 = 1 << 3;
    /// Of a descriptor, not of the map.
    pub const WRONLY: u32 = 1 << 4;
    /// It can be mapped into memory.
    pub const MMAPABLE: u32 = 1 << 10;
}

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_GET_NEXT_KEY: u32 = 4;
const PROG_GET_NEXT_ID: u32 = 11;
const PROG_GET_FD_BY_ID: u32 = 13;
const MAP_GET_FD_BY_ID: u32 = 14;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const MAP_FREEZE: u32 = 22;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;

/// Page size of the only architecture we know.
const PAGE: u64 = 4096;
/// BPF_OBJ_NAME_LEN.
pub const LONGEST_NAME: usize = 16;
/// Bytes of keys and values that one batch holds.
const BATCH: usize = 1 << 20;
/// Maps that one program uses, generously; the kernel allows 64.
const MAPS_OF_PROGRAM: usize = 256;

/// The part of union bpf_attr that is used here; the kernel takes what is behind as zeros.
#[repr(C, align(8))]
pub(crate) struct Attr([u32; 18]);

impl Attr {
    pub(crate) fn new() -> Attr {
        Attr([0; 18])
    }

    /// `at` counts words.
    pub(crate) fn word(mut self, at: usize, value: u32) -> Attr {
        if let Some(place) = self.0.get_mut(at) {
            *place = value;
        }
        self
    }

    pub(crate) fn long(self, at: usize, value: u64) -> Attr {
        let [a, b, c, d, e, f, g, h] = value.to_ne_bytes();
        self.word(at, u32::from_ne_bytes([a, b, c, d]))
            .word(at + 1, u32::from_ne_bytes([e, f, g, h]))
    }
}

/// # Safety
/// Addresses in `attr` are those of buffers as long as the command takes them to be.
pub(crate) unsafe fn bpf(command: u32, attr: &mut Attr) -> nix::Result<libc::c_long> {
    let len = size_of::<Attr>();
    // SAFETY: attr lives here; what it points to is the caller's promise.
    let got = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), len) };
    Errno::result(got)
}

/// For commands that give a descriptor and take no address.
fn descriptor_of(command: u32, mut attr: Attr) -> nix::Result<OwnedFd> {
    // SAFETY: such commands have no addresses in their attributes.
    let fd = unsafe { bpf(command, &mut attr) }?;
    // SAFETY: the kernel just gave us this descriptor, which no other code knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// What a map is (the first fields of struct bpf_map_info).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    /// [`kind`].
    pub kind: u32,
    /// Number of the map until the next boot.
    pub id: u32,
    /// Bytes of a key; 0 where there are none.
    pub key_size: u32,
    /// Bytes of a value, on one processor.
    pub value_size: u32,
    /// How many there may be.
    pub max_entries: u32,
    /// BPF_F_* that stay with the map.
    pub flags: u32,
    /// Without its zeros.
    pub name: Vec<u8>,
    /// The device that has it in its hardware.
    pub ifindex: u32,
    /// Type information it was made with.
    pub btf_id: u32,
    /// What its kind needs besides.
    pub extra: u64,
}

/// Asks for it.
pub fn map_info(map: BorrowedFd<'_>) -> nix::Result<MapInfo> {
    // Six words, the name, four words, two longs less, four ids, a long.
    let mut info = [0u32; 22];
    let attr = Attr::new()
        .word(0, map.as_raw_fd() as u32)
        .word(1, size_of_val(&info) as u32)
        .long(2, info.as_mut_ptr() as u64);
    // SAFETY: the address is that of info, as long as said, which outlives the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut { attr }) }?;
    let [kind, id, key_size, value_size, max_entries, flags, ..] = info;
    let name = info[6..10].iter().flat_map(|word| word.to_ne_bytes());
    Ok(MapInfo {
        kind,
        id,
        key_size,
        value_size,
        max_entries,
        flags,
        name: name.take_while(|byte| *byte != 0).collect(),
        ifindex: info[10],
        btf_id: info[16],
        extra: u64::from(info[20]) | u64::from(info[21]) << 32,
    })
}

/// Makes an empty map; `id`, `ifindex` and `btf_id` are ignored.
pub fn create_map(info: &MapInfo) -> nix::Result<OwnedFd> {
    let mut name = [0u8; LONGEST_NAME];
    for (place, byte) in name.iter_mut().zip(&info.name).take(LONGEST_NAME - 1) {
        *place = *byte;
    }
    let mut attr = Attr::new()
        .word(0, info.kind)
        .word(1, info.key_size)
        .word(2, info.value_size)
        .word(3, info.max_entries)
        .word(4, info.flags)
        .long(16, info.extra);
    for (word, bytes) in name.as_chunks::<4>().0.iter().enumerate() {
        attr = attr.word(7 + word, u32::from_ne_bytes(*bytes));
    }
    descriptor_of(MAP_CREATE, attr)
}

/// Another descriptor of a map; `flags` are 0, [`flag::RDONLY`] or [`flag::WRONLY`]. Needs
/// CAP_SYS_ADMIN.
pub fn map_by_id(id: u32, flags: u32) -> nix::Result<OwnedFd> {
    descriptor_of(MAP_GET_FD_BY_ID, Attr::new().word(0, id).word(2, flags))
}

/// From now on no system call changes the content.
pub fn freeze_map(map: BorrowedFd<'_>) -> nix::Result<()> {
    let mut attr = Attr::new().word(0, map.as_raw_fd() as u32);
    // SAFETY: there is no address.
    unsafe { bpf(MAP_FREEZE, &mut attr) }.map(drop)
}

/// Whether the page at `offset` of a map is what a task has mapped at `address`: both are one page
/// frame, which /proc/PID/pagemap tells (CAP_SYS_ADMIN; EPERM without).
pub fn is_mapped_at(
    map: BorrowedFd<'_>,
    offset: u64,
    pid: HostPid,
    address: u64,
) -> nix::Result<bool> {
    let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
    let at = std::ptr::null_mut();
    let fd = map.as_raw_fd();
    // SAFETY: a new mapping of one page where the kernel likes; nobody reads it.
    let own = unsafe { libc::mmap(at, PAGE as usize, prot, flags, fd, offset as i64) };
    if own == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let frames = (|| {
        let own = frame_at(HostPid::current(), own as u64)?;
        Ok((own, frame_at(pid, address)?))
    })();
    // SAFETY: the mapping is ours, of this length, and nothing refers to it.
    unsafe { libc::munmap(own, PAGE as usize) };
    match frames? {
        (0, _) => Err(Errno::EPERM),
        (own, theirs) => Ok(own == theirs),
    }
}

/// The page frame at an address, bits 0 to 54 (Documentation/admin-guide/mm/pagemap.rst).
fn frame_at(pid: HostPid, address: u64) -> nix::Result<u64> {
    let mut entry = [0; 8];
    let failed = |error: std::io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(failed)?;
    let at = address / PAGE * 8;
    pagemap.read_exact_at(&mut entry, at).map_err(failed)?;
    Ok(u64::from_ne_bytes(entry) & ((1 << 55) - 1))
}

/// The numbers of the maps that loaded programs use, each with the name and number of one.
/// Needs CAP_SYS_ADMIN.
pub fn maps_of_programs() -> nix::Result<BTreeMap<u32, (String, u32)>> {
    let mut used = BTreeMap::new();
    let mut last = 0;
    loop {
        let mut attr = Attr::new().word(0, last);
        // SAFETY: there is no address.
        match unsafe { bpf(PROG_GET_NEXT_ID, &mut attr) } {
            Ok(_) => last = attr.0[1],
            Err(Errno::ENOENT) => return Ok(used),
            Err(errno) => return Err(errno),
        }
        // It may be unloaded by now.
        let Ok(program) = descriptor_of(PROG_GET_FD_BY_ID, Attr::new().word(0, last)) else {
            continue;
        };
        let (name, maps) = program_info(&program)?;
        used.extend(maps.into_iter().map(|map| (map, (name.clone(), last))));
    }
}

/// The name of a program and its maps (struct bpf_prog_info).
fn program_info(program: &OwnedFd) -> nix::Result<(String, Vec<u32>)> {
    let mut maps = [0u32; MAPS_OF_PROGRAM];
    let mut info = Attr::new();
    let mut info_words = [0u32; 20];
    info_words[13] = maps.len() as u32;
    let address = (maps.as_mut_ptr() as u64).to_ne_bytes();
    let (halves, _) = address.as_chunks::<4>();
    for (place, half) in info_words[14..16].iter_mut().zip(halves) {
        *place = u32::from_ne_bytes(*half);
    }
    info = info
        .word(0, program.as_raw_fd() as u32)
        .word(1, size_of_val(&info_words) as u32)
        .long(2, info_words.as_mut_ptr() as u64);
    // SAFETY: the address is that of info_words, as long as said; in it that of maps, with its
    // length. Both outlive the call.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut info) }?;
    let count = (info_words[13] as usize).min(maps.len());
    let name = info_words[16..20]
        .iter()
        .flat_map(|word| word.to_ne_bytes());
    let name: Vec<u8> = name.take_while(|byte| *byte != 0).collect();
    let maps = maps.get(..count).unwrap_or_default().to_vec();
    Ok((String::from_utf8_lossy(&name).into_owned(), maps))
}

/// Bytes that one value takes: more than `value_size` for a per-CPU kind.
pub fn stride(info: &MapInfo, processors: u32) -> usize {
    let size = info.value_size as usize;
    let per_cpu = [kind::PERCPU_HASH, kind::PERCPU_ARRAY, kind::LRU_PERCPU_HASH];
    match per_cpu.contains(&info.kind) {
        true => size.next_multiple_of(8).saturating_mul(processors as usize),
        false => size,
    }
}

/// Processors there may ever be, which is how many values a per-CPU map has for a key
/// (/sys/devices/system/cpu/possible; Documentation/admin-guide/cputopology.rst).
pub fn possible_processors() -> std::io::Result<u32> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    let counts: Option<Vec<u32>> = text.trim().split(',').map(count).collect();
    counts
        .map(|counts| counts.iter().sum())
        .ok_or_else(|| std::io::Error::other(format!("possible processors are {text:?}")))
}

/// Keys and values, back to back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Of `key_size` bytes each.
    pub keys: Vec<u8>,
    /// Of [`stride`] bytes each.
    pub values: Vec<u8>,
    /// How many of each.
    pub count: u32,
}

/// Reads everything in a map that has keys. The descriptor must be open for reading.
pub fn read_map(map: BorrowedFd<'_>, info: &MapInfo, processors: u32) -> nix::Result<Content> {
    match read_batches(map, info, processors) {
        // ENOTSUPP of the kernel has no name here, and kernels without batches say EINVAL.
        Err(_) => read_one_by_one(map, info, processors),
        read => read,
    }
}

fn read_batches(map: BorrowedFd<'_>, info: &MapInfo, processors: u32) -> nix::Result<Content> {
    let (key, value) = (info.key_size as usize, stride(info, processors));
    let mut room = (BATCH / (key + value).max(1)).clamp(1, info.max_entries.max(1) as usize);
    let mut content = Content::default();
    // A position in the map: a key, or the number of a bucket.
    let mut position = vec![0u8; key.max(8)];
    let mut begun = false;
    loop {
        let at = content.keys.len();
        content.keys.resize(at + room * key, 0);
        content
            .values
            .resize(content.count as usize * value + room * value, 0);
        let keys = content.keys.get_mut(at..).unwrap_or_default();
        let values = content.values.get_mut(content.count as usize * value..);
        let values = values.unwrap_or_default();
        let mut next = vec![0u8; position.len()];
        let before = if begun { position.as_ptr() as u64 } else { 0 };
        let mut attr = Attr::new()
            .long(0, before)
            .long(2, next.as_mut_ptr() as u64)
            .long(4, keys.as_mut_ptr() as u64)
            .long(6, values.as_mut_ptr() as u64)
            .word(8, room as u32)
            .word(9, map.as_raw_fd() as u32);
        // SAFETY: keys and values have room for as many as said; a position is a key or a word,
        // for which both buffers are large enough. All outlive the call.
        let got = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) };
        let found = match got {
            Ok(_) | Err(Errno::ENOENT) => attr.0[8],
            // A bucket holds more.
            Err(Errno::ENOSPC) => 0,
            Err(errno) => return Err(errno),
        };
        content.count += found;
        content.keys.truncate(content.count as usize * key);
        content.values.truncate(content.count as usize * value);
        match got {
            Err(Errno::ENOENT) => return Ok(content),
            Err(_) => room = room.saturating_mul(2),
            Ok(_) => (position, begun) = (next, true),
        }
        // More than there can be: it changes while it is read.
        if content.count > info.max_entries || room > 1 << 30 {
            return Err(Errno::EAGAIN);
        }
    }
}

fn read_one_by_one(map: BorrowedFd<'_>, info: &MapInfo, processors: u32) -> nix::Result<Content> {
    let mut content = Content::default();
    let mut key: Option<Vec<u8>> = None;
    let mut value = vec![0u8; stride(info, processors)];
    loop {
        let mut next = vec![0u8; info.key_size as usize];
        let before = key.as_ref().map_or(0, |key| key.as_ptr() as u64);
        let mut attr = element(map, before, next.as_mut_ptr() as u64);
        // SAFETY: both addresses are none or those of a key's length, and outlive the call.
        match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(_) => {}
            Err(Errno::ENOENT) => return Ok(content),
            Err(errno) => return Err(errno),
        }
        let mut attr = element(map, next.as_ptr() as u64, value.as_mut_ptr() as u64);
        // SAFETY: the addresses are those of a key and of a value with all its processors.
        match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => {
                content.keys.extend(&next);
                content.values.extend(&value);
                content.count += 1;
            }
            // Gone since.
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        if content.count > info.max_entries {
            return Err(Errno::EAGAIN);
        }
        key = Some(next);
    }
}

fn element(map: BorrowedFd<'_>, key: u64, value: u64) -> Attr {
    let attr = Attr::new().word(0, map.as_raw_fd() as u32);
    attr.long(2, key).long(4, value)
}

/// Whether a queue or stack has nothing in it.
pub fn is_empty_queue(map: BorrowedFd<'_>, info: &MapInfo) -> nix::Result<bool> {
    let mut value = vec![0u8; info.value_size as usize];
    let mut attr = element(map, 0, value.as_mut_ptr() as u64);
    // SAFETY: a queue has no keys; the address is that of a value, which outlives the call.
    match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
        Ok(_) => Ok(false),
        Err(Errno::ENOENT) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Puts keys with their values into a map. EINVAL if they are not as long as the map says.
pub fn fill_map(
    map: BorrowedFd<'_>,
    info: &MapInfo,
    keys: &[u8],
    values: &[u8],
    processors: u32,
) -> nix::Result<()> {
    let (key, value) = (info.key_size as usize, stride(info, processors));
    if key == 0 || value == 0 || keys.len() / key != values.len() / value {
        return Err(Errno::EINVAL);
    }
    if !keys.len().is_multiple_of(key) || !values.len().is_multiple_of(value) {
        return Err(Errno::EINVAL);
    }
    let at_once = (BATCH / (key + value)).max(1);
    for (keys, values) in keys
        .chunks(at_once * key)
        .zip(values.chunks(at_once * value))
    {
        let mut attr = Attr::new()
            .long(4, keys.as_ptr() as u64)
            .long(6, values.as_ptr() as u64)
            .word(8, (keys.len() / key) as u32)
            .word(9, map.as_raw_fd() as u32);
        // SAFETY: there are as many keys and values as said, which is checked above; the kernel
        // only reads them.
        if unsafe { bpf(MAP_UPDATE_BATCH, &mut attr) }.is_ok() {
            continue;
        }
        for (key, value) in keys.chunks(key).zip(values.chunks(value)) {
            let mut attr = element(map, key.as_ptr() as u64, value.as_ptr() as u64);
            // SAFETY: a key and a value of the map's sizes, only read.
            unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn wanted(kind: u32, max_entries: u32) -> MapInfo {
        MapInfo {
            kind,
            key_size: 4,
            value_size: 12,
            max_entries,
            name: b"crust_test".to_vec(),
            ..MapInfo::default()
        }
    }

    /// `None`, with a note, where maps cannot be made.
    fn made(info: &MapInfo) -> Option<OwnedFd> {
        match create_map(info) {
            Ok(map) => Some(map),
            Err(errno @ (Errno::EPERM | Errno::ENOSYS)) => {
                eprintln!("SKIPPED: no bpf maps here: {errno}");
                None
            }
            Err(errno) => panic!("{errno}"),
        }
    }

    /// Batches and single keys tell the same, also across several batches, and what was read fills
    /// another map.
    #[test]
    fn what_is_written_is_read() {
        let processors = possible_processors().expect("sysfs");
        for kind in [
            kind::HASH,
            kind::ARRAY,
            kind::PERCPU_HASH,
            kind::PERCPU_ARRAY,
        ] {
            let wanted = wanted(kind, 70_000);
            let Some(map) = made(&wanted) else { return };
            let info = map_info(map.as_fd()).expect("its own map");
            assert_eq!((info.kind, &info.name), (kind, &wanted.name));
            let keys: Vec<u8> = (0..70_000u32).flat_map(u32::to_ne_bytes).collect();
            let len = stride(&info, processors) * 70_000;
            // What pads a value is not kept.
            let pads = |at: usize| stride(&info, processors) > 12 && at % 16 >= 12;
            let values: Vec<u8> = (0..len)
                .map(|at| if pads(at) { 0 } else { at as u8 })
                .collect();
            fill_map(map.as_fd(), &info, &keys, &values, processors).expect("filled");
            let batches = read_batches(map.as_fd(), &info, processors).expect("batches");
            let single = read_one_by_one(map.as_fd(), &info, processors).expect("keys");
            assert_eq!(batches.count, 70_000);
            assert!(batches == single, "kind {kind}");
            let mut pairs: Vec<(&[u8], &[u8])> = batches
                .keys
                .chunks(4)
                .zip(batches.values.chunks(len / 70_000))
                .collect();
            pairs.sort_by_key(|(key, _)| u32::from_ne_bytes([key[0], key[1], key[2], key[3]]));
            assert!(
                pairs.iter().flat_map(|(_, value)| *value).eq(&values),
                "kind {kind}"
            );
        }
    }

    #[test]
    fn a_queue_tells_whether_it_is_empty_and_a_frozen_map_is() {
        let queue = MapInfo {
            key_size: 0,
            ..wanted(kind::QUEUE, 4)
        };
        let Some(map) = made(&queue) else { return };
        assert_eq!(is_empty_queue(map.as_fd(), &queue), Ok(true));
        let mut attr = element(map.as_fd(), 0, [7u8; 12].as_ptr() as u64);
        // SAFETY: a value of 12 bytes, only read.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.expect("pushed");
        assert_eq!(is_empty_queue(map.as_fd(), &queue), Ok(false));
        let hash = wanted(kind::HASH, 4);
        let Some(map) = made(&hash) else { return };
        let other = map_by_id(map_info(map.as_fd()).expect("info").id, flag::RDONLY).expect("root");
        freeze_map(map.as_fd()).expect("frozen");
        let fill = |map: &OwnedFd| fill_map(map.as_fd(), &hash, &[1; 4], &[1; 12], 1);
        assert_eq!(
            (fill(&map), fill(&other)),
            (Err(Errno::EPERM), Err(Errno::EPERM))
        );
        assert_eq!(
            fill_map(map.as_fd(), &hash, &[1; 3], &[], 1),
            Err(Errno::EINVAL)
        );
    }

    #[test]
    fn programs_tell_their_maps() {
        match maps_of_programs() {
            Ok(_) => {}
            Err(errno) => eprintln!("SKIPPED: {errno}"),
        }
        assert!(possible_processors().expect("sysfs") > 0);
    }
}
