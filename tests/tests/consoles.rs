//! Terminals that are the machine's: a virtual console, as the controlling terminal, the system's
//! console, a serial line. One test, for there is one of each.

use anyhow::Result;
use crust_tests::{proc_snapshot::Snapshot, sandbox::Sandbox, sandbox_test};
use nix::{
    fcntl::{OFlag, open},
    sys::{stat::Mode, termios::tcgetattr},
};

/// A virtual console that nobody looks at.
const SCREEN: &str = "/dev/tty43";
const OTHERS: [&str; 2] = ["/dev/ttyS0", "/dev/console"];

/// A device without a driver is there, too.
fn is_terminal(path: &str) -> bool {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let found = open(path, flags, Mode::empty()).is_ok_and(|fd| tcgetattr(&fd).is_ok());
    if !found {
        println!("SKIPPED: this machine has no {path}");
    }
    found
}

fn goes_on(sandbox: &Sandbox) -> Result<()> {
    if !is_terminal(SCREEN) {
        return Ok(());
    }
    let mut terminals = vec![SCREEN];
    terminals.extend(OTHERS.into_iter().filter(|path| is_terminal(path)));
    for keep in [true, false] {
        let guest = sandbox.start_with("consoles", &terminals)?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images(if keep { "running" } else { "killed" })?;
        if keep {
            sandbox
                .dump(guest.pid, &images, &["--leave-running"])?
                .succeeded()?;
        } else {
            sandbox.dump_and_kill(&guest, &images, &[])?;
            sandbox.restore(&images, &[])?.succeeded()?;
        }
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        guest.expect_ok(sandbox)?;
    }
    Ok(())
}

sandbox_test! {
    fn left_running_and_restored(sandbox) { goes_on(sandbox) }
}
