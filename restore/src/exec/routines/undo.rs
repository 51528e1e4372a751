//! What a restore puts into file systems for a while, and takes away again whatever happens:
//! ghost files, directories made for them, hard links, socket names of listeners that are gone.
//!
//! The path is noted before it is made, so that no failure in between leaves it. What cannot be
//! removed is not an error of the restore: it is told to the caller, and Drop is silent.

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
}

/// The paths that are there for now, in the order in which they were made.
#[derive(Debug, Default)]
pub struct Undo {
    paths: Vec<Noted>,
}

impl Undo {
    /// A file or link is about to be made here.
    pub fn note_file(&mut self, path: &[u8]) {
        self.note(path, false);
    }

    /// A directory is about to be made here.
    pub fn note_directory(&mut self, path: &[u8]) {
        self.note(path, true);
    }

    /// A file of this mode is about to be made here.
    pub fn note_file_of_mode(&mut self, path: &[u8], mode: u32) {
        self.note(path, mode & libc::S_IFMT == libc::S_IFDIR);
    }

    fn note(&mut self, path: &[u8], is_directory: bool) {
        self.paths.push(Noted {
            path: path.to_vec(),
            is_directory,
            stays_on_success: false,
        });
    }

    /// What was noted last at this path goes only if the restore fails: a socket's name.
    pub fn keep_on_success(&mut self, path: &[u8]) {
        let noted = self.paths.iter_mut().rfind(|noted| noted.path == path);
        if let Some(noted) = noted {
            noted.stays_on_success = true;
        }
    }

    /// Removes one path now.
    pub fn remove(&mut self, path: &[u8]) -> Result<(), Errno> {
        let Some(at) = self.paths.iter().rposition(|noted| noted.path == path) else {
            return Err(Errno::ENOENT);
        };
        remove_path(&self.paths.remove(at))
    }

    /// Removes a file now, noted or not; it must be there.
    pub fn remove_file(&mut self, path: &[u8]) -> Result<(), Errno> {
        self.paths.retain(|noted| noted.path != path);
        unlinkat(
            nix::fcntl::AT_FDCWD,
            OsStr::from_bytes(path),
            UnlinkatFlags::NoRemoveDir,
        )
    }

    /// After a success: removes what is not to stay. What could not be removed, and why.
    pub fn take_back_temporary(&mut self) -> Vec<(Vec<u8>, Errno)> {
        self.paths.retain(|noted| !noted.stays_on_success);
        self.take_back()
    }

    /// After a failure: removes everything. What could not be removed, and why.
    pub fn take_back(&mut self) -> Vec<(Vec<u8>, Errno)> {
        let mut left = Vec::new();
        while let Some(noted) = self.paths.pop() {
            if let Err(errno) = remove_path(&noted) {
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

fn remove_path(noted: &Noted) -> Result<(), Errno> {
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
        undo.note_directory(sub.as_os_str().as_bytes());
        std::fs::create_dir(&sub).expect("mkdir");
        undo.note_file(file.as_os_str().as_bytes());
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
        undo.note_file(dir.join("never").as_os_str().as_bytes());
        undo.note_file(file.as_os_str().as_bytes());
        std::fs::write(&file, "x").expect("write");
        undo.keep_on_success(file.as_os_str().as_bytes());
        assert!(undo.take_back_temporary().is_empty());
        assert!(file.exists());
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn what_cannot_be_removed_is_told() {
        let dir = scratch("told");
        std::fs::write(dir.join("in-the-way"), "x").expect("write");
        let mut undo = Undo::default();
        undo.note_directory(dir.as_os_str().as_bytes());
        let left = undo.take_back_temporary();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].1, Errno::ENOTEMPTY);
        std::fs::remove_dir_all(&dir).expect("clean up");
    }
}
