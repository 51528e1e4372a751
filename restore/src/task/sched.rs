//! Scheduler policy, real-time priority and nice value, by thread; those that differ from what the
//! thread inherits from crust-restore.

use super::Thread;
use crate::plan::step::{Arg, Call, Phase};
use crate::plan::{Planner, Refusal};
use nix::libc;

const PRIO_PROCESS: i64 = 0;
/// linux/sched.h.
pub const SCHED_DEADLINE: u32 = 6;
pub const SCHED_RESET_ON_FORK: u32 = 0x4000_0000;
/// Room for more processors than any kernel is built for.
const MOST_CPU_BYTES: usize = 1024;

/// Plans them.
pub fn plan(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    let policy = thread.own.sched_policy.unwrap_or(0);
    let nice = thread.own.sched_nice.unwrap_or(0);
    let origin = thread.origin("scheduling");
    let priority = match policy_of(policy, thread.own.sched_prio) {
        Err(_) if is_deadline(thread) => 0,
        Ok(priority) => priority,
        Err(why) => {
            planner.refuse(Refusal::new(origin, why));
            return;
        }
    };
    if !(-20..=19).contains(&nice) {
        planner.refuse(Refusal::new(
            origin,
            format!("sched_nice {nice} is no nice value"),
        ));
        return;
    }
    if nice != planner.host.nice {
        let args = vec![
            Arg::named("PRIO_PROCESS", PRIO_PROCESS),
            Arg::Int(0),
            Arg::Int(nice.into()),
        ];
        let call = Call::new("setpriority", libc::SYS_setpriority, args);
        planner.call(Phase::Creds, thread.actor(), call, origin.clone());
    }
    // A deadline thread becomes one last of all (treatment.rs).
    if policy != 0 && !is_deadline(thread) {
        let name = [
            "SCHED_OTHER",
            "SCHED_FIFO",
            "SCHED_RR",
            "SCHED_BATCH",
            "",
            "SCHED_IDLE",
        ];
        let name = name
            .get((policy & !SCHED_RESET_ON_FORK) as usize)
            .copied()
            .unwrap_or("policy");
        let args = vec![
            Arg::Int(0),
            match policy & SCHED_RESET_ON_FORK {
                0 => Arg::named(name, policy),
                _ => Arg::named(format!("{name}|SCHED_RESET_ON_FORK"), policy),
            },
            Arg::bytes(priority.to_le_bytes()),
        ];
        let call = Call::new("sched_setscheduler", libc::SYS_sched_setscheduler, args);
        planner.call(Phase::Creds, thread.actor(), call, origin);
    }
}

/// The processors that the thread may run on, if the images tell. One that this host lacks is left
/// out by the kernel; a thread of which nothing would be left is refused.
pub fn plan_affinity(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    let Some(mask) = &thread.own.crust_cpus_allowed else {
        return;
    };
    let origin = thread.origin("processors");
    let has = |cpu: u32| {
        let byte = mask.get(cpu as usize / 8).copied().unwrap_or(0);
        byte >> (cpu % 8) & 1 == 1
    };
    if mask.len() > MOST_CPU_BYTES || !(0..planner.host.cpus).any(has) {
        let cpus = planner.host.cpus;
        let why = format!("crust_cpus_allowed has none of the {cpus} processors of this host");
        planner.refuse(Refusal::new(origin, why));
        return;
    }
    let mut bytes = mask.clone();
    // The kernel reads whole words.
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let args = vec![Arg::Int(0), Arg::Int(bytes.len() as i64), Arg::bytes(bytes)];
    let call = Call::new("sched_setaffinity", libc::SYS_sched_setaffinity, args);
    planner.call(Phase::Creds, thread.actor(), call, origin);
}

/// Whether the thread is scheduled by deadlines and the images tell which.
pub fn is_deadline(thread: &Thread<'_>) -> bool {
    let policy = thread.own.sched_policy.unwrap_or(0) & !SCHED_RESET_ON_FORK;
    let treatment = thread.own.crust_treatment.as_ref();
    policy == SCHED_DEADLINE && treatment.is_some_and(|asked| asked.sched_deadline.is_some())
}

/// The sched_priority that goes with a policy.
fn policy_of(policy: u32, priority: Option<u32>) -> Result<i32, String> {
    let policy = (policy & !SCHED_RESET_ON_FORK) as i32;
    match policy {
        libc::SCHED_OTHER | libc::SCHED_BATCH | libc::SCHED_IDLE => Ok(0),
        libc::SCHED_FIFO | libc::SCHED_RR => match priority {
            Some(priority @ 1..=99) => Ok(priority as i32),
            other => Err(format!("sched_prio {other:?} is no real-time priority")),
        },
        _ => Err(format!("sched_policy {policy} cannot be restored yet")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        assert_eq!(policy_of(0, None), Ok(0));
        assert_eq!(policy_of(1 | SCHED_RESET_ON_FORK, Some(50)), Ok(50));
        assert!(policy_of(2, None).is_err());
        assert!(policy_of(2, Some(100)).is_err());
        assert!(policy_of(6, None).is_err());
    }
}
