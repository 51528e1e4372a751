//! Descriptors for memory: pages files of this dump and of those it builds upon, and objects of
//! shared anonymous memory.

use anyhow::{Context, Result};
use crust_image::dir::ImageDir;
use crust_image::kind::Kind;
use std::os::fd::OwnedFd;

/// Opens pages-ID.img of the directory that is `level` `parent` links away.
pub fn open_pages(images: &ImageDir, level: usize, pages_id: u32) -> Result<OwnedFd> {
    let mut parent: Option<ImageDir> = None;
    for step in 1..=level {
        let next = parent.as_ref().unwrap_or(images).parent()?;
        let next = next.with_context(|| {
            format!(
                "the chain of dumps ends {} links before the one needed",
                level + 1 - step
            )
        })?;
        parent = Some(next);
    }
    let dir = parent.as_ref().unwrap_or(images);
    let file = dir.open_file(Kind::Pages, Some(pages_id.into()))?;
    let file =
        file.with_context(|| format!("{}: pages-{pages_id}.img is missing", dir.path().display()))?;
    Ok(file.into())
}

/// An object as mmap(MAP_SHARED | MAP_ANONYMOUS) makes it.
pub fn shared_anon(size: u64, huge: u32) -> Result<OwnedFd> {
    let bytes = usize::try_from(size).context("more memory than addresses")?;
    crust_process::shared_anon::open_shared_anonymous(bytes, huge as i32)
        .with_context(|| format!("make {size} bytes of shared anonymous memory"))
}
