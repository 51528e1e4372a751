//! Sets of addresses as ascending, disjoint ranges: what is dirty, what the dump before has.

use std::ops::Range;

/// The parts of `range` that are in `set`, and those that are not, in turn: `true` for in it.
pub fn split(range: Range<u64>, set: &[Range<u64>]) -> Vec<(Range<u64>, bool)> {
    let first = set.partition_point(|part| part.end <= range.start);
    let mut parts = Vec::new();
    let mut at = range.start;
    for part in set.iter().skip(first) {
        if part.start >= range.end {
            break;
        }
        let (start, end) = (part.start.max(at), part.end.min(range.end));
        if at < start {
            parts.push((at..start, false));
        }
        parts.push((start..end, true));
        at = end;
    }
    if at < range.end {
        parts.push((at..range.end, false));
    }
    parts
}

/// What is in both sets.
pub fn intersect(one: &[Range<u64>], other: &[Range<u64>]) -> Vec<Range<u64>> {
    only(one, other, true)
}

/// What is in the first set and not in the other.
pub fn subtract(one: &[Range<u64>], other: &[Range<u64>]) -> Vec<Range<u64>> {
    only(one, other, false)
}

fn only(one: &[Range<u64>], other: &[Range<u64>], inside: bool) -> Vec<Range<u64>> {
    let parts = one.iter().flat_map(|range| split(range.clone(), other));
    parts
        .filter_map(|(part, is_inside)| (is_inside == inside).then_some(part))
        .collect()
}

/// Joins neighbours of an ascending list.
pub fn join(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // a set of one range is meant
mod tests {
    use super::*;

    #[test]
    fn parts_inside_and_outside() {
        assert_eq!(split(0..10, &[]), [(0..10, false)]);
        assert_eq!(
            split(2..10, &[0..3, 5..6, 9..20]),
            [
                (2..3, true),
                (3..5, false),
                (5..6, true),
                (6..9, false),
                (9..10, true)
            ]
        );
        assert_eq!(split(4..5, &[0..4, 5..6]), [(4..5, false)]);
    }

    #[test]
    fn sets() {
        assert_eq!(intersect(&[0..4, 6..9], &[2..7]), [2..4, 6..7]);
        assert_eq!(subtract(&[0..4, 6..9], &[2..7]), [0..2, 7..9]);
        assert_eq!(join([0..2, 2..3, 5..6]), [0..3, 5..6]);
    }
}
