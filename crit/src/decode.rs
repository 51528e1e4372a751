//! `crit decode` and `crit show`: image to JSON, a payload never held in memory.

use crate::cli;
use crate::decode_many;
use crate::output::{input_name, is_stdout, open_input, write_json_out, write_output};
use crate::pack::is_archive;
use crate::raw::explain;
use anyhow::Result;
use crust_image::json::{DecodeOptions, Error, Layout, Payloads, Writer, image_to_json};
use std::io::Write;
use std::path::Path;

pub fn decode(arguments: &cli::Decode, color: bool) -> Result<()> {
    let options = DecodeOptions {
        pretty: arguments.pretty,
        payloads: if arguments.nopl {
            Payloads::Size
        } else {
            Payloads::Full
        },
        keep_version: arguments.keep_version,
        lenient: arguments.lenient,
    };
    let input = match arguments.files.as_slice() {
        [] => arguments.input.as_deref(),
        [one] if is_one_image(one)? => Some(one.as_path()),
        several => {
            return decode_many::decode(several, arguments.output.as_deref(), options, color);
        }
    };
    let output = arguments.output.as_deref();
    if is_stdout(output) {
        return write_json_out(color, |out| write_json(input, out, options, true));
    }
    write_output(output, |out| write_json(input, out, options, false))
}

pub fn show(arguments: &cli::Show, color: bool) -> Result<()> {
    let options = DecodeOptions {
        pretty: true,
        payloads: if arguments.nopl {
            Payloads::Size
        } else {
            Payloads::Full
        },
        keep_version: false,
        lenient: arguments.lenient,
    };
    write_json_out(color, |out| {
        write_json(Some(&arguments.input), out, options, true)
    })
}

fn is_one_image(path: &Path) -> Result<bool> {
    Ok(!path.is_dir() && (!path.is_file() || !is_archive(path)?))
}

fn write_json(
    input: Option<&Path>,
    out: &mut dyn Write,
    options: DecodeOptions,
    newline: bool,
) -> Result<()> {
    let from = open_input(input)?;
    let layout = if options.pretty {
        Layout::Pretty
    } else {
        Layout::Compact
    };
    let mut writer = Writer::new(out, layout);
    let from = std::io::BufReader::with_capacity(1 << 16, from);
    let written = image_to_json(from, &mut writer, options);
    if let Err(error) = written {
        // What was decoded before the error is as good as its place in the image.
        let _ = writer.finish();
        return Err(explain(error, &input_name(input)));
    }
    if newline {
        writer.newline().map_err(Error::Output)?;
    }
    writer.finish().map_err(Error::Output)?;
    Ok(())
}
