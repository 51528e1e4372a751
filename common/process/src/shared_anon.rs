//! Shared anonymous memory as a descriptor.
//!
//! mmap(MAP_SHARED | MAP_ANONYMOUS) makes a nameless file that /proc/PID/maps shows as `/dev/zero
//! (deleted)`. No other call makes one, a memfd has another name. While it is mapped it can be
//! opened by /proc/self/map_files (CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN); the descriptor keeps
//! it when the mapping is gone.

use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd};

/// A new object of `len` bytes, a multiple of the page size, open for reading and writing. `huge` is
/// 0, or MAP_HUGETLB with the page size in bits 26 to 31: then maps show it as `/anon_hugepage`.
pub fn open_shared_anonymous(len: usize, huge: i32) -> Result<OwnedFd, Errno> {
    // Without MAP_NORESERVE the object is charged as a whole, as the kernel does by default; one
    // that is larger than what can be charged was made with it.
    let mapped = match map(len, huge) {
        Err(Errno::ENOMEM) => map(len, huge | libc::MAP_NORESERVE)?,
        mapped => mapped?,
    };
    let start = mapped as u64;
    let path = format!("/proc/self/map_files/{start:x}-{:x}\0", start + len as u64);
    // SAFETY: the path ends with a zero byte and outlives the call.
    let got = unsafe { libc::open(path.as_ptr().cast(), libc::O_RDWR | libc::O_CLOEXEC) };
    let opened = Errno::result(got);
    // SAFETY: the mapping is ours, of this length, and nothing refers to it.
    unsafe { libc::munmap(mapped, len) };
    // SAFETY: open has just given us this descriptor.
    opened.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn map(len: usize, more: i32) -> Result<*mut libc::c_void, Errno> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | more;
    // SAFETY: a new mapping where the kernel likes; no memory in use is touched.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    Ok(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn it_has_the_name_of_anonymous_memory_and_outlives_the_mapping() {
        let fd = open_shared_anonymous(8192, 0).expect("opened");
        let link = crate::descriptor::link_of(std::os::fd::AsFd::as_fd(&fd)).expect("a link");
        assert_eq!(link, "/dev/zero (deleted)");
        let file = File::from(fd);
        assert_eq!(file.metadata().expect("stat").len(), 8192);
        file.write_all_at(b"kept", 4096).expect("write");
        let mut read = [0; 4];
        file.read_exact_at(&mut read, 4096).expect("read");
        assert_eq!(&read, b"kept");
    }
}
