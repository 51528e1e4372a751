//! What a restore puts into file systems for a while, and takes away again whatever happens:
//! ghost files, directories made for them, hard links, socket names of listeners that are gone.
//!
//! The path is noted before it is made, so that no failure in between leaves it, here and with the
//! survivor, who takes it away if we are killed. What cannot be removed is not an error of the
//! restore: it is told to the caller, and Drop is silent.

use crust_process::error::Result as TaskResult;
use crust_process::steps::step;
use crust_process::survivor::{Note, Survivor, When};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// A path that is not to stay, or not after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Noted {
    path: Vec<u8>,
    is_directory: bool,
    stays_on_success: bool,
    /// The survivor's.
    note: Option<Note>,
}

/// The paths that are there for now, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Undo {
    paths: Vec<Noted>,
    /// Removed when nothing can fail any more.
    at_commit: Vec<Vec<u8>>,
    survivor: Option<Survivor>,
}

impl Undo {
    /// With somebody who takes everything back if we are killed.
    pub fn with(survivor: Option<Survivor>) -> Undo {
        let mut undo = Undo::default();
        undo.survivor = survivor;
        undo
    }

    /// Who that is.
    pub fn survivor(&self) -> Option<&Survivor> {
        self.survivor.as_ref()
    }

    /// A file or link is about to be made here, where nothing is.
    pub fn note_file(&mut self, path: &[u8]) -> TaskResult<()> {
        self.note(path, false)
    }

    /// A directory is about to be made here, where nothing is.
    pub fn note_directory(&mut self, path: &[u8]) -> TaskResult<()> {
        self.note(path, true)
    }

    /// A file of this mode is about to be made here, where nothing is.
    pub fn note_file_of_mode(&mut self, path: &[u8], mode: u32) -> TaskResult<()> {
        self.note(path, mode & libc::S_IFMT == libc::S_IFDIR)
    }

    fn note(&mut self, path: &[u8], is_directory: bool) -> TaskResult<()> {
        let mut noted = Noted {
            path: path.to_vec(),
            is_directory,
            stays_on_success: false,
            note: None,
        };
        noted.note = self.tell_survivor(&noted, When::Ever)?;
        self.paths.push(noted);
        step();
        Ok(())
    }

    fn tell_survivor(&self, noted: &Noted, when: When) -> TaskResult<Option<Note>> {
        let Some(survivor) = &self.survivor else {
            return Ok(None);
        };
        Ok(Some(match noted.is_directory {
            true => survivor.directory(&noted.path, when)?,
            false => survivor.file(None, &noted.path, when)?,
        }))
    }

    fn cross_out(&self, noted: &Noted) {
        if let (Some(survivor), Some(note)) = (&self.survivor, noted.note) {
            survivor.cross_out(note);
        }
    }

    /// What was noted last was not made after all: it is somebody else's.
    pub fn forget(&mut self, path: &[u8]) {
        if let Some(at) = self.paths.iter().rposition(|noted| noted.path == path) {
            let noted = self.paths.remove(at);
            self.cross_out(&noted);
        }
    }

    /// What was noted last at this path goes only if the restore fails: a socket's name.
    pub fn keep_on_success(&mut self, path: &[u8]) -> TaskResult<()> {
        let Some(at) = self.paths.iter().rposition(|noted| noted.path == path) else {
            return Ok(());
        };
        let note = self.tell_survivor(&self.paths[at], When::BeforeSettled)?;
        self.cross_out(&self.paths[at]);
        self.paths[at].stays_on_success = true;
        self.paths[at].note = note;
        Ok(())
    }

    /// A file that the images need goes when the tree is restored and nothing can fail any more.
    pub fn remove_at_commit(&mut self, path: &[u8]) -> TaskResult<()> {
        if let Some(survivor) = &self.survivor {
            survivor.file(None, path, When::AfterSettled)?;
        }
        self.at_commit.push(path.to_vec());
        Ok(())
    }

    /// The tree is restored. What could not be removed, and why.
    pub fn commit(&mut self) -> Vec<(Vec<u8>, Errno)> {
        if let Some(survivor) = &self.survivor {
            survivor.settle();
        }
        step();
        self.paths.clear();
        let paths = std::mem::take(&mut self.at_commit).into_iter();
        let remove = |path: Vec<u8>| {
            let removed = unlink_file(&path);
            removed.err().map(|errno| (path, errno))
        };
        paths.filter_map(remove).collect()
    }

    /// Removes one path now.
    pub fn remove(&mut self, path: &[u8]) -> Result<(), Errno> {
        let Some(at) = self.paths.iter().rposition(|noted| noted.path == path) else {
            return Err(Errno::ENOENT);
        };
        // What cannot be removed stays noted: the undoing of the failure tries once more.
        remove_path(&self.paths[at])?;
        let noted = self.paths.remove(at);
        self.cross_out(&noted);
        Ok(())
    }

    /// Removes a file now, noted or not; it must be there.
    pub fn remove_file(&mut self, path: &[u8]) -> Result<(), Errno> {
        unlink_file(path)?;
        let (gone, kept) = std::mem::take(&mut self.paths)
            .into_iter()
            .partition(|noted| noted.path == path);
        self.paths = kept;
        let gone: Vec<Noted> = gone;
        gone.iter().for_each(|noted| self.cross_out(noted));
        Ok(())
    }

    /// The tree is whole: removes what is not to stay. What is to stay after a success is still
    /// noted, until [`Undo::commit`], and so is what could not be removed, which is told with the
    /// reason: the restore fails by it, and its undoing tries once more.
    pub fn take_back_temporary(&mut self) -> Vec<(Vec<u8>, Errno)> {
        let mut left = Vec::new();
        let mut kept = Vec::new();
        while let Some(noted) = self.paths.pop() {
            let removed = match noted.stays_on_success {
                true => None,
                false => Some(remove_path(&noted)),
            };
            match removed {
                Some(Ok(())) => self.cross_out(&noted),
                Some(Err(errno)) => {
                    left.push((noted.path.clone(), errno));
                    kept.push(noted);
                }
                None => kept.push(noted),
            }
        }
        kept.reverse();
        self.paths = kept;
        left
    }

    /// After a failure: removes everything. What could not be removed, and why.
    pub fn take_back(&mut self) -> Vec<(Vec<u8>, Errno)> {
        let mut left = Vec::new();
        while let Some(noted) = self.paths.pop() {
            let removed = remove_path(&noted);
            self.cross_out(&noted);
            if let Err(errno) = removed {
                left.push((noted.path, errno));
            }
        }
        left
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        self.take_back();
    }
}

fn unlink_file(path: &[u8]) -> Result<(), Errno> {
    step();
    let path = OsStr::from_bytes(path);
    unlinkat(nix::fcntl::AT_FDCWD, path, UnlinkatFlags::NoRemoveDir)
}

fn remove_path(noted: &Noted) -> Result<(), Errno> {
    step();
    let flag = if noted.is_directory {
        UnlinkatFlags::RemoveDir
    } else {
        UnlinkatFlags::NoRemoveDir
    };
    match unlinkat(nix::fcntl::AT_FDCWD, OsStr::from_bytes(&noted.path), flag) {
        // It was noted before it was made, and making it failed.
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("crust-undo-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a scratch directory");
        dir
    }

    #[test]
    fn everything_goes_the_latest_first() {
        let dir = scratch("all");
        let (sub, file) = (dir.join("sub"), dir.join("sub/file"));
        let mut undo = Undo::default();
        undo.note_directory(sub.as_os_str().as_bytes())
            .expect("noted");
        std::fs::create_dir(&sub).expect("mkdir");
        undo.note_file(file.as_os_str().as_bytes()).expect("noted");
        std::fs::write(&file, "x").expect("write");
        assert!(undo.take_back_temporary().is_empty());
        assert!(!sub.exists());
        std::fs::remove_dir(&dir).expect("nothing is left in it");
    }

    #[test]
    fn what_is_kept_stays_and_what_was_never_made_is_no_error() {
        let dir = scratch("keep");
        let file = dir.join("file");
        let mut undo = Undo::default();
        undo.note_file(dir.join("never").as_os_str().as_bytes())
            .expect("noted");
        undo.note_file(file.as_os_str().as_bytes()).expect("noted");
        std::fs::write(&file, "x").expect("write");
        undo.keep_on_success(file.as_os_str().as_bytes())
            .expect("noted");
        assert!(undo.take_back_temporary().is_empty());
        assert!(file.exists());
        undo.commit();
        drop(undo);
        assert!(file.exists());
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn what_is_kept_goes_if_a_whole_tree_fails_after_all() {
        let dir = scratch("late");
        let mut undo = Undo::default();
        undo.note_directory(dir.as_os_str().as_bytes())
            .expect("noted");
        undo.keep_on_success(dir.as_os_str().as_bytes())
            .expect("noted");
        assert!(undo.take_back_temporary().is_empty());
        assert!(dir.exists());
        assert!(undo.take_back().is_empty());
        assert!(!dir.exists());
    }

    #[test]
    fn what_cannot_be_removed_is_told() {
        let dir = scratch("told");
        std::fs::write(dir.join("in-the-way"), "x").expect("write");
        let mut undo = Undo::default();
        undo.note_directory(dir.as_os_str().as_bytes())
            .expect("noted");
        let left = undo.take_back_temporary();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].1, Errno::ENOTEMPTY);
        std::fs::remove_dir_all(&dir).expect("clean up");
    }
}
