//! `x ps`: the tree of tasks with their groups, sessions and names.

use crate::dump::{Dump, as_tree, text as field_text};
use anyhow::Result;
use crust_image::Kind;

pub fn text(dump: &Dump) -> Result<String> {
    let tasks = dump.tasks()?;
    let mut text = format!("{:>7}{:>7}{:>7}   COMM\n", "PID", "PGID", "SID");
    for (depth, task) in as_tree(&tasks) {
        let core = dump.message(Kind::Core, Some(task.pid))?;
        let comm = core
            .as_ref()
            .and_then(|core| core.message("tc"))
            .and_then(|tc| field_text(tc, "comm"));
        let comm = comm.unwrap_or_else(|| "?".to_owned());
        text += &format!(
            "{:7}{:7}{:7}   {}{comm}\n",
            task.pid,
            task.pgid,
            task.sid,
            "    ".repeat(depth)
        );
    }
    Ok(text)
}
