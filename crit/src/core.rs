//! `crit core`: an ELF core file of a dumped task, for gdb.
//!
//! The notes are those the kernel writes for x86-64 (fs/binfmt_elf.c): status and registers of each
//! thread, floating point and extended state, process information, the auxiliary vector and the
//! mapped files. Memory that was dumped is in the file; areas of a mapped file that were not are
//! left to the file, which the debugger opens by NT_FILE.

mod notes;

use crate::cli;
use crate::dump::{Dump, Task};
use crate::memory::open_dir;
use crate::output::write_seekable;
use crate::task_memory::{Area, Backing, Source, TaskMemory};
use anyhow::{Context, Result, bail};
use crust_image::Kind;
use crust_image::dynamic::Message;
use crust_image::pages::DumpChain;
use object::elf;
use object::write::elf::{FileHeader, ProgramHeader, Writer};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

const PAGE: u64 = 4096;
const CHUNK: usize = 1 << 20;

pub fn core(arguments: &cli::Core) -> Result<()> {
    let dump = Dump::open(&arguments.dir)?;
    let dir = open_dir(dump.path())?;
    let chain = DumpChain::open(&dir)?;
    let mut memory = TaskMemory::open(&dump, &chain, arguments.pid, None)?;
    let tasks = dump.tasks()?;
    let task = tasks
        .iter()
        .find(|task| task.pid == arguments.pid)
        .context("the task is not in pstree.img")?;
    let notes = all_notes(&dump, task, &mut memory)?;
    let segments = segments(&mut memory)?;
    write_seekable(&arguments.output, |file| {
        write_core(file, &notes, &segments, &mut memory)
    })
}

fn all_notes(dump: &Dump, task: &Task, memory: &mut TaskMemory<'_>) -> Result<Vec<u8>> {
    let mm = dump
        .message(Kind::Mm, Some(task.pid))?
        .context("the task has no mm image")?;
    let mut cores = Vec::new();
    for tid in &task.threads {
        let core = dump.message(Kind::Core, Some(*tid))?;
        cores.push((
            *tid,
            core.with_context(|| format!("core-{tid}.img is missing"))?,
        ));
    }
    let Some((_, leader)) = cores.first() else {
        bail!("task {} has no threads", task.pid)
    };
    if leader.message("thread_info").is_none() {
        bail!("task {}: its registers are not those of x86-64", task.pid);
    }
    let mut out = Vec::new();
    let arguments = command_line(&mm, memory)?;
    for (at, (tid, core)) in cores.iter().enumerate() {
        notes::thread(&mut out, task, *tid, core, leader)
            .with_context(|| format!("thread {tid}"))?;
        // The kernel puts what concerns the process behind the first thread's status.
        if at == 0 {
            notes::process(&mut out, task, leader, &arguments);
            notes::auxiliary_vector(&mut out, &mm);
            notes::files(&mut out, &memory.areas);
        }
    }
    Ok(out)
}

/// The first 80 bytes of the arguments, with blanks between the words, as the kernel puts them.
fn command_line(mm: &Message, memory: &mut TaskMemory<'_>) -> Result<String> {
    let (start, end) = (
        mm.u64("mm_arg_start").unwrap_or(0),
        mm.u64("mm_arg_end").unwrap_or(0),
    );
    let mut bytes = vec![0; end.saturating_sub(start).min(80) as usize];
    let (count, _) = memory.read_at(start, &mut bytes)?;
    bytes.truncate(count);
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    Ok(text.trim_end().to_owned())
}

/// A piece of memory as the core has it.
struct Segment {
    start: u64,
    end: u64,
    prot: u64,
    /// Its bytes are in the core.
    in_core: bool,
}

/// Areas of anonymous and shared memory whole (what was never touched is a hole in the file), those
/// of mapped files as far as they were dumped.
fn segments(memory: &mut TaskMemory<'_>) -> Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for area in memory.areas.clone() {
        match area.backing {
            Backing::Kernel => {}
            Backing::File(_) => file_segments(memory, &area, &mut segments)?,
            Backing::Zero | Backing::Shared(_) => {
                let in_core = area.prot != 0;
                segments.push(Segment {
                    start: area.start,
                    end: area.end,
                    prot: area.prot,
                    in_core,
                });
            }
        }
    }
    // The note has a header of its own.
    if segments.len() >= usize::from(elf::PN_XNUM) - 1 {
        bail!(
            "{} pieces of memory: an ELF file of this form has place for {}",
            segments.len(),
            elf::PN_XNUM - 2
        );
    }
    Ok(segments)
}

fn file_segments(
    memory: &mut TaskMemory<'_>,
    area: &Area,
    segments: &mut Vec<Segment>,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = area.start;
    while at < area.end {
        let want = (area.end - at).min(CHUNK as u64) as usize;
        let (count, source) = memory.read_at(at, buffer.get_mut(..want).unwrap_or_default())?;
        let end = (at + (count as u64).div_ceil(PAGE) * PAGE).min(area.end);
        if end == at {
            break;
        }
        let in_core = source == Source::Dumped;
        match segments.last_mut() {
            Some(last) if last.end == at && last.in_core == in_core && last.start >= area.start => {
                last.end = end
            }
            _ => segments.push(Segment {
                start: at,
                end,
                prot: area.prot,
                in_core,
            }),
        }
        at = end;
    }
    Ok(())
}

fn write_core(
    file: &mut File,
    notes: &[u8],
    segments: &[Segment],
    memory: &mut TaskMemory<'_>,
) -> Result<()> {
    let mut head = Vec::new();
    let mut writer = Writer::new(object::Endianness::Little, true, &mut head);
    writer.reserve_file_header();
    writer.reserve_program_headers(segments.len() as u32 + 1);
    let notes_at = writer.reserve(notes.len(), 4);
    let data_at = (notes_at + notes.len()).next_multiple_of(PAGE as usize) as u64;
    let header = FileHeader {
        os_abi: elf::ELFOSABI_NONE,
        abi_version: 0,
        e_type: elf::ET_CORE,
        e_machine: elf::EM_X86_64,
        e_entry: 0,
        e_flags: 0,
    };
    writer
        .write_file_header(&header)
        .map_err(|error| anyhow::anyhow!("ELF header: {error}"))?;
    writer.write_align_program_headers();
    writer.write_program_header(&ProgramHeader {
        p_type: elf::PT_NOTE,
        p_flags: 0,
        p_offset: notes_at as u64,
        p_vaddr: 0,
        p_paddr: 0,
        p_filesz: notes.len() as u64,
        p_memsz: 0,
        p_align: 4,
    });
    let mut offset = data_at;
    let mut places = Vec::new();
    for segment in segments {
        let size = segment.end - segment.start;
        let in_file = if segment.in_core { size } else { 0 };
        writer.write_program_header(&ProgramHeader {
            p_type: elf::PT_LOAD,
            // PF_R is 4 and PF_X 1, the reverse of PROT_READ and PROT_EXEC.
            p_flags: (segment.prot as u32 & 1) << 2
                | segment.prot as u32 & 2
                | (segment.prot as u32 & 4) >> 2,
            p_offset: offset,
            p_vaddr: segment.start,
            p_paddr: 0,
            p_filesz: in_file,
            p_memsz: size,
            p_align: PAGE,
        });
        places.push(offset);
        offset = offset
            .checked_add(in_file)
            .context("the core would be too large")?;
    }
    writer.write_align(4);
    writer.write(notes);
    file.write_all(&head)?;
    file.set_len(offset).context("make room for the core")?;
    for (segment, place) in segments
        .iter()
        .zip(places)
        .filter(|(segment, _)| segment.in_core)
    {
        write_segment(file, segment, place, memory)?;
    }
    Ok(())
}

/// Writes the dumped pages of a segment; the rest stays a hole.
fn write_segment(
    file: &mut File,
    segment: &Segment,
    place: u64,
    memory: &mut TaskMemory<'_>,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = segment.start;
    while at < segment.end {
        let want = (segment.end - at).min(CHUNK as u64) as usize;
        let (count, source) = memory.read_at(at, buffer.get_mut(..want).unwrap_or_default())?;
        if count == 0 {
            break;
        }
        if source == Source::Dumped {
            file.seek(SeekFrom::Start(place + (at - segment.start)))?;
            file.write_all(buffer.get(..count).unwrap_or_default())?;
        }
        at += count as u64;
    }
    Ok(())
}
