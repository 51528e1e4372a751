//! A thread that a killed dumper left inside its stub is led out of it before anything else.
//!
//! It is on its way back to its own code (remote.rs), but another dumper may meet it before it
//! has got there: its registers are not its own yet, and the stub and its table are still needed.
//! Where it is going stands in the table, so it is put there at once. Stepping it out
//! would not do: a tracer that dies between a PTRACE_SINGLESTEP and the next resume leaves the
//! trap flag set, and the thread dies of SIGTRAP (exit_ptrace does not clear it, measured on 6.18).

use crate::error::{Error, Result};
use crate::memory::TaskMem;
use crate::regs::Regs;
use crate::stub;
use crate::tracee::{self, Stopped, Wait};
use nix::errno::Errno;

/// Entries walked before a table is taken for damaged; a table of ours has at most some hundreds.
const MOST_ENTRIES: usize = 4096;
/// A thread needs some microseconds for the three calls that this waits for.
const MOST_INTERRUPTS: usize = 100_000;

/// What the tail of a table holds, as far as it is needed here.
struct Way {
    /// The thread's own registers.
    healed: Regs,
    /// The mask that the tail is still to set.
    mask: Option<u64>,
    /// The last entry still to come that cannot be left out: it puts back a signal action
    /// (remote.rs, shadowed), or reaps a child (remote/lend.rs).
    needed: Option<u64>,
    /// A clone still to come.
    clone: Option<u64>,
}

/// Puts a call that changes nothing in the place of a clone: under our eyes the child would be ours,
/// wait for us, and never end. Without it the wait behind has nobody to wait for.
fn leave_out_clone(mem: &TaskMem, thread: &Stopped, entry: u64, code: u64) -> Result<()> {
    mem.write_all_at(entry, &libc::SYS_getpid.to_le_bytes())?;
    let mut regs = thread.regs()?;
    if regs.0.rbx == entry {
        // It may have the number of the clone in rax, or be on its way into it again.
        regs.0.rip = code;
        regs.0.orig_rax = u64::MAX;
        thread.set_regs(&regs)?;
    }
    Ok(())
}

/// Lets the thread go on until this entry is behind it. It runs free and is interrupted again:
/// stepping or stopping it at system calls would leave it a SIGTRAP if we died meanwhile.
fn run_past(thread: &mut Stopped, entry: u64) -> Result<()> {
    for _ in 0..MOST_INTERRUPTS {
        let regs = thread.regs()?;
        if regs.0.rbx > entry {
            return Ok(());
        }
        // Only a dead dumper's hand-back can be in hand, everything else is blocked.
        thread.drop_signal();
        thread.resume()?;
        tracee::interrupt(thread.tid())?;
        match tracee::wait_blocking(thread.tid())? {
            Wait::Stopped(stop) => thread.stopped_again(stop),
            Wait::Exited(_) => break,
        }
    }
    let doing = "lead it out of the stub of a killed dumper";
    Err(Error::new(thread.tid(), doing, Errno::ESRCH))
}

/// Leads the thread out if it is inside a left-over stub; true if it was.
pub fn lead_out(mem: &TaskMem, thread: &mut Stopped) -> Result<bool> {
    let regs = thread.regs()?;
    let Some(code) = stub_around(mem, regs.0.rip) else {
        return Ok(false);
    };
    let damaged = |thread: &Stopped| {
        let doing = "lead it out of the stub of a killed dumper: its table is damaged";
        Error::new(thread.tid(), doing, Errno::EPROTO)
    };
    let mut way = find_way(mem, &regs, code).ok_or_else(|| damaged(thread))?;
    if let Some(clone) = way.clone {
        leave_out_clone(mem, thread, clone, code)?;
    }
    if let Some(needed) = way.needed {
        run_past(thread, needed)?;
        way = find_way(mem, &thread.regs()?, code).ok_or_else(|| damaged(thread))?;
    }
    // The signal in hand is the dead dumper's own: everything else was blocked, but a real one
    // that came behind the tail's last call is the program's.
    if way.mask.is_some() {
        thread.drop_signal();
    }
    // The mask first: if we die in between, it is the tail that sets it, to the same value.
    if let Some(mask) = way.mask {
        thread.set_sigmask(mask)?;
    }
    thread.set_regs(&way.healed)?;
    Ok(true)
}

/// Start of the stub whose instructions are around this address.
fn stub_around(mem: &TaskMem, rip: u64) -> Option<u64> {
    let code = stub::heal();
    let from = rip.checked_sub(code.len() as u64)?;
    let mut around = vec![0; 2 * code.len()];
    // The stub may end at the end of its mapping.
    let len = mem.read_at(from, &mut around).ok()?;
    let at = around[..len]
        .windows(code.len())
        .position(|bytes| bytes == code)?;
    let start = from + at as u64;
    (start..start + code.len() as u64)
        .contains(&rip)
        .then_some(start)
}

fn find_way(mem: &TaskMem, regs: &Regs, code: u64) -> Option<Way> {
    match stub::heal_progress((regs.0.rip - code) as usize) {
        stub::Progress::Calls => {
            let walked = walk_to_heal(mem, regs, code)?;
            Some(Way {
                healed: healed(mem, regs, walked.heal)?,
                mask: Some(walked.mask),
                needed: walked.needed,
                clone: walked.clone,
            })
        }
        stub::Progress::Popped(pops) => {
            let entry = regs.0.rsp.checked_sub(8 * (pops as u64 + 1))?;
            Some(Way {
                healed: healed(mem, regs, entry)?,
                mask: None,
                needed: None,
                clone: None,
            })
        }
    }
}

/// What a walk through the table has met.
struct Walked {
    heal: u64,
    mask: u64,
    needed: Option<u64>,
    clone: Option<u64>,
}

/// From the entry in hand to the healing entry, before which the mask is always set.
fn walk_to_heal(mem: &TaskMem, regs: &Regs, code: u64) -> Option<Walked> {
    let mut entry = regs.0.rbx;
    let mut needed = None;
    let is_made = regs.0.rip > code + stub::heal_gadget() && (regs.0.rax as i64) > 0;
    let mut clone = None;
    for _ in 0..MOST_ENTRIES {
        match mem.read_u64(entry).ok()? {
            stub::HEAL => {
                let mask_at = mem.read_u64(entry - stub::HEAL_ENTRY as u64 + 16).ok()?;
                let mask = mem.read_u64(mask_at).ok()?;
                return Some(Walked {
                    heal: entry,
                    mask,
                    needed,
                    clone,
                });
            }
            stub::JUMP => entry = mem.read_u64(entry + 8).ok()?,
            nr => {
                let in_hand = entry == regs.0.rbx;
                if nr == libc::SYS_clone as u64 && !(in_hand && is_made) {
                    clone = Some(entry);
                }
                let sets = nr == libc::SYS_rt_sigaction as u64 && sets_action(mem, entry)?;
                if sets || nr == libc::SYS_wait4 as u64 {
                    needed = Some(entry);
                }
                entry += stub::HEAL_ENTRY as u64;
            }
        }
    }
    None
}

/// Whether an rt_sigaction sets without asking, as only the tail's does.
fn sets_action(mem: &TaskMem, entry: u64) -> Option<bool> {
    let (new, old) = (
        mem.read_u64(entry + 16).ok()?,
        mem.read_u64(entry + 24).ok()?,
    );
    Some(new != 0 && old == 0)
}

fn healed(mem: &TaskMem, regs: &Regs, entry: u64) -> Option<Regs> {
    let mut words = [0; stub::HEAL_WORDS * 8];
    mem.read_exact_at(entry + 8, &mut words).ok()?;
    let mut words = words
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(std::array::from_fn(|i| word[i])));
    let mut regs = *regs;
    let r = &mut regs.0;
    for register in [
        &mut r.r15,
        &mut r.r14,
        &mut r.r13,
        &mut r.r12,
        &mut r.rbp,
        &mut r.rbx,
        &mut r.r11,
        &mut r.r10,
        &mut r.r9,
        &mut r.r8,
        &mut r.rax,
        &mut r.rcx,
        &mut r.rdx,
        &mut r.rsi,
        &mut r.rdi,
        &mut r.rip,
        &mut r.cs,
        &mut r.eflags,
        &mut r.rsp,
        &mut r.ss,
    ] {
        *register = words.next()?;
    }
    r.orig_rax = u64::MAX;
    Some(regs)
}
