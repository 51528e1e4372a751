//! Heads and entries: the container every image but the raw ones is.
//!
//! A head (see `kind::Framing`), then zero or more of { 32-bit little-endian size, message,
//! payload }. Both versions of the format have the same entries and differ in the head only. The
//! reader is a stream: it holds one message at a time, never allocates more than the file really
//! has, and every complaint names the entry and its offset. The writer writes v1.1, as CRIU does
//! since version 2, and v1.0 when asked.

use crate::{
    error::{Error, Result},
    kind::{Framing, Kind},
    required::first_absent,
};
use crust_proto::schema;
use prost::Message;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// The largest message read or written, in bytes. The largest real ones are mm entries: 50 bytes
/// for each of a task's areas.
pub const MAX_MESSAGE: u32 = 64 * 1024 * 1024;

/// How much a payload of unknown truth is read at once.
const PIECE: usize = 1024 * 1024;

/// The version of a set of images, which only shows in the heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `inventory_entry.img_version` 1.
    V1_0,
    /// `inventory_entry.img_version` 2.
    V1_1,
}

impl Version {
    /// From `inventory_entry.img_version`.
    pub fn of_inventory(img_version: u32) -> Option<Version> {
        match img_version {
            1 => Some(Version::V1_0),
            2 => Some(Version::V1_1),
            _ => None,
        }
    }
}

/// The bytes an image of `kind` begins with.
pub fn head(kind: Kind, version: Version) -> Vec<u8> {
    let spec = kind.spec();
    let prefix = match version {
        Version::V1_0 => None,
        Version::V1_1 => spec.framing.prefix(),
    };
    let magic = (spec.framing != Framing::Raw).then_some(spec.magic);
    prefix
        .into_iter()
        .chain(magic)
        .flat_map(u32::to_le_bytes)
        .collect()
}

/// Reads the entries of one image. `R` should be buffered: sizes are read word by word.
#[derive(Debug)]
pub struct ImageReader<R> {
    input: R,
    file: String,
    kind: Kind,
    /// Bytes consumed so far.
    offset: u64,
    /// Length of the file, where the input has one.
    len: Option<u64>,
    /// Entries begun so far, the one last read included.
    entries: u64,
    /// Offset of the entry last read, for messages.
    entry_offset: u64,
    buffer: Vec<u8>,
}

impl<R: Read> ImageReader<R> {
    /// Reads and checks the head. `file` is the name for messages; `len` the length of the whole
    /// file in bytes if it is known, which lets impossible sizes be refused before reading.
    pub fn new(
        input: R,
        file: impl Into<String>,
        kind: Kind,
        version: Version,
        len: Option<u64>,
    ) -> Result<Self> {
        let mut reader = ImageReader {
            input,
            file: file.into(),
            kind,
            offset: 0,
            len,
            entries: 0,
            entry_offset: 0,
            buffer: Vec::new(),
        };
        reader.check_head(version)?;
        Ok(reader)
    }

    fn check_head(&mut self, version: Version) -> Result<()> {
        let expected = head(self.kind, version);
        let mut found = Vec::with_capacity(expected.len());
        (&mut self.input)
            .take(expected.len() as u64)
            .read_to_end(&mut found)
            .map_err(|source| Error::io(&self.file, "read the head", source))?;
        self.offset = found.len() as u64;
        if found == expected {
            return Ok(());
        }
        Err(Error::Head {
            file: self.file.clone(),
            what: explain_head(self.kind, version, &found),
        })
    }

    /// The next entry, `None` at the end of the image. Call it only at the boundary of an entry:
    /// the payload of the one before must have been read or skipped.
    pub fn next_entry<M: Message + Default>(&mut self) -> Result<Option<M>> {
        if !self.next_bytes()? {
            return Ok(None);
        }
        let name = self.kind.message_at(self.entry());
        self.decode(name, self.entry_offset).map(Some)
    }

    /// Makes a message of the buffer. `name` is what the schema calls it, `offset` where it was.
    fn decode<M: Message + Default>(&self, name: Option<&str>, offset: u64) -> Result<M> {
        let message = M::decode(self.buffer.as_slice()).map_err(|source| Error::Message {
            file: self.file.clone(),
            entry: self.entry(),
            offset,
            source,
        })?;
        let def = name.and_then(schema::message);
        match def.and_then(|def| first_absent(def, &self.buffer)) {
            None => Ok(message),
            Some(absent) => {
                let what = format!("required in {} and absent", absent.message);
                Err(self.field_error(absent.field, what))
            }
        }
    }

    /// All entries up to the end, for images without payloads.
    pub fn rest<M: Message + Default>(&mut self) -> Result<Vec<M>> {
        let mut entries = Vec::new();
        while let Some(entry) = self.next_entry()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    /// The one entry of an image that has exactly one.
    pub fn only<M: Message + Default>(&mut self) -> Result<M> {
        let Some(entry) = self.next_entry()? else {
            self.entry_offset = self.offset;
            return Err(self.frame_error("the image has no entry and must have one"));
        };
        if self.next_bytes()? {
            return Err(self.frame_error("the image has a second entry and must have one"));
        }
        Ok(entry)
    }

    /// Reads the bytes of the next message into the buffer; false at the end of the image.
    fn next_bytes(&mut self) -> Result<bool> {
        self.entry_offset = self.offset;
        let Some(size) = self.next_size()? else {
            return Ok(false);
        };
        self.next_message(size)?;
        Ok(true)
    }

    /// A framed message inside the payload of the entry last read. `name` is what the schema calls
    /// it, e.g. `ipc_msg`.
    pub fn next_nested<M: Message + Default>(&mut self, name: &str) -> Result<M> {
        let offset = self.offset;
        let Some(size) = self.read_size()? else {
            return Err(self.frame_error("the file ends where a message of the payload should be"));
        };
        self.next_message(size)?;
        self.decode(Some(name), offset)
    }

    fn next_size(&mut self) -> Result<Option<u32>> {
        // Counted before the size is judged, so that a complaint names this entry.
        self.entries += 1;
        let size = self.read_size()?;
        if size.is_none() {
            self.entries -= 1;
        }
        Ok(size)
    }

    /// The size word that begins a frame, `None` at the end of the file.
    fn read_size(&mut self) -> Result<Option<u32>> {
        self.buffer.clear();
        self.fill(4, "read the size of an entry")?;
        match *self.buffer.as_slice() {
            [] => Ok(None),
            [a, b, c, d] => self
                .checked_size(i32::from_le_bytes([a, b, c, d]))
                .map(Some),
            ref part => {
                let found = part.len();
                Err(self.frame_error(format!(
                    "the file ends after {found} of the 4 bytes of a size"
                )))
            }
        }
    }

    fn next_message(&mut self, size: u32) -> Result<()> {
        self.buffer.clear();
        self.fill(u64::from(size), "read an entry")?;
        let found = self.buffer.len();
        if found as u64 == u64::from(size) {
            return Ok(());
        }
        Err(self.frame_error(format!(
            "the file ends after {found} of the message's {size} bytes"
        )))
    }

    fn checked_size(&self, size: i32) -> Result<u32> {
        let size = u32::try_from(size)
            .map_err(|_| self.frame_error(format!("the size of the message is {size}")))?;
        if size > MAX_MESSAGE {
            return Err(self.frame_error(format!(
                "the size of the message is {size}, the limit is {MAX_MESSAGE}"
            )));
        }
        self.check_remaining(u64::from(size), "message")?;
        Ok(size)
    }

    /// Appends up to `len` bytes to the buffer; fewer at the end of the file. Memory grows with
    /// what arrives, not with what was promised.
    fn fill(&mut self, len: u64, doing: &'static str) -> Result<()> {
        let before = self.buffer.len();
        (&mut self.input)
            .take(len)
            .read_to_end(&mut self.buffer)
            .map_err(|source| Error::io(&self.file, doing, source))?;
        self.offset += (self.buffer.len() - before) as u64;
        Ok(())
    }

    fn check_remaining(&self, wanted: u64, of_what: &str) -> Result<()> {
        let Some(remaining) = self.remaining() else {
            return Ok(());
        };
        if wanted <= remaining {
            return Ok(());
        }
        Err(self.frame_error(format!(
            "the {of_what} has {wanted} bytes, the file only {remaining} more"
        )))
    }

    /// Bytes between here and the end of the file, where its length is known.
    pub fn remaining(&self) -> Option<u64> {
        Some(self.len?.saturating_sub(self.offset))
    }

    /// Reads `len` bytes of payload into memory.
    pub fn read_payload(&mut self, len: u64) -> Result<Vec<u8>> {
        self.check_remaining(len, "payload")?;
        let mut payload = Vec::new();
        self.stream_payload(len, |piece| {
            payload.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(payload)
    }

    /// Reads `len` bytes of payload and gives them to `take` in pieces of at most 1 MiB.
    pub fn stream_payload(
        &mut self,
        len: u64,
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.check_remaining(len, "payload")?;
        let mut left = len;
        while left > 0 {
            let got = self.next_piece(left)?;
            if got == 0 {
                return Err(self.frame_error(format!(
                    "the file ends {left} bytes before the end of a payload of {len}"
                )));
            }
            take(&self.buffer)?;
            left -= got;
        }
        Ok(())
    }

    /// Gives everything up to the end of the file to `take` in pieces of at most 1 MiB; returns
    /// how many bytes that were.
    pub fn stream_rest(&mut self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<u64> {
        let mut total = 0;
        loop {
            let got = self.next_piece(u64::MAX)?;
            if got == 0 {
                return Ok(total);
            }
            total += got;
            take(&self.buffer)?;
        }
    }

    fn next_piece(&mut self, most: u64) -> Result<u64> {
        self.buffer.clear();
        self.fill(most.min(PIECE as u64), "read a payload")?;
        Ok(self.buffer.len() as u64)
    }

    /// Passes over `len` bytes of payload.
    pub fn skip_payload(&mut self, len: u64) -> Result<()> {
        self.stream_payload(len, |_| Ok(()))
    }

    /// Number of the entry last read, from 0.
    pub fn entry(&self) -> u64 {
        self.entries.saturating_sub(1)
    }

    /// Bytes consumed so far: the offset in the file of what comes next.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The name of the file, for messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The input behind the last entry.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// An error about the frame of the entry last read.
    pub fn frame_error(&self, what: impl Into<String>) -> Error {
        Error::Frame {
            file: self.file.clone(),
            entry: self.entry(),
            offset: self.entry_offset,
            what: what.into(),
        }
    }

    /// An error about a field of the entry last read.
    pub fn field_error(&self, field: &'static str, what: impl Into<String>) -> Error {
        Error::Field {
            file: self.file.clone(),
            entry: self.entry(),
            field,
            what: what.into(),
        }
    }
}

impl<R: Read + Seek> ImageReader<R> {
    /// Passes over `len` bytes of payload without reading them.
    pub fn seek_payload(&mut self, len: u64) -> Result<()> {
        self.check_remaining(len, "payload")?;
        let (true, Ok(by)) = (self.len.is_some(), i64::try_from(len)) else {
            // Without a known length only reading tells whether the bytes are there.
            return self.skip_payload(len);
        };
        self.input
            .seek_relative(by)
            .map_err(|source| Error::io(&self.file, "seek behind a payload", source))?;
        self.offset += len;
        Ok(())
    }
}

/// Says what a wrong head looks like: another image, another version, too short.
fn explain_head(kind: Kind, version: Version, found: &[u8]) -> String {
    let mut words = found
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| u32::from_le_bytes(*bytes));
    let name = kind.spec().name;
    let (first, second) = (words.next(), words.next());
    let Some(first) = first else {
        return format!("the file is too short for the head of a {name} image");
    };
    let prefixed =
        Framing::Common.prefix() == Some(first) || Framing::Service.prefix() == Some(first);
    match (version, prefixed, second) {
        (Version::V1_0, true, _) => {
            format!("a head of v1.1, but the inventory says these images are v1.0 ({first:#010x})")
        }
        (Version::V1_1, true, None) => {
            format!("the file is too short for the head of a {name} image")
        }
        (Version::V1_1, true, Some(magic)) => format!(
            "not a {name} image: its head is {first:#010x} and {}",
            describe_magic(magic)
        ),
        (Version::V1_1, false, _) if first == kind.spec().magic => {
            "a head of v1.0, but the inventory says these images are v1.1".to_owned()
        }
        (_, false, _) => format!(
            "not a {name} image: it begins with {}",
            describe_magic(first)
        ),
    }
}

fn describe_magic(magic: u32) -> String {
    match Kind::by_magic(magic) {
        Some(kind) => format!("{magic:#010x}, the magic of {}", kind.spec().name),
        None => format!("{magic:#010x}"),
    }
}

/// Writes the entries of one image.
#[derive(Debug)]
pub struct ImageWriter<W> {
    output: W,
    file: String,
    entries: u64,
    offset: u64,
    buffer: Vec<u8>,
}

impl<W: Write> ImageWriter<W> {
    /// Writes the head of v1.1. `file` is the name for messages. `output` should be buffered.
    pub fn new(output: W, file: impl Into<String>, kind: Kind) -> Result<Self> {
        Self::with_version(output, file, kind, Version::V1_1)
    }

    /// Writes the head of `version`.
    pub fn with_version(
        output: W,
        file: impl Into<String>,
        kind: Kind,
        version: Version,
    ) -> Result<Self> {
        let mut writer = ImageWriter {
            output,
            file: file.into(),
            entries: 0,
            offset: 0,
            buffer: Vec::new(),
        };
        writer.write(&head(kind, version), "write the head")?;
        Ok(writer)
    }

    /// Writes one message with its size. A payload, if there is one, comes next.
    pub fn entry(&mut self, message: &impl Message) -> Result<()> {
        self.nested(message)?;
        self.entries += 1;
        Ok(())
    }

    /// Writes a framed message that is part of the payload of the entry last written.
    pub fn nested(&mut self, message: &impl Message) -> Result<()> {
        let size = message.encoded_len();
        if size > MAX_MESSAGE as usize {
            return Err(Error::Frame {
                file: self.file.clone(),
                entry: self.entries,
                offset: self.offset,
                what: format!("the message would have {size} bytes, the limit is {MAX_MESSAGE}"),
            });
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        // The limit is far below i32::MAX.
        buffer.extend_from_slice(&(size as u32).to_le_bytes());
        message
            .encode(&mut buffer)
            .map_err(|source| Error::io(&self.file, "encode an entry", io::Error::other(source)))?;
        let written = self.write(&buffer, "write an entry");
        self.buffer = buffer;
        written
    }

    /// An error about a field of the entry that is to be written next.
    pub fn field_error(&self, field: &'static str, what: impl Into<String>) -> Error {
        Error::Field {
            file: self.file.clone(),
            entry: self.entries,
            field,
            what: what.into(),
        }
    }

    /// Writes bytes that follow a message.
    pub fn payload(&mut self, bytes: &[u8]) -> Result<()> {
        self.write(bytes, "write a payload")
    }

    /// Copies exactly `len` bytes of `input` behind a message.
    pub fn payload_from(&mut self, input: &mut impl Read, len: u64) -> Result<()> {
        let copied = io::copy(&mut input.take(len), &mut self.output)
            .map_err(|source| Error::io(&self.file, "copy a payload", source))?;
        self.offset += copied;
        if copied == len {
            return Ok(());
        }
        let source = io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("the source ended after {copied} of {len} bytes"),
        );
        Err(Error::io(&self.file, "copy a payload", source))
    }

    /// Copies exactly `len` bytes of `input` from `offset` on behind a message.
    pub fn payload_at(
        &mut self,
        input: &mut (impl Read + Seek),
        offset: u64,
        len: u64,
    ) -> Result<()> {
        input
            .seek(SeekFrom::Start(offset))
            .map_err(|source| Error::io(&self.file, "seek to a payload", source))?;
        self.payload_from(input, len)
    }

    fn write(&mut self, bytes: &[u8], doing: &'static str) -> Result<()> {
        self.output
            .write_all(bytes)
            .map_err(|source| Error::io(&self.file, doing, source))?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Bytes written so far, the head included.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many entries were written.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Flushes and gives the output back. Without it a full disk could pass unseen: dropping a
    /// buffered file does not report errors.
    pub fn finish(mut self) -> Result<W> {
        self.output
            .flush()
            .map_err(|source| Error::io(&self.file, "flush", source))?;
        Ok(self.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_proto::criu::{PipeDataEntry, PstreeEntry};

    fn pstree(pid: u32) -> PstreeEntry {
        PstreeEntry {
            pid,
            ppid: 0,
            pgid: pid,
            sid: pid,
            threads: vec![pid],
        }
    }

    fn image(version: Version) -> Vec<u8> {
        let mut writer =
            ImageWriter::with_version(Vec::new(), "pstree.img", Kind::Pstree, version).unwrap();
        writer.entry(&pstree(7)).unwrap();
        writer.entry(&pstree(70000)).unwrap();
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8], kind: Kind, version: Version) -> Result<Vec<PstreeEntry>> {
        ImageReader::new(bytes, "pstree.img", kind, version, Some(bytes.len() as u64))?.rest()
    }

    #[test]
    fn both_versions_round_trip() {
        for version in [Version::V1_0, Version::V1_1] {
            let bytes = image(version);
            assert_eq!(
                read(&bytes, Kind::Pstree, version).unwrap(),
                [pstree(7), pstree(70000)]
            );
        }
        assert_eq!(image(Version::V1_0).len() + 4, image(Version::V1_1).len());
    }

    #[test]
    fn a_wrong_head_is_explained() {
        let told =
            |bytes: &[u8], kind, version| read(bytes, kind, version).unwrap_err().to_string();
        let v1_1 = image(Version::V1_1);
        let v1_0 = image(Version::V1_0);
        assert!(told(&v1_1, Kind::Files, Version::V1_1).contains("the magic of PSTREE"));
        assert!(told(&v1_0, Kind::Pstree, Version::V1_1).contains("a head of v1.0"));
        assert!(told(&v1_1, Kind::Pstree, Version::V1_0).contains("a head of v1.1"));
        assert!(told(&v1_1[..6], Kind::Pstree, Version::V1_1).contains("too short"));
        assert!(told(&[], Kind::Pstree, Version::V1_1).contains("too short"));
    }

    #[test]
    fn every_truncation_is_noticed_or_is_a_boundary() {
        let bytes = image(Version::V1_1);
        let boundary = {
            let mut reader =
                ImageReader::new(&bytes[..], "x", Kind::Pstree, Version::V1_1, None).unwrap();
            reader.next_entry::<PstreeEntry>().unwrap();
            reader.offset() as usize
        };
        for end in 0..bytes.len() {
            for len in [None, Some(end as u64)] {
                let read = ImageReader::new(&bytes[..end], "x", Kind::Pstree, Version::V1_1, len)
                    .and_then(|mut reader| reader.rest::<PstreeEntry>());
                assert_eq!(read.is_ok(), end == 8 || end == boundary, "{end}");
            }
        }
    }

    #[test]
    fn an_impossible_size_names_entry_and_offset() {
        let mut bytes = image(Version::V1_1);
        bytes[8..12].copy_from_slice(&(-1i32).to_le_bytes());
        let told = read(&bytes, Kind::Pstree, Version::V1_1)
            .unwrap_err()
            .to_string();
        assert_eq!(
            told,
            "pstree.img: entry 0 at byte 8: the size of the message is -1"
        );

        bytes[8..12].copy_from_slice(&i32::MAX.to_le_bytes());
        let told = read(&bytes, Kind::Pstree, Version::V1_1)
            .unwrap_err()
            .to_string();
        assert!(told.contains("the limit is"), "{told}");
    }

    #[test]
    fn an_absent_required_field_is_refused() {
        let mut bytes = image(Version::V1_1);
        // The entry without its first field, the pid.
        bytes.splice(8..14, [bytes[8] - 2, 0, 0, 0]);
        let told = read(&bytes, Kind::Pstree, Version::V1_1)
            .unwrap_err()
            .to_string();
        assert_eq!(
            told,
            "pstree.img: entry 0: pid: required in pstree_entry and absent"
        );
    }

    #[test]
    fn a_payload_longer_than_the_file_is_refused() {
        let mut writer = ImageWriter::new(Vec::new(), "pipes-data.img", Kind::PipesData).unwrap();
        let entry = PipeDataEntry {
            pipe_id: 1,
            bytes: u32::MAX,
            ..PipeDataEntry::default()
        };
        writer.entry(&entry).unwrap();
        writer.payload(b"short").unwrap();
        let bytes = writer.finish().unwrap();
        for len in [None, Some(bytes.len() as u64)] {
            let mut reader = ImageReader::new(
                &bytes[..],
                "pipes-data.img",
                Kind::PipesData,
                Version::V1_1,
                len,
            )
            .unwrap();
            reader.next_entry::<PipeDataEntry>().unwrap();
            assert!(reader.read_payload(u64::from(u32::MAX)).is_err());
        }
    }
}
