//! /proc/PID/limits: the sixteen resource limits, as fs/proc/base.c prints them. The text is
//! exact: a finite limit is a decimal number, RLIM_INFINITY is "unlimited". It serves where
//! prlimit(2) on a foreign task is refused for lack of CAP_SYS_RESOURCE.

use super::text::{Line, ParseError, decimal, lines};

/// Names in the order of RLIMIT_* (asm-generic/resource.h): the index is the resource.
const NAMES: [&str; 16] = [
    "Max cpu time",
    "Max file size",
    "Max data size",
    "Max stack size",
    "Max core file size",
    "Max resident set",
    "Max processes",
    "Max open files",
    "Max locked memory",
    "Max address space",
    "Max file locks",
    "Max pending signals",
    "Max msgqueue size",
    "Max nice priority",
    "Max realtime priority",
    "Max realtime timeout",
];

/// Width of the name column and of each of the two number columns, separators apart.
const NAME_WIDTH: usize = 25;

/// One resource limit; RLIM_INFINITY is `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// Parses the whole of /proc/PID/limits; the index is RLIMIT_*.
pub fn parse_limits(text: &[u8]) -> Result<[Limit; 16], ParseError> {
    let mut found = [None; 16];
    for line in lines("limits", text).skip(1) {
        let (at, limit) = parse_limit(line)?;
        if let Some(slot) = found.get_mut(at) {
            *slot = Some(limit);
        }
    }
    let mut limits = [Limit { soft: 0, hard: 0 }; 16];
    for ((limit, found), name) in limits.iter_mut().zip(found).zip(NAMES) {
        *limit = found.ok_or_else(|| Line::new("limits", 0, b"").error(name))?;
    }
    Ok(limits)
}

fn parse_limit(line: Line<'_>) -> Result<(usize, Limit), ParseError> {
    let name = line.text().get(..NAME_WIDTH).unwrap_or_default();
    let at = NAMES
        .iter()
        .position(|known| known.as_bytes() == name.trim_ascii_end())
        .ok_or_else(|| line.error("resource name"))?;
    let mut words = line.words_of(line.text().get(NAME_WIDTH..).unwrap_or_default());
    let mut number = |what| match words.word(what)? {
        b"unlimited" => Ok(u64::MAX),
        digits => decimal(digits).ok_or_else(|| line.error(what)),
    };
    let limit = Limit {
        soft: number("soft limit")?,
        hard: number("hard limit")?,
    };
    Ok((at, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
Limit                     Soft Limit           Hard Limit           Units     
Max cpu time              unlimited            unlimited            seconds   
Max file size             unlimited            unlimited            bytes     
Max data size             unlimited            unlimited            bytes     
Max stack size            8388608              unlimited            bytes     
Max core file size        0                    unlimited            bytes     
Max resident set          unlimited            unlimited            bytes     
Max processes             96365                96366                processes 
Max open files            1024                 20000                files     
Max locked memory         8388608              8388608              bytes     
Max address space         unlimited            unlimited            bytes     
Max file locks            unlimited            unlimited            locks     
Max pending signals       96365                96365                signals   
Max msgqueue size         819200               819200               bytes     
Max nice priority         0                    0                    
Max realtime priority     0                    7                    
Max realtime timeout      unlimited            unlimited            us        
";

    #[test]
    fn the_index_is_the_resource() -> Result<(), ParseError> {
        let limits = parse_limits(TEXT)?;
        let limit = |soft, hard| Limit { soft, hard };
        assert_eq!(
            limits[libc::RLIMIT_STACK as usize],
            limit(8388608, u64::MAX)
        );
        assert_eq!(limits[libc::RLIMIT_NPROC as usize], limit(96365, 96366));
        assert_eq!(limits[libc::RLIMIT_NOFILE as usize], limit(1024, 20000));
        assert_eq!(limits[libc::RLIMIT_RTPRIO as usize], limit(0, 7));
        assert_eq!(
            limits[libc::RLIMIT_RTTIME as usize],
            limit(u64::MAX, u64::MAX)
        );
        Ok(())
    }

    #[test]
    fn missing_and_broken_lines_are_named() {
        let text = String::from_utf8_lossy(TEXT);
        let cut: String = text.lines().take(16).map(|l| format!("{l}\n")).collect();
        let error = parse_limits(cut.as_bytes()).err();
        assert_eq!(error.map(|e| e.what), Some("Max realtime timeout"));
        let bad = text.replace("1024  ", "10x4  ");
        let error = parse_limits(bad.as_bytes()).err();
        assert_eq!(error.map(|e| (e.line, e.what)), Some((9, "soft limit")));
        let new = text.replace("Max file locks ", "Max file books ");
        let error = parse_limits(new.as_bytes()).err();
        assert_eq!(error.map(|e| e.what), Some("resource name"));
    }

    #[test]
    fn our_own_limits_agree_with_getrlimit() {
        let text = std::fs::read("/proc/self/limits").expect("our own limits are readable");
        let limits = parse_limits(&text).expect("the running kernel's format is known");
        let (soft, hard) =
            nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
                .expect("RLIMIT_NOFILE can be asked for");
        let at = libc::RLIMIT_NOFILE as usize;
        assert_eq!((limits[at].soft, limits[at].hard), (soft, hard));
    }
}
