//! What makes a dump last: `--sync` brings it to the disk before it counts as done, `--digest`
//! adds the hashes by which a reader finds damage.

use crate::mm::cow;
use anyhow::Result;
use crust_cli::log::Log;
use crust_image::{ImageDir, digest};
use std::time::Instant;

/// Brings everything written so far to the disk: before the inventory, which says that the dump
/// is whole, and once more after it. The tree stands still meanwhile: it may be killed only when
/// its images are safe.
pub fn sync(images: &ImageDir) -> Result<()> {
    for dir in own_directories(images) {
        dir?.sync()?;
    }
    Ok(())
}

/// Writes the manifests. The tree goes on already, or is gone.
pub fn write_digest(images: &ImageDir, log: &Log) -> Result<()> {
    let start = Instant::now();
    for dir in own_directories(images) {
        let dir = dir?;
        let bytes = digest::write(&dir)?;
        log.info(format_args!(
            "Hashed {bytes} bytes of {} in {:?}",
            dir.path().display(),
            start.elapsed()
        ));
    }
    Ok(())
}

/// The directories that this dump has written: its own, and the one of shared pages.
fn own_directories(images: &ImageDir) -> impl Iterator<Item = crust_image::Result<ImageDir>> {
    let shared = images.path().join(cow::DIRECTORY);
    let mut directories = vec![images.path().to_owned()];
    directories.extend(shared.is_dir().then_some(shared));
    directories.into_iter().map(|path| ImageDir::open(&path))
}
