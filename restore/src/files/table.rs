//! Descriptor tables: which description is under which number in which task.
//!
//! ids.files_id names a table; tasks that share one (CLONE_FILES) have the same, and the first of
//! them in the order of the tree fills it. A task takes a copy of each description as number 0,
//! the lowest free one, duplicates it to all numbers it has, and closes 0; what belongs under 0
//! itself comes last. Close-on-exec belongs to the number and not to the description.

use super::calls::{dup3, task_fcntl};
use super::find;
use crate::plan::calls::close;
use crate::plan::step::{Actor, Arg, Op, Origin, Phase, SlotId};
use crate::plan::{Planner, Refusal};
use crust_image::ids::{FileId, FilesId, VirtPid};
use crust_proto::criu::FdinfoEntry;
use nix::libc;
use std::collections::{BTreeMap, BTreeSet};

/// fs.nr_open's default: no descriptor has a higher number, whatever the limit.
pub(super) const NR_OPEN: u32 = 1 << 20;

/// A table that is planned.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// Who fills it.
    pub owner: VirtPid,
    /// What is under each number.
    pub files: BTreeMap<i32, FileId>,
}

/// A number of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number {
    number: i32,
    cloexec: bool,
    /// Index in fdinfo-N.img.
    entry: usize,
}

/// Plans every table.
pub(super) fn plan(planner: &mut Planner<'_>) -> Vec<Table> {
    let mut filled: BTreeSet<u32> = BTreeSet::new();
    let tasks: Vec<(VirtPid, Option<u32>)> = planner
        .tree
        .alive()
        .map(|task| (task.pid, task.ids.as_ref().map(|ids| ids.files_id)))
        .collect();
    let mut tables = Vec::new();
    for (pid, files_id) in tasks {
        let Some(files_id) = files_id else {
            let origin = Origin::new(format!("ids-{pid}.img"), None, format!("files of {pid}"));
            planner.refuse(Refusal::new(origin, "the image is missing"));
            continue;
        };
        if filled.insert(files_id) {
            tables.extend(plan_table(planner, pid, FilesId(files_id)));
        }
    }
    tables
}

fn plan_table(planner: &mut Planner<'_>, owner: VirtPid, id: FilesId) -> Option<Table> {
    let image = format!("fdinfo-{id}.img");
    let checkpoint = planner.checkpoint;
    let Some(entries) = checkpoint.fdinfo.get(&id) else {
        let origin = Origin::new(image, None, format!("descriptors of {owner}"));
        planner.refuse(Refusal::new(
            origin,
            format!("the image that files_id {id} names is missing"),
        ));
        return None;
    };
    let mut files = BTreeMap::new();
    let mut copies: BTreeMap<FileId, Vec<Number>> = BTreeMap::new();
    for (entry, fdinfo) in entries.iter().enumerate() {
        match check(planner, entry, fdinfo, &files) {
            Ok(number) => {
                let id = FileId(fdinfo.id);
                files.insert(number.number, id);
                planner.files.numbers.insert(number.number);
                copies.entry(id).or_default().push(number);
            }
            Err(why) => {
                let what = format!("descriptor {} of {owner}", fdinfo.fd);
                planner.refuse(Refusal::new(
                    Origin::new(image.clone(), Some(entry), what),
                    why,
                ));
            }
        }
    }
    // What is number 0 comes last.
    let mut copies: Vec<(FileId, Vec<Number>)> = copies.into_iter().collect();
    copies.sort_by_key(|(_, numbers)| numbers.iter().any(|number| number.number == 0));
    for (id, numbers) in &copies {
        if let Some(slot) = planner.file_slot(*id) {
            plan_copies(planner, owner, &image, slot, numbers);
        }
    }
    Some(Table { owner, files })
}

fn check(
    planner: &Planner<'_>,
    entry: usize,
    fdinfo: &FdinfoEntry,
    before: &BTreeMap<i32, FileId>,
) -> Result<Number, String> {
    let number = i32::try_from(fdinfo.fd)
        .ok()
        .filter(|_| fdinfo.fd < NR_OPEN);
    let number = number.ok_or_else(|| format!("fd {} is no descriptor", fdinfo.fd))?;
    if before.contains_key(&number) {
        return Err(format!("fd {number} is in the table twice"));
    }
    let file = find(planner, FileId(fdinfo.id));
    let file = file.ok_or_else(|| format!("id {} is not in files.img", fdinfo.id))?;
    if file.entry.r#type != fdinfo.r#type {
        let (is, says) = (file.entry.r#type, fdinfo.r#type);
        return Err(format!(
            "type {says} is {is} in files.img for id {}",
            fdinfo.id
        ));
    }
    let cloexec = match fdinfo.flags {
        0 => false,
        1 => true,
        other => return Err(format!("flags {other:#x} are more than close-on-exec")),
    };
    Ok(Number {
        number,
        cloexec,
        entry,
    })
}

/// Puts one description under all its numbers.
fn plan_copies(
    planner: &mut Planner<'_>,
    owner: VirtPid,
    image: &str,
    slot: SlotId,
    numbers: &[Number],
) {
    let actor = Actor::Task(owner);
    let origin = |number: &Number| {
        let what = format!("descriptor {} of {owner}", number.number);
        Origin::new(image, Some(number.entry), what)
    };
    let Some(first) = numbers.first() else { return };
    planner.push(Phase::Fds, actor, Op::Take { slot, at: 0 }, origin(first));
    for number in numbers.iter().filter(|number| number.number != 0) {
        let call = dup3(0, number.number, number.cloexec);
        planner.call(Phase::Fds, actor, call, origin(number));
    }
    match numbers.iter().find(|number| number.number == 0) {
        None => {
            planner.call(Phase::Fds, actor, close(0), origin(first));
        }
        // It was taken with close-on-exec set.
        Some(zero) if !zero.cloexec => {
            let call = task_fcntl(0, "F_SETFD", libc::F_SETFD, Arg::Int(0));
            planner.call(Phase::Fds, actor, call, origin(zero));
        }
        Some(_) => {}
    }
}
