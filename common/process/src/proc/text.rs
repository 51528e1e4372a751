//! The small vocabulary all /proc parsers share: a line that knows where it stands, a cursor over
//! its words, numbers in three bases, and the kernel's octal escapes.
//!
//! Everything works on bytes: names in /proc are file names, not UTF-8.

use std::fmt;
use std::str::FromStr;

/// A line of kernel text whose shape is not the one its parser knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ParseError {
    /// The kind of text, as "maps" or "fdinfo".
    pub file: &'static str,
    /// One-based line number; 0 when the text as a whole is at fault.
    pub line: usize,
    /// The field that is missing or malformed.
    pub what: &'static str,
    /// The line itself, lossily decoded and cut at 200 bytes.
    pub text: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/proc text of kind {}: ", self.file)?;
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        write!(f, "cannot read {} in {:?}", self.what, self.text)
    }
}

/// One line of kernel text, without its newline.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    file: &'static str,
    number: usize,
    text: &'a [u8],
}

impl<'a> Line<'a> {
    /// A line on its own, for texts that are one line or whose last line may be cut by a newline
    /// inside a name.
    pub fn new(file: &'static str, number: usize, text: &'a [u8]) -> Line<'a> {
        Line { file, number, text }
    }

    /// The bytes of the line.
    pub fn text(&self) -> &'a [u8] {
        self.text
    }

    /// The error that this line has no good `what`.
    pub fn error(&self, what: &'static str) -> ParseError {
        let shown = &self.text[..self.text.len().min(200)];
        ParseError {
            file: self.file,
            line: self.number,
            what,
            text: String::from_utf8_lossy(shown).into_owned(),
        }
    }

    /// A cursor over the words of the line.
    pub fn words(self) -> Words<'a> {
        self.words_of(self.text)
    }

    /// A cursor over a part of the line, with the whole line in its errors.
    pub fn words_of(self, part: &'a [u8]) -> Words<'a> {
        Words {
            line: self,
            rest: part,
        }
    }

    /// A cursor over the value of this line, which must have this key.
    pub fn value_of(self, key: &'static str) -> Result<Words<'a>, ParseError> {
        match self.key_value() {
            Some((found, value)) if found == key.as_bytes() => Ok(self.words_of(value)),
            _ => Err(self.error(key)),
        }
    }

    /// Splits `Key:<blanks>value`; `None` when the line has no colon.
    pub fn key_value(&self) -> Option<(&'a [u8], &'a [u8])> {
        let colon = self.text.iter().position(|&b| b == b':')?;
        let (key, value) = self.text.split_at(colon);
        Some((key, trim_blanks(value.get(1..)?)))
    }
}

/// The lines of a text. A final newline does not make an empty last line.
pub fn lines<'a>(file: &'static str, text: &'a [u8]) -> impl Iterator<Item = Line<'a>> {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let count = if text.is_empty() { 0 } else { usize::MAX };
    body.split(|&b| b == b'\n')
        .take(count)
        .enumerate()
        .map(move |(at, text)| Line::new(file, at + 1, text))
}

/// A cursor over blank-separated words. Every getter names the field, for the error.
#[derive(Clone, Debug)]
pub struct Words<'a> {
    line: Line<'a>,
    rest: &'a [u8],
}

impl<'a> Words<'a> {
    /// The next word, or `None` at the end of the line.
    pub fn next_word(&mut self) -> Option<&'a [u8]> {
        self.rest = trim_start_blanks(self.rest);
        if self.rest.is_empty() {
            return None;
        }
        let end = self.rest.iter().position(is_blank);
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        Some(word)
    }

    /// The next word, which must be there.
    pub fn word(&mut self, what: &'static str) -> Result<&'a [u8], ParseError> {
        self.next_word().ok_or_else(|| self.line.error(what))
    }

    /// The next word as a decimal number.
    pub fn decimal<T: FromStr>(&mut self, what: &'static str) -> Result<T, ParseError> {
        decimal(self.word(what)?).ok_or_else(|| self.line.error(what))
    }

    /// The next word as a hexadecimal number, without or with 0x.
    pub fn hex<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, ParseError> {
        hex(self.word(what)?).ok_or_else(|| self.line.error(what))
    }

    /// The next word as an octal number.
    pub fn octal<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, ParseError> {
        octal(self.word(what)?).ok_or_else(|| self.line.error(what))
    }

    /// The value behind `tag` in the next word, as `ino:` in `ino:3c4a7`.
    pub fn tagged(&mut self, tag: &'static str) -> Result<&'a [u8], ParseError> {
        self.word(tag)?
            .strip_prefix(tag.as_bytes())
            .ok_or_else(|| self.line.error(tag))
    }

    /// The hexadecimal value behind `tag` in the next word.
    pub fn tagged_hex<T: TryFrom<u64>>(&mut self, tag: &'static str) -> Result<T, ParseError> {
        hex(self.tagged(tag)?).ok_or_else(|| self.line.error(tag))
    }

    /// All remaining words as decimal numbers.
    pub fn decimals<T: FromStr>(&mut self, what: &'static str) -> Result<Vec<T>, ParseError> {
        let mut numbers = Vec::new();
        while let Some(word) = self.next_word() {
            numbers.push(decimal(word).ok_or_else(|| self.line.error(what))?);
        }
        Ok(numbers)
    }

    /// The rest split at every single blank, so that an empty field stays a field.
    pub fn raw_words(self) -> impl Iterator<Item = &'a [u8]> {
        let rest = self.rest.strip_prefix(b" ").unwrap_or(self.rest);
        rest.split(|&b| b == b' ')
    }

    /// What follows the blanks after the last word, blanks inside and at the end included.
    pub fn remainder(self) -> &'a [u8] {
        trim_start_blanks(self.rest)
    }

    /// The error that the line has no good `what`.
    pub fn error(&self, what: &'static str) -> ParseError {
        self.line.error(what)
    }

    /// Nothing may follow.
    pub fn end(mut self) -> Result<(), ParseError> {
        match self.next_word() {
            None => Ok(()),
            Some(_) => Err(self.line.error("end of line")),
        }
    }
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn trim_start_blanks(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|b| !is_blank(b));
    text.get(start.unwrap_or(text.len())..).unwrap_or_default()
}

/// The text without blanks at both ends.
pub fn trim_blanks(text: &[u8]) -> &[u8] {
    let text = trim_start_blanks(text);
    let end = text
        .iter()
        .rposition(|b| !is_blank(b))
        .map_or(0, |at| at + 1);
    text.get(..end).unwrap_or_default()
}

/// A decimal number with an optional minus; `None` on anything else or when it does not fit.
pub fn decimal<T: FromStr>(word: &[u8]) -> Option<T> {
    if word.first() == Some(&b'+') {
        return None;
    }
    std::str::from_utf8(word).ok()?.parse().ok()
}

/// A hexadecimal number, with or without 0x.
pub fn hex<T: TryFrom<u64>>(word: &[u8]) -> Option<T> {
    let digits = word.strip_prefix(b"0x").unwrap_or(word);
    radix(digits, 16).and_then(|value| T::try_from(value).ok())
}

/// An octal number; the kernel's leading 0 is no obstacle.
pub fn octal<T: TryFrom<u64>>(word: &[u8]) -> Option<T> {
    radix(word, 8).and_then(|value| T::try_from(value).ok())
}

fn radix(digits: &[u8], base: u32) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, &byte| {
        let digit = char::from(byte).to_digit(base)?;
        value.checked_mul(base.into())?.checked_add(digit.into())
    })
}

/// Undoes the octal escapes of the kernel's mangle_path() (fs/seq_file.c). `escaped` holds the
/// bytes the file escapes; any other `\ooo` stands in the name as it is.
pub fn unescape_octal(text: &[u8], escaped: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = if byte == b'\\' { tail.get(..3) } else { None };
        match code.and_then(octal::<u8>).filter(|b| escaped.contains(b)) {
            Some(original) => {
                plain.push(original);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

/// Splits the mark of an unlinked file, " (deleted)", off a path that d_path() printed. A file
/// whose name ends in these characters looks the same: only its inode can tell.
pub fn split_deleted(path: &[u8]) -> (&[u8], bool) {
    match path.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (path, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_strict() {
        assert_eq!(decimal::<i32>(b"-1"), Some(-1));
        assert_eq!(decimal::<u64>(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(decimal::<u64>(b"18446744073709551616"), None);
        assert_eq!(decimal::<u32>(b"+1"), None);
        assert_eq!(decimal::<u32>(b""), None);
        assert_eq!(hex::<u64>(b"ffffffffffffffff"), Some(u64::MAX));
        assert_eq!(hex::<u64>(b"1ffffffffffffffff"), None);
        assert_eq!(hex::<u32>(b"0x1F"), Some(31));
        assert_eq!(hex::<u32>(b"0x"), None);
        assert_eq!(hex::<u32>(b"-1"), None);
        assert_eq!(octal::<u32>(b"02100002"), Some(0o2100002));
        assert_eq!(octal::<u32>(b"8"), None);
    }

    #[test]
    fn escapes_only_where_the_kernel_escapes() {
        assert_eq!(unescape_octal(br"/a\012b", b"\n"), b"/a\nb");
        assert_eq!(unescape_octal(br"/a\040b", b"\n"), br"/a\040b");
        assert_eq!(unescape_octal(br"/a\040b\134", b" \t\n\\"), b"/a b\\");
        assert_eq!(unescape_octal(br"/a\01", b"\n"), br"/a\01");
        assert_eq!(unescape_octal(br"\777\", b"\n"), br"\777\");
    }

    #[test]
    fn lines_count_from_one() {
        assert_eq!(lines("x", b"").count(), 0);
        let all: Vec<_> = lines("x", b"a\n\nb\n")
            .map(|l| (l.number, l.text))
            .collect();
        assert_eq!(all, [(1, &b"a"[..]), (2, b""), (3, b"b")]);
        assert_eq!(lines("x", b"\n").count(), 1);
    }

    #[test]
    fn an_error_names_the_line() {
        let error = lines("maps", b"ok\nbad\n").nth(1).map(|l| l.error("range"));
        assert_eq!(
            error.map(|e| e.to_string()).as_deref(),
            Some("/proc text of kind maps: line 2: cannot read range in \"bad\"")
        );
    }
}
