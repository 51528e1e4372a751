//! AIO contexts. A context is named by the address of its ring, which the kernel chooses; so the ring
//! is made wherever it likes and moved, with which the context takes its new name (fs/aio.c,
//! aio_ring_mremap). Events that nobody has taken are in the ring's pages. Requests that were still
//! on their way cannot be seen and are not in the images.

use super::pages::StoredRun;
use super::vmas::{Kind, Vma};
use super::{Room, pages_slot};
use crate::plan::step::{Op, Phase};
use crate::plan::{Planner, Refusal};

/// More requests than any context has: fs/aio.c refuses rings of more than 256 MiB.
const MOST_REQUESTS: u32 = 1 << 22;

/// Makes all contexts of a task.
pub fn plan_rings(planner: &mut Planner<'_>, room: &Room<'_>) {
    for vma in room.vmas.iter().filter(|vma| vma.kind == Kind::AioRing) {
        match ring_of(room, vma) {
            Ok((requests, run)) => {
                let op = Op::AioRing {
                    at: vma.start,
                    len: vma.len(),
                    requests,
                    pages: pages_slot(planner, run.source),
                    offset: run.load.offset + (vma.start - run.load.to),
                };
                planner.push(Phase::Memory, room.actor, op, room.of_vma(vma));
            }
            Err(why) => planner.refuse(Refusal::new(room.of_vma(vma), why)),
        }
    }
}

/// How many requests a context was made for, and the run that begins with its ring.
fn ring_of(room: &Room<'_>, vma: &Vma) -> Result<(u32, StoredRun), String> {
    let stored = room.entry.aios.iter().find(|ring| ring.id == vma.start);
    let stored = stored.ok_or("is a ring without a context in aios")?;
    if u64::from(stored.ring_len) != vma.len() {
        return Err(format!(
            "aios.ring_len {} is not its length",
            stored.ring_len
        ));
    }
    if stored.nr_req == 0 || stored.nr_req > MOST_REQUESTS {
        return Err(format!(
            "aios.nr_req {} is no number of requests",
            stored.nr_req
        ));
    }
    let holds =
        |run: &&StoredRun| run.load.to <= vma.start && vma.end <= run.load.to + run.load.len;
    let run = room.runs.iter().find(holds);
    let run = run.ok_or("the pages of the ring are not stored")?;
    Ok((stored.nr_req, *run))
}
