//! What the broker does in more than one call: opens with checks, ghost files, names of sockets,
//! the contents of queues. Each file here is one subject; this one dispatches.
//!
//! Whatever a routine puts into a file system for a while is noted first and taken away again, on
//! success as soon as it has served, after a failure by [`Ctx::undo`].

mod bpf;
mod cgroup;
mod datagram;
mod ghost;
mod inet;
mod namespace;
mod open;
mod pages;
mod payload;
pub mod preflight;
mod segment;
mod sysv;
mod tcp;
mod terminal;
mod timer;
mod tun;
mod undo;
mod unix_name;
mod watch;

use crate::plan::routine::Routine;
use crate::plan::step::SlotId;
use anyhow::{Context, Result, bail};
use crust_image::dir::ImageDir;
use crust_image::kind::Kind;
use crust_process::io_uring;
use crust_process::steps::step;
use crust_process::survivor::Survivor;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// The descriptors that the broker holds while a plan runs, by slot.
#[derive(Debug)]
pub struct Slots<'s> {
    held: &'s mut [Option<OwnedFd>],
}

impl<'s> Slots<'s> {
    /// Those of a run; there is a place for each slot of the plan.
    pub fn new(held: &'s mut [Option<OwnedFd>]) -> Slots<'s> {
        Slots { held }
    }

    fn put(&mut self, slot: SlotId, fd: OwnedFd) -> Result<()> {
        let Some(place) = self.held.get_mut(slot.0 as usize) else {
            bail!("the plan has no slot {}", slot.0);
        };
        *place = Some(fd);
        Ok(())
    }

    /// Opened ahead of the run.
    fn is_filled(&self, slot: SlotId) -> bool {
        matches!(self.held.get(slot.0 as usize), Some(Some(_)))
    }

    fn get(&self, slot: SlotId) -> Result<BorrowedFd<'_>> {
        match self.held.get(slot.0 as usize) {
            Some(Some(fd)) => Ok(fd.as_fd()),
            _ => bail!("slot {} holds no descriptor", slot.0),
        }
    }

    fn close(&mut self, slot: SlotId) -> Result<()> {
        match self.held.get_mut(slot.0 as usize).and_then(Option::take) {
            Some(_) => Ok(()),
            None => bail!("slot {} holds no descriptor to close", slot.0),
        }
    }
}

/// What routines remember between steps.
#[derive(Debug)]
pub struct Ctx<'i> {
    images: &'i ImageDir,
    undo: undo::Undo,
    ghosts: ghost::Ghosts,
    payloads: payload::Payloads,
    injector: tcp::Injector,
    /// What could not be put back, for the log.
    lost: Vec<String>,
    /// Segments made in the host's ipc namespace.
    segments: Vec<i32>,
}

impl<'i> Ctx<'i> {
    /// At the start of a run.
    /// `survivor` takes back what was made if we are killed.
    pub fn new(images: &'i ImageDir, survivor: Option<Survivor>) -> Ctx<'i> {
        Ctx {
            images,
            undo: undo::Undo::with(survivor),
            ghosts: ghost::Ghosts::default(),
            payloads: payload::Payloads::default(),
            injector: tcp::Injector::default(),
            lost: Vec::new(),
            segments: Vec::new(),
        }
    }

    /// At the end of a run that succeeded: whatever still has a temporary name loses it.
    pub fn finish(&mut self) -> Result<(), String> {
        match self.undo.take_back_temporary().first() {
            None => Ok(()),
            Some((path, errno)) => Err(format!("{}: {errno}", OsStr::from_bytes(path).display())),
        }
    }

    /// Who undoes everything if we are killed.
    pub fn survivor(&self) -> Option<&Survivor> {
        self.undo.survivor()
    }

    /// A file that the images need goes at the very end.
    pub fn remove_at_commit(&mut self, path: &[u8]) -> crust_process::error::Result<()> {
        self.undo.remove_at_commit(path)
    }

    /// The tree is restored and cannot fail any more. What could not be removed or put back, and why.
    pub fn commit(&mut self) -> Vec<String> {
        let left = self.undo.commit().into_iter();
        let told = |(path, errno): (Vec<u8>, nix::errno::Errno)| {
            format!("remove {}: {errno}", OsStr::from_bytes(&path).display())
        };
        std::mem::take(&mut self.lost)
            .into_iter()
            .chain(left.map(told))
            .collect()
    }

    /// After a failure: the same, and nobody wants to hear about what could not be removed.
    pub fn undo(&mut self) {
        sysv::undo(&mut self.segments);
        self.undo.take_back();
    }
}

/// Runs one routine. An error is the whole story: what was being done, and the kernel's word.
pub fn run(routine: &Routine, ctx: &mut Ctx<'_>, slots: &mut Slots<'_>) -> Result<()> {
    dispatch(routine, ctx, slots)
}

fn dispatch(routine: &Routine, ctx: &mut Ctx<'_>, slots: &mut Slots<'_>) -> Result<()> {
    step();
    match routine {
        Routine::OpenFile {
            path,
            flags,
            expect,
            pos,
            slot,
        } => {
            if slots.is_filled(*slot) {
                return Ok(());
            }
            slots.put(*slot, open::open_at(path, *flags, expect, *pos)?)
        }
        Routine::OpenPages {
            level,
            pages_id,
            slot,
        } => slots.put(*slot, pages::open_pages(ctx.images, *level, *pages_id)?),
        Routine::SharedAnon { size, huge, slot } => {
            slots.put(*slot, pages::shared_anon(*size, *huge)?)
        }
        Routine::Sysv {
            member,
            object,
            slot,
        } => match (sysv::make(*member, object, &mut ctx.segments)?, slot) {
            (Some(fd), Some(slot)) => slots.put(*slot, fd),
            _ => Ok(()),
        },
        Routine::MakeUts {
            nodename,
            domainname,
            flags,
            slot,
        } => slots.put(*slot, namespace::make_uts(nodename, domainname, *flags)?),
        Routine::MakeCgroup(dir) => cgroup::make(dir, &mut ctx.undo),
        Routine::GhostFile { id, path, nameless } => make_ghost(ctx, *id, path, *nameless),
        Routine::OpenGhost {
            id,
            path,
            flags,
            slot,
        } => slots.put(*slot, ctx.ghosts.open(*id, path, *flags, &mut ctx.undo)?),
        Routine::RemoveGhost { id } => ctx.ghosts.remove(*id, &mut ctx.undo),
        Routine::OpenLink {
            link,
            path,
            flags,
            expect,
            slot,
        } => slots.put(
            *slot,
            ghost::open_by_name(link, path, &mut ctx.undo, |name| {
                open::open_checked(name, *flags, expect)
            })?,
        ),
        Routine::BindUnix {
            slot,
            dir,
            name,
            perms,
            is_deleted,
        } => {
            let name = unix_name::SocketName {
                dir,
                name,
                perms: *perms,
                is_deleted: *is_deleted,
            };
            unix_name::bind_to_path(slots.get(*slot)?, name, &mut ctx.undo)
        }
        Routine::SendPacket {
            receiver,
            nth,
            via,
            to,
            rights,
            sender,
        } => {
            let rights: Vec<BorrowedFd<'_>> = rights
                .iter()
                .map(|slot| slots.get(*slot))
                .collect::<Result<_>>()?;
            let bytes = ctx
                .payloads
                .read(ctx.images, Kind::SkQueues, *receiver, *nth)?;
            payload::send_packet(slots.get(*via)?, to, &bytes, &rights, *sender)
        }
        Routine::BindInet { slot, address } => inet::bind_or_tell(slots.get(*slot)?, address),
        Routine::RepairTcp(connection) => {
            let socket = slots.get(connection.slot)?;
            tcp::repair(ctx.images, &mut ctx.injector, socket, connection)
        }
        Routine::PutDatagrams(datagrams) => {
            let socket = slots.get(datagrams.slot)?;
            let lost = datagram::put(&mut ctx.injector, socket, datagrams)?;
            ctx.lost.extend(lost);
            Ok(())
        }
        Routine::OpenTun {
            path,
            flags,
            device,
            slot,
        } => slots.put(*slot, tun::open(path, *flags, device.as_deref())?),
        Routine::MakeBpfMap(map) => {
            let made = bpf::make(ctx.images, &mut ctx.payloads, map)?;
            slots.put(map.slot, made)
        }
        Routine::MakeUring { ring, slot } => {
            let made = io_uring::make(ring).map_err(anyhow::Error::msg)?;
            slots.put(*slot, made)
        }
        Routine::OpenBpfMap { map, flags, slot } => {
            let opened = bpf::open(slots.get(*map)?, *flags)?;
            slots.put(*slot, opened)
        }
        Routine::GoLive(live) => tcp::go_live(ctx.images, slots.get(live.slot)?, live),
        Routine::FeedPayload {
            image,
            pipe_id,
            packets,
            slot,
        } => {
            let bytes = ctx
                .payloads
                .read(ctx.images, payload::kind_of(image)?, *pipe_id, 0)?;
            payload::write_packets(slots.get(*slot)?, &bytes, packets)
        }
        Routine::WriteAll { slot, bytes } => {
            payload::write_without_blocking(slots.get(*slot)?, bytes)
        }
        Routine::ArmTimer {
            slot,
            clock,
            flags,
            left,
            interval,
            ticks,
        } => timer::arm(slots.get(*slot)?, *clock, *flags, *left, *interval, *ticks),
        Routine::MakePty {
            path,
            index,
            flags,
            master,
            slave,
        } => {
            let made = terminal::make_master(path, *index, *flags)?;
            if let Some(slave) = slave {
                slots.put(*slave, terminal::open_slave(made.as_fd())?)?;
            }
            slots.put(*master, made)
        }
        Routine::FeedMaster {
            master,
            slave,
            bytes,
        } => terminal::feed_master(slots.get(*master)?, slots.get(*slave)?, bytes),
        Routine::FeedSlave {
            slave,
            master,
            bytes,
            ends,
        } => terminal::feed_slave(slots.get(*slave)?, slots.get(*master)?, bytes, ends),
        Routine::Inherit { fd, slot } => {
            let copy = crust_process::fds::duplicate_own(*fd);
            let copy = copy.with_context(|| format!("--inherit-fd fd[{fd}]: duplicate it"))?;
            slots.put(*slot, copy)
        }
        Routine::OwnTerminal { flags, slot } => slots.put(*slot, terminal::own_terminal(*flags)?),
        Routine::WatchInode { slot, wd, mask, on } => {
            let file = watch::open_watched(on, slots)?;
            watch::add(slots.get(*slot)?, *wd, *mask, file.as_fd())
        }
        Routine::MarkInode {
            slot,
            flags,
            mask,
            on,
        } => {
            let file = watch::open_watched(on, slots)?;
            watch::mark(slots.get(*slot)?, *flags, *mask, file.as_fd())
        }
        Routine::Unlink { path } => ctx
            .undo
            .remove_file(path)
            .with_context(|| format!("remove {}", OsStr::from_bytes(path).display())),
        Routine::Close { slot } => slots.close(*slot),
    }
}

fn make_ghost(ctx: &mut Ctx<'_>, id: u32, path: &[u8], nameless: Option<i32>) -> Result<()> {
    let image = ghost::Image::open(ctx.images, id)?;
    match nameless {
        Some(flags) => ctx
            .ghosts
            .make_nameless(id, path, flags, &image, &mut ctx.undo),
        None => ctx.ghosts.make(id, path, &image, &mut ctx.undo),
    }
}
