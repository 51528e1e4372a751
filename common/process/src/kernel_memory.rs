//! Reads the kernel's own memory, for the few facts that it tells nobody and a restore needs.
//!
//! A program of the bpf machine reads 64 bytes at a time (bpf_probe_read_kernel, which answers
//! EFAULT for an address where nothing is) and hands them back; it can do nothing else. Needs
//! CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN, and a kernel that is not locked down
//! (security(7), lockdown=confidentiality). Numbers are those of include/uapi/linux/bpf.h.

use crate::bpf::{Attr, bpf};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const PROG_LOAD: u32 = 5;
const PROG_TEST_RUN: u32 = 10;
const PROG_TYPE_SYSCALL: u32 = 31;
const SLEEPABLE: u32 = 1 << 4;
const GET_CURRENT_TASK: i32 = 35;
const PROBE_READ_KERNEL: i32 = 113;
/// Bytes read at a time. Aligned, they never cross a page.
const CHUNK: usize = 64;

/// A program that reads. Its context is an address, which becomes that of the calling task; what
/// the read answered; and the bytes.
#[derive(Debug)]
pub struct KernelMemory {
    program: OwnedFd,
}

#[repr(C)]
struct Context {
    address: u64,
    answer: i64,
    bytes: [u64; CHUNK / 8],
}

impl KernelMemory {
    /// Loads the program.
    pub fn open() -> nix::Result<KernelMemory> {
        let code = program();
        let license = c"Dual MIT/GPL";
        let mut attr = Attr::new()
            .word(0, PROG_TYPE_SYSCALL)
            .word(1, code.len() as u32)
            .long(2, code.as_ptr() as u64)
            .long(4, license.as_ptr() as u64)
            .word(11, SLEEPABLE);
        // SAFETY: code and license outlive the call; the kernel is told how long the code is.
        let fd = unsafe { bpf(PROG_LOAD, &mut attr) }?;
        // SAFETY: the kernel just gave us this descriptor, which no other code knows.
        let program = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(KernelMemory { program })
    }

    /// The struct task_struct of the calling thread.
    pub fn current_task(&self) -> nix::Result<u64> {
        Ok(self.run(0)?.address)
    }

    /// Fills `into` with what is at an address. EFAULT where nothing is, ERANGE for an address of
    /// programs.
    pub fn read(&self, address: u64, into: &mut [u8]) -> nix::Result<()> {
        let mut done = 0;
        while done < into.len() {
            let at = address.checked_add(done as u64).ok_or(Errno::EFAULT)?;
            let chunk = self.run(at & !(CHUNK as u64 - 1))?;
            if chunk.answer < 0 {
                return Err(Errno::from_raw(chunk.answer.unsigned_abs() as i32));
            }
            let bytes: Vec<u8> = chunk
                .bytes
                .iter()
                .flat_map(|word| word.to_le_bytes())
                .collect();
            let skip = (at % CHUNK as u64) as usize;
            let count = (CHUNK - skip).min(into.len() - done);
            let (Some(from), Some(to)) = (
                bytes.get(skip..skip + count),
                into.get_mut(done..done + count),
            ) else {
                return Err(Errno::EFAULT);
            };
            to.copy_from_slice(from);
            done += count;
        }
        Ok(())
    }

    fn run(&self, address: u64) -> nix::Result<Context> {
        let mut context = Context {
            address,
            answer: 0,
            bytes: [0; CHUNK / 8],
        };
        let mut attr = Attr::new()
            .word(0, self.program.as_raw_fd() as u32)
            .word(10, size_of::<Context>() as u32)
            .long(12, std::ptr::from_mut(&mut context) as u64);
        // SAFETY: the context outlives the call and has the size told.
        unsafe { bpf(PROG_TEST_RUN, &mut attr) }?;
        Ok(context)
    }
}

/// One instruction: struct bpf_insn.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([code, to | from << 4, low, high, a, b, c, d])
}

fn program() -> Vec<u64> {
    const COPY: u8 = 0xbf;
    const SET: u8 = 0xb7;
    const ADD: u8 = 0x07;
    const LOAD: u8 = 0x79;
    const STORE: u8 = 0x7b;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    /// The frame's end, below which the bytes are put.
    const FRAME: u8 = 10;
    let below = -(CHUNK as i16);
    let mut code = vec![
        instruction(COPY, 6, 1, 0, 0),
        instruction(LOAD, 3, 6, 0, 0),
        instruction(COPY, 1, FRAME, 0, 0),
        instruction(ADD, 1, 0, 0, below.into()),
        instruction(SET, 2, 0, 0, CHUNK as i32),
        instruction(CALL, 0, 0, 0, PROBE_READ_KERNEL),
        instruction(STORE, 6, 0, 8, 0),
        instruction(CALL, 0, 0, 0, GET_CURRENT_TASK),
        instruction(STORE, 6, 0, 0, 0),
    ];
    for at in (0..CHUNK as i16).step_by(8) {
        code.push(instruction(LOAD, 1, FRAME, below + at, 0));
        code.push(instruction(STORE, 6, 1, 16 + at, 0));
    }
    code.push(instruction(SET, 0, 0, 0, 0));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::btf::Btf;

    #[test]
    fn our_own_task_is_found() -> Result<(), Box<dyn std::error::Error>> {
        let memory = match KernelMemory::open() {
            Err(errno @ (Errno::EPERM | Errno::EACCES)) => {
                println!("SKIPPED: loading a program: {errno}");
                return Ok(());
            }
            opened => opened?,
        };
        std::fs::write("/proc/thread-self/comm", "crust-reads-me")?;
        let name = Btf::of_kernel()?.structure("task_struct")?.place("comm")?;
        let mut bytes = [0; 15];
        memory.read(memory.current_task()? + name.offset(), &mut bytes)?;
        assert_eq!(&bytes, b"crust-reads-me\0");
        assert_eq!(memory.read(8, &mut bytes), Err(Errno::ERANGE));
        Ok(())
    }
}
