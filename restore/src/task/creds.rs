//! Credentials of a thread (struct cred is per thread): ids, groups, capability sets, securebits,
//! no_new_privs, and the seccomp filters, which need privilege too.
//!
//! Only what differs from crust-restore's own is set. The order is the kernel's: groups and gids
//! while CAP_SETGID is there; uids with SECBIT_NO_SETUID_FIXUP, so that they take no capabilities
//! away; inheritable before the bounding set shrinks, which limits it; ambient before the
//! securebits that may forbid it; the sets of capabilities last, for each earlier step needs some.

use super::{Thread, seccomp};
use crate::host::Creds;
use crate::plan::calls::prctl;
use crate::plan::step::{Arg, Call, Origin, Phase};
use crate::plan::{Planner, Refusal};
use crust_cli::code::Code;
use crust_proto::criu::CredsEntry;
use nix::libc;

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const SECBIT_NO_SETUID_FIXUP: u32 = 1 << 2;
const SECUREBITS_KNOWN: u32 = 0xff;
const CAP_SETGID: u32 = 6;
const CAP_SETUID: u32 = 7;
const CAP_SETPCAP: u32 = 8;
const MAX_GROUPS: usize = 65536;

/// Plans the credentials of one thread and, among them, its seccomp filters.
pub fn plan(planner: &mut Planner<'_>, thread: &Thread<'_>) {
    let origin = thread.origin("credentials");
    let has = planner.host.creds.clone();
    let wanted = match thread.own.creds.as_ref().map(wanted) {
        None => has.clone(),
        Some(Ok(wanted)) => wanted,
        Some(Err(why)) => return planner.refuse(Refusal::new(origin, why)),
    };
    let faults = faults(&has, &wanted);
    if !faults.is_empty() {
        for why in faults {
            planner.refuse(Refusal::new(origin.clone(), why).kind(Code::Capability));
        }
        return;
    }
    for call in before_filters(&has, &wanted) {
        planner.call(Phase::Creds, thread.actor(), call, origin.clone());
    }
    seccomp::plan_filters(planner, thread);
    for call in after_filters(&has, &wanted) {
        planner.call(Phase::Creds, thread.actor(), call, origin.clone());
    }
    plan_lsm(planner, thread, origin);
}

fn wanted(entry: &CredsEntry) -> Result<Creds, String> {
    if entry.secbits & !SECUREBITS_KNOWN != 0 {
        return Err(format!(
            "creds.secbits {:#x} has unknown bits",
            entry.secbits
        ));
    }
    if entry.groups.len() > MAX_GROUPS {
        return Err(format!("creds.groups has {} entries", entry.groups.len()));
    }
    let mut groups = entry.groups.clone();
    groups.sort_unstable();
    Ok(Creds {
        uids: [entry.uid, entry.euid, entry.suid, entry.fsuid],
        gids: [entry.gid, entry.egid, entry.sgid, entry.fsgid],
        groups,
        cap_inh: caps("cap_inh", &entry.cap_inh)?,
        cap_prm: caps("cap_prm", &entry.cap_prm)?,
        cap_eff: caps("cap_eff", &entry.cap_eff)?,
        cap_bnd: caps("cap_bnd", &entry.cap_bnd)?,
        cap_amb: caps("cap_amb", &entry.cap_amb)?,
        securebits: entry.secbits,
        no_new_privs: entry.no_new_privs.unwrap_or(0) != 0,
    })
}

/// 32-bit words, low word first; fewer mean that the high ones are empty.
fn caps(name: &str, words: &[u32]) -> Result<u64, String> {
    match words {
        [] => Ok(0),
        [low] => Ok((*low).into()),
        [low, high] => Ok(u64::from(*high) << 32 | u64::from(*low)),
        _ => Err(format!("creds.{name} has {} words", words.len())),
    }
}

/// What crust-restore lacks to give a thread these credentials.
fn faults(has: &Creds, wanted: &Creds) -> Vec<String> {
    let mut faults = Vec::new();
    let mut need = |cap: u32, differs: bool, what: &str| {
        if differs && has.cap_eff >> cap & 1 == 0 {
            faults.push(format!("{what} differ from those of crust-restore, which lacks the capability to change them"));
        }
    };
    need(CAP_SETUID, has.uids != wanted.uids, "user ids");
    need(
        CAP_SETGID,
        has.gids != wanted.gids || has.groups != wanted.groups,
        "group ids",
    );
    let bounds = has.cap_bnd != wanted.cap_bnd || has.securebits != wanted.securebits;
    need(CAP_SETPCAP, bounds, "bounding set or securebits");
    for (name, has, wanted) in [
        ("cap_prm", has.cap_prm, wanted.cap_prm),
        ("cap_bnd", has.cap_bnd, wanted.cap_bnd),
        ("cap_inh", has.cap_inh | has.cap_bnd, wanted.cap_inh),
    ] {
        let missing = wanted & !has;
        if missing != 0 {
            let missing: Vec<String> = (0..64)
                .filter(|cap| missing >> cap & 1 == 1)
                .map(|cap| cap.to_string())
                .collect();
            faults.push(format!(
                "creds.{name} has capabilities that crust-restore has not: {}",
                missing.join(", ")
            ));
        }
    }
    if wanted.cap_eff & !wanted.cap_prm != 0 {
        faults.push("creds.cap_eff is no subset of cap_prm".to_owned());
    }
    if wanted.cap_amb & !(wanted.cap_prm & wanted.cap_inh) != 0 {
        faults.push("creds.cap_amb is no subset of cap_prm and cap_inh".to_owned());
    }
    if has.no_new_privs && !wanted.no_new_privs {
        faults.push("crust-restore itself has no_new_privs, which cannot be taken back".to_owned());
    }
    faults
}

/// Everything up to the ambient set. Capabilities stay those of crust-restore.
fn before_filters(has: &Creds, wanted: &Creds) -> Vec<Call> {
    let mut calls = Vec::new();
    if has.groups != wanted.groups {
        let list: Vec<u8> = wanted
            .groups
            .iter()
            .flat_map(|group| group.to_le_bytes())
            .collect();
        let args = vec![Arg::Int(wanted.groups.len() as i64), Arg::bytes(list)];
        calls.push(Call::new("setgroups", libc::SYS_setgroups, args));
    }
    if has.gids != wanted.gids {
        let [real, effective, saved, fs] = wanted.gids;
        calls.push(Call::new(
            "setresgid",
            libc::SYS_setresgid,
            ids(&[real, effective, saved]),
        ));
        // setfsgid tells the old id, whatever it does.
        calls.push(Call::new("setfsgid", libc::SYS_setfsgid, ids(&[fs])));
    }
    if has.uids != wanted.uids {
        calls.push(securebits(has.securebits | SECBIT_NO_SETUID_FIXUP));
        let [real, effective, saved, fs] = wanted.uids;
        calls.push(Call::new(
            "setresuid",
            libc::SYS_setresuid,
            ids(&[real, effective, saved]),
        ));
        calls.push(Call::new("setfsuid", libc::SYS_setfsuid, ids(&[fs])));
    }
    if has.cap_inh != wanted.cap_inh {
        calls.push(capset(has.cap_eff, has.cap_prm, wanted.cap_inh));
    }
    for cap in (0..64).filter(|cap| (has.cap_bnd & !wanted.cap_bnd) >> cap & 1 == 1) {
        calls.push(prctl(
            "PR_CAPBSET_DROP",
            libc::PR_CAPBSET_DROP,
            [Arg::Int(cap)],
        ));
    }
    calls.extend(ambient(has, wanted));
    if wanted.no_new_privs && !has.no_new_privs {
        calls.push(prctl(
            "PR_SET_NO_NEW_PRIVS",
            libc::PR_SET_NO_NEW_PRIVS,
            [Arg::Int(1)],
        ));
    }
    calls
}

fn ambient(has: &Creds, wanted: &Creds) -> Vec<Call> {
    let mut calls = Vec::new();
    // Ambient capabilities go with the inheritable ones and at a change to another uid.
    let changed =
        has.cap_amb != wanted.cap_amb || has.uids != wanted.uids || has.cap_inh != wanted.cap_inh;
    if !changed {
        return calls;
    }
    let option = |name: &str, option: i32, cap: i64| {
        let args = [Arg::named(name, option), Arg::Int(cap)];
        prctl("PR_CAP_AMBIENT", libc::PR_CAP_AMBIENT, args)
    };
    if has.cap_amb != 0 {
        calls.push(option(
            "PR_CAP_AMBIENT_CLEAR_ALL",
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
        ));
    }
    for cap in (0..64).filter(|cap| wanted.cap_amb >> cap & 1 == 1) {
        calls.push(option(
            "PR_CAP_AMBIENT_RAISE",
            libc::PR_CAP_AMBIENT_RAISE,
            cap,
        ));
    }
    calls
}

/// What takes the last privileges away.
fn after_filters(has: &Creds, wanted: &Creds) -> Vec<Call> {
    let mut calls = Vec::new();
    if has.securebits != wanted.securebits || has.uids != wanted.uids {
        calls.push(securebits(wanted.securebits));
    }
    if (has.cap_eff, has.cap_prm) != (wanted.cap_eff, wanted.cap_prm)
        || has.cap_inh != wanted.cap_inh
    {
        calls.push(capset(wanted.cap_eff, wanted.cap_prm, wanted.cap_inh));
    }
    calls
}

fn ids(ids: &[u32]) -> Vec<Arg> {
    ids.iter().map(|&id| Arg::Int(id.into())).collect()
}

fn securebits(bits: u32) -> Call {
    prctl(
        "PR_SET_SECUREBITS",
        libc::PR_SET_SECUREBITS,
        [Arg::Hex(bits.into())],
    )
}

/// capset(2), version 3: a header, then effective, permitted and inheritable of the low words,
/// then of the high ones.
fn capset(effective: u64, permitted: u64, inheritable: u64) -> Call {
    let mut header = CAPABILITY_VERSION_3.to_le_bytes().to_vec();
    header.extend([0; 4]);
    let mut data = Vec::new();
    for shift in [0, 32] {
        for set in [effective, permitted, inheritable] {
            data.extend(((set >> shift) as u32).to_le_bytes());
        }
    }
    Call::new(
        "capset",
        libc::SYS_capset,
        vec![Arg::bytes(header), Arg::bytes(data)],
    )
}

/// The label that `--lsm-profile` gives, or that of the image. Unconfined is what a task is anyway;
/// for any other the policy of a module would have to let us change to it.
fn plan_lsm(planner: &mut Planner<'_>, thread: &Thread<'_>, origin: Origin) {
    let creds = thread.own.creds.as_ref();
    let stored = creds.and_then(|creds| creds.lsm_profile.clone());
    let given = planner.options.lsm_profile.as_ref();
    let label = match given {
        Some((_, label)) => Some(label.clone().into_bytes()),
        None => stored,
    };
    if let Some(why) = label
        .as_deref()
        .and_then(|label| label_refusal(label, given.is_some()))
    {
        let hint = "--lsm-profile apparmor:unconfined restores it without confinement";
        planner.refuse(Refusal::new(origin.clone(), why).hint(hint));
    }
    let sockcreate = creds.and_then(|creds| creds.lsm_sockcreate.as_ref());
    if given.is_none() && sockcreate.is_some_and(|label| !label.is_empty()) {
        let why = "creds.lsm_sockcreate cannot be restored yet";
        planner.refuse(Refusal::new(origin, why));
    }
}

fn label_refusal(label: &[u8], is_given: bool) -> Option<String> {
    if label.is_empty() || label == b"unconfined" {
        return None;
    }
    let label = String::from_utf8_lossy(label);
    let whose = match is_given {
        true => "--lsm-profile",
        false => "creds.lsm_profile",
    };
    Some(format!("{whose} {label:?}: labels cannot be restored yet"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::recorded;

    #[test]
    fn only_a_confining_label_is_refused() {
        assert_eq!(label_refusal(b"unconfined", false), None);
        assert_eq!(label_refusal(b"", false), None);
        let why = label_refusal(b"docker-default", false).expect("confining");
        assert!(why.contains("creds.lsm_profile") && why.contains("docker-default"));
        let why = label_refusal(b"system_u:system_r:container_t:s0", true).expect("confining");
        assert!(why.contains("--lsm-profile"));
    }

    fn names(calls: &[Call]) -> Vec<String> {
        let name = |call: &Call| match call.args.first() {
            Some(Arg::Named(option, _)) => format!("{} {option}", call.name),
            _ => call.name.to_owned(),
        };
        calls.iter().map(name).collect()
    }

    #[test]
    fn nothing_is_set_that_is_so_already() {
        let has = recorded().creds;
        assert!(before_filters(&has, &has).is_empty());
        assert!(after_filters(&has, &has).is_empty());
        assert!(faults(&has, &has).is_empty());
    }

    #[test]
    fn an_ordinary_user_is_made_in_the_kernels_order() {
        let has = recorded().creds;
        let wanted = Creds {
            uids: [1000; 4],
            gids: [100; 4],
            groups: vec![100],
            cap_bnd: has.cap_bnd,
            ..Creds::default()
        };
        assert_eq!(
            names(&before_filters(&has, &wanted)),
            [
                "setgroups",
                "setresgid",
                "setfsgid",
                "prctl PR_SET_SECUREBITS",
                "setresuid",
                "setfsuid"
            ]
        );
        assert_eq!(
            names(&after_filters(&has, &wanted)),
            ["prctl PR_SET_SECUREBITS", "capset"]
        );
    }

    #[test]
    fn inheritable_comes_before_the_bounding_set_shrinks() {
        let has = recorded().creds;
        let wanted = Creds {
            cap_inh: 1 << 10,
            cap_amb: 1 << 10,
            cap_bnd: has.cap_bnd & !(1 << 10),
            ..has.clone()
        };
        assert_eq!(
            names(&before_filters(&has, &wanted)),
            ["capset", "prctl PR_CAPBSET_DROP", "prctl PR_CAP_AMBIENT"]
        );
    }

    #[test]
    fn missing_capabilities_are_named() {
        let has = recorded().creds;
        let wanted = Creds {
            cap_prm: has.cap_prm | 1 << 24,
            ..has.clone()
        };
        let faults = faults(&has, &wanted);
        assert!(faults[0].ends_with("has not: 24"), "{faults:?}");
    }

    #[test]
    fn capability_words() {
        assert_eq!(caps("x", &[1, 2]), Ok(0x2_0000_0001));
        assert_eq!(caps("x", &[]), Ok(0));
        assert!(caps("x", &[1, 2, 3]).is_err());
    }
}
