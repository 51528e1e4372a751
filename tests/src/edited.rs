//! Images that are changed on purpose, by way of crit's JSON.

use crate::{sandbox::Sandbox, tools::text};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{fs, path::Path};

/// Decodes an image, lets `change` change it and encodes it in its place.
pub fn edit(
    sandbox: &Sandbox,
    image: &Path,
    change: impl FnOnce(&mut Value) -> Result<()>,
) -> Result<()> {
    let json = sandbox
        .run("crit", &["decode", "-i", text(image)?], None)?
        .succeeded()?;
    let mut json: Value = serde_json::from_slice(&json.stdout)?;
    change(&mut json)?;
    let edited = sandbox.dir("edited")?.join("image.json");
    fs::write(&edited, json.to_string())?;
    let encode = ["encode", "-i", text(&edited)?, "-o", text(image)?];
    sandbox.run("crit", &encode, None)?.succeeded().map(drop)
}

/// Makes the processor of cpuinfo.img one that has everything: none has both AMD's and Intel's own
/// extensions.
pub fn processor_with_everything(sandbox: &Sandbox, images: &Path) -> Result<()> {
    edit(sandbox, &images.join("cpuinfo.img"), |json| {
        let words = json.pointer_mut("/entries/0/x86_entry/0/capability");
        let words = words
            .and_then(Value::as_array_mut)
            .context("no words of capabilities")?;
        words.iter_mut().for_each(|word| *word = u32::MAX.into());
        Ok(())
    })
}
