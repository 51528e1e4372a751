//! `crit query DIR FILTER`: a jq filter over a whole dump.
//!
//! Its input is one object with the ids resolved: `tasks` (each with its ids, credentials, `fds`
//! with the file behind each, and `vmas` with theirs), `files`, `sockets`, `remaps`, `mounts`, and
//! `images`, every image by its file name as `crit decode` shows it, payloads by their size.

use crate::cli::{self, View};
use crate::dump::Dump;
use crate::explore;
use crate::jq::Filter;
use crate::output::write_json_out;
use crate::raw::explain;
use anyhow::Result;
use crust_image::Kind;
use crust_image::json::{DecodeOptions, Layout, Payloads, Writer, image_to_value, write_value};
use crust_image::kind::Framing;
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::ffi::OsStr;

pub fn query(arguments: &cli::Query, color: bool) -> Result<()> {
    let filter = Filter::compile(&arguments.filter)?;
    let dump = Dump::open(&arguments.dir)?;
    let joined = joined(&dump)?;
    let found = filter.run(&arguments.dir.display().to_string(), &joined)?;
    write_json_out(color && !arguments.raw, |out| {
        for value in found {
            match &value {
                Value::String(text) if arguments.raw => writeln!(out, "{text}")?,
                // A filter may give what no image holds: null and fractions.
                _ if arguments.compact => writeln!(out, "{value}")?,
                _ => writeln!(out, "{}", pretty(&value)?)?,
            }
        }
        Ok(())
    })
}

fn pretty(value: &Value) -> Result<String> {
    let mut writer = Writer::new(Vec::new(), Layout::Pretty);
    if write_value(&mut writer, value).is_err() {
        return Ok(serde_json::to_string_pretty(value)?);
    }
    Ok(String::from_utf8(writer.finish()?)?)
}

/// The joined view.
fn joined(dump: &Dump) -> Result<Value> {
    let mut root = Map::new();
    if dump.has(Kind::Pstree) {
        root.insert("tasks".into(), tasks(dump)?);
        root.insert("sockets".into(), explore::json(dump, View::Sk)?);
        root.insert("remaps".into(), explore::json(dump, View::Remaps)?);
        root.insert("mounts".into(), explore::json(dump, View::Mounts)?);
        let files = dump.files()?;
        let ids: Vec<u64> = files.iter().map(|(id, _)| id).collect();
        let files: Vec<Value> = ids
            .iter()
            .map(|id| explore::describe::file_json(&files, *id))
            .collect();
        root.insert("files".into(), Value::Array(files));
    }
    root.insert("images".into(), images(dump)?);
    Ok(Value::Object(root))
}

/// The tasks of ps with what the other views tell of each.
fn tasks(dump: &Dump) -> Result<Value> {
    let mut tasks = explore::json(dump, View::Ps)?;
    let views = [
        (View::Fds, &["fds", "cwd", "root", "umask", "files_id"][..]),
        (View::Mems, &["vmas"][..]),
        (View::Rss, &["runs", "pages_id", "page_size"][..]),
    ];
    for (view, keys) in views {
        let view = explore::json(dump, view)?;
        let rows = view.as_array().into_iter().flatten();
        for (task, row) in tasks.as_array_mut().into_iter().flatten().zip(rows) {
            for key in keys {
                if let Some(value) = row.get(*key) {
                    task[*key] = value.clone();
                }
            }
        }
    }
    let creds = explore::json(dump, View::Creds)?;
    for task in tasks.as_array_mut().into_iter().flatten() {
        let mut rows = creds.as_array().into_iter().flatten();
        let own = rows.find(|row| row.get("tid") == task.get("pid"));
        if let Some(own) = own {
            task["creds"] = own.clone();
        }
    }
    Ok(tasks)
}

/// Every image that has JSON, decoded on all processors.
fn images(dump: &Dump) -> Result<Value> {
    let names = dump.names()?;
    let wanted: Vec<&String> = names.iter().filter(|name| is_image(name)).collect();
    let options = DecodeOptions {
        pretty: true,
        payloads: Payloads::Size,
        ..DecodeOptions::COMPACT
    };
    let decoded: Vec<(String, Value)> = wanted
        .par_iter()
        .map(|name| {
            let Some(from) = dump.read_file(name)? else {
                return Ok((String::clone(name), json!({})));
            };
            let shown = dump.shown_file(name);
            let value = image_to_value(from, options).map_err(|error| explain(error, &shown))?;
            Ok((String::clone(name), value))
        })
        .collect::<Result<_>>()?;
    Ok(Value::Object(decoded.into_iter().collect()))
}

/// Whether a file of that name holds messages.
pub fn is_image(name: &str) -> bool {
    let kind = Kind::of_file_name(OsStr::new(name)).map(|(kind, _)| kind);
    kind.is_some_and(|kind| kind.spec().framing != Framing::Raw && kind != Kind::PagesShmemOld)
}
