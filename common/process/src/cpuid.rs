//! What the processor can, as the words of capabilities that cpuinfo.img has.
//!
//! The words are answers of cpuid (Intel SDM volume 2, AMD APM volume 3) in the order of the
//! images (version 2 of `capability`, found out from images and the machines that wrote them).
//! Words of the kernel's own making have no answer here and count for nothing. Only features that
//! a program can see and use have a name.

use std::arch::x86_64::{__cpuid_count, __get_cpuid_max, CpuidResult};

/// Words of capabilities; absent where cpuid has no such answer.
pub type Features = [Option<u32>; 19];

/// What this processor has.
pub fn own_features() -> Features {
    let mut features = [None; 19];
    let basic = |leaf, sub| answer(0, leaf, sub);
    let extended = |leaf| answer(0x8000_0000, leaf, 0);
    features[0] = basic(1, 0).map(|answer| answer.edx);
    features[1] = extended(0x8000_0001).map(|answer| answer.edx);
    features[4] = basic(1, 0).map(|answer| answer.ecx);
    features[6] = extended(0x8000_0001).map(|answer| answer.ecx);
    features[9] = basic(7, 0).map(|answer| answer.ebx);
    features[10] = basic(0xd, 1).map(|answer| answer.eax);
    features[11] = basic(7, 0).map(|answer| answer.ecx);
    features[13] = extended(0x8000_0008).map(|answer| answer.ebx);
    features[18] = basic(7, 0).map(|answer| answer.edx);
    features
}

/// This processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processor {
    /// The 12 letters of its maker: `GenuineIntel`, `AuthenticAMD`.
    pub vendor: [u8; 12],
    /// Family, with the extended one added.
    pub family: u32,
    /// Model, with the extended one.
    pub model: u32,
    /// Revision of the model.
    pub stepping: u32,
    /// What it can.
    pub features: Features,
    /// Its name.
    pub name: Vec<u8>,
    /// The components of extended state that the kernel has enabled (XCR0).
    pub components: u64,
    /// Bytes of extended state with these components.
    pub xsave_size: u32,
    /// Bytes with all that the processor has.
    pub xsave_size_max: u32,
}

/// Asks this processor.
pub fn own_processor() -> Processor {
    let first = answer(0, 0, 0);
    let letters = first.map_or([0; 3], |first| [first.ebx, first.edx, first.ecx]);
    let signature = answer(0, 1, 0).map_or(0, |answer| answer.eax);
    let (family, model, stepping) = decode_signature(signature);
    let names = (2..5).filter_map(|leaf| answer(EXTENDED, EXTENDED + leaf, 0));
    let words = names.flat_map(|name| [name.eax, name.ebx, name.ecx, name.edx]);
    let mut name: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    name.truncate(
        name.iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len()),
    );
    let state = answer(0, XSAVE, 0);
    Processor {
        vendor: bytes_of(letters),
        family,
        model,
        stepping,
        features: own_features(),
        name: name.trim_ascii().to_vec(),
        components: state.map_or(0, |state| u64::from(state.edx) << 32 | u64::from(state.eax)),
        xsave_size: state.map_or(0, |state| state.ebx),
        xsave_size_max: state.map_or(0, |state| state.ecx),
    }
}

/// Where the extended answers of cpuid begin.
const EXTENDED: u32 = 0x8000_0000;
/// The leaf of extended processor state.
const XSAVE: u32 = 0xd;

fn bytes_of(words: [u32; 3]) -> [u8; 12] {
    let mut bytes = [0; 12];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

/// Family, model and stepping of the answer of leaf 1 (Intel SDM volume 2, CPUID).
fn decode_signature(eax: u32) -> (u32, u32, u32) {
    let field = |shift: u32, bits: u32| eax >> shift & ((1 << bits) - 1);
    let (base, extended) = (field(8, 4), field(20, 8));
    let family = if base == 0xf { base + extended } else { base };
    let high = if base == 0xf || base == 6 {
        field(16, 4) << 4
    } else {
        0
    };
    (family, high | field(4, 4), field(0, 4))
}

fn answer(range: u32, leaf: u32, sub: u32) -> Option<CpuidResult> {
    (__get_cpuid_max(range).0 >= leaf).then(|| __cpuid_count(leaf, sub))
}

/// The kernel's name (/proc/cpuinfo) of a feature that programs can use.
pub fn flag_name(word: usize, bit: u32) -> Option<&'static str> {
    let known = NAMES.iter().find(|known| (known.0, known.1) == (word, bit));
    known.map(|known| known.2)
}

const NAMES: &[(usize, u32, &str)] = &[
    (0, 0, "fpu"),
    (0, 4, "tsc"),
    (0, 8, "cx8"),
    (0, 15, "cmov"),
    (0, 19, "clflush"),
    (0, 23, "mmx"),
    (0, 24, "fxsr"),
    (0, 25, "sse"),
    (0, 26, "sse2"),
    (1, 11, "syscall"),
    (1, 22, "mmxext"),
    (1, 27, "rdtscp"),
    (1, 30, "3dnowext"),
    (1, 31, "3dnow"),
    (4, 0, "pni"),
    (4, 1, "pclmulqdq"),
    (4, 3, "monitor"),
    (4, 9, "ssse3"),
    (4, 12, "fma"),
    (4, 13, "cx16"),
    (4, 19, "sse4_1"),
    (4, 20, "sse4_2"),
    (4, 22, "movbe"),
    (4, 23, "popcnt"),
    (4, 25, "aes"),
    (4, 26, "xsave"),
    (4, 27, "osxsave"),
    (4, 28, "avx"),
    (4, 29, "f16c"),
    (4, 30, "rdrand"),
    (6, 0, "lahf_lm"),
    (6, 5, "abm"),
    (6, 6, "sse4a"),
    (6, 8, "3dnowprefetch"),
    (6, 11, "xop"),
    (6, 15, "lwp"),
    (6, 16, "fma4"),
    (6, 21, "tbm"),
    (9, 0, "fsgsbase"),
    (9, 3, "bmi1"),
    (9, 4, "hle"),
    (9, 5, "avx2"),
    (9, 8, "bmi2"),
    (9, 9, "erms"),
    (9, 11, "rtm"),
    (9, 14, "mpx"),
    (9, 16, "avx512f"),
    (9, 17, "avx512dq"),
    (9, 18, "rdseed"),
    (9, 19, "adx"),
    (9, 21, "avx512ifma"),
    (9, 23, "clflushopt"),
    (9, 24, "clwb"),
    (9, 26, "avx512pf"),
    (9, 27, "avx512er"),
    (9, 28, "avx512cd"),
    (9, 29, "sha_ni"),
    (9, 30, "avx512bw"),
    (9, 31, "avx512vl"),
    (10, 0, "xsaveopt"),
    (10, 1, "xsavec"),
    (10, 2, "xgetbv1"),
    (11, 1, "avx512vbmi"),
    (11, 3, "pku"),
    (11, 4, "ospke"),
    (11, 5, "waitpkg"),
    (11, 6, "avx512_vbmi2"),
    (11, 8, "gfni"),
    (11, 9, "vaes"),
    (11, 10, "vpclmulqdq"),
    (11, 11, "avx512_vnni"),
    (11, 12, "avx512_bitalg"),
    (11, 14, "avx512_vpopcntdq"),
    (11, 22, "rdpid"),
    (11, 25, "cldemote"),
    (11, 27, "movdiri"),
    (11, 28, "movdir64b"),
    (13, 0, "clzero"),
    (18, 2, "avx512_4vnniw"),
    (18, 3, "avx512_4fmaps"),
    (18, 4, "fsrm"),
    (18, 8, "avx512_vp2intersect"),
    (18, 14, "serialize"),
    (18, 22, "amx_bf16"),
    (18, 23, "avx512_fp16"),
    (18, 24, "amx_tile"),
    (18, 25, "amx_int8"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn what_every_x86_64_has() {
        let features = own_features();
        let sse2 = features[0].is_some_and(|word| word >> 26 & 1 == 1);
        let syscall = features[1].is_some_and(|word| word >> 11 & 1 == 1);
        assert!(sse2 && syscall, "{features:?}");
    }

    /// The kernel says the same of it.
    #[test]
    fn the_processor_is_the_kernels() {
        let text = std::fs::read_to_string("/proc/cpuinfo").expect("readable");
        let field = |name: &str| {
            let line = text.lines().find(|line| {
                line.split_once(':')
                    .is_some_and(|(key, _)| key.trim() == name)
            });
            line.and_then(|line| line.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
        };
        let own = own_processor();
        let vendor = String::from_utf8_lossy(&own.vendor).into_owned();
        assert_eq!(field("vendor_id"), Some(vendor));
        assert_eq!(field("cpu family"), Some(own.family.to_string()));
        assert_eq!(field("model"), Some(own.model.to_string()));
        assert_eq!(field("stepping"), Some(own.stepping.to_string()));
        let name = String::from_utf8_lossy(&own.name).into_owned();
        assert_eq!(field("model name"), Some(name));
        // An EPYC of the fourth generation and a Core of the sixth.
        assert_eq!(decode_signature(0x00a1_0f11), (25, 17, 1));
        assert_eq!(decode_signature(0x0005_06e3), (6, 94, 3));
    }

    /// The kernel lists the same under the same names.
    #[test]
    fn the_names_are_the_kernels() {
        let text = std::fs::read_to_string("/proc/cpuinfo").expect("readable");
        let flags = text.lines().find_map(|line| line.strip_prefix("flags"));
        let flags: HashSet<&str> = flags.expect("flags").split_ascii_whitespace().collect();
        let own = own_features();
        for (word, bit, name) in NAMES {
            let has = own[*word].is_some_and(|word| word >> bit & 1 == 1);
            // The kernel may hide what it was told not to use, never the other way round.
            assert!(
                has || !flags.contains(name),
                "{name} is in /proc/cpuinfo only"
            );
        }
    }
}
