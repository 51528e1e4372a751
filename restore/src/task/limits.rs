//! Resource limits. They are set late, for some would be in the way (RLIMIT_AS of the memory,
//! RLIMIT_NPROC of the threads), and only those that differ from what is inherited. A hard limit
//! can be raised by CAP_SYS_RESOURCE alone: without it that is refused before anything is forked.

use super::Live;
use crate::host::{Limit, NOFILE, RLIMITS};
use crate::plan::step::{Actor, Arg, Call, Origin, Phase};
use crate::plan::{OWN_DESCRIPTORS, Planner, Refusal};
use crust_cli::code::Code;
use nix::libc;

const CAP_SYS_RESOURCE: u32 = 24;

/// Plans the limits of a task.
pub fn plan(planner: &mut Planner<'_>, live: &Live<'_>) {
    let (Some(stored), Some(leader)) = (&live.tc.rlimits, live.leader()) else {
        return;
    };
    if stored.rlimits.len() > RLIMITS.len() {
        let why = format!("tc.rlimits has {} entries", stored.rlimits.len());
        planner.refuse(Refusal::new(leader.origin("limits"), why));
        return;
    }
    for (number, entry) in stored.rlimits.iter().enumerate() {
        let name = RLIMITS.get(number).map_or("limit", |(name, _)| *name);
        let wanted = Limit {
            cur: entry.cur,
            max: entry.max,
        };
        let has = inherited(planner, number);
        if has == Some(wanted) {
            continue;
        }
        let origin = leader.origin(name);
        let can_raise = planner.host.has_cap(CAP_SYS_RESOURCE);
        if wanted.cur > wanted.max {
            let why = format!(
                "soft limit {} above the hard one, {}",
                wanted.cur, wanted.max
            );
            planner.refuse(Refusal::new(origin, why));
        } else if has.is_some_and(|has| wanted.max > has.max) && !can_raise {
            let why = format!(
                "hard limit {} is above {}, that of crust-restore, which has no CAP_SYS_RESOURCE",
                told(wanted.max),
                told(has.map_or(0, |has| has.max))
            );
            let refusal = Refusal::new(origin, why).kind(Code::Limit);
            planner.refuse(refusal.hint("raise the limit in the shell"));
        } else {
            let call = prlimit(name, number, wanted);
            planner.call(Phase::Creds, leader.actor(), call, origin);
        }
    }
}

fn told(limit: u64) -> String {
    if limit == u64::MAX {
        "unlimited".to_owned()
    } else {
        limit.to_string()
    }
}

fn prlimit(name: &str, number: usize, limit: Limit) -> Call {
    let args = vec![
        Arg::Int(0),
        Arg::named(name, number as i64),
        Arg::words(&[limit.cur, limit.max]),
        Arg::null(),
    ];
    Call::new("prlimit64", libc::SYS_prlimit64, args)
}

/// The limit that a task has when it comes to set its own.
fn inherited(planner: &Planner<'_>, number: usize) -> Option<Limit> {
    let has = planner.host.limits.get(number).copied()?;
    let raised = number == NOFILE && needed_fds(planner) > has.cur;
    Some(Limit {
        cur: if raised { has.max } else { has.cur },
        max: has.max,
    })
}

/// How many descriptors the tables need, and the number that stays free for ours.
fn needed_fds(planner: &Planner<'_>) -> u64 {
    let numbers = planner
        .checkpoint
        .fdinfo
        .values()
        .flatten()
        .map(|entry| u64::from(entry.fd));
    numbers.max().map_or(0, |highest| highest + 1) + 3
}

/// What the broker has open at the same time counts against its own limit, whose soft value it
/// raises when it must; the root, which inherits that, goes back to the one we were started with.
/// `kept` is how many it holds at the end.
pub fn plan_own_descriptors(planner: &mut Planner<'_>, kept: u64) {
    let (Some(root), Some(has)) = (planner.tree.root, planner.host.limits.get(NOFILE).copied())
    else {
        return;
    };
    let origin = Origin::new("files.img", None, "all files that are open at once");
    let kept = kept + OWN_DESCRIPTORS;
    if kept > has.max {
        let why = format!(
            "{kept} descriptors are above the hard RLIMIT_NOFILE {} of crust-restore",
            has.max
        );
        let refusal = Refusal::new(origin, why).kind(Code::Limit);
        planner.refuse(refusal.hint("raise the limit in the shell"));
    } else if planner.held + OWN_DESCRIPTORS > has.cur && needed_fds(planner) <= has.cur {
        let call = prlimit("RLIMIT_NOFILE", NOFILE, has);
        planner.call(Phase::Root, Actor::Task(root), call, origin);
    }
}

/// Descriptors above our soft limit need a higher one while they are put on their numbers; the
/// children of the root inherit it.
pub fn plan_descriptor_numbers(planner: &mut Planner<'_>) {
    let (Some(root), Some(has)) = (planner.tree.root, planner.host.limits.get(NOFILE).copied())
    else {
        return;
    };
    let needed = needed_fds(planner);
    let origin = Origin::new("fdinfo", None, "the highest descriptor number of all tasks");
    if needed > has.max {
        let why = format!(
            "{needed} descriptors are above the hard RLIMIT_NOFILE {}",
            has.max
        );
        planner.refuse(Refusal::new(origin, why).kind(Code::Limit));
    } else if needed > has.cur {
        let limit = Limit {
            cur: has.max,
            max: has.max,
        };
        planner.call(
            Phase::Root,
            Actor::Task(root),
            prlimit("RLIMIT_NOFILE", NOFILE, limit),
            origin,
        );
    }
}
