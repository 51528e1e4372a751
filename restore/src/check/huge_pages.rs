//! Huge pages: mmap(2) reserves all that a mapping may need, and fails without them.
//!
//! What can be had is what is free and not reserved, and what may be taken from ordinary memory
//! beyond the pool (Documentation/admin-guide/mm/hugetlbpage.rst).

use super::Subject;
use crate::mm::vmas::status;
use crust_cli::code::Code;
use crust_cli::finding::Finding;
use crust_image::checkpoint::Checkpoint;
use crust_proto::criu::VmaEntry;
use nix::libc;
use std::collections::BTreeMap;
use std::fs;

/// Bits 26 to 31 of the flags of mmap(2) and memfd_create(2): the logarithm of the size.
const SIZE_SHIFT: u32 = libc::MAP_HUGE_SHIFT as u32;
const SIZE_MASK: u32 = 0x3f;
/// x86_64's default.
const USUAL_SIZE: u32 = 21;

/// A finding for each size of which there are too few.
pub fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let needed = needed_pages(subject.checkpoint);
    let lacking = needed.into_iter().filter_map(|(size, needed)| {
        let available = available_pages(size);
        (needed > available).then(|| {
            let object = format!("huge pages of {} KiB", kib_of(size));
            let what = format!("the tree needs {needed}, and this host has {available} to give");
            Finding::error(Code::Limit, object, what)
                .remedy("raise vm.nr_hugepages or vm.nr_overcommit_hugepages")
        })
    });
    lacking.collect()
}

/// By the logarithm of their size.
fn needed_pages(checkpoint: &Checkpoint) -> BTreeMap<u32, u64> {
    let mut needed: BTreeMap<u32, u64> = BTreeMap::new();
    let mut add = |flags: u32, bytes: u64| {
        let size = match flags >> SIZE_SHIFT & SIZE_MASK {
            0 => USUAL_SIZE,
            size => size,
        };
        let pages = needed.entry(size).or_default();
        *pages = pages.saturating_add(bytes.checked_shr(size).unwrap_or(0));
    };
    for vma in checkpoint.mms.values().flat_map(|mm| &mm.vmas) {
        if is_reserving(vma) {
            add(vma.flags, vma.end.saturating_sub(vma.start));
        }
    }
    for inode in checkpoint.memfds.values() {
        if let Some(flags) = inode.hugetlb_flag {
            add(flags, inode.size);
        }
    }
    needed
}

fn is_reserving(vma: &VmaEntry) -> bool {
    let has = |flag: i32| vma.flags & flag as u32 != 0;
    let is_private = vma.status & (status::ANON_PRIVATE | status::FILE_PRIVATE) != 0;
    is_private && has(libc::MAP_HUGETLB) && !has(libc::MAP_NORESERVE)
}

fn kib_of(size: u32) -> u64 {
    1u64.checked_shl(size).unwrap_or(0) >> 10
}

fn available_pages(size: u32) -> u64 {
    let number = |name: &str| -> u64 {
        let kib = kib_of(size);
        let path = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/{name}");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    };
    let in_pool = number("free_hugepages").saturating_sub(number("resv_hugepages"));
    let beyond = number("nr_overcommit_hugepages").saturating_sub(number("surplus_hugepages"));
    in_pool.saturating_add(beyond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_private_memory_that_reserves_counts_as_a_mapping() {
        let vma = |status, flags: i32| VmaEntry {
            status,
            flags: flags as u32,
            ..VmaEntry::default()
        };
        assert!(is_reserving(&vma(0x201, libc::MAP_HUGETLB)));
        assert!(!is_reserving(&vma(0x201, 0)));
        assert!(!is_reserving(&vma(0x4081, libc::MAP_HUGETLB)));
        let lazy = libc::MAP_HUGETLB | libc::MAP_NORESERVE;
        assert!(!is_reserving(&vma(0x201, lazy)));
        assert_eq!(available_pages(63), 0, "no processor has such pages");
    }
}
