//! Guests with files and sockets of every kind through the three round trips of
//! `crust_tests::round_trip`.

crust_tests::workloads! {
    unix_dgram: guest "unix_dgram";
    unix_scm: guest "unix_scm";
    unix_edge: guest "unix_edge";
    fifo: guest "fifo";
    ghost: guest "ghost", dump &["--ghost-limit", "2M"];
    /// A name that another file has by now stays that file's, so the link text of the deleted one
    /// differs.
    ghost_edge: guest "ghost_edge", lost &["fd 3 target"];
    link_remap: guest "link_remap", dump &["--link-remap"];
    memfd: guest "memfd";
    nsfd: guest "nsfd";
    nsfd_held: guest "nsfd_held";
    eventfd: guest "eventfd";
    eventfd_big: guest "eventfd_big";
    eventfd_sem: guest "eventfd_sem";
    epoll: guest "epoll";
    timerfd: guest "timerfd";
    timerfd_unread: guest "timerfd_unread";
    pidfd: guest "pidfd";
    pidfd_thread: guest "pidfd_thread";
    epoll_odd: guest "epoll_odd";
    uring: guest "uring";
    locks: guest "locks", dump &["--file-locks"];
    lock_inherited: guest "lock_inherited", dump &["--file-locks"];
    inotify: guest "inotify";
    fanotify: guest "fanotify";
    /// The handle of a deleted file is that of its inode, which is another one after the restore.
    watched_gone: guest "watched_gone",
        lost &["fd 4 inotify wd 1", "fd 4 inotify wd 2", "fd 6 fanotify ino 1"];
    pipe_packets: guest "pipe_packets";
    unix_senders: guest "unix_senders";
    unix_creds: guest "unix_creds";
    unix_nested: guest "unix_nested";
    /// fdinfo names a locked file by its inode, which is another one for the deleted file.
    locks_shared: guest "locks_shared", dump &["--file-locks"], lost &["fd 8 lock"];
    leases: guest "leases", dump &["--file-locks"];
    tmpfile: guest "tmpfile";
    odd_names: guest "odd_names";
    tcp_listen: guest "tcp_listen";
    tcp_est: guest "tcp_est", dump &["--tcp-established"], restore &["--tcp-established"];
    tcp_states: guest "tcp_states", dump &["--tcp-established"],
        restore &["--tcp-established"];
    udp: guest "udp";
    udp_waiting: guest "udp_waiting";
    netlink: guest "netlink";
    sock_extra: guest "sock_extra";
    multicast: guest "multicast";
    /// Every option that can be read.
    sock_options: guest "sock_options", dump &["--tcp-established"], restore &["--tcp-established"];
    packet_rings: guest "packet_rings";
    bpfmap: guest "bpfmap";
    bpf_kinds: guest "bpf_kinds";
    pty: guest "pty";
    pty_quiet: guest "pty_quiet";
    pty_waiting: guest "pty_waiting";
    shared_fs: guest "shared_fs";
}
