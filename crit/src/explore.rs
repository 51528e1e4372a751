//! `crit x DIR VIEW`: what a dump holds, joined over its images. The text of ps, fds, mems and rss
//! is that of CRIU's crit; a zombie, which has no memory, files or ids, is named and passed over.

mod fds;
mod mems;
mod ps;
mod rss;

use crate::cli::{self, View};
use crate::dump::Dump;
use crate::output::write_output;
use anyhow::Result;

pub fn explore(arguments: &cli::Explore) -> Result<()> {
    let dump = Dump::open(&arguments.dir)?;
    let text = match arguments.what {
        View::Ps => ps::text(&dump)?,
        View::Fds => fds::text(&dump)?,
        View::Mems => mems::text(&dump)?,
        View::Rss => rss::text(&dump)?,
    };
    write_output(None, |out| Ok(out.write_all(text.as_bytes())?))
}
