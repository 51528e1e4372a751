//! Options of a socket that the images have in a field of our own: those of a table, by name.

use super::calls::set_option;
use crate::plan::step::{Call, SlotId};
use crust_process::kept_options::find;
use crust_process::multicast::{Group, MCAST_JOIN_GROUP};
use crust_proto::criu::{CrustGroupEntry, CrustOptionEntry};
use nix::libc;

/// Longest name of a congestion control (TCP_CA_NAME_MAX).
const LONGEST_NAME: usize = 16;

/// The calls that set them.
pub fn calls(options: &[CrustOptionEntry], slot: SlotId) -> Result<Vec<Call>, String> {
    let set = |option: &CrustOptionEntry| {
        let CrustOptionEntry { level, name, value } = *option;
        let kept = find(level, name)
            .ok_or_else(|| format!("crust_options: option {name} of level {level} is not kept"))?;
        let (level_text, text) = kept.text;
        let value = value.to_le_bytes().to_vec();
        Ok(set_option(slot, (level_text, level), (text, name), value))
    };
    options.iter().map(set).collect()
}

/// The call that chooses the congestion control.
pub fn congestion(name: Option<&Vec<u8>>, slot: SlotId) -> Result<Option<Call>, String> {
    let Some(name) = name else { return Ok(None) };
    if name.is_empty() || name.len() >= LONGEST_NAME {
        return Err("crust_congestion is no name of a congestion control".to_owned());
    }
    let level = ("IPPROTO_TCP", libc::IPPROTO_TCP);
    let option = ("TCP_CONGESTION", libc::TCP_CONGESTION);
    Ok(Some(set_option(slot, level, option, name.clone())))
}

/// The calls that make it a member of multicast groups.
pub fn groups(groups: &[CrustGroupEntry], slot: SlotId) -> Result<Vec<Call>, String> {
    let join = |entry: &CrustGroupEntry| {
        let group = Group {
            ifindex: entry.ifindex,
            address: entry.group.clone(),
        };
        let level = group.level().ok_or_else(|| {
            let len = entry.group.len();
            format!("crust_groups: a group of {len} bytes, not 4 or 16")
        })?;
        let option = ("MCAST_JOIN_GROUP", MCAST_JOIN_GROUP);
        Ok(set_option(slot, level, option, group.request()))
    };
    groups.iter().map(join).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_the_table_is_set() {
        let option = |level, name| CrustOptionEntry {
            level,
            name,
            value: 1,
        };
        let good = option(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT);
        assert_eq!(calls(&[good], SlotId(0)).map(|calls| calls.len()), Ok(1));
        let wild = option(libc::SOL_SOCKET, libc::SO_ATTACH_BPF);
        assert!(calls(&[good, wild], SlotId(0)).is_err());
        assert!(congestion(Some(&vec![b'x'; 16]), SlotId(0)).is_err());
        assert!(congestion(Some(&b"reno".to_vec()), SlotId(0)).is_ok());
    }

    #[test]
    fn groups_are_joined_on_their_interface() {
        let group = |len: usize| CrustGroupEntry {
            ifindex: 7,
            group: vec![0xef; len],
        };
        let calls = groups(&[group(4), group(16)], SlotId(0)).expect("two groups");
        let text = serde_json::to_string(&calls).expect("plans are printed");
        for word in ["MCAST_JOIN_GROUP", "IPPROTO_IP\"", "IPPROTO_IPV6\""] {
            assert!(text.contains(word), "{word} in {text}");
        }
        assert!(groups(&[group(5)], SlotId(0)).is_err());
    }
}
