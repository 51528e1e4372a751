//! `x fds`: the descriptors of each task, its working directory and root.

use crate::dump::{Dump, Files, enum_text};
use crate::explore::describe::file_json;
use anyhow::Result;
use crust_image::Kind;
use crust_image::dynamic::Message;
use crust_image::json::quoted_printable;
use serde_json::{Value, json};

/// What stands for a file whose entry, or its part, is missing.
pub const UNKNOWN_PATH: &str = "unknown path";

pub fn text(dump: &Dump) -> Result<String> {
    let files = dump.files()?;
    let mut text = String::new();
    for task in dump.tasks()? {
        text += &format!("{}\n", task.pid);
        let ids = dump.message(Kind::Ids, Some(task.pid))?;
        if let Some(table) = ids.as_ref().and_then(|ids| ids.u64("files_id"))
            && let Some(image) = dump.image(Kind::Fdinfo, Some(table))?
        {
            for fd in image.messages() {
                text += &format!(
                    "\t{:>7}: {}\n",
                    fd.u64("fd").unwrap_or(0),
                    description(&files, fd)
                );
            }
        }
        if let Some(fs) = dump.message(Kind::Fs, Some(task.pid))? {
            for (name, field) in [("cwd", "cwd_id"), ("root", "root_id")] {
                let path = fs.u64(field).and_then(|id| files.path(id));
                text += &format!("\t{name:>7}: {}\n", path.as_deref().unwrap_or(UNKNOWN_PATH));
            }
        }
    }
    Ok(text)
}

/// The same with every file's entry.
pub fn json(dump: &Dump) -> Result<Value> {
    let files = dump.files()?;
    let mut tasks = Vec::new();
    for task in dump.tasks()? {
        let ids = dump.message(Kind::Ids, Some(task.pid))?;
        let table = ids.as_ref().and_then(|ids| ids.u64("files_id"));
        let mut fds = Vec::new();
        if let Some(table) = table
            && let Some(image) = dump.image(Kind::Fdinfo, Some(table))?
        {
            for fd in image.messages() {
                fds.push(json!({
                    "fd": fd.u64("fd"),
                    "cloexec": fd.u64("flags").unwrap_or(0) & 1 == 1,
                    "file": file_json(&files, fd.u64("id").unwrap_or(0)),
                }));
            }
        }
        let fs = dump.message(Kind::Fs, Some(task.pid))?;
        let path = |field: &str| files.path(fs.as_ref()?.u64(field)?);
        tasks.push(json!({
            "pid": task.pid, "files_id": table, "fds": fds,
            "cwd": path("cwd_id"), "root": path("root_id"),
            "umask": fs.as_ref().and_then(|fs| fs.u64("umask")).map(|umask| format!("{umask:#o}")),
        }));
    }
    Ok(Value::Array(tasks))
}

/// One descriptor as the peer's tool words it.
fn description(files: &Files, fd: &Message) -> String {
    let id = fd.u64("id").unwrap_or(0);
    let file = files.get(id);
    match enum_text(fd, "type").as_str() {
        "REG" => files.path(id).unwrap_or_else(|| UNKNOWN_PATH.to_owned()),
        "PIPE" => match file.and_then(|file| file.message("pipe")?.u64("pipe_id")) {
            Some(pipe) => format!("pipe[{pipe}]"),
            None => "pipe[?]".to_owned(),
        },
        "UNIXSK" => match file.and_then(|file| file.message("usk")) {
            Some(socket) => unix_socket(socket),
            None => "unix[?]".to_owned(),
        },
        kind => format!("{kind}.{id}"),
    }
}

fn unix_socket(socket: &Message) -> String {
    let number = |name: &str| socket.u64(name).unwrap_or(0);
    let name = quoted_printable::encode(socket.bytes("name").unwrap_or_default());
    let space = if name.is_empty() { "" } else { " " };
    format!("unix[{} ({}){space}{name}]", number("ino"), number("peer"))
}
