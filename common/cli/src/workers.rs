//! The threads that share work out (rayon's global pool), started where a failure to start one is
//! no failure of the run.
//!
//! Left to itself, the pool is made at its first use and panics if the kernel gives no thread: in
//! the middle of a dump, say, below a limit of processes. So threads are started first and the pool
//! is made of those that there are; without any, the calling thread does the work.

use rayon::{ThreadBuilder, ThreadPoolBuilder};
use std::sync::mpsc::{Sender, channel};
use std::thread;

/// Makes the pool, as many threads as there are processors. To be called before anything is shared
/// out, and behind the blocking of signals, which threads inherit. Does nothing a second time.
pub fn start() {
    let wanted = thread::available_parallelism().map_or(1, usize::from);
    let mut ready: Vec<Sender<ThreadBuilder>> = (0..wanted).map_while(|_| started()).collect();
    let pool = match ready.len() {
        0 => ThreadPoolBuilder::new().num_threads(1).use_current_thread(),
        count => ThreadPoolBuilder::new().num_threads(count),
    };
    // An error means that there is a pool already; the threads of this one end.
    let _ = pool
        .spawn_handler(|work| {
            let thread = ready.pop().ok_or(std::io::ErrorKind::WouldBlock)?;
            thread
                .send(work)
                .map_err(|_| std::io::ErrorKind::BrokenPipe.into())
        })
        .build_global();
}

/// A thread that waits for what it is to do.
fn started() -> Option<Sender<ThreadBuilder>> {
    let (give, take) = channel::<ThreadBuilder>();
    let life = move || take.into_iter().for_each(ThreadBuilder::run);
    let thread = thread::Builder::new().name("crust-worker".into());
    thread.spawn(life).ok().map(|_| give)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_works_however_often_it_is_started() {
        start();
        start();
        let (left, right) = rayon::join(|| 1, || 2);
        assert_eq!(left + right, 3);
    }
}
