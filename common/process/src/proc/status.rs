//! /proc/PID/status: names, ids in every pid namespace, credentials, signal sets and capabilities
//! of one thread, as fs/proc/array.c prints them.
//!
//! Lines come and go between kernels, and a zombie has no Vm lines; what a kernel may lack is an
//! `Option`, what every kernel since 4.1 prints for every task is an error when absent. Ids are
//! those of the pid and user namespace of the procfs mount and the reader. Unknown lines are
//! skipped.

use super::text::{Line, ParseError, Words, lines};

/// Real, effective, saved and file-system id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Real.
    pub real: u32,
    /// Effective.
    pub effective: u32,
    /// Saved.
    pub saved: u32,
    /// File system.
    pub fs: u32,
}

/// The state letter of a task (TASK_STATE_TO_CHAR_STR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// R.
    Running,
    /// S: interruptible sleep.
    Sleeping,
    /// D: uninterruptible sleep.
    DiskSleep,
    /// T: stopped by a signal.
    Stopped,
    /// t: stopped by a tracer.
    TracingStop,
    /// X: dead and about to go.
    Dead,
    /// Z.
    Zombie,
    /// P: parked, kernel threads only.
    Parked,
    /// I: idle, kernel threads only.
    Idle,
}

impl TaskState {
    /// Reads the kernel's letter. K and W are wake states of kernels before 4.14.
    pub fn from_letter(letter: u8) -> Option<TaskState> {
        Some(match letter {
            b'R' => TaskState::Running,
            b'S' => TaskState::Sleeping,
            b'D' | b'K' | b'W' => TaskState::DiskSleep,
            b'T' => TaskState::Stopped,
            b't' => TaskState::TracingStop,
            b'X' | b'x' => TaskState::Dead,
            b'Z' => TaskState::Zombie,
            b'P' => TaskState::Parked,
            b'I' => TaskState::Idle,
            _ => return None,
        })
    }
}

/// A parsed status file. Signal sets are the kernel's: bit 0 is signal 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The thread's comm, escapes undone.
    pub name: Vec<u8>,
    /// Umask; since 4.7, and absent for a zombie, which has no fs.
    pub umask: Option<u32>,
    /// State.
    pub state: TaskState,
    /// Thread group.
    pub tgid: i32,
    /// Thread.
    pub pid: i32,
    /// Parent, 0 if it is outside the reader's pid namespace.
    pub ppid: i32,
    /// Tracer, 0 for none.
    pub tracer_pid: i32,
    /// User ids.
    pub uid: Ids,
    /// Group ids.
    pub gid: Ids,
    /// Supplementary groups, ascending.
    pub groups: Vec<u32>,
    /// Thread group ids, from the reader's pid namespace to the innermost.
    pub ns_tgid: Vec<i32>,
    /// Thread ids likewise.
    pub ns_pid: Vec<i32>,
    /// Process group ids likewise.
    pub ns_pgid: Vec<i32>,
    /// Session ids likewise.
    pub ns_sid: Vec<i32>,
    /// Whether it is a kernel thread; since 6.8.
    pub kthread: Option<bool>,
    /// Threads in the group; 0 for a task that is being reaped.
    pub threads: u32,
    /// Signals queued for the real uid.
    pub sigq: u64,
    /// Limit of that queue.
    pub sigq_limit: u64,
    /// Pending on this thread.
    pub sig_pnd: u64,
    /// Pending on the process.
    pub shd_pnd: u64,
    /// Blocked.
    pub sig_blk: u64,
    /// Ignored.
    pub sig_ign: u64,
    /// Caught.
    pub sig_cgt: u64,
    /// Inheritable capabilities.
    pub cap_inh: u64,
    /// Permitted capabilities.
    pub cap_prm: u64,
    /// Effective capabilities.
    pub cap_eff: u64,
    /// Bounding set.
    pub cap_bnd: u64,
    /// Ambient capabilities; since 4.3.
    pub cap_amb: u64,
    /// PR_SET_NO_NEW_PRIVS; since 4.10.
    pub no_new_privs: Option<bool>,
    /// Seccomp mode 0, 1 (strict) or 2 (filter); absent without CONFIG_SECCOMP.
    pub seccomp: Option<u32>,
    /// Number of seccomp filters; since 5.9.
    pub seccomp_filters: Option<u32>,
    /// Whether THP is allowed (not PR_SET_THP_DISABLE); since 4.20, absent for a zombie.
    pub thp_enabled: Option<bool>,
    /// Whether a core dump is being written; since 4.15.
    pub core_dumping: Option<bool>,
    /// KiB of locked memory; absent without an mm.
    pub vm_lck_kb: Option<u64>,
    /// KiB resident; absent without an mm.
    pub vm_rss_kb: Option<u64>,
    /// Places in the descriptor table; 0 for a task that has none any more.
    pub fd_size: u32,
    /// KiB mapped; absent without an mm: zombies and kernel threads.
    pub vm_size_kb: Option<u64>,
    /// Shadow stack features in use (x86_Thread_features), as `shstk`, `wrss`; since 6.6.
    pub thread_features: Vec<Vec<u8>>,
    /// Bits of addresses that are no tag (linear address masking); since 6.4.
    pub untag_mask: Option<u64>,
    /// Speculation_Store_Bypass in words, as `thread mitigated`.
    pub store_bypass: Option<Vec<u8>>,
    /// SpeculationIndirectBranch in words, as `conditional disabled`.
    pub indirect_branch: Option<Vec<u8>>,
}

impl Status {
    /// No memory map: a zombie or a kernel thread.
    pub fn has_mm(&self) -> bool {
        self.vm_size_kb.is_some()
    }
}

/// Parses the whole of /proc/PID/status or /proc/PID/task/TID/status.
pub fn parse_status(text: &[u8]) -> Result<Status, ParseError> {
    let fields = Fields::collect(text)?;
    let (sigq, sigq_limit) = fields.sigq()?;
    Ok(Status {
        name: unescape_comm(fields.value("Name")?),
        umask: fields.optional("Umask", Words::octal)?,
        state: fields.state()?,
        tgid: fields.required("Tgid", Words::decimal)?,
        pid: fields.required("Pid", Words::decimal)?,
        ppid: fields.required("PPid", Words::decimal)?,
        tracer_pid: fields.required("TracerPid", Words::decimal)?,
        uid: fields.required("Uid", four_ids)?,
        gid: fields.required("Gid", four_ids)?,
        groups: fields.required("Groups", Words::decimals)?,
        ns_tgid: fields.required("NStgid", Words::decimals)?,
        ns_pid: fields.required("NSpid", Words::decimals)?,
        ns_pgid: fields.required("NSpgid", Words::decimals)?,
        ns_sid: fields.required("NSsid", Words::decimals)?,
        fd_size: fields.optional("FDSize", Words::decimal)?.unwrap_or(0),
        kthread: fields.flag("Kthread")?,
        threads: fields.required("Threads", Words::decimal)?,
        sigq,
        sigq_limit,
        sig_pnd: fields.required("SigPnd", Words::hex)?,
        shd_pnd: fields.required("ShdPnd", Words::hex)?,
        sig_blk: fields.required("SigBlk", Words::hex)?,
        sig_ign: fields.required("SigIgn", Words::hex)?,
        sig_cgt: fields.required("SigCgt", Words::hex)?,
        cap_inh: fields.required("CapInh", Words::hex)?,
        cap_prm: fields.required("CapPrm", Words::hex)?,
        cap_eff: fields.required("CapEff", Words::hex)?,
        cap_bnd: fields.required("CapBnd", Words::hex)?,
        cap_amb: fields.optional("CapAmb", Words::hex)?.unwrap_or(0),
        no_new_privs: fields.flag("NoNewPrivs")?,
        seccomp: fields.optional("Seccomp", Words::decimal)?,
        seccomp_filters: fields.optional("Seccomp_filters", Words::decimal)?,
        thp_enabled: fields.flag("THP_enabled")?,
        core_dumping: fields.flag("CoreDumping")?,
        vm_lck_kb: fields.optional("VmLck", Words::decimal)?,
        vm_rss_kb: fields.optional("VmRSS", Words::decimal)?,
        vm_size_kb: fields.optional("VmSize", Words::decimal)?,
        thread_features: fields
            .optional("x86_Thread_features", all_words)?
            .unwrap_or_default(),
        untag_mask: fields.optional("untag_mask", prefixed_hex)?,
        store_bypass: fields.optional("Speculation_Store_Bypass", phrase)?,
        indirect_branch: fields.optional("SpeculationIndirectBranch", phrase)?,
    })
}

/// The lines by key. A status has about 60, so looking through them beats hashing.
struct Fields<'a> {
    lines: Vec<(&'a [u8], &'a [u8], Line<'a>)>,
}

impl<'a> Fields<'a> {
    fn collect(text: &'a [u8]) -> Result<Fields<'a>, ParseError> {
        let lines = lines("status", text)
            .map(|line| {
                let (key, value) = line.key_value().ok_or_else(|| line.error("key"))?;
                Ok((key, value, line))
            })
            .collect::<Result<_, _>>()?;
        Ok(Fields { lines })
    }

    fn find(&self, key: &str) -> Option<(&'a [u8], Line<'a>)> {
        let mut found = self.lines.iter().filter(|line| line.0 == key.as_bytes());
        found.next().map(|&(_, value, line)| (value, line))
    }

    fn value(&self, key: &'static str) -> Result<&'a [u8], ParseError> {
        match self.find(key) {
            Some((value, _)) => Ok(value),
            None => Err(Line::new("status", 0, b"").error(key)),
        }
    }

    fn optional<T>(
        &self,
        key: &'static str,
        read: impl Fn(&mut Words<'a>, &'static str) -> Result<T, ParseError>,
    ) -> Result<Option<T>, ParseError> {
        self.find(key)
            .map(|(value, line)| read(&mut line.words_of(value), key))
            .transpose()
    }

    fn required<T>(
        &self,
        key: &'static str,
        read: impl Fn(&mut Words<'a>, &'static str) -> Result<T, ParseError>,
    ) -> Result<T, ParseError> {
        self.value(key)?;
        self.optional(key, read)?
            .ok_or_else(|| Line::new("status", 0, b"").error(key))
    }

    fn flag(&self, key: &'static str) -> Result<Option<bool>, ParseError> {
        let number: Option<u8> = self.optional(key, Words::decimal)?;
        Ok(number.map(|number| number != 0))
    }

    fn state(&self) -> Result<TaskState, ParseError> {
        self.required("State", |words, what| {
            let letter = words.word(what)?.first().copied().unwrap_or(0);
            TaskState::from_letter(letter).ok_or_else(|| words.error(what))
        })
    }

    fn sigq(&self) -> Result<(u64, u64), ParseError> {
        self.required("SigQ", |words, what| {
            let word = words.word(what)?;
            let mut parts = word.splitn(2, |&b| b == b'/').map(super::text::decimal);
            match (parts.next().flatten(), parts.next().flatten()) {
                (Some(queued), Some(limit)) => Ok((queued, limit)),
                _ => Err(words.error(what)),
            }
        })
    }
}

fn four_ids(words: &mut Words<'_>, what: &'static str) -> Result<Ids, ParseError> {
    Ok(Ids {
        real: words.decimal(what)?,
        effective: words.decimal(what)?,
        saved: words.decimal(what)?,
        fs: words.decimal(what)?,
    })
}

fn all_words(words: &mut Words<'_>, _: &'static str) -> Result<Vec<Vec<u8>>, ParseError> {
    Ok(std::iter::from_fn(|| words.next_word().map(<[u8]>::to_vec)).collect())
}

/// Words as one text, with single blanks between them.
fn phrase(words: &mut Words<'_>, key: &'static str) -> Result<Vec<u8>, ParseError> {
    Ok(all_words(words, key)?.join(&b' '))
}

/// `0xffff`.
fn prefixed_hex(words: &mut Words<'_>, key: &'static str) -> Result<u64, ParseError> {
    words.tagged_hex("0x").map_err(|_| words.error(key))
}

/// proc_task_name() escapes the newline and the backslash only, C style.
fn unescape_comm(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => plain.push(b'\n'),
                Some(other) => plain.push(other),
                None => plain.push(byte),
            },
            _ => plain.push(byte),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 6.18, shortened where lines are skipped.
    const V6_18: &[u8] = b"\
Name:\ta\\\\b\\nc d
Umask:\t0022
State:\tR (running)
Tgid:\t5782
Ngid:\t0
Pid:\t5782
PPid:\t5777
TracerPid:\t0
Uid:\t0\t1\t2\t3
Gid:\t4\t5\t6\t7
FDSize:\t256
Groups:\t4 24 4294967294 
NStgid:\t5782\t7
NSpid:\t5783\t8
NSpgid:\t5777\t0
NSsid:\t4078\t0
Kthread:\t0
VmPeak:\t     176 kB
VmSize:\t     180 kB
VmLck:\t       8 kB
VmRSS:\t       4 kB
CoreDumping:\t0
THP_enabled:\t1
untag_mask:\t0xffffffffffffffff
Threads:\t1
SigQ:\t3/96365
SigPnd:\t0000000000000200
ShdPnd:\t0000000000000001
SigBlk:\t8000000000000000
SigIgn:\t0000000000000006
SigCgt:\t0000000180000000
CapInh:\t0000000000000000
CapPrm:\t000001fffeffffff
CapEff:\t000001fffeffffff
CapBnd:\t000001fffeffffff
CapAmb:\t0000000000000400
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t3
Speculation_Store_Bypass:\tvulnerable
Cpus_allowed:\t3
Mems_allowed:\t00000000,00000001
voluntary_ctxt_switches:\t1
x86_Thread_features:\tshstk wrss 
x86_Thread_features_locked:\t
";

    /// A zombie of 4.4: no Umask, no Vm lines, no NoNewPrivs, empty Groups.
    const ZOMBIE_4_4: &[u8] = b"\
Name:\tsh
State:\tZ (zombie)
Tgid:\t33
Ngid:\t0
Pid:\t33
PPid:\t1
TracerPid:\t0
Uid:\t1000\t1000\t1000\t1000
Gid:\t1000\t1000\t1000\t1000
FDSize:\t0
Groups:\t
NStgid:\t33
NSpid:\t33
NSpgid:\t33
NSsid:\t33
Threads:\t1
SigQ:\t0/3906
SigPnd:\t0000000000000000
ShdPnd:\t0000000000000000
SigBlk:\t0000000000000000
SigIgn:\t0000000000000000
SigCgt:\t0000000000000000
CapInh:\t0000000000000000
CapPrm:\t0000000000000000
CapEff:\t0000000000000000
CapBnd:\t0000003fffffffff
Seccomp:\t0
";

    #[test]
    fn a_thread_of_6_18() -> Result<(), ParseError> {
        let status = parse_status(V6_18)?;
        assert_eq!(status.name, b"a\\b\nc d");
        assert_eq!(status.umask, Some(0o22));
        assert_eq!(status.state, TaskState::Running);
        assert_eq!((status.tgid, status.pid, status.ppid), (5782, 5782, 5777));
        assert_eq!(status.uid.fs, 3);
        assert_eq!(status.gid.saved, 6);
        assert_eq!(status.groups, [4, 24, 4294967294]);
        assert_eq!(
            (status.ns_pid, status.ns_sid),
            (vec![5783, 8], vec![4078, 0])
        );
        assert_eq!((status.sigq, status.sigq_limit), (3, 96365));
        assert_eq!(status.sig_pnd, 0x200);
        assert_eq!(status.shd_pnd, 1);
        assert_eq!(status.sig_blk, 1 << 63);
        assert_eq!(status.cap_amb, 0x400);
        assert_eq!(status.no_new_privs, Some(true));
        assert_eq!((status.seccomp, status.seccomp_filters), (Some(2), Some(3)));
        assert_eq!(status.thp_enabled, Some(true));
        assert_eq!((status.vm_size_kb, status.vm_lck_kb), (Some(180), Some(8)));
        assert_eq!(
            status.thread_features,
            [b"shstk".to_vec(), b"wrss".to_vec()]
        );
        Ok(())
    }

    #[test]
    fn a_zombie_of_4_4() -> Result<(), ParseError> {
        let status = parse_status(ZOMBIE_4_4)?;
        assert_eq!(status.state, TaskState::Zombie);
        assert!(!status.has_mm());
        assert!(status.groups.is_empty());
        assert_eq!((status.umask, status.no_new_privs), (None, None));
        assert_eq!((status.thp_enabled, status.cap_amb), (None, 0));
        Ok(())
    }

    #[test]
    fn what_is_missing_or_broken_is_named() {
        let text = String::from_utf8_lossy(V6_18);
        let without = text.replace("NSsid:\t4078\t0\n", "");
        let error = parse_status(without.as_bytes()).err();
        assert_eq!(error.map(|e| (e.line, e.what)), Some((0, "NSsid")));
        for (from, to, what) in [
            ("Uid:\t0\t1\t2\t3", "Uid:\t0\t1\t2", "Uid"),
            ("SigBlk:\t8", "SigBlk:\tg", "SigBlk"),
            ("R (running)", "? (odd)", "State"),
            ("SigQ:\t3/96365", "SigQ:\t3", "SigQ"),
            ("Groups:\t4 ", "Groups:\tx ", "Groups"),
        ] {
            let bad = text.replace(from, to);
            assert_ne!(bad, text);
            let error = parse_status(bad.as_bytes()).err();
            assert_eq!(error.as_ref().map(|e| e.what), Some(what));
            assert!(error.is_some_and(|e| e.line > 0));
        }
    }

    #[test]
    fn our_own_status_parses() {
        let text = std::fs::read("/proc/self/status").expect("our own status is readable");
        let status = parse_status(&text).expect("the running kernel's format is known");
        assert_eq!(status.tgid, nix::unistd::getpid().as_raw());
        assert!(status.has_mm());
    }
}
