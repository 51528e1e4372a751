//! Ports of the tree's sockets that somebody else has, with the holder.
//!
//! The kernel lists sockets in /proc/net/{tcp,udp}{,6} (Documentation/networking/proc_net_tcp):
//! address and port in hex, the state, the inode; whose it is is found among the descriptors of
//! all processes. SO_REUSEPORT and SO_REUSEADDR of UDP may let two sockets have one port, so only
//! what bind(2) would refuse for certain is told: a listener beside a listener, and datagram
//! sockets without either.

use super::Subject;
use crust_cli::code::Code;
use crust_cli::finding::Finding;
use crust_image::checkpoint::Checkpoint;
use crust_image::ids::VirtPid;
use crust_image::tcp_state::LISTEN;
use crust_proto::criu::InetSkEntry;
use nix::libc;
use std::fs;

/// A socket of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Taken {
    port: u32,
    /// As words, like the images have it; none for the address of all.
    address: Option<Vec<u32>>,
    state: u32,
    inode: u64,
}

/// Each busy port with its holder.
pub fn check(subject: &Subject<'_>) -> Vec<Finding> {
    if has_own_network(subject.checkpoint) {
        return Vec::new();
    }
    let entries = subject.checkpoint.files.values();
    let sockets: Vec<&InetSkEntry> = entries.filter_map(|file| file.isk.as_deref()).collect();
    let mut findings: Vec<Finding> = Vec::new();
    for socket in sockets {
        let Some(wanted) = Wanted::of(socket) else {
            continue;
        };
        let taken = taken_sockets(wanted.protocol);
        let in_the_way = taken.iter().find(|taken| wanted.collides(taken));
        let finding = in_the_way.map(|taken| wanted.finding(taken));
        let is_new = |finding: &Finding| !findings.contains(finding);
        findings.extend(finding.filter(is_new));
    }
    findings
}

/// Whether the tree has a network namespace of its own: then nobody is in its way.
fn has_own_network(checkpoint: &Checkpoint) -> bool {
    let host = checkpoint.inventory.root_ids.as_ref();
    let host = host.and_then(|ids| ids.net_ns_id);
    let root = checkpoint.tasks().find_map(|task| task.ids);
    host.is_some() && root.is_some_and(|ids| ids.net_ns_id != host)
}

/// A port that the tree has to itself.
struct Wanted {
    protocol: &'static str,
    port: u32,
    address: Option<Vec<u32>>,
    listens: bool,
}

impl Wanted {
    fn of(socket: &InetSkEntry) -> Option<Wanted> {
        let is_stream = socket.r#type as i32 == libc::SOCK_STREAM;
        let protocol = match socket.proto as i32 {
            libc::IPPROTO_TCP if is_stream && socket.state == LISTEN => "tcp",
            libc::IPPROTO_UDP => "udp",
            _ => return None,
        };
        let shares = socket.opts.so_reuseport.unwrap_or(false)
            || (protocol == "udp" && socket.opts.reuseaddr.unwrap_or(false));
        if shares || socket.src_port == 0 {
            return None;
        }
        Some(Wanted {
            protocol,
            port: socket.src_port,
            address: specific(&socket.src_addr),
            listens: protocol == "tcp",
        })
    }

    fn collides(&self, taken: &Taken) -> bool {
        let overlap = match (&self.address, &taken.address) {
            (Some(own), Some(other)) => own == other,
            _ => true,
        };
        taken.port == self.port && overlap && (!self.listens || taken.state == LISTEN)
    }

    fn finding(&self, taken: &Taken) -> Finding {
        let object = format!("{} port {}", self.protocol, self.port);
        let what = match holder(taken.inode) {
            Some((pid, comm)) => format!("is in use by process {pid} ({comm})"),
            None => format!("is in use (socket inode {})", taken.inode),
        };
        Finding::error(Code::PortBusy, object, what)
    }
}

fn specific(words: &[u32]) -> Option<Vec<u32>> {
    words.iter().any(|word| *word != 0).then(|| words.to_vec())
}

fn taken_sockets(protocol: &str) -> Vec<Taken> {
    let files = [
        format!("/proc/net/{protocol}"),
        format!("/proc/net/{protocol}6"),
    ];
    let texts = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok());
    texts.flat_map(|text| parse_sockets(&text)).collect()
}

/// A table of sockets without its heading; lines that are none are passed over.
fn parse_sockets(text: &str) -> Vec<Taken> {
    text.lines().skip(1).filter_map(parse_socket).collect()
}

fn parse_socket(line: &str) -> Option<Taken> {
    let mut words = line.split_ascii_whitespace();
    let (address, port) = words.nth(1)?.split_once(':')?;
    let state = u32::from_str_radix(words.nth(1)?, 16).ok()?;
    let address: Option<Vec<u32>> = (0..address.len() / 8)
        .map(|word| u32::from_str_radix(address.get(word * 8..word * 8 + 8)?, 16).ok())
        .collect();
    Some(Taken {
        port: u32::from_str_radix(port, 16).ok()?,
        address: specific(&address?),
        state,
        inode: words.nth(5)?.parse().ok()?,
    })
}

/// The first process that has a descriptor on the socket.
fn holder(inode: u64) -> Option<(VirtPid, String)> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| VirtPid::new(entry.file_name().to_str()?.parse().ok()?))
        .find(|pid| has_descriptor(*pid, &wanted))
        .map(|pid| (pid, super::pids::holder(pid).unwrap_or_default()))
}

fn has_descriptor(pid: VirtPid, target: &str) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    descriptors
        .flatten()
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == target))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 23456 1 0000000000000000 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 555 1 0000000000000000 100 0 0 10 0
";

    fn wanted(port: u32, address: &[u32]) -> Wanted {
        Wanted {
            protocol: "tcp",
            port,
            address: specific(address),
            listens: true,
        }
    }

    #[test]
    fn sockets_are_parsed_and_compared() {
        let taken = parse_sockets(TCP);
        assert_eq!(taken.len(), 2);
        assert_eq!((taken[0].port, taken[0].inode), (8080, 23456));
        assert_eq!(taken[0].address, Some(vec![0x0100_007f]));
        assert!(wanted(8080, &[0]).collides(&taken[0]));
        assert!(wanted(8080, &[0x0100_007f]).collides(&taken[0]));
        assert!(!wanted(8080, &[0x0200_007f]).collides(&taken[0]));
        assert!(!wanted(8081, &[0]).collides(&taken[0]));
        assert!(wanted(22, &[0x0200_007f]).collides(&taken[1]));
    }
}
