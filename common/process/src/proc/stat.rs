//! /proc/PID/stat: the 52 numbers of do_task_stat() (fs/proc/array.c, proc_pid_stat(5)).
//!
//! comm stands in parentheses without any escape, so it may hold blanks, parentheses and
//! newlines: it ends at the last `)`. Addresses and the exit code read as 0 without ptrace
//! access to the task, and so do the addresses of a task without mm.

use super::status::TaskState;
use super::text::{Line, ParseError};

macro_rules! stat {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// A parsed stat file. Fields 3 and on, in the kernel's order.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Stat {
            /// 1: thread id.
            pub pid: i32,
            /// 2: comm, at most 15 bytes for user tasks.
            pub comm: Vec<u8>,
            /// 3: state.
            pub state: TaskState,
            $($(#[$doc])* pub $name: $type,)*
        }

        /// Parses the whole of /proc/PID/stat or /proc/PID/task/TID/stat. Fields behind the 52nd
        /// are those of a newer kernel and left alone.
        pub fn parse_stat(text: &[u8]) -> Result<Stat, ParseError> {
            let line = Line::new("stat", 1, text.strip_suffix(b"\n").unwrap_or(text));
            let (head, comm, tail) = split_comm(line.text()).ok_or_else(|| line.error("comm"))?;
            let pid = line.words_of(head).decimal("pid")?;
            let mut words = line.words_of(tail);
            let letter = words.word("state")?.first().copied().unwrap_or(0);
            Ok(Stat {
                pid,
                comm: comm.to_vec(),
                state: TaskState::from_letter(letter).ok_or_else(|| line.error("state"))?,
                $($name: words.decimal(stringify!($name))?,)*
            })
        }
    };
}

stat! {
    /// 4: parent.
    ppid: i32,
    /// 5: process group, -1 while the task is being reaped.
    pgrp: i32,
    /// 6: session, -1 while the task is being reaped.
    session: i32,
    /// 7: controlling terminal as new_encode_dev(), 0 for none.
    tty_nr: i32,
    /// 8: foreground process group of that terminal, -1 for none.
    tpgid: i32,
    /// 9: PF_* of include/linux/sched.h.
    flags: u32,
    /// 10.
    minflt: u64,
    /// 11.
    cminflt: u64,
    /// 12.
    majflt: u64,
    /// 13.
    cmajflt: u64,
    /// 14: user time in clock ticks.
    utime: u64,
    /// 15: system time in clock ticks.
    stime: u64,
    /// 16: user time of reaped children.
    cutime: i64,
    /// 17: system time of reaped children.
    cstime: i64,
    /// 18: the kernel's view of the priority.
    priority: i64,
    /// 19: -20 to 19.
    nice: i64,
    /// 20.
    num_threads: i64,
    /// 21: always 0.
    itrealvalue: i64,
    /// 22: start in clock ticks since boot: with the pid it names a task for good.
    starttime: u64,
    /// 23: bytes mapped.
    vsize: u64,
    /// 24: pages resident.
    rss: i64,
    /// 25: RLIMIT_RSS.
    rsslim: u64,
    /// 26.
    start_code: u64,
    /// 27.
    end_code: u64,
    /// 28.
    start_stack: u64,
    /// 29: 0 since 4.14 except for a dumping task.
    kstkesp: u64,
    /// 30: likewise.
    kstkeip: u64,
    /// 31: low 31 signals only, see status.
    signal: u64,
    /// 32.
    blocked: u64,
    /// 33.
    sigignore: u64,
    /// 34.
    sigcatch: u64,
    /// 35: 1 when blocked in the kernel.
    wchan: u64,
    /// 36: always 0.
    nswap: u64,
    /// 37: always 0.
    cnswap: u64,
    /// 38: signal sent to the parent on death; -1 for a thread that is no leader.
    exit_signal: i32,
    /// 39.
    processor: i32,
    /// 40: 1 to 99 for real-time policies.
    rt_priority: u32,
    /// 41: SCHED_*.
    policy: u32,
    /// 42.
    delayacct_blkio_ticks: u64,
    /// 43.
    guest_time: u64,
    /// 44.
    cguest_time: i64,
    /// 45.
    start_data: u64,
    /// 46.
    end_data: u64,
    /// 47: where brk starts.
    start_brk: u64,
    /// 48.
    arg_start: u64,
    /// 49.
    arg_end: u64,
    /// 50.
    env_start: u64,
    /// 51.
    env_end: u64,
    /// 52: wait status, as waitpid(2) has it.
    exit_code: i32,
}

/// Head up to the first `(`, comm up to the last `)`, tail.
fn split_comm(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let open = text.iter().position(|&b| b == b'(')?;
    let close = text.iter().rposition(|&b| b == b')')?;
    Some((
        text.get(..open)?,
        text.get(open + 1..close)?,
        text.get(close + 1..)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] =
        b"5782 (sl) (e\nep) R 5777 5776 4078 34816 -1 4194304 130 0 1 0 0 0 0 0 20 -5 \
1 0 108206 2990080 415 18446744073709551615 93835128647680 93835128665609 140726704478816 0 0 0 \
0 6 0 1 0 0 17 1 50 2 0 0 0 93835128679696 93835128680960 93835130986496 140726704487135 \
140726704487143 140726704487144 140726704488425 256\n";

    #[test]
    fn all_fields() -> Result<(), ParseError> {
        let stat = parse_stat(TEXT)?;
        assert_eq!((stat.pid, stat.comm.as_slice()), (5782, &b"sl) (e\nep"[..]));
        assert_eq!((stat.ppid, stat.pgrp, stat.session), (5777, 5776, 4078));
        assert_eq!((stat.tty_nr, stat.tpgid, stat.flags), (34816, -1, 4194304));
        assert_eq!(
            (stat.nice, stat.num_threads, stat.starttime),
            (-5, 1, 108206)
        );
        assert_eq!(stat.rsslim, u64::MAX);
        assert_eq!(stat.start_code, 93835128647680);
        assert_eq!(stat.start_stack, 140726704478816);
        assert_eq!((stat.exit_signal, stat.processor), (17, 1));
        assert_eq!((stat.rt_priority, stat.policy), (50, 2));
        assert_eq!(stat.start_data, 93835128679696);
        assert_eq!(stat.start_brk, 93835130986496);
        assert_eq!(
            (stat.env_start, stat.env_end),
            (140726704487144, 140726704488425)
        );
        assert_eq!(stat.exit_code, 256);
        Ok(())
    }

    #[test]
    fn more_fields_are_fine_fewer_are_not() {
        let longer = [TEXT.strip_suffix(b"\n").unwrap_or(TEXT), b" 7 8\n"].concat();
        assert!(parse_stat(&longer).is_ok());
        let cut = TEXT.strip_suffix(b" 256\n").unwrap_or(TEXT);
        assert_eq!(parse_stat(cut).err().map(|e| e.what), Some("exit_code"));
        assert_eq!(parse_stat(b"1 sh R").err().map(|e| e.what), Some("comm"));
        assert_eq!(parse_stat(b"1 )sh( R").err().map(|e| e.what), Some("comm"));
        assert_eq!(parse_stat(b"1 (sh) ?").err().map(|e| e.what), Some("state"));
        assert!(parse_stat(b"").is_err());
    }

    #[test]
    fn our_own_stat_parses() {
        let text = std::fs::read("/proc/self/stat").expect("our own stat is readable");
        let stat = parse_stat(&text).expect("the running kernel's format is known");
        assert_eq!(stat.pid, nix::unistd::getpid().as_raw());
        assert_ne!(stat.start_brk, 0);
    }
}
