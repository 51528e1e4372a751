//! The two pieces of machine code that run inside a stopped task. Each executes a table of system
//! calls, 0.2 microseconds a call against 15 for a ptrace round trip each.
//!
//! Both are position independent and touch no FPU state. rbx walks the table; an entry is
//! [`Entry`]-shaped; rax, rcx, rdx, rsi, rdi, r8..r11 are lost, rsp stays the thread's own.

use std::arch::global_asm;

// `heal` is for tasks that must live on if we die. The number of an entry is a system call, or
// JUMP (go on with the table at its first argument), or HEAL (take all registers from the words
// that follow and go on with the thread's own code). The pops need rsp for themselves, so the last
// words are a frame for iretq, which gives rip, flags and rsp back in one instruction and is
// allowed to user code. Nothing is beside the code: threads of a task may be inside it together.
// A call that answers 0 and has ENDS_CHILD as its sixth argument is a clone, seen by the child, which
// ends itself at once: it may share the table, so it must not write its answer there, let alone go
// on with the calls behind it.
global_asm!(
    ".pushsection .rodata.crust_stub, \"a\", @progbits",
    ".balign 16",
    ".globl crust_stub_heal, crust_stub_heal_end, crust_stub_exec, crust_stub_exec_end",
    ".hidden crust_stub_heal, crust_stub_heal_end, crust_stub_exec, crust_stub_exec_end",
    "crust_stub_heal:",
    "1: mov rax, [rbx]",
    "test rax, rax",
    "js 2f",
    "mov rdi, [rbx+8]",
    "mov rsi, [rbx+16]",
    "mov rdx, [rbx+24]",
    "mov r10, [rbx+32]",
    "mov r8, [rbx+40]",
    "mov r9, [rbx+48]",
    "syscall",
    "test rax, rax",
    "jnz 4f",
    "cmp r9, -1",
    "je 5f",
    "4: mov [rbx+56], rax",
    "add rbx, 64",
    "jmp 1b",
    "5: mov eax, 60",
    "xor edi, edi",
    "syscall",
    "hlt",
    "2: cmp eax, -2",
    "je 3f",
    "mov rbx, [rbx+8]",
    "jmp 1b",
    "3: lea rsp, [rbx+8]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rax",
    "pop rcx",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "iretq",
    "crust_stub_heal_end:",
    ".balign 16",
    // `exec` is for tasks that we make: nothing is lost if they die with us, so the end is a
    // breakpoint. An entry has two words more: flags and the value expected of the call. A call
    // that does not answer as expected ends the batch at once, with rbx on its entry.
    "crust_stub_exec:",
    "1: mov rax, [rbx]",
    "test rax, rax",
    "js 9f",
    "mov rdi, [rbx+8]",
    "mov rsi, [rbx+16]",
    "mov rdx, [rbx+24]",
    "mov r10, [rbx+32]",
    "mov r8, [rbx+40]",
    "mov r9, [rbx+48]",
    "syscall",
    "mov [rbx+56], rax",
    "mov rcx, [rbx+64]",
    "cmp rcx, 1",
    "jb 8f",
    "je 7f",
    "cmp rax, [rbx+72]",
    "jne 9f",
    "jmp 8f",
    "7: cmp rax, -4095",
    "jae 9f",
    "8: add rbx, 80",
    "jmp 1b",
    "9: int3",
    "crust_stub_exec_end:",
    ".popsection",
);

unsafe extern "C" {
    static crust_stub_heal: u8;
    static crust_stub_heal_end: u8;
    static crust_stub_exec: u8;
    static crust_stub_exec_end: u8;
}

/// Entry number: go on with the table at the first argument.
pub const JUMP: u64 = -1i64 as u64;
/// Entry number: restore the registers that follow and leave.
pub const HEAL: u64 = -2i64 as u64;
/// Entry number: the end of a batch of the exec stub.
pub const END: u64 = -1i64 as u64;

/// The sixth argument of a clone, which takes five: the child ends at once, unless we lead it.
pub const ENDS_CHILD: u64 = u64::MAX;

/// Bytes of an entry of the healing stub: number, six arguments, result.
pub const HEAL_ENTRY: usize = 64;
/// Bytes of an entry of the exec stub: the same, what is expected (0 nothing, 1 no error, 2 the
/// value of the next word), and that value.
pub const EXEC_ENTRY: usize = 80;
/// Words of a healing entry behind its number: 15 registers, then rip, cs, flags, rsp and ss.
pub const HEAL_WORDS: usize = 20;

/// The healing stub.
pub fn heal() -> &'static [u8] {
    // SAFETY: both symbols are in the one section emitted above, the end after the start.
    unsafe { between(&raw const crust_stub_heal, &raw const crust_stub_heal_end) }
}

/// How far a thread inside the healing stub has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// rbx walks the table, or is on the healing entry.
    Calls,
    /// rsp is in the healing entry, so many words have been popped.
    Popped(usize),
}

/// Where the `syscall` instruction of the healing stub is, behind which [`ENDS_CHILD`] is looked at.
pub fn heal_gadget() -> u64 {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let at = heal().windows(2).position(|bytes| bytes == SYSCALL);
    at.map_or(0, |at| at as u64)
}

/// What the instruction at `offset` of the stub means for the thread's registers.
pub fn heal_progress(offset: usize) -> Progress {
    const LEA_RSP: [u8; 5] = [0x48, 0x8d, 0x63, 0x08, 0x41];
    const REX_B: u8 = 0x41;
    let code = heal();
    let lea = code
        .windows(LEA_RSP.len())
        .position(|bytes| bytes == LEA_RSP);
    let Some(mut at) = lea.map(|lea| lea + 4).filter(|first| offset >= *first) else {
        return Progress::Calls;
    };
    let mut pops = 0;
    while at < offset {
        at += if code[at] == REX_B { 2 } else { 1 };
        pops += 1;
    }
    Progress::Popped(pops)
}

/// The exec stub.
pub fn exec() -> &'static [u8] {
    // SAFETY: as above.
    unsafe { between(&raw const crust_stub_exec, &raw const crust_stub_exec_end) }
}

/// # Safety
/// `start..end` must be initialised, constant memory.
unsafe fn between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: the caller's promise; both point into one static section.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}
