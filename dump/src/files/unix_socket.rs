//! Unix sockets: stream, seqpacket and dgram; pairs, listeners, bound names, connections.
//!
//! sock_diag(7) tells name, state, peer, shutdown and queue lengths of all sockets at once; the
//! options are asked of each descriptor, the queue is peeked (unix_queue.rs). A bound path is kept
//! as it was given to bind(2), so a relative one needs the directory it was meant from: it is
//! found from the inode the socket is bound to (SIOCUNIXFILE, Linux 4.6). `peer` is the inode
//! number of the other end. A connection that waits in a listener has no descriptor on the
//! listener's side: its client is stored with the listener as peer, as the peer tool does, which
//! loses what the client wrote already, so a client that wrote is refused.
//!
//! The queue length of a connected socket goes into `backlog`, the kernel's field for both.
//!
//! A peer outside the tree is refused, unless the user says that it will be there at the restore
//! too: with `--ext-unix-sk`, or `--external unix[INODE]` of either end. A datagram socket with a
//! name is stored then, as an external one to connect to; of any other only its number, and the
//! restorer must be given the socket itself (`--inherit-fd fd[N]:socket:[INODE]`).

use super::mounts::{Inode, Namespace, below};
use super::{FileTable, OpenFile, Problem, RoomResult, by_name, file_entry, regfile, unix_queue};
use crate::context::Context;
use crate::refusal::Refusal;
use anyhow::{Context as _, Result};
use crust_image::ids::FileId;
use crust_image::tcp_state::LISTEN;
use crust_process::descriptor;
use crust_process::descriptor::sockopt_bytes;
use crust_process::pid::HostPid;
use crust_process::proc::text::split_deleted;
use crust_process::sockdiag::{UnixSocket, collect_unix_sockets, open_sock_diag};
use crust_proto::criu::{FdTypes, FileEntry, FilePermsEntry, UnixSkEntry};
use nix::errno::Errno;
use nix::libc;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd;

/// uflags of the peer: a socket outside of the dump (USK_EXTERN).
const EXTERNAL: u32 = 1;

/// The unix sockets of a dump.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Everything sock_diag said, by inode number; asked once, when the first socket is met.
    kernel: Option<HashMap<u32, UnixSocket>>,
    /// Those of the tree.
    ours: BTreeMap<u32, Ours>,
    /// Their queues.
    pub(super) packets: Vec<unix_queue::Packet>,
}

#[derive(Debug)]
struct Ours {
    id: FileId,
    task: HostPid,
    name: String,
}

/// Dumps a descriptor.
pub fn dump(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
) -> RoomResult<FileEntry> {
    let ino = file.stat()?.ino as u32;
    let socket = table.unix.facts(ino)?;
    let ours = Ours {
        id,
        task: file.task.pid,
        name: file.name(),
    };
    table.unix.ours.insert(ino, ours);
    let binding = collect_binding(table, file, &socket)?;
    let entry = UnixSkEntry {
        id: id.0,
        ino,
        r#type: u32::from(socket.sock_type),
        state: u32::from(socket.state),
        flags: file.flags,
        uflags: 0,
        backlog: socket.wqlen,
        peer: socket.peer.unwrap_or(0),
        fown: file.fown(ctx)?,
        opts: file.socket_options()?,
        name: stored_name(&socket),
        shutdown: (socket.shutdown != 0).then_some(i32::from(socket.shutdown)),
        file_perms: binding.perms,
        name_dir: binding.directory,
        deleted: binding.deleted.then_some(true),
        ns_id: table.own_ids.net_ns_id,
        mnt_id: None,
        crust_peer_pid: peer_of_tree(ctx, file)?,
    };
    if u32::from(socket.state) != LISTEN {
        unix_queue::collect(ctx, table, file, id, &socket)?;
    }
    Ok(FileEntry {
        usk: Some(Box::new(entry)),
        ..file_entry(FdTypes::Unixsk, id)
    })
}

/// The task of the tree that SO_PEERCRED names.
fn peer_of_tree(ctx: &Context, file: &OpenFile) -> RoomResult<Option<u32>> {
    let mut peer = [0u8; size_of::<libc::ucred>()];
    sockopt_bytes(file.fd, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut peer)
        .context("SO_PEERCRED")?;
    // The pid comes first (struct ucred of include/linux/socket.h).
    let pid = peer.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
    let task = pid.and_then(|pid| ctx.task(pid));
    Ok(task.map(|task| task.virt))
}

impl Sockets {
    fn facts(&mut self, ino: u32) -> RoomResult<UnixSocket> {
        let kernel = match &mut self.kernel {
            Some(kernel) => kernel,
            unasked => unasked.insert(ask_kernel()?),
        };
        kernel.get(&ino).cloned().ok_or_else(|| {
            Problem::refused("is a unix socket of another network namespace than the dumper's")
        })
    }
}

fn ask_kernel() -> Result<HashMap<u32, UnixSocket>> {
    let diag = open_sock_diag().context("asking for the unix sockets")?;
    let all = collect_unix_sockets(diag.as_fd()).context("asking for the unix sockets")?;
    Ok(all.into_iter().map(|socket| (socket.ino, socket)).collect())
}

/// A path ends with a zero byte as bind(2) had it, unless it fills the address.
fn stored_name(socket: &UnixSocket) -> Vec<u8> {
    const LONGEST: usize = 108;
    match &socket.name {
        None => Vec::new(),
        Some(name) if name.first() == Some(&0) || name.len() >= LONGEST => name.clone(),
        Some(path) => [path.as_slice(), b"\0"].concat(),
    }
}

/// The file behind a bound path.
#[derive(Debug, Default)]
struct Binding {
    perms: Option<FilePermsEntry>,
    /// Where a relative path is meant from.
    directory: Option<Vec<u8>>,
    deleted: bool,
}

fn collect_binding(
    table: &mut FileTable,
    file: &OpenFile,
    socket: &UnixSocket,
) -> RoomResult<Binding> {
    let Some(path) = socket
        .name
        .as_deref()
        .filter(|name| name.first() != Some(&0))
    else {
        return Ok(Binding::default());
    };
    let bound = match descriptor::bound_inode(file.fd) {
        Ok(bound) => bound,
        // An accepted socket has its listener's name, and no file once the listener has none.
        Err(Errno::ENOENT) => {
            return Ok(Binding {
                deleted: true,
                ..Binding::default()
            });
        }
        Err(Errno::EPERM) => {
            let found = by_name::open_bound(file.task.pid, socket).context("open its file")?;
            found.ok_or_else(|| {
                let path = String::from_utf8_lossy(path);
                let what = "whose file cannot be found without CAP_NET_ADMIN";
                Problem::refused(format!("is bound to {path}, {what}"))
            })?
        }
        Err(errno) => return Err(anyhow::Error::new(errno).context("SIOCUNIXFILE").into()),
    };
    let stat = descriptor::statx(bound.as_fd()).context("statx of the socket's file")?;
    let link = descriptor::link_of(bound.as_fd()).context("readlink of the socket's file")?;
    let link = descriptor::bytes_of(link);
    let namespace = table.mounts.of(file.task)?;
    let inode = (stat.dev, stat.ino);
    let deleted = stat.nlink == 0;
    let directory = match path.first() {
        Some(b'/') => {
            check_absolute(&namespace, path, inode, deleted)?;
            None
        }
        _ => Some(directory_of(&namespace, file, path, &link, inode, deleted)?),
    };
    Ok(Binding {
        perms: Some(FilePermsEntry {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
        }),
        directory,
        deleted,
    })
}

/// An absolute path must still lead to the socket, unless it was unlinked.
fn check_absolute(
    namespace: &Namespace,
    path: &[u8],
    inode: Inode,
    deleted: bool,
) -> RoomResult<()> {
    if deleted || namespace.inode_at(path)? == Some(inode) {
        return Ok(());
    }
    let path = String::from_utf8_lossy(path);
    Err(Problem::refused(format!(
        "is bound to {path}, where another file is now: it was renamed, or bound below another root"
    )))
}

/// The directory from which a relative path leads to the socket.
fn directory_of(
    namespace: &Namespace,
    file: &OpenFile,
    path: &[u8],
    link: &[u8],
    inode: Inode,
    deleted: bool,
) -> RoomResult<Vec<u8>> {
    let link = if deleted { split_deleted(link).0 } else { link };
    let tail = [b"/", path].concat();
    if let Some(directory) = link.strip_suffix(tail.as_slice()) {
        let directory = if directory.is_empty() {
            b"/"
        } else {
            directory
        };
        return Ok(directory.to_vec());
    }
    // `../name` and its like: from the working directory, where it was most likely bound.
    let cwd = std::fs::read_link(format!("/proc/{}/cwd", file.task.pid)).context("readlink cwd")?;
    let cwd = descriptor::bytes_of(cwd.into_os_string());
    let whole = [cwd.as_slice(), &tail].concat();
    if !deleted && below(&cwd, b"/").is_some() && namespace.inode_at(&whole)? == Some(inode) {
        return Ok(cwd);
    }
    Err(Problem::refused(format!(
        "is bound to the relative name {}, and the directory it was meant from is not known",
        String::from_utf8_lossy(path)
    )))
}

impl FileTable {
    /// Looks at the peers when all sockets are known: the other end must be in the tree, and
    /// clients that wait in a listener get it as their peer.
    pub(super) fn settle_unix(&mut self, ctx: &Context) {
        let Some(kernel) = &self.unix.kernel else {
            return;
        };
        let mut waiting: HashMap<u32, u32> = HashMap::new();
        let mut external: BTreeSet<u32> = BTreeSet::new();
        for (ino, ours) in &self.unix.ours {
            let Some(socket) = kernel.get(ino) else {
                continue;
            };
            if let Some(what) = outside_peer(&self.unix.ours, socket) {
                let peer = socket.peer.unwrap_or(0);
                if is_external(ctx, *ino, peer) {
                    external.insert(peer);
                } else {
                    let hint = "try --ext-unix-sk, if it will be there at the restore";
                    ctx.refuse(Refusal::new(ours.task, ours.name.clone(), what).hint(hint));
                }
            }
            for client in &socket.icons {
                match check_client(&self.unix.ours, kernel, *client) {
                    None => drop(waiting.insert(*client, *ino)),
                    Some(what) => ctx.refuse(Refusal::new(ours.task, ours.name.clone(), what)),
                }
            }
        }
        let external: Vec<UnixSocket> = external
            .iter()
            .filter_map(|ino| kernel.get(ino))
            .filter(|socket| i32::from(socket.sock_type) == libc::SOCK_DGRAM)
            .filter(|socket| socket.name.is_some())
            .cloned()
            .collect();
        let ids: HashMap<u32, u32> = waiting
            .into_iter()
            .filter_map(|(client, listener)| Some((self.unix.ours.get(&client)?.id.0, listener)))
            .collect();
        for socket in self
            .entries
            .iter_mut()
            .filter_map(|entry| entry.usk.as_mut())
        {
            if let Some(listener) = ids.get(&socket.id) {
                socket.peer = *listener;
            }
        }
        for socket in external {
            let id = self.give_id();
            let net_ns = self.own_ids.net_ns_id;
            self.entries.push(encode_external(id, &socket, net_ns));
        }
    }
}

/// Whether the user said that the peer of a socket will be there at the restore.
fn is_external(ctx: &Context, ino: u32, peer: u32) -> bool {
    let options = ctx.options;
    let named = |ino: u32| options.external.has(&format!("unix[{ino}]"));
    options.ext_unix_sk.allows(peer) || named(peer) || named(ino)
}

/// The entry of a peer outside, which says how to connect to it.
fn encode_external(id: FileId, socket: &UnixSocket, net_ns: Option<u32>) -> FileEntry {
    let entry = UnixSkEntry {
        id: id.0,
        ino: socket.ino,
        r#type: u32::from(socket.sock_type),
        state: u32::from(socket.state),
        uflags: EXTERNAL,
        fown: regfile::no_owner(),
        name: stored_name(socket),
        ns_id: net_ns,
        ..UnixSkEntry::default()
    };
    FileEntry {
        usk: Some(Box::new(entry)),
        ..file_entry(FdTypes::Unixsk, id)
    }
}

/// What to say of a socket whose other end is outside the tree.
fn outside_peer(ours: &BTreeMap<u32, Ours>, socket: &UnixSocket) -> Option<String> {
    let peer = socket
        .peer
        .filter(|peer| *peer != 0 && !ours.contains_key(peer))?;
    let holder = match holder_of(peer) {
        Some(holder) => format!("is held by {holder}"),
        None => "is held by nobody that can be seen".to_owned(),
    };
    Some(format!(
        "its other end, socket {peer}, {holder}, outside the tree"
    ))
}

/// What to say of a listener because of a client that waits in it.
fn check_client(
    ours: &BTreeMap<u32, Ours>,
    kernel: &HashMap<u32, UnixSocket>,
    client: u32,
) -> Option<String> {
    if client == 0 {
        return Some("a connection waits to be accepted whose client is gone already".into());
    }
    if !ours.contains_key(&client) {
        let holder = holder_of(client).unwrap_or_else(|| "nobody that can be seen".into());
        return Some(format!(
            "a connection waits to be accepted whose client, socket {client} of {holder}, is outside the tree"
        ));
    }
    let wrote = kernel.get(&client).is_some_and(|socket| socket.wqlen > 0);
    wrote.then(|| {
        format!("a connection waits to be accepted whose client, socket {client}, has sent data")
    })
}

/// A process that holds a socket, for the message: found by looking through every table, which is
/// slow and happens only when the dump is refused anyway.
fn holder_of(ino: u32) -> Option<String> {
    let wanted = format!("socket:[{ino}]");
    let holds = |pid: &str| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten();
        fds.filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .any(|link| link.as_os_str() == wanted.as_str())
    };
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .find(|pid| holds(pid))
        .map(|pid| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("task {pid} ({})", comm.trim_end())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(name: Option<&[u8]>) -> UnixSocket {
        UnixSocket {
            ino: 9,
            sock_type: 1,
            state: 1,
            cookie: [0; 2],
            name: name.map(<[u8]>::to_vec),
            vfs: None,
            peer: Some(8),
            icons: Vec::new(),
            rqlen: 0,
            wqlen: 0,
            meminfo: Vec::new(),
            shutdown: 0,
            uid: None,
        }
    }

    #[test]
    fn names_are_stored_as_bound() {
        assert_eq!(stored_name(&socket(None)), b"");
        assert_eq!(stored_name(&socket(Some(b"a.sock"))), b"a.sock\0");
        assert_eq!(stored_name(&socket(Some(b"\0abstract"))), b"\0abstract");
        assert_eq!(stored_name(&socket(Some(&[b'x'; 108]))).len(), 108);
    }

    #[test]
    fn an_outside_peer_is_named_by_its_holder() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let ino = nix::sys::stat::fstat(&one).unwrap().st_ino as u32;
        let facts = UnixSocket {
            peer: Some(ino),
            ..socket(None)
        };
        let said = outside_peer(&BTreeMap::new(), &facts).unwrap();
        assert!(
            said.contains(&format!("task {}", std::process::id())),
            "{said}"
        );
    }

    #[test]
    fn a_waiting_client_must_be_silent_and_ours() {
        let pid = HostPid::current();
        let ours = BTreeMap::from([(
            9,
            Ours {
                id: FileId(4),
                task: pid,
                name: String::new(),
            },
        )]);
        let mut kernel = HashMap::from([(9, socket(None))]);
        assert_eq!(check_client(&ours, &kernel, 9), None);
        assert!(check_client(&ours, &kernel, 7).is_some());
        if let Some(client) = kernel.get_mut(&9) {
            client.wqlen = 768;
        }
        assert!(check_client(&ours, &kernel, 9).is_some());
    }
}
