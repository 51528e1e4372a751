//! Where a verb's output goes. A file is replaced by a rename when all of it is written, so a
//! failure leaves what was there before.

use crate::color::JsonPainter;
use crate::pack::member;
use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Opens the input: a file, or stdin for `None` and `-`.
pub fn open_input(path: Option<&Path>) -> Result<Box<dyn Read>> {
    match path {
        Some(path) if path != Path::new("-") => match File::open(path) {
            Ok(file) => Ok(Box::new(file)),
            // What lies below a file is a member of it.
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                Ok(Box::new(io::Cursor::new(member(path)?)))
            }
            Err(error) => Err(error).with_context(|| format!("{}: open", path.display())),
        },
        _ => Ok(Box::new(io::stdin().lock())),
    }
}

/// Opens a file of a directory that is not trusted: a fifo of that name would hold us up for good,
/// a device never end.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    Ok(file)
}

/// What to call the input in an error.
pub fn input_name(path: Option<&Path>) -> String {
    match path {
        Some(path) if path != Path::new("-") => path.display().to_string(),
        _ => "stdin".to_owned(),
    }
}

/// Whether output goes to stdout.
pub fn is_stdout(path: Option<&Path>) -> bool {
    path.is_none_or(|path| path == Path::new("-"))
}

/// Calls `write` with the output. A regular file appears, or replaces the one of that name, when
/// `write` succeeded; other files (a fifo, /dev/null) are written as they are.
pub fn write_output(
    path: Option<&Path>,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let Some(path) = path.filter(|_| !is_stdout(path)) else {
        let mut out = io::stdout().lock();
        write(&mut out)?;
        return Ok(out.flush()?);
    };
    match fs::symlink_metadata(path) {
        Ok(there) if is_written_as_it_is(path, &there) => {
            let mut out = File::options()
                .write(true)
                .open(path)
                .with_context(|| format!("{}: open", path.display()))?;
            write(&mut out)
        }
        there => replace_file(path, kept_mode(there), |file| write(file)),
    }
}

/// JSON to stdout, painted if that is wanted.
pub fn write_json_out(color: bool, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    write_output(None, |out| {
        if color {
            write(&mut JsonPainter::new(out))
        } else {
            write(out)
        }
    })
}

/// The same for what is not written from front to back: a regular file only.
pub fn write_seekable(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    replace_file(path, kept_mode(fs::symlink_metadata(path)), write)
}

/// A fifo or a device, and the links of /dev and /proc to our own descriptors. Any other link is
/// replaced: in a directory of images it could lead anywhere.
fn is_written_as_it_is(path: &Path, there: &Metadata) -> bool {
    let own = path.starts_with("/dev") || path.starts_with("/proc");
    match there.is_symlink() {
        true => own,
        false => !there.is_file(),
    }
}

/// The mode of a file that is replaced.
fn kept_mode(there: io::Result<Metadata>) -> Option<Permissions> {
    there
        .ok()
        .filter(Metadata::is_file)
        .map(|there| there.permissions())
}

/// Writes a file beside `path` and renames it over it.
fn replace_file(
    path: &Path,
    permissions: Option<Permissions>,
    write: impl FnOnce(&mut File) -> Result<()>,
) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if dir != Path::new("") => dir.to_owned(),
        _ => PathBuf::from("."),
    };
    // 0666 less the umask, as any tool creates its output.
    let mut temporary = tempfile::Builder::new()
        .prefix(".crit-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(&dir)
        .with_context(|| format!("{}: create a file beside it", path.display()))?;
    write(temporary.as_file_mut())?;
    if let Some(permissions) = permissions {
        let set = temporary.as_file().set_permissions(permissions);
        set.with_context(|| format!("{}: keep its mode", path.display()))?;
    }
    temporary
        .persist(path)
        .with_context(|| format!("{}: replace", path.display()))?;
    Ok(())
}

/// Whether an error is that nobody reads our output any more.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// An error with its causes on one line; a cause that the text before already ends with is not told
/// again.
pub fn error_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text += ": ";
        }
        text += &cause;
    }
    text
}
