//! `--auto-dedup`: pages of earlier dumps of a chain that a later one has again are given back to
//! the file system. The files keep their length, so that offsets stay; only their blocks go. The
//! earlier dumps are of use as parents of the later one alone afterwards.

use crate::{
    dir::ImageDir,
    error::{Error, Result},
    kind::Kind,
    pages::{DumpChain, Pagemap},
};
use nix::fcntl::{FallocateFlags, fallocate};
use std::{collections::BTreeMap, ops::Range};

/// Punches out what the dump in `dir` has itself; gives the number of bytes.
pub fn punch_superseded(dir: &ImageDir) -> Result<u64> {
    let chain = DumpChain::open(dir)?;
    let mut punched = 0;
    for level in 1..chain.levels() {
        let Some(parent) = chain.dir(level) else {
            break;
        };
        let users = users_of_pages(parent)?;
        for id in dir.ids_of(Kind::Pagemap)? {
            let (Some(own), Some(theirs)) = (
                Pagemap::read(dir, Kind::Pagemap, id)?,
                Pagemap::read(parent, Kind::Pagemap, id)?,
            ) else {
                continue;
            };
            // What several tasks share may still be another's.
            if users.get(&theirs.pages_id.0) == Some(&1) {
                punched += punch(parent, &own, &theirs)?;
            }
        }
    }
    Ok(punched)
}

/// How many pagemaps lead to each pages file.
fn users_of_pages(dir: &ImageDir) -> Result<BTreeMap<u32, usize>> {
    let mut users = BTreeMap::new();
    for kind in [Kind::Pagemap, Kind::PagemapShmem] {
        for id in dir.ids_of(kind)? {
            if let Some(pagemap) = Pagemap::read(dir, kind, id)? {
                *users.entry(pagemap.pages_id.0).or_default() += 1;
            }
        }
    }
    Ok(users)
}

fn punch(parent: &ImageDir, own: &Pagemap, theirs: &Pagemap) -> Result<u64> {
    let id = Some(theirs.pages_id.into());
    let name = Kind::Pages.file_name(id);
    let holes = superseded(own, theirs);
    if holes.is_empty() {
        return Ok(0);
    }
    let file = parent.open_file_to_change(Kind::Pages, id)?;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let mut punched = 0;
    for hole in holes {
        let len = hole.end - hole.start;
        fallocate(&file, flags, hole.start as i64, len as i64).map_err(|errno| {
            let shown = parent.path().join(&name).display().to_string();
            Error::io(&shown, "punch out pages that a later dump has", errno)
        })?;
        punched += len;
    }
    Ok(punched)
}

/// Offsets in the parent's pages file of pages that both have.
fn superseded(own: &Pagemap, theirs: &Pagemap) -> Vec<Range<u64>> {
    let present: Vec<_> = own.runs.iter().filter(|run| run.is_present()).collect();
    let mut holes = Vec::new();
    for (run, offset) in theirs.placed_runs() {
        let Some(offset) = offset else { continue };
        let first = present.partition_point(|own| own.end() <= run.vaddr);
        for own in present
            .iter()
            .skip(first)
            .take_while(|own| own.vaddr < run.end())
        {
            let (start, end) = (own.vaddr.max(run.vaddr), own.end().min(run.end()));
            holes.push(offset + (start - run.vaddr)..offset + (end - run.vaddr));
        }
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::PagesId,
        pages::{PE_PARENT, PE_PRESENT, PagemapRun},
    };

    fn pagemap(runs: &[(u64, u64, u32)]) -> Pagemap {
        let run = |&(page, nr_pages, flags): &(u64, u64, u32)| PagemapRun {
            vaddr: page * 4096,
            nr_pages,
            flags,
        };
        Pagemap {
            pages_id: PagesId(1),
            runs: runs.iter().map(run).collect(),
        }
    }

    #[test]
    fn only_what_both_have_goes() {
        let parent = pagemap(&[(10, 4, PE_PRESENT), (20, 2, PE_PARENT), (30, 4, PE_PRESENT)]);
        let own = pagemap(&[(12, 9, PE_PRESENT), (30, 1, PE_PARENT), (33, 5, PE_PRESENT)]);
        let pages: Vec<_> = superseded(&own, &parent)
            .into_iter()
            .map(|hole| (hole.start / 4096, hole.end / 4096))
            .collect();
        assert_eq!(pages, [(2, 4), (7, 8)]);
    }
}
