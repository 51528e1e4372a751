//! Maps of the bpf machine: made, filled, frozen.

use super::payload::Payloads;
use crate::plan::object::BpfMap;
use anyhow::{Context, Result, bail};
use crust_image::dir::ImageDir;
use crust_image::kind::Kind;
use crust_process::bpf::{self, MapInfo};
use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Makes a map with its content.
pub fn make(images: &ImageDir, payloads: &mut Payloads, wanted: &BpfMap) -> Result<OwnedFd> {
    let info = MapInfo {
        kind: wanted.kind,
        key_size: wanted.key_size,
        value_size: wanted.value_size,
        max_entries: wanted.max_entries,
        flags: wanted.flags,
        name: wanted.name.clone(),
        extra: wanted.extra,
        ..MapInfo::default()
    };
    let map = bpf::create_map(&info).with_context(|| {
        let (kind, entries) = (info.kind, info.max_entries);
        format!("BPF_MAP_CREATE of kind {kind} with {entries} entries")
    })?;
    if wanted.count > 0 {
        fill(images, payloads, wanted, &info, map.as_fd())?;
    }
    if wanted.frozen {
        bpf::freeze_map(map.as_fd()).context("BPF_MAP_FREEZE")?;
    }
    Ok(map)
}

fn fill(
    images: &ImageDir,
    payloads: &mut Payloads,
    wanted: &BpfMap,
    info: &MapInfo,
    map: BorrowedFd<'_>,
) -> Result<()> {
    let bytes = payloads.read(images, Kind::BpfmapData, wanted.map_id, 0)?;
    let processors = bpf::possible_processors().context("count the processors")?;
    let keys = wanted.count as usize * info.key_size as usize;
    let (keys, values) = bytes
        .split_at_checked(keys)
        .context("bpfmap-data.img: fewer keys than its count")?;
    let stride = bpf::stride(info, processors);
    if values.len() != stride.saturating_mul(wanted.count as usize) {
        bail!(
            "bpfmap-data.img: {} bytes are not {} values of {stride} bytes (a map with a value for \
             each processor needs as many processors as it had; there may be {processors} here)",
            values.len(),
            wanted.count
        );
    }
    bpf::fill_map(map, info, keys, values, processors)
        .with_context(|| format!("BPF_MAP_UPDATE_ELEM of {} entries", wanted.count))
}

/// Opens a map once more.
pub fn open(map: BorrowedFd<'_>, flags: u32) -> Result<OwnedFd> {
    let info = bpf::map_info(map).context("BPF_OBJ_GET_INFO_BY_FD")?;
    bpf::map_by_id(info.id, flags).map_err(|errno| match errno {
        Errno::EPERM => anyhow::anyhow!("BPF_MAP_GET_FD_BY_ID: {errno} (needs CAP_SYS_ADMIN)"),
        errno => anyhow::anyhow!(errno).context("BPF_MAP_GET_FD_BY_ID"),
    })
}
