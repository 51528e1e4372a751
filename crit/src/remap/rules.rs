//! Which field of which message holds a pid, a path, an address, a port or an owner.

use super::map::Maps;
use crust_image::dynamic::{Message, Value};
use crust_proto::schema::FieldDef;

/// What a field holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holds {
    Pid,
    Uid,
    Gid,
    Path,
    /// A unix socket's name: a path with or without a final zero, or abstract.
    SocketName,
    /// The raw siginfo of a pending signal.
    Siginfo,
}

/// The rule for a field, by the names of its message and itself.
fn rule(message: &str, field: &str) -> Option<Holds> {
    Some(match (message, field) {
        ("pstree_entry", "pid" | "ppid" | "pgid" | "sid" | "threads") => Holds::Pid,
        ("fown_entry", "pid") => Holds::Pid,
        ("tty_info_entry", "sid" | "pgrp") => Holds::Pid,
        ("posix_timer_entry", "notify_thread_id") => Holds::Pid,
        ("file_lock_entry", "pid") => Holds::Pid,
        ("pidfd_entry", "nspid") => Holds::Pid,
        ("autofs_entry", "pgrp") => Holds::Pid,
        ("unix_sk_entry", "crust_peer_pid") => Holds::Pid,
        ("crust_sender_entry", "pid") => Holds::Pid,
        ("siginfo_entry", "siginfo") => Holds::Siginfo,

        ("reg_file_entry", "name") => Holds::Path,
        ("unix_sk_entry", "name") => Holds::SocketName,
        ("unix_sk_entry", "name_dir") => Holds::Path,
        ("mnt_entry", "mountpoint" | "root") => Holds::Path,
        ("fh_entry", "path") => Holds::Path,
        ("fanotify_mount_mark_entry", "path") => Holds::Path,
        ("irmap_cache_entry", "path") => Holds::Path,
        ("ghost_file_entry", "symlnk_target") => Holds::Path,
        ("binfmt_misc_entry", "interpreter") => Holds::Path,

        ("creds_entry", "uid" | "euid" | "suid" | "fsuid") => Holds::Uid,
        ("creds_entry", "gid" | "egid" | "sgid" | "fsgid" | "groups") => Holds::Gid,
        ("fown_entry", "uid" | "euid") => Holds::Uid,
        ("task_core_entry", "loginuid") => Holds::Uid,
        ("ipc_desc_entry", "uid" | "cuid") => Holds::Uid,
        ("ipc_desc_entry", "gid" | "cgid") => Holds::Gid,
        ("tun_link_entry", "owner") => Holds::Uid,
        ("tun_link_entry", "group") => Holds::Gid,
        (
            "ghost_file_entry" | "memfd_inode_entry" | "file_perms_entry" | "tty_info_entry"
            | "autofs_entry" | "cgroup_perms" | "crust_sender_entry",
            "uid",
        ) => Holds::Uid,
        (
            "ghost_file_entry" | "memfd_inode_entry" | "file_perms_entry" | "tty_info_entry"
            | "autofs_entry" | "cgroup_perms" | "crust_sender_entry",
            "gid",
        ) => Holds::Gid,
        _ => return None,
    })
}

/// A remap that says its path is below /proc/<pid> of a dead process.
pub fn is_procfs(remap: &Message) -> bool {
    const PROCFS: i64 = 2;
    remap.i64("remap_type") == Some(PROCFS)
}

/// Changes messages and remembers what it did.
pub struct Remapper<'a> {
    maps: &'a Maps,
    /// Address and port of each socket's own end, before any change.
    local_ends: Vec<(Vec<u64>, u64)>,
    file: String,
    changes: Vec<String>,
    warnings: Vec<String>,
    /// A value was met that a map gives.
    done_before: bool,
}

impl<'a> Remapper<'a> {
    pub fn new(maps: &'a Maps, local_ends: Vec<(Vec<u64>, u64)>) -> Remapper<'a> {
        Remapper {
            maps,
            local_ends,
            file: String::new(),
            changes: Vec::new(),
            warnings: Vec::new(),
            done_before: false,
        }
    }

    /// The next messages are those of this image.
    pub fn enter(&mut self, file: &str) {
        file.clone_into(&mut self.file);
    }

    pub fn renamed(&mut self, old: &str, new: &str) {
        self.changes.push(format!("{old} -> {new}"));
    }

    /// Whether something already is what a map would make it.
    pub fn done_before(&self) -> bool {
        self.done_before
    }

    /// What was changed, a line each.
    pub fn changes(&self) -> Vec<String> {
        self.changes.clone()
    }

    /// What the images do not show.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.warnings.clone();
        let pids = self.changes.iter().any(|line| line.starts_with("core-"));
        if pids && self.maps.pids().next().is_some() {
            warnings.push(
                "the memory of the tasks is not changed: a C library keeps thread ids in it (pthread_kill, recursive \
                 and robust mutexes), and programs keep pids they asked for"
                    .to_owned(),
            );
        }
        if self.maps.has_paths() && !self.changes.is_empty() {
            warnings.push("the memory of the tasks is not changed: arguments, environment and program data keep the old paths".to_owned());
        }
        warnings
    }

    /// Changes one entry; says whether anything changed.
    pub fn entry(&mut self, index: u64, message: &mut Message) -> bool {
        let before = self.changes.len();
        self.message(&format!("[{index}]"), message);
        self.changes.len() > before
    }

    fn message(&mut self, path: &str, message: &mut Message) {
        if message.def.name == "remap_file_path_entry" {
            self.procfs(path, message);
        }
        if message.def.name == "inet_sk_entry" {
            self.inet_socket(path, message);
        }
        let name = message.def.name;
        // An owner that was never set is stored as zeros, which are not root's.
        if name == "fown_entry" && message.u64("pid") == Some(0) && message.u64("signum") == Some(0)
        {
            return;
        }
        let relative_socket = name == "unix_sk_entry"
            && message
                .bytes("name")
                .is_some_and(|name| !name.starts_with(b"/"));
        for (def, value) in message.fields_mut() {
            let path = format!("{path}.{}", def.name);
            if let Value::Message(inner) = value {
                self.message(&path, inner);
                continue;
            }
            match rule(name, def.name) {
                Some(Holds::SocketName) if relative_socket => self.look_for_pids(&path, value),
                Some(holds) => self.field(&path, def, holds, value),
                None => {}
            }
        }
    }

    fn field(&mut self, path: &str, def: &FieldDef, holds: Holds, value: &mut Value) {
        self.done_before |= match &*value {
            Value::Bytes(bytes) => self
                .maps
                .gives_path(bytes.strip_suffix(b"\0").unwrap_or(bytes)),
            number => number
                .as_u64()
                .is_some_and(|number| self.maps.gives_number(number)),
        };
        let new = match (holds, &*value) {
            (Holds::Path, Value::Bytes(bytes)) => {
                self.maps.path(bytes).map(|path| Value::Bytes(path.into()))
            }
            (Holds::SocketName, Value::Bytes(bytes)) => {
                let (name, zero) = bytes
                    .strip_suffix(b"\0")
                    .map_or((&bytes[..], &b""[..]), |name| (name, &b"\0"[..]));
                self.maps
                    .path(name)
                    .map(|path| Value::Bytes([&path, zero].concat().into()))
            }
            (Holds::Siginfo, Value::Bytes(bytes)) => {
                self.siginfo(bytes).map(|bytes| Value::Bytes(bytes.into()))
            }
            (_, number) => number
                .as_u64()
                .and_then(|number| self.number(holds, number))
                .map(|new| like(value, new)),
        };
        if let Some(new) = new {
            self.replace(path, def, value, new);
        }
    }

    fn number(&self, holds: Holds, number: u64) -> Option<u64> {
        match holds {
            Holds::Pid => self.maps.pid(number),
            // -1 stands for "none" or "unset" wherever images have an owner.
            Holds::Uid if number < u64::from(u32::MAX) => self.maps.uid(number),
            Holds::Gid if number < u64::from(u32::MAX) => self.maps.gid(number),
            _ => None,
        }
    }

    fn replace(&mut self, path: &str, _def: &FieldDef, value: &mut Value, new: Value) {
        self.changes.push(format!(
            "{}: {path}: {} -> {}",
            self.file,
            shown(value),
            shown(&new)
        ));
        *value = new;
    }

    /// A dead process whose /proc entries are open: its number stands in remap_id.
    fn procfs(&mut self, path: &str, remap: &mut Message) {
        if !is_procfs(remap) {
            return;
        }
        self.done_before |= remap
            .u64("remap_id")
            .is_some_and(|pid| self.maps.gives_number(pid));
        let Some(new) = remap.u64("remap_id").and_then(|pid| self.maps.pid(pid)) else {
            return;
        };
        if let Some(value) = remap.get_mut("remap_id") {
            let before = shown(value);
            *value = Value::Unsigned(new);
            self.changes
                .push(format!("{}: {path}.remap_id: {before} -> {new}", self.file));
        }
    }

    /// si_pid of the signals that carry one (siginfo layout of sigaction(2), 64-bit: si_signo,
    /// si_errno, si_code, padding, si_pid).
    fn siginfo(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        const SIGCHLD: i32 = 17;
        const SENT_BY_A_PROCESS: [i32; 5] = [0, -1, -3, -4, -6];
        let word = |at: usize| {
            bytes
                .get(at..at + 4)
                .and_then(|word| Some(i32::from_le_bytes(word.try_into().ok()?)))
        };
        let sent = SENT_BY_A_PROCESS.contains(&word(8)?) || word(0)? == SIGCHLD;
        let pid = u64::try_from(word(16)?).ok().filter(|_| sent)?;
        let new = u32::try_from(self.maps.pid(pid)?).ok()?;
        let mut changed = bytes.to_vec();
        changed.get_mut(16..20)?.copy_from_slice(&new.to_le_bytes());
        Some(changed)
    }

    /// The own end always; the other end when its address is mapped, and its port when the socket
    /// it belongs to is in the set.
    fn inet_socket(&mut self, path: &str, socket: &mut Message) {
        let words = |socket: &Message, name: &str| -> Vec<u64> {
            socket.all(name).filter_map(|word| word.as_u64()).collect()
        };
        let peer = (
            words(socket, "dst_addr"),
            socket.u64("dst_port").unwrap_or(0),
        );
        let peer_is_here = self.local_ends.contains(&peer);
        for (port, here) in [("src_port", true), ("dst_port", peer_is_here)] {
            let new = socket
                .u64(port)
                .filter(|_| here)
                .and_then(|old| self.maps.port(old));
            if let (Some(new), Some(value)) = (new, socket.get_mut(port)) {
                let before = shown(value);
                *value = Value::Unsigned(new);
                self.changes
                    .push(format!("{}: {path}.{port}: {before} -> {new}", self.file));
            }
        }
        let ports = ["src_port", "dst_port"].map(|name| socket.u64(name).unwrap_or(0));
        self.done_before |= ports.iter().any(|port| self.maps.gives_number(*port));
        for name in ["src_addr", "dst_addr"] {
            self.done_before |= self.maps.gives_address(&words(socket, name));
            let Some(new) = self.maps.address(&words(socket, name)) else {
                continue;
            };
            let mut new = new.into_iter();
            for (_, value) in socket.fields_mut().filter(|(def, _)| def.name == name) {
                if let Some(word) = new.next() {
                    *value = Value::Unsigned(word);
                }
            }
            self.changes
                .push(format!("{}: {path}.{name}: the new address", self.file));
        }
    }

    /// The name of a socket often holds a pid; whether it means one cannot be known.
    fn look_for_pids(&mut self, path: &str, value: &Value) {
        let Value::Bytes(name) = value else { return };
        let text = String::from_utf8_lossy(name);
        let numbers = text.split(|character: char| !character.is_ascii_digit());
        let numbers: Vec<u64> = numbers.filter_map(|digits| digits.parse().ok()).collect();
        if let Some(pid) = self.maps.pids().find(|pid| numbers.contains(pid)) {
            let file = &self.file;
            let shown = text.escape_default();
            self.warnings.push(format!(
                "{file}: {path}: the name \"{shown}\" holds the number {pid} and was not changed"
            ));
        }
    }
}

fn like(value: &Value, number: u64) -> Value {
    match value {
        Value::Signed(_) => Value::Signed(number as i64),
        _ => Value::Unsigned(number),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Unsigned(number) => number.to_string(),
        Value::Signed(number) | Value::Enum(number) => number.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Bytes(bytes)
            if std::str::from_utf8(bytes).is_ok_and(|text| !text.contains('\0')) =>
        {
            String::from_utf8_lossy(bytes).into_owned()
        }
        Value::Bytes(bytes) => {
            let text = bytes.escape_ascii().to_string();
            if text.len() > 80 {
                format!("{} bytes", bytes.len())
            } else {
                text
            }
        }
        Value::Message(_) => "a message".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::rule;
    use crust_proto::schema::MESSAGES;

    /// A field of the format whose name says pid, session or group, and which no rule maps, must
    /// be known not to hold one.
    #[test]
    fn no_field_that_looks_like_a_pid_is_forgotten() {
        let not_a_pid = [
            ("task_kobj_ids_entry", "pid_ns_id"),
            ("fown_entry", "pid_type"),
            ("file_entry", "pidfd"),
            // The port of a netlink socket is often the pid of who bound it, but stays that number.
            ("netlink_sk_entry", "portid"),
            ("netlink_sk_entry", "dst_portid"),
            ("net_device_entry", "peer_nsid"),
            ("sk_opts_entry", "tcp_keepidle"),
            ("tcp_opts_entry", "keepidle"),
        ];
        for message in MESSAGES
            .iter()
            .filter(|message| !message.name.starts_with("criu_"))
        {
            for field in message.fields {
                let looks = ["pid", "pgid", "pgrp", "tid"]
                    .iter()
                    .any(|word| field.name.contains(word))
                    || field.name == "sid";
                // The address of a thread's tid word is memory, which is not changed.
                let known = field.name == "clear_tid_addr"
                    || rule(message.name, field.name).is_some()
                    || not_a_pid.contains(&(message.name, field.name));
                assert!(!looks || known, "{}.{}", message.name, field.name);
            }
        }
    }

    /// The same for owners.
    #[test]
    fn no_field_that_looks_like_an_owner_is_forgotten() {
        for message in MESSAGES
            .iter()
            .filter(|message| !message.name.starts_with("criu_"))
        {
            for field in message.fields {
                let looks = field.name.ends_with("uid")
                    || field.name.ends_with("gid")
                    || field.name == "groups";
                let known =
                    rule(message.name, field.name).is_some() || message.name == "netlink_sk_entry";
                assert!(!looks || known, "{}.{}", message.name, field.name);
            }
        }
    }
}
