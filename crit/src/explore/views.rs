//! The views CRIU's crit does not have: sockets, namespaces, mounts, credentials, timers, remaps
//! and statistics. Each is made as JSON and, for people, as a table of it.

use crate::dump::{Dump, enum_text, text};
use crate::explore::describe::{address, dictionary_name, summary, tree, unix_name};
use crate::explore::table::Table;
use anyhow::Result;
use crust_image::Kind;
use crust_image::dynamic::Message;
use serde_json::{Value, json};

/// Every socket with its state, ends and queued bytes.
pub fn sockets(dump: &Dump) -> Result<Value> {
    let files = dump.files()?;
    let queues = dump.image(Kind::SkQueues, None)?;
    let queued = |id: u64| -> u64 {
        let packets = queues.iter().flat_map(|image| image.messages());
        packets
            .filter(|packet| packet.u64("id_for") == Some(id))
            .filter_map(|packet| packet.u64("length"))
            .sum()
    };
    let mut rows = Vec::new();
    for (id, file) in files.iter() {
        if let Some(socket) = file.message("usk") {
            rows.push(json!({
                "id": id, "family": "UNIX",
                "type": dictionary_name("type", socket.u64("type").unwrap_or(0)),
                "state": dictionary_name("state", socket.u64("state").unwrap_or(0)),
                "ino": socket.u64("ino"), "local": unix_name(socket),
                "peer": socket.u64("peer").filter(|peer| *peer != 0).map(|peer| peer.to_string()).unwrap_or_default(),
                "queued": queued(id),
            }));
        } else if let Some(socket) = file.message("isk") {
            rows.push(inet_row(dump, id, socket)?);
        } else if let Some(socket) = file.message("nlsk").or_else(|| file.message("psk")) {
            let packet = file.message("psk").is_some();
            rows.push(json!({
                "id": id, "family": if packet { "PACKET" } else { "NETLINK" },
                "type": dictionary_name("type", socket.u64("type").unwrap_or(0)),
                "state": "", "ino": socket.u64("ino"),
                "local": socket.u64("portid").map(|port| port.to_string()).unwrap_or_default(),
                "peer": "", "queued": queued(id),
            }));
        }
    }
    Ok(Value::Array(rows))
}

fn inet_row(dump: &Dump, id: u64, socket: &Message) -> Result<Value> {
    let number = |name: &str| socket.u64(name).unwrap_or(0);
    let stream = dump.message(Kind::TcpStream, Some(number("ino")))?;
    let bytes = |name: &str| {
        stream
            .as_ref()
            .and_then(|stream| stream.u64(name))
            .unwrap_or(0)
    };
    let connected = number("dst_port") != 0;
    Ok(json!({
        "id": id,
        "family": dictionary_name("family", number("family")),
        "type": dictionary_name("proto", number("proto")),
        "state": dictionary_name("state", number("state")),
        "ino": number("ino"),
        "local": address(socket, "src_addr", "src_port"),
        "peer": if connected { address(socket, "dst_addr", "dst_port") } else { String::new() },
        "queued": bytes("inq_len") + bytes("outq_len"),
    }))
}

/// The namespaces of each task; one of the dumper's own is marked as the host's.
pub fn namespaces(dump: &Dump) -> Result<Value> {
    let inventory = dump.message(Kind::Inventory, None)?;
    let host = inventory
        .as_ref()
        .and_then(|inventory| inventory.message("root_ids"));
    let mut rows = Vec::new();
    for task in dump.tasks()? {
        let Some(ids) = dump.message(Kind::Ids, Some(task.pid))? else {
            continue;
        };
        let mut row = serde_json::Map::new();
        row.insert("pid".into(), task.pid.into());
        for kind in ["pid", "net", "ipc", "uts", "mnt", "user", "cgroup", "time"] {
            let field = format!("{kind}_ns_id");
            let Some(id) = ids.u64(&field) else { continue };
            let shared = host.and_then(|host| host.u64(&field)) == Some(id);
            let key = if kind == "pid" { "pid_ns" } else { kind };
            row.insert(key.into(), if shared { json!("host") } else { json!(id) });
        }
        rows.push(Value::Object(row));
    }
    Ok(Value::Array(rows))
}

/// The mounts of every dumped mount namespace.
pub fn mounts(dump: &Dump) -> Result<Value> {
    let types = crust_proto::schema::enumeration("fstype");
    let mut rows = Vec::new();
    for id in dump.ids_of(Kind::Mnts)? {
        let Some(image) = dump.image(Kind::Mnts, Some(id))? else {
            continue;
        };
        for mount in image.messages() {
            let fstype = mount.i64("fstype").unwrap_or(0);
            let name = types
                .and_then(|types| types.name_of(fstype))
                .map(str::to_lowercase);
            let name = match (name.as_deref(), text(mount, "fsname")) {
                (Some("auto"), Some(fsname)) => fsname,
                (Some(name), _) => name.to_owned(),
                (None, _) => fstype.to_string(),
            };
            rows.push(json!({
                "ns": id, "mnt_id": mount.u64("mnt_id"), "parent": mount.u64("parent_mnt_id"),
                "mountpoint": text(mount, "mountpoint"), "root": text(mount, "root"), "fstype": name,
                "source": text(mount, "source"), "options": text(mount, "options"),
                "external": text(mount, "ext_key"),
            }));
        }
    }
    Ok(Value::Array(rows))
}

/// The credentials of each thread.
pub fn credentials(dump: &Dump) -> Result<Value> {
    let mut rows = Vec::new();
    for task in dump.tasks()? {
        for tid in task.threads.iter().filter(|tid| **tid != 0) {
            let core = dump.message(Kind::Core, Some(*tid))?;
            let thread = core.as_ref().and_then(|core| core.message("thread_core"));
            let Some(creds) = thread.and_then(|thread| thread.message("creds")) else {
                continue;
            };
            let number = |name: &str| creds.u64(name).unwrap_or(0);
            let caps = |name: &str| {
                let words = creds.all(name).filter_map(|word| word.as_u64());
                format!(
                    "{:#x}",
                    words
                        .zip([0, 32])
                        .fold(0, |set, (word, shift)| set | word << shift)
                )
            };
            let groups: Vec<u64> = creds
                .all("groups")
                .filter_map(|group| group.as_u64())
                .collect();
            rows.push(json!({
                "pid": task.pid, "tid": tid, "uid": number("uid"), "euid": number("euid"), "suid": number("suid"),
                "fsuid": number("fsuid"), "gid": number("gid"), "egid": number("egid"), "sgid": number("sgid"),
                "fsgid": number("fsgid"), "groups": groups, "cap_eff": caps("cap_eff"), "cap_prm": caps("cap_prm"),
                "cap_bnd": caps("cap_bnd"), "secbits": number("secbits"),
                "no_new_privs": number("no_new_privs"), "lsm": text(creds, "lsm_profile"),
            }));
        }
    }
    Ok(Value::Array(rows))
}

/// Armed interval timers, POSIX timers and timerfds.
pub fn timers(dump: &Dump) -> Result<Value> {
    let mut rows = Vec::new();
    for task in dump.tasks()? {
        let core = dump.message(Kind::Core, Some(task.pid))?;
        let timers = core
            .as_ref()
            .and_then(|core| core.message("tc")?.message("timers"));
        let Some(timers) = timers else { continue };
        for (name, what) in [
            ("real", "ITIMER_REAL"),
            ("virt", "ITIMER_VIRTUAL"),
            ("prof", "ITIMER_PROF"),
        ] {
            let Some(timer) = timers.message(name) else {
                continue;
            };
            let seconds = |sec: &str, usec: &str| seconds(timer, sec, usec, 1_000_000);
            if timer
                .fields()
                .iter()
                .any(|field| field.value.as_u64() != Some(0))
            {
                rows.push(timer_row(
                    task.pid,
                    what,
                    seconds("vsec", "vusec"),
                    seconds("isec", "iusec"),
                    timer,
                ));
            }
        }
        for timer in timers.messages("posix") {
            let what = format!(
                "POSIX {} clock {}",
                timer.u64("it_id").unwrap_or(0),
                timer.u64("clock_id").unwrap_or(0)
            );
            let seconds = |sec: &str, nsec: &str| seconds(timer, sec, nsec, 1_000_000_000);
            rows.push(timer_row(
                task.pid,
                &what,
                seconds("vsec", "vnsec"),
                seconds("isec", "insec"),
                timer,
            ));
        }
    }
    let files = dump.files()?;
    for (id, file) in files.iter() {
        let Some(timer) = file.message("tfd") else {
            continue;
        };
        let what = format!("timerfd {id} clock {}", timer.u64("clockid").unwrap_or(0));
        let seconds = |sec: &str, nsec: &str| seconds(timer, sec, nsec, 1_000_000_000);
        rows.push(timer_row(
            0,
            &what,
            seconds("vsec", "vnsec"),
            seconds("isec", "insec"),
            timer,
        ));
    }
    Ok(Value::Array(rows))
}

fn timer_row(pid: u64, what: &str, left: String, interval: String, timer: &Message) -> Value {
    json!({"pid": pid, "timer": what, "left": left, "interval": interval, "entry": tree(timer)})
}

fn seconds(timer: &Message, whole: &str, fraction: &str, scale: u64) -> String {
    let digits = if scale == 1_000_000 { 6 } else { 9 };
    let number = |name: &str| timer.u64(name).unwrap_or(0);
    format!("{}.{:0digits$}", number(whole), number(fraction))
}

/// Paths that no longer lead to their file, and what the restore puts in their place.
pub fn remaps(dump: &Dump) -> Result<Value> {
    let files = dump.files()?;
    let mut rows = Vec::new();
    let image = dump.image(Kind::RemapFpath, None)?;
    for remap in image.iter().flat_map(|image| image.messages()) {
        let (orig, target) = (
            remap.u64("orig_id").unwrap_or(0),
            remap.u64("remap_id").unwrap_or(0),
        );
        // Images without the field tell a ghost by the top bit of the id.
        let kind = match remap.get("remap_type") {
            Some(_) => enum_text(remap, "remap_type"),
            None if target >> 31 == 1 => "GHOST".to_owned(),
            None => "LINKED".to_owned(),
        };
        let to = match kind.as_str() {
            "LINKED" => summary(&files, target),
            "GHOST" => Kind::GhostFile.file_name(Some(target & 0x7fff_ffff)),
            "PROCFS" => format!("dead process {target}"),
            _ => target.to_string(),
        };
        rows.push(json!({"orig_id": orig, "path": summary(&files, orig), "type": kind, "remap_id": target, "to": to}));
    }
    Ok(Value::Array(rows))
}

/// What stats-dump and stats-restore tell.
pub fn statistics(dump: &Dump) -> Result<Value> {
    let mut rows = Vec::new();
    for (kind, member) in [(Kind::StatsDump, "dump"), (Kind::StatsRestore, "restore")] {
        let Some(stats) = dump.message(kind, None)? else {
            continue;
        };
        let Some(stats) = stats.message(member) else {
            continue;
        };
        for field in stats.fields() {
            rows.push(
                json!({"stage": member, "what": field.def.name, "value": field.value.as_u64()}),
            );
        }
    }
    Ok(Value::Array(rows))
}

/// An array of flat objects as a table. `columns` are keys; values that are no text are put as
/// JSON.
pub fn table(rows: &Value, columns: &[&str]) -> String {
    let mut heads = Vec::new();
    for column in columns {
        heads.push(column.to_uppercase());
    }
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    let mut table = Table::new(&heads);
    for row in rows.as_array().into_iter().flatten() {
        let cells = columns.iter().map(|column| match row.get(*column) {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) if text.is_empty() => "-".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(items)) => {
                let items: Vec<String> = items.iter().map(Value::to_string).collect();
                if items.is_empty() {
                    "-".to_owned()
                } else {
                    items.join(",")
                }
            }
            Some(other) => other.to_string(),
        });
        table.row(cells.collect());
    }
    table.text()
}
