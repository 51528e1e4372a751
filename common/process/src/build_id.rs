//! The build id of an ELF file: what tells a restorer that an executable or a library has been
//! replaced by another of the same size.
//!
//! It is the note GNU/3 of a PT_NOTE segment (elf(5)). The file is somebody else's, so every
//! number in it is checked; a file that is no ELF, or a damaged one, has no build id.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;
/// Far more than any linker writes; a damaged header must not make us read the whole file.
const MOST_HEADERS: usize = 512;
const LONGEST_NOTES: u64 = 1 << 20;
const LONGEST_ID: usize = 64;

/// The build id as the words images have: four bytes each, little-endian, the last one filled up
/// with zeros. Empty when there is none.
pub fn read(file: &File) -> io::Result<Vec<u32>> {
    let mut head = [0u8; 64];
    let len = match file.read_at(&mut head, 0) {
        Ok(len) => len,
        // A directory or a device that cannot be read has none.
        Err(error) if is_no_file(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let Some(table) = head.get(..len).and_then(parse_header) else {
        return Ok(Vec::new());
    };
    let mut headers = vec![0u8; table.count * table.size];
    if !read_whole(file, &mut headers, table.offset)? {
        return Ok(Vec::new());
    }
    for header in headers.chunks_exact(table.size) {
        let Some(notes) = note_segment(header, table.wide) else {
            continue;
        };
        let mut text = vec![0u8; notes.1 as usize];
        if read_whole(file, &mut text, notes.0)?
            && let Some(id) = find_build_id(&text)
        {
            return Ok(words(id));
        }
    }
    Ok(Vec::new())
}

/// What read(2) says of things that are no files of bytes.
fn is_no_file(error: &io::Error) -> bool {
    let words = [
        libc::EISDIR,
        libc::EINVAL,
        libc::ESPIPE,
        libc::EAGAIN,
        libc::ENXIO,
    ];
    error
        .raw_os_error()
        .is_some_and(|word| words.contains(&word))
}

/// Fills `buf`; false if the file ends before.
fn read_whole(file: &File, buf: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(buf, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        // An offset that no file can have.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A build id as `file` and `readelf -n` print it.
pub fn text(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

struct HeaderTable {
    wide: bool,
    offset: u64,
    size: usize,
    count: usize,
}

fn parse_header(head: &[u8]) -> Option<HeaderTable> {
    // Little-endian only, as this machine.
    let wide = match head.get(..6)? {
        [0x7f, b'E', b'L', b'F', 2, 1] => true,
        [0x7f, b'E', b'L', b'F', 1, 1] => false,
        _ => return None,
    };
    let (offset, size, count) = if wide {
        (u64_at(head, 32)?, u16_at(head, 54)?, u16_at(head, 56)?)
    } else {
        (
            u64::from(u32_at(head, 28)?),
            u16_at(head, 42)?,
            u16_at(head, 44)?,
        )
    };
    let (size, count) = (usize::from(size), usize::from(count));
    let least = if wide { 56 } else { 32 };
    (size >= least && count <= MOST_HEADERS).then_some(HeaderTable {
        wide,
        offset,
        size,
        count,
    })
}

/// Offset and length of the notes, if the program header is one of notes.
fn note_segment(header: &[u8], wide: bool) -> Option<(u64, u64)> {
    if u32_at(header, 0)? != PT_NOTE {
        return None;
    }
    let (offset, len) = if wide {
        (u64_at(header, 8)?, u64_at(header, 32)?)
    } else {
        (
            u64::from(u32_at(header, 4)?),
            u64::from(u32_at(header, 16)?),
        )
    };
    (len <= LONGEST_NOTES).then_some((offset, len))
}

fn find_build_id(mut notes: &[u8]) -> Option<&[u8]> {
    loop {
        let name_len = u32_at(notes, 0)? as usize;
        let id_len = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let name = notes.get(12..12usize.checked_add(name_len)?)?;
        let start = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let id = notes.get(start..start.checked_add(id_len)?)?;
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" && !id.is_empty() && id_len <= LONGEST_ID {
            return Some(id);
        }
        notes = notes.get(start.checked_add(id_len.checked_next_multiple_of(4)?)?..)?;
    }
}

fn words(id: &[u8]) -> Vec<u32> {
    id.chunks(4)
        .map(|chunk| {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            u32::from_le_bytes(word)
        })
        .collect()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, id: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend((name.len() as u32).to_le_bytes());
        note.extend((id.len() as u32).to_le_bytes());
        note.extend(kind.to_le_bytes());
        note.extend(name);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(id);
        note.resize(note.len().next_multiple_of(4), 0);
        note
    }

    #[test]
    fn the_build_id_is_found_behind_other_notes() {
        let mut notes = note(b"GNU\0", 1, &[0; 16]);
        notes.extend(note(b"stapsdt\0", 3, b"no"));
        notes.extend(note(b"GNU\0", 3, &[1, 2, 3, 4, 5]));
        assert_eq!(find_build_id(&notes), Some(&[1, 2, 3, 4, 5][..]));
        assert_eq!(words(&[1, 2, 3, 4, 5]), [0x0403_0201, 5]);
    }

    #[test]
    fn damaged_notes_have_none() {
        let whole = note(b"GNU\0", 3, &[1; 20]);
        for len in 0..whole.len() {
            assert_eq!(find_build_id(&whole[..len]), None);
        }
        let mut endless = whole;
        endless[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(find_build_id(&endless), None);
    }

    #[test]
    fn a_header_with_wild_numbers_is_no_elf() {
        let mut head = [0u8; 64];
        head[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        head[54] = 56;
        head[56..58].copy_from_slice(&u16::MAX.to_le_bytes());
        assert!(parse_header(&head).is_none());
        head[56..58].copy_from_slice(&3u16.to_le_bytes());
        assert_eq!(parse_header(&head).map(|table| table.count), Some(3));
        assert!(parse_header(&head[..40]).is_none());
    }

    #[test]
    fn a_text_file_has_none() {
        let file = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
        assert!(read(&file).unwrap().is_empty());
    }
}
