//! Paths that do not lead to the open file any more, and what to do instead.
//!
//! remap-fpath.img has { orig_id, remap_id, remap_type }. A ghost is made again under its old
//! name, opened by all who had it open, and loses the name; ghosts come one after the other, for
//! two of them may have had the same name. A linked file has a hard link the dump made beside it,
//! which is given the old name for the time of the open; the link goes when nothing can fail any
//! more, so that a failed restore can be tried again. A file of a dead process is opened by its
//! path while a helper stands in for the process: `tree/procfs.rs` plans the helper, and says
//! whether it must be gone before the number's new owner is forked.

use super::regfile::check_path;
use super::{File, find, kind_of, shown};
use crate::plan::routine::Routine;
use crate::plan::step::{Actor, Op, Origin, Phase};
use crate::plan::{Planner, Refusal, StepId};
use crust_image::checkpoint::{Remap, RemapTarget};
use crust_image::ids::{FileId, VirtPid};
use crust_proto::criu::{FdTypes, RegFileEntry};
use nix::libc;
use std::collections::BTreeMap;

/// What the names of hard links made by a dump begin with.
const LINK_PREFIX: &[u8] = b"link_remap.";

/// All remaps, by the file they are for.
#[derive(Debug, Default)]
pub(super) struct Remaps {
    by_file: BTreeMap<FileId, Remap>,
    /// Ghosts that are planned, by the number in their image's name.
    ghosts: BTreeMap<u32, Ghost>,
    /// When the ghost planned last is gone.
    last_removal: Option<StepId>,
}

#[derive(Clone, Copy, Debug)]
struct Ghost {
    made: StepId,
    removed: StepId,
}

/// How a file is reached.
#[derive(Clone, Debug)]
pub(super) enum Way {
    /// By its path.
    Path {
        /// When the path leads there.
        phase: Phase,
        /// It is open on the helper under this number, which dies early.
        reused: Option<VirtPid>,
    },
    /// By the ghost with this number.
    Ghost {
        /// In the image's name.
        id: u32,
        /// It has its name after this step.
        made: StepId,
        /// It loses it by this step.
        removed: StepId,
    },
    /// By a hard link.
    Link {
        /// The path of the link.
        link: Vec<u8>,
    },
}

/// Reads and checks remap-fpath.img.
pub(super) fn read(planner: &mut Planner<'_>) {
    for remap in &planner.checkpoint.remaps {
        let orig = remap.orig_id;
        let origin = origin(remap.entry, format!("remap of file {orig}"));
        let file = find(planner, orig).filter(|file| kind_of(file.entry) == Some(FdTypes::Reg));
        if file.is_none() {
            let why = format!("orig_id {orig} is no REG entry of files.img");
            planner.refuse(Refusal::new(origin, why));
            continue;
        }
        if planner.files.remaps.by_file.insert(orig, *remap).is_some() {
            let why = format!("orig_id {orig} is that of another remap too");
            planner.refuse(Refusal::new(origin, why));
        }
    }
}

fn origin(index: usize, what: impl Into<String>) -> Origin {
    Origin::new("remap-fpath.img", Some(index), what)
}

/// How to reach a file; `None` if that was refused.
pub(super) fn way_to(planner: &mut Planner<'_>, file: File<'_>, reg: &RegFileEntry) -> Option<Way> {
    let remap = planner.files.remaps.by_file.get(&file.id).copied();
    match remap.map(|remap| (remap.entry, remap.target)) {
        Some((index, RemapTarget::Ghost(id))) => Some(ghost(planner, index, id, reg)),
        Some((index, RemapTarget::Linked(id))) => link(planner, index, id),
        Some((_, RemapTarget::Procfs(_))) | None if short_lived(planner, file.id).is_some() => {
            let reused = short_lived(planner, file.id);
            let helper = reused.and_then(|number| planner.tree.reused.get(&number));
            Some(Way::Path {
                phase: helper.map_or(Phase::Objects, |helper| helper.phase),
                reused,
            })
        }
        Some((_, RemapTarget::Procfs(_))) => Some(Way::Path {
            phase: Phase::Objects,
            reused: None,
        }),
        None => {
            let process = planner.tree.proc_mounts.find(&reg.name);
            let of_tree = process.is_some_and(|path| planner.tree.has_process(path.pid));
            let phase = if of_tree { Phase::Objects } else { Phase::Open };
            Some(Way::Path {
                phase,
                reused: None,
            })
        }
    }
}

fn ghost(planner: &mut Planner<'_>, index: usize, id: u32, reg: &RegFileEntry) -> Way {
    if let Some(&Ghost { made, removed }) = planner.files.remaps.ghosts.get(&id) {
        return Way::Ghost { id, made, removed };
    }
    let nameless = nameless_flags(planner, id);
    let what = format!("ghost of {}", shown(&reg.name));
    let path = reg.name.clone();
    let mut push = |routine| {
        let origin = origin(index, what.clone());
        planner.push(Phase::Open, Actor::Broker, Op::Routine(routine), origin)
    };
    let made = push(Routine::GhostFile { id, path, nameless });
    let removed = push(Routine::RemoveGhost { id });
    planner.in_turn(made, removed);
    if let Some(last) = planner.files.remaps.last_removal.replace(removed) {
        planner.in_turn(last, made);
    }
    planner
        .files
        .remaps
        .ghosts
        .insert(id, Ghost { made, removed });
    Way::Ghost { id, made, removed }
}

/// The flags of a description of this ghost that was made without a name: only O_TMPFILE leaves
/// this flag, and only with that description.
fn nameless_flags(planner: &Planner<'_>, id: u32) -> Option<i32> {
    let remaps = &planner.files.remaps.by_file;
    let users = remaps
        .iter()
        .filter(|(_, remap)| remap.target == RemapTarget::Ghost(id));
    users
        .filter_map(|(file, _)| planner.checkpoint.file(*file)?.reg.as_ref())
        .map(|reg| reg.flags as i32)
        .find(|flags| is_nameless(*flags))
}

/// A file that is the ghost with this number.
pub(super) fn user_of_ghost(planner: &Planner<'_>, ghost: u32) -> Option<FileId> {
    let mut remaps = planner.files.remaps.by_file.iter();
    let user = remaps.find(|(_, remap)| remap.target == RemapTarget::Ghost(ghost));
    user.map(|(file, _)| *file)
}

/// Whether flags are those of a description that O_TMPFILE made.
pub fn is_nameless(flags: i32) -> bool {
    flags & libc::O_TMPFILE & !libc::O_DIRECTORY != 0
}

fn link(planner: &mut Planner<'_>, index: usize, id: FileId) -> Option<Way> {
    match link_path(planner, id) {
        Ok(link) => Some(Way::Link { link }),
        Err(why) => {
            planner.refuse(Refusal::new(origin(index, format!("link {id}")), why));
            None
        }
    }
}

fn link_path(planner: &Planner<'_>, id: FileId) -> Result<Vec<u8>, String> {
    let file = find(planner, id);
    let reg = file.and_then(|file| file.entry.reg.as_ref());
    let reg = reg.ok_or_else(|| format!("remap_id {id} is no REG entry of files.img"))?;
    check_path(&reg.name)?;
    // It will be removed: only what a dump has made.
    let file_name = reg.name.rsplit(|byte| *byte == b'/').next();
    if !file_name.is_some_and(|name| name.starts_with(LINK_PREFIX)) {
        return Err(format!(
            "{} is not the name of a link of a dump",
            shown(&reg.name)
        ));
    }
    Ok(reg.name.clone())
}

/// Puts a step that opens a file by `way` between what makes the way and what ends it.
pub(super) fn tie(planner: &mut Planner<'_>, way: &Way, open: StepId) {
    match *way {
        Way::Ghost { made, removed, .. } => {
            planner.in_turn(made, open);
            planner.in_turn(open, removed);
        }
        Way::Path {
            reused: Some(number),
            ..
        } => tie_to_helper(planner, number, open),
        Way::Path { .. } | Way::Link { .. } => {}
    }
}

/// Puts a further step on an open file, a seek, before what ends the way to it.
pub(super) fn before_the_end(planner: &mut Planner<'_>, id: FileId, step: StepId) {
    if let Some(number) = short_lived(planner, id) {
        tie_to_helper(planner, number, step);
    }
}

/// Whether a file is of a dead process that stands in only until the tree is forked.
pub(super) fn dies_early(planner: &Planner<'_>, id: FileId) -> bool {
    short_lived(planner, id).is_some()
}

/// The number, used again by now, of the process or thread that a file needs for its open. A dead
/// process whose number is used again has a remap for each of its files; a dead thread of a live
/// process has one for all, for its number in a path says enough.
fn short_lived(planner: &Planner<'_>, id: FileId) -> Option<VirtPid> {
    let number = match planner.files.remaps.by_file.get(&id) {
        Some(remap) => match remap.target {
            RemapTarget::Procfs(number) => number,
            RemapTarget::Ghost(_) | RemapTarget::Linked(_) => return None,
        },
        None => {
            let reg = planner.checkpoint.file(id)?.reg.as_ref()?;
            let tid = planner.tree.proc_mounts.find(&reg.name)?.tid?;
            let mut tasks = planner.tree.tasks.iter();
            if tasks.any(|task| task.threads.contains(&tid)) {
                return None;
            }
            tid
        }
    };
    planner.tree.reused.contains_key(&number).then_some(number)
}

fn tie_to_helper(planner: &mut Planner<'_>, number: VirtPid, step: StepId) {
    let Some(helper) = planner.tree.reused.get(&number).copied() else {
        return;
    };
    planner.in_turn(helper.alive, step);
    planner.in_turn(step, helper.dies);
}

/// Removes the hard links of a dump, last of all.
pub(super) fn plan_link_removal(planner: &mut Planner<'_>) {
    let links: BTreeMap<FileId, usize> = planner
        .files
        .remaps
        .by_file
        .values()
        .filter_map(|remap| match remap.target {
            RemapTarget::Linked(id) => Some((id, remap.entry)),
            _ => None,
        })
        .collect();
    for (id, index) in links {
        // A link that is no file was refused where it was to be opened.
        let Ok(path) = link_path(planner, id) else {
            continue;
        };
        let origin = origin(index, format!("link {} of the dump", shown(&path)));
        let unlink = Op::Routine(Routine::Unlink { path });
        planner.push(Phase::Commit, Actor::Broker, unlink, origin);
    }
}
