//! Which areas of a task a verb is about.

use super::range;
use crate::cli::Areas;
use crate::task_memory::{Area, TaskMemory};
use anyhow::{Result, bail};

/// The options of `cli::Areas`, read.
pub struct Filter<'a> {
    options: &'a Areas,
    /// Start and end.
    pub range: Option<(u64, u64)>,
}

impl<'a> Filter<'a> {
    pub fn new(options: &'a Areas) -> Result<Filter<'a>> {
        let prot = options.prot.as_deref().unwrap_or_default();
        if !prot.chars().all(|letter| "rwx-".contains(letter)) {
            bail!("--prot {prot}: letters of rwx are meant to be here");
        }
        Ok(Filter {
            options,
            range: options.range.as_deref().map(range).transpose()?,
        })
    }

    /// The areas, cut to the range.
    pub fn of(&self, memory: &TaskMemory<'_>) -> Vec<Area> {
        let wanted = memory.areas.iter().filter(|area| self.wants(area));
        wanted.cloned().filter_map(|area| self.cut(area)).collect()
    }

    fn wants(&self, area: &Area) -> bool {
        let options = self.options;
        let prot = options.prot.as_deref().is_none_or(|wanted| {
            let has = area.protection();
            let mut letters = wanted.chars();
            letters.all(|letter| letter == '-' || has.contains(letter))
        });
        let kind = options.kind.is_empty() || options.kind.iter().any(|kind| kind == area.kind);
        let name = options.name.as_deref();
        prot && kind && name.is_none_or(|name| area.name().contains(name))
    }

    fn cut(&self, mut area: Area) -> Option<Area> {
        if let Some((start, end)) = self.range {
            let from = area.start.max(start);
            area.offset = area.offset.saturating_add(from - area.start);
            (area.start, area.end) = (from, area.end.min(end));
        }
        (area.start < area.end).then_some(area)
    }
}
