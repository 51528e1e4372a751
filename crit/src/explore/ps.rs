//! `x ps`: the tree of tasks with their groups, sessions and names.

use crate::dump::{Dump, Task, as_tree, text as field_text};
use crate::explore::table::Table;
use crate::memory::{Pages, open_dir};
use anyhow::Result;
use crust_image::Kind;
use crust_image::dynamic::Message;
use crust_image::pages::DumpChain;
use serde_json::{Value, json};

/// The longest command line that is read.
const LONGEST_COMMAND: u64 = 4096;

/// The form of CRIU's crit.
pub fn text(dump: &Dump) -> Result<String> {
    let tasks = dump.tasks()?;
    let mut text = format!("{:>7}{:>7}{:>7}   COMM\n", "PID", "PGID", "SID");
    for (depth, task) in as_tree(&tasks) {
        let core = dump.message(Kind::Core, Some(task.pid))?;
        let indent = "    ".repeat(depth);
        text += &format!(
            "{:7}{:7}{:7}   {indent}{}\n",
            task.pid,
            task.pgid,
            task.sid,
            comm(core.as_ref())
        );
    }
    Ok(text)
}

/// With states, threads and command lines.
pub fn long(dump: &Dump) -> Result<String> {
    let tasks = dump.tasks()?;
    let mut table = Table::new(&["PID", "PPID", "PGID", "SID", "STATE", "THREADS", "COMMAND"]);
    for (depth, task) in as_tree(&tasks) {
        let core = dump.message(Kind::Core, Some(task.pid))?;
        let command = match command_line(dump, task) {
            Ok(words) if !words.is_empty() => words.join(" "),
            // A zombie has no memory, and a dump without its pages still has its names.
            _ => format!("[{}]", comm(core.as_ref())),
        };
        let numbers = [task.pid, task.ppid, task.pgid, task.sid].map(|number| number.to_string());
        let mut row = numbers.to_vec();
        row.push(state(core.as_ref()));
        row.push(task.threads.len().to_string());
        row.push(format!("{}{command}", "    ".repeat(depth)));
        table.row(row);
    }
    Ok(table.text())
}

pub fn json(dump: &Dump) -> Result<Value> {
    let files = dump.files()?;
    let mut rows = Vec::new();
    for task in dump.tasks()? {
        let core = dump.message(Kind::Core, Some(task.pid))?;
        let mm = dump.message(Kind::Mm, Some(task.pid))?;
        let exe = mm
            .as_ref()
            .and_then(|mm| files.path(mm.u64("exe_file_id")?));
        let mut threads = Vec::new();
        for tid in task.threads.iter().filter(|tid| **tid != 0) {
            let core = dump.message(Kind::Core, Some(*tid))?;
            let name = core
                .as_ref()
                .and_then(|core| field_text(core.message("thread_core")?, "comm"));
            threads.push(json!({"tid": tid, "comm": name}));
        }
        rows.push(json!({
            "pid": task.pid, "ppid": task.ppid, "pgid": task.pgid, "sid": task.sid,
            "state": state(core.as_ref()), "comm": comm(core.as_ref()), "threads": threads, "exe": exe,
            "cmdline": command_line(dump, &task).ok(),
        }));
    }
    Ok(Value::Array(rows))
}

fn comm(core: Option<&Message>) -> String {
    let comm = core.and_then(|core| field_text(core.message("tc")?, "comm"));
    comm.unwrap_or_else(|| "?".to_owned())
}

/// tc.task_state as CRIU 4.2 writes it.
fn state(core: Option<&Message>) -> String {
    let tc = core.and_then(|core| core.message("tc"));
    match tc.and_then(|tc| tc.u64("task_state")) {
        Some(1) => "alive".to_owned(),
        Some(2) => "zombie".to_owned(),
        Some(3) => match tc.and_then(|tc| tc.u64("stop_signo")) {
            Some(signal) => format!("stopped ({signal})"),
            None => "stopped".to_owned(),
        },
        Some(other) => other.to_string(),
        None => "?".to_owned(),
    }
}

/// The words between mm_arg_start and mm_arg_end in the task's memory.
fn command_line(dump: &Dump, task: &Task) -> Result<Vec<String>> {
    let Some(mm) = dump.message(Kind::Mm, Some(task.pid))? else {
        return Ok(Vec::new());
    };
    let number = |name: &str| mm.u64(name).unwrap_or(0);
    let length = number("mm_arg_end")
        .saturating_sub(number("mm_arg_start"))
        .min(LONGEST_COMMAND);
    let dir = open_dir(dump.path())?;
    let chain = DumpChain::open(&dir)?;
    let mut pages = Pages::of(&chain, Kind::Pagemap, task.pid)?;
    let bytes = pages.read_range(number("mm_arg_start"), length as usize)?;
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    Ok(bytes
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect())
}
