//! A table of system calls to run in another task, with the buffers they read and write.

/// A buffer of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BufId(pub(crate) usize);

/// A call of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId(pub(crate) usize);

/// An argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A number, or an address that means something to the task.
    Val(u64),
    /// The address of a buffer of the batch.
    Buf(BufId),
}

impl From<u64> for Arg {
    fn from(value: u64) -> Arg {
        Arg::Val(value)
    }
}

impl From<i32> for Arg {
    /// Sign-extended, as the calling convention has it.
    fn from(value: i32) -> Arg {
        Arg::Val(value as i64 as u64)
    }
}

impl From<BufId> for Arg {
    fn from(id: BufId) -> Arg {
        Arg::Buf(id)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub nr: i64,
    pub args: [Arg; 6],
    pub ret: i64,
}

/// Calls in the order in which they run. A failing call does not stop the next.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(crate) calls: Vec<Call>,
    pub(crate) bufs: Vec<Vec<u8>>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// A buffer that holds `bytes` when the batch runs, and what the calls made of it after.
    pub fn buffer(&mut self, bytes: impl Into<Vec<u8>>) -> BufId {
        self.bufs.push(bytes.into());
        BufId(self.bufs.len() - 1)
    }

    /// A buffer of `len` zero bytes.
    pub fn zeroed(&mut self, len: usize) -> BufId {
        self.buffer(vec![0; len])
    }

    /// Adds a call of up to six arguments.
    pub fn call<const N: usize>(&mut self, nr: i64, args: [Arg; N]) -> CallId {
        const { assert!(N <= 6, "a system call has at most six arguments") };
        let mut all = [Arg::Val(0); 6];
        all[..N].copy_from_slice(&args);
        self.calls.push(Call {
            nr,
            args: all,
            ret: 0,
        });
        CallId(self.calls.len() - 1)
    }

    /// What the call answered: a value, or a negated errno.
    pub fn ret(&self, id: CallId) -> i64 {
        self.calls[id.0].ret
    }

    /// What the call answered, as a result.
    pub fn result(&self, id: CallId) -> Result<u64, nix::errno::Errno> {
        match self.ret(id) {
            ret @ -4095..=-1 => Err(nix::errno::Errno::from_raw(-ret as i32)),
            ret => Ok(ret as u64),
        }
    }

    /// The bytes of a buffer: before the run what was put there, after it what the calls left.
    pub fn bytes(&self, id: BufId) -> &[u8] {
        &self.bufs[id.0]
    }

    /// The first `N` bytes of a buffer, which must be that long.
    pub fn array<const N: usize>(&self, id: BufId) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.bufs[id.0][..N]);
        array
    }

    /// Whether nothing is to be run.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}
