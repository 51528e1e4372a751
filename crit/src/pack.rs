//! `crit pack` and `crit unpack`: a dump as one tar, compressed or not; and what lets the reading
//! verbs take such a file, or a checkpoint archive of podman or CRI-O, in place of a directory.
//!
//! Of an archive only regular files with the names of images are taken, by their last component: no
//! path or link of it can lead out of the directory that is filled.

use crate::cli;
use crate::output::{open_regular, write_output};
use anyhow::{Context, Result, bail};
use crust_image::Kind;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// How an archive is compressed, told by its first bytes.
enum Compression {
    None,
    Gzip,
    Zstd,
}

pub fn pack(arguments: &cli::Pack) -> Result<()> {
    let dir = &arguments.dir;
    if dir.join("parent").symlink_metadata().is_ok() {
        bail!(
            "{}: it needs the dump `parent` leads to: `crit flatten` makes a whole one",
            dir.display()
        );
    }
    let mut names: Vec<String> = fs::read_dir(dir)
        .with_context(|| format!("{}: list", dir.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| Kind::of_file_name(OsStr::new(name)).is_some())
        .collect();
    names.sort();
    if names.is_empty() {
        bail!("{}: no images in it", dir.display());
    }
    write_output(Some(&arguments.output), |out| {
        match extension(&arguments.output) {
            "zst" | "zstd" => {
                let mut encoder = zstd::stream::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                put_all(dir, &names, &mut encoder)?;
                encoder.finish()?;
                Ok(())
            }
            "gz" | "tgz" => {
                let mut encoder =
                    flate2::write::GzEncoder::new(out, flate2::Compression::default());
                put_all(dir, &names, &mut encoder)?;
                encoder.finish()?;
                Ok(())
            }
            _ => put_all(dir, &names, out),
        }
    })
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(OsStr::to_str).unwrap_or_default()
}

fn put_all(dir: &Path, names: &[String], out: &mut dyn Write) -> Result<()> {
    let mut builder = tar::Builder::new(out);
    for name in names {
        let path = dir.join(name);
        let mut file = open_regular(&path).with_context(|| format!("{}: open", path.display()))?;
        builder
            .append_file(name, &mut file)
            .with_context(|| format!("{}: pack", path.display()))?;
    }
    builder.finish()?;
    Ok(())
}

pub fn unpack(arguments: &cli::Unpack) -> Result<()> {
    let out = &arguments.output;
    match fs::create_dir(out) {
        Ok(()) => {}
        Err(_) if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none()) => {}
        Err(error) => return Err(error).with_context(|| format!("{}: create", out.display())),
    }
    extract(&arguments.archive, out)
}

/// The images of an archive, into a directory of its own that goes with the value.
pub fn extract_aside(archive: &Path) -> Result<tempfile::TempDir> {
    let aside = tempfile::Builder::new()
        .prefix("crit-")
        .tempdir()
        .context("a place to unpack")?;
    extract(archive, aside.path())?;
    Ok(aside)
}

/// The members of a tar, whose errors name the archive.
fn members<'a, R: Read>(
    reader: &'a mut tar::Archive<R>,
    archive: &'a Path,
) -> Result<impl Iterator<Item = Result<tar::Entry<'a, R>>>> {
    let entries = reader
        .entries()
        .with_context(|| format!("{}: not a tar", archive.display()))?;
    Ok(entries.map(move |entry| entry.with_context(|| format!("{}: read", archive.display()))))
}

fn extract(archive: &Path, into: &Path) -> Result<()> {
    let mut seen: Option<PathBuf> = None;
    let mut reader = tar::Archive::new(decompressed(archive)?);
    for entry in members(&mut reader, archive)? {
        let mut entry = entry?;
        let path = entry
            .path()
            .with_context(|| format!("{}: read a name", archive.display()))?
            .into_owned();
        let Some(name) = path
            .file_name()
            .filter(|name| Kind::of_file_name(name).is_some())
        else {
            continue;
        };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        // A container's archive has statistics beside the directory of the images.
        let is_stats = name.to_string_lossy().starts_with("stats-");
        match &seen {
            Some(first) if *first != folder && !is_stats => {
                bail!(
                    "{}: images in two places, {} and {}",
                    archive.display(),
                    first.display(),
                    folder.display()
                );
            }
            _ if !is_stats => seen = Some(folder),
            _ => {}
        }
        let target = into.join(name);
        let mut file = File::options().write(true).create_new(true).open(&target);
        let file = file
            .as_mut()
            .map_err(|error| anyhow::anyhow!("{}: create: {error}", target.display()))?;
        std::io::copy(&mut entry, file)
            .with_context(|| format!("{}: unpack {}", archive.display(), path.display()))?;
    }
    if seen.is_none() {
        bail!("{}: no images in it", archive.display());
    }
    Ok(())
}

/// Whether a file is a tar, compressed or not.
pub fn is_archive(path: &Path) -> Result<bool> {
    let mut first = Vec::new();
    open_regular(path)
        .and_then(|file| file.take(512).read_to_end(&mut first))
        .with_context(|| format!("{}: open", path.display()))?;
    let is_tar = first.get(257..262) == Some(b"ustar");
    Ok(is_tar || !matches!(compression_of(&first), Compression::None))
}

/// The largest member that is held.
const LARGEST_MEMBER: u64 = 256 << 20;

/// The bytes of an image in an archive, named as if the archive were a directory; found by the last
/// component of its name. Nothing is unpacked.
pub fn member(path: &Path) -> Result<Vec<u8>> {
    let archive = path.ancestors().skip(1).find(|above| above.is_file());
    let (Some(archive), Some(wanted)) = (archive, path.file_name()) else {
        bail!("{}: not a directory", path.display());
    };
    let mut reader = tar::Archive::new(decompressed(archive)?);
    for entry in members(&mut reader, archive)? {
        let mut entry = entry?;
        let is_wanted = entry
            .path()
            .is_ok_and(|path| path.file_name() == Some(wanted));
        if !is_wanted || !entry.header().entry_type().is_file() {
            continue;
        }
        if entry.size() > LARGEST_MEMBER {
            bail!(
                "{}: too large to be held: `crit unpack` it first",
                path.display()
            );
        }
        let mut bytes = Vec::new();
        entry
            .read_to_end(&mut bytes)
            .with_context(|| format!("{}: read", path.display()))?;
        return Ok(bytes);
    }
    bail!("{}: the archive has no such image", path.display())
}

fn compression_of(first: &[u8]) -> Compression {
    match first {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        _ => Compression::None,
    }
}

fn decompressed(archive: &Path) -> Result<Box<dyn Read>> {
    let open = || open_regular(archive).with_context(|| format!("{}: open", archive.display()));
    let mut first = Vec::new();
    open()?.take(4).read_to_end(&mut first)?;
    let file = BufReader::with_capacity(1 << 16, open()?);
    Ok(match compression_of(&first) {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::stream::Decoder::with_buffer(file)?),
    })
}
