//! Guests of tasks, memory, signals, attributes, plain files and pipes through the three round
//! trips of `crust_tests::round_trip`. Those of other files and sockets are in roundtrip_files.rs.

crust_tests::workloads! {
    lone: guest "loop";
    threads: guest "threads";
    treatment: guest "treatment";
    mem_for_good: guest "mem_for_good";
    siginfo: guest "siginfo";
    mem_edges: guest "mem_edges";
    securities: guest "securities";
    thread_state: guest "thread_state";
    tree: guest "tree";
    dead_leader: guest "dead_leader";
    kinship: guest "kinship";
    leader_gone: guest "leader_gone";
    proc_dead: guest "proc_dead";
    proc_zombie: guest "proc_zombie";
    mem_private: guest "mem_private";
    mem_kinds: guest "mem_kinds";
    memfd_exec: guest "memfd_exec";
    mem_shared: guest "mem_shared";
    sysv: guest "sysv";
    aio: guest "aio";
    pipes: guest "pipes";
    unix_stream: guest "unix_stream";
    sigaction: guest "sigaction";
    sigpending: guest "sigpending";
    /// Its timers expire all the time: a signal may just be pending.
    timers: guest "timers", moving &["status ShdPnd"];
    timer_overrun: guest "timer_overrun";
    clocks: guest "clocks";
    sleepers: guest "sleepers";
    attrs: guest "attrs";
    files: guest "files";
    dir_flags: guest "dir_flags";
    rootdir: guest "rootdir";
    creds: guest "creds";
    onstack: guest "onstack";
    cpu_state: guest "cpu_state";
    rseq: guest "rseq";
    personality: guest "personality";
    shared_fdtable: guest "shared_fdtable";
    shared_apart: guest "shared_apart";
    clone_vm: guest "clone_vm";
    creds_ids: guest "creds_ids";
    seccomp_filter: guest "seccomp_filter";
    seccomp_strict: guest "seccomp_strict";
}
