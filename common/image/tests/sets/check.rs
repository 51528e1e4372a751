//! `check` finds what an edit broke: each case takes a set CRIU wrote, spoils one thing in it and
//! looks for the finding that names it.

use crate::copy::Copy;
use crust_image::{
    ImageDir, Kind,
    check::{Finding, Severity, check_dir},
    pages::PAGE_SIZE,
};
use crust_proto::criu::*;
use std::fs;

impl Copy {
    fn findings(&self) -> Vec<Finding> {
        check_dir(&ImageDir::open(&self.path).unwrap())
    }

    /// Asserts that there is a finding of that field whose text has `what`.
    #[track_caller]
    fn finds(&self, severity: Severity, field: Option<&str>, what: &str) {
        let findings = self.findings();
        assert!(
            findings.iter().any(|finding| {
                finding.severity == severity
                    && finding.field == field
                    && finding.what.contains(what)
            }),
            "looked for {field:?} {what}, found {findings:#?}"
        );
    }

    #[track_caller]
    fn finds_error(&self, field: &str, what: &str) {
        self.finds(Severity::Error, Some(field), what);
    }
}

#[test]
fn descriptors_without_their_file() {
    let set = Copy::of("pipes");
    let table = set.only_id(Kind::Fdinfo);
    set.edit_first(Kind::Fdinfo, table, |fd: &mut FdinfoEntry| fd.id = 999);
    set.finds_error("id", "no file has the id 999");

    let set = Copy::of("pipes");
    set.edit_first(Kind::Fdinfo, table, |fd: &mut FdinfoEntry| {
        fd.r#type = FdTypes::Eventfd.into();
    });
    set.finds_error("type", "EVENTFD, but file");

    let set = Copy::of("pipes");
    set.edit(Kind::Fdinfo, table, |fds: &mut Vec<FdinfoEntry>| {
        fds[1].fd = fds[0].fd;
    });
    set.finds_error("fd", "in the table already");

    let set = Copy::of("pipes");
    set.remove(Kind::Fdinfo, table);
    set.finds_error("files_id", "there is no fdinfo-");
}

#[test]
fn files_that_lead_nowhere() {
    let set = Copy::of("pty");
    set.edit(Kind::Files, None, |files: &mut Vec<FileEntry>| {
        let tty = files.iter_mut().find_map(|file| file.tty.as_mut()).unwrap();
        tty.tty_info_id = 77;
        tty.regf_id = Some(78);
    });
    set.finds_error("tty.tty_info_id", "no tty 77");
    set.finds_error("tty.regf_id", "78 is the id of no regular file");

    let set = Copy::of("memfd");
    set.edit_first(Kind::MemfdInode, None, |inode: &mut MemfdInodeEntry| {
        inode.inode_id = 900
    });
    set.finds_error("memfd.inode_id", "memfd.img has no inode");

    let set = Copy::of("loop");
    set.edit(Kind::Files, None, |files: &mut Vec<FileEntry>| {
        files[0].reg = None
    });
    set.finds_error("type", "REG, but that member is absent");

    let set = Copy::of("loop");
    let pid = set.only_id(Kind::Fs);
    set.edit_first(Kind::Fs, pid, |fs: &mut FsEntry| fs.cwd_id = 500);
    set.edit_first(Kind::Mm, pid, |mm: &mut MmEntry| mm.exe_file_id = 501);
    set.finds_error("cwd_id", "500");
    set.finds_error("exe_file_id", "501");
}

#[test]
fn a_connection_without_its_stream() {
    let set = Copy::of("tcp_est");
    let stream = set.only_id(Kind::TcpStream);
    set.remove(Kind::TcpStream, stream);
    set.finds_error("isk.state", "tcp-stream-");
    set.edit_first(Kind::Inventory, None, |inventory: &mut InventoryEntry| {
        inventory.tcp_close = Some(true);
    });
    assert_eq!(set.findings(), []);
}

#[test]
fn remaps_that_lead_nowhere() {
    let set = Copy::of("proc_dead");
    set.edit_first(Kind::RemapFpath, None, |remap: &mut RemapFilePathEntry| {
        remap.orig_id = 400
    });
    set.finds_error("orig_id", "400 is the id of no regular file");

    let set = Copy::of("proc_dead");
    set.edit_first(Kind::RemapFpath, None, |remap: &mut RemapFilePathEntry| {
        remap.remap_id = 400
    });
    set.finds(
        Severity::Warning,
        Some("remap_id"),
        "the path of the file has no such part",
    );

    let set = Copy::of("ghost");
    let ghost = set.only_id(Kind::GhostFile);
    set.remove(Kind::GhostFile, ghost);
    set.finds_error("remap_id", "is missing");

    let set = Copy::of("ghost");
    let path = set.path.join(Kind::GhostFile.file_name(ghost));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    set.finds(Severity::Error, None, "the file only");

    let set = Copy::of("link_remap");
    set.edit_first(Kind::RemapFpath, None, |remap: &mut RemapFilePathEntry| {
        remap.remap_id = 400
    });
    set.finds_error("remap_id", "400 is the id of no regular file");
}

#[test]
fn a_tree_that_is_none() {
    let spoil = |change: fn(&mut Vec<PstreeEntry>)| {
        let set = Copy::of("tree");
        set.edit(Kind::Pstree, None, change);
        set
    };
    spoil(|tasks| tasks.swap(1, 2)).finds_error("ppid", "no task before has the pid");
    spoil(|tasks| tasks[1].ppid = 0).finds_error("ppid", "the first task is the root");
    spoil(|tasks| tasks[3].sid = tasks[2].pid).finds_error("sid", "leads no session");
    spoil(|tasks| tasks[1].threads.clear()).finds_error("threads", "is not the leader");
    spoil(|tasks| tasks[2].pid = tasks[1].pid).finds_error("pid", "a task or thread before");
    spoil(|tasks| tasks[4].sid = 1).finds_error("pgid", "is in session");

    let set = Copy::of("tree");
    let zombie = 3920;
    set.edit_first(Kind::Core, Some(zombie), |core: &mut CoreEntry| {
        core.tc.as_mut().unwrap().task_state = 1;
    });
    set.finds(Severity::Error, None, "missing for task 3920");
    set.remove(Kind::Core, Some(zombie));
    set.finds(Severity::Error, None, "core-3920.img: the image is missing");
}

#[test]
fn threads_whose_ids_clash() {
    let set = Copy::of("threads");
    set.edit_first(Kind::Pstree, None, |task: &mut PstreeEntry| {
        task.pgid = task.threads[1]
    });
    set.finds_error("pgid", "is a thread");
}

#[test]
fn pages_outside_of_memory() {
    let set = Copy::of("loop");
    let pid = set.only_id(Kind::Mm);
    set.edit_first(Kind::Mm, pid, |mm: &mut MmEntry| {
        let at = mm
            .vmas
            .iter()
            .position(|vma| vma.status & 0x20 != 0)
            .unwrap();
        mm.vmas.remove(at);
    });
    set.finds_error("vaddr", "lies in no vma");

    let set = Copy::of("loop");
    set.edit_first(Kind::Mm, pid, |mm: &mut MmEntry| {
        mm.vmas[0].shmid = 333;
        mm.vmas[1].start = mm.vmas[0].start;
        mm.vmas[2].status |= 1 << 31;
    });
    set.finds_error("vmas.shmid", "333 is the id of no regular file");
    set.finds_error("vmas.start", "overlaps");
    set.finds_error("vmas.status", "no image may have");

    let set = Copy::of("memfd");
    set.edit(
        Kind::MemfdInode,
        None,
        |inodes: &mut Vec<MemfdInodeEntry>| {
            inodes.iter_mut().for_each(|inode| inode.size = 1);
        },
    );
    set.finds_error("vaddr", "the object has 0x1 bytes");
}

#[test]
fn pages_files_of_the_wrong_length() {
    let set = Copy::of("loop");
    let pages = set.path.join("pages-1.img");
    let file = fs::OpenOptions::new().write(true).open(&pages).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len + PAGE_SIZE).unwrap();
    set.finds(Severity::Warning, None, "its pagemap speaks of");
    file.set_len(len - 1).unwrap();
    set.finds(Severity::Error, None, "its pagemap speaks of");
    set.remove(Kind::Pages, Some(1));
    set.finds(Severity::Error, None, "the image is missing");
}

#[test]
fn a_chain_that_lost_its_parent() {
    let set = Copy::of("parent_chain/3");
    assert_eq!(set.findings(), []);
    fs::remove_file(set.path.join("parent")).unwrap();
    set.finds(
        Severity::Error,
        None,
        "parent dump, which has no such image",
    );
}

#[test]
fn namespaces_without_their_images() {
    let set = Copy::of("tun");
    let net = set.only_id(Kind::Netns);
    set.remove(Kind::Netns, net);
    set.finds_error("net_ns_id", "netns-");

    let set = Copy::of("nsfd");
    set.edit(Kind::Files, None, |files: &mut Vec<FileEntry>| {
        let nsf = files.iter_mut().find_map(|file| file.nsf.as_mut()).unwrap();
        nsf.ns_id = 44;
    });
    set.finds_error("nsf.ns_id", "no namespace has the id 44");
}

#[test]
fn data_of_nobody() {
    let set = Copy::of("pipes");
    set.edit(Kind::Files, None, |files: &mut Vec<FileEntry>| {
        let pipes = files.iter_mut().filter_map(|file| file.pipe.as_mut());
        pipes.for_each(|pipe| pipe.pipe_id = 1);
    });
    set.finds(Severity::Warning, Some("pipe_id"), "no file is an end of");

    let set = Copy::of("locks");
    set.edit(Kind::FileLocks, None, |locks: &mut Vec<FileLockEntry>| {
        locks[0].pid = 1;
        locks[1].fd = 900;
    });
    set.finds_error("pid", "1 is no task of the tree");
    set.finds_error("fd", "has no descriptor 900");

    let set = Copy::of("unix_scm");
    set.edit(Kind::Files, None, |files: &mut Vec<FileEntry>| {
        files.retain(|file| file.usk.is_none());
    });
    set.finds_error("id_for", "the id of no unix socket");
}

#[test]
fn stray_images() {
    let set = Copy::of("loop");
    let pid = set.only_id(Kind::Core).unwrap();
    for (from, to) in [
        (Kind::Core.file_name(Some(pid)), "core-9.img"),
        ("pages-1.img".to_owned(), "pages-8.img"),
        ("files.img".to_owned(), "files-2.img"),
    ] {
        fs::copy(set.path.join(from), set.path.join(to)).unwrap();
    }
    let findings = set.findings();
    let told: Vec<_> = findings
        .iter()
        .map(|finding| (finding.severity, finding.image.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (Severity::Warning, "files-2.img"),
            (Severity::Warning, "core-9.img"),
            (Severity::Warning, "pages-8.img"),
        ]
    );
}

#[test]
fn a_set_that_does_not_load() {
    let set = Copy::of("loop");
    set.edit_first(Kind::Inventory, None, |inventory: &mut InventoryEntry| {
        inventory.img_version = 3;
    });
    set.finds(Severity::Error, None, "neither 1 nor 2");
    set.remove(Kind::Inventory, None);
    set.finds(Severity::Error, None, "there is no inventory.img");
    let text = set.findings()[0].to_string();
    assert!(text.starts_with("error: inventory.img: "), "{text}");
}
