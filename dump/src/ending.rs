//! The end of a dump: the tree goes on, is stopped, or is killed, whole.
//!
//! Killing or stopping a tree is one step after the other, and a dumper that is killed in between
//! would leave a part of it. So a survivor process (crust_process::survivor) is told of everything
//! first. Up to one instant, [`Survivor::settle`], our death means that the tree goes on and what was
//! made for the images goes; from then on, for the images are whole, that the survivor ends what was
//! begun.

use crate::collect::Collected;
use crate::context::Context;
use crate::dump::is_alive;
use crate::files::tcp::Survivors;
use crate::network::Locked;
use anyhow::{Context as _, Result};
use crust_process::freeze::{Frozen, TaskState};
use crust_process::steps::step;
use crust_process::survivor::Survivor;
use nix::libc;
use std::os::fd::AsFd;

/// The end that the options ask for. The network lock goes when the tree goes on, and stays for
/// the restore otherwise.
pub fn let_go(
    ctx: &Context,
    frozen: Frozen,
    collected: &mut Collected,
    locked: Locked,
) -> Result<()> {
    let (options, log) = (ctx.options, ctx.log);
    if options.leave_running {
        log.info("Letting the tree go on");
        drop(locked);
        frozen.thaw()?;
        return collected.files.remove_links();
    }
    let survivor = Survivor::start(&|_| false).context("start the survivor")?;
    collected.files.tell_of_links(&survivor)?;
    if options.leave_stopped {
        log.info("Leaving the tree stopped");
        let runs = |state| state == TaskState::Alive;
        tell_of_tasks(ctx, &frozen, &survivor, libc::SIGSTOP, runs)?;
        let left = locked.leave(&survivor)?;
        settle(&survivor, collected);
        if let Some(removal) = left.removal() {
            // The kernel tells nobody of a SIGCONT.
            let message = format_args!(
                "the connections of the stopped tree stay locked, so that it can be killed and \
                 restored; for it to go on instead: {removal}"
            );
            log.warn("dump/network", message);
        }
        left.keep();
        return frozen.leave_stopped().context("leave the tree stopped");
    }
    log.info("Killing the tree");
    let connections = Survivors::take(ctx, &collected.files)?;
    connections.tell(&survivor)?;
    tell_of_tasks(ctx, &frozen, &survivor, libc::SIGKILL, |_| true)?;
    let left = locked.leave(&survivor)?;
    settle(&survivor, collected);
    left.keep();
    frozen.kill().context("kill the dumped tree")?;
    connections.vanish()
}

/// From here on the images count and not the tree. Nothing in here can fail.
fn settle(survivor: &Survivor, collected: &mut Collected) {
    // The survivor knows the links by descriptors of these directories.
    let directories = collected.files.keep_links();
    step();
    survivor.settle();
    step();
    drop(directories);
}

/// The signal that each living task in one of these states shall get.
fn tell_of_tasks(
    ctx: &Context,
    frozen: &Frozen,
    survivor: &Survivor,
    signal: i32,
    is_meant: impl Fn(TaskState) -> bool,
) -> Result<()> {
    // Views are of the living tasks, in this order.
    let living = frozen.tasks.iter().filter(is_alive);
    for (task, view) in living.zip(&ctx.tasks) {
        if is_meant(task.state) {
            survivor.signal(view.pidfd.as_fd(), signal)?;
        }
    }
    Ok(())
}
