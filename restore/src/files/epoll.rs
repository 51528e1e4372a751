//! epoll(7): a set of (number, file) pairs with what to wait for.
//!
//! The kernel keys a target by its file and by the number it had in the table of whoever added it.
//! The images have that number; a table of the tree has the file under it, unless it was closed
//! since (the target lives on through a duplicate) or means another file now. So targets are added
//! by a task that holds the epoll descriptor, after its table is complete; for a number that does
//! not mean the file, the file is put there before the table is filled. Which file that was is told
//! by `inode` for pipes and sockets; for other kinds it cannot be found out, and is refused.
//!
//! Not brought back: which targets were in the ready list (the kernel finds out anew), and that a
//! one-shot target that has fired waits not even for errors.

use super::calls::dup3;
use super::table::{NR_OPEN, Table};
use super::{File, find, fown, kind_of, member, of_kind};
use crate::plan::calls::close;
use crate::plan::step::{Actor, Arg, Call, Op, Origin, Phase, Ret, SlotId};
use crate::plan::{Planner, Refusal};
use crust_image::ids::{FileId, VirtPid};
use crust_proto::criu::{EventpollTfdEntry, FdTypes};
use nix::libc;

const EVENTS: &[(u64, &str)] = &[
    (libc::EPOLLIN as u64, "EPOLLIN"),
    (libc::EPOLLPRI as u64, "EPOLLPRI"),
    (libc::EPOLLOUT as u64, "EPOLLOUT"),
    (libc::EPOLLERR as u64, "EPOLLERR"),
    (libc::EPOLLHUP as u64, "EPOLLHUP"),
    (libc::EPOLLRDHUP as u64, "EPOLLRDHUP"),
    (libc::EPOLLEXCLUSIVE as u64, "EPOLLEXCLUSIVE"),
    (libc::EPOLLWAKEUP as u64, "EPOLLWAKEUP"),
    (libc::EPOLLONESHOT as u64, "EPOLLONESHOT"),
    (0x8000_0000, "EPOLLET"),
];

/// Makes the descriptor, without targets.
pub(super) fn plan_descriptor(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let epfd = member(planner, file, file.entry.epfd.as_ref(), |epfd| epfd.id)?;
    let slot = planner.slot();
    let args = vec![Arg::named("EPOLL_CLOEXEC", libc::EPOLL_CLOEXEC)];
    let call = Call::new("epoll_create1", libc::SYS_epoll_create1, args).answers(Ret::Fd(slot));
    let origin = file.origin(file.name());
    planner.call(Phase::Open, Actor::Broker, call, origin.clone());
    let flags = epfd.flags as i32;
    if flags & super::calls::SETTABLE != 0 {
        let call = super::calls::set_flags(slot, flags);
        planner.call(Phase::Open, Actor::Broker, call, origin);
    }
    fown::plan(planner, file, slot, flags, &epfd.fown);
    Some(slot)
}

/// Adds the targets, when tables are planned.
pub(super) fn plan(planner: &mut Planner<'_>, tables: &[Table]) {
    for file in of_kind(planner, FdTypes::Eventpoll) {
        let Some(epfd) = &file.entry.epfd else {
            continue;
        };
        let holder = tables.iter().find_map(|table| {
            let mut numbers = table.files.iter();
            let number = numbers.find(|(_, id)| **id == file.id)?.0;
            Some((table, *number))
        });
        for target in &epfd.tfd {
            if let Err(why) = plan_target(planner, file, target, holder, tables) {
                planner.refuse(Refusal::new(target_origin(file, target), why));
            }
        }
    }
}

fn plan_target(
    planner: &mut Planner<'_>,
    file: File<'_>,
    target: &EventpollTfdEntry,
    holder: Option<(&Table, i32)>,
    tables: &[Table],
) -> Result<(), String> {
    let (table, epoll) = holder
        .ok_or("no descriptor of the tree leads to the epoll instance, so it cannot be filled")?;
    let claimed = target.crust_tfd.unwrap_or(target.tfd);
    let number = i32::try_from(claimed).ok().filter(|_| claimed < NR_OPEN);
    let number = number.ok_or_else(|| format!("tfd {claimed} is no descriptor"))?;
    let origin = target_origin(file, target);
    let actor = Actor::Task(table.owner);
    let under_number = table.files.get(&number).copied();
    let is_there = match target.crust_file_id {
        Some(id) => under_number == Some(FileId(id)),
        None => under_number.is_some_and(|id| may_be(planner, id, target)),
    };
    if is_there {
        planner.call(Phase::Fds, actor, add(epoll, number, target), origin);
        return Ok(());
    }
    let known = target.crust_file_id.map(FileId);
    let id = known.or_else(|| by_inode(planner, target, tables));
    let id = id.ok_or_else(|| {
        let inode = target.inode.unwrap_or(0);
        format!(
            "tfd {number} does not mean the target any more, and inode {inode} is no known file"
        )
    })?;
    let slot = planner.file_slot(id).ok_or("its file was refused")?;
    let own = planner
        .file_slot(file.id)
        .ok_or("the epoll instance was refused")?;
    plan_closed(planner, table.owner, (own, slot), target, number, &origin);
    Ok(())
}

/// Adds a target under a number that means something else in the finished table: in `Phase::Fs`,
/// while the table is empty.
fn plan_closed(
    planner: &mut Planner<'_>,
    owner: VirtPid,
    (epoll, slot): (SlotId, SlotId),
    target: &EventpollTfdEntry,
    number: i32,
    origin: &Origin,
) {
    let mut push = |op| {
        planner.push(Phase::Fs, Actor::Task(owner), op, origin.clone());
    };
    // Both need a number at the same time, and each comes as the lowest free one.
    let at = if number == 0 { 1 } else { 0 };
    push(Op::take(slot, 0));
    if number != 0 {
        push(Op::Call(dup3(0, number, true)));
        push(Op::Call(close(0)));
    }
    push(Op::take(epoll, at));
    push(Op::Call(add(at, number, target)));
    push(Op::Call(close(at)));
    push(Op::Call(close(number)));
}

fn add(epoll: i32, number: i32, target: &EventpollTfdEntry) -> Call {
    // struct epoll_event is packed on x86-64: 32 bits of events, 64 of data.
    let event = [&target.events.to_le_bytes()[..], &target.data.to_le_bytes()].concat();
    let args = vec![
        Arg::Int(epoll.into()),
        Arg::named("EPOLL_CTL_ADD", libc::EPOLL_CTL_ADD),
        Arg::Int(number.into()),
        Arg::bytes(event),
    ];
    Call::new("epoll_ctl", libc::SYS_epoll_ctl, args)
}

/// Target and events, which the call hides in a structure.
fn target_origin(file: File<'_>, target: &EventpollTfdEntry) -> Origin {
    let events = match Arg::flags(target.events.into(), EVENTS) {
        Arg::Named(events, _) => events,
        _ => String::new(),
    };
    file.origin(format!(
        "target {} of {} for {events}",
        target.tfd,
        file.name()
    ))
}

/// The inode number an image shows for a file, for the kinds that have one of their own.
fn inode_of(planner: &Planner<'_>, id: FileId) -> Option<u64> {
    let entry = find(planner, id)?.entry;
    match kind_of(entry)? {
        FdTypes::Pipe => entry.pipe.as_ref().map(|pipe| pipe.pipe_id.into()),
        FdTypes::Fifo => entry.fifo.as_ref().map(|fifo| fifo.pipe_id.into()),
        FdTypes::Unixsk => entry.usk.as_ref().map(|usk| usk.ino.into()),
        FdTypes::Inetsk => entry.isk.as_ref().map(|isk| isk.ino.into()),
        _ => None,
    }
}

/// Whether a file can be the target, as far as the images tell.
fn may_be(planner: &Planner<'_>, id: FileId, target: &EventpollTfdEntry) -> bool {
    match (inode_of(planner, id), target.inode) {
        (Some(of_file), Some(of_target)) if of_target != 0 => of_file == of_target,
        _ => true,
    }
}

/// The file a target was, if it has an inode of its own. Of two ends of one pipe only the one that
/// fits the events is the target.
fn by_inode(planner: &Planner<'_>, target: &EventpollTfdEntry, tables: &[Table]) -> Option<FileId> {
    let inode = target.inode.filter(|inode| *inode != 0)?;
    let is_target = |id: &FileId| {
        let wants_write = target.events & libc::EPOLLOUT as u32 != 0;
        inode_of(planner, *id) == Some(inode)
            && end_of(planner, *id).is_none_or(|is_writer| is_writer == wants_write)
    };
    let mut files = tables
        .iter()
        .flat_map(|table| table.files.values().copied());
    files.find(is_target)
}

/// Whether a pipe's end is the writing one.
fn end_of(planner: &Planner<'_>, id: FileId) -> Option<bool> {
    let pipe = find(planner, id)?.entry.pipe.as_ref()?;
    Some(pipe.flags as i32 & libc::O_ACCMODE == libc::O_WRONLY)
}
