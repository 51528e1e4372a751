//! `x rss`: the runs of pages that were dumped, beside the areas they lie in.

use crate::dump::{Dump, Files};
use crate::explore::describe::tree;
use crate::explore::fds::UNKNOWN_PATH;
use crate::explore::mems::status;
use anyhow::Result;
use crust_image::Kind;
use crust_image::dynamic::Message;
use serde_json::{Value, json};

const AT_PAGESZ: u64 = 6;

pub fn text(dump: &Dump) -> Result<String> {
    let files = dump.files()?;
    let mut text = String::new();
    for task in dump.tasks()? {
        text += &format!("{}\n", task.pid);
        let Some(mm) = dump.message(Kind::Mm, Some(task.pid))? else {
            continue;
        };
        let Some(pagemap) = dump.image(Kind::Pagemap, Some(task.pid))? else {
            continue;
        };
        let mut printer = Printer {
            page: page_size(&mm),
            files: &files,
            last: None,
        };
        for run in pagemap.messages().skip(1) {
            text += &printer.run(run, &mm);
        }
    }
    Ok(text)
}

/// The runs with their flags.
pub fn json(dump: &Dump) -> Result<Value> {
    let mut tasks = Vec::new();
    for task in dump.tasks()? {
        let page = dump
            .message(Kind::Mm, Some(task.pid))?
            .as_ref()
            .map_or(4096, page_size);
        let pagemap = dump.image(Kind::Pagemap, Some(task.pid))?;
        let head = pagemap.iter().flat_map(|image| image.messages()).next();
        let runs = pagemap.iter().flat_map(|image| image.messages()).skip(1).map(|run| {
            let flags = tree(run).get("flags").cloned();
            json!({"start": format!("{:#x}", run.u64("vaddr").unwrap_or(0)), "pages": run_pages(run), "flags": flags})
        });
        tasks.push(json!({
            "pid": task.pid, "page_size": page,
            "pages_id": head.and_then(|head| head.u64("pages_id")), "runs": runs.collect::<Vec<_>>(),
        }));
    }
    Ok(Value::Array(tasks))
}

/// The size of a page of the task: what its auxiliary vector says, else 4 KiB.
pub fn page_size(mm: &Message) -> u64 {
    let words: Vec<u64> = mm
        .all("mm_saved_auxv")
        .filter_map(|word| word.as_u64())
        .collect();
    let told = words.chunks_exact(2).find_map(|pair| match pair {
        [AT_PAGESZ, size] => Some(*size),
        _ => None,
    });
    told.filter(|size| size.is_power_of_two()).unwrap_or(4096)
}

/// The length of a run in pages: images before 4.2 have only the 32-bit number.
pub fn run_pages(run: &Message) -> u64 {
    run.u64("nr_pages")
        .or_else(|| run.u64("compat_nr_pages"))
        .unwrap_or(0)
}

struct Printer<'a> {
    page: u64,
    files: &'a Files,
    /// Start of the area that was printed last.
    last: Option<u64>,
}

impl Printer<'_> {
    fn run(&mut self, run: &Message, mm: &Message) -> String {
        let start = run.u64("vaddr").unwrap_or(0);
        let pages = run_pages(run);
        let end = start.saturating_add(pages.saturating_mul(self.page));
        let first = format!("\t{start:x} / {pages:<8}");
        let mut text = format!("{first:<24}");
        for vma in mm.messages("vmas") {
            let (from, to) = (vma.u64("start").unwrap_or(0), vma.u64("end").unwrap_or(0));
            if from < end && start < to {
                text += &format!("{}\n\t{:23}", self.area(vma, from, to), "");
            }
        }
        text + "\n"
    }

    fn area(&mut self, vma: &Message, from: u64, to: u64) -> String {
        if self.last.replace(from) == Some(from) {
            return " ~".to_owned();
        }
        let pages = to.saturating_sub(from) / self.page;
        let named =
            vma.u64("status").unwrap_or(0) & (status::FILE_PRIVATE | status::FILE_SHARED) != 0;
        let path = named.then(|| vma.u64("shmid").and_then(|id| self.files.path(id)));
        let name = path.map(|path| format!(" {}", path.as_deref().unwrap_or(UNKNOWN_PATH)));
        format!(" {from:08x} / {pages:<8}{}", name.unwrap_or_default())
    }
}
