//! /proc/PID/timers: the POSIX timers of a process (timer_create(2)), four lines each, as
//! show_timer() of fs/proc/base.c prints them. Remaining time, interval and overrun are not
//! here: only the task itself can ask for them with timer_gettime(2). Since 3.10, with
//! CONFIG_CHECKPOINT_RESTORE or, since 4.10, always with POSIX timers.

use super::text::{Line, ParseError, Words, decimal, hex, lines};

/// One POSIX timer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PosixTimer {
    /// Kernel timer id, what timer_create(2) gave.
    pub id: i32,
    /// Signal number of the sigevent.
    pub signo: i32,
    /// sigev_value.
    pub sigev_value: u64,
    /// SIGEV_SIGNAL, SIGEV_NONE or SIGEV_THREAD, with SIGEV_THREAD_ID or'ed in.
    pub notify: i32,
    /// The process, or with SIGEV_THREAD_ID the thread, in the pid namespace of the procfs
    /// mount; 0 when it is gone.
    pub pid: i32,
    /// Clock; negative for CPU clocks of a process or thread.
    pub clock_id: i32,
}

/// Parses the whole of /proc/PID/timers.
pub fn parse_timers(text: &[u8]) -> Result<Vec<PosixTimer>, ParseError> {
    let mut timers = Vec::new();
    let mut rest = lines("timers", text);
    while let Some(first) = rest.next() {
        timers.push(parse_timer(first, &mut rest)?);
    }
    Ok(timers)
}

fn parse_timer<'a>(
    first: Line<'a>,
    rest: &mut impl Iterator<Item = Line<'a>>,
) -> Result<PosixTimer, ParseError> {
    let mut next = |key| match rest.next() {
        Some(line) => line.value_of(key),
        None => Err(first.error(key)),
    };
    let (signo, sigev_value) = parse_signal(next("signal")?)?;
    let (notify, pid) = parse_notify(next("notify")?)?;
    Ok(PosixTimer {
        id: first.value_of("ID")?.decimal("ID")?,
        signo,
        sigev_value,
        notify,
        pid,
        clock_id: next("ClockID")?.decimal("ClockID")?,
    })
}

/// `60/00007fff86e452a8`; a null pointer may print as `(null)`.
fn parse_signal(mut words: Words<'_>) -> Result<(i32, u64), ParseError> {
    let (signo, value) = split_at_byte(words.word("signal")?, b'/');
    let value = match value {
        Some(b"(null)") => Some(0),
        Some(digits) => hex(digits),
        None => None,
    };
    match (decimal(signo), value) {
        (Some(signo), Some(value)) => Ok((signo, value)),
        _ => Err(words.error("signal")),
    }
}

/// `signal/pid.2634`, `thread/tid.7`, `none/pid.0`.
fn parse_notify(mut words: Words<'_>) -> Result<(i32, i32), ParseError> {
    let (method, target) = split_at_byte(words.word("notify")?, b'/');
    let (kind, pid) = split_at_byte(target.unwrap_or_default(), b'.');
    let method = match method {
        b"signal" => Some(libc::SIGEV_SIGNAL),
        b"none" => Some(libc::SIGEV_NONE),
        b"thread" => Some(libc::SIGEV_THREAD),
        _ => None,
    };
    let kind = match kind {
        b"pid" => Some(0),
        b"tid" => Some(libc::SIGEV_THREAD_ID),
        _ => None,
    };
    match (method, kind, pid.and_then(decimal)) {
        (Some(method), Some(kind), Some(pid)) => Ok((method | kind, pid)),
        _ => Err(words.error("notify")),
    }
}

fn split_at_byte(text: &[u8], byte: u8) -> (&[u8], Option<&[u8]>) {
    let mut parts = text.splitn(2, |&b| b == byte);
    (parts.next().unwrap_or_default(), parts.next())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
ID: 1
signal: 60/00007fff86e452a8
notify: signal/pid.2634
ClockID: 0
ID: 0
signal: 14/(null)
notify: signal/tid.2635
ClockID: -6
ID: 7
signal: 0/0000000000000000
notify: none/pid.0
ClockID: 1
";

    #[test]
    fn timers_of_every_kind() -> Result<(), ParseError> {
        let timer = |id, signo, sigev_value, notify, pid, clock_id| PosixTimer {
            id,
            signo,
            sigev_value,
            notify,
            pid,
            clock_id,
        };
        assert_eq!(
            parse_timers(TEXT)?,
            [
                timer(1, 60, 0x7fff86e452a8, libc::SIGEV_SIGNAL, 2634, 0),
                timer(0, 14, 0, libc::SIGEV_THREAD_ID, 2635, -6),
                timer(7, 0, 0, libc::SIGEV_NONE, 0, 1),
            ]
        );
        assert_eq!(parse_timers(b"")?, []);
        Ok(())
    }

    #[test]
    fn broken_timers_are_named() {
        for (bad, what) in [
            (
                &b"ID: 1\nsignal: 60/0\nnotify: signal/pid.1\n"[..],
                "ClockID",
            ),
            (
                b"ID: x\nsignal: 60/0\nnotify: signal/pid.1\nClockID: 0\n",
                "ID",
            ),
            (
                b"ID: 1\nsignal: 60\nnotify: signal/pid.1\nClockID: 0\n",
                "signal",
            ),
            (
                b"ID: 1\nsignal: 60/0\nnotify: mail/pid.1\nClockID: 0\n",
                "notify",
            ),
            (b"ID: 1\nnotify: signal/pid.1\n", "signal"),
        ] {
            assert_eq!(parse_timers(bad).err().map(|e| e.what), Some(what));
        }
    }
}
