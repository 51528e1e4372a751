//! Who is told by a signal that a file description is ready (F_SETOWN_EX, F_SETSIG, O_ASYNC).
//!
//! All three belong to the description, so the broker sets them on its own descriptor; the owner
//! must exist, and a signal must find its action in place, so this comes last of all. O_ASYNC is
//! set through fcntl(2) for that is what makes the file tell anybody. The ids with which the owner
//! was set, by which the kernel decides whether it may be sent signals, become root's.
//!
//! fown_entry: pid_type is that of F_SETOWN_EX; all fields zero is the state of a new file.

use super::calls::{fcntl, structure};
use super::{File, known_pid};
use crate::plan::step::{Actor, Arg, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crust_proto::criu::FownEntry;
use nix::libc;

/// Not in libc for this target (include/uapi/asm-generic/fcntl.h).
const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;
const OWNERS: [&str; 3] = ["F_OWNER_TID", "F_OWNER_PID", "F_OWNER_PGRP"];
/// The broker's calls want room for the largest structure fcntl(2) knows (struct flock).
const ROOM: [u8; 24] = [0; 24];
/// Signals of the kernel.
const LAST_SIGNAL: u32 = 64;

/// Sets owner, signal and O_ASYNC of a description.
pub(super) fn plan(
    planner: &mut Planner<'_>,
    file: File<'_>,
    slot: SlotId,
    flags: i32,
    fown: &FownEntry,
) {
    if fown.pid == 0 && fown.signum == 0 && flags & libc::O_ASYNC == 0 {
        return;
    }
    let origin = file.origin(format!("owner of {}", file.name()));
    if fown.signum > LAST_SIGNAL {
        let why = format!("fown.signum {} is no signal", fown.signum);
        planner.refuse(Refusal::new(origin, why));
        return;
    }
    if fown.pid != 0 {
        let kind = usize::try_from(fown.pid_type)
            .ok()
            .and_then(|kind| OWNERS.get(kind));
        let Some(kind) = kind else {
            let why = format!(
                "fown.pid_type {} is neither thread, process nor group",
                fown.pid_type
            );
            planner.refuse(Refusal::new(origin, why));
            return;
        };
        if !known_pid(planner, fown.pid) {
            let why = format!(
                "fown.pid {} is no task, thread or group of the tree",
                fown.pid
            );
            let hint = "edit fown.pid to 0 to restore it without an owner";
            planner.refuse(Refusal::new(origin, why).hint(hint));
            return;
        }
        let owner = structure(&[&fown.pid_type.to_le_bytes(), &fown.pid.to_le_bytes(), &ROOM]);
        let call = fcntl(slot, "F_SETOWN_EX", F_SETOWN_EX, owner);
        let origin = file.origin(format!("{kind} {} of {}", fown.pid, file.name()));
        planner.call(Phase::Signals, Actor::Broker, call, origin);
    }
    if fown.signum != 0 {
        let call = fcntl(slot, "F_SETSIG", F_SETSIG, Arg::Int(fown.signum.into()));
        planner.call(Phase::Signals, Actor::Broker, call, origin.clone());
    }
    if flags & libc::O_ASYNC != 0 {
        let settable = super::calls::SETTABLE | libc::O_ASYNC;
        let arg = super::calls::open_flags(flags & settable);
        let call = fcntl(slot, "F_SETFL", libc::F_SETFL, arg);
        planner.call(Phase::Signals, Actor::Broker, call, origin);
    }
}
