//! /proc/PID/uid_map, gid_map and projid_map: how the user namespace of a task maps ids, seen
//! from the reader's user namespace (user_namespaces(7)).

use super::text::{Line, ParseError, lines};

/// One extent of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdExtent {
    /// First id inside the namespace.
    pub inside: u32,
    /// First id outside: in the reader's namespace, or in the parent's when they are the same.
    pub outside: u32,
    /// Number of ids, not 0.
    pub count: u32,
}

/// Parses a whole map; empty when it was never written.
pub fn parse_id_map(text: &[u8]) -> Result<Vec<IdExtent>, ParseError> {
    lines("uid_map", text).map(parse_extent).collect()
}

fn parse_extent(line: Line<'_>) -> Result<IdExtent, ParseError> {
    let mut words = line.words();
    let extent = IdExtent {
        inside: words.decimal("id inside")?,
        outside: words.decimal("id outside")?,
        count: words.decimal("id count")?,
    };
    words.end()?;
    Ok(extent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_in_order() {
        let text = b"         0       1000          1\n         1     100000      65536\n";
        let extent = |inside, outside, count| IdExtent {
            inside,
            outside,
            count,
        };
        assert_eq!(
            parse_id_map(text),
            Ok(vec![extent(0, 1000, 1), extent(1, 100000, 65536)])
        );
        assert_eq!(parse_id_map(b""), Ok(vec![]));
        assert_eq!(
            parse_id_map(b"0 0 4294967295\n"),
            Ok(vec![extent(0, 0, u32::MAX)])
        );
        assert_eq!(
            parse_id_map(b"0 0\n").err().map(|e| e.what),
            Some("id count")
        );
        assert_eq!(
            parse_id_map(b"0 0 1 1\n").err().map(|e| e.what),
            Some("end of line")
        );
    }
}
