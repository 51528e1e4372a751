//! TCP connections: sequence numbers, windows, options and the bytes of both queues
//! (tcp-stream-INODE.img).
//!
//! What the descriptor tells anybody (state, ends, options) is in `inet_socket.rs`. Here is what
//! only repair mode tells, read while the network is locked, so that it stands still; where it is
//! not (`--network-lock skip`), a connection that changed while it was read is read again. The
//! sequence numbers are the kernel's and count a FIN; the lengths of the queues do not. A dump
//! that kills the tree takes copies of the sockets before and closes them after in repair mode,
//! silently: the peer, and the port, must know nothing of the end.

use super::write::Source;
use super::{FileTable, OpenFile};
use crate::context::Context;
use anyhow::{Context as _, Result, bail};
use crust_image::kind::Kind;
use crust_image::sink::ImageSink;
use crust_image::tcp_state::has_sent_fin;
use crust_process::descriptor::{peek_message, set_sockopt, sockopt_bytes};
use crust_process::netfilter::Ends;
use crust_process::survivor::Survivor;
use crust_process::tcp_repair::{Connection, Subject, read_connections};
use crust_proto::criu::TcpStreamEntry;
use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Offsets in struct tcp_info (include/uapi/linux/tcp.h): options, and both window scales.
const INFO_OPTIONS: usize = 5;
const INFO_SCALES: usize = 6;
/// Connections read by one reader; copies of so many descriptors are open at a time.
const AT_ONCE: usize = 1000;
/// How often a connection that changes is read.
const TRIES: usize = 10;

/// The connections found.
#[derive(Debug, Default)]
pub struct Connections(Vec<Stream>);

#[derive(Debug)]
struct Stream {
    source: Source,
    name: String,
    ino: u32,
    state: u32,
    reuse: bool,
    ends: Ends,
}

/// A socket in a state to be read.
#[derive(Debug)]
pub struct Found {
    /// Its inode.
    pub ino: u32,
    /// TCP_*.
    pub state: u32,
    /// SO_REUSEADDR.
    pub reuse: bool,
    /// Both ends.
    pub ends: Ends,
}

impl Connections {
    /// Notes a connection, to be read when the network is locked.
    pub fn add(&mut self, file: &OpenFile, found: Found) {
        self.0.push(Stream {
            source: Source::of(file),
            name: format!("task {}: {}", file.task.pid, file.name()),
            ino: found.ino,
            state: found.state,
            reuse: found.reuse,
            ends: found.ends,
        });
    }

    /// The ends of each.
    pub fn ends(&self) -> Vec<Ends> {
        self.0.iter().map(|stream| stream.ends).collect()
    }
}

/// Copies of all connections, to outlive the tree.
pub struct Survivors(Vec<OwnedFd>);

impl Survivors {
    /// Takes the copies.
    pub fn take(ctx: &Context, table: &FileTable) -> Result<Survivors> {
        let streams = table.connections.0.iter();
        let copies = streams.map(|stream| stream.source.open(ctx, table));
        let copies: Result<_> = copies.collect();
        Ok(Survivors(copies.context("keep the connections open")?))
    }

    /// Should we be killed, somebody else closes them in the same way.
    pub fn tell(&self, survivor: &Survivor) -> Result<()> {
        for socket in &self.0 {
            survivor.silent_close(socket.as_fd())?;
        }
        Ok(())
    }

    /// Closes them, of which nobody else has a copy by now, without a word to the peers.
    pub fn vanish(self) -> Result<()> {
        let on = 1i32.to_ne_bytes();
        for socket in &self.0 {
            set_sockopt(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_REPAIR, &on)
                .context("close the connections silently: TCP_REPAIR")?;
        }
        Ok(())
    }
}

/// Writes an image for each connection.
pub fn write(ctx: &Context, table: &FileTable, sink: &dyn ImageSink) -> Result<()> {
    for some in table.connections.0.chunks(AT_ONCE) {
        let open = |stream: &Stream| stream.source.open(ctx, table);
        let sockets: Vec<OwnedFd> = some.iter().map(open).collect::<Result<_>>()?;
        let mut left: Vec<(&Stream, &OwnedFd)> = some.iter().zip(&sockets).collect();
        for _ in 0..TRIES {
            left = write_still(&left, sink)?;
        }
        if let Some((stream, _)) = left.first() {
            bail!(
                "{}: the connection changes whenever it is read (is the network not locked?)",
                stream.name
            );
        }
    }
    Ok(())
}

/// Writes those that stand still and gives the others.
fn write_still<'a>(
    streams: &[(&'a Stream, &'a OwnedFd)],
    sink: &dyn ImageSink,
) -> Result<Vec<(&'a Stream, &'a OwnedFd)>> {
    let subjects: Vec<Subject> = streams
        .iter()
        .map(|(stream, socket)| {
            Ok(Subject {
                fd: socket.as_fd(),
                reuse: stream.reuse,
                room: crust_process::descriptor::bytes_unsent(socket.as_fd())
                    .with_context(|| format!("{}: SIOCOUTQ", stream.name))?,
            })
        })
        .collect::<Result<_>>()?;
    let read = read_connections(&subjects).context("read connections in repair mode")?;
    let mut moved = Vec::new();
    for ((stream, socket), read) in streams.iter().zip(read) {
        let read = read.with_context(|| stream.name.clone())?;
        let waiting = peek_waiting(socket.as_fd(), &read)
            .with_context(|| format!("{}: peek what waits to be read", stream.name))?;
        match waiting.filter(|_| stands_still(stream, &read)) {
            Some(waiting) => write_one(stream, socket.as_fd(), &read, &waiting, sink)?,
            None => moved.push((*stream, *socket)),
        }
    }
    Ok(moved)
}

/// The bytes that wait to be read; `None` if they are not as many as the reader was told.
fn peek_waiting(socket: BorrowedFd, read: &Connection) -> nix::Result<Option<Vec<u8>>> {
    if read.waiting == 0 {
        return Ok(Some(Vec::new()));
    }
    // One more than there should be.
    let message = peek_message(socket, read.waiting + 1)?;
    let bytes = message.map(|message| message.data);
    Ok(bytes.filter(|bytes| bytes.len() == read.waiting))
}

/// Whether the queue that was read is as long as the kernel said.
fn stands_still(stream: &Stream, read: &Connection) -> bool {
    let fin = usize::from(has_sent_fin(stream.state)).min(read.unacked);
    !read.truncated && read.sent.len() == read.unacked - fin
}

fn write_one(
    stream: &Stream,
    socket: BorrowedFd,
    read: &Connection,
    waiting: &[u8],
    sink: &dyn ImageSink,
) -> Result<()> {
    let mut info = [0; 8];
    sockopt_bytes(socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut info)
        .with_context(|| format!("{}: TCP_INFO", stream.name))?;
    let entry = encode(read, waiting.len(), &info, has_sent_fin(stream.state));
    let mut image = sink.create(Kind::TcpStream, Some(stream.ino.into()))?;
    image.entry(&entry)?;
    image.payload(waiting)?;
    image.payload(&read.sent)?;
    image.finish()?;
    Ok(())
}

/// `info` is the beginning of struct tcp_info.
fn encode(read: &Connection, waiting: usize, info: &[u8; 8], fin: bool) -> TcpStreamEntry {
    // A FIN is the last of what was not sent, if it was not.
    let unsent = read.unsent - usize::from(fin).min(read.unsent);
    let scales = info[INFO_SCALES];
    let windows = read.windows;
    TcpStreamEntry {
        inq_len: waiting as u32,
        inq_seq: read.in_seq,
        outq_len: read.sent.len() as u32,
        outq_seq: read.out_seq,
        opt_mask: u32::from(info[INFO_OPTIONS]),
        snd_wscale: u32::from(scales & 0xf),
        mss_clamp: read.mss_clamp,
        rcv_wscale: Some(u32::from(scales >> 4)),
        timestamp: Some(read.timestamp),
        // In tcp_opts of the socket's own entry since CRIU 3.16.
        cork: None,
        nodelay: None,
        unsq_len: Some(unsent as u32),
        snd_wl1: windows.map(|windows| windows.snd_wl1),
        snd_wnd: windows.map(|windows| windows.snd_wnd),
        max_window: windows.map(|windows| windows.max_window),
        rcv_wnd: windows.map(|windows| windows.rcv_wnd),
        rcv_wup: windows.map(|windows| windows.rcv_wup),
    }
}

/// What of a connection no image can hold, or nobody can read.
pub fn obstacle(socket: BorrowedFd) -> Result<Option<String>> {
    /// TCP_ULP of include/uapi/linux/tcp.h.
    const TCP_ULP: i32 = 31;
    let mut name = [0; 16];
    match sockopt_bytes(socket, libc::IPPROTO_TCP, TCP_ULP, &mut name) {
        Ok(0) | Err(Errno::ENOPROTOOPT) => {}
        Ok(len) => {
            let name = name.get(..len).unwrap_or_default();
            let name = String::from_utf8_lossy(name);
            let name = name.trim_end_matches('\0');
            return Ok(Some(format!(
                "the kernel's {name:?} layer is on it (TCP_ULP)"
            )));
        }
        Err(errno) => return Err(errno).context("TCP_ULP"),
    }
    let state = crust_process::descriptor::poll_state(socket).context("poll")?;
    Ok(state.urgent.then(|| "urgent data waits in it".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fin_counts_in_numbers_and_not_in_lengths() {
        let read = Connection {
            in_seq: 100,
            out_seq: 211,
            unacked: 11,
            unsent: 1,
            sent: vec![7; 10],
            ..Connection::default()
        };
        let info = [4, 0, 0, 0, 0, 7, 0xa9, 0];
        let entry = encode(&read, 3, &info, true);
        assert_eq!((entry.outq_len, entry.outq_seq), (10, 211));
        assert_eq!(entry.unsq_len, Some(0));
        assert_eq!((entry.snd_wscale, entry.rcv_wscale), (9, Some(10)));
        assert_eq!((entry.inq_len, entry.opt_mask), (3, 7));
        assert_eq!(entry.snd_wl1, None);
        let entry = encode(&Connection { unsent: 4, ..read }, 0, &info, false);
        assert_eq!(entry.unsq_len, Some(4));
    }
}
