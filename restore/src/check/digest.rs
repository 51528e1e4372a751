//! The manifest of a dump: images that are not what was written are told before anything is read
//! from them, here and in the dumps that an incremental one builds on. A dump without a manifest
//! is taken as it is, unless `--digest` asks for one.

use crust_cli::code::Code;
use crust_cli::finding::Finding;
use crust_cli::options::Options;
use crust_image::{ImageDir, digest};

/// Dumps of a chain; a longer one, or a circle, is refused where pages are looked up.
const MOST_LEVELS: usize = 1024;

/// Everything that differs.
pub fn check(options: &Options, images: &ImageDir) -> Vec<Finding> {
    let mut findings = of_one(options.digest, images);
    let mut parent = images.parent();
    for _ in 0..MOST_LEVELS {
        // A link that leads nowhere is told with the pages that are missing.
        let Ok(Some(dir)) = parent else { break };
        findings.extend(of_one(false, &dir));
        parent = dir.parent();
    }
    findings
}

fn of_one(is_wanted: bool, images: &ImageDir) -> Vec<Finding> {
    let shown = images.path().display().to_string();
    match digest::verify(images) {
        Ok(None) if is_wanted => {
            let what = "has no crust-digest.json, which --digest wants";
            vec![Finding::error(Code::Digest, shown, what).remedy("dump with --digest")]
        }
        Ok(differences) => {
            let named = digest::with_addresses(&differences.unwrap_or_default(), images);
            let finding = |(file, what): (String, String)| {
                let object = images.path().join(file).display().to_string();
                Finding::error(Code::Digest, object, what)
            };
            named.into_iter().map(finding).collect()
        }
        Err(error) => vec![Finding::error(Code::Digest, "", error.to_string())],
    }
}
