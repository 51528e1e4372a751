//! A change to several files of a dump that takes place as a whole or not at all.
//!
//! Everything new is written beside first. Then the old files are moved aside and the new ones moved
//! in; a failure moves all back. The inventory leaves first and comes back last, so that a
//! directory caught in between (power, SIGKILL) lacks it and cannot be taken for a whole dump; what
//! was moved aside is then found in the directory `.crit-*`.

use anyhow::{Context, Result, bail};
use crust_image::{ImageDir, Kind, digest};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The changes gathered so far.
pub struct Transaction {
    dir: PathBuf,
    staging: tempfile::TempDir,
    /// New files by name: true when staged, false when the file is to go.
    changes: BTreeMap<String, bool>,
}

impl Transaction {
    /// Begins with nothing changed. `dir` must be writable.
    pub fn begin(dir: &Path) -> Result<Transaction> {
        let staging = tempfile::Builder::new().prefix(".crit-").tempdir_in(dir);
        Self::staged_in(
            dir,
            staging.with_context(|| format!("{}: prepare a change", dir.display()))?,
        )
    }

    /// The same without the means to commit: `dir` is not touched, nor need it be writable.
    pub fn rehearse(dir: &Path) -> Result<Transaction> {
        Self::staged_in(dir, tempfile::tempdir().context("prepare a rehearsal")?)
    }

    fn staged_in(dir: &Path, staging: tempfile::TempDir) -> Result<Transaction> {
        fs::create_dir(staging.path().join("old"))?;
        fs::create_dir(staging.path().join("new"))?;
        Ok(Transaction {
            dir: dir.to_owned(),
            staging,
            changes: BTreeMap::new(),
        })
    }

    /// A file of that name with what `write` gives.
    pub fn put(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        if name.contains('/') || name.is_empty() || name.starts_with('.') {
            bail!("{name:?} is no name for an image");
        }
        let path = self.staging.path().join("new").join(name);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path);
        let file = file.with_context(|| format!("{}: create", path.display()))?;
        if let Ok(there) = fs::metadata(self.dir.join(name)) {
            file.set_permissions(there.permissions())?;
        }
        let mut out = BufWriter::with_capacity(1 << 16, file);
        write(&mut out)?;
        let file: File = out.into_inner().map_err(|error| error.into_error())?;
        file.sync_all()
            .with_context(|| format!("{}: sync", path.display()))?;
        self.changes.insert(name.to_owned(), true);
        Ok(())
    }

    /// No file of that name, unless one is put.
    pub fn remove(&mut self, name: &str) {
        self.changes.entry(name.to_owned()).or_insert(false);
    }

    /// Makes it so.
    pub fn commit(self) -> Result<()> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let mut moved = Vec::new();
        let result = self.swap(&mut moved);
        if result.is_err() {
            for (from, to) in moved.iter().rev() {
                // What cannot be moved back stays in the staging directory, which is then kept.
                if fs::rename(to, from).is_err() {
                    let kept = self.staging.keep();
                    return result.with_context(|| {
                        format!("and the old files are left in {}", kept.display())
                    });
                }
            }
        }
        result.with_context(|| format!("{}: put the changes in place", self.dir.display()))?;
        let changed: Vec<String> = self.changes.keys().cloned().collect();
        renew_digest(&self.dir, &changed)
    }

    fn swap(&self, moved: &mut Vec<(PathBuf, PathBuf)>) -> Result<()> {
        let inventory = Kind::Inventory.file_name(None);
        let (old, new) = (
            self.staging.path().join("old"),
            self.staging.path().join("new"),
        );
        let mut step = |from: PathBuf, to: PathBuf| -> Result<()> {
            fs::rename(&from, &to)
                .with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
            moved.push((from, to));
            Ok(())
        };
        let others = || self.changes.iter().filter(|(name, _)| **name != inventory);
        let had_inventory = self.dir.join(&inventory).exists();
        if had_inventory {
            step(self.dir.join(&inventory), old.join(&inventory))?;
        }
        for (name, _) in others().filter(|(name, _)| self.dir.join(name).exists()) {
            step(self.dir.join(name), old.join(name))?;
        }
        for (name, _) in others().filter(|(_, staged)| **staged) {
            step(new.join(name), self.dir.join(name))?;
        }
        match self.changes.get(&inventory) {
            Some(true) => step(new.join(&inventory), self.dir.join(&inventory)),
            None if had_inventory => step(old.join(&inventory), self.dir.join(&inventory)),
            _ => Ok(()),
        }
    }
}

/// Brings the manifest of a dump that has one (`crust-dump --digest`) up to date with a change that
/// was meant; a restore would take it for damage.
pub fn renew_digest(dir: &Path, changed: &[String]) -> Result<()> {
    let there = dir.join(Kind::Digest.file_name(None));
    if !there.is_file() {
        return Ok(());
    }
    let renewed = ImageDir::open(dir).and_then(|dir| digest::renew(&dir, changed));
    renewed
        .map(drop)
        .with_context(|| format!("{}: bring it up to date", there.display()))
}

/// Writes a manifest for a new dump if the one it was made from has one.
pub fn digest_as(from: &Path, to: &Path) -> Result<()> {
    if !from.join(Kind::Digest.file_name(None)).is_file() {
        return Ok(());
    }
    ImageDir::open(to).and_then(|dir| digest::write(&dir))?;
    Ok(())
}

/// Copies a dump into a new, empty directory, to change the copy. The link `parent` is made anew to
/// lead to the same place.
pub fn copy_dump(from: &Path, to: &Path) -> Result<()> {
    match fs::create_dir(to) {
        Ok(()) => {}
        Err(_) if fs::read_dir(to).is_ok_and(|mut entries| entries.next().is_none()) => {}
        Err(error) => return Err(error).with_context(|| format!("{}: create", to.display())),
    }
    for entry in fs::read_dir(from).with_context(|| format!("{}: list", from.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name() else {
            continue;
        };
        let target = to.join(name);
        if path.is_symlink() && name == "parent" {
            let parent =
                fs::canonicalize(&path).with_context(|| format!("{}: resolve", path.display()))?;
            std::os::unix::fs::symlink(parent, &target)?;
        } else if path.is_file() && !path.is_symlink() {
            fs::copy(&path, &target)
                .with_context(|| format!("copy {} to {}", path.display(), target.display()))?;
        }
    }
    Ok(())
}
