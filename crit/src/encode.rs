//! `crit encode`: JSON to image, read as a stream.

use crate::cli;
use crate::edit::renew_of;
use crate::output::{input_name, open_input, write_output};
use crate::transaction::Transaction;
use anyhow::{Context, Result, bail};
use crust_image::Kind;
use crust_image::json::{EncodeOptions, Error, Reader, Version, json_to_image};
use std::ffi::OsStr;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

pub fn encode(arguments: &cli::Encode) -> Result<()> {
    let version = arguments
        .image_version
        .as_deref()
        .and_then(Version::by_name);
    let name = input_name(arguments.input.as_deref());
    let from = open_input(arguments.input.as_deref())?;
    if let Some(dir) = arguments.output.as_deref().filter(|path| path.is_dir()) {
        return encode_many(
            &mut Reader::new(from),
            dir,
            &name,
            EncodeOptions { version },
        );
    }
    write_output(arguments.output.as_deref(), |out| {
        let mut out = BufWriter::with_capacity(1 << 16, out);
        let mut reader = Reader::new(from);
        let encoded = json_to_image(&mut reader, &mut out, EncodeOptions { version })
            .map_err(anyhow::Error::from)
            .and_then(|_| expect_end(&mut reader));
        if encoded.is_err() {
            // What is buffered is a part of an image, which nobody wants on stdout.
            drop(out.into_parts());
            return encoded.with_context(|| name.clone());
        }
        Ok(out.flush()?)
    })?;
    match arguments.output.as_deref() {
        Some(path) => renew_of(path),
        None => Ok(()),
    }
}

fn expect_end<R: Read>(reader: &mut Reader<R>) -> Result<()> {
    match reader.peek().map_err(Error::Json)? {
        None => Ok(()),
        Some(byte) => {
            let what = format!("`{}` behind the end of the image", byte.escape_ascii());
            Err(reader.error(what).into())
        }
    }
}

/// The images of `decode` of several: all of them are put into the directory, or none.
fn encode_many<R: Read>(
    reader: &mut Reader<R>,
    dir: &Path,
    input: &str,
    options: EncodeOptions,
) -> Result<()> {
    let mut transaction = Transaction::begin(dir)?;
    let mut more = reader.open(b'{', b'}').with_context(|| input.to_owned())?;
    while more {
        let name = reader.key().with_context(|| input.to_owned())?;
        let Some((named, _)) = Kind::of_file_name(OsStr::new(&name)) else {
            bail!(
                "{input}: \"{name}\" is the name of no image: for a directory, an object with an image \
                 under each name is meant to be here (give the name of a file with -o for one image)"
            );
        };
        transaction.put(&name, |out| {
            let kind = json_to_image(reader, &mut *out, options)
                .with_context(|| format!("{input}: {name}"))?;
            if kind.spec().name != named.spec().name {
                bail!(
                    "{input}: {name}: not the name of a {} image",
                    kind.spec().name
                );
            }
            Ok(())
        })?;
        more = reader.more(b'}').with_context(|| input.to_owned())?;
    }
    expect_end(reader).with_context(|| input.to_owned())?;
    transaction.commit()
}
