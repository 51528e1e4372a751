//! Which slots a step fills and which it needs: read off the step itself, so that a room cannot
//! forget to say it. Visited, not listed: plans have tens of thousands of steps, most of which need
//! one slot or none.

use super::routine::Routine;
use super::step::{Arg, Op, Piece, Ret, SlotId, Step};

/// How a step uses a slot.
enum Use {
    Gives(SlotId),
    Needs(SlotId),
}
use Use::{Gives, Needs};

/// The slots that a step fills, `done` included.
pub fn gives(step: &Step, visit: &mut impl FnMut(SlotId)) {
    step.done.iter().for_each(|slot| visit(*slot));
    used_by_op(&step.op, &mut |used| {
        if let Gives(slot) = used {
            visit(slot);
        }
    });
}

/// The slots that must be filled before a step, those of `after` included.
pub fn needs(step: &Step, visit: &mut impl FnMut(SlotId)) {
    step.after.iter().for_each(|slot| visit(*slot));
    used_by_op(&step.op, &mut |used| {
        if let Needs(slot) = used {
            visit(slot);
        }
    });
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

fn used_by_op(op: &Op, visit: &mut impl FnMut(Use)) {
    match op {
        Op::Call(call) | Op::LastCall(call) => {
            call.args.iter().for_each(|arg| used_by_arg(arg, visit));
            match call.ret {
                Ret::Fd(slot) => visit(Gives(slot)),
                Ret::FdPair(_, first, second) => {
                    visit(Gives(first));
                    visit(Gives(second));
                }
                Ret::Ok | Ret::Exactly(_) | Ret::Any => {}
            }
        }
        Op::Fetch { slot, .. } => visit(Gives(*slot)),
        Op::Take { slot, .. } => visit(Needs(*slot)),
        Op::AioRing { pages, .. } | Op::LoadPages { pages, .. } => visit(Needs(*pages)),
        Op::CopyPages { from, to, .. } => {
            visit(Needs(*from));
            visit(Needs(*to));
        }
        Op::Routine(routine) => used_by_routine(routine, visit),
        Op::Fork { .. }
        | Op::ClearMemory
        | Op::MapRing { .. }
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

fn used_by_arg(arg: &Arg, visit: &mut impl FnMut(Use)) {
    match arg {
        Arg::Fd(slot) | Arg::FdPath(slot) => visit(Needs(*slot)),
        Arg::Data(pieces) => pieces.iter().for_each(|piece| match piece {
            Piece::Ptr(arg) => used_by_arg(arg, visit),
            Piece::Bytes(_) => {}
        }),
        Arg::Int(_) | Arg::Hex(_) | Arg::Named(..) | Arg::Str(_) | Arg::Out(_) => {}
    }
}

fn used_by_routine(routine: &Routine, visit: &mut impl FnMut(Use)) {
    match routine {
        Routine::OpenFile { slot, .. }
        | Routine::OpenGhost { slot, .. }
        | Routine::OpenLink { slot, .. }
        | Routine::OpenPages { slot, .. }
        | Routine::OwnTerminal { slot, .. }
        | Routine::MakeUring { slot, .. }
        | Routine::Inherit { slot, .. }
        | Routine::OpenTun { slot, .. }
        | Routine::MakeUts { slot, .. }
        | Routine::SharedAnon { slot, .. } => visit(Gives(*slot)),
        Routine::MakeBpfMap(map) => visit(Gives(map.slot)),
        Routine::OpenBpfMap { slot, map, .. } => {
            visit(Needs(*map));
            visit(Gives(*slot));
        }
        Routine::MakePty { master, slave, .. } => {
            visit(Gives(*master));
            slave.iter().for_each(|slot| visit(Gives(*slot)));
        }
        Routine::Sysv { slot, .. } => slot.iter().for_each(|slot| visit(Gives(*slot))),
        Routine::FeedPayload { slot, .. }
        | Routine::WriteAll { slot, .. }
        | Routine::BindUnix { slot, .. }
        | Routine::BindInet { slot, .. }
        | Routine::ArmTimer { slot, .. }
        | Routine::Close { slot } => visit(Needs(*slot)),
        Routine::WatchInode { slot, on, .. } | Routine::MarkInode { slot, on, .. } => {
            visit(Needs(*slot));
            on.open.iter().for_each(|open| visit(Needs(*open)));
        }
        Routine::RepairTcp(tcp) => visit(Needs(tcp.slot)),
        Routine::PutDatagrams(datagrams) => visit(Needs(datagrams.slot)),
        Routine::GoLive(live) => visit(Needs(live.slot)),
        Routine::FeedMaster { master, slave, .. } | Routine::FeedSlave { master, slave, .. } => {
            visit(Needs(*master));
            visit(Needs(*slave));
        }
        Routine::SendPacket { via, rights, .. } => {
            visit(Needs(*via));
            rights.iter().for_each(|slot| visit(Needs(*slot)));
        }
        Routine::MakeCgroup(_)
        | Routine::GhostFile { .. }
        | Routine::RemoveGhost { .. }
        | Routine::Unlink { .. } => {}
    }
}
