//! Seccomp: strict mode and chains of filters, by thread.
//!
//! The index of an image leads to the oldest filter of a chain, `prev` to the next newer one
//! (FORMAT 5); each thread installs its own copy. Filters are installed while CAP_SYS_ADMIN or
//! no_new_privs allows it. The tracer suspends seccomp until the task is let go, or the calls that
//! are left would meet it.

use super::{Live, Thread};
use crate::plan::calls::prctl;
use crate::plan::step::{Arg, Call, Phase, Piece};
use crate::plan::{Planner, Refusal};
use crust_proto::criu::SeccompMode;
use nix::libc;

const SECCOMP_SET_MODE_FILTER: i64 = 1;
const FILTER_FLAG_LOG: u32 = 1 << 1;
const FILTER_FLAG_SPEC_ALLOW: u32 = 1 << 2;
/// struct sock_filter.
const INSTRUCTION: usize = 8;
/// BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;

/// Installs the filters of a thread, the oldest first.
pub fn plan_filters(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    if thread.own.seccomp_mode != Some(SeccompMode::Filter as i32) {
        return;
    }
    let origin = thread.origin("seccomp filters");
    let filters = match chain(planner, thread) {
        Ok(filters) => filters,
        Err(why) => return planner.refuse(Refusal::new(origin, why)),
    };
    for (program, flags) in filters {
        let mut head = ((program.len() / INSTRUCTION) as u16)
            .to_le_bytes()
            .to_vec();
        head.resize(8, 0);
        let program = Arg::bytes(program);
        let fprog = Arg::Data(vec![Piece::Bytes(head), Piece::Ptr(Box::new(program))]);
        let args = vec![
            Arg::named("SECCOMP_SET_MODE_FILTER", SECCOMP_SET_MODE_FILTER),
            Arg::Hex(flags.into()),
            fprog,
        ];
        let call = Call::new("seccomp", libc::SYS_seccomp, args);
        planner.call(Phase::Creds, thread.actor(), call, origin.clone());
    }
}

/// Programs and flags, from the oldest to the newest.
fn chain(planner: &Planner<'_>, thread: &Thread<'_>) -> Result<Vec<(Vec<u8>, u32)>, String> {
    let stored = &planner.checkpoint.seccomp;
    let mut next = Some(
        thread
            .own
            .seccomp_filter
            .ok_or("seccomp_filter is missing")?,
    );
    let mut filters = Vec::new();
    while let Some(index) = next {
        let filter = usize::try_from(index)
            .ok()
            .and_then(|index| stored.get(index));
        let filter =
            filter.ok_or_else(|| format!("seccomp_filter: seccomp.img has no filter {index}"))?;
        if filters.len() >= stored.len() {
            return Err(format!(
                "seccomp.img: the chain of filter {index} is a ring"
            ));
        }
        let len = filter.filter.len();
        if len == 0 || len % INSTRUCTION != 0 || len / INSTRUCTION > MAX_INSTRUCTIONS {
            return Err(format!(
                "seccomp.img: filter {index} of {len} bytes is no program"
            ));
        }
        let flags = filter.flags.unwrap_or(0) & (FILTER_FLAG_LOG | FILTER_FLAG_SPEC_ALLOW);
        filters.push((filter.filter.clone(), flags));
        next = filter.prev;
    }
    Ok(filters)
}

/// Strict mode, the last call of a thread: no other is allowed after it.
pub fn plan_strict(planner: &mut Planner<'_>, live: &Live<'_>) {
    for thread in &live.threads {
        if thread.own.seccomp_mode == Some(SeccompMode::Strict as i32) {
            let args = [Arg::named(
                "SECCOMP_MODE_STRICT",
                libc::SECCOMP_MODE_STRICT as i64,
            )];
            let call = prctl("PR_SET_SECCOMP", libc::PR_SET_SECCOMP, args);
            planner.call(
                Phase::Commit,
                thread.actor(),
                call,
                thread.origin("strict seccomp"),
            );
        }
    }
}
