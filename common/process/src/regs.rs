//! The general registers of a stopped x86_64 thread and what the kernel means by their values at
//! a stop inside a system call.

use std::fmt;

/// Values the kernel leaves in rax for a call to be restarted (include/linux/errno.h). They never
/// reach user space: on the way out they become a restarted call or -EINTR.
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;
const EINTR: i64 = -(libc::EINTR as i64);

/// Length of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

/// io_pgetevents(2), which libc does not number for this target.
const SYS_IO_PGETEVENTS: i64 = 333;

/// Calls that answer a plain -EINTR to any interruption, a tracer's included, even when no signal
/// is delivered (signal(7), "Interruption of system calls ... by stop signals"). A program that
/// installed no handler does not expect it.
const EINTR_WITHOUT_SIGNAL: [i64; 8] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    SYS_IO_PGETEVENTS,
];

/// The general registers of a stopped thread, as PTRACE_GETREGS gives them.
#[derive(Clone, Copy)]
pub struct Regs(pub libc::user_regs_struct);

impl fmt::Debug for Regs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = &self.0;
        write!(
            f,
            "Regs {{ rip: {:#x}, rsp: {:#x}, rax: {:#x}, orig_rax: {} }}",
            r.rip, r.rsp, r.rax, r.orig_rax as i64
        )
    }
}

/// Registers from an array of their values in this order.
macro_rules! named {
    ($words:expr; $($name:ident)*) => {{
        let [$($name),*] = *$words;
        Regs(libc::user_regs_struct { $($name),* })
    }};
}

/// Bytes of `mov eax, NUMBER` and `syscall`.
pub const RESTART_CODE: usize = 7;

impl Regs {
    /// From the 27 words in the order of user_regs_struct (sys/user.h).
    pub fn from_words(words: &[u64; 27]) -> Regs {
        named!(words; r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs
            eflags rsp ss fs_base gs_base ds es fs gs)
    }

    /// The system call the thread is in, if it stopped inside one.
    pub fn syscall(&self) -> Option<i64> {
        let nr = self.0.orig_rax as i64;
        (nr >= 0).then_some(nr)
    }

    /// A call that reports EINTR only because we interrupted it is entered again instead. To be
    /// called only when no signal is about to be delivered to the thread.
    pub fn undo_tracer_eintr(&mut self) {
        let restarts = self
            .syscall()
            .is_some_and(|nr| EINTR_WITHOUT_SIGNAL.contains(&nr));
        if restarts && self.0.rax as i64 == EINTR {
            self.enter_again(self.0.orig_rax);
        }
    }

    /// A thread that was interrupted before sits in restart_syscall(2), which does not tell what it
    /// restarts; its registers are those of the call it restarts, and the instruction before tells
    /// which that is: `mov eax, NUMBER` nearly always. `code` are the bytes that end where the
    /// thread stands. The kernel takes either number for the same when the thread goes on.
    pub fn name_restarted_call(&mut self, code: [u8; RESTART_CODE]) {
        const RESTARTED: [i64; 4] = [
            libc::SYS_nanosleep,
            libc::SYS_clock_nanosleep,
            libc::SYS_poll,
            libc::SYS_futex,
        ];
        let [mov, number @ .., syscall0, syscall1] = code;
        let number = i64::from(u32::from_le_bytes(number));
        let is_call = [mov, syscall0, syscall1] == [0xb8, 0x0f, 0x05];
        if is_call && self.is_restarting() && RESTARTED.contains(&number) {
            self.0.orig_rax = number as u64;
        }
    }

    /// Whether the thread has been stopped in restart_syscall(2).
    pub fn is_restarting(&self) -> bool {
        self.syscall() == Some(libc::SYS_restart_syscall)
            && self.0.rax as i64 == ERESTART_RESTARTBLOCK
    }

    /// The registers with which a thread goes on by itself: the call it was in is entered again
    /// by its own instruction. Equal to what the kernel does on the way to user space
    /// (arch/x86/kernel/signal.c, arch_do_signal_or_restart), as long as the thread's
    /// restart_block is alive.
    pub fn resumed_in_place(&self) -> Regs {
        let mut regs = *self;
        if self.syscall().is_some() {
            match self.0.rax as i64 {
                ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => regs.enter_again(self.0.orig_rax),
                ERESTART_RESTARTBLOCK => regs.enter_again(libc::SYS_restart_syscall as u64),
                _ => {}
            }
        }
        regs.0.orig_rax = u64::MAX;
        regs
    }

    /// The registers for an image. A restart_block cannot be carried, so a call that needs one is
    /// entered again by its own instruction, with all of its timeout: no program sees an EINTR it
    /// did not ask for, and absolute timeouts are as they were. Only a sleep whose caller asked for
    /// the remaining time ends with EINTR: the kernel has written that time already, and such a
    /// caller goes on with it. If it asked for it in the place of the request, as sleep(3) does,
    /// the call entered again finds just what remains. orig_rax stays, for the reader of the image.
    pub fn for_image(&self) -> Regs {
        let mut regs = *self;
        if !self.waits_for_restart() {
            return regs;
        }
        if self.0.rax as i64 == ERESTART_RESTARTBLOCK && self.must_end() {
            regs.0.rax = EINTR as u64;
            return regs;
        }
        regs.enter_again(self.0.orig_rax);
        regs.0.orig_rax = self.0.orig_rax;
        regs
    }

    /// Whether a call that needs its restart_block must not be entered again: the caller asked
    /// for the remaining time, or the thread was interrupted before and sits in
    /// restart_syscall(2), which does not tell what it restarts. Entered in a thread without the
    /// block it would end with EINTR too, or restart a call that is not its own.
    fn must_end(&self) -> bool {
        match self.syscall() {
            Some(libc::SYS_nanosleep) => ![0, self.0.rdi].contains(&self.0.rsi),
            Some(libc::SYS_clock_nanosleep) => ![0, self.0.rdx].contains(&self.0.r10),
            Some(libc::SYS_restart_syscall) => true,
            _ => false,
        }
    }

    /// Returns a kernel restart marker that waits in rax to user space's eyes only.
    pub fn waits_for_restart(&self) -> bool {
        matches!(
            self.0.rax as i64,
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND | ERESTART_RESTARTBLOCK
        ) && self.syscall().is_some()
    }

    fn enter_again(&mut self, nr: u64) {
        self.0.rax = nr;
        self.0.rip = self.0.rip.wrapping_sub(SYSCALL_LEN);
        self.0.orig_rax = u64::MAX;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread stopped in a call that the kernel left with this value in rax.
    fn stopped_in(nr: i64, rax: i64, remaining: u64) -> Regs {
        let mut regs = Regs::from_words(&[0; 27]);
        regs.0.rip = 0x1002;
        (regs.0.orig_rax, regs.0.rax) = (nr as u64, rax as u64);
        (regs.0.rsi, regs.0.r10) = (remaining, remaining);
        regs
    }

    #[test]
    fn an_interrupted_call_is_in_the_image_as_not_yet_entered() {
        for rax in [ERESTARTSYS, ERESTARTNOHAND, ERESTART_RESTARTBLOCK] {
            let regs = stopped_in(libc::SYS_futex, rax, 0x7000).for_image().0;
            assert_eq!(
                (regs.rip, regs.rax as i64),
                (0x1000, libc::SYS_futex),
                "{rax}"
            );
        }
        let asleep = stopped_in(libc::SYS_nanosleep, ERESTART_RESTARTBLOCK, 0)
            .for_image()
            .0;
        assert_eq!(
            (asleep.rip, asleep.rax as i64),
            (0x1000, libc::SYS_nanosleep)
        );
    }

    #[test]
    fn a_sleeper_that_asked_for_the_rest_is_told() {
        for nr in [libc::SYS_nanosleep, libc::SYS_clock_nanosleep] {
            let regs = stopped_in(nr, ERESTART_RESTARTBLOCK, 0x7000).for_image().0;
            assert_eq!((regs.rip, regs.rax as i64), (0x1002, EINTR), "{nr}");
        }
    }

    #[test]
    fn a_sleeper_whose_request_is_the_rest_goes_on() {
        let mut regs = stopped_in(libc::SYS_nanosleep, ERESTART_RESTARTBLOCK, 0x7000);
        regs.0.rdi = 0x7000;
        let regs = regs.for_image().0;
        assert_eq!((regs.rip, regs.rax as i64), (0x1000, libc::SYS_nanosleep));
    }

    #[test]
    fn the_code_names_a_restarted_call() {
        let again = stopped_in(libc::SYS_restart_syscall, ERESTART_RESTARTBLOCK, 0);
        let named = |code| {
            let mut regs = again;
            regs.name_restarted_call(code);
            regs.0.orig_rax as i64
        };
        let poll = named([0xb8, 7, 0, 0, 0, 0x0f, 0x05]);
        assert_eq!(poll, libc::SYS_poll);
        for other in [
            [0xb8, 1, 0, 0, 0, 0x0f, 0x05],
            [0x90, 7, 0, 0, 0, 0x0f, 0x05],
        ] {
            assert_eq!(named(other), libc::SYS_restart_syscall);
        }
    }

    #[test]
    fn a_restarted_call_without_a_name_ends() {
        let again = libc::SYS_restart_syscall;
        let regs = stopped_in(again, ERESTART_RESTARTBLOCK, 0).for_image().0;
        assert_eq!((regs.rip, regs.rax as i64), (0x1002, EINTR));
    }

    #[test]
    fn a_thread_in_no_call_stays_as_it_is() {
        let regs = stopped_in(-1, ERESTARTSYS, 0).for_image().0;
        assert_eq!((regs.rip, regs.rax as i64), (0x1002, ERESTARTSYS));
    }
}
