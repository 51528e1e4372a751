//! `crit x DIR VIEW`: what a dump holds, joined over its images. The text of ps, fds, mems and rss
//! is that of CRIU's crit; a zombie, which has no memory, files or ids, is named and passed over.

pub mod describe;
mod fds;
mod mems;
mod ps;
mod rss;
mod table;
mod views;

use crate::cli::{self, View};
use crate::dump::Dump;
use crate::output::{write_json_out, write_output};
use anyhow::Result;
use crust_image::json::{Layout, Writer, write_value};
use serde_json::Value;

pub fn explore(arguments: &cli::Explore, color: bool) -> Result<()> {
    let dump = Dump::open(&arguments.dir)?;
    if arguments.json {
        let view = json(&dump, arguments.what)?;
        return write_json_out(color, |out| {
            let mut writer = Writer::new(out, Layout::Pretty);
            write_value(&mut writer, &view)?;
            writer.newline()?;
            writer.finish()?;
            Ok(())
        });
    }
    let text = text(&dump, arguments)?;
    write_output(None, |out| Ok(out.write_all(text.as_bytes())?))
}

fn text(dump: &Dump, arguments: &cli::Explore) -> Result<String> {
    let columns: &[&str] = match arguments.what {
        View::Ps if arguments.long => return ps::long(dump),
        View::Ps => return ps::text(dump),
        View::Fds => return fds::text(dump),
        View::Mems => return mems::text(dump),
        View::Rss => return rss::text(dump),
        View::Sk => &[
            "id", "family", "type", "state", "ino", "local", "peer", "queued",
        ],
        View::Ns => &[
            "pid", "mnt", "net", "pid_ns", "ipc", "uts", "user", "cgroup", "time",
        ],
        View::Mounts => &[
            "ns",
            "mnt_id",
            "parent",
            "fstype",
            "mountpoint",
            "root",
            "source",
            "external",
        ],
        View::Creds => &[
            "pid",
            "tid",
            "uid",
            "euid",
            "gid",
            "egid",
            "groups",
            "cap_eff",
            "no_new_privs",
            "lsm",
        ],
        View::Timers => &["pid", "timer", "left", "interval"],
        View::Remaps => &["orig_id", "type", "remap_id", "path", "to"],
        View::Stats => &["stage", "what", "value"],
    };
    Ok(views::table(&json(dump, arguments.what)?, columns))
}

/// A view as a tree.
pub fn json(dump: &Dump, view: View) -> Result<Value> {
    // A null, which an image cannot hold, stands for what is not there: it is left out.
    let value = match view {
        View::Ps => ps::json(dump),
        View::Fds => fds::json(dump),
        View::Mems => mems::json(dump),
        View::Rss => rss::json(dump),
        View::Sk => views::sockets(dump),
        View::Ns => views::namespaces(dump),
        View::Mounts => views::mounts(dump),
        View::Creds => views::credentials(dump),
        View::Timers => views::timers(dump),
        View::Remaps => views::remaps(dump),
        View::Stats => views::statistics(dump),
    }?;
    Ok(without_nulls(value))
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        Value::Object(members) => {
            let there = members.into_iter().filter(|(_, value)| !value.is_null());
            there
                .map(|(key, value)| (key, without_nulls(value)))
                .collect()
        }
        other => other,
    }
}
