//! Which pages of two dumps differ in content: of tasks by address, of shared memory by offset.

use super::Difference;
use crate::dump::Dump;
use crate::memory::{Pages, open_dir};
use anyhow::Result;
use crust_image::Kind;
use crust_image::pages::{DumpChain, PAGE_SIZE};
use std::collections::BTreeSet;

/// Pages compared at once.
const PIECE: u64 = 256;

pub fn compare(left: &Dump, right: &Dump, found: &mut Vec<Difference>) -> Result<()> {
    let (left_dir, right_dir) = (open_dir(left.path())?, open_dir(right.path())?);
    let (left_chain, right_chain) = (DumpChain::open(&left_dir)?, DumpChain::open(&right_dir)?);
    for kind in [Kind::Pagemap, Kind::PagemapShmem] {
        let (left_ids, right_ids) = (left.ids_of(kind)?, right.ids_of(kind)?);
        for id in left_ids.into_iter().filter(|id| right_ids.contains(id)) {
            let mut pair = Pair {
                left: Pages::of(&left_chain, kind, id)?,
                right: Pages::of(&right_chain, kind, id)?,
            };
            let what = if kind == Kind::Pagemap {
                "tasks"
            } else {
                "shared memory"
            };
            for (start, pages, state) in pair.differences()? {
                let end = start + pages * PAGE_SIZE;
                let path = format!("{what}.{id}.pages.{start:x}-{end:x}");
                let words = |there: bool| there.then(|| format!("{pages} pages").into());
                let (left, right) = match state {
                    State::OnlyLeft => (words(true), None),
                    State::OnlyRight => (None, words(true)),
                    State::Changed => (words(true), Some("other content".into())),
                    State::Same => continue,
                };
                found.push(Difference { path, left, right });
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Same,
    Changed,
    OnlyLeft,
    OnlyRight,
}

struct Pair<'a> {
    left: Pages<'a>,
    right: Pages<'a>,
}

impl Pair<'_> {
    /// Runs of pages in the same state: start, number, state.
    fn differences(&mut self) -> Result<Vec<(u64, u64, State)>> {
        let mut runs: Vec<(u64, u64, State)> = Vec::new();
        let mut edges = BTreeSet::new();
        for run in self.left.runs().iter().chain(self.right.runs()) {
            edges.extend([run.vaddr, run.end()]);
        }
        let edges: Vec<u64> = edges.into_iter().collect();
        for pair in edges.windows(2) {
            let [start, end] = pair else { continue };
            // A gap between runs may be as wide as the address space.
            let mut at = if self.covered(*start) == (false, false) {
                *end
            } else {
                *start
            };
            while at < *end {
                let pages = ((end - at) / PAGE_SIZE).clamp(1, PIECE);
                for (number, state) in self.piece(at, pages)?.into_iter().enumerate() {
                    let page = at + number as u64 * PAGE_SIZE;
                    match runs.last_mut() {
                        Some((start, count, same))
                            if *same == state && *start + *count * PAGE_SIZE == page =>
                        {
                            *count += 1
                        }
                        _ => runs.push((page, 1, state)),
                    }
                }
                at += pages * PAGE_SIZE;
            }
        }
        runs.retain(|(_, _, state)| *state != State::Same);
        Ok(runs)
    }

    /// Which side has a page there.
    fn covered(&self, at: u64) -> (bool, bool) {
        let covers = |source: &Pages<'_>| source.next_run(at) == Some(at);
        (covers(&self.left), covers(&self.right))
    }

    /// The state of each page of a piece that no run begins or ends in.
    fn piece(&mut self, at: u64, pages: u64) -> Result<Vec<State>> {
        let same = |state: State| vec![state; pages as usize];
        let length = (pages * PAGE_SIZE) as usize;
        match self.covered(at) {
            (true, false) => Ok(same(State::OnlyLeft)),
            (false, true) => Ok(same(State::OnlyRight)),
            (false, false) => Ok(same(State::Same)),
            (true, true) => {
                let (left, right) = (
                    self.left.read_range(at, length)?,
                    self.right.read_range(at, length)?,
                );
                let page = PAGE_SIZE as usize;
                let pairs = left.chunks(page).zip(right.chunks(page));
                Ok(pairs
                    .map(|(a, b)| if a == b { State::Same } else { State::Changed })
                    .collect())
            }
        }
    }
}
