//! An image taken apart into its entries, in one pass over any `Read`, and put together again.
//!
//! Strict where the peer's tools guess: a head that does not belong to the magic, a negative size,
//! a message or payload that ends early are errors with entry and byte offset. Memory is bounded
//! by the bytes that are there, never by a length that a hostile image claims.

use super::error::{Error, Result};
use crate::dynamic::Message;
use crate::entry::MAX_MESSAGE;
use crate::kind::{Framing, IMG_COMMON_MAGIC, IMG_SERVICE_MAGIC, Kind, Payload};
use crust_proto::schema::{self, MessageDef};
use std::io::{self, Read, Write};

/// Up to here bytes are read into room made beforehand.
const SMALL: u64 = 1 << 16;

/// Which head an image has. The inventory's is the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1_0,
    V1_1,
}

impl Version {
    pub fn name(self) -> &'static str {
        match self {
            Version::V1_0 => "1.0",
            Version::V1_1 => "1.1",
        }
    }

    pub fn by_name(name: &str) -> Option<Version> {
        [Version::V1_0, Version::V1_1]
            .into_iter()
            .find(|version| version.name() == name)
    }
}

/// One entry without its payload.
#[derive(Debug, Clone)]
pub struct Entry {
    /// 0 is the first.
    pub index: u64,
    /// Where its size word begins.
    pub offset: u64,
    pub message: Message,
    /// The message as it stood, when that is not the canonical form `message.encode()` gives.
    pub wire: Option<Vec<u8>>,
}

/// The bytes of the message of an entry.
pub(super) struct Frame<'a> {
    pub def: &'static MessageDef,
    pub bytes: &'a [u8],
    /// No payload can follow.
    pub is_alone: bool,
}

/// Reads entry after entry.
pub struct FrameReader<R: Read> {
    from: Counting<R>,
    kind: Kind,
    version: Version,
    next: u64,
    /// The message of the entry `next_frame` gave, and where the entry began.
    bytes: Vec<u8>,
    began: u64,
    /// A ghost file whose further entries are chunks.
    chunks: bool,
    /// Accept a message without its required fields.
    pub lenient: bool,
}

/// A reader that knows where it is and whether reading itself failed.
pub struct Counting<R: Read> {
    from: R,
    pub offset: u64,
    pub failed: bool,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(into).inspect_err(|error| {
            self.failed = error.kind() != io::ErrorKind::Interrupted;
        })?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl<R: Read> FrameReader<R> {
    /// Reads the head.
    pub fn open(from: R) -> Result<FrameReader<R>> {
        let mut from = Counting {
            from,
            offset: 0,
            failed: false,
        };
        let first = head_word(&mut from)?;
        let prefixed = first == IMG_COMMON_MAGIC || first == IMG_SERVICE_MAGIC;
        let magic = if prefixed {
            head_word(&mut from)?
        } else {
            first
        };
        let kind = Kind::by_magic(magic).ok_or(Error::UnknownMagic(magic))?;
        let framing = kind.spec().framing;
        if prefixed && framing.prefix() != Some(first) {
            let what = format!("{} images do not begin with {first:#x}", kind.spec().name);
            return Err(Error::at(None, 0, what));
        }
        let bare = framing == Framing::Bare;
        let version = if prefixed || bare {
            Version::V1_1
        } else {
            Version::V1_0
        };
        Ok(FrameReader {
            from,
            kind,
            version,
            next: 0,
            bytes: Vec::new(),
            began: 0,
            chunks: false,
            lenient: false,
        })
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn version(&self) -> Version {
        self.version
    }

    /// The next entry, `None` at the end. The payload of the one before must have been read.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        match self.next_frame()? {
            None => Ok(None),
            Some(_) => self.entry().map(Some),
        }
    }

    /// Reads the message of the next entry, `None` at the end. `entry` or `pass` must follow.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        let def = self.message_def()?;
        self.began = self.from.offset;
        let mut bytes = std::mem::take(&mut self.bytes);
        let there = self.read_framed(self.next, &mut bytes)?;
        self.bytes = bytes;
        Ok(there.then_some(Frame {
            def,
            bytes: &self.bytes,
            is_alone: self.kind.spec().payload == Payload::None,
        }))
    }

    /// The entry whose message `next_frame` gave.
    pub(super) fn entry(&mut self) -> Result<Entry> {
        let (index, offset) = (self.next, self.began);
        let def = self.message_def()?;
        let entry = decode_entry(def, &self.bytes, index, offset)?;
        if let Some(missing) = entry.message.first_missing().filter(|_| !self.lenient) {
            return Err(Error::at(
                Some(index),
                offset,
                format!("the required field {missing} is missing"),
            ));
        }
        self.chunks |= index == 0 && entry.message.flag("chunks");
        self.pass();
        Ok(entry)
    }

    /// Goes on behind the message `next_frame` gave, which has no payload.
    pub(super) fn pass(&mut self) {
        self.next += 1;
    }

    fn message_def(&self) -> Result<&'static MessageDef> {
        let name = self.kind.message_at(self.next);
        name.and_then(schema::message).ok_or_else(|| {
            let what = "images of this kind have no messages";
            Error::at(None, self.from.offset, what)
        })
    }

    /// Reads a size word and as many bytes; false when the image ends before it.
    fn read_framed(&mut self, index: u64, bytes: &mut Vec<u8>) -> Result<bool> {
        let offset = self.from.offset;
        bytes.clear();
        self.take_into(4, bytes)?;
        let word: [u8; 4] = match (bytes.as_slice().try_into(), bytes.len()) {
            (Ok(word), _) => word,
            (Err(_), 0) => return Ok(false),
            (Err(_), there) => {
                let what =
                    format!("the image ends inside the size of the entry ({there} of 4 bytes)");
                return Err(Error::at(Some(index), offset, what));
            }
        };
        let size = i32::from_le_bytes(word);
        let wanted = u64::try_from(size)
            .ok()
            .filter(|size| *size <= u64::from(MAX_MESSAGE))
            .ok_or_else(|| {
                let what = format!("the size of the entry is {size} (at most {MAX_MESSAGE})");
                Error::at(Some(index), offset, what)
            })?;
        bytes.clear();
        self.take_into(wanted, bytes)?;
        if (bytes.len() as u64) < wanted {
            let what = format!(
                "the image ends inside the message ({} of {wanted} bytes)",
                bytes.len()
            );
            return Err(Error::at(Some(index), offset, what));
        }
        Ok(true)
    }

    /// Appends `count` bytes, fewer at the end of the image. Memory grows with what arrives.
    fn take_into(&mut self, count: u64, into: &mut Vec<u8>) -> Result<()> {
        if count > SMALL {
            let mut from = Read::take(&mut self.from, count);
            return from.read_to_end(into).map(drop).map_err(Error::Input);
        }
        // Most messages are small, and there are many of them.
        let mut at = into.len();
        into.resize(at + count as usize, 0);
        while let Some(rest) = into.get_mut(at..).filter(|rest| !rest.is_empty()) {
            match self.from.read(rest) {
                Ok(0) => break,
                Ok(more) => at += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Input(error)),
            }
        }
        into.truncate(at);
        Ok(())
    }

    /// How the entry just read goes on.
    pub fn payload_of(&self, entry: &Entry) -> PayloadPlan {
        payload_plan(self.kind, self.chunks, entry.index, &entry.message)
    }

    /// The bytes behind the entry just read. Take exactly what `payload_of` says.
    pub fn payload(&mut self) -> &mut Counting<R> {
        &mut self.from
    }

    /// Exactly `count` bytes of payload.
    pub fn exactly(&mut self, entry: &Entry, count: u64) -> Result<Vec<u8>> {
        let offset = self.from.offset;
        let mut bytes = Vec::new();
        self.take_into(count, &mut bytes)?;
        if (bytes.len() as u64) < count {
            return Err(Error::short_payload(
                entry,
                offset,
                bytes.len() as u64,
                count,
            ));
        }
        Ok(bytes)
    }

    /// `count` bytes of padding, which must be zero: anything else would be lost.
    pub fn padding(&mut self, entry: &Entry, count: u64) -> Result<()> {
        let offset = self.from.offset;
        if self.exactly(entry, count)?.iter().any(|byte| *byte != 0) {
            return Err(Error::at(
                Some(entry.index),
                offset,
                "the padding of the payload is not zero",
            ));
        }
        Ok(())
    }

    /// The payload of the entry as it stands in the image, padding included.
    pub fn raw_payload(&mut self, entry: &Entry) -> Result<Vec<u8>> {
        match self.payload_of(entry) {
            PayloadPlan::None => Ok(Vec::new()),
            PayloadPlan::Bytes(count) => self.exactly(entry, count),
            PayloadPlan::Padded(count) => self.exactly(entry, round_up(count, 4)),
            PayloadPlan::Queues(inq, outq) => self.exactly(entry, inq.saturating_add(outq)),
            PayloadPlan::Semaphores(count) => {
                self.exactly(entry, round_up(count.saturating_mul(2), 8))
            }
            PayloadPlan::Rest => {
                let mut bytes = Vec::new();
                self.from.read_to_end(&mut bytes).map_err(Error::Input)?;
                Ok(bytes)
            }
            PayloadPlan::Messages(count) => {
                let mut raw = Vec::new();
                for _ in 0..count {
                    let head = self.ipc_msg(entry)?;
                    put_framed(&mut raw, &head.message.encode()).map_err(Error::Input)?;
                    let size = round_up(head.message.u64("msize").unwrap_or(0), 8);
                    raw.append(&mut self.exactly(entry, size)?);
                }
                Ok(raw)
            }
        }
    }

    /// The head of one message of a SysV queue.
    pub(super) fn ipc_msg(&mut self, outer: &Entry) -> Result<Entry> {
        let offset = self.from.offset;
        let def = schema::message("ipc_msg")
            .ok_or_else(|| Error::at(Some(outer.index), offset, "the schema has no ipc_msg"))?;
        let mut bytes = Vec::new();
        if !self.read_framed(outer.index, &mut bytes)? {
            return Err(Error::at(
                Some(outer.index),
                offset,
                "the image ends before the next message of the queue",
            ));
        }
        let entry = decode_entry(def, &bytes, outer.index, offset)?;
        if entry.wire.is_some() {
            let what = "an ipc_msg that is not in canonical form";
            return Err(Error::at(Some(outer.index), offset, what));
        }
        if let Some(missing) = entry.message.first_missing() {
            let what = format!("the required field {missing} of the ipc_msg is missing");
            return Err(Error::at(Some(outer.index), offset, what));
        }
        Ok(entry)
    }
}

/// What follows a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadPlan {
    /// Nothing, and no place for it either.
    None,
    Bytes(u64),
    /// As many bytes, padded to 4.
    Padded(u64),
    /// All up to the end of the image.
    Rest,
    /// The two queues of a TCP stream.
    Queues(u64, u64),
    /// As many 16-bit values, padded to 8 bytes.
    Semaphores(u64),
    /// As many framed ipc_msg with their data, each padded to 8 bytes.
    Messages(u64),
}

/// What follows entry `index` of an image. `chunks` says that the first entry of a ghost file
/// announced chunks.
pub(super) fn payload_plan(kind: Kind, chunks: bool, index: u64, message: &Message) -> PayloadPlan {
    let number = |name: &str| message.u64(name).unwrap_or(0);
    match kind.spec().payload {
        Payload::None => PayloadPlan::None,
        Payload::PipeData => PayloadPlan::Bytes(number("bytes")),
        Payload::SkPacket => PayloadPlan::Bytes(number("length")),
        Payload::TcpStream => PayloadPlan::Queues(number("inq_len"), number("outq_len")),
        Payload::BpfmapData => PayloadPlan::Bytes(number("keys_bytes") + number("values_bytes")),
        Payload::IpcSem => PayloadPlan::Semaphores(number("nsems")),
        Payload::IpcMsg => PayloadPlan::Messages(number("qnum")),
        Payload::IpcShm if message.flag("in_pagemaps") => PayloadPlan::None,
        Payload::IpcShm => PayloadPlan::Padded(number("size")),
        Payload::GhostFile if index > 0 => PayloadPlan::Bytes(number("len")),
        Payload::GhostFile if chunks => PayloadPlan::None,
        Payload::GhostFile => PayloadPlan::Rest,
    }
}

/// Up to the next multiple of `to`, which is a power of two; 0 stays 0.
pub(super) fn round_up(count: u64, to: u64) -> u64 {
    count.div_ceil(to).saturating_mul(to)
}

fn decode_entry(def: &'static MessageDef, bytes: &[u8], index: u64, offset: u64) -> Result<Entry> {
    let message = Message::decode(def, bytes).map_err(|error| {
        Error::at(
            Some(index),
            offset + 4 + error.offset as u64,
            error.to_string(),
        )
    })?;
    let wire = (!message.was_canonical()).then(|| bytes.to_vec());
    Ok(Entry {
        index,
        offset,
        message,
        wire,
    })
}

fn head_word<R: Read>(from: &mut Counting<R>) -> Result<u32> {
    let mut word = Vec::new();
    from.take(4).read_to_end(&mut word).map_err(Error::Input)?;
    let there = word.len();
    let word: [u8; 4] = word.try_into().map_err(|_| {
        Error::at(
            None,
            from.offset,
            format!("the image ends inside its head ({there} of 4 bytes)"),
        )
    })?;
    Ok(u32::from_le_bytes(word))
}

/// Writes the head of an image.
pub fn put_head(out: &mut dyn Write, kind: Kind, version: Version) -> io::Result<()> {
    let spec = kind.spec();
    if let (Some(prefix), Version::V1_1) = (spec.framing.prefix(), version) {
        out.write_all(&prefix.to_le_bytes())?;
    }
    out.write_all(&spec.magic.to_le_bytes())
}

/// Writes a size word and the message.
pub fn put_framed(out: &mut dyn Write, message: &[u8]) -> io::Result<()> {
    let size = i32::try_from(message.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a message of more than 2 GiB"))?;
    out.write_all(&size.to_le_bytes())?;
    out.write_all(message)
}

/// A whole image in memory, payloads as they stand.
#[derive(Debug, Clone)]
pub struct Image {
    pub kind: Kind,
    pub version: Version,
    pub entries: Vec<(Entry, Vec<u8>)>,
}

impl Image {
    pub fn read(from: impl Read) -> Result<Image> {
        let mut reader = FrameReader::open(from)?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let payload = reader.raw_payload(&entry)?;
            entries.push((entry, payload));
        }
        Ok(Image {
            kind: reader.kind,
            version: reader.version,
            entries,
        })
    }

    /// The messages in order.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.entries.iter().map(|(entry, _)| &entry.message)
    }

    /// Writes the image. An entry that was not changed keeps its bytes; `Entry::wire` is used as
    /// long as it still says what the message says.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        put_head(out, self.kind, self.version)?;
        for (entry, payload) in &self.entries {
            put_framed(out, &entry.bytes())?;
            out.write_all(payload)?;
        }
        Ok(())
    }
}

impl Entry {
    /// The message's bytes: as they stood, if they still mean the same.
    pub fn bytes(&self) -> Vec<u8> {
        if let Some(wire) = &self.wire
            && Message::decode(self.message.def, wire).is_ok_and(|there| there == self.message)
        {
            return wire.clone();
        }
        self.message.encode()
    }
}
