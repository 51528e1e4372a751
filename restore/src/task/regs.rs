//! General registers of x86_64. The image has them as user_regs_struct, with an interrupted system
//! call already turned into one that restarts or into its EINTR, so the kernel must not look at
//! orig_rax again: it is -1. The kernel itself keeps what user space may not have out of eflags
//! and the selectors; what it would answer with EIO or EPERM is refused here by name.

use super::{Live, Thread, xsave};
use crate::plan::step::{Op, Phase, ThreadState};
use crate::plan::{Planner, Refusal};
use crust_proto::criu::{CoreEntry, UserX86RegsEntry, UserX86RegsMode};

/// Selectors of 64-bit user code and of user data (asm/segment.h), privilege level 3.
const USER_CS: u64 = 0x33;
const USER_DS: u64 = 0x2b;
/// core_entry.march of x86_64.
const MARCH_X86_64: i32 = 1;

/// Plans the registers of one thread, with the signal mask it goes on with.
pub fn plan(planner: &mut Planner<'_>, live: &Live<'_>, thread: &Thread<'_>) {
    let origin = thread.origin("registers");
    let state = state_of(planner, thread.core).map(|(gpregs, xstate)| ThreadState {
        gpregs,
        xstate,
        sigmask: thread.own.blk_sigset.unwrap_or(live.tc.blk_sigset),
    });
    match state {
        Ok(state) => {
            let op = Op::SetRegs(Box::new(state));
            planner.push(Phase::Commit, thread.actor(), op, origin);
        }
        Err(why) => planner.refuse(Refusal::new(origin, why)),
    }
}

fn state_of(planner: &Planner<'_>, core: &CoreEntry) -> Result<([u64; 27], Vec<u8>), String> {
    if core.mtype != MARCH_X86_64 {
        return Err(format!("mtype {} is of another architecture", core.mtype));
    }
    let info = core.thread_info.as_ref().ok_or("thread_info is missing")?;
    let regs = &info.gpregs;
    if regs.mode() != UserX86RegsMode::Native {
        return Err("thread_info.gpregs.mode: 32-bit code cannot be restored yet".to_owned());
    }
    check(regs, planner.host.task_end)?;
    let xstate = xsave::area(&info.fpregs, &planner.host.xstate)?;
    Ok((gpregs(regs), xstate))
}

fn check(regs: &UserX86RegsEntry, task_end: u64) -> Result<(), String> {
    if regs.cs != USER_CS {
        return Err(format!(
            "gpregs.cs {:#x} is not the selector of 64-bit code",
            regs.cs
        ));
    }
    for (name, value) in [
        ("ss", regs.ss),
        ("ds", regs.ds),
        ("es", regs.es),
        ("fs", regs.fs),
        ("gs", regs.gs),
    ] {
        // Selectors of thread-local segments (entries 12 to 14) with privilege 3.
        let tls = (12..=14).any(|entry| value == entry << 3 | 3);
        if value != 0 && value != USER_DS && !tls {
            return Err(format!(
                "gpregs.{name} {value:#x} is no selector of user space"
            ));
        }
    }
    for (name, value) in [("fs_base", regs.fs_base), ("gs_base", regs.gs_base)] {
        if value >= task_end {
            return Err(format!(
                "gpregs.{name} {value:#x} is no address of user space"
            ));
        }
    }
    Ok(())
}

/// In the order of user_regs_struct.
fn gpregs(regs: &UserX86RegsEntry) -> [u64; 27] {
    [
        regs.r15,
        regs.r14,
        regs.r13,
        regs.r12,
        regs.bp,
        regs.bx,
        regs.r11,
        regs.r10,
        regs.r9,
        regs.r8,
        regs.ax,
        regs.cx,
        regs.dx,
        regs.si,
        regs.di,
        // No system call: the kernel must not restart one.
        u64::MAX,
        regs.ip,
        regs.cs,
        regs.flags,
        regs.sp,
        regs.ss,
        regs.fs_base,
        regs.gs_base,
        regs.ds,
        regs.es,
        regs.fs,
        regs.gs,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> UserX86RegsEntry {
        UserX86RegsEntry {
            ip: 0x401000,
            cs: 0x33,
            ss: 0x2b,
            orig_ax: 230,
            ..UserX86RegsEntry::default()
        }
    }

    #[test]
    fn no_call_is_restarted() {
        let regs = gpregs(&good());
        assert_eq!((regs[15], regs[16]), (u64::MAX, 0x401000));
    }

    #[test]
    fn selectors_and_bases_are_checked() {
        const END: u64 = 1 << 47;
        assert_eq!(check(&good(), END), Ok(()));
        assert!(check(&UserX86RegsEntry { cs: 0x10, ..good() }, END).is_err());
        assert!(check(&UserX86RegsEntry { ss: 0x18, ..good() }, END).is_err());
        assert!(
            check(
                &UserX86RegsEntry {
                    fs_base: 1 << 63,
                    ..good()
                },
                END
            )
            .is_err()
        );
    }
}
