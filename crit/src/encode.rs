//! `crit encode`: JSON to image, read as a stream.

use crate::cli;
use crate::output::{input_name, open_input, write_output};
use anyhow::{Context, Result};
use crust_image::json::{EncodeOptions, Error, Reader, Version, json_to_image};
use std::io::{BufWriter, Write};

pub fn encode(arguments: &cli::Encode) -> Result<()> {
    let version = arguments
        .image_version
        .as_deref()
        .and_then(Version::by_name);
    let name = input_name(arguments.input.as_deref());
    let from = open_input(arguments.input.as_deref())?;
    write_output(arguments.output.as_deref(), |out| {
        let mut out = BufWriter::with_capacity(1 << 16, out);
        let mut reader = Reader::new(from);
        json_to_image(&mut reader, &mut out, EncodeOptions { version })
            .with_context(|| name.clone())?;
        if let Some(byte) = reader
            .peek()
            .map_err(Error::Json)
            .with_context(|| name.clone())?
        {
            let what = format!("`{}` behind the end of the image", byte.escape_ascii());
            return Err(reader.error(what)).with_context(|| name.clone());
        }
        Ok(out.flush()?)
    })
}
