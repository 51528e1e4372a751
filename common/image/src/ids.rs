//! The numbers that name things inside a set of images.
//!
//! They are all integers in the messages and are easily mixed up: a file's id and a pipe's, the
//! number of a descriptor table and a pid. Here each is a type of its own. None of them means
//! anything outside its images; a `VirtPid` in particular is not a pid of this host.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The largest pid the kernel can be set to hand out (PID_MAX_LIMIT of include/linux/threads.h,
/// which is exclusive).
pub const PID_MAX_LIMIT: u32 = 4 * 1024 * 1024;

/// A process, thread, group or session id as the images store it: a number of the root task's pid
/// namespace at the time of the dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct VirtPid(u32);

impl VirtPid {
    /// `None` for 0, which stands for "none" or "outside" wherever images have it, and for
    /// numbers no kernel gives out.
    pub const fn new(number: u32) -> Option<VirtPid> {
        if number > 0 && number < PID_MAX_LIMIT {
            Some(VirtPid(number))
        } else {
            None
        }
    }

    /// The number, as messages hold it.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The number as the kernel's pid_t.
    pub const fn as_pid_t(self) -> i32 {
        // Below PID_MAX_LIMIT, so it fits.
        self.0 as i32
    }
}

impl fmt::Display for VirtPid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

impl From<VirtPid> for u32 {
    fn from(pid: VirtPid) -> u32 {
        pid.0
    }
}

/// A number that is no pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a process id (1..{PID_MAX_LIMIT})")]
pub struct NotAPid(pub u32);

impl TryFrom<u32> for VirtPid {
    type Error = NotAPid;

    fn try_from(number: u32) -> Result<VirtPid, NotAPid> {
        VirtPid::new(number).ok_or(NotAPid(number))
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($number:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(out)
            }
        }

        impl From<$name> for u64 {
            fn from(id: $name) -> u64 {
                u64::from(id.0)
            }
        }
    };
}

id! {
    /// Names one open file description, executable, mapped file, cwd or root: `file_entry.id`.
    FileId(u32)
}
id! {
    /// Names a descriptor table: `task_kobj_ids_entry.files_id`, the number in fdinfo-N.img.
    FilesId(u32)
}
id! {
    /// Names a pipe or fifo: the inode number its two ends share.
    PipeId(u32)
}
id! {
    /// Names a shared memory object, the number in pagemap-shmem-N.img: an inode number, or the
    /// id of a SysV segment.
    ShmId(u64)
}
id! {
    /// Names a pages file: `pagemap_head.pages_id`, the number in pages-N.img.
    PagesId(u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_the_kernel_gives_out_are_pids() {
        assert_eq!(VirtPid::new(0), None);
        assert_eq!(VirtPid::new(1).map(VirtPid::get), Some(1));
        assert_eq!(
            VirtPid::new(PID_MAX_LIMIT - 1).map(VirtPid::as_pid_t),
            Some(4_194_303)
        );
        assert_eq!(VirtPid::new(PID_MAX_LIMIT), None);
        assert_eq!(VirtPid::new(u32::MAX), None);
    }

    #[test]
    fn pids_from_json_are_checked() {
        assert_eq!(serde_json::from_str::<VirtPid>("7").ok(), VirtPid::new(7));
        assert!(serde_json::from_str::<VirtPid>("0").is_err());
        assert!(serde_json::from_str::<VirtPid>("-1").is_err());
    }
}
