//! The typed side against images CRIU 4.2 wrote: every entry of every image parses, encodes to the
//! very bytes, and every whole set loads. The part of the corpus in tests/data is always there; a
//! full one is taken from CRUST_CORPUS, or from where it lies beside the checkout, when present.

use crust_image::{
    Error, ImageDir, Kind,
    check::check_dir,
    checkpoint::Checkpoint,
    entry::{ImageReader, ImageWriter, Version},
    kind::{Framing, Payload},
    pages::DumpChain,
    payload::{
        BpfMapData, IpcMsgQueue, IpcSem, IpcShm, PayloadEntry, PipeData, SkPacket, TcpStream,
    },
};
use crust_proto::criu::*;
use prost::Message;
use std::{
    env, fs,
    io::Read,
    path::{Path, PathBuf},
};

type Reader<'a> = ImageReader<&'a [u8]>;
type Writer = ImageWriter<Vec<u8>>;

fn copy<M: Message + Default>(reader: &mut Reader<'_>, writer: &mut Writer) -> Result<(), Error> {
    while let Some(entry) = reader.next_entry::<M>()? {
        writer.entry(&entry)?;
    }
    Ok(())
}

fn copy_payloads<T: PayloadEntry>(
    reader: &mut Reader<'_>,
    writer: &mut Writer,
) -> Result<(), Error> {
    while let Some(entry) = T::read(reader)? {
        entry.write(writer)?;
    }
    Ok(())
}

fn copy_ghost(reader: &mut Reader<'_>, writer: &mut Writer) -> Result<(), Error> {
    let Some(entry) = reader.next_entry::<GhostFileEntry>()? else {
        return Ok(());
    };
    writer.entry(&entry)?;
    if entry.chunks != Some(true) {
        return reader
            .stream_rest(|piece| writer.payload(piece))
            .map(|_| ());
    }
    while let Some(chunk) = reader.next_entry::<GhostChunkEntry>()? {
        writer.entry(&chunk)?;
        reader.stream_payload(chunk.len, |piece| writer.payload(piece))?;
    }
    Ok(())
}

fn copy_pagemap(reader: &mut Reader<'_>, writer: &mut Writer) -> Result<(), Error> {
    if let Some(head) = reader.next_entry::<PagemapHead>()? {
        writer.entry(&head)?;
    }
    copy::<PagemapEntry>(reader, writer)
}

macro_rules! copy_by_name {
    ($name:expr, $reader:expr, $writer:expr, $($message:literal => $type:ty,)*) => {
        match $name {
            $(Some($message) => copy::<$type>($reader, $writer),)*
            other => panic!("no typed message for {other:?}"),
        }
    };
}

/// Reads `bytes` by type and writes them again.
fn reencode(kind: Kind, bytes: &[u8], version: Version) -> Result<Vec<u8>, Error> {
    let len = Some(bytes.len() as u64);
    let mut reader = ImageReader::new(bytes, kind.to_string(), kind, version, len)?;
    let mut writer = ImageWriter::with_version(Vec::new(), kind.to_string(), kind, version)?;
    let (from, to) = (&mut reader, &mut writer);
    match kind.spec().payload {
        Payload::PipeData => copy_payloads::<PipeData>(from, to)?,
        Payload::SkPacket => copy_payloads::<SkPacket>(from, to)?,
        Payload::TcpStream => copy_payloads::<TcpStream>(from, to)?,
        Payload::GhostFile => copy_ghost(from, to)?,
        Payload::BpfmapData => copy_payloads::<BpfMapData>(from, to)?,
        Payload::IpcSem => copy_payloads::<IpcSem>(from, to)?,
        Payload::IpcMsg => copy_payloads::<IpcMsgQueue>(from, to)?,
        Payload::IpcShm => copy_payloads::<IpcShm>(from, to)?,
        Payload::None if kind.spec().further_message.is_some() => copy_pagemap(from, to)?,
        Payload::None => copy_plain(kind, from, to)?,
    }
    writer.finish()
}

fn copy_plain(kind: Kind, reader: &mut Reader<'_>, writer: &mut Writer) -> Result<(), Error> {
    copy_by_name!(kind.spec().entry_message, reader, writer,
        "inventory_entry" => InventoryEntry,
        "pstree_entry" => PstreeEntry,
        "core_entry" => CoreEntry,
        "task_kobj_ids_entry" => TaskKobjIdsEntry,
        "mm_entry" => MmEntry,
        "fs_entry" => FsEntry,
        "fdinfo_entry" => FdinfoEntry,
        "file_entry" => FileEntry,
        "remap_file_path_entry" => RemapFilePathEntry,
        "tty_info_entry" => TtyInfoEntry,
        "tty_data_entry" => TtyDataEntry,
        "file_lock_entry" => FileLockEntry,
        "cgroup_entry" => CgroupEntry,
        "seccomp_entry" => SeccompEntry,
        "memfd_inode_entry" => MemfdInodeEntry,
        "utsns_entry" => UtsnsEntry,
        "ipc_var_entry" => IpcVarEntry,
        "mnt_entry" => MntEntry,
        "userns_entry" => UsernsEntry,
        "timens_entry" => TimensEntry,
        "netns_entry" => NetnsEntry,
        "net_device_entry" => NetDeviceEntry,
        "cpuinfo_entry" => CpuinfoEntry,
        "stats_entry" => StatsEntry,
        "irmap_cache_entry" => IrmapCacheEntry,
        "autofs_entry" => AutofsEntry,
        "binfmt_misc_entry" => BinfmtMiscEntry,
    )
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every directory of the corpus in tests/data that holds images.
fn own_dirs() -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    find_dirs(&here().join("../../tests/data/corpus"), &mut dirs);
    assert!(!dirs.is_empty(), "tests/data/corpus holds images");
    dirs
}

/// The same with those of the full corpus, when there is one.
fn image_dirs() -> Vec<PathBuf> {
    let full = env::var_os("CRUST_CORPUS")
        .map_or_else(|| here().join("../../../shared/corpus"), PathBuf::from);
    let mut dirs = own_dirs();
    find_dirs(&full, &mut dirs);
    dirs
}

/// A copy without symlinks has a file where the way to the parent was; its chain is lost.
fn lost_its_parent(path: &Path) -> bool {
    path.join("parent").is_file()
}

fn find_dirs(at: &Path, dirs: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(at) else {
        return;
    };
    if at.join("inventory.img").exists() {
        dirs.push(at.to_owned());
    }
    for entry in entries.flatten() {
        // Not through the `parent` links.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find_dirs(&entry.path(), dirs);
        }
    }
}

fn read_image(dir: &ImageDir, kind: Kind, id: Option<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut file = dir.open_file(kind, id).unwrap().expect("listed");
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn every_typed_image_encodes_to_its_own_bytes() {
    for path in image_dirs() {
        let dir = ImageDir::open(&path).unwrap();
        for (kind, id) in dir.list().unwrap() {
            if kind.spec().framing == Framing::Raw {
                continue;
            }
            let version = match kind.spec().framing {
                // crit makes them anew, so that they are v1.1 beside a dump in v1.0.
                Framing::Service => Version::V1_1,
                _ => dir.version().unwrap(),
            };
            let bytes = read_image(&dir, kind, id);
            let again = reencode(kind, &bytes, version)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let name = kind.file_name(id);
            assert!(
                again == bytes,
                "{}/{name} came back different",
                path.display()
            );
        }
    }
}

#[test]
fn every_set_loads() {
    for path in image_dirs() {
        if lost_its_parent(&path) {
            continue;
        }
        let dir = ImageDir::open(&path).unwrap();
        let is_pre_dump = dir.open_file(Kind::Pstree, None).unwrap().is_none();
        let loaded = Checkpoint::load(&dir);
        if is_pre_dump {
            assert!(matches!(loaded, Err(Error::Missing { .. })));
            continue;
        }
        let checkpoint = loaded.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(checkpoint.tasks().count() > 0);
        for task in checkpoint.tasks() {
            assert!(task.core.is_some() && task.state().is_some());
            assert_eq!(task.mm.is_none(), task.is_dead(), "{}", path.display());
            assert_eq!(
                checkpoint.task_pages(task.pid).unwrap().is_empty(),
                task.is_dead()
            );
        }
        assert!(checkpoint.shmem_pages.values().all(Result::is_ok));
        assert!(checkpoint.fdinfo.values().flatten().all(|fd| {
            checkpoint
                .file(crust_image::ids::FileId(fd.id))
                .is_some_and(|file| file.r#type == fd.r#type)
        }));
    }
}

/// What CRIU wrote and restored has nothing to complain about.
#[test]
fn no_set_has_findings() {
    for path in image_dirs() {
        if lost_its_parent(&path) {
            continue;
        }
        let findings = check_dir(&ImageDir::open(&path).unwrap());
        assert_eq!(findings, [], "{}", path.display());
    }
}

/// Each page of a dump lies where the pages files have as many as the pagemaps say, over a chain.
#[test]
fn pages_of_a_chain_come_from_every_level() {
    let Some(path) = own_dirs()
        .into_iter()
        .find(|path| path.ends_with("parent_chain/3/img"))
    else {
        panic!("the corpus has a chain of dumps");
    };
    let dir = ImageDir::open(&path).unwrap();
    let chain = DumpChain::open(&dir).unwrap();
    assert_eq!(chain.levels(), 3);
    let checkpoint = Checkpoint::load(&dir).unwrap();
    let mut levels = [0u64; 3];
    for run in checkpoint.task_pages.values().flatten().flatten() {
        levels[run.source.level] += run.nr_pages;
        let len = chain
            .open_pages(&run.source)
            .unwrap()
            .metadata()
            .unwrap()
            .len();
        assert!(run.source.file_offset + run.len() <= len);
    }
    assert!(levels.iter().all(|pages| *pages > 0), "{levels:?}");
}

/// Damaged images give entries or an error that names the file, never a panic.
#[test]
fn damaged_images_do_not_panic() {
    let mut tried = 0;
    for path in own_dirs() {
        let dir = ImageDir::open(&path).unwrap();
        for (kind, id) in dir.list().unwrap() {
            if kind.spec().framing != Framing::Common {
                continue;
            }
            let bytes = read_image(&dir, kind, id);
            if bytes.len() > 200 {
                continue;
            }
            let version = dir.version().unwrap();
            for damaged in damages(&bytes) {
                tried += 1;
                if let Err(error) = reencode(kind, &damaged, version) {
                    assert!(error.to_string().starts_with(&kind.to_string()), "{error}");
                }
            }
        }
    }
    assert!(tried > 10_000, "only {tried} images were small enough");
}

fn damages(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let truncated = (0..bytes.len()).map(|end| bytes[..end].to_vec());
    let flipped = (0..bytes.len() * 8).map(|bit| {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    });
    truncated.chain(flipped)
}
