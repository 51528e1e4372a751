//! States of a TCP socket as the kernel counts them (include/net/tcp_states.h) and as `inet_sk_entry`
//! and `unix_sk_entry` have them; sockets of other families use the same numbers for those states
//! that they know.

/// Connected: both sides may send.
pub const ESTABLISHED: u32 = 1;
/// connect(2) has sent its first packet.
pub const SYN_SENT: u32 = 2;
/// A connection that its listener has not finished; only TCP_FASTOPEN gives it a descriptor.
pub const SYN_RECEIVED: u32 = 3;
/// Our end is sent and not acknowledged.
pub const FIN_WAIT1: u32 = 4;
/// Our end is acknowledged, the peer may still send.
pub const FIN_WAIT2: u32 = 5;
/// Without a peer: new, or ended.
pub const CLOSE: u32 = 7;
/// The peer has ended.
pub const CLOSE_WAIT: u32 = 8;
/// The peer has ended, and our end is sent.
pub const LAST_ACK: u32 = 9;
/// It takes connections.
pub const LISTEN: u32 = 10;
/// Both ends are sent, the peer has not acknowledged ours.
pub const CLOSING: u32 = 11;

/// States of the kernel's own lie behind this one.
pub const LAST: u32 = CLOSING;

/// Whether a socket in this state has a peer.
pub fn is_connected(state: u32) -> bool {
    state == SYN_SENT || has_queues(state)
}

/// Whether both sides have agreed on numbers: bytes may wait in both directions.
pub fn has_queues(state: u32) -> bool {
    let ending = has_sent_fin(state) || has_got_fin(state);
    state == ESTABLISHED || ending
}

/// Whether our side has sent its end: the next number to send counts a FIN then.
pub fn has_sent_fin(state: u32) -> bool {
    [FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING].contains(&state)
}

/// Whether the peer's end has come: the next number to receive counts a FIN then.
pub fn has_got_fin(state: u32) -> bool {
    [CLOSE_WAIT, LAST_ACK, CLOSING].contains(&state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_fall_into_their_groups() {
        let all = |has: fn(u32) -> bool| (0..=13).filter(|state| has(*state)).collect::<Vec<_>>();
        assert_eq!(all(is_connected), [1, 2, 4, 5, 8, 9, 11]);
        assert_eq!(all(has_queues), [1, 4, 5, 8, 9, 11]);
        assert_eq!(all(has_sent_fin), [4, 5, 9, 11]);
        assert_eq!(all(has_got_fin), [8, 9, 11]);
    }
}
