//! `crit get`, `set`, `del` and `edit`: one image changed in place.
//!
//! An image is read, changed as JSON and encoded again; only when that worked does the new file take
//! the old one's place. Its version (the head) stays what it was.

use crate::cli;
use crate::output::{open_regular, write_json_out, write_output};
use crate::pack::member;
use crate::path::Path as FieldPath;
use crate::raw::explain;
use crate::transaction::renew_digest;
use anyhow::{Context, Result, bail};
use crust_image::json::{
    DecodeOptions, EncodeOptions, FrameReader, Layout, Reader, Version, Writer, image_to_json,
    image_to_value, json_to_image, value_to_image, write_value,
};
use serde_json::Value;
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An image as JSON with its version.
pub struct Opened {
    pub value: Value,
    pub version: Version,
    bytes: Vec<u8>,
}

/// Reads an image in the compact or the pretty form.
pub fn read_image(path: &Path, pretty: bool) -> Result<Opened> {
    let mut bytes = Vec::new();
    match open_regular(path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Err(error) if error.kind() == ErrorKind::NotADirectory => bytes = member(path)?,
        other => drop(other.with_context(|| format!("{}: read", path.display()))?),
    }
    let shown = path.display().to_string();
    let reader = FrameReader::open(bytes.as_slice()).map_err(|error| explain(error, &shown))?;
    let version = reader.version();
    let options = DecodeOptions {
        pretty,
        ..DecodeOptions::COMPACT
    };
    let value =
        image_to_value(bytes.as_slice(), options).map_err(|error| explain(error, &shown))?;
    Ok(Opened {
        value,
        version,
        bytes,
    })
}

/// The bytes of a changed image.
pub fn encode_value(path: &Path, value: &Value, version: Version) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let options = EncodeOptions {
        version: Some(version),
    };
    value_to_image(value, &mut bytes, options)
        .with_context(|| format!("{}: the edited image", path.display()))?;
    Ok(bytes)
}

pub fn get(arguments: &cli::Get, color: bool) -> Result<()> {
    let image = read_image(&arguments.image, arguments.pretty)?;
    let path = FieldPath::parse(&arguments.path)?;
    let found = path
        .get(&image.value)
        .with_context(|| arguments.image.display().to_string())?;
    write_json_out(color && !arguments.raw, |out| {
        for value in found {
            if let (true, Value::String(text)) = (arguments.raw, value) {
                writeln!(out, "{text}")?;
                continue;
            }
            let layout = if arguments.pretty {
                Layout::Pretty
            } else {
                Layout::Compact
            };
            let mut writer = Writer::new(&mut *out, layout);
            write_value(&mut writer, value)?;
            writer.newline()?;
            writer.finish()?;
        }
        Ok(())
    })
}

pub fn set(arguments: &cli::Set) -> Result<()> {
    change(&arguments.image, |value| {
        for pair in arguments.changes.chunks(2) {
            let [path, text] = pair else {
                bail!("a path without a value: {}", pair.concat())
            };
            FieldPath::parse(path)?.set(value, text)?;
        }
        Ok(())
    })
}

pub fn del(arguments: &cli::Del) -> Result<()> {
    change(&arguments.image, |value| {
        arguments
            .paths
            .iter()
            .try_for_each(|path| FieldPath::parse(path)?.delete(value).map(drop))
    })
}

/// An image that is a link could make an edit write anywhere: the directory is not trusted.
fn refuse_link(path: &Path) -> Result<()> {
    if path.is_symlink() {
        bail!(
            "{}: a symbolic link; edit the file it leads to",
            path.display()
        );
    }
    Ok(())
}

fn change(path: &Path, edit: impl FnOnce(&mut Value) -> Result<()>) -> Result<()> {
    refuse_link(path)?;
    let mut image = read_image(path, false)?;
    edit(&mut image.value).with_context(|| path.display().to_string())?;
    let bytes = encode_value(path, &image.value, image.version)?;
    if bytes == image.bytes {
        eprintln!("crit: {}: nothing changed", path.display());
        return Ok(());
    }
    write_image(path, &bytes)
}

/// Puts the image in place of the old one.
fn write_image(path: &Path, bytes: &[u8]) -> Result<()> {
    write_output(Some(path), |out| Ok(out.write_all(bytes)?))?;
    renew_of(path)
}

/// The manifest of the directory an image was written to, if it has one.
pub fn renew_of(path: &Path) -> Result<()> {
    let dir = path.parent().filter(|dir| *dir != Path::new(""));
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    match name {
        Some(name) => renew_digest(dir.unwrap_or(Path::new(".")), &[name]),
        None => Ok(()),
    }
}

/// `crit edit`: the pretty JSON in $EDITOR until it encodes or the user gives up.
pub fn edit(arguments: &cli::Edit) -> Result<()> {
    refuse_link(&arguments.image)?;
    let image = read_image(&arguments.image, false)?;
    let mut draft = tempfile::Builder::new()
        .prefix("crit-")
        .suffix(".json")
        .tempfile()?;
    let mut writer = Writer::new(draft.as_file_mut(), Layout::Pretty);
    let options = DecodeOptions {
        pretty: true,
        ..DecodeOptions::COMPACT
    };
    image_to_json(image.bytes.as_slice(), &mut writer, options)?;
    writer.newline()?;
    writer.finish()?;
    loop {
        run_editor(draft.path())?;
        match encode_draft(draft.path(), image.version) {
            Ok(bytes) if bytes == image.bytes => {
                eprintln!("crit: {}: nothing changed", arguments.image.display());
                return Ok(());
            }
            Ok(bytes) => return replace(&arguments.image, &image.bytes, &bytes),
            Err(error) => {
                eprintln!("crit: the edited image: {error:#}");
                if !ask_again()? {
                    let kept = draft
                        .into_temp_path()
                        .keep()
                        .context("keep the edited JSON")?;
                    bail!(
                        "{}: left as it was; the edited JSON is in {}",
                        arguments.image.display(),
                        kept.display()
                    );
                }
            }
        }
    }
}

fn encode_draft(path: &Path, version: Version) -> Result<Vec<u8>> {
    let text = fs::read(path)?;
    let mut bytes = Vec::new();
    let mut reader = Reader::new(text.as_slice());
    json_to_image(
        &mut reader,
        &mut bytes,
        EncodeOptions {
            version: Some(version),
        },
    )?;
    if reader.peek()?.is_some() {
        bail!("something stands behind the end of the image");
    }
    Ok(bytes)
}

/// Keeps the old image as NAME~ and puts the new one in its place.
fn replace(path: &Path, old: &[u8], new: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push("~");
    let backup = PathBuf::from(name);
    refuse_link(&backup)?;
    write_output(Some(&backup), |out| Ok(out.write_all(old)?))
        .context("keep a copy of the image")?;
    write_image(path, new)?;
    eprintln!(
        "crit: {}: replaced; the old image is {}",
        path.display(),
        backup.display()
    );
    Ok(())
}

fn run_editor(file: &Path) -> Result<()> {
    let editor = ["VISUAL", "EDITOR"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
    let editor = editor.unwrap_or_else(|| "vi".to_owned());
    // $EDITOR may hold arguments: the shell splits them, as other tools do.
    let status = Command::new("/bin/sh")
        .args(["-c", &format!("{editor} \"$1\""), "crit"])
        .arg(file)
        .status()
        .with_context(|| format!("run {editor}"))?;
    if !status.success() {
        bail!("{editor}: {status}; the image is left as it was");
    }
    Ok(())
}

fn ask_again() -> Result<bool> {
    eprint!("Edit again? [Y/n] ");
    let mut answer = String::new();
    if std::io::stdin().read_line(&mut answer)? == 0 {
        return Ok(false);
    }
    Ok(!answer.trim_start().to_lowercase().starts_with('n'))
}
