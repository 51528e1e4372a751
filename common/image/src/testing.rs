//! Scratch directories for this crate's tests.

use crate::dir::ImageDir;
use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

/// A directory that goes away with the value.
#[derive(Debug)]
pub struct TestDir(PathBuf);

impl TestDir {
    /// A new one under the temporary directory of the machine.
    pub fn new() -> TestDir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("crust-image-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("no other test of this process has the number");
        TestDir(path)
    }

    /// Its path.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    /// Makes a directory in it and opens it.
    pub fn subdir(&self, name: &str) -> ImageDir {
        let path = self.0.join(name);
        fs::create_dir(&path).expect("the test makes each name once");
        ImageDir::open(&path).expect("just made")
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
