//! A directory of images, held as a descriptor.
//!
//! Every image is opened relative to that descriptor, by a name the kind table makes, without
//! following symlinks: whatever the directory holds or is renamed to while we work, nothing outside
//! it is touched. The one link followed is `parent`, the way to the previous dump of a chain.
//! A dump is complete when inventory.img is there; it is written last, and removed first when an
//! older dump makes room.

use crate::{
    entry::{ImageReader, ImageWriter, Version},
    error::{Error, Result},
    kind::{Framing, Kind},
    pages::PAGE_SIZE,
    payload::PayloadEntry,
    sink::{ImageSink, SinkWriter},
};
use crust_proto::criu::{InventoryEntry, MmEntry};
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat},
    sys::stat::Mode,
    unistd::{AccessFlags, UnlinkatFlags, faccessat, symlinkat, unlinkat},
};
use prost::Message;
use std::{
    ffi::OsStr,
    fs::File,
    io::{BufReader, BufWriter},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The symlink to the directory of the previous dump.
pub const PARENT_LINK: &str = "parent";

/// Images hold the memory of processes: nobody else may read them.
const IMAGE_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

const DIR_FLAGS: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// An open directory of images.
#[derive(Debug)]
pub struct ImageDir {
    fd: OwnedFd,
    /// Only for messages.
    path: PathBuf,
    /// What the inventory says, once it was asked.
    version: OnceLock<Version>,
    /// Pages of 4 KiB in one page of these images.
    page_scale: u64,
}

/// A reader of an image in a directory.
pub type FileReader = ImageReader<BufReader<File>>;

impl ImageDir {
    /// Opens an existing directory.
    pub fn open(path: &Path) -> Result<ImageDir> {
        Self::open_at(AT_FDCWD, path, path.to_owned())
    }

    fn open_at(at: BorrowedFd<'_>, path: &Path, shown: PathBuf) -> Result<ImageDir> {
        let fd = openat(at, path, DIR_FLAGS, Mode::empty()).map_err(|errno| {
            Error::io(
                &shown.display().to_string(),
                "open the images directory",
                errno,
            )
        })?;
        Ok(ImageDir {
            fd,
            path: shown,
            version: OnceLock::new(),
            page_scale: 1,
        })
    }

    /// Looks up the size of the pages of these images: the one that the auxiliary vector of the
    /// first task tells, 4 KiB when there is none. Pagemaps of other sizes are then read as runs
    /// of as many pages of 4 KiB.
    pub fn ask_page_size(&mut self) -> Result<()> {
        const AT_PAGESZ: u64 = 6;
        let Some(first) = self.ids_of(Kind::Mm)?.first().copied() else {
            return Ok(());
        };
        let Some(mut reader) = self.open_image(Kind::Mm, Some(first))? else {
            return Ok(());
        };
        let Some(mm) = reader.next_entry::<MmEntry>()? else {
            return Ok(());
        };
        let (pairs, _) = mm.mm_saved_auxv.as_chunks::<2>();
        let told = pairs.iter().find(|[kind, _]| *kind == AT_PAGESZ);
        if let Some([_, size]) = told.filter(|[_, size]| size.is_power_of_two()) {
            self.page_scale = (size / PAGE_SIZE).max(1);
        }
        Ok(())
    }

    /// Pages of 4 KiB in one page of these images; 1 unless it was asked for.
    pub fn page_scale(&self) -> u64 {
        self.page_scale
    }

    /// The path it was opened by, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn shown(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    /// The version of this set of images, from its inventory. A set without one is incomplete.
    pub fn version(&self) -> Result<Version> {
        if let Some(version) = self.version.get() {
            return Ok(*version);
        }
        let inventory = self.inventory()?;
        // Another thread may have been first; both read the same file.
        Ok(*self.version.get_or_init(|| inventory.1))
    }

    /// The inventory, with the version it stands for.
    pub fn inventory(&self) -> Result<(InventoryEntry, Version)> {
        // The head of the inventory is the same in both versions.
        let mut reader = self
            .open_as(Kind::Inventory, None, Version::V1_1)?
            .ok_or_else(|| Error::Incomplete {
                dir: self.path.display().to_string(),
            })?;
        let inventory: InventoryEntry = reader.only()?;
        let version = Version::of_inventory(inventory.img_version).ok_or_else(|| {
            reader.field_error(
                "img_version",
                format!("{} is neither 1 nor 2", inventory.img_version),
            )
        })?;
        Ok((inventory, version))
    }

    /// Opens an image for reading, its head checked against the version the inventory tells;
    /// `None` if it is not there.
    pub fn open_image(&self, kind: Kind, id: Option<u64>) -> Result<Option<FileReader>> {
        self.open_as(kind, id, self.version()?)
    }

    /// The same with a version the caller knows, for directories without an inventory (the service
    /// images of a work directory).
    pub fn open_as(
        &self,
        kind: Kind,
        id: Option<u64>,
        version: Version,
    ) -> Result<Option<FileReader>> {
        let Some(file) = self.open_file(kind, id)? else {
            return Ok(None);
        };
        let shown = self.shown(&kind.file_name(id));
        let len = file
            .metadata()
            .map_err(|source| Error::io(&shown, "stat", source))?
            .len();
        ImageReader::new(BufReader::new(file), shown, kind, version, Some(len)).map(Some)
    }

    /// Opens any image, raw ones included, as a file at offset 0; `None` if it is not there.
    pub fn open_file(&self, kind: Kind, id: Option<u64>) -> Result<Option<File>> {
        let name = kind.file_name(id);
        // O_NONBLOCK: a fifo of that name must not hold us up; regular files do not mind.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = match openat(&self.fd, name.as_str(), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::io(&self.shown(&name), "open", errno)),
        };
        let shown = || self.shown(&name);
        let metadata = file
            .metadata()
            .map_err(|source| Error::io(&shown(), "stat", source))?;
        if metadata.is_file() {
            return Ok(Some(file));
        }
        Err(Error::Head {
            file: shown(),
            what: "not a regular file".to_owned(),
        })
    }

    /// Opens an image that is there to change it in place.
    pub(crate) fn open_file_to_change(&self, kind: Kind, id: Option<u64>) -> Result<File> {
        let name = kind.file_name(id);
        let flags = OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        openat(&self.fd, name.as_str(), flags, Mode::empty())
            .map(File::from)
            .map_err(|errno| Error::io(&self.shown(&name), "open", errno))
    }

    /// Every entry of an image without payloads; none if it is not there.
    pub fn read_entries<M: Message + Default>(
        &self,
        kind: Kind,
        id: Option<u64>,
    ) -> Result<Vec<M>> {
        match self.open_image(kind, id)? {
            Some(mut reader) => reader.rest(),
            None => Ok(Vec::new()),
        }
    }

    /// The entry of an image that has exactly one, `None` if the image is not there.
    pub fn read_entry<M: Message + Default>(
        &self,
        kind: Kind,
        id: Option<u64>,
    ) -> Result<Option<M>> {
        match self.open_image(kind, id)? {
            Some(mut reader) => reader.only().map(Some),
            None => Ok(None),
        }
    }

    /// The same for an image that must be there.
    pub fn read_required<M: Message + Default>(&self, kind: Kind, id: Option<u64>) -> Result<M> {
        self.read_entry(kind, id)?.ok_or_else(|| Error::Missing {
            file: self.shown(&kind.file_name(id)),
        })
    }

    /// Every entry with its payload; none if the image is not there.
    pub fn read_payload_entries<T: PayloadEntry>(
        &self,
        kind: Kind,
        id: Option<u64>,
    ) -> Result<Vec<T>> {
        match self.open_image(kind, id)? {
            Some(mut reader) => T::read_all(&mut reader),
            None => Ok(Vec::new()),
        }
    }

    /// The kinds and ids of all images here, in table order, then by id. Other names are not told:
    /// see [`ImageDir::names`].
    pub fn list(&self) -> Result<Vec<(Kind, Option<u64>)>> {
        let mut images: Vec<_> = self
            .names()?
            .iter()
            .filter_map(|name| Kind::of_file_name(name))
            .collect();
        images.sort_unstable();
        Ok(images)
    }

    /// The ids for which there is an image of `kind`, ascending.
    pub fn ids_of(&self, kind: Kind) -> Result<Vec<u64>> {
        Ok(self
            .list()?
            .into_iter()
            .filter(|(found, _)| *found == kind)
            .filter_map(|(_, id)| id)
            .collect())
    }

    /// Every name in the directory but `.` and `..`, sorted.
    pub fn names(&self) -> Result<Vec<std::ffi::OsString>> {
        let failed = |errno| Error::io(&self.shown(""), "list the images directory", errno);
        let mut dir = Dir::openat(&self.fd, ".", DIR_FLAGS, Mode::empty()).map_err(failed)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let name = OsStr::from_bytes(entry.map_err(failed)?.file_name().to_bytes()).to_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The directory of the previous dump, `None` without a `parent` link. Only this one step is
    /// taken; whether the chain runs in a circle is the caller's question ([`ImageDir::identity`]).
    pub fn parent(&self) -> Result<Option<ImageDir>> {
        let target = match readlinkat(&self.fd, PARENT_LINK) {
            Ok(target) => PathBuf::from(target),
            Err(Errno::ENOENT) => return Ok(None),
            // No link: a directory in place of it will do.
            Err(Errno::EINVAL) => PathBuf::from(PARENT_LINK),
            Err(errno) => {
                let doing = "read the link to the previous dump";
                return Err(Error::io(&self.shown(PARENT_LINK), doing, errno));
            }
        };
        let shown = self.path.join(&target);
        Ok(Some(ImageDir {
            page_scale: self.page_scale,
            ..Self::open_at(self.fd.as_fd(), &target, shown)?
        }))
    }

    /// Device and inode number: two descriptors with the same ones are one directory.
    pub fn identity(&self) -> Result<(u64, u64)> {
        let stat = nix::sys::stat::fstat(&self.fd)
            .map_err(|errno| Error::io(&self.shown(""), "stat the images directory", errno))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Makes `parent` lead to the directory of the previous dump. `target` is relative to this
    /// directory, or absolute.
    pub fn set_parent(&self, target: &Path) -> Result<()> {
        self.remove(PARENT_LINK)?;
        symlinkat(target, &self.fd, PARENT_LINK).map_err(|errno| {
            let doing = "make the link to the previous dump";
            Error::io(&self.shown(PARENT_LINK), doing, errno)
        })
    }

    /// Whether images can be written here: refuses a read-only file system, and a directory
    /// without permission, before anything is frozen.
    pub fn check_writable(&self) -> Result<()> {
        let wanted = AccessFlags::W_OK | AccessFlags::X_OK;
        faccessat(&self.fd, ".", wanted, AtFlags::AT_EACCESS)
            .map_err(|errno| Error::io(&self.shown(""), "write to the images directory", errno))
    }

    /// Removes the images of an older dump, so that none can be taken for part of the next. The
    /// inventory goes first: a dump killed half way through leaves no set that looks complete.
    /// Service images (statistics, caches) are no part of a dump and stay. Returns the names.
    pub fn remove_images(&self) -> Result<Vec<String>> {
        // The inventory is the first row of the table, so it is the first of the list.
        let mut removed = Vec::new();
        for (kind, id) in self.list()? {
            if kind.spec().framing != Framing::Service {
                let name = kind.file_name(id);
                self.remove(&name)?;
                removed.push(name);
            }
        }
        if self.remove(PARENT_LINK)? {
            removed.push(PARENT_LINK.to_owned());
        }
        Ok(removed)
    }

    /// Brings every image, and their names, to the disk.
    pub fn sync(&self) -> Result<()> {
        for (kind, id) in self.list()? {
            let Some(file) = self.open_file(kind, id)? else {
                continue;
            };
            file.sync_all()
                .map_err(|source| Error::io(&self.shown(&kind.file_name(id)), "sync", source))?;
        }
        let doing = "sync the images directory";
        nix::unistd::fsync(&self.fd).map_err(|errno| Error::io(&self.shown(""), doing, errno))
    }

    /// Removes one image; false if it was not there.
    pub fn remove_image(&self, kind: Kind, id: Option<u64>) -> Result<bool> {
        self.remove(&kind.file_name(id))
    }

    fn remove(&self, name: &str) -> Result<bool> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(errno) => Err(Error::io(&self.shown(name), "remove", errno)),
        }
    }

    /// Creates an image and writes its head. A file of that name is replaced, never written into:
    /// it may be hard-linked from another dump.
    pub fn create_image(
        &self,
        kind: Kind,
        id: Option<u64>,
    ) -> Result<ImageWriter<BufWriter<File>>> {
        let name = kind.file_name(id);
        let file = self.create_file(&name)?;
        ImageWriter::new(BufWriter::new(file), self.shown(&name), kind)
    }

    fn create_file(&self, name: &str) -> Result<File> {
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let create = || openat(&self.fd, name, flags, IMAGE_MODE);
        // Mostly there is none: a dump has cleared the directory before.
        let created = match create() {
            Err(Errno::EEXIST) => {
                self.remove(name)?;
                create()
            }
            created => created,
        };
        created
            .map(File::from)
            .map_err(|errno| Error::io(&self.shown(name), "create", errno))
    }
}

impl AsFd for ImageDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl ImageSink for ImageDir {
    fn create(&self, kind: Kind, id: Option<u64>) -> Result<SinkWriter> {
        let name = kind.file_name(id);
        let file = BufWriter::new(self.create_file(&name)?);
        ImageWriter::new(Box::new(file), self.shown(&name), kind)
    }

    fn create_raw_file(&self, kind: Kind, id: Option<u64>) -> Result<File> {
        self.create_file(&kind.file_name(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sink::write_entry, testing::TestDir};
    use crust_proto::criu::FsEntry;
    use std::{fs, io::Write, os::unix::fs::PermissionsExt};

    fn inventory(dir: &ImageDir, img_version: u32) {
        let entry = InventoryEntry {
            img_version,
            ..Default::default()
        };
        write_entry(dir, Kind::Inventory, None, &entry).unwrap();
    }

    #[test]
    fn an_image_is_written_and_read_back() {
        let at = TestDir::new();
        let dir = at.subdir("d");
        inventory(&dir, 2);
        let entry = FsEntry {
            cwd_id: 3,
            ..Default::default()
        };
        write_entry(&dir, Kind::Fs, Some(7), &entry).unwrap();
        assert_eq!(dir.read_entry(Kind::Fs, Some(7)).unwrap(), Some(entry));
        assert_eq!(dir.read_entry::<FsEntry>(Kind::Fs, Some(8)).unwrap(), None);
        assert_eq!(
            dir.list().unwrap(),
            [(Kind::Inventory, None), (Kind::Fs, Some(7))]
        );
        let mode = fs::metadata(at.path().join("d/fs-7.img"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }

    #[test]
    fn a_set_without_inventory_is_incomplete() {
        let at = TestDir::new();
        let dir = at.subdir("d");
        let told = dir.read_entry::<FsEntry>(Kind::Fs, Some(7)).unwrap_err();
        assert!(matches!(told, Error::Incomplete { .. }), "{told}");
        inventory(&dir, 3);
        let told = dir.version().unwrap_err().to_string();
        assert!(told.contains("img_version: 3 is neither 1 nor 2"), "{told}");
    }

    #[test]
    fn symlinks_fifos_and_directories_are_no_images() {
        let at = TestDir::new();
        let dir = at.subdir("d");
        inventory(&dir, 2);
        let path = |name: &str| at.path().join("d").join(name);
        std::os::unix::fs::symlink("inventory.img", path("fs-1.img")).unwrap();
        nix::unistd::mkfifo(&path("fs-2.img"), Mode::S_IRWXU).unwrap();
        fs::create_dir(path("fs-3.img")).unwrap();
        for id in 1..=3 {
            assert!(dir.read_entry::<FsEntry>(Kind::Fs, Some(id)).is_err());
        }
    }

    #[test]
    fn a_new_image_never_writes_into_an_old_file() {
        let at = TestDir::new();
        let dir = at.subdir("d");
        let (old, kept) = (at.path().join("d/files.img"), at.path().join("kept"));
        fs::write(&kept, "other dump").unwrap();
        fs::hard_link(&kept, &old).unwrap();
        dir.create(Kind::Files, None).unwrap().finish().unwrap();
        assert_eq!(fs::read(&kept).unwrap(), b"other dump");
        fs::remove_file(&old).unwrap();
        std::os::unix::fs::symlink(&kept, &old).unwrap();
        dir.create(Kind::Files, None).unwrap().finish().unwrap();
        assert_eq!(fs::read(&kept).unwrap(), b"other dump");
    }

    #[test]
    fn an_older_dump_is_removed_and_nothing_else() {
        let at = TestDir::new();
        let dir = at.subdir("d");
        inventory(&dir, 2);
        for (kind, id) in [
            (Kind::Files, None),
            (Kind::Core, Some(7)),
            (Kind::StatsDump, None),
        ] {
            dir.create(kind, id).unwrap().finish().unwrap();
        }
        let mut pages = dir.create_raw_file(Kind::Pages, Some(1)).unwrap();
        pages.write_all(b"x").unwrap();
        dir.set_parent(Path::new("../e")).unwrap();
        fs::write(at.path().join("d/notes.txt"), "mine").unwrap();
        assert_eq!(
            dir.remove_images().unwrap(),
            [
                "inventory.img",
                "core-7.img",
                "pages-1.img",
                "files.img",
                "parent"
            ]
        );
        assert_eq!(dir.names().unwrap(), ["notes.txt", "stats-dump"]);
    }

    #[test]
    fn the_parent_is_found_relative_to_the_directory() {
        let at = TestDir::new();
        let (first, second) = (at.subdir("1"), at.subdir("2"));
        assert!(second.parent().unwrap().is_none());
        second.set_parent(Path::new("../1")).unwrap();
        let parent = second.parent().unwrap().unwrap();
        assert_eq!(parent.identity().unwrap(), first.identity().unwrap());
        second.set_parent(Path::new("../nowhere")).unwrap();
        assert!(second.parent().is_err());
    }
}
