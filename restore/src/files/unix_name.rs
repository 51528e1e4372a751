//! Addresses of unix sockets: none, abstract, or a path that may be relative to `name_dir`.

use super::shown;
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Arg, Call, Op, Origin, Phase, SlotId};
use crate::plan::{Planner, StepId};
use crust_proto::criu::UnixSkEntry;
use nix::libc;

/// sizeof(sun_path).
const SUN_PATH: usize = 108;

/// What a socket is bound to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Address {
    /// Nothing.
    None,
    /// A name outside the file system, its leading zero byte included.
    Abstract(Vec<u8>),
    /// A path without the final zero.
    Path {
        /// Where a relative one is meant from; empty for an absolute one.
        dir: Vec<u8>,
        /// The path.
        name: Vec<u8>,
    },
}

impl Address {
    /// The address of an entry.
    pub fn of(usk: &UnixSkEntry) -> Result<Address, String> {
        let name = usk.name.as_slice();
        match name.first() {
            None => return Ok(Address::None),
            Some(0) if name.len() > SUN_PATH => {
                return Err(format!(
                    "name has {} bytes, the limit is {SUN_PATH}",
                    name.len()
                ));
            }
            Some(0) => return Ok(Address::Abstract(name.to_vec())),
            Some(_) => {}
        }
        // The peer's dump counts the final zero as part of the name.
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        let (name, rest) = name.split_at(end);
        if rest.iter().any(|byte| *byte != 0) || name.len() >= SUN_PATH {
            return Err(format!(
                "name {:?} is no path of a socket",
                shown(&usk.name)
            ));
        }
        let dir = if name.starts_with(b"/") {
            &[]
        } else {
            usk.name_dir.as_deref().unwrap_or(b"")
        };
        if !name.starts_with(b"/") && !dir.starts_with(b"/") {
            let why = format!(
                "name {} is relative, and name_dir is no absolute path",
                shown(name)
            );
            return Err(why);
        }
        if dir.contains(&0) {
            return Err("name_dir has a zero byte".to_owned());
        }
        Ok(Address::Path {
            dir: dir.to_vec(),
            name: name.to_vec(),
        })
    }

    /// The whole path, empty if it is none.
    pub fn path(&self) -> Vec<u8> {
        match self {
            Address::Path { dir, name } if dir.is_empty() => name.clone(),
            Address::Path { dir, name } => [dir.as_slice(), b"/", name].concat(),
            _ => Vec::new(),
        }
    }

    /// Whether it is what a sender's address shows.
    pub fn is_named(&self, shown: &[u8]) -> bool {
        match self {
            Address::None => false,
            Address::Abstract(name) => name == shown,
            Address::Path { name, .. } => name == shown,
        }
    }

    /// What another socket sends to, if that fits into an address.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Address::None => None,
            Address::Abstract(name) => Some(name.clone()),
            Address::Path { .. } => Some(self.path()).filter(|path| path.len() < SUN_PATH),
        }
    }

    /// Binds a socket of the broker.
    pub fn plan_bind(
        &self,
        planner: &mut Planner<'_>,
        slot: SlotId,
        usk: &UnixSkEntry,
        origin: Origin,
    ) -> Option<StepId> {
        let op = match self {
            Address::None => return None,
            Address::Abstract(name) => {
                let args = vec![
                    Arg::Fd(slot),
                    sockaddr(name),
                    Arg::Int(2 + name.len() as i64),
                ];
                Op::Call(Call::new("bind", libc::SYS_bind, args))
            }
            Address::Path { dir, name } => Op::Routine(Routine::BindUnix {
                slot,
                dir: dir.clone(),
                name: name.clone(),
                perms: usk
                    .file_perms
                    .as_ref()
                    .map(|perms| (perms.mode, perms.uid, perms.gid)),
                is_deleted: usk.deleted == Some(true),
            }),
        };
        Some(planner.push(Phase::Objects, Actor::Broker, op, origin))
    }

    /// The calls by which an actor connects its descriptor to this address: a long path is
    /// reached from its directory.
    pub fn connect(&self, fd: Arg) -> Vec<Call> {
        let path = self.path();
        let (dir, name) = match self {
            Address::None => return Vec::new(),
            Address::Abstract(name) => (None, name.clone()),
            Address::Path { .. } if path.len() < SUN_PATH => (None, path),
            Address::Path { dir, name } => (Some(dir.clone()), name.clone()),
        };
        let chdir = dir.map(|dir| Call::new("chdir", libc::SYS_chdir, vec![Arg::Str(dir)]));
        let args = vec![fd, sockaddr(&name), Arg::Int(2 + name.len() as i64)];
        let connect = Call::new("connect", libc::SYS_connect, args);
        chdir.into_iter().chain([connect]).collect()
    }
}

/// struct sockaddr_un.
fn sockaddr(name: &[u8]) -> Arg {
    let family = (libc::AF_UNIX as u16).to_le_bytes();
    Arg::bytes([&family[..], name].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8], dir: Option<&[u8]>) -> UnixSkEntry {
        UnixSkEntry {
            name: name.to_vec(),
            name_dir: dir.map(<[u8]>::to_vec),
            ..Default::default()
        }
    }

    #[test]
    fn kinds_of_addresses() {
        assert_eq!(Address::of(&entry(b"", None)), Ok(Address::None));
        let abstract_name = Address::of(&entry(b"\0name\0x", None)).expect("a name");
        assert_eq!(abstract_name, Address::Abstract(b"\0name\0x".to_vec()));
        let path = Address::of(&entry(b"/run/s\0", Some(b"/"))).expect("a path");
        assert_eq!(path.path(), b"/run/s");
        let relative = Address::of(&entry(b"s\0", Some(b"/run"))).expect("a path");
        assert_eq!(relative.path(), b"/run/s");
    }

    #[test]
    fn names_that_cannot_be() {
        assert!(Address::of(&entry(b"s", None)).is_err());
        assert!(Address::of(&entry(b"s", Some(b"run"))).is_err());
        assert!(Address::of(&entry(b"/a\0b", None)).is_err());
        assert!(Address::of(&entry(&[b'/'; 108], None)).is_err());
        assert!(Address::of(&entry(&[0; 109], None)).is_err());
    }

    #[test]
    fn a_long_path_is_reached_from_its_directory() {
        let dir = [b"/".as_slice(), &[b'd'; 120]].concat();
        let address = Address::of(&entry(b"s", Some(&dir))).expect("a path");
        let calls = address.connect(Arg::Int(0));
        assert_eq!(
            calls.iter().map(|call| call.name).collect::<Vec<_>>(),
            ["chdir", "connect"]
        );
    }
}
