//! Bytes that lay in queues: pipes, fifos, unix sockets, with the descriptors that were in flight.
//!
//! Nothing here may block: if a queue cannot hold what an image says it held, that is an error with
//! both sizes. Images are indexed once; a payload is read when its turn comes.

use anyhow::{Context, Result, bail};
use crust_image::dir::ImageDir;
use crust_image::kind::Kind;
use crust_proto::criu::{BpfmapDataEntry, PipeDataEntry, SkPacketEntry};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, UnixCredentials, sendmsg};
use nix::unistd::write;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt;

/// Images with payloads that were asked for.
#[derive(Debug, Default)]
pub struct Payloads {
    images: BTreeMap<Kind, Indexed>,
}

#[derive(Debug)]
struct Indexed {
    file: File,
    /// Offset and length of each payload of a pipe, receiving socket or bpf map.
    payloads: BTreeMap<u32, Vec<(u64, u64)>>,
}

impl Payloads {
    /// The payload of the nth entry of a pipe, receiving socket or bpf map, counted from 0.
    pub fn read(&mut self, images: &ImageDir, kind: Kind, of: u32, nth: usize) -> Result<Vec<u8>> {
        let name = kind.file_name(None);
        let image = match self.images.entry(kind) {
            Entry::Occupied(image) => image.into_mut(),
            Entry::Vacant(place) => place.insert(index(images, kind)?),
        };
        let found = image
            .payloads
            .get(&of)
            .and_then(|payloads| payloads.get(nth));
        let &(offset, len) =
            found.with_context(|| format!("{name} has no entry {nth} of {of:#x}"))?;
        // The index was made by walking the file, so it really has these bytes.
        let mut bytes = vec![0; len as usize];
        image
            .file
            .read_exact_at(&mut bytes, offset)
            .with_context(|| format!("read {len} bytes at {offset} of {name}"))?;
        Ok(bytes)
    }
}

/// The image of this crit name, if it has payloads that can be fed to a descriptor.
pub fn kind_of(name: &str) -> Result<Kind> {
    [Kind::PipesData, Kind::FifoData]
        .into_iter()
        .find(|kind| kind.spec().name == name)
        .with_context(|| format!("{name} is no image of queued bytes"))
}

fn index(images: &ImageDir, kind: Kind) -> Result<Indexed> {
    let name = kind.file_name(None);
    let reader = images.open_image(kind, None)?;
    let mut reader = reader.with_context(|| format!("{name} is missing"))?;
    let mut payloads: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    loop {
        let next = match kind {
            Kind::SkQueues => {
                let entry = reader.next_entry::<SkPacketEntry>()?;
                entry.map(|entry| (entry.id_for, entry.length.into()))
            }
            Kind::BpfmapData => {
                let entry = reader.next_entry::<BpfmapDataEntry>()?;
                entry.map(|entry| {
                    let len = u64::from(entry.keys_bytes) + u64::from(entry.values_bytes);
                    (entry.map_id, len)
                })
            }
            _ => {
                let entry = reader.next_entry::<PipeDataEntry>()?;
                entry.map(|entry| (entry.pipe_id, entry.bytes.into()))
            }
        };
        let Some((of, len)) = next else { break };
        payloads.entry(of).or_default().push((reader.offset(), len));
        reader.skip_payload(len)?;
    }
    let file = images.open_file(kind, None)?;
    let file = file.with_context(|| format!("{name} is missing"))?;
    Ok(Indexed { file, payloads })
}

/// Writes all bytes; EAGAIN becomes an error that tells how many found room.
///
/// The description's own flags are put back: they may be anything, and a blocking one would hold
/// us forever on an image that promises more bytes than fit.
pub fn write_without_blocking(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).context("F_GETFL")?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).context("F_SETFL")?;
    let written = write_all(fd, bytes);
    fcntl(fd, FcntlArg::F_SETFL(flags)).context("F_SETFL")?;
    written
}

fn write_all(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match write(fd, rest) {
            Ok(0) => bail!("only {done} of {} bytes could be written", bytes.len()),
            Ok(count) => done += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => bail!("it is full after {done} of {} bytes", bytes.len()),
            Err(errno) => return Err(errno).with_context(|| format!("write {} bytes", rest.len())),
        }
    }
    Ok(())
}

/// Writes packets of these lengths one by one, all bytes at once if there are none. The plan has
/// checked that they make up the bytes.
pub fn write_packets(fd: BorrowedFd<'_>, bytes: &[u8], packets: &[u32]) -> Result<()> {
    if packets.is_empty() {
        return write_without_blocking(fd, bytes);
    }
    let mut rest = bytes;
    for len in packets {
        let packet = rest.split_at_checked(*len as usize);
        let (packet, after) = packet.context("the packets are longer than the data")?;
        write_without_blocking(fd, packet)?;
        rest = after;
    }
    Ok(())
}

/// Sends one packet, or one segment of a stream, with descriptors; to this name (sun_path), or to
/// where the socket is connected if it is empty.
pub fn send_packet(
    via: BorrowedFd<'_>,
    to: &[u8],
    bytes: &[u8],
    rights: &[BorrowedFd<'_>],
    sender: Option<(u32, u32, u32)>,
) -> Result<()> {
    let address = match to.split_first() {
        None => None,
        Some((0, name)) => Some(UnixAddr::new_abstract(name).context("an abstract name")?),
        Some(_) => Some(UnixAddr::new(to).context("a path")?),
    };
    let raw: Vec<RawFd> = rights.iter().map(AsRawFd::as_raw_fd).collect();
    let sender = sender.map(|(pid, uid, gid)| {
        let pid = pid as libc::pid_t;
        UnixCredentials::from(libc::ucred { pid, uid, gid })
    });
    let mut messages = Vec::new();
    if !raw.is_empty() {
        messages.push(ControlMessage::ScmRights(&raw));
    }
    messages.extend(sender.as_ref().map(ControlMessage::ScmCredentials));
    let mut control: &[ControlMessage<'_>] = &messages;
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let mut done = 0;
    loop {
        let rest = bytes.get(done..).unwrap_or_default();
        let parts = [IoSlice::new(rest)];
        match sendmsg(via.as_raw_fd(), &parts, control, flags, address.as_ref()) {
            Ok(count) => done += count,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                bail!(
                    "the queue has no room after {done} of {} bytes",
                    bytes.len()
                )
            }
            Err(errno) => {
                let count = raw.len();
                return Err(errno)
                    .with_context(|| format!("send {} bytes and {count} descriptors", rest.len()));
            }
        }
        if done >= bytes.len() {
            return Ok(());
        }
        // A stream took a part; the descriptors went with it.
        control = &[];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, recv, socketpair};
    use std::os::fd::AsFd;

    #[test]
    fn a_full_pipe_is_an_error_and_not_a_wait() {
        let (reader, writer) = nix::unistd::pipe().expect("pipe");
        let flags = || fcntl(writer.as_fd(), FcntlArg::F_GETFL).expect("F_GETFL");
        let before = flags();
        write_without_blocking(writer.as_fd(), &[7; 65536]).expect("it fits");
        let error = write_without_blocking(writer.as_fd(), b"more").expect_err("full");
        assert!(
            error.to_string().contains("full after 0 of 4 bytes"),
            "{error}"
        );
        assert_eq!(flags(), before);
        drop(reader);
    }

    #[test]
    fn packets_keep_their_boundaries_and_an_empty_one_is_a_packet() {
        let (kind, flags) = (SockType::SeqPacket, SockFlag::empty());
        let (ours, theirs) = socketpair(AddressFamily::Unix, kind, None, flags).expect("pair");
        for packet in [&b"one"[..], b"", b"three"] {
            send_packet(ours.as_fd(), &[], packet, &[], None).expect("sent");
        }
        let mut room = [0; 16];
        for len in [3, 0, 5] {
            let got = recv(theirs.as_raw_fd(), &mut room, MsgFlags::MSG_DONTWAIT);
            assert_eq!(got, Ok(len));
        }
    }
}
