//! The notes of a core file, in the layout of the kernel's structures for x86-64
//! (include/uapi/linux/elfcore.h, arch/x86/include/asm/user_64.h; xstate: Intel SDM volume 1,
//! chapter 13, with the offsets of the standard format).

use crate::dump::{Task, text};
use crate::task_memory::{Area, Backing};
use anyhow::{Context, Result};
use crust_image::dynamic::Message;
use object::elf::{
    NT_AUXV, NT_FILE, NT_FPREGSET, NT_PRPSINFO, NT_PRSTATUS, NT_SIGINFO, NT_X86_XSTATE,
};

/// The order of user_regs_struct.
const REGISTERS: [&str; 27] = [
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
    "orig_ax", "ip", "cs", "flags", "sp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
];

fn put_note(out: &mut Vec<u8>, name: &str, kind: u32, data: &[u8]) {
    for word in [name.len() as u32 + 1, data.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    for part in [name.as_bytes(), b"\0"] {
        out.extend(part);
    }
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(data);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Fixed-size data with fields at offsets.
struct Layout {
    bytes: Vec<u8>,
}

impl Layout {
    fn new(size: usize) -> Layout {
        Layout {
            bytes: vec![0; size],
        }
    }

    /// Puts a field; one that does not fit is cut.
    fn put(&mut self, at: usize, field: &[u8]) {
        let room = self.bytes.get_mut(at..).unwrap_or_default();
        room.iter_mut()
            .zip(field)
            .for_each(|(there, byte)| *there = *byte);
    }

    fn words32(&mut self, at: usize, words: &[u64], most: usize) {
        let bytes: Vec<u8> = words
            .iter()
            .take(most)
            .flat_map(|word| (*word as u32).to_le_bytes())
            .collect();
        self.put(at, &bytes);
    }

    fn words64(&mut self, at: usize, words: &[u64], most: usize) {
        let bytes: Vec<u8> = words
            .iter()
            .take(most)
            .flat_map(|word| word.to_le_bytes())
            .collect();
        self.put(at, &bytes);
    }
}

/// Status, registers and pending signal of one thread.
pub fn thread(
    out: &mut Vec<u8>,
    task: &Task,
    tid: u64,
    core: &Message,
    leader: &Message,
) -> Result<()> {
    let info = core
        .message("thread_info")
        .context("no registers of x86-64")?;
    let registers = info.message("gpregs").context("no general registers")?;
    let thread_core = core.message("thread_core");
    let signal = leader
        .message("tc")
        .and_then(|tc| tc.u64("stop_signo"))
        .unwrap_or(0);
    let mut status = Layout::new(336);
    status.put(0, &(signal as u32).to_le_bytes());
    status.put(12, &(signal as u16).to_le_bytes());
    let own = thread_core.and_then(|thread| thread.message("signals_p"));
    let shared = leader.message("tc").and_then(|tc| tc.message("signals_s"));
    let waiting = pending_set(own) | pending_set(shared);
    status.put(16, &waiting.to_le_bytes());
    let blocked = thread_core.and_then(|thread| thread.u64("blk_sigset"));
    status.put(24, &blocked.unwrap_or(0).to_le_bytes());
    for (at, id) in [(32, tid), (36, task.ppid), (40, task.pgid), (44, task.sid)] {
        status.put(at, &(id as u32).to_le_bytes());
    }
    for (at, name) in REGISTERS.iter().enumerate() {
        status.put(
            112 + at * 8,
            &registers.u64(name).unwrap_or(0).to_le_bytes(),
        );
    }
    status.put(328, &1u32.to_le_bytes());
    put_note(out, "CORE", NT_PRSTATUS, &status.bytes);

    let pending = thread_core.and_then(|thread| {
        thread
            .message("signals_p")?
            .messages("signals")
            .next()?
            .bytes("siginfo")
    });
    let mut siginfo = Layout::new(128);
    siginfo.put(0, &(signal as u32).to_le_bytes());
    siginfo.put(0, pending.unwrap_or_default());
    put_note(out, "CORE", NT_SIGINFO, &siginfo.bytes);

    if let Some(fpregs) = info.message("fpregs") {
        let legacy = fxsave(fpregs);
        put_note(out, "CORE", NT_FPREGSET, &legacy.bytes);
        if let Some(extended) = xsave(legacy, fpregs) {
            put_note(out, "LINUX", NT_X86_XSTATE, &extended.bytes);
        }
    }
    Ok(())
}

/// The signals of a queue as the kernel's set: signal 1 is bit 0.
fn pending_set(queue: Option<&Message>) -> u64 {
    let signals = queue
        .into_iter()
        .flat_map(|queue| queue.messages("signals"));
    let numbers = signals.filter_map(|signal| signal.bytes("siginfo")?.first().copied());
    numbers
        .filter(|number| (1..=64).contains(number))
        .fold(0, |set, number| set | 1 << (number - 1))
}

/// The words of a repeated field.
fn words(message: &Message, name: &str) -> Vec<u64> {
    message
        .all(name)
        .filter_map(|value| value.as_u64())
        .collect()
}

/// The 512 bytes of FXSAVE.
fn fxsave(fpregs: &Message) -> Layout {
    let number = |name: &str| fpregs.u64(name).unwrap_or(0);
    let mut area = Layout::new(512);
    for (at, name) in [(0, "cwd"), (2, "swd"), (4, "twd"), (6, "fop")] {
        area.put(at, &(number(name) as u16).to_le_bytes());
    }
    area.put(8, &number("rip").to_le_bytes());
    area.put(16, &number("rdp").to_le_bytes());
    area.put(24, &(number("mxcsr") as u32).to_le_bytes());
    area.put(28, &(number("mxcsr_mask") as u32).to_le_bytes());
    area.words32(32, &words(fpregs, "st_space"), 32);
    area.words32(160, &words(fpregs, "xmm_space"), 64);
    area.words32(416, &words(fpregs, "padding"), 24);
    area
}

/// The area of XSAVE in standard format, as large as its last component needs; `None` without
/// extended state.
fn xsave(legacy: Layout, fpregs: &Message) -> Option<Layout> {
    let state = fpregs.message("xsave")?;
    let has = |name: &str| state.get(name).is_some();
    let (avx, mpx) = (has("ymmh_space"), has("bndreg_state"));
    let (avx512, pkru) = (has("opmask_reg"), has("pkru"));
    // x87 and SSE are always there.
    let parts = [
        (avx, 1 << 2),
        (mpx, 3 << 3),
        (avx512, 7 << 5),
        (pkru, 1 << 9),
    ];
    let components = parts
        .iter()
        .filter(|(has, _)| *has)
        .fold(3u64, |set, (_, bits)| set | bits);
    let size = match (pkru, avx512, mpx, avx) {
        (true, ..) => 2696,
        (_, true, ..) => 2688,
        (_, _, true, _) => 1088,
        (_, _, _, true) => 832,
        _ => return None,
    };
    let mut area = legacy;
    area.bytes.resize(size, 0);
    // Where debuggers look for XCR0 (the software-reserved bytes of the legacy area).
    area.put(464, &components.to_le_bytes());
    area.put(
        512,
        &(state.u64("xstate_bv").unwrap_or(0) & components).to_le_bytes(),
    );
    area.words32(576, &words(state, "ymmh_space"), 64);
    area.words64(960, &words(state, "bndreg_state"), 8);
    area.words64(1024, &words(state, "bndcsr_state"), 8);
    area.words64(1088, &words(state, "opmask_reg"), 8);
    area.words64(1152, &words(state, "zmm_upper"), 64);
    area.words64(1664, &words(state, "hi16_zmm"), 128);
    area.words32(2688, &words(state, "pkru"), 2);
    Some(area)
}

/// NT_PRPSINFO.
pub fn process(out: &mut Vec<u8>, task: &Task, leader: &Message, arguments: &str) {
    let tc = leader.message("tc");
    let creds = leader
        .message("thread_core")
        .and_then(|thread| thread.message("creds"));
    let id = |name: &str| creds.and_then(|creds| creds.u64(name)).unwrap_or(0) as u32;
    let mut info = Layout::new(136);
    // State R, or T with its number.
    let stopped = tc.and_then(|tc| tc.u64("task_state")) == Some(3);
    info.put(0, if stopped { &[4, b'T'] } else { &[0, b'R'] });
    info.put(
        8,
        &tc.and_then(|tc| tc.u64("flags")).unwrap_or(0).to_le_bytes(),
    );
    info.put(16, &id("uid").to_le_bytes());
    info.put(20, &id("gid").to_le_bytes());
    for (at, id) in [
        (24, task.pid),
        (28, task.ppid),
        (32, task.pgid),
        (36, task.sid),
    ] {
        info.put(at, &(id as u32).to_le_bytes());
    }
    let comm = tc.and_then(|tc| text(tc, "comm")).unwrap_or_default();
    info.put(40, comm.as_bytes().get(..15).unwrap_or(comm.as_bytes()));
    info.put(
        56,
        arguments
            .as_bytes()
            .get(..79)
            .unwrap_or(arguments.as_bytes()),
    );
    put_note(out, "CORE", NT_PRPSINFO, &info.bytes);
}

/// NT_AUXV, as the dump has it.
pub fn auxiliary_vector(out: &mut Vec<u8>, mm: &Message) {
    let mut bytes: Vec<u8> = words(mm, "mm_saved_auxv")
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    // The final null pair may have been cut off.
    if !bytes.ends_with(&[0; 16]) {
        bytes.extend([0; 16]);
    }
    put_note(out, "CORE", NT_AUXV, &bytes);
}

/// NT_FILE: which file is mapped where.
pub fn files(out: &mut Vec<u8>, areas: &[Area]) {
    const PAGE: u64 = 4096;
    let mapped: Vec<(&Area, &String)> = areas
        .iter()
        .filter_map(|area| match &area.backing {
            Backing::File(path) => Some((area, path)),
            _ => None,
        })
        .collect();
    let mut bytes = Vec::new();
    for word in [mapped.len() as u64, PAGE] {
        bytes.extend(word.to_le_bytes());
    }
    for (area, _) in &mapped {
        for word in [area.start, area.end, area.offset / PAGE] {
            bytes.extend(word.to_le_bytes());
        }
    }
    for (_, path) in &mapped {
        bytes.extend(path.as_bytes());
        bytes.push(0);
    }
    put_note(out, "CORE", NT_FILE, &bytes);
}
