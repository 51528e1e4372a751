//! `x mems`: the memory areas of each task and what stands behind them.

use crate::dump::{Dump, Files};
use crate::explore::describe::{file_json, tree};
use crate::explore::fds::UNKNOWN_PATH;
use anyhow::Result;
use crust_image::Kind;
use crust_image::dynamic::Message;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Bits of vma_entry.status (mmap.status of crit's tables).
pub mod status {
    pub const REGULAR: u64 = 0x1;
    pub const STACK: u64 = 0x2;
    pub const VSYSCALL: u64 = 0x4;
    pub const VDSO: u64 = 0x8;
    pub const FILE_PRIVATE: u64 = 0x40;
    pub const FILE_SHARED: u64 = 0x80;
    pub const ANON_SHARED: u64 = 0x100;
    pub const SYSVIPC: u64 = 0x400;
    pub const SOCKET: u64 = 0x800;
}

const MAP_GROWSDOWN: u64 = 0x100;

pub fn text(dump: &Dump) -> Result<String> {
    let files = dump.files()?;
    let mut text = String::new();
    let mut shared = Shared::default();
    for task in dump.tasks()? {
        text += &format!("{}\n", task.pid);
        let Some(mm) = dump.message(Kind::Mm, Some(task.pid))? else {
            continue;
        };
        let exe = mm.u64("exe_file_id").and_then(|id| files.path(id));
        text += &format!(
            "\t{:<36}    {}\n",
            "exe",
            exe.as_deref().unwrap_or(UNKNOWN_PATH)
        );
        for vma in mm.messages("vmas") {
            text += &line(vma, &files, &mut shared);
        }
    }
    Ok(text)
}

/// The same with every area's entry and the file behind it.
pub fn json(dump: &Dump) -> Result<Value> {
    let files = dump.files()?;
    let mut tasks = Vec::new();
    for task in dump.tasks()? {
        let mm = dump.message(Kind::Mm, Some(task.pid))?;
        let exe = mm
            .as_ref()
            .and_then(|mm| files.path(mm.u64("exe_file_id")?));
        let vmas: Vec<Value> = mm
            .iter()
            .flat_map(|mm| mm.messages("vmas"))
            .map(|vma| vma_json(vma, &files))
            .collect();
        tasks.push(json!({"pid": task.pid, "exe": exe, "vmas": vmas}));
    }
    Ok(Value::Array(tasks))
}

fn vma_json(vma: &Message, files: &Files) -> Value {
    let mut entry = tree(vma);
    let mapped = vma.u64("status").unwrap_or(0) & (status::FILE_PRIVATE | status::FILE_SHARED) != 0;
    if let (true, Some(members)) = (mapped, entry.as_object_mut()) {
        members.insert(
            "file".into(),
            file_json(files, vma.u64("shmid").unwrap_or(0)),
        );
    }
    entry
}

/// Numbers for shared objects, handed out in the order they are met over the whole dump.
#[derive(Default)]
struct Shared {
    numbers: HashMap<u64, usize>,
}

impl Shared {
    fn number(&mut self, shmid: u64) -> usize {
        let next = self.numbers.len() + 1;
        *self.numbers.entry(shmid).or_insert(next)
    }
}

fn line(vma: &Message, files: &Files, shared: &mut Shared) -> String {
    let number = |name: &str| vma.u64(name).unwrap_or(0);
    let range = format!("{:08x}-{:08x}", number("start"), number("end"));
    let prot = number("prot");
    let bit = |bit: u64, letter: char| if prot & bit != 0 { letter } else { '-' };
    let (r, w, x) = (bit(1, 'r'), bit(2, 'w'), bit(4, 'x'));
    let regular = if number("status") & status::REGULAR == 0 {
        " *"
    } else {
        ""
    };
    format!(
        "\t{range:<36}{r}{w}{x}{}{regular}\n",
        behind(vma, files, shared)
    )
}

/// What the area maps, by the first status bit that tells.
fn behind(vma: &Message, files: &Files, shared: &mut Shared) -> String {
    let number = |name: &str| vma.u64(name).unwrap_or(0);
    let shmid = number("shmid");
    let has = |bit: u64| number("status") & bit != 0;
    if has(status::SYSVIPC) {
        format!(" ips[{:x}]", shared.number(shmid))
    } else if has(status::ANON_SHARED) {
        format!(" shmem[{:x}]", shared.number(shmid))
    } else if has(status::SOCKET) {
        format!(" packet[{:x}]", shared.number(shmid))
    } else if has(status::FILE_PRIVATE | status::FILE_SHARED) {
        let path = files.path(shmid);
        let offset = match number("pgoff") {
            0 => String::new(),
            offset => format!(" + {offset:#x}"),
        };
        let mark = if has(status::FILE_SHARED) { " (s)" } else { "" };
        format!(" {}{offset}{mark}", path.as_deref().unwrap_or(UNKNOWN_PATH))
    } else if has(status::STACK) {
        " [stack]".to_owned()
    } else if has(status::VSYSCALL) {
        " [vsyscall]".to_owned()
    } else if has(status::VDSO) {
        " [vdso]".to_owned()
    } else if number("flags") & MAP_GROWSDOWN != 0 {
        " [stack?]".to_owned()
    } else {
        String::new()
    }
}
