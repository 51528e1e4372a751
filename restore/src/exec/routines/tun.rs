//! Descriptors of /dev/net/tun: opened, attached, and their interfaces made as they were.

use crate::plan::object::{TunDevice, TunLink};
use anyhow::{Context, Result, bail};
use crust_process::descriptor::{reopen, statx};
use crust_process::rtnetlink::Rtnetlink;
use crust_process::tun::{self, Settings, flag};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open as open_file};
use nix::libc;
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Numbers of Documentation/admin-guide/devices.txt.
const TUN: u64 = libc::makedev(10, 200);
/// ARPHRD_NONE and ARPHRD_ETHER, which new interfaces of both kinds have.
const NONE: u16 = 0xfffe;
const ETHER: u16 = 1;

/// Opens and attaches one.
pub fn open(path: &[u8], flags: i32, device: Option<&TunDevice>) -> Result<OwnedFd> {
    let shown = OsStr::from_bytes(path).display();
    // O_PATH first: opening some other device, or a fifo, may do something.
    let found = open_file(OsStr::from_bytes(path), OFlag::O_PATH, Mode::empty())
        .with_context(|| format!("open {shown}"))?;
    let stat = statx(found.as_fd()).with_context(|| format!("statx of {shown}"))?;
    if stat.mode & libc::S_IFMT != libc::S_IFCHR || stat.rdev != TUN {
        bail!("{shown} is not the device of tuns and taps");
    }
    let opened = reopen(found.as_fd(), flags).with_context(|| format!("open {shown}"))?;
    if let Some(device) = device {
        let name = OsStr::from_bytes(&device.name).display();
        attach(opened.as_fd(), device).with_context(|| format!("tun interface {name}"))?;
    }
    Ok(opened)
}

fn attach(tun: BorrowedFd<'_>, device: &TunDevice) -> Result<()> {
    let flags = device.flags & flag::SETTABLE;
    let Some(wanted) = &device.link else {
        return tun::attach(tun, &device.name, flags, 0).context("TUNSETIFF");
    };
    let route = Rtnetlink::open().context("a socket of rtnetlink")?;
    let there = route.link(&device.name).context("RTM_GETLINK")?;
    let persists = device.flags & flag::PERSIST != 0;
    match there {
        // It has outlived its tree, as it should.
        Some(_) if persists => tun::attach(tun, &device.name, flags, 0)
            .context("TUNSETIFF (it is there already, perhaps of another kind or in use)"),
        Some(_) => bail!("an interface of this name is there already"),
        None => {
            let index = wanted.link.index;
            tun::attach(tun, &device.name, flags, index).map_err(|errno| match errno {
                Errno::EEXIST | Errno::EBUSY => {
                    anyhow::anyhow!("TUNSETIFF: {errno}: another interface has number {index}")
                }
                errno => anyhow::anyhow!(errno).context("TUNSETIFF"),
            })?;
            configure(tun, &route, device, wanted)
        }
    }
}

fn configure(
    tun: BorrowedFd<'_>,
    route: &Rtnetlink,
    device: &TunDevice,
    wanted: &TunLink,
) -> Result<()> {
    let kind = match device.flags & flag::TAP {
        0 => NONE,
        _ => ETHER,
    };
    let link = &wanted.link;
    let settings = Settings {
        owner: link.owner,
        group: link.group,
        header: wanted.header,
        send_buffer: wanted.send_buffer,
        little_endian: wanted.little_endian,
        link_type: (link.link_type != kind).then_some(link.link_type),
        offload: wanted.offload,
    };
    tun::configure(tun, &settings).context("give the descriptor its settings")?;
    route
        .configure(link.index, link)
        .context("RTM_SETLINK (mtu, queue, address, master or state)")?;
    for (number, message) in wanted.setup.iter().enumerate() {
        route
            .make(link.index, message)
            .with_context(|| format!("make address or route {number}"))?;
    }
    if let Some(mode) = link.addr_gen_mode {
        route
            .set_addr_gen_mode(link.index, mode)
            .context("RTM_SETLINK (addr_gen_mode)")?;
    }
    if !link.carrier {
        tun::set_carrier(tun, false).context("TUNSETCARRIER")?;
    }
    Ok(())
}
