//! Files of huge pages: hugetlbfs, of which memfd_create(MFD_HUGETLB) and mmap(MAP_SHARED |
//! MAP_ANONYMOUS | MAP_HUGETLB) make nameless ones.
//!
//! They are read like any file, but written through a mapping only: hugetlbfs has no write(2)
//! (fs/hugetlbfs/inode.c). A page that was never touched reads as zeros.

use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};

/// f_type of include/uapi/linux/magic.h.
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// The page size of a file of huge pages; `None` for any other file.
pub fn huge_page_of(fd: BorrowedFd<'_>) -> Result<Option<u64>, Errno> {
    // SAFETY: struct statfs is plain integers, for which zero is a value.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is borrowed and the struct outlives the call.
    Errno::result(unsafe { libc::fstatfs(fd.as_raw_fd(), &mut stat) })?;
    let size = u64::try_from(stat.f_bsize).unwrap_or(0);
    Ok((stat.f_type as i64 == HUGETLBFS_MAGIC && size.is_power_of_two()).then_some(size))
}

/// Writes bytes that lie within one page of a file of huge pages. ENOMEM: there are too few.
pub fn write_within_page(file: &File, offset: u64, bytes: &[u8], page: u64) -> Result<(), Errno> {
    let start = offset & !(page - 1);
    let within = usize::try_from(offset - start).map_err(|_| Errno::EINVAL)?;
    let len = usize::try_from(page).map_err(|_| Errno::EINVAL)?;
    let end = within.checked_add(bytes.len());
    if end.is_none_or(|end| end > len) {
        return Err(Errno::EINVAL);
    }
    let at = i64::try_from(start).map_err(|_| Errno::EINVAL)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping where the kernel likes; no memory in use is touched.
    let mapped = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            prot,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            at,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    // SAFETY: inside the mapping by the check above; its page was reserved by mmap, so that the
    // access succeeds if it is inside of the file, which the kernel has aligned to whole pages.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), mapped.cast::<u8>().add(within), bytes.len());
        libc::munmap(mapped, len);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn other_files_have_no_huge_pages() {
        let file = File::open("/proc/self/exe").expect("we have an executable");
        assert_eq!(huge_page_of(file.as_fd()), Ok(None));
        let outside = write_within_page(&file, 4090, &[0; 10], 4096);
        assert_eq!(outside, Err(Errno::EINVAL));
    }
}
