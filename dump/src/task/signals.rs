//! Signals: what each does, which are pending, the alternate stack.
//!
//! Actions are the process's and only the process itself can tell them (rt_sigaction(2)); 9 and
//! 19 cannot be changed and are not in the images. A pending signal is the kernel's raw siginfo.

use crust_proto::criu::{SaEntry, SiginfoEntry, SignalQueueEntry, ThreadSasEntry};

/// Bytes of the kernel's struct sigaction on x86_64: handler, flags, restorer, mask.
pub const SIGACTION_LEN: usize = 32;
/// Bytes of stack_t: ss_sp, ss_flags, padding, ss_size.
pub const STACK_LEN: usize = 24;
/// The number of signals.
pub const SIGNALS: u32 = 64;

/// Whether a signal has an action in the images.
pub fn has_action(signal: u32) -> bool {
    !matches!(signal, 9 | 19)
}

/// An action as rt_sigaction(2) gives it.
pub fn encode_action(raw: &[u8; SIGACTION_LEN]) -> SaEntry {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| raw[at + i]));
    SaEntry {
        sigaction: word(0),
        flags: word(8),
        restorer: word(16),
        mask: word(24),
        compat_sigaction: Some(false),
        mask_extended: None,
    }
}

/// A queue of pending signals, oldest first.
pub fn encode_queue(infos: &[[u8; 128]]) -> SignalQueueEntry {
    let signals = infos
        .iter()
        .map(|info| SiginfoEntry {
            siginfo: info.to_vec(),
        })
        .collect();
    SignalQueueEntry { signals }
}

/// An alternate stack as sigaltstack(2) gives it.
pub fn encode_altstack(raw: &[u8; STACK_LEN]) -> ThreadSasEntry {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| raw[at + i]));
    ThreadSasEntry {
        ss_sp: word(0),
        ss_size: word(16),
        ss_flags: word(8) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_an_action_keep_their_places() {
        let mut raw = [0; SIGACTION_LEN];
        for (index, word) in [0x1111u64, 0x0400_0004, 0x3333, 0x4444].iter().enumerate() {
            raw[index * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        let action = encode_action(&raw);
        assert_eq!((action.sigaction, action.flags), (0x1111, 0x0400_0004));
        assert_eq!((action.restorer, action.mask), (0x3333, 0x4444));
    }

    #[test]
    fn the_flags_of_a_stack_are_32_bits_wide() {
        let mut raw = [0xff; STACK_LEN];
        raw[..8].copy_from_slice(&0x7000u64.to_le_bytes());
        raw[8..12].copy_from_slice(&0x8000_0001u32.to_le_bytes());
        raw[16..].copy_from_slice(&0x4000u64.to_le_bytes());
        let stack = encode_altstack(&raw);
        assert_eq!(
            (stack.ss_sp, stack.ss_size, stack.ss_flags),
            (0x7000, 0x4000, 0x8000_0001)
        );
    }
}
