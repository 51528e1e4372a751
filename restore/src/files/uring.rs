//! io_uring_setup(2): an idle ring, made by the broker, brought to its counts and filled before any
//! task is there (crust_process::io_uring). Its mappings are tasks' own: `mm` makes them by
//! [`Op::MapRing`], for the kernel lets nobody choose their address.

use super::{File, fown, member};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Op, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crust_process::io_uring::{Layout, Ring};
use crust_proto::criu::CrustUringEntry;

/// Plans a description.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let entry = member(planner, file, file.entry.crust_uring.as_ref(), |ring| {
        ring.id
    })?;
    let origin = file.origin("io_uring");
    let ring = match wanted(entry) {
        Ok(ring) => Box::new(ring),
        Err(why) => {
            planner.refuse(Refusal::new(origin, why));
            return None;
        }
    };
    let slot = planner.slot();
    let make = Op::Routine(Routine::MakeUring { ring, slot });
    planner.push(Phase::Open, Actor::Broker, make, origin);
    fown::plan(planner, file, slot, entry.flags as i32, &entry.fown);
    Some(slot)
}

fn wanted(entry: &CrustUringEntry) -> Result<Ring, String> {
    let layout = Layout::try_from(entry.layout.as_slice());
    let ring = Ring {
        setup: entry.setup_flags,
        sq_entries: entry.sq_entries,
        cq_entries: entry.cq_entries,
        sq_head: entry.sq_head,
        cq_tail: entry.cq_tail,
        layout: layout.map_err(|_| format!("layout has {} words", entry.layout.len()))?,
        rings: entry.rings.clone(),
        sqes: entry.sqes.clone(),
    };
    ring.check()?;
    Ok(ring)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> CrustUringEntry {
        CrustUringEntry {
            sq_entries: 8,
            cq_entries: 16,
            sq_head: 3,
            cq_tail: 3,
            layout: vec![0, 4, 16, 24, 36, 32, 8, 12, 20, 28, 44, 64, 40],
            rings: vec![1; 352],
            sqes: vec![1; 512],
            ..CrustUringEntry::default()
        }
    }

    #[test]
    fn wild_rings_are_refused() {
        assert!(wanted(&entry()).is_ok());
        type Break = fn(&mut CrustUringEntry);
        let broken: [(Break, &str); 9] = [
            (|ring| ring.sq_entries = 0, "entries"),
            (|ring| ring.sq_entries = 1 << 16, "entries"),
            (|ring| ring.cq_entries = 24, "entries"),
            (|ring| ring.cq_entries = 1 << 31, "entries"),
            (|ring| ring.setup_flags = 1 << 31, "bit 31"),
            (|ring| ring.setup_flags = 1 << 6, "disabled"),
            (|ring| ring.layout = vec![0; 12], "12 words"),
            (|ring| ring.layout[11] = u32::MAX, "layout"),
            (|ring| ring.rings = vec![1; 353], "memory"),
        ];
        for (break_it, word) in broken {
            let mut ring = entry();
            break_it(&mut ring);
            let why = wanted(&ring).err().unwrap_or_default();
            assert!(why.contains(word), "{ring:?}: {why}");
        }
    }
}
