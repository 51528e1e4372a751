//! Freezing the tree, with the kind of each way in which it fails.

use anyhow::Result;
use crust_cli::code::Code;
use crust_cli::failure::failure_of;
use crust_cli::options::Options;
use crust_process::freeze::{FreezeError, Frozen, freeze_tree};
use crust_process::pid::HostPid;

/// Freezes the tree below `root`, by its cgroup if the options say so; whatever was frozen goes on
/// if that fails.
pub fn freeze(root: HostPid, options: &Options) -> Result<Frozen> {
    let cgroup = options.freeze_cgroup.as_deref();
    freeze_tree(root, options.timeout, cgroup).map_err(|error| {
        let code = kind_of(&error);
        // Bare, so that its errno and task are seen.
        let error: anyhow::Error = match error {
            FreezeError::Os(error) => error.into(),
            other => other.into(),
        };
        failure_of(error, code).into()
    })
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
        FreezeError::Unstoppable { .. } | FreezeError::InFrozenCgroup { .. } => Code::Unstoppable,
        FreezeError::NotInCgroup { .. } | FreezeError::CgroupContainsUs(_) => Code::Usage,
        FreezeError::Os(_) => Code::Freeze,
    }
}
