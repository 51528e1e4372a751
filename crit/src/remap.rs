//! `crit remap`: other pids, paths, addresses, ports and owners for a dump, everywhere they occur.
//!
//! `remap/rules.rs` knows which field holds what. The images are read, changed in memory and put in
//! place together; what cannot be seen from images (numbers a program keeps in its memory) is named
//! in a warning. Doing it twice changes nothing the second time.

mod map;
mod rules;

use crate::cli;
use crate::dump::Dump;
use crate::output::{open_regular, write_output};
use crate::raw::explain;
use crate::transaction::{Transaction, copy_dump};
use anyhow::{Context, Result, bail};
use crust_image::Kind;
use crust_image::json::frame::{put_framed, put_head};
use crust_image::json::{FrameReader, Image};
use crust_image::kind::Framing;
use map::Maps;
use rules::Remapper;
use std::ffi::OsStr;
use std::io;
use std::path::Path;

pub fn remap(arguments: &cli::Remap) -> Result<()> {
    let maps = Maps::parse(arguments)?;
    let dir = match &arguments.out {
        Some(out) if !arguments.dry_run => {
            // What is refused is refused before the copy is made.
            remap_dir(&arguments.dir, &maps, true)?;
            copy_dump(&arguments.dir, out)?;
            out
        }
        _ => &arguments.dir,
    };
    let report = remap_dir(dir, &maps, arguments.dry_run)?;
    write_output(None, |out| {
        report
            .changes
            .iter()
            .try_for_each(|line| Ok(writeln!(out, "{line}")?))
    })?;
    for warning in &report.warnings {
        eprintln!("crit: warning: {warning}");
    }
    if report.changes.is_empty() {
        eprintln!("crit: {}: nothing to change", dir.display());
    }
    Ok(())
}

/// What was done and what could not be seen.
struct Report {
    changes: Vec<String>,
    warnings: Vec<String>,
}

fn remap_dir(dir: &Path, maps: &Maps, dry_run: bool) -> Result<Report> {
    let dump = Dump::open(dir)?;
    dump.must_be_a_directory()?;
    if maps.has_pids() && dir.join("parent").symlink_metadata().is_ok() {
        bail!(
            "{}: its parent dump has the memory of its tasks under their pids: `crit flatten` it \
             first",
            dir.display()
        );
    }
    let names = dump.names()?;
    let known = known_numbers(&dump)?;
    maps.check(&known)?;
    let mut remapper = Remapper::new(maps, local_ends(&dump)?);
    let mut transaction = if dry_run {
        Transaction::rehearse(dir)?
    } else {
        Transaction::begin(dir)?
    };
    for name in &names {
        let Some((kind, id)) = Kind::of_file_name(OsStr::new(name)) else {
            continue;
        };
        if kind.spec().framing == Framing::Raw || kind == Kind::PagesShmemOld {
            rename(name, kind, id, maps, &mut remapper, &mut transaction, dir)?;
            continue;
        }
        remapper.enter(name);
        let renamed = new_name(kind, id, maps);
        if kind == Kind::GhostFile {
            remap_ghost(&dump, name, &mut remapper, &mut transaction)?;
            continue;
        }
        let Some(mut image) = read(&dump, name)? else {
            continue;
        };
        let mut changed = false;
        for (entry, _) in &mut image.entries {
            changed |= remapper.entry(entry.index, &mut entry.message);
        }
        if changed || renamed.is_some() {
            let target = renamed.as_deref().unwrap_or(name);
            transaction.put(target, |out| Ok(image.write(out)?))?;
        }
        if let Some(renamed) = renamed {
            remapper.renamed(name, &renamed);
            transaction.remove(name);
        }
    }
    let mut warnings = remapper.warnings();
    warnings.extend(raw_warnings(maps, &names));
    let changes = remapper.changes();
    if changes.is_empty() && !remapper.done_before() {
        bail!(
            "{}: nothing of what is to be mapped is there{}",
            dir.display(),
            known.describe()
        );
    }
    if !dry_run {
        transaction.commit()?;
    }
    Ok(Report { changes, warnings })
}

fn read(dump: &Dump, name: &str) -> Result<Option<Image>> {
    let Some(from) = dump.read_file(name)? else {
        return Ok(None);
    };
    let shown = dump.shown_file(name);
    Image::read(from)
        .map(Some)
        .map_err(|error| explain(error, &shown))
}

/// Only the first entry of a ghost file holds what can be mapped: its content, of any size, is
/// copied behind it.
fn remap_ghost(
    dump: &Dump,
    name: &str,
    remapper: &mut Remapper,
    transaction: &mut Transaction,
) -> Result<()> {
    let Some(from) = dump.read_file(name)? else {
        return Ok(());
    };
    let shown = dump.shown_file(name);
    let mut reader = FrameReader::open(from).map_err(|error| explain(error, &shown))?;
    let (kind, version) = (reader.kind(), reader.version());
    let entry = reader
        .next_entry()
        .map_err(|error| explain(error, &shown))?;
    let Some(mut entry) = entry else {
        return Ok(());
    };
    if !remapper.entry(0, &mut entry.message) {
        return Ok(());
    }
    transaction.put(name, |out| {
        put_head(out, kind, version)?;
        put_framed(out, &entry.bytes())?;
        io::copy(reader.payload(), out).with_context(|| format!("{shown}: copy the content"))?;
        Ok(())
    })
}

/// Raw files keep their content; none is named after a pid in what CRIU writes today.
fn rename(
    name: &str,
    kind: Kind,
    id: Option<u64>,
    maps: &Maps,
    remapper: &mut Remapper,
    transaction: &mut Transaction,
    dir: &Path,
) -> Result<()> {
    let Some(renamed) = new_name(kind, id, maps) else {
        return Ok(());
    };
    let mut from = open_regular(&dir.join(name)).with_context(|| format!("{name}: open"))?;
    transaction.put(&renamed, |out| {
        io::copy(&mut from, out).map(drop).context("copy")
    })?;
    transaction.remove(name);
    remapper.renamed(name, &renamed);
    Ok(())
}

/// The name of an image that is called after a task whose pid changes.
fn new_name(kind: Kind, id: Option<u64>, maps: &Maps) -> Option<String> {
    let named_after_a_task = matches!(
        kind,
        Kind::Core
            | Kind::Ids
            | Kind::Mm
            | Kind::Fs
            | Kind::Pagemap
            | Kind::Creds
            | Kind::Vmas
            | Kind::Sigact
            | Kind::Itimers
            | Kind::PosixTimers
            | Kind::Rlimit
            | Kind::SignalShared
            | Kind::SignalPrivate
    );
    let new = maps.pid(id.filter(|_| named_after_a_task)?)?;
    Some(kind.file_name(Some(new)))
}

/// The numbers of tasks in a dump.
struct Known {
    pids: Vec<u64>,
}

impl Known {
    fn describe(&self) -> String {
        let pids: Vec<String> = self.pids.iter().map(u64::to_string).collect();
        if pids.is_empty() {
            String::new()
        } else {
            format!(" (the ids of its tasks are {})", pids.join(", "))
        }
    }
}

/// Every pid, thread, group and session id of the set, and the dead ones that remaps name.
fn known_numbers(dump: &Dump) -> Result<Known> {
    let mut pids = Vec::new();
    if let Some(image) = dump.image(Kind::Pstree, None)? {
        for task in image.messages() {
            for field in ["pid", "pgid", "sid", "threads"] {
                pids.extend(task.all(field).filter_map(|number| number.as_u64()));
            }
        }
    }
    if let Some(image) = dump.image(Kind::RemapFpath, None)? {
        let procfs = image.messages().filter(|remap| rules::is_procfs(remap));
        pids.extend(procfs.filter_map(|remap| remap.u64("remap_id")));
    }
    pids.retain(|pid| *pid != 0);
    pids.sort_unstable();
    pids.dedup();
    Ok(Known { pids })
}

/// The local ends of the inet sockets, by which the other end of a connection inside the set is
/// recognised.
fn local_ends(dump: &Dump) -> Result<Vec<(Vec<u64>, u64)>> {
    let files = dump.files()?;
    let sockets = files.iter().filter_map(|(_, file)| file.message("isk"));
    Ok(sockets
        .map(|socket| {
            let address = socket
                .all("src_addr")
                .filter_map(|word| word.as_u64())
                .collect();
            (address, socket.u64("src_port").unwrap_or(0))
        })
        .collect())
}

fn raw_warnings(maps: &Maps, names: &[String]) -> Vec<String> {
    let mut warnings = Vec::new();
    let there = |prefix: &str| names.iter().any(|name| name.starts_with(prefix));
    if maps.has_addresses()
        && (there("ifaddr-") || there("route") || there("iptables-") || there("nftables-"))
    {
        warnings.push("interface addresses, routes and filter rules of the network namespace (raw files) keep the old addresses".to_owned());
    }
    if maps.has_owners() && there("userns-") {
        warnings
            .push("the id maps of the user namespace (userns-*.img) were not changed".to_owned());
    }
    if maps.has_owners() && there("tmpfs-") {
        warnings.push("the files inside tmpfs archives keep their owners".to_owned());
    }
    warnings
}
