//! Which kernel objects tasks share: address space, descriptor table, fs, signal handlers, and
//! the namespaces.
//!
//! The images number each kind on its own; the dumper's own objects come first (the inventory's
//! root_ids), so a namespace with the dumper's number is one that no image describes.

use crate::task::facts::namespace_link;
use anyhow::Result;
use crust_process::kcmp::{TaskObject, TaskSorter};
use crust_process::pid::HostPid;
use crust_process::proc::ProcDir;
use crust_proto::criu::TaskKobjIdsEntry;
use std::collections::HashMap;

/// The number of the dumper's own object of each shared kind.
const OWN: u32 = 1;

/// The namespaces by their file in /proc/PID/ns, with the number the dumper's own has: all kinds
/// are counted together, in the peer's order.
const NAMESPACES: [(&str, u32); 8] = [
    ("pid", 1),
    ("net", 2),
    ("ipc", 3),
    ("uts", 4),
    ("time", 5),
    ("mnt", 6),
    ("user", 7),
    ("cgroup", 8),
];
/// The kinds that a tree may have of its own.
const CARRIED: [&str; 3] = ["ipc", "uts", "time"];
/// What a task's children will be in, which differs after unshare(2) of these kinds.
const FOR_CHILDREN: [(&str, &str); 2] =
    [("pid_for_children", "pid"), ("time_for_children", "time")];

/// The numbers of namespaces, by the text of their links (`uts:[4026531838]`).
#[derive(Debug, Default)]
pub struct Namespaces {
    known: HashMap<Vec<u8>, u32>,
    next: u32,
}

impl Namespaces {
    /// The number of one that is the dumper's or a task's.
    pub fn number(&self, link: &[u8]) -> Option<u32> {
        self.known.get(link).copied()
    }

    /// A number for one in which no task is.
    pub fn add(&mut self, link: &[u8]) -> u32 {
        let number = self.next;
        self.next += 1;
        self.known.insert(link.to_vec(), number);
        number
    }
}

/// The numbers given out.
#[derive(Debug)]
pub struct KernelIds {
    vm: TaskSorter,
    files: TaskSorter,
    fs: TaskSorter,
    sighand: TaskSorter,
    /// Namespaces of the tree's own, in the order in which they were met: kind and text of the link.
    met: Vec<(&'static str, Vec<u8>)>,
    /// Our own namespaces: the kind and the text of the link; kinds the kernel has only.
    own: Vec<(&'static str, Vec<u8>)>,
}

impl KernelIds {
    /// Looks at the dumper's own.
    pub fn new() -> Result<KernelIds> {
        let dir = ProcDir::open(HostPid::current())?;
        let mut own = Vec::new();
        for (kind, _) in NAMESPACES {
            // A kernel may be built without one.
            own.extend(namespace_link(&dir, kind)?.map(|link| (kind, link)));
        }
        Ok(KernelIds {
            own,
            vm: TaskSorter::new(TaskObject::Vm),
            files: TaskSorter::new(TaskObject::Files),
            fs: TaskSorter::new(TaskObject::Fs),
            sighand: TaskSorter::new(TaskObject::Sighand),
            met: Vec::new(),
        })
    }

    /// The numbers of the dumper's own objects.
    pub fn encode_own(&self) -> TaskKobjIdsEntry {
        self.encode(OWN, OWN, OWN, OWN)
    }

    /// The numbers of a task's objects. `foreign` are the namespaces that differ from the
    /// dumper's; all get the dumper's numbers but one that is carried, and what is left in the
    /// list is for a refusal.
    pub fn collect(
        &mut self,
        dir: &ProcDir,
        mut foreign: Vec<&'static str>,
    ) -> Result<(TaskKobjIdsEntry, Vec<&'static str>)> {
        let pid = dir.pid();
        let number =
            |sorter: &mut TaskSorter| -> Result<u32> { Ok(OWN + 1 + sorter.group(pid)?.0 as u32) };
        let (vm, files) = (number(&mut self.vm)?, number(&mut self.files)?);
        let (fs, sighand) = (number(&mut self.fs)?, number(&mut self.sighand)?);
        let mut ids = self.encode(vm, files, fs, sighand);
        for kind in CARRIED.into_iter().filter(|kind| foreign.contains(kind)) {
            let number = Some(self.number_of(kind, dir.readlink(&format!("ns/{kind}"))?));
            match kind {
                "ipc" => ids.ipc_ns_id = number,
                "time" => ids.time_ns_id = number,
                _ => ids.uts_ns_id = number,
            }
        }
        // Children of a task in a namespace of its own are mostly to be in the same.
        const LATER: &str = "time_for_children";
        if foreign.contains(&LATER)
            && dir.readlink("ns/time")? == dir.readlink("ns/time_for_children")?
        {
            foreign.retain(|kind| *kind != LATER);
        }
        foreign.retain(|kind| !CARRIED.contains(kind));
        Ok((ids, foreign))
    }

    /// The number of a namespace of the tree's own: they are counted behind the dumper's.
    fn number_of(&mut self, kind: &'static str, link: Vec<u8>) -> u32 {
        let known = self.met.iter().position(|(_, met)| *met == link);
        let at = known.unwrap_or_else(|| {
            self.met.push((kind, link));
            self.met.len() - 1
        });
        (NAMESPACES.len() + 1 + at) as u32
    }

    /// Every namespace met so far, for descriptors of them.
    pub fn namespaces(&self) -> Namespaces {
        let number_of_own = |kind| NAMESPACES.iter().find(|(name, _)| *name == kind);
        let own = self.own.iter().filter_map(|(kind, link)| {
            let number = number_of_own(*kind)?.1;
            Some((link.clone(), number))
        });
        let met = self.met.iter().map(|(_, link)| link.clone());
        let first = NAMESPACES.len() as u32 + 1;
        Namespaces {
            next: first + self.met.len() as u32,
            known: own.chain(met.zip(first..)).collect(),
        }
    }

    /// The namespaces of a task that are not the dumper's, by their names in /proc/PID/ns.
    pub fn foreign_namespaces(&self, dir: &ProcDir) -> Result<Vec<&'static str>> {
        let mut foreign = Vec::new();
        for (kind, own) in &self.own {
            if namespace_link(dir, kind)?.as_ref() != Some(own) {
                foreign.push(*kind);
            }
        }
        for (name, kind) in FOR_CHILDREN {
            let own = self.own.iter().find(|(own, _)| *own == kind);
            // A pid namespace without its first process has no link, and is not ours.
            if own.is_some() && namespace_link(dir, name)?.as_ref() != own.map(|(_, link)| link) {
                foreign.push(name);
            }
        }
        Ok(foreign)
    }

    fn encode(&self, vm_id: u32, files_id: u32, fs_id: u32, sighand_id: u32) -> TaskKobjIdsEntry {
        let id = |kind: &str| {
            self.own.iter().find(|(name, _)| *name == kind)?;
            NAMESPACES
                .iter()
                .find(|(name, _)| *name == kind)
                .map(|(_, id)| *id)
        };
        TaskKobjIdsEntry {
            vm_id,
            files_id,
            fs_id,
            sighand_id,
            pid_ns_id: id("pid"),
            net_ns_id: id("net"),
            ipc_ns_id: id("ipc"),
            uts_ns_id: id("uts"),
            mnt_ns_id: id("mnt"),
            user_ns_id: id("user"),
            cgroup_ns_id: id("cgroup"),
            time_ns_id: id("time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers in every ids image of the corpus.
    #[test]
    fn the_dumpers_own_numbers_are_the_peers() {
        let ids = KernelIds::new().expect("we have namespaces").encode_own();
        assert_eq!(
            (ids.vm_id, ids.files_id, ids.fs_id, ids.sighand_id),
            (1, 1, 1, 1)
        );
        let namespaces = [
            ids.pid_ns_id,
            ids.net_ns_id,
            ids.ipc_ns_id,
            ids.uts_ns_id,
            ids.mnt_ns_id,
        ];
        assert_eq!(namespaces, [Some(1), Some(2), Some(3), Some(4), Some(6)]);
        assert_eq!((ids.user_ns_id, ids.cgroup_ns_id), (Some(7), Some(8)));
    }
}
