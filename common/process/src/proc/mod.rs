//! What /proc says about a process, as values.
//!
//! Every parser takes bytes and never a pid, so text captured from another kernel is a test, and
//! reading (`reader`) stays apart from understanding. The text is the kernel's, yet parsers are
//! strict: a line of a known kind with an unknown shape is an error that names it, because a
//! dump built on a misread line is worse than no dump. Lines of a kind we do not know are
//! skipped where newer kernels are expected to add some (status, smaps) and kept raw where they
//! belong to an object that must be carried (fdinfo).

pub mod auxv;
pub mod cgroup;
pub mod children;
pub mod fdinfo;
pub mod ids;
pub mod locks;
pub mod maps;
pub mod mountinfo;
pub mod reader;
pub mod smaps;
pub mod stat;
pub mod status;
pub mod text;
pub mod timers;

pub use reader::ProcDir;
pub use text::ParseError;
