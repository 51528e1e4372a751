//! Whether a set of images fits together, told before anything is forked.
//!
//! Loading proves that each image is well formed; here every reference between images is followed:
//! ids to files, tables, namespaces and shared memory, pages to areas, sockets to their streams,
//! tasks to their parents, sessions and groups; and files to the entries that need them. An error
//! is what a restore cannot get past or would get wrong; a warning is what it can do without. All
//! findings are told, each with its image, entry and field, and a remedy where there is one.

mod files;
mod memory;
mod namespaces;
mod stray;
mod tree;

use crate::{
    checkpoint::Checkpoint,
    digest,
    dir::ImageDir,
    error::{Error, Result},
    ids::FileId,
    kind::Kind,
    pages::{DumpChain, Pagemap},
};
use serde::Serialize;
use std::fmt;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A restore goes on without it.
    Warning,
    /// A restore fails, or brings back something else.
    Error,
}

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// File name of the image.
    pub image: String,
    /// Number of the entry, from 0, where one entry is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<usize>,
    /// Path of the field inside the entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<&'static str>,
    /// What is wrong.
    pub what: String,
    /// What can be done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<&'static str>,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(out, "{severity}: {}", self.image)?;
        if let Some(entry) = self.entry {
            write!(out, ": entry {entry}")?;
        }
        if let Some(field) = self.field {
            write!(out, ": {field}")?;
        }
        write!(out, ": {}", self.what)?;
        if let Some(fix) = self.fix {
            write!(out, " ({fix})")?;
        }
        Ok(())
    }
}

/// What a restore is asked for that makes up for something missing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Given {
    /// Connections come back closed: they need no stored stream.
    pub tcp_close: bool,
}

/// Checks a loaded set. `dir` is the directory it was loaded from.
pub fn check(checkpoint: &Checkpoint, dir: &ImageDir, given: Given) -> Vec<Finding> {
    let mut findings = Findings {
        checkpoint,
        given,
        list: Vec::new(),
    };
    check_inventory(&mut findings);
    tree::check(&mut findings);
    files::check_tables(&mut findings);
    files::check_references(&mut findings);
    files::check_remaps(&mut findings);
    files::check_data(&mut findings);
    files::check_ghosts(&mut findings, dir);
    memory::check(&mut findings);
    namespaces::check(&mut findings);
    stray::check(&mut findings, dir);
    findings.list
}

/// Checks a directory: loads it and checks the set. What ends the loading is a finding too. A
/// pre-dump, which has only memory, is checked for that.
pub fn check_dir(dir: &ImageDir) -> Vec<Finding> {
    let checked = match is_pre_dump(dir) {
        Ok(true) => check_pre_dump(dir),
        Ok(false) => {
            Checkpoint::load(dir).map(|checkpoint| check(&checkpoint, dir, Given::default()))
        }
        Err(error) => Err(error),
    };
    let mut findings = checked.unwrap_or_else(|error| vec![broken(&error)]);
    findings.extend(check_digest(dir));
    findings
}

/// What differs from the manifest of the dump, if it has one.
fn check_digest(dir: &ImageDir) -> Vec<Finding> {
    let whole = Severity::Error;
    let finding = |image: &str, what: String| Finding {
        severity: whole,
        image: image.to_owned(),
        entry: None,
        field: None,
        what,
        fix: Some("copy the images again, or remove crust-digest.json after an edit"),
    };
    match digest::verify(dir) {
        Ok(differences) => {
            let named = digest::with_addresses(&differences.unwrap_or_default(), dir);
            named
                .iter()
                .map(|(file, what)| finding(file, what.clone()))
                .collect()
        }
        Err(error) => vec![broken(&error)],
    }
}

/// An image that cannot be read, as a finding.
fn broken(error: &Error) -> Finding {
    let inventory = Kind::Inventory.file_name(None);
    let (image, entry) = match error {
        Error::Incomplete { .. } => (&inventory, None),
        Error::Io { file, .. }
        | Error::Missing { file }
        | Error::Head { file, .. }
        | Error::Chain { file, .. } => (file, None),
        Error::Frame { file, entry, .. }
        | Error::Message { file, entry, .. }
        | Error::Field { file, entry, .. } => (file, usize::try_from(*entry).ok()),
    };
    let name = image.rsplit('/').next().unwrap_or(image);
    Finding {
        severity: Severity::Error,
        image: name.to_owned(),
        entry,
        field: None,
        what: error.to_string(),
        fix: None,
    }
}

/// The previous dump of a chain: an inventory and memory, no tree.
fn is_pre_dump(dir: &ImageDir) -> Result<bool> {
    let images = dir.list()?;
    let has = |wanted| images.iter().any(|(kind, _)| *kind == wanted);
    Ok(has(Kind::Inventory) && !has(Kind::Pstree) && !has(Kind::Core))
}

fn check_pre_dump(dir: &ImageDir) -> Result<Vec<Finding>> {
    dir.inventory()?;
    let chain = DumpChain::open(dir)?;
    let mut findings = Vec::new();
    for (kind, id) in dir.list()? {
        let (Kind::Pagemap | Kind::PagemapShmem, Some(id)) = (kind, id) else {
            continue;
        };
        let checked = Pagemap::read(dir, kind, id).and_then(|_| chain.resolve(kind, id));
        findings.extend(checked.err().map(|error| broken(&error)));
    }
    Ok(findings)
}

fn check_inventory(findings: &mut Findings<'_>) {
    let inventory = &findings.checkpoint.inventory;
    let (cg_set, ids) = (inventory.root_cg_set, inventory.root_ids.is_some());
    let place = || Place::of(Kind::Inventory, None).entry(0);
    if cg_set == Some(0) {
        findings.error(place().field("root_cg_set"), "0 is the id of no cgroup set");
    }
    if !ids {
        let what = "absent: no namespace can be told from the dumper's";
        findings.error(place().field("root_ids"), what);
    }
}

/// Where a finding is. Most places are asked for and come to nothing, so none has text.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    image: ImageName<'a>,
    entry: Option<usize>,
    field: Option<&'static str>,
}

#[derive(Debug, Clone, Copy)]
enum ImageName<'a> {
    Of(Kind, Option<u64>),
    Named(&'a str),
}

impl<'a> Place<'a> {
    fn of(kind: Kind, id: Option<u64>) -> Place<'a> {
        Place {
            image: ImageName::Of(kind, id),
            entry: None,
            field: None,
        }
    }

    fn named(image: &'a str) -> Place<'a> {
        Place {
            image: ImageName::Named(image),
            entry: None,
            field: None,
        }
    }

    fn image_name(&self) -> String {
        match self.image {
            ImageName::Of(kind, id) => kind.file_name(id),
            ImageName::Named(name) => name.to_owned(),
        }
    }

    fn entry(self, entry: usize) -> Place<'a> {
        Place {
            entry: Some(entry),
            ..self
        }
    }

    fn field(self, field: &'static str) -> Place<'a> {
        Place {
            field: Some(field),
            ..self
        }
    }
}

/// What was found so far.
struct Findings<'a> {
    checkpoint: &'a Checkpoint,
    given: Given,
    list: Vec<Finding>,
}

impl<'a> Findings<'a> {
    fn add(
        &mut self,
        severity: Severity,
        place: Place<'_>,
        what: String,
        fix: Option<&'static str>,
    ) {
        self.list.push(Finding {
            severity,
            image: place.image_name(),
            entry: place.entry,
            field: place.field,
            what,
            fix,
        });
    }

    fn error(&mut self, place: Place<'_>, what: impl Into<String>) {
        self.add(Severity::Error, place, what.into(), None);
    }

    fn error_with_fix(&mut self, place: Place<'_>, what: impl Into<String>, fix: &'static str) {
        self.add(Severity::Error, place, what.into(), Some(fix));
    }

    fn warning(&mut self, place: Place<'_>, what: impl Into<String>) {
        self.add(Severity::Warning, place, what.into(), None);
    }

    /// The place of a file in files.img.
    fn file_place(&self, id: FileId) -> Place<'static> {
        let place = Place::of(Kind::Files, None);
        match self.checkpoint.file_entries.get(&id) {
            Some(entry) => place.entry(*entry),
            None => place,
        }
    }
}
