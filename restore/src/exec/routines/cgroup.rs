//! Makes a cgroup directory, with its owner and properties, as the plan says. A directory that is
//! made here goes again if the restore fails.

use super::undo::Undo;
use crate::plan::routine::{CgroupDir, SetProperties};
use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// What a new directory of the v1 cpuset hierarchy needs before a task can enter it.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Makes or checks one directory.
pub fn make(dir: &CgroupDir, undo: &mut Undo) -> Result<()> {
    let path = Path::new(OsStr::from_bytes(&dir.path));
    let shown = || path.display();
    let made = if dir.must_exist {
        if !path.is_dir() {
            bail!(
                "{} does not exist, and --manage-cgroups makes none",
                shown()
            );
        }
        false
    } else {
        if !path.exists() {
            undo.note_directory(&dir.path)?;
        }
        match DirBuilder::new().mode(0o755).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                undo.forget(&dir.path);
                false
            }
            Err(error) => return Err(error).with_context(|| format!("make {}", shown())),
        }
    };
    if dir.must_not_exist && !made {
        bail!("{} exists, which --manage-cgroups=strict forbids", shown());
    }
    if made {
        undo.keep_on_success(&dir.path)?;
        inherit_cpuset(path)?;
        set_owner(path, dir.perms)?;
    }
    if dir.set == SetProperties::Always || (made && dir.set == SetProperties::IfMade) {
        for (name, value) in &dir.properties {
            set_property(&path.join(OsStr::from_bytes(name)), value)?;
        }
    }
    Ok(())
}

fn set_owner(path: &Path, perms: Option<(u32, u32, u32)>) -> Result<()> {
    let Some((mode, uid, gid)) = perms else {
        return Ok(());
    };
    let shown = || path.display();
    nix::unistd::chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .with_context(|| format!("give {} to {uid}:{gid}", shown()))?;
    fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))
        .with_context(|| format!("set the mode of {}", shown()))
}

/// A new v1 cpuset has no cpu and no memory node.
fn inherit_cpuset(path: &Path) -> Result<()> {
    for name in CPUSET {
        let file = path.join(name);
        let is_empty = fs::read(&file).is_ok_and(|text| text.trim_ascii().is_empty());
        let above = path.parent().map(|parent| fs::read(parent.join(name)));
        if let (true, Some(Ok(value))) = (is_empty, above) {
            fs::write(&file, value).with_context(|| format!("write {}", file.display()))?;
        }
    }
    Ok(())
}

/// A property that has its value already is left alone: some can be read but not written so.
fn set_property(file: &Path, value: &[u8]) -> Result<()> {
    let shown = || file.display();
    match fs::read(file) {
        Ok(now) if now.trim_ascii() == value.trim_ascii() => return Ok(()),
        // This kernel has no such property; its default is what the images cannot change.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    for line in value
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let told = String::from_utf8_lossy(line);
        fs::write(file, line).with_context(|| format!("write {told:?} to {}", shown()))?;
    }
    Ok(())
}
