//! A dump as the reading verbs see it: images by kind and id, as dynamic messages, and the joins
//! between them.

use crate::output::open_regular;
use crate::pack::extract_aside;
use crate::raw::explain;
use anyhow::{Context, Result, bail};
use crust_image::Kind;
use crust_image::dynamic::{Message, Value};
use crust_image::json::Image;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// An image directory.
pub struct Dump {
    dir: PathBuf,
    /// What the user calls it: the directory, or the archive.
    shown: PathBuf,
    /// The place an archive was unpacked to, which goes with this value.
    unpacked: Option<tempfile::TempDir>,
}

impl Dump {
    /// Opens a directory, or an archive of one (see `pack`), which is unpacked aside.
    pub fn open(path: &Path) -> Result<Dump> {
        let there = fs::metadata(path).with_context(|| format!("{}: open", path.display()))?;
        if there.is_dir() {
            return Ok(Dump {
                dir: path.to_owned(),
                shown: path.to_owned(),
                unpacked: None,
            });
        }
        if !there.is_file() {
            bail!("{}: neither a directory nor an archive", path.display());
        }
        let unpacked = extract_aside(path)?;
        Ok(Dump {
            dir: unpacked.path().to_owned(),
            shown: path.to_owned(),
            unpacked: Some(unpacked),
        })
    }

    /// Refuses an archive, for what is to be changed in place.
    pub fn must_be_a_directory(&self) -> Result<()> {
        if self.unpacked.is_some() {
            bail!("an archive cannot be changed in place: `crit unpack` it first");
        }
        Ok(())
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// How to name the dump in a message: an archive by its own path, not by where it was unpacked.
    pub fn shown(&self) -> std::path::Display<'_> {
        self.shown.display()
    }

    /// How to name a file of it.
    pub fn shown_file(&self, name: &str) -> String {
        self.shown.join(name).display().to_string()
    }

    /// An error about a file of an unpacked archive, with the archive's name in place of where it
    /// was unpacked to; any other as it is.
    pub fn named(&self, error: anyhow::Error) -> anyhow::Error {
        let text = format!("{error:#}");
        let dir = self.dir.display().to_string();
        match self.unpacked.is_some() && text.contains(&dir) {
            true => anyhow::Error::msg(text.replace(&dir, &self.shown().to_string())),
            false => error,
        }
    }

    /// The bytes of a file of the dump, `None` when there is none of that name.
    pub fn read_file(&self, name: &str) -> Result<Option<Box<dyn Read>>> {
        let path = self.dir.join(name);
        match open_regular(&path) {
            Ok(file) => Ok(Some(Box::new(BufReader::with_capacity(1 << 16, file)))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{}: open", self.shown_file(name))),
        }
    }

    /// Whether the image of a kind without an id is there.
    pub fn has(&self, kind: Kind) -> bool {
        self.dir.join(kind.file_name(None)).exists()
    }

    /// An image, `None` when it is not there.
    pub fn image(&self, kind: Kind, id: Option<u64>) -> Result<Option<Image>> {
        let name = kind.file_name(id);
        let Some(from) = self.read_file(&name)? else {
            return Ok(None);
        };
        let shown = self.shown_file(&name);
        let image = Image::read(from).map_err(|error| explain(error, &shown))?;
        if image.kind.spec().name != kind.spec().name {
            bail!(
                "{shown}: the magic is that of {}, not of {}",
                image.kind.spec().name,
                kind.spec().name
            );
        }
        Ok(Some(image))
    }

    /// The only message of an image with one entry.
    pub fn message(&self, kind: Kind, id: Option<u64>) -> Result<Option<Message>> {
        let image = self.image(kind, id)?;
        Ok(image
            .and_then(|image| image.entries.into_iter().next())
            .map(|(entry, _)| entry.message))
    }

    /// The ids of the images of a kind, ascending.
    pub fn ids_of(&self, kind: Kind) -> Result<Vec<u64>> {
        let names = self.names()?;
        let parsed = names
            .iter()
            .filter_map(|name| Kind::of_file_name(OsStr::new(name)));
        let mut ids: Vec<u64> = parsed
            .filter(|(of, _)| *of == kind)
            .filter_map(|(_, id)| id)
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// The file names of the directory, sorted.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).with_context(|| format!("{}: list", self.shown()))? {
            // An image's name is ASCII; another file is of no interest here.
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    /// The tasks in the order of pstree.img.
    pub fn tasks(&self) -> Result<Vec<Task>> {
        let Some(image) = self.image(Kind::Pstree, None)? else {
            bail!("{}: no pstree.img in it", self.shown());
        };
        Ok(image.messages().map(Task::new).collect())
    }

    /// The open files and other objects of files.img by id. Dumps before files.img had an image
    /// for each type: those join here too.
    pub fn files(&self) -> Result<Files> {
        let mut by_id = HashMap::new();
        if let Some(image) = self.image(Kind::Files, None)? {
            for (entry, _) in image.entries {
                by_id
                    .entry(entry.message.u64("id").unwrap_or(0))
                    .or_insert(entry.message);
            }
        }
        for (kind, member) in OLD_FILE_IMAGES {
            let Some(image) = self.image(*kind, None)? else {
                continue;
            };
            for (entry, _) in image.entries {
                let id = entry.message.u64("id").unwrap_or(0);
                if let Some(file) = as_file_entry(member, id, entry.message) {
                    by_id.entry(id).or_insert(file);
                }
            }
        }
        Ok(Files { by_id })
    }
}

/// Images that dumps had before files.img, with the member of file_entry that took their place.
const OLD_FILE_IMAGES: &[(Kind, &str)] = &[
    (Kind::RegFiles, "reg"),
    (Kind::ExtFiles, "ext"),
    (Kind::NsFiles, "nsf"),
    (Kind::Eventfd, "efd"),
    (Kind::Eventpoll, "epfd"),
    (Kind::Signalfd, "sgfd"),
    (Kind::Timerfd, "tfd"),
    (Kind::Inotify, "ify"),
    (Kind::Fanotify, "ffy"),
    (Kind::Pipes, "pipe"),
    (Kind::Fifo, "fifo"),
    (Kind::Unixsk, "usk"),
    (Kind::Inetsk, "isk"),
    (Kind::Packetsk, "psk"),
    (Kind::Netlinksk, "nlsk"),
    (Kind::Tty, "tty"),
    (Kind::Tunfile, "tunf"),
];

fn as_file_entry(member: &str, id: u64, message: Message) -> Option<Message> {
    let def = crust_proto::schema::message("file_entry")?;
    let mut file = Message::new(def);
    file.push(def.field_named("id")?, Value::Unsigned(id));
    file.push(def.field_named(member)?, Value::Message(Box::new(message)));
    Some(file)
}

/// A row of pstree.img.
pub struct Task {
    pub pid: u64,
    pub ppid: u64,
    pub pgid: u64,
    pub sid: u64,
    pub threads: Vec<u64>,
}

impl Task {
    fn new(message: &Message) -> Task {
        let number = |name: &str| message.u64(name).unwrap_or(0);
        let threads = message
            .all("threads")
            .filter_map(|value| value.as_u64())
            .collect();
        Task {
            pid: number("pid"),
            ppid: number("ppid"),
            pgid: number("pgid"),
            sid: number("sid"),
            threads,
        }
    }
}

/// The tasks as a tree: depth and task, each parent before its children, siblings in the order of
/// the image. What hangs on a parent that is not there (or on itself) comes at the end at depth 0.
pub fn as_tree(tasks: &[Task]) -> Vec<(usize, &Task)> {
    let mut children: BTreeMap<u64, Vec<&Task>> = BTreeMap::new();
    for task in tasks {
        children.entry(task.ppid).or_default().push(task);
    }
    let mut seen = HashSet::new();
    let mut order = Vec::new();
    let roots = tasks.iter().filter(|task| task.ppid == 0);
    for root in roots.chain(tasks) {
        let mut open = vec![(0, root)];
        while let Some((depth, task)) = open.pop() {
            if !seen.insert(std::ptr::from_ref(task)) {
                continue;
            }
            order.push((depth, task));
            let below = children.get(&task.pid).into_iter().flatten().rev();
            open.extend(
                below
                    .filter(|_| task.pid != 0)
                    .map(|child| (depth + 1, *child)),
            );
        }
    }
    order
}

/// files.img by id.
pub struct Files {
    by_id: HashMap<u64, Message>,
}

impl Files {
    pub fn get(&self, id: u64) -> Option<&Message> {
        self.by_id.get(&id)
    }

    /// Every entry, in ascending id.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Message)> {
        let mut ids: Vec<_> = self
            .by_id
            .iter()
            .map(|(id, message)| (*id, message))
            .collect();
        ids.sort_by_key(|(id, _)| *id);
        ids.into_iter()
    }

    /// The path of a REG entry.
    pub fn path(&self, id: u64) -> Option<String> {
        let name = self.get(id)?.message("reg")?.bytes("name")?;
        Some(String::from_utf8_lossy(name).into_owned())
    }
}

/// The name of an enum field's value, or its number.
pub fn enum_text(message: &Message, field: &str) -> String {
    use crust_proto::schema::FieldKind;
    let number = message.i64(field).unwrap_or(0);
    let name = match message.def.field_named(field).map(|def| def.kind) {
        Some(FieldKind::Enum(names)) => names.name_of(number),
        _ => None,
    };
    name.map_or_else(|| number.to_string(), str::to_owned)
}

/// The text of a bytes or string field, what is no UTF-8 replaced.
pub fn text(message: &Message, field: &str) -> Option<String> {
    message
        .bytes(field)
        .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}
