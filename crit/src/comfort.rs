//! `crit completions` and `crit man`: made from the same definitions the command line is read by.

use crate::cli::{self, Arguments};
use crate::output::write_output;
use anyhow::{Context, Result};
use clap::CommandFactory;
use std::fs;

pub fn completions(arguments: &cli::Completions) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(
        arguments.shell,
        &mut Arguments::command(),
        "crit",
        &mut text,
    );
    write_output(None, |out| Ok(out.write_all(&text)?))
}

/// crit.1 to stdout, or it and a page for each verb into a directory.
pub fn man(arguments: &cli::Man) -> Result<()> {
    let command = Arguments::command();
    let Some(dir) = &arguments.dir else {
        let page = clap_mangen::Man::new(command);
        return write_output(None, |out| Ok(page.render(out)?));
    };
    fs::create_dir_all(dir).with_context(|| format!("{}: create", dir.display()))?;
    clap_mangen::generate_to(command, dir)
        .with_context(|| format!("{}: write the pages", dir.display()))
}
