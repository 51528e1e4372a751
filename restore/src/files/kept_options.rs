//! Options of a socket that the images have in a field of our own: those of a table, by name.

use super::calls::set_option;
use crate::plan::step::{Call, SlotId};
use crust_process::kept_options::find;
use crust_proto::criu::CrustOptionEntry;
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
}
