//! TCP connections (tcp-stream-INODE.img), made in repair mode while the network is locked.
//!
//! A socket in repair mode is connected without a word to the peer, at given sequence numbers, and
//! what is written into it lies in its queues as if it had been received or sent before. In
//! `Phase::Open` everything is put back that can be, so that an address this host has not, or a
//! connection that is still there, is found before anything is forked; in `Phase::Network`, when
//! all is restored and the network is unlocked, repair mode is left, what was never sent is sent,
//! and a connection that was being made is begun again.
//!
//! Sequence numbers of the image count a FIN, the lengths do not. There is no call for the peer's
//! FIN or for the acknowledgement of ours: the segments are sent to the socket in the peer's name.

use crate::plan::routine::{Ending, GoLive, Routine, TcpRepair};
use crate::plan::step::{Op, SlotId};
use crust_image::tcp_state::{
    CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK, SYN_SENT, has_got_fin,
    has_sent_fin,
};
use crust_proto::criu::{InetSkEntry, TcpStreamEntry};
use nix::libc;
use std::net::{IpAddr, SocketAddr};

/// Bits of `opt_mask`, which is tcpi_options of struct tcp_info.
const TIMESTAMPS: u32 = 1;
const SACK: u32 = 2;
const WSCALE: u32 = 4;
/// Kinds of TCP options, as TCP_REPAIR_OPTIONS takes them.
const OPTION_MSS: u32 = 2;
const OPTION_WINDOW: u32 = 3;
const OPTION_SACK: u32 = 4;
const OPTION_TIMESTAMP: u32 = 8;
/// RFC 7323.
const LARGEST_SCALE: u32 = 14;

/// What there is to do on a socket in repair mode.
#[derive(Debug)]
pub struct Plan {
    /// In `Phase::Open`, before the socket's options, some of which need a peer.
    pub repair: Op,
    /// In `Phase::Network`.
    pub live: Op,
}

impl Plan {
    /// Checks the entries of a connection. `local` and `remote` are addresses as bind(2) takes
    /// them.
    pub fn of(
        isk: &InetSkEntry,
        stream: Option<&TcpStreamEntry>,
        slot: SlotId,
        local: &[u8],
        remote: &[u8],
    ) -> Result<Plan, String> {
        let ino = isk.ino;
        let stream = stream.ok_or_else(|| {
            format!("tcp-stream-{ino:x}.img is missing (try --tcp-close to get it closed)")
        })?;
        let unsent = stream.unsq_len.unwrap_or(0);
        let sent = stream.outq_len.checked_sub(unsent);
        let sent = sent.ok_or_else(|| {
            format!("tcp-stream-{ino:x}.img: unsq_len {unsent} is more than outq_len")
        })?;
        let is_new = isk.state == SYN_SENT;
        // A FIN behind bytes that were never sent was not sent either.
        let late_fin = has_sent_fin(isk.state) && unsent > 0;
        let live = GoLive {
            slot,
            ino,
            unsent,
            shut_down: late_fin,
            reuse: isk.opts.reuseaddr == Some(true),
            connect: is_new.then(|| (remote.to_vec(), stream.outq_seq.wrapping_sub(1))),
            nonblocking: isk.flags as i32 & libc::O_NONBLOCK != 0,
        };
        let live = Op::Routine(Routine::GoLive(Box::new(live)));
        if is_new {
            let address = local.to_vec();
            let repair = Op::Routine(Routine::BindInet { slot, address });
            return Ok(Plan { repair, live });
        }
        let ours = u32::from(has_sent_fin(isk.state));
        let theirs = u32::from(has_got_fin(isk.state));
        let repair = TcpRepair {
            slot,
            ino,
            local: local.to_vec(),
            remote: remote.to_vec(),
            in_seq: stream
                .inq_seq
                .wrapping_sub(stream.inq_len)
                .wrapping_sub(theirs),
            out_seq: stream
                .outq_seq
                .wrapping_sub(stream.outq_len)
                .wrapping_sub(ours),
            waiting: stream.inq_len,
            sent,
            options: options(stream)?,
            timestamp: stream
                .timestamp
                .filter(|_| stream.opt_mask & TIMESTAMPS != 0),
            windows: windows(stream),
            buffers: [isk.opts.so_sndbuf, isk.opts.so_rcvbuf],
            endings: endings(isk.state, late_fin),
            state: match (isk.state, late_fin) {
                (FIN_WAIT1 | FIN_WAIT2, true) => ESTABLISHED,
                (LAST_ACK | CLOSING, true) => CLOSE_WAIT,
                (state, _) => state,
            },
        };
        let repair = Op::Routine(Routine::RepairTcp(Box::new(repair)));
        Ok(Plan { repair, live })
    }
}

/// Of the bytes of a sockaddr_in or sockaddr_in6.
pub fn socket_addr(raw: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*raw.first_chunk()?));
    let port = u16::from_be_bytes(*raw.get(2..)?.first_chunk()?);
    let ip = match family {
        libc::AF_INET => IpAddr::from(*raw.get(4..)?.first_chunk::<4>()?),
        libc::AF_INET6 => IpAddr::from(*raw.get(8..)?.first_chunk::<16>()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// What was agreed when the connection was made, as (kind, value).
fn options(stream: &TcpStreamEntry) -> Result<Vec<(u32, u32)>, String> {
    let mut options = vec![(OPTION_MSS, stream.mss_clamp)];
    if stream.opt_mask & WSCALE != 0 {
        let ours = stream.rcv_wscale.unwrap_or(0);
        let scales = [("snd_wscale", stream.snd_wscale), ("rcv_wscale", ours)];
        for (field, scale) in scales {
            if scale > LARGEST_SCALE {
                return Err(format!("{field} {scale} is above {LARGEST_SCALE}"));
            }
        }
        options.push((OPTION_WINDOW, stream.snd_wscale | ours << 16));
    }
    if stream.opt_mask & SACK != 0 {
        options.push((OPTION_SACK, 0));
    }
    if stream.opt_mask & TIMESTAMPS != 0 {
        options.push((OPTION_TIMESTAMP, 0));
    }
    Ok(options)
}

/// In the order of struct tcp_repair_window; images of old kernels have none.
fn windows(stream: &TcpStreamEntry) -> Option<[u32; 5]> {
    Some([
        stream.snd_wl1?,
        stream.snd_wnd?,
        stream.max_window?,
        stream.rcv_wnd?,
        stream.rcv_wup?,
    ])
}

/// How the state is reached from ESTABLISHED.
fn endings(state: u32, late_fin: bool) -> Vec<Ending> {
    let all = match state {
        FIN_WAIT1 => vec![Ending::Ours],
        FIN_WAIT2 => vec![Ending::Ours, Ending::Acknowledged],
        CLOSE_WAIT => vec![Ending::Theirs],
        LAST_ACK => vec![Ending::Theirs, Ending::Ours],
        CLOSING => vec![Ending::Ours, Ending::Theirs],
        _ => Vec::new(),
    };
    let wanted = |ending: &Ending| !late_fin || *ending == Ending::Theirs;
    all.into_iter().filter(wanted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> TcpStreamEntry {
        TcpStreamEntry {
            inq_len: 4,
            inq_seq: 1005,
            outq_len: 10,
            outq_seq: 5011,
            opt_mask: 7,
            snd_wscale: 7,
            mss_clamp: 1460,
            rcv_wscale: Some(10),
            timestamp: Some(99),
            unsq_len: Some(0),
            ..TcpStreamEntry::default()
        }
    }

    fn planned(state: u32, stream: &TcpStreamEntry) -> Result<(Routine, GoLive), String> {
        let isk = InetSkEntry {
            state,
            ..InetSkEntry::default()
        };
        let plan = Plan::of(&isk, Some(stream), SlotId(0), &[2], &[3])?;
        match (plan.repair, plan.live) {
            (Op::Routine(repair), Op::Routine(Routine::GoLive(live))) => Ok((repair, *live)),
            other => panic!("{other:?}"),
        }
    }

    fn connection(routine: Routine) -> TcpRepair {
        match routine {
            Routine::RepairTcp(repair) => *repair,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn numbers_begin_before_the_queues_and_fins() {
        let (repair, live) = planned(CLOSING, &stream()).expect("a plan");
        let repair = connection(repair);
        assert_eq!((repair.in_seq, repair.out_seq), (1000, 5000));
        assert_eq!(repair.endings, [Ending::Ours, Ending::Theirs]);
        let options = [(2, 1460), (3, 7 | 10 << 16), (4, 0), (8, 0)];
        assert_eq!(repair.options, options);
        assert_eq!((repair.timestamp, repair.windows), (Some(99), None));
        assert!(!live.shut_down);
    }

    #[test]
    fn a_fin_behind_unsent_bytes_waits_for_them() {
        let mut stream = stream();
        stream.unsq_len = Some(3);
        let (repair, live) = planned(LAST_ACK, &stream).expect("a plan");
        let repair = connection(repair);
        assert_eq!((repair.sent, live.unsent), (7, 3));
        assert_eq!(repair.endings, [Ending::Theirs]);
        assert_eq!(repair.state, CLOSE_WAIT);
        assert!(live.shut_down);
        stream.unsq_len = Some(11);
        assert!(planned(ESTABLISHED, &stream).is_err());
        stream.unsq_len = None;
        stream.snd_wscale = 15;
        assert!(planned(ESTABLISHED, &stream).is_err());
    }

    #[test]
    fn a_connection_being_made_begins_again_with_its_number() {
        let (bind, live) = planned(SYN_SENT, &stream()).expect("a plan");
        assert!(matches!(bind, Routine::BindInet { .. }));
        assert_eq!(live.connect, Some((vec![3], 5010)));
    }

    fn sockaddr(text: &str) -> Vec<u8> {
        let address: SocketAddr = text.parse().expect("an address");
        let port = address.port().to_be_bytes();
        match address.ip() {
            IpAddr::V4(four) => [
                &[libc::AF_INET as u8, 0],
                &port[..],
                &four.octets(),
                &[0; 8],
            ]
            .concat(),
            IpAddr::V6(six) => [
                &[libc::AF_INET6 as u8, 0],
                &port[..],
                &[0; 4],
                &six.octets(),
                &[0; 4],
            ]
            .concat(),
        }
    }

    #[test]
    fn addresses_are_read_from_their_bytes() {
        for text in ["10.1.2.3:80", "[fe80::1]:443"] {
            assert_eq!(
                socket_addr(&sockaddr(text)).map(|a| a.to_string()),
                Some(text.into())
            );
        }
        assert_eq!(socket_addr(&[2, 0, 1]), None);
    }
}
