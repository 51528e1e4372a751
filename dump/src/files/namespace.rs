//! /proc/PID/ns/*: a descriptor of a namespace.
//!
//! Saved are the number that images have for the namespace and its kind as the CLONE_NEW* bit. It
//! may be the dumper's or that of a task of the tree; a uts namespace may also be one that only
//! descriptors hold, since its names are all there is of it. Any other leads outside: it is
//! refused with its kind and inode.

use super::{FileTable, OpenFile, Problem, RoomResult, file_entry};
use crate::uts;
use crust_image::ids::FileId;
use crust_proto::criu::{FdTypes, FileEntry, NsFileEntry};
use nix::libc;

/// Dumps a descriptor.
pub fn dump(table: &mut FileTable, file: &OpenFile, id: FileId) -> RoomResult<FileEntry> {
    let name = file
        .link
        .split(|&byte| byte == b':')
        .next()
        .unwrap_or_default();
    let name = String::from_utf8_lossy(name).into_owned();
    let flag = flag_of(&name);
    let unknown = || Problem::refused(format!("is a namespace of the unknown kind {name}"));
    let entry = NsFileEntry {
        id: id.0,
        ns_id: number_of(table, file, &name)?,
        ns_cflag: flag.ok_or_else(unknown)? as u32,
        flags: file.flags,
    };
    Ok(FileEntry {
        nsf: Some(Box::new(entry)),
        ..file_entry(FdTypes::Ns, id)
    })
}

fn number_of(table: &mut FileTable, file: &OpenFile, name: &str) -> RoomResult<u32> {
    if let Some(number) = table.namespaces.number(&file.link) {
        return Ok(number);
    }
    if name != "uts" {
        let what = format!(
            "is a {name} namespace in which neither a task of the tree nor the dumper lives"
        );
        return Err(Problem::refused(what));
    }
    let names = uts::read_names(file.fd)?;
    let number = table.namespaces.add(&file.link);
    table.held_uts.push((number, names));
    Ok(number)
}

impl FileTable {
    /// The names in uts namespaces that descriptors hold and no task lives in, by their number.
    pub fn held_uts(&self) -> &[(u32, crust_proto::criu::UtsnsEntry)] {
        &self.held_uts
    }
}

/// The flag of clone(2) of a kind.
fn flag_of(name: &str) -> Option<i32> {
    Some(match name {
        "pid" => libc::CLONE_NEWPID,
        "net" => libc::CLONE_NEWNET,
        "ipc" => libc::CLONE_NEWIPC,
        "uts" => libc::CLONE_NEWUTS,
        "mnt" => libc::CLONE_NEWNS,
        "user" => libc::CLONE_NEWUSER,
        "cgroup" => libc::CLONE_NEWCGROUP,
        "time" => CLONE_NEWTIME,
        _ => return None,
    })
}

/// include/uapi/linux/sched.h, since 5.6.
const CLONE_NEWTIME: i32 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_their_flag() {
        assert_eq!(flag_of("net"), Some(0x4000_0000));
        assert_eq!(flag_of("time"), Some(0x80));
        assert_eq!(flag_of("new"), None);
    }
}
