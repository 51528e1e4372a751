//! Freezing the tree, with the kind of each way in which it fails.

use anyhow::Result;
use crust_cli::code::Code;
use crust_cli::failure::failure_of;
use crust_process::freeze::{FreezeError, Frozen, freeze_tree};
use crust_process::pid::HostPid;
use crust_process::proc::cgroup::parse_cgroup;
use crust_process::proc::mountinfo::parse_mountinfo;
use std::fs;
use std::time::Duration;

/// Freezes the tree below `root`; whatever was frozen goes on if that fails.
pub fn freeze(root: HostPid, timeout: Duration) -> Result<Frozen> {
    freeze_tree(root, timeout).map_err(|error| {
        let code = kind_of(&error);
        // Bare, so that its errno and task are seen.
        let error: anyhow::Error = match error {
            FreezeError::Os(error) => error.into(),
            other => other.into(),
        };
        let failed = match (code, frozen_cgroup(root)) {
            (Code::Unstoppable, Some(cgroup)) => {
                error.context(format!("its cgroup {cgroup} is frozen"))
            }
            _ => error,
        };
        failure_of(failed, code).into()
    })
}

/// The frozen cgroup of the v1 freezer that a task is in: such a task does not come to a stop. (The
/// freezer of v2 lets it.)
fn frozen_cgroup(pid: HostPid) -> Option<String> {
    let memberships = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    let mounts = parse_mountinfo(&fs::read("/proc/self/mountinfo").ok()?).ok()?;
    let is_freezer = |names: &[Vec<u8>]| names.iter().any(|name| name == b"freezer");
    let memberships = parse_cgroup(&memberships).ok()?;
    let path = memberships
        .iter()
        .find(|member| is_freezer(&member.controllers));
    let path = String::from_utf8_lossy(&path?.path).into_owned();
    let mount = mounts.iter().find(|mount| {
        let mut options = mount.super_options.split(|byte| *byte == b',');
        mount.fstype == b"cgroup" && options.any(|option| option == b"freezer")
    })?;
    let mountpoint = String::from_utf8_lossy(&mount.mountpoint);
    let state = fs::read_to_string(format!("{mountpoint}{path}/freezer.state")).ok()?;
    (state.trim() != "THAWED").then_some(path)
}

fn kind_of(error: &FreezeError) -> Code {
    match error {
        FreezeError::NoSuchTask(_) => Code::NoSuchTask,
        FreezeError::KernelThread(_) => Code::KernelThread,
        FreezeError::NotALeader { .. } => Code::NotALeader,
        FreezeError::RootIsZombie(_) => Code::Zombie,
        FreezeError::ContainsUs(_) => Code::ContainsUs,
        FreezeError::Traced { .. } => Code::Traced,
        FreezeError::Vfork { .. } => Code::Vfork,
        FreezeError::Unstoppable { .. } => Code::Unstoppable,
        FreezeError::Os(_) => Code::Freeze,
    }
}
