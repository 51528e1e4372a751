//! Makes SysV objects in an ipc namespace: the host's, where we are, or that of a task, which a
//! thread of ours enters.

use crate::ipc::{Object, Perm};
use anyhow::{Context, Result, bail};
use crust_image::ids::VirtPid;
use crust_process::namespace;
use crust_process::sysv::{self, Queue, SemSet};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sched::CloneFlags;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};

/// Makes one object; a segment gives a descriptor. `made` gets the ids of segments that the host's
/// namespace did not have before.
pub fn make(
    member: Option<VirtPid>,
    object: &Object,
    made: &mut Vec<i32>,
) -> Result<Option<OwnedFd>> {
    let Some(pid) = member else {
        return make_here(object, Some(made));
    };
    // We are in the tree's pid namespace, so the number is the same.
    let path = format!("/proc/{pid}/ns/ipc");
    let namespace = File::open(&path).with_context(|| format!("open {path}"))?;
    namespace::inside(namespace.as_fd(), CloneFlags::CLONE_NEWIPC, || {
        make_here(object, None)
    })
    .with_context(|| format!("enter {path}"))?
}

fn make_here(object: &Object, host: Option<&mut Vec<i32>>) -> Result<Option<OwnedFd>> {
    match object {
        Object::Sysctls(sysctls) => {
            for (name, value) in sysctls {
                let path = format!("/proc/sys/{name}");
                fs::write(&path, value).with_context(|| format!("write '{value}' to {path}"))?;
            }
        }
        Object::Segment(perm, size) => {
            let doing = || format!("make SysV segment {}", perm.id);
            make_segment(perm, *size, host).with_context(doing)?;
            let opened = sysv::open_segment(perm.id);
            return Ok(Some(
                opened.with_context(|| format!("open SysV segment {}", perm.id))?,
            ));
        }
        Object::SemSet(perm, values) => {
            let set = SemSet {
                perm: perm_of(perm),
                values: values.clone(),
            };
            sysv::make_sem_set(&set)
                .with_context(|| format!("make SysV semaphores {}", perm.id))?;
        }
        Object::Queue(perm, qbytes, messages) => {
            let queue = Queue {
                perm: perm_of(perm),
                qbytes: *qbytes,
                messages: messages.clone(),
            };
            sysv::make_queue(&queue).with_context(|| format!("make SysV queue {}", perm.id))?;
        }
        Object::RemoveSegment(id) => {
            sysv::remove_segment(*id).with_context(|| format!("remove SysV segment {id}"))?;
        }
    }
    Ok(None)
}

/// In the host's namespace the segment may still be there: killing those who attached it removes
/// nothing.
fn make_segment(perm: &Perm, size: u64, host: Option<&mut Vec<i32>>) -> Result<()> {
    let Some(made) = host else {
        return Ok(sysv::make_segment(&perm_of(perm), size)?);
    };
    match sysv::segment(perm.id) {
        Err(Errno::EINVAL | Errno::EIDRM) => {
            sysv::make_segment(&perm_of(perm), size)?;
            made.push(perm.id);
        }
        Err(errno) => return Err(errno).context("look for an old one"),
        Ok(found) if (found.perm.key, found.size, found.attaches) != (perm.key, size, 0) => {
            bail!(
                "there is one with key {:#x} of {} bytes, attached {} times",
                found.perm.key,
                found.size,
                found.attaches
            );
        }
        Ok(_) => {
            sysv::own_segment(&perm_of(perm))?;
            let content = sysv::open_segment(perm.id)?;
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(&content, flags, 0, size.next_multiple_of(4096) as i64)
                .context("empty the old one")?;
        }
    }
    Ok(())
}

/// After a failure: what the host did not have before goes again.
pub fn undo(made: &mut Vec<i32>) {
    for id in made.drain(..) {
        // It may be gone with a task that had attached it.
        let _ = sysv::remove_segment(id);
    }
}

fn perm_of(perm: &Perm) -> sysv::Perm {
    sysv::Perm {
        id: perm.id,
        key: perm.key,
        uid: perm.uid,
        gid: perm.gid,
        mode: perm.mode,
        ..sysv::Perm::default()
    }
}
