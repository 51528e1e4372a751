//! Loading sets as older versions wrote them, and sets that are damaged.
//!
//! Nobody keeps CRIU of ten years ago, so the old forms are made from today's: a set of the corpus
//! has its fields moved out into the images they once were. It must load to the same Checkpoint.

use crate::copy::Copy;
use crust_image::{
    Error, ImageDir, Kind,
    checkpoint::{Checkpoint, RemapTarget},
    ids::{FileId, VirtPid},
};
use crust_proto::criu::*;
use std::fs;

impl Copy {
    fn load(&self) -> Result<Checkpoint, Error> {
        Checkpoint::load(&ImageDir::open(&self.path).unwrap())
    }
}

#[test]
fn state_of_a_task_in_images_of_its_own() {
    let set = Copy::of("timers");
    let today = set.load().unwrap();
    let pid = today.tasks().next().unwrap().pid;
    let id = Some(u64::from(pid.get()));
    let core = today.core(pid).unwrap().clone();
    let (tc, thread) = (core.tc.unwrap(), core.thread_core.unwrap());
    let timers = tc.timers.clone().unwrap();
    let signal = SiginfoEntry {
        siginfo: vec![7; 128],
    };

    set.write(Kind::Creds, id, &[thread.creds.clone().unwrap()]);
    set.write(Kind::Vmas, id, &today.mm(pid).unwrap().vmas);
    set.write(Kind::Sigact, id, &tc.sigactions);
    set.write(Kind::Itimers, id, &[timers.real, timers.virt, timers.prof]);
    set.write(Kind::PosixTimers, id, &timers.posix);
    set.write(Kind::Rlimit, id, &tc.rlimits.clone().unwrap().rlimits);
    set.write(Kind::SignalShared, id, &[signal.clone(), signal.clone()]);
    set.write(Kind::SignalPrivate, id, std::slice::from_ref(&signal));
    set.edit_first(Kind::Mm, id, |mm: &mut MmEntry| mm.vmas.clear());
    set.edit_first(Kind::Core, id, |core: &mut CoreEntry| {
        core.ids = today.ids(pid).cloned();
        let tc = core.tc.as_mut().unwrap();
        tc.sigactions.clear();
        (tc.timers, tc.rlimits, tc.signals_s) = (None, None, None);
        (tc.cg_set, tc.old_seccomp_mode) = (Some(1), Some(SeccompMode::Disabled.into()));
        let thread = core.thread_core.as_mut().unwrap();
        (thread.creds, thread.signals_p) = (None, None);
        (thread.cg_set, thread.seccomp_mode) = (None, None);
    });
    set.dir.remove_image(Kind::Ids, id).unwrap();

    let old = set.load().unwrap();
    let core = old.core(pid).unwrap();
    let (old_tc, old_thread) = (
        core.tc.as_ref().unwrap(),
        core.thread_core.as_ref().unwrap(),
    );
    assert!(!timers.posix.is_empty());
    assert_eq!(old_tc.sigactions, tc.sigactions);
    assert_eq!(old_tc.timers, tc.timers);
    assert_eq!(old_tc.rlimits, tc.rlimits);
    assert_eq!(old_tc.signals_s.as_ref().unwrap().signals.len(), 2);
    assert_eq!(old_thread.signals_p.as_ref().unwrap().signals, [signal]);
    assert_eq!(old_thread.creds, thread.creds);
    assert_eq!(old_thread.cg_set, Some(1));
    assert_eq!(old_thread.seccomp_mode, Some(SeccompMode::Disabled.into()));
    assert_eq!(old.mm(pid), today.mm(pid));
    assert_eq!(old.ids(pid), today.ids(pid));
}

#[test]
fn a_present_field_wins_over_an_old_image() {
    let set = Copy::of("loop");
    let today = set.load().unwrap();
    let pid = today.tasks().next().unwrap().pid;
    let id = Some(u64::from(pid.get()));
    set.write(Kind::Vmas, id, &[VmaEntry::default()]);
    set.write(Kind::Rlimit, id, &[RlimitEntry::default()]);
    let with_old = set.load().unwrap();
    assert_eq!(with_old.mm(pid), today.mm(pid));
    assert_eq!(with_old.core(pid), today.core(pid));
}

#[test]
fn interval_timers_come_in_threes() {
    let set = Copy::of("loop");
    let pid = set.dir.ids_of(Kind::Core).unwrap()[0];
    set.edit_first(Kind::Core, Some(pid), |core: &mut CoreEntry| {
        core.tc.as_mut().unwrap().timers = None;
    });
    set.write(Kind::Itimers, Some(pid), &[ItimerEntry::default(); 2]);
    let told = set.load().unwrap_err().to_string();
    assert!(told.contains("2 interval timers"), "{told}");
}

/// In old images the `id` of a watch is that of its file; in today's it says nothing.
fn number_watches(file: &mut FileEntry) {
    let id = file.id;
    let targets = file.epfd.iter_mut().flat_map(|epfd| &mut epfd.tfd);
    targets.for_each(|tfd| tfd.id = id);
    let watches = file.ify.iter_mut().flat_map(|ify| &mut ify.wd);
    watches.for_each(|wd| wd.id = id);
    let marks = file.ffy.iter_mut().flat_map(|ffy| &mut ffy.mark);
    marks.for_each(|mark| mark.id = id);
}

/// Stores every file in the image its type once had.
fn split_files(set: &Copy, files: &[FileEntry]) {
    macro_rules! move_out {
        ($($kind:ident: $member:ident,)*) => {
            $(
                let entries: Vec<_> = files.iter().filter_map(|file| file.$member.clone()).collect();
                set.write(Kind::$kind, None, &entries);
            )*
        };
    }
    move_out! {
        RegFiles: reg, ExtFiles: ext, NsFiles: nsf, Eventfd: efd, Signalfd: sgfd, Timerfd: tfd,
        Pipes: pipe, Fifo: fifo, Tty: tty, Pidfd: pidfd, Unixsk: usk, Inetsk: isk, Packetsk: psk,
        Netlinksk: nlsk, BpfmapFile: bpf, Tunfile: tunf,
    }
    split_watched(set, files);
    set.dir.remove_image(Kind::Files, None).unwrap();
}

/// Files with watches, and the watches.
fn split_watched(set: &Copy, files: &[FileEntry]) {
    let (mut epolls, mut targets) = (Vec::new(), Vec::new());
    for mut epfd in files.iter().filter_map(|file| file.epfd.clone()) {
        targets.append(&mut epfd.tfd);
        epolls.push(epfd);
    }
    set.write(Kind::Eventpoll, None, &epolls);
    set.write(Kind::EventpollTfd, None, &targets);
    let (mut inotifies, mut watches) = (Vec::new(), Vec::new());
    for mut ify in files.iter().filter_map(|file| file.ify.clone()) {
        watches.append(&mut ify.wd);
        inotifies.push(ify);
    }
    set.write(Kind::Inotify, None, &inotifies);
    set.write(Kind::InotifyWd, None, &watches);
    let (mut fanotifies, mut marks) = (Vec::new(), Vec::new());
    for mut ffy in files.iter().filter_map(|file| file.ffy.clone()) {
        marks.append(&mut ffy.mark);
        fanotifies.push(ffy);
    }
    set.write(Kind::Fanotify, None, &fanotifies);
    set.write(Kind::FanotifyMark, None, &marks);
}

#[test]
fn files_in_an_image_per_type() {
    let sets = [
        "files",
        "pipes",
        "fifo",
        "epoll",
        "inotify",
        "fanotify",
        "timerfd",
        "pty",
        "pidfd",
        "tun",
        "unix_stream",
        "netlink",
        "nsfd",
        "tcp_est",
    ];
    for name in sets {
        let set = Copy::of(name);
        let mut today = set.load().unwrap();
        today.files.values_mut().for_each(number_watches);
        let files: Vec<FileEntry> = today.files.values().cloned().collect();
        // A memfd, or what is stored as one, never had an image of its own.
        today.files.retain(|_, file| file.memfd.is_none());
        split_files(&set, &files);
        let old = set.load().unwrap();
        let differs = |(one, other): &(&FileEntry, &FileEntry)| one != other;
        assert_eq!(
            old.files.values().zip(today.files.values()).find(differs),
            None,
            "{name}"
        );
        assert_eq!(old.files.len(), today.files.len());
        assert!(old.file_entries.is_empty());
    }
}

#[test]
fn two_files_of_one_id_are_refused() {
    let set = Copy::of("loop");
    let mut files: Vec<FileEntry> = set.dir.read_entries(Kind::Files, None).unwrap();
    files[1].id = files[0].id;
    set.write(Kind::Files, None, &files);
    let told = set.load().unwrap_err().to_string();
    assert!(told.contains("entry 1: id: "), "{told}");
}

#[test]
fn descriptor_tables_by_task_are_refused() {
    let set = Copy::of("loop");
    set.edit_first(Kind::Inventory, None, |inventory: &mut InventoryEntry| {
        inventory.fdinfo_per_id = None;
    });
    let told = set.load().unwrap_err().to_string();
    assert!(told.contains("fdinfo_per_id"), "{told}");
}

#[test]
fn what_a_set_holds() {
    let dead = Copy::of("proc_dead").load().unwrap();
    let remap = dead.remaps[0];
    assert!(matches!(remap.target, RemapTarget::Procfs(_)));
    assert_eq!(dead.remap(remap.orig_id), Some(&remap));

    let pipes = Copy::of("pipes").load().unwrap();
    for (id, data) in &pipes.pipes_data {
        assert_eq!(data.entry.pipe_id, id.0);
        assert_eq!(data.bytes.len(), data.entry.bytes as usize);
    }
    assert!(pipes.pipes_data.values().any(|data| !data.bytes.is_empty()));

    let tree = Copy::of("tree").load().unwrap();
    assert_eq!(tree.tasks().filter(|task| task.is_dead()).count(), 2);
    let stopped = VirtPid::new(3918).unwrap();
    assert_eq!(
        tree.tasks()
            .find(|task| task.pid == stopped)
            .unwrap()
            .state(),
        Some(3)
    );

    let threads = Copy::of("threads").load().unwrap();
    let task = threads.tasks().next().unwrap();
    let others: Vec<_> = task.other_threads().collect();
    assert!(others.len() > 1);
    assert!(others.iter().all(|tid| threads.core(*tid).is_some()));

    let tun = Copy::of("tun").load().unwrap();
    let file = tun.file(FileId(4)).unwrap();
    assert!(file.reg.is_some() && file.tunf.is_some());
    assert_eq!(file.r#type, i32::from(FdTypes::Tunf));
}

/// Every image of a set, damaged in turn: the set loads or is refused, and nothing panics.
#[test]
fn damaged_sets_do_not_panic() {
    for name in ["proc_dead", "sysv", "unix_scm"] {
        let set = Copy::of(name);
        for (kind, id) in set.dir.list().unwrap() {
            let path = set.path.join(kind.file_name(id));
            let bytes = fs::read(&path).unwrap();
            // A spread of places, the same in each run.
            let step = (bytes.len() / 12).max(1);
            for at in (0..bytes.len()).step_by(step) {
                fs::write(&path, &bytes[..at]).unwrap();
                let _ = set.load();
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 8);
                fs::write(&path, &flipped).unwrap();
                if let Ok(checkpoint) = set.load() {
                    crust_image::check::check(&checkpoint, &set.dir, Default::default());
                }
            }
            fs::write(&path, &bytes).unwrap();
        }
        set.load().unwrap();
    }
}
