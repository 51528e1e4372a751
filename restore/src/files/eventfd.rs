//! eventfd(2): a 64-bit counter.
//!
//! The initial value of eventfd2(2) has 32 bits; a larger count is written. The largest that a
//! write leaves is 2^64-2; the one above it, an overflow, comes only from the kernel's own
//! signalling and is refused. EFD_SEMAPHORE has no field of its own: crust-dump puts it into bit 0
//! of `flags`, which no eventfd has otherwise and which CRIU's restore ignores; CRIU's dump loses it.

use super::{File, fown, member};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Arg, Call, Op, Phase, Ret, SlotId};
use crate::plan::{Planner, Refusal};
use nix::libc;

const EFD: &[(u64, &str)] = &[
    (libc::EFD_CLOEXEC as u64, "EFD_CLOEXEC"),
    (libc::EFD_NONBLOCK as u64, "EFD_NONBLOCK"),
    (libc::EFD_SEMAPHORE as u64, "EFD_SEMAPHORE"),
];

/// Makes the eventfd with its count.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let efd = member(planner, file, file.entry.efd.as_ref(), |efd| efd.id)?;
    let origin = file.origin(file.name());
    if efd.counter == u64::MAX {
        let why = format!(
            "counter {} has overflowed, which cannot be made again",
            efd.counter
        );
        planner.refuse(Refusal::new(origin, why));
        return None;
    }
    let flags = efd.flags as i32;
    let semaphore = flags & libc::EFD_SEMAPHORE != 0;
    let initial = u32::try_from(efd.counter).ok();
    let slot = planner.slot();
    planner.call(
        Phase::Open,
        Actor::Broker,
        make(initial, flags, semaphore, slot),
        origin.clone(),
    );
    if initial.is_none() {
        let bytes = efd.counter.to_ne_bytes().to_vec();
        let write = Op::Routine(Routine::WriteAll { slot, bytes });
        planner.push(Phase::Open, Actor::Broker, write, origin);
    }
    fown::plan(planner, file, slot, flags & !libc::EFD_SEMAPHORE, &efd.fown);
    Some(slot)
}

fn make(initial: Option<u32>, flags: i32, semaphore: bool, slot: SlotId) -> Call {
    let mut value = libc::EFD_CLOEXEC | (flags & libc::EFD_NONBLOCK);
    if semaphore {
        value |= libc::EFD_SEMAPHORE;
    }
    let args = vec![
        Arg::Int(initial.unwrap_or(0).into()),
        Arg::flags(value as u64, EFD),
    ];
    Call::new("eventfd2", libc::SYS_eventfd2, args).answers(Ret::Fd(slot))
}
