//! Seccomp: strict mode, and filters with their flags.
//!
//! A filter is shared by all threads that inherited it, but each thread has its own chain of them
//! in the images: that is how the peer writes it. A thread names the entry to install first, the
//! oldest; `prev` leads from there to the next newer one, so newer filters have lower indexes.

use crust_process::error::Result;
use crust_process::tracee::{SeccompFilter, Stopped};
use crust_proto::criu::{SeccompEntry, SeccompFilter as FilterEntry};

/// SECCOMP_FILTER_FLAG_TSYNC. The kernel does not tell it; the peer writes it where all threads of
/// a task have the filter, which is sure when there is one.
const TSYNC: u32 = 1;

/// Reads the filters of a thread, the oldest first.
pub fn collect_filters(thread: &Stopped) -> Result<Vec<SeccompFilter>> {
    let mut filters = Vec::new();
    while let Some(filter) = thread.seccomp_filter(filters.len() as u64)? {
        filters.push(filter);
    }
    Ok(filters)
}

/// The chains of all threads, as seccomp.img holds them.
#[derive(Debug, Default)]
pub struct Chains(Vec<FilterEntry>);

impl Chains {
    /// Adds the chain of a thread (oldest first); gives the index of its oldest filter, or `None`
    /// if it has none. `alone` is whether it is the only thread of its task.
    pub fn add(&mut self, filters: &[SeccompFilter], alone: bool) -> Option<u32> {
        for (nth, filter) in filters.iter().rev().enumerate() {
            let index = self.0.len() as u32;
            self.0.push(FilterEntry {
                filter: filter.instructions.clone(),
                prev: (nth > 0).then(|| index - 1),
                flags: Some(filter.flags as u32 | if alone { TSYNC } else { 0 }),
            });
        }
        (!filters.is_empty()).then(|| self.0.len() as u32 - 1)
    }

    /// The one entry of seccomp.img; it is written without filters too.
    pub fn encode(self) -> SeccompEntry {
        SeccompEntry {
            seccomp_filters: self.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(byte: u8) -> SeccompFilter {
        SeccompFilter {
            instructions: vec![byte; 8],
            flags: u64::from(byte),
        }
    }

    #[test]
    fn newer_filters_have_lower_indexes() {
        let mut chains = Chains::default();
        assert_eq!(chains.add(&[], false), None);
        assert_eq!(chains.add(&[filter(1), filter(2)], false), Some(1));
        assert_eq!(
            chains.add(&[filter(4), filter(2), filter(2)], true),
            Some(4)
        );
        let entry = chains.encode();
        let told: Vec<_> = entry
            .seccomp_filters
            .iter()
            .map(|f| (f.filter[0], f.prev, f.flags))
            .collect();
        let expected = [
            (2, None, Some(2)),
            (1, Some(0), Some(1)),
            (2, None, Some(3)),
            (2, Some(2), Some(3)),
            (4, Some(3), Some(5)),
        ];
        assert_eq!(told, expected);
    }
}
