//! `crit transform`: a jq filter, or a file of rules, over many images of a dump at once.
//!
//! All or nothing: every image is changed and encoded in memory or beside, and put in place only when
//! all went well. A filter or rule that changes nothing is an error that tells what it was given.

use crate::cli;
use crate::dump::Dump;
use crate::edit::{encode_value, read_image};
use crate::jq::Filter;
use crate::path::Path as FieldPath;
use crate::query::is_image;
use crate::transaction::{Transaction, copy_dump};
use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use serde_json::Value;
use std::fs;
use std::path::Path;

pub fn transform(arguments: &cli::Transform) -> Result<()> {
    let rules = match (&arguments.filter, &arguments.rules) {
        (Some(filter), None) => {
            let pattern = if arguments.on.is_empty() {
                vec!["*".to_owned()]
            } else {
                arguments.on.clone()
            };
            vec![Rule {
                patterns: pattern,
                change: Change::Filter(filter.clone()),
                text: filter.clone(),
            }]
        }
        (None, Some(file)) => read_rules(file)?,
        _ => bail!("give a filter or --rules FILE"),
    };
    // What is refused is refused before a copy is made.
    let changed = apply(&arguments.dir, &rules)?;
    let dir = match &arguments.out {
        Some(out) => {
            copy_dump(&arguments.dir, out)?;
            out
        }
        None => &arguments.dir,
    };
    let mut transaction = Transaction::begin(dir)?;
    for (name, bytes) in &changed {
        transaction.put(name, |out| Ok(out.write_all(bytes)?))?;
    }
    transaction.commit()?;
    changed
        .iter()
        .for_each(|(name, _)| eprintln!("crit: {name}: changed"));
    Ok(())
}

/// One change to the images whose names fit.
struct Rule {
    patterns: Vec<String>,
    change: Change,
    text: String,
}

enum Change {
    Filter(String),
    Set(FieldPath, String),
    Delete(FieldPath),
}

/// Lines of `PATTERN set PATH VALUE`, `PATTERN del PATH` or `PATTERN jq FILTER`; `#` begins a
/// comment.
fn read_rules(file: &Path) -> Result<Vec<Rule>> {
    let text = fs::read_to_string(file).with_context(|| format!("{}: read", file.display()))?;
    let mut rules = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let rule =
            parse_rule(line).with_context(|| format!("{} line {}", file.display(), at + 1))?;
        rules.push(rule);
    }
    Ok(rules)
}

fn parse_rule(line: &str) -> Result<Rule> {
    let mut words = line.splitn(3, char::is_whitespace);
    let (Some(pattern), Some(verb), Some(rest)) = (words.next(), words.next(), words.next()) else {
        bail!(
            "{line}: PATTERN set PATH VALUE, PATTERN del PATH or PATTERN jq FILTER is meant to be here"
        );
    };
    let change = match verb {
        "jq" => Change::Filter(rest.to_owned()),
        "del" => Change::Delete(FieldPath::parse(rest.trim())?),
        "set" => {
            let (path, value) = rest
                .trim()
                .split_once(char::is_whitespace)
                .with_context(|| format!("{line}: a value is missing"))?;
            Change::Set(FieldPath::parse(path)?, value.trim().to_owned())
        }
        _ => bail!("{verb}: no such rule (set, del, jq)"),
    };
    Ok(Rule {
        patterns: vec![pattern.to_owned()],
        change,
        text: line.to_owned(),
    })
}

/// The bytes of every image that changes.
fn apply(dir: &Path, rules: &[Rule]) -> Result<Vec<(String, Vec<u8>)>> {
    let dump = Dump::open(dir)?;
    dump.must_be_a_directory()?;
    let names: Vec<String> = dump
        .names()?
        .into_iter()
        .filter(|name| is_image(name))
        .collect();
    let results: Vec<(String, Option<Vec<u8>>, Vec<bool>)> = names
        .par_iter()
        .filter(|name| rules.iter().any(|rule| rule.is_for(name)))
        .map(|name| {
            let (bytes, used) = apply_to(&dir.join(name), name, rules)?;
            Ok((name.clone(), bytes, used))
        })
        .collect::<Result<_>>()?;
    for (at, rule) in rules.iter().enumerate() {
        if !results
            .iter()
            .any(|(_, _, used)| used.get(at) == Some(&true))
        {
            let looked_at: Vec<&str> = names
                .iter()
                .filter(|name| rule.is_for(name))
                .map(String::as_str)
                .collect();
            let looked_at = if looked_at.is_empty() {
                format!("no image has such a name; there are {}", names.join(", "))
            } else {
                format!("looked at {}", looked_at.join(", "))
            };
            bail!("{}: changes nothing ({looked_at})", rule.text);
        }
    }
    Ok(results
        .into_iter()
        .filter_map(|(name, bytes, _)| Some((name, bytes?)))
        .collect())
}

/// The new bytes of one image, if they differ, and which rules changed something.
fn apply_to(path: &Path, name: &str, rules: &[Rule]) -> Result<(Option<Vec<u8>>, Vec<bool>)> {
    let image = read_image(path, false)?;
    let mut value = image.value.clone();
    let mut used = Vec::new();
    for rule in rules {
        let before = value.clone();
        if rule.is_for(name) {
            rule.apply(name, &mut value)
                .with_context(|| name.to_owned())?;
        }
        used.push(value != before);
    }
    if value == image.value {
        return Ok((None, used));
    }
    Ok((Some(encode_value(path, &value, image.version)?), used))
}

impl Rule {
    fn is_for(&self, name: &str) -> bool {
        self.patterns
            .iter()
            .any(|pattern| fits(pattern.as_bytes(), name.as_bytes()))
    }

    fn apply(&self, name: &str, value: &mut Value) -> Result<()> {
        match &self.change {
            Change::Filter(code) => {
                let mut outputs = Filter::compile(code)?.run(name, value)?.into_iter();
                match (outputs.next(), outputs.next()) {
                    (Some(output), None) => *value = output,
                    (None, _) => bail!("the filter gives nothing; it must give the image"),
                    (Some(_), Some(_)) => {
                        bail!("the filter gives more than one value; it must give the image")
                    }
                }
            }
            // Another image that fits the pattern may have the place: whether none had is told for
            // the rule as a whole.
            Change::Set(path, text) => drop(path.set(value, text)),
            Change::Delete(path) => drop(path.delete(value)),
        }
        Ok(())
    }
}

/// A name against a pattern in which `*` stands for anything.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => {
            (0..=name.len()).any(|at| name.get(at..).is_some_and(|tail| fits(rest, tail)))
        }
        Some((byte, rest)) => name
            .split_first()
            .is_some_and(|(first, tail)| first == byte && fits(rest, tail)),
    }
}
