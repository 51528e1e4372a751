//! A namespace that descriptors hold and in which no task lives.

use anyhow::{Context, Result};
use crust_process::namespace;
use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use std::os::fd::OwnedFd;

/// Makes a uts namespace with these names and opens it with these flags.
pub fn make_uts(nodename: &[u8], domainname: &[u8], flags: i32) -> Result<OwnedFd> {
    let make = || {
        namespace::set_nodename(nodename).context("sethostname")?;
        namespace::set_domainname(domainname).context("setdomainname")?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_CLOEXEC;
        open("/proc/thread-self/ns/uts", flags, Mode::empty()).context("open the namespace")
    };
    namespace::inside_new(CloneFlags::CLONE_NEWUTS, make).context("unshare the uts namespace")?
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc;
    use nix::sys::utsname::uname;
    use std::os::fd::AsFd;

    #[test]
    fn a_namespace_with_names_of_its_own() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: only root may make a uts namespace");
            return;
        }
        let before = uname().expect("uname").nodename().to_owned();
        let made = make_uts(b"crust-node", b"crust.domain", libc::O_RDONLY).expect("made");
        let inside = namespace::inside(made.as_fd(), CloneFlags::CLONE_NEWUTS, uname);
        let inside = inside.expect("entered").expect("uname");
        assert_eq!(inside.nodename(), "crust-node");
        assert_eq!(inside.domainname(), "crust.domain");
        assert_eq!(uname().expect("uname").nodename(), before);
    }
}
