//! Whether the images are still what the dump wrote: a manifest with a hash of every image, and of
//! every page of a pages file, so that a flipped bit is told by task and address.
//!
//! `crust-digest.json` says for each image its length and the BLAKE3 hash of its bytes; for a
//! pages file it is the hash of `crust-digest-<id>.pages`, which has the first 16 bytes of the
//! hash of each page, in order. CRIU passes over both. The manifest finds damage, not forgery:
//! who can change an image can change its manifest. It is written after everything else, when the
//! tree goes on or is gone, so nobody waits for it but the caller of the dump.

use crate::{
    checkpoint::Checkpoint,
    dir::ImageDir,
    error::{Error, Result},
    ids::{PagesId, VirtPid},
    kind::{Framing, Kind},
    pages::PageRun,
    sink::ImageSink,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs::File, io::Write, os::unix::fs::FileExt};

const PAGE: u64 = 4096;
/// Bytes of a page's hash that are kept: enough that no two pages have the same by chance.
const PAGE_HASH: usize = 16;
/// Bytes read at a time; whole pages.
const PIECE: u64 = 1 << 20;
/// A manifest is some hundred bytes for each image; a longer file is none.
const LONGEST_MANIFEST: u64 = 256 << 20;
/// Differing pages that are told one by one.
const TOLD_PAGES: usize = 16;
const VERSION: u32 = 1;
const ALGORITHM: &str = "blake3";

/// crust-digest.json.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    algorithm: String,
    files: BTreeMap<String, Listed>,
}

/// What the manifest says of an image.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Listed {
    size: u64,
    /// In hex.
    hash: String,
}

/// How an image differs from what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its file name.
    pub file: String,
    /// In what.
    pub what: What,
}

/// In what an image differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// It is not there.
    Missing,
    /// It was not there.
    Added,
    /// It is longer or shorter.
    Size {
        /// Bytes that were written.
        was: u64,
        /// Bytes that are there.
        is: u64,
    },
    /// Some of its bytes are others.
    Content,
    /// These pages of a pages file are others, by their number in it.
    Pages {
        /// The id in the file's name.
        id: u64,
        /// Ascending.
        pages: Vec<u64>,
    },
}

/// Hashes every image of a dump and writes the manifest; gives the number of bytes hashed.
pub fn write(dir: &ImageDir) -> Result<u64> {
    let images = hashed_images(dir)?;
    let pages = images.iter().filter(|(kind, _)| *kind == Kind::Pages);
    let pages: Vec<u64> = pages.filter_map(|(_, id)| *id).collect();
    pages
        .par_iter()
        .try_for_each(|id| write_page_hashes(dir, *id))?;
    let files: Result<BTreeMap<String, Listed>> = images
        .par_iter()
        .map(|(kind, id)| Ok((kind.file_name(*id), list(dir, *kind, *id)?)))
        .collect();
    let manifest = Manifest {
        version: VERSION,
        algorithm: ALGORITHM.to_owned(),
        files: files?,
    };
    write_manifest(dir, &manifest)?;
    Ok(manifest.files.values().map(|listed| listed.size).sum())
}

/// Hashes these files anew after they were changed, put there or removed on purpose; the others
/// keep the hashes that the dump gave them. False if the dump has no manifest.
pub fn renew(dir: &ImageDir, changed: &[String]) -> Result<bool> {
    let Some(mut manifest) = read_manifest(dir)? else {
        return Ok(false);
    };
    for (kind, id) in hashed_images(dir)? {
        let name = kind.file_name(id);
        if !changed.contains(&name) {
            continue;
        }
        if let (Kind::Pages, Some(id)) = (kind, id) {
            write_page_hashes(dir, id)?;
        }
        manifest.files.insert(name, list(dir, kind, id)?);
    }
    let there: Vec<String> = hashed_images(dir)?
        .into_iter()
        .map(|(kind, id)| kind.file_name(id))
        .collect();
    manifest
        .files
        .retain(|name, _| there.contains(name) || !changed.contains(name));
    write_manifest(dir, &manifest).map(|()| true)
}

fn write_manifest(dir: &ImageDir, manifest: &Manifest) -> Result<()> {
    let name = Kind::Digest.file_name(None);
    let failed = |error: std::io::Error| Error::io(&name, "write", error);
    let mut file = std::io::BufWriter::new(dir.create_raw_file(Kind::Digest, None)?);
    serde_json::to_writer(&mut file, manifest).map_err(|error| failed(error.into()))?;
    file.write_all(b"\n")
        .and_then(|()| file.flush())
        .map_err(failed)
}

/// Compares every image with the manifest; `None` if the dump has none.
pub fn verify(dir: &ImageDir) -> Result<Option<Vec<Difference>>> {
    let Some(manifest) = read_manifest(dir)? else {
        return Ok(None);
    };
    let images: BTreeMap<String, (Kind, Option<u64>)> = hashed_images(dir)?
        .into_iter()
        .map(|(kind, id)| (kind.file_name(id), (kind, id)))
        .collect();
    let names: Vec<&String> = manifest.files.keys().collect();
    let differences: Result<Vec<Option<Difference>>> = names
        .par_iter()
        .map(|name| {
            let what = match (images.get(*name), manifest.files.get(*name)) {
                (Some((kind, id)), Some(listed)) => compare(dir, *kind, *id, listed)?,
                _ => Some(What::Missing),
            };
            Ok(what.map(|what| Difference {
                file: (*name).clone(),
                what,
            }))
        })
        .collect();
    let mut differences: Vec<Difference> = differences?.into_iter().flatten().collect();
    let added = images
        .keys()
        .filter(|name| !manifest.files.contains_key(*name));
    differences.extend(added.map(|name| Difference {
        file: name.clone(),
        what: What::Added,
    }));
    Ok(Some(differences))
}

/// The images of a dump: what a manifest is about. Statistics are written later, and the hashes
/// are no images.
fn hashed_images(dir: &ImageDir) -> Result<Vec<(Kind, Option<u64>)>> {
    let mut images = dir.list()?;
    images.retain(|(kind, _)| {
        let is_digest = matches!(kind, Kind::Digest | Kind::DigestPages);
        kind.spec().framing != Framing::Service && !is_digest
    });
    Ok(images)
}

fn read_manifest(dir: &ImageDir) -> Result<Option<Manifest>> {
    let name = Kind::Digest.file_name(None);
    let Some(file) = dir.open_file(Kind::Digest, None)? else {
        return Ok(None);
    };
    let broken = |what: String| Error::Head {
        file: name.clone(),
        what,
    };
    let len = file
        .metadata()
        .map_err(|error| Error::io(&name, "stat", error))?
        .len();
    if len > LONGEST_MANIFEST {
        return Err(broken(format!("{len} bytes are too many for a manifest")));
    }
    let manifest: Manifest = serde_json::from_reader(std::io::BufReader::new(file))
        .map_err(|error| broken(format!("not a manifest: {error}")))?;
    if (manifest.version, manifest.algorithm.as_str()) != (VERSION, ALGORITHM) {
        let (version, algorithm) = (manifest.version, manifest.algorithm);
        return Err(broken(format!(
            "version {version} with {algorithm} hashes is not known here"
        )));
    }
    Ok(Some(manifest))
}

fn list(dir: &ImageDir, kind: Kind, id: Option<u64>) -> Result<Listed> {
    let file = opened(dir, kind, id)?;
    let name = kind.file_name(id);
    let size = file
        .metadata()
        .map_err(|error| Error::io(&name, "stat", error))?
        .len();
    let hash = match kind {
        Kind::Pages => {
            let hashes = opened(dir, Kind::DigestPages, id)?;
            hash_of(&hashes, &Kind::DigestPages.file_name(id))?
        }
        _ => hash_of(&file, &name)?,
    };
    Ok(Listed { size, hash })
}

fn opened(dir: &ImageDir, kind: Kind, id: Option<u64>) -> Result<File> {
    dir.open_file(kind, id)?.ok_or_else(|| Error::Missing {
        file: kind.file_name(id),
    })
}

/// The hash of a file's bytes, in hex.
fn hash_of(file: &File, name: &str) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE as usize];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(hasher.finalize().to_hex().to_string()),
            Ok(len) => {
                hasher.update(&buffer[..len]);
                at += len as u64;
            }
            Err(error) => return Err(Error::io(name, "read", error)),
        }
    }
}

/// The hashes of all pages of a pages file, by several threads.
fn page_hashes(dir: &ImageDir, id: u64) -> Result<Vec<[u8; PAGE_HASH]>> {
    let name = Kind::Pages.file_name(Some(id));
    let file = opened(dir, Kind::Pages, Some(id))?;
    let len = file
        .metadata()
        .map_err(|error| Error::io(&name, "stat", error))?
        .len();
    let pieces: Result<Vec<Vec<[u8; PAGE_HASH]>>> = (0..len.div_ceil(PIECE))
        .into_par_iter()
        .map_init(Vec::new, |buffer: &mut Vec<u8>, piece| {
            let at = piece * PIECE;
            buffer.resize(PIECE.min(len - at) as usize, 0);
            let read = file.read_exact_at(buffer, at);
            read.map_err(|error| Error::io(&name, "read", error))?;
            Ok(buffer.chunks(PAGE as usize).map(page_hash).collect())
        })
        .collect();
    Ok(pieces?.concat())
}

fn page_hash(page: &[u8]) -> [u8; PAGE_HASH] {
    let hash = blake3::hash(page);
    std::array::from_fn(|at| hash.as_bytes()[at])
}

fn write_page_hashes(dir: &ImageDir, id: u64) -> Result<()> {
    let hashes = page_hashes(dir, id)?.concat();
    let mut file = dir.create_raw_file(Kind::DigestPages, Some(id))?;
    let name = Kind::DigestPages.file_name(Some(id));
    file.write_all(&hashes)
        .map_err(|error| Error::io(&name, "write", error))
}

fn compare(dir: &ImageDir, kind: Kind, id: Option<u64>, listed: &Listed) -> Result<Option<What>> {
    let file = opened(dir, kind, id)?;
    let name = kind.file_name(id);
    let is = file
        .metadata()
        .map_err(|error| Error::io(&name, "stat", error))?
        .len();
    if is != listed.size {
        let was = listed.size;
        return Ok(Some(What::Size { was, is }));
    }
    match (kind, id) {
        (Kind::Pages, Some(id)) => compare_pages(dir, id, listed),
        _ => {
            let is_same = hash_of(&file, &name)? == listed.hash;
            Ok((!is_same).then_some(What::Content))
        }
    }
}

fn compare_pages(dir: &ImageDir, id: u64, listed: &Listed) -> Result<Option<What>> {
    let pages = page_hashes(dir, id)?;
    if blake3::hash(pages.as_flattened()).to_hex().as_str() == listed.hash {
        return Ok(None);
    }
    // Which pages differ only the list of their hashes can tell, if it is still good.
    let stored = match opened(dir, Kind::DigestPages, Some(id)) {
        Ok(file) => file,
        Err(_) => return Ok(Some(What::Content)),
    };
    let name = Kind::DigestPages.file_name(Some(id));
    let mut bytes = vec![0; pages.as_flattened().len()];
    let is_whole = stored.read_exact_at(&mut bytes, 0).is_ok();
    if !is_whole || hash_of(&stored, &name)? != listed.hash {
        return Ok(Some(What::Content));
    }
    let (stored, _) = bytes.as_chunks::<PAGE_HASH>();
    let both = (0..).zip(stored.iter().zip(&pages));
    let pages = both
        .filter(|(_, (was, is))| was != is)
        .map(|(page, _)| page)
        .collect();
    Ok(Some(What::Pages { id, pages }))
}

/// The differences as image and sentence, pages by the task and address that they are of.
pub fn with_addresses(differences: &[Difference], dir: &ImageDir) -> Vec<(String, String)> {
    let has_pages = |difference: &Difference| matches!(difference.what, What::Pages { .. });
    // A set that does not load has no addresses to tell.
    let checkpoint = match differences.iter().any(has_pages) {
        true => Checkpoint::load(dir).ok(),
        false => None,
    };
    let told = |difference: &Difference| {
        let what = sentence(&difference.what, checkpoint.as_ref());
        (difference.file.clone(), what)
    };
    differences.iter().map(told).collect()
}

fn sentence(what: &What, checkpoint: Option<&Checkpoint>) -> String {
    match what {
        What::Missing => "is in the manifest of the dump and is not there".to_owned(),
        What::Added => "is not in the manifest: the dump did not write it".to_owned(),
        What::Size { was, is } => format!("has {is} bytes, and {was} were written"),
        What::Content => "has other bytes than were written".to_owned(),
        What::Pages { id, pages } => {
            let place = |page: &u64| place_of(checkpoint, *id, *page);
            let mut told: Vec<String> = pages.iter().take(TOLD_PAGES).map(place).collect();
            if pages.len() > TOLD_PAGES {
                told.push(format!("{} more", pages.len() - TOLD_PAGES));
            }
            let what = "has other bytes than were written in";
            format!("{what} {} pages: {}", pages.len(), told.join(", "))
        }
    }
}

/// `task 12 at 0x7f0000001000`, or the number of the page in the file.
fn place_of(checkpoint: Option<&Checkpoint>, id: u64, page: u64) -> String {
    let offset = page * PAGE;
    let in_run = |run: &PageRun| {
        let at = offset.checked_sub(run.source.file_offset)?;
        let is_there = run.source.level == 0 && run.source.pages_id == PagesId(id as u32);
        (is_there && at < run.len()).then(|| run.vaddr.saturating_add(at))
    };
    let found = checkpoint.and_then(|checkpoint| {
        let task = |(pid, runs): (&VirtPid, &Vec<PageRun>)| {
            let address = runs.iter().find_map(in_run)?;
            Some(format!("task {pid} at {address:#x}"))
        };
        let tasks = checkpoint.task_pages.iter();
        let of_task = tasks
            .filter_map(|(pid, runs)| Some((pid, runs.as_ref().ok()?)))
            .find_map(task);
        of_task.or_else(|| {
            let shared = checkpoint.shmem_pages.iter();
            shared
                .filter_map(|(shmid, runs)| Some((shmid, runs.as_ref().ok()?)))
                .find_map(|(shmid, runs)| {
                    let offset = runs.iter().find_map(in_run)?;
                    Some(format!("shared memory {} at {offset:#x}", shmid.0))
                })
        })
    });
    found.unwrap_or_else(|| format!("page {page} of the file"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sink::write_entry, testing::TestDir};
    use crust_proto::criu::FsEntry;
    use std::error::Error;

    type Tested<T = ()> = std::result::Result<T, Box<dyn Error>>;

    fn dump(at: &TestDir) -> Tested<ImageDir> {
        let dir = at.subdir("d");
        write_entry(&dir, Kind::Fs, Some(7), &FsEntry::default())?;
        let mut pages = dir.create_raw_file(Kind::Pages, Some(1))?;
        for page in 0..600u32 {
            pages.write_all(&page.to_le_bytes().repeat(1024))?;
        }
        Ok(dir)
    }

    fn path(at: &TestDir, name: &str) -> std::path::PathBuf {
        at.path().join("d").join(name)
    }

    #[test]
    fn what_was_not_touched_is_the_same() -> Tested {
        let at = TestDir::new();
        let dir = dump(&at)?;
        assert_eq!(verify(&dir)?, None);
        write(&dir)?;
        assert_eq!(verify(&dir)?, Some(Vec::new()));
        // Statistics come later and are nobody's damage.
        std::fs::write(path(&at, "stats-restore"), "x")?;
        assert_eq!(verify(&dir)?, Some(Vec::new()));
        Ok(())
    }

    #[test]
    fn a_flipped_bit_is_told_by_its_page() -> Tested {
        let at = TestDir::new();
        let dir = dump(&at)?;
        write(&dir)?;
        let file = File::options().write(true).open(path(&at, "pages-1.img"))?;
        file.write_all_at(&[1], 5 * PAGE + 3)?;
        file.write_all_at(&[1], 599 * PAGE + 3)?;
        let pages = vec![5, 599];
        let expected = Difference {
            file: "pages-1.img".to_owned(),
            what: What::Pages { id: 1, pages },
        };
        assert_eq!(verify(&dir)?, Some(vec![expected]));
        std::fs::write(path(&at, "crust-digest-1.pages"), "")?;
        let differences = verify(&dir)?.ok_or("no manifest")?;
        assert_eq!(differences[0].what, What::Content);
        Ok(())
    }

    #[test]
    fn files_that_changed_came_or_went() -> Tested {
        let at = TestDir::new();
        let dir = dump(&at)?;
        write(&dir)?;
        std::fs::copy(path(&at, "fs-7.img"), path(&at, "fs-8.img"))?;
        std::fs::remove_file(path(&at, "fs-7.img"))?;
        let pages = File::options().write(true).open(path(&at, "pages-1.img"))?;
        pages.set_len(4096)?;
        let differences = verify(&dir)?.ok_or("no manifest")?;
        let whats: Vec<(&str, &What)> = differences
            .iter()
            .map(|found| (found.file.as_str(), &found.what))
            .collect();
        let size = What::Size {
            was: 600 * PAGE,
            is: PAGE,
        };
        assert_eq!(
            whats,
            [
                ("fs-7.img", &What::Missing),
                ("pages-1.img", &size),
                ("fs-8.img", &What::Added)
            ]
        );
        Ok(())
    }

    #[test]
    fn a_manifest_of_another_kind_is_refused() -> Tested {
        let at = TestDir::new();
        let dir = dump(&at)?;
        for text in ["", "[]", r#"{"version":2,"algorithm":"blake3","files":{}}"#] {
            std::fs::write(path(&at, "crust-digest.json"), text)?;
            assert!(verify(&dir).is_err(), "{text}");
        }
        Ok(())
    }
}
