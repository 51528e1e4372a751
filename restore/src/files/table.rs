//! Descriptor tables: which description is under which number in which task.
//!
//! ids.files_id names a table; tasks that share one (CLONE_FILES) have the same, and the first of
//! them in the order of the tree fills it, from the lowest number to the highest. A task takes a
//! copy of each description, which comes as the lowest free number: that is the number where it
//! belongs, up to the first gap in the table; from there on it is duplicated to where it belongs
//! and closed. Close-on-exec belongs to the number and not to the description.

use super::calls::dup3;
use super::find;
use crate::plan::calls::close;
use crate::plan::step::{Actor, Op, Origin, Phase};
use crate::plan::{Planner, Refusal};
use crust_image::checkpoint::Checkpoint;
use crust_image::ids::{FileId, FilesId, VirtPid};
use crust_proto::criu::FdinfoEntry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

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
    file: FileId,
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

/// A number that no task uses.
pub(super) fn unused_number(checkpoint: &Checkpoint) -> i32 {
    lowest_unused(&used_numbers(checkpoint))
}

/// Every number of a table, and those that epoll instances know closed targets by.
fn used_numbers(checkpoint: &Checkpoint) -> HashSet<u32> {
    let tables = checkpoint.fdinfo.values().flatten();
    let epolls = checkpoint
        .files
        .values()
        .filter_map(|file| file.epfd.as_ref());
    let targets = epolls.flat_map(|epfd| &epfd.tfd);
    let targets = targets.map(|target| target.crust_tfd.unwrap_or(target.tfd));
    tables.map(|fdinfo| fdinfo.fd).chain(targets).collect()
}

/// A number that no task uses. 0 and 1 are the landing places of what a task takes or makes.
fn lowest_unused(used: &HashSet<u32>) -> i32 {
    let unused = (2..NR_OPEN).find(|number| !used.contains(number));
    unused.map_or(i32::MAX, |number| number as i32)
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
    let mut numbers = Vec::with_capacity(entries.len());
    for (entry, fdinfo) in entries.iter().enumerate() {
        match check(planner, entry, fdinfo, &files) {
            Ok(number) => {
                files.insert(number.number, number.file);
                numbers.push(number);
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
    numbers.sort_by_key(|number| number.number);
    plan_numbers(planner, owner, &image, &numbers);
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
        file: FileId(fdinfo.id),
        cloexec,
        entry,
    })
}

/// Puts descriptions under their numbers, which ascend.
fn plan_numbers(planner: &mut Planner<'_>, owner: VirtPid, image: &str, numbers: &[Number]) {
    let actor = Actor::Task(owner);
    let mut first_of: HashMap<FileId, i32> = HashMap::new();
    // All numbers below it are in use.
    let mut free = 0;
    for number in numbers {
        if free == planner.files.broker_fd {
            free += 1;
        }
        let &Number {
            number: at,
            file,
            cloexec,
            entry,
        } = number;
        let what = || format!("descriptor {at} of {owner}");
        let origin = || Origin::new(image.to_owned(), Some(entry), what());
        if let Some(&first) = first_of.get(&file) {
            planner.call(Phase::Fds, actor, dup3(first, at, cloexec), origin());
        } else {
            let Some(slot) = planner.file_slot(file) else {
                continue;
            };
            if at == free {
                let take = Op::Take { slot, at, cloexec };
                planner.push(Phase::Fds, actor, take, origin());
            } else {
                planner.push(Phase::Fds, actor, Op::take(slot, free), origin());
                planner.call(Phase::Fds, actor, dup3(free, at, cloexec), origin());
                planner.call(Phase::Fds, actor, close(free), origin());
            }
            first_of.insert(file, at);
        }
        if at == free {
            free += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unused_number_is_no_landing_place() {
        assert_eq!(lowest_unused(&HashSet::new()), 2);
        assert_eq!(lowest_unused(&HashSet::from([0, 1, 2, 3, 5])), 4);
    }
}
