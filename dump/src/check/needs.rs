//! Which capabilities a dump of these tasks needs, each with its reason (capabilities(7) and the
//! checks of the kernel that are named).

use crate::collect::{Collected, Subject};
use crate::files::by_name::open_mapped;
use crate::mm::vmas::{Backing, Vma};
use crust_cli::capabilities::{Cap, Needs};
use crust_cli::options::Options;
use crust_process::proc::ProcDir;
use crust_process::proc::maps::MapsVma;
use crust_process::proc::status::{Ids, Status};
use nix::unistd::{Gid, Uid};
use std::collections::HashSet;

/// SUID_DUMP_USER of include/linux/sched/coredump.h: anybody with the same ids may trace.
const DUMPABLE: i32 = 1;

/// All of them.
pub fn of(collected: &Collected, options: &Options) -> Needs {
    let mut needs = Needs::default();
    for subject in &collected.subjects {
        add_task(&mut needs, subject);
    }
    if !collected.files.connections().is_empty() {
        // tcp_can_repair_sock of net/ipv4/tcp.c, and nf_tables or iptables.
        needs.add(
            Cap::NET_ADMIN,
            "TCP connections: repair mode and the network lock",
        );
    }
    if options.link_remap {
        needs.add(Cap::DAC_READ_SEARCH, "linking deleted files (--link-remap)");
    }
    needs
}

fn add_task(needs: &mut Needs, subject: &Subject) {
    let Some(leader) = subject.facts.leader() else {
        return;
    };
    let pid = leader.stat.pid;
    for thread in &subject.facts.threads {
        if let Some(why) = needs_ptrace(&thread.status, subject.told.task.dumpable) {
            needs.add(Cap::SYS_PTRACE, format!("task {pid}, {why}"));
        }
        // ptrace_setoptions: PTRACE_O_SUSPEND_SECCOMP; seccomp_get_filter.
        if thread.status.seccomp.unwrap_or(0) != 0 {
            needs.add(Cap::SYS_ADMIN, format!("the seccomp state of task {pid}"));
        }
    }
    if let Some(area) = nameless(subject) {
        let (start, end) = (area.start, area.end);
        let why = format!("the file mapped at {start:x}-{end:x} in task {pid}, which has no name");
        needs.add(Cap::CHECKPOINT_RESTORE, why);
    }
}

/// A mapped file that can only be had by /proc/PID/map_files.
fn nameless(subject: &Subject) -> Option<&MapsVma> {
    let of_file = |vma: &&Vma| matches!(vma.backing, Backing::File | Backing::Memfd);
    let starts = subject.vmas.iter().filter(of_file);
    let starts: HashSet<u64> = starts.map(|vma| vma.range.start).collect();
    let mut named = HashSet::new();
    let areas = subject.facts.areas.iter().map(|area| &area.vma);
    areas
        .filter(|area| starts.contains(&area.start))
        .filter(|area| named.insert((area.dev_major, area.dev_minor, area.inode)))
        .find(|area| !matches!(open_mapped(area), Ok(Some(_))))
}

/// What makes the kernel refuse to trace without the capability (__ptrace_may_access of
/// kernel/ptrace.c).
fn needs_ptrace(status: &Status, dumpable: i32) -> Option<&'static str> {
    let all = |ids: &Ids, own: u32| {
        [ids.real, ids.effective, ids.saved]
            .iter()
            .all(|id| *id == own)
    };
    let (uid, gid) = (Uid::current().as_raw(), Gid::current().as_raw());
    if !all(&status.uid, uid) || !all(&status.gid, gid) {
        Some("which is another user's")
    } else if dumpable != DUMPABLE {
        Some("which is not dumpable")
    } else if status.cap_prm & !own_permitted() != 0 {
        Some("which has capabilities that we have not")
    } else {
        None
    }
}

fn own_permitted() -> u64 {
    let text = std::fs::read("/proc/self/status").unwrap_or_default();
    crust_process::proc::status::parse_status(&text).map_or(0, |status| status.cap_prm)
}

/// Resident bytes of a task: the second number of statm, in pages.
pub fn resident(dir: &ProcDir) -> Option<u64> {
    let text = dir.read("statm").ok()?;
    let text = String::from_utf8_lossy(&text);
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * crate::mm::copy::PAGE)
}
