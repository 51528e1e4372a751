//! Ghost files: files that were open (or a cwd, a root, mapped) but had no name any more.
//!
//! A ghost is made again from its image, opened by everybody who had it open, and its name goes
//! again. It is made under its old name, for that is what /proc/PID/fd shows with ` (deleted)`
//! behind it; directories that are gone too are made for the moment. If something else has the
//! name by now it is left alone and the ghost gets a name beside it: the link text is then the only
//! thing that differs. An inode of which several names were open is linked to each of them.
//!
//! A file that O_TMPFILE made never had a name and can still be given one by linkat(2), which no
//! deleted file can, so it is made by O_TMPFILE again.

use super::open::open_flags;
use super::undo::Undo;
use crate::files::is_nameless;
use anyhow::{Context, Result, bail};
use crust_image::dir::ImageDir;
use crust_image::ghost;
use crust_image::kind::Kind;
use crust_process::descriptor::reopen;
use crust_proto::criu::{GhostFileEntry, Timeval};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::libc;
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, lstat, mkdirat, mknod,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// A ghost-file image.
#[derive(Debug)]
pub struct Image {
    ghost: ghost::Ghost,
    file: File,
}

impl Image {
    /// Opens ghost-file-ID.img and reads its description.
    pub fn open(images: &ImageDir, id: u32) -> Result<Image> {
        let missing = || format!("ghost-file-{id:x}.img is missing");
        let ghost = ghost::Ghost::load(images, id)?.with_context(missing)?;
        let file = images.open_file(Kind::GhostFile, Some(id.into()))?;
        let file = file.with_context(missing)?;
        Ok(Image { ghost, file })
    }
}

/// The ghosts that have a name at the moment.
#[derive(Debug, Default)]
pub struct Ghosts {
    made: BTreeMap<u32, Ghost>,
}

#[derive(Debug)]
struct Ghost {
    /// Where it is: its old path or, if that was taken, one beside it.
    path: Vec<u8>,
    mode: u32,
    /// What has to go with it, in the order of making.
    temporary: Vec<Vec<u8>>,
    /// The description that O_TMPFILE made, if one did.
    nameless: Option<OwnedFd>,
}

impl Ghosts {
    /// Makes the ghost of an open ghost-file image at `path`.
    pub fn make(&mut self, id: u32, path: &[u8], image: &Image, undo: &mut Undo) -> Result<()> {
        let entry = &image.ghost.entry;
        let mut temporary = Vec::new();
        make_parents(path, undo, &mut temporary)?;
        let at = free_name(path, id)?;
        undo.note_file_of_mode(&at, entry.mode)?;
        temporary.push(at.clone());
        make_node(&at, image)
            .with_context(|| format!("make ghost file {id:x} at {}", shown(&at)))?;
        set_attributes(&at, entry).with_context(|| {
            format!(
                "owner, mode and times of ghost file {id:x} at {}",
                shown(&at)
            )
        })?;
        let ghost = Ghost {
            path: at,
            mode: entry.mode,
            temporary,
            nameless: None,
        };
        self.made.insert(id, ghost);
        Ok(())
    }

    /// Makes the ghost of an open ghost-file image beside `path` without a name, by an open with
    /// these flags; with one where the file system knows no files without.
    pub fn make_nameless(
        &mut self,
        id: u32,
        path: &[u8],
        flags: i32,
        image: &Image,
        undo: &mut Undo,
    ) -> Result<()> {
        let mut temporary = Vec::new();
        make_parents(path, undo, &mut temporary)?;
        let parent = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let parent = OsStr::from_bytes(path.get(..parent.max(1)).unwrap_or(b"/"));
        let flags = flags & !(libc::O_ASYNC | libc::O_EXCL) | libc::O_TMPFILE | libc::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = match open(parent, OFlag::from_bits_retain(flags), mode) {
            Ok(file) => file,
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT) => {
                return self.make(id, path, image, undo);
            }
            Err(errno) => {
                return Err(errno).with_context(|| {
                    format!(
                        "make ghost file {id:x} by O_TMPFILE in {}",
                        parent.display()
                    )
                });
            }
        };
        let own = reopen(file.as_fd(), libc::O_WRONLY).context("open it once more")?;
        let own = File::from(own);
        let entry = &image.ghost.entry;
        fill(&own, image)
            .and_then(|()| set_attributes_of(&own, entry))
            .with_context(|| format!("fill ghost file {id:x} in {}", parent.display()))?;
        let ghost = Ghost {
            path: path.to_vec(),
            mode: entry.mode,
            temporary,
            nameless: Some(file),
        };
        self.made.insert(id, ghost);
        Ok(())
    }

    /// Opens a ghost by the name `path`, or by the one it has if that cannot be had.
    pub fn open(&self, id: u32, path: &[u8], flags: i32, undo: &mut Undo) -> Result<OwnedFd> {
        let Some(ghost) = self.made.get(&id) else {
            bail!("ghost file {id:x} is opened and was not made");
        };
        if let Some(nameless) = &ghost.nameless {
            let opened = if is_nameless(flags) {
                nameless.try_clone().context("dup")
            } else {
                let opened = reopen(nameless.as_fd(), open_flags(flags, ghost.mode));
                opened.context("open it once more")
            };
            return opened.with_context(|| format!("open ghost file {id:x}"));
        }
        let flags = open_flags(flags, ghost.mode);
        open_by_name(&ghost.path, path, undo, |name| {
            let flags = OFlag::from_bits_retain(flags);
            open(OsStr::from_bytes(name), flags, Mode::empty()).with_context(|| {
                format!(
                    "open ghost file {id:x} at {} with flags {:#o}",
                    shown(name),
                    flags.bits()
                )
            })
        })
    }

    /// Takes the name of a ghost away, and the directories that were made for it.
    pub fn remove(&mut self, id: u32, undo: &mut Undo) -> Result<()> {
        let Some(ghost) = self.made.remove(&id) else {
            bail!("ghost file {id:x} is removed and was not made");
        };
        for path in ghost.temporary.iter().rev() {
            undo.remove(path)
                .with_context(|| format!("remove {}, made for ghost file {id:x}", shown(path)))?;
        }
        Ok(())
    }
}

/// Opens what is at `there` by the name `wanted`, which it gets for the moment. If that name is
/// taken, or cannot be had (a directory, another file system), it is opened by the name it has.
pub fn open_by_name(
    there: &[u8],
    wanted: &[u8],
    undo: &mut Undo,
    open: impl Fn(&[u8]) -> Result<OwnedFd>,
) -> Result<OwnedFd> {
    if there == wanted {
        return open(there);
    }
    let (from, to) = (OsStr::from_bytes(there), OsStr::from_bytes(wanted));
    if lstat(to).is_ok() {
        return open(there);
    }
    undo.note_file(wanted)?;
    match linkat(AT_FDCWD, from, AT_FDCWD, to, AtFlags::empty()) {
        Ok(()) => {
            let opened = open(wanted);
            undo.remove(wanted)
                .with_context(|| format!("remove the name {} again", shown(wanted)))?;
            opened
        }
        Err(_) => {
            undo.forget(wanted);
            open(there)
        }
    }
}

/// Makes the directories above `path` that are missing.
pub fn make_parents(path: &[u8], undo: &mut Undo, made: &mut Vec<Vec<u8>>) -> Result<()> {
    let slashes = path
        .iter()
        .enumerate()
        .filter(|&(at, byte)| at > 0 && *byte == b'/');
    for (end, _) in slashes {
        let Some(parent) = path.get(..end) else { break };
        let name = OsStr::from_bytes(parent);
        if lstat(name).is_ok() {
            continue;
        }
        undo.note_directory(parent)?;
        match mkdirat(AT_FDCWD, name, Mode::S_IRWXU) {
            Ok(()) => made.push(parent.to_vec()),
            Err(Errno::EEXIST) => undo.forget(parent),
            Err(errno) => {
                return Err(errno).with_context(|| format!("make directory {}", name.display()));
            }
        }
    }
    Ok(())
}

/// `path` if nothing is there, else a name beside it.
fn free_name(path: &[u8], id: u32) -> Result<Vec<u8>> {
    match lstat(OsStr::from_bytes(path)) {
        Err(Errno::ENOENT) => Ok(path.to_vec()),
        Ok(_) => {
            let mut beside = path.to_vec();
            beside.extend(format!(".crust-ghost-{id:x}-{}", std::process::id()).into_bytes());
            Ok(beside)
        }
        Err(errno) => Err(errno).with_context(|| format!("look at {}", shown(path))),
    }
}

fn fill(file: &File, image: &Image) -> Result<()> {
    let copied = image.ghost.copy_content(&image.file, file);
    copied.context("write the content")
}

fn make_node(at: &[u8], image: &Image) -> Result<()> {
    let entry = &image.ghost.entry;
    let name = OsStr::from_bytes(at);
    match entry.mode & libc::S_IFMT {
        libc::S_IFREG => {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let file = File::from(open(name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            fill(&file, image)
        }
        libc::S_IFDIR => Ok(mkdirat(AT_FDCWD, name, Mode::S_IRWXU)?),
        libc::S_IFLNK => {
            let target = entry
                .symlnk_target
                .as_deref()
                .context("symlnk_target is missing")?;
            Ok(symlinkat(OsStr::from_bytes(target), AT_FDCWD, name)?)
        }
        kind @ (libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK) => {
            let device = u64::from(entry.rdev.unwrap_or(0));
            let kind = SFlag::from_bits_truncate(kind);
            Ok(mknod(name, kind, Mode::S_IRUSR | Mode::S_IWUSR, device)?)
        }
        kind => bail!("mode: {kind:#o} is no type of file"),
    }
}

/// Owner before mode, because a change of owner takes set-id bits away; times last.
fn set_attributes(at: &[u8], entry: &GhostFileEntry) -> Result<()> {
    let name = OsStr::from_bytes(at);
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchownat(
        AT_FDCWD,
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .with_context(|| format!("chown to {uid}:{gid}"))?;
    if entry.mode & libc::S_IFMT != libc::S_IFLNK {
        let mode = Mode::from_bits_truncate(entry.mode & 0o7777);
        fchmodat(AT_FDCWD, name, mode, FchmodatFlags::FollowSymlink)
            .with_context(|| format!("chmod to {:#o}", entry.mode & 0o7777))?;
    }
    let (Some(accessed), Some(modified)) = (&entry.atim, &entry.mtim) else {
        return Ok(());
    };
    let (accessed, modified) = (time(accessed), time(modified));
    utimensat(
        AT_FDCWD,
        name,
        &accessed,
        &modified,
        UtimensatFlags::NoFollowSymlink,
    )
    .context("set the times")
}

/// The same for a regular file that is open.
fn set_attributes_of(file: &File, entry: &GhostFileEntry) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    fchown(file, Some(uid), Some(gid)).with_context(|| format!("chown to {uid}:{gid}"))?;
    let mode = Mode::from_bits_truncate(entry.mode & 0o7777);
    fchmod(file, mode).with_context(|| format!("chmod to {:#o}", mode.bits()))?;
    let (Some(accessed), Some(modified)) = (&entry.atim, &entry.mtim) else {
        return Ok(());
    };
    futimens(file, &time(accessed), &time(modified)).context("set the times")
}

fn time(time: &Timeval) -> TimeSpec {
    let seconds = i64::try_from(time.tv_sec).unwrap_or(i64::MAX);
    // utimensat refuses what is no fraction of a second.
    let nanos = i64::try_from(time.tv_usec).unwrap_or(0).min(999_999) * 1000;
    TimeSpec::new(seconds, nanos)
}

fn shown(path: &[u8]) -> std::ffi::os_str::Display<'_> {
    OsStr::from_bytes(path).display()
}
