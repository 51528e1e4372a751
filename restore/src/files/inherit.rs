//! `--inherit-fd fd[N]:KEY`: descriptors that our starter gave us for what was outside of the tree,
//! or shall be another object now.
//!
//! The key is what the peer calls a description: the path of a file (the first slash may be left
//! out), `file[MNT_ID:INODE]` of one that was dumped with `--external`, `pipe:[INODE]`,
//! `socket:[INODE]`; terminals (`tty[RDEV:DEV]`) are planned in `tty.rs`. The descriptor takes the
//! place of the description as it is, with its own position and flags. Both ends of a pipe have
//! one name, so each is opened anew with its flags; what waited in it is the business of whoever
//! gave it.

use super::calls::reopen;
use super::{File, all, kind_of};
use crate::plan::Planner;
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Op, Phase};
use crust_proto::criu::FdTypes;
use nix::libc;

/// Our descriptor for a key.
pub(super) fn number_of(planner: &Planner<'_>, key: &[u8]) -> Option<i32> {
    let given = planner.options.inherit_fds.iter().rev();
    given
        .into_iter()
        .find(|given| is_key(&given.key, key))
        .map(|given| given.fd)
}

/// A path may come with or without its first slash.
fn is_key(given: &[u8], key: &[u8]) -> bool {
    let bare = |path: &[u8]| path.strip_prefix(b"/").unwrap_or(path).to_vec();
    given == key || bare(given) == bare(key)
}

/// Gives every description with a key its descriptor.
pub(super) fn plan(planner: &mut Planner<'_>) {
    if planner.options.inherit_fds.is_empty() {
        return;
    }
    for file in all(planner) {
        let Some(fd) = key_of(file).and_then(|key| number_of(planner, &key)) else {
            continue;
        };
        planner.files.inherited.insert(file.id);
        let slot = planner.slot();
        let origin = file.origin(file.name());
        let inherit = Op::Routine(Routine::Inherit { fd, slot });
        planner.push(Phase::Open, Actor::Broker, inherit, origin.clone());
        let Some(flags) = file.entry.pipe.as_ref().map(|pipe| pipe.flags as i32) else {
            planner.files.slots.insert(file.id, Some(slot));
            continue;
        };
        let end = planner.slot();
        let open = reopen(slot, flags & !libc::O_ASYNC, end);
        planner.call(Phase::Open, Actor::Broker, open, origin);
        planner.files.slots.insert(file.id, Some(end));
    }
}

fn key_of(file: File<'_>) -> Option<Vec<u8>> {
    let entry = file.entry;
    match kind_of(entry)? {
        FdTypes::Reg => Some(entry.reg.as_ref()?.name.clone()),
        FdTypes::Pipe => Some(format!("pipe:[{}]", entry.pipe.as_ref()?.pipe_id).into_bytes()),
        FdTypes::Unixsk => Some(format!("socket:[{}]", entry.usk.as_ref()?.ino).into_bytes()),
        FdTypes::Inetsk => Some(format!("socket:[{}]", entry.isk.as_ref()?.ino).into_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_key_with_and_without_its_slash() {
        assert!(is_key(b"/var/log/x", b"/var/log/x"));
        assert!(is_key(b"var/log/x", b"/var/log/x"));
        assert!(!is_key(b"/var/log", b"/var/log/x"));
        assert!(is_key(b"pipe:[12]", b"pipe:[12]"));
        assert!(!is_key(b"pipe:[12]", b"pipe:[123]"));
    }
}
