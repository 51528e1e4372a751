//! Descriptors, files and the data stored beside them.

use super::{Findings, Place};
use crate::{
    checkpoint::RemapTarget,
    dir::ImageDir,
    ghost::Ghost,
    ids::{FileId, PipeId},
    kind::Kind,
    tcp_state,
};
use crust_proto::criu::{FdTypes, FileEntry, InetSkEntry};
use std::collections::BTreeSet;

/// Every descriptor leads to a file of its type; numbers are used once.
pub fn check_tables(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    for (table, descriptors) in &checkpoint.fdinfo {
        let mut used = BTreeSet::new();
        for (number, fd) in descriptors.iter().enumerate() {
            let place = Place::of(Kind::Fdinfo, Some((*table).into())).entry(number);
            if !used.insert(fd.fd) {
                let what = format!("descriptor {} is in the table already", fd.fd);
                findings.error(place.field("fd"), what);
            }
            if i32::try_from(fd.fd).is_err() {
                let what = format!("{} is no descriptor", fd.fd);
                findings.error(place.field("fd"), what);
            }
            match checkpoint.file(FileId(fd.id)) {
                None => {
                    let what = format!("descriptor {}: no file has the id {}", fd.fd, fd.id);
                    findings.error(place.field("id"), what);
                }
                Some(file) if !same_type(file.r#type, fd.r#type) => {
                    let (wanted, found) = (type_name(fd.r#type), type_name(file.r#type));
                    let what = format!("{wanted}, but file {} is of type {found}", fd.id);
                    findings.error(place.field("type"), what);
                }
                Some(_) => {}
            }
        }
    }
}

/// Some descriptors are of a type that only says how the task came by a file of another.
fn same_type(file: i32, descriptor: i32) -> bool {
    let aliased = |number| match FdTypes::try_from(number) {
        Ok(FdTypes::CtlTty) => FdTypes::Tty.into(),
        Ok(FdTypes::AutofsPipe) => FdTypes::Pipe.into(),
        _ => number,
    };
    aliased(file) == aliased(descriptor)
}

fn type_name(number: i32) -> String {
    FdTypes::try_from(number).map_or(number.to_string(), |known| known.as_str_name().to_owned())
}

/// Each file has the member of its type, and what the member refers to is there.
pub fn check_references(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    for (id, file) in &checkpoint.files {
        let place = findings.file_place(*id);
        if !has_member(file) {
            let what = format!("{}, but that member is absent", type_name(file.r#type));
            findings.error(place.field("type"), what);
        }
        let fifo = file.fifo.as_ref().and_then(|fifo| fifo.regf_id);
        check_reg(findings, &place, "fifo.regf_id", fifo);
        let tty = file.tty.as_ref().and_then(|tty| tty.regf_id);
        check_reg(findings, &place, "tty.regf_id", tty);
        let info = file.tty.as_ref().map(|tty| tty.tty_info_id);
        if let Some(info) = info.filter(|info| !checkpoint.ttys.contains_key(info)) {
            let what = format!("tty-info.img has no tty {info}");
            findings.error(place.field("tty.tty_info_id"), what);
        }
        let inode = file.memfd.as_ref().map(|memfd| u64::from(memfd.inode_id));
        if let Some(inode) = inode.filter(|inode| !checkpoint.memfds.contains_key(inode)) {
            let what = format!("memfd.img has no inode {inode}");
            findings.error(place.field("memfd.inode_id"), what);
        }
        if let Some(socket) = &file.isk {
            check_stream(findings, &place, socket);
        }
    }
    check_fs(findings);
}

fn has_member(file: &FileEntry) -> bool {
    match FdTypes::try_from(file.r#type) {
        Ok(FdTypes::Reg) => file.reg.is_some(),
        Ok(FdTypes::Pipe | FdTypes::AutofsPipe) => file.pipe.is_some(),
        Ok(FdTypes::Fifo) => file.fifo.is_some(),
        Ok(FdTypes::Inetsk) => file.isk.is_some(),
        Ok(FdTypes::Unixsk) => file.usk.is_some(),
        Ok(FdTypes::Eventfd) => file.efd.is_some(),
        Ok(FdTypes::Eventpoll) => file.epfd.is_some(),
        Ok(FdTypes::Inotify) => file.ify.is_some(),
        Ok(FdTypes::Signalfd) => file.sgfd.is_some(),
        Ok(FdTypes::Packetsk) => file.psk.is_some(),
        Ok(FdTypes::Tty | FdTypes::CtlTty) => file.tty.is_some(),
        Ok(FdTypes::Fanotify) => file.ffy.is_some(),
        Ok(FdTypes::Netlinksk) => file.nlsk.is_some(),
        Ok(FdTypes::Ns) => file.nsf.is_some(),
        Ok(FdTypes::Tunf) => file.tunf.is_some(),
        Ok(FdTypes::Ext) => file.ext.is_some(),
        Ok(FdTypes::Timerfd) => file.tfd.is_some(),
        Ok(FdTypes::Memfd) => file.memfd.is_some(),
        Ok(FdTypes::Bpfmap) => file.bpf.is_some(),
        Ok(FdTypes::Pidfd) => file.pidfd.is_some(),
        Ok(FdTypes::CrustUring) => file.crust_uring.is_some(),
        Ok(FdTypes::Und) | Err(_) => false,
    }
}

/// `id`, if there is one, must name a regular file entry.
fn check_reg(findings: &mut Findings<'_>, place: &Place<'_>, field: &'static str, id: Option<u32>) {
    let Some(id) = id else { return };
    let file = findings.checkpoint.file(FileId(id));
    if file.is_none_or(|file| file.reg.is_none()) {
        let what = format!("{id} is the id of no regular file");
        findings.error(place.field(field), what);
    }
}

fn check_fs(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    for (pid, fs) in &checkpoint.fs {
        let place = Place::of(Kind::Fs, Some(pid.get().into())).entry(0);
        check_reg(findings, &place, "cwd_id", Some(fs.cwd_id));
        check_reg(findings, &place, "root_id", Some(fs.root_id));
    }
    for (pid, mm) in &checkpoint.mms {
        let place = Place::of(Kind::Mm, Some(pid.get().into())).entry(0);
        // A program may run from a memfd.
        let file = checkpoint.file(FileId(mm.exe_file_id));
        if file.is_none_or(|file| file.memfd.is_none()) {
            check_reg(findings, &place, "exe_file_id", Some(mm.exe_file_id));
        }
    }
}

fn check_stream(findings: &mut Findings<'_>, place: &Place<'_>, socket: &InetSkEntry) {
    const IPPROTO_TCP: u32 = 6;
    let connected = socket.proto == IPPROTO_TCP && tcp_state::has_queues(socket.state);
    let closes = findings.given.tcp_close || findings.checkpoint.inventory.tcp_close == Some(true);
    let stream = Kind::TcpStream.file_name(Some(socket.ino.into()));
    let stored = findings
        .checkpoint
        .has_image(Kind::TcpStream, Some(socket.ino.into()));
    if connected && !stored && !closes {
        findings.error_with_fix(
            place.field("isk.state"),
            format!("a connection, but {stream} is missing"),
            "restore with --tcp-close to get it as a closed one",
        );
    }
}

/// A remap is of a regular file, and leads to something.
pub fn check_remaps(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    let mut remapped = BTreeSet::new();
    for remap in &checkpoint.remaps {
        let place = Place::of(Kind::RemapFpath, None).entry(remap.entry);
        check_reg(findings, &place, "orig_id", Some(remap.orig_id.0));
        if !remapped.insert(remap.orig_id) {
            let what = format!("file {} has a remap already", remap.orig_id);
            findings.error(place.field("orig_id"), what);
        }
        match remap.target {
            RemapTarget::Linked(link) => check_reg(findings, &place, "remap_id", Some(link.0)),
            RemapTarget::Ghost(ghost) => {
                if !checkpoint.has_image(Kind::GhostFile, Some(ghost.into())) {
                    let what = format!("ghost-file-{ghost:x}.img is missing");
                    findings.error(place.field("remap_id"), what);
                }
            }
            RemapTarget::Procfs(pid) => {
                let path = checkpoint.file(remap.orig_id).and_then(|file| {
                    let reg = file.reg.as_ref()?;
                    Some(String::from_utf8_lossy(&reg.name).into_owned())
                });
                let number = pid.to_string();
                if path
                    .as_ref()
                    .is_some_and(|path| path.split('/').all(|part| part != number))
                {
                    let what = format!("{pid}, but the path of the file has no such part");
                    findings.warning(place.field("remap_id"), what);
                }
            }
        }
    }
}

/// Every ghost that is referred to can be read and its chunks lie inside the file.
pub fn check_ghosts(findings: &mut Findings<'_>, dir: &ImageDir) {
    let checkpoint = findings.checkpoint;
    let ghosts = checkpoint
        .remaps
        .iter()
        .filter_map(|remap| match remap.target {
            RemapTarget::Ghost(id) => Some(id),
            RemapTarget::Linked(_) | RemapTarget::Procfs(_) => None,
        });
    for id in ghosts.collect::<BTreeSet<u32>>() {
        // That it is there was looked at with the remap.
        if let Err(error) = Ghost::load(dir, id) {
            let place = Place::of(Kind::GhostFile, Some(id.into()));
            findings.error(place, error.to_string());
        }
    }
}

/// Queued bytes, packets and locks belong to something that is there.
pub fn check_data(findings: &mut Findings<'_>) {
    check_pipes(findings);
    check_queues(findings);
    check_terminals(findings);
    check_bpf_maps(findings);
    check_locks(findings);
    check_filters(findings);
}

fn check_pipes(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    let files = || checkpoint.files.values();
    let pipes: BTreeSet<_> = files()
        .filter_map(|file| Some(PipeId(file.pipe.as_ref()?.pipe_id)))
        .collect();
    let fifos: BTreeSet<_> = files()
        .filter_map(|file| Some(PipeId(file.fifo.as_ref()?.pipe_id)))
        .collect();
    for (kind, data, ids) in [
        (Kind::PipesData, &checkpoint.pipes_data, pipes),
        (Kind::FifoData, &checkpoint.fifo_data, fifos),
    ] {
        for id in data.keys().filter(|id| !ids.contains(id)) {
            let place = Place::of(kind, None).field("pipe_id");
            findings.warning(place, format!("no file is an end of {id}"));
        }
    }
}

fn check_queues(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    for (id, packets) in &checkpoint.sk_queues {
        let place = || Place::of(Kind::SkQueues, None);
        if checkpoint.file(*id).is_none_or(|file| file.usk.is_none()) {
            let what = format!("{id} is the id of no unix socket");
            findings.error(place().field("id_for"), what);
        }
        let rights = packets.iter().flat_map(|packet| &packet.entry.scm);
        for file in rights.flat_map(|scm| &scm.rights) {
            if checkpoint.file(FileId(*file)).is_none() {
                let what = format!("file {file}, in flight to socket {id}, is not in files.img");
                findings.error(place().field("scm.rights"), what);
            }
        }
    }
}

fn check_terminals(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    for id in checkpoint.tty_data.keys() {
        if !checkpoint.ttys.contains_key(id) {
            let place = Place::of(Kind::TtyData, None).field("tty_id");
            findings.error(place, format!("tty-info.img has no tty {id}"));
        }
    }
}

/// Each map with keys has its content, be it empty.
fn check_bpf_maps(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    let mut used = BTreeSet::new();
    for (id, file) in &checkpoint.files {
        let Some(map) = &file.bpf else { continue };
        used.insert(map.map_id);
        if map.key_size > 0 && !checkpoint.bpf_maps.contains_key(&map.map_id) {
            let place = findings.file_place(*id).field("bpf.map_id");
            findings.error(place, format!("bpfmap-data.img has no map {}", map.map_id));
        }
    }
    for id in checkpoint.bpf_maps.keys().filter(|id| !used.contains(id)) {
        let place = Place::of(Kind::BpfmapData, None).field("map_id");
        findings.warning(place, format!("no file is map {id}"));
    }
}

fn check_locks(findings: &mut Findings<'_>) {
    let checkpoint = findings.checkpoint;
    for (number, lock) in checkpoint.file_locks.iter().enumerate() {
        let place = Place::of(Kind::FileLocks, None).entry(number);
        let owner = checkpoint
            .tasks()
            .find(|task| i64::from(task.pid.get()) == i64::from(lock.pid));
        let Some(owner) = owner else {
            let what = format!("{} is no task of the tree", lock.pid);
            findings.error(place.field("pid"), what);
            continue;
        };
        let table = owner
            .ids
            .and_then(|ids| checkpoint.fdinfo.get(&crate::ids::FilesId(ids.files_id)));
        let open = table.is_some_and(|table| {
            table
                .iter()
                .any(|fd| i64::from(fd.fd) == i64::from(lock.fd))
        });
        if !open {
            let what = format!("task {} has no descriptor {}", lock.pid, lock.fd);
            findings.error(place.field("fd"), what);
        }
    }
}

/// Chains of seccomp filters lead to other filters and end.
fn check_filters(findings: &mut Findings<'_>) {
    let filters = &findings.checkpoint.seccomp;
    for (number, filter) in filters.iter().enumerate() {
        // A newer filter always has the lower index, so a chain that only goes down ends.
        if let Some(newer) = filter.prev.filter(|newer| *newer as usize >= number) {
            let what = format!("filter {number} leads to {newer}, which is not before it");
            let place = Place::of(Kind::Seccomp, None).entry(0);
            findings.error(place.field("seccomp_filters.prev"), what);
        }
    }
}
