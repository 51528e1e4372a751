//! The registration of restartable sequences, by thread. It comes after the memory: the kernel
//! writes the cpu number there at once. A task that was dumped inside a sequence had it aborted or
//! finished by the kernel when it was stopped; the pointer that an image may hold for sequences
//! that forbid this (flags deprecated since Linux 6.1) is refused.

use super::Thread;
use crate::plan::step::{Arg, Call, Phase};
use crate::plan::{Planner, Refusal};
use nix::libc;

/// Plans the registration.
pub fn plan(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    let Some(entry) = &thread.own.rseq_entry else {
        return;
    };
    let origin = thread.origin("restartable sequences");
    if entry.rseq_abi_pointer == 0 {
        return;
    }
    if let Some(pointer) = entry.rseq_cs_pointer.filter(|pointer| *pointer != 0) {
        let why = format!(
            "rseq_cs_pointer {pointer:#x}: a thread inside a sequence that must not restart"
        );
        planner.refuse(Refusal::new(origin, why));
        return;
    }
    let args = vec![
        Arg::Hex(entry.rseq_abi_pointer),
        Arg::Int(entry.rseq_abi_size.into()),
        Arg::Int(0),
        Arg::Hex(entry.signature.into()),
    ];
    let call = Call::new("rseq", libc::SYS_rseq, args);
    planner.call(Phase::Threads, thread.actor(), call, origin);
}
