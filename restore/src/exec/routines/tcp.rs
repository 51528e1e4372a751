//! A TCP connection put into a socket in repair mode (net/ipv4/tcp.c), and its return to the world.
//!
//! Order: the address, the sequence numbers, then connect(2), which in repair mode sends nothing;
//! what was agreed at the handshake; the queues; how far the connection has ended; the windows last,
//! for each step before may move them.

use super::inet::{bind_or_tell, connect_or_tell};
use super::segment::{Segment, Sender};
use crate::plan::routine::{Ending, GoLive, TcpRepair};
use anyhow::{Context, Result, bail};
use crust_image::dir::ImageDir;
use crust_image::kind::Kind;
use crust_image::payload::{PayloadEntry, TcpStream};
use crust_image::tcp_state::{CLOSE_WAIT, CLOSING, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LAST_ACK};
use crust_process::descriptor::{set_sockopt, sockopt_int};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Values of TCP_REPAIR and TCP_REPAIR_QUEUE (include/uapi/linux/tcp.h).
const REPAIR_OFF: u32 = 0;
const REPAIR_OFF_NO_PROBE: u32 = u32::MAX;
const NO_QUEUE: u32 = 0;
const RECEIVE_QUEUE: u32 = 1;
const SEND_QUEUE: u32 = 2;
/// A segment to ourselves arrives before send(2) returns, unless the softirq thread has it.
const PATIENCE: Duration = Duration::from_secs(10);
/// SO_BUF_LOCK of include/uapi/asm-generic/socket.h.
const SO_BUF_LOCK: i32 = 72;

/// The sockets by which segments are sent in the name of a peer.
pub type Injector = Sender;

/// Makes the connection. The socket is in repair mode, before and after.
pub fn repair(
    images: &ImageDir,
    injector: &mut Injector,
    socket: BorrowedFd<'_>,
    tcp: &TcpRepair,
) -> Result<()> {
    let stream = read_stream(images, tcp.ino)?;
    let sent = stream.outq.get(..tcp.sent as usize);
    let sent = sent.context("the send queue of the image is shorter than its entry says")?;
    let room = |shown: u32, queued: usize| {
        // A queued byte may take the memory of two, and a small segment that of a page.
        let needed = queued.saturating_mul(2).saturating_add(64 << 10);
        i32::try_from((shown as usize / 2).max(needed)).unwrap_or(i32::MAX / 2)
    };
    let [send_buffer, receive_buffer] = tcp.buffers;
    set_socket(
        socket,
        libc::SO_SNDBUFFORCE,
        room(send_buffer, sent.len()) as u32,
    )?;
    set_socket(
        socket,
        libc::SO_RCVBUFFORCE,
        room(receive_buffer, stream.inq.len()) as u32,
    )?;
    bind_or_tell(socket, &tcp.local)?;
    set_tcp(socket, libc::TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
    set_tcp(socket, libc::TCP_QUEUE_SEQ, tcp.in_seq)?;
    set_tcp(socket, libc::TCP_REPAIR_QUEUE, SEND_QUEUE)?;
    set_tcp(socket, libc::TCP_QUEUE_SEQ, tcp.out_seq)?;
    connect_or_tell(socket, &tcp.local, &tcp.remote)?;
    let options: Vec<u8> = tcp
        .options
        .iter()
        .flat_map(|(kind, value)| [kind.to_ne_bytes(), value.to_ne_bytes()].concat())
        .collect();
    set_sockopt(
        socket,
        libc::IPPROTO_TCP,
        libc::TCP_REPAIR_OPTIONS,
        &options,
    )
    .context("TCP_REPAIR_OPTIONS")?;
    if let Some(timestamp) = tcp.timestamp {
        set_tcp(socket, libc::TCP_TIMESTAMP, timestamp)?;
    }
    set_tcp(socket, libc::TCP_REPAIR_QUEUE, RECEIVE_QUEUE)?;
    fill(socket, &stream.inq).context("fill the receive queue")?;
    set_tcp(socket, libc::TCP_REPAIR_QUEUE, SEND_QUEUE)?;
    fill(socket, sent).context("fill the send queue")?;
    for ending in &tcp.endings {
        end(injector, socket, tcp, *ending)?;
    }
    if let Some(windows) = tcp.windows {
        let bytes: Vec<u8> = windows.iter().flat_map(|word| word.to_ne_bytes()).collect();
        set_sockopt(socket, libc::IPPROTO_TCP, libc::TCP_REPAIR_WINDOW, &bytes)
            .context("TCP_REPAIR_WINDOW")?;
    }
    match state(socket)? {
        reached if reached == tcp.state => Ok(()),
        reached => bail!("its TCP state is {reached}, not {}", tcp.state),
    }
}

/// Leaves repair mode; the peer is told of our window, which makes it answer at once.
pub fn go_live(images: &ImageDir, socket: BorrowedFd<'_>, live: &GoLive) -> Result<()> {
    let off = match live.connect {
        None => REPAIR_OFF,
        Some((_, seq)) => {
            set_tcp(socket, libc::TCP_REPAIR_QUEUE, SEND_QUEUE)?;
            set_tcp(socket, libc::TCP_QUEUE_SEQ, seq)?;
            REPAIR_OFF_NO_PROBE
        }
    };
    // Without repair mode a chosen queue still shows (TCP_QUEUE_SEQ).
    set_tcp(socket, libc::TCP_REPAIR_QUEUE, NO_QUEUE)?;
    set_tcp(socket, libc::TCP_REPAIR, off)?;
    if live.reuse {
        set_socket(socket, libc::SO_REUSEADDR, 1)?;
    }
    if let Some((remote, _)) = &live.connect {
        connect_without_blocking(socket, remote, live.nonblocking)?;
    }
    if live.unsent > 0 {
        let stream = read_stream(images, live.ino)?;
        let at = stream.outq.len().checked_sub(live.unsent as usize);
        let unsent = at.and_then(|at| stream.outq.get(at..));
        send_in_large_buffer(socket, unsent.unwrap_or_default()).context("send what was not")?;
    }
    if live.shut_down {
        shutdown(socket.as_raw_fd(), Shutdown::Write).context("shutdown(SHUT_WR)")?;
    }
    Ok(())
}

fn read_stream(images: &ImageDir, ino: u32) -> Result<TcpStream> {
    let name = Kind::TcpStream.file_name(Some(ino.into()));
    let image = images.open_image(Kind::TcpStream, Some(ino.into()))?;
    let mut image = image.with_context(|| format!("{name} is missing"))?;
    TcpStream::read(&mut image)?.with_context(|| format!("{name} has no entry"))
}

fn set_tcp(socket: BorrowedFd<'_>, name: i32, value: u32) -> Result<()> {
    set_sockopt(socket, libc::IPPROTO_TCP, name, &value.to_ne_bytes()).with_context(|| {
        let known = match name {
            libc::TCP_REPAIR => "TCP_REPAIR",
            libc::TCP_REPAIR_QUEUE => "TCP_REPAIR_QUEUE",
            libc::TCP_QUEUE_SEQ => "TCP_QUEUE_SEQ",
            _ => "TCP_TIMESTAMP",
        };
        format!("setsockopt({known}, {value})")
    })
}

fn set_socket(socket: BorrowedFd<'_>, name: i32, value: u32) -> Result<()> {
    set_sockopt(socket, libc::SOL_SOCKET, name, &value.to_ne_bytes())
        .with_context(|| format!("setsockopt(SOL_SOCKET, {name}, {value})"))
}

/// TCP_INFO begins with the state.
fn state(socket: BorrowedFd<'_>) -> Result<u32> {
    let mut info = [0; 1];
    crust_process::descriptor::sockopt_bytes(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)
        .context("TCP_INFO")?;
    Ok(info[0].into())
}

/// Writes into the queue that was chosen.
fn fill(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match send(
            socket.as_raw_fd(),
            rest,
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
        ) {
            Ok(0) => bail!("it took {done} of {} bytes", bytes.len()),
            Ok(count) => done += count,
            Err(Errno::EINTR) => {}
            Err(errno) => {
                return Err(errno)
                    .with_context(|| format!("after {done} of {} bytes", bytes.len()));
            }
        }
    }
    Ok(())
}

/// What was in the queue when the buffer had been made smaller, or by another kernel's counting,
/// may not fit: then the buffer is larger for the moment.
fn send_in_large_buffer(socket: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    let shown = sockopt_int(socket, libc::SOL_SOCKET, libc::SO_SNDBUF).context("SO_SNDBUF")?;
    let locks = sockopt_int(socket, libc::SOL_SOCKET, SO_BUF_LOCK).context("SO_BUF_LOCK")?;
    let large = (shown as usize).saturating_add(bytes.len().saturating_mul(4));
    set_socket(
        socket,
        libc::SO_SNDBUFFORCE,
        large.min(i32::MAX as usize / 2) as u32,
    )?;
    let sent = fill(socket, bytes);
    set_socket(socket, libc::SO_SNDBUFFORCE, shown as u32 / 2)?;
    set_socket(socket, SO_BUF_LOCK, locks as u32)?;
    sent
}

fn connect_without_blocking(
    socket: BorrowedFd<'_>,
    remote: &[u8],
    nonblocking: bool,
) -> Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL).context("F_GETFL")?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).context("F_SETFL")?;
    let connected = super::inet::connect(socket, remote);
    if !nonblocking {
        fcntl(socket, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK)).context("F_SETFL")?;
    }
    match connected {
        // The program hears of a refusal as it would have: by SO_ERROR.
        Ok(()) | Err(Errno::EINPROGRESS | Errno::ECONNREFUSED) => Ok(()),
        Err(errno) => Err(errno).context("connect"),
    }
}

/// One step towards the end of the connection.
fn end(
    injector: &mut Injector,
    socket: BorrowedFd<'_>,
    tcp: &TcpRepair,
    ending: Ending,
) -> Result<()> {
    let before = state(socket)?;
    // The peer's next number, and what it has acknowledged.
    let peer_seq = tcp.in_seq.wrapping_add(tcp.waiting);
    let fin_seq = tcp.out_seq.wrapping_add(tcp.sent);
    let window_scale = tcp.options.iter().find(|(kind, _)| *kind == 3);
    let scale = window_scale.map_or(0, |(_, scales)| scales & 0xf);
    let window = tcp
        .windows
        .map_or(u32::from(u16::MAX), |[_, window, ..]| window >> scale);
    let segment = Segment {
        from: &tcp.remote,
        to: &tcp.local,
        seq: peer_seq,
        ack: tcp.out_seq,
        fin: false,
        window: window.min(u16::MAX.into()) as u16,
    };
    let (after, what) = match (ending, before) {
        (Ending::Ours, ESTABLISHED | CLOSE_WAIT) => {
            shutdown(socket.as_raw_fd(), Shutdown::Write).context("shutdown(SHUT_WR)")?;
            let after = if before == ESTABLISHED {
                FIN_WAIT1
            } else {
                LAST_ACK
            };
            (after, "our FIN")
        }
        (Ending::Acknowledged, FIN_WAIT1) => {
            let ack = fin_seq.wrapping_add(1);
            injector.send(&Segment { ack, ..segment })?;
            (FIN_WAIT2, "the acknowledgement of our FIN")
        }
        (Ending::Theirs, ESTABLISHED | FIN_WAIT1) => {
            injector.send(&Segment {
                fin: true,
                ..segment
            })?;
            let after = if before == ESTABLISHED {
                CLOSE_WAIT
            } else {
                CLOSING
            };
            (after, "the peer's FIN")
        }
        (ending, before) => bail!("{ending:?} cannot follow TCP state {before}"),
    };
    wait_for_state(socket, after)
        .with_context(|| format!("put {what} into the connection (is it filtered by a firewall?)"))
}

/// No event tells of all of these changes, so it is asked again, at first without a pause.
fn wait_for_state(socket: BorrowedFd<'_>, wanted: u32) -> Result<()> {
    let since = Instant::now();
    loop {
        let now = state(socket)?;
        if now == wanted {
            return Ok(());
        }
        if since.elapsed() > PATIENCE {
            bail!("its TCP state stays {now} and is not {wanted}");
        }
        std::thread::yield_now();
    }
}
