//! System calls that several rooms use, with their arguments named as strace does.

use super::step::{Arg, Call};
use nix::libc;

/// close(2) of a number in the task.
pub fn close(fd: i32) -> Call {
    Call::new("close", libc::SYS_close, vec![Arg::Int(fd.into())])
}

/// prctl(2); arguments that are not given are 0, which many options check.
pub fn prctl(name: &str, option: i32, args: impl IntoIterator<Item = Arg>) -> Call {
    let mut all = vec![Arg::named(name, option)];
    all.extend(args);
    all.resize(5, Arg::Int(0));
    Call::new("prctl", libc::SYS_prctl, all)
}

/// The name of a signal, or its number for a real-time one.
pub fn signal(number: i32) -> Arg {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => Arg::named(signal.as_str(), number),
        Err(_) => Arg::Int(number.into()),
    }
}
