//! signalfd(2): the signals of a mask, read instead of delivered.
//!
//! It has no state but the mask and O_NONBLOCK: the signals are those pending for whoever reads.

use super::{File, fown, member};
use crate::plan::Planner;
use crate::plan::step::{Actor, Arg, Call, Phase, Ret, SlotId};
use nix::libc;

const SFD: &[(u64, &str)] = &[
    (libc::SFD_CLOEXEC as u64, "SFD_CLOEXEC"),
    (libc::SFD_NONBLOCK as u64, "SFD_NONBLOCK"),
];
/// Bytes of the kernel's signal set.
const SIGSET: i64 = 8;

/// Makes the signalfd.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let sgfd = member(planner, file, file.entry.sgfd.as_ref(), |sgfd| sgfd.id)?;
    let slot = planner.slot();
    let flags = sgfd.flags as i32;
    let args = vec![
        Arg::Int(-1),
        Arg::words(&[sgfd.sigmask]),
        Arg::Int(SIGSET),
        Arg::flags(
            (libc::SFD_CLOEXEC | (flags & libc::SFD_NONBLOCK)) as u64,
            SFD,
        ),
    ];
    let call = Call::new("signalfd4", libc::SYS_signalfd4, args).answers(Ret::Fd(slot));
    planner.call(Phase::Open, Actor::Broker, call, file.origin(file.name()));
    fown::plan(planner, file, slot, flags, &sgfd.fown);
    Some(slot)
}
