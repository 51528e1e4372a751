//! Memory: the areas of each address space, the pages in them, and objects of shared memory.

pub mod absent;
pub mod copy;
pub mod cow;
pub mod foresee;
pub mod pages;
pub mod ranges;
pub mod shmem;
pub mod source;
pub mod vmas;
