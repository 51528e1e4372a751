//! JSON to image: any white space and key order, compact or pretty form.
//!
//! What does not fit is refused with entry and field: a key that no field has, a payload whose
//! length is not the one the message tells. A payload of more than a mebibyte is written as it is
//! read, for which `extra` must be the last key of its entry, as decode writes it.

use super::decode::{EXTRA, IMAGE_VERSION, WIRE};
use super::error::{Error, Result};
use super::frame::{Entry, PayloadPlan, Version, put_framed, put_head, round_up};
use super::members::{Key, MemberError, Members, message_of, twice};
use super::message::{FieldError, described};
use super::read::{Base64State, Reader, decode_base64};
use crate::dynamic::Message;
use crate::kind::{Kind, Payload};
use crust_proto::schema::{self, MessageDef};
use serde_json::Value as Json;
use std::io::{Read, Write};

/// How much of a payload is held before it must be written.
const HELD: usize = 1 << 20;

/// How an image is written.
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodeOptions {
    /// The head to write; else what `image_version` says, else 1.1.
    pub version: Option<Version>,
}

/// Reads one object and writes the image. Returns its kind.
pub fn json_to_image<R: Read>(
    from: &mut Reader<R>,
    out: &mut dyn Write,
    options: EncodeOptions,
) -> Result<Kind> {
    let mut top = Top {
        magic: None,
        version: options.version,
        fixed: options.version.is_some(),
    };
    let mut early: Option<Vec<Json>> = None;
    let mut written = None;
    let mut more = from.open(b'{', b'}')?;
    while more {
        let key = from.key()?;
        match (key.as_str(), top.magic) {
            ("entries", Some(kind)) if written.is_none() => {
                written = Some(encode_entries(from, kind, top.version(), out)?);
            }
            ("entries", None) if early.is_none() => early = Some(entry_array(from)?),
            _ if written.is_some() && key == IMAGE_VERSION => {
                return Err(from
                    .error(format!("\"{IMAGE_VERSION}\" must stand before \"entries\""))
                    .into());
            }
            _ => top.take(&key, from)?,
        }
        more = from.more(b'}')?;
    }
    let Some(kind) = top.magic else {
        return Err(Error::value(None, "", "the key \"magic\" is missing"));
    };
    match (written, early) {
        (Some(()), _) => {}
        (None, Some(entries)) => {
            let mut encoder = Encoder::begin(kind, top.version(), out)?;
            entries.iter().try_for_each(|entry| encoder.put(entry))?;
        }
        (None, None) => return Err(Error::value(None, "", "the key \"entries\" is missing")),
    }
    Ok(kind)
}

/// The same from a tree.
pub fn value_to_image(value: &Json, out: &mut dyn Write, options: EncodeOptions) -> Result<Kind> {
    let text = value.to_string();
    let mut reader = Reader::new(text.as_bytes());
    json_to_image(&mut reader, out, options)
}

/// The keys beside the entries.
struct Top {
    magic: Option<Kind>,
    version: Option<Version>,
    /// The version was asked for: what the JSON says does not count.
    fixed: bool,
}

impl Top {
    fn version(&self) -> Version {
        self.version.unwrap_or(Version::V1_1)
    }

    fn take<R: Read>(&mut self, key: &str, from: &mut Reader<R>) -> Result<()> {
        let value = from.value()?;
        let text = value.as_str();
        match key {
            "magic" if self.magic.is_none() => {
                let kind = text.and_then(Kind::by_name);
                self.magic = Some(kind.ok_or_else(|| {
                    Error::value(
                        None,
                        "magic",
                        format!("{} is the magic of no image", described(&value)),
                    )
                })?);
            }
            IMAGE_VERSION => {
                let version = text.and_then(Version::by_name);
                let version = version.ok_or_else(|| {
                    Error::value(
                        None,
                        key,
                        format!("1.0 or 1.1 is meant to be here, not {}", described(&value)),
                    )
                })?;
                if !self.fixed {
                    self.version = Some(version);
                }
            }
            "magic" | "entries" => {
                return Err(from.error(format!("the key \"{key}\" stands twice")).into());
            }
            _ => {
                return Err(Error::value(
                    None,
                    "",
                    format!("an image has no key \"{key}\""),
                ));
            }
        }
        Ok(())
    }
}

fn entry_array<R: Read>(from: &mut Reader<R>) -> Result<Vec<Json>> {
    match from.value()? {
        Json::Array(entries) => Ok(entries),
        other => Err(Error::value(
            None,
            "entries",
            format!("an array is meant to be here, not {}", described(&other)),
        )),
    }
}

fn encode_entries<R: Read>(
    from: &mut Reader<R>,
    kind: Kind,
    version: Version,
    out: &mut dyn Write,
) -> Result<()> {
    let mut encoder = Encoder::begin(kind, version, out)?;
    let mut more = from.open(b'[', b']')?;
    while more {
        encoder.read_entry(from)?;
        more = from.more(b']')?;
    }
    Ok(())
}

/// The payload of an entry as it came.
enum Extra {
    Absent,
    Json(Json),
    /// Base64 that was decoded while it was read.
    Bytes(Vec<u8>),
    /// The same, of which more follows.
    Open(Vec<u8>, Base64State),
}

/// Writes entry after entry.
pub struct Encoder<'a> {
    kind: Kind,
    out: &'a mut dyn Write,
    index: u64,
    chunks: bool,
    /// A ghost file's whole content was written: nothing can follow.
    ended: bool,
}

impl<'a> Encoder<'a> {
    /// Writes the head.
    pub fn begin(kind: Kind, version: Version, out: &'a mut dyn Write) -> Result<Encoder<'a>> {
        put_head(out, kind, version).map_err(Error::Output)?;
        Ok(Encoder {
            kind,
            out,
            index: 0,
            chunks: false,
            ended: false,
        })
    }

    /// Writes an entry from a tree.
    pub fn put(&mut self, entry: &Json) -> Result<()> {
        let text = entry.to_string();
        self.read_entry(&mut Reader::new(text.as_bytes()))
    }

    /// Reads an entry and writes it, a large payload in pieces.
    fn read_entry<R: Read>(&mut self, from: &mut Reader<R>) -> Result<()> {
        if self.ended {
            return Err(self.wrong("", "an entry behind the whole content of a ghost file"));
        }
        if from.peek()? != Some(b'{') {
            let there = described(&from.value()?);
            return Err(self.wrong("", format!("an object is meant to be here, not {there}")));
        }
        let def = self.message_def()?;
        let mut members = Members::new(def);
        let mut wire = None;
        let mut extra = Extra::Absent;
        let mut more = from.open(b'{', b'}')?;
        while more {
            match Key::read(&mut members, from)? {
                Key::Other(name) if name == EXTRA => {
                    if !matches!(extra, Extra::Absent) {
                        return Err(twice(from, &name).into());
                    }
                    extra = match self.read_extra(from)? {
                        Extra::Open(held, base64) => {
                            let entry = self.entry(members, wire)?;
                            return self.stream(from, entry, held, base64);
                        }
                        held => held,
                    };
                }
                Key::Other(name) if name == WIRE => {
                    let there = wire.replace(from.value()?);
                    if there.is_some() {
                        return Err(twice(from, &name).into());
                    }
                }
                key => members
                    .take(key, from)
                    .map_err(|error| self.member(error))?,
            }
            more = from.more(b'}')?;
        }
        let entry = self.entry(members, wire)?;
        let plan = self.plan(&entry);
        let payload = self.payload_bytes(plan, extra)?;
        put_framed(self.out, &entry.bytes()).map_err(Error::Output)?;
        self.out.write_all(&payload).map_err(Error::Output)?;
        self.next(plan);
        Ok(())
    }

    /// Reads a payload; one of bytes only as far as it may be held.
    fn read_extra<R: Read>(&self, from: &mut Reader<R>) -> Result<Extra> {
        let is_bytes = !matches!(
            self.kind.spec().payload,
            Payload::None | Payload::TcpStream | Payload::IpcSem | Payload::IpcMsg
        );
        if !is_bytes || from.peek()? != Some(b'"') {
            return Ok(Extra::Json(from.value()?));
        }
        let mut base64 = from.base64()?;
        let mut held = Vec::new();
        while held.len() < HELD {
            if !base64.read_piece(&mut held)? {
                return Ok(Extra::Bytes(held));
            }
        }
        Ok(Extra::Open(held, base64.pause()))
    }

    /// Writes an entry whose payload was read in part.
    fn stream<R: Read>(
        &mut self,
        from: &mut Reader<R>,
        entry: Entry,
        mut held: Vec<u8>,
        base64: Base64State,
    ) -> Result<()> {
        let plan = self.plan(&entry);
        put_framed(self.out, &entry.bytes()).map_err(Error::Output)?;
        let mut base64 = from.resume(base64);
        let mut total = 0;
        loop {
            total += held.len() as u64;
            self.out.write_all(&held).map_err(Error::Output)?;
            held.clear();
            if !base64.read_piece(&mut held)? {
                break;
            }
        }
        self.check_length(plan, total)?;
        self.pad(plan, total)?;
        if from.more(b'}')? {
            let what = "for a payload of this size, \"extra\" must be the last key of its entry";
            return Err(from.error(what).into());
        }
        self.next(plan);
        Ok(())
    }

    fn next(&mut self, plan: PayloadPlan) {
        self.index += 1;
        self.ended = plan == PayloadPlan::Rest;
    }

    /// The entry of the members that were read.
    fn entry(&mut self, members: Members, wire: Option<Json>) -> Result<Entry> {
        let message = members.finish().map_err(|error| self.at(error))?;
        let wire = match wire {
            None => None,
            Some(Json::String(text)) => {
                Some(decode_base64(&text).map_err(|what| self.wrong(WIRE, what))?)
            }
            Some(other) => {
                return Err(self.wrong(
                    WIRE,
                    format!("base64 is meant to be here, not {}", described(&other)),
                ));
            }
        };
        self.chunks |= self.index == 0 && message.flag("chunks");
        Ok(Entry {
            index: self.index,
            offset: 0,
            message,
            wire,
        })
    }

    fn message_def(&self) -> Result<&'static MessageDef> {
        let name = self.kind.message_at(self.index);
        name.and_then(schema::message)
            .ok_or_else(|| self.wrong("", "images of this kind have no messages"))
    }

    fn plan(&self, entry: &Entry) -> PayloadPlan {
        super::frame::payload_plan(self.kind, self.chunks, entry.index, &entry.message)
    }

    fn payload_bytes(&self, plan: PayloadPlan, extra: Extra) -> Result<Vec<u8>> {
        match plan {
            PayloadPlan::None => match extra {
                Extra::Absent => Ok(Vec::new()),
                _ => Err(self.wrong(EXTRA, "nothing follows this message in an image")),
            },
            PayloadPlan::Bytes(_) | PayloadPlan::Padded(_) | PayloadPlan::Rest => {
                let mut bytes = self.plain_bytes(plan, extra)?;
                self.check_length(plan, bytes.len() as u64)?;
                if matches!(plan, PayloadPlan::Padded(_)) {
                    pad(&mut bytes, 4);
                }
                Ok(bytes)
            }
            PayloadPlan::Queues(inq, outq) => self.queues(inq, outq, extra),
            PayloadPlan::Semaphores(count) => self.semaphores(count, extra),
            PayloadPlan::Messages(count) => self.queued_messages(count, extra),
        }
    }

    fn plain_bytes(&self, plan: PayloadPlan, extra: Extra) -> Result<Vec<u8>> {
        match extra {
            // What is open never comes here: it is streamed.
            Extra::Bytes(bytes) | Extra::Open(bytes, _) => Ok(bytes),
            Extra::Json(value) => self.base64(EXTRA, &value),
            Extra::Absent if matches!(plan, PayloadPlan::Rest) => Err(self.wrong(
                EXTRA,
                "the content of a ghost file is missing (\"\" if it has none)",
            )),
            Extra::Absent => Ok(Vec::new()),
        }
    }

    fn base64(&self, path: &str, value: &Json) -> Result<Vec<u8>> {
        match value {
            Json::String(text) if text.starts_with("... <") => Err(self.wrong(
                path,
                "the payload was left out (--nopl): there is nothing to encode",
            )),
            Json::String(text) => decode_base64(text).map_err(|what| self.wrong(path, what)),
            other => Err(self.wrong(
                path,
                format!("base64 is meant to be here, not {}", described(other)),
            )),
        }
    }

    fn check_length(&self, plan: PayloadPlan, there: u64) -> Result<()> {
        match plan {
            PayloadPlan::Bytes(wanted) | PayloadPlan::Padded(wanted) if wanted != there => {
                Err(self.wrong(
                    EXTRA,
                    format!("{there} bytes where the message says {wanted}"),
                ))
            }
            PayloadPlan::None => Err(self.wrong(EXTRA, "nothing follows this message in an image")),
            _ => Ok(()),
        }
    }

    fn pad(&mut self, plan: PayloadPlan, total: u64) -> Result<()> {
        if !matches!(plan, PayloadPlan::Padded(_)) {
            return Ok(());
        }
        let zeros = vec![0; (round_up(total, 4) - total) as usize];
        self.out.write_all(&zeros).map_err(Error::Output)
    }

    fn queues(&self, inq: u64, outq: u64, extra: Extra) -> Result<Vec<u8>> {
        let value = match extra {
            Extra::Json(value) => value,
            _ if inq == 0 && outq == 0 => return Ok(Vec::new()),
            _ => return Err(self.wrong(EXTRA, "the queues are missing")),
        };
        let (Some(first), Some(second)) = (value.get("inq"), value.get("outq")) else {
            return Err(self.wrong(
                EXTRA,
                "an object with \"inq\" and \"outq\" is meant to be here",
            ));
        };
        let mut bytes = self.queue("extra.inq", first, inq)?;
        bytes.append(&mut self.queue("extra.outq", second, outq)?);
        Ok(bytes)
    }

    fn queue(&self, path: &str, value: &Json, wanted: u64) -> Result<Vec<u8>> {
        let bytes = self.base64(path, value)?;
        if bytes.len() as u64 != wanted {
            return Err(self.wrong(
                path,
                format!("{} bytes where the message says {wanted}", bytes.len()),
            ));
        }
        Ok(bytes)
    }

    fn semaphores(&self, count: u64, extra: Extra) -> Result<Vec<u8>> {
        let values = self.items(extra)?;
        if values.len() as u64 != count {
            return Err(self.wrong(
                EXTRA,
                format!("{} values where nsems is {count}", values.len()),
            ));
        }
        let mut bytes = Vec::new();
        for (index, value) in values.iter().enumerate() {
            let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
            let number = number.ok_or_else(|| {
                self.wrong(
                    &format!("extra[{index}]"),
                    format!("{} is no value of a semaphore", described(value)),
                )
            })?;
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        pad(&mut bytes, 8);
        Ok(bytes)
    }

    fn queued_messages(&self, count: u64, extra: Extra) -> Result<Vec<u8>> {
        let items = self.items(extra)?;
        if items.len() as u64 != count.saturating_mul(2) {
            return Err(self.wrong(
                EXTRA,
                format!(
                    "{} items where qnum is {count}: two are needed for each",
                    items.len()
                ),
            ));
        }
        let def = schema::message("ipc_msg")
            .ok_or_else(|| self.wrong(EXTRA, "the schema has no ipc_msg"))?;
        let mut bytes = Vec::new();
        for (index, pair) in items.chunks_exact(2).enumerate() {
            let [head, data] = pair else { continue };
            let path = format!("extra[{}]", index * 2);
            let head = message_of(def, head).map_err(|error| self.at(error.inside(&path)))?;
            self.put_queued(&mut bytes, index, &head, data)?;
        }
        Ok(bytes)
    }

    fn put_queued(
        &self,
        bytes: &mut Vec<u8>,
        index: usize,
        head: &Message,
        data: &Json,
    ) -> Result<()> {
        let path = format!("extra[{}]", index * 2 + 1);
        let mut data = self.queue(&path, data, head.u64("msize").unwrap_or(0))?;
        put_framed(bytes, &head.encode()).map_err(Error::Output)?;
        pad(&mut data, 8);
        bytes.append(&mut data);
        Ok(())
    }

    fn items(&self, extra: Extra) -> Result<Vec<Json>> {
        match extra {
            Extra::Json(Json::Array(items)) => Ok(items),
            Extra::Absent => Ok(Vec::new()),
            _ => Err(self.wrong(EXTRA, "an array is meant to be here")),
        }
    }

    fn wrong(&self, path: &str, what: impl Into<String>) -> Error {
        Error::value(Some(self.index), path, what)
    }

    fn member(&self, error: MemberError) -> Error {
        match error {
            MemberError::Json(error) => error.into(),
            MemberError::Field(error) => self.at(error),
        }
    }

    fn at(&self, error: FieldError) -> Error {
        Error::Value {
            entry: Some(self.index),
            error,
        }
    }
}

fn pad(bytes: &mut Vec<u8>, to: u64) {
    let padded = round_up(bytes.len() as u64, to);
    bytes.resize(padded as usize, 0);
}
