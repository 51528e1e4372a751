//! What can go wrong between an image and its JSON: each error says where.

use super::frame::Entry;
use super::message::FieldError;
use super::read::ReadError;
use std::io;

pub type Result<T> = std::result::Result<T, Error>;

/// An image or JSON that cannot be turned into the other.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read")]
    Input(#[source] io::Error),
    #[error("write")]
    Output(#[source] io::Error),
    /// The first word is the magic of no image; often a raw one.
    #[error("unknown magic {0:#x}")]
    UnknownMagic(u32),
    /// The bytes of the image are wrong.
    #[error("{}byte {offset:#x}: {what}", entry_prefix(.entry))]
    Image {
        entry: Option<u64>,
        offset: u64,
        what: String,
    },
    /// The text is no JSON.
    #[error(transparent)]
    Json(#[from] ReadError),
    /// A value in JSON does not fit.
    #[error("{}{error}", entry_prefix(.entry))]
    Value {
        entry: Option<u64>,
        error: FieldError,
    },
}

fn entry_prefix(entry: &Option<u64>) -> String {
    entry.map_or_else(String::new, |entry| format!("entry {entry}: "))
}

impl Error {
    pub(super) fn at(entry: Option<u64>, offset: u64, what: impl Into<String>) -> Error {
        Error::Image {
            entry,
            offset,
            what: what.into(),
        }
    }

    pub(super) fn short_payload(entry: &Entry, offset: u64, there: u64, wanted: u64) -> Error {
        let what = format!("the image ends inside the payload ({there} of {wanted} bytes)");
        Error::at(Some(entry.index), offset, what)
    }

    pub(super) fn value(entry: Option<u64>, path: &str, what: impl Into<String>) -> Error {
        let error = FieldError {
            path: path.to_owned(),
            what: what.into(),
        };
        Error::Value { entry, error }
    }
}
