//! The credentials of a thread, from its status file and PR_GET_SECUREBITS.
//!
//! A capability set is an array of 32-bit words, low word first. Ids are those of our user
//! namespace; a task in another one is refused (tree/ids). LSM labels are not carried: they are
//! looked for where a security module is active, and refused (task/mod).

use crust_process::proc::status::Status;
use crust_proto::criu::CredsEntry;

/// Encodes the credentials.
pub fn encode_creds(status: &Status, securebits: u32) -> CredsEntry {
    CredsEntry {
        uid: status.uid.real,
        gid: status.gid.real,
        euid: status.uid.effective,
        egid: status.gid.effective,
        suid: status.uid.saved,
        sgid: status.gid.saved,
        fsuid: status.uid.fs,
        fsgid: status.gid.fs,
        cap_inh: words(status.cap_inh),
        cap_prm: words(status.cap_prm),
        cap_eff: words(status.cap_eff),
        cap_bnd: words(status.cap_bnd),
        secbits: securebits,
        groups: status.groups.clone(),
        lsm_profile: None,
        lsm_sockcreate: None,
        apparmor_data: None,
        // Present only when set, as the peer writes it.
        no_new_privs: (status.no_new_privs == Some(true)).then_some(1),
        cap_amb: words(status.cap_amb),
    }
}

fn words(set: u64) -> Vec<u32> {
    vec![set as u32, (set >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_two_words_low_first() {
        assert_eq!(words(0x1ff_feff_ffff), [0xfeff_ffff, 0x1ff]);
    }
}
