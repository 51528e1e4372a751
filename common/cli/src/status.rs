//! `--status-fd`: a zero byte on a descriptor that our starter gave us says that the work has
//! begun, then the descriptor's other end sees end of file when we are done.

use crate::options::Options;
use anyhow::Context;
use std::fs::OpenOptions;
use std::io::Write;

/// Tells whoever asked that the work begins. Only a descriptor that can be opened again, as a pipe
/// or a file, will do.
pub fn tell_started(options: &Options) -> anyhow::Result<()> {
    let Some(fd) = options.status_fd else {
        return Ok(());
    };
    let told = OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{fd}"))
        .and_then(|mut file| file.write_all(&[0]));
    told.with_context(|| format!("write to --status-fd {fd}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Defaults;
    use crate::options::{Tool, parse};
    use std::io::{Read, pipe};
    use std::os::fd::AsRawFd;

    #[test]
    fn one_zero_byte_is_written() {
        let (mut reader, writer) = pipe().expect("make a pipe");
        let args = [
            "-t1".into(),
            "--status-fd".into(),
            writer.as_raw_fd().to_string().into(),
        ];
        let options = parse(Tool::Dump, args, &Defaults::none()).expect("parses");
        tell_started(&options).expect("the pipe is open");
        drop(writer);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).expect("read");
        assert_eq!(bytes, [0]);
    }
}
