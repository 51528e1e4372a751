//! The scheduling parameters of our own thread (sched_getattr(2)), which glibc has no wrapper for.

use nix::errno::Errno;

/// struct sched_attr of include/uapi/linux/sched/types.h, version 1.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// The slice of a thread of the fair class in nanoseconds, which is the machine's unless the thread
/// has asked for another (since Linux 6.12); 0 before.
pub fn own_slice() -> Result<u64, Errno> {
    let mut attr = SchedAttr::default();
    let attr_at = std::ptr::from_mut(&mut attr);
    // SAFETY: the kernel fills one struct sched_attr of the size told, which this is.
    let got = unsafe {
        libc::syscall(
            libc::SYS_sched_getattr,
            0,
            attr_at,
            size_of::<SchedAttr>() as u32,
            0,
        )
    };
    Errno::result(got)?;
    Ok(attr.runtime)
}
