//! Where a verb's output goes. A file is replaced by a rename when all of it is written, so a
//! failure leaves what was there before.

use anyhow::{Context, Result};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Opens the input: a file, or stdin for `None` and `-`.
pub fn open_input(path: Option<&Path>) -> Result<Box<dyn Read>> {
    match path {
        Some(path) if path != Path::new("-") => {
            let file = File::open(path).with_context(|| format!("{}: open", path.display()))?;
            Ok(Box::new(file))
        }
        _ => Ok(Box::new(io::stdin().lock())),
    }
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
    match fs::metadata(path) {
        Ok(there) if !there.is_file() => {
            let mut out = File::options()
                .write(true)
                .open(path)
                .with_context(|| format!("{}: open", path.display()))?;
            write(&mut out)
        }
        there => replace_file(path, there.ok().map(|there| there.permissions()), |file| {
            write(file)
        }),
    }
}

/// The same for what is not written from front to back: a regular file only.
pub fn write_seekable(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let there = fs::metadata(path).ok().map(|there| there.permissions());
    replace_file(path, there, write)
}

/// Writes a file beside `path` and renames it over it.
fn replace_file(
    path: &Path,
    permissions: Option<Permissions>,
    write: impl FnOnce(&mut File) -> Result<()>,
) -> Result<()> {
    // A link stays a link: the file it leads to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = match target.parent() {
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
        .persist(&target)
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
