//! The cgroups of tasks, v1 and v2 alike: a set of the images is one path in each hierarchy, and
//! `thread_core.cg_set` says in which a thread sits.
//!
//! The root is put into its set before anybody is forked from it, so that all memory is charged
//! there; tasks of another set follow when they exist. A path that is crust-restore's own is
//! inherited. `--cgroup-root` puts the cgroup of the root task, and those below it, elsewhere.
//! Directories that the images know are made, with their properties, as
//! `--manage-cgroups` says; with `ignore` nothing is done at all. The dumper's own set is not in
//! the images: it means ours. A thread in another set than its task is moved alone, when it exists: v1
//! does that everywhere, v2 below a threaded domain, whose cgroups say so by cgroup.type.

use crate::host::CgroupMount;
use crate::plan::routine::{CgroupDir, Routine, SetProperties};
use crate::plan::step::{Actor, Arg, Call, Op, Origin, Phase, Ret};
use crate::plan::{Planner, Refusal};
use crate::tree::Task;
use crust_cli::options::{CgroupMode, CgroupRoot};
use crust_image::ids::VirtPid;
use crust_proto::criu::{CgControllerEntry, CgSetEntry, CgroupDirEntry, CgroupEntry};
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Files of a cgroup that are no properties: who is in it, and what only its sibling files set.
const NO_PROPERTIES: [&[u8]; 4] = [
    b"cgroup.procs",
    b"tasks",
    b"cgroup.threads",
    b"devices.list",
];

/// What a cgroup of v2 is: `domain`, `threaded`, and in between.
const TYPE: &[u8] = b"cgroup.type";

/// The directory of a task in each hierarchy where it is not ours.
type Places = BTreeMap<Vec<u8>, Vec<u8>>;

/// Plans directories and moves.
pub fn plan(planner: &mut Planner<'_>) {
    let checkpoint = planner.checkpoint;
    if planner.options.manage_cgroups == CgroupMode::Ignore {
        return;
    }
    let tasks: Vec<Task> = planner.tree.alive().cloned().collect();
    let mut places = Vec::new();
    let mut threads = Vec::new();
    for task in &tasks {
        let of_task = match places_of(planner, task.pid) {
            Ok(found) => found,
            Err(refusal) => return planner.refuse(*refusal),
        };
        for &tid in &task.threads {
            match places_of(planner, tid) {
                Ok(found) if found != of_task => threads.push((tid, found, of_task.clone())),
                Ok(_) => {}
                Err(refusal) => return planner.refuse(*refusal),
            }
        }
        places.push((task.pid, of_task));
    }
    let Some((root, of_root)) = places.first().cloned() else {
        return;
    };
    if let Some(entry) = checkpoint
        .cgroup
        .as_ref()
        .filter(|_| places.iter().any(|(_, at)| !at.is_empty()) || !threads.is_empty())
    {
        plan_directories(planner, entry);
    }
    plan_moves(planner, root, &of_root, Phase::Root, Member::Task);
    for (pid, at) in places.iter().skip(1).filter(|(_, at)| *at != of_root) {
        let moves = moves_from(planner, &of_root, at);
        plan_moves(planner, *pid, &moves, Phase::Objects, Member::Task);
    }
    for (tid, at, of_task) in threads {
        let moves = moves_from(planner, &of_task, &at);
        // The phase behind that in which threads are made.
        plan_moves(planner, tid, &moves, Phase::Signals, Member::Thread);
    }
}

/// Who is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    /// A task with all its threads.
    Task,
    /// One thread.
    Thread,
}

/// What leads from the places of one to those of another. Where that one is as crust-restore, it
/// leaves what it inherited.
fn moves_from(planner: &Planner<'_>, from: &Places, to: &Places) -> Places {
    let mut moves: Places = to.clone();
    moves.retain(|mount, path| from.get(mount) != Some(path));
    for mount in from.keys().filter(|mount| !to.contains_key(*mount)) {
        let mut hosts = planner.host.cgroups.iter();
        let own = hosts.find(|host| host.mountpoint == **mount);
        moves.extend(own.map(|host| (mount.clone(), host.own.clone())));
    }
    moves
}

/// Where a thread is to be, by the mount point of each hierarchy.
fn places_of(planner: &Planner<'_>, tid: VirtPid) -> Result<Places, Box<Refusal>> {
    let checkpoint = planner.checkpoint;
    let core = checkpoint.core(tid);
    let set = core.and_then(|core| core.thread_core.as_ref()?.cg_set);
    let own = checkpoint.inventory.root_cg_set;
    let image = format!("core-{tid}.img");
    let origin = Origin::new(image, Some(0), format!("cgroups of {tid}"));
    let refuse = |why: String| {
        Box::new(Refusal::new(origin.clone(), why).hint("try --manage-cgroups=ignore"))
    };
    let Some(set) = set.filter(|set| *set != 0 && Some(*set) != own) else {
        return Ok(Places::new());
    };
    let sets = checkpoint
        .cgroup
        .as_ref()
        .map_or(&[][..], |entry| &entry.sets);
    let set = sets
        .iter()
        .find(|entry| entry.id == set)
        .ok_or_else(|| refuse(format!("cg_set {set} is not in cgroup.img")))?;
    let mut set = set.clone();
    for member in &mut set.ctls {
        if let Some(moved) = Rerooting::of(planner, &member.name) {
            member.path = moved.path_of(&member.path).unwrap_or(member.path.clone());
        }
    }
    places(&set, &planner.host.cgroups).map_err(refuse)
}

/// What `--cgroup-root` asks for one hierarchy.
struct Rerooting {
    /// The path of the root task in the images, without a slash at its end.
    old: Vec<u8>,
    /// The path it is to have.
    new: Vec<u8>,
}

impl Rerooting {
    fn of(planner: &Planner<'_>, name: &[u8]) -> Option<Rerooting> {
        let is_one = |wanted: &[u8]| name.split(|byte| *byte == b',').any(|own| own == wanted);
        let roots = planner.options.cgroup_roots.iter().rev();
        let named = |root: &&CgroupRoot| {
            let wanted = root.controller.as_deref();
            wanted.is_some_and(|wanted| name == wanted || is_one(wanted))
        };
        let root = roots
            .clone()
            .find(named)
            .or_else(|| roots.clone().find(|root| root.controller.is_none()))?;
        let checkpoint = planner.checkpoint;
        let task = checkpoint.core(planner.tree.root?)?;
        let set = task.thread_core.as_ref()?.cg_set?;
        let sets = &checkpoint.cgroup.as_ref()?.sets;
        let set = sets.iter().find(|entry| entry.id == set)?;
        let member = set.ctls.iter().find(|member| member.name == name)?;
        let old = member.path.strip_suffix(b"/").unwrap_or(&member.path);
        Some(Rerooting {
            old: old.to_vec(),
            new: root.path.clone(),
        })
    }

    /// Where a path goes; `None` if it is not below that of the root task.
    fn path_of(&self, path: &[u8]) -> Option<Vec<u8>> {
        let below = path.strip_prefix(self.old.as_slice())?;
        if !below.is_empty() && !below.starts_with(b"/") {
            return None;
        }
        let mut moved = self.new.clone();
        moved.extend_from_slice(below);
        if moved.is_empty() {
            moved.push(b'/');
        }
        Some(moved)
    }
}

fn places(set: &CgSetEntry, mounts: &[CgroupMount]) -> Result<Places, String> {
    let mut places = Places::new();
    for member in &set.ctls {
        let (name, path) = (shown(&member.name), shown(&member.path));
        let climbs = member
            .path
            .split(|byte| *byte == b'/')
            .any(|part| part == b"..");
        if !member.path.starts_with(b"/") || climbs || member.path.contains(&0) {
            return Err(format!("set {}: {path:?} is no path of a cgroup", set.id));
        }
        if member.cgns_prefix.unwrap_or(0) != 0 {
            return Err(format!(
                "set {}: a cgroup namespace in {path:?} cannot be restored yet",
                set.id
            ));
        }
        match mounts.iter().find(|mount| mount.serves(&member.name)) {
            Some(mount) if mount.own == member.path => {}
            Some(mount) => {
                places.insert(mount.mountpoint.clone(), member.path.clone());
            }
            // The root of a hierarchy that this host does not have is where everybody is.
            None if member.path == b"/" => {}
            None => {
                return Err(format!(
                    "set {}: the hierarchy {name:?} of {path:?} is not mounted here",
                    set.id
                ));
            }
        }
    }
    Ok(places)
}

fn shown(bytes: &[u8]) -> String {
    OsStr::from_bytes(bytes).display().to_string()
}

fn plan_directories(planner: &mut Planner<'_>, entry: &CgroupEntry) {
    let (must_exist, must_not, set) = match planner.options.manage_cgroups {
        CgroupMode::Ignore => return,
        CgroupMode::None => (true, false, SetProperties::Never),
        CgroupMode::Props => (true, false, SetProperties::Always),
        CgroupMode::Soft => (false, false, SetProperties::IfMade),
        CgroupMode::Full => (false, false, SetProperties::Always),
        CgroupMode::Strict => (false, true, SetProperties::Always),
    };
    for controller in &entry.controllers {
        let Some(mount) = mount_of(planner, controller) else {
            continue;
        };
        let mut dirs = Vec::new();
        for dir in &controller.dirs {
            flatten(&mount, dir, 0, &mut dirs);
        }
        // Ours, in which the tree is by inheritance, is neither made nor changed.
        let own = own_directory(planner, &mount);
        dirs.retain(|dir| dir.path != own);
        let moved = controller.cnames.join(&b',');
        if let Some(moved) = Rerooting::of(planner, &moved) {
            // Directories above the root task's are of no use in another place.
            dirs.retain_mut(|dir| {
                let path = dir.path.strip_prefix(mount.as_slice());
                let Some(path) = path.and_then(|path| moved.path_of(path)) else {
                    return false;
                };
                dir.path = [mount.as_slice(), path.as_slice()].concat();
                path.as_slice() != b"/"
            });
        }
        let mut made = BTreeSet::new();
        for dir in dirs {
            for parent in parents(&mount, &dir.path) {
                if !must_exist && made.insert(parent.clone()) {
                    let dir = CgroupDir {
                        path: parent,
                        ..CgroupDir::default()
                    };
                    push(planner, dir);
                }
            }
            made.insert(dir.path.clone());
            push(
                planner,
                CgroupDir {
                    must_exist,
                    must_not_exist: must_not,
                    set,
                    ..dir
                },
            );
        }
    }
    plan_roots(planner, must_exist);
}

/// The directory of crust-restore itself in a hierarchy.
fn own_directory(planner: &Planner<'_>, mount: &[u8]) -> Vec<u8> {
    let mut hosts = planner.host.cgroups.iter();
    let own = hosts.find(|host| host.mountpoint == mount);
    let own = own.map_or(&[][..], |host| &host.own);
    [mount, own].concat()
}

/// The places of `--cgroup-root`, of which the images need not know a directory.
fn plan_roots(planner: &mut Planner<'_>, must_exist: bool) {
    let checkpoint = planner.checkpoint;
    let root = planner.tree.root.and_then(|root| checkpoint.core(root));
    let set = root.and_then(|core| core.thread_core.as_ref()?.cg_set);
    let sets = checkpoint.cgroup.iter().flat_map(|entry| &entry.sets);
    let members = sets.filter(|entry| Some(entry.id) == set);
    for member in members.flat_map(|entry| &entry.ctls) {
        let moved = Rerooting::of(planner, &member.name);
        let mut mounts = planner.host.cgroups.iter();
        let mount = mounts.find(|mount| mount.serves(&member.name));
        let (Some(moved), Some(mount)) = (moved, mount) else {
            continue;
        };
        let mountpoint = mount.mountpoint.clone();
        let path = [mountpoint.as_slice(), &moved.new].concat();
        let above = if must_exist {
            Vec::new()
        } else {
            parents(&mountpoint, &path)
        };
        for path in above.into_iter().chain([path]) {
            let dir = CgroupDir {
                path,
                must_exist,
                ..CgroupDir::default()
            };
            push(planner, dir);
        }
    }
}

fn push(planner: &mut Planner<'_>, dir: CgroupDir) {
    let origin = Origin::new(
        "cgroup.img",
        Some(0),
        format!("cgroup {}", shown(&dir.path)),
    );
    let routine = Op::Routine(Routine::MakeCgroup(Box::new(dir)));
    planner.push(Phase::Open, Actor::Broker, routine, origin);
}

fn mount_of(planner: &Planner<'_>, controller: &CgControllerEntry) -> Option<Vec<u8>> {
    let serves = |mount: &&CgroupMount| controller.cnames.iter().any(|name| mount.serves(name));
    let mount = planner.host.cgroups.iter().find(serves)?;
    Some(mount.mountpoint.clone())
}

/// Deeper nesting than any limit of the kernel is a broken image.
const MAX_DEPTH: usize = 64;

fn flatten(parent: &[u8], dir: &CgroupDirEntry, depth: usize, all: &mut Vec<CgroupDir>) {
    let name = dir.dir_name.strip_prefix(b"/").unwrap_or(&dir.dir_name);
    let climbs = name.split(|byte| *byte == b'/').any(|part| part == b"..");
    if depth > MAX_DEPTH || climbs || name.contains(&0) {
        return;
    }
    let mut path = parent.to_vec();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
        let property = |entry: &crust_proto::criu::CgroupPropEntry| {
            let plain =
                !entry.name.contains(&b'/') && !NO_PROPERTIES.contains(&entry.name.as_slice());
            // The other types are what a cgroup becomes by those below it.
            let can_be_set = entry.name != TYPE || entry.value == b"threaded";
            (plain && can_be_set).then(|| (entry.name.clone(), entry.value.clone()))
        };
        let mut properties: Vec<_> = dir.properties.iter().filter_map(property).collect();
        // A threaded cgroup lets other controllers in than one that is not yet.
        properties.sort_by_key(|(name, _)| name != TYPE);
        all.push(CgroupDir {
            path: path.clone(),
            perms: dir
                .dir_perms
                .map(|perms| (perms.mode, perms.uid, perms.gid)),
            properties,
            ..CgroupDir::default()
        });
    }
    for child in &dir.children {
        flatten(&path, child, depth + 1, all);
    }
}

/// The directories between a mount point and one below it.
fn parents(mount: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    let slashes = path
        .iter()
        .enumerate()
        .filter(|(at, byte)| **byte == b'/' && *at > mount.len());
    slashes
        .filter_map(|(at, _)| path.get(..at))
        .map(<[u8]>::to_vec)
        .collect()
}

fn plan_moves(
    planner: &mut Planner<'_>,
    pid: VirtPid,
    places: &Places,
    phase: Phase,
    member: Member,
) {
    for (mount, path) in places {
        let mut hosts = planner.host.cgroups.iter();
        let is_v2 = hosts.any(|host| host.mountpoint == *mount && host.names == [b""]);
        let mut file = mount.clone();
        file.extend_from_slice(path);
        if !file.ends_with(b"/") {
            file.push(b'/');
        }
        let (who, name) = match member {
            Member::Task => ("task", "cgroup.procs"),
            Member::Thread if is_v2 => ("thread", "cgroup.threads"),
            Member::Thread => ("thread", "tasks"),
        };
        file.extend_from_slice(name.as_bytes());
        let what = format!("{who} {pid} in {}", shown(&file));
        let origin = Origin::new(format!("core-{pid}.img"), Some(0), what);
        let slot = planner.slot();
        let args = vec![
            Arg::named("AT_FDCWD", libc::AT_FDCWD),
            Arg::Str(file),
            Arg::named("O_WRONLY|O_CLOEXEC", libc::O_WRONLY | libc::O_CLOEXEC),
        ];
        let open = Call::new("openat", libc::SYS_openat, args).answers(Ret::Fd(slot));
        planner.call(phase, Actor::Broker, open, origin.clone());
        let write = Routine::WriteAll {
            slot,
            bytes: pid.to_string().into_bytes(),
        };
        let write = planner.push(phase, Actor::Broker, Op::Routine(write), origin.clone());
        if let Some(&fork) = planner
            .tree
            .forks
            .get(&pid)
            .filter(|_| phase == Phase::Root)
        {
            planner.in_turn(fork, write);
        }
        planner.push(
            phase,
            Actor::Broker,
            Op::Routine(Routine::Close { slot }),
            origin,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_proto::criu::CgMemberEntry;

    fn member(name: &str, path: &str) -> CgMemberEntry {
        CgMemberEntry {
            name: name.into(),
            path: path.into(),
            cgns_prefix: None,
        }
    }

    fn mounts() -> Vec<CgroupMount> {
        let mount = |names: &[&str], mountpoint: &str, own: &str| CgroupMount {
            names: names.iter().map(|name| name.as_bytes().to_vec()).collect(),
            mountpoint: mountpoint.into(),
            own: own.into(),
        };
        vec![
            mount(&[""], "/cg", "/"),
            mount(&["cpu", "cpuacct"], "/cpu", "/ours"),
        ]
    }

    fn set(ctls: Vec<CgMemberEntry>) -> CgSetEntry {
        CgSetEntry { id: 2, ctls }
    }

    #[test]
    fn only_what_is_not_inherited_is_a_move() {
        let set = set(vec![
            member("", "/app"),
            member("cpu,cpuacct", "/ours"),
            member("rdma", "/"),
        ]);
        let found = places(&set, &mounts()).expect("places");
        assert_eq!(found, Places::from([(b"/cg".to_vec(), b"/app".to_vec())]));
    }

    #[test]
    fn bad_paths_and_missing_hierarchies_are_refused() {
        for bad in [
            member("", "app"),
            member("", "/a/../.."),
            member("rdma", "/app"),
        ] {
            assert!(places(&set(vec![bad]), &mounts()).is_err());
        }
    }

    #[test]
    fn a_new_root_takes_what_is_below_the_old_one() {
        let moved = Rerooting {
            old: b"/a/b".to_vec(),
            new: b"/x".to_vec(),
        };
        assert_eq!(moved.path_of(b"/a/b"), Some(b"/x".to_vec()));
        assert_eq!(moved.path_of(b"/a/b/c"), Some(b"/x/c".to_vec()));
        assert_eq!(moved.path_of(b"/a/bc"), None);
        assert_eq!(moved.path_of(b"/a"), None);
    }

    #[test]
    fn directories_with_their_parents() {
        let dir = CgroupDirEntry {
            dir_name: b"a/b".to_vec(),
            children: vec![CgroupDirEntry {
                dir_name: b"c".to_vec(),
                ..CgroupDirEntry::default()
            }],
            ..CgroupDirEntry::default()
        };
        let mut all = Vec::new();
        flatten(b"/cg", &dir, 0, &mut all);
        let paths: Vec<_> = all.iter().map(|dir| shown(&dir.path)).collect();
        assert_eq!(paths, ["/cg/a/b", "/cg/a/b/c"]);
        assert_eq!(
            parents(b"/cg", b"/cg/a/b/c"),
            [b"/cg/a".to_vec(), b"/cg/a/b".to_vec()]
        );
    }
}
