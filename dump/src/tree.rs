//! pstree.img: the tasks, parents before their children, with their groups and sessions.
//!
//! A leader of a group or session may be dead or outside: the restorer makes a helper, or the
//! user says `--shell-job` for a root whose session and terminal are the shell's.

use crate::refusal::Refusal;
use crust_process::pid::HostPid;
use crust_process::proc::stat::Stat;
use crust_proto::criu::PstreeEntry;

/// A task of the tree: its own, its parent's, its group's and session's ids and its threads'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// As we see it.
    pub pid: HostPid,
    /// 0 for the root.
    pub ppid: i32,
    /// Process group; 0 if its leader is outside our pid namespace.
    pub pgid: i32,
    /// Session; 0 likewise.
    pub sid: i32,
    /// The leader first; none for a zombie.
    pub tids: Vec<HostPid>,
}

impl Place {
    /// From the stat file of the leader, or of a zombie (which then has no threads).
    pub fn new(pid: HostPid, is_root: bool, stat: &Stat, tids: Vec<HostPid>) -> Place {
        Place {
            pid,
            ppid: if is_root { 0 } else { stat.ppid },
            pgid: stat.pgrp,
            sid: stat.session,
            tids,
        }
    }
}

/// The entry of a task.
pub fn encode_place(place: &Place) -> PstreeEntry {
    let number = |pid: i32| pid.max(0) as u32;
    PstreeEntry {
        pid: number(place.pid.get()),
        ppid: number(place.ppid),
        pgid: number(place.pgid),
        sid: number(place.sid),
        // A zombie has the one thread 0.
        threads: if place.tids.is_empty() {
            vec![0]
        } else {
            place.tids.iter().map(|tid| number(tid.get())).collect()
        },
    }
}

/// The sessions and groups that no restore could bring back.
pub fn refuse_places(places: &[Place], shell_job: bool) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    let Some(root) = places.first() else {
        return refusals;
    };
    if root.sid != root.pid.get() && !shell_job {
        let what = format!("{} is not the root task's own", root.sid);
        let refusal = Refusal::new(root.pid, "its session", what);
        refusals
            .push(refusal.hint("--shell-job takes the tree out of the session it was started in"));
    }
    for place in places {
        if place.sid == 0 && root.sid != 0 {
            let what = "its leader is outside of our pid namespace";
            refusals.push(Refusal::new(place.pid, "its session", what));
        }
    }
    refusals
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(number: i32) -> HostPid {
        HostPid::new(number).expect("a positive number")
    }

    fn place(number: i32, sid: i32) -> Place {
        Place {
            pid: pid(number),
            ppid: 0,
            pgid: sid,
            sid,
            tids: vec![pid(number)],
        }
    }

    #[test]
    fn a_zombie_has_the_thread_zero() {
        let zombie = Place {
            tids: Vec::new(),
            ..place(7, 3)
        };
        assert_eq!(encode_place(&zombie).threads, [0]);
        assert_eq!(encode_place(&place(7, 3)).threads, [7]);
    }

    #[test]
    fn a_root_in_a_strange_session_needs_shell_job() {
        let tree = [place(7, 3), place(8, 3)];
        assert_eq!(refuse_places(&tree, false).len(), 1);
        assert_eq!(refuse_places(&tree, true), []);
        assert_eq!(refuse_places(&[place(7, 7), place(8, 3)], false), []);
    }
}
