//! Freezing real processes and running system calls in them. Needs the right to trace one's own
//! children only.

use crust_process::batch::{Arg, Batch};
use crust_process::freeze::{FreezeError, Frozen, TaskState, freeze_tree};
use crust_process::memory::TaskMem;
use crust_process::pid::HostPid;
use crust_process::proc::maps::{VmaName, parse_maps};
use crust_process::remote::{Remote, Site};
use nix::sys::signal::{SigSet, Signal};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);

/// A process that is killed at the end of its test.
struct Guest(Child);

impl Guest {
    fn spawn(program: &str, args: &[&str]) -> Guest {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        set.thread_block().expect("block SIGCHLD");
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the guest");
        Guest(child)
    }

    fn pid(&self) -> HostPid {
        HostPid::new(self.0.id() as i32).expect("a pid")
    }

    fn talk(&mut self) -> (ChildStdin, BufReader<ChildStdout>) {
        let stdin = self.0.stdin.take().expect("piped");
        let stdout = self.0.stdout.take().expect("piped");
        (stdin, BufReader::new(stdout))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask(stdin: &mut ChildStdin, stdout: &mut BufReader<ChildStdout>, line: &str) -> String {
    writeln!(stdin, "{line}").expect("write to the guest");
    let mut answer = String::new();
    stdout.read_line(&mut answer).expect("read from the guest");
    answer.trim_end().to_owned()
}

fn site_of(frozen: &Frozen) -> Site {
    let task = &frozen.tasks[0];
    let text = fs::read(format!("/proc/{}/maps", task.pid)).expect("read maps");
    let mut site = Site {
        main_rsp: task.threads[0].regs.0.rsp,
        ..Site::default()
    };
    for vma in parse_maps(&text).expect("parse maps") {
        match vma.name {
            VmaName::Vdso => site.code.push(vma.start..vma.end),
            VmaName::Stack => site.stack = vma.start..vma.end,
            _ => {}
        }
    }
    site
}

fn bytes_of(mem: &TaskMem, range: &std::ops::Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    mem.read_exact_at(range.start, &mut bytes)
        .expect("read the task");
    bytes
}

#[test]
fn a_batch_runs_in_the_task_and_leaves_it_as_it_was() {
    let mut guest = Guest::spawn("sh", &["-c", "while read line; do echo $line; done"]);
    let (mut stdin, mut stdout) = guest.talk();
    assert_eq!(ask(&mut stdin, &mut stdout, "before"), "before");

    let mut frozen = freeze_tree(guest.pid(), TIMEOUT, None).expect("freeze");
    let site = site_of(&frozen);
    let task = &mut frozen.tasks[0];
    assert_eq!(task.state, TaskState::Alive);
    let mem = TaskMem::open(task.pid).expect("open memory");
    let before = (bytes_of(&mem, &site.stack), bytes_of(&mem, &site.code[0]));
    let (regs, mask) = (task.threads[0].regs, task.threads[0].sigmask);
    let remote = Remote::place(&mem, &site, 1).expect("place the stub");
    let mut entered = remote
        .enter(0, &mut task.threads[0].stopped, &regs, mask)
        .expect("enter");

    // More than one table's worth, so that the batch is cut.
    let mut batch = Batch::new();
    let mut actions = Vec::new();
    for _ in 0..8 {
        for signal in 1..=64 {
            let old = batch.zeroed(32);
            let args = [Arg::from(signal), Arg::Val(0), old.into(), Arg::Val(8)];
            actions.push(batch.call(libc::SYS_rt_sigaction, args));
        }
    }
    let pid = batch.call(libc::SYS_getpid, []);
    let name = batch.zeroed(16);
    let get_name = batch.call(libc::SYS_prctl, [Arg::from(libc::PR_GET_NAME), name.into()]);
    let bad = batch.call(libc::SYS_close, [Arg::from(-1)]);
    entered.run(&mut batch).expect("run the batch");
    entered.leave().expect("leave");
    remote.close().expect("close");

    assert!(actions.iter().all(|call| batch.ret(*call) == 0));
    assert_eq!(batch.ret(pid), i64::from(task.pid.get()));
    assert_eq!(batch.ret(get_name), 0);
    assert_eq!(&batch.array::<3>(name), b"sh\0");
    assert_eq!(batch.result(bad), Err(nix::errno::Errno::EBADF));
    assert_eq!(
        before,
        (bytes_of(&mem, &site.stack), bytes_of(&mem, &site.code[0]))
    );
    frozen.thaw().expect("thaw");

    assert_eq!(ask(&mut stdin, &mut stdout, "after"), "after");
}

#[test]
fn a_tree_is_frozen_with_its_children_and_killed_as_a_whole() {
    let script = "sleep 1000 & sleep 1001 & echo up; read line";
    let mut guest = Guest::spawn("sh", &["-c", script]);
    let (_stdin, mut stdout) = guest.talk();
    let mut line = String::new();
    stdout
        .read_line(&mut line)
        .expect("the guest says that it is up");
    let frozen = freeze_tree(guest.pid(), TIMEOUT, None).expect("freeze");
    let pids: Vec<HostPid> = frozen.tasks.iter().map(|task| task.pid).collect();
    assert_eq!(pids.len(), 3);
    assert_eq!(pids[0], guest.pid());
    assert!(
        frozen.tasks[1..]
            .iter()
            .all(|task| task.ppid == guest.pid().get())
    );
    frozen.kill().expect("kill");
    for pid in &pids[1..] {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Its new parent may not have reaped it yet.
        assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    }
}

#[test]
fn what_cannot_be_frozen_is_named() {
    let frozen = freeze_tree(HostPid::current(), TIMEOUT, None);
    assert!(
        matches!(frozen, Err(FreezeError::ContainsUs(_))),
        "{frozen:?}"
    );
    // No pid is as high as this (pid_max is at most 2^22).
    let nobody = HostPid::new(1 << 23).expect("positive");
    let frozen = freeze_tree(nobody, TIMEOUT, None);
    assert!(
        matches!(frozen, Err(FreezeError::NoSuchTask(_))),
        "{frozen:?}"
    );
}
