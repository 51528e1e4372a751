//! What a thread has asked the kernel for beside its nice value (fields of our own): I/O priority,
//! memory policy, what it does at a broken page of memory, mitigations of speculation, whether it may
//! read the processor's clock, the slice of its time or its deadlines.
//!
//! While the thread has crust-restore's privileges, but for two: where the clock may not be read, and
//! where a deadline thread has used up its time, nothing of ours shall run any more.

use super::Thread;
use super::sched::{SCHED_RESET_ON_FORK, is_deadline};
use crate::plan::calls::prctl;
use crate::plan::step::{Arg, Call, Phase};
use crate::plan::{Planner, Refusal};
use crust_cli::code::Code;
use crust_proto::criu::CrustTreatmentEntry;
use nix::libc;

/// Numbers of linux/prctl.h.
const PR_SET_TSC: i32 = 26;
const PR_MCE_KILL: i32 = 33;
const PR_MCE_KILL_SET: i64 = 1;
const PR_SET_SPECULATION_CTRL: i32 = 53;
const TSC_SIGSEGV: u32 = 2;
/// PR_MCE_KILL_LATE, EARLY and DEFAULT.
const MCE_KILL: u32 = 2;
/// PR_SPEC_STORE_BYPASS and PR_SPEC_INDIRECT_BRANCH, and the values a thread can have set.
const SPECULATION: [&str; 2] = ["PR_SPEC_STORE_BYPASS", "PR_SPEC_INDIRECT_BRANCH"];
const SPEC_VALUES: [u32; 2] = [4, 8];
const IOPRIO_WHO_PROCESS: i64 = 1;
/// Class and level, without the hints that no kernel keeps here.
const IOPRIO_CLASSES: u32 = 3;
const IOPRIO_LEVELS: u32 = 8;
/// Modes of set_mempolicy(2) and the flags with them.
const MEMPOLICY_MODES: u32 = 6;
const MEMPOLICY_FLAGS: u32 = 0xe000;
/// Of a mask of nodes: more than the kernel has.
const MOST_NODE_BYTES: usize = 128;
/// struct sched_attr, version 0.
const SCHED_ATTR: u32 = 48;
const FLAG_RESET_ON_FORK: u64 = 1;
/// SCHED_FLAG_RECLAIM and SCHED_FLAG_DL_OVERRUN.
const DEADLINE_FLAGS: u32 = 6;
/// Of a slice in nanoseconds, to the kernel, which takes others for these.
const SLICES: std::ops::RangeInclusive<u64> = 100_000..=100_000_000;

/// Plans all but what must be last.
pub fn plan(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    let Some(asked) = &thread.own.crust_treatment else {
        return;
    };
    let host = planner.host;
    let missing = missing_nodes(asked, |node| host.nodes.contains(&node));
    if let Some(node) = missing {
        let why = format!("memory_nodes has node {node}, which this host has not");
        let refusal = Refusal::new(thread.origin("memory policy"), why);
        planner.refuse(refusal.kind(Code::HostKernel));
    }
    let slice = asked.sched_runtime.filter(|_| !is_deadline(thread));
    let calls = [
        ("I/O priority", asked.ioprio.map(io_priority)),
        (
            "memory policy",
            asked.memory_policy.map(|mode| memory_policy(mode, asked)),
        ),
        ("broken memory", asked.mce_kill.map(broken_memory)),
        ("slice of time", slice.map(|time| fair_slice(thread, time))),
    ];
    let kinds = [asked.store_bypass, asked.indirect_branch];
    let chosen = (0..).zip(kinds).zip(host.own_mitigations);
    // Where the host lets no thread choose it has chosen for all.
    let mitigations = chosen.filter_map(|((which, value), may)| {
        let value = value.filter(|_| may)?;
        Some(("mitigation of speculation", Some(mitigation(which, value))))
    });
    for (what, call) in calls.into_iter().chain(mitigations) {
        let origin = thread.origin(what);
        match call {
            None => {}
            Some(Ok(call)) => drop(planner.call(Phase::Creds, thread.actor(), call, origin)),
            Some(Err(why)) => planner.refuse(Refusal::new(origin, why)),
        }
    }
}

/// Plans the rest.
pub fn plan_last(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    let Some(asked) = &thread.own.crust_treatment else {
        return;
    };
    match asked.tsc {
        None => {}
        Some(TSC_SIGSEGV) => {
            let args = [Arg::named("PR_TSC_SIGSEGV", TSC_SIGSEGV)];
            let call = prctl("PR_SET_TSC", PR_SET_TSC, args);
            planner.call(
                Phase::Commit,
                thread.actor(),
                call,
                thread.origin("clock of the processor"),
            );
        }
        Some(other) => {
            let why = format!("tsc {other} is no state of it");
            planner.refuse(Refusal::new(thread.origin("clock of the processor"), why));
        }
    }
    if is_deadline(thread) {
        let origin = thread.origin("deadlines");
        match deadlines(thread, asked) {
            Ok(call) => drop(planner.call(Phase::Commit, thread.actor(), call, origin)),
            Err(why) => planner.refuse(Refusal::new(origin, why)),
        }
    }
}

fn io_priority(value: u32) -> Result<Call, String> {
    let (class, level) = (value >> 13, value & 0x1fff);
    if class > IOPRIO_CLASSES || level >= IOPRIO_LEVELS {
        return Err(format!("ioprio {value:#x} is no class and level"));
    }
    let args = vec![
        Arg::named("IOPRIO_WHO_PROCESS", IOPRIO_WHO_PROCESS),
        Arg::Int(0),
        Arg::Hex(value.into()),
    ];
    Ok(Call::new("ioprio_set", libc::SYS_ioprio_set, args))
}

/// The first node that somebody does not have.
fn missing_nodes(asked: &CrustTreatmentEntry, has: impl Fn(u32) -> bool) -> Option<u32> {
    let bytes = (0..).zip(asked.memory_nodes.iter().flatten());
    let bits = bytes.flat_map(|(at, byte): (u32, &u8)| {
        let set = (0..8).filter(move |bit| byte >> bit & 1 == 1);
        set.map(move |bit| at.saturating_mul(8).saturating_add(bit))
    });
    bits.into_iter().find(|node| !has(*node))
}

fn memory_policy(mode: u32, asked: &CrustTreatmentEntry) -> Result<Call, String> {
    if mode & !MEMPOLICY_FLAGS > MEMPOLICY_MODES {
        return Err(format!("memory_policy {mode:#x} is not known"));
    }
    let mut nodes = asked.memory_nodes.clone().unwrap_or_default();
    if nodes.len() > MOST_NODE_BYTES {
        return Err(format!("memory_nodes has {} bytes", nodes.len()));
    }
    // The kernel reads whole words, and takes one bit less than it is told.
    nodes.resize(nodes.len().next_multiple_of(8), 0);
    let count = nodes.len() as i64 * 8 + 1;
    nodes.extend([0; 8]);
    let (mask, count) = match &asked.memory_nodes {
        Some(_) => (Arg::bytes(nodes), count),
        None => (Arg::null(), 0),
    };
    let args = vec![Arg::Hex(mode.into()), mask, Arg::Int(count)];
    Ok(Call::new("set_mempolicy", libc::SYS_set_mempolicy, args))
}

fn broken_memory(value: u32) -> Result<Call, String> {
    if value > MCE_KILL {
        return Err(format!("mce_kill {value} is no policy"));
    }
    let args = [
        Arg::named("PR_MCE_KILL_SET", PR_MCE_KILL_SET),
        Arg::Int(value.into()),
    ];
    Ok(prctl("PR_MCE_KILL", PR_MCE_KILL, args))
}

fn mitigation(which: usize, value: u32) -> Result<Call, String> {
    let name = SPECULATION.get(which).copied().unwrap_or("?");
    if !SPEC_VALUES.contains(&value) {
        return Err(format!("{value} is no choice for {name}"));
    }
    let args = [Arg::named(name, which as i64), Arg::Int(value.into())];
    Ok(prctl(
        "PR_SET_SPECULATION_CTRL",
        PR_SET_SPECULATION_CTRL,
        args,
    ))
}

/// The slice of a thread of the fair class, with the policy and the nice value that it has.
fn fair_slice(thread: &Thread<'_>, time: u64) -> Result<Call, String> {
    if !SLICES.contains(&time) {
        return Err(format!("sched_runtime {time} is no slice of time"));
    }
    Ok(set_attr(thread, 0, [time, 0, 0]))
}

fn deadlines(thread: &Thread<'_>, asked: &CrustTreatmentEntry) -> Result<Call, String> {
    let time = |time: Option<u64>| time.unwrap_or(0);
    let times = [
        time(asked.sched_runtime),
        time(asked.sched_deadline),
        time(asked.sched_period),
    ];
    let flags = asked.sched_flags.unwrap_or(0);
    let [runtime, deadline, period] = times;
    let is_order = runtime > 0 && runtime <= deadline && (period == 0 || deadline <= period);
    if !is_order || period > i64::MAX as u64 || flags & !DEADLINE_FLAGS != 0 {
        return Err(format!("{times:?} with flags {flags:#x} are no deadlines"));
    }
    Ok(set_attr(thread, flags, times))
}

/// sched_setattr(2) with the policy that the images have for the thread.
fn set_attr(thread: &Thread<'_>, flags: u32, times: [u64; 3]) -> Call {
    let policy = thread.own.sched_policy.unwrap_or(0);
    let reset = match policy & SCHED_RESET_ON_FORK {
        0 => 0,
        _ => FLAG_RESET_ON_FORK,
    };
    let mut attr = Vec::new();
    attr.extend(SCHED_ATTR.to_le_bytes());
    attr.extend((policy & !SCHED_RESET_ON_FORK).to_le_bytes());
    attr.extend((u64::from(flags) | reset).to_le_bytes());
    attr.extend(thread.own.sched_nice.unwrap_or(0).to_le_bytes());
    attr.extend(0_u32.to_le_bytes());
    attr.extend(times.iter().flat_map(|time| time.to_le_bytes()));
    let args = vec![Arg::Int(0), Arg::bytes(attr), Arg::Int(0)];
    Call::new("sched_setattr", libc::SYS_sched_setattr, args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::step::Piece;

    #[test]
    fn what_is_no_request_is_refused() {
        assert!(io_priority(0x4006).is_ok() && io_priority(0x8000).is_err());
        assert!(broken_memory(1).is_ok() && broken_memory(3).is_err());
        assert!(mitigation(0, 8).is_ok() && mitigation(1, 2).is_err());
    }

    #[test]
    fn nodes_are_whole_words() {
        let asked = CrustTreatmentEntry {
            memory_nodes: Some(vec![1, 2]),
            ..Default::default()
        };
        assert_eq!(missing_nodes(&asked, |node| node == 0), Some(9));
        assert_eq!(missing_nodes(&asked, |_| true), None);
        let call = memory_policy(2, &asked).expect("a policy");
        assert_eq!(call.args[2], Arg::Int(65));
        let Arg::Data(pieces) = &call.args[1] else {
            panic!("a mask")
        };
        assert_eq!(
            pieces.as_slice(),
            [Piece::Bytes([vec![1, 2], vec![0; 14]].concat())]
        );
        assert!(memory_policy(9, &asked).is_err());
    }
}
