//! Labels of security modules (attr/current below /proc/PID): what confines a task there. To give a
//! label back its policy must be loaded and must let the restorer change to it, so a task that is
//! confined is refused by name. Unconfined by AppArmor, or under SELinux before its policy is
//! loaded, is what any task is without them.
//!
//! A thread may have a label of its own (aa_change_hat of AppArmor). Labels for what the task makes
//! next (exec, fscreate, keycreate, sockcreate) are asked for only where there is a label at all.

use anyhow::Result;
use crust_process::proc::ProcDir;
use nix::errno::Errno;

/// The labels for what a task makes next.
const NEXT: [&str; 4] = ["exec", "fscreate", "keycreate", "sockcreate"];

/// A label by the module whose form it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// Nothing confines the task.
    Unconfined,
    /// An AppArmor profile with its mode: `docker-default (enforce)`.
    AppArmor {
        /// The profile, with its namespace.
        profile: String,
        /// enforce, complain, kill, unconfined or prompt.
        mode: String,
    },
    /// `user:role:type:range`.
    Selinux(String),
    /// Smack, or one that is not known.
    Other(String),
}

impl Label {
    /// As /proc has it.
    pub fn parse(text: &[u8]) -> Label {
        let text = String::from_utf8_lossy(text);
        let text = text.trim_end_matches(['\n', '\0']);
        let mode = text.rsplit_once(" (").and_then(|(profile, rest)| {
            let mode = rest.strip_suffix(')')?;
            Some((profile.to_owned(), mode.to_owned()))
        });
        match mode {
            _ if matches!(text, "" | "unconfined" | "kernel") => Label::Unconfined,
            Some((profile, mode)) => Label::AppArmor { profile, mode },
            None if text.split(':').count() >= 3 => Label::Selinux(text.to_owned()),
            None => Label::Other(text.to_owned()),
        }
    }

    /// Why it cannot be carried; `None` if there is nothing to carry.
    pub fn refusal(&self) -> Option<String> {
        let confined = match self {
            Label::Unconfined => return None,
            Label::AppArmor { profile, mode } => {
                format!("is the AppArmor profile '{profile}' in mode {mode}")
            }
            Label::Selinux(context) => format!("is the SELinux context '{context}'"),
            Label::Other(label) => format!("is '{label}'"),
        };
        Some(format!("{confined}, which is not supported yet"))
    }
}

/// The labels of a task, each with what has it; none where no module gives any.
pub fn collect_labels(dir: &ProcDir, tids: &[i32]) -> Result<Vec<(String, Label)>> {
    let Some(own) = read(dir, "attr/current")? else {
        return Ok(Vec::new());
    };
    let mut labels = vec![("its security label".to_owned(), own.clone())];
    for name in NEXT {
        if let Some(label) = read(dir, &format!("attr/{name}"))? {
            labels.push((format!("its security label for {name}"), label));
        }
    }
    for tid in tids {
        let label = read(dir, &format!("task/{tid}/attr/current"))?;
        if let Some(label) = label.filter(|label| *label != own) {
            labels.push((format!("the security label of thread {tid}"), label));
        }
    }
    Ok(labels)
}

fn read(dir: &ProcDir, name: &str) -> Result<Option<Label>> {
    match dir.read(name) {
        Ok(text) => Ok(Some(Label::parse(&text))),
        // EINVAL: no module that gives labels is active (proc_pid_attr_read).
        Err(error) if matches!(error.errno, Errno::EINVAL | Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts of hosts with Ubuntu, Debian and Fedora.
    #[test]
    fn labels_of_apparmor() {
        assert_eq!(Label::parse(b"unconfined\n"), Label::Unconfined);
        for (text, profile, mode) in [
            ("docker-default (enforce)\n", "docker-default", "enforce"),
            (
                "/usr/sbin/cupsd (complain)\n",
                "/usr/sbin/cupsd",
                "complain",
            ),
            (
                "snap.firefox.firefox (enforce)\n",
                "snap.firefox.firefox",
                "enforce",
            ),
            (
                "lxc-u1_</var/snap/lxd>//&:lxd-u1:unconfined (enforce)\n",
                "lxc-u1_</var/snap/lxd>//&:lxd-u1:unconfined",
                "enforce",
            ),
        ] {
            let label = Label::parse(text.as_bytes());
            let (profile, mode) = (profile.to_owned(), mode.to_owned());
            assert_eq!(label, Label::AppArmor { profile, mode });
            let refusal = label.refusal().expect("confined");
            assert!(
                refusal.contains("AppArmor")
                    && refusal.contains(text.split(' ').next().unwrap_or("?"))
            );
        }
    }

    #[test]
    fn labels_of_selinux() {
        assert_eq!(Label::parse(b"kernel\0"), Label::Unconfined);
        for text in [
            "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\0",
            "system_u:system_r:container_t:s0:c5,c17\0",
            "system_u:system_r:init_t:s0",
        ] {
            let label = Label::parse(text.as_bytes());
            let context = text.trim_end_matches('\0').to_owned();
            assert_eq!(label, Label::Selinux(context.clone()));
            assert!(label.refusal().is_some_and(|why| why.contains(&context)));
        }
    }

    #[test]
    fn other_labels_and_none() {
        assert_eq!(Label::parse(b"_"), Label::Other("_".into()));
        assert_eq!(Label::parse(b"\n"), Label::Unconfined);
        assert_eq!(Label::parse(b"").refusal(), None);
    }
}
