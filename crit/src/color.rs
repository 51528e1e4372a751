//! Colours for people: on a terminal only, unless asked for, and never with NO_COLOR set
//! (no-color.org). JSON is painted as it passes, so that what makes it knows nothing of colours.

use clap::ValueEnum;
use std::io::{self, IsTerminal, Write};

/// The option --color.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum When {
    Auto,
    Always,
    Never,
}

impl When {
    /// Whether what goes to stdout is painted.
    pub fn is_wanted(self) -> bool {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        match self {
            When::Always => true,
            When::Never => false,
            When::Auto => {
                let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
                io::stdout().is_terminal() && !set("NO_COLOR") && !dumb
            }
        }
    }
}

pub const RED: &str = "\x1b[31m";
pub const GREEN: &str = "\x1b[32m";
pub const YELLOW: &str = "\x1b[33m";
const CYAN: &str = "\x1b[36m";
const KEY: &str = "\x1b[34;1m";
pub const RESET: &str = "\x1b[0m";

/// The text in that colour, if colours are on.
pub fn painted(text: &str, color: &str, on: bool) -> String {
    if on {
        format!("{color}{text}{RESET}")
    } else {
        text.to_owned()
    }
}

/// Where in JSON text we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Between,
    Text,
    /// Behind a backslash.
    Escape,
    /// A number, true, false or null.
    Word,
}

/// Passes JSON text on with colours in it.
pub struct JsonPainter<W: Write> {
    out: W,
    state: State,
    /// The brackets that are open.
    open: Vec<u8>,
    /// The next text is a key.
    key: bool,
}

impl<W: Write> JsonPainter<W> {
    pub fn new(out: W) -> JsonPainter<W> {
        JsonPainter {
            out,
            state: State::Between,
            open: Vec::new(),
            key: false,
        }
    }

    fn between(&mut self, byte: u8, painted: &mut Vec<u8>) {
        match byte {
            b'"' => {
                let color = if self.key { KEY } else { GREEN };
                painted.extend(color.as_bytes());
                self.state = State::Text;
            }
            b'{' | b'[' => {
                self.open.push(byte);
                self.key = byte == b'{';
            }
            b'}' | b']' => {
                self.open.pop();
            }
            b':' => self.key = false,
            b',' => self.key = self.open.last() == Some(&b'{'),
            b' ' | b'\n' => {}
            _ => {
                let is_number = byte == b'-' || byte.is_ascii_digit();
                painted.extend(if is_number { CYAN } else { YELLOW }.as_bytes());
                self.state = State::Word;
            }
        }
        painted.push(byte);
    }
}

impl<W: Write> Write for JsonPainter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut painted = Vec::with_capacity(bytes.len() * 2);
        for byte in bytes {
            match (self.state, *byte) {
                (State::Between, byte) => self.between(byte, &mut painted),
                (State::Escape, byte) => {
                    painted.push(byte);
                    self.state = State::Text;
                }
                (State::Text, byte) => {
                    painted.push(byte);
                    if byte == b'"' {
                        painted.extend(RESET.as_bytes());
                        self.state = State::Between;
                    } else if byte == b'\\' {
                        self.state = State::Escape;
                    }
                }
                (State::Word, byte @ (b',' | b']' | b'}' | b' ' | b'\n')) => {
                    painted.extend(RESET.as_bytes());
                    self.state = State::Between;
                    self.between(byte, &mut painted);
                }
                (State::Word, byte) => painted.push(byte),
            }
        }
        self.out.write_all(&painted)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_text_and_numbers_differ_and_nothing_is_lost() {
        let json = "{\"a\\\"b\": [\"x\", -1, true], \"c\": {}}\n";
        for piece in 1..json.len() {
            let mut painter = JsonPainter::new(Vec::new());
            for bytes in json.as_bytes().chunks(piece) {
                painter.write_all(bytes).unwrap();
            }
            let painted = String::from_utf8(painter.out).unwrap();
            assert_eq!(
                painted,
                format!(
                    "{{{KEY}\"a\\\"b\"{RESET}: [{GREEN}\"x\"{RESET}, {CYAN}-1{RESET}, \
                     {YELLOW}true{RESET}], {KEY}\"c\"{RESET}: {{}}}}\n"
                )
            );
        }
    }
}
