//! /proc/PID/task/TID/children: the children that this thread forked, oldest first, in the
//! reader's pid namespace. Complete only while the parent is stopped: the kernel finds its
//! place by position when a child goes (proc_pid_children(5)).

use super::text::{Line, ParseError};

/// Parses the whole of a children file.
pub fn parse_children(text: &[u8]) -> Result<Vec<i32>, ParseError> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    Line::new("children", 1, text).words().decimals("child pid")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_in_order() {
        assert_eq!(parse_children(b"12 7 345 "), Ok(vec![12, 7, 345]));
        assert_eq!(parse_children(b""), Ok(vec![]));
        assert_eq!(
            parse_children(b"12 x ").err().map(|e| e.what),
            Some("child pid")
        );
    }
}
