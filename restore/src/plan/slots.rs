//! Which slots a step fills and which it needs: read off the step itself, so that a room cannot
//! forget to say it.

use super::step::{Arg, Call, Op, Piece, Ret, Routine, SlotId, Step};

/// What a step fills and needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// Filled by it.
    pub gives: Vec<SlotId>,
    /// Must be filled before it.
    pub needs: Vec<SlotId>,
}

/// The slots of a step, those of `after` and `done` included.
pub fn slots_of(step: &Step) -> Slots {
    let mut slots = Slots::default();
    slots.needs.extend(&step.after);
    slots.gives.extend(&step.done);
    match &step.op {
        Op::Call(call) | Op::LastCall(call) => of_call(call, &mut slots),
        Op::Take { slot, .. } => slots.needs.push(*slot),
        Op::Fetch { slot, .. } => slots.gives.push(*slot),
        Op::AioRing { pages, .. } | Op::LoadPages { pages, .. } => slots.needs.push(*pages),
        Op::CopyPages { from, to, .. } => slots.needs.extend([*from, *to]),
        Op::Routine(routine) => of_routine(routine, &mut slots),
        Op::Fork { .. }
        | Op::ClearMemory
        | Op::MoveVdso { .. }
        | Op::WriteProc { .. }
        | Op::Thread { .. }
        | Op::Die { .. }
        | Op::Reap { .. }
        | Op::Stop { .. }
        | Op::SetRegs(_) => {}
    }
    slots
}

/// How many descriptors the broker comes to hold by these steps, and how many of them it closes
/// before the end.
pub fn held_and_closed(steps: &[Step]) -> (u64, u64) {
    let mut counts = (0, 0);
    for step in steps {
        let done = usize::from(step.done.is_some());
        counts.0 += (slots_of(step).gives.len() - done) as u64;
        counts.1 += u64::from(matches!(step.op, Op::Routine(Routine::Close { .. })));
    }
    counts
}

fn of_call(call: &Call, slots: &mut Slots) {
    for arg in &call.args {
        of_arg(arg, slots);
    }
    match call.ret {
        Ret::Fd(slot) => slots.gives.push(slot),
        Ret::FdPair(_, first, second) => slots.gives.extend([first, second]),
        Ret::Ok | Ret::Exactly(_) | Ret::Any => {}
    }
}

fn of_arg(arg: &Arg, slots: &mut Slots) {
    match arg {
        Arg::Fd(slot) | Arg::FdPath(slot) => slots.needs.push(*slot),
        Arg::Data(pieces) => {
            for piece in pieces {
                match piece {
                    Piece::Ptr(arg) => of_arg(arg, slots),
                    Piece::Bytes(_) => {}
                }
            }
        }
        Arg::Int(_) | Arg::Hex(_) | Arg::Named(..) | Arg::Str(_) | Arg::Out(_) => {}
    }
}

fn of_routine(routine: &Routine, slots: &mut Slots) {
    match routine {
        Routine::OpenFile { slot, .. }
        | Routine::OpenGhost { slot, .. }
        | Routine::OpenLink { slot, .. }
        | Routine::OpenPages { slot, .. }
        | Routine::OwnTerminal { slot, .. }
        | Routine::Inherit { slot, .. }
        | Routine::MakeUts { slot, .. }
        | Routine::SharedAnon { slot, .. } => slots.gives.push(*slot),
        Routine::FeedPayload { slot, .. }
        | Routine::WriteAll { slot, .. }
        | Routine::BindUnix { slot, .. }
        | Routine::BindInet { slot, .. }
        | Routine::ArmTimer { slot, .. }
        | Routine::Close { slot } => slots.needs.push(*slot),
        Routine::OpenBpfMap { map, slot, .. } => {
            slots.needs.push(*map);
            slots.gives.push(*slot);
        }
        Routine::MakeBpfMap(map) => slots.gives.push(map.slot),
        Routine::WatchInode { slot, on, .. } | Routine::MarkInode { slot, on, .. } => {
            slots.needs.push(*slot);
            slots.needs.extend(on.open);
        }
        Routine::RepairTcp(tcp) => slots.needs.push(tcp.slot),
        Routine::GoLive(live) => slots.needs.push(live.slot),
        Routine::MakePty { master, slave, .. } => {
            slots.gives.push(*master);
            slots.gives.extend(*slave);
        }
        Routine::FeedMaster { master, slave, .. } | Routine::FeedSlave { master, slave, .. } => {
            slots.needs.extend([*master, *slave]);
        }
        Routine::SendPacket { via, rights, .. } => {
            slots.needs.push(*via);
            slots.needs.extend(rights);
        }
        Routine::Sysv { slot, .. } => slots.gives.extend(slot),
        Routine::MakeCgroup(_)
        | Routine::GhostFile { .. }
        | Routine::RemoveGhost { .. }
        | Routine::Unlink { .. } => {}
    }
}
