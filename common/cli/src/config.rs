//! Configuration files: the peer's, in its places and syntax, so that what an administrator or a
//! container runtime set up for it holds for us too.
//!
//! Each line is a long option without its dashes, and its value after white space; `#` starts a
//! comment. Quotes and a backslash keep white space. /etc/criu/default.conf comes first, then
//! ~/.criu/default.conf, then the file of `--config`; the command line has the last word.

use clap::ArgMatches;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Where the default files may be; those that do not exist are passed over.
#[derive(Clone, Debug)]
pub struct Defaults(Vec<PathBuf>);

impl Defaults {
    /// The peer's places, below this home directory.
    pub fn below_home(home: Option<OsString>) -> Defaults {
        let mut files = vec![PathBuf::from("/etc/criu/default.conf")];
        files.extend(home.map(|home| Path::new(&home).join(".criu/default.conf")));
        Defaults(files)
    }

    /// No file.
    pub fn none() -> Defaults {
        Defaults(Vec::new())
    }
}

/// The arguments that the configuration files put before the command line's own.
pub(crate) fn arguments(given: &ArgMatches, defaults: &Defaults) -> Result<Vec<OsString>, String> {
    let mut args = Vec::new();
    if !given.get_flag("no-default-config") {
        for file in &defaults.0 {
            match fs::read_to_string(file) {
                Ok(text) => args.extend(parsed(file, &text)?),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound
                            | ErrorKind::NotADirectory
                            // A home that is not ours, after a change of user.
                            | ErrorKind::PermissionDenied
                    ) => {}
                Err(error) => {
                    return Err(format!("read configuration {}: {error}", file.display()));
                }
            }
        }
    }
    if let Some(file) = given.get_one::<OsString>("config").map(Path::new) {
        let text = fs::read_to_string(file)
            .map_err(|error| format!("read configuration {}: {error}", file.display()))?;
        args.extend(parsed(file, &text)?);
    }
    Ok(args)
}

fn parsed(file: &Path, text: &str) -> Result<Vec<OsString>, String> {
    parse_config(text).map_err(|(line, what)| format!("{} line {line}: {what}", file.display()))
}

/// The lines of a configuration file as arguments; an error has the number of its line.
fn parse_config(text: &str) -> Result<Vec<OsString>, (usize, &'static str)> {
    let mut args = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let words = split_words(line).map_err(|what| (index + 1, what))?;
        let mut words = words.into_iter();
        let Some(name) = words.next() else { continue };
        let name = name.trim_start_matches('-');
        match (words.next(), words.next()) {
            (None, _) => args.push(OsString::from(format!("--{name}"))),
            (Some(value), None) => args.push(OsString::from(format!("--{name}={value}"))),
            _ => {
                return Err((
                    index + 1,
                    "an option takes one value; quote one with white space",
                ));
            }
        }
    }
    Ok(args)
}

fn split_words(line: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (quote, letter) {
            (_, '\\') => word
                .get_or_insert_default()
                .push(letters.next().ok_or("a backslash at the end")?),
            (Some(open), _) if letter == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(letter),
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, _) if letter.is_whitespace() => words.extend(word.take()),
            (None, _) => word.get_or_insert_default().push(letter),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Stop, Tool, parse};

    #[test]
    fn lines_become_arguments() {
        let text = "# comment\ntcp-established\n  work-dir \"/tmp/a b\" # here\nghost-limit 2M\n\n";
        let args = parse_config(text).expect("parses");
        assert_eq!(
            args,
            [
                "--tcp-established",
                "--work-dir=/tmp/a b",
                "--ghost-limit=2M"
            ]
        );
        assert_eq!(parse_config("a\nb \"c").expect_err("open quote").0, 2);
        assert!(parse_config("a b c").is_err());
    }

    #[test]
    fn the_command_line_has_the_last_word() {
        let dir = std::env::temp_dir().join(format!("crust-config-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("make a directory");
        let file = dir.join("default.conf");
        fs::write(&file, "leave-running\nghost-limit 2M\n").expect("write");
        let defaults = Defaults(vec![file.clone(), dir.join("missing.conf")]);
        let read = |line: &str| {
            parse(
                Tool::Dump,
                line.split_ascii_whitespace().map(OsString::from),
                &defaults,
            )
        };
        let options = read("-t 1").expect("parses");
        assert!(options.leave_running && options.ghost_limit == 2 << 20);
        let options = read("-t 1 --no-leave-running --ghost-limit 3K").expect("parses");
        assert!(!options.leave_running && options.ghost_limit == 3 << 10);
        assert!(
            !read("-t 1 --no-default-config")
                .expect("parses")
                .leave_running
        );
        fs::write(&file, "nonsense\n").expect("write");
        assert!(matches!(read("-t 1"), Err(Stop::Usage(_))));
        fs::remove_dir_all(&dir).expect("remove");
    }
}
