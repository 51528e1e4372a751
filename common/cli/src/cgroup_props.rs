//! Which properties of cgroups a dump carries: `--cgroup-props`, `--cgroup-props-file`,
//! `--cgroup-props-ignore-default`. The text is a piece of YAML, as the peer documents it:
//!
//! ```text
//! "cpu":
//!     - "strategy": "replace"
//!     - "properties": ["cpu.shares", "cpu.cfs_period_us"]
//! ```
//!
//! `replace` forgets what is carried of the controller by default, `merge` adds to it. Line ends
//! mean nothing, quotes may be left out, `#` begins a comment.

/// What is said of one controller.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    /// Its name.
    pub name: String,
    /// Its default properties are not carried.
    pub replaces: bool,
    /// Names of files.
    pub properties: Vec<String>,
}

/// What the options say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupProps {
    /// Nothing is carried by default.
    pub ignore_default: bool,
    /// In the order in which they were given.
    pub controllers: Vec<Controller>,
}

impl CgroupProps {
    /// What is carried of a controller that has these properties by default.
    pub fn of(&self, controller: &str, default: &[&str]) -> Vec<String> {
        let mut carried: Vec<String> = match self.ignore_default {
            true => Vec::new(),
            false => default.iter().map(|name| (*name).to_owned()).collect(),
        };
        for said in self
            .controllers
            .iter()
            .filter(|said| said.name == controller)
        {
            if said.replaces {
                carried.clear();
            }
            for name in &said.properties {
                if !carried.contains(name) {
                    carried.push(name.clone());
                }
            }
        }
        carried
    }
}

/// Reads the text. The error says what was expected where.
pub fn parse(text: &str) -> Result<Vec<Controller>, String> {
    let words = words(text)?;
    let mut words = words.iter().map(Word::as_str).peekable();
    let mut controllers = Vec::new();
    while let Some(name) = words.next() {
        let mut controller = Controller {
            name: name_of(name, "a controller")?,
            ..Controller::default()
        };
        expect(words.next(), ":")?;
        while words.next_if_eq(&"-").is_some() {
            let key = words.next().unwrap_or_default();
            expect(words.next(), ":")?;
            match key {
                "strategy" => {
                    controller.replaces = match words.next() {
                        Some("replace") => true,
                        Some("merge") => false,
                        other => return Err(wrong("replace or merge", other)),
                    };
                }
                "properties" => {
                    expect(words.next(), "[")?;
                    while words.next_if_eq(&"]").is_none() {
                        let name = words.next().unwrap_or_default();
                        let name = name_of(name, "a property or ]")?;
                        controller.properties.push(name);
                        words.next_if_eq(&",");
                    }
                }
                other => return Err(wrong("strategy or properties", Some(other))),
            }
        }
        controllers.push(controller);
    }
    Ok(controllers)
}

/// Names of files and nothing else: a path could lead out of the cgroup.
fn name_of(word: &str, expected: &str) -> Result<String, String> {
    let is_name = !word.is_empty() && !SIGNS.contains(word) && !word.contains('/') && word != "-";
    match is_name {
        true => Ok(word.to_owned()),
        false => Err(wrong(expected, Some(word))),
    }
}

fn expect(word: Option<&str>, sign: &str) -> Result<(), String> {
    match word {
        Some(found) if found == sign => Ok(()),
        other => Err(wrong(sign, other)),
    }
}

fn wrong(expected: &str, found: Option<&str>) -> String {
    match found.filter(|found| !found.is_empty()) {
        Some(found) => format!("expected {expected}, found '{found}'"),
        None => format!("expected {expected}, found the end"),
    }
}

const SIGNS: &str = ":[],";

/// A sign or a name.
type Word = String;

fn words(text: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(first) = chars.next() {
        match first {
            _ if first.is_whitespace() => {}
            '#' => while chars.next_if(|next| *next != '\n').is_some() {},
            '"' | '\'' => {
                let mut word = String::new();
                loop {
                    match chars.next() {
                        Some(next) if next == first => break,
                        Some(next) => word.push(next),
                        None => return Err(format!("a {first} has no end")),
                    }
                }
                words.push(word);
            }
            _ if SIGNS.contains(first) => words.push(first.to_string()),
            _ => {
                let mut word = first.to_string();
                let goes_on = |next: &char| !next.is_whitespace() && !SIGNS.contains(*next);
                while let Some(next) = chars.next_if(goes_on) {
                    word.push(next);
                }
                words.push(word);
            }
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        # two controllers
        "cpu":
            - "strategy": "replace"
            - "properties": ["cpu.shares", "cpu.cfs_period_us"]
        pids:
            - strategy: merge
            - properties: [pids.max]
    "#;

    #[test]
    fn text_with_and_without_quotes() {
        let found = parse(TEXT).expect("two controllers");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].name.as_str(), found[0].replaces), ("cpu", true));
        assert_eq!(found[0].properties, ["cpu.shares", "cpu.cfs_period_us"]);
        assert_eq!((found[1].replaces, found[1].properties.len()), (false, 1));
        assert_eq!(
            parse(&TEXT.replace("\n        pids", "  pids")).map(|all| all.len()),
            Ok(2)
        );
    }

    #[test]
    fn what_is_carried() {
        let props = CgroupProps {
            ignore_default: false,
            controllers: parse(TEXT).expect("two controllers"),
        };
        assert_eq!(
            props.of("cpu", &["cpu.stat"]),
            ["cpu.shares", "cpu.cfs_period_us"]
        );
        assert_eq!(props.of("pids", &["x"]), ["x", "pids.max"]);
        assert_eq!(props.of("memory", &["m"]), ["m"]);
        let bare = CgroupProps {
            ignore_default: true,
            ..props
        };
        assert_eq!(bare.of("pids", &["x"]), ["pids.max"]);
        assert!(bare.of("memory", &["m"]).is_empty());
    }

    #[test]
    fn mistakes_are_told() {
        for (text, told) in [
            ("cpu", "expected :"),
            ("cpu: - x: y", "strategy or properties"),
            ("cpu: - strategy: never", "replace or merge"),
            ("cpu: - properties: [a", "a property or ]"),
            ("cpu: - properties: [../a]", "a property or ]"),
            ("\"cpu", "has no end"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
