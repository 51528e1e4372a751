//! What can be wrong with an image, and where.
//!
//! An error names the file, and inside it the entry (counted from 0) with the field or the byte
//! offset. The caller adds which task or object it was about.

use std::io;

/// A failure to read or write images.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused something.
    #[error("{file}: {doing}: {source}")]
    Io {
        /// The image, or the directory.
        file: String,
        /// What was being done, e.g. `read the head`.
        doing: &'static str,
        /// The kernel's word.
        source: io::Error,
    },
    /// An image without which the set makes no sense is not there.
    #[error("{file}: the image is missing")]
    Missing {
        /// Its file name.
        file: String,
    },
    /// There is no inventory: the last image that a dump writes.
    #[error(
        "{dir}: there is no inventory.img, which a dump writes last: it was not finished, or this \
         is no directory of images"
    )]
    Incomplete {
        /// The directory.
        dir: String,
    },
    /// The file does not begin as an image of its name must.
    #[error("{file}: {what}")]
    Head {
        /// The image.
        file: String,
        /// What was found and what belongs there.
        what: String,
    },
    /// The frame of an entry is broken: it ends too early, or its size is impossible.
    #[error("{file}: entry {entry} at byte {offset}: {what}")]
    Frame {
        /// The image.
        file: String,
        /// Number of the entry, from 0.
        entry: u64,
        /// Offset of the entry in the file.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The bytes of an entry are not the message they should be.
    #[error("{file}: entry {entry} at byte {offset}: not a valid message: {source}")]
    Message {
        /// The image.
        file: String,
        /// Number of the entry, from 0.
        entry: u64,
        /// Offset of the entry in the file.
        offset: u64,
        /// prost's word.
        source: prost::DecodeError,
    },
    /// A field holds what it cannot hold.
    #[error("{file}: entry {entry}: {field}: {what}")]
    Field {
        /// The image.
        file: String,
        /// Number of the entry, from 0.
        entry: u64,
        /// Path of the field inside the entry, e.g. `tc.task_state`.
        field: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The images of a chain of dumps do not fit together.
    #[error("{file}: {what}")]
    Chain {
        /// The pagemap, or the `parent` link.
        file: String,
        /// What is missing or wrong.
        what: String,
    },
}

impl Error {
    /// The errno, where the kernel was the one to refuse.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    pub(crate) fn io(file: &str, doing: &'static str, source: impl Into<io::Error>) -> Error {
        Error::Io {
            file: file.to_owned(),
            doing,
            source: source.into(),
        }
    }
}

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;
