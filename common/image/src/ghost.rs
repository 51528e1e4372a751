//! Ghost files: the content of files that were open and had no name any more.
//!
//! A ghost-file image is a description, then the content of a regular file: either everything up
//! to the end of the image, or, for files with room for holes, chunks with offset and length.
//! Content can be large, so it is not loaded: reading gives an index of where each extent lies in
//! the image, from which it is copied file to file. Directories, fifos, devices, sockets and
//! symlinks have a description only.

use crate::{
    dir::ImageDir,
    entry::{ImageReader, ImageWriter},
    error::Result,
    kind::Kind,
};
use crust_proto::criu::{GhostChunkEntry, GhostFileEntry};
use nix::sys::stat::SFlag;
use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::fs::FileExt,
};

/// How much is copied at once.
const PIECE: usize = 1024 * 1024;
/// From this length on a regular file is stored in chunks, as the peer does.
const CHUNKED_FROM: u64 = 12288;
/// The longest chunk: what a reader may have to hold at once.
const LONGEST_CHUNK: u64 = 1 << 20;

/// A piece of content; what no extent covers is a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GhostExtent {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Offset of the bytes in the image.
    pub image_offset: u64,
}

/// A ghost file: its description, and where its content lies in the image.
#[derive(Debug, Clone, PartialEq)]
pub struct Ghost {
    /// Owner, mode, times, device numbers, target of a symlink.
    pub entry: GhostFileEntry,
    /// Length of the file in bytes.
    pub size: u64,
    /// The content, in the order of the image.
    pub extents: Vec<GhostExtent>,
}

impl Ghost {
    /// Reads `ghost-file-<id>.img`, `None` if there is none.
    pub fn load(dir: &ImageDir, id: u32) -> Result<Option<Ghost>> {
        match dir.open_image(Kind::GhostFile, Some(id.into()))? {
            Some(mut reader) => Ghost::read(&mut reader).map(Some),
            None => Ok(None),
        }
    }

    /// Reads the description and indexes the content. The reader must know the length of its file.
    pub fn read<R: Read + Seek>(reader: &mut ImageReader<R>) -> Result<Ghost> {
        let Some(entry) = reader.next_entry::<GhostFileEntry>()? else {
            return Err(reader.frame_error("the image ends before its ghost_file_entry"));
        };
        if !is_regular(entry.mode) {
            return Ghost::without_content(reader, entry);
        }
        if entry.chunks == Some(true) {
            return Ghost::read_chunks(reader, entry);
        }
        let len = reader.remaining().unwrap_or(0);
        let whole = GhostExtent {
            offset: 0,
            len,
            image_offset: reader.offset(),
        };
        Ok(Ghost {
            entry,
            size: len,
            extents: Vec::from_iter((len > 0).then_some(whole)),
        })
    }

    fn without_content<R: Read>(reader: &ImageReader<R>, entry: GhostFileEntry) -> Result<Ghost> {
        match reader.remaining() {
            None | Some(0) => Ok(Ghost {
                entry,
                size: 0,
                extents: Vec::new(),
            }),
            Some(left) => {
                let what = format!("{left} bytes of content behind what is no regular file");
                Err(reader.frame_error(what))
            }
        }
    }

    fn read_chunks<R: Read + Seek>(
        reader: &mut ImageReader<R>,
        entry: GhostFileEntry,
    ) -> Result<Ghost> {
        let Some(size) = entry.size else {
            return Err(reader.field_error("size", "absent, and chunks is set"));
        };
        let mut extents = Vec::new();
        while let Some(chunk) = reader.next_entry::<GhostChunkEntry>()? {
            let end = chunk.off.checked_add(chunk.len);
            if end.is_none_or(|end| end > size) {
                let what = format!("{} bytes at {} of a file of {size}", chunk.len, chunk.off);
                return Err(reader.field_error("len", what));
            }
            extents.push(GhostExtent {
                offset: chunk.off,
                len: chunk.len,
                image_offset: reader.offset(),
            });
            reader.seek_payload(chunk.len)?;
        }
        Ok(Ghost {
            entry,
            size,
            extents,
        })
    }

    /// Gives `target`, an empty file, the length and content of the ghost; holes stay holes.
    /// `image` is the image it was read from; the offsets of neither descriptor are moved.
    pub fn copy_content(&self, image: &File, target: &File) -> io::Result<()> {
        target.set_len(self.size)?;
        let mut buffer = Vec::new();
        for extent in &self.extents {
            let mut done = 0;
            while done < extent.len {
                // At most PIECE, so it fits.
                let piece = (extent.len - done).min(PIECE as u64) as usize;
                buffer.resize(piece, 0);
                image.read_exact_at(&mut buffer, extent.image_offset + done)?;
                target.write_all_at(&buffer, extent.offset + done)?;
                done += piece as u64;
            }
        }
        Ok(())
    }
}

/// Whether a mode is that of a regular file: the only kind with content.
pub fn is_regular(mode: u32) -> bool {
    mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
}

/// Whether the content of a file of this mode and length is written as chunks.
pub fn is_chunked(mode: u32, len: u64) -> bool {
    is_regular(mode) && len >= CHUNKED_FROM
}

/// Writes a ghost: the description and, of a regular file, the content. `extents` are the offsets
/// and lengths of what is no hole in `content`, ascending; not looked at if there are no chunks.
pub fn write_ghost<W: Write>(
    writer: &mut ImageWriter<W>,
    entry: &GhostFileEntry,
    content: &mut (impl Read + Seek),
    len: u64,
    extents: &[(u64, u64)],
) -> Result<()> {
    writer.entry(entry)?;
    if !is_regular(entry.mode) {
        return Ok(());
    }
    if entry.chunks != Some(true) {
        return writer.payload_from(content, len);
    }
    for (offset, len) in cut(extents) {
        write_chunk(writer, offset, len, content)?;
    }
    Ok(())
}

/// One chunk: `len` bytes of `content` at `offset`.
fn write_chunk<W: Write>(
    writer: &mut ImageWriter<W>,
    offset: u64,
    len: u64,
    content: &mut (impl Read + Seek),
) -> Result<()> {
    writer.entry(&GhostChunkEntry { len, off: offset })?;
    writer.payload_at(content, offset, len)
}

/// Extents cut to pieces a reader can hold.
fn cut(extents: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut chunks = Vec::new();
    for &(mut off, mut len) in extents {
        while len > 0 {
            let part = len.min(LONGEST_CHUNK);
            chunks.push((off, part));
            off += part;
            len -= part;
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{entry::Version, sink::ImageSink, sink::write_entry, testing::TestDir};
    use crust_proto::criu::InventoryEntry;
    use std::io::Cursor;

    fn regular(size: Option<u64>) -> GhostFileEntry {
        GhostFileEntry {
            mode: 0o100_644,
            chunks: size.map(|_| true),
            size,
            ..Default::default()
        }
    }

    fn image(entry: &GhostFileEntry, chunks: &[(u64, &[u8])]) -> Vec<u8> {
        let mut writer = ImageWriter::new(Vec::new(), "ghost", Kind::GhostFile).unwrap();
        writer.entry(entry).unwrap();
        for (off, content) in chunks.iter().copied() {
            let len = content.len() as u64;
            writer.entry(&GhostChunkEntry { len, off }).unwrap();
            writer.payload(content).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Ghost> {
        let len = Some(bytes.len() as u64);
        let input = Cursor::new(bytes);
        Ghost::read(&mut ImageReader::new(
            input,
            "ghost",
            Kind::GhostFile,
            Version::V1_1,
            len,
        )?)
    }

    #[test]
    fn chunks_keep_their_holes() {
        let at = TestDir::new();
        let dir = at.subdir("d");
        let inventory = InventoryEntry {
            img_version: 2,
            ..Default::default()
        };
        write_entry(&dir, Kind::Inventory, None, &inventory).unwrap();
        let bytes = image(
            &regular(Some(20_000)),
            &[(0, b"begin"), (12_288, b"middle")],
        );
        dir.create_raw_file(Kind::GhostFile, Some(0x1f))
            .unwrap()
            .write_all(&bytes)
            .unwrap();

        let ghost = Ghost::load(&dir, 0x1f).unwrap().unwrap();
        let image = dir.open_file(Kind::GhostFile, Some(0x1f)).unwrap().unwrap();
        let target = dir.create_raw_file(Kind::Pages, Some(1)).unwrap();
        ghost.copy_content(&image, &target).unwrap();
        let mut content = vec![0; 20_000];
        target.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(target.metadata().unwrap().len(), 20_000);
        assert_eq!(&content[..5], b"begin");
        assert_eq!(&content[12_288..12_294], b"middle");
        assert_eq!(content.iter().filter(|byte| **byte != 0).count(), 11);
        assert_eq!(Ghost::load(&dir, 1).unwrap(), None);
    }

    #[test]
    fn whole_content_is_the_rest_of_the_image() {
        let mut bytes = image(&regular(None), &[]);
        let head = bytes.len() as u64;
        assert_eq!(read(&bytes).unwrap().extents, []);
        bytes.extend_from_slice(b"content");
        let ghost = read(&bytes).unwrap();
        assert_eq!(ghost.size, 7);
        let extent = GhostExtent {
            offset: 0,
            len: 7,
            image_offset: head,
        };
        assert_eq!(ghost.extents, [extent]);
    }

    #[test]
    fn only_regular_files_have_content() {
        let fifo = GhostFileEntry {
            mode: 0o010_600,
            ..Default::default()
        };
        let mut bytes = image(&fifo, &[]);
        assert_eq!(read(&bytes).unwrap().extents, []);
        bytes.push(0);
        assert!(read(&bytes).is_err());
    }

    #[test]
    fn chunks_outside_of_the_file_are_refused() {
        let bytes = image(&regular(Some(10)), &[(6, b"12345")]);
        let told = read(&bytes).unwrap_err().to_string();
        assert_eq!(told, "ghost: entry 1: len: 5 bytes at 6 of a file of 10");
        assert!(read(&image(&regular(Some(10)), &[(u64::MAX, b"1")])).is_err());
        let without_size = GhostFileEntry {
            size: None,
            ..regular(Some(1))
        };
        assert!(read(&image(&without_size, &[])).is_err());
    }

    #[test]
    fn long_extents_are_cut() {
        let mib = 1 << 20;
        let expected = [
            (0, 4096),
            (409_600, mib),
            (409_600 + mib, mib),
            (409_600 + 2 * mib, 1),
        ];
        assert_eq!(cut(&[(0, 4096), (409_600, 2 * mib + 1)]), expected);
    }

    #[test]
    fn every_truncation_is_noticed_or_is_a_boundary() {
        let bytes = image(&regular(Some(20)), &[(0, b"12345"), (8, b"678")]);
        let whole = (0..=bytes.len()).filter(|end| read(&bytes[..*end]).is_ok());
        // Behind the description, the first chunk and the second.
        assert_eq!(whole.count(), 3);
    }
}
