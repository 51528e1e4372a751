//! Names of inodes, found by looking: `--irmap-scan-path DIR` and `--force-irmap`.
//!
//! A watch of inotify or fanotify has an inode and no name. Usually its file handle leads to one;
//! where the file system gives no handles, or the user wants names that hold on another machine, the
//! directories that the user names are walked, and with `--force-irmap` those that programs mostly
//! watch. Symbolic links are not followed, other file systems not entered.

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What daemons of a usual host watch.
const USUAL: [&str; 6] = [
    "/etc",
    "/var/spool",
    "/var/log",
    "/usr/share/dbus-1",
    "/lib/udev",
    "/run",
];

/// A path of the inode (device as stat(2) has it, number).
pub fn find(directories: &[PathBuf], usual_too: bool, wanted: (u64, u64)) -> Option<Vec<u8>> {
    let usual = USUAL.iter().map(PathBuf::from).filter(|_| usual_too);
    let mut left: Vec<PathBuf> = directories.iter().cloned().chain(usual).collect();
    // The user's come first, each whole before the next.
    left.reverse();
    while let Some(path) = left.pop() {
        let Ok(found) = path.symlink_metadata() else {
            continue;
        };
        if (found.dev(), found.ino()) == wanted {
            return Some(path.into_os_string().into_vec());
        }
        if found.is_dir() && found.dev() == wanted.0 {
            left.extend(entries(&path));
        }
    }
    None
}

/// What is in a directory, nothing if it cannot be read.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_found_below_a_directory() {
        let dir = std::env::temp_dir().join(format!("crust-irmap-{}", std::process::id()));
        let deep = dir.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let file = deep.join("file");
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink("/", dir.join("out")).unwrap();
        let inode = file.symlink_metadata().unwrap();
        let found = find(
            std::slice::from_ref(&dir),
            false,
            (inode.dev(), inode.ino()),
        );
        let absent = find(std::slice::from_ref(&dir), false, (inode.dev(), u64::MAX));
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found, Some(file.into_os_string().into_vec()));
        assert_eq!(absent, None);
    }
}
