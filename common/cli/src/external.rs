//! What is outside of a dump by the user's word: `--external TYPE[ID]` and `--inherit-fd fd[N]:KEY`.
//!
//! With `--external` crust-dump writes only the name of an object that it could not carry, such as
//! `tty[8802:1a]`; with `--inherit-fd` crust-restore puts a descriptor of its own in the place of
//! that name. Names are the peer's (criu(8)): `file[MNT_ID:INODE]` and `tty[RDEV:DEV]` in
//! hexadecimal, `unix[INODE]`, `pipe:[INODE]` and `socket:[INODE]` in decimal, or a path.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// The values of `--external`, each `TYPE[ID]` or `TYPE[ID]:VALUE`.
#[derive(Clone, Debug, Default)]
pub struct External(Vec<OsString>);

impl External {
    /// As they were given.
    pub fn new(given: Vec<OsString>) -> External {
        External(given)
    }

    /// Whether an object is outside. `id` is its `TYPE[ID]`.
    pub fn has(&self, id: &str) -> bool {
        self.value(id).is_some()
    }

    /// What stands behind `TYPE[ID]:`, nothing if nothing does; `None` if the object is not named.
    pub fn value(&self, id: &str) -> Option<&OsStr> {
        self.0.iter().find_map(|given| {
            let rest = given.as_bytes().strip_prefix(id.as_bytes())?;
            match rest.split_first() {
                None => Some(OsStr::new("")),
                Some((b':', value)) => Some(OsStr::from_bytes(value)),
                Some(_) => None,
            }
        })
    }

    /// Every `(ID, VALUE)` of a type.
    pub fn of_type<'e>(&'e self, kind: &'e str) -> impl Iterator<Item = (&'e [u8], &'e [u8])> {
        self.0.iter().filter_map(move |given| {
            let rest = given.as_bytes().strip_prefix(kind.as_bytes())?;
            let rest = rest.strip_prefix(b"[")?;
            let end = rest.iter().position(|byte| *byte == b']')?;
            let (id, rest) = rest.split_at_checked(end)?;
            let value = rest.strip_prefix(b"]:").unwrap_or_default();
            Some((id, value))
        })
    }
}

/// `--ext-unix-sk[=INODE,...]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ExtUnixSk {
    /// Not given: no peer may be outside.
    #[default]
    None,
    /// Given alone: any may.
    All,
    /// Those with these inode numbers.
    Inodes(Vec<u32>),
}

impl ExtUnixSk {
    /// From the value, empty if there was none; what is wrong with it otherwise.
    pub fn parse(given: Option<String>) -> Result<ExtUnixSk, String> {
        let Some(given) = given else {
            return Ok(ExtUnixSk::None);
        };
        if given.is_empty() {
            return Ok(ExtUnixSk::All);
        }
        let inodes: Result<Vec<u32>, _> = given.split(',').map(str::parse).collect();
        inodes
            .map(ExtUnixSk::Inodes)
            .map_err(|_| format!("--ext-unix-sk takes inode numbers, not '{given}'"))
    }

    /// Whether a socket with this inode number may be outside.
    pub fn allows(&self, inode: u32) -> bool {
        match self {
            ExtUnixSk::None => false,
            ExtUnixSk::All => true,
            ExtUnixSk::Inodes(inodes) => inodes.contains(&inode),
        }
    }
}

/// A value of `--inherit-fd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InheritedFd {
    /// The number in our own table.
    pub fd: i32,
    /// What it stands for.
    pub key: Vec<u8>,
}

impl InheritedFd {
    /// Parses `fd[N]:KEY`; what is wrong with it otherwise.
    pub fn parse(given: &OsStr) -> Result<InheritedFd, String> {
        let wrong = || format!("--inherit-fd takes fd[N]:KEY, not '{}'", given.display());
        let rest = given.as_bytes().strip_prefix(b"fd[").ok_or_else(wrong)?;
        let end = rest
            .iter()
            .position(|byte| *byte == b']')
            .ok_or_else(wrong)?;
        let (number, rest) = rest.split_at_checked(end).ok_or_else(wrong)?;
        let fd = std::str::from_utf8(number)
            .ok()
            .and_then(|number| number.parse().ok());
        let key = rest.strip_prefix(b"]:").filter(|key| !key.is_empty());
        Ok(InheritedFd {
            fd: fd.filter(|fd| *fd >= 0).ok_or_else(wrong)?,
            key: key.ok_or_else(wrong)?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_found_by_its_whole_name() {
        let given = ["tty[8800:1a]", "file[1c:2f]:data", "net[7]"].map(OsString::from);
        let external = External::new(given.to_vec());
        assert!(external.has("tty[8800:1a]"));
        assert!(!external.has("tty[8800:1"));
        assert_eq!(external.value("file[1c:2f]"), Some(OsStr::new("data")));
        assert_eq!(external.value("unix[7]"), None);
        let of_net: Vec<_> = external.of_type("net").collect();
        assert_eq!(of_net, [(&b"7"[..], &b""[..])]);
    }

    #[test]
    fn external_sockets_are_all_or_some() {
        let parsed = |given: &str| ExtUnixSk::parse(Some(given.to_owned()));
        assert_eq!(ExtUnixSk::parse(None), Ok(ExtUnixSk::None));
        assert!(parsed("").expect("all").allows(7));
        assert!(parsed("3,7").expect("some").allows(7));
        assert!(!parsed("3,8").expect("some").allows(7));
        assert!(parsed("3,x").is_err());
    }

    #[test]
    fn inherited_descriptors_have_a_number_and_a_name() {
        let parsed = InheritedFd::parse(OsStr::new("fd[17]:pipe:[44]")).expect("parses");
        assert_eq!((parsed.fd, parsed.key.as_slice()), (17, &b"pipe:[44]"[..]));
        for wrong in ["", "fd[17]", "fd[17]:", "fd[x]:k", "fd[-1]:k", "17:k"] {
            assert!(InheritedFd::parse(OsStr::new(wrong)).is_err(), "{wrong}");
        }
    }
}
