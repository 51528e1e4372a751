//! The XSAVE area of a thread from the fields of its image. The legacy part and the header have
//! fixed places (Intel SDM volume 1, 13.4); the extended components are where this processor
//! wants them. A component that was in use and that this processor lacks is refused by name.

use crust_proto::criu::{UserX86FpregsEntry, UserX86XsaveEntry};
use std::collections::BTreeMap;
use std::ops::Range;

const LEGACY: usize = 512;
const HEADER: usize = 64;
/// x87 and SSE, which every x86_64 has.
const LEGACY_BITS: u64 = 3;
/// Bits of MXCSR that any processor has; others make the kernel refuse the area.
const MXCSR_KNOWN: u32 = 0x2_ffff;

/// What the images can hold, by bit of xstate_bv.
const COMPONENTS: [(u32, &str); 7] = [
    (2, "ymmh_space"),
    (3, "bndreg_state"),
    (4, "bndcsr_state"),
    (5, "opmask_reg"),
    (6, "zmm_upper"),
    (7, "hi16_zmm"),
    (9, "pkru"),
];

/// The area, as long as its last component needs. `places` are those of this processor.
pub fn area(
    fpregs: &UserX86FpregsEntry,
    places: &BTreeMap<u32, Range<usize>>,
) -> Result<Vec<u8>, String> {
    let mut area = legacy(fpregs)?;
    let Some(xsave) = &fpregs.xsave else {
        area.extend([0; HEADER]);
        put(&mut area, LEGACY, &LEGACY_BITS.to_le_bytes());
        return Ok(area);
    };
    let known = COMPONENTS
        .iter()
        .fold(LEGACY_BITS, |bits, (bit, _)| bits | 1 << bit);
    let used = xsave.xstate_bv & known;
    area.extend([0; HEADER]);
    put(&mut area, LEGACY, &used.to_le_bytes());
    for (bit, name) in COMPONENTS {
        let bytes = component(xsave, bit);
        let in_use = used >> bit & 1 == 1;
        let Some(place) = places.get(&bit) else {
            if in_use {
                return Err(format!(
                    "fpregs.xsave.{name} is in use and this processor lacks it"
                ));
            }
            continue;
        };
        if bytes.len() > place.len() || (in_use && bytes.is_empty()) {
            return Err(format!(
                "fpregs.xsave.{name} has {} bytes, {} fit",
                bytes.len(),
                place.len()
            ));
        }
        if area.len() < place.end {
            area.resize(place.end, 0);
        }
        put(&mut area, place.start, &bytes);
    }
    Ok(area)
}

fn put(area: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in area.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

/// The FXSAVE image.
fn legacy(fpregs: &UserX86FpregsEntry) -> Result<Vec<u8>, String> {
    if fpregs.mxcsr & !MXCSR_KNOWN != 0 {
        return Err(format!("fpregs.mxcsr {:#x} has unknown bits", fpregs.mxcsr));
    }
    for (name, words, most) in [
        ("st_space", &fpregs.st_space, 32),
        ("xmm_space", &fpregs.xmm_space, 64),
    ] {
        if words.len() != most {
            return Err(format!(
                "fpregs.{name} has {} words, not {most}",
                words.len()
            ));
        }
    }
    let mut area = vec![0; LEGACY];
    for (at, value) in [
        (0, fpregs.cwd),
        (2, fpregs.swd),
        (4, fpregs.twd),
        (6, fpregs.fop),
    ] {
        let short =
            u16::try_from(value).map_err(|_| format!("fpregs word {value:#x} has no 16 bits"))?;
        put(&mut area, at, &short.to_le_bytes());
    }
    put(&mut area, 8, &fpregs.rip.to_le_bytes());
    put(&mut area, 16, &fpregs.rdp.to_le_bytes());
    put(&mut area, 24, &fpregs.mxcsr.to_le_bytes());
    put(&mut area, 28, &fpregs.mxcsr_mask.to_le_bytes());
    put(&mut area, 32, &words(&fpregs.st_space));
    put(&mut area, 160, &words(&fpregs.xmm_space));
    Ok(area)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

fn component(xsave: &UserX86XsaveEntry, bit: u32) -> Vec<u8> {
    match bit {
        2 => words(&xsave.ymmh_space),
        3 => longs(&xsave.bndreg_state),
        4 => longs(&xsave.bndcsr_state),
        5 => longs(&xsave.opmask_reg),
        6 => longs(&xsave.zmm_upper),
        7 => longs(&xsave.hi16_zmm),
        9 => words(&xsave.pkru),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fpregs(xsave: UserX86XsaveEntry) -> UserX86FpregsEntry {
        UserX86FpregsEntry {
            cwd: 0x37f,
            mxcsr: 0x1f80,
            st_space: vec![0; 32],
            xmm_space: (0..64).collect(),
            xsave: Some(xsave),
            ..UserX86FpregsEntry::default()
        }
    }

    fn places() -> BTreeMap<u32, Range<usize>> {
        BTreeMap::from([(2, 576..832), (5, 832..896)])
    }

    #[test]
    fn components_go_where_the_processor_wants_them() {
        let xsave = UserX86XsaveEntry {
            xstate_bv: 0x26,
            ymmh_space: vec![7; 64],
            opmask_reg: vec![0x1122; 8],
            ..UserX86XsaveEntry::default()
        };
        let area = area(&fpregs(xsave), &places()).expect("fits");
        assert_eq!(area.len(), 896);
        assert_eq!(area[0..2], [0x7f, 3]);
        assert_eq!(area[164..168], [1, 0, 0, 0]);
        assert_eq!(area[512..520], [0x26, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(area[576..580], [7, 0, 0, 0]);
        assert_eq!(area[832..834], [0x22, 0x11]);
    }

    #[test]
    fn what_the_processor_lacks_is_named_only_when_in_use() {
        let xsave = |bits| UserX86XsaveEntry {
            xstate_bv: bits,
            hi16_zmm: vec![0; 128],
            ..UserX86XsaveEntry::default()
        };
        assert!(area(&fpregs(xsave(3)), &places()).is_ok());
        let error = area(&fpregs(xsave(0x80)), &places()).expect_err("no such registers");
        assert!(error.contains("hi16_zmm"), "{error}");
    }

    #[test]
    fn lengths_are_checked() {
        let long = UserX86XsaveEntry {
            ymmh_space: vec![0; 65],
            ..UserX86XsaveEntry::default()
        };
        assert!(area(&fpregs(long), &places()).is_err());
        let mut short = fpregs(UserX86XsaveEntry::default());
        short.st_space.pop();
        assert!(area(&short, &places()).is_err());
    }
}
