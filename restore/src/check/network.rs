//! Power over the network: in a user namespace one may have CAP_NET_ADMIN and still not have it
//! here. The network namespace may belong to another user namespace (network_namespaces(7)), and
//! some options take the capability of the first one (sk_setsockopt of net/core/sock.c). The kernel
//! is asked with sockets that go again at once.

use super::{Subject, needs};
use crate::plan::step::Step;
use crust_cli::capabilities::{Cap, has, own_effective};
use crust_cli::code::Code;
use crust_cli::finding::Finding;
use nix::errno::Errno;
use nix::sys::socket::sockopt::{SndBufForce, TcpRepair};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket};
use std::os::unix::net::UnixDatagram;

/// That it is missing, with the first step that needs it.
pub fn check(subject: &Subject<'_>) -> Vec<Finding> {
    // Without the capability at all it is told as any other.
    if subject.options.unprivileged
        && !own_effective().is_ok_and(|effective| has(effective, Cap::NET_ADMIN))
    {
        return Vec::new();
    }
    let needed = |global| {
        let mut steps = subject.steps.iter();
        steps.find(|step| needs::of_network(step) == Some(global))
    };
    let lacks = |step: &Step, what: &str, remedy: &str| {
        let what = format!("{what}, of {} (EPERM)", step.origin);
        Finding::error(Code::Capability, Cap::NET_ADMIN.name(), what).remedy(remedy)
    };
    let mut findings = Vec::new();
    if let Some(step) = needed(true)
        && is_refused(forced())
    {
        let what = "is missing in the first user namespace, where it is needed for large buffers";
        let remedy = "run as root, or raise net.core.wmem_max and rmem_max";
        findings.push(lacks(step, what, remedy));
    }
    if let Some(step) = needed(false)
        && is_refused(repaired())
    {
        let what = "does not reach this network namespace, where it is needed for a socket";
        let remedy = "run as root, or restore in a network namespace of its own: unshare --net";
        findings.push(lacks(step, what, remedy));
    }
    findings
}

/// Whatever else is wrong, the restore itself will tell.
fn is_refused(asked: nix::Result<()>) -> bool {
    asked == Err(Errno::EPERM)
}

fn forced() -> nix::Result<()> {
    let socket = UnixDatagram::unbound().map_err(|_| Errno::EMFILE)?;
    setsockopt(&socket, SndBufForce, &4096)
}

fn repaired() -> nix::Result<()> {
    let (family, kind) = (AddressFamily::Inet, SockType::Stream);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, TcpRepair, &1)
}
