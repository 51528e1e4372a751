//! Processor features: what cpuinfo.img says that the dumped machine had and this one lacks, by
//! name. The registers in use are the planner's affair; a program may also have chosen code paths
//! by the features it found at its start, and dies of an illegal instruction on a lesser machine.

use super::Subject;
use crust_cli::code::Code;
use crust_cli::finding::Finding;
use crust_process::cpuid::{Features, flag_name, own_features};

/// One finding for each feature that is missing.
pub fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let Some(cpuinfo) = &subject.checkpoint.cpuinfo else {
        return Vec::new();
    };
    if subject.options.cpu_cap.as_deref() == Some("none") {
        return Vec::new();
    }
    let own = own_features();
    let processors = cpuinfo.x86_entry.iter();
    let mut missing: Vec<(usize, u32)> = processors
        .flat_map(|processor| lacking(&processor.capability, &own))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    missing.into_iter().map(finding).collect()
}

/// The bits, as word and number, that are in the images and not here.
fn lacking(stored: &[u32], own: &Features) -> Vec<(usize, u32)> {
    let words = stored.iter().zip(own).enumerate();
    let bits = words.flat_map(|(word, (stored, own))| {
        let missing = stored & !own.unwrap_or(u32::MAX);
        (0..32)
            .filter(move |bit| missing >> bit & 1 == 1)
            .map(move |bit| (word, bit))
    });
    bits.filter(|(word, bit)| flag_name(*word, *bit).is_some())
        .collect()
}

fn finding((word, bit): (usize, u32)) -> Finding {
    let name = flag_name(word, bit).unwrap_or_default();
    let object = format!("processor feature {name}");
    let what = "is in cpuinfo.img and this processor lacks it";
    let remedy = "restore on a machine that has it, or try your luck with --cpu-cap=none";
    Finding::error(Code::Cpu, object, what).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_features_that_programs_use_count() {
        let mut own: Features = [Some(0); 19];
        own[2] = None;
        // Bit 25 of the first word is sse, bit 14 mca, which no program sees.
        let stored = [1 << 25 | 1 << 14, 0, u32::MAX];
        assert_eq!(lacking(&stored, &own), [(0, 25)]);
        let told = finding((0, 25)).to_string();
        assert!(
            told.starts_with("processor feature sse: is in cpuinfo.img"),
            "{told}"
        );
    }
}
