//! What a dump cannot carry. Refusals are collected while the tree is looked at and told all
//! together, before a byte is written: a user who mends one thing should not meet the next only at
//! the next attempt.

use crust_process::pid::HostPid;
use std::fmt;
use std::sync::Mutex;

/// One thing of one task that the images could not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The task that has it.
    pub task: HostPid,
    /// The object: `fd 5 (io_uring)`, `vma 7f00-7f10`, `the network namespace`.
    pub object: String,
    /// Why it cannot be dumped.
    pub what: String,
    /// What the user may try, as a phrase; empty if there is nothing.
    pub hint: String,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(task: HostPid, object: impl Into<String>, what: impl Into<String>) -> Refusal {
        Refusal {
            task,
            object: object.into(),
            what: what.into(),
            hint: String::new(),
        }
    }

    /// The same with something to try.
    pub fn hint(mut self, hint: impl Into<String>) -> Refusal {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {}: {}: {}", self.task, self.object, self.what)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

/// The list of a dump, filled from several threads.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<Vec<Refusal>>);

impl Refusals {
    /// Adds one.
    pub fn push(&self, refusal: Refusal) {
        let mut list = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        // Threads and tasks that share a table tell the same thing more than once.
        if !list.contains(&refusal) {
            list.push(refusal);
        }
    }

    /// All of them, by task.
    pub fn take(&self) -> Vec<Refusal> {
        let mut list = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut all = std::mem::take(&mut *list);
        all.sort_by_key(|refusal| refusal.task);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_once_and_by_task() {
        let pid = |number| HostPid::new(number).expect("a positive number");
        let refusals = Refusals::default();
        refusals.push(Refusal::new(pid(7), "fd 3", "is an io_uring"));
        refusals.push(Refusal::new(pid(2), "fd 1", "is a tty").hint("try --shell-job"));
        refusals.push(Refusal::new(pid(7), "fd 3", "is an io_uring"));
        let told: Vec<String> = refusals.take().iter().map(Refusal::to_string).collect();
        assert_eq!(
            told,
            [
                "task 2: fd 1: is a tty (try --shell-job)",
                "task 7: fd 3: is an io_uring"
            ]
        );
    }
}
