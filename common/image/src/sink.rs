//! Where a dump writes its images: a directory, or memory.
//!
//! A dump names a kind and an id and gets a writer; it does not know about files. The one
//! exception are pages: they are copied with pwrite(2) by several threads, or by the target
//! itself, so they need a real file in either sink.

use crate::{
    entry::ImageWriter,
    error::{Error, Result},
    kind::Kind,
    payload::PayloadEntry,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use prost::Message;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, Write},
    sync::{Arc, Mutex, PoisonError},
};

/// A writer of one image, whatever the sink.
pub type SinkWriter = ImageWriter<Box<dyn Write + Send>>;

/// Where images go.
pub trait ImageSink: Send + Sync {
    /// Begins an image: head written, ready for entries. An image of the same name is replaced.
    /// Call `finish` on the writer at the end.
    fn create(&self, kind: Kind, id: Option<u64>) -> Result<SinkWriter>;

    /// Begins a raw image (pages and the like) as an empty file open for reading and writing.
    fn create_raw_file(&self, kind: Kind, id: Option<u64>) -> Result<File>;
}

/// Writes an image of `entries`. Without entries there is no image, as in CRIU.
pub fn write_entries<M: Message>(
    sink: &dyn ImageSink,
    kind: Kind,
    id: Option<u64>,
    entries: &[M],
) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut writer = sink.create(kind, id)?;
    for entry in entries {
        writer.entry(entry)?;
    }
    writer.finish().map(drop)
}

/// Writes an image that has exactly one entry.
pub fn write_entry(
    sink: &dyn ImageSink,
    kind: Kind,
    id: Option<u64>,
    entry: &impl Message,
) -> Result<()> {
    let mut writer = sink.create(kind, id)?;
    writer.entry(entry)?;
    writer.finish().map(drop)
}

/// Writes an image of entries with payloads. Without entries there is no image.
pub fn write_payload_entries<T: PayloadEntry>(
    sink: &dyn ImageSink,
    kind: Kind,
    id: Option<u64>,
    entries: &[T],
) -> Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut writer = sink.create(kind, id)?;
    for entry in entries {
        entry.write(&mut writer)?;
    }
    writer.finish().map(drop)
}

/// Images kept in memory, for tests and for comparing.
#[derive(Debug, Default)]
pub struct MemoryImages {
    images: Mutex<BTreeMap<String, Stored>>,
}

#[derive(Debug)]
enum Stored {
    Bytes(Arc<Mutex<Vec<u8>>>),
    RawFile(File),
}

impl MemoryImages {
    /// Nothing yet.
    pub fn new() -> MemoryImages {
        MemoryImages::default()
    }

    /// The names of the images, sorted.
    pub fn names(&self) -> Vec<String> {
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        images.keys().cloned().collect()
    }

    /// The bytes of an image, raw ones included.
    pub fn bytes(&self, kind: Kind, id: Option<u64>) -> Result<Option<Vec<u8>>> {
        let name = kind.file_name(id);
        let images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
        match images.get(&name) {
            None => Ok(None),
            Some(Stored::Bytes(bytes)) => Ok(Some(
                bytes.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            )),
            Some(Stored::RawFile(file)) => read_whole(file)
                .map(Some)
                .map_err(|source| Error::io(&name, "read", source)),
        }
    }

    fn store(&self, name: String, image: Stored) {
        self.images
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, image);
    }
}

fn read_whole(mut file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl ImageSink for MemoryImages {
    fn create(&self, kind: Kind, id: Option<u64>) -> Result<SinkWriter> {
        let name = kind.file_name(id);
        let bytes = Arc::new(Mutex::new(Vec::new()));
        self.store(name.clone(), Stored::Bytes(bytes.clone()));
        ImageWriter::new(Box::new(SharedBytes(bytes)), name, kind)
    }

    fn create_raw_file(&self, kind: Kind, id: Option<u64>) -> Result<File> {
        let name = kind.file_name(id);
        let failed = |source| Error::io(&name, "create in memory", source);
        let file = memfd_create(name.as_str(), MFdFlags::MFD_CLOEXEC)
            .map(File::from)
            .map_err(|errno| failed(io::Error::from(errno)))?;
        let kept = file.try_clone().map_err(failed)?;
        self.store(name, Stored::RawFile(kept));
        Ok(file)
    }
}

struct SharedBytes(Arc<Mutex<Vec<u8>>>);

impl Write for SharedBytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_proto::criu::FsEntry;

    #[test]
    fn images_in_memory() {
        let sink = MemoryImages::new();
        let entry = FsEntry {
            cwd_id: 1,
            root_id: 2,
            umask: Some(0o22),
        };
        write_entry(&sink, Kind::Fs, Some(7), &entry).unwrap();
        write_entries::<FsEntry>(&sink, Kind::Fs, Some(8), &[]).unwrap();
        let mut pages = sink.create_raw_file(Kind::Pages, Some(1)).unwrap();
        pages.write_all(b"page").unwrap();
        assert_eq!(sink.names(), ["fs-7.img", "pages-1.img"]);
        assert_eq!(
            sink.bytes(Kind::Pages, Some(1)).unwrap().as_deref(),
            Some(&b"page"[..])
        );
        let image = sink.bytes(Kind::Fs, Some(7)).unwrap().unwrap();
        assert_eq!(image[12..], prost::Message::encode_to_vec(&entry));
    }
}
