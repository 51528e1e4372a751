//! The small attributes: of a thread, where the kernel clears its id at its end, its list of
//! robust futexes, its name, its thread-local segments, the signal it gets when its parent dies;
//! of a task, personality, subreaper, membarrier registrations, the score for the OOM killer,
//! dumpable.

use super::{Live, Thread, signals};
use crate::plan::calls::{close, prctl, signal};
use crate::plan::step::{Actor, Arg, Call, Op, Phase, Ret};
use crate::plan::{Planner, Refusal};
use crust_proto::criu::UserDescT;
use nix::libc;

/// TASK_COMM_LEN with its zero.
const COMM: usize = 16;
/// MEMBARRIER_CMD_REGISTER_* of linux/membarrier.h.
const MEMBARRIER: [(u32, &str); 4] = [
    (1 << 2, "MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED"),
    (1 << 4, "MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED"),
    (
        1 << 6,
        "MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE",
    ),
    (1 << 8, "MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ"),
];
/// An id that is not ours.
const NOBODY: u32 = 65534;
/// struct robust_list_head.
const ROBUST_LIST_HEAD: u32 = 24;

/// What a thread sets for itself as soon as it and its memory exist.
pub fn plan_thread(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    let (phase, actor) = (Phase::Threads, thread.actor());
    let clear_tid = thread
        .core
        .thread_info
        .as_ref()
        .map_or(0, |info| info.clear_tid_addr);
    if clear_tid != 0 {
        let call = Call::new(
            "set_tid_address",
            libc::SYS_set_tid_address,
            vec![Arg::Hex(clear_tid)],
        );
        planner.call(
            phase,
            actor,
            call,
            thread.origin("address to clear at the end"),
        );
    }
    plan_robust_list(planner, thread);
    signals::plan_altstack(planner, thread);
    plan_segments(planner, thread);
    plan_comm(planner, thread);
    plan_timer_slack(planner, thread);
}

/// A field of our own; without it the thread has what it inherits, the kernel's default.
fn plan_timer_slack(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    let Some(slack) = thread.own.crust_timer_slack_ns else {
        return;
    };
    let origin = thread.origin("timer slack");
    // To the call 0 means the default, and only a real-time thread has no slack at all.
    if slack == 0 {
        return;
    }
    match i64::try_from(slack) {
        Ok(slack) => {
            let args = [Arg::Int(slack)];
            let call = prctl("PR_SET_TIMERSLACK", libc::PR_SET_TIMERSLACK, args);
            planner.call(Phase::Threads, thread.actor(), call, origin);
        }
        Err(_) => {
            let why = format!("crust_timer_slack_ns {slack} is no time");
            planner.refuse(Refusal::new(origin, why));
        }
    }
}

fn plan_robust_list(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    let (head, len) = (thread.own.futex_rla, thread.own.futex_rla_len);
    if head == 0 {
        return;
    }
    let origin = thread.origin("robust futex list");
    if len != ROBUST_LIST_HEAD {
        let why = format!("futex_rla_len {len} is not the kernel's {ROBUST_LIST_HEAD}");
        return planner.refuse(Refusal::new(origin, why));
    }
    let args = vec![Arg::Hex(head), Arg::Int(len.into())];
    let call = Call::new("set_robust_list", libc::SYS_set_robust_list, args);
    planner.call(Phase::Threads, thread.actor(), call, origin);
}

/// Each thread's own name; the leader's is the task's where an old image has no other.
fn plan_comm(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    let of_task = thread.core.tc.as_ref().map(|tc| &tc.comm);
    let Some(comm) = thread.own.comm.as_ref().or(of_task) else {
        return;
    };
    let origin = thread.origin("name");
    if comm.len() >= COMM || comm.contains(&0) {
        let why = format!(
            "comm {:?} is longer than {} bytes or has a zero in it",
            String::from_utf8_lossy(comm),
            COMM - 1
        );
        return planner.refuse(Refusal::new(origin, why));
    }
    let call = prctl("PR_SET_NAME", libc::PR_SET_NAME, [Arg::Str(comm.clone())]);
    planner.call(Phase::Threads, thread.actor(), call, origin);
}

/// Thread-local segments of 32-bit code (set_thread_area); a 64-bit task may have them too.
fn plan_segments(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    let segments = thread
        .core
        .thread_info
        .as_ref()
        .map_or(&[][..], |info| &info.tls);
    for segment in segments.iter().filter(|segment| !is_empty(segment)) {
        let origin = thread.origin("thread-local segment");
        if !(12..=14).contains(&segment.entry_number) {
            let why = format!(
                "tls.entry_number {} is none of 12 to 14",
                segment.entry_number
            );
            planner.refuse(Refusal::new(origin, why));
            continue;
        }
        let call = Call::new(
            "set_thread_area",
            libc::SYS_set_thread_area,
            vec![Arg::bytes(user_desc(segment))],
        );
        planner.call(Phase::Threads, thread.actor(), call, origin);
    }
}

/// What LDT_empty() of asm/ldt.h calls so.
fn is_empty(segment: &UserDescT) -> bool {
    (segment.base_addr, segment.limit) == (0, 0)
        && segment.seg_not_present
        && segment.read_exec_only
        || (segment.base_addr, segment.limit) == (0, 0) && !segment.usable && !segment.seg_32bit
}

/// struct user_desc: number, base, limit, then bits.
fn user_desc(segment: &UserDescT) -> Vec<u8> {
    let bits = [
        segment.seg_32bit,
        segment.contents_l,
        segment.contents_h,
        segment.read_exec_only,
        segment.limit_in_pages,
        segment.seg_not_present,
        segment.usable,
    ];
    let bits = bits
        .iter()
        .enumerate()
        .fold(0, |all, (at, &bit)| all | u32::from(bit) << at);
    let words = [segment.entry_number, segment.base_addr, segment.limit, bits];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// What the leader sets for its task.
pub fn plan_task(planner: &mut Planner<'_>, live: &Live<'_>) {
    let Some(leader) = live.leader() else { return };
    let actor = leader.actor();
    plan_personality(planner, live, leader);
    plan_loginuid(planner, live, leader);
    if live.tc.child_subreaper == Some(true) {
        let args = [Arg::Int(1)];
        let call = prctl("PR_SET_CHILD_SUBREAPER", libc::PR_SET_CHILD_SUBREAPER, args);
        planner.call(
            Phase::Signals,
            actor,
            call,
            leader.origin("being a subreaper"),
        );
    }
    let mask = live.tc.membarrier_registration_mask.unwrap_or(0);
    let known = MEMBARRIER.iter().fold(0, |bits, (bit, _)| bits | bit);
    if mask & !known != 0 {
        let why = format!("tc.membarrier_registration_mask {mask:#x} has unknown bits");
        planner.refuse(Refusal::new(leader.origin("membarrier"), why));
    }
    for (bit, name) in MEMBARRIER.into_iter().filter(|(bit, _)| mask & bit != 0) {
        let args = vec![Arg::named(name, bit), Arg::Int(0), Arg::Int(0)];
        let call = Call::new("membarrier", libc::SYS_membarrier, args);
        planner.call(
            Phase::Signals,
            actor,
            call,
            leader.origin("membarrier registration"),
        );
    }
    let score = live.tc.oom_score_adj.unwrap_or(planner.host.oom_score_adj);
    if !(-1000..=1000).contains(&score) {
        let why = format!("tc.oom_score_adj {score} is no score");
        planner.refuse(Refusal::new(leader.origin("OOM score"), why));
    } else if score != planner.host.oom_score_adj {
        let op = Op::WriteProc {
            pid: live.task.pid,
            tid: None,
            file: "oom_score_adj",
            text: score.to_string(),
        };
        planner.push(Phase::Creds, Actor::Broker, op, leader.origin("OOM score"));
    }
}

/// The login id can only be set by the task itself, through its own /proc file. Descriptor 0 is
/// free as long as memory is being mapped.
fn plan_loginuid(planner: &mut Planner<'_>, live: &Live<'_>, leader: &Thread<'_>) {
    const CAP_AUDIT_CONTROL: u32 = 30;
    let (Some(wanted), Some(has)) = (live.tc.loginuid, planner.host.loginuid) else {
        return;
    };
    if wanted == has {
        return;
    }
    let origin = leader.origin("login id");
    if has != u32::MAX && !planner.host.has_cap(CAP_AUDIT_CONTROL) {
        let why = format!(
            "tc.loginuid {wanted} is not that of crust-restore, {has}, which has no CAP_AUDIT_CONTROL"
        );
        planner.refuse(Refusal::new(origin, why).hint("run it outside of a login session"));
        return;
    }
    let text = wanted.to_string().into_bytes();
    let len = text.len() as i64;
    let open = vec![
        Arg::named("AT_FDCWD", libc::AT_FDCWD),
        Arg::Str(b"/proc/self/loginuid".to_vec()),
        Arg::named("O_WRONLY", libc::O_WRONLY),
    ];
    let open = Call::new("openat", libc::SYS_openat, open).answers(Ret::Exactly(0));
    let write = vec![Arg::Int(0), Arg::bytes(text), Arg::Int(len)];
    let write = Call::new("write", libc::SYS_write, write).answers(Ret::Exactly(len));
    for call in [open, write, close(0)] {
        planner.call(Phase::Memory, leader.actor(), call, origin.clone());
    }
}

/// The kernel prints the personality in hex and the format's writer reads the digits as decimal:
/// 1040000 is 0x1040000. Digits a to f end the writer's number: what has some is in a field of ours.
fn plan_personality(planner: &mut Planner<'_>, live: &Live<'_>, leader: &Thread<'_>) {
    let digits = live.tc.personality.to_string();
    let origin = leader.origin("personality");
    let stored = live.tc.crust_personality;
    let Some(personality) = stored.or_else(|| u32::from_str_radix(&digits, 16).ok()) else {
        let why = format!("tc.personality {digits} is no personality");
        return planner.refuse(Refusal::new(origin, why));
    };
    if personality != planner.host.personality {
        let args = vec![Arg::Hex(personality.into())];
        let call = Call::new("personality", libc::SYS_personality, args);
        planner.call(Phase::Signals, leader.actor(), call, origin);
    }
}

/// What a change of ids takes back: dumpable of the address space, and each thread's signal at its
/// parent's death.
pub fn plan_last(planner: &mut Planner<'_>, live: &Live<'_>) {
    let Some(leader) = live.leader() else { return };
    let dumpable = planner
        .checkpoint
        .mm(live.task.pid)
        .and_then(|mm| mm.dumpable);
    match dumpable {
        // A new task is dumpable; one that changed its ids is not (suid_dumpable).
        None => {}
        Some(value @ (0 | 1)) => {
            let call = prctl(
                "PR_SET_DUMPABLE",
                libc::PR_SET_DUMPABLE,
                [Arg::Int(value.into())],
            );
            planner.call(
                Phase::Commit,
                leader.actor(),
                call,
                leader.origin("dumpable"),
            );
        }
        // Only the kernel gives this value, to a task that changes its ids where the host wants it so.
        // Such a change is made while it may be, and any that comes behind it gives the same.
        Some(2) if planner.host.suid_dumpable == 2 => {
            let own = planner.host.creds.uids[3];
            for id in [NOBODY, own] {
                let call = Call::new("setfsuid", libc::SYS_setfsuid, vec![Arg::Int(id.into())]);
                let call = call.answers(Ret::Any);
                planner.call(Phase::Fds, leader.actor(), call, leader.origin("dumpable"));
            }
        }
        Some(2) => {
            // It is 0 to prctl.
            let call = prctl("PR_SET_DUMPABLE", libc::PR_SET_DUMPABLE, [Arg::Int(0)]);
            planner.call(
                Phase::Commit,
                leader.actor(),
                call,
                leader.origin("dumpable"),
            );
        }
        Some(other) => {
            let why = format!("mm.dumpable {other} is no value of prctl");
            planner.refuse(Refusal::new(leader.origin("dumpable"), why));
        }
    }
    for thread in &live.threads {
        let number = thread.own.pdeath_sig.unwrap_or(0);
        if number > 64 {
            let why = format!("pdeath_sig {number} is no signal");
            planner.refuse(Refusal::new(
                thread.origin("signal at the parent's death"),
                why,
            ));
        } else if number != 0 && !loses_parent(planner, thread) {
            let call = prctl(
                "PR_SET_PDEATHSIG",
                libc::PR_SET_PDEATHSIG,
                [signal(number as i32)],
            );
            planner.call(
                Phase::Commit,
                thread.actor(),
                call,
                thread.origin("signal at the parent's death"),
            );
        }
    }
}

/// The parent of a detached root is crust-restore, which ends at once: the signal would be sent
/// then, on behalf of nobody.
fn loses_parent(planner: &Planner<'_>, thread: &Thread<'_>) -> bool {
    let options = planner.options;
    let ends = options.restore_detached && !options.restore_sibling;
    ends && planner.tree.root == Some(thread.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_packed_as_the_kernel_reads_them() {
        let segment = UserDescT {
            entry_number: 12,
            base_addr: 0x1000,
            limit: 0xfffff,
            seg_32bit: true,
            read_exec_only: false,
            limit_in_pages: true,
            seg_not_present: false,
            usable: true,
            ..UserDescT::default()
        };
        assert!(!is_empty(&segment));
        let bytes = user_desc(&segment);
        assert_eq!(bytes[12..16], 0x51_u32.to_le_bytes());
    }

    #[test]
    fn the_segments_that_criu_stores_for_none_are_empty() {
        let none = UserDescT {
            entry_number: 12,
            read_exec_only: true,
            seg_not_present: true,
            ..UserDescT::default()
        };
        assert!(is_empty(&none));
    }
}
