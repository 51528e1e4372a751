//! Link remaps: an open file whose own name is gone while the inode has another one somewhere.
//!
//! The other name cannot be found without searching the file system, so with `--link-remap` a new
//! one, `link_remap.<id>`, is made beside the lost name and stored as a REG entry of its own;
//! the restorer opens it, links or renames it as the lost name was, and removes it. The link is a
//! change to the user's disk, so it is made only when nothing is refused any more, and it is
//! taken away again when the dump fails, by a survivor if we are killed, and when the tasks live on
//! (`--leave-running`).

use super::write::Source;
use super::{FileId, FileTable, OpenFile, Problem, RoomResult, regfile};
use crate::context::Context;
use anyhow::{Context as _, Result, anyhow, bail};
use crust_process::steps::step;
use crust_process::survivor::{Note, Survivor, When};
use crust_proto::criu::{RegFileEntry, RemapType};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// The links of a dump: first wanted, then made.
#[derive(Debug, Default)]
pub struct Links {
    wanted: Vec<Wanted>,
    made: Vec<Made>,
    /// Removes them if we are killed.
    survivor: Option<Survivor>,
}

#[derive(Debug)]
struct Wanted {
    source: Source,
    /// The directory below the root of the namespace, and the name there.
    path: Vec<u8>,
    root: OwnedFd,
}

#[derive(Debug)]
struct Made {
    root: OwnedFd,
    path: Vec<u8>,
    note: Note,
}

/// Asks for a link and remaps the file to it.
pub fn settle(
    ctx: &Context,
    table: &mut FileTable,
    file: &OpenFile,
    id: FileId,
    name: &[u8],
) -> RoomResult<()> {
    if !ctx.options.link_remap {
        return Err(Problem::with_hint(
            "its name was deleted while another hard link of it stays",
            "try --link-remap",
        ));
    }
    let namespace = table.mounts.of(file.task)?;
    let directory = parent_of(name);
    let exists = |path: &[u8]| namespace.inode_at(path).map(|inode| inode.is_some());
    if !directory.is_empty() && !exists(directory)? {
        return Err(Problem::refused(format!(
            "its name was deleted together with its directory {}, while another hard link of it stays",
            String::from_utf8_lossy(directory)
        )));
    }
    let link_id = table.give_id();
    let link = free_name(directory, link_id, exists)?;
    let path = namespace
        .relative(&link)
        .ok_or_else(|| anyhow!("{} is outside of the root", String::from_utf8_lossy(&link)))?;
    table.links.wanted.push(Wanted {
        source: Source::of(file),
        path: path.to_vec(),
        root: namespace.root()?,
    });
    table.entries.push(regfile::file_entry(RegFileEntry {
        id: link_id.0,
        fown: regfile::no_owner(),
        name: link,
        ..RegFileEntry::default()
    }));
    table.remaps.add(id, link_id.0, RemapType::Linked);
    Ok(())
}

/// `link_remap.<id>`, with a number behind it as long as an older dump's link is in the way: that
/// dump may still be restored.
fn free_name(
    directory: &[u8],
    id: FileId,
    exists: impl Fn(&[u8]) -> Result<bool>,
) -> Result<Vec<u8>> {
    let mut name = [directory, format!("/link_remap.{id}").as_bytes()].concat();
    let plain = name.len();
    for number in 1u32.. {
        if !exists(&name)? {
            break;
        }
        name.truncate(plain);
        name.extend_from_slice(format!(".{number}").as_bytes());
    }
    Ok(name)
}

/// The directory of an absolute path, empty for the root.
fn parent_of(name: &[u8]) -> &[u8] {
    let end = name.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    &name[..end]
}

impl Links {
    /// Removes every link made so far: the dump failed, or the tasks live on. The first failure
    /// is reported after all were tried.
    pub fn undo(&mut self) -> Result<()> {
        let mut failure = Ok(());
        for made in self.made.drain(..) {
            let path = OsStr::from_bytes(&made.path);
            step();
            match unlinkat(&made.root, path, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => {
                    failure = failure.and(
                        Err(anyhow!(errno))
                            .with_context(|| format!("removing /{}", path.display())),
                    );
                }
            }
            if let Some(survivor) = &self.survivor {
                survivor.cross_out(made.note);
            }
        }
        failure
    }

    /// Tells one more survivor of the links: they go if we are killed before it settles.
    pub fn tell(&self, survivor: &Survivor) -> Result<()> {
        for made in &self.made {
            survivor.file(Some(made.root.as_fd()), &made.path, When::BeforeSettled)?;
        }
        Ok(())
    }

    /// Keeps the links: the images name them. Gives the directories they are named from.
    pub fn keep(&mut self) -> Vec<OwnedFd> {
        if let Some(survivor) = &self.survivor {
            survivor.settle();
        }
        self.made.drain(..).map(|made| made.root).collect()
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        // The safety net of a dump that ends by an error; that error is the one to report.
        let _ = self.undo();
    }
}

/// Makes every link that was asked for.
pub fn make(ctx: &Context, table: &mut FileTable) -> Result<()> {
    let wanted = std::mem::take(&mut table.links.wanted);
    if wanted.is_empty() {
        return Ok(());
    }
    table.links.survivor = Some(Survivor::start(&|_| false)?);
    for wanted in wanted {
        let file = wanted.source.open(ctx, table)?;
        let from = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let path = OsStr::from_bytes(&wanted.path);
        let flags = AtFlags::AT_SYMLINK_FOLLOW;
        let note = match &table.links.survivor {
            Some(survivor) => {
                survivor.file(Some(wanted.root.as_fd()), &wanted.path, When::BeforeSettled)?
            }
            None => bail!("nobody would remove /{} if we were killed", path.display()),
        };
        step();
        linkat(AT_FDCWD, from.as_str(), &wanted.root, path, flags)
            .with_context(|| format!("making the hard link /{}", path.display()))?;
        table.links.made.push(Made {
            root: wanted.root,
            path: wanted.path,
            note,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_link_is_left_alone() {
        let taken = [&b"/d/link_remap.5"[..], b"/d/link_remap.5.1"];
        let name = free_name(b"/d", FileId(5), |path| Ok(taken.contains(&path))).unwrap();
        assert_eq!(name, b"/d/link_remap.5.2");
    }

    #[test]
    fn the_directory_of_a_name() {
        assert_eq!(parent_of(b"/a/b"), b"/a");
        assert_eq!(parent_of(b"/b"), b"");
    }
}
