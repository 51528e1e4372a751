//! The processor, for a restorer to compare with its own (cpuinfo.img, `--cpu-cap`).
//!
//! Written only if the option asks for it, as by the peer: what the registers in use need is in the
//! core images anyway. The words are version 2 of `capability`; those of the kernel's own making
//! stay zero, which restorers take for nothing needed.

use crust_cli::options::Options;
use crust_image::Kind;
use crust_image::sink::{ImageSink, write_entry};
use crust_process::cpuid::{Processor, own_processor};
use crust_proto::criu::cpuinfo_x86_entry::Vendor;
use crust_proto::criu::{CpuinfoEntry, CpuinfoX86Entry};

/// The meaning of the capability words.
const CAPABILITY_VERSION: u32 = 2;
/// The bit of SSE, which every x86-64 has, is not in `xfeatures_mask` of recorded images.
const SSE: u64 = 1 << 1;

/// Writes the image if it is asked for.
pub fn write(options: &Options, sink: &dyn ImageSink) -> crust_image::Result<()> {
    match options.cpu_cap.as_deref() {
        None | Some("none") => Ok(()),
        Some(_) => write_entry(sink, Kind::Cpuinfo, None, &encode(own_processor())),
    }
}

fn encode(own: Processor) -> CpuinfoEntry {
    let vendor = match &own.vendor {
        b"GenuineIntel" => Vendor::Intel,
        b"AuthenticAMD" => Vendor::Amd,
        _ => Vendor::Unknown,
    };
    let processor = CpuinfoX86Entry {
        vendor_id: vendor as i32,
        cpu_family: own.family,
        model: own.model,
        stepping: own.stepping,
        capability_ver: CAPABILITY_VERSION,
        capability: own.features.iter().map(|word| word.unwrap_or(0)).collect(),
        model_id: Some(own.name),
        xfeatures_mask: Some(own.components & !SSE),
        xsave_size: Some(own.xsave_size),
        xsave_size_max: Some(own.xsave_size_max),
    };
    CpuinfoEntry {
        x86_entry: vec![processor],
        ..CpuinfoEntry::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the peer wrote on an EPYC of the fourth generation, by the same facts.
    #[test]
    fn the_entry_is_the_peers() {
        let mut features = [None; 19];
        features[0] = Some(395_049_983);
        let own = Processor {
            vendor: *b"AuthenticAMD",
            family: 25,
            model: 17,
            stepping: 1,
            features,
            name: b"AMD EPYC".to_vec(),
            components: 0xe7,
            xsave_size: 2432,
            xsave_size_max: 2432,
        };
        let entry = &encode(own).x86_entry[0];
        assert_eq!(entry.vendor_id, Vendor::Amd as i32);
        assert_eq!(entry.capability[0], 395_049_983);
        assert_eq!(
            (entry.capability.len(), entry.xfeatures_mask),
            (19, Some(229))
        );
    }
}
