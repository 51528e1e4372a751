//! Maps of the bpf machine (bpf(2)): made again with kind, sizes, flags and name, filled, frozen.
//!
//! Entries with one map_id are descriptions of one map, each with an access mode of its own: the
//! first for reading and writing gets the descriptor that made it, others are opened by the map's
//! new number. A map is frozen when it is full, before anybody maps it; what the kernel lets be
//! mapped of a frozen map it still does. `memlock` is what the kernel counted, and counts again.

use super::{File, fown, member};
use crate::plan::object::BpfMap;
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Op, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crust_process::bpf::{KINDS, LONGEST_NAME, flag, kind};
use crust_proto::criu::{BpfmapDataEntry, BpfmapFileEntry};
use nix::libc;
use std::collections::BTreeMap;

/// Kinds whose content is plain data, or that come back empty.
const MADE: [u32; 10] = [
    kind::HASH,
    kind::ARRAY,
    kind::PERCPU_HASH,
    kind::PERCPU_ARRAY,
    kind::LRU_HASH,
    kind::LRU_PERCPU_HASH,
    kind::LPM_TRIE,
    kind::QUEUE,
    kind::STACK,
    kind::RINGBUF,
];

/// The maps that are made, by map_id; `None` for those refused.
#[derive(Debug, Default)]
pub(super) struct BpfMaps {
    made: BTreeMap<u32, Option<Made>>,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    slot: SlotId,
    /// An entry has the descriptor that made it.
    given: bool,
}

/// Plans a description.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let map = member(planner, file, file.entry.bpf.as_ref(), |map| map.id)?;
    let made = made(planner, file, map)?;
    let origin = file.origin(name_of(map));
    let flags = map.flags as i32;
    let access = match flags & libc::O_ACCMODE {
        libc::O_RDWR => 0,
        libc::O_RDONLY => flag::RDONLY,
        libc::O_WRONLY => flag::WRONLY,
        _ => {
            let why = format!("flags {flags:#o} have no access mode");
            planner.refuse(Refusal::new(origin, why));
            return None;
        }
    };
    let slot = if access == 0 && !made.given {
        let given = Made {
            given: true,
            ..made
        };
        planner.files.bpf_maps.made.insert(map.map_id, Some(given));
        made.slot
    } else {
        let slot = planner.slot();
        let open = Routine::OpenBpfMap {
            map: made.slot,
            flags: access,
            slot,
        };
        planner.push(Phase::Open, Actor::Broker, Op::Routine(open), origin);
        slot
    };
    fown::plan(planner, file, slot, flags, &map.fown);
    Some(slot)
}

/// A descriptor for mappings.
pub(super) fn plan_mapped(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let map = member(planner, file, file.entry.bpf.as_ref(), |map| map.id)?;
    Some(made(planner, file, map)?.slot)
}

/// The map behind a description, made when it is first asked for.
fn made(planner: &mut Planner<'_>, file: File<'_>, map: &BpfmapFileEntry) -> Option<Made> {
    if let Some(made) = planner.files.bpf_maps.made.get(&map.map_id) {
        return *made;
    }
    let slot = planner.slot();
    let origin = file.origin(name_of(map));
    let data = planner.checkpoint.bpf_maps.get(&map.map_id);
    let made = match request(map, data, slot) {
        Ok(request) => {
            let make = Op::Routine(Routine::MakeBpfMap(Box::new(request)));
            planner.push(Phase::Open, Actor::Broker, make, origin);
            Some(Made { slot, given: false })
        }
        Err(why) => {
            planner.refuse(Refusal::new(origin, why));
            None
        }
    };
    planner.files.bpf_maps.made.insert(map.map_id, made);
    made
}

/// For people: `bpf map my_map`.
fn name_of(map: &BpfmapFileEntry) -> String {
    format!("bpf map {}", String::from_utf8_lossy(&map.map_name))
}

fn request(
    map: &BpfmapFileEntry,
    data: Option<&BpfmapDataEntry>,
    slot: SlotId,
) -> Result<BpfMap, String> {
    if !MADE.contains(&map.map_type) {
        let kind = KINDS.get(map.map_type as usize).copied();
        let (number, kind) = (map.map_type, kind.unwrap_or("unknown"));
        return Err(format!(
            "maps of map_type {number} ({kind}) are not restored"
        ));
    }
    if map.map_name.len() >= LONGEST_NAME || map.map_name.contains(&0) {
        return Err(format!("map_name of {} bytes is none", map.map_name.len()));
    }
    if map.ifindex != 0 {
        return Err(format!("ifindex {}: it was in hardware", map.ifindex));
    }
    let count = data.map_or(0, |data| data.count);
    if let Some(data) = data {
        let keys = u64::from(count) * u64::from(map.key_size);
        let least = u64::from(count) * u64::from(map.value_size);
        let fits = count <= map.max_entries
            && u64::from(data.keys_bytes) == keys
            && u64::from(data.values_bytes) >= least;
        if !fits {
            return Err(format!(
                "bpfmap-data.img: {count} keys of {} bytes with values of {} do not fit {} \
                 entries of {} and {}",
                data.keys_bytes, data.values_bytes, map.max_entries, map.key_size, map.value_size
            ));
        }
    }
    Ok(BpfMap {
        slot,
        kind: map.map_type,
        key_size: map.key_size,
        value_size: map.value_size,
        max_entries: map.max_entries,
        flags: map.map_flags,
        name: map.map_name.clone(),
        extra: map.map_extra.unwrap_or(0),
        map_id: map.map_id,
        count,
        frozen: map.frozen,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::print;

    fn entry() -> BpfmapFileEntry {
        BpfmapFileEntry {
            map_type: kind::HASH,
            key_size: 4,
            value_size: 8,
            max_entries: 10,
            map_id: 5,
            map_name: b"wl_hash".to_vec(),
            frozen: true,
            ..BpfmapFileEntry::default()
        }
    }

    fn data(count: u32, keys_bytes: u32, values_bytes: u32) -> BpfmapDataEntry {
        BpfmapDataEntry {
            map_id: 5,
            keys_bytes,
            values_bytes,
            count,
        }
    }

    #[test]
    fn a_map_is_made_filled_and_frozen() {
        let made = request(&entry(), Some(&data(3, 12, 24)), SlotId(2)).expect("a plan");
        let text = print::op(&Op::Routine(Routine::MakeBpfMap(Box::new(made))));
        let wanted = "make bpf map \"wl_hash\" of kind 1, 10 entries of 4 and 8 bytes, flags 0x0, \
                      with 3 of map_id 5, frozen -> %2";
        assert_eq!(text, wanted);
    }

    #[test]
    fn wild_entries_are_refused() {
        let good = entry();
        for wild in [data(11, 44, 88), data(3, 13, 24), data(3, 12, 23)] {
            assert!(request(&good, Some(&wild), SlotId(0)).is_err(), "{wild:?}");
        }
        let broken: [fn(&mut BpfmapFileEntry); 4] = [
            |map| map.map_type = 3,
            |map| map.map_type = 999,
            |map| map.map_name = vec![b'x'; 16],
            |map| map.ifindex = 2,
        ];
        for break_it in broken {
            let mut map = good.clone();
            break_it(&mut map);
            assert!(request(&map, None, SlotId(0)).is_err(), "{map:?}");
        }
    }
}
