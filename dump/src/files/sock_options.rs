//! The options that every socket has (socket(7)), as getsockopt(2) answers: buffer sizes are the
//! doubled values the kernel keeps, as the peer stores them.

use super::{Problem, RoomResult};
use anyhow::Context as _;
use crust_process::descriptor::{socket_filter, sockopt_bytes, sockopt_int};
use crust_process::kept_options::{
    SO_INCOMING_CPU, SO_LOCK_FILTER, collect_of_all, collect_raw, wished_cpu,
};
use crust_proto::criu::{CrustOptionEntry, CrustRawOptionEntry, SkOptsEntry};
use nix::errno::Errno;
use nix::libc;
use std::os::fd::BorrowedFd;

/// include/uapi/asm-generic/socket.h.
const SO_BUF_LOCK: i32 = 72;

/// Reads them all.
pub fn collect(socket: BorrowedFd) -> RoomResult<SkOptsEntry> {
    // Not every family has every option, nor every kernel: what there is not has no field.
    let optional = |name: i32| -> anyhow::Result<Option<u32>> {
        match sockopt_int(socket, libc::SOL_SOCKET, name) {
            Ok(value) => Ok(Some(value as u32)),
            Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("getsockopt(SOL_SOCKET, {name})")),
        }
    };
    let int = |name: i32| anyhow::Ok(optional(name)?.unwrap_or(0));
    let flag = |name: i32| anyhow::Ok(optional(name)?.map(|value| value != 0));
    let send_timeout = timeout(socket, libc::SO_SNDTIMEO)?;
    let receive_timeout = timeout(socket, libc::SO_RCVTIMEO)?;
    Ok(SkOptsEntry {
        so_sndbuf: int(libc::SO_SNDBUF)?,
        so_rcvbuf: int(libc::SO_RCVBUF)?,
        so_snd_tmo_sec: send_timeout.0,
        so_snd_tmo_usec: send_timeout.1,
        so_rcv_tmo_sec: receive_timeout.0,
        so_rcv_tmo_usec: receive_timeout.1,
        reuseaddr: flag(libc::SO_REUSEADDR)?,
        so_priority: Some(int(libc::SO_PRIORITY)?),
        so_rcvlowat: Some(int(libc::SO_RCVLOWAT)?),
        so_mark: Some(int(libc::SO_MARK)?).filter(|mark| *mark != 0),
        so_passcred: flag(libc::SO_PASSCRED)?,
        so_passsec: flag(libc::SO_PASSSEC)?,
        so_dontroute: flag(libc::SO_DONTROUTE)?,
        so_no_check: flag(libc::SO_NO_CHECK)?,
        so_bound_dev: bound_device(socket)?,
        so_filter: filter(socket)?,
        so_reuseport: flag(libc::SO_REUSEPORT)?,
        so_broadcast: flag(libc::SO_BROADCAST)?,
        so_keepalive: flag(libc::SO_KEEPALIVE)?,
        so_oobinline: Some(int(libc::SO_OOBINLINE)?),
        so_linger: linger(socket)?,
        so_buf_lock: Some(int(SO_BUF_LOCK)?),
        crust_options: kept(socket),
        crust_raw_options: raw(socket),
        crust_filter_locked: flag(SO_LOCK_FILTER)?.filter(|locked| *locked),
        ..SkOptsEntry::default()
    })
}

fn kept(socket: BorrowedFd) -> Vec<CrustOptionEntry> {
    let cpu = wished_cpu(socket).map(|cpu| (SO_INCOMING_CPU, cpu));
    let options = collect_of_all(socket).into_iter().chain(cpu);
    options
        .map(|(name, value)| CrustOptionEntry {
            level: libc::SOL_SOCKET,
            name,
            value,
        })
        .collect()
}

fn raw(socket: BorrowedFd) -> Vec<CrustRawOptionEntry> {
    let options = collect_raw(socket).into_iter();
    options
        .map(|(level, name, value)| CrustRawOptionEntry { level, name, value })
        .collect()
}

fn timeout(socket: BorrowedFd, name: i32) -> anyhow::Result<(u64, u64)> {
    let mut value = [0u8; 16];
    sockopt_bytes(socket, libc::SOL_SOCKET, name, &mut value).context("reading a timeout")?;
    let (seconds, microseconds) = value.split_at(8);
    let word = |bytes: &[u8]| {
        bytes
            .first_chunk()
            .map_or(0, |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes))
    };
    Ok((word(seconds), word(microseconds)))
}

fn bound_device(socket: BorrowedFd) -> anyhow::Result<Option<Vec<u8>>> {
    let mut name = [0u8; libc::IFNAMSIZ];
    match sockopt_bytes(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &mut name) {
        Ok(0) | Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(None),
        Ok(len) => {
            let name = name.get(..len).unwrap_or_default();
            Ok(name
                .split(|&byte| byte == 0)
                .next()
                .map(<[u8]>::to_vec)
                .filter(|n| !n.is_empty()))
        }
        Err(errno) => Err(errno).context("SO_BINDTODEVICE"),
    }
}

/// The seconds of SO_LINGER, when it is on.
fn linger(socket: BorrowedFd) -> anyhow::Result<Option<u32>> {
    let mut value = [0u8; 8];
    sockopt_bytes(socket, libc::SOL_SOCKET, libc::SO_LINGER, &mut value).context("SO_LINGER")?;
    let [a, b, c, d, rest @ ..] = value;
    let on = u32::from_ne_bytes([a, b, c, d]) != 0;
    Ok(on.then_some(u32::from_ne_bytes(rest)))
}

fn filter(socket: BorrowedFd) -> RoomResult<Vec<u64>> {
    match socket_filter(socket) {
        Ok(words) => Ok(words),
        Err(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP) => Ok(Vec::new()),
        Err(Errno::EACCES) => Err(Problem::refused("an eBPF program filters it")),
        Err(errno) => Err(anyhow::Error::new(errno).context("SO_GET_FILTER").into()),
    }
}
