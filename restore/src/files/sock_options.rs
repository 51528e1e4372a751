//! The options every socket has (socket(7)), set on a socket that is otherwise complete.
//!
//! Buffer sizes are stored doubled, as SO_SNDBUF shows them, and set without the limits of the
//! host, which takes CAP_NET_ADMIN, unless they are within them; SO_BUF_LOCK then says which of them a user had set (Linux 5.16). SO_PASSCRED comes after
//! the queues are filled: packets sent again would otherwise carry the credentials of
//! crust-restore; so they show nobody's, as for a sender the kernel does not know.

use super::calls::set_option;
use crate::host::Host;
use crate::plan::step::{Arg, Call, Piece, SlotId};
use crust_process::kept_options::{LONGEST_RAW, OF_ALL, RAW, SO_INCOMING_CPU, SO_LOCK_FILTER};
use crust_proto::criu::{CrustOptionEntry, CrustRawOptionEntry, SkOptsEntry};
use nix::libc;

/// The level of all these.
pub const SOL_SOCKET: (&str, i32) = ("SOL_SOCKET", libc::SOL_SOCKET);
/// Not in libc for this target (include/uapi/asm-generic/socket.h).
const SO_BUF_LOCK: i32 = 72;
/// Both directions of SO_BUF_LOCK.
const BUF_LOCKS: u32 = 3;
/// BPF_MAXINSNS of the kernel.
const LONGEST_FILTER: usize = 4096;

/// A 32-bit value.
pub fn word(value: u32) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// The same call as it needs no privilege, if it sets a buffer within the limits of the host.
pub fn within_limits(mut call: Call, host: &Host) -> Call {
    let [send, receive] = host.socket_buffers;
    let forced =
        |arg: &Arg, option: i32| matches!(arg, Arg::Named(_, value) if *value == option as u64);
    let bytes = match call.args.get(3) {
        Some(Arg::Data(pieces)) => match pieces.as_slice() {
            [Piece::Bytes(bytes)] => bytes.as_slice().try_into().ok().map(u32::from_le_bytes),
            _ => None,
        },
        _ => None,
    };
    if let (Some(size), Some(option)) = (bytes, call.args.get_mut(2)) {
        if forced(option, libc::SO_SNDBUFFORCE) && size <= send {
            *option = Arg::named("SO_SNDBUF", libc::SO_SNDBUF);
        } else if forced(option, libc::SO_RCVBUFFORCE) && size <= receive {
            *option = Arg::named("SO_RCVBUF", libc::SO_RCVBUF);
        }
    }
    call
}

/// The calls that set what differs from a new socket. The restorer's own SO_REUSEADDR, which lets
/// it bind in spite of connections that linger, is taken back.
pub fn calls(opts: &SkOptsEntry, slot: SlotId, had_reuse: bool) -> Result<Vec<Call>, String> {
    let mut calls = Vec::new();
    let mut set = |name: (&str, i32), value: Vec<u8>| {
        calls.push(set_option(slot, SOL_SOCKET, name, value));
    };
    set(
        ("SO_SNDBUFFORCE", libc::SO_SNDBUFFORCE),
        word(opts.so_sndbuf / 2),
    );
    set(
        ("SO_RCVBUFFORCE", libc::SO_RCVBUFFORCE),
        word(opts.so_rcvbuf / 2),
    );
    if let Some(locks) = opts.so_buf_lock {
        if locks & !BUF_LOCKS != 0 {
            return Err(format!(
                "so_buf_lock {locks:#x} has bits that are not known"
            ));
        }
        set(("SO_BUF_LOCK", SO_BUF_LOCK), word(locks));
    }
    let timeouts = [
        (
            ("SO_SNDTIMEO", libc::SO_SNDTIMEO),
            opts.so_snd_tmo_sec,
            opts.so_snd_tmo_usec,
        ),
        (
            ("SO_RCVTIMEO", libc::SO_RCVTIMEO),
            opts.so_rcv_tmo_sec,
            opts.so_rcv_tmo_usec,
        ),
    ];
    for (name, seconds, micros) in timeouts {
        if (seconds, micros) != (0, 0) {
            set(name, [seconds.to_le_bytes(), micros.to_le_bytes()].concat());
        }
    }
    let numbers = [
        (
            ("SO_PRIORITY", libc::SO_PRIORITY),
            opts.so_priority.unwrap_or(0),
        ),
        (("SO_MARK", libc::SO_MARK), opts.so_mark.unwrap_or(0)),
        (
            ("SO_RCVLOWAT", libc::SO_RCVLOWAT),
            opts.so_rcvlowat.filter(|low| *low != 1).unwrap_or(0),
        ),
        (
            ("SO_OOBINLINE", libc::SO_OOBINLINE),
            opts.so_oobinline.unwrap_or(0),
        ),
    ];
    for (name, value) in numbers.into_iter().filter(|(_, value)| *value != 0) {
        set(name, word(value));
    }
    let is_reused = opts.reuseaddr == Some(true);
    if is_reused != had_reuse {
        set(("SO_REUSEADDR", libc::SO_REUSEADDR), word(is_reused.into()));
    }
    let switches = [
        (("SO_PASSCRED", libc::SO_PASSCRED), opts.so_passcred),
        (("SO_PASSSEC", libc::SO_PASSSEC), opts.so_passsec),
        (("SO_DONTROUTE", libc::SO_DONTROUTE), opts.so_dontroute),
        (("SO_NO_CHECK", libc::SO_NO_CHECK), opts.so_no_check),
        (("SO_BROADCAST", libc::SO_BROADCAST), opts.so_broadcast),
        (("SO_KEEPALIVE", libc::SO_KEEPALIVE), opts.so_keepalive),
    ];
    for (name, _) in switches.into_iter().filter(|(_, on)| *on == Some(true)) {
        set(name, word(1));
    }
    if let Some(seconds) = opts.so_linger {
        set(
            ("SO_LINGER", libc::SO_LINGER),
            [word(1), word(seconds)].concat(),
        );
    }
    for option in &opts.crust_options {
        set(known(option)?, word(option.value as u32));
    }
    for option in &opts.crust_raw_options {
        calls.push(raw(option, slot)?);
    }
    calls.extend(filter(&opts.so_filter, slot)?);
    if opts.crust_filter_locked == Some(true) {
        let name = ("SO_LOCK_FILTER", SO_LOCK_FILTER);
        calls.push(set_option(slot, SOL_SOCKET, name, word(1)));
    }
    Ok(calls)
}

/// The name of an option of every socket.
fn known(option: &CrustOptionEntry) -> Result<(&'static str, i32), String> {
    let of_all = OF_ALL.iter().map(|(name, text, _)| (*text, *name));
    let mut all = of_all.chain([("SO_INCOMING_CPU", SO_INCOMING_CPU)]);
    let (level, number) = (option.level, option.name);
    let found = all.find(|(_, name)| level == libc::SOL_SOCKET && *name == number);
    found.ok_or_else(|| format!("opts.crust_options: option {number} of level {level} is not kept"))
}

fn raw(option: &CrustRawOptionEntry, slot: SlotId) -> Result<Call, String> {
    let (level, number, len) = (option.level, option.name, option.value.len());
    let known = RAW
        .iter()
        .find(|known| (known.0, known.1) == (level, number))
        .filter(|_| len <= LONGEST_RAW);
    let (.., (level_text, text)) = known.ok_or_else(|| {
        format!("opts.crust_raw_options: {len} bytes for option {number} of level {level}")
    })?;
    let value = option.value.clone();
    Ok(set_option(slot, (level_text, level), (text, number), value))
}

/// A classic filter program; each 64-bit word is an instruction as the kernel has it.
fn filter(program: &[u64], slot: SlotId) -> Result<Option<Call>, String> {
    if program.is_empty() {
        return Ok(None);
    }
    let len = u16::try_from(program.len())
        .ok()
        .filter(|_| program.len() <= LONGEST_FILTER);
    let len = len.ok_or_else(|| format!("so_filter has {} instructions", program.len()))?;
    // struct sock_fprog: the number of instructions and a pointer to them, aligned.
    let fprog = Arg::Data(vec![
        Piece::Bytes([&len.to_le_bytes()[..], &[0; 6]].concat()),
        Piece::Ptr(Box::new(Arg::words(program))),
    ]);
    let args = vec![
        Arg::Fd(slot),
        Arg::named(SOL_SOCKET.0, SOL_SOCKET.1),
        Arg::named("SO_ATTACH_FILTER", libc::SO_ATTACH_FILTER),
        fprog,
        Arg::Int(16),
    ];
    Ok(Some(Call::new("setsockopt", libc::SYS_setsockopt, args)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_set() {
        let mut opts = SkOptsEntry {
            so_sndbuf: 212_992,
            so_rcvbuf: 80_000,
            so_rcvlowat: Some(1),
            so_passcred: Some(false),
            ..Default::default()
        };
        let count =
            |opts: &SkOptsEntry, reuse| calls(opts, SlotId(0), reuse).map(|calls| calls.len());
        assert_eq!(count(&opts, false), Ok(2));
        assert_eq!(count(&opts, true), Ok(3));
        opts.so_passcred = Some(true);
        opts.so_rcv_tmo_sec = 3;
        opts.so_buf_lock = Some(2);
        assert_eq!(count(&opts, false), Ok(5));
        opts.so_filter = vec![6];
        assert_eq!(count(&opts, false), Ok(6));
        opts.so_filter = vec![6; LONGEST_FILTER + 1];
        assert!(count(&opts, false).is_err());
    }

    #[test]
    fn only_what_is_in_the_tables_is_set() {
        let option = |name| CrustOptionEntry {
            level: libc::SOL_SOCKET,
            name,
            value: 1,
        };
        let raw = |name, len| CrustRawOptionEntry {
            level: libc::IPPROTO_IPV6,
            name,
            value: vec![0; len],
        };
        let with = |options: &[CrustOptionEntry], raw: &[CrustRawOptionEntry]| {
            let opts = SkOptsEntry {
                crust_options: options.to_vec(),
                crust_raw_options: raw.to_vec(),
                ..Default::default()
            };
            calls(&opts, SlotId(0), false).map(|calls| calls.len())
        };
        assert_eq!(with(&[option(SO_INCOMING_CPU)], &[raw(54, 8)]), Ok(4));
        assert!(with(&[option(libc::SO_ATTACH_BPF)], &[]).is_err());
        assert!(with(&[], &[raw(53, 8)]).is_err());
        assert!(with(&[], &[raw(54, LONGEST_RAW + 1)]).is_err());
    }
}
