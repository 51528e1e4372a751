//! uts namespaces: the names of the host that uname(2) tells.
//!
//! One that is not the dumper's is stored by its node name and its domain name (which are those
//! that sethostname(2) and setdomainname(2) change; the rest of uname is the kernel's), read by a
//! thread that enters it. It may be that of tasks, or one that is only held by a descriptor.

use crate::collect::Subject;
use crate::ids::KernelIds;
use anyhow::{Context as _, Result};
use crust_image::Kind;
use crust_image::sink::{ImageSink, write_entry};
use crust_process::namespace;
use crust_proto::criu::UtsnsEntry;
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::utsname::uname;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// The names, by the number of the namespace.
#[derive(Debug, Default)]
pub struct UtsNamespaces(BTreeMap<u32, UtsnsEntry>);

/// Reads those of the tree; `held` are those that descriptors hold and no task lives in.
pub fn collect_uts(
    ids: &KernelIds,
    subjects: &[Subject],
    held: &[(u32, UtsnsEntry)],
) -> Result<UtsNamespaces> {
    let own = ids.encode_own().uts_ns_id;
    let mut all: BTreeMap<u32, UtsnsEntry> = held.iter().cloned().collect();
    for subject in subjects {
        let number = subject.ids.uts_ns_id;
        let Some(number) = number.filter(|id| Some(*id) != own && !all.contains_key(id)) else {
            continue;
        };
        let dir = &subject.facts.dir;
        let namespace = dir.open_file("ns/uts", OFlag::O_RDONLY)?;
        let names = read_names(namespace.as_fd());
        all.insert(
            number,
            names.with_context(|| format!("task {}", dir.pid()))?,
        );
    }
    Ok(UtsNamespaces(all))
}

/// The names in a namespace.
pub fn read_names(namespace: BorrowedFd) -> Result<UtsnsEntry> {
    let names = namespace::inside(namespace, CloneFlags::CLONE_NEWUTS, uname)
        .context("enter the uts namespace")?
        .context("uname in the uts namespace")?;
    Ok(UtsnsEntry {
        nodename: names.nodename().as_bytes().to_vec(),
        domainname: names.domainname().as_bytes().to_vec(),
    })
}

impl UtsNamespaces {
    /// Writes an image for each.
    pub fn write(&self, images: &dyn ImageSink) -> Result<()> {
        for (id, names) in &self.0 {
            write_entry(images, Kind::Utsns, Some(u64::from(*id)), names)?;
        }
        Ok(())
    }
}
