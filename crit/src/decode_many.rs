//! `crit decode` of several images, a directory or an archive: one object with an image under each
//! name, or a file for each. Small images are decoded beside each other, large ones pass as a stream.
//!
//! `crit encode -o DIR` makes the images of such an object again.

use crate::color::JsonPainter;
use crate::dump::Dump;
use crate::ndjson::{BATCH, is_small};
use crate::output::{is_stdout, open_regular, write_output};
use crate::pack::is_archive;
use crate::query::is_image;
use crate::raw::explain;
use anyhow::{Context, Result, bail};
use crust_image::json::{DecodeOptions, Error, Layout, Writer, image_to_json};
use rayon::prelude::*;
use std::collections::HashSet;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

/// Images with the names they are shown by, and the archives they were unpacked from.
pub struct Images {
    pub list: Vec<(String, PathBuf)>,
    unpacked: Vec<Dump>,
}

impl Images {
    /// Those of the files, directories and archives, a directory's in the order of their names.
    pub fn collect<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Result<Images> {
        let mut images = Images {
            list: Vec::new(),
            unpacked: Vec::new(),
        };
        for path in paths {
            if !path.is_dir() && !is_archive(path)? {
                let name = path
                    .file_name()
                    .map(|name| name.to_string_lossy().into_owned());
                images.list.push((name.unwrap_or_default(), path.clone()));
                continue;
            }
            let dump = Dump::open(path)?;
            for name in dump.names()?.into_iter().filter(|name| is_image(name)) {
                let path = dump.path().join(&name);
                images.list.push((name, path));
            }
            images.unpacked.push(dump);
        }
        Ok(images)
    }

    /// Two images of a name, from two directories, would be one key or one file.
    fn expect_each_name_once(&self) -> Result<()> {
        let mut seen = HashSet::new();
        for (name, path) in &self.list {
            if !seen.insert(name) {
                bail!(
                    "{}: a second image of that name; --ndjson has lines for both",
                    path.display()
                );
            }
        }
        Ok(())
    }
}

pub fn decode(
    paths: &[PathBuf],
    output: Option<&Path>,
    options: DecodeOptions,
    color: bool,
) -> Result<()> {
    let images = Images::collect(paths.iter())?;
    images.expect_each_name_once()?;
    if images.list.is_empty() {
        bail!("no images there");
    }
    let decoded = decode_all(&images, output, options, color);
    decoded.map_err(|error| {
        images
            .unpacked
            .iter()
            .fold(error, |error, dump| dump.named(error))
    })
}

fn decode_all(
    images: &Images,
    output: Option<&Path>,
    options: DecodeOptions,
    color: bool,
) -> Result<()> {
    if let Some(dir) = output.filter(|output| output.is_dir()) {
        return images.list.par_iter().try_for_each(|(name, path)| {
            write_output(Some(&dir.join(format!("{name}.json"))), |out| {
                let mut writer = Writer::new(out, layout(options));
                one(path, &mut writer, options)?;
                writer.finish().map(drop).map_err(Error::Output)?;
                Ok(())
            })
        });
    }
    let to_stdout = is_stdout(output);
    write_output(output, |out| {
        if color && to_stdout {
            object(images, &mut JsonPainter::new(out), options)
        } else {
            object(images, out, options)
        }
    })
}

fn layout(options: DecodeOptions) -> Layout {
    if options.pretty {
        Layout::Pretty
    } else {
        Layout::Compact
    }
}

/// `{"NAME": IMAGE, ...}`.
fn object(images: &Images, out: &mut dyn Write, options: DecodeOptions) -> Result<()> {
    let mut first = true;
    for batch in images.list.chunks(BATCH) {
        let decoded: Vec<Option<Result<Vec<u8>>>> = batch
            .par_iter()
            .map(|(name, path)| {
                is_small(path).then(|| {
                    let mut text = Vec::new();
                    member(name, path, &mut text, options)?;
                    Ok(text)
                })
            })
            .collect();
        for ((name, path), decoded) in batch.iter().zip(decoded) {
            out.write_all(separator(std::mem::take(&mut first), options))?;
            match decoded {
                Some(text) => out.write_all(&text?)?,
                None => member(name, path, out, options)?,
            }
        }
    }
    Ok(out.write_all(if options.pretty { b"\n}\n" } else { b"}\n" })?)
}

/// What stands before a member.
fn separator(first: bool, options: DecodeOptions) -> &'static [u8] {
    match (first, options.pretty) {
        (true, true) => b"{\n    ",
        (true, false) => b"{",
        (false, true) => b",\n    ",
        (false, false) => b", ",
    }
}

/// A key and its image.
fn member(name: &str, path: &Path, out: &mut dyn Write, options: DecodeOptions) -> Result<()> {
    write!(out, "{}: ", serde_json::Value::from(name))?;
    let mut writer = Writer::inside(out, layout(options), 1);
    one(path, &mut writer, options)?;
    writer.finish().map(drop).map_err(Error::Output)?;
    Ok(())
}

fn one<W: Write>(path: &Path, writer: &mut Writer<W>, options: DecodeOptions) -> Result<()> {
    let shown = path.display().to_string();
    let file = open_regular(path).with_context(|| format!("{shown}: open"))?;
    let from = BufReader::with_capacity(1 << 16, file);
    image_to_json(from, writer, options).map_err(|error| explain(error, &shown))
}
