//! What /proc says of a tree of tasks, as comparable text.
//!
//! Each fact is a line under a key like `task 12 fd 3 target`. What the kernel numbers anew in
//! each object's life (inodes of pipes, sockets, anonymous shared memory, deleted files) becomes
//! its order of first appearance, so equal sharing gives equal text. Which descriptors are one open
//! file description, and which tasks share a table, directories, memory or signal actions, is asked
//! of kcmp(2); what a socket is bound and connected to, of /proc/PID/net. What changes while a task
//! runs (times, counters, resident sizes, the running state, remaining timer values) is left out.

use anyhow::{Context, Result, ensure};
use crust_process::{
    kcmp::{self, TaskObject},
    pid::HostPid,
};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    fmt::Write,
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// The facts of a tree, by key.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    facts: BTreeMap<String, String>,
    dead_leader: bool,
}

/// Order of first appearance of objects whose numbers do not survive.
#[derive(Default)]
struct Renumbering {
    seen: HashMap<String, usize>,
}

impl Renumbering {
    fn name(&mut self, object: &str) -> String {
        let next = self.seen.len() + 1;
        format!("#{}", self.seen.entry(object.to_owned()).or_insert(next))
    }
}

/// Lines of /proc/PID/status that a restore keeps.
const STATUS: &[&str] = &[
    "Name",
    "Umask",
    "Tgid",
    "Pid",
    "PPid",
    "TracerPid",
    "Uid",
    "Gid",
    "Groups",
    "NStgid",
    "NSpid",
    "NSpgid",
    "NSsid",
    "Kthread",
    "VmLck",
    "VmPin",
    "Threads",
    "SigPnd",
    "ShdPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "THP_enabled",
    "untag_mask",
    "x86_Thread_features",
];

/// The lines of STATUS that a zombie still has; images hold no masks, credentials or actions of
/// one, and nothing can see them any more.
const ZOMBIE_STATUS: &[&str] = &[
    "Name",
    "Tgid",
    "Pid",
    "PPid",
    "TracerPid",
    "NStgid",
    "NSpid",
    "NSpgid",
    "NSsid",
];

/// Fields of /proc/PID/stat that a restore keeps, by their number in proc_pid_stat(5).
const STAT: &[(usize, &str)] = &[
    (4, "ppid"),
    (5, "pgrp"),
    (6, "session"),
    (7, "tty_nr"),
    (8, "tpgid"),
    (18, "priority"),
    (19, "nice"),
    (20, "num_threads"),
    (25, "rsslim"),
    (26, "startcode"),
    (27, "endcode"),
    (28, "startstack"),
    (38, "exit_signal"),
    (40, "rt_priority"),
    (41, "policy"),
    (45, "start_data"),
    (46, "end_data"),
    (47, "start_brk"),
    (48, "arg_start"),
    (49, "arg_end"),
    (50, "env_start"),
    (51, "env_end"),
    (52, "exit_code"),
];

/// Whole files, as text.
const FILES: &[&str] = &[
    "cmdline",
    "environ",
    "personality",
    "oom_score_adj",
    "loginuid",
    "timerslack_ns",
    "limits",
    "coredump_filter",
    "cgroup",
    "uid_map",
    "gid_map",
    "setgroups",
    "mountinfo",
];

/// A task and its descendants, parents first. Zombies are members.
pub fn tree(root: i32) -> Result<Vec<i32>> {
    let mut pids = vec![root];
    let mut next = 0;
    while let Some(pid) = pids.get(next).copied() {
        next += 1;
        let tids = match threads(pid) {
            // So may a task, but not the root.
            Err(_) if pid != root => continue,
            tids => tids?,
        };
        for tid in tids {
            let path = format!("/proc/{pid}/task/{tid}/children");
            // A thread may end between the listing and this read.
            let children = fs::read_to_string(path).unwrap_or_default();
            pids.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<i32>().ok()),
            );
        }
    }
    Ok(pids)
}

/// Waits, for a moment at most, until no task of the tree but the root runs: a helper that was
/// just forked is on its way to where it waits, and one just let go by a tracer back there.
/// One that computes runs for good, hence the limit.
pub fn settle(root: i32) -> Result<()> {
    let deadline = Instant::now() + Duration::from_millis(300);
    let running = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('R'))
    };
    while tree(root)?.iter().skip(1).any(running) && Instant::now() < deadline {
        std::thread::yield_now();
    }
    Ok(())
}

/// The session of a task, if there is such a task.
pub fn session(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(3)?.parse().ok()
}

/// The thread ids of a task, ascending, without workers of the kernel (of an io_uring), which come
/// and go as it needs them.
pub fn threads(pid: i32) -> Result<Vec<i32>> {
    let path = format!("/proc/{pid}/task");
    let mut tids: Vec<i32> = fs::read_dir(&path)
        .with_context(|| format!("list {path}"))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    tids.retain(|tid| !is_worker(&format!("{path}/{tid}/stat")));
    tids.sort_unstable();
    Ok(tids)
}

/// By PF_IO_WORKER of include/linux/sched.h in field 9 of stat.
fn is_worker(stat: &str) -> bool {
    let stat = fs::read_to_string(stat).unwrap_or_default();
    let flags = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.split(' ').nth(6)?.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & 0x10 != 0)
}

/// How many threads a process has by what a status file says of it, without workers.
fn own_threads(status: &str) -> Result<usize> {
    let tgid = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    Ok(threads(tgid.context("status has no Tgid")?.trim().parse()?)?.len())
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('Z'))
}

impl Snapshot {
    /// Waits, if the root's leader had ended before its threads, until it has ended again: it is
    /// restored as a thread that is about to.
    pub fn wait_for_dead_leader(&self, root: i32) {
        while self.dead_leader && !is_zombie(root) {
            std::thread::yield_now();
        }
    }

    /// Reads the facts of the tree below `root`.
    pub fn of_tree(root: i32) -> Result<Self> {
        let mut taken = Taken::default();
        let mut pids = tree(root)?;
        pids.sort_unstable();
        taken.fact("tree", format!("{pids:?}"));
        for pid in pids {
            taken
                .task(pid)
                .with_context(|| format!("read /proc/{pid}"))?;
        }
        Ok(Self {
            facts: taken.facts,
            dead_leader: is_zombie(root),
        })
    }

    /// Differences as lines `key: before -> after`.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let keys: std::collections::BTreeSet<_> =
            self.facts.keys().chain(after.facts.keys()).collect();
        let shown = |fact: Option<&String>| fact.map_or("(nothing)", |f| f.as_str()).to_owned();
        keys.into_iter()
            .filter_map(|key| {
                let (before, now) = (self.facts.get(key), after.facts.get(key));
                (before != now)
                    .then(|| format!("{key}:\n  - {}\n  + {}", shown(before), shown(now)))
            })
            .collect()
    }

    /// Fails with the differences whose key has none of the `tolerated` fragments.
    pub fn expect_same(&self, after: &Self, tolerated: &[&str]) -> Result<()> {
        let differences: Vec<_> = self
            .differences(after)
            .into_iter()
            .filter(|line| {
                let key = line.lines().next().unwrap_or_default();
                !tolerated.iter().any(|fragment| key.contains(fragment))
            })
            .collect();
        ensure!(
            differences.is_empty(),
            "/proc tells {} things differently (- before, + after):\n{}",
            differences.len(),
            differences.join("\n")
        );
        Ok(())
    }
}

#[derive(Default)]
struct Taken {
    facts: BTreeMap<String, String>,
    objects: Renumbering,
    /// By what the link says: a descriptor of each description, with its number here.
    descriptions: HashMap<String, Vec<(i32, i32, usize)>>,
    /// How many descriptions there are.
    count: usize,
    /// The tasks so far.
    tasks: Vec<i32>,
    /// Lines of /proc/PID/net by inode, of the one network namespace that guests are in.
    sockets: Option<HashMap<String, String>>,
}

/// Files of /proc/PID/net with, of each line, the numbers of the words to keep and of the inode.
const NET: &[(&str, &[usize], usize)] = &[
    // Flags, type, state and path.
    ("unix", &[3, 4, 5, 7], 6),
    // Both addresses; a connection goes from state to state by itself.
    ("tcp", &[1, 2], 9),
    ("tcp6", &[1, 2], 9),
    // And the state.
    ("udp", &[1, 2, 3], 9),
    ("udp6", &[1, 2, 3], 9),
];

impl Taken {
    fn fact(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.facts.insert(key.into(), value.into());
    }

    fn task(&mut self, pid: i32) -> Result<()> {
        let state = self.status_and_stat(&format!("task {pid}"), &format!("/proc/{pid}"))?;
        if state == "Z" {
            return Ok(());
        }
        for name in FILES {
            self.file(pid, name);
        }
        for link in ["exe", "cwd", "root"] {
            let target = fs::read_link(format!("/proc/{pid}/{link}"));
            let target = target.map_or_else(|e| e.to_string(), |t| t.display().to_string());
            self.fact(format!("task {pid} {link}"), target);
        }
        self.sharing(pid);
        self.auxv(pid)?;
        self.namespaces(pid)?;
        self.timers(pid);
        self.maps(pid)?;
        self.descriptors(pid)?;
        for tid in threads(pid)? {
            let key = format!("task {pid} thread {tid}");
            self.status_and_stat(&key, &format!("/proc/{pid}/task/{tid}"))?;
        }
        Ok(())
    }

    /// Gives the state letter.
    fn status_and_stat(&mut self, key: &str, dir: &str) -> Result<String> {
        let stat = read_text(&format!("{dir}/stat"))?;
        let (_, behind_comm) = stat.rsplit_once(") ").context("stat has no command name")?;
        let fields: Vec<_> = behind_comm.split_whitespace().collect();
        let state = fields.first().copied().unwrap_or_default();
        let lines = if state == "Z" { ZOMBIE_STATUS } else { STATUS };
        let status = read_text(&format!("{dir}/status"))?;
        for line in status.lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            let value = match name {
                "Threads" => own_threads(&status)?.to_string(),
                _ => value.trim().to_owned(),
            };
            if lines.contains(&name) {
                self.fact(format!("{key} status {name}"), value);
            }
        }
        // The first field behind the name is number 3.
        for (number, name) in STAT {
            let value = match *name {
                "num_threads" => own_threads(&status)?.to_string(),
                _ => fields
                    .get(number - 3)
                    .map_or("(missing)", |it| it)
                    .to_owned(),
            };
            self.fact(format!("{key} stat {name}"), value);
        }
        // A live task naps and runs by turns.
        let steady = if matches!(state, "R" | "S" | "D") {
            "alive"
        } else {
            state
        };
        self.fact(format!("{key} state"), steady);
        Ok(state.to_owned())
    }

    fn file(&mut self, pid: i32, name: &str) {
        let bytes = fs::read(format!("/proc/{pid}/{name}"));
        let value = bytes.map_or_else(
            |error| error.to_string(),
            |bytes| String::from_utf8_lossy(&bytes).replace('\0', "\\0"),
        );
        self.fact(format!("task {pid} {name}"), value.trim_end());
    }

    fn auxv(&mut self, pid: i32) -> Result<()> {
        let bytes = fs::read(format!("/proc/{pid}/auxv")).context("read auxv")?;
        let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        self.fact(format!("task {pid} auxv"), hex);
        Ok(())
    }

    fn namespaces(&mut self, pid: i32) -> Result<()> {
        let ours = |name: &str| fs::read_link(format!("/proc/self/ns/{name}"));
        for name in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
            let link = fs::read_link(format!("/proc/{pid}/ns/{name}")).context("read ns")?;
            // A restored namespace is a new object: only whether it is the common one can stay.
            let which = if link == ours(name)? { "common" } else { "own" };
            self.fact(format!("task {pid} ns {name}"), which);
        }
        Ok(())
    }

    /// Ids, signals and kinds of POSIX timers; the remaining times are not in this file.
    fn timers(&mut self, pid: i32) {
        let text = fs::read_to_string(format!("/proc/{pid}/timers")).unwrap_or_default();
        self.fact(format!("task {pid} timers"), text.trim_end());
    }

    /// The mappings with their VmFlags.
    fn maps(&mut self, pid: i32) -> Result<()> {
        let smaps = read_text(&format!("/proc/{pid}/smaps"))?;
        let mut mappings: Vec<Mapping> = Vec::new();
        for line in smaps.lines() {
            if let Some(flags) = line.strip_prefix("VmFlags:") {
                // sd, the soft-dirty mark, is about what has been written since; ht and hg stay.
                let flags: Vec<_> = flags.split_whitespace().filter(|f| *f != "sd").collect();
                if let Some(mapping) = mappings.last_mut() {
                    mapping.flags = flags.join(" ");
                }
            } else if let Some((range, rest)) = mapping_head(line) {
                let (start, end) = range.split_once('-').unwrap_or((range, range));
                mappings.push(Mapping {
                    start: start.to_owned(),
                    end: end.to_owned(),
                    what: self.mapping(rest),
                    flags: String::new(),
                });
            }
        }
        for mapping in joined(mappings) {
            let key = format!("task {pid} map {}-{}", mapping.start, mapping.end);
            self.fact(format!("{key} VmFlags"), mapping.flags);
            self.fact(key, mapping.what);
        }
        Ok(())
    }

    /// `perms offset dev inode path` with the inodes of unnamed objects renumbered.
    fn mapping(&mut self, rest: &str) -> String {
        let mut fields = rest.split_ascii_whitespace();
        let mut field = || fields.next().unwrap_or_default();
        let (perms, offset, device, inode) = (field(), field(), field(), field());
        let path = fields.collect::<Vec<_>>().join(" ");
        if path.ends_with(" (deleted)") || path.starts_with("anon_inode:") {
            let object = self.objects.name(&format!("map {device} {inode}"));
            return format!("{perms} {offset} {object} {path}");
        }
        if path.starts_with("socket:") {
            let path = self.unnumbered(&path);
            return format!("{perms} {offset} {device} {path}");
        }
        format!("{perms} {offset} {device} {inode} {path}")
    }

    fn descriptors(&mut self, pid: i32) -> Result<()> {
        let dir = format!("/proc/{pid}/fd");
        let mut fds: Vec<i32> = fs::read_dir(&dir)
            .with_context(|| format!("list {dir}"))?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        fds.sort_unstable();
        self.fact(format!("task {pid} fds"), format!("{fds:?}"));
        for fd in fds {
            let target = fs::read_link(Path::new(&dir).join(fd.to_string()));
            let target = target.map_or_else(|e| e.to_string(), |t| t.display().to_string());
            let description = self.description(pid, fd, &target);
            self.fact(format!("task {pid} fd {fd} description"), description);
            if let Some(socket) = self.socket(pid, &target) {
                self.fact(format!("task {pid} fd {fd} socket"), socket);
            }
            let target = self.unnumbered(&target);
            self.fact(format!("task {pid} fd {fd} target"), target);
            // The fdinfo of a descriptor on /proc/P/fd of a dead P can still be read.
            let info = read_text(&format!("/proc/{pid}/fdinfo/{fd}"))?;
            self.fdinfo(&format!("task {pid} fd {fd}"), &info);
        }
        Ok(())
    }

    /// The number of the open file description, in the order of first appearance.
    fn description(&mut self, pid: i32, fd: i32, target: &str) -> String {
        let known = self.descriptions.entry(target.to_owned()).or_default();
        let same = |(other, other_fd): (i32, i32)| {
            let (one, two) = (HostPid::new(pid), HostPid::new(other));
            let compared = one
                .zip(two)
                .map(|(one, two)| kcmp::file(one, fd, two, other_fd));
            matches!(compared, Some(Ok(Ordering::Equal)))
        };
        let found = known.iter().find(|(pid, fd, _)| same((*pid, *fd)));
        if let Some((_, _, number)) = found {
            return format!("#{number}");
        }
        self.count += 1;
        known.push((pid, fd, self.count));
        format!("#{}", self.count)
    }

    /// What the kernel's list says of a socket.
    fn socket(&mut self, pid: i32, target: &str) -> Option<String> {
        let inode = target.strip_prefix("socket:[")?.strip_suffix(']')?;
        self.sockets
            .get_or_insert_with(|| sockets_of(pid))
            .get(inode)
            .cloned()
    }

    /// With which earlier task it shares each kind of object.
    fn sharing(&mut self, pid: i32) {
        const OBJECTS: [(TaskObject, &str); 4] = [
            (TaskObject::Vm, "memory"),
            (TaskObject::Files, "descriptors"),
            (TaskObject::Fs, "directories"),
            (TaskObject::Sighand, "signal actions"),
        ];
        for (object, name) in OBJECTS {
            let same = |other: &&i32| {
                let both = HostPid::new(pid).zip(HostPid::new(**other));
                let compared = both.map(|(one, two)| kcmp::task_object(object, one, two));
                matches!(compared, Some(Ok(Ordering::Equal)))
            };
            let with = self.tasks.iter().find(same).copied().unwrap_or(pid);
            self.fact(format!("task {pid} {name} of"), with.to_string());
        }
        self.tasks.push(pid);
    }

    /// `pipe:[1234]` as `pipe:[#1]`.
    fn unnumbered(&mut self, target: &str) -> String {
        // What O_TMPFILE made is called by its inode.
        if let Some((dir, inode)) = target.rsplit_once("/#")
            && let Some(inode) = inode.strip_suffix(" (deleted)")
        {
            let object = self.objects.name(&format!("{dir} {inode}"));
            return format!("{dir}/#{object} (deleted)");
        }
        match target.split_once(":[") {
            Some((kind @ ("pipe" | "socket" | "uts" | "ipc"), number)) => {
                let object = self.objects.name(&format!("{kind} {number}"));
                format!("{kind}:[{object}]")
            }
            _ => target.to_owned(),
        }
    }

    fn fdinfo(&mut self, key: &str, info: &str) {
        let mut values: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for line in info.lines() {
            let (name, value) = line.split_once(':').unwrap_or((line, ""));
            // ino: of objects without a name, new in each life. eventfd-id: likewise.
            // it_value: the time left.
            if matches!(name, "ino" | "eventfd-id" | "it_value" | "clockid_time") {
                continue;
            }
            let value = match name {
                // New in each life too, but two descriptors may be of one map.
                "map_id" => self.objects.name(&format!("bpf map {value}")),
                _ => without_inodes(value.trim()),
            };
            values.entry(name).or_default().push(value);
        }
        for (name, mut values) in values {
            // The targets of an epoll come in the order of kernel addresses.
            values.sort();
            for (count, value) in values.into_iter().enumerate() {
                self.fact(format!("{key} {name} {}", count + 1), value);
            }
        }
    }
}

fn sockets_of(pid: i32) -> HashMap<String, String> {
    let mut sockets = HashMap::new();
    for (name, kept, inode) in NET {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let kept = kept.iter().filter_map(|at| words.get(*at).copied());
            let what = format!("{name} {}", kept.collect::<Vec<_>>().join(" "));
            if let Some(inode) = words.get(*inode) {
                sockets.insert((*inode).to_owned(), what);
            }
        }
    }
    sockets
}

/// The lines of epoll and inotify name their targets by inode.
fn without_inodes(value: &str) -> String {
    let words = value.split_whitespace();
    let kept: Vec<_> = words
        .map(|word| {
            if word.starts_with("ino:") {
                "ino:*"
            } else {
                word
            }
        })
        .collect();
    kept.join(" ")
}

/// A mapping as smaps shows it.
#[derive(Debug)]
struct Mapping {
    start: String,
    end: String,
    what: String,
    flags: String,
}

/// Neighbours of private anonymous memory that are alike in everything count as one: whether the
/// kernel has merged them depends on the order in which they were made and written (their
/// anon_vma), which no image holds and no program can see elsewhere.
fn joined(mappings: Vec<Mapping>) -> Vec<Mapping> {
    let mut joined: Vec<Mapping> = Vec::new();
    for mapping in mappings {
        let what = mapping.what.trim_end();
        let what = what.strip_suffix(" [heap]").unwrap_or(what);
        let is_anonymous = what.trim_end().ends_with("p 00000000 00:00 0");
        match joined.last_mut() {
            Some(last)
                if is_anonymous
                    && last.end == mapping.start
                    && (&last.what, &last.flags) == (&mapping.what, &mapping.flags) =>
            {
                last.end = mapping.end;
            }
            _ => joined.push(mapping),
        }
    }
    joined
}

/// Splits `start-end rest` if the line is the head of a mapping in smaps.
fn mapping_head(line: &str) -> Option<(&str, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let hex = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
    (hex(start) && hex(end)).then_some((range, rest))
}

fn read_text(path: &str) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("read {path}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_mappings_are_told_from_counters() {
        let head = "7ffc1000-7ffc2000 rw-p 00000000 00:00 0    [stack]";
        assert_eq!(
            mapping_head(head).map(|(range, _)| range),
            Some("7ffc1000-7ffc2000")
        );
        assert_eq!(mapping_head("Size:                 12 kB"), None);
    }

    #[test]
    fn only_equal_neighbours_of_anonymous_memory_are_joined() {
        let mapping = |start: &str, end: &str, what: &str| Mapping {
            start: start.to_owned(),
            end: end.to_owned(),
            what: what.to_owned(),
            flags: "rd wr".to_owned(),
        };
        let anonymous = "rw-p 00000000 00:00 0 ";
        let ranges = |mappings: Vec<Mapping>| -> Vec<(String, String)> {
            let joined = joined(mappings).into_iter();
            joined.map(|mapping| (mapping.start, mapping.end)).collect()
        };
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let alike = vec![mapping("1", "2", anonymous), mapping("2", "3", anonymous)];
        assert_eq!(ranges(alike), [pair("1", "3")]);
        let file = "rw-p 00001000 08:01 7 /x";
        let of_file = vec![mapping("1", "2", file), mapping("2", "3", file)];
        assert_eq!(ranges(of_file), [pair("1", "2"), pair("2", "3")]);
        let apart = vec![mapping("1", "2", anonymous), mapping("3", "4", anonymous)];
        assert_eq!(ranges(apart), [pair("1", "2"), pair("3", "4")]);
    }

    #[test]
    fn numbers_of_pipes_become_their_order() {
        let mut taken = Taken::default();
        assert_eq!(taken.unnumbered("pipe:[77]"), "pipe:[#1]");
        assert_eq!(taken.unnumbered("socket:[9]"), "socket:[#2]");
        assert_eq!(taken.unnumbered("pipe:[77]"), "pipe:[#1]");
        assert_eq!(taken.unnumbered("/tmp/x:[77]"), "/tmp/x:[77]");
    }

    #[test]
    fn a_live_task_equals_itself_and_differs_from_its_change() -> Result<()> {
        let before = Snapshot {
            dead_leader: false,
            facts: BTreeMap::from([("a".to_owned(), "1".to_owned())]),
        };
        let after = Snapshot {
            dead_leader: false,
            facts: BTreeMap::from([("a".to_owned(), "2".to_owned())]),
        };
        before.expect_same(&before, &[])?;
        assert_eq!(before.differences(&after), ["a:\n  - 1\n  + 2"]);
        assert!(before.expect_same(&after, &[]).is_err());
        before.expect_same(&after, &["a"])
    }
}
