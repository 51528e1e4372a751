//! Paths to a place in an image's JSON: `entries[0].reg.name`, for people who edit by hand.
//!
//! Steps are `.key`, `[n]` (from the end when negative), `.n` for the same, `[*]` and `[key=value]`,
//! which takes the items of an array whose member (a dotted key) has that value. A path that begins
//! with `[` or a number starts at the entries.

use anyhow::{Result, bail};
use serde_json::Value;
use std::fmt;

/// A parsed path.
pub struct Path {
    steps: Vec<Step>,
    text: String,
}

#[derive(Clone, PartialEq, Debug)]
enum Step {
    Key(String),
    Index(i64),
    All,
    Where(Vec<String>, String),
}

impl Path {
    pub fn parse(text: &str) -> Result<Path> {
        let mut steps = Vec::new();
        let mut rest = text.strip_prefix('.').unwrap_or(text);
        if rest.starts_with(|first: char| first == '[' || first.is_ascii_digit()) {
            steps.push(Step::Key("entries".to_owned()));
        }
        while !rest.is_empty() {
            if let Some(inside) = rest.strip_prefix('[') {
                let Some((inside, behind)) = inside.split_once(']') else {
                    bail!("path {text}: `[` without `]`");
                };
                steps.push(bracket(inside).ok_or_else(|| {
                    anyhow::anyhow!("path {text}: `[{inside}]` is no number, *, or key=value")
                })?);
                rest = behind.strip_prefix('.').unwrap_or(behind);
            } else {
                let end = rest.find(['.', '[']).unwrap_or(rest.len());
                let (key, behind) = rest.split_at(end);
                if key.is_empty() {
                    bail!("path {text}: an empty key");
                }
                // No member of an image's JSON is named by a number.
                let index = key.bytes().all(|byte| byte.is_ascii_digit());
                let index = index.then(|| key.parse().ok()).flatten();
                steps.push(index.map_or_else(|| Step::Key(key.to_owned()), Step::Index));
                rest = behind.strip_prefix('.').unwrap_or(behind);
            }
        }
        Ok(Path {
            steps,
            text: text.to_owned(),
        })
    }

    /// The places the path leads to. None is an error that tells what was there instead.
    pub fn get<'a>(&self, root: &'a Value) -> Result<Vec<&'a Value>> {
        let mut places = vec![root];
        for (at, step) in self.steps.iter().enumerate() {
            let next: Vec<&Value> = places
                .iter()
                .flat_map(|place| step.children(place))
                .collect();
            if next.is_empty() {
                bail!("{}", self.nothing_at(at, &places));
            }
            places = next;
        }
        Ok(places)
    }

    /// Calls `change` on the parent of each place with the last step; returns how many times it
    /// said it changed something.
    fn at_parents(
        &self,
        root: &mut Value,
        change: &mut dyn FnMut(&mut Value, &Step) -> Result<usize>,
    ) -> Result<usize> {
        let Some((last, before)) = self.steps.split_last() else {
            bail!("path {}: leads to the whole image", self.text)
        };
        // Look first, for the error that tells what was there.
        let parent = Path {
            steps: before.to_vec(),
            text: self.text.clone(),
        };
        let parents = parent.get(root)?;
        let nothing = self.nothing_at(before.len(), &parents);
        let changed = visit(root, before, &mut |place| change(place, last))?;
        if changed == 0 {
            bail!(nothing);
        }
        Ok(changed)
    }

    /// Puts a value at every place. The last key need not be there yet; what takes no such key is
    /// found when the image is encoded.
    pub fn set(&self, root: &mut Value, text: &str) -> Result<usize> {
        self.at_parents(root, &mut |parent, last| {
            if let (Step::Key(key), Value::Object(members)) = (last, &mut *parent) {
                let value = value_like(members.get(key), text);
                members.insert(key.clone(), value);
                return Ok(1);
            }
            let mut count = 0;
            for place in last.children_mut(parent) {
                *place = value_like(Some(place), text);
                count += 1;
            }
            Ok(count)
        })
    }

    /// Takes every place away.
    pub fn delete(&self, root: &mut Value) -> Result<usize> {
        self.at_parents(root, &mut |parent, last| match (last, parent) {
            (Step::Key(key), Value::Object(members)) => {
                Ok(usize::from(members.shift_remove(key).is_some()))
            }
            (_, Value::Array(items)) => {
                let doomed: Vec<usize> = (0..items.len())
                    .filter(|at| last.takes(*at, items))
                    .collect();
                for at in doomed.iter().rev() {
                    items.remove(*at);
                }
                Ok(doomed.len())
            }
            _ => Ok(0),
        })
    }

    fn nothing_at(&self, at: usize, places: &[&Value]) -> String {
        let step = self.steps.get(at).map(Step::to_string).unwrap_or_default();
        let there = places
            .first()
            .map(|place| what_is_there(place))
            .unwrap_or_default();
        format!("path {}: nothing at `{step}`; there {there}", self.text)
    }
}

fn bracket(inside: &str) -> Option<Step> {
    if inside == "*" {
        return Some(Step::All);
    }
    if let Some((key, value)) = inside.split_once('=') {
        let key = key.split('.').map(str::to_owned).collect();
        return Some(Step::Where(key, value.to_owned()));
    }
    inside.parse().ok().map(Step::Index)
}

fn visit(
    place: &mut Value,
    steps: &[Step],
    change: &mut dyn FnMut(&mut Value) -> Result<usize>,
) -> Result<usize> {
    let Some((step, rest)) = steps.split_first() else {
        return change(place);
    };
    let mut changed = 0;
    for child in step.children_mut(place) {
        changed += visit(child, rest, change)?;
    }
    Ok(changed)
}

impl Step {
    fn children<'a>(&self, place: &'a Value) -> Vec<&'a Value> {
        match (self, place) {
            (Step::Key(key), Value::Object(members)) => members.get(key).into_iter().collect(),
            (_, Value::Array(items)) => items
                .iter()
                .enumerate()
                .filter(|(at, _)| self.takes(*at, items))
                .map(|(_, item)| item)
                .collect(),
            _ => Vec::new(),
        }
    }

    fn children_mut<'a>(&self, place: &'a mut Value) -> Vec<&'a mut Value> {
        match (self, place) {
            (Step::Key(key), Value::Object(members)) => members.get_mut(key).into_iter().collect(),
            (_, Value::Array(items)) => {
                let taken: Vec<bool> = (0..items.len()).map(|at| self.takes(at, items)).collect();
                items
                    .iter_mut()
                    .zip(taken)
                    .filter(|(_, taken)| *taken)
                    .map(|(item, _)| item)
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether an item of an array is meant.
    fn takes(&self, at: usize, items: &[Value]) -> bool {
        match self {
            Step::All => true,
            Step::Index(index) if *index < 0 => {
                items.len().checked_sub(index.unsigned_abs() as usize) == Some(at)
            }
            Step::Index(index) => usize::try_from(*index) == Ok(at),
            Step::Key(_) => false,
            Step::Where(key, wanted) => {
                let found = key.iter().try_fold(items.get(at), |value, key| {
                    value.map(|value| value.get(key))
                });
                match found.flatten() {
                    Some(Value::String(text)) => text == wanted,
                    Some(other) => {
                        let text = other.to_string();
                        text == *wanted
                    }
                    None => false,
                }
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Key(key) => f.write_str(key),
            Step::Index(index) => write!(f, "[{index}]"),
            Step::All => f.write_str("[*]"),
            Step::Where(key, value) => write!(f, "[{}={value}]", key.join(".")),
        }
    }
}

fn what_is_there(place: &Value) -> String {
    match place {
        Value::Object(members) => {
            let keys: Vec<&str> = members.keys().map(String::as_str).collect();
            format!("are the keys {}", keys.join(", "))
        }
        Value::Array(items) if items.is_empty() => "is an empty array".to_owned(),
        Value::Array(items) => format!(
            "are {} items, the first {}",
            items.len(),
            shortened(items.first())
        ),
        other => format!("is {}", shortened(Some(other))),
    }
}

fn shortened(value: Option<&Value>) -> String {
    let text = value.map(Value::to_string).unwrap_or_default();
    if text.chars().count() <= 200 {
        return text;
    }
    text.chars().take(200).chain("...".chars()).collect()
}

/// The value a text on the command line stands for: text where text stood, else JSON if it is
/// any, else text.
fn value_like(there: Option<&Value>, text: &str) -> Value {
    let quoted = text.starts_with('"');
    if matches!(there, Some(Value::String(_))) && !quoted {
        return Value::String(text.to_owned());
    }
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn image() -> Value {
        json!({"magic": "FILES", "entries": [
            {"type": "REG", "id": 1, "reg": {"name": "/a", "pos": 0}},
            {"type": "PIPE", "id": 2, "pipe": {"pipe_id": 7}},
        ]})
    }

    fn get(path: &str) -> Result<Vec<Value>> {
        Ok(Path::parse(path)?
            .get(&image())?
            .into_iter()
            .cloned()
            .collect())
    }

    #[test]
    fn steps() {
        assert_eq!(get("magic").unwrap(), [json!("FILES")]);
        assert_eq!(get("entries[0].reg.name").unwrap(), [json!("/a")]);
        assert_eq!(get(".entries.0.reg.name").unwrap(), [json!("/a")]);
        assert_eq!(get("1.pipe.pipe_id").unwrap(), [json!(7)]);
        assert_eq!(get("[-1].pipe.pipe_id").unwrap(), [json!(7)]);
        assert_eq!(get("[*].id").unwrap(), [json!(1), json!(2)]);
        assert_eq!(get("[reg.name=/a].id").unwrap(), [json!(1)]);
        assert_eq!(get("[id=2].type").unwrap(), [json!("PIPE")]);
    }

    #[test]
    fn nothing_there_is_told() {
        let error = get("[0].reg.nme").unwrap_err().to_string();
        assert_eq!(
            error,
            "path [0].reg.nme: nothing at `nme`; there are the keys name, pos"
        );
        assert!(get("[7]").unwrap_err().to_string().contains("2 items"));
        assert!(get("[a").is_err() && get("a..b").is_err() && get("[x]").is_err());
    }

    #[test]
    fn set_and_delete() {
        let mut root = image();
        assert_eq!(
            Path::parse("[0].reg.name")
                .unwrap()
                .set(&mut root, "12")
                .unwrap(),
            1
        );
        assert_eq!(root["entries"][0]["reg"]["name"], json!("12"));
        assert_eq!(
            Path::parse("[*].id").unwrap().set(&mut root, "5").unwrap(),
            2
        );
        assert_eq!(root["entries"][1]["id"], json!(5));
        assert!(Path::parse("[9].id").unwrap().set(&mut root, "5").is_err());
        assert_eq!(
            Path::parse("[type=PIPE]")
                .unwrap()
                .delete(&mut root)
                .unwrap(),
            1
        );
        assert_eq!(root["entries"].as_array().unwrap().len(), 1);
        assert!(
            Path::parse("[0].reg.nothing")
                .unwrap()
                .delete(&mut root)
                .is_err()
        );
    }
}
