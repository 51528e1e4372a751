//! cgroup.img: the sets of cgroups that threads sit in, and the directories a restore may have to
//! make, with their properties.
//!
//! A set is one path in each hierarchy. The dumper's own set has the number 1 and is not listed; as
//! long as all threads are in it there is no image. v1 and v2 are alike but for the names of
//! properties; the v2 hierarchy has the empty name. `--cgroup-dump-controller` leaves all hierarchies
//! out but those with these controllers, `--cgroup-props` says which properties are carried, and
//! `--cgroup-yard` is a directory with one of each hierarchy, named by its controllers.

use anyhow::{Context, Result};
use crust_cli::cgroup_props::CgroupProps;
use crust_cli::options::Options;
use crust_process::pid::HostPid;
use crust_process::proc::ProcDir;
use crust_process::proc::cgroup::{CgroupMembership, parse_cgroup};
use crust_process::proc::mountinfo::{MountInfo, parse_mountinfo};
use crust_proto::criu::{
    CgControllerEntry, CgMemberEntry, CgSetEntry, CgroupDirEntry, CgroupEntry, CgroupPerms,
    CgroupPropEntry,
};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The number of the dumper's own set.
pub const OWN_SET: u32 = 1;

/// Properties by the controller they belong to: what a user sets, not what the kernel counts.
const PROPERTIES: [(&str, &[&str]); 9] = [
    (
        "cpu",
        &[
            "cpu.shares",
            "cpu.cfs_period_us",
            "cpu.cfs_quota_us",
            "cpu.rt_period_us",
            "cpu.rt_runtime_us",
        ],
    ),
    (
        "memory",
        &[
            "memory.limit_in_bytes",
            "memory.memsw.limit_in_bytes",
            "memory.swappiness",
            "memory.soft_limit_in_bytes",
            "memory.move_charge_at_immigrate",
            "memory.oom_control",
            "memory.use_hierarchy",
        ],
    ),
    (
        "cpuset",
        &[
            "cpuset.cpus",
            "cpuset.mems",
            "cpuset.memory_migrate",
            "cpuset.cpu_exclusive",
            "cpuset.mem_exclusive",
            "cpuset.mem_hardwall",
            "cpuset.memory_spread_page",
            "cpuset.memory_spread_slab",
            "cpuset.sched_load_balance",
            "cpuset.sched_relax_domain_level",
        ],
    ),
    ("blkio", &["blkio.weight"]),
    ("freezer", &[]),
    ("devices", &["devices.list"]),
    ("pids", &["pids.max"]),
    ("net_prio", &["net_prio.ifpriomap"]),
    ("net_cls", &["net_cls.classid"]),
];
/// What every v1 directory has; of the last two the images carry only owner and mode.
const V1_PROPERTIES: [&str; 2] = ["cgroup.clone_children", "notify_on_release"];
const V1_MEMBERS: [&str; 2] = ["cgroup.procs", "tasks"];
const V2_PROPERTIES: [&str; 19] = [
    "cgroup.subtree_control",
    "cgroup.max.descendants",
    "cgroup.max.depth",
    "cgroup.freeze",
    "cgroup.type",
    "cpu.weight",
    "cpu.max",
    "cpuset.cpus",
    "cpuset.mems",
    "cpuset.cpus.partition",
    "io.weight",
    "io.max",
    "memory.min",
    "memory.low",
    "memory.high",
    "memory.max",
    "memory.swap.max",
    "pids.max",
    "memory.oom.group",
];

/// The directory of the v2 hierarchy in a yard.
const UNIFIED: &str = "unified";

/// A path in each hierarchy, by the hierarchy's name.
type Set = Vec<(Vec<u8>, Vec<u8>)>;

/// The sets seen so far.
#[derive(Debug)]
pub struct CgSets {
    /// The first is the dumper's own; the number of a set is its place, from 1.
    sets: Vec<Set>,
    wanted: Wanted,
}

/// What of the hierarchies is dumped.
#[derive(Debug, Default)]
struct Wanted {
    /// Controllers; all if there are none.
    controllers: Vec<Vec<u8>>,
    /// The v2 hierarchy has one of them.
    unified: bool,
    props: CgroupProps,
    yard: Option<PathBuf>,
}

impl Wanted {
    fn of(options: &Options) -> Wanted {
        let controllers = options.cgroup_controllers.iter();
        let mut wanted = Wanted {
            controllers: controllers.map(|name| name.as_bytes().to_vec()).collect(),
            unified: false,
            props: options.cgroup_props.clone(),
            yard: options.cgroup_yard.clone(),
        };
        let mounts = fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mounts = parse_mountinfo(&mounts).unwrap_or_default();
        let unified = wanted.find(b"", &mounts).map(|found| found.mountpoint);
        let has = unified.and_then(|dir| fs::read(dir.join("cgroup.controllers")).ok());
        let has = has.unwrap_or_default();
        let mut has = has.split(u8::is_ascii_whitespace);
        wanted.unified = has.any(|name| wanted.controllers.iter().any(|wanted| wanted == name))
            || wanted
                .controllers
                .iter()
                .any(|name| name == UNIFIED.as_bytes());
        wanted
    }

    fn hierarchy(&self, member: &CgroupMembership) -> bool {
        let is_wanted = |name: &Vec<u8>| self.controllers.contains(name);
        self.controllers.is_empty()
            || member.controllers.iter().any(is_wanted)
            || (member.controllers.is_empty() && self.unified)
    }

    fn set_of(&self, memberships: &[CgroupMembership]) -> Set {
        let wanted = memberships.iter().filter(|member| self.hierarchy(member));
        let mut set: Set = wanted
            .map(|membership| (membership.controllers.join(&b','), membership.path.clone()))
            .collect();
        set.sort();
        set
    }

    fn find<'a>(&self, name: &'a [u8], mounts: &'a [MountInfo]) -> Option<Hierarchy<'a>> {
        let Some(yard) = &self.yard else {
            return Hierarchy::find(name, mounts);
        };
        let mountpoint = yard.join(OsStr::from_bytes(&name_in_yard(name)));
        mountpoint.is_dir().then_some(Hierarchy {
            name,
            root: b"/",
            mountpoint,
        })
    }

    /// The properties of a directory that are carried, by the names of their files.
    fn properties(&self, hierarchy: &[u8]) -> Vec<String> {
        if hierarchy.is_empty() {
            return self.properties_of_v2();
        }
        let controllers = hierarchy.split(|byte| *byte == b',');
        let own = controllers.flat_map(|controller| {
            let controller = String::from_utf8_lossy(controller);
            let row = PROPERTIES.iter().find(|(name, _)| *name == controller);
            let default = row.map_or([].as_slice(), |(_, names)| names);
            self.props.of(&controller, default)
        });
        own.chain(V1_PROPERTIES.iter().map(|name| (*name).to_owned()))
            .collect()
    }

    /// A file of v2 begins with the name of its controller.
    fn properties_of_v2(&self) -> Vec<String> {
        let controller_of = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        let mut controllers: Vec<String> = Vec::new();
        let named = V2_PROPERTIES.iter().map(|name| controller_of(name));
        let said = self.props.controllers.iter().map(|said| said.name.clone());
        for controller in named.chain(said) {
            if !controllers.contains(&controller) {
                controllers.push(controller);
            }
        }
        let of_controller = |controller: &String| {
            let default = V2_PROPERTIES.iter().copied();
            let default: Vec<&str> = default
                .filter(|name| controller_of(name) == *controller)
                .collect();
            match controller.as_str() {
                // What every cgroup has: without it none can be made.
                "cgroup" => default.into_iter().map(str::to_owned).collect(),
                _ => self.props.of(controller, &default),
            }
        };
        controllers.iter().flat_map(of_controller).collect()
    }
}

/// The controllers with commas, a named hierarchy by its bare name.
fn name_in_yard(name: &[u8]) -> Vec<u8> {
    match name.strip_prefix(b"name=").unwrap_or(name) {
        b"" => UNIFIED.as_bytes().to_vec(),
        name => name.to_vec(),
    }
}

impl CgSets {
    /// Begins with our own set.
    pub fn new(options: &Options) -> Result<CgSets> {
        let text = ProcDir::open(HostPid::current())?.read("cgroup")?;
        let own = parse_cgroup(&text).context("read our own cgroups")?;
        let wanted = Wanted::of(options);
        Ok(CgSets {
            sets: vec![wanted.set_of(&own)],
            wanted,
        })
    }

    /// The number of a set, given out now if it is new.
    pub fn add(&mut self, memberships: &[CgroupMembership]) -> u32 {
        let set = self.wanted.set_of(memberships);
        let at = self
            .sets
            .iter()
            .position(|known| *known == set)
            .unwrap_or_else(|| {
                self.sets.push(set);
                self.sets.len() - 1
            });
        OWN_SET + at as u32
    }

    /// The image; `None` while there is only our own set.
    pub fn encode(&self) -> Result<Option<CgroupEntry>> {
        let others = self.sets.get(1..).unwrap_or_default();
        if others.is_empty() {
            return Ok(None);
        }
        let text = fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        let mounts = parse_mountinfo(&text).context("read /proc/self/mountinfo")?;
        let sets = (OWN_SET + 1..)
            .zip(others)
            .map(|(id, set)| encode_set(id, set))
            .collect();
        Ok(Some(CgroupEntry {
            sets,
            controllers: encode_controllers(others, &self.wanted, &mounts),
        }))
    }
}

fn encode_set(id: u32, set: &Set) -> CgSetEntry {
    let member = |(name, path): &(Vec<u8>, Vec<u8>)| CgMemberEntry {
        name: name.clone(),
        path: path.clone(),
        cgns_prefix: None,
    };
    CgSetEntry {
        id,
        ctls: set.iter().map(member).collect(),
    }
}

/// The directories of all sets, hierarchy by hierarchy. The root of one is there anyway.
fn encode_controllers(
    sets: &[Set],
    wanted: &Wanted,
    mounts: &[MountInfo],
) -> Vec<CgControllerEntry> {
    let Some(first) = sets.first() else {
        return Vec::new();
    };
    let names = first.iter().map(|(name, _)| name);
    names
        .filter_map(|name| {
            let mut paths: Vec<&Vec<u8>> = sets
                .iter()
                .flat_map(|set| set.iter().filter(|(known, _)| known == name))
                .map(|(_, path)| path)
                .filter(|path| path.as_slice() != b"/")
                .collect();
            paths.sort();
            paths.dedup();
            let hierarchy = wanted.find(name, mounts)?;
            let properties = wanted.properties(name);
            let dirs: Vec<CgroupDirEntry> = paths
                .into_iter()
                .filter_map(|path| hierarchy.encode_dir(path, &properties))
                .collect();
            (!dirs.is_empty()).then(|| CgControllerEntry {
                cnames: name
                    .split(|byte| *byte == b',')
                    .map(<[u8]>::to_vec)
                    .collect(),
                dirs,
                // v1 moves single threads; v2 only in threaded subtrees.
                is_threaded: Some(!name.is_empty()),
            })
        })
        .collect()
}

/// A mounted hierarchy.
struct Hierarchy<'a> {
    name: &'a [u8],
    root: &'a [u8],
    mountpoint: PathBuf,
}

impl<'a> Hierarchy<'a> {
    fn find(name: &'a [u8], mounts: &'a [MountInfo]) -> Option<Hierarchy<'a>> {
        let mount = mounts.iter().find(|mount| {
            if name.is_empty() {
                return mount.fstype == b"cgroup2";
            }
            let mut options = mount.super_options.split(|byte| *byte == b',');
            let wanted = name.split(|byte| *byte == b',').next().unwrap_or_default();
            mount.fstype == b"cgroup" && options.any(|option| option == wanted)
        })?;
        let mountpoint = PathBuf::from(OsStr::from_bytes(&mount.mountpoint));
        Some(Hierarchy {
            name,
            root: &mount.root,
            mountpoint,
        })
    }

    fn encode_dir(&self, path: &[u8], properties: &[String]) -> Option<CgroupDirEntry> {
        let relative = path.strip_prefix(b"/")?;
        let root = self.root.strip_suffix(b"/").unwrap_or(self.root);
        let below = path.strip_prefix(root)?;
        let below = below.strip_prefix(b"/").unwrap_or(below);
        let dir = self.mountpoint.join(OsStr::from_bytes(below));
        Some(CgroupDirEntry {
            dir_name: relative.to_vec(),
            children: Vec::new(),
            properties: self.encode_properties(&dir, properties),
            dir_perms: encode_perms(&dir),
        })
    }

    fn encode_properties(&self, dir: &Path, names: &[String]) -> Vec<CgroupPropEntry> {
        let read = |name: &str| {
            let value = fs::read(dir.join(name)).ok()?;
            let value = value.strip_suffix(b"\n").unwrap_or(&value).to_vec();
            encode_property(dir, name, value)
        };
        let own = names.iter().filter_map(|name| read(name));
        if self.name.is_empty() {
            return own.collect();
        }
        let members = V1_MEMBERS
            .iter()
            .filter_map(|name| encode_property(dir, name, Vec::new()));
        own.chain(members).collect()
    }
}

fn encode_property(dir: &Path, name: &str, value: Vec<u8>) -> Option<CgroupPropEntry> {
    Some(CgroupPropEntry {
        name: name.as_bytes().to_vec(),
        value,
        perms: Some(encode_perms(&dir.join(name))?),
    })
}

fn encode_perms(path: &Path) -> Option<CgroupPerms> {
    let metadata = fs::metadata(path).ok()?;
    Some(CgroupPerms {
        mode: metadata.mode(),
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memberships(text: &str) -> Vec<CgroupMembership> {
        parse_cgroup(text.as_bytes()).expect("parses")
    }

    #[test]
    fn a_set_has_one_number_and_its_hierarchies_by_name() {
        let own = memberships("2:cpu,cpuacct:/\n1:name=systemd:/\n0::/user\n");
        let other = memberships("0::/user\n1:name=systemd:/a\n2:cpu,cpuacct:/\n");
        let mut sets = CgSets {
            sets: vec![Wanted::default().set_of(&own)],
            wanted: Wanted::default(),
        };
        assert!(sets.encode().expect("encodes").is_none());
        assert_eq!(
            (sets.add(&own), sets.add(&other), sets.add(&other)),
            (1, 2, 2)
        );
        let names: Vec<_> = encode_set(2, &sets.sets[1])
            .ctls
            .into_iter()
            .map(|ctl| ctl.name)
            .collect();
        assert_eq!(names, [&b""[..], b"cpu,cpuacct", b"name=systemd"]);
    }

    #[test]
    fn other_hierarchies_than_the_wanted_are_left_out() {
        let all = memberships("2:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/user\n");
        let wanted = Wanted {
            controllers: vec![b"cpuacct".to_vec()],
            ..Wanted::default()
        };
        assert_eq!(
            wanted.set_of(&all),
            [(b"cpu,cpuacct".to_vec(), b"/a".to_vec())]
        );
    }

    #[test]
    fn properties_by_controller() {
        let controllers =
            "cpu: - strategy: replace - properties: [cpu.idle] x: - properties: [x.y]";
        let wanted = Wanted {
            props: CgroupProps {
                ignore_default: false,
                controllers: crust_cli::cgroup_props::parse(controllers).expect("parses"),
            },
            ..Wanted::default()
        };
        let unified = wanted.properties(b"");
        let has = |name: &str| unified.iter().any(|found| found == name);
        assert!(has("cpu.idle") && has("x.y") && has("pids.max") && has("cgroup.type"));
        assert!(!has("cpu.max"));
        let v1 = wanted.properties(b"cpu,pids");
        assert_eq!(v1[..2], ["cpu.idle", "pids.max"]);
    }

    #[test]
    fn names_in_a_yard() {
        assert_eq!(name_in_yard(b""), b"unified");
        assert_eq!(name_in_yard(b"cpu,cpuacct"), b"cpu,cpuacct");
        assert_eq!(name_in_yard(b"name=systemd"), b"systemd");
    }
}
