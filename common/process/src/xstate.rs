//! Where the processor puts the components of its extended state in an XSAVE area.
//!
//! The legacy part (x87 and SSE) is fixed; the offsets of all others differ between makers and
//! come from CPUID leaf 0xd (Intel SDM volume 1, 13.5). The kernel tells which components an area
//! of PTRACE_GETREGSET(NT_X86_XSTATE) has room for, in the words that XSAVE leaves to software.

use std::arch::x86_64::__cpuid_count;
use std::ops::Range;

/// Bit numbers of xstate_bv.
pub mod component {
    /// Upper halves of ymm0 to ymm15.
    pub const YMM: u32 = 2;
    /// MPX bounds.
    pub const BNDREGS: u32 = 3;
    /// MPX configuration and status.
    pub const BNDCSR: u32 = 4;
    /// AVX-512 mask registers.
    pub const OPMASK: u32 = 5;
    /// Upper halves of zmm0 to zmm15.
    pub const ZMM_HI256: u32 = 6;
    /// zmm16 to zmm31.
    pub const HI16_ZMM: u32 = 7;
    /// Protection keys.
    pub const PKRU: u32 = 9;
}

/// Offset of the legacy header's words for software; the first is the mask of the components.
const SW_RESERVED: usize = 464;
/// Offset of xstate_bv.
pub const XSTATE_BV: usize = 512;

/// The bytes of a component (2 to 62) in an area of this processor; `None` if it has none.
pub fn range_of(component: u32) -> Option<Range<usize>> {
    const LEAF: u32 = 0xd;
    let row = __cpuid_count(LEAF, component);
    let (size, offset) = (row.eax as usize, row.ebx as usize);
    // A supervisor component has no place in an area of user space: its offset is 0.
    (size > 0 && offset > 0).then(|| offset..offset + size)
}

/// The mask of components for which the kernel has made room in this area; an area that is too
/// short has only the legacy ones.
pub fn components_of(area: &[u8]) -> u64 {
    let word = area.get(SW_RESERVED..SW_RESERVED + 8);
    word.and_then(|bytes| bytes.try_into().ok())
        .map_or(3, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_lie_behind_the_header_and_do_not_overlap() {
        let mut ranges: Vec<_> = (2..20).filter_map(range_of).collect();
        ranges.sort_by_key(|range| range.start);
        let mut end = XSTATE_BV + 64;
        for range in ranges {
            assert!(range.start >= end, "{range:?} starts before {end}");
            end = range.end;
        }
    }
}
