//! Objects of the kernel that a step makes as a whole: interfaces of tuns, maps of the bpf machine.

use super::step::SlotId;
use crust_process::rtnetlink::Link;
use serde::Serialize;

/// An interface of a tun or tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TunDevice {
    /// Its name.
    pub name: Vec<u8>,
    /// IFF_* of the driver.
    pub flags: u32,
    /// How to make it where it is not there; absent if a step before has.
    pub link: Option<TunLink>,
}

/// What a new interface of a tun or tap gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TunLink {
    /// The link itself.
    #[serde(flatten)]
    pub link: Link,
    /// Bytes of the header before each packet.
    pub header: i32,
    /// Bytes that may wait to be sent.
    pub send_buffer: i32,
    /// That header is little-endian by the program's wish.
    pub little_endian: bool,
    /// TUN_F_*.
    pub offload: u32,
    /// Type and body of rtnetlink messages for addresses and routes.
    pub setup: Vec<Vec<u8>>,
}

/// A map of the bpf machine, by the fields of union bpf_attr (bpf(2)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BpfMap {
    /// Where its descriptor goes.
    pub slot: SlotId,
    /// BPF_MAP_TYPE_*.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// How many there may be.
    pub max_entries: u32,
    /// BPF_F_*.
    pub flags: u32,
    /// Its name.
    pub name: Vec<u8>,
    /// map_extra.
    pub extra: u64,
    /// Number of its entry in bpfmap-data.img.
    pub map_id: u32,
    /// Keys and values there.
    pub count: u32,
    /// Nothing may change it after.
    pub frozen: bool,
}
