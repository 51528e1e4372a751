//! Capabilities (capabilities(7)) that a run needs, and why: what `--check` prints and compares
//! with those we have.

use crate::code::Code;
use crate::finding::Finding;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// A capability, by its number in linux/capability.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cap(pub u8);

macro_rules! capabilities {
    ($($name:ident = $number:literal,)*) => {
        impl Cap {
            $(#[doc = concat!("CAP_", stringify!($name))] pub const $name: Cap = Cap($number);)*

            /// `CAP_SYS_PTRACE`.
            pub fn name(self) -> String {
                match self.0 {
                    $($number => concat!("CAP_", stringify!($name)).to_owned(),)*
                    other => format!("capability {other}"),
                }
            }
        }
    };
}

capabilities! {
    CHOWN = 0, DAC_OVERRIDE = 1, DAC_READ_SEARCH = 2, FOWNER = 3, FSETID = 4, KILL = 5,
    SETGID = 6, SETUID = 7, SETPCAP = 8, LINUX_IMMUTABLE = 9, NET_BIND_SERVICE = 10,
    NET_BROADCAST = 11, NET_ADMIN = 12, NET_RAW = 13, IPC_LOCK = 14, IPC_OWNER = 15,
    SYS_MODULE = 16, SYS_RAWIO = 17, SYS_CHROOT = 18, SYS_PTRACE = 19, SYS_PACCT = 20,
    SYS_ADMIN = 21, SYS_BOOT = 22, SYS_NICE = 23, SYS_RESOURCE = 24, SYS_TIME = 25,
    SYS_TTY_CONFIG = 26, MKNOD = 27, LEASE = 28, AUDIT_WRITE = 29, AUDIT_CONTROL = 30,
    SETFCAP = 31, MAC_OVERRIDE = 32, MAC_ADMIN = 33, SYSLOG = 34, WAKE_ALARM = 35,
    BLOCK_SUSPEND = 36, AUDIT_READ = 37, PERFMON = 38, BPF = 39, CHECKPOINT_RESTORE = 40,
}

impl Serialize for Cap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name())
    }
}

/// What a run needs: each capability with the first reason for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs(BTreeMap<Cap, String>);

/// One need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Need {
    /// The capability.
    pub capability: Cap,
    /// For what.
    #[serde(rename = "for")]
    pub reason: String,
    /// Whether we have it.
    pub present: bool,
}

impl Needs {
    /// Notes that a capability is needed.
    pub fn add(&mut self, cap: Cap, reason: impl Into<String>) {
        self.0.entry(cap).or_insert_with(|| reason.into());
    }

    /// The needs beside the capabilities of a set (bit n is capability n).
    pub fn beside(&self, effective: u64) -> Vec<Need> {
        let need = |(cap, reason): (&Cap, &String)| Need {
            capability: *cap,
            reason: reason.clone(),
            present: has(effective, *cap),
        };
        self.0.iter().map(need).collect()
    }

    /// What is missing, as findings.
    pub fn missing(&self, effective: u64) -> Vec<Finding> {
        let missing = self.0.iter().filter(|(cap, _)| !has(effective, **cap));
        let finding = |(cap, reason): (&Cap, &String)| {
            let what = format!("is missing, which is needed for {reason}");
            Finding::error(Code::Capability, cap.name(), what)
        };
        missing.map(finding).collect()
    }
}

/// Whether a set has a capability, or a greater one that the kernel takes in its place.
pub fn has(effective: u64, cap: Cap) -> bool {
    let is_there = |cap: Cap| effective >> cap.0 & 1 == 1;
    is_there(cap) || (cap == Cap::CHECKPOINT_RESTORE && is_there(Cap::SYS_ADMIN))
}

/// The capabilities that take effect for this process.
pub fn own_effective() -> anyhow::Result<u64> {
    let text = std::fs::read("/proc/self/status")?;
    Ok(crust_process::proc::status::parse_status(&text)?.cap_eff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_told_with_their_first_reason() {
        let mut needs = Needs::default();
        needs.add(Cap::SYS_PTRACE, "task 7, which is another user's");
        needs.add(Cap::SYS_PTRACE, "task 8");
        needs.add(Cap::CHECKPOINT_RESTORE, "chosen pids");
        let only_ptrace = 1 << Cap::SYS_PTRACE.0;
        let missing = needs.missing(only_ptrace);
        assert_eq!(missing.len(), 1);
        assert!(
            missing[0]
                .to_string()
                .starts_with("CAP_CHECKPOINT_RESTORE: is missing, which is needed for chosen pids")
        );
        let told = serde_json::to_value(needs.beside(only_ptrace)).expect("serializes");
        assert_eq!(told[0]["for"], "task 7, which is another user's");
        assert_eq!(told[1]["present"], false);
    }
}
