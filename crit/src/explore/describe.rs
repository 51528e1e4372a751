//! One file of a dump in a few words and as JSON: what a descriptor, a mapping or a queue refers to.

use crate::dump::{Files, enum_text, text};
use crust_image::dynamic::Message;
use crust_image::json::message::write_message;
use crust_image::json::tables::value_names;
use crust_image::json::{TreeBuilder, quoted_printable};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// A message as a tree in the pretty form.
pub fn tree(message: &Message) -> Value {
    let mut tree = TreeBuilder::default();
    // A tree in memory takes everything.
    let _ = write_message(&mut tree, message, true);
    tree.into_value().unwrap_or_default()
}

/// The member of a file_entry that belongs to its type.
pub fn member(file: &Message) -> Option<&Message> {
    file.fields()
        .iter()
        .find_map(|field| field.value.as_message())
}

/// What a file is: a path, `pipe[..]`, an address.
pub fn summary(files: &Files, id: u64) -> String {
    let Some(file) = files.get(id) else {
        return format!("no file {id}");
    };
    let Some(field) = file
        .fields()
        .iter()
        .find(|field| field.value.as_message().is_some())
    else {
        return enum_text(file, "type");
    };
    let Some(message) = field.value.as_message() else {
        return String::new();
    };
    let number = |name: &str| message.u64(name).unwrap_or(0);
    match field.def.name {
        "reg" => text(message, "name").unwrap_or_default(),
        "pipe" => format!("pipe[{}]", number("pipe_id")),
        "fifo" => format!(
            "fifo[{}] {}",
            number("pipe_id"),
            files.path(number("regf_id")).unwrap_or_default()
        ),
        "tty" => format!("tty {}", files.path(number("regf_id")).unwrap_or_default()),
        "memfd" => format!("memfd inode {}", number("inode_id")),
        "usk" => format!("unix[{}] {}", number("ino"), unix_name(message))
            .trim_end()
            .to_owned(),
        "isk" => inet(message),
        "efd" => format!("eventfd counter {}", number("counter")),
        "pidfd" => format!("pidfd of {}", message.i64("nspid").unwrap_or(0)),
        other => format!("{} {id}", other_name(other)),
    }
}

fn other_name(member: &str) -> &str {
    match member {
        "epfd" => "eventpoll",
        "sgfd" => "signalfd",
        "tfd" => "timerfd",
        "ify" => "inotify",
        "ffy" => "fanotify",
        "nsf" => "namespace",
        "tunf" => "tun",
        "nlsk" => "netlink socket",
        "psk" => "packet socket",
        "bpf" => "bpf map",
        "ext" => "external file",
        other => other,
    }
}

/// A unix socket's name: a path, or an abstract one with `@`.
pub fn unix_name(socket: &Message) -> String {
    let name = socket.bytes("name").unwrap_or_default();
    match name.split_first() {
        None => String::new(),
        Some((0, rest)) => format!("@{}", quoted_printable::encode(rest)),
        Some(_) => {
            let path = name.strip_suffix(b"\0").unwrap_or(name);
            let path = quoted_printable::encode(path);
            match text(socket, "name_dir") {
                Some(dir) if !path.starts_with('/') => format!("{dir}/{path}"),
                _ => path,
            }
        }
    }
}

/// `TCP LISTEN 127.0.0.1:80` or `TCP ESTABLISHED a:1 -> b:2`.
fn inet(socket: &Message) -> String {
    let proto = dictionary_name("proto", socket.u64("proto").unwrap_or(0));
    let state = dictionary_name("state", socket.u64("state").unwrap_or(0));
    let source = address(socket, "src_addr", "src_port");
    if socket.u64("dst_port").unwrap_or(0) == 0 {
        return format!("{proto} {state} {source}");
    }
    format!(
        "{proto} {state} {source} -> {}",
        address(socket, "dst_addr", "dst_port")
    )
}

/// The name a number has in crit's dictionary of sockets.
pub fn dictionary_name(field: &str, number: u64) -> String {
    let names = value_names("sk", field);
    let named = names.iter().find(|(_, value)| *value == number);
    named.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

/// An address and port of an inet socket.
pub fn address(socket: &Message, addresses: &str, port: &str) -> String {
    let port = socket
        .u64(port)
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or(0);
    let words = socket.all(addresses).filter_map(|word| word.as_u64());
    let bytes: Vec<u8> = words.flat_map(|word| (word as u32).to_le_bytes()).collect();
    if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return SocketAddr::from((Ipv4Addr::from(v4), port)).to_string();
    }
    match <[u8; 16]>::try_from(bytes.as_slice()) {
        Ok(v6) => SocketAddr::from((Ipv6Addr::from(v6), port)).to_string(),
        Err(_) => format!("?:{port}"),
    }
}

/// A file for `--json`: id, type, words, and the entry's member.
pub fn file_json(files: &Files, id: u64) -> Value {
    let Some(file) = files.get(id) else {
        return json!({"id": id, "missing": true});
    };
    json!({
        "id": id,
        "type": enum_text(file, "type"),
        "summary": summary(files, id),
        "entry": member(file).map(tree),
    })
}
