//! Whether the vdso of the images is the one of this kernel. Programs keep addresses of its
//! functions, so a task can only get a vdso whose functions are where they were. The build id
//! tells: it is in a note of the code, which images have in full. Sizes, which the plan compares,
//! are often equal between kernels.

use super::vmas::status;
use anyhow::{Context, Result, bail};
use crust_image::ImageDir;
use crust_image::checkpoint::Checkpoint;
use crust_image::ids::VirtPid;
use crust_image::pages::DumpChain;
use crust_process::proc::maps::{VmaName, parse_maps};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// More than any vdso has; a larger area is a broken image, which the plan refuses.
const LONGEST: u64 = 1 << 20;
/// An ELF note (elf(5)): length of the name, of the id, type GNU build id, name.
const NAME_LEN: [u8; 4] = 4_u32.to_le_bytes();
const BUILD_ID: [u8; 4] = 3_u32.to_le_bytes();
const NAME: [u8; 4] = *b"GNU\0";

/// Refuses images of another kernel. An image without the pages says nothing.
pub fn check(images: &ImageDir, checkpoint: &Checkpoint) -> Result<()> {
    let own = own_code().context("read our own vdso")?;
    let chain = DumpChain::open(images)?;
    for (pid, mm) in &checkpoint.mms {
        let vdso = mm.vmas.iter().find(|vma| vma.status & status::VDSO != 0);
        let Some(vdso) = vdso.filter(|vma| vma.end.saturating_sub(vma.start) <= LONGEST) else {
            continue;
        };
        let code = stored_code(&chain, checkpoint, *pid, vdso.start..vdso.end)?;
        if let (Some(stored), Some(own)) = (build_id(&code), build_id(&own))
            && stored != own
        {
            bail!(
                "cannot restore: the vdso of task {pid} (mm-{pid}.img) is that of another kernel \
                 (build id {}, here {}), whose functions the program knows by their addresses",
                hex(stored),
                hex(own)
            );
        }
    }
    Ok(())
}

fn own_code() -> Result<Vec<u8>> {
    let maps = fs::read("/proc/self/maps")?;
    let maps = parse_maps(&maps)?;
    let vdso = maps.iter().find(|vma| vma.name == VmaName::Vdso);
    let vdso = vdso.context("there is none")?;
    let mut code = vec![0; vdso.end.saturating_sub(vdso.start) as usize];
    File::open("/proc/self/mem")?.read_exact_at(&mut code, vdso.start)?;
    Ok(code)
}

/// The stored bytes of a range, zeros where nothing is stored.
fn stored_code(
    chain: &DumpChain<'_>,
    checkpoint: &Checkpoint,
    pid: VirtPid,
    range: Range<u64>,
) -> Result<Vec<u8>> {
    let mut code = vec![0; (range.end - range.start) as usize];
    // A pagemap that cannot be read was refused by the plan.
    let runs = checkpoint.task_pages(pid).unwrap_or_default();
    for run in runs {
        let (start, end) = (run.vaddr.max(range.start), run.end().min(range.end));
        if start >= end {
            continue;
        }
        let at = (start - range.start) as usize..(end - range.start) as usize;
        let offset = run.source.file_offset + (start - run.vaddr);
        let pages = chain.open_pages(&run.source)?;
        let read = code
            .get_mut(at)
            .map(|bytes| pages.read_exact_at(bytes, offset));
        read.transpose()
            .with_context(|| format!("read the vdso of task {pid}"))?;
    }
    Ok(code)
}

/// The id in the first build-id note of some code.
fn build_id(code: &[u8]) -> Option<&[u8]> {
    const HEAD: usize = 16;
    (0..code.len()).step_by(4).find_map(|at| {
        let head = code.get(at..at + HEAD)?;
        let is_note =
            head.starts_with(&NAME_LEN) && head.get(8..12)? == BUILD_ID && head.ends_with(&NAME);
        let len = u32::from_le_bytes(*head.get(4..8)?.first_chunk()?) as usize;
        code.get(at + HEAD..at + HEAD + len).filter(|_| is_note)
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_note_is_found_and_its_length_checked() {
        let mut code = vec![0; 64];
        code.extend([4, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0]);
        code.extend(b"GNU\0");
        code.extend([0xab, 0xcd, 1, 2]);
        assert_eq!(build_id(&code), Some(&[0xab, 0xcd, 1, 2][..]));
        code.truncate(code.len() - 1);
        assert_eq!(build_id(&code), None);
        assert_eq!(build_id(&[]), None);
    }

    #[test]
    fn our_own_vdso_has_a_build_id() {
        let code = own_code().expect("a vdso");
        assert!(build_id(&code).is_some_and(|id| id.len() >= 8));
    }
}
