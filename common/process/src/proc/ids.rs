//! The /proc files that hold one number: oom_score_adj, timerslack_ns, loginuid, sessionid
//! (decimal), personality and coredump_filter (hexadecimal). coredump_filter is empty for a task
//! without mm, and loginuid has no newline.

use super::text::{Line, ParseError};
use std::str::FromStr;

/// A file with one decimal number; `file` names it in the error.
pub fn parse_decimal<T: FromStr>(file: &'static str, text: &[u8]) -> Result<T, ParseError> {
    let mut words = one_line(file, text).words();
    let value = words.decimal("decimal number")?;
    words.end()?;
    Ok(value)
}

/// A file with one hexadecimal number.
pub fn parse_hex<T: TryFrom<u64>>(file: &'static str, text: &[u8]) -> Result<T, ParseError> {
    let mut words = one_line(file, text).words();
    let value = words.hex("hexadecimal number")?;
    words.end()?;
    Ok(value)
}

/// /proc/PID/oom_score_adj: -1000 to 1000.
pub fn parse_oom_score_adj(text: &[u8]) -> Result<i32, ParseError> {
    parse_decimal("oom_score_adj", text)
}

/// /proc/PID/timerslack_ns, of the thread.
pub fn parse_timerslack(text: &[u8]) -> Result<u64, ParseError> {
    parse_decimal("timerslack_ns", text)
}

/// /proc/PID/loginuid; `u32::MAX` when never set.
pub fn parse_loginuid(text: &[u8]) -> Result<u32, ParseError> {
    parse_decimal("loginuid", text)
}

/// /proc/PID/personality, of the thread (personality(2)).
pub fn parse_personality(text: &[u8]) -> Result<u32, ParseError> {
    parse_hex("personality", text)
}

/// /proc/PID/coredump_filter (core(5)); `None` for a task without mm.
pub fn parse_coredump_filter(text: &[u8]) -> Result<Option<u32>, ParseError> {
    if text.is_empty() {
        return Ok(None);
    }
    parse_hex("coredump_filter", text).map(Some)
}

fn one_line<'a>(file: &'static str, text: &'a [u8]) -> Line<'a> {
    Line::new(file, 1, text.strip_suffix(b"\n").unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_each_file() {
        assert_eq!(parse_oom_score_adj(b"-500\n"), Ok(-500));
        assert_eq!(parse_timerslack(b"50000\n"), Ok(50000));
        assert_eq!(parse_loginuid(b"4294967295"), Ok(u32::MAX));
        assert_eq!(parse_personality(b"00040000\n"), Ok(0x40000));
        assert_eq!(parse_personality(b"ffffffff\n"), Ok(u32::MAX));
        assert_eq!(parse_coredump_filter(b"00000033\n"), Ok(Some(0x33)));
        assert_eq!(parse_coredump_filter(b""), Ok(None));
    }

    #[test]
    fn anything_else_names_the_file() {
        assert_eq!(
            parse_timerslack(b"").err().map(|e| e.file),
            Some("timerslack_ns")
        );
        assert!(parse_oom_score_adj(b"1 2\n").is_err());
        assert!(parse_personality(b"1ffffffff\n").is_err());
        assert!(parse_loginuid(b"1\n2\n").is_err());
    }
}
