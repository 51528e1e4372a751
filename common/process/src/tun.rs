//! Descriptors of /dev/net/tun and the interfaces they are attached to
//! (Documentation/networking/tuntap.rst, drivers/net/tun.c).
//!
//! A descriptor that is attached answers questions about its interface, whichever network
//! namespace that is in. What the driver does not tell of it (link state, addresses) rtnetlink does
//! (`rtnetlink.rs`); which offloads a program asked for only the features of the interface show
//! (ethtool). Numbers are those of include/uapi/linux/{if_tun,ethtool}.h.

use nix::errno::Errno;
use nix::libc;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOWNER: libc::c_ulong = 0x4004_54cc;
const TUNSETLINK: libc::c_ulong = 0x4004_54cd;
const TUNSETGROUP: libc::c_ulong = 0x4004_54ce;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNGETSNDBUF: libc::c_ulong = 0x8004_54d3;
const TUNSETSNDBUF: libc::c_ulong = 0x4004_54d4;
const TUNGETVNETHDRSZ: libc::c_ulong = 0x8004_54d7;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETIFINDEX: libc::c_ulong = 0x4004_54da;
const TUNGETFILTER: libc::c_ulong = 0x8010_54db;
const TUNSETVNETLE: libc::c_ulong = 0x4004_54dc;
const TUNGETVNETLE: libc::c_ulong = 0x8004_54dd;
const TUNSETCARRIER: libc::c_ulong = 0x4004_54e2;
const TUNGETDEVNETNS: libc::c_ulong = 0x54e3;
/// TUNSETPERSIST, for a plan to call.
pub const TUNSETPERSIST: i64 = 0x4004_54cb;

/// Flags of an interface.
pub mod flag {
    /// Whole frames, not packets.
    pub const TAP: u32 = 2;
    /// It stays when nobody has it open.
    pub const PERSIST: u32 = 0x800;
    /// What TUNSETIFF takes: the kind, NAPI, NAPI_FRAGS, MULTI_QUEUE, NO_PI, ONE_QUEUE, VNET_HDR.
    pub const SETTABLE: u32 = 0x1 | 0x2 | 0x10 | 0x20 | 0x100 | 0x1000 | 0x2000 | 0x4000;
}

/// TUN_F_* with the features that they are of an interface.
const OFFLOADS: [(u32, &[u8]); 5] = [
    (0x01, b"tx-checksum-ip-generic"),
    (0x02, b"tx-tcp-segmentation"),
    (0x04, b"tx-tcp6-segmentation"),
    (0x08, b"tx-tcp-ecn-segmentation"),
    (0x60, b"tx-udp-segmentation"),
];

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GFEATURES: u32 = 0x3a;
/// ETH_SS_FEATURES.
const FEATURES: u32 = 4;
const STRING: usize = 32;
/// More features than any kernel has.
const MOST_FEATURES: usize = 1024;

/// struct ifreq with flags, or with an address.
#[repr(C, align(8))]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: [u8; 24],
}

impl Request {
    fn of(name: &[u8]) -> nix::Result<Request> {
        let mut request = Request {
            name: [0; libc::IFNAMSIZ],
            value: [0; 24],
        };
        // The last byte stays zero.
        if name.len() >= libc::IFNAMSIZ {
            return Err(Errno::ENAMETOOLONG);
        }
        request
            .name
            .iter_mut()
            .zip(name)
            .for_each(|(to, from)| *to = *from);
        Ok(request)
    }
}

/// The interface a descriptor is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Its name.
    pub name: Vec<u8>,
    /// IFF_* of the driver.
    pub flags: u32,
}

/// What it is attached to, if it is.
pub fn attached(fd: BorrowedFd<'_>) -> nix::Result<Option<Attached>> {
    let mut request = Request::of(b"")?;
    // SAFETY: fills the request, which has the size of struct ifreq and outlives the call.
    let got = unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &raw mut request) };
    match Errno::result(got) {
        Ok(_) => {}
        Err(Errno::EBADFD) => return Ok(None),
        Err(errno) => return Err(errno),
    }
    let name = request.name.split(|byte| *byte == 0).next();
    let [low, high, ..] = request.value;
    Ok(Some(Attached {
        name: name.unwrap_or_default().to_vec(),
        flags: u16::from_ne_bytes([low, high]).into(),
    }))
}

/// The network namespace of its interface; needs CAP_NET_ADMIN there.
pub fn namespace(fd: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    // SAFETY: takes no argument.
    let got = Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETDEVNETNS, 0) })?;
    // SAFETY: the kernel just gave us this descriptor, which no other code knows.
    Ok(unsafe { OwnedFd::from_raw_fd(got) })
}

fn get(fd: BorrowedFd<'_>, what: libc::c_ulong) -> nix::Result<i32> {
    let mut value = 0i32;
    // SAFETY: these requests fill one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), what, &raw mut value) })?;
    Ok(value)
}

fn set(fd: BorrowedFd<'_>, what: libc::c_ulong, value: i32) -> nix::Result<()> {
    // SAFETY: these requests read one int, which outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), what, &raw const value) }).map(drop)
}

fn set_number(fd: BorrowedFd<'_>, what: libc::c_ulong, value: u32) -> nix::Result<()> {
    // SAFETY: these requests take the number itself.
    let got = unsafe { libc::ioctl(fd.as_raw_fd(), what, libc::c_ulong::from(value)) };
    Errno::result(got).map(drop)
}

/// Bytes of the header before each packet (with IFF_VNET_HDR), and what may wait to be sent.
pub fn sizes(fd: BorrowedFd<'_>) -> nix::Result<(i32, i32)> {
    Ok((get(fd, TUNGETVNETHDRSZ)?, get(fd, TUNGETSNDBUF)?))
}

/// Whether that header is little-endian by the program's wish.
pub fn is_little_endian(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    Ok(get(fd, TUNGETVNETLE)? != 0)
}

/// Whether a program filters what is read. The kernel tells only where in its owner's memory the
/// program once was. Interfaces of packets have none.
pub fn has_filter(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    let mut filter = [0u64; 2];
    // SAFETY: fills a struct sock_fprog of 16 bytes, which outlives the call.
    let got = unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETFILTER, filter.as_mut_ptr()) };
    match Errno::result(got) {
        Ok(_) => Ok(filter != [0; 2]),
        Err(Errno::EINVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Attaches a descriptor to an interface, which is made if there is none of this name, with this
/// number if it is not 0.
pub fn attach(fd: BorrowedFd<'_>, name: &[u8], flags: u32, index: u32) -> nix::Result<()> {
    if index != 0 {
        set(fd, TUNSETIFINDEX, index as i32)?;
    }
    let mut request = Request::of(name)?;
    let [low, high, ..] = flags.to_ne_bytes();
    request.value[..2].copy_from_slice(&[low, high]);
    // SAFETY: reads and fills the request, which has the size of struct ifreq.
    let got = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) };
    Errno::result(got).map(drop)
}

/// What a new interface gets by its descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Who may attach, none if negative.
    pub owner: i32,
    /// The group that may, likewise.
    pub group: i32,
    /// As [`sizes`] told.
    pub header: i32,
    /// As [`sizes`] told.
    pub send_buffer: i32,
    /// As [`is_little_endian`] told.
    pub little_endian: bool,
    /// ARPHRD_*, if it is not the kind's own.
    pub link_type: Option<u16>,
    /// TUN_F_*.
    pub offload: u32,
}

/// Gives it to one that is down.
pub fn configure(fd: BorrowedFd<'_>, settings: &Settings) -> nix::Result<()> {
    if let Ok(owner) = u32::try_from(settings.owner) {
        set_number(fd, TUNSETOWNER, owner)?;
    }
    if let Ok(group) = u32::try_from(settings.group) {
        set_number(fd, TUNSETGROUP, group)?;
    }
    set(fd, TUNSETVNETHDRSZ, settings.header)?;
    set(fd, TUNSETSNDBUF, settings.send_buffer)?;
    if settings.little_endian {
        set(fd, TUNSETVNETLE, 1)?;
    }
    if let Some(kind) = settings.link_type {
        set_number(fd, TUNSETLINK, kind.into())?;
    }
    if settings.offload != 0 {
        set_number(fd, TUNSETOFFLOAD, settings.offload)?;
    }
    Ok(())
}

/// The program's word on whether the link is up; the interface must be.
pub fn set_carrier(fd: BorrowedFd<'_>, on: bool) -> nix::Result<()> {
    set(fd, TUNSETCARRIER, on.into())
}

/// TUN_F_* of an interface in the network namespace of `socket`, which is any socket.
pub fn offloads(socket: BorrowedFd<'_>, name: &[u8]) -> nix::Result<u32> {
    let mut info = [ETHTOOL_GSSET_INFO, 0, 1 << FEATURES, 0, 0];
    ethtool(socket, name, &mut info)?;
    let count = (info[4] as usize).min(MOST_FEATURES);
    let mut strings = vec![0u32; 3 + count * STRING / 4];
    strings[..3].copy_from_slice(&[ETHTOOL_GSTRINGS, FEATURES, count as u32]);
    ethtool(socket, name, &mut strings)?;
    let words = count.div_ceil(32);
    // Of each 32 features four words: available, requested, active, never changed.
    let mut features = vec![0u32; 2 + 4 * words];
    features[..2].copy_from_slice(&[ETHTOOL_GFEATURES, words as u32]);
    ethtool(socket, name, &mut features)?;
    let names: Vec<u8> = strings[3..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let is_active = |at: usize| {
        let active = features.get(2 + at / 32 * 4 + 2).copied().unwrap_or(0);
        active & 1 << (at % 32) != 0
    };
    let offloads = OFFLOADS.iter().filter(|(_, wanted)| {
        let mut names = names.chunks(STRING);
        let at = names.position(|name| name.split(|byte| *byte == 0).next() == Some(wanted));
        at.is_some_and(is_active)
    });
    Ok(offloads.fold(0, |all, (bits, _)| all | bits))
}

/// `data` begins with the command and is as long as the command and the counts in it say.
fn ethtool(socket: BorrowedFd<'_>, name: &[u8], data: &mut [u32]) -> nix::Result<()> {
    let mut request = Request::of(name)?;
    let address = (data.as_mut_ptr() as u64).to_ne_bytes();
    request.value[..8].copy_from_slice(&address);
    // SAFETY: the three commands used here write no more than the counts in data announce, and
    // offloads() makes it as long; all outlive the call.
    let got = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    Errno::result(got).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn an_interface_is_made_and_tells_of_itself() {
        let tun = File::options().read(true).write(true).open("/dev/net/tun");
        let (Ok(tun), true) = (tun, nix::unistd::geteuid().is_root()) else {
            eprintln!("SKIPPED: needs /dev/net/tun and CAP_NET_ADMIN");
            return;
        };
        let inside = std::thread::spawn(move || {
            use nix::sched::{CloneFlags, unshare};
            if unshare(CloneFlags::CLONE_NEWNET).is_err() {
                eprintln!("SKIPPED: needs a network namespace");
                return;
            }
            drop(tun);
            let tun = File::options().read(true).write(true).open("/dev/net/tun");
            let tun = tun.expect("opened before");
            assert_eq!(attached(tun.as_fd()), Ok(None));
            attach(tun.as_fd(), b"crust0", 0x5001, 77).expect("a new one");
            let told = attached(tun.as_fd()).expect("asked").expect("attached");
            assert_eq!((told.name.as_slice(), told.flags), (&b"crust0"[..], 0x5001));
            let settings = Settings {
                owner: 5,
                group: -1,
                header: 12,
                send_buffer: 10000,
                little_endian: true,
                link_type: None,
                offload: 0x7,
            };
            configure(tun.as_fd(), &settings).expect("configured");
            assert_eq!(sizes(tun.as_fd()), Ok((12, 10000)));
            assert_eq!(is_little_endian(tun.as_fd()), Ok(true));
            assert_eq!(has_filter(tun.as_fd()), Ok(false));
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
            assert_eq!(offloads(socket.as_fd(), b"crust0"), Ok(7));
            namespace(tun.as_fd()).expect("its namespace");
            let long = attach(tun.as_fd(), &[b'x'; 16], 1, 0);
            assert_eq!(long, Err(Errno::ENAMETOOLONG));
        });
        inside.join().expect("the assertions hold");
    }
}
