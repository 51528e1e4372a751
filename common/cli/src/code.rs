//! Every kind of failure and of finding, with the code that `--json` gives it.
//!
//! The codes are for programs: they stay when sentences are reworded. A failure of a run has one;
//! so has every finding of a check. [`Code::remedy`] is what to try where nothing closer to the
//! place knows better.

use serde::{Serialize, Serializer};
use std::fmt;

/// Makes the enum and its tables from one list, so that no code can be forgotten in one of them.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $remedy:literal;)*) => {
        /// A kind of failure or finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($(#[doc = $doc])+ $variant,)*
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// The stable word in `--json`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Code::$variant => $name,)*
                }
            }

            /// What to try, as a phrase; empty if only the sentence itself can tell.
            pub fn remedy(self) -> &'static str {
                match self {
                    $(Code::$variant => $remedy,)*
                }
            }
        }
    };
}

codes! {
    /// The command line is wrong (exit status 2).
    Usage = "usage", "see --help";
    /// The log file cannot be made.
    LogFile = "log-file", "give another --log-file or --work-dir";
    /// The images directory cannot be opened or written.
    ImagesDir = "images-dir", "make the directory, or give another by --images-dir";
    /// The work directory cannot be opened or written.
    WorkDir = "work-dir", "make the directory, or give another by --work-dir";
    /// A descriptor given by --status-fd or --progress-fd cannot be written to.
    GivenFd = "given-fd", "give the number of a descriptor that is open for writing";
    /// An action script failed.
    Script = "script", "look at what the script said";
    /// A signal ended the run; everything is as before.
    Interrupted = "interrupted", "";
    /// The kernel gives no more memory, files, processes or locked pages.
    Resources = "resources", "raise the limit that is told, or free some";
    /// The file system of the images is full.
    NoSpace = "no-space", "free some space, or give another --images-dir";
    /// The kernel refuses for want of a privilege.
    Privilege = "privilege", "run as root, or with the capabilities that --check names";
    /// Something else that the kernel refused.
    Kernel = "kernel", "";

    /// The task to dump does not exist.
    NoSuchTask = "no-such-task", "look up its pid again";
    /// A kernel thread cannot be dumped.
    KernelThread = "kernel-thread", "name a task of a program";
    /// A thread that is not the leader was named.
    NotALeader = "not-a-leader", "name the leader";
    /// The task to dump is dead.
    Zombie = "zombie", "";
    /// The tree holds crust-dump itself.
    ContainsUs = "contains-us", "start crust-dump outside of the tree, for example by setsid";
    /// A debugger or another dumper holds a task.
    Traced = "traced", "let the tracer go first";
    /// A thread waits in vfork for its child.
    Vfork = "vfork", "wait until the child has exec'ed, or give a longer --timeout";
    /// A thread does not stop.
    Unstoppable = "unstoppable", "thaw its cgroup if that is frozen, or give a longer --timeout";
    /// The tree could not be frozen for another reason.
    Freeze = "freeze", "";
    /// Something of the tree cannot be carried.
    Refused = "refused", "";
    /// The state of the tree could not be read.
    Collect = "collect", "";
    /// Memory could not be tracked, or copied while the tree ran.
    Track = "track", "dump without --pre-dump, --pre-copy, --track-mem and --prev-images-dir";
    /// The network could not be locked.
    NetworkLock = "network-lock", "give another --network-lock: nftables, iptables or skip";
    /// Images could not be written.
    Write = "write", "";
    /// All is written, but the tree could not be let go, stopped or killed.
    LetGo = "let-go", "";

    /// There is no dump in the directory, or only a part of one.
    Incomplete = "incomplete", "dump again: the dump was not finished, or a file was lost";
    /// An image is not what it should be.
    Image = "image", "see crit check for everything that is wrong with the set";
    /// A file does not have the hash that its manifest says.
    Digest = "digest", "copy the images again, or remove crust-digest.json if they were edited on purpose";
    /// The tree's shape or something of it has no way back.
    Plan = "plan", "";
    /// A file that the tree had open is gone or has changed.
    File = "file", "bring the file back as it was when the tree was dumped";
    /// A pid that the tree needs is in use.
    PidBusy = "pid-busy", "restore in a new pid namespace: unshare --pid --fork --mount-proc";
    /// A port or address that the tree listens on is in use.
    PortBusy = "port-busy", "end the program that has it, or restore in a network namespace";
    /// A capability is missing.
    Capability = "capability", "run as root, or give crust the capability";
    /// The processor lacks what the tree has used.
    Cpu = "cpu", "restore on a machine whose processor has it";
    /// A limit is too low.
    Limit = "limit", "raise the limit (ulimit, prlimit) before the restore";
    /// The kernel lacks something, or is another one than the images are from.
    HostKernel = "host-kernel", "restore under the kernel of the dump, or a newer one";
    /// Facts of this host could not be found out.
    Host = "host", "";
    /// A step of the plan failed; nothing is left of the tree.
    Execute = "execute", "";
    /// The tree runs, but what comes after (statistics, waiting) failed.
    Afterwards = "afterwards", "";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_words_and_unique() {
        let names: HashSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        let is_word = |name: &&str| name.bytes().all(|b| b == b'-' || b.is_ascii_lowercase());
        assert!(names.iter().all(is_word), "{names:?}");
    }
}
