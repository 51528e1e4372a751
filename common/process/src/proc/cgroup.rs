//! /proc/PID/cgroup: where a task sits in each cgroup hierarchy, relative to the reader's
//! cgroup namespace (cgroups(7)). Hierarchy 0 with no controller is cgroup v2.

use super::text::{Line, ParseError, decimal, lines, split_deleted};

/// One hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupMembership {
    /// Hierarchy id, 0 for v2. Ids of v1 differ from boot to boot.
    pub hierarchy: u32,
    /// Controllers in the kernel's order: `cpu`, `cpuacct`, or `name=systemd`. Empty for v2.
    pub controllers: Vec<Vec<u8>>,
    /// Path below the root of the hierarchy as the reader's cgroup namespace sees it; it
    /// begins with `/..` for a cgroup outside.
    pub path: Vec<u8>,
    /// The cgroup was removed while the task, a zombie, still sits in it. v2 only.
    pub deleted: bool,
}

/// Parses the whole of /proc/PID/cgroup.
pub fn parse_cgroup(text: &[u8]) -> Result<Vec<CgroupMembership>, ParseError> {
    lines("cgroup", text).map(parse_membership).collect()
}

fn parse_membership(line: Line<'_>) -> Result<CgroupMembership, ParseError> {
    let mut parts = line.text().splitn(3, |&b| b == b':');
    let mut part = |what| parts.next().ok_or_else(|| line.error(what));
    let hierarchy = part("hierarchy id")?;
    let controllers = part("controllers")?;
    let path = part("path")?;
    let hierarchy = decimal(hierarchy).ok_or_else(|| line.error("hierarchy id"))?;
    if !path.starts_with(b"/") {
        return Err(line.error("path"));
    }
    // v1 prints no mark, so the same ending is part of a name there.
    let (path, deleted) = match hierarchy {
        0 => split_deleted(path),
        _ => (path, false),
    };
    let names = controllers.split(|&b| b == b',').filter(|c| !c.is_empty());
    Ok(CgroupMembership {
        hierarchy,
        controllers: names.map(<[u8]>::to_vec).collect(),
        path: path.to_vec(),
        deleted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions() -> Result<(), ParseError> {
        let text = b"9:name=systemd:/a:b\n3:cpu,cpuacct:/x (deleted)\n0::/../gone (deleted)\n";
        let all = parse_cgroup(text)?;
        let [systemd, cpu, v2] = all.as_slice() else {
            panic!("three hierarchies, not {}", all.len());
        };
        assert_eq!(
            (systemd.hierarchy, systemd.path.as_slice()),
            (9, &b"/a:b"[..])
        );
        assert_eq!(systemd.controllers, [b"name=systemd".to_vec()]);
        assert_eq!(cpu.controllers, [b"cpu".to_vec(), b"cpuacct".to_vec()]);
        assert_eq!(
            (cpu.path.as_slice(), cpu.deleted),
            (&b"/x (deleted)"[..], false)
        );
        assert!(v2.controllers.is_empty());
        assert_eq!((v2.path.as_slice(), v2.deleted), (&b"/../gone"[..], true));
        Ok(())
    }

    #[test]
    fn broken_lines_are_named() {
        for (bad, what) in [
            (&b"x::/"[..], "hierarchy id"),
            (b"0:", "path"),
            (b"0::", "path"),
            (b"", "controllers"),
        ] {
            let text = [b"0::/\n", bad, b"\n"].concat();
            assert_eq!(
                parse_cgroup(&text).err().map(|e| (e.line, e.what)),
                Some((2, what))
            );
        }
    }
}
