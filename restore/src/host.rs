//! The facts of this host and of crust-restore itself on which a plan depends: probed once, passed
//! as a value, made by hand in tests. What a restored task inherits from crust-restore (ids,
//! limits, nice value) is here too: the plan sets only what differs.

use anyhow::Context;
use crust_cli::options::Options;
use crust_process::proc::cgroup::parse_cgroup;
use crust_process::proc::maps::{VmaName, parse_maps};
use crust_process::proc::mountinfo::{MountInfo, parse_mountinfo};
use crust_process::proc::status::parse_status;
use crust_process::xstate;
use nix::sys::resource::{Resource, getrlimit};
use nix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::{fs, io};

/// Resources of getrlimit(2), in the kernel's order.
pub const RLIMITS: [(&str, Resource); 16] = [
    ("RLIMIT_CPU", Resource::RLIMIT_CPU),
    ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE),
    ("RLIMIT_DATA", Resource::RLIMIT_DATA),
    ("RLIMIT_STACK", Resource::RLIMIT_STACK),
    ("RLIMIT_CORE", Resource::RLIMIT_CORE),
    ("RLIMIT_RSS", Resource::RLIMIT_RSS),
    ("RLIMIT_NPROC", Resource::RLIMIT_NPROC),
    ("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE),
    ("RLIMIT_MEMLOCK", Resource::RLIMIT_MEMLOCK),
    ("RLIMIT_AS", Resource::RLIMIT_AS),
    ("RLIMIT_LOCKS", Resource::RLIMIT_LOCKS),
    ("RLIMIT_SIGPENDING", Resource::RLIMIT_SIGPENDING),
    ("RLIMIT_MSGQUEUE", Resource::RLIMIT_MSGQUEUE),
    ("RLIMIT_NICE", Resource::RLIMIT_NICE),
    ("RLIMIT_RTPRIO", Resource::RLIMIT_RTPRIO),
    ("RLIMIT_RTTIME", Resource::RLIMIT_RTTIME),
];

/// Number of RLIMIT_NOFILE.
pub const NOFILE: usize = 7;

/// A soft and a hard limit; infinity is `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Soft.
    pub cur: u64,
    /// Hard.
    pub max: u64,
}

/// Real, effective, saved and file-system ids, and what else is in struct cred.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Creds {
    /// User ids: real, effective, saved, file system.
    pub uids: [u32; 4],
    /// Group ids likewise.
    pub gids: [u32; 4],
    /// Supplementary groups, ascending.
    pub groups: Vec<u32>,
    /// Inheritable capabilities, bit n is capability n.
    pub cap_inh: u64,
    /// Permitted.
    pub cap_prm: u64,
    /// Effective.
    pub cap_eff: u64,
    /// Bounding set.
    pub cap_bnd: u64,
    /// Ambient.
    pub cap_amb: u64,
    /// SECBIT_* of prctl(PR_GET_SECUREBITS).
    pub securebits: u32,
    /// PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
}

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMount {
    /// Controllers, or `name=...`; the one empty name of v2.
    pub names: Vec<Vec<u8>>,
    /// Where it is.
    pub mountpoint: Vec<u8>,
    /// The cgroup of crust-restore in it, which tasks inherit.
    pub own: Vec<u8>,
}

impl CgroupMount {
    /// Whether this is the hierarchy that images call so: one controller, or all with commas.
    pub fn serves(&self, name: &[u8]) -> bool {
        let mut wanted = name.split(|byte| *byte == b',');
        wanted.all(|wanted| self.names.iter().any(|own| own == wanted))
    }
}

/// What the plan must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Bytes of a page.
    pub page_size: u64,
    /// Behind the highest address a task may map.
    pub task_end: u64,
    /// The lowest address that may be mapped (vm.mmap_min_addr).
    pub mmap_min: u64,
    /// The largest buffers that anybody may give a socket, to send and to receive
    /// (net.core.wmem_max and rmem_max); 0 where the kernel does not tell.
    pub socket_buffers: [u32; 2],
    /// Bytes of the vdso's code.
    pub vdso_code: u64,
    /// Bytes of its data areas together ([vvar] and [vvar_vclock]).
    pub vdso_data: u64,
    /// Places of the components of extended processor state, by bit of xstate_bv from 2 on.
    pub xstate: BTreeMap<u32, Range<usize>>,
    /// What a task inherits.
    pub creds: Creds,
    /// The highest capability the kernel knows.
    pub last_cap: u32,
    /// The login id of audit, `u32::MAX` when never set; `None` on a kernel without auditing.
    pub loginuid: Option<u32>,
    /// Processors are numbered below this.
    pub cpus: u32,
    /// Limits in the kernel's order.
    pub limits: [Limit; 16],
    /// Nice value.
    pub nice: i32,
    /// /proc/self/oom_score_adj.
    pub oom_score_adj: i32,
    /// Personality, as personality(2) takes it.
    pub personality: u32,
    /// fs.suid_dumpable: what PR_GET_DUMPABLE tells of a task that has changed its ids.
    pub suid_dumpable: u32,
    /// Nodes that have memory.
    pub nodes: BTreeSet<u32>,
    /// Whether a thread may choose its own mitigations here: of speculative stores, of indirect
    /// branches.
    pub own_mitigations: [bool; 2],
    /// Above the highest pid the kernel gives.
    pub pid_max: u32,
    /// Pid of crust-restore, which no restored task can have.
    pub own_pid: u32,
    /// The ids of its session and group: what a shell job joins.
    pub session: u32,
    /// Process group of crust-restore.
    pub group: u32,
    /// Hierarchies of cgroups.
    pub cgroups: Vec<CgroupMount>,
    /// PR_TIMER_CREATE_RESTORE_IDS (since Linux 6.15).
    pub timer_restore_ids: bool,
    /// The kernel has time namespaces (CONFIG_TIME_NS).
    pub time_namespaces: bool,
    /// CLOCK_MONOTONIC and CLOCK_BOOTTIME at the start, in nanoseconds.
    pub clocks: [u64; 2],
}

impl Host {
    /// Asks the kernel.
    pub fn probe(options: &Options) -> anyhow::Result<Host> {
        let page_size = page_size()?;
        let (vdso_code, vdso_data) = vdso_sizes()?;
        let mut limits = [Limit { cur: 0, max: 0 }; 16];
        for (limit, (name, resource)) in limits.iter_mut().zip(RLIMITS) {
            let limit_of = getrlimit(resource);
            let (cur, max) = limit_of.with_context(|| format!("ask for our own limit {name}"))?;
            *limit = Limit { cur, max };
        }
        let session = nix::unistd::getsid(None).context("ask for our own session")?;
        Ok(Host {
            page_size,
            task_end: (1 << 47) - page_size,
            mmap_min: number("/proc/sys/vm/mmap_min_addr")?,
            socket_buffers: ["wmem_max", "rmem_max"]
                .map(|name| number(&format!("/proc/sys/net/core/{name}")).unwrap_or_default()),
            vdso_code,
            vdso_data,
            xstate: (2..63)
                .filter_map(|bit| Some((bit, xstate::range_of(bit)?)))
                .collect(),
            creds: creds()?,
            last_cap: number("/proc/sys/kernel/cap_last_cap")?,
            loginuid: loginuid()?,
            cpus: cpus()?,
            limits,
            nice: nice()?,
            oom_score_adj: number("/proc/self/oom_score_adj")?,
            personality: personality()?,
            suid_dumpable: number("/proc/sys/fs/suid_dumpable")?,
            nodes: nodes()?,
            own_mitigations: own_mitigations()?,
            pid_max: number("/proc/sys/kernel/pid_max")?,
            own_pid: std::process::id(),
            session: session.as_raw() as u32,
            group: nix::unistd::getpgrp().as_raw() as u32,
            cgroups: cgroups(options.cgroup_yard.as_deref())?,
            timer_restore_ids: release()? >= (6, 15),
            time_namespaces: fs::exists("/proc/self/ns/time_for_children").unwrap_or(false),
            clocks: [
                clock(ClockId::CLOCK_MONOTONIC)?,
                clock(ClockId::CLOCK_BOOTTIME)?,
            ],
        })
    }

    /// Whether crust-restore has a capability by its number.
    pub fn has_cap(&self, cap: u32) -> bool {
        self.creds.cap_eff >> cap & 1 == 1
    }
}

fn clock(clock: ClockId) -> anyhow::Result<u64> {
    let time = clock_gettime(clock).map_err(|e| anyhow::anyhow!("read clock {clock}: {e}"))?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn bytes(path: &str) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {path}"))
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

fn number<T: std::str::FromStr>(path: &str) -> anyhow::Result<T> {
    parse_number(path, &read(path)?)
}

fn parse_number<T: std::str::FromStr>(path: &str, text: &str) -> anyhow::Result<T> {
    let parsed = text.trim().parse();
    parsed.map_err(|_| anyhow::anyhow!("read {path}: {:?} is no number", text.trim()))
}

/// A kernel without auditing has no such file.
fn loginuid() -> anyhow::Result<Option<u32>> {
    const PATH: &str = "/proc/self/loginuid";
    match fs::read_to_string(PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {PATH}")),
        Ok(text) => Ok(Some(parse_number(PATH, &text)?)),
    }
}

fn page_size() -> anyhow::Result<u64> {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
    let size = size.and_then(|size| u64::try_from(size).ok());
    size.ok_or_else(|| anyhow::anyhow!("the C library does not know the page size"))
}

fn cpus() -> anyhow::Result<u32> {
    let count = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_CONF)?;
    let count = count.and_then(|count| u32::try_from(count).ok());
    count.ok_or_else(|| anyhow::anyhow!("the C library does not know the number of processors"))
}

/// Our own vdso stands for that of every task: the kernel maps the same one into all.
fn vdso_sizes() -> anyhow::Result<(u64, u64)> {
    let text = bytes("/proc/self/maps")?;
    let (mut code, mut data) = (0, 0);
    for vma in parse_maps(&text)? {
        let size = vma.end.saturating_sub(vma.start);
        match vma.name {
            VmaName::Vdso => code += size,
            VmaName::Vvar | VmaName::VvarVclock => data += size,
            _ => {}
        }
    }
    Ok((code, data))
}

fn creds() -> anyhow::Result<Creds> {
    let text = bytes("/proc/self/status")?;
    let status = parse_status(&text)?;
    let ids = |ids: crust_process::proc::status::Ids| [ids.real, ids.effective, ids.saved, ids.fs];
    Ok(Creds {
        uids: ids(status.uid),
        gids: ids(status.gid),
        groups: status.groups,
        cap_inh: status.cap_inh,
        cap_prm: status.cap_prm,
        cap_eff: status.cap_eff,
        cap_bnd: status.cap_bnd,
        cap_amb: status.cap_amb,
        securebits: 0,
        no_new_privs: status.no_new_privs.unwrap_or(false),
    })
}

/// Hierarchies whose root is mounted, by what /proc/self/cgroup calls them.
/// The hierarchies as they are mounted, or as they are in a yard (`--cgroup-yard`): a directory for
/// each, named by its controllers, by its own name, or `unified`.
fn cgroups(yard: Option<&Path>) -> anyhow::Result<Vec<CgroupMount>> {
    let mounts = parse_mountinfo(&bytes("/proc/self/mountinfo")?)?;
    let mut cgroups = Vec::new();
    for member in parse_cgroup(&bytes("/proc/self/cgroup")?)? {
        let is_v2 = member.controllers.is_empty();
        let of_hierarchy = |mount: &&MountInfo| {
            let options: Vec<&[u8]> = mount.super_options.split(|byte| *byte == b',').collect();
            let has = |name: &Vec<u8>| options.contains(&name.as_slice());
            let right_kind = if is_v2 {
                mount.fstype == b"cgroup2"
            } else {
                mount.fstype == b"cgroup" && member.controllers.iter().all(has)
            };
            right_kind && mount.root == b"/"
        };
        let mountpoint = match yard {
            None => mounts
                .iter()
                .find(of_hierarchy)
                .map(|mount| mount.mountpoint.clone()),
            Some(yard) => in_yard(yard, &member.controllers),
        };
        let Some(mountpoint) = mountpoint else {
            continue;
        };
        cgroups.push(CgroupMount {
            names: if is_v2 {
                vec![Vec::new()]
            } else {
                member.controllers
            },
            mountpoint,
            own: member.path,
        });
    }
    Ok(cgroups)
}

fn in_yard(yard: &Path, controllers: &[Vec<u8>]) -> Option<Vec<u8>> {
    let name = controllers.join(&b',');
    let name = match name.strip_prefix(b"name=").unwrap_or(&name) {
        b"" => b"unified",
        name => name,
    };
    let dir = yard.join(OsStr::from_bytes(name));
    dir.is_dir().then(|| dir.into_os_string().into_vec())
}

/// /proc/self/personality, in hex.
fn personality() -> anyhow::Result<u32> {
    let text = read("/proc/self/personality")?;
    let parsed = u32::from_str_radix(text.trim(), 16);
    parsed.map_err(|_| anyhow::anyhow!("read /proc/self/personality: {text:?} is no number"))
}

/// A kernel without NUMA has one.
fn nodes() -> anyhow::Result<BTreeSet<u32>> {
    const PATH: &str = "/sys/devices/system/node/has_memory";
    let text = match fs::read_to_string(PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => "0".to_owned(),
        text => text.with_context(|| format!("read {PATH}"))?,
    };
    parse_list(&text).with_context(|| format!("read {PATH}: {text:?} is no list"))
}

/// `0,2-3`.
fn parse_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        numbers.extend(first.parse::<u32>().ok()?..=last.parse().ok().filter(|last| *last < 4096)?);
    }
    Some(numbers)
}

/// By what status says of ourselves: `thread vulnerable`, `conditional enabled`.
fn own_mitigations() -> anyhow::Result<[bool; 2]> {
    let status = parse_status(&bytes("/proc/self/status")?)?;
    let is_choice =
        |text: Option<Vec<u8>>, word: &[u8]| text.is_some_and(|text| text.starts_with(word));
    Ok([
        is_choice(status.store_bypass, b"thread "),
        is_choice(status.indirect_branch, b"conditional "),
    ])
}

/// Field 19 of /proc/self/stat; the name in field 2 may hold anything, so counted behind its `)`.
fn nice() -> anyhow::Result<i32> {
    let text = read("/proc/self/stat")?;
    let nice = text
        .rsplit(')')
        .next()
        .and_then(|rest| rest.split_ascii_whitespace().nth(16));
    let nice = nice.and_then(|field| field.parse().ok());
    nice.ok_or_else(|| anyhow::anyhow!("read /proc/self/stat: no nice value in {text:?}"))
}

/// Version and patch level of the kernel.
fn release() -> anyhow::Result<(u32, u32)> {
    let text = read("/proc/sys/kernel/osrelease")?;
    parse_release(&text).ok_or_else(|| anyhow::anyhow!("kernel release {text:?} has no number"))
}

fn parse_release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::plan::golden;

    /// A host as the corpus was recorded on: root without CAP_SYS_RESOURCE.
    pub fn recorded() -> Host {
        const CAPS: u64 = 0x1ff_feff_ffff;
        let infinite = Limit {
            cur: u64::MAX,
            max: u64::MAX,
        };
        let mut limits = [infinite; 16];
        limits[NOFILE] = Limit {
            cur: 20000,
            max: 20000,
        };
        Host {
            page_size: 4096,
            task_end: (1 << 47) - 4096,
            mmap_min: 65536,
            socket_buffers: [0, 0],
            vdso_code: 0x2000,
            vdso_data: 0x6000,
            xstate: BTreeMap::from([
                (2, 576..832),
                (5, 832..896),
                (6, 896..1408),
                (7, 1408..2432),
            ]),
            creds: Creds {
                cap_prm: CAPS,
                cap_eff: CAPS,
                cap_bnd: CAPS,
                ..Creds::default()
            },
            last_cap: 40,
            loginuid: None,
            cpus: 2,
            limits,
            nice: 0,
            oom_score_adj: 0,
            personality: 0,
            suid_dumpable: 0,
            nodes: BTreeSet::from([0]),
            own_mitigations: [true, false],
            pid_max: 32768,
            own_pid: 2,
            session: 1,
            group: 1,
            cgroups: Vec::new(),
            timer_restore_ids: true,
            time_namespaces: true,
            clocks: [1 << 62; 2],
        }
    }

    #[test]
    fn releases() {
        assert_eq!(parse_release("6.18.44-fc\n"), Some((6, 18)));
        assert_eq!(parse_release("5.4\n"), Some((5, 4)));
        assert_eq!(parse_release("x"), None);
    }

    #[test]
    fn lists() {
        let list = |text| parse_list(text).map(Vec::from_iter);
        assert_eq!(list("0\n"), Some(vec![0]));
        assert_eq!(list("0,2-4\n"), Some(vec![0, 2, 3, 4]));
        assert_eq!(list("0-99999999"), None);
        assert_eq!(list("x"), None);
    }

    #[test]
    fn this_host_has_a_vdso_and_limits() {
        let host = Host::probe(&golden::options()).expect("probed");
        assert!(host.vdso_code > 0 && host.vdso_data > 0);
        assert!(host.limits[NOFILE].cur > 0);
        assert!(host.last_cap > 30);
    }
}
