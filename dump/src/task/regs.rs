//! The registers of an x86_64 thread: general, x87, SSE and the extended components.
//!
//! The images have the kernel's XSAVE area in pieces, one array for each component; which arrays
//! are there tells which components the processor has. The shadow stack pointer is always written
//! and zero: a thread with a shadow stack is refused (mm/vmas).

use crust_process::regs::Regs;
use crust_process::xstate::{XSTATE_BV, component, components_of, range_of};
use crust_proto::criu::{
    UserDescT, UserX86CetEntry, UserX86FpregsEntry, UserX86RegsEntry, UserX86RegsMode,
    UserX86XsaveEntry,
};
use std::ops::Range;

/// The entries of the GDT that belong to a thread (arch/x86/include/asm/segment.h).
pub const THREAD_AREAS: Range<u32> = 12..15;
/// Code segment of the kernel (arch/x86/include/asm/segment.h).
const USER_CS: u64 = 0x33;

/// Whether the thread runs 64-bit code; the rest is refused.
pub fn is_native(regs: &Regs) -> bool {
    regs.0.cs == USER_CS
}

/// The general registers with which the thread is to be found after a restore.
pub fn encode_gpregs(regs: &Regs) -> UserX86RegsEntry {
    let r = regs.for_image().0;
    UserX86RegsEntry {
        r15: r.r15,
        r14: r.r14,
        r13: r.r13,
        r12: r.r12,
        bp: r.rbp,
        bx: r.rbx,
        r11: r.r11,
        r10: r.r10,
        r9: r.r9,
        r8: r.r8,
        ax: r.rax,
        cx: r.rcx,
        dx: r.rdx,
        si: r.rsi,
        di: r.rdi,
        orig_ax: r.orig_rax,
        ip: r.rip,
        cs: r.cs,
        flags: r.eflags,
        sp: r.rsp,
        ss: r.ss,
        fs_base: r.fs_base,
        gs_base: r.gs_base,
        ds: r.ds,
        es: r.es,
        fs: r.fs,
        gs: r.gs,
        mode: Some(UserX86RegsMode::Native.into()),
    }
}

/// A segment of the thread's own in the GDT, as struct user_desc.
pub fn encode_thread_area(desc: [u32; 4]) -> UserDescT {
    let [entry_number, base_addr, limit, flags] = desc;
    let bit = |number: u32| flags & (1 << number) != 0;
    UserDescT {
        entry_number,
        base_addr,
        limit,
        seg_32bit: bit(0),
        contents_l: bit(1),
        contents_h: bit(2),
        read_exec_only: bit(3),
        limit_in_pages: bit(4),
        seg_not_present: bit(5),
        usable: bit(6),
    }
}

/// Where this processor has the extended components. Asked once: in a virtual machine CPUID leads
/// out to the hypervisor.
#[derive(Clone, Debug)]
pub struct Layout(Vec<(u32, Range<usize>)>);

impl Layout {
    /// Asks the processor.
    pub fn of_this_cpu() -> Layout {
        const COMPONENTS: [u32; 7] = [
            component::YMM,
            component::BNDREGS,
            component::BNDCSR,
            component::OPMASK,
            component::ZMM_HI256,
            component::HI16_ZMM,
            component::PKRU,
        ];
        let placed = |number| Some((number, range_of(number)?));
        Layout(COMPONENTS.into_iter().filter_map(placed).collect())
    }

    /// The bytes of a component in an area; none if the kernel made no room for it.
    fn bytes_of<'a>(&self, area: &'a [u8], number: u32) -> &'a [u8] {
        let has = components_of(area) & (1 << number) != 0;
        let range = self.0.iter().find(|(known, _)| *known == number && has);
        range
            .and_then(|(_, range)| area.get(range.clone()))
            .unwrap_or_default()
    }
}

/// An XSAVE area as the kernel gives it (NT_X86_XSTATE) in pieces; an area too short for its
/// legacy part gives `None`.
pub fn encode_fpregs(area: &[u8], layout: &Layout) -> Option<UserX86FpregsEntry> {
    let legacy = area.get(..XSTATE_BV)?;
    let half = |at: usize| u32::from(u16::from_le_bytes([legacy[at], legacy[at + 1]]));
    let words = |from: usize, to: usize| words32(&legacy[from..to]);
    let quad = |at: usize| words64(&legacy[at..at + 8]).first().copied().unwrap_or(0);
    let single = |at: usize| words(at, at + 4).first().copied().unwrap_or(0);
    Some(UserX86FpregsEntry {
        cwd: half(0),
        swd: half(2),
        twd: half(4),
        fop: half(6),
        rip: quad(8),
        rdp: quad(16),
        mxcsr: single(24),
        mxcsr_mask: single(28),
        st_space: words(32, 160),
        xmm_space: words(160, 416),
        padding: Vec::new(),
        xsave: encode_xsave(area, layout),
    })
}

/// The components behind the legacy part; `None` on a processor without XSAVE.
fn encode_xsave(area: &[u8], layout: &Layout) -> Option<UserX86XsaveEntry> {
    let bv = area.get(XSTATE_BV..XSTATE_BV + 8)?;
    let bytes = |number| layout.bytes_of(area, number);
    Some(UserX86XsaveEntry {
        xstate_bv: words64(bv).first().copied().unwrap_or(0),
        ymmh_space: words32(bytes(component::YMM)),
        bndreg_state: words64(bytes(component::BNDREGS)),
        bndcsr_state: words64(bytes(component::BNDCSR)),
        opmask_reg: words64(bytes(component::OPMASK)),
        zmm_upper: words64(bytes(component::ZMM_HI256)),
        hi16_zmm: words64(bytes(component::HI16_ZMM)),
        pkru: words32(bytes(component::PKRU)),
        cet: Some(UserX86CetEntry { cet: 0, ssp: 0 }),
    })
}

fn words32(bytes: &[u8]) -> Vec<u32> {
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().copied().map(u32::from_le_bytes).collect()
}

fn words64(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().copied().map(u64::from_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An area whose every 32-bit word is its own index.
    fn counted(len: usize, components: u64) -> Vec<u8> {
        let mut area: Vec<u8> = (0..len as u32 / 4).flat_map(u32::to_le_bytes).collect();
        area[464..472].copy_from_slice(&components.to_le_bytes());
        area
    }

    #[test]
    fn the_legacy_part_has_its_fixed_places() {
        let regs = encode_fpregs(&counted(832, 7), &Layout::of_this_cpu()).expect("long enough");
        assert_eq!((regs.cwd, regs.swd, regs.twd, regs.fop), (0, 0, 1, 0));
        assert_eq!((regs.rip, regs.rdp), (2 | 3 << 32, 4 | 5 << 32));
        assert_eq!((regs.mxcsr, regs.mxcsr_mask), (6, 7));
        assert_eq!(regs.st_space, (8..40).collect::<Vec<u32>>());
        assert_eq!(regs.xmm_space, (40..104).collect::<Vec<u32>>());
    }

    #[test]
    fn a_component_is_there_only_if_the_kernel_says_so() {
        let all = encode_fpregs(&counted(4096, 7), &Layout::of_this_cpu())
            .expect("long enough")
            .xsave
            .expect("has xsave");
        let ymm = range_of(component::YMM).expect("every processor we run on has AVX");
        assert_eq!(all.ymmh_space.first(), Some(&(ymm.start as u32 / 4)));
        assert_eq!(all.ymmh_space.len(), 64);
        assert!(all.zmm_upper.is_empty() && all.pkru.is_empty());
        let none = encode_fpregs(&counted(4096, 3), &Layout::of_this_cpu())
            .expect("long enough")
            .xsave
            .expect("has xsave");
        assert!(none.ymmh_space.is_empty());
    }

    #[test]
    fn a_short_area_is_not_taken() {
        assert!(encode_fpregs(&[0; 511], &Layout(Vec::new())).is_none());
        assert!(
            encode_fpregs(&[0; 512], &Layout(Vec::new()))
                .expect("legacy only")
                .xsave
                .is_none()
        );
    }
}
