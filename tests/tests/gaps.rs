//! Known gaps: what crust-dump does not carry yet is refused, naming task and object, and the
//! guest runs on unharmed. When one of these is carried, its test fails and the guest moves to
//! roundtrip.rs (and its row of SUPPORT.md to `yes`).

use anyhow::Result;
use crust_tests::{proc_snapshot::Snapshot, sandbox::Sandbox, sandbox_test};
use std::path::Path;

fn refused(sandbox: &Sandbox, name: &str, words: &[&str]) -> Result<()> {
    let guest = sandbox.start(name)?;
    let before = Snapshot::of_tree(guest.pid)?;
    let images = sandbox.images("gap")?;
    let outcome = sandbox.dump(guest.pid, &images, &[])?.exited_with(1)?;
    outcome.says(words)?;
    outcome.says(&[&guest.pid.to_string()])?;
    before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
    guest.expect_ok(sandbox)
}

/// An option that is known but not built is refused by its name: a wrong command line.
fn option_refused(sandbox: &Sandbox, name: &str, option: &str) -> Result<()> {
    let guest = sandbox.start(name)?;
    let images = sandbox.images("gap")?;
    sandbox
        .dump(guest.pid, &images, &[option])?
        .exited_with(2)?
        .says(&[option])?;
    guest.expect_ok(sandbox)
}

sandbox_test! {
    fn established_tcp_without_the_option(sandbox) {
        refused(sandbox, "tcp_est", &["tcp", "--tcp-established", "127.0.0.1:"])
    }
    fn option_that_is_not_built(sandbox) { option_refused(sandbox, "loop", "--tls") }
    /// The kernel is at a frame of its ring to which no new ring can be set.
    fn used_rings(sandbox) { refused(sandbox, "rings_used", &["the rings of socket:[", "have been used"]) }
    fn no_vdso(sandbox) { refused(sandbox, "no_vdso", &["its vdso: is not there any more"]) }
    fn keyrings(sandbox) {
        let guest = sandbox.start("keyring")?;
        if guest.lines()?.iter().any(|line| line == "no keys") {
            println!("SKIPPED keyrings: this kernel keeps no keys");
            return Ok(());
        }
        let images = sandbox.images("gap")?;
        let outcome = sandbox.dump(guest.pid, &images, &[])?.exited_with(1)?;
        outcome.says(&[&guest.pid.to_string(), "thread keyring", "process keyring"])?;
        guest.expect_ok(sandbox)
    }
    fn tun(sandbox) {
        if !Path::new("/dev/net/tun").exists() {
            println!("SKIPPED tun: there is no /dev/net/tun");
            return Ok(());
        }
        refused(sandbox, "tun", &["tun"])
    }
}
