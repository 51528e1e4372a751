//! The images of namespaces, by the id their file names bear.
//!
//! Images exist only for namespaces that differ from the dumper's. Raw ones (addresses, routes,
//! rules, archives of tmpfs) stay on disk; `Checkpoint::images` tells which there are.

use super::Loader;
use crate::{
    error::Result,
    kind::Kind,
    payload::{IpcMsgQueue, IpcSem, IpcShm, PayloadEntry},
};
use crust_proto::criu::{
    AutofsEntry, IpcVarEntry, MntEntry, NetDeviceEntry, NetnsEntry, PidnsEntry, TimensEntry,
    UsernsEntry, UtsnsEntry,
};
use prost::Message;
use std::collections::BTreeMap;

/// What is stored of namespaces. Keys are namespace ids, but for autofs.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// `utsns-<id>.img`.
    pub uts: BTreeMap<u64, UtsnsEntry>,
    /// `ipcns-var-<id>.img`.
    pub ipc_var: BTreeMap<u64, IpcVarEntry>,
    /// `ipcns-shm-<id>.img`.
    pub ipc_shm: BTreeMap<u64, Vec<IpcShm>>,
    /// `ipcns-msg-<id>.img`.
    pub ipc_msg: BTreeMap<u64, Vec<IpcMsgQueue>>,
    /// `ipcns-sem-<id>.img`.
    pub ipc_sem: BTreeMap<u64, Vec<IpcSem>>,
    /// `mountpoints-<id>.img`.
    pub mounts: BTreeMap<u64, Vec<MntEntry>>,
    /// `userns-<id>.img`.
    pub user: BTreeMap<u64, UsernsEntry>,
    /// `pidns-<id>.img`.
    pub pid: BTreeMap<u64, PidnsEntry>,
    /// `timens-<id>.img`; id 0 when the tasks live in the dumper's time namespace.
    pub time: BTreeMap<u64, TimensEntry>,
    /// `netns-<id>.img`.
    pub net: BTreeMap<u64, NetnsEntry>,
    /// `netdev-<id>.img`.
    pub net_devices: BTreeMap<u64, Vec<NetDeviceEntry>>,
    /// `autofs-<s_dev>.img`, by the device number of the superblock.
    pub autofs: BTreeMap<u64, Vec<AutofsEntry>>,
}

impl Namespaces {
    pub(super) fn load(loader: &Loader<'_>) -> Result<Namespaces> {
        Ok(Namespaces {
            uts: single(loader, Kind::Utsns)?,
            ipc_var: single(loader, Kind::IpcVar)?,
            ipc_shm: payloads(loader, Kind::IpcnsShm)?,
            ipc_msg: payloads(loader, Kind::IpcnsMsg)?,
            ipc_sem: payloads(loader, Kind::IpcnsSem)?,
            mounts: several(loader, Kind::Mnts)?,
            user: single(loader, Kind::Userns)?,
            pid: single(loader, Kind::Pidns)?,
            time: single(loader, Kind::Timens)?,
            net: single(loader, Kind::Netns)?,
            net_devices: several(loader, Kind::Netdev)?,
            autofs: several(loader, Kind::Autofs)?,
        })
    }
}

fn single<M: Message + Default>(loader: &Loader<'_>, kind: Kind) -> Result<BTreeMap<u64, M>> {
    let mut by_id = BTreeMap::new();
    for id in loader.ids_of(kind) {
        if let Some(entry) = loader.entry_of(kind, Some(id))? {
            by_id.insert(id, entry);
        }
    }
    Ok(by_id)
}

fn several<M: Message + Default>(loader: &Loader<'_>, kind: Kind) -> Result<BTreeMap<u64, Vec<M>>> {
    let images = loader.ids_of(kind);
    images
        .map(|id| Ok((id, loader.entries(kind, Some(id))?)))
        .collect()
}

fn payloads<T: PayloadEntry>(loader: &Loader<'_>, kind: Kind) -> Result<BTreeMap<u64, Vec<T>>> {
    let mut by_id = BTreeMap::new();
    for id in loader.ids_of(kind) {
        if let Some(mut reader) = loader.open(kind, Some(id))? {
            by_id.insert(id, T::read_all(&mut reader)?);
        }
    }
    Ok(by_id)
}
