//! Everything that is wrong with the files a plan will open, as one list.
//!
//! A restore stops at its first failing step. When that was the open of a file there may be more
//! of the kind, and a user wants to know all of them before trying again. So all are asked for
//! before the first step. A preflight looks at each and opens nothing; a restore opens at once what
//! it can open without an effect on anybody, regular files and directories, and looks at the rest:
//! every path is gone through once or twice, not four times.

use super::open;
use crate::plan::routine::Routine;
use crate::plan::step::{Op, Origin, Phase, SlotId, Step};
use crust_cli::workers::wait_until_free;
use nix::libc;
use nix::unistd::gettid;
use std::os::fd::OwnedFd;
use std::thread;

/// So many opens take a millisecond, a thread is started in a tenth of that.
const WORTH_A_THREAD: usize = 512;

/// Files that were opened before the run of the plan, by the slots they are for.
pub type Opened = Vec<(SlotId, OwnedFd)>;

/// What stands against an open: what asks for it, and what is wrong.
type Problem<'s> = (&'s Origin, String);

/// What stands against the opens of the first phase, in the plan's order. An open that waits for
/// another step is left out: what it opens may only be there then.
pub fn problems_of_files(steps: &[Step]) -> Vec<Problem<'_>> {
    let looked = early(steps).map(|(origin, routine)| (origin, look(routine)));
    looked
        .filter_map(|(origin, looked)| Some((origin, format!("{:#}", looked.err()?))))
        .collect()
}

/// The same, with what was opened on the way.
pub fn open_files(steps: &[Step]) -> (Vec<Problem<'_>>, Opened) {
    let routines: Vec<(&Origin, &Routine)> = early(steps).collect();
    if routines.len() < WORTH_A_THREAD {
        return open_some(&routines);
    }
    let (ours, theirs) = routines.split_at(routines.len() / 2);
    let ((mut problems, mut opened), other, tid) = thread::scope(|scope| {
        let work = || (open_some(theirs), gettid());
        // Without a thread there is one to open them all.
        let helper = thread::Builder::new().spawn_scoped(scope, work);
        let own = open_some(ours);
        match helper.map(|helper| helper.join()) {
            Ok(Ok((other, tid))) => (own, other, Some(tid)),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => (own, open_some(theirs), None),
        }
    });
    if let Some(tid) = tid {
        wait_until_free(tid);
    }
    problems.extend(other.0);
    opened.extend(other.1);
    (problems, opened)
}

fn open_some<'s>(routines: &[(&'s Origin, &'s Routine)]) -> (Vec<Problem<'s>>, Opened) {
    let (mut problems, mut opened) = (Vec::new(), Opened::new());
    let mut directory = open::LastDirectory::default();
    for &(origin, routine) in routines {
        let found = match routine {
            Routine::OpenFile {
                path,
                flags,
                expect,
                pos,
                slot,
            } if is_quiet(expect.mode) => {
                let file = directory.open_at(path, *flags, expect, *pos);
                file.map(|fd| opened.push((*slot, fd)))
            }
            routine => look(routine),
        };
        problems.extend(found.err().map(|error| (origin, format!("{error:#}"))));
    }
    (problems, opened)
}

/// The routines of the first phase that wait for nothing.
fn early(steps: &[Step]) -> impl Iterator<Item = (&Origin, &Routine)> {
    let first = steps
        .iter()
        .filter(|step| step.phase == Phase::Open && step.after.is_empty());
    first.filter_map(|step| match &step.op {
        Op::Routine(routine) => Some((&step.origin, routine)),
        _ => None,
    })
}

/// Whether nobody notices that a file of this mode is opened.
fn is_quiet(mode: Option<u32>) -> bool {
    matches!(
        mode.unwrap_or(0) & libc::S_IFMT,
        libc::S_IFREG | libc::S_IFDIR
    )
}

fn look(routine: &Routine) -> anyhow::Result<()> {
    let (path, flags, expect) = match routine {
        Routine::OpenFile {
            path,
            flags,
            expect,
            ..
        } => (path, flags, expect),
        Routine::OpenLink {
            link,
            flags,
            expect,
            ..
        } => (link, flags, expect),
        _ => return Ok(()),
    };
    open::look(path, *flags, expect).map(drop)
}
