//! /proc/PID/auxv: the auxiliary vector that execve(2) put on the stack and kept in the mm
//! (mm->saved_auxv), pairs of 64-bit words that end with AT_NULL. Empty for a task without mm.
//! PR_SET_MM_MAP puts it back.

use super::text::{Line, ParseError};

/// The vector of a 64-bit task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auxv {
    /// All words in order, AT_NULL and its value included.
    pub words: Vec<u64>,
}

impl Auxv {
    /// The value of the first entry of this AT_* type.
    pub fn get(&self, at: u64) -> Option<u64> {
        let (pairs, _) = self.words.as_chunks::<2>();
        let found = pairs.iter().find(|pair| pair[0] == at && at != 0);
        found.map(|pair| pair[1])
    }
}

/// Parses the whole of /proc/PID/auxv.
pub fn parse_auxv(bytes: &[u8]) -> Result<Auxv, ParseError> {
    let (words, rest) = bytes.as_chunks::<8>();
    if !rest.is_empty() || words.len() % 2 != 0 {
        return Err(Line::new("auxv", 0, &[]).error("pairs of 64-bit words"));
    }
    let words = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    Ok(Auxv { words })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_found_by_type() -> Result<(), ParseError> {
        let words = [33u64, 0x7fff0000, 6, 4096, 0, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let auxv = parse_auxv(&bytes)?;
        assert_eq!(auxv.words, words);
        assert_eq!(auxv.get(libc::AT_PAGESZ), Some(4096));
        assert_eq!(auxv.get(33), Some(0x7fff0000));
        assert_eq!((auxv.get(0), auxv.get(7)), (None, None));
        assert_eq!(parse_auxv(b"")?, Auxv::default());
        Ok(())
    }

    #[test]
    fn half_a_pair_is_an_error() {
        assert!(parse_auxv(&[0; 8]).is_err());
        assert!(parse_auxv(&[0; 15]).is_err());
    }

    #[test]
    fn our_own_vector_agrees_with_getauxval() {
        let bytes = std::fs::read("/proc/self/auxv").expect("our own auxv is readable");
        let auxv = parse_auxv(&bytes).expect("we are a 64-bit task");
        // SAFETY: getauxval takes and gives plain numbers.
        let entry = unsafe { libc::getauxval(libc::AT_ENTRY) };
        assert_eq!(auxv.get(libc::AT_ENTRY), Some(entry));
    }
}
