//! Everything that is wrong with the files a plan will open, as one list.
//!
//! A restore stops at its first failing step. When that was the open of a file there may be more
//! of the kind, and a user wants to know all of them before trying again. So the rest is only
//! looked at, nothing is opened, and a restore that succeeds pays nothing for it.

use super::open;
use crate::plan::step::{Op, Origin, Phase, Routine, Step};

/// What stands against the opens of the first phase, as what asks for it and what is wrong, in the
/// plan's order. An open that waits for another step is left out: what it opens may only be there
/// then.
pub fn problems_of_files(steps: &[Step]) -> Vec<(&Origin, String)> {
    steps
        .iter()
        .filter(|step| step.phase == Phase::Open && step.after.is_empty())
        .filter_map(|step| {
            let Op::Routine(routine) = &step.op else {
                return None;
            };
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
                _ => return None,
            };
            let error = open::look(path, *flags, expect).err()?;
            Some((&step.origin, format!("{error:#}")))
        })
        .collect()
}
