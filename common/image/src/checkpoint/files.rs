//! Descriptor tables, files and what is stored beside them.
//!
//! Today every open file description is an entry of files.img. Older versions had one image per
//! type; those are read too and become the same entries, with the watches of epoll, inotify and
//! fanotify, once images of their own, put into the file they belong to.

use super::Loader;
use crate::{
    error::{Error, Result},
    ids::{FileId, FilesId, PipeId, VirtPid},
    kind::Kind,
    payload::{PayloadEntry, PipeData, SkPacket},
};
use crust_proto::criu::{
    BpfmapDataEntry, BpfmapFileEntry, EventfdFileEntry, EventpollFileEntry, EventpollTfdEntry,
    ExtFileEntry, FanotifyFileEntry, FanotifyMarkEntry, FdTypes, FdinfoEntry, FifoEntry, FileEntry,
    InetSkEntry, InotifyFileEntry, InotifyWdEntry, NetlinkSkEntry, NsFileEntry, PacketSockEntry,
    PidfdEntry, PipeEntry, RegFileEntry, RemapFilePathEntry, RemapType, SignalfdEntry,
    TcpStreamEntry, TimerfdEntry, TtyDataEntry, TtyFileEntry, TunfileEntry, UnixSkEntry,
};
use prost::Message;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// A file whose path does not lead to it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remap {
    /// Number of the entry in remap-fpath.img.
    pub entry: usize,
    /// The file: a REG entry.
    pub orig_id: FileId,
    /// What to open instead.
    pub target: RemapTarget,
}

/// What stands in for the path of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemapTarget {
    /// A REG entry naming a hard link that was made beside the file.
    Linked(FileId),
    /// The number of a ghost-file image.
    Ghost(u32),
    /// The pid of a dead process whose /proc directory the path goes through.
    Procfs(VirtPid),
}

/// In images without `remap_type` this bit of `remap_id` marks a ghost.
const OLD_GHOST_BIT: u32 = 1 << 31;

pub fn load_remaps(loader: &Loader<'_>) -> Result<Vec<Remap>> {
    let mut remaps = Vec::new();
    let Some(mut reader) = loader.open(Kind::RemapFpath, None)? else {
        return Ok(remaps);
    };
    while let Some(entry) = reader.next_entry::<RemapFilePathEntry>()? {
        let target = target_of(&entry).map_err(|(field, what)| reader.field_error(field, what))?;
        remaps.push(Remap {
            entry: remaps.len(),
            orig_id: FileId(entry.orig_id),
            target,
        });
    }
    Ok(remaps)
}

fn target_of(entry: &RemapFilePathEntry) -> Result<RemapTarget, (&'static str, String)> {
    let id = entry.remap_id;
    let Some(number) = entry.remap_type else {
        return Ok(match id & OLD_GHOST_BIT {
            0 => RemapTarget::Linked(FileId(id)),
            _ => RemapTarget::Ghost(id & !OLD_GHOST_BIT),
        });
    };
    match RemapType::try_from(number) {
        Ok(RemapType::Linked) => Ok(RemapTarget::Linked(FileId(id))),
        Ok(RemapType::Ghost) => Ok(RemapTarget::Ghost(id)),
        Ok(RemapType::Procfs) => VirtPid::new(id)
            .map(RemapTarget::Procfs)
            .ok_or(("remap_id", format!("{id} is no pid"))),
        Err(_) => Err(("remap_type", format!("{number} is not known"))),
    }
}

pub fn load_fdinfo(loader: &Loader<'_>) -> Result<BTreeMap<FilesId, Vec<FdinfoEntry>>> {
    let mut tables = BTreeMap::new();
    for id in loader.ids_of(Kind::Fdinfo) {
        let Ok(files_id) = u32::try_from(id) else {
            return Err(Error::Head {
                file: loader.shown(Kind::Fdinfo, Some(id)),
                what: "no files_id is that large".to_owned(),
            });
        };
        tables.insert(FilesId(files_id), loader.entries(Kind::Fdinfo, Some(id))?);
    }
    Ok(tables)
}

pub fn load_pipes_data(loader: &Loader<'_>, kind: Kind) -> Result<BTreeMap<PipeId, PipeData>> {
    loader.keyed_payloads(kind, "pipe_id", |data: &PipeData| {
        PipeId(data.entry.pipe_id)
    })
}

pub fn load_bpf_maps(loader: &Loader<'_>) -> Result<BTreeMap<u32, BpfmapDataEntry>> {
    let mut maps = BTreeMap::new();
    let Some(mut reader) = loader.open(Kind::BpfmapData, None)? else {
        return Ok(maps);
    };
    while let Some(entry) = reader.next_entry::<BpfmapDataEntry>()? {
        reader.skip_payload(u64::from(entry.keys_bytes) + u64::from(entry.values_bytes))?;
        if maps.insert(entry.map_id, entry).is_some() {
            return Err(reader.field_error("map_id", "an entry before has the same"));
        }
    }
    Ok(maps)
}

pub fn load_queues(loader: &Loader<'_>) -> Result<BTreeMap<FileId, Vec<SkPacket>>> {
    let mut queues: BTreeMap<FileId, Vec<SkPacket>> = BTreeMap::new();
    if let Some(mut reader) = loader.open(Kind::SkQueues, None)? {
        while let Some(packet) = SkPacket::read(&mut reader)? {
            let id = FileId(packet.entry.id_for);
            queues.entry(id).or_default().push(packet);
        }
    }
    Ok(queues)
}

/// The numbers of each connection. That both queues are there as a whole is seen when they are
/// read.
pub fn load_tcp_streams(loader: &Loader<'_>) -> Result<BTreeMap<u32, TcpStreamEntry>> {
    let mut streams = BTreeMap::new();
    for id in loader.ids_of(Kind::TcpStream) {
        let missing = || Error::Head {
            file: loader.shown(Kind::TcpStream, Some(id)),
            what: "it has no entry, or a number no inode has".to_owned(),
        };
        let ino = u32::try_from(id).map_err(|_| missing())?;
        if let Some(mut reader) = loader.open(Kind::TcpStream, Some(id))? {
            let entry = reader.next_entry::<TcpStreamEntry>()?;
            streams.insert(ino, entry.ok_or_else(missing)?);
        }
    }
    Ok(streams)
}

pub fn load_tty_data(loader: &Loader<'_>) -> Result<BTreeMap<u32, TtyDataEntry>> {
    let mut queued: BTreeMap<u32, TtyDataEntry> = BTreeMap::new();
    for entry in loader.entries::<TtyDataEntry>(Kind::TtyData, None)? {
        let whole = queued.entry(entry.tty_id).or_default();
        let before = whole.data.len() as u64;
        whole.tty_id = entry.tty_id;
        whole.data.extend(entry.data);
        let ends = entry.crust_ends.iter();
        whole
            .crust_ends
            .extend(ends.map(|end| before.saturating_add(*end)));
    }
    Ok(queued)
}

/// The files by id, and the number in files.img of each that is there.
pub type Files = (BTreeMap<FileId, FileEntry>, BTreeMap<FileId, usize>);

pub fn load(loader: &Loader<'_>) -> Result<Files> {
    let mut merged = Merged {
        loader,
        files: BTreeMap::new(),
        numbers: BTreeMap::new(),
    };
    merged.add(Kind::Files, |entry: FileEntry| entry)?;
    merged.add_old_plain()?;
    merged.add_old_sockets()?;
    merged.add_old_watched()?;
    Ok((merged.files, merged.numbers))
}

/// The files found so far.
struct Merged<'a> {
    loader: &'a Loader<'a>,
    files: BTreeMap<FileId, FileEntry>,
    /// For those of files.img the number of the entry.
    numbers: BTreeMap<FileId, usize>,
}

fn empty(kind: FdTypes, id: u32) -> FileEntry {
    FileEntry {
        r#type: kind.into(),
        id,
        ..Default::default()
    }
}

/// A tun descriptor is the one file with two entries of the same id: a TUNF, and a REG with the
/// path of the device and the flags. They become one TUNF entry that has both members.
fn join_tun(one: FileEntry, other: FileEntry) -> Option<FileEntry> {
    let (reg, tun) = match (&one.reg, &other.reg) {
        (Some(_), None) => (one, other),
        (None, Some(_)) => (other, one),
        _ => return None,
    };
    tun.tunf.as_ref()?;
    Some(FileEntry {
        reg: reg.reg,
        ..tun
    })
}

impl Merged<'_> {
    fn add<M: Message + Default>(
        &mut self,
        kind: Kind,
        wrap: impl Fn(M) -> FileEntry,
    ) -> Result<()> {
        let Some(mut reader) = self.loader.open(kind, None)? else {
            return Ok(());
        };
        for number in 0.. {
            let Some(entry) = reader.next_entry::<M>()? else {
                break;
            };
            let file = wrap(entry);
            let id = FileId(file.id);
            if kind == Kind::Files {
                self.numbers.insert(id, number);
            }
            match self.files.entry(id) {
                Entry::Vacant(place) => {
                    place.insert(file);
                }
                Entry::Occupied(mut place) => {
                    let joined = join_tun(std::mem::take(place.get_mut()), file);
                    let joined = joined.ok_or_else(|| {
                        reader.field_error("id", format!("{id} is that of another file too"))
                    })?;
                    place.insert(joined);
                }
            }
        }
        Ok(())
    }

    fn add_old_plain(&mut self) -> Result<()> {
        use FdTypes::{
            Bpfmap, Eventfd, Ext, Fifo, Ns, Pidfd, Pipe, Reg, Signalfd, Timerfd, Tty, Tunf,
        };
        self.add(Kind::RegFiles, |reg: RegFileEntry| FileEntry {
            reg: Some(Box::new(reg.clone())),
            ..empty(Reg, reg.id)
        })?;
        self.add(Kind::ExtFiles, |ext: ExtFileEntry| FileEntry {
            ext: Some(Box::new(ext)),
            ..empty(Ext, ext.id)
        })?;
        self.add(Kind::NsFiles, |nsf: NsFileEntry| FileEntry {
            nsf: Some(Box::new(nsf)),
            ..empty(Ns, nsf.id)
        })?;
        self.add(Kind::Eventfd, |efd: EventfdFileEntry| FileEntry {
            efd: Some(Box::new(efd)),
            ..empty(Eventfd, efd.id)
        })?;
        self.add(Kind::Signalfd, |sgfd: SignalfdEntry| FileEntry {
            sgfd: Some(Box::new(sgfd)),
            ..empty(Signalfd, sgfd.id)
        })?;
        self.add(Kind::Timerfd, |tfd: TimerfdEntry| FileEntry {
            tfd: Some(Box::new(tfd)),
            ..empty(Timerfd, tfd.id)
        })?;
        self.add(Kind::Pipes, |pipe: PipeEntry| FileEntry {
            pipe: Some(Box::new(pipe)),
            ..empty(Pipe, pipe.id)
        })?;
        self.add(Kind::Fifo, |fifo: FifoEntry| FileEntry {
            fifo: Some(Box::new(fifo)),
            ..empty(Fifo, fifo.id)
        })?;
        self.add(Kind::Tty, |tty: TtyFileEntry| FileEntry {
            tty: Some(Box::new(tty)),
            ..empty(Tty, tty.id)
        })?;
        self.add(Kind::Tunfile, |tunf: TunfileEntry| FileEntry {
            tunf: Some(Box::new(tunf.clone())),
            ..empty(Tunf, tunf.id)
        })?;
        self.add(Kind::Pidfd, |pidfd: PidfdEntry| FileEntry {
            pidfd: Some(Box::new(pidfd)),
            ..empty(Pidfd, pidfd.id)
        })?;
        self.add(Kind::BpfmapFile, |bpf: BpfmapFileEntry| FileEntry {
            bpf: Some(Box::new(bpf.clone())),
            ..empty(Bpfmap, bpf.id)
        })
    }

    fn add_old_sockets(&mut self) -> Result<()> {
        use FdTypes::{Inetsk, Netlinksk, Packetsk, Unixsk};
        self.add(Kind::Unixsk, |usk: UnixSkEntry| FileEntry {
            usk: Some(Box::new(usk.clone())),
            ..empty(Unixsk, usk.id)
        })?;
        self.add(Kind::Inetsk, |isk: InetSkEntry| FileEntry {
            isk: Some(Box::new(isk.clone())),
            ..empty(Inetsk, isk.id)
        })?;
        self.add(Kind::Packetsk, |psk: PacketSockEntry| FileEntry {
            psk: Some(Box::new(psk.clone())),
            ..empty(Packetsk, psk.id)
        })?;
        self.add(Kind::Netlinksk, |nlsk: NetlinkSkEntry| FileEntry {
            nlsk: Some(Box::new(nlsk.clone())),
            ..empty(Netlinksk, nlsk.id)
        })
    }

    /// Files with watches. In old images a watch's `id` is that of its file.
    fn add_old_watched(&mut self) -> Result<()> {
        use FdTypes::{Eventpoll, Fanotify, Inotify};
        let mut targets = self.by_file(Kind::EventpollTfd, |tfd: &EventpollTfdEntry| tfd.id)?;
        let mut watches = self.by_file(Kind::InotifyWd, |wd: &InotifyWdEntry| wd.id)?;
        let mut marks = self.by_file(Kind::FanotifyMark, |mark: &FanotifyMarkEntry| mark.id)?;
        self.add(Kind::Eventpoll, |epfd: EventpollFileEntry| FileEntry {
            epfd: Some(Box::new(epfd.clone())),
            ..empty(Eventpoll, epfd.id)
        })?;
        self.add(Kind::Inotify, |ify: InotifyFileEntry| FileEntry {
            ify: Some(Box::new(ify.clone())),
            ..empty(Inotify, ify.id)
        })?;
        self.add(Kind::Fanotify, |ffy: FanotifyFileEntry| FileEntry {
            ffy: Some(Box::new(ffy.clone())),
            ..empty(Fanotify, ffy.id)
        })?;
        for file in self.files.values_mut() {
            if let Some(epfd) = &mut file.epfd {
                epfd.tfd
                    .extend(targets.remove(&epfd.id).unwrap_or_default());
            }
            if let Some(ify) = &mut file.ify {
                ify.wd.extend(watches.remove(&ify.id).unwrap_or_default());
            }
            if let Some(ffy) = &mut file.ffy {
                ffy.mark.extend(marks.remove(&ffy.id).unwrap_or_default());
            }
        }
        Ok(())
    }

    fn by_file<M: Message + Default>(
        &self,
        kind: Kind,
        id: impl Fn(&M) -> u32,
    ) -> Result<BTreeMap<u32, Vec<M>>> {
        let mut by_file: BTreeMap<u32, Vec<M>> = BTreeMap::new();
        for watch in self.loader.entries::<M>(kind, None)? {
            by_file.entry(id(&watch)).or_default().push(watch);
        }
        Ok(by_file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(remap_id: u32, remap_type: Option<i32>) -> Option<RemapTarget> {
        target_of(&RemapFilePathEntry {
            orig_id: 1,
            remap_id,
            remap_type,
        })
        .ok()
    }

    #[test]
    fn targets_of_remaps_old_and_new() {
        assert_eq!(target(5, Some(0)), Some(RemapTarget::Linked(FileId(5))));
        assert_eq!(target(5, Some(1)), Some(RemapTarget::Ghost(5)));
        assert_eq!(target(5, Some(2)), VirtPid::new(5).map(RemapTarget::Procfs));
        assert_eq!(target(0, Some(2)), None);
        assert_eq!(target(5, Some(3)), None);
        assert_eq!(target(5, None), Some(RemapTarget::Linked(FileId(5))));
        assert_eq!(target(0x8000_0005, None), Some(RemapTarget::Ghost(5)));
        assert_eq!(
            target(0x8000_0005, Some(1)),
            Some(RemapTarget::Ghost(0x8000_0005))
        );
    }
}
