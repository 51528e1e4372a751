//! What kind of object an open file description is: the one place that decides which room dumps
//! it.
//!
//! The kernel tells by the type bits of the mode, by the device of its internal file systems and,
//! for anonymous inodes, only by the text of the /proc/PID/fd link. Whatever is not known here is
//! [`Kind::Unsupported`] with its name, so a new kind of the kernel is refused and never mistaken
//! for a regular file.

use crust_process::descriptor::Statx;
use nix::libc;
use std::os::fd::AsFd;

/// Devices of the kernel's internal mounts, learnt from descriptors of our own.
#[derive(Clone, Copy, Debug)]
pub struct InternalDevices {
    /// Of pipe(2).
    pub pipe: u64,
    /// Of memfd_create(2) and of shared anonymous memory.
    pub shmem: u64,
    /// Of socket(2).
    pub socket: u64,
    /// Of memfd_create(MFD_HUGETLB) and of shared anonymous memory in huge pages, for each size that
    /// the processor may have.
    pub huge: [Option<u64>; HUGE_SIZES.len()],
}

/// Logarithms of the sizes of huge pages of x86_64.
const HUGE_SIZES: [u32; 2] = [21, 30];

/// Nothing is reserved before somebody maps it. A size may be missing.
fn huge_device(size: u32) -> Option<u64> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let size = MFdFlags::from_bits_retain(size << libc::MFD_HUGE_SHIFT);
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | size;
    let memfd = memfd_create(c"crust", flags).ok()?;
    Some(nix::sys::stat::fstat(memfd.as_fd()).ok()?.st_dev)
}

impl InternalDevices {
    /// Makes one descriptor of each and looks.
    pub fn learn() -> nix::Result<InternalDevices> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
        use nix::sys::stat::fstat;
        let (reader, _writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        let memfd =
            nix::sys::memfd::memfd_create(c"crust", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
        let unix = socket(
            AddressFamily::Unix,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        Ok(InternalDevices {
            pipe: fstat(reader.as_fd())?.st_dev,
            shmem: fstat(memfd.as_fd())?.st_dev,
            socket: fstat(unix.as_fd())?.st_dev,
            huge: HUGE_SIZES.map(huge_device),
        })
    }
}

/// The room of a file description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Anything with a path that open(2) gives back: files, directories, devices, O_PATH.
    Regular,
    /// memfd_create(2), or shared anonymous memory seen through a mapping.
    Memfd,
    /// pipe(2).
    Pipe,
    /// A named pipe.
    Fifo,
    /// A socket; its family decides.
    Socket,
    /// eventfd(2).
    Eventfd,
    /// epoll_create(2).
    Eventpoll,
    /// signalfd(2).
    Signalfd,
    /// timerfd_create(2).
    Timerfd,
    /// inotify_init(2).
    Inotify,
    /// fanotify_init(2).
    Fanotify,
    /// pidfd_open(2).
    Pidfd,
    /// io_uring_setup(2).
    Uring,
    /// A map of the bpf machine.
    BpfMap,
    /// Another object of it, by its name.
    BpfObject(&'static str),
    /// /dev/net/tun.
    Tun,
    /// A terminal.
    Tty,
    /// /proc/PID/ns/*.
    Namespace,
    /// Everything else, by its name.
    Unsupported(String),
}

/// Major numbers of Documentation/admin-guide/devices.txt.
const MEM_MAJOR: u32 = 1;
const TTY_MAJOR: u32 = 4;
const TTYAUX_MAJOR: u32 = 5;
const MISC_MAJOR: u32 = 10;
const UNIX98_PTY: std::ops::RangeInclusive<u32> = 128..=143;
const TUN_MINOR: u32 = 200;

/// Decides. `link` is the text of the /proc link, `stat` is missing only for the `fd` directory of
/// a dead process, whose fstat(2) fails.
pub fn classify(stat: Option<&Statx>, flags: u32, link: &[u8], devices: &InternalDevices) -> Kind {
    let Some(stat) = stat else {
        return Kind::Regular;
    };
    let named = link.starts_with(b"/");
    if flags & libc::O_PATH as u32 != 0 && named {
        return Kind::Regular;
    }
    match stat.mode & libc::S_IFMT {
        libc::S_IFIFO if flags & libc::O_PATH as u32 != 0 => {
            unsupported("an O_PATH descriptor of an unnamed pipe")
        }
        libc::S_IFIFO if stat.dev == devices.pipe => Kind::Pipe,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK if stat.dev == devices.socket && flags & libc::O_PATH as u32 == 0 => {
            Kind::Socket
        }
        libc::S_IFSOCK => unsupported("an O_PATH descriptor of an unnamed socket"),
        libc::S_IFREG if stat.dev == devices.shmem => shmem(link),
        libc::S_IFREG if devices.huge.contains(&Some(stat.dev)) => huge_object(link),
        libc::S_IFREG if link == b"/secretmem (deleted)" => unsupported("secret memory"),
        libc::S_IFREG if named => Kind::Regular,
        libc::S_IFDIR | libc::S_IFLNK | libc::S_IFBLK if named => Kind::Regular,
        libc::S_IFCHR if named => character_device(stat.rdev),
        _ => anonymous(link),
    }
}

fn unsupported(name: &str) -> Kind {
    Kind::Unsupported(name.to_owned())
}

/// The same in huge pages, where segments look as they do in small ones.
fn huge_object(link: &[u8]) -> Kind {
    if link.starts_with(b"/anon_hugepage") {
        return Kind::Memfd;
    }
    shmem(link)
}

/// Shared anonymous memory is `/dev/zero (deleted)` there, a System V segment `/SYSV<key>`; the
/// latter can only be mapped, never opened, so mm has it.
fn shmem(link: &[u8]) -> Kind {
    if link.starts_with(b"/memfd:") || link.starts_with(b"/dev/zero") {
        Kind::Memfd
    } else {
        Kind::Unsupported(format!(
            "kernel memory object {}",
            String::from_utf8_lossy(link)
        ))
    }
}

fn character_device(rdev: u64) -> Kind {
    let (major, minor) = (libc::major(rdev), libc::minor(rdev));
    match (major, minor) {
        // null, port, zero, full, random, urandom, kmsg and mem: nothing but a position.
        (MEM_MAJOR, _) => Kind::Regular,
        (TTY_MAJOR | TTYAUX_MAJOR, _) => Kind::Tty,
        (major, _) if UNIX98_PTY.contains(&major) => Kind::Tty,
        (MISC_MAJOR, TUN_MINOR) => Kind::Tun,
        _ => Kind::Unsupported(format!(
            "character device {major}:{minor}, whose driver may hold state"
        )),
    }
}

fn anonymous(link: &[u8]) -> Kind {
    match link {
        b"anon_inode:[eventfd]" => Kind::Eventfd,
        b"anon_inode:[eventpoll]" => Kind::Eventpoll,
        b"anon_inode:[signalfd]" => Kind::Signalfd,
        b"anon_inode:[timerfd]" => Kind::Timerfd,
        b"anon_inode:inotify" => Kind::Inotify,
        b"anon_inode:[pidfd]" => Kind::Pidfd,
        b"anon_inode:[fanotify]" => Kind::Fanotify,
        b"anon_inode:[io_uring]" => Kind::Uring,
        b"anon_inode:[userfaultfd]" => unsupported("a userfaultfd"),
        b"anon_inode:[perf_event]" => unsupported("a perf event"),
        b"anon_inode:bpf-map" => Kind::BpfMap,
        b"anon_inode:bpf-prog" => Kind::BpfObject("program"),
        b"anon_inode:bpf_link" | b"anon_inode:bpf-link" => Kind::BpfObject("link"),
        b"anon_inode:btf" => Kind::BpfObject("type information (BTF)"),
        b"anon_inode:bpf_iter" => Kind::BpfObject("iterator"),
        b"anon_inode:bpf-token" => Kind::BpfObject("token"),
        b"anon_inode:seccomp notify" => unsupported("a seccomp notifier"),
        _ if is_namespace(link) => Kind::Namespace,
        _ => Kind::Unsupported(format!("kernel object {}", String::from_utf8_lossy(link))),
    }
}

/// `net:[4026531840]` and its like: the name of a namespace in brackets with its inode.
fn is_namespace(link: &[u8]) -> bool {
    const NAMES: [&[u8]; 8] = [
        b"cgroup", b"ipc", b"mnt", b"net", b"pid", b"time", b"user", b"uts",
    ];
    link.split(|&byte| byte == b':')
        .next()
        .is_some_and(|name| NAMES.contains(&name))
        && link.ends_with(b"]")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: InternalDevices = InternalDevices {
        pipe: 15,
        shmem: 1,
        socket: 9,
        huge: [Some(11), None],
    };

    fn stat(mode: u32, dev: u64, rdev: u64) -> Statx {
        Statx {
            mnt_id: None,
            mode,
            dev,
            ino: 7,
            nlink: 1,
            size: 0,
            rdev,
            uid: 0,
            gid: 0,
        }
    }

    fn kind(mode: u32, dev: u64, rdev: u64, flags: i32, link: &[u8]) -> Kind {
        classify(Some(&stat(mode, dev, rdev)), flags as u32, link, &DEVICES)
    }

    #[test]
    fn a_fifo_is_told_from_a_pipe_by_its_device() {
        assert_eq!(kind(libc::S_IFIFO, 15, 0, 0, b"pipe:[3]"), Kind::Pipe);
        assert_eq!(kind(libc::S_IFIFO, 40, 0, 0, b"/tmp/fifo"), Kind::Fifo);
        assert_eq!(
            kind(libc::S_IFIFO, 40, 0, libc::O_PATH, b"/tmp/fifo"),
            Kind::Regular
        );
    }

    #[test]
    fn a_tmpfs_file_named_like_a_memfd_is_regular() {
        assert_eq!(
            kind(libc::S_IFREG, 1, 0, 0, b"/memfd:x (deleted)"),
            Kind::Memfd
        );
        assert_eq!(kind(libc::S_IFREG, 33, 0, 0, b"/memfd:x"), Kind::Regular);
    }

    #[test]
    fn memory_in_huge_pages_is_known_by_its_device() {
        let of = |dev, link| kind(libc::S_IFREG, dev, 0, 0, link);
        assert_eq!(of(11, b"/memfd:x (deleted)"), Kind::Memfd);
        assert_eq!(of(11, b"/anon_hugepage (deleted)"), Kind::Memfd);
        assert_eq!(of(33, b"/anon_hugepage (deleted)"), Kind::Regular);
    }

    #[test]
    fn only_memory_devices_are_reopened_by_name() {
        let dev = libc::makedev;
        assert_eq!(
            kind(libc::S_IFCHR, 5, dev(1, 3), 2, b"/dev/null"),
            Kind::Regular
        );
        assert_eq!(
            kind(libc::S_IFCHR, 5, dev(136, 0), 2, b"/dev/pts/0"),
            Kind::Tty
        );
        let fuse = kind(libc::S_IFCHR, 5, dev(10, 229), 2, b"/dev/fuse");
        assert!(matches!(fuse, Kind::Unsupported(name) if name.contains("10:229")));
    }

    #[test]
    fn anonymous_inodes_go_by_their_name() {
        assert_eq!(kind(0, 16, 0, 2, b"anon_inode:[eventfd]"), Kind::Eventfd);
        assert_eq!(
            kind(libc::S_IFREG, 4, 0, 0, b"net:[4026531840]"),
            Kind::Namespace
        );
        let ring = kind(0, 16, 0, 2, b"anon_inode:[io_uring]");
        assert_eq!(ring, Kind::Uring);
        let program = kind(0, 16, 0, 2, b"anon_inode:bpf-prog");
        assert_eq!(program, Kind::BpfObject("program"));
        let unknown = kind(0, 16, 0, 2, b"anon_inode:[new thing]");
        assert!(matches!(unknown, Kind::Unsupported(name) if name.contains("new thing")));
    }

    #[test]
    fn the_devices_of_this_kernel_are_learnt() {
        let devices = InternalDevices::learn().unwrap();
        assert!(devices.pipe != devices.shmem && devices.shmem != devices.socket);
    }
}
