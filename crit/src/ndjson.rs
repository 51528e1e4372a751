//! `decode --ndjson` and `encode --ndjson`: one line for each entry, so that a whole dump flows
//! through line tools.
//!
//! A line is `{"image": FILE, "magic": NAME, "index": N, "entry": {...}}`, with `image_version` in a
//! dump of version 1.0. An image without entries is a line without `index` and `entry`. Encoding
//! makes the images anew in a directory; the lines of one image must stand together, their order
//! counts, `index` does not.

use crate::cli;
use crate::decode_many::Images;
use crate::output::{input_name, open_input, open_regular, write_output};
use crate::raw::explain;
use crate::transaction::Transaction;
use anyhow::{Context, Result, bail};
use crust_image::Kind;
use crust_image::json::decode::{IMAGE_VERSION, write_entry};
use crust_image::json::encode::Encoder;
use crust_image::json::{
    DecodeOptions, Error, FrameReader, Layout, Payloads, Reader, Sink, Version, Writer,
};
use rayon::prelude::*;
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// Images up to this size are decoded beside each other in memory; larger ones one after the
/// other, in constant memory.
const SMALL: u64 = 4 << 20;
/// How many are decoded before they are written.
pub const BATCH: usize = 64;

/// Whether an image is decoded in memory.
pub fn is_small(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.len() <= SMALL)
}

pub fn decode(arguments: &cli::Decode) -> Result<()> {
    let options = DecodeOptions {
        pretty: arguments.pretty,
        payloads: if arguments.nopl {
            Payloads::Size
        } else {
            Payloads::Full
        },
        keep_version: true,
        lenient: arguments.lenient,
    };
    let inputs: Vec<&PathBuf> = arguments.files.iter().chain(&arguments.input).collect();
    let stream = match inputs.as_slice() {
        [] => Some(None),
        [one] if !one.is_file() && !one.is_dir() => Some(Some(one.as_path())),
        _ => None,
    };
    if let Some(stream) = stream {
        return write_output(arguments.output.as_deref(), |out| {
            let name = input_name(stream);
            lines(open_input(stream)?, &name, &name, out, options)
        });
    }
    let images = Images::collect(inputs.into_iter())?;
    write_output(arguments.output.as_deref(), |out| {
        for batch in images.list.chunks(BATCH) {
            let decoded: Vec<Option<Result<Vec<u8>>>> = batch
                .par_iter()
                .map(|(_, path)| is_small(path).then(|| in_memory(path, options)))
                .collect();
            for ((_, path), decoded) in batch.iter().zip(decoded) {
                match decoded {
                    Some(lines) => out.write_all(&lines?)?,
                    None => to_lines(path, out, options)?,
                }
            }
        }
        Ok(())
    })
}

fn in_memory(path: &Path, options: DecodeOptions) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    to_lines(path, &mut lines, options)?;
    Ok(lines)
}

fn to_lines(path: &Path, out: &mut dyn Write, options: DecodeOptions) -> Result<()> {
    let file = open_regular(path).with_context(|| format!("{}: open", path.display()))?;
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let from = BufReader::with_capacity(1 << 16, file);
    lines(from, &name, &path.display().to_string(), out, options)
}

fn lines(
    from: impl Read,
    name: &str,
    shown: &str,
    out: &mut dyn Write,
    options: DecodeOptions,
) -> Result<()> {
    let mut reader = FrameReader::open(from).map_err(|error| explain(error, shown))?;
    reader.lenient = options.lenient;
    let mut writer = Writer::new(out, Layout::Compact);
    let head = |writer: &mut Writer<&mut dyn Write>, kind: Kind, version: Version| {
        writer.begin_object()?;
        writer.key("image")?;
        writer.string(name)?;
        writer.key("magic")?;
        writer.string(kind.spec().name)?;
        if version == Version::V1_0 {
            writer.key(IMAGE_VERSION)?;
            writer.string(version.name())?;
        }
        std::io::Result::Ok(())
    };
    let (kind, version) = (reader.kind(), reader.version());
    let mut any = false;
    while let Some(entry) = reader.next_entry().map_err(|error| explain(error, shown))? {
        any = true;
        head(&mut writer, kind, version).map_err(Error::Output)?;
        writer.key("index")?;
        writer.unsigned(entry.index)?;
        writer.key("entry")?;
        writer.begin_object()?;
        write_entry(&mut reader, &entry, &mut writer, options)
            .map_err(|error| explain(error, shown))?;
        writer.end_object()?;
        writer.end_object()?;
        writer.newline()?;
    }
    if !any {
        head(&mut writer, kind, version)?;
        writer.end_object()?;
        writer.newline()?;
    }
    writer.finish()?;
    Ok(())
}

/// One line of input.
struct Line {
    image: String,
    kind: Kind,
    version: Version,
    entry: Option<Value>,
}

pub fn encode(arguments: &cli::Encode) -> Result<()> {
    let Some(dir) = &arguments.output else {
        bail!("--ndjson makes several images: give their directory with -o")
    };
    if !dir.exists() {
        fs::create_dir(dir).with_context(|| format!("{}: create", dir.display()))?;
    }
    let name = input_name(arguments.input.as_deref());
    let mut from = Reader::new(open_input(arguments.input.as_deref())?);
    let forced = arguments
        .image_version
        .as_deref()
        .and_then(Version::by_name);
    let mut transaction = Transaction::begin(dir)?;
    let mut seen = Vec::new();
    let mut next = next_line(&mut from).with_context(|| name.clone())?;
    while let Some(first) = next.take() {
        if seen.contains(&first.image) {
            bail!("{name}: the lines of {} do not stand together", first.image);
        }
        seen.push(first.image.clone());
        let image = first.image.clone();
        transaction.put(&image, |out| {
            next = encode_image(first, forced, &mut from, out)
                .with_context(|| format!("{name}: {image}"))?;
            Ok(())
        })?;
    }
    transaction.commit()
}

/// Writes the lines of one image; gives the first line of the next.
fn encode_image<R: Read>(
    first: Line,
    forced: Option<Version>,
    from: &mut Reader<R>,
    out: &mut dyn Write,
) -> Result<Option<Line>> {
    let image = first.image.clone();
    let mut encoder = Encoder::begin(first.kind, forced.unwrap_or(first.version), out)?;
    let mut line = first;
    loop {
        if let Some(entry) = &line.entry {
            encoder.put(entry)?;
        }
        match next_line(from)? {
            Some(next) if next.image == image => line = next,
            next => return Ok(next),
        }
    }
}

fn next_line<R: Read>(from: &mut Reader<R>) -> Result<Option<Line>> {
    if from.peek()?.is_none() {
        return Ok(None);
    }
    let mut line = from.value()?;
    let text = |key: &str| line.get(key).and_then(Value::as_str).map(str::to_owned);
    let (Some(image), Some(magic)) = (text("image"), text("magic")) else {
        return Err(from
            .error("a line is an object with image, magic and entry")
            .into());
    };
    let Some(kind) = Kind::by_name(&magic) else {
        return Err(from
            .error(format!("{magic} is the magic of no image"))
            .into());
    };
    let named = Kind::of_file_name(OsStr::new(&image)).map(|(kind, _)| kind.spec().name);
    if named != Some(kind.spec().name) {
        return Err(from
            .error(format!("{image} is not the name of a {magic} image"))
            .into());
    }
    let version = text(IMAGE_VERSION)
        .and_then(|name| Version::by_name(&name))
        .unwrap_or(Version::V1_1);
    let entry = line.get_mut("entry").map(Value::take);
    Ok(Some(Line {
        image,
        kind,
        version,
        entry,
    }))
}
