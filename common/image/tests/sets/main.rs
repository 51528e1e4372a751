//! Whole sets of images: loading and checking them, as CRIU wrote them, edited, aged and damaged.

mod check;
mod copy;
mod load;
