//! What waits in a pair of terminals: input for the slave's readers, output for the master's.
//!
//! The kernel lets nobody look, so it is read and put back at once (`crust_process::terminal`),
//! last of all, when no refusal stands. Should we be killed within these microseconds, it is lost.
//! An entry of tty-data.img has the bytes as a program would read them; that end of file was typed
//! somewhere among them is in a field of our own. The input of a slave that nobody of the tree has
//! open, and what waits in a terminal whose master is outside, stay where they are.
//!
//! Of the input behind the 4095 bytes that the queue holds, which the kernel has not edited yet,
//! line editing is done by our reading it.

use super::FileTable;
use super::tty::Info;
use crate::context::Context;
use anyhow::{Context as _, Result};
use crust_image::kind::Kind;
use crust_image::sink::{ImageSink, write_entries};
use crust_process::terminal::{QUEUE, open_peer};
use crust_process::terminal::{Waiting, put_input, put_output, take_input, take_output};
use crust_proto::criu::TtyDataEntry;
use std::os::fd::{AsFd, BorrowedFd};

/// Writes tty-data.img, if something waits anywhere.
pub fn write(ctx: &Context, table: &FileTable, sink: &dyn ImageSink) -> Result<()> {
    let mut entries = Vec::new();
    let infos = &table.ttys.infos;
    for (id, master) in infos.iter().filter(|(_, info)| info.is_master()) {
        let slave = infos.get(&(id - 1));
        let waiting = collect(master, slave).with_context(|| {
            let index = id / 2;
            format!("reading what waits in pseudo terminal {index}, and putting it back")
        })?;
        for (id, waiting) in [(id - 1, waiting.input), (*id, waiting.output)] {
            if waiting.is_empty() {
                continue;
            }
            ctx.log
                .debug(format_args!("tty {id}: {} bytes wait", waiting.bytes.len()));
            entries.push(TtyDataEntry {
                tty_id: id,
                data: waiting.bytes,
                crust_ends: waiting.ends,
            });
        }
    }
    if entries.is_empty() {
        return Ok(());
    }
    Ok(write_entries(sink, Kind::TtyData, None, &entries)?)
}

/// What waits at both ends of a pair.
#[derive(Debug, Default)]
struct BothWays {
    input: Waiting,
    output: Waiting,
}

/// The input first: what its editing echoes belongs to the output. What could be taken goes back
/// before a failure is told.
fn collect(master: &Info, slave: Option<&Info>) -> nix::Result<BothWays> {
    let mut both = BothWays::default();
    let master_fd = master.fd.as_fd();
    if let Some(slave) = slave {
        let (input, taken) = take_input(slave.fd.as_fd());
        if !input.is_empty() {
            put_input(slave.fd.as_fd(), master_fd, &input)?;
        }
        taken?;
        both.input = input;
    }
    let (output, taken) = take_output(master_fd, master.entry.packet_mode);
    if !output.is_empty() {
        put_back(master_fd, slave, &output)?;
    }
    taken?;
    both.output = output;
    Ok(both)
}

fn put_back(master: BorrowedFd, slave: Option<&Info>, output: &Waiting) -> nix::Result<()> {
    match slave {
        Some(slave) => put_output(master, slave.fd.as_fd(), output),
        // Only more than its own queue holds goes by the other end.
        None if output.bytes.len() <= QUEUE => put_output(master, master, output),
        None => put_output(master, open_peer(master)?.as_fd(), output),
    }
}
