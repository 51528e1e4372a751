//! /proc/PID/ns/*: a descriptor of a namespace.
//!
//! Saved are the number that images have for the namespace and its kind as the CLONE_NEW* bit. A
//! tree lives in the dumper's namespaces (anything else is refused elsewhere), so a descriptor of
//! another one leads outside and is refused.

use super::{FileTable, OpenFile, Problem, RoomResult, file_entry};
use crust_image::ids::FileId;
use crust_proto::criu::{FdTypes, FileEntry, NsFileEntry, TaskKobjIdsEntry};
use nix::libc;

/// Dumps a descriptor.
pub fn dump(table: &FileTable, file: &OpenFile, id: FileId) -> RoomResult<FileEntry> {
    let name = file
        .link
        .split(|&byte| byte == b':')
        .next()
        .unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    let unknown = || Problem::refused(format!("is a namespace of the unknown kind {name}"));
    let (flag, ns_id) = kind_of(&name, &table.own_ids).ok_or_else(unknown)?;
    let own = std::fs::read_link(format!("/proc/self/ns/{name}")).ok();
    if own.is_none_or(|own| own.as_os_str().as_encoded_bytes() != file.link) {
        return Err(Problem::refused(
            "is a namespace in which neither the tree nor the dumper lives",
        ));
    }
    let entry = NsFileEntry {
        id: id.0,
        ns_id,
        ns_cflag: flag as u32,
        flags: file.flags,
    };
    Ok(FileEntry {
        nsf: Some(entry),
        ..file_entry(FdTypes::Ns, id)
    })
}

/// The flag of clone(2) and the number of the dumper's own namespace of this kind.
fn kind_of(name: &str, ids: &TaskKobjIdsEntry) -> Option<(i32, u32)> {
    let (flag, id) = match name {
        "pid" => (libc::CLONE_NEWPID, ids.pid_ns_id),
        "net" => (libc::CLONE_NEWNET, ids.net_ns_id),
        "ipc" => (libc::CLONE_NEWIPC, ids.ipc_ns_id),
        "uts" => (libc::CLONE_NEWUTS, ids.uts_ns_id),
        "mnt" => (libc::CLONE_NEWNS, ids.mnt_ns_id),
        "user" => (libc::CLONE_NEWUSER, ids.user_ns_id),
        "cgroup" => (libc::CLONE_NEWCGROUP, ids.cgroup_ns_id),
        "time" => (CLONE_NEWTIME, ids.time_ns_id),
        _ => return None,
    };
    Some((flag, id?))
}

/// include/uapi/linux/sched.h, since 5.6.
const CLONE_NEWTIME: i32 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_flag_and_number() {
        let ids = TaskKobjIdsEntry {
            net_ns_id: Some(2),
            ..TaskKobjIdsEntry::default()
        };
        assert_eq!(kind_of("net", &ids), Some((0x4000_0000, 2)));
        assert_eq!(kind_of("uts", &ids), None);
        assert_eq!(kind_of("new", &ids), None);
    }
}
