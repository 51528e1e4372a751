//! The build-id of an ELF file (elf(5), NT_GNU_BUILD_ID): the linker's digest of the contents, by
//! which two builds of one program are told apart. Images hold it as 32-bit words.
//!
//! The file is whatever lies at a path, so nothing in it is believed: a file that is no ELF file,
//! or whose notes make no sense, simply has no build-id.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Type of a program header that holds notes.
const PT_NOTE: u32 = 4;
/// Type of the note.
const NT_GNU_BUILD_ID: u32 = 3;
/// Program headers that are looked at; linkers write about a dozen.
const MOST_HEADERS: u16 = 256;
/// Bytes of notes that are looked at; real ones have some hundred.
const MOST_NOTES: u64 = 64 * 1024;
/// Bytes of a build-id: SHA-1 has 20, the longest known kinds 32.
const MOST_BYTES: usize = 64;

/// Where the fields of the two ELF classes are, as byte offsets.
struct Layout {
    phoff: u64,
    phentsize: u64,
    phnum: u64,
    /// In a program header.
    offset: u64,
    filesz: u64,
    align: u64,
    word: usize,
}

const ELF32: Layout = Layout {
    phoff: 28,
    phentsize: 42,
    phnum: 44,
    offset: 4,
    filesz: 16,
    align: 28,
    word: 4,
};

const ELF64: Layout = Layout {
    phoff: 32,
    phentsize: 54,
    phnum: 56,
    offset: 8,
    filesz: 32,
    align: 48,
    word: 8,
};

/// The build-id, as the 32-bit words images hold; empty if the file has none.
pub fn read(file: &File) -> io::Result<Vec<u32>> {
    let mut ident = [0; 6];
    // Little-endian files only: those of another byte order do not run here.
    let layout = match file.read_exact_at(&mut ident, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(()) => match ident {
            [0x7f, b'E', b'L', b'F', 1, 1] => ELF32,
            [0x7f, b'E', b'L', b'F', 2, 1] => ELF64,
            _ => return Ok(Vec::new()),
        },
    };
    match find(file, &layout) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Vec::new()),
        found => found,
    }
}

fn find(file: &File, layout: &Layout) -> io::Result<Vec<u32>> {
    let table = number(file, layout.phoff, layout.word)?;
    let size = number(file, layout.phentsize, 2)?;
    let count = number(file, layout.phnum, 2)?.min(u64::from(MOST_HEADERS));
    for index in 0..count {
        let header = table.saturating_add(index * size);
        if number(file, header, 4)? != u64::from(PT_NOTE) {
            continue;
        }
        let offset = number(file, header.saturating_add(layout.offset), layout.word)?;
        let len = number(file, header.saturating_add(layout.filesz), layout.word)?;
        let align = number(file, header.saturating_add(layout.align), layout.word)?;
        let mut notes = vec![0; len.min(MOST_NOTES) as usize];
        file.read_exact_at(&mut notes, offset)?;
        if let Some(id) = parse_notes(&notes, if align == 8 { 8 } else { 4 }) {
            return Ok(words(id));
        }
    }
    Ok(Vec::new())
}

/// A little-endian number of 2, 4 or 8 bytes.
fn number(file: &File, at: u64, len: usize) -> io::Result<u64> {
    let mut bytes = [0; 8];
    let field = bytes.get_mut(..len).ok_or(io::ErrorKind::InvalidInput)?;
    file.read_exact_at(field, at)?;
    Ok(u64::from_le_bytes(bytes))
}

/// The bytes of the build-id among notes: { name length, length, type, name, bytes }, the last
/// two padded.
fn parse_notes(mut notes: &[u8], align: usize) -> Option<&[u8]> {
    loop {
        let (head, rest) = notes.split_at_checked(12)?;
        let [name_len, len, kind] = *head.as_chunks::<4>().0 else {
            return None;
        };
        let [name_len, len] = [name_len, len].map(|field| u32::from_le_bytes(field) as usize);
        let name = rest.get(..name_len)?;
        let start = padded(name_len, align)?;
        let bytes = rest.get(start..start.checked_add(len)?)?;
        if name == b"GNU\0" && u32::from_le_bytes(kind) == NT_GNU_BUILD_ID {
            return (bytes.len() <= MOST_BYTES).then_some(bytes);
        }
        notes = rest.get(start.checked_add(padded(len, align)?)?..)?;
    }
}

fn padded(len: usize, align: usize) -> Option<usize> {
    len.checked_next_multiple_of(align)
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks(4)
        .map(|chunk| {
            let mut word = [0; 4];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            u32::from_le_bytes(word)
        })
        .collect()
}

/// A build-id as `file` and `readelf -n` print it.
pub fn text(words: &[u32]) -> String {
    let mut text = String::new();
    for byte in words.iter().flat_map(|word| word.to_le_bytes()) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, bytes: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for field in [name.len() as u32, bytes.len() as u32, kind] {
            note.extend(field.to_le_bytes());
        }
        for part in [name, bytes] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_right_note_is_found_behind_others() {
        let mut notes = note(b"GNU\0", 1, &[0; 16]);
        notes.extend(note(b"Go\0", 4, b"abcdef"));
        notes.extend(note(b"GNU\0", NT_GNU_BUILD_ID, &[1, 2, 3, 4, 5, 6, 7, 8]));
        let id = parse_notes(&notes, 4).expect("a build-id");
        assert_eq!(words(id), [0x0403_0201, 0x0807_0605]);
        assert_eq!(text(&words(id)), "0102030405060708");
    }

    #[test]
    fn notes_that_lie_have_no_build_id() {
        let notes = note(b"GNU\0", NT_GNU_BUILD_ID, &[7; 20]);
        for cut in 0..notes.len() {
            assert_eq!(parse_notes(&notes[..cut], 4), None, "{cut}");
        }
        let mut huge = notes;
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(parse_notes(&huge, 8), None);
    }

    #[test]
    fn files_that_are_no_elf_files_have_none() {
        let path = std::env::temp_dir().join(format!("crust-build-id-{}", std::process::id()));
        for content in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01", &[0x7f; 80]] {
            std::fs::write(&path, content).expect("write");
            let file = File::open(&path).expect("open");
            assert_eq!(read(&file).expect("read"), [0_u32; 0]);
        }
        std::fs::remove_file(&path).expect("clean up");
    }

    #[test]
    fn the_running_test_reads_its_own_header() {
        let own = File::open("/proc/self/exe").expect("open");
        // Whether rustc's linker writes a build-id depends on its configuration; no error does.
        let id = read(&own).expect("read");
        assert!(id.len() * 4 <= MOST_BYTES);
    }
}
