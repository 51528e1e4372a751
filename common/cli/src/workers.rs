//! The threads that share work out (rayon's global pool), started where a failure to start one is
//! no failure of the run.
//!
//! Left to itself, the pool is made at its first use and panics if the kernel gives no thread: in
//! the middle of a dump, say, below a limit of processes. So threads are started first and the pool
//! is made of those that there are; without any, the calling thread does the work.
//!
//! A restore needs the ids that a tree had, and a thread may have got one of them: what it shares out
//! it shares out to threads that are gone before the first task is made ([`during`]).

use nix::unistd::{Pid, gettid};
use rayon::{ThreadBuilder, ThreadPool, ThreadPoolBuilder};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

/// Makes the pool, as many threads as there are processors. To be called before anything is shared
/// out, and behind the blocking of signals, which threads inherit. Does nothing a second time.
pub fn start() {
    let mut ready: Vec<Worker> = started();
    let pool = match ready.len() {
        0 => ThreadPoolBuilder::new().num_threads(1).use_current_thread(),
        count => ThreadPoolBuilder::new().num_threads(count),
    };
    // An error means that there is a pool already; the threads of this one end.
    let _ = pool
        .spawn_handler(|work| ready.pop().ok_or_else(no_more)?.begin(work).map(drop))
        .build_global();
}

/// Does `work` in a pool that lasts as long, and ends when its threads are gone and their ids free.
pub fn during<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let mut ready = started();
    let mut lives = Vec::new();
    let pool = ThreadPoolBuilder::new().num_threads(ready.len().max(1));
    let pool = pool.spawn_handler(|life| {
        lives.push(ready.pop().ok_or_else(no_more)?.begin(life)?);
        Ok(())
    });
    let pool: Option<ThreadPool> = pool.build().ok();
    // Those that no pool wanted end.
    drop(ready);
    let done = match &pool {
        Some(pool) => pool.install(work),
        None => {
            start();
            work()
        }
    };
    drop(pool);
    for life in lives {
        match life.join() {
            Ok(tid) => wait_until_free(tid),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    done
}

/// A thread that was joined may have its id for some microseconds more, and a task of the tree may
/// need just that one.
pub fn wait_until_free(tid: Pid) {
    let directory = format!("/proc/self/task/{tid}");
    while Path::new(&directory).exists() {
        thread::yield_now();
    }
}

/// A thread that waits for what it is to do, or for its end.
struct Worker {
    give: Sender<ThreadBuilder>,
    life: JoinHandle<Pid>,
}

impl Worker {
    fn begin(self, work: ThreadBuilder) -> std::io::Result<JoinHandle<Pid>> {
        let given = self.give.send(work);
        given.map_err(|_| std::io::ErrorKind::BrokenPipe)?;
        Ok(self.life)
    }
}

/// As many threads as there are processors, or as there may be.
fn started() -> Vec<Worker> {
    let wanted = thread::available_parallelism().map_or(1, usize::from);
    let worker = |_| {
        let (give, take) = channel::<ThreadBuilder>();
        let life = move || {
            take.into_iter().for_each(ThreadBuilder::run);
            gettid()
        };
        let thread = thread::Builder::new().name("crust-worker".into());
        let life = thread.spawn(life).ok()?;
        Some(Worker { give, life })
    };
    (0..wanted).map_while(worker).collect()
}

fn no_more() -> std::io::Error {
    std::io::ErrorKind::WouldBlock.into()
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

    #[test]
    fn a_pool_for_a_time_leaves_no_thread() {
        let tids = during(|| rayon::broadcast(|_| gettid()));
        assert!(!tids.is_empty());
        for tid in tids {
            assert!(!Path::new(&format!("/proc/self/task/{tid}")).exists());
        }
    }
}
