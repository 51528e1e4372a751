//! Which slots a step fills and which it needs: read off the step itself, so that a room cannot
//! forget to say it. Visited, not listed: plans have tens of thousands of steps, most of which need
//! one slot or none.

use super::routine::Routine;
use super::step::{Arg, Op, Piece, Ret, SlotId, Step};

/// The slots that a step fills, `done` included.
pub fn gives(step: &Step, visit: &mut impl FnMut(SlotId)) {
    step.done.iter().for_each(|slot| visit(*slot));
    match &step.op {
        Op::Call(call) | Op::LastCall(call) => match call.ret {
            Ret::Fd(slot) => visit(slot),
            Ret::FdPair(_, first, second) => [first, second].into_iter().for_each(visit),
            Ret::Ok | Ret::Exactly(_) | Ret::Any => {}
        },
        Op::Fetch { slot, .. } => visit(*slot),
        Op::Routine(routine) => given_by(routine, visit),
        Op::Take { .. }
        | Op::AioRing { .. }
        | Op::LoadPages { .. }
        | Op::CopyPages { .. }
        | Op::Fork { .. }
        | Op::ClearMemory
        | Op::MoveVdso { .. }
        | Op::WriteProc { .. }
        | Op::Thread { .. }
        | Op::Die { .. }
        | Op::Overrun { .. }
        | Op::Reap { .. }
        | Op::Stop { .. }
        | Op::SetRegs(_) => {}
    }
}

/// How many descriptors the broker comes to hold by these steps, and how many of them it closes
/// before the end.
pub fn held_and_closed(steps: &[Step]) -> (u64, u64) {
    let mut counts = (0, 0);
    for step in steps {
        gives(step, &mut |slot| {
            counts.0 += u64::from(step.done != Some(slot))
        });
        counts.1 += u64::from(matches!(step.op, Op::Routine(Routine::Close { .. })));
    }
    counts
}

/// The slots that must be filled before a step, those of `after` included.
pub fn needs(step: &Step, visit: &mut impl FnMut(SlotId)) {
    step.after.iter().for_each(|slot| visit(*slot));
    match &step.op {
        Op::Call(call) | Op::LastCall(call) => {
            call.args.iter().for_each(|arg| needed_by_arg(arg, visit));
        }
        Op::Take { slot, .. } => visit(*slot),
        Op::AioRing { pages, .. } | Op::LoadPages { pages, .. } => visit(*pages),
        Op::CopyPages { from, to, .. } => [*from, *to].into_iter().for_each(visit),
        Op::Routine(routine) => needed_by(routine, visit),
        Op::Fetch { .. }
        | Op::Fork { .. }
        | Op::ClearMemory
        | Op::MoveVdso { .. }
        | Op::WriteProc { .. }
        | Op::Thread { .. }
        | Op::Die { .. }
        | Op::Overrun { .. }
        | Op::Reap { .. }
        | Op::Stop { .. }
        | Op::SetRegs(_) => {}
    }
}

fn needed_by_arg(arg: &Arg, visit: &mut impl FnMut(SlotId)) {
    match arg {
        Arg::Fd(slot) | Arg::FdPath(slot) => visit(*slot),
        Arg::Data(pieces) => pieces.iter().for_each(|piece| match piece {
            Piece::Ptr(arg) => needed_by_arg(arg, visit),
            Piece::Bytes(_) => {}
        }),
        Arg::Int(_) | Arg::Hex(_) | Arg::Named(..) | Arg::Str(_) | Arg::Out(_) => {}
    }
}

fn given_by(routine: &Routine, visit: &mut impl FnMut(SlotId)) {
    match routine {
        Routine::OpenFile { slot, .. }
        | Routine::OpenGhost { slot, .. }
        | Routine::OpenLink { slot, .. }
        | Routine::OpenPages { slot, .. }
        | Routine::OwnTerminal { slot, .. }
        | Routine::Inherit { slot, .. }
        | Routine::OpenTun { slot, .. }
        | Routine::MakeUts { slot, .. }
        | Routine::OpenBpfMap { slot, .. }
        | Routine::SharedAnon { slot, .. } => visit(*slot),
        Routine::MakeBpfMap(map) => visit(map.slot),
        Routine::MakePty { master, slave, .. } => {
            visit(*master);
            slave.iter().for_each(|slot| visit(*slot));
        }
        Routine::Sysv { slot, .. } => slot.iter().for_each(|slot| visit(*slot)),
        Routine::FeedPayload { .. }
        | Routine::WriteAll { .. }
        | Routine::BindUnix { .. }
        | Routine::BindInet { .. }
        | Routine::ArmTimer { .. }
        | Routine::WatchInode { .. }
        | Routine::MarkInode { .. }
        | Routine::Close { .. }
        | Routine::RepairTcp(_)
        | Routine::GoLive(_)
        | Routine::FeedMaster { .. }
        | Routine::FeedSlave { .. }
        | Routine::SendPacket { .. }
        | Routine::MakeCgroup(_)
        | Routine::GhostFile { .. }
        | Routine::RemoveGhost { .. }
        | Routine::Unlink { .. } => {}
    }
}

fn needed_by(routine: &Routine, visit: &mut impl FnMut(SlotId)) {
    match routine {
        Routine::FeedPayload { slot, .. }
        | Routine::WriteAll { slot, .. }
        | Routine::BindUnix { slot, .. }
        | Routine::BindInet { slot, .. }
        | Routine::ArmTimer { slot, .. }
        | Routine::Close { slot } => visit(*slot),
        Routine::WatchInode { slot, on, .. } | Routine::MarkInode { slot, on, .. } => {
            visit(*slot);
            on.open.iter().for_each(|open| visit(*open));
        }
        Routine::OpenBpfMap { map, .. } => visit(*map),
        Routine::RepairTcp(tcp) => visit(tcp.slot),
        Routine::GoLive(live) => visit(live.slot),
        Routine::FeedMaster { master, slave, .. } | Routine::FeedSlave { master, slave, .. } => {
            [*master, *slave].into_iter().for_each(visit);
        }
        Routine::SendPacket { via, rights, .. } => {
            visit(*via);
            rights.iter().for_each(|slot| visit(*slot));
        }
        Routine::OpenFile { .. }
        | Routine::OpenGhost { .. }
        | Routine::OpenLink { .. }
        | Routine::OpenPages { .. }
        | Routine::OwnTerminal { .. }
        | Routine::Inherit { .. }
        | Routine::OpenTun { .. }
        | Routine::MakeUts { .. }
        | Routine::MakeBpfMap(_)
        | Routine::SharedAnon { .. }
        | Routine::MakePty { .. }
        | Routine::Sysv { .. }
        | Routine::MakeCgroup(_)
        | Routine::GhostFile { .. }
        | Routine::RemoveGhost { .. }
        | Routine::Unlink { .. } => {}
    }
}
