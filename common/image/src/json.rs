//! Images as JSON, byte for byte the form of CRIU's crit, and back without loss.
//!
//! Works on dynamic messages only, so that fields, enum values and text this build cannot name
//! survive. Streams: no payload is held, whatever its size. What it refuses and where it differs
//! from CRIU's crit is said in the modules below and in SUPPORT.md.

pub mod decode;
mod direct;
pub mod encode;
pub mod error;
pub mod frame;
mod members;
pub mod message;
pub mod quoted_printable;
pub mod read;
pub mod tables;
pub mod write;

pub use decode::{DecodeOptions, Payloads, image_to_json, image_to_value};
pub use encode::{EncodeOptions, json_to_image, value_to_image};
pub use error::{Error, Result};
pub use frame::{Entry, FrameReader, Image, Version};
pub use read::{ReadError, Reader};
pub use write::{Layout, Sink, TreeBuilder, Writer, write_value};
