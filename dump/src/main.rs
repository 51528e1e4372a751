//! crust-dump: freezes a process tree, writes its state into images, and lets it go on or ends it.
#![forbid(unsafe_code)]

mod context;
mod files;
mod refusal;

fn main() {}
