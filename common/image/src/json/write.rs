//! Puts JSON out in the exact layout of CRIU's crit: compact or with four spaces per level, ASCII
//! only. Written as it comes, so a payload of any size passes in constant memory.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::io::{self, Read, Write};

/// How the JSON is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// One line, a space after each comma and colon.
    Compact,
    /// Every item on its own line, four spaces a level.
    Pretty,
}

/// What JSON is told to: a stream of text or a tree in memory.
pub trait Sink {
    fn begin_object(&mut self) -> io::Result<()>;
    fn end_object(&mut self) -> io::Result<()>;
    fn begin_array(&mut self) -> io::Result<()>;
    fn end_array(&mut self) -> io::Result<()>;
    fn key(&mut self, key: &str) -> io::Result<()>;
    fn string(&mut self, text: &str) -> io::Result<()>;
    fn unsigned(&mut self, number: u64) -> io::Result<()>;
    fn signed(&mut self, number: i64) -> io::Result<()>;
    fn boolean(&mut self, value: bool) -> io::Result<()>;

    /// Exactly `length` bytes of `from` (all of them when `None`) as one string of base64: a
    /// newline after every 76 characters and at the end. Returns how many bytes there were.
    fn base64(&mut self, from: &mut dyn Read, length: Option<u64>) -> io::Result<u64>;

    /// A string of bytes at hand, as base64.
    fn base64_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.base64(&mut &*bytes, Some(bytes.len() as u64))
            .map(drop)
    }
}

/// Bytes that become one line of 76 base64 characters.
const LINE: usize = 57;
/// How much of a payload is turned into text at once.
const CHUNK: usize = LINE * 1024;

/// Calls `line` with the base64 text of each 57 bytes of `from`, without the newline.
pub(crate) fn base64_lines(
    from: &mut dyn Read,
    length: Option<u64>,
    mut line: impl FnMut(&str) -> io::Result<()>,
) -> io::Result<u64> {
    let mut left = length.unwrap_or(u64::MAX);
    let mut total = 0;
    let mut chunk = Vec::new();
    let mut text = String::new();
    loop {
        chunk.clear();
        let want = left.min(CHUNK as u64);
        from.take(want).read_to_end(&mut chunk)?;
        for bytes in chunk.chunks(LINE) {
            text.clear();
            STANDARD.encode_string(bytes, &mut text);
            line(&text)?;
        }
        total += chunk.len() as u64;
        left -= chunk.len() as u64;
        if left == 0 {
            return Ok(total);
        }
        if (chunk.len() as u64) < want {
            if length.is_some() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            return Ok(total);
        }
    }
}

/// When the buffer is written out.
const FULL: usize = 1 << 16;

/// Writes JSON text. The output is buffered here: give it a bare file.
pub struct Writer<W: Write> {
    out: W,
    /// Text that was not written out yet. Very many very short pieces come, which `BufWriter`
    /// makes dear: whether it is full is asked once for each item.
    held: Vec<u8>,
    layout: Layout,
    depth: usize,
    /// Nothing stands yet in the innermost array or object.
    empty: bool,
    /// A key was written, its value comes next.
    after_key: bool,
}

impl<W: Write> Writer<W> {
    pub fn new(out: W, layout: Layout) -> Writer<W> {
        Writer {
            out,
            held: Vec::with_capacity(FULL * 2),
            layout,
            depth: 0,
            empty: true,
            after_key: false,
        }
    }

    /// Writes a value that stands behind a key, `depth` objects deep.
    pub fn inside(out: W, layout: Layout, depth: usize) -> Writer<W> {
        Writer {
            depth,
            after_key: true,
            ..Writer::new(out, layout)
        }
    }

    /// Ends a line: between the values of a stream, or at the end of the output.
    pub fn newline(&mut self) -> io::Result<()> {
        self.put(b"\n");
        self.write_out_if_full()
    }

    /// Writes out what is buffered and gives the output back.
    pub fn finish(mut self) -> io::Result<W> {
        self.write_out()?;
        Ok(self.out)
    }

    #[inline]
    fn put(&mut self, text: &[u8]) {
        self.held.extend_from_slice(text);
    }

    #[inline]
    fn write_out_if_full(&mut self) -> io::Result<()> {
        if self.held.len() < FULL {
            return Ok(());
        }
        self.write_out()
    }

    fn write_out(&mut self) -> io::Result<()> {
        let written = self.out.write_all(&self.held);
        self.held.clear();
        written
    }

    fn line_break(&mut self) {
        self.held.push(b'\n');
        let end = self.held.len() + self.depth * 4;
        self.held.resize(end, b' ');
    }

    #[inline]
    fn before_item(&mut self) -> io::Result<()> {
        self.write_out_if_full()?;
        match (self.layout, self.empty) {
            (Layout::Compact, false) => self.put(b", "),
            (Layout::Pretty, false) => self.put(b","),
            (_, true) => self.empty = false,
        }
        if self.layout == Layout::Pretty && self.depth > 0 {
            self.line_break();
        }
        Ok(())
    }

    #[inline]
    fn before_value(&mut self) -> io::Result<()> {
        if self.depth == 0 || std::mem::take(&mut self.after_key) {
            return Ok(());
        }
        self.before_item()
    }

    fn begin(&mut self, bracket: u8) -> io::Result<()> {
        self.before_value()?;
        self.held.push(bracket);
        self.depth += 1;
        self.empty = true;
        Ok(())
    }

    fn end(&mut self, bracket: u8) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        if !self.empty && self.layout == Layout::Pretty {
            self.line_break();
        }
        self.empty = false;
        self.held.push(bracket);
        Ok(())
    }

    #[inline]
    fn quoted(&mut self, text: &str) {
        let plain = |byte: u8| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
        self.held.push(b'"');
        // No early end: so the compiler looks at many bytes at once.
        if text.bytes().fold(true, |all, byte| all & plain(byte)) {
            self.put(text.as_bytes());
        } else {
            text.chars().for_each(|character| self.escaped(character));
        }
        self.held.push(b'"');
    }

    fn escaped(&mut self, character: char) {
        match character {
            '"' => self.put(b"\\\""),
            '\\' => self.put(b"\\\\"),
            '\n' => self.put(b"\\n"),
            '\r' => self.put(b"\\r"),
            '\t' => self.put(b"\\t"),
            '\u{8}' => self.put(b"\\b"),
            '\u{c}' => self.put(b"\\f"),
            ' '..='~' => self.held.push(character as u8),
            _ => {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    self.put(format!("\\u{unit:04x}").as_bytes());
                }
            }
        }
    }

    #[inline]
    fn decimal(&mut self, number: u64) {
        let mut digits = itoa::Buffer::new();
        self.put(digits.format(number).as_bytes());
    }
}

impl<W: Write> Sink for Writer<W> {
    fn begin_object(&mut self) -> io::Result<()> {
        self.begin(b'{')
    }

    fn end_object(&mut self) -> io::Result<()> {
        self.end(b'}')
    }

    fn begin_array(&mut self) -> io::Result<()> {
        self.begin(b'[')
    }

    fn end_array(&mut self) -> io::Result<()> {
        self.end(b']')
    }

    fn key(&mut self, key: &str) -> io::Result<()> {
        self.before_item()?;
        self.quoted(key);
        self.after_key = true;
        self.put(b": ");
        Ok(())
    }

    fn string(&mut self, text: &str) -> io::Result<()> {
        self.before_value()?;
        self.quoted(text);
        Ok(())
    }

    fn unsigned(&mut self, number: u64) -> io::Result<()> {
        self.before_value()?;
        self.decimal(number);
        Ok(())
    }

    fn signed(&mut self, number: i64) -> io::Result<()> {
        self.before_value()?;
        if number < 0 {
            self.held.push(b'-');
        }
        self.decimal(number.unsigned_abs());
        Ok(())
    }

    fn boolean(&mut self, value: bool) -> io::Result<()> {
        self.before_value()?;
        self.put(if value { b"true" } else { b"false" });
        Ok(())
    }

    fn base64(&mut self, from: &mut dyn Read, length: Option<u64>) -> io::Result<u64> {
        self.before_value()?;
        self.held.push(b'"');
        let total = base64_lines(from, length, |line| {
            self.put(line.as_bytes());
            self.put(b"\\n");
            self.write_out_if_full()
        })?;
        self.held.push(b'"');
        Ok(total)
    }
}

/// Writes a tree.
pub fn write_value<S: Sink + ?Sized>(sink: &mut S, value: &serde_json::Value) -> io::Result<()> {
    use serde_json::Value;
    match value {
        Value::Null => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "no image has a null",
        )),
        Value::Bool(value) => sink.boolean(*value),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => sink.unsigned(number),
            (None, Some(number)) => sink.signed(number),
            (None, None) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{number} is no whole number of 64 bits"),
            )),
        },
        Value::String(text) => sink.string(text),
        Value::Array(items) => {
            sink.begin_array()?;
            items.iter().try_for_each(|item| write_value(sink, item))?;
            sink.end_array()
        }
        Value::Object(members) => {
            sink.begin_object()?;
            for (key, value) in members {
                sink.key(key)?;
                write_value(sink, value)?;
            }
            sink.end_object()
        }
    }
}

/// Builds a tree instead of text.
#[derive(Default)]
pub struct TreeBuilder {
    open: Vec<(Option<String>, serde_json::Value)>,
    key: Option<String>,
    done: Option<serde_json::Value>,
}

impl TreeBuilder {
    /// The value, once all that was begun has ended.
    pub fn into_value(self) -> Option<serde_json::Value> {
        self.done
    }

    fn put(&mut self, key: Option<String>, value: serde_json::Value) {
        match (self.open.last_mut(), key) {
            (Some((_, serde_json::Value::Object(members))), Some(key)) => {
                members.insert(key, value);
            }
            (Some((_, serde_json::Value::Array(items))), _) => items.push(value),
            _ => self.done = Some(value),
        }
    }

    fn scalar(&mut self, value: serde_json::Value) -> io::Result<()> {
        let key = self.key.take();
        self.put(key, value);
        Ok(())
    }

    fn begin(&mut self, value: serde_json::Value) -> io::Result<()> {
        let key = self.key.take();
        self.open.push((key, value));
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if let Some((key, value)) = self.open.pop() {
            self.put(key, value);
        }
        Ok(())
    }
}

impl Sink for TreeBuilder {
    fn begin_object(&mut self) -> io::Result<()> {
        self.begin(serde_json::Value::Object(serde_json::Map::new()))
    }

    fn end_object(&mut self) -> io::Result<()> {
        self.end()
    }

    fn begin_array(&mut self) -> io::Result<()> {
        self.begin(serde_json::Value::Array(Vec::new()))
    }

    fn end_array(&mut self) -> io::Result<()> {
        self.end()
    }

    fn key(&mut self, key: &str) -> io::Result<()> {
        self.key = Some(key.to_owned());
        Ok(())
    }

    fn string(&mut self, text: &str) -> io::Result<()> {
        self.scalar(text.into())
    }

    fn unsigned(&mut self, number: u64) -> io::Result<()> {
        self.scalar(number.into())
    }

    fn signed(&mut self, number: i64) -> io::Result<()> {
        self.scalar(number.into())
    }

    fn boolean(&mut self, value: bool) -> io::Result<()> {
        self.scalar(value.into())
    }

    fn base64(&mut self, from: &mut dyn Read, length: Option<u64>) -> io::Result<u64> {
        let mut text = String::new();
        let total = base64_lines(from, length, |line| {
            text.push_str(line);
            text.push('\n');
            Ok(())
        })?;
        self.scalar(text.into())?;
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(layout: Layout, value: &serde_json::Value) -> String {
        let mut writer = Writer::new(Vec::new(), layout);
        write_value(&mut writer, value).unwrap();
        String::from_utf8(writer.finish().unwrap()).unwrap()
    }

    #[test]
    fn both_layouts() {
        let value = serde_json::json!({"a": [], "b": {}, "c": [1, {"d": true}], "e": -5});
        assert_eq!(
            text(Layout::Compact, &value),
            r#"{"a": [], "b": {}, "c": [1, {"d": true}], "e": -5}"#
        );
        let pretty = "{\n    \"a\": [],\n    \"b\": {},\n    \"c\": [\n        1,\n        {\n            \"d\": true\n        }\n    ],\n    \"e\": -5\n}";
        assert_eq!(text(Layout::Pretty, &value), pretty);
    }

    #[test]
    fn text_is_ascii() {
        let value = serde_json::json!("a\"\\\n\r\t\u{8}\u{c}/\u{1}\u{7f}\u{e9}\u{1f600}");
        assert_eq!(
            text(Layout::Compact, &value),
            r#""a\"\\\n\r\t\b\f/\u0001\u007f\u00e9\ud83d\ude00""#
        );
    }

    #[test]
    fn base64_breaks_lines_after_57_bytes() {
        for (length, lines) in [(0, 0), (57, 1), (58, 2), (57 * 1024 + 1, 1025)] {
            let mut tree = TreeBuilder::default();
            tree.base64_bytes(&vec![7; length]).unwrap();
            let value = tree.into_value().unwrap();
            let encoded = value.as_str().unwrap();
            assert_eq!(encoded.matches('\n').count(), lines, "{length}");
            assert!(encoded.lines().all(|line| line.len() <= 76));
        }
    }

    #[test]
    fn a_payload_that_ends_early_is_an_error() {
        let error = TreeBuilder::default()
            .base64(&mut &[1u8, 2][..], Some(3))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
