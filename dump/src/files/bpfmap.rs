//! Maps of the bpf machine (bpf(2)): kind, sizes, flags, name, whether frozen, and the content.
//!
//! Several descriptions may be of one map, told by its number; each has an access mode of its own.
//! The content goes to bpfmap-data.img: keys, then values, those of a per-CPU kind with a value
//! for each possible processor. Carried are the kinds whose content is plain data; a queue, a stack
//! or a ring buffer cannot be read without taking from it, so only an empty one is. Refused are
//! kinds that hold objects of the kernel, maps with type information, of which images have no
//! field, and maps that a loaded program uses: it would go on with the old one. A map that is
//! pinned or open outside the tree cannot be told from others and comes back as a copy.

use super::write::Source;
use super::{FileTable, OpenFile, Problem, RoomResult, file_entry};
use crate::context::{Context, Task};
use anyhow::{Context as _, Result, anyhow};
use crust_image::ids::FileId;
use crust_image::kind::Kind;
use crust_image::payload::{BpfMapData, PayloadEntry};
use crust_image::sink::ImageSink;
use crust_process::bpf::{self, KINDS, MapInfo, flag, kind};
use crust_process::descriptor::poll_state;
use crust_proto::criu::{BpfmapDataEntry, BpfmapFileEntry, FdTypes, FileEntry};
use nix::errno::Errno;
use nix::libc;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

/// The maps of a dump.
#[derive(Debug, Default)]
pub struct Maps {
    /// By their number.
    found: BTreeMap<u32, Found>,
    /// Maps that programs use, with the name and number of one; asked for once.
    used: Option<BTreeMap<u32, (String, u32)>>,
}

#[derive(Debug)]
struct Found {
    /// The first description of it.
    id: FileId,
    source: Source,
    /// F_GETFL of that source.
    flags: u32,
    info: MapInfo,
}

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let info = bpf::map_info(file.fd).context("BPF_OBJ_GET_INFO_BY_FD")?;
    refuse_unsupported(table, file, &info)?;
    let facts = file.fdinfo()?;
    let told = |name: &str| number_of(&facts.other, name);
    let entry = BpfmapFileEntry {
        id: id.0,
        flags: file.flags,
        pos: file.pos,
        fown: file.fown(ctx)?,
        map_type: info.kind,
        key_size: info.key_size,
        value_size: info.value_size,
        map_id: info.id,
        max_entries: info.max_entries,
        map_flags: info.flags,
        memlock: told("memlock").context("fdinfo tells no memlock")?,
        frozen: told("frozen").context("fdinfo tells no frozen")? != 0,
        map_name: info.name.clone(),
        ifindex: 0,
        mnt_id: None,
        map_extra: Some(info.extra),
    };
    table.bpf_maps.found.entry(info.id).or_insert(Found {
        id,
        source: Source::of(file),
        flags: file.flags,
        info,
    });
    Ok(FileEntry {
        bpf: Some(Box::new(entry)),
        ..file_entry(FdTypes::Bpfmap, id)
    })
}

fn refuse_unsupported(table: &mut FileTable, file: &OpenFile, info: &MapInfo) -> RoomResult<()> {
    let is = |why: &str| Err(Problem::refused(format!("is {}; {why}", shown(info))));
    match info.kind {
        kind::HASH
        | kind::ARRAY
        | kind::PERCPU_HASH
        | kind::PERCPU_ARRAY
        | kind::LRU_HASH
        | kind::LRU_PERCPU_HASH
        | kind::LPM_TRIE => {}
        kind::QUEUE | kind::STACK => {
            let map = readable(file.fd.try_clone_to_owned(), file.flags, info)?;
            if !bpf::is_empty_queue(map.as_fd(), info).context("BPF_MAP_LOOKUP_ELEM")? {
                return is("what waits in it cannot be read without taking it");
            }
        }
        kind::RINGBUF => {
            if poll_state(file.fd).context("poll")?.readable {
                return is("what waits in it cannot be read without taking it");
            }
        }
        _ => return is("it holds objects of the kernel"),
    }
    if info.ifindex != 0 {
        return is("it is in the hardware of a network device");
    }
    if info.btf_id != 0 {
        return is("it has type information (BTF), for which images have no field");
    }
    if info.flags & flag::NUMA_NODE != 0 {
        return is("it is bound to a node of memory, which the kernel does not tell");
    }
    // Without CAP_SYS_ADMIN nobody but its owner can have given it to a program.
    let used = &mut table.bpf_maps.used;
    let used = used.get_or_insert_with(|| bpf::maps_of_programs().unwrap_or_default());
    match used.get(&info.id) {
        Some((name, number)) => is(&format!("bpf program {number} ({name}) uses it")),
        None => Ok(()),
    }
}

/// A program, a link or the like: what fdinfo tells of it, for its user to find it by.
pub fn refuse_object(file: &OpenFile, name: &str) -> RoomResult<Problem> {
    let lines = file.fdinfo()?.other.into_iter();
    let told = lines.map(|line| String::from_utf8_lossy(&line).replace(":\t", " "));
    let told: Vec<String> = told.collect();
    Ok(Problem::refused(format!(
        "is a bpf {name} ({})",
        told.join(", ")
    )))
}

/// `a bpf map of kind hash (my_map)`.
fn shown(info: &MapInfo) -> String {
    let kind = KINDS.get(info.kind as usize).copied().unwrap_or("unknown");
    let name = String::from_utf8_lossy(&info.name);
    format!("a bpf map of kind {kind} ({name})")
}

/// The value of a line `name:<tab>number`.
fn number_of(lines: &[Vec<u8>], name: &str) -> Option<u64> {
    lines.iter().find_map(|line| {
        let line = std::str::from_utf8(line).ok()?;
        let value = line.strip_prefix(name)?.strip_prefix(':')?;
        value.trim().parse().ok()
    })
}

/// A description that can be read.
fn readable(own: std::io::Result<OwnedFd>, flags: u32, info: &MapInfo) -> anyhow::Result<OwnedFd> {
    match flags as i32 & libc::O_ACCMODE {
        libc::O_WRONLY => bpf::map_by_id(info.id, flag::RDONLY)
            .with_context(|| format!("BPF_MAP_GET_FD_BY_ID of {}", info.id)),
        _ => own.context("dup"),
    }
}

impl FileTable {
    /// The file of the map that is mapped here, or why it cannot be. All maps look alike in maps;
    /// whose the memory is tells the number of its first page frame.
    pub fn mapped_bpf_map(
        &self,
        ctx: &Context,
        task: &Task,
        range: &Range<u64>,
        offset: u64,
    ) -> Result<FileId, String> {
        let maps = self.bpf_maps.found.values();
        for found in maps.filter(|found| found.info.flags & flag::MMAPABLE != 0) {
            let own = found.source.open(ctx, self);
            let map = own.and_then(|own| readable(Ok(own), found.flags, &found.info));
            let map = map.map_err(|error| format!("{error:#}"))?;
            match bpf::is_mapped_at(map.as_fd(), offset, task.pid, range.start) {
                Ok(true) => return Ok(found.id),
                // It is smaller.
                Ok(false) | Err(Errno::EINVAL) => {}
                Err(errno) => return Err(format!("find out which bpf map it maps: {errno}")),
            }
        }
        Err("maps a bpf map of which the task has no descriptor".to_owned())
    }
}

/// Writes bpfmap-data.img: the content of each map that has any.
pub fn write(ctx: &Context, table: &FileTable, sink: &dyn ImageSink) -> Result<()> {
    let maps = table.bpf_maps.found.values();
    let mut maps = maps.filter(|found| found.info.key_size > 0).peekable();
    if maps.peek().is_none() {
        return Ok(());
    }
    let processors = bpf::possible_processors().context("count the processors")?;
    let mut writer = sink.create(Kind::BpfmapData, None)?;
    for found in maps {
        let doing = || format!("{} (number {})", shown(&found.info), found.info.id);
        let data = collect(ctx, table, found, processors).with_context(doing)?;
        data.write(&mut writer).with_context(doing)?;
    }
    writer.finish()?;
    Ok(())
}

fn collect(ctx: &Context, table: &FileTable, found: &Found, processors: u32) -> Result<BpfMapData> {
    let own = found.source.open(ctx, table)?;
    let map = readable(Ok(own), found.flags, &found.info)?;
    let content = bpf::read_map(map.as_fd(), &found.info, processors)
        .map_err(|errno| anyhow!("read its content: {errno}"))?;
    Ok(BpfMapData {
        entry: BpfmapDataEntry {
            map_id: found.info.id,
            keys_bytes: 0,
            values_bytes: 0,
            count: content.count,
        },
        keys: content.keys,
        values: content.values,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_fdinfo_are_found() {
        let lines = ["map_type:\t1", "memlock:\t4096", "map_id:\t7", "frozen:\t1"];
        let lines = lines.map(|line| line.as_bytes().to_vec());
        assert_eq!(number_of(&lines, "memlock"), Some(4096));
        assert_eq!(number_of(&lines, "frozen"), Some(1));
        assert_eq!(number_of(&lines, "map"), None);
    }

    #[test]
    fn maps_are_shown_by_kind_and_name() {
        let mut info = MapInfo {
            kind: 13,
            name: b"inner".to_vec(),
            ..MapInfo::default()
        };
        assert_eq!(shown(&info), "a bpf map of kind hash_of_maps (inner)");
        info.kind = 99;
        assert_eq!(shown(&info), "a bpf map of kind unknown (inner)");
    }
}
