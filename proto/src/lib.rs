//! The messages of CRIU 4.2's images.
//!
//! `criu/*.proto` hold the names, numbers, labels and defaults of the wire format. This crate is
//! what the build makes of them, three times: typed messages, descriptor sets, and the schema as
//! constants.
#![forbid(unsafe_code)]

pub mod schema;

/// The typed messages. A field that is a `string` on the wire is a `Vec<u8>` here: it holds a raw
/// path or name, which need not be UTF-8.
#[allow(clippy::all, missing_docs)]
pub mod criu {
    include!(concat!(env!("OUT_DIR"), "/criu.rs"));
}

/// The encoded `FileDescriptorSet` of criu/*.proto and descriptor.proto, `criu` field options
/// included.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/criu.fds"));

/// The same set with every `string` field a `bytes` field, without the `criu` options: what
/// decodes any image without asking whether its paths are UTF-8.
pub const WIRE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/criu-wire.fds"));
