//! Objects of the bpf machine that are not carried: each is told with its kind and name, all
//! together, and nothing happens to them. What is carried is in roundtrip_files.rs.

use anyhow::{Context, Result, ensure};
use crust_tests::{guest::Guest, proc_snapshot::Snapshot, sandbox_test};

/// The number of a descriptor that the guest told.
fn number(guest: &Guest, name: &str) -> Result<String> {
    let lines = guest.lines()?;
    let line = lines
        .iter()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(" "));
    Ok(line.context("a line of the guest")?.trim().to_owned())
}

sandbox_test! {
    fn what_is_not_data_is_refused_by_name(sandbox) {
        let guest = sandbox.start("bpf_refused")?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images("refused")?;
        let outcome = sandbox.dump(guest.pid, &images, &[])?.exited_with(1)?;
        let refused = [
            ("used", "kind array (used); bpf program"),
            ("queue", "kind queue (queue); what waits in it"),
            ("stack", "kind stack (stack); what waits in it"),
            ("programs", "kind prog_array (programs); it holds objects of the kernel"),
            ("maps", "kind hash_of_maps (maps); it holds objects of the kernel"),
            ("sockets", "kind sockmap (sockets); it holds objects of the kernel"),
            ("program", "is a bpf program (prog_type 1"),
        ];
        for (name, what) in refused {
            let fd = number(&guest, name)?;
            outcome.says(&[&format!("fd {fd} "), what])?;
        }
        outcome.says(&["(counts) uses it"])?;
        ensure!(!images.join("inventory.img").exists(), "images of what was refused");
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        guest.expect_ok(sandbox)
    }
}
