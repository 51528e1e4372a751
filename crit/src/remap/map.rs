//! What is to be mapped to what, as given on the command line.

use super::Known;
use crate::cli;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// All maps. Each is applied to the old value once: A=B B=A swaps.
pub struct Maps {
    pids: BTreeMap<u64, u64>,
    /// In the order given; the longest prefix wins.
    paths: Vec<(Vec<u8>, Vec<u8>)>,
    addresses: Vec<(IpAddr, IpAddr)>,
    ports: BTreeMap<u64, u64>,
    uids: BTreeMap<u64, u64>,
    gids: BTreeMap<u64, u64>,
}

/// The largest pid the kernel can hand out (PID_MAX_LIMIT - 1).
const PID_MAX: u64 = 4 * 1024 * 1024 - 1;

impl Maps {
    /// Whether pids change.
    pub fn has_pids(&self) -> bool {
        !self.pids.is_empty()
    }

    pub fn parse(arguments: &cli::Remap) -> Result<Maps> {
        let maps = Maps {
            pids: numbers("--pid", &arguments.pid, 1, PID_MAX)?,
            paths: arguments
                .path
                .iter()
                .map(|text| path_pair(text))
                .collect::<Result<_>>()?,
            addresses: arguments
                .addr
                .iter()
                .map(|text| address_pair(text))
                .collect::<Result<_>>()?,
            ports: numbers("--port", &arguments.port, 1, 65535)?,
            uids: numbers("--uid", &arguments.uid, 0, u64::from(u32::MAX) - 1)?,
            gids: numbers("--gid", &arguments.gid, 0, u64::from(u32::MAX) - 1)?,
        };
        let targets: BTreeSet<_> = maps.pids.values().collect();
        if targets.len() < maps.pids.len() {
            bail!("--pid: two ids cannot become the same one");
        }
        let nothing = maps.pids.is_empty()
            && maps.paths.is_empty()
            && !maps.has_addresses()
            && !maps.has_owners();
        if nothing && maps.ports.is_empty() {
            bail!("nothing to map: give --pid, --path, --addr, --port, --uid or --gid");
        }
        Ok(maps)
    }

    /// Refuses a new pid that the set has already and keeps.
    pub(super) fn check(&self, known: &Known) -> Result<()> {
        for (old, new) in &self.pids {
            let taken = known.pids.contains(new) && !self.pids.contains_key(new) && old != new;
            if taken && known.pids.contains(old) {
                bail!(
                    "--pid {old}={new}: {new} is taken in this dump{}",
                    known.describe()
                );
            }
        }
        Ok(())
    }

    /// Whether a number is one that a map gives: then the map was applied before.
    pub fn gives_number(&self, number: u64) -> bool {
        let maps = [&self.pids, &self.uids, &self.gids, &self.ports];
        maps.iter()
            .any(|map| map.values().any(|new| *new == number))
    }

    /// The same for a path.
    pub fn gives_path(&self, path: &[u8]) -> bool {
        self.paths.iter().any(|(_, new)| below(path, new).is_some())
    }

    /// The same for an address.
    pub fn gives_address(&self, words: &[u64]) -> bool {
        to_address(words).is_some_and(|there| {
            self.addresses
                .iter()
                .any(|(_, new)| *new == there.to_canonical())
        })
    }

    pub fn pid(&self, old: u64) -> Option<u64> {
        self.pids.get(&old).copied().filter(|new| *new != old)
    }

    pub fn uid(&self, old: u64) -> Option<u64> {
        self.uids.get(&old).copied().filter(|new| *new != old)
    }

    pub fn gid(&self, old: u64) -> Option<u64> {
        self.gids.get(&old).copied().filter(|new| *new != old)
    }

    pub fn port(&self, old: u64) -> Option<u64> {
        self.ports.get(&old).copied().filter(|new| *new != old)
    }

    pub fn pids(&self) -> impl Iterator<Item = u64> {
        self.pids.keys().copied()
    }

    pub fn has_addresses(&self) -> bool {
        !self.addresses.is_empty()
    }

    pub fn has_paths(&self) -> bool {
        !self.paths.is_empty()
    }

    pub fn has_owners(&self) -> bool {
        !self.uids.is_empty() || !self.gids.is_empty()
    }

    /// A path with the longest mapped prefix replaced, and the pids in /proc/<pid>/ ones.
    pub fn path(&self, old: &[u8]) -> Option<Vec<u8>> {
        let under = |prefix: &[u8]| below(old, prefix);
        let best = self
            .paths
            .iter()
            .filter(|(from, _)| under(from).is_some())
            .max_by_key(|(from, _)| from.len());
        let mapped = best.and_then(|(from, to)| Some([to.as_slice(), under(from)?].concat()));
        let mapped = mapped.unwrap_or_else(|| old.to_vec());
        let mapped = self.proc_path(&mapped).unwrap_or(mapped);
        (mapped != old).then_some(mapped)
    }

    /// `/proc/<pid>/...` and `/proc/<pid>/task/<tid>/...` with new numbers.
    fn proc_path(&self, path: &[u8]) -> Option<Vec<u8>> {
        let rest = path.strip_prefix(b"/proc/")?;
        let mut parts: Vec<Vec<u8>> = rest
            .split(|byte| *byte == b'/')
            .map(<[u8]>::to_vec)
            .collect();
        let mut change = |at: usize| -> Option<()> {
            let part = parts.get_mut(at)?;
            let number: u64 = std::str::from_utf8(part).ok()?.parse().ok()?;
            *part = self.pid(number)?.to_string().into_bytes();
            Some(())
        };
        let first = change(0).is_some();
        let thread =
            rest.split(|byte| *byte == b'/').nth(1) == Some(b"task") && change(2).is_some();
        if !first && !thread {
            return None;
        }
        Some([b"/proc/".as_slice(), &parts.join(&b'/')].concat())
    }

    /// The words of an address as an inet socket stores them.
    pub fn address(&self, old: &[u64]) -> Option<Vec<u64>> {
        let there = to_address(old)?;
        let (_, new) = self
            .addresses
            .iter()
            .find(|(from, _)| *from == there.to_canonical())?;
        // An IPv4 address inside an IPv6 socket stays in that form.
        let bytes = match (there, new) {
            (IpAddr::V6(_), IpAddr::V4(new)) => new.to_ipv6_mapped().octets().to_vec(),
            (_, IpAddr::V4(new)) => new.octets().to_vec(),
            (_, IpAddr::V6(new)) => new.octets().to_vec(),
        };
        let words = bytes.chunks_exact(4).map(|word| {
            word.iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        });
        Some(words.collect::<Vec<u64>>()).filter(|words| words != old)
    }
}

/// The rest of a path below a prefix that ends where a component ends.
fn below<'a>(path: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let rest = path.strip_prefix(prefix)?;
    let whole = rest.is_empty() || rest.starts_with(b"/") || prefix.ends_with(b"/");
    whole.then_some(rest)
}

/// The address in the words of an inet socket.
fn to_address(words: &[u64]) -> Option<IpAddr> {
    let bytes: Vec<u8> = words
        .iter()
        .flat_map(|word| (*word as u32).to_le_bytes())
        .collect();
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

fn pair(text: &str) -> Result<(&str, &str)> {
    let (old, new) = text
        .split_once('=')
        .with_context(|| format!("{text}: OLD=NEW is meant to be here"))?;
    if old.is_empty() || new.is_empty() {
        bail!("{text}: OLD=NEW is meant to be here");
    }
    Ok((old, new))
}

fn numbers(option: &str, texts: &[String], least: u64, most: u64) -> Result<BTreeMap<u64, u64>> {
    let mut map = BTreeMap::new();
    for text in texts {
        let (old, new) = pair(text).context(option.to_owned())?;
        let number = |part: &str| {
            let number = part
                .parse::<u64>()
                .ok()
                .filter(|number| (least..=most).contains(number));
            number.with_context(|| {
                format!("{option} {text}: {part} is no number from {least} to {most}")
            })
        };
        if map
            .insert(number(old)?, number(new)?)
            .is_some_and(|was| Ok(was) != new.parse())
        {
            bail!("{option}: {old} is mapped twice");
        }
    }
    Ok(map)
}

fn path_pair(text: &str) -> Result<(Vec<u8>, Vec<u8>)> {
    let (old, new) = pair(text).context("--path")?;
    if !old.starts_with('/') || !new.starts_with('/') {
        bail!("--path {text}: both paths must be absolute");
    }
    let trimmed = |path: &str| {
        if path == "/" {
            path.to_owned()
        } else {
            path.trim_end_matches('/').to_owned()
        }
    };
    Ok((trimmed(old).into_bytes(), trimmed(new).into_bytes()))
}

fn address_pair(text: &str) -> Result<(IpAddr, IpAddr)> {
    let (old, new) = pair(text).context("--addr")?;
    let parse = |part: &str| {
        part.parse::<IpAddr>()
            .with_context(|| format!("--addr {text}: {part} is no address"))
    };
    let (old, new) = (parse(old)?, parse(new)?);
    if old.is_ipv4() != new.is_ipv4() {
        bail!("--addr {text}: both must be of one family");
    }
    Ok((old, new))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(pids: &[(u64, u64)], paths: &[(&str, &str)]) -> Maps {
        Maps {
            pids: pids.iter().copied().collect(),
            paths: paths
                .iter()
                .map(|(a, b)| (a.as_bytes().to_vec(), b.as_bytes().to_vec()))
                .collect(),
            addresses: vec![("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap())],
            ports: BTreeMap::new(),
            uids: BTreeMap::new(),
            gids: BTreeMap::new(),
        }
    }

    #[test]
    fn prefixes_end_at_components() {
        let maps = maps(&[], &[("/a", "/x"), ("/a/b", "/y")]);
        for (old, new) in [
            ("/a", Some("/x")),
            ("/a/c", Some("/x/c")),
            ("/ab", None),
            ("/a/b/c", Some("/y/c")),
            ("/b/a", None),
        ] {
            assert_eq!(
                maps.path(old.as_bytes()).as_deref(),
                new.map(str::as_bytes),
                "{old}"
            );
        }
    }

    #[test]
    fn pids_in_proc_paths() {
        let maps = maps(&[(12, 34), (34, 12)], &[]);
        for (old, new) in [
            ("/proc/12/stat", Some("/proc/34/stat")),
            ("/proc/34", Some("/proc/12")),
            ("/proc/12/task/34/comm", Some("/proc/34/task/12/comm")),
            ("/proc/1/task/12", Some("/proc/1/task/34")),
            ("/proc/123/stat", None),
            ("/proc/self/fd/12", None),
            ("/tmp/12", None),
        ] {
            assert_eq!(
                maps.path(old.as_bytes()).as_deref(),
                new.map(str::as_bytes),
                "{old}"
            );
        }
    }

    #[test]
    fn an_ipv4_address_in_an_ipv6_socket() {
        let maps = maps(&[], &[]);
        assert_eq!(maps.address(&[0x0100_000a]), Some(vec![0x0200_000a]));
        assert_eq!(
            maps.address(&[0, 0, 0xffff_0000, 0x0100_000a]),
            Some(vec![0, 0, 0xffff_0000, 0x0200_000a])
        );
        assert_eq!(maps.address(&[0x0300_000a]), None);
    }
}
