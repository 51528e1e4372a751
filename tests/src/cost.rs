//! What a tree costs in memory, and a dump on its file system.

use crate::proc_snapshot::tree;
use anyhow::{Context, Result};
use std::{fs, path::Path};

/// Private memory of the tree in KiB, each page counted once however many share it (the Pss_Anon
/// of proc_pid_smaps(5)).
pub fn proportional_kib(root: i32) -> Result<u64> {
    let mut sum = 0;
    for pid in tree(root)? {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let line = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss_Anon:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
        sum += size
            .context("smaps_rollup has no Pss_Anon")?
            .parse::<u64>()?;
    }
    Ok(sum)
}

/// Bytes of all files below a directory, links not followed.
pub fn bytes_below(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += match metadata.is_dir() {
            true => bytes_below(&entry.path())?,
            false => metadata.len(),
        };
    }
    Ok(sum)
}
