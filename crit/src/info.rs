//! `crit info`: the kind of an image and how many entries it has, payloads skipped by their rules.

use crate::cli;
use crate::output::{input_name, open_input, write_output};
use crate::raw::explain;
use anyhow::Result;
use crust_image::json::decode::count_entries;
use crust_image::json::{Layout, Sink, Writer};
use std::io::BufReader;

pub fn info(arguments: &cli::Info) -> Result<()> {
    let input = Some(arguments.input.as_path());
    let from = BufReader::with_capacity(1 << 16, open_input(input)?);
    let (kind, entries) =
        count_entries(from).map_err(|error| explain(error, &input_name(input)))?;
    // The head of a pagemap is not one of its runs.
    let has_head = kind.spec().name == "PAGEMAP";
    let count = entries.saturating_sub(u64::from(has_head));
    write_output(None, |out| {
        let mut writer = Writer::new(out, Layout::Pretty);
        writer.begin_object()?;
        writer.key("magic")?;
        writer.string(kind.spec().name)?;
        writer.key("count")?;
        writer.unsigned(count)?;
        writer.end_object()?;
        writer.newline()?;
        writer.finish()?;
        Ok(())
    })
}
