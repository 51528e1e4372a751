//! Binding a unix socket to a path.
//!
//! bind(2) makes a socket file and fails if anything has the name. A socket file that a process
//! of the dumped tree left there when it died is in the way and is removed; one behind which
//! somebody listens is not ours, and is an error. A relative name is bound from the directory it
//! was meant from, for getsockname(2) gives back the text.

use super::ghost::make_parents;
use super::undo::Undo;
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, lstat};
use nix::unistd::{Gid, Uid, chdir, fchownat, unlink};
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// A socket's name in the file system.
#[derive(Clone, Copy, Debug)]
pub struct SocketName<'a> {
    /// The directory from which a relative name is meant.
    pub dir: &'a [u8],
    /// As bind(2) takes it.
    pub name: &'a [u8],
    /// Mode, owner and group of the file.
    pub perms: Option<(u32, u32, u32)>,
    /// It will be removed, with the directories that are made for it.
    pub is_deleted: bool,
}

/// Binds `socket` to a name and gives the file its mode and owner.
pub fn bind_to_path(socket: BorrowedFd<'_>, to: SocketName<'_>, undo: &mut Undo) -> Result<()> {
    if to.is_deleted {
        // They are noted as temporary, which is what takes them away.
        make_parents(&absolute(to.dir, to.name), undo, &mut Vec::new())?;
    }
    if to.name.starts_with(b"/") {
        return bind_here(socket, to, undo);
    }
    in_directory(to.dir, || bind_here(socket, to, undo))
}

/// Runs `what` in another working directory. A relative name stays relative in the socket's
/// address, so the directory has to be the working one; that of a thread which shares it with
/// nobody is, and ours never changes.
fn in_directory(dir: &[u8], what: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let there = || {
        let path = OsStr::from_bytes(dir);
        unshare(CloneFlags::CLONE_FS).context("have a working directory of its own")?;
        chdir(path).with_context(|| format!("change to {}", path.display()))?;
        what()
    };
    std::thread::scope(|scope| {
        // `spawn` would panic where the kernel gives no thread.
        let thread = std::thread::Builder::new().spawn_scoped(scope, there);
        let thread = thread.context("start a thread that binds a socket")?;
        let joined = thread.join();
        joined.unwrap_or_else(|_| bail!("a thread that binds a socket panicked"))
    })
}

fn bind_here(socket: BorrowedFd<'_>, to: SocketName<'_>, undo: &mut Undo) -> Result<()> {
    let SocketName {
        dir, name, perms, ..
    } = to;
    let shown = OsStr::from_bytes(name).display();
    clear_name(name)?;
    let address = UnixAddr::new(OsStr::from_bytes(name))
        .with_context(|| format!("make an address of {shown}"))?;
    let absolute = absolute(dir, name);
    undo.note_file(&absolute)?;
    bind(socket.as_raw_fd(), &address).with_context(|| format!("bind to {shown}"))?;
    if let Some(perms) = perms {
        set_perms(name, perms)?;
    }
    // A restore that fails later removes the name; one that succeeds is told to keep it.
    undo.keep_on_success(&absolute)?;
    Ok(())
}

fn absolute(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if name.starts_with(b"/") {
        return name.to_vec();
    }
    [dir, b"/", name].concat()
}

fn set_perms(name: &[u8], (mode, uid, gid): (u32, u32, u32)) -> Result<()> {
    let path = OsStr::from_bytes(name);
    let (owner, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let nofollow = AtFlags::AT_SYMLINK_NOFOLLOW;
    fchownat(AT_FDCWD, path, Some(owner), Some(group), nofollow)
        .with_context(|| format!("chown {} to {uid}:{gid}", path.display()))?;
    let mode = Mode::from_bits_truncate(mode & 0o7777);
    fchmodat(AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink)
        .with_context(|| format!("chmod {} to {:#o}", path.display(), mode.bits()))
}

/// Makes the name free, if what has it is the socket file of a dead process.
fn clear_name(name: &[u8]) -> Result<()> {
    let path = OsStr::from_bytes(name);
    let there = match lstat(path) {
        Err(Errno::ENOENT) => return Ok(()),
        there => there.with_context(|| format!("look at {}", path.display()))?,
    };
    if there.st_mode & libc::S_IFMT != libc::S_IFSOCK {
        bail!(
            "{} is {}, where a socket was",
            path.display(),
            super::open::type_name(there.st_mode & libc::S_IFMT)
        );
    }
    if is_alive(name)? {
        bail!("{} is the socket of a process that lives", path.display());
    }
    unlink(path).with_context(|| format!("remove the old socket file {}", path.display()))
}

/// Whether a socket is bound to the file. A datagram socket is used to ask: the answer for one of
/// another type is EPROTOTYPE, and a listener sees no connection.
fn is_alive(name: &[u8]) -> Result<bool> {
    let probe = socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("make a socket")?;
    let Ok(address) = UnixAddr::new(OsStr::from_bytes(name)) else {
        return Ok(false);
    };
    match connect(probe.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        // Of another type, or with a peer that is not us (unix_dgram_connect).
        Ok(()) | Err(Errno::EPROTOTYPE | Errno::EPERM) => Ok(true),
        Err(errno) => {
            let name = OsStr::from_bytes(name).display();
            Err(errno).with_context(|| format!("ask whether the socket {name} has a process"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{Backlog, getsockname, listen};
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::{Path, PathBuf};

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("crust-unix-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a scratch directory");
        dir
    }

    fn stream() -> OwnedFd {
        let flags = SockFlag::SOCK_CLOEXEC;
        socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("socket")
    }

    fn bind_in(dir: &Path, name: &str) -> Result<OwnedFd> {
        let socket = stream();
        let mut undo = Undo::default();
        let name = SocketName {
            dir: dir.as_os_str().as_bytes(),
            name: name.as_bytes(),
            perms: Some((0o140_640, 0, 0)),
            is_deleted: false,
        };
        bind_to_path(socket.as_fd(), name, &mut undo)?;
        undo.take_back_temporary();
        undo.commit();
        Ok(socket)
    }

    #[test]
    fn a_relative_name_stays_relative_and_a_dead_socket_makes_room() {
        let dir = scratch("relative");
        let path = dir.join("sock");
        drop(bind_in(&dir, "sock").expect("bound"));
        assert!(path.exists(), "a bound name stays");
        let socket = bind_in(&dir, "sock").expect("in place of the dead one");
        let name: UnixAddr = getsockname(socket.as_raw_fd()).expect("a name");
        assert_eq!(name.path(), Some("sock".as_ref()));
        let mode = lstat(&path).expect("lstat").st_mode;
        assert_eq!(mode & 0o7777, 0o640);
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn a_living_socket_and_a_file_are_left_alone() {
        let dir = scratch("living");
        let alive = bind_in(&dir, "sock").expect("bound");
        listen(&alive, Backlog::new(1).expect("a backlog")).expect("listen");
        let error = bind_in(&dir, "sock").expect_err("in use").to_string();
        assert!(error.contains("process that lives"), "{error}");
        std::fs::write(dir.join("file"), "x").expect("write");
        let error = bind_in(&dir, "file").expect_err("a file").to_string();
        assert!(
            error.contains("is a regular file, where a socket was"),
            "{error}"
        );
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn a_failed_restore_takes_the_name_away() {
        let dir = scratch("failed");
        let socket = stream();
        let mut undo = Undo::default();
        let name = SocketName {
            dir: dir.as_os_str().as_bytes(),
            name: b"sock",
            perms: None,
            is_deleted: false,
        };
        bind_to_path(socket.as_fd(), name, &mut undo).expect("bound");
        drop(undo);
        std::fs::remove_dir(&dir).expect("nothing is left in it");
    }
}
