//! Processor features: what cpuinfo.img says that the dumped machine had and this one lacks, by
//! name. The registers in use are the planner's affair; a program may also have chosen code paths
//! by the features it found at its start, and dies of an illegal instruction on a lesser machine.

use super::Subject;
use crust_cli::code::Code;
use crust_cli::finding::Finding;
use crust_process::cpuid::{Features, Processor, flag_name, own_processor};
use crust_proto::criu::CpuinfoX86Entry;
use crust_proto::criu::cpuinfo_x86_entry::Vendor;

/// What of the processor must be as it was: the meanings of `--cpu-cap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    /// Room for the extended state.
    fpu: bool,
    /// Every feature that programs use.
    ins: bool,
    /// The same maker, family and model.
    cpu: bool,
}

impl Wanted {
    /// A list of words, of which a later one adds and one behind `^` takes away. Without the
    /// option, `fpu` and `ins`.
    fn of(option: Option<&str>) -> Result<Wanted, String> {
        let none = Wanted {
            fpu: false,
            ins: false,
            cpu: false,
        };
        let Some(list) = option else {
            return Ok(Wanted {
                fpu: true,
                ins: true,
                cpu: false,
            });
        };
        let mut wanted = none;
        for word in list.split(',') {
            let (name, value) = match word.strip_prefix('^') {
                Some(name) => (name, false),
                None => (word, true),
            };
            match name {
                "none" => wanted = none,
                "all" => {
                    wanted = Wanted {
                        fpu: value,
                        ins: value,
                        cpu: value,
                    }
                }
                "fpu" => wanted.fpu = value,
                "ins" => wanted.ins = value,
                "cpu" => wanted.cpu = value,
                other => return Err(format!("{other:?} is none of none, fpu, ins, cpu and all")),
            }
        }
        Ok(wanted)
    }
}

/// One finding for each thing that is missing.
pub fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let wanted = match Wanted::of(subject.options.cpu_cap.as_deref()) {
        Ok(wanted) => wanted,
        Err(why) => return vec![Finding::error(Code::Usage, "--cpu-cap", why)],
    };
    let Some(cpuinfo) = &subject.checkpoint.cpuinfo else {
        return Vec::new();
    };
    let own = own_processor();
    let processors = &cpuinfo.x86_entry;
    let mut found = Vec::new();
    if wanted.cpu {
        found.extend(processors.iter().filter_map(|stored| differs(stored, &own)));
    }
    if wanted.fpu {
        found.extend(
            processors
                .iter()
                .filter_map(|stored| has_no_room(stored, &own)),
        );
    }
    if wanted.ins {
        let lacking = |stored: &CpuinfoX86Entry| lacking(&stored.capability, &own.features);
        let mut missing: Vec<(usize, u32)> = processors.iter().flat_map(lacking).collect();
        missing.sort_unstable();
        missing.dedup();
        found.extend(missing.into_iter().map(finding));
    }
    found
}

fn differs(stored: &CpuinfoX86Entry, own: &Processor) -> Option<Finding> {
    let maker = match &own.vendor {
        b"GenuineIntel" => Vendor::Intel,
        b"AuthenticAMD" => Vendor::Amd,
        _ => Vendor::Unknown,
    };
    let is_same = stored.vendor_id == maker as i32
        && (stored.cpu_family, stored.model) == (own.family, own.model);
    let what = format!(
        "family {} model {} of maker {} is in cpuinfo.img, and this one is family {} model {} of maker {}",
        stored.cpu_family, stored.model, stored.vendor_id, own.family, own.model, maker as i32
    );
    let finding = Finding::error(Code::Cpu, "processor", what);
    (!is_same).then(|| finding.remedy("restore on one of the same kind, or with --cpu-cap=ins"))
}

fn has_no_room(stored: &CpuinfoX86Entry, own: &Processor) -> Option<Finding> {
    let size = stored.xsave_size.unwrap_or(0);
    let what = format!(
        "{size} bytes of extended state are in cpuinfo.img, and this processor has {}",
        own.xsave_size_max
    );
    (size > own.xsave_size_max).then(|| Finding::error(Code::Cpu, "processor state", what))
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
    fn the_words_of_the_option() {
        let of = |list| Wanted::of(Some(list)).map(|wanted| (wanted.fpu, wanted.ins, wanted.cpu));
        assert_eq!(Wanted::of(None).map(|wanted| wanted.cpu), Ok(false));
        assert_eq!(of("all"), Ok((true, true, true)));
        assert_eq!(of("none"), Ok((false, false, false)));
        assert_eq!(of("all,^cpu"), Ok((true, true, false)));
        assert_eq!(of("ins"), Ok((false, true, false)));
        assert!(of("sse").is_err());
    }

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
