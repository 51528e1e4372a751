//! What the kernel keeps of an address space beside its mappings: the bounds of code, data, heap,
//! stack, arguments and environment, the auxiliary vector and the exe link, all set by one
//! prctl(PR_SET_MM, PR_SET_MM_MAP), which unlike the single settings needs no CAP_SYS_RESOURCE
//! (kernel/sys.c, prctl_set_mm_map). And the two attributes of the whole: THP and, in
//! task/creds.rs because ids reset it, dumpable.

use super::{Room, hold, release};
use crate::host::Host;
use crate::plan::calls::prctl;
use crate::plan::step::{Actor, Arg, Call, Op, Phase, Piece};
use crate::plan::{Planner, Refusal};
use crust_image::ids::FileId;
use crust_proto::criu::{FileEntry, MmEntry};

const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP: i32 = 14;
const PR_SET_THP_DISABLE: i32 = 41;
const PR_SET_MDWE: i32 = 65;
/// PR_MDWE_REFUSE_EXEC_GAIN and PR_MDWE_NO_INHERIT.
const MDWE_KNOWN: u32 = 3;
const PR_SET_MEMORY_MERGE: i32 = 67;
/// mseal(2), since Linux 6.10.
const SYS_MSEAL: i64 = 462;
/// Bytes of struct prctl_mm_map (linux/prctl.h): eleven words, a pointer, two halves.
const MM_MAP_SIZE: i64 = 11 * 8 + 8 + 2 * 4;
/// More words than any kernel's saved_auxv has.
const MAX_AUXV: usize = 128;

/// Plans the end of an address space.
pub(super) fn plan(planner: &mut Planner<'_>, room: &mut Room<'_>) {
    let entry = room.entry;
    let origin = room.origin(format!("bounds and exe of task {}", room.pid));
    let bounds = bounds(entry);
    if let Err(why) = check(entry, planner.host) {
        planner.refuse(Refusal::new(origin, why));
        return;
    }
    let id = FileId(entry.exe_file_id);
    let is_memfd = |file: &FileEntry| file.memfd.is_some();
    let exe = if planner.checkpoint.file(id).is_some_and(is_memfd) {
        // A description for writing would forbid its being executed.
        planner.mapped_file(id, nix::libc::O_RDONLY as u32)
    } else {
        planner.file_slot(id)
    };
    let Some(exe) = exe else {
        let why = format!(
            "exe_file_id {} is no file that can be opened",
            entry.exe_file_id
        );
        planner.refuse(Refusal::new(origin, why));
        return;
    };
    hold(planner, room, Some(exe), &origin);
    let auxv = auxv(&entry.mm_saved_auxv);
    let auxv_size = (auxv.len() * 8) as u32;
    let mut sizes = auxv_size.to_le_bytes().to_vec();
    // exe_fd: the file is number 0.
    sizes.extend([0; 4]);
    let map = Arg::Data(vec![
        Piece::Bytes(
            bounds
                .iter()
                .flat_map(|(_, value)| value.to_le_bytes())
                .collect(),
        ),
        Piece::Ptr(Box::new(Arg::words(auxv))),
        Piece::Bytes(sizes),
    ]);
    let args = [
        Arg::named("PR_SET_MM_MAP", PR_SET_MM_MAP),
        map,
        Arg::Int(MM_MAP_SIZE),
    ];
    planner.call(
        Phase::Memory,
        room.actor,
        prctl("PR_SET_MM", PR_SET_MM, args),
        origin,
    );
    release(planner, room);
    if entry.thp_disabled == Some(true) {
        let origin = room.origin(format!("transparent huge pages of task {}", room.pid));
        let flags = entry.crust_thp_disable_flags.unwrap_or(0);
        let args = [Arg::Int(1), Arg::Int(flags.into())];
        let call = prctl("PR_SET_THP_DISABLE", PR_SET_THP_DISABLE, args);
        planner.call(Phase::Memory, room.actor, call, origin);
    }
    if entry.crust_memory_merge == Some(true) {
        let origin = room.origin(format!("merging of equal pages of task {}", room.pid));
        let call = prctl("PR_SET_MEMORY_MERGE", PR_SET_MEMORY_MERGE, [Arg::Int(1)]);
        planner.call(Phase::Memory, room.actor, call, origin);
    }
    plan_seals(planner, room);
    if let Some(filter) = entry.crust_coredump_filter {
        let op = Op::WriteProc {
            pid: room.pid,
            tid: None,
            file: "coredump_filter",
            text: format!("{filter:#x}"),
        };
        let origin = room.origin(format!("what a core file of task {} holds", room.pid));
        planner.push(Phase::Memory, Actor::Broker, op, origin);
    }
}

/// What can never be taken back: seals on areas, and that no memory becomes executable. Last, for
/// the children that are forked from this memory unmap it.
fn plan_seals(planner: &mut Planner<'_>, room: &Room<'_>) {
    for vma in &room.vmas {
        let stored = room.entry.vmas.get(vma.index);
        if stored.and_then(|stored| stored.crust_sealed) == Some(true) {
            let args = vec![Arg::Hex(vma.start), Arg::Int(vma.len() as i64), Arg::Int(0)];
            let call = Call::new("mseal", SYS_MSEAL, args);
            planner.call(Phase::Commit, room.actor, call, room.of_vma(vma));
        }
    }
    if let Some(flags) = room.entry.crust_mdwe {
        let origin = room.origin(format!("protection of the memory of task {}", room.pid));
        if flags & !MDWE_KNOWN != 0 {
            let why = format!("crust_mdwe {flags:#x} has unknown bits");
            return planner.refuse(Refusal::new(origin, why));
        }
        let call = prctl("PR_SET_MDWE", PR_SET_MDWE, [Arg::Hex(flags.into())]);
        planner.call(Phase::Commit, room.actor, call, origin);
    }
}

/// The words of struct prctl_mm_map, in its order.
fn bounds(entry: &MmEntry) -> [(&'static str, u64); 11] {
    [
        ("mm_start_code", entry.mm_start_code),
        ("mm_end_code", entry.mm_end_code),
        ("mm_start_data", entry.mm_start_data),
        ("mm_end_data", entry.mm_end_data),
        ("mm_start_brk", entry.mm_start_brk),
        ("mm_brk", entry.mm_brk),
        ("mm_start_stack", entry.mm_start_stack),
        ("mm_arg_start", entry.mm_arg_start),
        ("mm_arg_end", entry.mm_arg_end),
        ("mm_env_start", entry.mm_env_start),
        ("mm_env_end", entry.mm_env_end),
    ]
}

/// What validate_prctl_map_addr of kernel/sys.c asks for.
fn check(entry: &MmEntry, host: &Host) -> Result<(), String> {
    for (name, value) in bounds(entry) {
        if value < host.mmap_min || value >= host.task_end {
            return Err(format!(
                "{name} {value:#x} is outside of what a task may map"
            ));
        }
    }
    for (low, high) in [
        (
            ("mm_start_code", entry.mm_start_code),
            ("mm_end_code", entry.mm_end_code),
        ),
        (
            ("mm_start_data", entry.mm_start_data),
            ("mm_end_data", entry.mm_end_data),
        ),
        (
            ("mm_start_brk", entry.mm_start_brk),
            ("mm_brk", entry.mm_brk),
        ),
        (
            ("mm_arg_start", entry.mm_arg_start),
            ("mm_arg_end", entry.mm_arg_end),
        ),
        (
            ("mm_env_start", entry.mm_env_start),
            ("mm_env_end", entry.mm_env_end),
        ),
    ] {
        if low.1 > high.1 {
            return Err(format!(
                "{} {:#x} is above {} {:#x}",
                low.0, low.1, high.0, high.1
            ));
        }
    }
    if entry.mm_saved_auxv.len() > MAX_AUXV {
        return Err(format!(
            "mm_saved_auxv has {} words",
            entry.mm_saved_auxv.len()
        ));
    }
    Ok(())
}

/// The auxiliary vector up to its null pair: what follows is padding to the size of the dumping
/// kernel's array, which may be larger than this kernel's.
fn auxv(words: &[u64]) -> &[u64] {
    let pairs = words.chunks_exact(2);
    let end = pairs.clone().position(|pair| pair.first() == Some(&0));
    let len = end.map_or(pairs.len(), |null| null + 1) * 2;
    words.get(..len).unwrap_or(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::recorded;

    fn good() -> MmEntry {
        MmEntry {
            mm_start_code: 0x400000,
            mm_end_code: 0x401000,
            mm_start_data: 0x402000,
            mm_end_data: 0x403000,
            mm_start_brk: 0x500000,
            mm_brk: 0x501000,
            mm_start_stack: 0x7ff0_0000,
            mm_arg_start: 0x7ff0_0010,
            mm_arg_end: 0x7ff0_0020,
            mm_env_start: 0x7ff0_0020,
            mm_env_end: 0x7ff0_0030,
            ..MmEntry::default()
        }
    }

    #[test]
    fn bounds_are_checked_as_the_kernel_does() {
        assert_eq!(check(&good(), &recorded()), Ok(()));
        let backwards = MmEntry {
            mm_brk: 0x4f0000,
            ..good()
        };
        assert_eq!(
            check(&backwards, &recorded()),
            Err("mm_start_brk 0x500000 is above mm_brk 0x4f0000".into())
        );
        let outside = MmEntry {
            mm_env_end: u64::MAX,
            ..good()
        };
        assert!(check(&outside, &recorded()).is_err());
    }

    #[test]
    fn the_vector_ends_at_its_null_pair() {
        assert_eq!(auxv(&[6, 4096, 0, 0, 0, 0]), [6, 4096, 0, 0]);
        assert_eq!(auxv(&[6, 4096, 3, 1]), [6, 4096, 3, 1]);
        assert_eq!(auxv(&[6, 4096, 3]), [6, 4096]);
        assert_eq!(auxv(&[]), [0_u64; 0]);
    }
}
