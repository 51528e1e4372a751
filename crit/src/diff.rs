//! `crit diff A B`: what two dumps differ in, task by task: tree, areas, pages, descriptors and their
//! files, credentials, and every other image.
//!
//! Ids that only tie images together (file ids, entry numbers) do not count; what they lead to does.
//! Exit status as diff(1): 0 the same, 1 different, 2 trouble.

mod pages;

use crate::cli::{self, View};
use crate::color::{GREEN, RED, YELLOW, painted};
use crate::dump::Dump;
use crate::explore;
use crate::output::write_output;
use crate::query::is_image;
use crate::raw::explain;
use anyhow::Result;
use crust_image::Kind;
use crust_image::json::{DecodeOptions, image_to_value};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::process::ExitCode;

/// One difference: where, and what stands on each side.
pub struct Difference {
    pub path: String,
    pub left: Option<Value>,
    pub right: Option<Value>,
}

pub fn diff(arguments: &cli::Diff, color: bool) -> Result<ExitCode> {
    let (left, right) = (Dump::open(&arguments.left)?, Dump::open(&arguments.right)?);
    let (first, second) = rayon::join(
        || comparable(&left, arguments),
        || comparable(&right, arguments),
    );
    let mut differences = Vec::new();
    compare("", &first?, &second?, &mut differences);
    if !arguments.no_pages {
        pages::compare(&left, &right, &mut differences)?;
    }
    write_output(None, |out| {
        if arguments.json {
            let list: Vec<Value> = differences.iter().map(Difference::json).collect();
            writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
            return Ok(());
        }
        differences.iter().try_for_each(|difference| {
            let painted = painted(&difference.text(), difference.color(), color);
            Ok(writeln!(out, "{painted}")?)
        })
    })?;
    Ok(ExitCode::from(u8::from(!differences.is_empty())))
}

impl Difference {
    fn json(&self) -> Value {
        let mut members = Map::new();
        members.insert("path".into(), self.path.clone().into());
        for (key, value) in [("left", &self.left), ("right", &self.right)] {
            if let Some(value) = value {
                members.insert(key.into(), value.clone());
            }
        }
        Value::Object(members)
    }

    fn color(&self) -> &'static str {
        match (&self.left, &self.right) {
            (Some(_), Some(_)) => YELLOW,
            (Some(_), None) => RED,
            (None, _) => GREEN,
        }
    }

    fn text(&self) -> String {
        match (&self.left, &self.right) {
            (Some(left), Some(right)) => {
                format!("{}: {} -> {}", self.path, shown(left), shown(right))
            }
            (Some(left), None) => format!("- {}: {}", self.path, shown(left)),
            (_, right) => format!(
                "+ {}: {}",
                self.path,
                right.as_ref().map(shown).unwrap_or_default()
            ),
        }
    }
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.chars().count() > 160 {
        text.chars().take(160).chain("...".chars()).collect()
    } else {
        text
    }
}

/// A dump as one tree in which things have the same place on both sides: tasks by pid, descriptors
/// by number, areas by address.
fn comparable(dump: &Dump, arguments: &cli::Diff) -> Result<Value> {
    let mut root = Map::new();
    if dump.has(Kind::Pstree) {
        let mut tasks = Map::new();
        for (view, part, key) in [
            (View::Ps, "", "pid"),
            (View::Fds, "fds", "fd"),
            (View::Mems, "vmas", "start"),
        ] {
            for task in rows(explore::json(dump, view)?) {
                let pid = task.get("pid").map(Value::to_string).unwrap_or_default();
                let place = tasks.entry(pid).or_insert_with(|| json!({}));
                merge(place, task, part, key);
            }
        }
        for creds in rows(explore::json(dump, View::Creds)?) {
            let word = |key: &str| creds.get(key).map(Value::to_string).unwrap_or_default();
            let (pid, tid) = (word("pid"), word("tid"));
            if let Some(place) = tasks.get_mut(&pid) {
                place["creds"][tid] = creds;
            }
        }
        root.insert("tasks".into(), Value::Object(tasks));
    }
    root.insert("images".into(), other_images(dump, arguments)?);
    Ok(Value::Object(root))
}

fn rows(view: Value) -> Vec<Value> {
    match view {
        Value::Array(rows) => rows,
        _ => Vec::new(),
    }
}

/// Puts the members of a task's row into its place; `part` is the array that becomes an object.
fn merge(place: &mut Value, row: Value, part: &str, key: &str) {
    let Value::Object(members) = row else { return };
    for (name, value) in members {
        // The number of a descriptor table only ties images together.
        if name == "files_id" {
            continue;
        }
        place[&name] = if name == part {
            by_key(value, key)
        } else {
            value
        };
    }
}

/// An array of objects by one of their members, without the ids that files have in one dump only.
fn by_key(value: Value, key: &str) -> Value {
    let mut found = Map::new();
    for mut item in rows(value) {
        let name = match item.get(key) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => continue,
        };
        if let Some(file) = item.get_mut("file").and_then(Value::as_object_mut) {
            file.shift_remove("id");
            if let Some(entry) = file.get_mut("entry").and_then(Value::as_object_mut) {
                ["id", "regf_id", "tty_info_id", "inode_id"]
                    .iter()
                    .for_each(|id| drop(entry.shift_remove(*id)));
            }
            if let Some(area) = item.as_object_mut() {
                area.shift_remove("shmid");
            }
        }
        found.insert(name, item);
    }
    Value::Object(found)
}

/// The images whose content the joined views do not show, as they decode.
fn other_images(dump: &Dump, arguments: &cli::Diff) -> Result<Value> {
    let wanted: Vec<String> = dump
        .names()?
        .into_iter()
        .filter(|name| {
            let Some((kind, _)) = Kind::of_file_name(OsStr::new(name)) else {
                return false;
            };
            let joined = matches!(
                kind,
                Kind::Pstree
                    | Kind::Ids
                    | Kind::Fdinfo
                    | Kind::Fs
                    | Kind::Files
                    | Kind::Pagemap
                    | Kind::PagemapShmem
            );
            let varies = matches!(kind, Kind::StatsDump | Kind::StatsRestore) && !arguments.stats;
            is_image(name) && !joined && !varies
        })
        .collect();
    let decoded: Vec<(String, Value)> = wanted
        .into_par_iter()
        .map(|name| {
            let options = DecodeOptions {
                pretty: true,
                ..DecodeOptions::COMPACT
            };
            let Some(from) = dump.read_file(&name)? else {
                return Ok((name, Value::Null));
            };
            let shown = dump.shown_file(&name);
            let mut value =
                image_to_value(from, options).map_err(|error| explain(error, &shown))?;
            if name.starts_with("mm-") {
                // The areas are compared with the tasks.
                value["entries"]
                    .as_array_mut()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_object_mut)
                    .for_each(|mm| {
                        mm.shift_remove("vmas");
                    });
            }
            Ok((name, value["entries"].take()))
        })
        .collect::<Result<_>>()?;
    Ok(Value::Object(decoded.into_iter().collect()))
}

/// Walks both trees.
fn compare(path: &str, left: &Value, right: &Value, found: &mut Vec<Difference>) {
    if left == right {
        return;
    }
    let at = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for key in keys {
                side(&at(key), left.get(key), right.get(key), found);
            }
        }
        (Value::Array(left), Value::Array(right)) => {
            for index in 0..left.len().max(right.len()) {
                side(
                    &format!("{path}[{index}]"),
                    left.get(index),
                    right.get(index),
                    found,
                );
            }
        }
        _ => found.push(Difference {
            path: path.to_owned(),
            left: Some(left.clone()),
            right: Some(right.clone()),
        }),
    }
}

fn side(path: &str, left: Option<&Value>, right: Option<&Value>, found: &mut Vec<Difference>) {
    match (left, right) {
        (Some(left), Some(right)) => compare(path, left, right, found),
        (left, right) => {
            found.push(Difference {
                path: path.to_owned(),
                left: left.cloned(),
                right: right.cloned(),
            });
        }
    }
}
