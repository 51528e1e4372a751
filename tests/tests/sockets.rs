//! Sockets in a state that is not carried: each is told by what stands in the way, all together, and
//! nothing happens to them. What is carried is in roundtrip_files.rs and tcp.rs.

use anyhow::ensure;
use crust_tests::{proc_snapshot::Snapshot, sandbox_test};

sandbox_test! {
    fn what_cannot_be_carried_is_refused_by_name(sandbox) {
        let guest = sandbox.start("sock_refused")?;
        let before = Snapshot::of_tree(guest.pid)?;
        let images = sandbox.images("refused")?;
        let outcome = sandbox.dump(guest.pid, &images, &["--tcp-established"])?.exited_with(1)?;
        let reasons = [
            ("corked", "is corked with"),
            ("urgent", "urgent data waits in it"),
            ("netlink", "the kernel has more to answer"),
            ("tls", "tls"),
            ("mptcp", "protocol 262"),
        ];
        for line in guest.lines()? {
            let Some((name, fd)) = line.split_once(' ') else { continue };
            let reason = reasons.iter().find(|(known, _)| *known == name);
            if let Some((_, reason)) = reason {
                outcome.says(&[&format!("fd {fd} "), reason])?;
            }
        }
        ensure!(!images.join("inventory.img").exists(), "images of what was refused");
        before.expect_same(&Snapshot::of_tree(guest.pid)?, &[])?;
        guest.expect_ok(sandbox)
    }
}
