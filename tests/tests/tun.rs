//! Tuns and taps whose interfaces die with the tree, or do not: the round trips, and what stands in
//! the way of an interface. One in a network namespace of the tree's own is in gaps.rs.

use anyhow::{Result, ensure};
use crust_tests::{
    round_trip::{self, Case},
    sandbox::Sandbox,
    sandbox_test,
};
use std::{path::Path, process::Command};

/// True, with a note, where there are no tuns.
fn missing() -> bool {
    let is_missing = !Path::new("/dev/net/tun").exists();
    if is_missing {
        println!("SKIPPED: there is no /dev/net/tun");
    }
    is_missing
}

fn case() -> Case {
    Case {
        guest: "tun_host",
        ..Case::default()
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status()?;
    ensure!(status.success(), "ip {arguments:?}: {status}");
    Ok(())
}

fn round_trip(sandbox: &Sandbox, way: fn(&Sandbox, &Case) -> Result<()>) -> Result<()> {
    if missing() {
        return Ok(());
    }
    way(sandbox, &case())
}

sandbox_test! {
    fn restored(sandbox) { round_trip(sandbox, round_trip::restored) }
    fn left_running(sandbox) { round_trip(sandbox, round_trip::left_running) }
    fn restored_twice(sandbox) { round_trip(sandbox, round_trip::restored_twice) }

    /// As after a reboot, or on another host: the one that persists is made again, and persists.
    fn a_persistent_interface_that_is_gone(sandbox) {
        if missing() { return Ok(()) }
        let guest = sandbox.start("tun_host")?;
        let images = sandbox.images("gone")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        ip(&["link", "delete", "wlkept"])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)?;
        sandbox.assert_only(&[])
    }

    /// Somebody else's interface is not taken, and a restore that fails leaves none behind.
    fn a_name_that_is_taken(sandbox) {
        if missing() { return Ok(()) }
        let guest = sandbox.start("tun_host")?;
        let images = sandbox.images("taken")?;
        sandbox.dump_and_kill(&guest, &images, &[])?;
        ip(&["tuntap", "add", "wlmany", "mode", "tap"])?;
        let outcome = sandbox.restore(&images, &[])?.exited_with(1)?;
        outcome.says(&["tun interface wlmany", "there already"])?;
        sandbox.assert_only(&[])?;
        let left = Command::new("ip").args(["-o", "link"]).output()?;
        let left = String::from_utf8(left.stdout)?;
        ensure!(!left.contains("wlplain") && left.contains("wlkept"), "{left}");
        ip(&["link", "delete", "wlmany"])?;
        sandbox.restore(&images, &[])?.succeeded()?;
        guest.expect_ok(sandbox)
    }
}
