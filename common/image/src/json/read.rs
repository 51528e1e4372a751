//! Reads JSON as a stream: an entry at a time, and a long string in pieces, so that the base64 of
//! a ghost file of any size is turned back in constant memory. (serde_json would hold the whole
//! string; its `Value` is the tree used for what is held.)

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};
use std::fmt;
use std::io::{self, Read};

/// How deep arrays and objects may nest.
const MAX_DEPTH: usize = 128;
/// A string that is wanted whole may be as long as the input is; a number may not.
const LONGEST_NUMBER: usize = 400;

/// Input that is no JSON, or could not be read.
#[derive(Debug)]
pub enum ReadError {
    Io(io::Error),
    Syntax {
        line: u64,
        column: u64,
        what: String,
    },
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Io(error) => write!(f, "read: {error}"),
            ReadError::Syntax { line, column, what } => {
                write!(f, "line {line} column {column}: {what}")
            }
        }
    }
}

impl std::error::Error for ReadError {}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        ReadError::Io(error)
    }
}

/// A place in JSON text.
pub struct Reader<R: Read> {
    from: R,
    buffer: Vec<u8>,
    at: usize,
    end: usize,
    line: u64,
    /// Bytes of the input before the buffer, and before the line.
    before: u64,
    line_start: u64,
    /// Room for a key.
    scratch: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub fn new(from: R) -> Reader<R> {
        Reader {
            from,
            buffer: vec![0; 1 << 16],
            at: 0,
            end: 0,
            line: 1,
            before: 0,
            line_start: 0,
            scratch: Vec::new(),
        }
    }

    /// An error at this place.
    pub fn error(&self, what: impl Into<String>) -> ReadError {
        ReadError::Syntax {
            line: self.line,
            column: self.before + self.at as u64 - self.line_start + 1,
            what: what.into(),
        }
    }

    /// The next byte that is not white space, left where it is; `None` at the end of the input.
    pub fn peek(&mut self) -> Result<Option<u8>, ReadError> {
        while let Some(byte) = self.peek_raw()? {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => self.skip(byte),
                _ => return Ok(Some(byte)),
            }
        }
        Ok(None)
    }

    /// Takes that byte after white space.
    pub fn expect(&mut self, wanted: u8) -> Result<(), ReadError> {
        match self.peek()? {
            Some(byte) if byte == wanted => {
                self.skip(byte);
                Ok(())
            }
            other => Err(self.unexpected(other, &format!("`{}`", char::from(wanted)))),
        }
    }

    /// After an item of an array or object: true when another follows, false at its end, which
    /// is taken.
    pub fn more(&mut self, close: u8) -> Result<bool, ReadError> {
        match self.peek()? {
            Some(b',') => {
                self.skip(b',');
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.skip(byte);
                Ok(false)
            }
            other => Err(self.unexpected(other, &format!("`,` or `{}`", char::from(close)))),
        }
    }

    /// Takes the opening bracket; false when the closing one follows at once and was taken too.
    pub fn open(&mut self, open: u8, close: u8) -> Result<bool, ReadError> {
        self.expect(open)?;
        if self.peek()? == Some(close) {
            self.skip(close);
            return Ok(false);
        }
        Ok(true)
    }

    /// A string and the colon behind it.
    pub fn key(&mut self) -> Result<String, ReadError> {
        self.key_with(str::to_owned)
    }

    /// What `pick` makes of a key, which is not kept.
    pub fn key_with<T>(&mut self, pick: impl FnOnce(&str) -> T) -> Result<T, ReadError> {
        self.expect(b'"')?;
        let mut text = std::mem::take(&mut self.scratch);
        text.clear();
        while !self.string_piece(&mut text, usize::MAX)? {}
        let picked = std::str::from_utf8(&text).map(pick);
        self.scratch = text;
        self.expect(b':')?;
        picked.map_err(|_| self.error("a string that is not UTF-8"))
    }

    /// Any value as a tree.
    pub fn value(&mut self) -> Result<Value, ReadError> {
        self.value_at(0)
    }

    fn value_at(&mut self, depth: usize) -> Result<Value, ReadError> {
        if depth > MAX_DEPTH {
            return Err(self.error("arrays and objects nested too deep"));
        }
        match self.peek()? {
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b'{') => self.object_at(depth),
            Some(b'[') => {
                let mut items = Vec::new();
                let mut more = self.open(b'[', b']')?;
                while more {
                    items.push(self.value_at(depth + 1)?);
                    more = self.more(b']')?;
                }
                Ok(Value::Array(items))
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            other => Err(self.unexpected(other, "a value")),
        }
    }

    fn object_at(&mut self, depth: usize) -> Result<Value, ReadError> {
        let mut members = Map::new();
        let mut more = self.open(b'{', b'}')?;
        while more {
            let key = self.key()?;
            let value = self.value_at(depth + 1)?;
            if members.insert(key.clone(), value).is_some() {
                return Err(self.error(format!("the key \"{key}\" stands twice in one object")));
            }
            more = self.more(b'}')?;
        }
        Ok(Value::Object(members))
    }

    /// Digits that are a whole number of 64 bits, when the buffer has them all and the byte behind.
    fn short_number(&mut self) -> Option<u64> {
        let there = self.buffer.get(self.at..self.end)?;
        let length = there.iter().position(|byte| !byte.is_ascii_digit())?;
        let digits = there.get(..length)?;
        let more = matches!(there.get(length), Some(b'.' | b'e' | b'E' | b'+' | b'-'));
        if more || !(1..20).contains(&length) || (length > 1 && digits.starts_with(b"0")) {
            return None;
        }
        self.at += length;
        let digit = |sum, byte: &u8| sum * 10 + u64::from(byte - b'0');
        Some(digits.iter().fold(0, digit))
    }

    fn number(&mut self) -> Result<Value, ReadError> {
        if let Some(number) = self.short_number() {
            return Ok(number.into());
        }
        let mut text = String::new();
        while let Some(byte @ (b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) = self.peek_raw()? {
            if text.len() >= LONGEST_NUMBER {
                return Err(self.error("a number of too many digits"));
            }
            text.push(char::from(byte));
            self.skip(byte);
        }
        serde_json::from_str(&text).map_err(|_| self.error(format!("{text} is no number")))
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, ReadError> {
        for wanted in word.bytes() {
            match self.peek_raw()? {
                Some(byte) if byte == wanted => self.skip(byte),
                other => return Err(self.unexpected(other, word)),
            }
        }
        Ok(value)
    }

    /// A whole string.
    pub fn string(&mut self) -> Result<String, ReadError> {
        self.expect(b'"')?;
        let mut text = Vec::new();
        while !self.string_piece(&mut text, usize::MAX)? {}
        String::from_utf8(text).map_err(|_| self.error("a string that is not UTF-8"))
    }

    /// Adds up to about `limit` bytes of an open string; true when its end was reached and taken.
    fn string_piece(&mut self, text: &mut Vec<u8>, limit: usize) -> Result<bool, ReadError> {
        loop {
            if text.len() >= limit {
                return Ok(false);
            }
            self.plain_run(text);
            match self.peek_raw()? {
                None => return Err(self.error("the input ends inside a string")),
                Some(b'"') => {
                    self.skip(b'"');
                    return Ok(true);
                }
                Some(b'\\') => self.escape(text)?,
                Some(byte) if byte < 0x20 => {
                    return Err(self.error("a control character inside a string"));
                }
                Some(_) => {}
            }
        }
    }

    /// Moves what the buffer holds of a string up to the next quote, backslash or control byte.
    fn plain_run(&mut self, text: &mut Vec<u8>) {
        let there = self.buffer.get(self.at..self.end).unwrap_or_default();
        let special = |byte: &u8| *byte == b'"' || *byte == b'\\' || *byte < 0x20;
        let length = there.iter().position(special).unwrap_or(there.len());
        text.extend_from_slice(there.get(..length).unwrap_or_default());
        self.at += length;
    }

    fn escape(&mut self, text: &mut Vec<u8>) -> Result<(), ReadError> {
        self.skip(b'\\');
        let Some(byte) = self.peek_raw()? else {
            return Err(self.error("the input ends inside a string"));
        };
        self.skip(byte);
        let plain = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'b' => 8,
            b'f' => 12,
            b'u' => {
                let character = self.unicode_escape()?;
                let mut utf8 = [0; 4];
                text.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
                return Ok(());
            }
            _ => return Err(self.error("an escape that JSON does not have")),
        };
        text.push(plain);
        Ok(())
    }

    fn unicode_escape(&mut self) -> Result<char, ReadError> {
        let first = self.four_hex_digits()?;
        if let Some(character) = char::from_u32(first) {
            return Ok(character);
        }
        let lone = "half of a surrogate pair (a string that is not UTF-8 is written as \
                    {\"quoted_printable\": ...})";
        for wanted in [b'\\', b'u'] {
            if self.peek_raw()? != Some(wanted) {
                return Err(self.error(lone));
            }
            self.skip(wanted);
        }
        let second = self.four_hex_digits()?;
        let mut both = char::decode_utf16([first as u16, second as u16]);
        both.next()
            .and_then(Result::ok)
            .ok_or_else(|| self.error(lone))
    }

    fn four_hex_digits(&mut self) -> Result<u32, ReadError> {
        let mut value = 0;
        for _ in 0..4 {
            let byte = self.peek_raw()?;
            let digit = byte.and_then(|byte| char::from(byte).to_digit(16));
            let (Some(byte), Some(digit)) = (byte, digit) else {
                return Err(self.error("\\u without four hex digits"));
            };
            self.skip(byte);
            value = value << 4 | digit;
        }
        Ok(value)
    }

    /// Opens a string that holds base64. The next value must be a string.
    pub fn base64(&mut self) -> Result<Base64Reader<'_, R>, ReadError> {
        self.expect(b'"')?;
        Ok(self.resume(Base64State::default()))
    }

    /// Goes on with a string that was paused.
    pub fn resume(&mut self, state: Base64State) -> Base64Reader<'_, R> {
        Base64Reader { from: self, state }
    }

    fn peek_raw(&mut self) -> Result<Option<u8>, ReadError> {
        if self.at >= self.end {
            self.before += self.end as u64;
            self.at = 0;
            self.end = loop {
                match self.from.read(&mut self.buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    other => break other?,
                }
            };
            if self.end == 0 {
                return Ok(None);
            }
        }
        Ok(self.buffer.get(self.at).copied())
    }

    fn skip(&mut self, byte: u8) {
        self.at += 1;
        if byte == b'\n' {
            self.line += 1;
            self.line_start = self.before + self.at as u64;
        }
    }

    fn unexpected(&self, there: Option<u8>, wanted: &str) -> ReadError {
        match there {
            None => self.error(format!("the input ends where {wanted} is meant to be")),
            Some(byte) => self.error(format!(
                "{wanted} is meant to be here, not `{}`",
                byte.escape_ascii()
            )),
        }
    }
}

/// Standard alphabet; the padding must be there, and bits it makes meaningless are not asked for.
pub(crate) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Base64 text with its line breaks to bytes.
pub fn decode_base64(text: &str) -> Result<Vec<u8>, String> {
    let text: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    BASE64
        .decode(text)
        .map_err(|error| format!("no base64: {error}"))
}

/// How far an open string of base64 was read.
#[derive(Debug, Default)]
pub struct Base64State {
    /// Characters not yet decoded, without white space; a multiple of four goes at a time.
    text: Vec<u8>,
    ended: bool,
}

/// The bytes of an open string of base64.
pub struct Base64Reader<'a, R: Read> {
    from: &'a mut Reader<R>,
    state: Base64State,
}

impl<R: Read> Base64Reader<'_, R> {
    /// Gives the reader free; nothing else may be read before it goes on.
    pub fn pause(self) -> Base64State {
        self.state
    }

    /// Adds about 48 KiB of bytes to `out`; false when the string had ended before.
    pub fn read_piece(&mut self, out: &mut Vec<u8>) -> Result<bool, ReadError> {
        let state = &mut self.state;
        if state.ended {
            return Ok(false);
        }
        let mut piece = Vec::new();
        state.ended = self.from.string_piece(&mut piece, 1 << 16)?;
        state
            .text
            .extend(piece.iter().filter(|byte| !byte.is_ascii_whitespace()));
        let whole = if state.ended {
            state.text.len()
        } else {
            state.text.len() / 4 * 4
        };
        let padded = state
            .text
            .get(..whole)
            .is_some_and(|text| text.ends_with(b"="));
        if padded && !state.ended {
            // What follows padding can only be white space: find out before decoding.
            return Ok(true);
        }
        if state.text.starts_with(b"...<") {
            let what = "the payload was left out (--nopl): there is nothing to encode";
            return Err(self.from.error(what));
        }
        let text: Vec<u8> = state.text.drain(..whole).collect();
        BASE64
            .decode_vec(text, out)
            .map_err(|error| self.from.error(format!("no base64: {error}")))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte a read, so that every token crosses a buffer's end.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let Some((first, rest)) = self.0.split_first() else {
                return Ok(0);
            };
            self.0 = rest;
            into[0] = *first;
            Ok(1)
        }
    }

    fn parse(text: &str) -> Result<Value, ReadError> {
        Reader::new(Trickle(text.as_bytes())).value()
    }

    #[test]
    fn reads_what_serde_json_reads() {
        for text in [
            r#"{"a": [1, -2, 18446744073709551615, -9223372036854775808], "b": {"c": "\u00e9\ud83d\ude00\n\/"}}"#,
            "[]",
            "{}",
            " [ true , false , null ] ",
            r#""""#,
            "1.5",
            "\"\u{e9}\"",
            "0",
        ] {
            let ours = parse(text).unwrap();
            assert_eq!(ours, serde_json::from_str::<Value>(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_json() {
        for text in [
            "",
            "{",
            "[1,]",
            "[1 2]",
            "{\"a\" 1}",
            "{a: 1}",
            "\"\\x\"",
            "\"\\ud800\"",
            "\"\n\"",
            "01",
            "tru",
            "\"abc",
            "{\"a\": 1, \"a\": 2}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn errors_tell_the_place() {
        let error = parse("{\n  \"a\": ?}").unwrap_err();
        assert!(error.to_string().starts_with("line 2 column 8:"), "{error}");
    }

    #[test]
    fn base64_in_pieces() {
        let data: Vec<u8> = (0..200_000u32).map(|n| (n * 7) as u8).collect();
        let mut tree = crate::json::TreeBuilder::default();
        crate::json::Sink::base64_bytes(&mut tree, &data).unwrap();
        let text = tree.into_value().unwrap().to_string();
        let mut reader = Reader::new(text.as_bytes());
        let mut base64 = reader.base64().unwrap();
        let mut out = Vec::new();
        while base64.read_piece(&mut out).unwrap() {}
        assert_eq!(out, data);
    }
}
