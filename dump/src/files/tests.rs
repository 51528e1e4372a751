//! The rooms on real descriptors: this process is the task, so nothing is frozen and nobody else
//! is touched.

use super::*;
use crate::mm::foresee::Foreseen;
use crate::refusal::Refusals;
use crust_cli::config::Defaults;
use crust_cli::log::Log;
use crust_cli::options::{Options, Tool, parse};
use crust_image::kind::Kind as ImageKind;
use crust_image::sink::MemoryImages;
use crust_process::fds::PidFd;
use crust_process::memory::TaskMem;
use crust_proto::criu::{RegFileEntry, RemapType, SkPacketEntry, UnixSkEntry};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

struct Bench {
    options: Options,
    log: Log,
    directory: PathBuf,
}

impl Bench {
    fn new(name: &str, args: &[&str]) -> Bench {
        let directory =
            std::env::temp_dir().join(format!("crust-files-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let args = ["--tree", "1"].iter().chain(args).map(OsString::from);
        let options = parse(Tool::Dump, args, &Defaults::none()).unwrap();
        Bench {
            options,
            log: Log::nowhere(),
            directory,
        }
    }

    fn context(&self) -> Context<'_> {
        let pid = HostPid::current();
        let task = Task {
            pid,
            virt: pid.get() as u32,
            ppid: 0,
            tids: vec![pid],
            pidfd: PidFd::open(pid).unwrap().into(),
            mem: TaskMem::open(pid).unwrap(),
        };
        Context {
            options: &self.options,
            log: &self.log,
            tasks: vec![task],
            stopped: std::time::Instant::now(),
            foreseen: Foreseen::default(),
            refusals: Refusals::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Dumps these descriptors as the whole table of this process.
fn dump(ctx: &Context, fds: &[BorrowedFd]) -> (FileTable, Vec<FdinfoEntry>) {
    let mut table = FileTable::new(
        TaskKobjIdsEntry::default(),
        Namespaces::default(),
        Locks::default(),
    )
    .unwrap();
    let descriptors: Vec<Descriptor> = fds
        .iter()
        .map(|fd| Descriptor {
            fd: fd.as_raw_fd(),
            cloexec: true,
        })
        .collect();
    let entries = table.dump_table(ctx, &ctx.tasks[0], &descriptors).unwrap();
    table.settle(ctx).unwrap();
    (table, entries)
}

fn refused(ctx: &Context) -> Vec<String> {
    ctx.refusals
        .take()
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn reg(table: &FileTable, id: u32) -> &RegFileEntry {
    let entry = table.entries.iter().find(|entry| entry.id == id).unwrap();
    entry.reg.as_ref().unwrap()
}

fn unix(table: &FileTable, id: u32) -> &UnixSkEntry {
    let entry = table.entries.iter().find(|entry| entry.id == id).unwrap();
    entry.usk.as_ref().unwrap()
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

#[test]
fn a_duplicate_shares_the_entry_and_a_second_open_does_not() {
    let bench = Bench::new("dup", &[]);
    let path = bench.path("plain");
    std::fs::write(&path, "0123456789").unwrap();
    let mut file = File::open(&path).unwrap();
    file.seek(SeekFrom::Start(7)).unwrap();
    let duplicate = file.try_clone().unwrap();
    let mut other = File::open(&path).unwrap();
    other.seek(SeekFrom::Start(7)).unwrap();
    let ctx = bench.context();
    let (table, entries) = dump(&ctx, &[file.as_fd(), duplicate.as_fd(), other.as_fd()]);
    let ids: Vec<u32> = entries.iter().map(|entry| entry.id).collect();
    assert_eq!(ids, [1, 1, 2]);
    assert_eq!((reg(&table, 1).pos, reg(&table, 1).size), (7, Some(10)));
    assert_eq!(reg(&table, 1).name, bytes(&path));
    assert_eq!(entries[0].flags, 1);
    assert_eq!(file.stream_position().unwrap(), 7);
    assert!(refused(&ctx).is_empty());
}

#[test]
fn a_file_named_like_a_deleted_one_is_itself() {
    let bench = Bench::new("named", &[]);
    let path = bench.path("x (deleted)");
    let file = File::create(&path).unwrap();
    let again = bench.path("again");
    let deleted = File::create(&again).unwrap();
    let spare = bench.path("spare");
    std::fs::hard_link(&again, &spare).unwrap();
    std::fs::remove_file(&again).unwrap();
    std::fs::rename(&spare, &again).unwrap();
    let ctx = bench.context();
    let (table, _) = dump(&ctx, &[file.as_fd(), deleted.as_fd()]);
    assert_eq!(reg(&table, 1).name, bytes(&path));
    assert_eq!(reg(&table, 2).name, bytes(&again));
    assert!(table.remaps.entries().is_empty() && refused(&ctx).is_empty());
}

#[test]
fn users_of_a_deleted_inode_share_one_ghost_with_its_holes() {
    let bench = Bench::new("ghost", &[]);
    let path = bench.path("gone");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.write_all_at(b"start", 0).unwrap();
    file.write_all_at(b"end", 1 << 40).unwrap();
    let reader = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let ctx = bench.context();
    let (mut table, _) = dump(&ctx, &[file.as_fd(), reader.as_fd()]);
    assert!(refused(&ctx).is_empty());
    let remaps = table.remaps.entries();
    assert_eq!(remaps.len(), 2);
    assert!(
        remaps
            .iter()
            .all(|remap| remap.remap_id == 1 && remap.remap_type() == RemapType::Ghost)
    );
    let images = MemoryImages::new();
    table.write(&ctx, &images).unwrap();
    let image = images
        .bytes(ImageKind::GhostFile, Some(1))
        .unwrap()
        .unwrap();
    assert!(
        image.len() < 16384,
        "{} bytes for a sparse terabyte",
        image.len()
    );
    assert!(image.windows(5).any(|part| part == b"start"));
    assert!(images.names().contains(&"files.img".to_owned()));
}

#[test]
fn a_large_ghost_is_refused_with_its_size_and_the_option() {
    let bench = Bench::new("limit", &["--ghost-limit", "4096"]);
    let path = bench.path("gone");
    let file = File::create(&path).unwrap();
    file.write_all_at(&[7; 20000], 0).unwrap();
    file.sync_all().unwrap();
    std::fs::remove_file(&path).unwrap();
    let ctx = bench.context();
    dump(&ctx, &[file.as_fd()]);
    let told = refused(&ctx);
    assert!(
        told[0].contains("20000") && told[0].contains("--ghost-limit"),
        "{told:?}"
    );
}

#[test]
fn a_link_remap_is_made_and_taken_away() {
    let bench = Bench::new("link", &["--link-remap"]);
    let path = bench.path("name");
    let file = File::create(&path).unwrap();
    std::fs::hard_link(&path, bench.path("other")).unwrap();
    std::fs::remove_file(&path).unwrap();
    let ctx = bench.context();
    let (mut table, _) = dump(&ctx, &[file.as_fd()]);
    let link = bench.path("link_remap.2");
    assert_eq!(reg(&table, 2).name, bytes(&link));
    assert!(!link.exists(), "no link before the refusals are known");
    table.write(&ctx, &MemoryImages::new()).unwrap();
    assert!(link.exists());
    drop(table);
    assert!(!link.exists(), "a failed dump leaves nothing");
}

#[test]
fn without_the_option_a_lost_name_is_refused() {
    let bench = Bench::new("nolink", &[]);
    let path = bench.path("name");
    let file = File::create(&path).unwrap();
    std::fs::hard_link(&path, bench.path("other")).unwrap();
    std::fs::remove_file(&path).unwrap();
    let ctx = bench.context();
    dump(&ctx, &[file.as_fd()]);
    let told = refused(&ctx);
    assert!(
        told[0].contains("--link-remap") && told[0].contains("name (deleted)"),
        "{told:?}"
    );
}

#[test]
fn a_replaced_file_is_refused() {
    let bench = Bench::new("replaced", &[]);
    let directory = bench.path("d");
    std::fs::create_dir(&directory).unwrap();
    let path = directory.join("name");
    let file = File::create(&path).unwrap();
    let covered = nix::mount::mount(
        None::<&str>,
        &directory,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    );
    if covered.is_err() {
        return eprintln!("skipped: this machine lets us mount nothing");
    }
    let ctx = bench.context();
    dump(&ctx, &[file.as_fd()]);
    nix::mount::umount(&directory).unwrap();
    let told = refused(&ctx);
    assert!(told[0].contains("leads nowhere"), "{told:?}");
}

#[test]
fn pipes_keep_their_data() {
    let bench = Bench::new("pipe", &[]);
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let mut writer = File::from(writer);
    writer.write_all(b"waiting").unwrap();
    let ctx = bench.context();
    let (mut table, entries) = dump(&ctx, &[reader.as_fd(), writer.as_fd()]);
    assert!(entries.iter().all(|entry| entry.r#type() == FdTypes::Pipe));
    let images = MemoryImages::new();
    table.write(&ctx, &images).unwrap();
    let image = images.bytes(ImageKind::PipesData, None).unwrap().unwrap();
    assert!(image.ends_with(b"waiting"));
    drop(writer);
    let mut left = String::new();
    File::from(reader).read_to_string(&mut left).unwrap();
    assert_eq!(left, "waiting");
}

#[test]
fn packets_of_a_pipe_in_packet_mode_keep_their_borders() {
    let bench = Bench::new("packets", &[]);
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_DIRECT).unwrap();
    let mut writer = File::from(writer);
    writer.write_all(b"one").unwrap();
    writer.write_all(b"three").unwrap();
    let ctx = bench.context();
    let (mut table, _) = dump(&ctx, &[reader.as_fd(), writer.as_fd()]);
    assert!(refused(&ctx).is_empty());
    let images = MemoryImages::new();
    table.write(&ctx, &images).unwrap();
    let image = images.bytes(ImageKind::PipesData, None).unwrap().unwrap();
    assert!(image.ends_with(b"onethree"));
    // Two fields 1001 at the end of the entry, before the data.
    assert!(image[..image.len() - 8].ends_with(&[0xc8, 0x3e, 3, 0xc8, 0x3e, 5]));
}

fn packets(table: &FileTable) -> Vec<SkPacketEntry> {
    table
        .unix
        .packets
        .iter()
        .map(|packet| packet.entry().clone())
        .collect()
}

#[test]
fn a_socket_pair_with_packets_and_a_descriptor_in_flight() {
    let bench = Bench::new("pair", &[]);
    let (one, two) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::empty(),
    )
    .unwrap();
    let sent = File::open("/dev/null").unwrap();
    let rights = [sent.as_raw_fd(), two.as_raw_fd()];
    let send = |text: &[u8], control: &[ControlMessage]| {
        sendmsg::<()>(
            one.as_raw_fd(),
            &[IoSlice::new(text)],
            control,
            MsgFlags::empty(),
            None,
        )
        .unwrap()
    };
    send(b"first", &[ControlMessage::ScmRights(&rights)]);
    send(b"second", &[]);
    drop(sent);
    let ctx = bench.context();
    let (table, entries) = dump(&ctx, &[one.as_fd(), two.as_fd()]);
    assert!(refused(&ctx).is_empty());
    let (first, second) = (unix(&table, entries[0].id), unix(&table, entries[1].id));
    assert_eq!((first.peer, second.peer), (second.ino, first.ino));
    let queued = packets(&table);
    assert_eq!(
        queued
            .iter()
            .map(|packet| packet.length)
            .collect::<Vec<_>>(),
        [5, 6]
    );
    let null = reg(&table, queued[0].scm[0].rights[0]);
    assert_eq!(null.name, b"/dev/null");
    // The socket in its own queue is the one of the table.
    assert_eq!(queued[0].scm[0].rights[1], entries[1].id);
    // Nothing was taken.
    let mut buffer = [0; 16];
    assert_eq!(nix::unistd::read(&two, &mut buffer).unwrap(), 5);
}

#[test]
fn a_peer_outside_the_tree_is_named() {
    let bench = Bench::new("outside", &[]);
    let (one, _two) = std::os::unix::net::UnixStream::pair().unwrap();
    let ctx = bench.context();
    dump(&ctx, &[one.as_fd()]);
    let told = refused(&ctx);
    assert!(told[0].contains("outside the tree"), "{told:?}");
}

#[test]
fn a_listener_keeps_its_relative_name_and_its_waiting_client() {
    let bench = Bench::new("listener", &[]);
    let path = bench.path("sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let ctx = bench.context();
    let (table, entries) = dump(&ctx, &[listener.as_fd(), client.as_fd()]);
    assert!(refused(&ctx).is_empty());
    let (listener, client) = (unix(&table, entries[0].id), unix(&table, entries[1].id));
    assert_eq!(listener.state, 10);
    assert_eq!(listener.name, [bytes(&path), b"\0"].concat());
    assert_eq!(client.peer, listener.ino);
}

#[test]
fn a_lock_is_stored_or_refused() {
    let bench = Bench::new("lock", &[]);
    let file = File::create(bench.path("locked")).unwrap();
    file.lock().unwrap();
    let ctx = bench.context();
    dump(&ctx, &[file.as_fd()]);
    assert!(refused(&ctx)[0].contains("--file-locks"));
    let with = Bench::new("lock2", &["--file-locks"]);
    let ctx = with.context();
    let (table, _) = dump(&ctx, &[file.as_fd()]);
    assert!(refused(&ctx).is_empty());
    assert_eq!(table.locks.entries().len(), 1);
}

/// A child that ends on our word; its /proc directory is what the tests hold open.
fn child() -> Child {
    Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn end(mut child: Child) {
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn files_of_a_dead_process_have_one_remap() {
    let bench = Bench::new("dead", &[]);
    let child = child();
    let pid = child.id();
    let open = |name: &str| File::open(format!("/proc/{pid}/{name}")).unwrap();
    let files = [open("stat"), open(""), open("fd"), open("task")];
    let living = File::open("/proc/self/status").unwrap();
    let ordinary = File::open("/proc/sys/kernel/ostype").unwrap();
    end(child);
    let ctx = bench.context();
    let mut fds: Vec<BorrowedFd> = files.iter().map(|file| file.as_fd()).collect();
    fds.extend([living.as_fd(), ordinary.as_fd()]);
    let (table, entries) = dump(&ctx, &fds);
    assert!(refused(&ctx).is_empty());
    let remaps = table.remaps.entries();
    assert_eq!(remaps.len(), 1);
    assert_eq!(
        (remaps[0].orig_id, remaps[0].remap_id),
        (entries[0].id, pid)
    );
    assert_eq!(remaps[0].remap_type(), RemapType::Procfs);
    let names: Vec<String> = entries
        .iter()
        .map(|entry| String::from_utf8_lossy(&reg(&table, entry.id).name).into_owned())
        .collect();
    assert_eq!(
        names[..4],
        ["stat", "", "fd", "task"].map(|name| {
            format!("/proc/{pid}/{name}")
                .trim_end_matches('/')
                .to_owned()
        })
    );
    assert_eq!(names[4], format!("/proc/{}/status", std::process::id()));
    assert_eq!(reg(&table, entries[2].id).mode, None);
}

#[test]
fn an_o_path_fifo_does_not_block() {
    let bench = Bench::new("fifo", &[]);
    let path = bench.path("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let held = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(&path)
        .unwrap();
    let both = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let ctx = bench.context();
    let (table, entries) = dump(&ctx, &[held.as_fd(), both.as_fd()]);
    assert!(refused(&ctx).is_empty());
    assert_eq!(entries[0].r#type(), FdTypes::Reg);
    assert_eq!(entries[1].r#type(), FdTypes::Fifo);
    let fifo = table
        .entries
        .iter()
        .find(|entry| entry.id == entries[1].id)
        .unwrap();
    let regf_id = fifo.fifo.as_ref().unwrap().regf_id.unwrap();
    assert_eq!(reg(&table, regf_id).name, bytes(&path));
}

#[test]
fn unsupported_kinds_are_told_all_at_once() {
    let bench = Bench::new("all", &[]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let ctx = bench.context();
    let (_, entries) = dump(&ctx, &[client.as_fd(), server.as_fd()]);
    let told = refused(&ctx);
    assert_eq!((told.len(), entries.len()), (2, 0), "{told:?}");
    let pid = std::process::id();
    assert!(
        told.iter()
            .all(|line| line.starts_with(&format!("task {pid}: fd "))),
        "{told:?}"
    );
}
