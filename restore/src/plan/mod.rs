//! From images to a plan. `plan` is pure: no descriptor, pid, clock or /proc is asked; the same
//! images, host and options give the same plan, byte for byte. Each room validates what it reads
//! and pushes steps; what it cannot bring back it refuses, and all refusals are told together.

pub mod calls;
#[cfg(test)]
pub(crate) mod golden;
#[cfg(test)]
mod hostile;
pub mod object;
pub mod order;
pub mod print;
pub mod refusal;
pub mod routine;
pub mod slots;
pub mod step;

use crate::host::Host;
use crate::{cgroup, files, ipc, mm, task, tree};
use crust_cli::options::Options;
use crust_image::checkpoint::Checkpoint;
pub use refusal::Refusal;
use std::borrow::Cow;
use step::{Actor, Arg, Call, Op, Origin, Phase, Piece, Plan, SlotId, Step};

/// Descriptors of the broker besides those that a plan asks for: directories, its log, scratch
/// memory, the survivor's.
pub const OWN_DESCRIPTORS: u64 = 64;

/// Makes the plan, or tells everything that is against it.
pub fn plan(checkpoint: &Checkpoint, host: &Host, options: &Options) -> Result<Plan, Vec<Refusal>> {
    planned(checkpoint, host, options).finish()
}

/// A plan that may have been refused, for those who want to know everything that is against it.
pub struct Draft {
    /// In no order.
    pub steps: Vec<Step>,
    /// What the planner refused.
    pub refusals: Vec<Refusal>,
}

/// Makes the plan as far as it can be made.
pub fn draft(checkpoint: &Checkpoint, host: &Host, options: &Options) -> Draft {
    let mut planner = planned(checkpoint, host, options);
    Draft {
        steps: std::mem::take(&mut planner.steps),
        refusals: std::mem::take(&mut planner.refusals),
    }
}

fn planned<'a>(checkpoint: &'a Checkpoint, host: &'a Host, options: &'a Options) -> Planner<'a> {
    let mut planner = Planner::new(checkpoint, host, options);
    tree::plan(&mut planner);
    cgroup::plan(&mut planner);
    files::plan(&mut planner);
    mm::plan(&mut planner);
    task::plan(&mut planner);
    let (held, closed) = slots::held_and_closed(&planner.steps);
    planner.held = held;
    task::plan_own_descriptors(&mut planner, held - closed);
    planner
}

/// A pushed step, by which a room can order it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepId(usize);

/// The plan while it is being made, and what rooms make it from.
pub struct Planner<'a> {
    /// The images.
    pub checkpoint: &'a Checkpoint,
    /// The facts of this host.
    pub host: &'a Host,
    /// The command line.
    pub options: &'a Options,
    /// The tasks to be made, once tree.rs has planned them.
    pub tree: tree::Tree,
    /// What the files room remembers (its own type; `files` has `plan(&mut Planner)` and gives
    /// others `Planner::file_slot(FileId) -> Option<SlotId>`, the broker's descriptor of a file
    /// object, filled in `Phase::Open` or `Phase::Objects`).
    pub files: files::Files,
    /// What the memory room remembers.
    pub mm: mm::Mm,
    /// What the room of SysV objects remembers.
    pub ipc: ipc::Ipc,
    steps: Vec<Step>,
    slots: u32,
    /// Descriptors that the broker comes to hold.
    pub held: u64,
    refusals: Vec<Refusal>,
}

impl<'a> Planner<'a> {
    fn new(checkpoint: &'a Checkpoint, host: &'a Host, options: &'a Options) -> Planner<'a> {
        Planner {
            checkpoint,
            host,
            options,
            tree: tree::Tree::default(),
            files: files::Files::default(),
            mm: mm::Mm::default(),
            ipc: ipc::Ipc::default(),
            steps: Vec::new(),
            slots: 0,
            held: 0,
            refusals: Vec::new(),
        }
    }

    /// A slot that some step will fill.
    pub fn slot(&mut self) -> SlotId {
        let slot = SlotId(self.slots);
        self.slots += 1;
        slot
    }

    /// Pushes a step.
    pub fn push(&mut self, phase: Phase, actor: Actor, op: Op, origin: Origin) -> StepId {
        self.steps.push(Step {
            phase,
            actor,
            op,
            after: Vec::new(),
            done: None,
            origin,
        });
        StepId(self.steps.len() - 1)
    }

    /// Pushes a system call.
    pub fn call(&mut self, phase: Phase, actor: Actor, call: Call, origin: Origin) -> StepId {
        self.push(phase, actor, Op::Call(call), origin)
    }

    /// The slot that says that a step is done.
    pub fn done(&mut self, step: StepId) -> SlotId {
        // A StepId comes from `push` only and steps are never taken away.
        if let Some(done) = self.steps[step.0].done {
            return done;
        }
        let slot = self.slot();
        self.steps[step.0].done = Some(slot);
        slot
    }

    /// Makes a step wait for a slot.
    pub fn after(&mut self, step: StepId, slot: SlotId) {
        self.steps[step.0].after.push(slot);
    }

    /// Makes one step wait for another.
    pub fn in_turn(&mut self, first: StepId, second: StepId) {
        let done = self.done(first);
        self.after(second, done);
    }

    /// Notes a reason against the whole plan.
    pub fn refuse(&mut self, refusal: Refusal) {
        if !self.refusals.contains(&refusal) {
            self.refusals.push(refusal);
        }
    }

    fn finish(mut self) -> Result<Plan, Vec<Refusal>> {
        if !self.refusals.is_empty() {
            return Err(self.refusals);
        }
        let broker_fd = self.files.broker_fd;
        let used = std::mem::take(&mut self.mm.used);
        let steps = order::in_order(self.steps).map_err(|error| {
            let origin = Origin::new("pstree.img", None, "the order of the plan");
            vec![Refusal::new(origin, error.to_string())]
        })?;
        Ok(Plan {
            steps,
            root: self.tree.root,
            used: merged(used),
            broker_fd,
            slots: self.slots,
            held: self.held + OWN_DESCRIPTORS,
        })
    }
}

/// Ranges in ascending order, those that touch made one.
fn merged(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

impl Origin {
    /// An origin.
    pub fn new(
        image: impl Into<Cow<'static, str>>,
        entry: Option<usize>,
        what: impl Into<String>,
    ) -> Origin {
        Origin {
            image: image.into(),
            entry,
            what: what.into(),
        }
    }
}

impl Arg {
    /// The address of these bytes.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Arg {
        Arg::Data(vec![Piece::Bytes(bytes.into())])
    }

    /// The address of these 64-bit words.
    pub fn words(words: &[u64]) -> Arg {
        Arg::bytes(
            words
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect::<Vec<u8>>(),
        )
    }

    /// A value by its name.
    pub fn named(name: impl Into<String>, value: impl Into<i64>) -> Arg {
        Arg::Named(name.into(), value.into() as u64)
    }

    /// A null pointer.
    pub fn null() -> Arg {
        Arg::Named("NULL".to_owned(), 0)
    }

    /// The names of the bits that are set, the rest in hex.
    pub fn flags(value: u64, names: &[(u64, &str)]) -> Arg {
        let mut rest = value;
        let mut text = Vec::new();
        for &(bits, name) in names {
            if bits != 0 && rest & bits == bits {
                text.push(name.to_owned());
                rest &= !bits;
            }
        }
        if rest != 0 || text.is_empty() {
            text.push(format!("{rest:#x}"));
        }
        Arg::Named(text.join("|"), value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge() {
        assert_eq!(
            merged(vec![(8, 9), (1, 3), (3, 5), (2, 4)]),
            [(1, 5), (8, 9)]
        );
    }

    #[test]
    fn flags_are_named() {
        let names = [(1, "READ"), (2, "WRITE")];
        assert_eq!(Arg::flags(3, &names), Arg::Named("READ|WRITE".into(), 3));
        assert_eq!(Arg::flags(0, &names), Arg::Named("0x0".into(), 0));
        assert_eq!(Arg::flags(9, &names), Arg::Named("READ|0x8".into(), 9));
    }
}
