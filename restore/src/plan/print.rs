//! A plan as text, like strace: who, the call with its arguments, and behind it why. It is the dry
//! run (`--plan`), the golden test and what a bug report needs. `--plan=json` is the plan itself.

use super::object::{BpfMap, TunDevice, TunLink};
use super::routine::{Datagrams, FileFacts, Routine, TcpRepair, Watched};
use super::step::{Arg, Call, Op, PageLoad, Piece, Plan, Ret, SlotId, Step};
use std::fmt::{self, Display, Formatter, Write};

/// Bytes of a string or structure that are shown; the rest is counted.
const SHOWN_BYTES: usize = 48;

/// The plan for people.
pub struct Text<'p>(pub &'p Plan);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut phase = None;
        for step in &self.0.steps {
            if phase != Some(step.phase) {
                phase = Some(step.phase);
                writeln!(f, "== {:?}", step.phase)?;
            }
            write_step(f, step)?;
        }
        Ok(())
    }
}

/// One operation, for messages.
pub fn op(op: &Op) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write_op(&mut text, op);
    text
}

fn write_step(f: &mut Formatter<'_>, step: &Step) -> fmt::Result {
    let mut line = format!("{:<8} ", step.actor.to_string());
    write_op(&mut line, &step.op)?;
    if !step.after.is_empty() {
        line.push_str(" after");
        for slot in &step.after {
            write!(line, " {}", Slot(*slot))?;
        }
    }
    if let Some(done) = step.done {
        write!(line, " done {}", Slot(done))?;
    }
    writeln!(f, "{line}  # {}", step.origin)
}

/// A slot, as `%3`.
struct Slot(SlotId);

impl Display for Slot {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0.0)
    }
}

fn write_op(out: &mut String, op: &Op) -> fmt::Result {
    match op {
        Op::Call(call) => write_call(out, call),
        Op::LastCall(call) => {
            out.push_str("at last ");
            write_call(out, call)
        }
        Op::Take { slot, at, cloexec } => {
            let kept = if *cloexec { "" } else { ", kept on exec" };
            write!(out, "take {} as {at}{kept}", Slot(*slot))
        }
        Op::Fetch { from, number, slot } => {
            write!(out, "fetch {number} of {from} -> {}", Slot(*slot))
        }
        Op::Fork {
            pid,
            flags,
            exit_signal,
        } => write!(
            out,
            "fork {pid} (flags {flags:#x}, exit signal {exit_signal})"
        ),
        Op::ClearMemory => write!(out, "clear memory"),
        Op::AioRing {
            at,
            len,
            requests,
            pages,
            offset,
        } => write!(
            out,
            "AIO context of {requests} requests, {len} bytes at {at:#x}, as stored in {} at \
             {offset:#x}",
            Slot(*pages)
        ),
        Op::MapRing {
            at,
            len,
            prot,
            offset,
        } => write!(
            out,
            "map {len} bytes of io_uring 0 at {at:#x}, prot {prot}, offset {offset:#x}"
        ),
        Op::MoveVdso { areas } => {
            out.push_str("move vdso");
            for area in areas {
                let what = if area.is_code { "vdso" } else { "vvar" };
                write!(out, " {what} {:x}-{:x}", area.start, area.end)?;
            }
            Ok(())
        }
        Op::LoadPages { fd, runs, .. } => {
            write!(out, "load pages from {fd}:")?;
            write_runs(out, runs)
        }
        Op::CopyPages { from, to, runs } => {
            write!(out, "copy pages {} to {}:", Slot(*from), Slot(*to))?;
            write_runs(out, runs)
        }
        Op::WriteProc {
            pid,
            tid,
            file,
            text,
        } => match tid {
            Some(tid) => write!(out, "write /proc/{pid}/task/{tid}/{file} {text:?}"),
            None => write!(out, "write /proc/{pid}/{file} {text:?}"),
        },
        Op::Thread { tid } => write!(out, "thread {tid}"),
        Op::Die { status } => write!(out, "die with status {status:#x}"),
        Op::Overrun {
            id,
            left,
            interval,
            overrun,
            ..
        } => write!(
            out,
            "arm timer {id} to {left} ns, then every {interval} ns, with overrun {overrun}"
        ),
        Op::Reap { pid } => write!(out, "reap {pid}"),
        Op::Stop { signal } => write!(out, "stop by signal {signal}"),
        Op::SetRegs(state) => {
            let [ax, ip, sp, fs] = [10, 16, 19, 21].map(|at| state.gpregs[at]);
            write!(
                out,
                "set registers ip {ip:#x} sp {sp:#x} ax {ax:#x} fs_base {fs:#x}"
            )?;
            write!(
                out,
                " blocked {:#x} xstate {} bytes",
                state.sigmask,
                state.xstate.len()
            )
        }
        Op::Routine(routine) => write_routine(out, routine),
    }
}

fn write_runs(out: &mut String, runs: &[PageLoad]) -> fmt::Result {
    for run in runs {
        write!(out, " {:x}+{:x}@{:x}", run.to, run.len, run.offset)?;
    }
    Ok(())
}

fn write_call(out: &mut String, call: &Call) -> fmt::Result {
    write!(out, "{}(", call.name)?;
    for (at, arg) in call.args.iter().enumerate() {
        if at > 0 {
            out.push_str(", ");
        }
        write_arg(out, arg)?;
    }
    out.push(')');
    match call.ret {
        Ret::Ok => Ok(()),
        Ret::Exactly(value) => write!(out, " = {value}"),
        Ret::Any => write!(out, " = any"),
        Ret::Fd(slot) => write!(out, " -> {}", Slot(slot)),
        Ret::FdPair(_, first, second) => write!(out, " -> {} {}", Slot(first), Slot(second)),
    }
}

fn write_arg(out: &mut String, arg: &Arg) -> fmt::Result {
    match arg {
        Arg::Int(value) => write!(out, "{value}"),
        Arg::Hex(value) => write!(out, "{value:#x}"),
        Arg::Named(name, _) => write!(out, "{name}"),
        Arg::Str(bytes) => write_str(out, bytes),
        Arg::Out(len) => write!(out, "&[{len}]"),
        Arg::Fd(slot) => write!(out, "{}", Slot(*slot)),
        Arg::FdPath(slot) => write!(out, "\"/proc/self/fd/{}\"", Slot(*slot)),
        Arg::Data(pieces) => {
            out.push('{');
            for (at, piece) in pieces.iter().enumerate() {
                if at > 0 {
                    out.push(' ');
                }
                match piece {
                    Piece::Bytes(bytes) => write_hex(out, bytes)?,
                    Piece::Ptr(arg) => {
                        out.push('&');
                        write_arg(out, arg)?;
                    }
                }
            }
            out.push('}');
            Ok(())
        }
    }
}

fn write_str(out: &mut String, bytes: &[u8]) -> fmt::Result {
    let shown = bytes.get(..SHOWN_BYTES.min(bytes.len())).unwrap_or(bytes);
    // A path is shown whole; only data that is not text can be long.
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => write!(out, "{text:?}"),
        _ => {
            write!(out, "\"{}\"", shown.escape_ascii())?;
            write_rest(out, bytes.len())
        }
    }
}

fn write_hex(out: &mut String, bytes: &[u8]) -> fmt::Result {
    for word in bytes.chunks(8).take(SHOWN_BYTES / 8) {
        let mut value = [0; 8];
        for (to, from) in value.iter_mut().zip(word) {
            *to = *from;
        }
        if !out.ends_with('{') && !out.ends_with(' ') {
            out.push(' ');
        }
        write!(out, "{:x}", u64::from_le_bytes(value))?;
    }
    write_rest(out, bytes.len())
}

fn write_rest(out: &mut String, len: usize) -> fmt::Result {
    if len > SHOWN_BYTES {
        write!(out, "... {len} bytes")?;
    }
    Ok(())
}

fn write_watched(out: &mut String, on: &Watched) -> fmt::Result {
    if let Some(slot) = on.open {
        return write!(out, "{}", Slot(slot));
    }
    if !on.path.is_empty() {
        return write_str(out, &on.path);
    }
    let Watched {
        device,
        handle_type,
        ..
    } = on;
    write!(out, "device {device:#x} handle type {handle_type}: ")?;
    write_hex(out, &on.handle)
}

fn write_routine(out: &mut String, routine: &Routine) -> fmt::Result {
    match routine {
        Routine::OpenFile {
            path,
            flags,
            expect,
            pos,
            slot,
        } => {
            out.push_str("open file ");
            write_str(out, path)?;
            write!(out, " flags {flags:#o}")?;
            write_facts(out, expect)?;
            if *pos != 0 {
                write!(out, " pos {pos}")?;
            }
            write!(out, " -> {}", Slot(*slot))
        }
        Routine::OpenPages {
            level,
            pages_id,
            slot,
        } => write!(
            out,
            "open pages-{pages_id}.img of level {level} -> {}",
            Slot(*slot)
        ),
        Routine::SharedAnon { size, huge, slot } => {
            let huge = if *huge == 0 { "" } else { " in huge pages" };
            write!(
                out,
                "shared anonymous memory of {size} bytes{huge} -> {}",
                Slot(*slot)
            )
        }
        Routine::Sysv {
            member,
            object,
            slot,
        } => {
            match member {
                Some(pid) => write!(out, "in the ipc namespace of task {pid}: {object:?}")?,
                None => write!(out, "in our ipc namespace: {object:?}")?,
            }
            match slot {
                Some(slot) => write!(out, " -> {}", Slot(*slot)),
                None => Ok(()),
            }
        }
        Routine::MakeUts {
            nodename,
            domainname,
            flags,
            slot,
        } => {
            out.push_str("make uts namespace ");
            write_str(out, nodename)?;
            out.push(' ');
            write_str(out, domainname)?;
            write!(out, " flags {flags:#o} -> {}", Slot(*slot))
        }
        Routine::MakeCgroup(dir) => {
            out.push_str(if dir.must_exist {
                "find cgroup "
            } else {
                "make cgroup "
            });
            write_str(out, &dir.path)?;
            write!(
                out,
                " with {} properties, set {:?}",
                dir.properties.len(),
                dir.set
            )
        }
        Routine::GhostFile { id, path, nameless } => {
            write!(out, "make ghost file {id:x} at ")?;
            write_str(out, path)?;
            nameless.map_or(Ok(()), |flags| {
                write!(out, " without a name, flags {flags:#o}")
            })
        }
        Routine::OpenGhost {
            id,
            path,
            flags,
            slot,
        } => {
            write!(out, "open ghost file {id:x} as ")?;
            write_str(out, path)?;
            write!(out, " flags {flags:#o} -> {}", Slot(*slot))
        }
        Routine::RemoveGhost { id } => write!(out, "remove ghost file {id:x}"),
        Routine::OpenLink {
            link,
            path,
            flags,
            expect,
            slot,
        } => {
            out.push_str("open link ");
            write_str(out, link)?;
            out.push_str(" as ");
            write_str(out, path)?;
            write!(out, " flags {flags:#o}")?;
            write_facts(out, expect)?;
            write!(out, " -> {}", Slot(*slot))
        }
        Routine::BindInet { slot, address } => {
            write!(out, "bind {} to ", Slot(*slot))?;
            write_address(out, address)
        }
        Routine::RepairTcp(tcp) => write_repair(out, tcp),
        Routine::PutDatagrams(datagrams) => write_datagrams(out, datagrams),
        Routine::MakeBpfMap(map) => write_bpf_map(out, map),
        Routine::MakeUring { ring, slot } => write!(
            out,
            "make io_uring of {} and {} entries, flags {:#x}, {} taken, {} completed -> {}",
            ring.sq_entries,
            ring.cq_entries,
            ring.setup,
            ring.sq_head,
            ring.cq_tail,
            Slot(*slot)
        ),
        Routine::OpenTun {
            path,
            flags,
            device,
            slot,
        } => {
            out.push_str("open tun ");
            write_str(out, path)?;
            write!(out, " flags {flags:#o}")?;
            write_tun_device(out, device.as_deref())?;
            write!(out, " -> {}", Slot(*slot))
        }
        Routine::OpenBpfMap { map, flags, slot } => {
            write!(
                out,
                "open bpf map {} flags {flags:#x} -> {}",
                Slot(*map),
                Slot(*slot)
            )
        }
        Routine::GoLive(live) => {
            write!(out, "leave repair mode of {}", Slot(live.slot))?;
            if let Some((remote, seq)) = &live.connect {
                write!(out, ", connect from seq {seq} to ")?;
                write_address(out, remote)?;
            }
            if live.unsent > 0 {
                write!(out, ", send {} bytes", live.unsent)?;
            }
            if live.shut_down {
                out.push_str(", end");
            }
            Ok(())
        }
        Routine::FeedPayload {
            image,
            pipe_id,
            packets,
            slot,
        } => {
            write!(
                out,
                "feed data of {image} pipe {pipe_id:#x} into {}",
                Slot(*slot)
            )?;
            if packets.is_empty() {
                return Ok(());
            }
            write!(out, " in packets of {packets:?}")
        }
        Routine::WriteAll { slot, bytes } => {
            write!(
                out,
                "write all {} bytes into {}: ",
                bytes.len(),
                Slot(*slot)
            )?;
            write_hex(out, bytes)
        }
        Routine::BindUnix {
            slot,
            dir,
            name,
            perms,
            is_deleted,
        } => {
            write!(out, "bind {} to ", Slot(*slot))?;
            write_str(out, name)?;
            if !dir.is_empty() {
                out.push_str(" in ");
                write_str(out, dir)?;
            }
            if let Some((mode, uid, gid)) = perms {
                write!(out, " mode {mode:#o} owner {uid}:{gid}")?;
            }
            if *is_deleted {
                out.push_str(" for now");
            }
            Ok(())
        }
        Routine::SendPacket {
            receiver,
            nth,
            via,
            to,
            rights,
            sender,
        } => {
            write!(
                out,
                "send packet {nth} of sk-queues for {receiver:#x} by {}",
                Slot(*via)
            )?;
            if !to.is_empty() {
                out.push_str(" to ");
                write_str(out, to)?;
            }
            for right in rights {
                write!(out, " with {}", Slot(*right))?;
            }
            if let Some((pid, uid, gid)) = sender {
                write!(out, " from {pid} of {uid}:{gid}")?;
            }
            Ok(())
        }
        Routine::ArmTimer {
            slot,
            clock,
            flags,
            left,
            interval,
            ticks,
        } => {
            write!(out, "arm timer {} of clock {clock}", Slot(*slot))?;
            write!(
                out,
                " flags {flags:#x}: {left} ns left, every {interval} ns, {ticks} unread"
            )
        }
        Routine::MakePty {
            path,
            index,
            flags,
            master,
            slave,
        } => {
            write!(out, "make pseudo terminal {index} by ")?;
            write_str(out, path)?;
            write!(out, " flags {flags:#o} -> {}", Slot(*master))?;
            slave.map_or(Ok(()), |slave| write!(out, " {}", Slot(slave)))
        }
        Routine::FeedMaster {
            master,
            slave,
            bytes,
        } => {
            let (master, slave) = (Slot(*master), Slot(*slave));
            write!(
                out,
                "feed {} bytes to master {master} of {slave}: ",
                bytes.len()
            )?;
            write_hex(out, bytes)
        }
        Routine::FeedSlave {
            slave,
            master,
            bytes,
            ends,
        } => {
            let (slave, master) = (Slot(*slave), Slot(*master));
            write!(
                out,
                "feed {} bytes to slave {slave} of {master}: ",
                bytes.len()
            )?;
            write_hex(out, bytes)?;
            if ends.is_empty() {
                return Ok(());
            }
            write!(out, " ends {ends:?}")
        }
        Routine::Inherit { fd, slot } => write!(out, "inherit fd {fd} -> {}", Slot(*slot)),
        Routine::OwnTerminal { flags, slot } => {
            write!(out, "open our terminal flags {flags:#o} -> {}", Slot(*slot))
        }
        Routine::WatchInode { slot, wd, mask, on } => {
            let to = Slot(*slot);
            write!(out, "add watch {wd} to {to} events {mask:#x} on ")?;
            write_watched(out, on)
        }
        Routine::MarkInode {
            slot,
            flags,
            mask,
            on,
        } => {
            let by = Slot(*slot);
            write!(out, "mark with flags {flags:#x} mask {mask:#x} by {by} ")?;
            write_watched(out, on)
        }
        Routine::Unlink { path } => {
            out.push_str("unlink ");
            write_str(out, path)
        }
        Routine::Close { slot } => write!(out, "close {}", Slot(*slot)),
    }
}

/// An internet address, or bytes that are none.
fn write_address(out: &mut String, raw: &[u8]) -> fmt::Result {
    match crate::files::tcp::socket_addr(raw) {
        Some(address) => write!(out, "{address}"),
        None => write_hex(out, raw),
    }
}

fn write_datagrams(out: &mut String, datagrams: &Datagrams) -> fmt::Result {
    write!(out, "put into {}", Slot(datagrams.slot))?;
    for (from, data) in &datagrams.queue {
        write!(out, " {} bytes from ", data.len())?;
        write_address(out, from)?;
    }
    Ok(())
}

fn write_repair(out: &mut String, tcp: &TcpRepair) -> fmt::Result {
    write!(out, "repair connection {} from ", Slot(tcp.slot))?;
    write_address(out, &tcp.local)?;
    out.push_str(" to ");
    write_address(out, &tcp.remote)?;
    write!(out, " in {}+{}", tcp.in_seq, tcp.waiting)?;
    write!(out, " out {}+{}", tcp.out_seq, tcp.sent)?;
    for (kind, value) in &tcp.options {
        write!(out, " option {kind}={value:#x}")?;
    }
    if let Some(timestamp) = tcp.timestamp {
        write!(out, " timestamp {timestamp}")?;
    }
    if let Some(windows) = tcp.windows {
        write!(out, " windows {windows:?}")?;
    }
    for ending in &tcp.endings {
        write!(out, " {ending:?}")?;
    }
    Ok(())
}

fn write_tun_device(out: &mut String, device: Option<&TunDevice>) -> fmt::Result {
    let Some(device) = device else { return Ok(()) };
    out.push_str(" as ");
    write_str(out, &device.name)?;
    write!(out, " of flags {:#x}", device.flags)?;
    let Some(TunLink { link, setup, .. }) = &device.link else {
        return Ok(());
    };
    write!(
        out,
        ", made as number {} with flags {:#x}, mtu {}, {} addresses and routes",
        link.index,
        link.flags,
        link.mtu,
        setup.len()
    )
}

fn write_bpf_map(out: &mut String, map: &BpfMap) -> fmt::Result {
    out.push_str("make bpf map ");
    write_str(out, &map.name)?;
    write!(
        out,
        " of kind {}, {} entries of {} and {} bytes, flags {:#x}",
        map.kind, map.max_entries, map.key_size, map.value_size, map.flags
    )?;
    if map.extra != 0 {
        write!(out, ", extra {:#x}", map.extra)?;
    }
    if map.count > 0 {
        write!(out, ", with {} of map_id {}", map.count, map.map_id)?;
    }
    if map.frozen {
        out.push_str(", frozen");
    }
    write!(out, " -> {}", Slot(map.slot))
}

fn write_facts(out: &mut String, facts: &FileFacts) -> fmt::Result {
    if let Some(mode) = facts.mode {
        write!(out, " mode {mode:#o}")?;
    }
    if let Some(size) = facts.size {
        write!(out, " size {size}")?;
    }
    if !facts.build_id.is_empty() {
        out.push_str(" build-id ");
        for word in &facts.build_id {
            for byte in word.to_le_bytes() {
                write!(out, "{byte:02x}")?;
            }
        }
    }
    Ok(())
}
