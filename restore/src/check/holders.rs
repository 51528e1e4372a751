//! Who holds a file, for messages about it: `descriptor 5 of task 12`, `the executable of task 12`.

use crust_image::checkpoint::Checkpoint;
use crust_image::ids::{FileId, FilesId};

/// How many are told; one library may be mapped by every task.
const TOLD: usize = 3;

/// The holders of an entry of files.img, as words; empty if nobody holds it or all map it.
pub fn holders_of(checkpoint: &Checkpoint, entry: usize) -> String {
    let numbers = &checkpoint.file_entries;
    let id = numbers.iter().find(|(_, number)| **number == entry);
    let Some((&id, _)) = id else {
        return String::new();
    };
    let mut holders = Vec::new();
    for task in checkpoint.tasks() {
        let pid = task.pid;
        let table = task.ids.map(|ids| FilesId(ids.files_id));
        let table = table.and_then(|id| checkpoint.fdinfo.get(&id));
        let descriptors = table.into_iter().flatten();
        let own = descriptors.filter(|fdinfo| FileId(fdinfo.id) == id);
        holders.extend(own.map(|fdinfo| format!("descriptor {} of task {pid}", fdinfo.fd)));
        let paths = [
            (task.fs.map(|fs| fs.cwd_id), "working directory"),
            (task.fs.map(|fs| fs.root_id), "root"),
            (task.mm.map(|mm| mm.exe_file_id), "executable"),
        ];
        let held = paths.iter().filter(|(held, _)| *held == Some(id.0));
        holders.extend(held.map(|(_, what)| format!("the {what} of task {pid}")));
        let maps = task.mm.is_some_and(|mm| {
            let areas = mm.vmas.iter();
            areas
                .into_iter()
                .any(|vma| vma.shmid == u64::from(id.0) && is_of_file(vma.status))
        });
        if maps {
            holders.push(format!("mapped by task {pid}"));
        }
    }
    let more = holders.len().saturating_sub(TOLD);
    holders.truncate(TOLD);
    let mut text = holders.join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// VMA_FILE_PRIVATE or VMA_FILE_SHARED of an area's status: only then shmid is a file's id.
fn is_of_file(status: u32) -> bool {
    status & (1 << 6 | 1 << 7) != 0
}
