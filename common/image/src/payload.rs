//! The bytes which belong to an entry but lie outside its message.
//!
//! Nine images have such payloads (`kind::Payload` says which); each rule is one type here that
//! reads and writes the entry together with its bytes. Lengths come from fields of the message and
//! are checked against what the file really holds before memory is spent on them. Ghost files,
//! which can be large, are in `ghost` and are streamed.

use crate::{
    entry::{ImageReader, ImageWriter},
    error::Result,
};
use crust_proto::criu::{
    BpfmapDataEntry, IpcMsg, IpcMsgEntry, IpcSemEntry, IpcShmEntry, PipeDataEntry, SkPacketEntry,
    TcpStreamEntry,
};
use std::io::{Read, Write};

/// An entry with the bytes that follow its message.
pub trait PayloadEntry: Sized {
    /// The next entry with its payload, `None` at the end of the image.
    fn read<R: Read>(reader: &mut ImageReader<R>) -> Result<Option<Self>>;

    /// Writes the message and the payload. The lengths inside the message are taken from the
    /// payload, so that the two cannot differ.
    fn write<W: Write>(&self, writer: &mut ImageWriter<W>) -> Result<()>;

    /// All entries up to the end of the image.
    fn read_all<R: Read>(reader: &mut ImageReader<R>) -> Result<Vec<Self>> {
        let mut all = Vec::new();
        while let Some(entry) = Self::read(reader)? {
            all.push(entry);
        }
        Ok(all)
    }
}

/// `len` rounded up to a multiple of `unit`; what the payload occupies.
fn padded(len: u64, unit: u64) -> u64 {
    len.checked_next_multiple_of(unit).unwrap_or(u64::MAX)
}

fn read_padded<R: Read>(reader: &mut ImageReader<R>, len: u64, unit: u64) -> Result<Vec<u8>> {
    let bytes = reader.read_payload(len)?;
    reader.skip_payload(padded(len, unit) - len)?;
    Ok(bytes)
}

fn write_padded<W: Write>(writer: &mut ImageWriter<W>, bytes: &[u8], unit: u64) -> Result<()> {
    let len = bytes.len() as u64;
    // The padding is less than `unit`, which is 4 or 8.
    let padding = (padded(len, unit) - len) as usize;
    writer.payload(bytes)?;
    writer.payload(&[0; 8][..padding.min(8)])
}

/// The length of a payload as the 32-bit field that announces it.
fn length<W: Write>(writer: &ImageWriter<W>, bytes: &[u8], field: &'static str) -> Result<u32> {
    u32::try_from(bytes.len()).map_err(|_| {
        writer.field_error(
            field,
            format!("{} bytes are more than an image can hold", bytes.len()),
        )
    })
}

/// What was queued in a pipe or fifo.
#[derive(Debug, Clone, PartialEq)]
pub struct PipeData {
    /// `size` is the capacity of the pipe, `bytes` the length of the data.
    pub entry: PipeDataEntry,
    /// The queued bytes.
    pub bytes: Vec<u8>,
}

impl PayloadEntry for PipeData {
    fn read<R: Read>(reader: &mut ImageReader<R>) -> Result<Option<Self>> {
        let Some(entry) = reader.next_entry::<PipeDataEntry>()? else {
            return Ok(None);
        };
        let bytes = reader.read_payload(entry.bytes.into())?;
        Ok(Some(PipeData { entry, bytes }))
    }

    fn write<W: Write>(&self, writer: &mut ImageWriter<W>) -> Result<()> {
        let bytes = length(writer, &self.bytes, "bytes")?;
        writer.entry(&PipeDataEntry {
            bytes,
            ..self.entry.clone()
        })?;
        writer.payload(&self.bytes)
    }
}

/// A packet, or a segment of a stream, queued at a unix socket.
#[derive(Debug, Clone, PartialEq)]
pub struct SkPacket {
    /// `id_for` is the file id of the receiving socket.
    pub entry: SkPacketEntry,
    /// The queued bytes.
    pub bytes: Vec<u8>,
}

impl PayloadEntry for SkPacket {
    fn read<R: Read>(reader: &mut ImageReader<R>) -> Result<Option<Self>> {
        let Some(entry) = reader.next_entry::<SkPacketEntry>()? else {
            return Ok(None);
        };
        let bytes = reader.read_payload(entry.length.into())?;
        Ok(Some(SkPacket { entry, bytes }))
    }

    fn write<W: Write>(&self, writer: &mut ImageWriter<W>) -> Result<()> {
        let length = length(writer, &self.bytes, "length")?;
        writer.entry(&SkPacketEntry {
            length,
            ..self.entry.clone()
        })?;
        writer.payload(&self.bytes)
    }
}

/// A TCP connection with its queues.
#[derive(Debug, Clone, PartialEq)]
pub struct TcpStream {
    /// Sequence numbers, windows and options.
    pub entry: TcpStreamEntry,
    /// Received and not yet read.
    pub inq: Vec<u8>,
    /// Written and not yet acknowledged; the last `unsq_len` bytes were never sent.
    pub outq: Vec<u8>,
}

impl PayloadEntry for TcpStream {
    fn read<R: Read>(reader: &mut ImageReader<R>) -> Result<Option<Self>> {
        let Some(entry) = reader.next_entry::<TcpStreamEntry>()? else {
            return Ok(None);
        };
        let inq = reader.read_payload(entry.inq_len.into())?;
        let outq = reader.read_payload(entry.outq_len.into())?;
        Ok(Some(TcpStream { entry, inq, outq }))
    }

    fn write<W: Write>(&self, writer: &mut ImageWriter<W>) -> Result<()> {
        let inq_len = length(writer, &self.inq, "inq_len")?;
        let outq_len = length(writer, &self.outq, "outq_len")?;
        writer.entry(&TcpStreamEntry {
            inq_len,
            outq_len,
            ..self.entry
        })?;
        writer.payload(&self.inq)?;
        writer.payload(&self.outq)
    }
}

/// The content of a BPF map.
#[derive(Debug, Clone, PartialEq)]
pub struct BpfMapData {
    /// `count` is the number of keys and of values.
    pub entry: BpfmapDataEntry,
    /// The keys, back to back.
    pub keys: Vec<u8>,
    /// The values, back to back.
    pub values: Vec<u8>,
}

impl PayloadEntry for BpfMapData {
    fn read<R: Read>(reader: &mut ImageReader<R>) -> Result<Option<Self>> {
        let Some(entry) = reader.next_entry::<BpfmapDataEntry>()? else {
            return Ok(None);
        };
        let keys = reader.read_payload(entry.keys_bytes.into())?;
        let values = reader.read_payload(entry.values_bytes.into())?;
        Ok(Some(BpfMapData {
            entry,
            keys,
            values,
        }))
    }

    fn write<W: Write>(&self, writer: &mut ImageWriter<W>) -> Result<()> {
        let keys_bytes = length(writer, &self.keys, "keys_bytes")?;
        let values_bytes = length(writer, &self.values, "values_bytes")?;
        writer.entry(&BpfmapDataEntry {
            keys_bytes,
            values_bytes,
            ..self.entry
        })?;
        writer.payload(&self.keys)?;
        writer.payload(&self.values)
    }
}

/// A SysV semaphore set with its values.
#[derive(Debug, Clone, PartialEq)]
pub struct IpcSem {
    /// `nsems` is the number of values.
    pub entry: IpcSemEntry,
    /// The value of each semaphore.
    pub values: Vec<u16>,
}

impl PayloadEntry for IpcSem {
    fn read<R: Read>(reader: &mut ImageReader<R>) -> Result<Option<Self>> {
        let Some(entry) = reader.next_entry::<IpcSemEntry>()? else {
            return Ok(None);
        };
        let bytes = read_padded(reader, u64::from(entry.nsems) * 2, 8)?;
        let (pairs, _) = bytes.as_chunks::<2>();
        let values = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
        Ok(Some(IpcSem { entry, values }))
    }

    fn write<W: Write>(&self, writer: &mut ImageWriter<W>) -> Result<()> {
        let bytes: Vec<u8> = self
            .values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let nsems = length(writer, &bytes, "nsems")? / 2;
        writer.entry(&IpcSemEntry {
            nsems,
            ..self.entry
        })?;
        write_padded(writer, &bytes, 8)
    }
}

/// A SysV message queue with its messages, oldest first.
#[derive(Debug, Clone, PartialEq)]
pub struct IpcMsgQueue {
    /// `qnum` is the number of messages.
    pub entry: IpcMsgEntry,
    /// Each message and its text.
    pub messages: Vec<(IpcMsg, Vec<u8>)>,
}

impl PayloadEntry for IpcMsgQueue {
    fn read<R: Read>(reader: &mut ImageReader<R>) -> Result<Option<Self>> {
        let Some(entry) = reader.next_entry::<IpcMsgEntry>()? else {
            return Ok(None);
        };
        let mut messages = Vec::new();
        for _ in 0..entry.qnum {
            let message: IpcMsg = reader.next_nested("ipc_msg")?;
            let text = read_padded(reader, message.msize.into(), 8)?;
            messages.push((message, text));
        }
        Ok(Some(IpcMsgQueue { entry, messages }))
    }

    fn write<W: Write>(&self, writer: &mut ImageWriter<W>) -> Result<()> {
        let qnum = u32::try_from(self.messages.len())
            .map_err(|_| writer.field_error("qnum", "more messages than an image can hold"))?;
        writer.entry(&IpcMsgEntry { qnum, ..self.entry })?;
        for (message, text) in &self.messages {
            let msize = length(writer, text, "msize")?;
            writer.nested(&IpcMsg { msize, ..*message })?;
            write_padded(writer, text, 8)?;
        }
        Ok(())
    }
}

/// A SysV shared memory segment.
#[derive(Debug, Clone, PartialEq)]
pub struct IpcShm {
    /// `size` is the length of the segment in bytes.
    pub entry: IpcShmEntry,
    /// The content, in images of old versions; since then it is in `pagemap-shmem-<id>.img` and
    /// `in_pagemaps` is true.
    pub content: Option<Vec<u8>>,
}

impl PayloadEntry for IpcShm {
    fn read<R: Read>(reader: &mut ImageReader<R>) -> Result<Option<Self>> {
        let Some(entry) = reader.next_entry::<IpcShmEntry>()? else {
            return Ok(None);
        };
        let content = match entry.in_pagemaps {
            Some(true) => None,
            _ => Some(read_padded(reader, entry.size, 4)?),
        };
        Ok(Some(IpcShm { entry, content }))
    }

    fn write<W: Write>(&self, writer: &mut ImageWriter<W>) -> Result<()> {
        let Some(content) = &self.content else {
            return writer.entry(&IpcShmEntry {
                in_pagemaps: Some(true),
                ..self.entry
            });
        };
        writer.entry(&IpcShmEntry {
            size: content.len() as u64,
            in_pagemaps: self.entry.in_pagemaps.filter(|inside| !inside),
            ..self.entry
        })?;
        write_padded(writer, content, 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{entry::Version, kind::Kind};
    use std::fmt::Debug;

    fn bytes_of<T: PayloadEntry>(kind: Kind, entries: &[T]) -> Vec<u8> {
        let mut writer = ImageWriter::new(Vec::new(), "x", kind).unwrap();
        for entry in entries {
            entry.write(&mut writer).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read_from<T: PayloadEntry>(kind: Kind, bytes: &[u8]) -> Result<Vec<T>> {
        let len = Some(bytes.len() as u64);
        T::read_all(&mut ImageReader::new(bytes, "x", kind, Version::V1_1, len)?)
    }

    /// Round trip; and every truncation and every flipped bit gives entries or an error, no panic
    /// and no more memory than the image is worth.
    fn torture<T: PayloadEntry + PartialEq + Debug>(kind: Kind, entries: &[T]) {
        let bytes = bytes_of(kind, entries);
        assert_eq!(read_from::<T>(kind, &bytes).unwrap(), entries);
        for end in 0..bytes.len() {
            if let Ok(read) = read_from::<T>(kind, &bytes[..end]) {
                assert!(read.len() < entries.len(), "a whole set out of {end} bytes");
            }
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let _ = read_from::<T>(kind, &flipped);
        }
    }

    #[test]
    fn pipes() {
        let data = |pipe_id, bytes: &[u8]| PipeData {
            entry: PipeDataEntry {
                pipe_id,
                bytes: bytes.len() as u32,
                size: Some(65536),
                crust_packets: vec![2, 3],
            },
            bytes: bytes.to_vec(),
        };
        torture(Kind::PipesData, &[data(1, b"hello"), data(2, b"")]);
    }

    #[test]
    fn packets() {
        let packet = SkPacket {
            entry: SkPacketEntry {
                id_for: 4,
                length: 3,
                scm: vec![],
                crust_sender: Some(b"/run/s".to_vec()),
                crust_sender_ids: None,
            },
            bytes: vec![1, 2, 3],
        };
        torture(Kind::SkQueues, &[packet.clone(), packet]);
    }

    #[test]
    fn tcp() {
        let stream = TcpStream {
            entry: TcpStreamEntry {
                inq_len: 2,
                outq_len: 4,
                ..Default::default()
            },
            inq: vec![1, 2],
            outq: vec![3, 4, 5, 6],
        };
        torture(Kind::TcpStream, &[stream]);
    }

    #[test]
    fn bpf_maps() {
        let map = BpfMapData {
            entry: BpfmapDataEntry {
                map_id: 1,
                keys_bytes: 4,
                values_bytes: 8,
                count: 1,
            },
            keys: vec![1; 4],
            values: vec![2; 8],
        };
        torture(Kind::BpfmapData, &[map.clone(), map]);
    }

    #[test]
    fn semaphores_are_padded_to_8_bytes() {
        let set = |values: &[u16]| IpcSem {
            entry: IpcSemEntry {
                nsems: values.len() as u32,
                ..Default::default()
            },
            values: values.to_vec(),
        };
        for count in 0..9 {
            let values: Vec<u16> = (1..=count).collect();
            torture(Kind::IpcnsSem, &[set(&values), set(&[9])]);
        }
        let none = bytes_of(Kind::IpcnsSem, &[set(&[])]).len();
        assert_eq!(bytes_of(Kind::IpcnsSem, &[set(&[1])]).len(), none + 8);
        assert_eq!(bytes_of(Kind::IpcnsSem, &[set(&[1; 5])]).len(), none + 16);
    }

    #[test]
    fn message_queues() {
        let message = |text: &[u8]| {
            let header = IpcMsg {
                mtype: 5,
                msize: text.len() as u32,
            };
            (header, text.to_vec())
        };
        let queue = IpcMsgQueue {
            entry: IpcMsgEntry {
                qnum: 3,
                ..Default::default()
            },
            messages: vec![message(b""), message(b"12345678"), message(b"123456789")],
        };
        torture(Kind::IpcnsMsg, &[queue.clone(), queue]);
    }

    #[test]
    fn segments_with_and_without_content() {
        let inside = IpcShm {
            entry: IpcShmEntry {
                size: 5,
                ..Default::default()
            },
            content: Some(vec![7; 5]),
        };
        let elsewhere = IpcShm {
            entry: IpcShmEntry {
                size: u64::MAX,
                in_pagemaps: Some(true),
                ..Default::default()
            },
            content: None,
        };
        torture(Kind::IpcnsShm, &[inside, elsewhere]);
    }

    #[test]
    fn a_segment_of_impossible_size_is_refused() {
        let mut writer = ImageWriter::new(Vec::new(), "x", Kind::IpcnsShm).unwrap();
        let entry = IpcShmEntry {
            size: u64::MAX,
            ..Default::default()
        };
        writer.entry(&entry).unwrap();
        let bytes = writer.finish().unwrap();
        assert!(read_from::<IpcShm>(Kind::IpcnsShm, &bytes).is_err());
    }
}
