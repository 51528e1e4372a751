//! Image to JSON: the top level and the payloads (`extra`) around the messages.

use super::direct::{is_plain, write_plain};
use super::error::{Error, Result};
use super::frame::{Entry, FrameReader, PayloadPlan, Version, round_up};
use super::message::{write_fields, write_message};
use super::write::{Sink, TreeBuilder, base64_lines};
use crate::kind::Payload;
use std::io::{self, Read};

/// The key of what follows a message.
pub const EXTRA: &str = "extra";
/// The key of a message that is not in canonical form: its bytes.
pub const WIRE: &str = "wire";
/// The top-level key that keeps the version of a v1.0 image.
pub const IMAGE_VERSION: &str = "image_version";

/// Whether payloads are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payloads {
    Full,
    /// `... <9.8KB>` in their place (`--nopl`).
    Size,
}

/// How an image is shown.
#[derive(Debug, Clone, Copy)]
pub struct DecodeOptions {
    /// Numbers in the form for people (hex, flags, addresses).
    pub pretty: bool,
    pub payloads: Payloads,
    /// Add `image_version` to v1.0 images, so that encode gives the version back.
    pub keep_version: bool,
    /// Show messages without their required fields too.
    pub lenient: bool,
}

impl DecodeOptions {
    /// Compact, complete, strict.
    pub const COMPACT: DecodeOptions = DecodeOptions {
        pretty: false,
        payloads: Payloads::Full,
        keep_version: false,
        lenient: false,
    };
}

/// Writes a whole image as one object.
pub fn image_to_json<S: Sink + ?Sized>(
    from: impl Read,
    sink: &mut S,
    options: DecodeOptions,
) -> Result<()> {
    let mut reader = FrameReader::open(from)?;
    reader.lenient = options.lenient;
    sink.begin_object().map_err(Error::Output)?;
    sink.key("magic")
        .and_then(|()| sink.string(reader.kind().spec().name))
        .map_err(Error::Output)?;
    if options.keep_version && reader.version() == Version::V1_0 {
        let version = reader.version().name();
        sink.key(IMAGE_VERSION)
            .and_then(|()| sink.string(version))
            .map_err(Error::Output)?;
    }
    sink.key("entries")
        .and_then(|()| sink.begin_array())
        .map_err(Error::Output)?;
    while write_next_entry(&mut reader, sink, options)? {}
    sink.end_array()
        .and_then(|()| sink.end_object())
        .map_err(Error::Output)
}

/// The same as a tree.
pub fn image_to_value(from: impl Read, options: DecodeOptions) -> Result<serde_json::Value> {
    let mut tree = TreeBuilder::default();
    image_to_json(from, &mut tree, options)?;
    Ok(tree.into_value().unwrap_or_default())
}

/// Reads the next entry and writes it as an object; false at the end of the image.
fn write_next_entry<R: Read, S: Sink + ?Sized>(
    reader: &mut FrameReader<R>,
    sink: &mut S,
    options: DecodeOptions,
) -> Result<bool> {
    let Some(frame) = reader.next_frame()? else {
        return Ok(false);
    };
    if frame.is_alone && is_plain(frame.def, frame.bytes) {
        sink.begin_object().map_err(Error::Output)?;
        write_plain(sink, frame.def, frame.bytes, options.pretty).map_err(Error::Output)?;
        reader.pass();
    } else {
        let entry = reader.entry()?;
        sink.begin_object().map_err(Error::Output)?;
        write_entry(reader, &entry, sink, options)?;
    }
    sink.end_object().map_err(Error::Output)?;
    Ok(true)
}

/// Writes the keys of one entry and of its payload, which is read here.
pub fn write_entry<R: Read, S: Sink + ?Sized>(
    reader: &mut FrameReader<R>,
    entry: &Entry,
    sink: &mut S,
    options: DecodeOptions,
) -> Result<()> {
    write_fields(sink, &entry.message, options.pretty, false).map_err(Error::Output)?;
    if let Some(wire) = &entry.wire {
        sink.key(WIRE)
            .and_then(|()| sink.base64_bytes(wire))
            .map_err(Error::Output)?;
    }
    match options.payloads {
        Payloads::Full => write_extra(reader, entry, sink, options.pretty),
        Payloads::Size => write_size(reader, entry, sink),
    }
}

fn write_extra<R: Read, S: Sink + ?Sized>(
    reader: &mut FrameReader<R>,
    entry: &Entry,
    sink: &mut S,
    pretty: bool,
) -> Result<()> {
    let plan = reader.payload_of(entry);
    if plan == PayloadPlan::None {
        return Ok(());
    }
    sink.key(EXTRA).map_err(Error::Output)?;
    match plan {
        PayloadPlan::None => Ok(()),
        PayloadPlan::Bytes(count) => stream(reader, entry, Some(count), sink),
        PayloadPlan::Rest => stream(reader, entry, None, sink),
        PayloadPlan::Padded(count) => {
            stream(reader, entry, Some(count), sink)?;
            reader.padding(entry, round_up(count, 4) - count)
        }
        PayloadPlan::Queues(inq, outq) => {
            sink.begin_object().map_err(Error::Output)?;
            sink.key("inq").map_err(Error::Output)?;
            stream(reader, entry, Some(inq), sink)?;
            sink.key("outq").map_err(Error::Output)?;
            stream(reader, entry, Some(outq), sink)?;
            sink.end_object().map_err(Error::Output)
        }
        PayloadPlan::Semaphores(count) => {
            sink.begin_array().map_err(Error::Output)?;
            let bytes = reader.exactly(entry, count.saturating_mul(2))?;
            for value in bytes.chunks_exact(2) {
                let value = value
                    .iter()
                    .rev()
                    .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                sink.unsigned(value).map_err(Error::Output)?;
            }
            sink.end_array().map_err(Error::Output)?;
            reader.padding(entry, round_up(count * 2, 8) - count * 2)
        }
        PayloadPlan::Messages(count) => {
            sink.begin_array().map_err(Error::Output)?;
            for _ in 0..count {
                let head = reader.ipc_msg(entry)?;
                write_message(sink, &head.message, pretty).map_err(Error::Output)?;
                let size = head.message.u64("msize").unwrap_or(0);
                stream(reader, entry, Some(size), sink)?;
                reader.padding(entry, round_up(size, 8) - size)?;
            }
            sink.end_array().map_err(Error::Output)
        }
    }
}

/// Payload bytes as base64, in constant memory.
fn stream<R: Read, S: Sink + ?Sized>(
    reader: &mut FrameReader<R>,
    entry: &Entry,
    count: Option<u64>,
    sink: &mut S,
) -> Result<()> {
    let from = reader.payload();
    let start = from.offset;
    sink.base64(from, count).map(drop).map_err(|error| {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Error::short_payload(entry, start, from.offset - start, count.unwrap_or(0))
        } else if from.failed {
            Error::Input(error)
        } else {
            Error::Output(error)
        }
    })
}

/// Reads over a payload and writes its size, as `--nopl` asks.
fn write_size<R: Read, S: Sink + ?Sized>(
    reader: &mut FrameReader<R>,
    entry: &Entry,
    sink: &mut S,
) -> Result<()> {
    let plan = reader.payload_of(entry);
    let size = match plan {
        PayloadPlan::None => return Ok(()),
        PayloadPlan::Bytes(count) | PayloadPlan::Padded(count) => count,
        PayloadPlan::Queues(inq, outq) => inq + outq,
        PayloadPlan::Semaphores(count) => count * 2,
        PayloadPlan::Rest => 0,
        PayloadPlan::Messages(count) => return write_queue_size(reader, entry, count, sink),
    };
    let padded = match plan {
        PayloadPlan::Semaphores(_) => round_up(size, 8),
        PayloadPlan::Padded(_) => round_up(size, 4),
        _ => size,
    };
    let count = (plan != PayloadPlan::Rest).then_some(padded);
    skip(reader, entry, count)?;
    if reader.kind().spec().payload == Payload::GhostFile {
        return Ok(());
    }
    put_size(sink, size)
}

fn write_queue_size<R: Read, S: Sink + ?Sized>(
    reader: &mut FrameReader<R>,
    entry: &Entry,
    count: u64,
    sink: &mut S,
) -> Result<()> {
    let mut size = 0;
    for _ in 0..count {
        let head = reader.ipc_msg(entry)?;
        let data = head.message.u64("msize").unwrap_or(0);
        skip(reader, entry, Some(round_up(data, 8)))?;
        size += head.message.encode().len() as u64 + data;
    }
    put_size(sink, size)
}

fn put_size<S: Sink + ?Sized>(sink: &mut S, size: u64) -> Result<()> {
    let text = format!("... <{}>", size_text(size));
    sink.key(EXTRA)
        .and_then(|()| sink.string(&text))
        .map_err(Error::Output)
}

/// Reads payload bytes away.
pub(super) fn skip<R: Read>(
    reader: &mut FrameReader<R>,
    entry: &Entry,
    count: Option<u64>,
) -> Result<()> {
    let from = reader.payload();
    let start = from.offset;
    let there = io::copy(&mut from.take(count.unwrap_or(u64::MAX)), &mut io::sink())
        .map_err(Error::Input)?;
    match count {
        Some(count) if there < count => Err(Error::short_payload(entry, start, there, count)),
        _ => Ok(()),
    }
}

/// Below 1024 in bytes, else in the largest unit that gives at least 1, with one decimal unless
/// it is whole.
pub fn size_text(size: u64) -> String {
    let mut unit = 0u32;
    while size >> (10 * unit) >= 1024 {
        unit += 1;
    }
    let Some(letter) = unit
        .checked_sub(1)
        .and_then(|at| "KMGTPEZY".chars().nth(at as usize))
    else {
        return format!("{size}B");
    };
    let scale = 1u64 << (10 * unit);
    if size.is_multiple_of(scale) {
        return format!("{}{letter}B", size / scale);
    }
    format!("{:.1}{letter}B", size as f64 / scale as f64)
}

/// The number of entries, payloads skipped by their rules.
pub fn count_entries(from: impl Read) -> Result<(crate::Kind, u64)> {
    let mut reader = FrameReader::open(from)?;
    reader.lenient = true;
    let mut count = 0;
    while let Some(entry) = reader.next_entry()? {
        let plan = reader.payload_of(&entry);
        match plan {
            PayloadPlan::None => {}
            PayloadPlan::Bytes(size) => skip(&mut reader, &entry, Some(size))?,
            PayloadPlan::Rest => skip(&mut reader, &entry, None)?,
            _ => drop(reader.raw_payload(&entry)?),
        }
        count += 1;
    }
    Ok((reader.kind(), count))
}

/// Base64 text of bytes at hand, in the form of `extra`.
pub fn base64_text(bytes: &[u8]) -> String {
    let mut text = String::new();
    // Reading a slice and writing a String cannot fail.
    let _ = base64_lines(&mut &*bytes, None, |line| {
        text.push_str(line);
        text.push('\n');
        Ok(())
    });
    text
}

#[cfg(test)]
mod tests {
    use super::size_text;

    #[test]
    fn sizes() {
        for (size, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KB"),
            (10000, "9.8KB"),
            (1536, "1.5KB"),
            (1 << 20, "1MB"),
            (50000, "48.8KB"),
            (5 << 30, "5GB"),
            (u64::MAX, "16.0EB"),
        ] {
            assert_eq!(size_text(size), text);
        }
    }
}
