//! What crust-dump and crust-restore share on the command line: the options with CRIU's names and
//! meanings, the log file that runtimes grep, the stats files, action scripts and exit codes.
//! Scripts written for CRIU pass the same list of options to both, so both know them all.
#![forbid(unsafe_code)]

pub mod capabilities;
pub mod cgroup_props;
pub mod code;
pub mod config;
pub mod external;
pub mod failure;
pub mod finding;
pub mod log;
pub mod options;
pub mod progress;
pub mod report;
pub mod run;
pub mod scripts;
pub mod status;
pub mod table;
pub mod workers;
