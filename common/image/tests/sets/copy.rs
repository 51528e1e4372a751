//! A set of the corpus to spoil.

use crust_image::{ImageDir, Kind, sink::write_entries};
use prost::Message;
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

/// A copy of a set of the corpus that goes away with the value.
pub struct Copy {
    pub path: PathBuf,
    pub dir: ImageDir,
}

impl Copy {
    pub fn of(set: &str) -> Copy {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("crust-sets-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/corpus");
        for entry in fs::read_dir(corpus.join(set).join("img")).unwrap() {
            let entry = entry.unwrap();
            let to = path.join(entry.file_name());
            if entry.file_type().unwrap().is_symlink() {
                symlink(fs::canonicalize(entry.path()).unwrap(), to).unwrap();
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
        let dir = ImageDir::open(&path).unwrap();
        Copy { path, dir }
    }

    /// Replaces an image.
    pub fn write<M: Message>(&self, kind: Kind, id: Option<u64>, entries: &[M]) {
        write_entries(&self.dir, kind, id, entries).unwrap();
    }

    /// Rewrites an image with its entries changed.
    pub fn edit<M: Message + Default>(
        &self,
        kind: Kind,
        id: Option<u64>,
        change: impl Fn(&mut Vec<M>),
    ) {
        let mut entries: Vec<M> = self.dir.read_entries(kind, id).unwrap();
        change(&mut entries);
        self.write(kind, id, &entries);
    }

    /// Rewrites an image with its first entry changed.
    pub fn edit_first<M: Message + Default>(
        &self,
        kind: Kind,
        id: Option<u64>,
        change: impl Fn(&mut M),
    ) {
        self.edit(kind, id, |entries: &mut Vec<M>| change(&mut entries[0]));
    }

    pub fn remove(&self, kind: Kind, id: Option<u64>) {
        assert!(self.dir.remove_image(kind, id).unwrap());
    }

    /// The first id of which there is an image of that kind.
    pub fn only_id(&self, kind: Kind) -> Option<u64> {
        Some(self.dir.ids_of(kind).unwrap()[0])
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}
