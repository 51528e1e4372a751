//! Descriptors of /dev/net/tun, attached again to their interfaces.
//!
//! An interface that does not persist died with the tree: the first descriptor makes it, with its
//! number, settings, link state, addresses and routes (the field crust_device of our own, which
//! CRIU's images have not). One that persists and is still there is attached to as it is; where it
//! is not, it is made too. It is made to persist when all else is restored, so that nothing is left
//! of a restore that fails.

use super::calls::SETTABLE;
use super::{File, fown, member, shown};
use crate::plan::object::{TunDevice, TunLink};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Arg, Call, Op, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crust_process::rtnetlink::Link;
use crust_process::tun::{TUNSETPERSIST, flag};
use crust_proto::criu::{CrustTunDevice, TunfileEntry};
use nix::libc;
use std::collections::BTreeMap;

/// What the interfaces of the images are, by name.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    /// IFF_* of those that a descriptor before has made.
    made: BTreeMap<Vec<u8>, u32>,
}

/// Addresses and routes of an interface, generously.
const MOST_MESSAGES: usize = 10_000;

/// Opens and attaches.
pub(super) fn plan(planner: &mut Planner<'_>, file: File<'_>) -> Option<SlotId> {
    let tunf = member(planner, file, file.entry.tunf.as_ref(), |tunf| tunf.id)?;
    let reg = member(planner, file, file.entry.reg.as_ref(), |reg| reg.id)?;
    let slot = planner.slot();
    let name = tunf.netdev.as_ref().map(|name| shown(name));
    let origin = file.origin(match &name {
        Some(name) => format!("tun interface {name}"),
        None => "a tun descriptor".to_owned(),
    });
    let device = match device(planner, tunf) {
        Ok(device) => device,
        Err(why) => {
            planner.refuse(Refusal::new(origin, why));
            return None;
        }
    };
    let persists = device
        .as_ref()
        .is_some_and(|device| device.flags & flag::PERSIST != 0);
    let flags = reg.flags as i32;
    let open = Op::Routine(Routine::OpenTun {
        path: reg.name.clone(),
        flags: flags & (SETTABLE | libc::O_ACCMODE),
        device: device.map(Box::new),
        slot,
    });
    planner.push(Phase::Open, Actor::Broker, open, origin.clone());
    if persists {
        let request = Arg::Named("TUNSETPERSIST".to_owned(), TUNSETPERSIST as u64);
        let call = Call::new(
            "ioctl",
            libc::SYS_ioctl,
            vec![Arg::Fd(slot), request, Arg::Int(1)],
        );
        planner.call(Phase::Network, Actor::Broker, call, origin);
    }
    fown::plan(planner, file, slot, flags, &reg.fown);
    Some(slot)
}

fn device(planner: &mut Planner<'_>, tunf: &TunfileEntry) -> Result<Option<TunDevice>, String> {
    let Some(name) = &tunf.netdev else {
        return Ok(None);
    };
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(&0) {
        return Err(format!(
            "netdev of {} bytes is no name of an interface",
            name.len()
        ));
    }
    if tunf.detached == Some(true) {
        return Err("detached queues are not restored".to_owned());
    }
    let made = &mut planner.files.tuns.made;
    match (&tunf.crust_device, made.get(name)) {
        (Some(device), None) => {
            made.insert(name.clone(), device.link.flags);
            request(name, device).map(Some)
        }
        (_, Some(flags)) => Ok(Some(TunDevice {
            name: name.clone(),
            flags: *flags,
            link: None,
        })),
        (None, None) => Err("the image does not say what interface it is".to_owned()),
    }
}

fn request(name: &[u8], device: &CrustTunDevice) -> Result<TunDevice, String> {
    let half = |field: &str, value: u32| {
        u16::try_from(value).map_err(|_| format!("{field} {value} has more than 16 bits"))
    };
    if device.setup.len() > MOST_MESSAGES {
        return Err(format!("setup has {} messages", device.setup.len()));
    }
    let mode = device.addr_gen_mode.map(u8::try_from).transpose();
    let link = Link {
        index: device.ifindex,
        link_type: half("link_type", device.link_type)?,
        flags: device.flags,
        mtu: device.mtu,
        address: device.address.clone().unwrap_or_default(),
        tx_queue_len: device.tx_queue_len,
        master: device.master,
        carrier: device.carrier,
        owner: device.link.owner,
        group: device.link.group,
        disabled_queues: 0,
        addr_gen_mode: mode.map_err(|_| "addr_gen_mode has more than 8 bits")?,
    };
    let made = TunLink {
        link,
        header: device.link.vnethdr as i32,
        send_buffer: device.link.sndbuf as i32,
        little_endian: device.little_endian,
        offload: device.offload,
        setup: device.setup.clone(),
    };
    Ok(TunDevice {
        name: name.to_vec(),
        flags: device.link.flags,
        link: Some(made),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::print;
    use crust_proto::criu::TunLinkEntry;

    fn entry() -> CrustTunDevice {
        CrustTunDevice {
            link: TunLinkEntry {
                flags: 0x1001,
                owner: -1,
                group: 100,
                vnethdr: 10,
                sndbuf: i32::MAX as u32,
            },
            ifindex: 7,
            flags: 0x1_0051,
            mtu: 1400,
            link_type: 0xfffe,
            tx_queue_len: 500,
            carrier: true,
            setup: vec![vec![20, 0]],
            ..CrustTunDevice::default()
        }
    }

    #[test]
    fn an_interface_is_made_as_it_was() {
        let open = Routine::OpenTun {
            path: b"/dev/net/tun".to_vec(),
            flags: libc::O_RDWR,
            device: Some(Box::new(request(b"wltun0", &entry()).expect("a plan"))),
            slot: SlotId(3),
        };
        let text = print::op(&Op::Routine(open));
        let wanted = "open tun \"/dev/net/tun\" flags 0o2 as \"wltun0\" of flags 0x1001, made as \
                      number 7 with flags 0x10051, mtu 1400, 1 addresses and routes -> %3";
        assert_eq!(text, wanted);
    }

    #[test]
    fn wild_interfaces_are_refused() {
        let broken: [fn(&mut CrustTunDevice); 3] = [
            |device| device.link_type = 1 << 16,
            |device| device.addr_gen_mode = Some(256),
            |device| device.setup = vec![Vec::new(); MOST_MESSAGES + 1],
        ];
        for break_it in broken {
            let mut device = entry();
            break_it(&mut device);
            assert!(request(b"tun0", &device).is_err(), "{device:?}");
        }
    }
}
