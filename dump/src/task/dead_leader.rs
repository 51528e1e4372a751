//! A leader that has ended (pthread_exit in main) while other threads of its task live.
//!
//! The images want a core for the leader, with the state of the task in it, and have no word for a
//! dead one. So it is written as a thread that is about to end: its next instruction is `syscall`,
//! its registers ask for exit(2) with the code it ended with, and nothing of what the kernel does
//! at a thread's end (clearing its id, walking its robust list) is registered. Any restorer makes
//! of it what was there: a zombie that waits for its threads.
//!
//! What is not its own any more (ids, limits of the processor state) is that of the thread that
//! speaks for the task.

use crate::task::core::ThreadState;
use crate::task::questions::ThreadAnswers;
use crate::task::signals::STACK_LEN;
use anyhow::{Context, Result};
use crust_process::memory::TaskMem;
use crust_process::pid::HostPid;
use crust_process::proc::ProcDir;
use crust_process::proc::maps::VmaName;
use crust_process::proc::smaps::SmapsVma;
use crust_process::proc::stat::parse_stat;
use crust_process::regs::Regs;
use crust_proto::criu::CoreEntry;
use nix::libc;

/// `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
const SS_DISABLE: u32 = 2;
/// Code is read in pieces of this size.
const PIECE: usize = 64 << 10;

/// Address of a `syscall` instruction in the code of the task: in a file, which is the same after
/// a restore, before the vdso, which may be that of another kernel.
pub fn find_syscall(mem: &TaskMem, areas: &[SmapsVma]) -> Result<u64> {
    let code = |of_file: bool| {
        areas.iter().filter(move |area| {
            let in_file = matches!(area.vma.name, VmaName::Path { .. });
            let in_vdso = area.vma.name == VmaName::Vdso;
            area.vma.perms.exec && !area.vma.perms.shared && if of_file { in_file } else { in_vdso }
        })
    };
    for area in code(true).chain(code(false)) {
        if let Some(at) = search(mem, area.vma.start, area.vma.end)? {
            return Ok(at);
        }
    }
    anyhow::bail!("its leader is dead and its code has no system call that could end one")
}

fn search(mem: &TaskMem, start: u64, end: u64) -> Result<Option<u64>> {
    let mut bytes = vec![0; PIECE];
    let mut at = start;
    while at < end {
        let len = (end - at).min(PIECE as u64) as usize;
        mem.read_exact_at(at, &mut bytes[..len])
            .with_context(|| format!("look for a system call at {at:#x}"))?;
        let found = bytes[..len]
            .windows(SYSCALL.len())
            .position(|two| two == SYSCALL);
        if let Some(offset) = found {
            return Ok(Some(at + offset as u64));
        }
        // An instruction may lie across the end of the piece.
        at += if at + (len as u64) < end {
            len as u64 - 1
        } else {
            len as u64
        };
    }
    Ok(None)
}

/// The registers of a thread that ends with this raw wait status as soon as it runs.
pub fn ending_regs(speaker: &Regs, syscall: u64, status: i32) -> Regs {
    let mut regs = *speaker;
    regs.0.rip = syscall;
    regs.0.rax = libc::SYS_exit as u64;
    regs.0.rdi = (status >> 8 & 0xff) as u64;
    regs.0.orig_rax = u64::MAX;
    regs
}

/// What is registered for the thread: nothing.
pub fn ending_answers(speaker: &ThreadAnswers) -> ThreadAnswers {
    let mut altstack = [0; STACK_LEN];
    altstack[8..12].copy_from_slice(&SS_DISABLE.to_le_bytes());
    ThreadAnswers {
        altstack,
        tid_address: 0,
        robust_list: (0, 0),
        pdeath_signal: 0,
        ..speaker.clone()
    }
}

/// The leader as a thread. All signals are blocked: it must not run a handler on its way.
pub fn ending_state<'a>(
    speaker: &ThreadState<'a>,
    regs: Regs,
    answers: &'a ThreadAnswers,
) -> ThreadState<'a> {
    ThreadState {
        regs,
        sigmask: !0,
        rseq: None,
        answers,
        ..*speaker
    }
}

/// The name that the leader had.
pub fn read_comm(pid: HostPid) -> Result<Vec<u8>> {
    let text = ProcDir::open(pid)?.read("stat")?;
    let stat = parse_stat(&text).with_context(|| format!("task {pid}: read stat"))?;
    Ok(stat.comm)
}

/// Puts the name where that of the thread that speaks for the task is.
pub fn name(core: &mut CoreEntry, comm: Vec<u8>) {
    core.thread_core
        .iter_mut()
        .for_each(|thread| thread.comm = Some(comm.clone()));
    core.tc.iter_mut().for_each(|task| task.comm = comm.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_next_call_ends_it_with_its_code() {
        let speaker = Regs::from_words(&[7; 27]);
        let regs = ending_regs(&speaker, 0x4000, 0x300).0;
        assert_eq!((regs.rip, regs.rax, regs.rdi), (0x4000, 60, 3));
        assert_eq!(regs.orig_rax, u64::MAX);
    }

    #[test]
    fn our_own_code_has_a_system_call() {
        let pid = HostPid::current();
        let mem = TaskMem::open(pid).expect("our own memory");
        let text = std::fs::read("/proc/self/smaps").expect("our own areas");
        let areas = crust_process::proc::smaps::parse_smaps(&text).expect("parses");
        let at = find_syscall(&mem, &areas).expect("libc makes system calls");
        let mut two = [0; 2];
        mem.read_exact_at(at, &mut two).expect("it is mapped");
        assert_eq!(two, SYSCALL);
    }
}
