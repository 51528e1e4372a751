//! Which capabilities a plan needs: each step's call tells, by its name and arguments
//! (capabilities(7)).

use crate::plan::routine::Routine;
use crate::plan::step::{Arg, Call, Op, Piece, Step};
use crust_cli::capabilities::{Cap, Needs};
use nix::libc;

/// Below it a port is for the privileged (net.ipv4.ip_unprivileged_port_start by default).
const FIRST_FREE_PORT: u16 = 1024;
/// All CLONE_NEW* bits but that of user namespaces, which need nothing.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | crate::tree::CLONE_NEWTIME) as u64;

/// All of them.
pub fn of(steps: &[Step]) -> Needs {
    let mut needs = Needs::default();
    for step in steps {
        let (cap, what) = match &step.op {
            Op::Fork { .. } | Op::Thread { .. } => (Some(Cap::CHECKPOINT_RESTORE), "chosen pids"),
            Op::Call(call) | Op::LastCall(call) => of_call(call),
            Op::WriteProc { file, .. } => (of_proc_file(file), *file),
            Op::Routine(routine) => of_routine(routine),
            _ => (None, ""),
        };
        if let Some(cap) = cap {
            needs.add(cap, format!("{what}, of {}", step.origin));
        }
    }
    needs
}

fn of_call(call: &Call) -> (Option<Cap>, &'static str) {
    let cap = match call.name {
        "setresuid" | "setfsuid" | "setuid" => Some(Cap::SETUID),
        "setresgid" | "setfsgid" | "setgid" | "setgroups" => Some(Cap::SETGID),
        "prctl" => of_prctl(call),
        "seccomp" | "mount" | "umount2" | "pivot_root" | "setns" | "sethostname"
        | "setdomainname" => Some(Cap::SYS_ADMIN),
        "unshare" => (number(call, 0) & NAMESPACES != 0).then_some(Cap::SYS_ADMIN),
        "timerfd_create" => is_alarm(call).then_some(Cap::WAKE_ALARM),
        "bind" => is_low_port(call).then_some(Cap::NET_BIND_SERVICE),
        "setsockopt" => of_socket_option(call),
        "socket" => of_socket(call),
        "chroot" => Some(Cap::SYS_CHROOT),
        "mknodat" => Some(Cap::MKNOD),
        "open_by_handle_at" => Some(Cap::DAC_READ_SEARCH),
        _ => None,
    };
    (cap, call.name)
}

fn is_alarm(call: &Call) -> bool {
    let clock = number(call, 0) as i32;
    clock == libc::CLOCK_REALTIME_ALARM || clock == libc::CLOCK_BOOTTIME_ALARM
}

fn of_prctl(call: &Call) -> Option<Cap> {
    match number(call, 0) as i32 {
        libc::PR_SET_MM => Some(Cap::CHECKPOINT_RESTORE),
        libc::PR_CAPBSET_DROP | libc::PR_SET_SECUREBITS => Some(Cap::SETPCAP),
        // PTRACE_O_SUSPEND_SECCOMP while the last calls are made.
        libc::PR_SET_SECCOMP => Some(Cap::SYS_ADMIN),
        _ => None,
    }
}

fn of_socket_option(call: &Call) -> Option<Cap> {
    let (level, option) = (number(call, 1) as i32, number(call, 2) as i32);
    // ipv6_set_opt_hdr of net/ipv6/ipv6_sockglue.c.
    let is_header = [
        libc::IPV6_HOPOPTS,
        libc::IPV6_RTHDRDSTOPTS,
        libc::IPV6_DSTOPTS,
    ]
    .contains(&option);
    match level == libc::IPPROTO_IPV6 && is_header {
        true => Some(Cap::NET_RAW),
        false => power_of_option(call).map(|_| Cap::NET_ADMIN),
    }
}

/// Whether a call needs CAP_NET_ADMIN in the first user namespace (true) or in that of the network
/// namespace; `None` if in neither (sk_setsockopt of net/core/sock.c).
fn power_of_option(call: &Call) -> Option<bool> {
    let (level, option) = (number(call, 1) as i32, number(call, 2) as i32);
    match (level, option) {
        (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE | libc::SO_RCVBUFFORCE | libc::SO_DEBUG) => {
            Some(true)
        }
        (libc::SOL_SOCKET, libc::SO_MARK | libc::SO_TXTIME)
        | (libc::IPPROTO_TCP, libc::TCP_REPAIR)
        | (libc::SOL_IP, libc::IP_TRANSPARENT) => Some(false),
        _ => None,
    }
}

/// The same of a step.
pub fn of_network(step: &Step) -> Option<bool> {
    match &step.op {
        Op::Call(call) | Op::LastCall(call) if call.name == "setsockopt" => power_of_option(call),
        // Their buffers are made as large as the queues.
        Op::Routine(Routine::RepairTcp(_)) => Some(true),
        Op::Routine(Routine::OpenTun { .. }) => Some(false),
        _ => None,
    }
}

fn of_socket(call: &Call) -> Option<Cap> {
    let is_raw = number(call, 1) as i32 & 0xf == libc::SOCK_RAW;
    let family = number(call, 0) as i32;
    let needs_raw = family == libc::AF_PACKET || (is_raw && family != libc::AF_NETLINK);
    needs_raw.then_some(Cap::NET_RAW)
}

fn of_proc_file(file: &str) -> Option<Cap> {
    match file {
        "loginuid" => Some(Cap::AUDIT_CONTROL),
        // Unmapped ids of a namespace, and files below /proc that only root may write.
        "uid_map" | "gid_map" => Some(Cap::SETUID),
        _ => None,
    }
}

fn of_routine(routine: &Routine) -> (Option<Cap>, &'static str) {
    match routine {
        // proc_map_files_get_link.
        Routine::SharedAnon { .. } => (Some(Cap::CHECKPOINT_RESTORE), "shared anonymous memory"),
        // kernel.unprivileged_bpf_disabled is on nearly everywhere.
        Routine::MakeBpfMap(_) => (Some(Cap::BPF), "bpf maps"),
        Routine::OpenTun { .. } => (Some(Cap::NET_ADMIN), "tuns and taps"),
        Routine::RepairTcp(_) => (Some(Cap::NET_ADMIN), "a TCP connection"),
        Routine::OpenBpfMap { .. } => (Some(Cap::SYS_ADMIN), "bpf maps opened twice"),
        Routine::Sysv { .. } => (Some(Cap::CHECKPOINT_RESTORE), "SysV objects"),
        Routine::MakeUts { .. } => (Some(Cap::SYS_ADMIN), "a uts namespace"),
        Routine::WatchInode { on, .. } if on.path.is_empty() => {
            (Some(Cap::DAC_READ_SEARCH), "a watch by file handle")
        }
        _ => (None, ""),
    }
}

/// The value of an argument, 0 if it is none.
fn number(call: &Call, index: usize) -> u64 {
    match call.args.get(index) {
        Some(Arg::Int(value)) => *value as u64,
        Some(Arg::Hex(value) | Arg::Named(_, value)) => *value,
        _ => 0,
    }
}

/// Whether an internet address of bind(2) has a port for the privileged.
fn is_low_port(call: &Call) -> bool {
    let Some(Arg::Data(pieces)) = call.args.get(1) else {
        return false;
    };
    let Some(Piece::Bytes(bytes)) = pieces.first() else {
        return false;
    };
    let Some(([f0, f1, p0, p1], _)) = bytes.split_first_chunk() else {
        return false;
    };
    let (family, port) = (
        u16::from_ne_bytes([*f0, *f1]),
        u16::from_be_bytes([*p0, *p1]),
    );
    let is_inet = [libc::AF_INET, libc::AF_INET6].contains(&family.into());
    is_inet && port != 0 && port < FIRST_FREE_PORT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::step::{Actor, Origin, Phase, SlotId};

    fn step(op: Op) -> Step {
        Step {
            phase: Phase::Open,
            actor: Actor::Broker,
            op,
            after: Vec::new(),
            done: None,
            origin: Origin {
                image: "files.img".into(),
                entry: Some(3),
                what: "tcp socket".into(),
            },
        }
    }

    fn bind(port: u16) -> Op {
        let [high, low] = port.to_be_bytes();
        let address = Arg::bytes([2, 0, high, low, 127, 0, 0, 1]);
        let args = vec![Arg::Fd(SlotId(0)), address, Arg::Int(16)];
        Op::Call(Call::new("bind", libc::SYS_bind, args))
    }

    #[test]
    fn calls_tell_what_they_need() {
        let needs = of(&[step(bind(8080))]);
        assert!(needs.beside(0).is_empty());
        let raw = ("SOCK_RAW", libc::SOCK_RAW | libc::SOCK_CLOEXEC);
        let args = vec![
            Arg::named("AF_INET", libc::AF_INET),
            Arg::named(raw.0, raw.1),
        ];
        let socket = Op::Call(Call::new("socket", libc::SYS_socket, args));
        let needs = of(&[step(bind(80)), step(socket)]).beside(0);
        let told: Vec<String> = needs.iter().map(|need| need.capability.name()).collect();
        assert_eq!(told, ["CAP_NET_BIND_SERVICE", "CAP_NET_RAW"]);
        assert_eq!(needs[0].reason, "bind, of tcp socket (files.img entry 3)");
    }

    #[test]
    fn options_tell_what_they_need() {
        let option = |level: i32, name: i32| {
            let args = vec![
                Arg::Fd(SlotId(0)),
                Arg::Int(level.into()),
                Arg::Int(name.into()),
            ];
            let set = Call::new("setsockopt", libc::SYS_setsockopt, args);
            of_socket_option(&set).map(Cap::name)
        };
        let raw = Some("CAP_NET_RAW".to_owned());
        assert_eq!(option(libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS), raw);
        assert_eq!(option(libc::IPPROTO_IPV6, libc::IPV6_RTHDR), None);
        let admin = Some("CAP_NET_ADMIN".to_owned());
        assert_eq!(option(libc::SOL_SOCKET, libc::SO_TXTIME), admin);
    }
}
