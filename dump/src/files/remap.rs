//! Names that lead nowhere after a restore: the remap table, and the dead-process remap.
//!
//! A file below /proc/P of a process that is gone cannot be opened by its path again. The image
//! says {orig_id: the file, PROCFS, remap_id: P}: the restorer makes a process P first, opens
//! the path, and lets P die. P counts from the procfs mount: procfs may be mounted anywhere, or
//! be a bind of /proc/P itself, so the path inside procfs comes from mountinfo's root and mount
//! point, and a name below a bind is stored as one below a whole procfs of the same instance.
//!
//! Whether P is dead is seen from inodes. An open file keeps its dentry, and the dentry stays
//! hashed as long as its process lives, so a lookup of the name gives the very inode: another
//! inode or none means that the process (or thread) the file belongs to is gone. procfs marks
//! only the directory /proc/P itself with " (deleted)", files below it bear no mark (6.18).
//!
//! What the peer's image has no field for is said in its terms; it reads all of these:
//! - P gone: one entry {P} for the whole dump, as the peer writes.
//! - P gone, but the number in use again (a process, a thread, a zombie, a stranger): one entry
//!   {P} for every file, because some other file may belong to the new P. If P is then a task of
//!   the restored tree, the restorer must open those files before that task exists.
//! - thread T gone, its process P lives in the tree: {T}, once. The restorer sees from the name
//!   /proc/P/task/T that P must have a thread T for a moment. (The peer makes a process T and
//!   fails to open the path, as it does without an entry.)
//! - thread T gone and its number in use by a new thread of P: {T} for every file.

use super::{FileId, FileTable, OpenFile, Problem, RoomResult, mounts};
use crate::context::Context;
use anyhow::Context as _;
use crust_process::proc::mountinfo::MountInfo;
use crust_process::proc::text::split_deleted;
use crust_proto::criu::{RemapFilePathEntry, RemapType};
use std::collections::HashSet;

/// All remaps of a dump, of every type.
#[derive(Debug, Default)]
pub struct Remaps {
    entries: Vec<RemapFilePathEntry>,
    /// The dead processes and threads that have their one entry.
    dead: HashSet<u32>,
}

impl Remaps {
    /// Adds a remap of a file.
    pub fn add(&mut self, orig: FileId, remap_id: u32, remap_type: RemapType) {
        self.entries.push(RemapFilePathEntry {
            orig_id: orig.0,
            remap_id,
            remap_type: Some(remap_type as i32),
        });
    }

    /// Adds a dead-process remap: once for a number that nobody has, for each file otherwise.
    fn add_dead(&mut self, orig: FileId, dead: Dead) {
        let first = self.dead.insert(dead.number);
        if first || dead.in_use {
            self.add(orig, dead.number, RemapType::Procfs);
        }
    }

    /// The entries of remap-fpath.img.
    pub fn entries(&self) -> &[RemapFilePathEntry] {
        &self.entries
    }
}

/// A dead process or thread, by its number in the mounted procfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dead {
    number: u32,
    /// Somebody else has the number now.
    in_use: bool,
}

/// A path inside procfs that belongs to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProcPath<'p> {
    pid: u32,
    /// The thread of a path below task/T.
    tid: Option<u32>,
    /// What follows the process's, or the thread's, directory.
    rest: &'p [u8],
}

/// The stored name of a file on procfs, and its remap if its process is dead.
pub fn settle(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<Vec<u8>> {
    let namespace = table.mounts.of(file.task)?;
    let mnt_id = mount_id(file)?;
    let Some(mount) = namespace.mount(mnt_id) else {
        return Err(Problem::refused(format!(
            "its mount {mnt_id} is not among the mounts of the task"
        )));
    };
    let inside = path_inside(&file.link, mount).ok_or_else(|| {
        let mountpoint = String::from_utf8_lossy(&mount.mountpoint).into_owned();
        Problem::refused(format!(
            "its path does not lie below its mount point {mountpoint}"
        ))
    })?;
    let whole = namespace.whole(mount).ok_or_else(|| {
        Problem::refused("it is on a bind of a part of procfs, and procfs itself is not mounted")
    })?;
    let name = join(&whole.mountpoint, &inside);
    let inode = file.stat.map(|stat| (stat.dev, stat.ino));
    if inode.is_some() && namespace.inode_at(&name)? == inode {
        return Ok(name);
    }
    let Some(path) = parse_proc_path(&inside) else {
        return Err(Problem::refused(
            "its path leads to another file or nowhere",
        ));
    };
    let exists = |number_path: String| {
        let found = namespace.inode_at(&join(&whole.mountpoint, number_path.as_bytes()))?;
        anyhow::Ok(found.is_some())
    };
    let pid_exists = exists(format!("/{}", path.pid))?;
    let tid_exists = match path.tid {
        Some(tid) if pid_exists => exists(format!("/{}/task/{tid}", path.pid))?,
        _ => false,
    };
    let dead = who_is_dead(&path, pid_exists, tid_exists, in_tree(ctx, path.pid))?;
    table.remaps.add_dead(id, dead);
    Ok(name)
}

/// Who must be made for a moment so that the path can be opened again, when the inode behind it
/// is not the file's.
fn who_is_dead(
    path: &ProcPath,
    pid_exists: bool,
    tid_exists: bool,
    pid_in_tree: bool,
) -> RoomResult<Dead> {
    if !pid_exists {
        return Ok(Dead {
            number: path.pid,
            in_use: false,
        });
    }
    match path.tid {
        // A process outside the tree is as good as dead: it will not be there.
        Some(tid) if tid != path.pid && pid_in_tree => Ok(Dead {
            number: tid,
            in_use: tid_exists,
        }),
        None if is_of_a_descriptor(path.rest) && pid_in_tree => Err(Problem::refused(
            "the descriptor or mapping it tells of is gone, but its process lives",
        )),
        _ => Ok(Dead {
            number: path.pid,
            in_use: true,
        }),
    }
}

/// Entries that vanish while their process lives: those of its descriptors and mappings.
fn is_of_a_descriptor(rest: &[u8]) -> bool {
    [&b"fd/"[..], b"fdinfo/", b"map_files/"]
        .iter()
        .any(|directory| rest.starts_with(directory))
}

fn in_tree(ctx: &Context, number: u32) -> bool {
    ctx.tasks
        .iter()
        .any(|task| task.virt == number || task.tids.iter().any(|tid| tid.get() as u32 == number))
}

fn mount_id(file: &OpenFile) -> RoomResult<u64> {
    match file.stat.and_then(|stat| stat.mnt_id) {
        Some(mnt_id) => Ok(mnt_id),
        None => {
            let mnt_id = file.fdinfo()?.mnt_id;
            Ok(mnt_id.context("fdinfo tells no mount id")? as u64)
        }
    }
}

/// The path from the root of procfs, without the deletion mark.
fn path_inside(link: &[u8], mount: &MountInfo) -> Option<Vec<u8>> {
    let (link, _) = split_deleted(link);
    // mountinfo has its own mark, `//deleted` (fs/proc_namespace.c, show_mountinfo).
    let root = mount.root.strip_suffix(b"//deleted").unwrap_or(&mount.root);
    Some(join(
        root,
        &join(b"/", mounts::below(link, &mount.mountpoint)?),
    ))
}

/// Joins a directory and a path below it that may begin with a slash.
fn join(directory: &[u8], path: &[u8]) -> Vec<u8> {
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    let path = path.strip_prefix(b"/").unwrap_or(path);
    match path {
        b"" if directory.is_empty() => b"/".to_vec(),
        b"" => directory.to_vec(),
        _ => [directory, b"/", path].concat(),
    }
}

/// Takes apart a path inside procfs; `None` when it belongs to no process (`/sys/kernel/...`).
fn parse_proc_path(inside: &[u8]) -> Option<ProcPath<'_>> {
    let mut parts = inside.strip_prefix(b"/")?.splitn(2, |&byte| byte == b'/');
    let pid = parse_number(parts.next()?)?;
    let rest = parts.next().unwrap_or_default();
    let whole = ProcPath {
        pid,
        tid: None,
        rest,
    };
    let Some(below_task) = rest.strip_prefix(b"task/") else {
        return Some(whole);
    };
    let mut parts = below_task.splitn(2, |&byte| byte == b'/');
    match parts.next().and_then(parse_number) {
        Some(tid) => Some(ProcPath {
            pid,
            tid: Some(tid),
            rest: parts.next().unwrap_or_default(),
        }),
        None => Some(whole),
    }
}

fn parse_number(word: &[u8]) -> Option<u32> {
    let number = std::str::from_utf8(word).ok()?.parse().ok()?;
    word.first()
        .is_some_and(u8::is_ascii_digit)
        .then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crust_process::proc::mountinfo::parse_mountinfo;

    fn mount(line: &[u8]) -> MountInfo {
        parse_mountinfo(line).unwrap().remove(0)
    }

    #[test]
    fn the_pid_counts_from_the_mount() {
        let plain = mount(b"22 27 0:21 / /proc rw - proc proc rw\n");
        assert_eq!(
            path_inside(b"/proc/3321/stat", &plain).unwrap(),
            b"/3321/stat"
        );
        assert_eq!(
            path_inside(b"/proc/3321 (deleted)", &plain).unwrap(),
            b"/3321"
        );
        let elsewhere = mount(b"22 27 0:21 / /mnt/7/proc rw - proc proc rw\n");
        assert_eq!(
            path_inside(b"/mnt/7/proc/12/fd", &elsewhere).unwrap(),
            b"/12/fd"
        );
        let bind = mount(b"22 27 0:21 /3321//deleted /mnt rw - proc proc rw\n");
        assert_eq!(
            path_inside(b"/mnt/task/3322/stat", &bind).unwrap(),
            b"/3321/task/3322/stat"
        );
        assert_eq!(path_inside(b"/mnt", &bind).unwrap(), b"/3321");
        assert_eq!(path_inside(b"/elsewhere", &bind), None);
    }

    #[test]
    fn paths_of_processes_and_threads() {
        let path = |pid, tid, rest| Some(ProcPath { pid, tid, rest });
        assert_eq!(parse_proc_path(b"/12"), path(12, None, b""));
        assert_eq!(parse_proc_path(b"/12/net/tcp"), path(12, None, b"net/tcp"));
        assert_eq!(parse_proc_path(b"/12/task"), path(12, None, b"task"));
        assert_eq!(parse_proc_path(b"/12/task/13"), path(12, Some(13), b""));
        assert_eq!(
            parse_proc_path(b"/12/task/13/fd/1"),
            path(12, Some(13), b"fd/1")
        );
        for ordinary in [
            &b"/"[..],
            b"/kmsg",
            b"/sys/kernel/ostype",
            b"/+1/stat",
            b"/99999999999",
        ] {
            assert_eq!(parse_proc_path(ordinary), None);
        }
    }

    #[test]
    fn the_dead_one_is_named() {
        let of = |inside: &'static [u8]| parse_proc_path(inside).unwrap();
        let dead = |number, in_use| Dead { number, in_use };
        let file = of(b"/12/stat");
        assert_eq!(
            who_is_dead(&file, false, false, false).unwrap(),
            dead(12, false)
        );
        assert_eq!(
            who_is_dead(&file, true, false, true).unwrap(),
            dead(12, true)
        );
        let thread = of(b"/12/task/13/stat");
        assert_eq!(
            who_is_dead(&thread, false, false, false).unwrap(),
            dead(12, false)
        );
        assert_eq!(
            who_is_dead(&thread, true, false, true).unwrap(),
            dead(13, false)
        );
        assert_eq!(
            who_is_dead(&thread, true, true, true).unwrap(),
            dead(13, true)
        );
        assert_eq!(
            who_is_dead(&thread, true, false, false).unwrap(),
            dead(12, true)
        );
        let leader = of(b"/12/task/12/stat");
        assert_eq!(
            who_is_dead(&leader, true, true, true).unwrap(),
            dead(12, true)
        );
        let closed = of(b"/12/fdinfo/7");
        assert!(who_is_dead(&closed, true, false, true).is_err());
    }

    #[test]
    fn one_entry_for_a_dead_number_and_one_for_each_file_of_a_reused_one() {
        let mut remaps = Remaps::default();
        for id in 4..7 {
            remaps.add_dead(
                FileId(id),
                Dead {
                    number: 3321,
                    in_use: false,
                },
            );
        }
        for id in 7..9 {
            remaps.add_dead(
                FileId(id),
                Dead {
                    number: 99,
                    in_use: true,
                },
            );
        }
        let written: Vec<(u32, u32)> = remaps
            .entries()
            .iter()
            .map(|entry| (entry.orig_id, entry.remap_id))
            .collect();
        assert_eq!(written, [(4, 3321), (7, 99), (8, 99)]);
    }
}
