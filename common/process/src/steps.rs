//! Numbered steps, at any of which a test lets us die.
//!
//! Whatever we change outside of ourselves is preceded by [`step`]: each ptrace request, each
//! write into a task, each image, each file, the clone of a task. With debug assertions the steps
//! are counted, and CRUST_DIE_AT_STEP=N in the environment makes the Nth a SIGKILL of our own:
//! the tests of survival go through all of them. Without debug assertions nothing of this is
//! compiled; this counter is the one global of Crust.

#[cfg(debug_assertions)]
mod counted {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static TAKEN: AtomicU64 = AtomicU64::new(0);
    static LAST: OnceLock<u64> = OnceLock::new();

    pub fn step() {
        let number = TAKEN.fetch_add(1, Ordering::Relaxed) + 1;
        if number == *LAST.get_or_init(last_of_environment) {
            // SAFETY: kill and pause take numbers only.
            unsafe {
                libc::kill(libc::getpid(), libc::SIGKILL);
                // Another thread of ours may be the one that takes the signal.
                libc::pause();
            }
        }
    }

    fn last_of_environment() -> u64 {
        let text = std::env::var("CRUST_DIE_AT_STEP").unwrap_or_default();
        text.parse().unwrap_or(u64::MAX)
    }

    pub fn taken() -> Option<u64> {
        Some(TAKEN.load(Ordering::Relaxed))
    }
}

#[cfg(not(debug_assertions))]
mod counted {
    #[inline(always)]
    pub fn step() {}

    pub fn taken() -> Option<u64> {
        None
    }
}

/// A step is about to be taken.
#[inline(always)]
pub fn step() {
    counted::step();
}

/// How many steps were taken so far, where they are counted.
pub fn taken() -> Option<u64> {
    counted::taken()
}
